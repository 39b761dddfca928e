"""What a fuzz target is, and the list of all of them.

A target is one parser of bytes that a stranger made. It may answer, or raise its documented error; everything else is
a finding: another exception, an answer that its oracle refutes, more CPU time or memory than it may take, no end.
A module `target_*.py` in this directory registers one or more; see README.md.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
DATA = HERE.parent / "data" / "fuzz"
Field = tuple[int, int, str]
"""An integer in an input: (offset, bytes, "<" or ">")."""


def _no_fields(data: bytes) -> list[Field]:
    return []


def _any(error: Exception) -> bool:
    return True


@contextlib.contextmanager
def _as_it_is(data: bytes) -> Iterator[Any]:
    yield data


@dataclass(frozen=True)
class Target:
    """`run(data)` is the whole contract; the rest helps to find what breaks it.

    parse: the code under test, the only timed part. prepare: makes of the bytes what `parse` takes (a descriptor, a
    tree of files). errors: what `parse` may raise; `allowed` narrows it, e.g. to some errnos. check(data, case,
    answer): an oracle for an answer, by assertions. seconds: CPU time of one `parse`. mebibytes: memory at its peak.
    fields: where integers stand in an input. tokens: words of a text format. executions: how many inputs a normal run
    tries.
    """

    name: str
    parse: Callable[[Any], Any]
    errors: tuple[type[Exception], ...]
    seeds: Callable[[], list[bytes]]
    prepare: Callable[[bytes], contextlib.AbstractContextManager[Any]] = _as_it_is
    check: Callable[[bytes, Any, Any], None] | None = None
    allowed: Callable[[Exception], bool] = _any
    fields: Callable[[bytes], list[Field]] = _no_fields
    tokens: tuple[bytes, ...] = ()
    seconds: float = 0.010
    mebibytes: int = 16
    max_size: int = 1 << 14
    executions: int = 6000

    def run(self, data: bytes) -> None:
        """Parse and check once. Raises what is no documented error, AssertionError of the oracle among it."""
        with self.prepare(data) as case:
            try:
                answer = self.parse(case)
            except self.errors as e:
                if not self.allowed(e):
                    raise
                return
            if self.check:
                self.check(data, case, answer)

    def corpus(self) -> list[bytes]:
        """The seeds made by code, then the files of tests/data/fuzz/seeds/NAME, none longer than `max_size`."""
        found = [*self.seeds(), *(path.read_bytes() for path in files(DATA / "seeds" / self.name))]
        return [data for data in dict.fromkeys(found) if len(data) <= self.max_size]

    def crashes(self) -> Path:
        """Where inputs lie that once broke the target; a normal run tries each again."""
        return DATA / "crashes" / self.name


TARGETS: dict[str, Target] = {}


def register(target: Target) -> Target:
    """Add to the list; a name is given once, and is a directory's name too."""
    if target.name in TARGETS or "/" in target.name or target.name.startswith("."):
        raise ValueError(f"no name for a target, or taken: {target.name}")
    TARGETS[target.name] = target
    return target


def load() -> dict[str, Target]:
    """All targets, by name. Modules are imported at the first call."""
    for path in sorted(HERE.glob("target_*.py")):
        importlib.import_module(f"fuzz.{path.stem}")
    return TARGETS


def find(name: str) -> Target:
    """A target by name; `naive:NAME` is one of those that the harness itself is tested with."""
    kind, _, rest = name.rpartition(":")
    if kind:
        naive: Target = importlib.import_module(f"fuzz.{kind}").TARGETS[rest]
        return naive
    return load()[name]


def files(directory: Path) -> list[Path]:
    """The files in a directory that need not exist."""
    return sorted(p for p in directory.glob("*") if p.is_file() and not p.name.startswith("."))
