"""One input, judged: does the target hold its contract on it? Also which lines of the code under test it reached.

The first run is traced, for coverage, and bounded by a timer; only where it took suspiciously long is the input run
again without tracing and timed: it is a finding if each of several tries takes more CPU time than the target may. A
neighbour on the machine does not make CPU time, and one hiccup does not make a finding.
"""

from __future__ import annotations

import errno
import os
import resource
import signal
import sys
import time
import traceback
import tracemalloc
from dataclasses import dataclass
from types import FrameType
from typing import Any

from fuzz.registry import Target

ENDLESS = 2.0
"""CPU seconds after which a parser is taken to have no end, traced or not."""
TRIES = 5
_SAMPLE = 1000  # of the inputs that reach nothing new, one in so many is also measured
_ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
_CODE = (os.path.join(_ROOT, "hooks", ""), os.path.join(_ROOT, "tests", "fuzz", "naive.py"))

_NO_DIGITS = str.maketrans("", "", "0123456789")


class Endless(BaseException):
    """No Exception: the code under test must not catch it."""


@dataclass(frozen=True)
class Finding:
    """kind: exception, oracle, time, endless, memory, descriptors, died. where: what makes two findings the same."""

    kind: str
    where: str
    message: str
    data: bytes


class Judge:
    """Judges inputs of one target, and knows which lines they reached together."""

    def __init__(self, target: Target, trace: bool = True) -> None:
        self.target = target
        self._trace = self._call if trace else None
        self._count = 0
        self._peak = _peak()
        self.watch_time = True
        self.seen: set[Any] = set()
        self._edges: set[Any] = set()
        self._last: Any = None
        self._in_parse = 0.0
        signal.signal(signal.SIGPROF, self._ring)

    def judge(self, data: bytes) -> tuple[bool, Finding | None]:
        """(whether it reached something new, what is wrong)."""
        self._edges = set()
        self._in_parse = 0.0
        finding = self._run(data, self._trace)
        if finding and finding.kind == "endless" and self._trace:
            finding = self._run(data, None)  # tracing makes slow what is not
        new = not self._edges <= self.seen
        self._count += 1
        self.seen |= self._edges
        if finding is None and self.watch_time and self._in_parse > self.target.seconds:
            finding = self.timed(data)
        peak = _peak()
        if finding is None and (new or peak > self._peak or self._count % _SAMPLE == 0):
            finding = self._descriptors(data) or self._memory(data)
        self._peak = peak
        return new, finding

    def lines(self) -> int:
        """How many lines of the code under test were reached."""
        return len({here for _, here in self.seen if isinstance(here, tuple)})

    def timed(self, data: bytes) -> Finding | None:
        """Whether each of a few tries takes too much CPU time."""
        best = min(self._seconds(data) for _ in range(TRIES))
        if best <= self.target.seconds:
            return None
        return Finding("time", "", f"{1000 * best:.1f} ms of CPU time in {TRIES} tries, at best", data)

    def _run(self, data: bytes, trace: Any = None) -> Finding | None:
        signal.setitimer(signal.ITIMER_PROF, ENDLESS)
        try:
            with self.target.prepare(data) as case:
                self._parse_and_check(data, case, trace)
        except Endless:
            return Finding("endless", "", f"no end after {ENDLESS:.0f} s of CPU time", data)
        except MemoryError:
            return Finding("memory", "", "MemoryError", data)
        except Exception as e:  # noqa: BLE001  (every other exception is what is looked for)
            kind = "oracle" if isinstance(e, AssertionError) else "exception"
            return Finding(kind, _where(e), _told(e), data)
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        return None

    def _parse_and_check(self, data: bytes, case: Any, trace: Any) -> None:
        target = self.target
        start = time.thread_time()
        sys.settrace(trace)
        try:
            answer = target.parse(case)
        except target.errors as e:
            sys.settrace(None)
            if not target.allowed(e):
                raise
            self._edges.add((type(e).__name__, str(e)[:40].translate(_NO_DIGITS)))
            return
        finally:
            sys.settrace(None)
            self._in_parse = time.thread_time() - start
        self._edges.add(("answer", None))
        if target.check:
            target.check(data, case, answer)

    def _seconds(self, data: bytes) -> float:
        """CPU time of one parse, without tracing."""
        with self.target.prepare(data) as case:
            start = time.thread_time()
            try:
                self.target.parse(case)
            except self.target.errors:
                pass
            return time.thread_time() - start

    def _memory(self, data: bytes) -> Finding | None:
        with self.target.prepare(data) as case:
            tracemalloc.start()
            try:
                self.target.parse(case)
            except self.target.errors:
                pass
            finally:
                peak = tracemalloc.get_traced_memory()[1] / (1 << 20)
                tracemalloc.stop()
        if peak <= self.target.mebibytes:
            return None
        return Finding("memory", "", f"{peak:.0f} MiB at its peak", data)

    def _descriptors(self, data: bytes) -> Finding | None:
        before = len(os.listdir("/proc/self/fd"))
        self._run(data)
        left = len(os.listdir("/proc/self/fd")) - before
        return Finding("descriptors", "", f"{left} descriptors left open", data) if left > 0 else None

    # -- tracing ----------------------------------------------------------------------------------------------------

    def _call(self, frame: FrameType, event: str, arg: Any) -> Any:
        return self._line if frame.f_code.co_filename.startswith(_CODE) else None

    def _line(self, frame: FrameType, event: str, arg: Any) -> Any:
        if event == "line":
            here = (id(frame.f_code), frame.f_lineno)
            self._edges.add((self._last, here))
            self._last = here
        return self._line

    def _ring(self, number: int, frame: FrameType | None) -> None:
        raise Endless


def _peak() -> int:
    """MiB that this process ever had in memory."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


def _where(error: Exception) -> str:
    """Type and innermost line: two inputs with the same are one finding."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    name = errno.errorcode.get(error.errno or 0, "OSError") if isinstance(error, OSError) else type(error).__name__
    return f"{name} at {os.path.basename(last.filename)}:{last.lineno}"


def _told(error: Exception) -> str:
    *frames, last = traceback.format_exception(type(error), error, error.__traceback__)
    return "".join([*(frame[:500] for frame in frames[-3:]), last[:500]])
