"""Faults at chosen system calls, by strace. Every function gives a wrapper command to put in front of a hook's.

strace counts per process and per call name: "the third openat of each process".
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence

from lib import proc, session

QUIET = ["strace", "-f", "-qqq", "-o", "/dev/null"]


def inject_error(call: str, error: str, when: str = "1+") -> list[str]:
    """`call` (a name, or a list with commas) fails with `error` ("ENOSPC") at its `when`-th use: "3", "1+", "2..5"."""
    return [*QUIET, "-e", f"trace={call}", "-e", f"inject={call}:error={error}:when={when}"]


def inject_kill(call: str, when: int, name: str = "KILL") -> list[str]:
    """SIGKILL (or another signal) before the `when`-th `call` is done."""
    return [*QUIET, "-e", f"trace={call}", "-e", f"inject={call}:signal={name}:when={when}"]


Runner = Callable[[Sequence[str]], proc.Result]


def count_syscalls(run: Runner) -> dict[str, int]:
    """How often each call is made: the most of any one process. `run` takes a wrapper command and runs the case."""
    counts: dict[str, int] = {}
    for _, call, n, _ in _trace(run):
        counts[call] = max(n, counts.get(call, 0))
    return counts


def points(run: Runner, after: str = r"read\(0,") -> list[tuple[str, int]]:
    """Each (call, n) of a normal run: the arguments of inject_kill for "SIGKILL at each system call".

    Only calls from the first that matches `after` on (the hook reads its state: what is before is the interpreter's
    start); after="" for all. In order of the run, without repetition.
    """
    found: dict[tuple[str, int], None] = {}
    started = False
    for _, call, n, text in _trace(run):
        started = started or re.match(after, text) is not None
        if started:
            found[call, n] = None
    return list(found)


def _trace(run: Runner) -> list[tuple[str, str, int, str]]:
    """(pid, call, how often this process has made it by now, text) for each call of a run."""
    log = session.tmp() / session.unique("strace")
    run(["strace", "-f", "-qqq", "-o", str(log)])
    seen: Counter[tuple[str, str]] = Counter()
    out = []
    for line in log.read_text(errors="replace").splitlines():
        match = re.match(r"(\d+) +(([a-z_0-9]+)\(.*)", line)
        if match:
            seen[match[1], match[3]] += 1
            out.append((match[1], match[3], seen[match[1], match[3]], match[2]))
    log.unlink()
    return out
