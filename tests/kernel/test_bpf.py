"""Device programs on the real kernel: our rules in front of every program of a cgroup, and everything back as it was.

bpftool says what is attached; a process in the cgroup, what it may open.
"""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

import pytest
from lib import bpfvm, devprogs
from lib.devprogs import FORMS, Rule

from nvoci.linux import abi, bpf, bpfdevice
from nvoci.linux.deviceprog import DevicePrograms
from nvoci.linux.devicerule import DeviceRule
from nvoci.linux.fd import Fd
from tests.kernel import devcgroups
from tests.kernel.devcgroups import DISK, GPU, NULL, OTHER

pytestmark = [pytest.mark.kernel, pytest.mark.skipif(os.geteuid() != 0, reason="device programs need root")]

OURS = [DeviceRule("c", 195, 0)]
RULES = [Rule(True, "c", 1, 3)]
ALL, NONE = "r w rw", ""
HEADER = Path("/usr/include/linux/bpf.h")


def programs(path: Path) -> DevicePrograms:
    return DevicePrograms(Fd(os.open(path, os.O_RDONLY | os.O_DIRECTORY)), b"/test")


# -- numbers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("enum", "name", "value"),
    [
        ("bpf_cmd", "BPF_PROG_LOAD", bpf._PROG_LOAD),
        ("bpf_cmd", "BPF_PROG_ATTACH", bpf._PROG_ATTACH),
        ("bpf_cmd", "BPF_PROG_DETACH", bpf._PROG_DETACH),
        ("bpf_cmd", "BPF_PROG_GET_FD_BY_ID", bpf._PROG_GET_FD_BY_ID),
        ("bpf_cmd", "BPF_OBJ_GET_INFO_BY_FD", bpf._OBJ_GET_INFO_BY_FD),
        ("bpf_cmd", "BPF_PROG_QUERY", bpf._PROG_QUERY),
        ("bpf_prog_type", "BPF_PROG_TYPE_CGROUP_DEVICE", bpf._PROG_TYPE_CGROUP_DEVICE),
        ("bpf_attach_type", "BPF_CGROUP_DEVICE", bpf._CGROUP_DEVICE),
    ],
)
def test_number_is_that_of_the_kernels_header(enum: str, name: str, value: int) -> None:
    if not HEADER.exists():
        pytest.skip(f"{HEADER} is not here (linux-libc-dev)")
    body = re.search(rf"enum {enum} \{{(.*?)\n\}};", HEADER.read_text(), re.DOTALL)
    assert body
    names = re.findall(r"^\t(BPF_\w+)(?: = \w+)?,", body[1], re.MULTILINE)
    names = [n for n in names if n != "BPF_PROG_RUN"]  # a second name for the one before
    assert names.index(name) == value


# -- allowing -------------------------------------------------------------------------------------------------------


def test_nothing_attached_is_nothing_to_do(tmp_path: Path) -> None:
    with devcgroups.cgroup("unified") as path:
        programs(path).allow(OURS)
        assert devcgroups.ids(path) == []
        assert devcgroups.answers(tmp_path, path) == [ALL + " m"] * 2


@pytest.mark.parametrize("form", FORMS)
def test_the_listed_device_opens_and_no_other(tmp_path: Path, form: str) -> None:
    nodes = [GPU, OTHER, DISK, NULL]
    with devcgroups.cgroup("unified") as path:
        devcgroups.attach(path, FORMS[form](RULES))
        before = devcgroups.answers(tmp_path, path, wanted=nodes)
        made = programs(path)
        made.allow(OURS)
        after = devcgroups.answers(tmp_path, path, wanted=nodes)
        assert before[:3] == [NONE] * 3
        assert after == [ALL, *before[1:]]
        made.undo()
        assert devcgroups.answers(tmp_path, path, wanted=nodes) == before


def test_bpftool_sees_one_program_with_our_instructions_in_front() -> None:
    code = devprogs.runc(RULES)
    with devcgroups.cgroup("unified") as path:
        old = devcgroups.attach(path, code)
        programs(path).allow(OURS)
        (shown,) = devcgroups.attached(path)
        assert shown["id"] != old
        assert (shown["attach_flags"], shown["name"]) == ("multi", "nvoci_devices")
        assert devcgroups.xlated(shown["id"]) == bpfdevice.prefix(OURS) + code


@pytest.mark.parametrize("access", ["r", "w", "rw"])
def test_exactly_the_access_of_the_rule_is_given(tmp_path: Path, access: str) -> None:
    with devcgroups.cgroup("unified") as path:
        devcgroups.attach(path, devprogs.systemd(RULES))
        programs(path).allow([DeviceRule("c", 195, 0, access), DeviceRule("b", 195, 0, access)])
        wanted = {"r": "r", "w": "w", "rw": "r w rw"}[access]
        assert devcgroups.answers(tmp_path, path, wanted=[GPU, OTHER, DISK]) == [wanted, NONE, wanted]


@pytest.mark.parametrize("count", [2, bpf.MAX_PROGRAMS - 1])
def test_rules_come_before_every_attached_program(tmp_path: Path, count: int) -> None:
    with devcgroups.cgroup("unified") as path:
        for i in range(count):
            devcgroups.attach(path, list(FORMS.values())[i % 3](RULES))
        old = devcgroups.ids(path)
        made = programs(path)
        made.allow(OURS)
        assert len(devcgroups.ids(path)) == count
        assert not set(devcgroups.ids(path)) & set(old)
        assert devcgroups.answers(tmp_path, path) == [ALL, NONE]
        made.undo()
        assert sorted(devcgroups.ids(path)) == sorted(old)
        assert devcgroups.answers(tmp_path, path) == [NONE, NONE]


@pytest.mark.parametrize(("flags", "shown"), [(0, ""), (bpf.F_ALLOW_OVERRIDE, "override"), (2, "multi")])
def test_attach_flags_stay_what_they_were(tmp_path: Path, flags: int, shown: str) -> None:
    with devcgroups.cgroup("unified") as path:
        old = devcgroups.attach(path, devprogs.runc(RULES), flags)
        made = programs(path)
        made.allow(OURS)
        (now,) = devcgroups.attached(path)
        assert (now["attach_flags"], now["id"] == old) == (shown, False)
        assert devcgroups.answers(tmp_path, path) == [ALL, NONE]
        made.undo()
        assert [(one["id"], one["attach_flags"]) for one in devcgroups.attached(path)] == [(old, shown)]


def test_a_second_run_changes_nothing() -> None:
    with devcgroups.cgroup("unified") as path:
        devcgroups.attach(path, devprogs.runc(RULES))
        devcgroups.attach(path, devprogs.systemd(RULES))
        programs(path).allow([*OURS, DeviceRule("c", 1, 11)])
        now = devcgroups.ids(path)
        again = programs(path)
        again.allow([DeviceRule("c", 1, 11, "r"), *OURS])
        assert devcgroups.ids(path) == now
        again.undo()
        assert devcgroups.ids(path) == now


def test_more_devices_are_added_in_front_of_the_first_ones(tmp_path: Path) -> None:
    with devcgroups.cgroup("unified") as path:
        devcgroups.attach(path, devprogs.runc(RULES))
        programs(path).allow(OURS)
        programs(path).allow([*OURS, DeviceRule("c", 195, 1)])
        assert devcgroups.answers(tmp_path, path, wanted=[GPU, OTHER, ("c", 195, 2)]) == [ALL, ALL, NONE]
        code = devcgroups.xlated(devcgroups.ids(path)[0])
        assert code.startswith(bpfdevice.prefix([DeviceRule("c", 195, 1)]) + bpfdevice.prefix(OURS))


def test_two_thousand_devices(tmp_path: Path) -> None:
    """As many as there can be IMEX channels."""
    rules = [DeviceRule("c", 235, minor) for minor in range(2048)]
    with devcgroups.cgroup("unified") as path:
        devcgroups.attach(path, devprogs.runc(RULES))
        programs(path).allow(rules)
        wanted = [("c", 235, 0), ("c", 235, 2047), ("c", 235, 2048)]
        assert devcgroups.answers(tmp_path, path, wanted=wanted) == [ALL, ALL, NONE]


@pytest.mark.parametrize("form", FORMS)
def test_hidden_constants_are_no_obstacle(tmp_path: Path, form: str) -> None:
    """net.core.bpf_jit_harden=2 changes what can be read back, both of the runtime's program and of ours."""
    code = FORMS[form](RULES)
    with devcgroups.cgroup("unified") as path:
        with devcgroups.sysctl("net/core/bpf_jit_harden", "2"):
            old = devcgroups.attach(path, code)
            if devcgroups.xlated(old) == code:
                pytest.skip("this kernel does not compile device programs")
            made = programs(path)
            made.allow(OURS)
            now = devcgroups.ids(path)
            programs(path).allow(OURS)
        assert devcgroups.ids(path) == now
        assert devcgroups.answers(tmp_path, path) == [ALL, NONE]
        made.undo()
        assert devcgroups.ids(path) == [old]


# -- older kernels --------------------------------------------------------------------------------------------------


def without_replace(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A kernel before 5.6; the list is told of what is called."""
    told: list[str] = []
    attach, detach = bpf.prog_attach, bpf.prog_detach

    def old_attach(cgroup: int, prog: int, flags: int, replaced: int = 0) -> None:
        if flags & bpf.F_REPLACE or replaced:
            raise OSError(errno.EINVAL, "unknown flag")
        told.append("attach")
        attach(cgroup, prog, flags)

    def old_detach(cgroup: int, prog: int) -> None:
        told.append("detach")
        detach(cgroup, prog)

    monkeypatch.setattr(bpf, "prog_attach", old_attach)
    monkeypatch.setattr(bpf, "prog_detach", old_detach)
    return told


def test_without_replace_the_new_one_is_attached_before_the_old_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = without_replace(monkeypatch)
    with devcgroups.cgroup("unified") as path:
        old = [devcgroups.attach(path, FORMS[form](RULES)) for form in FORMS]
        told.clear()
        made = programs(path)
        made.allow(OURS)
        assert told == ["attach", "detach"] * 3
        assert devcgroups.answers(tmp_path, path) == [ALL, NONE]
        made.undo()
        assert sorted(devcgroups.ids(path)) == sorted(old)


def test_without_replace_a_killed_run_is_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed between attach and detach, both programs are left; the next run takes the old one away."""
    without_replace(monkeypatch)
    code = devprogs.runc(RULES)
    with devcgroups.cgroup("unified") as path:
        old = devcgroups.attach(path, code)
        new = devcgroups.attach(path, bpfdevice.prefix(OURS) + code)
        made = programs(path)
        made.allow(OURS)
        assert devcgroups.ids(path) == [new]
        assert devcgroups.answers(tmp_path, path) == [ALL, NONE]
        made.undo()
        assert sorted(devcgroups.ids(path)) == sorted([old, new])
        assert devcgroups.answers(tmp_path, path) == [NONE, NONE]


def test_the_limit_of_locked_memory_is_raised_where_the_kernel_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    load = bpf.prog_load

    def counted(code: bytes, name: bytes) -> int:
        calls.append("load")
        if len(calls) == 1:
            raise PermissionError(errno.EPERM, "too much locked")
        return load(code, name)

    with devcgroups.cgroup("unified") as path:
        devcgroups.attach(path, devprogs.runc(RULES))
        monkeypatch.setattr(bpf, "prog_load", counted)
        monkeypatch.setattr("nvoci.linux.deviceprog.prlimit", lambda *what: calls.append(f"limit {what[0]}"))
        programs(path).allow(OURS)
    assert calls == ["load", f"limit {abi.RLIMIT_MEMLOCK}", "load"]


# -- reading and checking ---------------------------------------------------------------------------------------------


def test_a_large_program_is_read_whole() -> None:
    """More instructions than the first look has room for, up to a limit."""
    filler = [(bpfvm.MOV64_K, 2, 0, 0, i) for i in range(6000)]
    code = bpfvm.assemble([*filler, (bpfvm.MOV64_K, 0, 0, 0, 0), (bpfvm.EXIT, 0, 0, 0, 0)])
    fd = bpf.prog_load(code, b"large")
    assert bpf.prog_info(fd).code == code
    assert bpf.prog_info(fd).name == b"large"


def test_the_verifiers_last_word_is_told() -> None:
    said = bpf.prog_log(bpfvm.assemble([(bpfvm.EXIT, 0, 0, 0, 0)]), b"wrong")
    assert "R0 !read_ok" in said
    assert bpf.prog_log(devprogs.runc(RULES), b"right") == ""
