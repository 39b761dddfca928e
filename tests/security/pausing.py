"""A hook that stops where a test wants to do something to it, or to the container, and then goes on.

The points lie on the way of a worker, in this order: the state was read; the container's process was found; the worker
is there; it has entered; it has planned; the first operation is done; all are done; the container was found alive.
"""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lib import hookproc, proc, session
from lib.hookproc import FakeContainer

POINTS = ("state-read", "located", "forked", "entered", "planned", "performed", "last", "alive")
IN_WORKER = POINTS[2:]
# Lines for an entry file, behind those that make nvoci importable.
LINES = """
import posix, time
from nvoci.hook import enter, operation, work
from nvoci.oci import state as oci_state

def at(point, seen=[]):
    if point != {point!r} or seen:
        return
    seen.append(point)
    fd = posix.open({folder!r} + "/reached.new", posix.O_CREAT | posix.O_WRONLY, 0o600)
    posix.write(fd, b"%d" % posix.getpid())
    posix.close(fd)
    posix.rename({folder!r} + "/reached.new", {folder!r} + "/reached")
    end = time.monotonic() + 20
    while time.monotonic() < end:
        try:
            posix.stat({folder!r} + "/go")
            return
        except FileNotFoundError:
            time.sleep(0.002)

def around(where, name, before="", after=""):
    real = getattr(where, name)

    def both(*args, **how):
        at(before)
        found = real(*args, **how)
        at(after)
        return found

    setattr(where, name, both)

around(oci_state, "parse", after="state-read")
around(enter, "locate", after="located")
around(enter.Place, "enter", before="forked", after="entered")
around(operation.Transaction, "perform", before="planned", after="performed")
around(enter.Place, "check_alive", before="last", after="alive")
"""
_ENTRY = "import sys\nsys.path.insert(0, {hooks!r})\n{lines}\nfrom nvoci.hook.main import cdi_hook\ncdi_hook()\n"


@dataclass
class Pause:
    """At `point` act(pid of the process that has come there) is done, once. `acted`: whether it came there."""

    point: str
    act: Callable[[int], object]
    folder: Path = field(default_factory=lambda: session.new_dir("pause"))
    acted: bool = False
    problem: str = ""

    @property
    def lines(self) -> str:
        return LINES.format(point=self.point, folder=str(self.folder))

    @property
    def program(self) -> Path:
        path = self.folder / "nvidia-cdi-hook"
        path.write_text(_ENTRY.format(hooks=str(session.HOOKS), lines=self.lines))
        return path

    def run(self, call: Callable[[], proc.Result]) -> proc.Result:
        """call(), with somebody who waits for it to come to the point."""
        over = threading.Event()
        partner = threading.Thread(target=self._wait, args=(over,))
        partner.start()
        try:
            return call()
        finally:
            over.set()
            partner.join()

    def hook(self, words: Sequence[str], container: FakeContainer, **how: Any) -> proc.Result:
        program = self.program
        return self.run(lambda: hookproc.run_hook(words, container=container, program=program, timeout=25, **how))

    def _wait(self, over: threading.Event) -> None:
        reached = self.folder / "reached"
        while not reached.exists():
            if over.wait(0.001):
                return
        self.acted = True
        try:
            self.act(int(reached.read_text()))
        except Exception as e:  # noqa: BLE001  # told by the test, in its own thread
            self.problem = repr(e)
        (self.folder / "go").touch()


def end(pid: int) -> None:
    """SIGKILL for somebody else's child, and wait until it is no more, not even a zombie."""
    with suppress(ProcessLookupError):
        os.kill(pid, 9)
    deadline = time.monotonic() + 10
    while os.path.exists(f"/proc/{pid}") and time.monotonic() < deadline:
        time.sleep(0.001)


# -- a process with a pid of one's choice ---------------------------------------------------------------------------

NEWNS, NEWPID = 0x00020000, 0x20000000  # linux/sched.h
# struct clone_args (clone3(2)): eleven u64. set_tid counts from the innermost pid namespace on.
_REUSE = """
import ctypes, os, struct, sys
pid, flags = int(sys.argv[1]), int(sys.argv[2])
if not sys.stdin.readline():
    sys.exit()
chosen = [1, pid] if flags & 0x20000000 else [pid]
tids = (ctypes.c_int * len(chosen))(*chosen)
words = struct.pack("=11Q", flags, 0, 0, 0, 17, 0, 0, 0, ctypes.addressof(tids), len(chosen), 0)
made = ctypes.CDLL(None, use_errno=True).syscall(435, ctypes.create_string_buffer(words), len(words))
if made == 0:
    os.execv("/bin/sleep", ["sleep", "60"])
print(made, ctypes.get_errno(), flush=True)
sys.stdin.read()
os.kill(made, 9)
os.waitpid(made, 0)
"""


@contextmanager
def reusable(pid: int, flags: int) -> Any:
    """Yields a function that makes a process of the host with this pid, which must be free; it ends with the block."""
    argv = [session.PYTHON, "-ISc", _REUSE, str(pid), str(flags)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as helper:
        assert helper.stdin is not None
        assert helper.stdout is not None

        def reuse() -> None:
            helper.stdin.write(b"\n")
            helper.stdin.flush()
            answer = helper.stdout.readline().split()
            assert answer[:1] == [b"%d" % pid], f"clone3: {answer}"
            while Path(f"/proc/{pid}/comm").read_text() != "sleep\n":
                time.sleep(0.001)

        yield reuse
        helper.stdin.close()
