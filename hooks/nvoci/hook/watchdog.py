"""Bounded time for one hook process: a clean error first, SIGKILL if that is not possible.

At the deadline (or on SIGTERM, SIGHUP, SIGINT, SIGXCPU) a flag is set, which is looked at between operations, where
undo is exact. While a hook only plans, nothing has been changed that is not on record, and the handler raises wherever
the process is, which also ends an interruptible wait. While an operation executes it never does: between a system call
and its record an exception would make undo forget, or commit destroy, an object of the image. A POSIX timer that sends
SIGKILL stands behind both, for a wait that does not end. Of the processor's time a third may be used: an image whose
links lead through thousands of names, again and again, is not worth a node's core for half a minute.
"""

from __future__ import annotations

import _signal

from nvoci.errors import HookError
from nvoci.linux import abi
from nvoci.linux.syscalls import kill_self_at, prlimit

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType

GRACE = 1.0
KILL_AFTER = 5.0
# Of the time for the whole hook, but that many seconds at least. 100,000 libraries, the most that are read, take 2 s.
_CPU_PART, _CPU_LEAST = 1 / 3, 5
_RLIM_INFINITY = (1 << 64) - 1
_LATE = "not finished"
_TERMINATING = (_signal.SIGTERM, _signal.SIGHUP, _signal.SIGINT, _signal.SIGXCPU)

_expired = ""
_seconds = 0.0
_may_raise = False


def start(seconds: float) -> None:
    """Arm everything; `seconds` is for the whole hook."""
    global _expired, _seconds
    _expired = ""
    _seconds = seconds
    _signal.signal(_signal.SIGALRM, _on_alarm)
    for number in _TERMINATING:
        _signal.signal(number, _on_terminate)
    _signal.setitimer(_signal.ITIMER_REAL, seconds, GRACE)
    try:
        kill_self_at(seconds + KILL_AFTER)
    except OSError:
        pass  # no POSIX timers here (a seccomp profile): the runtime's timeout remains
    try:
        prlimit(abi.RLIMIT_CPU, max(_CPU_LEAST, int(seconds * _CPU_PART)), _RLIM_INFINITY)
    except OSError:
        pass  # a hard limit of the runtime's is there already


def may_raise(allowed: bool) -> None:
    """Whether the handler may raise from now on: only where every change so far is on the undo stack."""
    global _may_raise
    _may_raise = allowed
    if allowed:
        check()


def stop() -> None:
    """No more interruptions: what follows is undo or commit. The SIGKILL behind stays armed."""
    _signal.setitimer(_signal.ITIMER_REAL, 0)
    for number in (_signal.SIGALRM, *_TERMINATING):
        _signal.signal(number, _signal.SIG_IGN)


def check() -> None:
    """Raise HookError if time is up or the process was told to end."""
    if _expired:
        raise _error()


def late() -> bool:
    """Whether it is the deadline that has passed; no signal came before it."""
    return _expired.startswith(_LATE)


def _error() -> HookError:
    return HookError(f"hook: {_expired}", "everything was undone; see the log for what it waited for")


def _on_alarm(number: int, frame: FrameType | None) -> None:
    global _expired
    _expired = _expired or f"{_LATE} after {_seconds:g} s"
    if _may_raise:
        raise _error()


def _on_terminate(number: int, frame: FrameType | None) -> None:
    global _expired
    if not _expired:
        _expired = f"ended by signal {number}"
        if number == _signal.SIGXCPU:
            _expired += ", it used too much processor time"
        _signal.setitimer(_signal.ITIMER_REAL, GRACE, GRACE)
    if _may_raise:
        raise _error()
