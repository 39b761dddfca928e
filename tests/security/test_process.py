"""Rows H1, H2, H5 and H8: the container's process goes, comes to be somebody else, or the hook's worker dies, at every
point of a hook's work and at random."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from contextlib import suppress

import pytest
from lib import hookproc, proc, session
from lib.hookproc import FakeContainer
from lib.oracle import Oracle
from security import arena as arenas
from security.arena import LIBDIR, NAIVE, Arena, escapes, settled
from security.pausing import IN_WORKER, NEWNS, NEWPID, POINTS, Pause, end, reusable

WORDS = [
    "run", "--", "create-symlinks", "--link", f"libcuda.so.1::/{LIBDIR}/libcuda.so",
    "--", "enable-cuda-compat", "--host-driver-version", "550.54.15",
    "--", "update-ldcache", "--folder", "/opt/nvidia/lib",
]  # fmt: skip
LINK = f"{LIBDIR}/libcuda.so"
# With one of the two kernels each, but for --long.
BOTH = [(p, k) for n, p in enumerate(POINTS) for k in ("new", "compat") if (k == "new") == (n % 2 == 0)]


def at_points(points: tuple[str, ...]) -> pytest.MarkDecorator:
    cases = [pytest.param(p, k, marks=() if (p, k) in BOTH else pytest.mark.long)
             for p in points for k in ("new", "compat")]  # fmt: skip
    return pytest.mark.parametrize(("point", "kernel"), cases, indirect=["kernel"])


@pytest.fixture
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """As `profile`, for a list of its own."""
    if request.param == "compat":
        monkeypatch.setenv(hookproc.COMPAT_SWITCH, "1")
    return str(request.param)


def judged(arena: Arena, oracle: Oracle, result: proc.Result, pause: Pause, parts: tuple[str, ...]) -> list[str]:
    """A failure that leaves nothing."""
    found = settled(arena, oracle.check(result, ok=False, rc=1, parts=parts))
    if not pause.acted or pause.problem:
        found.append(f"at {pause.point}: {pause.problem or 'never came there'}")
    return found


# -- H1, H5 ---------------------------------------------------------------------------------------------------------


@at_points(POINTS[:-1])
def test_h1_h5_a_container_that_ends_meanwhile_is_one_error_and_nothing_is_left(
    arena: Arena, point: str, kernel: str
) -> None:
    with FakeContainer(arena.root) as c, Oracle(arena.canary, arena.root, max_wall=8) as oracle:
        pause = Pause(point, lambda _: end(c.pid))
        result = pause.hook(WORDS, c)
        assert judged(arena, oracle, result, pause, (f"pid {c.pid}", "ESRCH")) == []


def test_h5_after_the_last_look_it_is_the_runtime_s_affair(arena: Arena) -> None:
    """What was done stays, as it does for a container that ends right after its hooks."""
    with FakeContainer(arena.root) as c, Oracle(arena.canary) as oracle:
        pause = Pause("alive", lambda _: end(c.pid))
        assert oracle.check(pause.hook(WORDS, c), ok=True, lines=0) == []
    assert pause.acted
    assert os.readlink(arena.root / LINK) == "libcuda.so.1"


def test_h5_a_container_that_ends_at_any_time(long: bool) -> None:
    """Either all is done or nothing, and it is told."""
    rng = random.Random(5)
    for _ in range(200 if long else 6):
        arena = arenas.make(session.new_dir("arena"))
        delay = rng.uniform(0.02, 0.12)
        with FakeContainer(arena.root) as c, Oracle(arena.canary, arena.root, max_wall=8) as oracle:
            killer = threading.Timer(delay, end, (c.pid,))
            killer.start()
            result = hookproc.run_hook(WORDS, container=c)
            killer.join()
            found = settled(arena, oracle.check(result, ok=result.rc == 0))
            if result.rc == 0:
                found = [v for v in found if not v.startswith("rootfs: ")]
        assert found == [], f"{delay:.4f} s"
        assert (arena.root / LINK).is_symlink() == (result.rc == 0)


# -- H2 -------------------------------------------------------------------------------------------------------------

VICTIMS = {"same-mounts": 0, "own-mounts": NEWNS, "another-container": NEWNS | NEWPID}


def reused(arena: Arena, point: str, victim: str) -> list[str]:
    """The container's process ends, and its pid is given to a process of the host."""
    with (
        FakeContainer(arena.root) as c,
        reusable(c.pid, VICTIMS[victim]) as reuse,
        Oracle(arena.canary, arena.root, max_wall=8) as oracle,
    ):
        mounts: list[list[str]] = []

        def exchange(_: int) -> None:
            end(c.pid)
            reuse()
            mounts.append(proc.mountinfo(c.pid))

        pause = Pause(point, exchange)
        result = pause.hook(WORDS, c)
        after = [proc.mountinfo(c.pid)] if mounts else []
        out = judged(arena, oracle, result, pause, (f"pid {c.pid}",))
    return out + (["mounts of a process of the host changed"] if after != mounts else [])


@at_points(POINTS[:-1])
def test_h2_a_pid_that_becomes_another_s_meanwhile_is_found_out(arena: Arena, point: str, kernel: str) -> None:
    victims = ["own-mounts", "another-container"] if point != "state-read" else ["same-mounts", "own-mounts"]
    for victim in victims:
        assert reused(arena, point, victim) == [], victim


def test_naive_h2_another_container_is_worked_on(arena: Arena) -> None:
    """Who looks for the process by its number when it is used cannot tell."""
    (arena.root / "proc").mkdir(exist_ok=True)
    with FakeContainer(arena.root, proc_mount=False) as c, reusable(c.pid, NEWNS | NEWPID) as reuse:
        state = c.state()
        end(c.pid)
        reuse()
        before = proc.mountinfo(c.pid)
        words = ["disable-device-node-modification"]
        setup = "mkdir -p /tmp/naive; mount -t tmpfs driver /proc/driver; mkdir /proc/driver/nvidia\n"
        setup += "echo ModifyDeviceFiles: 1 >/proc/driver/nvidia/params\n"
        (arena.root / "proc/driver/nvidia").mkdir(parents=True)
        (arena.root / "proc/driver/nvidia/params").touch()
        hookproc.run_hook(words, state, cwd=c.bundle, program=NAIVE, setup=setup)
        assert proc.mountinfo(c.pid) != before


# -- H8 -------------------------------------------------------------------------------------------------------------


def died(arena: Arena, result: proc.Result, found: list[str]) -> list[str]:
    """The parent has told of it; a rerun does all of it."""
    if result.rc == 0:
        return [v for v in found if not v.startswith("rootfs: ")]
    with FakeContainer(arena.root) as c:
        again = hookproc.run_hook(WORDS, container=c)
    out = [v for v in found if not v.startswith("rootfs: ")]
    out += [] if again.rc == 0 else [f"rerun: {again.stderr}"]
    left = [str(p) for p in arena.root.rglob(".nvoci-*")]
    return out + left + ([] if (arena.root / LINK).is_symlink() else ["no link"])


@at_points(IN_WORKER)
def test_h8_a_worker_that_is_killed_is_told_of_and_a_rerun_completes(arena: Arena, point: str, kernel: str) -> None:
    number = (signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS)[IN_WORKER.index(point) % 4]
    with FakeContainer(arena.root) as c, Oracle(arena.canary, arena.root, max_wall=8) as oracle:
        pause = Pause(point, lambda pid: os.kill(pid, number))
        result = pause.hook(WORDS, c)
        found = oracle.check(result, ok=False, rc=1, parts=["the worker in the container's mount namespace died"])
    assert pause.acted
    assert died(arena, result, found) == []


def test_h8_a_worker_that_stands_still_is_killed_at_the_deadline(arena: Arena) -> None:
    with FakeContainer(arena.root) as c, Oracle(arena.canary, arena.root, max_wall=12) as oracle:
        pause = Pause("performed", lambda pid: os.kill(pid, signal.SIGSTOP))
        result = pause.hook(["run", "--timeout", "0.5", *WORDS[1:]], c)
        found = oracle.check(result, ok=False, rc=1, parts=["hook: not finished after 0.5 s"])
    assert died(arena, result, found) == []


def test_h8_a_worker_that_is_killed_at_any_time(long: bool) -> None:
    rng = random.Random(8)
    for _ in range(200 if long else 6):
        arena = arenas.make(session.new_dir("arena"))
        delay = rng.uniform(0.0, 0.03)
        with FakeContainer(arena.root) as c, Oracle(arena.canary, arena.root, max_wall=8) as oracle:
            # At this point there is no worker yet: it is killed some time after it is seen.
            killer = Killer(delay)
            pause = Pause("located", killer.start)
            result = pause.hook(WORDS, c)
            killer.thread.join()
            assert pause.acted
            found = oracle.check(result, ok=result.rc == 0, rc=result.rc if result.rc == 0 else 1)
        assert died(arena, result, found) == [], f"{delay:.4f} s"


class Killer:
    """SIGKILL for the first child of a process, some time after it is seen."""

    def __init__(self, delay: float) -> None:
        self.delay = delay
        self.parent = 0
        self.thread = threading.Thread(target=self._kill)

    def start(self, parent: int) -> None:
        self.parent = parent
        self.thread.start()

    def _kill(self) -> None:
        with suppress(OSError):  # it has ended
            while not (workers := proc.children(self.parent)):
                pass
            time.sleep(self.delay)
            if workers[0] in proc.children(self.parent):  # so the number is still its own
                os.kill(workers[0], signal.SIGKILL)


# -- what the oracle would see --------------------------------------------------------------------------------------


def test_naive_h5_a_container_that_ends_is_not_noticed(arena: Arena) -> None:
    with FakeContainer(arena.root) as c, Oracle(arena.canary, arena.root) as oracle:
        state = c.state()
        end(c.pid)
        words = WORDS[2:5]
        result = hookproc.run_hook(words, state, cwd=c.bundle, program=NAIVE)
        found = oracle.check(result, ok=False)
    assert any(v.startswith("rootfs: ") for v in found)
    assert escapes(found) == []
