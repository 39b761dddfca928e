"""Which cgroups decide on a process' devices, found by handle: both hierarchies, namespaces, systemd scopes."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from lib import devprogs
from lib.devprogs import Rule

from nvoci.errors import HookError
from nvoci.linux import abi, cgroup, mount, procfs, syscalls
from nvoci.linux.cgroup import DeviceCgroup
from nvoci.linux.devicelist import DeviceList
from nvoci.linux.devicerule import DeviceRule
from nvoci.linux.fd import Fd
from tests.kernel import devcgroups
from tests.kernel.namespaced import block, isolated, sh

pytestmark = pytest.mark.kernel
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="cgroups need root")

OURS = [DeviceRule("c", 195, 0)]
PROGRAM = devprogs.runc([Rule(True, "c", 1, 3)])
ALL, NONE = "r w rw", ""
CLONE_NEWCGROUP = 0x02000000

# -- rules ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given",
    [
        ("a", 1, 3, "rw"), ("u", 1, 3, "rw"), ("", 1, 3, "rw"), ("c", 1, 3, "rwm"), ("c", 1, 3, "m"), ("c", 1, 3, ""),
        ("c", 1, 3, "wr"), ("c", 1, 3, "r\nc 1:4 rw"), ("c", -1, 3, "rw"), ("c", 1, -1, "rw"), ("c", 4096, 0, "rw"),
        ("c", 1, 1 << 20, "rw"),
    ],
)  # fmt: skip
def test_a_rule_for_more_than_one_device_or_for_mknod_is_refused(given: tuple[str, int, int, str]) -> None:
    with pytest.raises(HookError, match=r"^device rule "):
        DeviceRule(*given)


@pytest.mark.parametrize("text", ["c 195:0 rw", "b 8:1 r", "c 4095:1048575 w"])
def test_a_rule_is_written_and_read_as_devices_allow_has_it(text: str) -> None:
    rule = DeviceRule.parse(text)
    assert str(rule) == text
    assert {rule, DeviceRule.parse(text)} == {rule}


@pytest.mark.parametrize(
    "text",
    ["", "c", "c *:* rw", "c 1:3 rwm", "a *:* rwm", "c 1:3", "c 1:3 rw x", "c \u0661:3 rw", "c 0x1:3 rw", "c +1:3 rw"],
)
def test_any_other_text_is_no_rule(text: str) -> None:
    with pytest.raises(HookError, match=r"^device rule "):
        DeviceRule.parse(text)


# -- /proc/PID/cgroup -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (b"0::/a/b\n", [(b"", b"/a/b")]),
        (b"5:devices:/x\n", [(b"devices", b"/x")]),
        (b"9:name=systemd:/\n5:devices:/x\n0::/y\n", [(b"devices", b"/x"), (b"", b"/y")]),
        (b"4:cpu,devices:/x\n1:name=devices:/no\n", [(b"cpu,devices", b"/x")]),
        (b"0::/with:colon\n", [(b"", b"/with:colon")]),
        (b"7:::/odd\n3::/also odd\n", []),
        (b"", []),
    ],
)
def test_the_hierarchies_that_are_about_devices(text: bytes, found: list[tuple[bytes, bytes]]) -> None:
    assert cgroup.parse(text) == found


@pytest.mark.parametrize("text", [b"0::/../other\n", b"5:devices:/..\n"])
def test_a_cgroup_outside_of_our_namespace_is_an_error(text: bytes) -> None:
    with pytest.raises(HookError, match="outside of this cgroup namespace"):
        cgroup.parse(text)


# -- on the kernel --------------------------------------------------------------------------------------------------


def of(pid: int) -> DeviceCgroup:
    with Fd(os.open(f"/proc/{pid}", os.O_RDONLY | os.O_DIRECTORY)) as process:
        return DeviceCgroup.of(process.fileno())


def restrict(path: Path, *lines: str) -> None:
    (path / "devices.deny").write_text("a")
    for line in ("c 1:3 rwm", *lines):
        (path / "devices.allow").write_text(line)


@needs_root
@pytest.mark.parametrize("kinds", [("unified",), ("devices",), ("devices", "unified")], ids="+".join)
def test_whatever_restricts_a_process_is_changed_and_nothing_else(tmp_path: Path, kinds: tuple[str, ...]) -> None:
    """A kernel asks both hierarchies, on a hybrid host too."""
    with ExitStack() as stack:
        every = {kind: stack.enter_context(devcgroups.cgroup(kind)) for kind in ("devices", "unified")}
        if "devices" in kinds:
            restrict(every["devices"])
        if "unified" in kinds:
            devcgroups.attach(every["unified"], PROGRAM)
        before, listed = devcgroups.ids(every["unified"]), (every["devices"] / "devices.list").read_text()
        with devcgroups.member(*every.values()) as pid:
            found = of(pid)
            found.allow(OURS)
            assert devcgroups.answers(tmp_path, *every.values()) == [ALL, NONE]
            found.undo()
            assert devcgroups.answers(tmp_path, *every.values()) == [NONE, NONE]
        assert devcgroups.ids(every["unified"]) == before
        assert (every["devices"] / "devices.list").read_text() == listed


@needs_root
def test_a_process_in_the_root_cgroups_is_not_restricted() -> None:
    with devcgroups.member() as pid:
        found = of(pid)
        found.allow(OURS)
        assert found._parts == []


@needs_root
def test_a_failure_in_one_hierarchy_undoes_the_other(tmp_path: Path) -> None:
    with devcgroups.cgroup("devices") as v1, devcgroups.cgroup("unified") as v2, devcgroups.member(v1, v2) as pid:
        restrict(v1)
        devcgroups.attach(v2, devprogs.bpfvm.assemble([(0x85, 0, 0, 0, 5), (0xB7, 0, 0, 0, 1), (0x95, 0, 0, 0, 0)]))
        with pytest.raises(HookError, match="calls a function"):
            of(pid).allow(OURS)
        assert (v1 / "devices.list").read_text() == "c 1:3 rwm\n"


@needs_root
def test_a_process_that_is_gone_is_an_error() -> None:
    with devcgroups.member() as pid:
        process = os.open(f"/proc/{pid}", os.O_RDONLY | os.O_DIRECTORY)
    with pytest.raises(HookError, match=r"^find device cgroup .*: ESRCH"):
        DeviceCgroup.of(process)


@needs_root
def test_a_cgroup_that_is_ours_too_is_the_runtimes(tmp_path: Path) -> None:
    def body(path: Path) -> str:
        devcgroups.join(path)
        with devcgroups.member() as pid, pytest.raises(HookError) as caught:
            of(pid).allow(OURS)
        return caught.value.line()

    with devcgroups.cgroup("unified") as path:
        devcgroups.attach(path, PROGRAM)
        assert "is the runtime's own, too" in isolated(body, path)


@needs_root
@pytest.mark.parametrize("kind", ["unified", "devices"])
def test_a_mount_that_covers_the_hierarchy_is_seen_through_or_reported(kind: str) -> None:
    """What lies at the mount point is not the mount that mountinfo told of: its id is compared."""
    where = devcgroups.top(kind)

    def body(path: Path) -> str:
        with devcgroups.member(path) as pid:
            sh(f"mount -t tmpfs fake {where}; mkdir -p {path}; touch {path}/devices.list {path}/devices.allow")
            try:
                of(pid).allow(OURS)
            except HookError as e:
                return e.line()
        return "allowed"

    with devcgroups.cgroup(kind) as path:
        if kind == "devices":
            restrict(path)
            assert isolated(body, path) == "allowed"  # by a mount of our own
            assert "c 195:0 rw" in (path / "devices.list").read_text()
        else:
            devcgroups.attach(path, PROGRAM)
            assert "no cgroup2 is mounted here that has it (call the hook as createRuntime" in isolated(body, path)


@needs_root
def test_a_mount_of_a_part_of_the_hierarchy_serves_what_is_in_it(tmp_path: Path) -> None:
    where = devcgroups.top("unified")

    def body(path: Path, elsewhere: Path) -> None:
        with devcgroups.member(path / "b") as pid:
            sh(f"mount --bind {path} {elsewhere}; umount -l {where}")
            of(pid).allow(OURS)

    with devcgroups.cgroup("unified", "b") as path:
        devcgroups.attach(path, PROGRAM)
        isolated(body, path.parent, tmp_path)
        (now,) = devcgroups.attached(path)
        assert now["name"] == "nvoci_devices"


# -- inside a container's cgroup namespace --------------------------------------------------------------------------


def inside(path: Path, body: Callable[[], Any]) -> Any:
    """body() in a process of this cgroup with a cgroup namespace of its own, as a createContainer hook is."""

    def work() -> Any:
        devcgroups.join(path)
        syscalls.unshare(CLONE_NEWCGROUP)
        return body()

    return isolated(work)


@needs_root
@pytest.mark.parametrize("kind", ["unified", "devices"])
def test_from_inside_the_cgroup_is_found_without_the_hosts_mounts(tmp_path: Path, kind: str) -> None:
    def body() -> list[str]:
        before = procfs.read(b"self/mountinfo")
        DeviceCgroup.of().allow(OURS)
        assert procfs.read(b"self/mountinfo") == before  # what was mounted for it was never attached
        return sorted(os.listdir("/proc/self/fd"))

    options = [line for line in Path("/proc/self/mounts").read_text().splitlines() if "cgroup" in line]
    with devcgroups.cgroup(kind) as path:
        if kind == "devices":
            restrict(path)
        else:
            devcgroups.attach(path, PROGRAM)
        inside(path, body)
        assert devcgroups.answers(tmp_path, path) == [ALL, NONE]
    assert options == [line for line in Path("/proc/self/mounts").read_text().splitlines() if "cgroup" in line]


@needs_root
@pytest.mark.parametrize("kind", ["unified", "devices"])
def test_from_inside_without_fsopen_it_is_one_line(kind: str) -> None:
    def body() -> str:
        block(("fsopen",), 38)
        with pytest.raises(HookError) as caught:
            DeviceCgroup.of().allow(OURS)
        mount.missing.clear()
        return caught.value.line()

    with devcgroups.cgroup(kind) as path:
        if kind == "devices":
            restrict(path)
        line = inside(path, body)
    assert line.startswith("find device cgroup /: it is not mounted here, and fsopen(2) is not available")
    assert "createRuntime" in line


@needs_root
def test_cgroup2_is_never_mounted_anew_from_the_initial_namespace() -> None:
    """It would reset nsdelegate and the other options of the host's own mount."""
    assert os.stat("/proc/self/ns/cgroup").st_ino == abi.PROC_CGROUP_INIT_INO
    called: list[bytes] = []

    def body(path: Path) -> bool:
        devcgroups.join(path)
        sh(f"umount -l {path.parent}")
        cgroup.fsopen = called.append  # type: ignore[assignment]
        with pytest.raises(HookError, match="no cgroup2 is mounted here"):
            DeviceCgroup.of()
        return called == []

    with devcgroups.cgroup("unified") as path:
        assert isolated(body, path)


# -- a systemd scope with a cgroup of the runtime's in it -----------------------------------------------------------


@needs_root
@pytest.mark.parametrize(
    ("names", "changed"),
    [
        (("pod.slice", "crio-1.scope", "container"), [False, True, True]),
        (("pod.slice", "crio-1.scope", "a", "b"), [False, True, True, True]),
        (("pod.slice", "crio-1.scope"), [False, True]),
        (("pod.slice", "container"), [False, True]),
        (("a.scope", "b.scope", "container"), [False, True, True]),
    ],
    ids=lambda value: "/".join(map(str, value)),
)
def test_programs_of_the_containers_own_scope_are_changed(names: tuple[str, ...], changed: list[bool]) -> None:
    with devcgroups.cgroup("unified", *names) as path:
        chain = [path, *path.parents][: len(names)][::-1]
        old = [devcgroups.attach(one, PROGRAM) for one in chain]
        with devcgroups.member(path) as pid:
            found = of(pid)
            found.allow(OURS)
            assert [devcgroups.ids(one) != [number] for one, number in zip(chain, old)] == changed
            found.undo()
        assert [devcgroups.ids(one) for one in chain] == [[number] for number in old]


@needs_root
@pytest.mark.parametrize("guest", ["process", "cgroup"])
def test_a_scope_with_something_else_in_it_is_left_alone(guest: str) -> None:
    """A login session's, say: what is allowed there is allowed to others."""
    with devcgroups.cgroup("unified", "session-1.scope", "c") as path, ExitStack() as stack:
        scope = path.parent
        old = [devcgroups.attach(one, PROGRAM) for one in (scope, path)]
        if guest == "process":
            stack.enter_context(devcgroups.member(scope))
        else:
            (scope / "other").mkdir()
            stack.callback((scope / "other").rmdir)
        with devcgroups.member(path) as pid:
            of(pid).allow(OURS)
        assert devcgroups.ids(scope) == [old[0]]
        assert devcgroups.ids(path) != [old[1]]


@needs_root
def test_the_list_of_a_v1_scope_is_changed_before_that_below(tmp_path: Path) -> None:
    above = devcgroups.cgroup("devices", "x.scope", "c", setup=lambda top: restrict(top, "c 195:* rw"))
    with above as path, devcgroups.member(path) as pid:
        (path.parent / "devices.deny").write_text("c 195:* rw")
        found = of(pid)
        assert [part.path.count(b"/") for part in found._parts if isinstance(part, DeviceList)] == [2, 3]
        found.allow(OURS)
        assert devcgroups.answers(tmp_path, path) == [ALL, NONE]
        found.undo()
        assert devcgroups.answers(tmp_path, path) == [NONE, NONE]
