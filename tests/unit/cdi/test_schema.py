"""The schema: what a document must have, told with our places; second witnesses: the strict reader, the meta-schema's
words as far as we use them."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import fastjsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from unit.cdi import spectools

from nvoci.cdi import schema, validate
from nvoci.cdi.document import from_object, to_object
from nvoci.cdi.error import SpecError
from nvoci.cdi.model import Spec
from nvoci.cdi.yamlscalar import Plain

FAST = settings(max_examples=60, deadline=None)
UINT32, INT64 = (1 << 32) - 1, (1 << 63) - 1


def full() -> dict[str, Any]:
    """A document with every field."""
    edits = {
        "env": ["A=1"],
        "deviceNodes": [{"path": "/dev/a", "hostPath": "/dev/b", "type": "c", "major": 1, "minor": 2, "fileMode": 438,
                         "permissions": "rw", "uid": 0, "gid": 44}],
        "netDevices": [{"hostInterfaceName": "eth0", "name": "a"}],
        "hooks": [{"hookName": "prestart", "path": "/h", "args": ["h"], "env": ["B=2"], "timeout": 5}],
        "mounts": [{"hostPath": "/a", "containerPath": "/b", "options": ["ro"], "type": "bind"}],
        "intelRdt": {"closID": "a", "l3CacheSchema": "b", "memBwSchema": "c", "schemata": ["d"],
                     "enableMonitoring": True},
        "additionalGids": [44],
    }  # fmt: skip
    device = {"name": "gpu0", "annotations": {"a.b/c": "d"}, "containerEdits": edits}
    return {"cdiVersion": "1.1.0", "kind": "nvidia.com/gpu", "annotations": {"e.f/g": "h"}, "devices": [device],
            "containerEdits": copy.deepcopy(edits)}  # fmt: skip


def changed(path: list[Any], value: Any) -> dict[str, Any]:
    """`full()` with `value` at `path`; `...` removes it."""
    doc: Any = full()
    owner = doc
    for key in path[:-1]:
        owner = owner[key]
    if value is ...:
        del owner[path[-1]]
    else:
        owner[path[-1]] = value
    return doc  # type: ignore[no-any-return]


def place_of(path: list[Any]) -> str:
    """["devices", 0, "annotations", "a.b/c"] -> devices[0].annotations[a.b/c]."""
    text = ""
    for before, key in zip(["", *path], path):
        text += f"[{key}]" if isinstance(key, int) or before == "annotations" else f".{key}"
    return text.lstrip(".")


def leaves(value: Any, path: tuple[Any, ...] = ()) -> list[list[Any]]:
    """The path of everything in a document but the document."""
    found = [list(path)] if path else []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else []
    for key, item in items:
        found += leaves(item, (*path, key))
    return found


EVERY = leaves(full())


def places(doc: object) -> list[str]:
    return [problem.where for problem in schema.problems(doc)]


def test_a_document_with_every_field_has_no_problems() -> None:
    assert schema.problems(full()) == []
    assert validate.problems(from_object(full())) == []


@pytest.mark.parametrize("path", EVERY, ids=place_of)
def test_a_value_of_another_type_is_told_with_its_place(path: list[Any]) -> None:
    doc = changed(path, 1.5)
    (found,) = schema.problems(doc)
    assert found.where == place_of(path)
    assert found.why.startswith("must be ")
    with pytest.raises(SpecError) as caught:
        from_object(doc)
    assert caught.value.where == found.where


@pytest.mark.parametrize("path", EVERY, ids=place_of)
def test_null_and_lists_are_no_values(path: list[Any]) -> None:
    assert places(changed(path, None)) == [place_of(path)]
    assert bool(schema.problems(changed(path, [[]])))


NEEDED = {
    "cdiVersion", "kind", "devices", "devices.name", "devices.containerEdits", "deviceNodes.path",
    "netDevices.hostInterfaceName", "netDevices.name", "hooks.hookName", "hooks.path", "mounts.hostPath",
    "mounts.containerPath",
}  # fmt: skip


@pytest.mark.parametrize("path", [path for path in EVERY if isinstance(path[-1], str)], ids=place_of)
def test_a_field_that_is_missing_is_told_if_there_must_be_one(path: list[Any]) -> None:
    names = [key for key in path if isinstance(key, str)]
    found = schema.problems(changed(path, ...))
    if ".".join(names[-2:]) in NEEDED or (len(names) == 1 and names[0] in NEEDED):
        assert [(each.where, each.why) for each in found] == [(place_of(path[:-1]), f"it has no `{path[-1]}`")]
    else:
        assert found == []


@pytest.mark.parametrize("path", [[], *(path for path in EVERY if not isinstance(path[-1], int))], ids=place_of)
def test_unknown_fields_pass(path: list[Any]) -> None:
    owner: Any = full()
    doc = owner
    for key in path:
        owner = owner[key]
    if isinstance(owner, dict) and path[-1:] != ["annotations"]:
        owner["unknown"] = {"a": [1, None]}
    assert schema.problems(doc) == []


NODE, HOOK = ["containerEdits", "deviceNodes", 0], ["devices", 0, "containerEdits", "hooks", 0]
NUMBERS = {
    "timeout 0": ([*HOOK, "timeout"], 0, ""),
    "timeout": ([*HOOK, "timeout"], UINT32, ""),
    "timeout too large": ([*HOOK, "timeout"], UINT32 + 1, "must be smaller than or equal to 4294967295"),
    "negative timeout": ([*HOOK, "timeout"], -1, "must be bigger than or equal to 0"),
    "true": ([*HOOK, "timeout"], True, "must be integer"),
    "text": ([*HOOK, "timeout"], "5", "must be integer"),
    "uid": ([*NODE, "uid"], UINT32, ""),
    "uid too large": ([*NODE, "uid"], UINT32 + 1, "must be smaller"),
    "negative gid": ([*NODE, "gid"], -1, "must be bigger"),
    "fileMode": ([*NODE, "fileMode"], UINT32 + 1, "must be smaller"),
    "major": ([*NODE, "major"], INT64, ""),
    "any major": ([*NODE, "major"], -1, ""),
    "major too large": ([*NODE, "major"], INT64 + 1, "must be smaller"),
    "minor too small": ([*NODE, "minor"], -INT64 - 2, "must be bigger"),
    "group": (["containerEdits", "additionalGids", 0], -1, "must be bigger"),
}


@pytest.mark.parametrize("what", NUMBERS)
def test_a_number_has_a_range(what: str) -> None:
    path, number, words = NUMBERS[what]
    found = schema.problems(changed(path, number))
    assert [each.where for each in found] == ([place_of(path)] if words else [])
    assert all(each.why.startswith(words) for each in found)


LOOSE = {
    "no such version": (["cdiVersion"], "x"),
    "no kind": (["kind"], ""),
    "no devices": (["devices"], []),
    "no edits": (["devices", 0, "containerEdits"], {}),
    "no such stage": ([*HOOK, "hookName"], "x"),
    "no such type": ([*NODE, "type"], "x"),
    "permissions": ([*NODE, "permissions"], "x"),
    "variable": (["containerEdits", "env", 0], "x"),
    "key": (["annotations"], {"?": ""}),
}


@pytest.mark.parametrize("what", LOOSE)
def test_what_values_mean_is_not_looked_at(what: str) -> None:
    assert schema.problems(changed(*LOOSE[what])) == []


@pytest.mark.parametrize("doc", [None, True, 5, 1.5, "", "text", []], ids=repr)
def test_what_is_no_object_is_no_specification(doc: object) -> None:
    (found,) = schema.problems(doc)
    assert (found.where, found.why) == ("", "must be object")


def test_every_problem_is_told() -> None:
    doc = {"kind": 1, "devices": [{"containerEdits": {"env": [1, "A=1", 2]}}, 3]}
    assert sorted((each.where, each.why) for each in schema.problems(doc)) == [
        ("", "it has no `cdiVersion`"),
        ("devices[0]", "it has no `name`"),
        ("devices[0].containerEdits.env[0]", "must be string"),
        ("devices[0].containerEdits.env[2]", "must be string"),
        ("devices[1]", "must be object"),
        ("kind", "must be string"),
    ]


def test_a_fastjsonschema_that_stops_at_the_first_problem_serves_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """As before 2.22."""

    def old(definition: Any, handlers: Any = None, formats: Any = None, use_default: bool = True) -> Any:
        return new(definition, handlers or {}, formats or {}, use_default)

    new = fastjsonschema.compile
    monkeypatch.setattr(fastjsonschema, "compile", old)
    schema._validator.cache_clear()
    try:
        found = schema.problems({"cdiVersion": 1, "kind": 1, "devices": [1]})
        assert [(each.where, each.why) for each in found] == [("cdiVersion", "must be string")]
        assert places({"cdiVersion": ""}) == [""]
        assert schema.problems(full()) == []
    finally:
        schema._validator.cache_clear()


def test_without_fastjsonschema_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fastjsonschema", None)
    schema._validator.cache_clear()
    with pytest.raises(SpecError, match="fastjsonschema is not installed"):
        schema.problems({})


def test_the_problems_of_a_large_document_are_bounded() -> None:
    doc = full()
    doc["devices"] = [1] * 2000
    assert len(schema.problems(doc)) == validate.MAX_PROBLEMS
    doc["devices"] = [1] * schema.MAX_COLLECTED
    assert places(doc) == ["devices[0]"]
    deep: Any = []
    for _ in range(5000):
        deep = [deep]
    doc["devices"] = deep
    assert [each.why for each in schema.problems(doc)] == ["nested too deeply"]


ODD = st.text(st.sampled_from("{}[].'\"\\%\n/ aé"), min_size=1, max_size=6)


@FAST
@given(ODD)
def test_an_annotation_of_any_key_is_named(key: str) -> None:
    for path in (["annotations", key], ["devices", 0, "annotations", key]):
        assert places(changed(path, 1)) == [SpecError("", place_of(path)).where]
        assert places(changed(path, "")) == []


@FAST
@given(ODD)
def test_an_unknown_field_of_any_name_passes(key: str) -> None:
    assert schema.problems(changed(["devices", 0, key], 1)) == []


@FAST
@given(spectools.SPEC)
def test_what_is_written_has_the_form(spec: Spec) -> None:
    assert schema.problems(to_object(spec)) == []


def test_scalars_of_yaml_are_what_they_look_like() -> None:
    assert schema.problems(changed([*HOOK, "timeout"], Plain("5"))) == []
    assert schema.problems(changed(["containerEdits", "intelRdt", "enableMonitoring"], Plain("true"))) == []
    assert schema.problems(changed(["cdiVersion"], Plain("0.5.0"))) == []
    assert places(changed(["devices", 0, "name"], Plain("0"))) == ["devices[0].name"]


def test_the_document_is_left_as_it_was() -> None:
    doc = full()
    schema.problems(doc)
    assert doc == full()


# --- the schema itself ---------------------------------------------------------------------------------------------

WORDS = {
    "$ref", "$schema", "additionalProperties", "allOf", "definitions", "description", "examples", "items", "maximum",
    "minimum", "properties", "required", "title", "type",
}  # fmt: skip


def subschemas(value: dict[str, Any]) -> list[dict[str, Any]]:
    """It, and all within it."""
    found = [value]
    for word in ("properties", "definitions"):
        found += [each for part in value.get(word, {}).values() for each in subschemas(part)]
    for word in ("items", "additionalProperties"):
        found += subschemas(value[word]) if word in value else []
    return found + [each for part in value.get("allOf", []) for each in subschemas(part)]


def test_the_schema_uses_words_of_draft_07_and_refers_to_itself_only() -> None:
    definitions = schema.document()["definitions"]
    referred = set()
    for each in subschemas(schema.document()):
        assert set(each) <= WORDS
        if "$ref" in each:
            assert set(each) == {"$ref"}  # its siblings would be ignored
            referred.add(each["$ref"])
    assert referred == {f"#/definitions/{name}" for name in definitions}


def test_every_field_of_the_schema_has_a_title_and_stands_in_the_document() -> None:
    top = schema.document()
    fields: dict[str, Any] = {}
    for each in subschemas(top):
        fields.update(each.get("properties", {}))
    assert set(fields) == {key for path in EVERY for key in path if isinstance(key, str)} - {"a.b/c", "e.f/g"}
    for name, field in fields.items():
        target = top["definitions"][field["$ref"].rpartition("/")[2]] if "$ref" in field else field
        assert target.get("title"), name


def test_the_schema_is_beside_its_module() -> None:
    assert Path(schema.PATH) == Path(schema.__file__).with_name("schema.json")
