"""The table of what each version can say: the least version of a specification, and what is left for an older one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from unit.cdi import spectools
from unit.cdi.spectools import ENV, PLACES, WRITABLE, at, one

from nvoci.cdi import validate, version
from nvoci.cdi.error import SpecError
from nvoci.cdi.model import ContainerEdits, Device, DeviceNode, Hook, IntelRdt, Mount, NetDevice, Spec

FAST = settings(max_examples=60, deadline=None)


@pytest.mark.parametrize("text", version.VERSIONS)
def test_a_known_version_is_numbers_with_and_without_v(text: str) -> None:
    assert ".".join(map(str, version.parse(text))) == text
    assert version.parse(f"v{text}") == version.parse(text)


def test_versions_are_in_order() -> None:
    numbers = [version.parse(text) for text in version.VERSIONS]
    assert numbers == sorted(set(numbers))
    assert version.NEWEST == version.VERSIONS[-1] == "1.1.0"


UNKNOWN = ["", "v", "1", "1.0", "0.9.0", "1.2.0", "2.0.0", "1.0.0 ", "vv1.0.0", "V1.0.0", "1.0.0-rc1", "01.0.0", "0.3"]


@pytest.mark.parametrize("text", UNKNOWN)
def test_a_version_that_is_not_known_is_refused(text: str) -> None:
    with pytest.raises(SpecError) as caught:
        version.parse(text, "cdiVersion")
    assert (caught.value.why, caught.value.where) == (f'invalid version "{text}"', "cdiVersion")
    assert "1.1.0" in caught.value.hint


# Edits -> the version they take, wherever they stand.
EDITS: dict[str, tuple[str, ContainerEdits]] = {
    "env": ("0.3.0", ENV),
    "device node": ("0.3.0", ContainerEdits(device_nodes=(DeviceNode("/dev/a", "", "c", 1, 2, 0o666, "rw", 0, 0),))),
    "permissions none": ("0.3.0", ContainerEdits(device_nodes=(DeviceNode("/dev/a", permissions="none"),))),
    "hook": ("0.3.0", ContainerEdits(hooks=(Hook("createContainer", "/h", ("h",), ("A=1",), 5),))),
    "mount": ("0.3.0", ContainerEdits(mounts=(Mount("/a", "/b", ("ro", "bind")),))),
    "type of a mount": ("0.4.0", ContainerEdits(mounts=(Mount("/a", "/b"), Mount("t", "/t", (), "tmpfs")))),
    "hostPath": ("0.5.0", ContainerEdits(device_nodes=(DeviceNode("/dev/a"), DeviceNode("/dev/b", "/dev/c")))),
    "hostPath that is the path": ("0.5.0", ContainerEdits(device_nodes=(DeviceNode("/dev/b", "/dev/b"),))),
    "additionalGids": ("0.7.0", ContainerEdits(additional_gids=(44,))),
    "group 0": ("0.7.0", ContainerEdits(additional_gids=(0,))),
    "intelRdt": ("0.7.0", ContainerEdits(intel_rdt=IntelRdt("a", "b", "c"))),
    "empty intelRdt": ("0.7.0", ContainerEdits(intel_rdt=IntelRdt())),
    "schemata": ("1.1.0", ContainerEdits(intel_rdt=IntelRdt(schemata=("L3:0=f",)))),
    "empty schemata": ("1.1.0", ContainerEdits(intel_rdt=IntelRdt(schemata=()))),
    "enableMonitoring": ("1.1.0", ContainerEdits(intel_rdt=IntelRdt(enable_monitoring=True))),
    "netDevices": ("1.1.0", ContainerEdits(net_devices=(NetDevice("eth0", "a"),))),
    "hostPath and additionalGids": (
        "0.7.0",
        ContainerEdits(device_nodes=(DeviceNode("/dev/b", "/dev/c"),), additional_gids=(44,)),
    ),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("what", EDITS)
def test_edits_take_a_version_at_either_place(what: str, place: str) -> None:
    least, edits = EDITS[what]
    assert version.minimum(at(one(), place, edits)) == least


SPECS: dict[str, tuple[str, Spec]] = {
    "nothing": ("0.3.0", Spec("", "")),
    "a letter": ("0.3.0", Spec("", "a/b", (Device("a0"),))),
    "a digit": ("0.5.0", Spec("", "a/b", (Device("a"), Device("0")))),
    "a wrong name": ("0.5.0", Spec("", "a/b", (Device("-a"),))),
    "no name": ("0.3.0", Spec("", "a/b", (Device(""),))),
    "a dot in the class": ("0.6.0", Spec("", "a/b.c")),
    "a dot in the vendor": ("0.3.0", Spec("", "a.b/c")),
    "no vendor": ("0.3.0", Spec("", "/a.b")),
    "no class": ("0.3.0", Spec("", "a.b")),
    "annotations": ("0.6.0", Spec("", "a/b", annotations={"a": ""})),
    "annotations of a device": ("0.6.0", Spec("", "a/b", (Device("a"), Device("b", annotations={"a": ""})))),
    "no annotations": ("0.3.0", Spec("", "a/b", (Device("a", annotations={}),), annotations={})),
    "a declared version is nothing": ("0.3.0", Spec("1.1.0", "a/b")),
}


@pytest.mark.parametrize("what", SPECS)
def test_a_specification_takes_a_version(what: str) -> None:
    least, spec = SPECS[what]
    assert version.minimum(spec) == least


def test_the_table_is_in_order_and_names_known_versions() -> None:
    numbers = [version.parse(feature.version) for feature in version.FEATURES]
    assert numbers == sorted(numbers)
    assert version.newest_used(one()) is None


# --- the order of specifications -----------------------------------------------------------------------------------


def added(left: ContainerEdits, right: ContainerEdits) -> ContainerEdits:
    """The edits of both; where there can be one only, that of `left`."""
    values: dict[str, Any] = {}
    for field in fields(ContainerEdits):
        first, second = getattr(left, field.name), getattr(right, field.name)
        values[field.name] = first + second if isinstance(first, tuple) else first or second
    return ContainerEdits(**values)


def more_common(spec: Spec, other: Spec) -> Spec:
    return replace(spec, container_edits=added(spec.container_edits, other.container_edits))


def more_of_a_device(spec: Spec, other: Spec) -> Spec:
    edits = added(spec.devices[0].container_edits, other.devices[0].container_edits)
    return at(spec, "devices[0].containerEdits", edits)


def more_devices(spec: Spec, other: Spec) -> Spec:
    return replace(spec, devices=spec.devices + other.devices)


def more_annotations(spec: Spec, other: Spec) -> Spec:
    return replace(spec, annotations={**spec.annotations, **other.annotations})


MORE: dict[str, Callable[[Spec, Spec], Spec]] = {
    "edits of all": more_common,
    "edits of a device": more_of_a_device,
    "devices": more_devices,
    "annotations": more_annotations,
}


@pytest.mark.parametrize("more", MORE)
@FAST
@given(spec=spectools.SPEC, other=spectools.SPEC)
def test_saying_more_never_takes_an_older_version(more: str, spec: Spec, other: Spec) -> None:
    assert version.parse(version.minimum(MORE[more](spec, other))) >= version.parse(version.minimum(spec))


# --- reduced -------------------------------------------------------------------------------------------------------


@FAST
@given(spectools.SPEC, st.sampled_from(WRITABLE))
def test_what_is_left_is_right_and_says_what_the_version_can(spec: Spec, wanted: str) -> None:
    try:
        left, told = version.reduced(spec, wanted)
    except SpecError:
        assert version.parse(version.minimum(spec)) > version.parse(wanted)
        return
    assert left.cdi_version == version.minimum(left)
    assert version.parse(left.cdi_version) <= version.parse(wanted)
    assert validate.problems(left) == []
    assert version.reduced(left, wanted) == (left, ())
    if version.parse(version.minimum(spec)) <= version.parse(wanted):
        assert (left, told) == (replace(spec, cdi_version=version.minimum(spec)), ())


@FAST
@given(spectools.SPEC)
def test_nothing_is_left_out_for_the_newest(spec: Spec) -> None:
    assert version.reduced(spec, f"v{version.NEWEST}") == (replace(spec, cdi_version=version.minimum(spec)), ())


@FAST
@given(spectools.SPEC, st.sampled_from(WRITABLE), st.sampled_from(WRITABLE))
def test_less_is_left_for_an_older_version(spec: Spec, one_version: str, other: str) -> None:
    older, newer = sorted((one_version, other), key=version.parse)
    try:
        at_once = version.reduced(spec, older)[0]
    except SpecError:
        with pytest.raises(SpecError):
            version.reduced(version.reduced(spec, newer)[0], older)
        return
    assert version.reduced(version.reduced(spec, newer)[0], older)[0] == at_once


GIDS = ContainerEdits(env=("A=1",), additional_gids=(44, 104))
NODES = (DeviceNode("/dev/a", "/dev/a"), DeviceNode("/dev/b", "/dev/c"), DeviceNode("/dev/d"))
BIND = Mount("/a", "/b", ("ro", "rbind"), "none")
# Edits beside ENV, version -> the edits that are left, the sentences (%s: whose they are).
REDUCED: dict[str, tuple[ContainerEdits, str, ContainerEdits, list[str]]] = {
    "groups": (GIDS, "0.6.0", ENV, ["additionalGids 44, 104 of %s: needs 0.7.0"]),
    "groups that can stay": (GIDS, "0.7.0", GIDS, []),
    "nodes": (
        replace(ENV, device_nodes=(NODES[0], NODES[2])),
        "0.4.0",
        replace(ENV, device_nodes=(DeviceNode("/dev/a"), DeviceNode("/dev/d"))),
        [],
    ),
    "nodes that can stay": (replace(ENV, device_nodes=NODES), "0.5.0", replace(ENV, device_nodes=NODES), []),
    "a bind mount": (replace(ENV, mounts=(BIND,)), "0.3.0", replace(ENV, mounts=(replace(BIND, type=""),)), []),
    "a bind mount by its type": (
        replace(ENV, mounts=(Mount("/a", "/b", ("ro",), "bind"),)),
        "0.3.0",
        replace(ENV, mounts=(Mount("/a", "/b", ("ro", "bind")),)),
        [],
    ),
    "another mount": (
        replace(ENV, mounts=(Mount("tmpfs", "/t", ("ro",), "tmpfs"), Mount("/a", "/b"))),
        "0.3.0",
        replace(ENV, mounts=(Mount("/a", "/b"),)),
        ["mount `/t` of type `tmpfs` of %s: needs 0.4.0"],
    ),
    "intelRdt": (
        replace(ENV, intel_rdt=IntelRdt("a", schemata=("x",))),
        "0.6.0",
        ENV,
        ["intelRdt of %s: needs 0.7.0"],
    ),
    "newer intelRdt": (
        replace(ENV, intel_rdt=IntelRdt("a", schemata=("x",), enable_monitoring=True)),
        "1.0.0",
        replace(ENV, intel_rdt=IntelRdt("a")),
        ["schemata and enableMonitoring in intelRdt of %s: needs 1.1.0"],
    ),
    "intelRdt of which nothing is left": (
        replace(ENV, intel_rdt=IntelRdt(enable_monitoring=True)),
        "0.8.0",
        ENV,
        ["enableMonitoring in intelRdt of %s: needs 1.1.0"],
    ),
    "intelRdt that asks for a class of its own": (
        replace(ENV, intel_rdt=IntelRdt()),
        "0.7.0",
        replace(ENV, intel_rdt=IntelRdt()),
        [],
    ),
    "interfaces": (
        replace(ENV, net_devices=(NetDevice("eth1", "a"), NetDevice("eth\n2", "b"))),
        "1.0.0",
        ENV,
        [r"netDevices `eth1`, `eth\n2` of %s: needs 1.1.0"],
    ),
    "several": (
        replace(GIDS, mounts=(Mount("tmpfs", "/t", (), "tmpfs"),)),
        "0.3.0",
        ENV,
        ["mount `/t` of type `tmpfs` of %s: needs 0.4.0", "additionalGids 44, 104 of %s: needs 0.7.0"],
    ),
}


@pytest.mark.parametrize(("place", "whose"), list(zip(PLACES, ("every device", "device `gpu0`"))), ids=PLACES)
@pytest.mark.parametrize("what", REDUCED)
def test_what_is_left_out_is_told(what: str, place: str, whose: str) -> None:
    edits, wanted, left, told = REDUCED[what]
    found, sentences = version.reduced(at(one(), place, edits), wanted)
    assert found == replace(at(one(), place, left), cdi_version=version.minimum(found))
    assert list(sentences) == [text % whose for text in told]


def test_annotations_are_left_out_and_told() -> None:
    spec = one(devices=(Device("a", ENV, {"x": "1"}), Device("b", ENV)), annotations={"y": "2", "z": "3"})
    left, told = version.reduced(spec, "0.5.0")
    assert left == Spec("0.3.0", "nvidia.com/gpu", (Device("a", ENV), Device("b", ENV)))
    assert told == (
        "annotations `y`, `z` of the specification: needs 0.6.0",
        "annotations `x` of device `a`: needs 0.6.0",
    )


def test_a_device_whose_name_cannot_be_said_is_left_out_and_told_once() -> None:
    spec = one(devices=(Device("0", GIDS, {"x": "1"}), Device("all", GIDS)))
    left, told = version.reduced(spec, "0.4.0")
    assert [device.name for device in left.devices] == ["all"]
    assert told == (
        "device `0`, whose name starts with no letter: needs 0.5.0",
        "additionalGids 44, 104 of device `all`: needs 0.7.0",
    )


def test_a_device_that_would_lose_a_node_is_left_out_and_told_once() -> None:
    """With the rest of it a container would be started that has no such device."""
    two = replace(GIDS, device_nodes=(*NODES, DeviceNode("/dev/e", "/f")))
    spec = one(devices=(Device("a", two), Device("b", replace(ENV, device_nodes=NODES[:1]))))
    left, told = version.reduced(spec, "0.4.0")
    assert left.devices == (Device("b", replace(ENV, device_nodes=(DeviceNode("/dev/a"),))),)
    assert told == (
        "device `a`, which has deviceNode `/dev/b` from hostPath `/dev/c`, `/dev/e` from hostPath `/f`: needs 0.5.0",
    )


def test_a_device_of_which_nothing_is_left_is_left_out() -> None:
    spec = one(devices=(Device("a", ENV), Device("b", ContainerEdits(additional_gids=(1,)))))
    left, told = version.reduced(spec, "0.6.0")
    assert [device.name for device in left.devices] == ["a"]
    assert told == ("additionalGids 1 of device `b`: needs 0.7.0", "device `b`: nothing of it is left")


@pytest.mark.parametrize(
    ("spec", "wanted", "where", "words"),
    [
        (one(kind="nvidia.com/gpu.coherent"), "0.5.0", "kind", "class `gpu.coherent` has a dot: needs 0.6.0"),
        (one(devices=(Device("0", ENV),)), "0.4.0", "devices", "device `0`"),
        (one(ContainerEdits(additional_gids=(1,))), "0.6.0", "devices", "nothing of it is left"),
        (one(ContainerEdits(device_nodes=NODES)), "0.4.0", "devices", "deviceNode `/dev/b` from hostPath `/dev/c`"),
        (
            one(container_edits=ContainerEdits(device_nodes=NODES)),
            "0.4.0",
            "containerEdits.deviceNodes",
            "deviceNode `/dev/b` from hostPath `/dev/c` of every device: needs 0.5.0",
        ),
        (one(), "0.2.0", "cdiVersion", "0.3.0 is the least"),
        (one(), "0.1.0", "cdiVersion", "too old"),
        (one(), "1.2.0", "", "invalid version"),
    ],
    ids=["class", "names", "nothing left", "node", "common node", "0.2.0", "0.1.0", "unknown"],
)
def test_where_nothing_can_be_left_that_is_an_error(spec: Spec, wanted: str, where: str, words: str) -> None:
    with pytest.raises(SpecError) as caught:
        version.reduced(spec, wanted)
    assert caught.value.where == where
    assert words in caught.value.why


def test_the_specification_that_was_given_is_as_it_was() -> None:
    spec = one(GIDS, annotations={"a": "b"})
    version.reduced(spec, "0.3.0")
    assert spec == one(GIDS, annotations={"a": "b"})
