"""Rows L1 and L7 for the prestart hook: killed, or lied to by the kernel, at each of its system calls.

Each of its two processes is traced alone, from the reading of the state on. After a kill a rerun gives the view of the
container that an undisturbed run gives. After an error the hook has succeeded, with that view, or it says one line and
mounts, files and device rules are as they were. A normal run takes some uses of each call, `--long` takes all.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import pytest
from lib import hookproc, strace
from lib.oracle import Oracle, changes, snapshot
from security import prestartscene
from security.prestartscene import PARENT, PROCESSES, WORKER, Point, Scene, View, on_node, sampled

ERRORS = ("EIO", "ENOSPC", "EPERM", "ENOMEM", "EMFILE", "EINTR")
# With arguments like the hook's these do not fail on Linux.
SURE = ("close", "pselect6", "rt_sigaction", "rt_sigprocmask", "setitimer", "wait4")
CHANGING = ("bpf", "mount", "umount2", "move_mount", "mount_setattr", "mkdirat", "symlinkat", "renameat2", "unlinkat",
            "linkat", "write", "fsmount", "fchmod", "setns", "clone")  # fmt: skip
LATER = "the next run removes it"


def attached(words: Sequence[str]) -> list[str]:
    """strace's words without those for processes that it starts itself."""
    return [word for word in words if word != "-f"]


def killed(
    scene: Scene, wanted: View, who: str, points: Sequence[Point], *, covered: bool = False
) -> tuple[int, list[str]]:
    """(kills, violations). wanted: of an undisturbed run. covered: see `View.differences`."""
    kills, bad = 0, []
    for call, n in points:
        with scene.container() as site:
            result = site.hook(attached(strace.inject_kill(call, n)), who)
            kills += result.rc != 0
            found = [f"survivor {s}" for s in result.survivors]
            again = site.hook()
            if again.rc or ("level=error" in again.stderr):
                found.append(f"the rerun said {again.rc} {again.stderr!r}")
            found += wanted.differences(site.view(), covered=covered)
        bad += [f"{who} {call} {n}: {v}" for v in found]
    return kills, bad + prestartscene.left_in()


def lied_to(scene: Scene, wanted: View, who: str, points: Sequence[Point]) -> tuple[int, list[str]]:
    """(failures, violations), with one error for each point, in rotation."""
    failures, bad = 0, []
    for number, (call, n) in enumerate(points):
        error = ERRORS[number % len(ERRORS)]
        with scene.container() as site, Oracle(scene.arena.canary, max_wall=15) as oracle:
            before, files = site.view(), snapshot(scene.arena.root)
            result = site.hook(attached(strace.inject_error(call, error, str(n))), who)
            found = oracle.check(result, lines=None)
            after = site.view()
            if result.rc == 0:
                if LATER in result.stderr:
                    assert site.hook().rc == 0
                    after = site.view()
                found += [f"success, but {v}" for v in wanted.differences(after)]
            else:
                failures += 1
                found += _refused(result.rc, result.stderr) + before.differences(after)
                found += [v for v in changes(files, snapshot(scene.arena.root)) if "changed mtime" not in v]
        bad += [f"{who} {call} {n} {error}: {v}; {result.stderr.strip()}" for v in found]
    return failures, bad + prestartscene.left_in()


def _refused(code: int, stderr: str) -> list[str]:
    said = [line for line in stderr.splitlines() if "level=error" in line]
    one = len(said) == 1 and code == 1 and "Traceback" not in stderr and "internal error" not in stderr
    return [] if one else [f"{code} said {stderr!r}"]


def scene(kind: str, who: str, *, naive: bool = False) -> tuple[Scene, View, list[Point]]:
    """On the node: with what an undisturbed run gives, and all calls that the process makes."""
    found = Scene(kind, naive=naive)
    wanted = prestartscene.ready(found)
    with found.container() as site:
        return found, wanted, site.points(who)


# kind of cgroup, process, kernel -> how many uses of each call: of those that change something, of all others
KILLED = {
    ("devices", PARENT, "new"): (2, 0),
    ("devices", WORKER, "new"): (2, 1),
    ("unified", PARENT, "new"): (2, 0),
    ("devices", WORKER, "compat"): (2, 0),
}
LIED_TO = {
    ("devices", PARENT, "new"): (2, 1),
    ("devices", WORKER, "new"): (2, 1),
    ("unified", PARENT, "new"): (3, 0),
    ("devices", WORKER, "compat"): (1, 0),
}


def chosen(points: Sequence[Point], counts: tuple[int, int], *, long: bool) -> list[Point]:
    if long:
        return list(points)
    changing = [point for point in points if point[0] in CHANGING]
    others = [point for point in points if point[0] not in CHANGING]
    return [*sampled(changing, counts[0]), *(sampled(others, counts[1]) if counts[1] else [])]


def compat(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if kernel == "compat":
        monkeypatch.setenv(hookproc.COMPAT_SWITCH, "1")
    elif hookproc.COMPAT_SWITCH in os.environ:
        pytest.skip("--compat: the newer calls are taken away")


@pytest.mark.parametrize(("kind", "who", "kernel"), KILLED)
def test_l1_a_rerun_after_a_kill_completes_it(
    kind: str, who: str, kernel: str, long: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before Linux 5.12 a mount gets its flags a moment later: what a kill leaves in between, a rerun covers."""
    compat(kernel, monkeypatch)

    def body() -> tuple[int, int, list[str]]:
        it, wanted, points = scene(kind, who)
        taken = chosen(points, KILLED[kind, who, kernel], long=long)
        return len(taken), *killed(it, wanted, who, taken, covered=kernel == "compat")

    points, kills, bad = on_node(body, limit=6000 if long else 300)
    assert bad == []
    assert kills > points // 2 > 2


@pytest.mark.parametrize(("kind", "who", "kernel"), LIED_TO)
def test_l7_an_error_at_any_call_is_one_line_and_leaves_nothing(
    kind: str, who: str, kernel: str, long: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    compat(kernel, monkeypatch)

    def body() -> tuple[int, int, list[str]]:
        it, wanted, points = scene(kind, who)
        able = [point for point in points if point[0] not in SURE]
        taken = chosen(able, LIED_TO[kind, who, kernel], long=long)
        return len(taken), *lied_to(it, wanted, who, taken)

    points, failures, bad = on_node(body, limit=6000 if long else 300)
    assert bad == []
    assert failures > 0 < points


def test_the_two_processes_make_the_calls_that_count() -> None:
    """Of each, strace sees its own alone."""

    def body() -> list[set[str]]:
        return [{call for call, _ in scene("unified", who)[2]} for who in PROCESSES]

    parent, worker = on_node(body)
    assert parent >= {"bpf", "open_tree", "mount_setattr", "clone"}
    assert worker >= {"setns", "move_mount", "fsmount", "mkdirat", "symlinkat", "renameat2", "write"}
    assert not parent & {"setns", "mkdirat"}
    assert not worker & {"bpf", "clone"}


def test_naive_l1_a_rerun_mounts_it_twice() -> None:
    def body() -> list[str]:
        it, wanted, points = scene("devices", PARENT, naive=True)
        made = [point for point in points if point[0] in ("clone", "clone3", "vfork")]
        return killed(it, wanted, PARENT, made[-1:])[1]

    assert any("instead of x1" in found for found in on_node(body))


def test_naive_l7_an_error_leaves_half_of_it() -> None:
    def body() -> list[str]:
        it, wanted, points = scene("devices", PARENT, naive=True)
        made = [point for point in points if point[0] == "pipe2"]
        return lied_to(it, wanted, PARENT, made[-1:])[1]

    found = on_node(body)
    assert any("rules" in one for one in found)
    assert any("instead of x0" in one for one in found)
