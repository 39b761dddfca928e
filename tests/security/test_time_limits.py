"""Rows M1 to M5 and M7: whatever blocks, stops or hides, a start ends in time and leaves no process.

What blocks is a FIFO, or a FUSE file system whose daemon answers nothing: who looks something up there waits in the
kernel, as with a server of NFS that is gone.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from kernel import devcgroups
from lib import bundle, hookproc, mignode, proc, rootfs, runtimes, session, silentfuse
from lib.hookproc import FakeContainer, run_hook
from lib.oracle import Oracle
from security.arena import LDCACHE, Arena, attempt, settled
from security.prestartcase import CONFIG
from security.prestartscene import Scene, on_node
from unit.generate.test_hooks import CALLS

from nvoci.generate.hooks import Hooks
from nvoci.generate.options import GenerateOptions

LIMIT = 20.0  # seconds for what takes two on an idle machine
FOLDER = "opt/nvidia/lib"
UPDATE = [*LDCACHE["builtin"]]
# Each runtime at one stage; the other pairs are the long run's.
STARTS = pytest.mark.parametrize(
    ("runtime", "stage"),
    [
        ("runc", "createRuntime"), ("crun", "createContainer"),
        pytest.param("runc", "createContainer", marks=pytest.mark.long),
        pytest.param("crun", "createRuntime", marks=pytest.mark.long),
    ],
)  # fmt: skip


def start(runtime: str, root: Path, stage: str, entry: dict[str, Any], setup: str = "") -> proc.Result:
    """A container; nothing is left of it. The daemon of a file system that does not answer ends with the jail."""
    if not runtimes.available(runtime):
        pytest.skip(f"{runtime} is not installed")
    made = bundle.make_bundle(session.new_dir("bundle"), root, ["/bin/true"], {stage: [entry]})
    result = runtimes.Runtime(runtime).run(made, setup=setup, timeout=LIMIT * 2)
    assert not result.timed_out
    assert [one for one in result.survivors if "silentfuse.py" not in one] == []
    assert runtimes.leftovers() == []
    return result


@functools.cache
def image() -> Path:
    return rootfs.busybox_rootfs(session.new_dir("image") / "rootfs")


# --- M1, M2: something blocks ----------------------------------------------------------------------------------------


@STARTS
def test_m1_a_fifo_does_not_cost_the_second_that_the_entry_has(runtime: str, stage: str) -> None:
    root = rootfs.busybox_rootfs(session.new_dir("image") / "rootfs")
    rootfs.tree(root, f"fifo etc/ld.so.conf\ndir {FOLDER}\nfifo {FOLDER}/libx.so.1")
    result = start(runtime, root, stage, hookproc.hook_entry(UPDATE, timeout=1))
    assert (result.rc != 0, result.wall < LIMIT) == (True, True)
    if runtime == "runc":  # crun drops what a hook says
        assert "read /etc/ld.so.conf: EINVAL" in result.stderr


@STARTS
def test_m1_a_runtime_that_ends_the_hook_ends_all_of_it(runtime: str, stage: str) -> None:
    """`timeout` of the entry is a second, that of the hook half a minute."""
    (image() / FOLDER).mkdir(parents=True, exist_ok=True)
    setup = silentfuse.setup(image() / FOLDER, "deaf")
    result = start(runtime, image(), stage, hookproc.hook_entry(UPDATE, timeout=1), setup)
    assert (result.rc != 0, result.wall < LIMIT) == (True, True)


@STARTS
def test_m2_without_a_timeout_in_the_entry_the_hook_has_its_own(runtime: str, stage: str) -> None:
    (image() / FOLDER).mkdir(parents=True, exist_ok=True)
    setup = silentfuse.setup(image() / FOLDER, "deaf")
    result = start(runtime, image(), stage, hookproc.hook_entry([*UPDATE, "--timeout", "1"]), setup)
    assert (result.rc != 0, result.wall < LIMIT) == (True, True)
    if runtime == "runc" and stage == "createRuntime":  # inside it is the hook's only process that waits, and is killed
        assert "not finished after 1 s" in result.stderr


@pytest.mark.long
def test_m2_half_a_minute_is_the_hook_s_own_limit(arena: Arena) -> None:
    (arena.root / FOLDER).mkdir(parents=True)
    with FakeContainer(arena.root) as container, silent(arena.root / FOLDER, container):
        result = run_hook(UPDATE, container=container, timeout=60)
    assert 29 < result.wall < 45
    assert "not finished after 30 s" in result.stderr


@contextmanager
def silent(directory: Path, container: FakeContainer | None = None) -> Iterator[None]:
    """`directory`, as the container sees it, answers nothing."""
    inside = ["/usr/bin/nsenter", f"--mount=/proc/{container.pid}/ns/mnt", "--"] if container else []
    argv = [*inside, session.PYTHON, "-ISB", silentfuse.__file__, str(directory), "deaf"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, cwd="/") as daemon:
        try:
            assert daemon.stdout is not None
            assert daemon.stdout.readline() == b"ready\n"
            yield
        finally:
            daemon.kill()
            if container is None:
                subprocess.run(["umount", "-l", str(directory)], check=True)


# --- M3: a limit of 0 ------------------------------------------------------------------------------------------------


def test_m3_no_generated_hook_has_a_limit_of_nothing() -> None:
    """runc fails at once for it, crun ignores it."""
    maker = Hooks(GenerateOptions(enabled_hooks=("chmod",)))
    made = [*maker.separate(CALLS), *maker.together(CALLS)]
    assert made
    assert [hook for hook in made if hook.timeout is not None and hook.timeout <= 0] == []


def test_m3_no_entry_that_is_shipped_has_one() -> None:
    templates = sorted((session.CHECKOUT / "oci-hooks.d").glob("*.json*"))
    assert templates
    entries = [json.loads(path.read_text())["hook"] for path in templates]
    assert [entry for entry in entries if entry.get("timeout", 1) <= 0] == []


@pytest.mark.parametrize("runtime", ["runc"])
def test_naive_m3_a_limit_of_nothing_lets_no_container_start(runtime: str) -> None:
    entry = {"path": "/bin/true", "args": ["true"], "env": ["A=b"], "timeout": 0}
    assert start(runtime, image(), "createRuntime", entry).rc != 0


# --- M4, M5: helpers that do not want to end -------------------------------------------------------------------------

HELPER = r"""
#include <signal.h>
#include <unistd.h>
int main(void)
{
    for (int n = 1; n < 32; n++)
        signal(n, SIG_IGN);
    if (fork() == 0) {
        setsid();
        if (fork() == 0)
            for (;;) pause();
        _exit(0);
    }
    write(1, "still here\n", 11);
    if (STOPS)
        raise(SIGSTOP);
    for (;;) pause();
}
"""


@functools.cache
def helper(stops: bool) -> Path:
    """A static program in place of the host's ldconfig."""
    folder = session.new_dir("helper")
    (folder / "helper.c").write_text(HELPER)
    path = folder / session.unique("ldconfig")
    command = ["cc", "-static", "-O1", f"-DSTOPS={int(stops)}", "-o", str(path), str(folder / "helper.c")]
    subprocess.run(command, check=True, capture_output=True)
    return path


def running(program: Path) -> list[str]:
    """Processes of it; it runs from a copy, under a name that is its first argument."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if os.path.samefile(entry / "exe", program) or "still here" in os.readlink(entry / "exe"):
                    found.append(entry.name)
            except OSError:
                continue
    return found


ENDLESS = [
    pytest.param(False, "outside", id="M4-ignores-and-forks-outside"),
    pytest.param(True, "inside", id="M5-stops-inside"),
    pytest.param(False, "inside", id="M4-ignores-and-forks-inside", marks=pytest.mark.long),
    pytest.param(True, "outside", id="M5-stops-outside", marks=pytest.mark.long),
]


@pytest.mark.parametrize(("stops", "stage"), ENDLESS)
def test_m4_m5_a_helper_that_does_not_end_is_ended(arena: Arena, stage: str, stops: bool) -> None:
    words = [*LDCACHE["ldconfig"], "--ldconfig-path", str(helper(stops)), "--timeout", "3"]
    found = attempt(arena, words, stage, ok=False, parts=["update-ldcache"], max_wall=LIMIT)
    assert settled(arena, found) == []
    assert running(helper(stops)) == []


def test_m4_the_runtime_does_not_wait_for_it(runtime: str) -> None:
    words = [*LDCACHE["ldconfig"], "--ldconfig-path", str(helper(False)), "--timeout", "3"]
    result = start(runtime, image(), "createRuntime", hookproc.hook_entry(words))
    assert (result.rc != 0, result.wall < LIMIT) == (True, True)


ENTRY = f"""
import sys
sys.path.insert(0, {str(session.HOOKS)!r})
import posix
from nvoci.hook import enter
def entered(place):
    {{}}
enter.Place.enter = entered
from nvoci.hook.main import cdi_hook
cdi_hook()
"""
CHMOD = ["chmod", "--mode", "700", "--path", "/etc/hostname", "--timeout", "1"]


def entry(line: str) -> Path:
    path = session.new_dir("entry") / "nvidia-cdi-hook"
    path.write_text(ENTRY.format(line))
    return path


def test_m5_a_stopped_worker_is_ended(arena: Arena) -> None:
    program = entry(f"posix.kill(posix.getpid(), {int(signal.SIGSTOP)})")
    found = attempt(
        arena, CHMOD, ok=False, parts=["not finished after 1 s, and killed"], program=program, max_wall=LIMIT
    )
    assert found == []


@pytest.mark.long
@pytest.mark.parametrize("kind", ["unified", "freezer"])
def test_m5_a_frozen_worker_is_ended_or_left_behind(arena: Arena, kind: str) -> None:
    """SIGKILL ends it in a frozen cgroup of the unified hierarchy; in one of v1 only once that is thawed, and the hook
    does not wait for that."""
    with devcgroups.cgroup(kind) as path:
        name, on, off = ("cgroup.freeze", "1", "0") if kind == "unified" else ("freezer.state", "FROZEN", "THAWED")
        (path / name).write_text(on)
        program = entry(f"open({str(path / 'cgroup.procs')!r}, 'w').write(str(posix.getpid()))")
        thaw = threading.Timer(8, (path / name).write_text, [off])
        thaw.start()
        with FakeContainer(arena.root) as c, Oracle(arena.canary, arena.root) as oracle:
            result = run_hook(CHMOD, container=c, program=program, timeout=LIMIT)
            assert result.wall < 7, "it waited until the cgroup was thawed"
            assert kind == "freezer" or result.survivors == []
            result.survivors = []  # of v1: it is ended since
            assert oracle.check(result, ok=False, parts=["not finished after 1 s, and killed"]) == []
        thaw.cancel()
        thaw.join()


# --- M7: the driver's files do not answer ----------------------------------------------------------------------------


def test_m7_a_driver_root_that_does_not_answer_is_given_up() -> None:
    """The look at the node has a deadline of its own, which is made short here. A signal without a handler ends the
    wait, as no error of the hook's could: who started it says `alarm clock`."""

    def body() -> tuple[int, bool, list[str], list[str]]:
        top = session.new_dir("silent")
        Path(CONFIG).parent.mkdir(exist_ok=True)
        Path(CONFIG).write_text(f'[nvidia-container-cli]\nroot = "{top}"\nload-kmods = false\n')
        with Scene().container() as site, silent(top):
            before = site.view()
            done = site.hook(extra="main._LOOK = 1.5", timeout=LIMIT)
            return done.rc, done.timed_out, done.survivors, before.differences(site.view())

    assert on_node(body) == (-signal.SIGALRM, False, [], [])


@pytest.mark.long
def test_m7_a_driver_root_of_mig_devices_that_does_not_answer_is_given_up(arena: Arena) -> None:
    """No handler ends such a wait: five seconds after the deadline SIGKILL does."""
    node = mignode.make(session.new_dir("mig") / "node")
    words, setup = [*node.words(mignode.GI), "--timeout", "0.5"], node.setup()
    with (
        FakeContainer(arena.root, setup=setup + node.in_container()) as container,
        silent(node.root / "dev/nvidia-caps"),
        Oracle(arena.canary, arena.root) as oracle,
    ):
        done = run_hook(words, container=container, setup=setup, timeout=LIMIT)
        assert (done.rc, done.timed_out, done.survivors) == (-signal.SIGKILL, False, [])
        assert oracle.check() == []
