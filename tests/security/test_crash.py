"""Rows L1 to L3, L5 and L7: a hook killed, told to end, or lied to by the kernel, at each of its system calls.

After a kill every file is the old one or the new one, the other processes end, and a rerun gives what an undisturbed
run gives. After an error the hook has succeeded, or it says one line and nothing has changed. Every call of every
process from the first read of the state on is a point. Where the hook is called outside of the container, as two
processes, a normal run takes all of them; inside, where one process does the same work, and on a kernel without the
newer calls, some. `--long` takes all, each error at each point, and a rerun after each kill.
"""

from __future__ import annotations

import errno
import signal
from collections.abc import Callable

import pytest
from lib import callpoints
from lib.callpoints import Fault, Point, Ran
from security.arena import NAIVE, STAGES
from security.crashing import Scene, Tally, killed, lied_to, lies
from security.crashscenes import HOOKS, LINKS, WORDS, scene

Report = Callable[[str, object], None]
# Of a normal run: one of so many points; of a kernel without the newer calls, where a fallback closes descriptors by
# the thousand, so many in all.
STEP = {"outside": 1, "inside": 6}
OLD = 20
SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGXCPU, signal.SIGPIPE, signal.SIGXFSZ)


@pytest.fixture(autouse=True)
def _able() -> None:
    why = callpoints.missing()
    if why:
        pytest.skip(why)


@pytest.fixture(params=["new", "old"])
def compat(request: pytest.FixtureRequest) -> bool:
    """Whether the kernel has none of the newer calls."""
    return bool(request.param == "old")


def chosen(it: Scene, stage: str, *, compat: bool, long: bool, shift: int) -> list[Point]:
    points = it.once.points()
    assert len(points) > 100 or stage == "inside"
    step = 1 if long else max(1, len(points) // OLD) if compat else STEP[stage]
    return points[shift % step :: step]


def judge(tally: Tally, points: int, report: Report) -> None:
    for name, value in tally.properties().items():
        report(name, value)
    assert tally.bad == []
    assert tally.points + tally.covered == points
    assert tally.reached > tally.points * 0.8
    assert tally.changed + tally.covered > 0 < tally.failures


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("hook", HOOKS)
def test_l1_a_rerun_after_a_kill_at_any_call_completes_it(
    hook: str, stage: str, compat: bool, long: bool, record_property: Report
) -> None:
    """With L2 and L3: see `crashing.killed`. Before Linux 5.12 a mount gets its flags a moment later: what a kill
    leaves in between, a rerun covers."""
    with scene(hook, stage, compat=compat) as it:
        points = chosen(it, stage, compat=compat, long=long, shift=5)
        judge(killed(it, points, always=long), len(points), record_property)


def known(ran: Ran, violation: str) -> bool:
    """chmod(2) may be forbidden in a container, and then the hook leaves the mode as it is."""
    return ran.call == "fchmodat" and violation.startswith("success, but usr/share/nvidia/file: ")


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("hook", HOOKS)
def test_l7_an_error_at_any_call_is_one_line_or_none(
    hook: str, stage: str, compat: bool, long: bool, record_property: Report
) -> None:
    with scene(hook, stage, compat=compat) as it:
        points = chosen(it, stage, compat=compat, long=long, shift=2)
        faults = lies(it, points, every=long)
        judge(lied_to(it, faults, accept=known), len(faults), record_property)


@pytest.mark.parametrize("hook", ["run", "update-ldcache", "mount-mig-devices"])
def test_l5_a_signal_at_any_call_is_success_or_undone(hook: str, long: bool, record_property: Report) -> None:
    """Of the parent as of the worker. Before a hook has its handlers it has done nothing, and the signal ends it."""

    def ended(ran: Ran, violation: str) -> bool:
        return -ran.rc in SIGNALS and violation.startswith(f"{ran.rc} said ''")

    with scene(hook, "outside") as it:
        points = it.once.points()
        faults = [Fault(point, signal=SIGNALS[n % len(SIGNALS)]) for n, point in enumerate(points)]
        if long:
            faults = [Fault(point, signal=number) for point in points for number in SIGNALS]
        faults = faults if long else faults[::7]
        judge(lied_to(it, faults, accept=ended), len(faults), record_property)


def naive(*words: str) -> Scene:
    return Scene(words, zygote={"rooms": ["errors"], "program": NAIVE}, quiet=False)


def test_naive_l1_a_kill_leaves_files() -> None:
    with naive(*LINKS) as it:
        points = [p for p in it.once.points() if it.once.name(p).startswith(("rename", "symlink"))]
        assert any(".nvoci" not in bad for bad in killed(it, points, always=True).bad)


def test_naive_l2_a_file_is_half_written() -> None:
    with naive(*WORDS["update-ldcache"]) as it:
        points = [p for p in it.once.points() if it.once.name(p) == "write"]
        assert any("half: etc/" in bad for bad in killed(it, points, always=True).bad)


def test_naive_l7_an_error_leaves_half_of_it() -> None:
    with naive(*LINKS) as it:
        points = [p for p in it.once.points() if it.once.name(p).startswith(("rename", "symlink", "mkdir"))]
        assert lied_to(it, [Fault(point, errno.EIO) for point in points]).bad


def test_the_calls_of_every_process_are_seen() -> None:
    with scene("update-ldcache-ldconfig", "outside") as it:
        calls = [{it.once.name((role, n + 1)) for n in range(len(made))} for role, made in enumerate(it.once.calls)]
    hook, worker, init, ldconfig = calls
    assert hook >= {"read", "clone", "pidfd_open"}
    assert worker >= {"setns", "openat2", "symlinkat", "renameat2", "mkdirat"}
    assert init >= {"pivot_root", "prctl"}
    assert ldconfig >= {"execveat", "brk", "exit_group"}
    assert not hook & {"symlinkat", "setns"}


def test_a_fault_happens_where_it_is_asked_for() -> None:
    with scene("create-symlinks", "inside") as it:
        name = it.once.name
        point = next(p for p in it.once.points() if name(p) == "symlinkat")
        lied = it.run(fault=Fault(point, errno.ENOSPC))
        assert (lied.rc, lied.call, "ENOSPC" in lied.stderr) == (1, lied.name(point), True)
        assert it.state().view(it.arena.root) == it.before.view(it.arena.root)
        ended = it.run(fault=Fault(point))
        assert (ended.rc, ended.call, ended.stderr) == (128 + 9, ended.name(point), "")
        assert len(ended.calls[0]) == point[1]
