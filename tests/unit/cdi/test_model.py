"""The data itself: several things in any list, never one text in place of several; truth and hashes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from nvoci.cdi.model import ContainerEdits, Device, DeviceNode, Hook, IntelRdt, Mount, NetDevice, Spec

MADE: dict[str, tuple[Callable[[Any], Any], str, Any]] = {
    "env": (lambda many: ContainerEdits(env=many), "ContainerEdits.env", "A=1"),
    "device nodes": (lambda many: ContainerEdits(device_nodes=many), "ContainerEdits.device_nodes", DeviceNode("/a")),
    "interfaces": (lambda many: ContainerEdits(net_devices=many), "ContainerEdits.net_devices", NetDevice("a", "b")),
    "hooks": (lambda many: ContainerEdits(hooks=many), "ContainerEdits.hooks", Hook("prestart", "/a")),
    "mounts": (lambda many: ContainerEdits(mounts=many), "ContainerEdits.mounts", Mount("/a", "/b")),
    "groups": (lambda many: ContainerEdits(additional_gids=many), "ContainerEdits.additional_gids", 5),
    "args": (lambda many: Hook("prestart", "/a", args=many), "Hook.args", "a"),
    "env of a hook": (lambda many: Hook("prestart", "/a", env=many), "Hook.env", "A=1"),
    "options": (lambda many: Mount("/a", "/b", many), "Mount.options", "ro"),
    "schemata": (lambda many: IntelRdt(schemata=many), "IntelRdt.schemata", "x"),
    "devices": (lambda many: Spec("0.5.0", "a/b", many), "Spec.devices", Device("a")),
}


@pytest.mark.parametrize("what", MADE)
def test_any_list_is_taken_and_is_a_tuple_then(what: str) -> None:
    make, _, one = MADE[what]
    made = [make(many) for many in ((one,), [one], iter([one]), {one})]
    assert all(each == made[0] and hash(each) == hash(made[0]) for each in made)


@pytest.mark.parametrize("what", MADE)
@pytest.mark.parametrize("many", ["A=1", "", b"ab", {"A": "1"}, 5], ids=ascii)
def test_one_thing_in_place_of_several_is_a_mistake_of_the_caller(what: str, many: Any) -> None:
    make, name, _ = MADE[what]
    with pytest.raises(TypeError, match=f"^{name}: a list or tuple is wanted, not {type(many).__name__} "):
        make(many)


def test_a_list_of_nothing_changes_nothing() -> None:
    assert not ContainerEdits(env=[], mounts=[], additional_gids=[])  # type: ignore[arg-type]
    assert ContainerEdits(env=[]) == ContainerEdits()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "edits",
    [ContainerEdits(intel_rdt=IntelRdt()), *(MADE[what][0]([MADE[what][2]]) for what in list(MADE)[:6])],
    ids=["intelRdt", *list(MADE)[:6]],
)
def test_any_field_makes_it_a_change(edits: ContainerEdits) -> None:
    assert edits


def test_annotations_count_for_equality_and_not_for_the_hash() -> None:
    device = Device("a", ContainerEdits(env=("A=1",)))
    other = replace(device, annotations={"a": "b"})
    assert len({device, other, replace(other)}) == 2
    assert len({Spec("0.6.0", "a/b", (other,), annotations={"c": "d"}), Spec("0.6.0", "a/b", (other,))}) == 2
