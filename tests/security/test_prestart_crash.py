"""Rows L1 to L3 and L7 for the prestart hook and `nvidia-container-cli configure`: killed, or lied to by the kernel, at
each system call of their two processes, on a simulated node.

As in test_crash.py; what must be as in an undisturbed run, or as it was, are mounts, files and device rules. A normal
run takes every call of a small request with a device list (cgroup v1), and on cgroup v2 what the parent does from its
first program on, which is all that differs; `--long` takes every call of a large one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from lib import callpoints, compat, strace
from lib.callpoints import Point
from lib.oracle import Oracle, changes, snapshot
from security import prestartscene
from security.crashing import Scene, Tally, killed, lied_to, lies
from security.crashprestart import CLI, PRESTART, PrestartScene
from security.prestartscene import PARENT, View, on_node

Report = Callable[[str, object], None]
LARGE = "compute,utility,graphics"
# program, device cgroup, kernel -> a normal run takes one of so many points
CASES = {(PRESTART, "devices", "new"): 1, (PRESTART, "unified", "new"): 1, (PRESTART, "devices", "old"): 25,
         (CLI, "devices", "new"): 12, (CLI, "unified", "new"): 30}  # fmt: skip


@pytest.fixture(autouse=True)
def _able() -> None:
    why = callpoints.missing()
    if why:
        pytest.skip(why)


def attached(words: Sequence[str]) -> list[str]:
    """strace's words without those for processes that it starts itself."""
    return [word for word in words if word != "-f"]


def chosen(it: Scene, case: tuple[str, str, str], *, long: bool, shift: int) -> list[Point]:
    points = it.once.points()
    if long:
        return points
    if case == (PRESTART, "unified", "new"):
        first = next(p for p in points if it.once.name(p) == "bpf")
        points = [p for p in points if p[0] == first[0] and p[1] >= first[1]]
    return points[shift % CASES[case] :: CASES[case]]


def tried(
    case: tuple[str, str, str], judge: Callable[[Scene, list[Point]], Tally], *, long: bool, shift: int
) -> tuple[Tally, list[str]]:
    """And what was left in the directory of the inventory."""
    program, kind, kernel = case

    def body() -> tuple[Tally, list[str]]:
        it = PrestartScene(kind=kind, program=program, capabilities=LARGE if long else "utility")
        if kernel == "old":
            it.zygote["blocked"] = compat.NEW_CALLS
            it.covered = True
        with it:
            return judge(it, chosen(it, case, long=long, shift=shift)), prestartscene.left_in()

    found: tuple[Tally, list[str]] = on_node(body, limit=10_000 if long else 300)
    return found


def judge(tally: Tally, left: list[str], report: Report) -> None:
    for name, value in tally.properties().items():
        report(name, value)
    assert tally.bad + left == []
    assert tally.reached > tally.points * 0.8 > 15
    assert tally.changed > 0 < tally.failures


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_l1_a_rerun_after_a_kill_completes_it(case: tuple[str, str, str], long: bool, record_property: Report) -> None:
    """Before Linux 5.12 a mount gets its flags a moment later: what a kill leaves in between, a rerun covers."""
    judge(*tried(case, lambda it, points: killed(it, points, always=long), long=long, shift=1), record_property)


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_l7_an_error_at_any_call_is_one_line_and_leaves_nothing(
    case: tuple[str, str, str], long: bool, record_property: Report
) -> None:
    def lie(it: Scene, points: list[Point]) -> Tally:
        return lied_to(it, lies(it, points, every=long))

    judge(*tried(case, lie, long=long, shift=3), record_property)


def test_the_two_processes_make_the_calls_that_count() -> None:
    def body() -> list[set[str]]:
        with PrestartScene(kind="unified", capabilities=LARGE) as it:
            calls = it.once.calls
            return [{it.once.name((role, n + 1)) for n in range(len(made))} for role, made in enumerate(calls)]

    parent, worker = on_node(body)
    assert parent >= {"bpf", "open_tree", "mount_setattr", "clone"}
    assert worker >= {"setns", "move_mount", "fsmount", "mkdirat", "symlinkat", "renameat2", "write"}
    assert not parent & {"setns", "mkdirat"}
    assert not worker & {"bpf", "clone"}


# -- the naive one, in an interpreter of its own -------------------------------------------------------------------


def naive() -> tuple[prestartscene.Scene, View, list[tuple[str, int]]]:
    """On the node: with what an undisturbed run gives, and all calls that the parent makes."""
    found = prestartscene.Scene("devices", naive=True)
    wanted = prestartscene.ready(found)
    with found.container() as site:
        return found, wanted, site.points(PARENT)


def test_naive_l1_a_rerun_mounts_it_twice() -> None:
    def body() -> list[str]:
        it, wanted, points = naive()
        call, n = [point for point in points if point[0] in ("clone", "clone3", "vfork")][-1]
        with it.container() as site:
            site.hook(attached(strace.inject_kill(call, n)), PARENT)
            site.hook()
            return wanted.differences(site.view())

    assert any("instead of x1" in found for found in on_node(body))


def test_naive_l7_an_error_leaves_half_of_it() -> None:
    def body() -> list[str]:
        it, _, points = naive()
        call, n = [point for point in points if point[0] == "pipe2"][-1]
        with it.container() as site, Oracle(it.arena.canary, max_wall=15):
            before, files = site.view(), snapshot(it.arena.root)
            result = site.hook(attached(strace.inject_error(call, "EIO", str(n))), PARENT)
            assert result.rc
            return before.differences(site.view()) + changes(files, snapshot(it.arena.root))

    found = on_node(body)
    assert any("rules" in one for one in found)
    assert any("instead of x0" in one for one in found)
