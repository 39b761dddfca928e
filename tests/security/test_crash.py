"""Row L1 (with L7): a hook killed, or lied to by the kernel, at each of its system calls.

After a kill a rerun gives what an undisturbed run gives. After an error the hook has succeeded, or it says one line
and nothing has changed. Every call from the reading of the state on is a point; a normal run takes every seventh,
`--long` takes all.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from lib import proc, session, strace
from lib.hookproc import FakeContainer, run_hook
from lib.oracle import TEMPORARY, Oracle, changes, content_only, snapshot
from security import arena as arenas
from security.arena import GPU_NODE, LDCACHE, LIBDIR, NAIVE, STAGES, Arena

STEP = 7
ERRORS = ("ENOSPC", "EIO", "EINTR", "ENOMEM", "EPERM")
LINKS = [
    "create-symlinks", "--link", f"libcuda.so.1::/{LIBDIR}/libcuda.so", "--link", "target::/made/by/the/hook",
    "--link", "target::/etc/hostname",
]  # fmt: skip
HOOKS = {
    "create-symlinks": LINKS,
    "run": [
        "run", "--", *LINKS, "--", "chmod", "--mode", "640", "--path", "/usr/share/nvidia/file",
        "--", "update-application-profile", "--", "enable-cuda-compat", "--host-driver-version", "550.54.15",
    ],
    "update-ldcache": LDCACHE["builtin"],
    "update-ldcache-ldconfig": LDCACHE["ldconfig"],
}  # fmt: skip
# What a point may be: calls that are made before anything could have been changed tell nothing.
SKIPPED = (
    "execve",
    "brk",
    "mmap",
    "munmap",
    "mprotect",
    "rt_sigaction",
    "arch_prctl",
    "exit_group",
    "set_tid_address",
    "rseq",
)
MANY = 60  # a fallback closes descriptors by the thousand
Point = tuple[str, int]


def fresh(arena: Arena) -> Arena:
    """The same image again, at the same path."""
    shutil.rmtree(arena.root, ignore_errors=True)
    shutil.rmtree(arena.canary, ignore_errors=True)
    return arenas.make(arena.top, f"symlink {LIBDIR}/libcuda.so old\nsymlink etc/ld.so.conf.d/zz-nvcr-nvoci.conf gone")


@dataclass
class Scene:
    """One hook on one image, again and again."""

    arena: Arena
    words: list[str]
    stage: str
    program: Path | None = None

    def once(self, container: FakeContainer, prefix: Sequence[str] = ()) -> proc.Result:
        return run_hook(self.words, container=container, stage=STAGES[self.stage], prefix=prefix, program=self.program)

    def on_a_fresh_image(self, body: Callable[[FakeContainer], object]) -> None:
        fresh(self.arena)
        with FakeContainer(self.arena.root, setup=GPU_NODE) as c:
            body(c)

    def tree(self) -> dict[str, tuple[object, ...]]:
        return content_only(snapshot(self.arena.root))

    def points(self) -> list[Point]:
        """(call, n) for every call after the state was read, of either process."""
        log = session.tmp() / session.unique("trace")
        self.on_a_fresh_image(lambda c: self.once(c, ["strace", "-f", "-qqq", "-o", str(log)]))
        seen: dict[tuple[str, str], int] = {}
        found: dict[Point, None] = {}
        started = False
        for line in log.read_text(errors="replace").splitlines():
            match = re.match(r"(\d+) +([a-z_0-9]+)\(", line)
            if not match:
                continue
            key = (match[1], match[2])
            seen[key] = seen.get(key, 0) + 1
            started = started or '"ociVersion' in line or "ociVersion" in line
            if started and match[2] not in SKIPPED and (match[2] != "close" or seen[key] < MANY):
                found[match[2], seen[key]] = None
        log.unlink()
        return list(found)


def sampled(points: list[Point], profile: str, shift: int, *, long: bool) -> list[Point]:
    """All of them, or every seventh; fewer where there are many, or where the same was done on a newer kernel."""
    step = STEP * (1 if len(points) < 400 else 3) * (1 if profile == "new" else 4)
    return points if long else points[shift % step :: step]


def killed(scene: Scene, points: list[Point]) -> tuple[int, list[str]]:
    """(kills, violations): the tree after a kill and a rerun against that of an undisturbed run."""
    scene.on_a_fresh_image(scene.once)
    wanted = scene.tree()
    kills, bad = 0, []
    for call, n in points:

        def body(c: FakeContainer, call: str = call, n: int = n, bad: list[str] = bad) -> None:
            nonlocal kills
            result = scene.once(c, strace.inject_kill(call, n))
            kills += result.rc != 0
            bad.extend(f"{call} {n}: survivor: {s}" for s in result.survivors)
            again = scene.once(c)
            if again.rc or (again.stderr and scene.program is None):
                bad.append(f"{call} {n}: the rerun said {again.rc} {again.stderr!r}")

        scene.on_a_fresh_image(body)
        now = scene.tree()
        bad += [
            f"{call} {n}: {name}: {wanted.get(name)} -> {now.get(name)}"
            for name in {*wanted, *now}
            if wanted.get(name) != now.get(name)
        ]
    return kills, bad


def scene(hook: str, stage: str, *, naive: bool = False) -> Scene:
    top = session.new_dir("crash")
    return Scene(Arena(top, top / "rootfs", top / "canary"), HOOKS[hook], stage, NAIVE if naive else None)


@pytest.mark.parametrize("hook", HOOKS)
def test_l1_a_rerun_after_a_kill_completes_it(
    hook: str, profile: str, long: bool, record_property: Callable[..., None]
) -> None:
    """Kills of the worker as well as of its parent: strace counts in each process."""
    it = scene(hook, "outside" if profile == "new" else "inside")
    points = it.points()
    assert len(points) > 40
    chosen = sampled(points, profile, 0 if profile == "new" else 3, long=long)
    kills, bad = killed(it, chosen)
    record_property("points", len(points))
    record_property("kills", kills)
    assert bad == []
    assert kills > len(chosen) // 2


CHANGING = ("symlinkat", "renameat2", "renameat", "linkat", "unlinkat", "mkdirat", "write", "fchmod", "fchmodat",
            "ftruncate", "flock", "utimensat")  # fmt: skip


def test_l1_the_builtin_engine_is_killed_where_it_changes_the_root(
    long: bool, record_property: Callable[..., None]
) -> None:
    """In the container's namespaces, where it is one process from beginning to end; `--long`: at each of its calls."""
    it = scene("update-ldcache", "inside")
    points = it.points()
    chosen = [p for p in points if long or p[0] in CHANGING]
    assert {"symlinkat", "renameat2", "mkdirat", "write", "unlinkat"} <= {call for call, _ in chosen}
    kills, bad = killed(it, chosen)
    record_property("kills", kills)
    assert bad == []
    assert kills > len(chosen) // 2


def test_naive_l1_a_kill_leaves_files() -> None:
    it = scene("create-symlinks", "outside", naive=True)
    points = [p for p in it.points() if p[0].startswith(("rename", "symlink"))]
    _, bad = killed(it, points)
    assert bad


# -- L7 -------------------------------------------------------------------------------------------------------------


# What changes when the host's ldconfig, lied to itself, passes over a library that it cannot look at, and says 0.
OF_LDCONFIG = {f"{LIBDIR}/libfoo.so.1", "etc/ld.so.cache"}
NOT_STARTED = re.compile(r"Python path configuration|<frozen |in <module>|Fatal Python error|nsenter: |sh: ")


def lied_to(scene: Scene, points: list[Point]) -> tuple[int, list[str]]:
    """(failures, violations) with one error per point, in rotation."""
    scene.on_a_fresh_image(scene.once)
    wanted = scene.tree()
    failures, bad = 0, []
    for number, (call, n) in enumerate(points):
        error = ERRORS[number % len(ERRORS)]
        where = f"{call} {n} {error}"

        def body(c: FakeContainer, call: str = call, n: int = n, error: str = error, where: str = where) -> None:
            nonlocal failures
            before, mounts = snapshot(scene.arena.root), c.mountinfo()
            with Oracle(scene.arena.canary, max_wall=10) as oracle:
                result = scene.once(c, strace.inject_error(call, error, str(n)))
                judged = oracle.check(result, lines=None)
            if scene.program is None and (result.rc == 127 or NOT_STARTED.search(result.stderr)):
                return  # strace counts in each process: it was the interpreter's call, or that of a wrapper
            bad.extend(f"{where}: {v}" for v in judged)
            if result.rc == 0:
                now = scene.tree()
                if "the next run removes it" in result.stderr:
                    now = {name: entry for name, entry in now.items() if TEMPORARY not in name}
                other = {x for x in {*wanted, *now} if wanted.get(x) != now.get(x)}
                if scene.words is LDCACHE["ldconfig"]:
                    other -= OF_LDCONFIG
                bad.extend(f"{where}: success, but {x} is {now.get(x)}" for x in other)
                return
            failures += 1
            said = [line for line in result.stderr.splitlines() if "level=error" in line]
            if len(said) != 1 or "Traceback" in result.stderr:
                bad.append(f"{where}: {result.rc} said {result.stderr!r}")
            after = snapshot(scene.arena.root)
            found = [v for v in changes(before, after) if "changed mtime" not in v]
            bad.extend(f"{where}: {v}; {result.stderr.strip()}" for v in found)
            bad.extend(f"{where}: mount left: {m}" for m in c.mountinfo() if m not in mounts)

        scene.on_a_fresh_image(body)
    return failures, bad


@pytest.mark.parametrize("hook", HOOKS)
def test_l7_an_error_at_any_call_is_one_line_or_none(
    hook: str, profile: str, long: bool, record_property: Callable[..., None]
) -> None:
    it = scene(hook, "inside")  # where there is one process, and so one count
    points = sampled(it.points(), profile, 1 if profile == "new" else 4, long=long)
    if hook == "update-ldcache-ldconfig":
        points = [p for p in points if p[0] != "write"]  # ldconfig does not look whether its own output was written
    failures, bad = lied_to(it, points)
    record_property("points", len(points))
    record_property("failures", failures)
    assert bad == []
    assert failures > 0


def test_naive_l7_an_error_leaves_half_of_it() -> None:
    it = scene("run", "outside", naive=True)
    points = [p for p in it.points() if p[0].startswith(("rename", "symlink", "mkdir", "chmod"))]
    _, bad = lied_to(it, points)
    assert bad
