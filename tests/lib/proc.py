"""Run one command under a deadline and say everything about it that a test may ask."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lib import session

PR_SET_CHILD_SUBREAPER = 36
PLAIN_ENV: Mapping[str, str] = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}


# Started from a small process, since a child of pytest would be charged with pytest's own peak. What is measured can
# not be less than this process itself, about 7 MiB.
_MEASURE = """
import posix, sys
pid = posix.fork()
if not pid:
    posix.execv(sys.argv[2], sys.argv[2:])
_, status, usage = posix.wait4(pid, 0)
with open(sys.argv[1], "w") as f:
    f.write(str(usage.ru_maxrss))
posix._exit(posix.WEXITSTATUS(status) if posix.WIFEXITED(status) else 128 + posix.WTERMSIG(status))
"""


@dataclass
class Result:
    """What came of a command. `rc` is negative for a signal, as in subprocess."""

    rc: int
    stdout: str
    stderr: str
    wall: float
    maxrss: int = 0  # KiB; 0 when not measured
    timed_out: bool = False
    survivors: list[str] = field(default_factory=list)  # "pid command line" of processes that outlived the command
    mounts_added: list[str] = field(default_factory=list)  # mountinfo lines of the namespace the command ran in
    mounts_removed: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return self.rc == 0 and not self.timed_out


def run(
    argv: Sequence[str | Path],
    *,
    stdin: bytes | int | None = b"",
    env: Mapping[str, str] | None = None,
    cwd: str | Path | None = None,
    timeout: float = 10.0,
    pass_fds: Sequence[int] = (),
    preexec: Callable[[], None] | None = None,
    stderr: int | None = None,
    measure_rss: bool = False,
) -> Result:
    """Run `argv` in a session of its own; at the deadline the whole group and every descendant is killed.

    stdin: bytes to feed, a descriptor to hand over, or None for closed. stderr: a descriptor in place of a pipe.
    """
    become_subreaper()
    known = set(children())
    argv = [str(a) for a in argv]
    report = session.tmp() / session.unique("rss")
    if measure_rss:
        argv = [session.PYTHON, "-ISc", _MEASURE, str(report), shutil.which(argv[0]) or argv[0], *argv[1:]]
    if stdin is None:
        preexec = _closing_stdin(preexec)
    proc = subprocess.Popen(
        argv,
        stdin=subprocess.PIPE if isinstance(stdin, bytes) else subprocess.DEVNULL if stdin is None else stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE if stderr is None else stderr,
        env=dict(PLAIN_ENV if env is None else env),
        cwd=cwd,
        pass_fds=pass_fds,
        preexec_fn=preexec,
        start_new_session=True,
    )
    start = time.monotonic()
    out, err, late = _communicate(proc, stdin if isinstance(stdin, bytes) else None, timeout, known)
    wall = time.monotonic() - start
    survivors = kill_survivors(known)
    result = Result(proc.returncode, _text(out), _text(err), wall, timed_out=late, survivors=survivors)
    if measure_rss and report.exists():
        result.maxrss = int(report.read_text())
    return result


_Output = tuple[bytes, bytes, bool]


def _communicate(proc: subprocess.Popen[bytes], stdin: bytes | None, timeout: float, known: set[int]) -> _Output:
    try:
        out, err = proc.communicate(stdin, timeout=timeout)
        return out or b"", err or b"", False
    except subprocess.TimeoutExpired:
        _kill_tree(proc.pid)
        proc.wait()
        for pid in set(children()) - known:  # orphans of it are ours now
            _kill_tree(pid)
        try:
            out, err = proc.communicate(timeout=5)
        except subprocess.TimeoutExpired as again:  # someone who is not a descendant keeps the pipe open
            out, err = again.stdout or b"", again.stderr or b""
        return out or b"", err or b"", True


def become_subreaper() -> None:
    """Orphans of what we start become our children, so that a daemonised one can be seen and killed."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def children(pid: int | None = None) -> list[int]:
    out: list[int] = []
    for task in Path(f"/proc/{pid or os.getpid()}/task").iterdir():
        try:
            out += [int(c) for c in (task / "children").read_text().split()]
        except OSError:
            continue
    return out


def descendants(pid: int) -> Iterator[int]:
    """Children first, then theirs; a process that ends meanwhile is left out."""
    try:
        found = children(pid)
    except OSError:
        return
    for child in found:
        yield child
        yield from descendants(child)


def kill_survivors(known: set[int], grace: float = 0.3) -> list[str]:
    """Children that appeared since `known` and do not end within `grace` seconds: named, killed, reaped."""
    deadline = time.monotonic() + grace
    while new := [c for c in children() if c not in known and not _reap(c)]:
        if time.monotonic() > deadline:
            break
        time.sleep(0.01)
    names = [f"{pid} {command_line(pid)}" for pid in new]
    for pid in new:
        _kill_tree(pid)
    for pid in new:
        try:
            os.waitpid(pid, 0)
        except ChildProcessError:
            pass
    return names


def command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return "?"


def mountinfo(pid: int | str = "self") -> list[str]:
    return Path(f"/proc/{pid}/mountinfo").read_text(errors="surrogateescape").splitlines()


def _reap(pid: int) -> bool:
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:
        return True


def _kill_tree(pid: int) -> None:
    for each in (*descendants(pid), pid):
        try:
            os.kill(each, signal.SIGKILL)
        except ProcessLookupError:
            pass


def _closing_stdin(then: Callable[[], None] | None) -> Callable[[], None]:
    def close() -> None:
        os.close(0)
        if then:
            then()

    return close


def _text(data: bytes) -> str:
    return data.decode("utf-8", errors="surrogateescape")
