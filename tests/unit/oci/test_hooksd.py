"""hooks.d entries: every rule, on reading and on writing; second witness: the json package."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from nvoci.errors import HookError
from nvoci.oci import hooksd


def compile_regex(pattern: str) -> None:
    try:
        re.compile(pattern)
    except re.error as e:
        raise ValueError(str(e)) from None


def document(**changes: Any) -> dict[str, Any]:
    """A right entry; `hook__args=…` sets doc["hook"]["args"], `...` removes the key."""
    doc: dict[str, Any] = {
        "version": "1.0.0",
        "hook": {"path": "/usr/bin/hook", "args": ["hook", "do"], "env": ["A=b"], "timeout": 5},
        "when": {"always": True, "annotations": {"^k$": "v"}, "commands": ["sh$"], "hasBindMounts": False},
        "stages": ["createContainer", "poststop"],
    }
    for where, value in changes.items():
        *parents, key = where.split("__")
        owner = doc
        for parent in parents:
            owner = owner[parent]
        if value is ...:
            del owner[key]
        else:
            owner[key] = value
    return doc


def parse(doc: dict[str, Any]) -> hooksd.Entry:
    return hooksd.parse(doc, "x.json", compile_regex)


def entry(**changes: Any) -> hooksd.Entry:
    values: dict[str, Any] = {
        "path": "/usr/bin/hook",
        "args": ["hook"],
        "env": [],
        "when": hooksd.When(always=True),
        "stages": ["createContainer"],
    }
    return hooksd.ours(**{**values, **changes})


def test_every_field_of_a_right_entry_is_read() -> None:
    found = parse(document())
    assert (found.path, found.args, found.env, found.timeout) == ("/usr/bin/hook", ["hook", "do"], ["A=b"], 5)
    assert (found.when.always, found.when.annotations) == (True, {"^k$": "v"})
    assert (found.when.commands, found.when.has_bind_mounts) == (["sh$"], False)
    assert found.stages == ["createContainer", "poststop"]


def test_what_is_optional_may_be_left_out() -> None:
    found = parse(document(hook={"path": "/h"}, when={"commands": ["x"]}, stages=["precreate"]))
    assert (found.args, found.env, found.timeout, found.origin()) == ([], [], None, "")


WRONG = {
    "no version": ({"version": ...}, "`version` is not 1.0.0"),
    "old version": ({"version": "0.1.0"}, "`version` is not 1.0.0"),
    "version number": ({"version": 1.0}, "`version` is not 1.0.0"),
    "unknown key": ({"stage": ["poststop"]}, "unknown key `stage`"),
    "no hook": ({"hook": ...}, "`hook` is missing"),
    "hook a string": ({"hook": "/usr/bin/hook"}, "`hook` is not an object"),
    "unknown hook key": ({"hook__arguments": []}, "unknown key `hook.arguments`"),
    "no path": ({"hook__path": ...}, "`hook.path` is missing"),
    "relative path": ({"hook__path": "hook"}, "not the absolute path"),
    "path a directory": ({"hook__path": "/usr/bin/"}, "not the absolute path"),
    "path a number": ({"hook__path": 1}, "`hook.path` holds `1`"),
    "path with NUL": ({"hook__path": "/a\0"}, "with a NUL"),
    "path with surrogate": ({"hook__path": "/a\udc80"}, "not UTF-8"),
    "args a string": ({"hook__args": "hook do"}, "`hook.args` is not a list"),
    "args empty": ({"hook__args": []}, "`hook.args` is not a list"),
    "args without the name": ({"hook__args": ["--link", "a::b"]}, "does not start with the program's name"),
    "args holds a number": ({"hook__args": ["hook", 1]}, "`hook.args` holds `1`"),
    "env empty": ({"hook__env": []}, "`hook.env` is not a list"),
    "env an object": ({"hook__env": {"A": "b"}}, "`hook.env` is not a list"),
    "env without =": ({"hook__env": ["A"]}, "not NAME=value"),
    "env without a name": ({"hook__env": ["=b"]}, "not NAME=value"),
    "timeout 0": ({"hook__timeout": 0}, "greater than 0"),
    "timeout negative": ({"hook__timeout": -1}, "greater than 0"),
    "timeout true": ({"hook__timeout": True}, "greater than 0"),
    "timeout a fraction": ({"hook__timeout": 1.5}, "greater than 0"),
    "timeout null": ({"hook__timeout": None}, "greater than 0"),
    "no when": ({"when": ...}, "`when` is missing"),
    "when empty": ({"when": {}}, "holds no condition"),
    "when misspelt": ({"when": {"alway": True}}, "unknown key `when.alway`"),
    "old spelling": ({"when": {"annotation": {"a": "b"}}}, "unknown key `when.annotation`"),
    "always a string": ({"when__always": "true"}, "`when.always` is not true or false"),
    "bind mounts a number": ({"when__hasBindMounts": 1}, "`when.hasBindMounts` is not true or false"),
    "annotations a list": ({"when__annotations": ["a"]}, "`when.annotations` is not an object"),
    "annotations empty": ({"when__annotations": {}}, "`when.annotations` is not an object"),
    "annotation key": ({"when__annotations": {"(": "a"}}, "no regular expression"),
    "annotation value": ({"when__annotations": {"a": "("}}, "no regular expression"),
    "annotation a number": ({"when__annotations": {"a": 1}}, "`when.annotations` holds `1`"),
    "commands a string": ({"when__commands": "sh"}, "`when.commands` is not a list"),
    "commands empty": ({"when__commands": []}, "`when.commands` is not a list"),
    "command": ({"when__commands": ["["]}, "no regular expression"),
    "no stages": ({"stages": ...}, "`stages` is missing"),
    "stages empty": ({"stages": []}, "`stages` is not a list"),
    "stages a string": ({"stages": "poststop"}, "`stages` is not a list"),
    "unknown stage": ({"stages": ["createcontainer"]}, "`stages` holds `createcontainer`"),
    "stage twice": ({"stages": ["poststop", "poststop"]}, "twice"),
}


@pytest.mark.parametrize(("changes", "message"), WRONG.values(), ids=WRONG.keys())
def test_a_rule_that_does_not_hold_names_the_key(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(HookError) as e:
        parse(document(**changes))
    assert message in e.value.message
    assert e.value.message.startswith("read entry x.json: ")


def test_an_entry_of_ours_has_its_mark_first_and_once() -> None:
    made = entry(env=["A=b", f"{hooksd.MARK}=old"], origin="cdi:v/c")
    assert made.env == ["NVOCI_HOOK=cdi:v/c", "A=b"]
    assert made.origin() == "cdi:v/c"


ODD = ['"', "\\", "\n", "\x7f", "\x85", "ä", "\u2028", "\U0001f600", "\ufeff", "a b", ""]


@pytest.mark.parametrize("odd", ODD, ids=ascii)
def test_what_is_rendered_is_what_json_reads_and_what_was_meant(odd: str) -> None:
    made = entry(args=["hook", odd], when=hooksd.When(annotations={f"a{odd}": odd}, has_bind_mounts=True), timeout=3)
    text = hooksd.render(made)
    assert json.loads(text) == made.document()
    assert text.endswith(b"}\n")
    assert hooksd.parse(json.loads(text), "x", lambda _: None).document() == made.document()


def test_a_file_is_written_whole_and_read_back(tmp_path: Path) -> None:
    path = hooksd.write(str(tmp_path), "10-a", entry(), compile_regex)
    assert path == f"{tmp_path}/10-a.json"
    assert hooksd.read(path, compile_regex).document() == json.loads(Path(path).read_bytes())
    assert Path(path).stat().st_mode & 0o7777 == 0o644
    assert os.listdir(tmp_path) == ["10-a.json"]


@pytest.mark.parametrize("name", ["", ".json", ".a", "-a", "a/b", "..", "a b", "a\n", "ä", "a'", "a" * 251, "a*"])
def test_a_name_that_is_no_plain_file_name_is_refused(name: str) -> None:
    with pytest.raises(HookError, match="not a plain file name"):
        hooksd.file_name(name)


def test_an_entry_that_breaks_a_rule_is_not_written(tmp_path: Path) -> None:
    for wrong in (entry(stages=["now"]), entry(path="hook"), entry(timeout=0), entry(when=hooksd.When())):
        with pytest.raises(HookError, match="write entry"):
            hooksd.write(str(tmp_path), "a", wrong, compile_regex)
    bare = hooksd.Entry("/h", [], [], hooksd.When(always=True), ["poststop"])
    with pytest.raises(HookError, match=r"`hook\.env` is empty"):
        hooksd.write(str(tmp_path), "a", bare, compile_regex)
    assert os.listdir(tmp_path) == []


def test_only_an_entry_of_the_same_origin_is_replaced(tmp_path: Path) -> None:
    hooksd.write(str(tmp_path), "a", entry(), compile_regex)
    hooksd.write(str(tmp_path), "a", entry(args=["hook", "new"]), compile_regex)
    assert hooksd.read(f"{tmp_path}/a.json", compile_regex).args == ["hook", "new"]
    before = (tmp_path / "a.json").read_bytes()
    with pytest.raises(HookError, match="EEXIST"):
        hooksd.write(str(tmp_path), "a", entry(origin="cdi:v/c"), compile_regex)
    assert (tmp_path / "a.json").read_bytes() == before


@pytest.mark.parametrize("kind", ["foreign", "damaged", "directory", "fifo", "dangling link"])
def test_what_is_not_ours_is_neither_replaced_nor_removed(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.json"
    if kind == "foreign":
        path.write_text(json.dumps(document()))
    elif kind == "damaged":
        path.write_text("{")
    elif kind == "directory":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        path.symlink_to("/nowhere")
    with pytest.raises(HookError, match="EEXIST"):
        hooksd.write(str(tmp_path), "a", entry(), compile_regex)
    with pytest.raises(HookError):
        hooksd.remove(str(tmp_path), "a", compile_regex)
    assert os.listdir(tmp_path) == ["a.json"]


def test_our_own_entry_is_removed(tmp_path: Path) -> None:
    hooksd.write(str(tmp_path), "a", entry(), compile_regex)
    assert hooksd.remove(str(tmp_path), "a", compile_regex) == f"{tmp_path}/a.json"
    assert os.listdir(tmp_path) == []


def test_a_listing_has_every_entry_in_the_engines_order_and_an_error_for_each_bad_one(tmp_path: Path) -> None:
    for name in ("02-b", "01-UPPER", "01-lower"):
        hooksd.write(str(tmp_path), name, entry(), compile_regex)
    (tmp_path / "bad.json").write_text('{"version": "1.0.0", "version": "1.0.0"}')
    (tmp_path / "big.json").write_bytes(b" " * (hooksd.MAX_ENTRY + 1))
    (tmp_path / "template.json.in").write_text("{")
    found = hooksd.listing(str(tmp_path), compile_regex)
    assert [f.name for f in found] == ["01-lower.json", "01-UPPER.json", "02-b.json", "bad.json", "big.json"]
    assert [f.entry is not None for f in found] == [True, True, True, False, False]
    errors = [f.error.line() for f in found if f.error]
    assert "given twice" in errors[0]
    assert "EFBIG" in errors[1]


def test_a_directory_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(HookError, match="ENOENT"):
        hooksd.listing(f"{tmp_path}/none", compile_regex)
    with pytest.raises(HookError, match="ENOENT"):
        hooksd.write(f"{tmp_path}/none", "a", entry(), compile_regex)
