"""Nothing twice, and all of it in order."""

from __future__ import annotations

from nvoci.cdi.model import ContainerEdits, Device, DeviceNode, Hook, Mount, Spec
from nvoci.generate import simplify

A, B = Hook("createContainer", "/x", ("x", "a"), ("E=1",)), Hook("createContainer", "/x", ("x", "b"), ("E=1",))


def nodes(*paths: str) -> tuple[DeviceNode, ...]:
    return tuple(DeviceNode(path) for path in paths)


def mounts(*paths: str) -> tuple[Mount, ...]:
    return tuple(Mount(path, path) for path in paths)


def test_what_is_said_twice_is_said_once() -> None:
    twice = (("A=1", "B=2", "A=1"), nodes("/b", "/a", "/b"), (), (A, B, A), mounts("/y", "/x", "/y"), None)
    once = ContainerEdits(("A=1", "B=2"), nodes("/b", "/a"), (), (A, B), mounts("/y", "/x"), None, (44, 104))
    assert simplify.deduplicated(ContainerEdits(*twice, (104, 44, 104))) == once


def test_nodes_are_the_same_only_if_all_of_them_is() -> None:
    pair = (DeviceNode("/a", file_mode=0o666), DeviceNode("/a", file_mode=0o660))
    assert simplify.deduplicated(ContainerEdits(device_nodes=pair)).device_nodes == pair


def test_devices_do_not_repeat_what_all_have() -> None:
    common = ContainerEdits(("A=1",), nodes("/c"), (), (A,), mounts("/m"))
    device = ContainerEdits(("A=1", "B=2"), nodes("/c", "/d"), (), (A, B), mounts("/m", "/n"), None, (44,))
    spec = simplify.simplified(Spec("", "v/c", (Device("0", device),), common))
    assert spec.devices[0].container_edits == ContainerEdits(("B=2",), nodes("/d"), (), (B,), mounts("/n"), None, (44,))


def test_a_device_that_has_nothing_of_its_own_keeps_what_it_has() -> None:
    common = ContainerEdits(("A=1",), nodes("/c"))
    spec = simplify.simplified(Spec("", "v/c", (Device("0", ContainerEdits(device_nodes=nodes("/c"))),), common))
    assert spec.devices[0].container_edits == ContainerEdits(device_nodes=nodes("/c"))


def test_all_is_every_device_and_is_made_once() -> None:
    devices = (Device("1", ContainerEdits((), nodes("/b", "/x"), (), (B,), (), None, (104,))),
               Device("0", ContainerEdits((), nodes("/a", "/x"), (), (A, B), (), None, (44,))))  # fmt: skip
    spec = simplify.with_all(Spec("", "v/c", devices), "all")
    assert spec.devices[-1] == Device(
        "all", ContainerEdits((), nodes("/b", "/x", "/a"), (), (B, A), (), None, (44, 104))
    )
    assert simplify.with_all(spec, "all") is spec


def test_what_lies_higher_comes_first() -> None:
    mixed = (Mount("/1", "/z"), Mount("/0", "/a/b/c"), Mount("/2", "/a//./c"), Mount("/3", "/a/b"))
    edits = ContainerEdits(("B=1", "A=1"), nodes("/dev/dri/card1", "/dev/b", "/dev/a"), (), (B, A), mixed)
    devices = tuple(Device(name, edits) for name in ("all", "GPU-1", "10", "2", "1:0", "1"))
    spec = simplify.in_order(Spec("", "v/c", devices, edits))
    assert [device.name for device in spec.devices] == ["1", "10", "1:0", "2", "GPU-1", "all"]
    for found in (spec.container_edits, spec.devices[0].container_edits):
        assert [node.path for node in found.device_nodes] == ["/dev/a", "/dev/b", "/dev/dri/card1"]
        assert [mount.container_path for mount in found.mounts] == ["/z", "/a//./c", "/a/b", "/a/b/c"]
        assert (found.env, found.hooks) == (("B=1", "A=1"), (B, A))
