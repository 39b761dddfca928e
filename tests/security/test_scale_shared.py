"""Rows N2, N3, N4 and N7: hooks that work on one root at the same time, containers that go away meanwhile, and the lock
of one that was killed."""

from __future__ import annotations

import functools
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest
from e2e.prestartview import BUS
from lib import hookproc, session
from lib.bundle import STANDARD_ENV
from lib.hookproc import FakeContainer
from lib.oracle import Oracle
from security import arena as arenas
from security import prestartscene, scalestarts
from security.arena import LIBDIR, NAIVE, STAGES, Arena
from security.prestartscene import Scene
from security.scalestarts import Phase, Record, Start, usual
from security.test_scale import Kind, Merged, Prestart

from nvoci.discover import inventory

Ended = tuple[int, str]
PLANNED = ["new/**", "etc/**", f"{LIBDIR}/*", "opt/**", f"{arenas.COMPAT}/libcuda.so.1"]

# -- N2: hooks, without a runtime -------------------------------------------------------------------------------------


def at_once(
    root: Path, words: Sequence[Sequence[str]], stage: str = "outside", program: Path | None = None
) -> list[Ended]:
    """A hook for each of these, every one in a container of its own on the same root; all get their state at the same
    moment, when they have started and wait for it."""
    with ExitStack() as stack:
        hooks = []
        for each in words:
            c = stack.enter_context(FakeContainer(root, setup=arenas.GPU_NODE))
            argv = hookproc.command(each, program)
            argv = hookproc.inside(c, argv) if stage == "inside" else argv
            pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
            hook = subprocess.Popen(argv, cwd=c.bundle, env={"PATH": "/usr/bin:/bin"}, **pipes)
            hooks.append((hook, json.dumps(c.state(STAGES[stage])).encode()))
        time.sleep(0.3)
        for hook, state in hooks:
            assert hook.stdin is not None
            hook.stdin.write(state)
            hook.stdin.close()
            hook.stdin = None
        ended = [hook.communicate(timeout=60) for hook, _ in hooks]
        return [(hook.returncode, err.decode()) for (hook, _), (_, err) in zip(hooks, ended)]


def whole(engine: str) -> list[str]:
    """Every hook that writes, in one process."""
    return [
        "run", "--", "create-symlinks", "--link", "t::/new/a/b/link", "--", "chmod", "--mode", "640", "--path",
        "/etc/hostname", "--", "update-application-profile", "--", "enable-cuda-compat", "--host-driver-version",
        "550.1", "--", "update-ldcache", "--engine", engine, "--folder", "/opt",
    ]  # fmt: skip


@pytest.mark.parametrize("count", [2, 16])
@pytest.mark.parametrize("stage", STAGES)
def test_n2_hooks_at_once_leave_what_one_leaves(
    arena: Arena, profile: str, engine: str, stage: str, count: int, long: bool
) -> None:
    usual(long, count == 2 or (profile, engine) == ("new", "builtin"))
    alone = arenas.make(session.new_dir("alone"))
    assert at_once(alone.root, [whole(engine)], stage) == [(0, "")]
    with Oracle(arena.canary, arena.root, PLANNED) as oracle:
        assert at_once(arena.root, [whole(engine)] * count, stage) == [(0, "")] * count
        assert oracle.check() == []
    assert scalestarts.differing([arena.root], alone.root) == []


def own_link(number: int, *, fails: bool = False) -> list[str]:
    """A link of its own in a directory that all of them make; fails: another after it can't be made."""
    more = ["--link", "x::/etc/hostname/x"] if fails else []
    return ["create-symlinks", "--link", f"{number}::/new/a/b/{number}", *more]


def test_n2_no_update_is_lost(arena: Arena, profile: str) -> None:
    """Half of them fail after their first link and undo it, and the directories where they are the last. Who was about
    to use one of these says so (ENOENT); else a link that was reported made is there."""
    words = [own_link(n, fails=n % 2 == 1) for n in range(16)]
    with Oracle(arena.canary, arena.root, PLANNED) as oracle:
        ended = at_once(arena.root, words)
        assert oracle.check() == []
    assert [n for n in range(1, 16, 2) if ended[n][0] != 1] == []
    assert [said for code, said in ended if code and not ("ENOTDIR" in said or "ENOENT" in said)] == []
    folder = arena.root / "new/a/b"
    there = os.listdir(folder) if folder.exists() else []
    assert sorted(there) == sorted(str(n) for n in range(16) if ended[n][0] == 0)


def test_n2_no_link_of_sixteen_is_lost(arena: Arena, profile: str) -> None:
    """Where none fails all succeed, although all make the same directories."""
    with Oracle(arena.canary, arena.root, PLANNED) as oracle:
        assert at_once(arena.root, [own_link(n) for n in range(16)]) == [(0, "")] * 16
        assert oracle.check() == []
    assert sorted(os.listdir(arena.root / "new/a/b"), key=int) == [str(n) for n in range(16)]


def test_naive_n2_hooks_at_once_leave_more(arena: Arena) -> None:
    """Each makes a file of a name of its own."""
    alone = arenas.make(session.new_dir("alone"))
    words = ["update-ldcache", "--folder", "/opt"]
    at_once(alone.root, [words], program=NAIVE)
    at_once(arena.root, [words] * 4, program=NAIVE)
    assert any("zz-nvcr-" in each for each in scalestarts.differing([arena.root], alone.root))


# -- N2, N3: on real runtimes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Merged, Prestart], ids=["merged", "prestart"])
def test_n2_sixteen_starts_at_once_on_one_root(
    profile: str, runtime: str, kind: Callable[[], Kind], long: bool
) -> None:
    """The hooks begin at the same moment. None of them has looked at the node before (but as on an old kernel, where
    NVML can't be asked); each container sees what it asked for."""
    usual(long, profile == "new")
    what = kind()
    root, reference = what.image(), what.image()
    record, gate = Record(session.new_dir("record") / "hooks"), session.new_dir("gate") / "gate"
    first = Phase([[what.start(reference, -8, record)]])
    others = Phase([[what.start(root, n, record, gate)] for n in range(16)], gate, 16)
    phases = [first, others] if profile == "compat" else [others, first]
    ran = scalestarts.run(runtime, phases, what.setup)
    assert ran.bad + scalestarts.differing([root], reference) == []
    assert [code for _, _, code in record.rows()] == [0] * 17
    shutil.rmtree(root)
    shutil.rmtree(reference)


MASKS = {"0": "0x1", "1,2": "0x6"}


def test_n3_two_containers_of_one_root_have_their_own_gpus(profile: str, runtime: str, long: bool) -> None:
    """Each looks while the other runs."""
    usual(long, profile == "new")
    kind = Prestart()
    root, reference = kind.image(), kind.image()
    look = """touch "/tmp/$NVIDIA_VISIBLE_DEVICES"; until test "$(ls /tmp | wc -l)" = 2; do sleep 0.05; done
ls -d /dev/nvidia[0-9]*; ls /proc/driver/nvidia/gpus; grep -o '0x[0-9a-f]*' \
/etc/nvidia/nvidia-application-profiles-rc.d/10-container.conf; ls -l /usr/lib/*/libcuda.so.1 | wc -l"""
    slots = []
    for gpus, mask in MASKS.items():
        env = [f"NVIDIA_VISIBLE_DEVICES={gpus}", "NVIDIA_DRIVER_CAPABILITIES=graphics,compute"]
        numbers = [int(n) for n in gpus.split(",")]
        nodes = "".join(f"/dev/nvidia{n}\n" for n in numbers) + "".join(f"{BUS[n]}\n" for n in numbers)
        hooks = {"prestart": [kind.node.driver_hook(root), kind.entry(old=True)]}
        slots.append([Start(root, look, hooks, f"{nodes}{mask}\n1\n", env=[*STANDARD_ENV, *env])])
    record = Record(session.new_dir("record") / "hooks")
    ran = scalestarts.run(runtime, [Phase([[kind.start(reference, -8, record)]]), Phase(slots)], kind.setup)
    assert ran.bad == []
    shutil.rmtree(root)
    shutil.rmtree(reference)


# -- N4 ---------------------------------------------------------------------------------------------------------------

GOING = {"kill": ("kill", "KILL"), "delete": ("delete",)}


@pytest.mark.parametrize("kind", [Merged, Prestart], ids=["merged", "prestart"])
def test_n4_a_container_that_goes_while_its_hook_works(
    profile: str, runtime: str, kind: Callable[[], Kind], long: bool
) -> None:
    """Every one of them is killed or deleted as its hook begins. Nothing is left, and the next start is as any other;
    what the one before it could not finish is mended."""
    usual(long, profile == "new")
    what = kind()
    record, gate = Record(session.new_dir("record") / "hooks"), session.new_dir("gate") / "gate"
    reference, roots = what.image(), [what.image() for _ in range(8 if long else 4)]
    going = []
    for number, root in enumerate(roots):
        start = what.start(root, number, record, gate)
        start.ok, start.expect, start.then = None, None, GOING["kill" if number % 4 < 2 else "delete"]
        going.append([start])
    again = [[what.start(root, number, record)] for number, root in enumerate(roots)]
    phases = [Phase([[what.start(reference, -8, record)]]), Phase(going, gate, len(roots)), Phase(again)]
    ran = scalestarts.run(runtime, phases, what.setup)
    assert ran.bad + scalestarts.differing(roots, reference) == []
    for root in (reference, *roots):
        shutil.rmtree(root)


# -- N7 ---------------------------------------------------------------------------------------------------------------

# The process that has the lock of the inventory says so and then does nothing.
HANGS = """
import time
from nvoci.discover import inventory
def look(*words):
    with open({flag!r}, "w"):
        time.sleep(300)
inventory._look = look
"""


def start_after(kill: bool) -> tuple[int, float]:
    """On the node: a start while another has the lock; the status and the seconds from when that is killed."""
    flag = session.new_dir("flag") / "there"
    program = prestartscene.entry(extra=HANGS.format(flag=str(flag)))
    with Scene().container() as site, Scene().container() as other:
        quiet = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        state = json.dumps(site.container.state("prestart")).encode()
        words = hookproc.command(["prestart"], program)
        holder = subprocess.Popen(words, stdin=subprocess.PIPE, **quiet, start_new_session=True)
        assert holder.stdin is not None
        holder.stdin.write(state)
        holder.stdin.close()
        until = time.monotonic() + 20
        while not flag.exists() and time.monotonic() < until:
            time.sleep(0.01)
        assert flag.exists()
        words = hookproc.command(["prestart"], prestartscene.entry())
        waiting = subprocess.Popen(words, stdin=subprocess.PIPE, **quiet)
        assert waiting.stdin is not None
        waiting.stdin.write(json.dumps(other.container.state("prestart")).encode())
        waiting.stdin.close()
        time.sleep(1)
        assert waiting.poll() is None, "it did not wait for the lock"
        if kill:
            os.killpg(holder.pid, signal.SIGKILL)
        began = time.monotonic()
        code = waiting.wait(60)
        took = time.monotonic() - began
        if holder.poll() is None:
            os.killpg(holder.pid, signal.SIGKILL)
        holder.wait()
        assert prestartscene.left_in() == []
        return code, took


def test_n7_the_lock_of_a_killed_process_is_free() -> None:
    """Long before a start stops to wait for it."""
    code, took = prestartscene.on_node(functools.partial(start_after, kill=True))
    assert (code, took < inventory.LOCK_SECONDS / 2) == (0, True), took


@pytest.mark.long
def test_n7_a_lock_that_is_kept_stops_no_start() -> None:
    code, took = prestartscene.on_node(functools.partial(start_after, kill=False))
    assert (code, took < inventory.LOCK_SECONDS + 15) == (0, True), took
