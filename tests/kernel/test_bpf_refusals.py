"""Device programs that cannot be merged, or may not: each is one line that names it, and everything is as before."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from lib import bpfvm, devprogs
from lib.devprogs import FORMS, Rule

from nvoci.errors import HookError
from nvoci.linux import abi, bpf, libc
from nvoci.linux.deviceprog import DevicePrograms
from nvoci.linux.devicerule import DeviceRule
from nvoci.linux.fd import Fd
from tests.kernel import devcgroups
from tests.kernel.namespaced import block, isolated

pytestmark = [pytest.mark.kernel, pytest.mark.skipif(os.geteuid() != 0, reason="device programs need root")]

OURS = [DeviceRule("c", 195, 0)]
RULES = [Rule(True, "c", 1, 3)]
NONE = ""
CAP_SYS_ADMIN, CAP_SYSLOG, CAP_BPF = 21, 34, 39


def programs(path: Path) -> DevicePrograms:
    return DevicePrograms(Fd(os.open(path, os.O_RDONLY | os.O_DIRECTORY)), b"/test")


def refusal(path: Path, rules: list[DeviceRule] | None = None) -> str:
    """The line of the error that allow() ends with; what is attached must be as before."""
    before = devcgroups.ids(path)
    with pytest.raises(HookError) as caught:
        programs(path).allow(OURS if rules is None else rules)
    assert devcgroups.ids(path) == before
    return caught.value.line()


# -- what cannot be merged ------------------------------------------------------------------------------------------


def with_a_map() -> bytes:
    """union bpf_attr of BPF_MAP_CREATE: {u32 map_type (2: array), key_size, value_size, max_entries}"""
    fd = libc.syscall(abi.NR["bpf"], 0, devcgroups.words(2, 4, 4, 1), 16)
    lines = [(bpfvm.LD_IMM64, 2, 1, 0, fd), (0, 0, 0, 0, 0), (bpfvm.MOV64_K, 0, 0, 0, 1), (bpfvm.EXIT, 0, 0, 0, 0)]
    return bpfvm.assemble(lines)


def with_a_helper() -> bytes:
    """bpf_ktime_get_ns() is function 5."""
    return bpfvm.assemble([(bpfvm.CALL, 0, 0, 0, 5), (bpfvm.MOV64_K, 0, 0, 0, 1), (bpfvm.EXIT, 0, 0, 0, 0)])


def with_the_time() -> bytes:
    """bpf_jiffies64() is function 118; the verifier puts an address of the kernel there, which only it may."""
    return bpfvm.assemble([(bpfvm.CALL, 0, 0, 0, 118), (bpfvm.MOV64_K, 0, 0, 0, 1), (bpfvm.EXIT, 0, 0, 0, 0)])


@pytest.mark.parametrize("last", [True, False], ids=["after others", "before others"])
@pytest.mark.parametrize(
    ("make", "reason"),
    [(with_a_map, "uses a map"), (with_a_helper, "calls a function"), (with_the_time, "E(INVAL|ACCES)")],
)
def test_a_foreign_program_is_named_and_all_is_as_before(
    tmp_path: Path, make: Callable[[], bytes], reason: str, last: bool
) -> None:
    with devcgroups.cgroup("unified") as path:
        codes = [devprogs.runc(RULES), devprogs.crun(RULES)]
        codes.insert(2 if last else 0, make())
        numbers = [devcgroups.attach(path, code) for code in codes]
        line = refusal(path)
        assert f"merge device program {numbers[2 if last else 0]}: " in line
        assert re.search(reason, line)
        assert devcgroups.answers(tmp_path, path) == [NONE, NONE]


def test_a_program_attached_by_a_link_is_named(tmp_path: Path) -> None:
    """BPF_LINK_CREATE: {u32 prog_fd, target_fd, attach_type, flags}. The first program is replaced, and comes back."""
    with devcgroups.cgroup("unified") as path:
        first = devcgroups.attach(path, devprogs.runc(RULES))
        prog, directory = bpf.prog_load(devprogs.crun(RULES), b"linked"), os.open(path, os.O_RDONLY)
        link = libc.syscall(abi.NR["bpf"], 28, devcgroups.words(prog, directory, bpf._CGROUP_DEVICE, 0), 16)
        line = refusal(path)
        assert f"device program {devcgroups.prog_id(prog)}: ENOENT" in line
        assert "by a link" in line
        assert first in devcgroups.ids(path)
        assert devcgroups.answers(tmp_path, path) == [NONE, NONE]
        os.close(link)


def test_a_program_that_the_kernel_does_not_show_is_named() -> None:
    def body(path: Path) -> str:
        devcgroups.drop_capabilities(CAP_SYSLOG)
        return refusal_without_bpftool(path)

    with devcgroups.cgroup("unified") as path, devcgroups.sysctl("net/core/bpf_jit_harden", "2"):
        code = devprogs.runc(RULES)
        number = devcgroups.attach(path, code)
        if devcgroups.xlated(number) == code or Path("/proc/sys/kernel/perf_event_paranoid").read_text().strip() < "2":
            pytest.skip("this kernel shows it")
        line = isolated(body, path)
    assert f"merge device program {number}: the kernel does not show it" in line


def refusal_without_bpftool(path: Path) -> str:
    with pytest.raises(HookError) as caught:
        programs(path).allow(OURS)
    return caught.value.line()


@pytest.mark.parametrize("failing", [1, 2, 3])
def test_what_was_replaced_is_put_back_when_a_later_one_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    attach, calls = bpf.prog_attach, [0]

    def fails(cgroup: int, prog: int, flags: int, replaced: int = 0) -> None:
        calls[0] += 1
        if calls[0] == failing:
            raise OSError(errno.ENOMEM, "out of memory")
        attach(cgroup, prog, flags, replaced)

    with devcgroups.cgroup("unified") as path:
        old = [devcgroups.attach(path, FORMS[form](RULES)) for form in FORMS]
        monkeypatch.setattr(bpf, "prog_attach", fails)
        with pytest.raises(HookError, match=rf"replace device program {old[failing - 1]}: ENOMEM"):
            programs(path).allow(OURS)
        monkeypatch.undo()
        assert sorted(devcgroups.ids(path)) == sorted(old)
        assert devcgroups.answers(tmp_path, path) == [NONE, NONE]


def test_as_many_programs_as_a_cgroup_can_have_are_left_alone() -> None:
    """The kernel then refuses even to replace one, and without all of them more would be open for a moment."""
    with devcgroups.cgroup("unified") as path:
        for _ in range(bpf.MAX_PROGRAMS):
            devcgroups.attach(path, devprogs.runc(RULES))
        line = refusal(path)
        assert ": E2BIG (" in line
        assert "64 programs" in line


# -- a kernel that does not let us ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "words"),
    [(errno.EPERM, "needs CAP_SYS_ADMIN"), (errno.ENOSYS, "no bpf"), (errno.EINVAL, "ask for its device programs")],
)
def test_bpf_that_is_refused_is_one_line(number: int, words: str) -> None:
    def body(path: Path) -> str:
        block(("bpf",), number)
        return refusal_without_bpftool(path)

    with devcgroups.cgroup("unified") as path:
        devcgroups.attach(path, devprogs.runc(RULES))
        line = isolated(body, path)
    assert line.startswith(f"device cgroup /test: ask for its device programs: {errno.errorcode[number]}")
    assert words in line
    assert "\n" not in line


def test_where_a_v1_list_is_in_use_no_answer_means_no_programs() -> None:
    def body(path: Path) -> None:
        block(("bpf",), errno.EPERM)
        directory = Fd(os.open(path, os.O_RDONLY | os.O_DIRECTORY))
        DevicePrograms(directory, b"/test", listed=True).allow(OURS)

    with devcgroups.cgroup("unified") as path:
        devcgroups.attach(path, devprogs.runc(RULES))
        before = devcgroups.ids(path)
        isolated(body, path)
        assert devcgroups.ids(path) == before != []


def test_without_the_capability_it_is_one_line() -> None:
    def body(path: Path) -> str:
        devcgroups.drop_capabilities(CAP_SYS_ADMIN, CAP_BPF)
        return refusal_without_bpftool(path)

    with devcgroups.cgroup("unified") as path:
        devcgroups.attach(path, devprogs.runc(RULES))
        assert "EPERM (bpf(2) needs CAP_SYS_ADMIN" in isolated(body, path)


def test_a_cgroup_that_is_the_runtimes_too_is_not_changed() -> None:
    with devcgroups.cgroup("unified") as path:
        old = devcgroups.attach(path, devprogs.runc(RULES))
        directory = Fd(os.open(path, os.O_RDONLY | os.O_DIRECTORY))
        with pytest.raises(HookError, match="is the runtime's own, too"):
            DevicePrograms(directory, b"/test", shared=True).allow(OURS)
        assert devcgroups.ids(path) == [old]


def test_no_descriptor_is_left_open() -> None:
    with devcgroups.cgroup("unified") as path:
        for form in FORMS:
            devcgroups.attach(path, FORMS[form](RULES))
        devcgroups.attach(path, with_a_map())
        before = set(os.listdir("/proc/self/fd"))
        made = programs(path)
        with pytest.raises(HookError, match="uses a map"):
            made.allow(OURS)
        made.close()
        assert set(os.listdir("/proc/self/fd")) == before
