"""The worker as its parent sees it: what it says meanwhile, what it reports, and that it ends.

A process that waits in the kernel for a file system that does not answer cannot be killed until that does. So nothing
here waits for one without a bound, and a worker has nothing of the runtime's: who starts a hook reads its stdout and
stderr until nobody has them open any more, and would wait as long as it does. What a worker writes there goes through
pipes, and the parent passes it on as it comes.
"""

from __future__ import annotations

import posix
import select
import time

from nvoci import log
from nvoci.errors import HookError, errno_name
from nvoci.hook import watchdog
from nvoci.linux.fd import close_quietly

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

MESSAGE_MAX = 1 << 16
_SAID_MAX = 4 << 20  # in all, of each descriptor; who starts a hook keeps it in memory
_PIPE_BUF = 1 << 12  # limits.h: a pipe that select(2) calls writable takes as much without a wait
_SIGKILL, _SIGTERM = 9, 15
_END_SECONDS = 1.0
_PAUSE, _PAUSE_MAX = 0.00005, 0.02
_FAILURES = 8  # calls of ours that may fail one after the other
_SUCCESS = b"0\0"  # how a report begins, see nvoci.hook.work
_HINT = "see what the container's file systems wait for; a rerun completes it"
_STUCK = (
    "a file system of the container's does not answer: end its daemon; no pid namespace with that process ends before, "
    "so call the hook as createRuntime, where it is in none of the container's"
)


class Output:
    """A pipe in the place of one of the worker's descriptors, passed on to the parent's own."""

    __slots__ = ("_left", "_pending", "_sink", "_source", "_target")

    def __init__(self, target: int) -> None:
        """target: the number of the descriptor, in both processes."""
        self._target = target
        self._source, self._sink = posix.pipe2(posix.O_CLOEXEC)
        self._pending = b""
        self._left = _SAID_MAX

    def in_worker(self) -> None:
        """After the fork, in the child."""
        posix.dup2(self._sink, self._target)
        posix.close(self._sink)
        posix.close(self._source)

    def in_parent(self) -> None:
        """After the fork, in the parent."""
        close_quietly(self._sink)

    def waits_for(self) -> tuple[list[int], list[int]]:
        """Descriptors for select(2): to read, to write. Nothing is read while the last of it has not been written, so
        that it is the worker who waits for whoever does not read on."""
        if self._source < 0:
            return [], []
        return ([], [self._target]) if self._pending else ([self._source], [])

    def move(self, ready: Sequence[int]) -> None:
        """One read or one write, if that can be done without a wait."""
        if self._source >= 0 and self._pending and self._target in ready:
            self._write()
        elif not self._pending and self._source in ready:
            try:
                chunk = posix.read(self._source, _PIPE_BUF)
            except OSError:
                chunk = b""  # what is said must not stop what is done
            self._left -= len(chunk)
            if self._left >= 0:
                self._pending = chunk
            if not chunk:
                self._close()

    def _write(self) -> None:
        try:
            self._pending = self._pending[posix.write(self._target, self._pending) :]
        except BlockingIOError:
            pass
        except OSError:
            self._close()  # nobody reads it: the worker hears of that when it writes again

    def finish(self) -> None:
        """Pass on what is left; the worker has ended, or is stuck."""
        deadline = time.monotonic() + _END_SECONDS
        while self._source >= 0:
            reading, writing = self.waits_for()
            left = max(0.0, deadline - time.monotonic())
            try:
                readable, writable, _ = select.select(reading, writing, [], left if writing else 0)
            except OSError:
                break  # what is said must not stop what is done
            if not left or not readable + writable:
                break
            self.move(readable + writable)
        self._close()
        if self._left < 0:
            log.warning(f"hook: more than {_SAID_MAX} bytes were written to descriptor {self._target}: the rest is cut")

    def _close(self) -> None:
        source, self._source = self._source, -1
        if source >= 0:
            close_quietly(source)


def detach(outputs: Sequence[Output]) -> None:
    """In the child: descriptors 0 to 2 are not the runtime's any more, but `outputs` or /dev/null."""
    null = posix.open(b"/dev/null", posix.O_RDWR | posix.O_CLOEXEC)
    for number in (0, 1, 2):
        posix.dup2(null, number)
    posix.close(null)
    for output in outputs:
        output.in_worker()


def collect(
    pid: int, report: int, outputs: Sequence[Output], seconds: float, feed: Callable[[bytes], bytes] | None
) -> str:
    """Read the report until end of file, within the deadline, and end the worker. report: the end of its pipe to read
    from. feed: takes out of what was read so far what is no report. Raises HookError; no error of a call here makes a
    failure of what the worker has done."""
    gone = True
    try:
        try:
            data = _listen(pid, report, outputs, seconds, feed)
        finally:
            close_quietly(report)
            _kill(pid, _SIGKILL)
            gone = _reap(pid)
            for output in outputs:
                output.finish()
    except HookError as e:
        if gone:
            raise
        raise HookError(f"{e.message}; process {pid} is stuck in the kernel", _STUCK) from None
    if not gone:
        log.warning(f"hook: process {pid} has done its work, and is stuck in the kernel")
    return data.decode("utf-8", "replace")


def _listen(
    pid: int, report: int, outputs: Sequence[Output], seconds: float, feed: Callable[[bytes], bytes] | None
) -> bytes:
    data = b""
    deadline = time.monotonic() + seconds + watchdog.GRACE + 1
    told = failed = ""
    failures = 0
    while len(data) <= MESSAGE_MAX:
        try:
            if not told:
                watchdog.check()
        except HookError as e:
            # We were told to end: so is the worker, which then undoes and reports. At the deadline it knows already.
            late = watchdog.late()
            told = f"hook: not finished after {seconds:g} s" if late else e.message
            watchdog.stop()
            _kill(pid, _SIGTERM)
            deadline = time.monotonic() + (1 if late else 2) * watchdog.GRACE + 1
        left = deadline - time.monotonic()
        if left <= 0:
            raise HookError(f"{told or f'hook: not finished after {seconds:g} s'}, and killed", _HINT)
        try:
            # A signal does not end select(2) in Python, so it is looked for now and then.
            ready = _wait(report, outputs, min(left, 0.2))
            for output in outputs:
                output.move(ready)
            chunk = posix.read(report, 1 << 12) if report in ready else None
        except OSError as e:
            # The worker is told to end, and then undoes; but it may be done already, so what it says is heard.
            failures += 1
            failed = failed or f"hook: listen to the worker: {errno_name(e.errno or 0)}"
            if failures == _FAILURES:
                raise HookError(f"{failed}, and killed", _HINT) from None
            if not told:
                told = failed
                _kill(pid, _SIGTERM)
                deadline = time.monotonic() + 2 * watchdog.GRACE + 1
            continue
        if chunk == b"":
            break
        if chunk is not None:
            data = data + chunk if feed is None else feed(data + chunk)
    if failed and data and not data.startswith(_SUCCESS):
        raise HookError(failed, "everything was undone; run again")
    return data


def _wait(report: int, outputs: Sequence[Output], seconds: float) -> list[int]:
    """Descriptors with which something can be done without a wait."""
    reading, writing = [report], []
    for output in outputs:
        more, others = output.waits_for()
        reading += more
        writing += others
    readable, writable, _ = select.select(reading, writing, [], seconds)
    return readable + writable


def _reap(pid: int) -> bool:
    """Whether it has ended, within a second after SIGKILL. It mostly has, or needs a few microseconds more."""
    deadline = time.monotonic() + _END_SECONDS
    pause = _PAUSE
    while True:
        try:
            if posix.waitpid(pid, posix.WNOHANG)[0]:
                return True
            if time.monotonic() > deadline:
                return False
            select.select([], [], [], pause)
        except ChildProcessError:
            return True
        except OSError:
            if time.monotonic() > deadline:
                return False
        pause = min(2 * pause, _PAUSE_MAX)


def _kill(pid: int, number: int) -> None:
    """Where that is refused the process is waited for as any other."""
    try:
        posix.kill(pid, number)
    except OSError:
        pass
