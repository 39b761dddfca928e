"""Device nodes: which, with which access, and where the specification and the host do not agree."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest
from kernel import namespaced
from lib import hookproc, oracle
from lib.hookproc import FakeContainer
from unit.hook.hooktools import one_error
from unit.inject.thing import Json, Thing

from nvoci.cdi.model import ContainerEdits, DeviceNode, Mount
from nvoci.errors import HookError
from nvoci.hook.container import HOST, OUTSIDE, Container
from nvoci.hook.enter import Place
from nvoci.hook.operation import AllowDevices, Operation, Transaction
from nvoci.hook.settings import Settings
from nvoci.inject import edits, nodes, targets
from nvoci.linux.rootfs import Rootfs


def rules(operations: list[Operation]) -> list[str]:
    return [str(rule) for each in operations if isinstance(each, AllowDevices) for rule in each.rules]


def planned(root: Path, *wanted: DeviceNode) -> list[Operation]:
    rootfs = Rootfs.open(str(root))
    container = Container(rootfs, OUTSIDE, None, Settings())  # type: ignore[arg-type]  # nobody asks for the state
    return nodes.operations(nodes.prepare(wanted, {}), container, targets.Place(rootfs))


ACCESS = {"": "rw", "rwm": "rw", "rw": "rw", "mr": "r", "w": "w", "wr": "rw", "m": "", "none": ""}


@pytest.mark.parametrize("permissions", ACCESS)
def test_the_access_that_is_allowed(root: Path, permissions: str) -> None:
    """Never to make nodes."""
    found = planned(root, DeviceNode("/dev/x", "/dev/zero", "c", 1, 5, permissions=permissions))
    assert rules(found) == ([f"c 1:5 {ACCESS[permissions]}"] if ACCESS[permissions] else [])


def test_types_of_nodes(root: Path, tmp_path: Path) -> None:
    os.mknod(tmp_path / "block", stat.S_IFBLK | 0o600, os.makedev(7, 3))
    found = planned(
        root,
        DeviceNode("/dev/b", str(tmp_path / "block"), "b", 7, 3),
        DeviceNode("/dev/zero", "", "u", 1, 5, permissions="r"),
        DeviceNode("/dev/fifo", "", "p"),
    )
    assert rules(found) == ["b 7:3 rw", "c 1:5 r"]
    assert len(found) == 4


def test_of_several_for_one_path_the_last_counts(root: Path) -> None:
    found = planned(
        root, DeviceNode("/dev/x", "/dev/zero", "c", 1, 5), DeviceNode("/dev//x", "/dev/null", "c", 1, 3)
    )  # fmt: skip
    assert rules(found) == ["c 1:3 rw"]


DIFFERING: dict[str, tuple[Json, str]] = {
    "another number": ({"hostPath": "/dev/zero", "type": "c", "major": 1, "minor": 3}, "is c 1:5, should be c 1:3"),
    "another type": ({"hostPath": "/dev/zero", "type": "b"}, "its type is c, not b"),
    "another type and numbers": (
        {"hostPath": "/dev/zero", "type": "b", "major": 1, "minor": 5},
        "is c 1:5, should be b 1:5",
    ),
    "a link": ({"hostPath": "/dev/stdin", "type": "c", "major": 1, "minor": 3}, "is not a device node"),
    "a file": ({"hostPath": "/etc/passwd", "type": "c", "major": 1, "minor": 3}, "is not a device node"),
    "missing, with numbers": ({"hostPath": "/dev/none", "type": "c", "major": 1, "minor": 3}, "/dev/none: ENOENT"),
    "relative": ({"hostPath": "dev/zero", "type": "c", "major": 1, "minor": 5}, "not an absolute path"),
}


@pytest.mark.parametrize("case", DIFFERING)
def test_a_node_that_is_not_the_host_s_is_an_error(thing: Thing, root: Path, case: str) -> None:
    """Where a runtime would make whatever the specification says."""
    node, expected = DIFFERING[case]
    thing.write({"a": {"deviceNodes": [{"path": "/dev/thing", **node}]}})
    with FakeContainer(root) as container:
        before = container.listdir("dev")
        assert expected in one_error(hookproc.run_hook(thing.words(), container=container))
        assert container.listdir("dev") == before


def test_a_node_is_mounted_where_one_is_already(thing: Thing, root: Path) -> None:
    """The container's own stays beneath."""
    thing.write({"a": {"deviceNodes": [{"path": "/dev/null", "hostPath": "/dev/zero", "permissions": "none"}]}})
    with FakeContainer(root) as container:
        assert container.path("dev/null").stat().st_rdev == os.makedev(1, 3)
        for _ in range(2):
            result = hookproc.run_hook(thing.words(), container=container)
            assert (result.rc, result.stderr) == (0, "")
            assert container.path("dev/null").stat().st_rdev == os.makedev(1, 5)
            assert len(container.mounts_at("dev/null")) == 1


READ_ONLY: dict[str, Json] = {
    "file": {"mounts": [{"hostPath": "/etc/hostname", "containerPath": "/opt/new/file", "options": ["ro", "bind"]}]},
    "tmpfs": {"mounts": [{"hostPath": "tmpfs", "containerPath": "/opt/new/t", "type": "tmpfs"}]},
    "node": {"deviceNodes": [{"path": "/opt/new/node", "hostPath": "/dev/zero", "permissions": "none"}]},
}


@pytest.mark.parametrize("kind", READ_ONLY)
def test_on_a_read_only_root_a_missing_mount_point_is_an_error(thing: Thing, root: Path, kind: str) -> None:
    """Never left out with a warning: a container with half of a device would be worse than none."""
    thing.write({"a": READ_ONLY[kind]})
    with FakeContainer(root, readonly=True) as container:
        mounts = container.mountinfo()
        line = one_error(hookproc.run_hook(thing.words(), container=container))
        assert "EROFS (the container's root is read-only and has nothing there: make it in the image)" in line
        assert container.mountinfo() == mounts


def test_on_a_read_only_root_what_is_there_can_be_mounted_on(thing: Thing, root: Path) -> None:
    node = {"path": "/dev/sub/thing", "hostPath": "/dev/zero", "permissions": "none"}
    thing.write({"a": {"mounts": [thing.mount("tool", "/opt/file", "ro", "bind")], "deviceNodes": [node]}})
    with FakeContainer(root, readonly=True) as container:
        result = hookproc.run_hook(thing.words(), container=container)
        assert (result.rc, result.stderr) == (0, "")
        assert container.read("opt/file").startswith(b"#!")
        assert container.path("dev/sub/thing").stat().st_rdev == os.makedev(1, 5)


def test_without_a_container_there_is_nothing_to_mount_in(root: Path) -> None:
    before = oracle.snapshot(root)
    mounts = (
        Mount("/etc/hostname", "/opt/new/file", ("bind",)),
        Mount("tmpfs", "/opt/new/t", (), "tmpfs"),
    )
    wanted = ContainerEdits(mounts=mounts, device_nodes=(DeviceNode("/opt/new/node", "/dev/zero", "c", 1, 5),))
    operations = edits.Prepared(wanted, Place(HOST)).operations(namespaced.make_container(root, HOST))
    for operation in operations[:3]:
        with pytest.raises(HookError, match="the container has no mount namespace to mount in"):
            operation.execute(Transaction())
    assert oracle.changes(before, oracle.snapshot(root)) == []


def test_a_node_of_the_host_that_goes_away_between_is_an_error() -> None:
    with pytest.raises(HookError, match="use device /dev/none: ENOENT"):
        nodes.prepare([DeviceNode("/dev/none", "", "c", 1, 3)], {})


def test_the_mount_point_that_was_found_is_the_one_that_is_mounted_on(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is looked up once, and not again after it was checked."""

    def body() -> list[str]:
        looked_up: list[str] = []
        find = targets.find

        def found(*args: Any, **how: Any) -> Any:
            target = find(*args, **how)
            (root / "opt").rename(root / "moved")
            (root / "opt").symlink_to("tmp")
            looked_up.append("once")
            return target

        monkeypatch.setattr(targets, "find", found)
        container = namespaced.make_container(root, OUTSIDE)
        node = DeviceNode("/opt/a/node", "/dev/zero", "c", 1, 5, permissions="none")
        (operation,) = nodes.operations(nodes.prepare([node], {}), container, targets.Place(container.rootfs))
        operation.execute(Transaction())
        new = [line.split()[4].removeprefix(str(root)) for line in namespaced.mountinfo()]
        return [*looked_up, *(path for path in new if path.endswith("node"))]

    assert namespaced.isolated(body) == ["once", "/moved/a/node"]
    assert os.listdir(root / "tmp") == []
