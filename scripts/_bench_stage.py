"""Where scripts/bench runs a hook: a fresh overlay for each run, and what a runtime has around a hook at two stages.

Needs a private mount namespace. `spawn` is the one way in which the floor and every case are started: posix_spawn
with stdin from a file, a clean environment, and nothing else of this process.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from _bench_images import PARAMS, PARAMS_TEXT
from _private import ToolError

from nvoci.linux import abi
from nvoci.linux.syscalls import mount, prctl, umount2, unshare

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

ENV = {"NVOCI_BENCH": "1"}
INSIDE, OUTSIDE = "createContainer", "createRuntime"
NOWHERE = ""  # the stage of what is no hook
_IDLE_SECONDS = 0.01  # the teardown of the last run's mounts and processes delays what starts right behind it


class Bundle(NamedTuple):
    """One run's root file system on the host, as a container sees it, and the file that is the hook's stdin."""

    root: Path
    seen: Path
    state: Path


class Run(NamedTuple):
    """What one process did: milliseconds from spawn to exit, wait status, what it wrote to stderr."""

    ms: float
    status: int
    stderr: str

    @property
    def complaint(self) -> str:
        """Empty when it succeeded without a word."""
        if self.status == 0 and not self.stderr:
            return ""
        return f"exit status {os.waitstatus_to_exitcode(self.status)}: {self.stderr.strip()[:300]}"


class Workplace:
    """One directory on a tmpfs."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self.stderr = top / "stderr"
        self.state = top / "state.json"
        self.state.write_text("{}")

    @contextmanager
    def bundle(self, stage: str, image: Path, mounts: Mapping[Path, str]) -> Iterator[Bundle]:
        """A fresh overlay over `image` with `mounts` (file of the host -> path below the root) made as a runtime makes
        them, and at createRuntime a process in a container's namespaces; gone on return."""
        place = self.top / "run"
        root = place / "rootfs"
        for name in ("rootfs", "upper", "work"):
            (place / name).mkdir(parents=True)
        layers = f"lowerdir={image},upperdir={place}/upper,workdir={place}/work"
        mount(b"overlay", os.fsencode(root), b"overlay", 0, layers.encode())
        container = None
        try:
            _bind(root, mounts)
            container = ContainerProcess() if stage == OUTSIDE else None
            pid = container.pid if container else 0
            state = {"ociVersion": "1.0.2", "id": "bench", "status": "creating", "pid": pid, "bundle": str(place)}
            self.state.write_text(json.dumps({**state, "root": str(root)}))
            seen = Path(f"/proc/{pid}/root{root}") if pid else root
            time.sleep(_IDLE_SECONDS)
            yield Bundle(root, seen, self.state)
        finally:
            if container:
                container.stop()
            umount2(os.fsencode(root), abi.MNT_DETACH)
            shutil.rmtree(place)

    @contextmanager
    def nowhere(self) -> Iterator[Bundle]:
        """For what has no container."""
        time.sleep(_IDLE_SECONDS)
        yield Bundle(self.top, self.top, self.state)

    def spawn(self, argv: list[str]) -> Run:
        """Start a program, wait for it, and say how long that took."""
        actions = [
            (os.POSIX_SPAWN_OPEN, 0, str(self.state), os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, "/dev/null", os.O_WRONLY, 0),
            (os.POSIX_SPAWN_OPEN, 2, str(self.stderr), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600),
        ]
        begin = time.perf_counter_ns()
        pid = os.posix_spawn(argv[0], argv, ENV, file_actions=actions)
        _, status, _ = os.wait4(pid, 0)
        end = time.perf_counter_ns()
        return Run((end - begin) / 1e6, status, self.stderr.read_text(errors="replace"))


def _bind(root: Path, mounts: Mapping[Path, str]) -> None:
    """An empty file as each target, then the bind mount on it, read-only, as runc and crun do it."""
    for source, path in mounts.items():
        target = os.fsencode(root / path)
        os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o755))
        mount(os.fsencode(source), target, None, abi.MS_BIND)
        flags = abi.MS_BIND | abi.MS_REMOUNT | abi.MS_RDONLY | abi.MS_NOSUID | abi.MS_NODEV
        mount(None, target, None, flags)


# A process counts as its own what was resident before its exec. So the peak of a hook is taken by a parent that is
# smaller than any hook: an interpreter that has loaded nothing.
_WITNESS = """
import posix, sys
pid = posix.posix_spawn(sys.argv[1], sys.argv[1:], {b"NVOCI_BENCH": b"1"})
_, status, usage = posix.wait4(pid, 0)
print(usage.ru_maxrss)
sys.exit(status != 0)
"""


def peak_kib(python: str, argv: list[str], state: Path) -> int:
    """ru_maxrss of a program and the processes it waited for, in KiB."""
    with state.open("rb") as stdin:
        witness = [python, "-I", "-S", "-c", _WITNESS, *argv]
        done = subprocess.run(witness, stdin=stdin, env=ENV, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ToolError(f"measure the memory of `{argv[0]}`: it failed: {done.stderr.strip()[:300]}")
    return int(done.stdout.split()[-1])


class ContainerProcess:
    """A process with a mount namespace of its own, and its child, which is init of a pid namespace."""

    def __init__(self) -> None:
        read_end, write_end = os.pipe()
        self.outer = os.fork()
        if self.outer == 0:
            _be_container(write_end)
        os.close(write_end)
        with os.fdopen(read_end, "rb") as pipe:
            answer = pipe.read()
        if not answer:
            os.waitpid(self.outer, 0)
            raise ToolError("start a container's process: it ended (new mount and pid namespaces are needed)")
        self.pid = int(answer)

    def stop(self) -> None:
        """Nothing of it is left on return."""
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.outer, 0)


def _be_container(write_end: int) -> None:
    """The outer process, which waits for init; does not return."""
    try:
        prctl(abi.PR_SET_PDEATHSIG, signal.SIGKILL)
        unshare(abi.CLONE_NEWNS | abi.CLONE_NEWPID)
        mount(None, b"/", None, abi.MS_REC | abi.MS_PRIVATE)
        pid = os.fork()
        if pid == 0:
            prctl(abi.PR_SET_PDEATHSIG, signal.SIGKILL)
            os.close(write_end)
            while True:
                signal.pause()
        os.write(write_end, str(pid).encode())
        os.close(write_end)
        os.waitpid(pid, 0)
    finally:
        os._exit(0)


def cover_driver_params() -> None:
    """A params file of a driver for hooks on a host without one: a tmpfs over /proc/driver in this namespace."""
    if Path(f"/{PARAMS}").exists():
        return
    try:
        mount(b"driver", b"/proc/driver", b"tmpfs", 0, b"mode=0555")
    except OSError as e:
        raise ToolError(f"mount a tmpfs on `/proc/driver`: {errno.errorcode.get(e.errno or 0)}") from None
    Path(f"/{PARAMS}").parent.mkdir()
    Path(f"/{PARAMS}").write_text(PARAMS_TEXT)
