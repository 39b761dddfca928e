"""Rows J4, J6, J10 to J14 and J16: device rules of a container whose programs, cgroup, node or rights are odd.

A real hook process, a real cgroup of each hierarchy. Either just the listed device opens afterwards, or there is one
line and everything is as it was.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from kernel import devcgroups
from kernel.namespaced import isolated
from kernel.test_bpf_refusals import with_a_map
from kernel.test_device_rules import ALL, HELPER, NONE, PROGRAM, Site, make_site, one_error
from lib import bpfvm, devprogs, session
from lib.bpfvm import CALL, EXIT, JNE_K, LDX_W, MOV64_K, MOV64_X
from lib.devprogs import Rule
from security import prestartscene
from security.prestartscene import Scene, on_node

from nvoci.errors import HookError
from nvoci.linux import bpf, syscalls
from nvoci.linux.cgroup import DeviceCgroup
from nvoci.linux.devicerule import DeviceRule
from nvoci.linux.fd import Fd

pytestmark = [pytest.mark.kernel, pytest.mark.skipif(os.geteuid() != 0, reason="cgroups need root")]

BIND = ("devices", "--bind", "/dev/fuse")
CLONE_NEWCGROUP = 0x02000000
ONLY_NULL = [Rule(True, "c", 1, 3)]


@pytest.fixture(params=["unified", "devices"])
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    yield from make_site(request.param, tmp_path)


@pytest.fixture
def unified(tmp_path: Path) -> Iterator[Site]:
    yield from make_site("unified", tmp_path)


def only(site: Site, *codes: bytes, flags: int = bpf.F_ALLOW_MULTI) -> list[int]:
    """The cgroup's programs are just these; their ids."""
    directory = os.open(site.cgroup, os.O_RDONLY)
    for number in devcgroups.ids(site.cgroup):
        fd = bpf.prog_fd(number)
        bpf.prog_detach(directory, fd)
        os.close(fd)
    os.close(directory)
    return [devcgroups.attach(site.cgroup, code, flags) for code in codes]


def state(site: Site) -> tuple[Any, ...]:
    """All that a hook may have changed. Programs never change: the same ids are the same programs."""
    rules: Any = (site.cgroup / "devices.list").read_text() if site.kind == "devices" else devcgroups.ids(site.cgroup)
    return rules, site.container.listdir("dev"), site.container.mountinfo(), site.given()


def refused(site: Site, *parts: str, prefix: Sequence[str] = (), words: Sequence[str] = BIND, **how: Any) -> None:
    """One call that must fail, and change nothing: neither mounts nor nodes nor rules."""
    before = state(site)
    line = one_error(site.hook(*words, prefix=prefix, **how))
    assert [part for part in parts if part not in line] == [], line
    assert state(site) == before


# --- J4: how many programs there are, and how they were attached -----------------------------------------------------

ATTACHED = {
    "J4-1-alone": (1, 0),
    "J4-1-override": (1, bpf.F_ALLOW_OVERRIDE),
    "J4-1-multi": (1, bpf.F_ALLOW_MULTI),
    "J4-2": (2, bpf.F_ALLOW_MULTI),
    "J4-63": (bpf.MAX_PROGRAMS - 1, bpf.F_ALLOW_MULTI),
}


@pytest.mark.parametrize("case", ATTACHED)
def test_j4_rules_go_before_every_program(unified: Site, case: str) -> None:
    count, flags = ATTACHED[case]
    forms = list(devprogs.FORMS.values())
    old = only(unified, *(forms[i % 3](ONLY_NULL) for i in range(count)), flags=flags)
    shown = {one["attach_flags"] for one in devcgroups.attached(unified.cgroup)}
    assert unified.given() == [NONE] * 3
    assert unified.hook(*BIND).ok
    now = devcgroups.attached(unified.cgroup)
    assert (len(now), {one["attach_flags"] for one in now}) == (count, shown)
    assert not {one["id"] for one in now} & set(old)
    assert unified.given() == [ALL, NONE, NONE]


def test_j4_without_a_program_there_is_nothing_to_do(unified: Site) -> None:
    only(unified)
    assert unified.hook(*BIND).ok
    assert (devcgroups.ids(unified.cgroup), unified.given()) == ([], [ALL + " m"] * 3)


def test_j4_as_many_as_there_can_be_are_left_as_they_are(unified: Site) -> None:
    only(unified, *[PROGRAM] * bpf.MAX_PROGRAMS)
    refused(unified, "E2BIG", "64 programs")


@pytest.mark.parametrize("place", [0, 2])
def test_j4_one_that_cannot_be_merged_leaves_all_as_they_are(unified: Site, place: int) -> None:
    codes = [form(ONLY_NULL) for form in devprogs.FORMS.values()]
    codes[place] = HELPER
    numbers = only(unified, *codes)
    refused(unified, f"merge device program {numbers[place]}: it calls a function", "detach that program")


def test_naive_j4_one_more_program_opens_nothing(unified: Site) -> None:
    """The kernel asks every program: adding one that allows does not help, replacing but one neither."""
    only(unified, PROGRAM, devprogs.systemd([*ONLY_NULL, Rule(True, "c", 10, 229)]))
    assert unified.given() == [NONE] * 3


# --- J6: what a program may consist of -------------------------------------------------------------------------------


def registers() -> bytes:
    """Everything in registers of its own, those of the arguments overwritten: c 1:3 alone is allowed."""
    lines: list[bpfvm.Line | str] = [
        (MOV64_X, 6, 1, 0, 0), (LDX_W, 7, 6, 4, 0), (LDX_W, 8, 6, 8, 0),
        *((MOV64_K, n, 0, 0, n) for n in range(1, 6)),
        (JNE_K, 7, 0, "no", 1), (JNE_K, 8, 0, "no", 3), (MOV64_X, 0, 1, 0, 0), (EXIT, 0, 0, 0, 0),
        "no", (MOV64_K, 0, 0, 0, 0), (EXIT, 0, 0, 0, 0),
    ]  # fmt: skip
    return bpfvm.assemble(lines)


def long_program() -> bytes:
    """More instructions than a program had before Linux 5.2."""
    filler = [(MOV64_K, 2, 0, 0, n) for n in range(6000)]
    return bpfvm.assemble([*filler, (MOV64_K, 0, 0, 0, 0), (EXIT, 0, 0, 0, 0)])


def function_of_its_own() -> bytes:
    """BPF_PSEUDO_CALL: src is 1, imm the distance."""
    return bpfvm.assemble([(CALL, 0, 1, 0, 1), (EXIT, 0, 0, 0, 0), (MOV64_K, 0, 0, 0, 0), (EXIT, 0, 0, 0, 0)])


@pytest.mark.parametrize("make", [registers, long_program], ids=["J6-registers", "J6-6000-instructions"])
def test_j6_a_program_of_another_shape_is_kept_whole_behind_the_rules(unified: Site, make: Callable[[], bytes]) -> None:
    code = make()
    only(unified, code)
    folder, others = session.new_dir("nodes"), [("c", 1, 3), ("c", 1, 5)]
    before = devcgroups.answers(folder, unified.cgroup, wanted=others)
    assert unified.hook(*BIND).ok
    assert unified.given() == [ALL, NONE, NONE]
    assert devcgroups.answers(folder, unified.cgroup, wanted=others) == before
    (number,) = devcgroups.ids(unified.cgroup)
    assert devcgroups.xlated(number).endswith(code)


REFUSED = {
    "J6-map": (with_a_map, "it uses a map"),
    "J6-helper": (lambda: HELPER, "it calls a function"),
    "J6-function": (function_of_its_own, "it calls a function"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_j6_what_would_not_be_the_same_program_is_not_merged(unified: Site, case: str) -> None:
    make, reason = REFUSED[case]
    only(unified, make())
    refused(unified, "merge device program", reason)


# --- J10: where the cgroup is seen -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["unified", "devices"])
@pytest.mark.parametrize("where", ["below", "beside"])
def test_j10_in_a_cgroup_namespace_whose_mounts_lie_above_it(tmp_path: Path, kind: str, where: str) -> None:
    """mountinfo then has roots such as `/../..`. A container below is found, one beside it is an error."""
    with ExitStack() as stack:
        path = stack.enter_context(devcgroups.cgroup(kind, "runtime", "container"))
        ours, theirs = path.parent, path
        if where == "beside":
            theirs = ours.parent / "beside"
            theirs.mkdir()
            stack.callback(theirs.rmdir)
        prestartscene.restrict(kind, theirs)

        def body() -> str:
            # A process before the namespace is left: what it joins is seen from outside.
            with devcgroups.member(theirs) as pid:
                devcgroups.join(ours)
                syscalls.unshare(CLONE_NEWCGROUP)
                roots = {line.split()[3] for line in Path("/proc/self/mountinfo").read_text().splitlines()
                         if line.split()[4] == str(devcgroups.top(kind))}  # fmt: skip
                assert any(".." in root for root in roots), roots
                try:
                    with Fd(os.open(f"/proc/{pid}", os.O_RDONLY | os.O_DIRECTORY)) as process:
                        DeviceCgroup.of(process.fileno()).allow([DeviceRule("c", 195, 0)])
                except HookError as e:
                    return e.line()
            return "allowed"

        said = isolated(body)
        opened = devcgroups.answers(tmp_path, theirs)
        if where == "below" and said == "allowed":
            assert opened == [ALL, NONE]
        else:
            assert ("cgroup" in said, opened) == (True, [NONE, NONE])
        assert where == "below" or said.endswith(
            "lies outside of this cgroup namespace (call the hook where the container's cgroup is seen)"
        )


# --- J11: another node than the one that was looked at ---------------------------------------------------------------

RENUMBERED = """
entering = enter.Place.enter
def renumber(place):
    import os
    os.rename("/dev/nvidia0", "/dev/nvidia0.old")
    os.mknod("/dev/nvidia0", 0o020666, os.makedev(1, 3))
    entering(place)
enter.Place.enter = renumber
"""


def test_j11_a_node_that_is_exchanged_before_it_is_mounted_is_the_opened_one(profile: str) -> None:
    """As when the driver is loaded anew with another number: what is allowed is what was opened, never what has the
    name by now."""
    kind = "unified" if profile == "new" else "devices"

    def body() -> tuple[int, str, list[object], str]:
        prestartscene.ready(Scene(kind))
        with Scene(kind, env=("NVIDIA_VISIBLE_DEVICES=0",)).container() as site:
            before = site.rules()
            done = site.hook(extra="import os\n" + RENUMBERED)
            point = site.container.path("dev/nvidia0")
            seen = str(os.major(point.stat().st_rdev)) if point.exists() else "-"
            changed = site.rules() != before
            opens = devcgroups.answers(session.new_dir("nodes"), site.cgroup, wanted=[("c", 195, 0), ("c", 1, 5)])
            return done.rc, seen, [changed, *opens], done.stderr

    rc, seen, told, stderr = on_node(body)
    if rc == 0:
        assert (seen, told) == ("195", [True, ALL, NONE]), stderr
    else:
        assert (seen, told, stderr.count("level=error")) == ("-", [False, NONE, NONE], 1), stderr


# --- J12, J13: less than root usually may ----------------------------------------------------------------------------


def without(*names: str) -> list[str]:
    """A wrapper: root without these capabilities."""
    listed = ",".join(f"-{name}" for name in names)
    return ["/usr/bin/setpriv", f"--bounding-set={listed}", f"--inh-caps={listed}"]


def test_j12_no_locked_memory_is_needed(unified: Site) -> None:
    prefix = [*without("sys_resource"), "/usr/bin/prlimit", "--memlock=0:0"]
    result = unified.hook(*BIND, prefix=prefix)
    assert (result.rc, result.stderr) == (0, "")
    assert unified.given() == [ALL, NONE, NONE]


@pytest.mark.parametrize("stage", ["createRuntime", "createContainer"])
def test_j13_without_the_capability_it_is_named(site: Site, stage: Any) -> None:
    """A rule alone: no mount fails before it."""
    words = ("devices", "--allow", "c 10:229 rw")
    refused(site, "CAP_SYS_ADMIN", prefix=without("sys_admin", "bpf"), stage=stage, words=words)


def test_j13_a_kernel_that_lets_nobody_else_load_programs_lets_us(unified: Site) -> None:
    value = Path("/proc/sys/kernel/unprivileged_bpf_disabled").read_text().strip()
    if value == "0":
        pytest.skip("it is not disabled here")
    assert unified.hook(*BIND).ok
    assert unified.given() == [ALL, NONE, NONE]


# --- J7, J16: what the rule does not give ----------------------------------------------------------------------------


def test_j7_making_a_node_stays_refused(site: Site) -> None:
    """Neither of the device that was given nor of another: CAP_MKNOD alone is not enough."""
    assert site.hook(*BIND).ok
    assert [("m" in answer.split()) for answer in site.given()] == [False] * 3


def test_j7_a_runtime_that_allows_making_nodes_still_does(unified: Site) -> None:
    """As runc and crun do by default; opening what was made is another question."""
    only(unified, devprogs.runc([Rule(True, "c", access="m"), *ONLY_NULL]))
    assert unified.given() == ["m"] * 3
    assert unified.hook(*BIND).ok
    assert unified.given() == [ALL + " m", "m", "m"]
