"""CPU time and memory of one call, for cases that promise a limit. A call without end is ended."""

from __future__ import annotations

import contextlib
import signal
import time
import tracemalloc
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

TRIES = 5
ENOUGH = 3.0
"""CPU seconds after which a call is ended."""


class TooLong(BaseException):
    """Raised in a call that took ENOUGH."""


@contextlib.contextmanager
def _bounded() -> Iterator[None]:
    def ring(number: int, frame: FrameType | None) -> None:
        raise TooLong(f"{ENOUGH:.0f} s of CPU time")

    before = signal.signal(signal.SIGPROF, ring)
    signal.setitimer(signal.ITIMER_PROF, ENOUGH)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def outcome(call: Callable[[], Any], errors: tuple[type[Exception], ...]) -> Any:
    """The answer, or the documented error. Raises TooLong."""
    with _bounded():
        try:
            return call()
        except errors as e:
            return e


def cpu_seconds(call: Callable[[], Any], errors: tuple[type[Exception], ...], limit: float = 0.010) -> float:
    """The best of a few tries, or the first below `limit`: what the call costs, not what the machine is busy with."""
    best = ENOUGH
    for _ in range(TRIES):
        start = time.thread_time()
        outcome(call, errors)
        best = min(best, time.thread_time() - start)
        if best < limit:
            break
    return best


def mebibytes(call: Callable[[], Any], errors: tuple[type[Exception], ...]) -> float:
    """Memory at its peak, of what Python allocates."""
    tracemalloc.start()
    try:
        outcome(call, errors)
        return tracemalloc.get_traced_memory()[1] / (1 << 20)
    finally:
        tracemalloc.stop()
