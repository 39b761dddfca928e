"""Device cgroups where something fails half way, or is hidden: one line, and every list and program as it was."""

from __future__ import annotations

import os
import posix
from collections.abc import Callable
from errno import EACCES, EBUSY, EINVAL, EIO, ENOENT, ENOMEM, EOPNOTSUPP, EPERM
from pathlib import Path
from typing import Any

import pytest
from lib import devprogs
from lib.devprogs import FORMS, Rule

from nvoci import log
from nvoci.errors import HookError
from nvoci.linux import bpf, cgroup, deviceprog, procfs
from nvoci.linux.cgroup import DeviceCgroup
from nvoci.linux.devicelist import DeviceList
from nvoci.linux.deviceprog import DevicePrograms
from nvoci.linux.devicerule import DeviceRule
from nvoci.linux.fd import Fd
from tests.kernel import devcgroups
from tests.kernel.namespaced import isolated, sh
from tests.kernel.refusal import nth, refuse, refusing

pytestmark = [pytest.mark.kernel, pytest.mark.skipif(os.geteuid() != 0, reason="cgroups need root")]

OURS = [DeviceRule("c", 195, 0)]
RULES = [Rule(True, "c", 1, 3)]
PROGRAM = devprogs.runc(RULES)
ALL, NONE = "r w rw", ""
Patch = pytest.MonkeyPatch


def of(pid: int) -> DeviceCgroup:
    with Fd(os.open(f"/proc/{pid}", os.O_RDONLY | os.O_DIRECTORY)) as process:
        return DeviceCgroup.of(process.fileno())


def programs(path: Path) -> DevicePrograms:
    return DevicePrograms(Fd(os.open(path, os.O_RDONLY | os.O_DIRECTORY)), b"/test")


def devices(path: Path) -> DeviceList:
    return DeviceList(Fd(os.open(path, os.O_RDONLY | os.O_DIRECTORY)), b"/test")


def restrict(path: Path) -> None:
    (path / "devices.deny").write_text("a")
    (path / "devices.allow").write_text("c 1:3 rwm")


def listed(path: Path) -> str:
    return (path / "devices.list").read_text()


@pytest.fixture
def logged(monkeypatch: Patch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(log, "_sinks", [(log.ERROR, lines.append)])
    return lines


# -- both hierarchies -------------------------------------------------------------------------------------------------


def test_both_hierarchies_are_closed_and_stay_changed(tmp_path: Path) -> None:
    with devcgroups.cgroup("devices") as v1, devcgroups.cgroup("unified") as v2, devcgroups.member(v1, v2) as pid:
        restrict(v1)
        devcgroups.attach(v2, PROGRAM)
        procfs.handle()  # which stays open
        before = set(os.listdir("/proc/self/fd"))
        found = of(pid)
        found.allow(OURS)
        found.close()
        assert set(os.listdir("/proc/self/fd")) == before
        assert devcgroups.answers(tmp_path, v1, v2) == [ALL, NONE]


def test_all_is_tried_when_taking_back_fails(monkeypatch: Patch) -> None:
    """The first error is told; the list is as it was all the same."""
    with devcgroups.cgroup("devices") as v1, devcgroups.cgroup("unified") as v2, devcgroups.member(v1, v2) as pid:
        restrict(v1)
        devcgroups.attach(v2, PROGRAM)
        found = of(pid)
        found.allow(OURS)
        monkeypatch.setattr(bpf, "prog_attach", refusing(bpf.prog_attach, EPERM))
        with pytest.raises(HookError, match=r"put back device program .*: EPERM") as caught:
            found.undo()
        assert "195" not in listed(v1)
    assert "device cgroup" in caught.value.line()


def test_taking_back_that_fails_is_logged_and_the_first_error_told(monkeypatch: Patch, logged: list[str]) -> None:
    """The list takes the rule, the program cannot be replaced, and the list does not let the rule go."""
    with devcgroups.cgroup("devices") as v1, devcgroups.cgroup("unified") as v2, devcgroups.member(v1, v2) as pid:
        restrict(v1)
        devcgroups.attach(v2, PROGRAM)
        found = of(pid)
        monkeypatch.setattr(bpf, "prog_attach", refusing(bpf.prog_attach, ENOMEM))
        denied = refusing(posix.open, EIO, lambda path, *args: path == "devices.deny")
        monkeypatch.setattr(posix, "open", denied)
        with pytest.raises(HookError, match=r"replace device program .*: ENOMEM"):
            found.allow(OURS)
        monkeypatch.undo()
    assert len(logged) == 1
    assert "deny c 195:0 rw: EIO" in logged[0]


# -- one list ---------------------------------------------------------------------------------------------------------


def test_a_second_rule_that_is_refused_takes_the_first_one_back(monkeypatch: Patch) -> None:
    with devcgroups.cgroup("devices") as path:
        restrict(path)
        opened = refusing(posix.open, EACCES, _second("devices.allow"))
        monkeypatch.setattr(posix, "open", opened)
        with pytest.raises(HookError, match="allow c 195:1 rw: EACCES") as caught:
            devices(path).allow([*OURS, DeviceRule("c", 195, 1)])
        monkeypatch.undo()
        assert listed(path) == "c 1:3 rwm\n"
    assert "a user namespace may not change the host's cgroups" in caught.value.hint


def test_a_rule_that_cannot_be_taken_back_is_logged(monkeypatch: Patch, logged: list[str]) -> None:
    with devcgroups.cgroup("devices") as path:
        restrict(path)
        allow, deny = _second("devices.allow"), lambda name, *args: name == "devices.deny"
        opened = refusing(posix.open, EBUSY, lambda *args: allow(*args) or deny(*args))
        monkeypatch.setattr(posix, "open", opened)
        with pytest.raises(HookError, match="allow c 195:1 rw: EBUSY"):
            devices(path).allow([*OURS, DeviceRule("c", 195, 1)])
        monkeypatch.undo()
        assert "c 195:0 rw" in listed(path)
    assert "deny c 195:0 rw: EBUSY" in logged[0]


def _second(name: str) -> Callable[..., bool]:
    """When this file is opened for the second time."""
    count = nth(2)
    return lambda path, *args: path == name and bool(count())


@pytest.mark.parametrize("text", [b"c 195:0\n", b"\xff\n"])
def test_a_list_of_another_form_is_one_line(monkeypatch: Patch, tmp_path: Path, text: bytes) -> None:
    (tmp_path / "devices.list").write_bytes(text)
    with pytest.raises(HookError, match=r"^device cgroup /test: read devices.list: EINVAL"):
        devices(tmp_path).allow(OURS)


# -- programs ---------------------------------------------------------------------------------------------------------


def test_what_cannot_be_put_back_is_logged_and_the_first_error_told(monkeypatch: Patch, logged: list[str]) -> None:
    with devcgroups.cgroup("unified") as path:
        old = [devcgroups.attach(path, FORMS[form](RULES)) for form in FORMS]
        monkeypatch.setattr(bpf, "prog_attach", refusing(bpf.prog_attach, ENOMEM, nth(2)))
        with pytest.raises(HookError, match=f"replace device program {old[1]}: ENOMEM"):
            programs(path).allow(OURS)
        monkeypatch.undo()
    assert len(logged) == 1
    assert f"put back device program {old[0]}: ENOMEM" in logged[0]


def test_a_program_that_is_gone_is_one_line(monkeypatch: Patch) -> None:
    """Between the query and the look at it."""
    with devcgroups.cgroup("unified") as path:
        number = devcgroups.attach(path, PROGRAM)
        monkeypatch.setattr(bpf, "prog_query", lambda directory: ([number, 0x7FFFFFFF], bpf.F_ALLOW_MULTI))
        with pytest.raises(HookError, match="open device program 2147483647: ENOENT"):
            programs(path).allow(OURS)
        assert devcgroups.ids(path) == [number]


def test_a_program_that_is_too_long_is_one_line(monkeypatch: Patch) -> None:
    monkeypatch.setattr(bpf, "MAX_BYTES", 8)
    monkeypatch.setattr(bpf, "_USUAL_BYTES", 8)
    with devcgroups.cgroup("unified") as path:
        number = devcgroups.attach(path, PROGRAM)
        with pytest.raises(HookError, match=f"read device program {number}: EFBIG"):
            programs(path).allow(OURS)


@pytest.mark.parametrize(("number", "words"), [(EPERM, "needs CAP_SYS_ADMIN"), (EINVAL, "merge device program")])
def test_a_program_that_is_not_loaded_is_one_line(monkeypatch: Patch, number: int, words: str) -> None:
    with devcgroups.cgroup("unified") as path:
        old = devcgroups.attach(path, PROGRAM)
        monkeypatch.setattr(bpf, "prog_load", refusing(bpf.prog_load, number))
        with pytest.raises(HookError) as caught:
            programs(path).allow(OURS)
        assert words in caught.value.line()
        assert devcgroups.ids(path) == [old]


@pytest.mark.parametrize("limit", ["raised", "not ours to raise"])
def test_memory_that_is_locked_is_counted_before_5_11(monkeypatch: Patch, tmp_path: Path, limit: str) -> None:
    """BPF_PROG_LOAD then answers EPERM until RLIMIT_MEMLOCK is raised."""
    raised: list[tuple[int, int, int]] = []

    def prlimit(*args: int) -> None:
        if limit != "raised":
            raise OSError(EPERM, "no CAP_SYS_RESOURCE")
        raised.append(args)  # type: ignore[arg-type]

    first = nth(2)
    with devcgroups.cgroup("unified") as path:
        devcgroups.attach(path, PROGRAM)
        monkeypatch.setattr(bpf, "prog_load", refusing(bpf.prog_load, EPERM, lambda *args: not first()))
        monkeypatch.setattr(deviceprog, "prlimit", prlimit)
        programs(path).allow(OURS)
        assert devcgroups.answers(tmp_path, path) == [ALL, NONE]
    assert raised == ([(8, 2**64 - 1, 2**64 - 1)] if limit == "raised" else [])


def test_before_5_6_a_program_is_replaced_in_two_steps(monkeypatch: Patch, tmp_path: Path) -> None:
    """Without F_REPLACE; if the old one cannot be detached, the new one goes again."""
    no_replace = refusing(bpf.prog_attach, EINVAL, lambda cgroup, prog, flags, old=0: flags & bpf.F_REPLACE)
    with devcgroups.cgroup("unified") as path:
        number = devcgroups.attach(path, PROGRAM)
        monkeypatch.setattr(bpf, "prog_attach", no_replace)
        first = nth(2)
        monkeypatch.setattr(bpf, "prog_detach", refusing(bpf.prog_detach, EBUSY, lambda *args: not first()))
        with pytest.raises(HookError, match=f"replace device program {number}: EBUSY"):
            programs(path).allow(OURS)
        assert devcgroups.ids(path) == [number]
        assert devcgroups.answers(tmp_path, path) == [NONE, NONE]
        made = programs(path)
        made.allow(OURS)
        assert devcgroups.answers(tmp_path, path) == [ALL, NONE]
        made.undo()
        assert devcgroups.ids(path) == [number]


def test_a_verifier_that_says_nothing(monkeypatch: Patch) -> None:
    assert bpf.prog_log(PROGRAM, b"good") == ""
    assert bpf.prog_log(b"\0" * 8, b"bad") != ""
    monkeypatch.setattr(bpf, "_load", refusing(bpf._load, EINVAL))
    assert bpf.prog_log(PROGRAM, b"none") == ""


# -- hierarchies that are hidden, or not all there --------------------------------------------------------------------


def scene(path: Path, script: str, setup: Callable[[], Any] = lambda: None) -> str:
    """allow() for a process of the cgroup at `path` ($0) after `script` in a mount namespace; the error's line."""

    def body() -> str:
        with devcgroups.member(path) as pid:
            sh(script.replace("$0", str(path)))
            setup()
            try:
                of(pid).allow(OURS)
            except HookError as e:
                return e.line()
        return "allowed"

    line: str = isolated(body)
    return line


NOWHERE = "no cgroup2 is mounted here that has it (call the hook as createRuntime"
HIDDEN: dict[str, tuple[str, str]] = {
    "by a mount on the cgroup itself": ("mount -t tmpfs none $0", NOWHERE),
    "by a mount above the hierarchy": ("mount -t tmpfs none $(dirname $(findmnt -nt cgroup2 -o TARGET | head -n 1))",
                                       NOWHERE),
}  # fmt: skip


@pytest.mark.parametrize("how", HIDDEN)
def test_a_hidden_cgroup_is_not_taken_for_another(how: str) -> None:
    script, wanted = HIDDEN[how]
    with devcgroups.cgroup("unified") as path:
        devcgroups.attach(path, PROGRAM)
        assert wanted in scene(path, script)


def test_a_read_only_list_is_written_by_a_mount_of_our_own() -> None:
    with devcgroups.cgroup("devices") as path:
        restrict(path)
        assert scene(path, "mount -o remount,bind,ro $(dirname $0)") == "allowed"
        assert "c 195:0 rw" in listed(path)


def test_a_mount_of_our_own_that_is_refused_is_one_line() -> None:
    def setup() -> None:
        refuse(cgroup, "fsconfig_create", EBUSY)

    with devcgroups.cgroup("devices") as path:
        restrict(path)
        line = scene(path, "mount -o remount,bind,ro $(dirname $0)", setup)
        assert line.startswith("find device cgroup: mount /")
        assert ": EBUSY (call the hook as createRuntime" in line


def test_a_hierarchy_that_cannot_be_looked_at_is_one_line() -> None:
    def setup() -> None:
        refuse(posix, "open", EACCES, lambda path, *args: str(path).startswith("b'./"))

    with devcgroups.cgroup("unified") as path:
        devcgroups.attach(path, PROGRAM)
        line = scene(path, "true", setup)
    assert line.startswith("find device cgroup")
    assert ": EACCES (" in line


def test_a_process_above_our_root_is_one_line() -> None:
    def setup() -> None:
        cgroup.parse = lambda text: [(b"", b"/nowhere")]

    with devcgroups.cgroup("unified") as path:
        devcgroups.attach(path, PROGRAM)
        assert f"find device cgroup /nowhere: {NOWHERE}" in scene(path, "true", setup)


def _is_procs(path: Any, *args: Any) -> bool:
    return bool(path == b"cgroup.procs")


@pytest.mark.parametrize("how", ["threaded", "gone", "on another mount"])
def test_a_scope_that_cannot_be_looked_at_is_left_alone(monkeypatch: Patch, tmp_path: Path, how: str) -> None:
    """EOPNOTSUPP is how cgroup.procs of a threaded cgroup answers (cgroups(7))."""
    with devcgroups.cgroup("unified", "x.scope", "c") as path:
        old = [devcgroups.attach(one, PROGRAM) for one in (path.parent, path)]
        if how == "on another mount":
            top = devcgroups.top("unified")
            script = f"mount --bind $0 {tmp_path}; umount -l {top}"
            name = "/" + str(path.relative_to(top))
            assert scene(path, script, lambda: setattr(cgroup, "parse", lambda _: [(b"", name.encode())])) == "allowed"
        else:
            number = EOPNOTSUPP if how == "threaded" else ENOENT
            monkeypatch.setattr(posix, "open", refusing(posix.open, number, _is_procs))
            with devcgroups.member(path) as pid:
                of(pid).allow(OURS)
            monkeypatch.undo()
        assert devcgroups.ids(path.parent) == [old[0]]
        assert devcgroups.ids(path) != [old[1]]


def test_before_4_6_there_is_one_cgroup_namespace(monkeypatch: Patch) -> None:
    monkeypatch.setattr(procfs, "ns_id", refusing(procfs.ns_id, ENOENT))
    assert cgroup._in_initial_namespace()
