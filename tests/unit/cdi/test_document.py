"""Documents and models: the same both ways, in the usual order; what is no specification is refused with its place."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from unit.cdi import strategies

from nvoci.cdi import document
from nvoci.cdi.error import SpecError
from nvoci.cdi.model import ContainerEdits, Device, DeviceNode, Hook, IntelRdt, Mount, NetDevice, Spec
from nvoci.cdi.yamlscalar import Plain

FAST = settings(max_examples=60, deadline=None)

# Every field there is, none of them empty, in the order in which they are written.
FULL_EDITS: dict[str, Any] = {
    "env": ["A=b"],
    "deviceNodes": [
        {
            "path": "/dev/a", "hostPath": "/dev/b", "type": "c", "major": 195, "minor": 7, "fileMode": 438,
            "permissions": "rwm", "uid": 1, "gid": 44,
        }
    ],
    "netDevices": [{"hostInterfaceName": "eth0", "name": "eth1"}],
    "hooks": [{"hookName": "prestart", "path": "/h", "args": ["h", "-x"], "env": ["B=c"], "timeout": 5}],
    "mounts": [{"hostPath": "/a", "containerPath": "/b", "options": ["ro"], "type": "tmpfs"}],
    "intelRdt": {
        "closID": "a", "l3CacheSchema": "L3:0=f", "memBwSchema": "MB:0=9", "schemata": ["L3:0=f"],
        "enableMonitoring": True,
    },
    "additionalGids": [44, 104],
}  # fmt: skip
FULL: dict[str, Any] = {
    "cdiVersion": "1.1.0",
    "kind": "nvidia.com/gpu",
    "annotations": {"a/b": "c"},
    "devices": [{"name": "0", "annotations": {"d/e": "f"}, "containerEdits": FULL_EDITS}],
    "containerEdits": FULL_EDITS,
}
EDITS = ContainerEdits(
    env=("A=b",),
    device_nodes=(DeviceNode("/dev/a", "/dev/b", "c", 195, 7, 0o666, "rwm", 1, 44),),
    net_devices=(NetDevice("eth0", "eth1"),),
    hooks=(Hook("prestart", "/h", ("h", "-x"), ("B=c",), 5),),
    mounts=(Mount("/a", "/b", ("ro",), "tmpfs"),),
    intel_rdt=IntelRdt("a", "L3:0=f", "MB:0=9", ("L3:0=f",), True),
    additional_gids=(44, 104),
)
SPEC = Spec("1.1.0", "nvidia.com/gpu", (Device("0", EDITS, {"d/e": "f"}),), EDITS, {"a/b": "c"})

# A place in FULL: a name or an index after another. "" for the whole.
Place = tuple[Any, ...]
NODE: Place = ("devices", 0, "containerEdits", "deviceNodes", 0)
OBJECTS: dict[str, Place] = {
    "": (),
    "devices[0]": ("devices", 0),
    "containerEdits": ("containerEdits",),
    "devices[0].containerEdits": ("devices", 0, "containerEdits"),
    "devices[0].containerEdits.deviceNodes[0]": NODE,
    "containerEdits.netDevices[0]": ("containerEdits", "netDevices", 0),
    "containerEdits.hooks[0]": ("containerEdits", "hooks", 0),
    "containerEdits.mounts[0]": ("containerEdits", "mounts", 0),
    "containerEdits.intelRdt": ("containerEdits", "intelRdt"),
}


def changed(place: Place, value: Any) -> dict[str, Any]:
    """FULL with another value at a place; `...` takes it away."""
    doc: dict[str, Any] = json.loads(json.dumps(FULL))
    owner: Any = doc
    for part in place[:-1]:
        owner = owner[part]
    if value is ...:
        del owner[place[-1]]
    else:
        owner[place[-1]] = value
    return doc


def refusal(doc: object, file: str = "") -> SpecError:
    with pytest.raises(SpecError) as caught:
        document.from_object(doc, file)
    return caught.value


def fields(value: Any, place: Place = ()) -> list[Place]:
    """Every field of an object, and of those within it."""
    found: list[Place] = []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        found += [(*place, key), *fields(item, (*place, key))]
    return found


def written(place: Place) -> str:
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place)
    return text.replace("annotations.a/b", "annotations[a/b]").replace("annotations.d/e", "annotations[d/e]")[1:]


ALL_FIELDS = {written(place): place for place in fields(FULL)}


# --- both ways ------------------------------------------------------------------------------------------------------


def test_every_field_is_read_and_written_in_order() -> None:
    assert document.from_object(FULL) == SPEC
    assert json.dumps(document.to_object(SPEC)) == json.dumps(FULL)


@FAST
@given(strategies.specs())
def test_a_valid_spec_is_read_as_it_was_written(spec: Spec) -> None:
    assert document.from_object(document.to_object(spec)) == spec


@FAST
@given(strategies.loose_specs())
def test_what_is_no_valid_spec_is_read_as_it_was_written(spec: Spec) -> None:
    assert document.from_object(document.to_object(spec)) == spec


def test_what_is_not_given_is_left_out() -> None:
    edits = ContainerEdits(
        device_nodes=(DeviceNode("/a"),), hooks=(Hook("prestart", "/h"),), mounts=(Mount("/a", "/b"),)
    )
    assert document.to_object(Spec("0.5.0", "a/b", (Device("0", edits), Device("1")))) == {
        "cdiVersion": "0.5.0",
        "kind": "a/b",
        "devices": [
            {
                "name": "0",
                "containerEdits": {
                    "deviceNodes": [{"path": "/a"}],
                    "hooks": [{"hookName": "prestart", "path": "/h"}],
                    "mounts": [{"hostPath": "/a", "containerPath": "/b"}],
                },
            },
            {"name": "1", "containerEdits": {}},
        ],
    }
    assert document.to_object(Spec("", "")) == {"cdiVersion": "", "kind": "", "devices": []}


def test_a_zero_that_is_given_is_written() -> None:
    node = DeviceNode("/a", major=0, minor=0, file_mode=0, uid=0, gid=0)
    edits = ContainerEdits(device_nodes=(node,), hooks=(Hook("prestart", "/h", timeout=0),), additional_gids=(0,))
    doc = document.edits_to_object(edits)
    assert doc["deviceNodes"] == [{"path": "/a", "fileMode": 0, "uid": 0, "gid": 0}]
    assert doc["hooks"] == [{"hookName": "prestart", "path": "/h", "timeout": 0}]
    assert doc["additionalGids"] == [0]
    assert document.edits_from_object(doc) == edits


@pytest.mark.parametrize("rdt", [IntelRdt(), IntelRdt(schemata=()), IntelRdt(schemata=("a",))])
def test_an_empty_intel_rdt_is_not_a_missing_one(rdt: IntelRdt) -> None:
    doc = document.edits_to_object(ContainerEdits(intel_rdt=rdt))
    assert doc == {"intelRdt": {} if rdt.schemata is None else {"schemata": list(rdt.schemata)}}
    assert document.edits_from_object(doc).intel_rdt == rdt


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", OBJECTS)
def test_an_unknown_field_is_named_with_its_place(where: str) -> None:
    error = refusal(changed((*OBJECTS[where], "hostpath"), "x"), "/etc/cdi/x.yaml")
    assert (error.where, error.why, error.file) == (where, "unknown field `hostpath`", "/etc/cdi/x.yaml")
    assert error.message == ": ".join(part for part in ("CDI spec /etc/cdi/x.yaml", where, error.why) if part)


@pytest.mark.parametrize("field", ["enableCMT", "enableMBM"])
def test_a_field_that_was_dropped_is_unknown(field: str) -> None:
    assert refusal(changed(("containerEdits", "intelRdt", field), True)).why == f"unknown field `{field}`"


def test_a_field_in_other_letters_is_unknown() -> None:
    assert refusal({"cdiversion": "1.0.0"}).why == "unknown field `cdiversion`"


@pytest.mark.parametrize("where", ALL_FIELDS)
@pytest.mark.parametrize("value", [1, "text", True, 1.5, [], {}, [None], Plain("word")], ids=repr)
def test_a_value_of_another_type_is_refused_where_it_stands(where: str, value: Any) -> None:
    place = ALL_FIELDS[where]
    now: Any = FULL
    for part in place:
        now = now[part]
    wanted = type(now)
    fits = type(value) is wanted or (type(value) is Plain and wanted is str)
    if fits and value not in ([None],):
        document.from_object(changed(place, value))
        return
    error = refusal(changed(place, value))
    assert error.where == (where + "[0]" if fits else where)
    assert "not a" in error.why


NUMBERS = {
    "major": (-(1 << 63), (1 << 63) - 1),
    "minor": (-(1 << 63), (1 << 63) - 1),
    "fileMode": (0, (1 << 32) - 1),
    "uid": (0, (1 << 32) - 1),
    "gid": (0, (1 << 32) - 1),
}


@pytest.mark.parametrize("field", NUMBERS)
def test_a_number_has_the_range_of_its_type(field: str) -> None:
    low, high = NUMBERS[field]
    for number in (low, high):
        document.from_object(changed((*NODE, field), number))
    for number in (low - 1, high + 1, 10**60):
        error = refusal(changed((*NODE, field), number))
        assert error.where == f"devices[0].containerEdits.deviceNodes[0].{field}"
        assert error.why.startswith(str(number)[:20])
        assert error.why.endswith(f"is not within {low}..{high}")


@pytest.mark.parametrize("gid", [-1, 1 << 32])
def test_a_gid_beyond_its_type_is_named_by_its_index(gid: int) -> None:
    assert refusal(changed(("containerEdits", "additionalGids"), [1, gid])).where == "containerEdits.additionalGids[1]"


@pytest.mark.parametrize("text", ["a\0b", "\0", "\udc80", "a\ud800"], ids=ascii)
def test_a_string_that_no_file_can_be_called_is_refused(text: str) -> None:
    assert refusal(changed((*NODE, "path"), text)).where.endswith(".path")
    assert refusal(changed(("annotations", text), "x")).where.startswith("annotations[")


@pytest.mark.parametrize("doc", [None, [], "text", 5, True, Plain("x")], ids=repr)
def test_what_is_no_object_is_no_spec(doc: object) -> None:
    assert "not an object" in refusal(doc).message


def test_an_error_repeats_only_the_beginning_of_what_is_long() -> None:
    for doc in ({"x" * 10_000: 1}, {"containerEdits": Plain("y" * 10_000)}, {"annotations": {"z" * 10_000: 1}}):
        assert len(refusal(doc).line()) < 300


# --- null -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", [where for where, place in ALL_FIELDS.items() if isinstance(place[-1], str)])
def test_null_for_a_field_is_as_if_it_was_not_given(where: str) -> None:
    place = ALL_FIELDS[where]
    if place[-2:-1] == ("annotations",):
        found = document.from_object(changed(place, None))
        assert "" in (*found.annotations.values(), *found.devices[0].annotations.values())
        return
    assert document.from_object(changed(place, None)) == document.from_object(changed(place, ...))


def test_a_required_field_that_is_missing_is_empty() -> None:
    assert document.from_object({}) == Spec("", "")
    assert document.edits_from_object({"mounts": [{}]}).mounts == (Mount("", ""),)


# --- scalars without quotes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["0", "0:1", "true", "1.5", "-5", "2001-01-01", "190:20:30", "=", "name", "1e999"])
def test_a_string_field_takes_the_text_of_a_plain_scalar(text: str) -> None:
    spec = document.from_object(changed(("devices", 0, "name"), Plain(text)))
    assert spec.devices[0].name == text
    assert type(spec.devices[0].name) is str


# By strconv's rules: what sigs.k8s.io/yaml gives for a string.
ENGINES = {
    "0x10": "16", "0X1f": "31", "0o17": "15", "017": "15", "0b11": "3", "00": "0", "-0": "0", "+5": "5",
    "1_000": "1000", "08": "8", "1.0": "1", "1.50": "1.5", "1.": "1", ".5": "0.5", "-0.0": "-0", "1e3": "1000",
    "1E5": "100000",
    "1000000.0": "1e+06", "1234567.5": "1.2345675e+06", "0.00001": "1e-05", "16777217.0": "1.6777216e+07",
    "0.30000000000000004": "0.3", "1e39": "+Inf", "18446744073709551616": "1.8446744e+19",
    "0x1ffffffffffffffff": "a number of more than 64 bits", "9" * 400: "a number of more than 64 bits",
    ".inf": "+Inf", "-.INF": "-Inf", ".nan": "NaN", "True": "true", "yes": "true", "y": "true", "On": "true",
    "NO": "false", "n": "false", "off": "false",
}  # fmt: skip


@pytest.mark.parametrize("text", ENGINES, ids=lambda text: text[:25])
@pytest.mark.parametrize(
    ("place", "where"),
    [
        (("devices", 0, "name"), "devices[0].name"),
        (("containerEdits", "env"), "containerEdits.env[0]"),
        (("annotations",), "annotations[a]"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_plain_scalar_that_engines_read_as_another_text_is_to_be_quoted(
    text: str, place: tuple[Any, ...], where: str
) -> None:
    value: Any = {"env": [Plain(text)], "annotations": {"a": Plain(text)}}.get(place[-1], Plain(text))
    with pytest.raises(SpecError) as caught:
        document.from_object(changed(place, value))
    shown = text if len(text) <= 60 else text[:60] + "..."
    assert caught.value.where == where
    assert caught.value.why == f"write `{shown}` in quotes: engines read it as `{ENGINES[text]}`"


# None: refused.
INTEGERS: dict[str, int | None] = {
    "0": 0, "438": 438, "+5": 5, "0666": 0o666, "00": 0, "0o666": 0o666, "0O17": 0o17, "0x1B6": 438, "0Xff": 255,
    "0b11": 3, "1_000": 1000, "0xf_f": 255, "-0": 0, "08": None, "0x": None, "0o8": None, "1.0": None, "1e3": None,
    "": None, "-": None, "--1": None, "0x-1": None, "0x 1": None, "1 ": None, "_1": None, "1__0": None, "1:30": None,
    "\u0663": None, "\u00b2": None, "true": None, "word": None, "9" * 65: None,
}  # fmt: skip


@pytest.mark.parametrize("text", INTEGERS, ids=ascii)
def test_an_integer_field_reads_a_plain_scalar(text: str) -> None:
    doc, wanted = changed((*NODE, "fileMode"), Plain(text)), INTEGERS[text]
    if wanted is None:
        assert "is not" in refusal(doc).why or "not an integer" in refusal(doc).why
    else:
        assert document.from_object(doc).devices[0].container_edits.device_nodes[0].file_mode == wanted


def test_a_signed_field_reads_a_negative_number() -> None:
    found = document.edits_from_object({"deviceNodes": [{"path": "/a", "major": Plain("-0x10"), "minor": -1}]})
    assert found.device_nodes == (DeviceNode("/a", major=-16, minor=-1),)


@pytest.mark.parametrize("word", ["true", "True", "TRUE", "yes", "Yes", "YES", "on", "On", "ON"])
def test_a_boolean_field_reads_the_words_of_yaml_1_1(word: str) -> None:
    no = {"true": "false", "yes": "no", "on": "off"}[word.lower()]
    no = no.upper() if word.isupper() else no.capitalize() if word[0].isupper() else no
    for text, wanted in ((word, True), (no, False)):
        doc = {"intelRdt": {"enableMonitoring": Plain(text)}}
        assert document.edits_from_object(doc).intel_rdt == IntelRdt(enable_monitoring=wanted)


@pytest.mark.parametrize("value", [Plain("y"), Plain("tRue"), Plain("1"), "true", 1, 0], ids=repr)
def test_a_boolean_field_takes_no_other_word(value: object) -> None:
    with pytest.raises(SpecError, match="not a boolean"):
        document.edits_from_object({"intelRdt": {"enableMonitoring": value}})


def test_quotes_make_a_string_of_a_number() -> None:
    assert refusal(changed((*NODE, "major"), "195")).why == "a string, not an integer"


def test_edits_alone_name_their_place() -> None:
    with pytest.raises(SpecError) as caught:
        document.edits_from_object({"env": ["A=b", 5]}, "devices[all].containerEdits")
    assert caught.value.where == "devices[all].containerEdits.env[1]"
