"""The two engines: atheris where it can be imported, else our own loop; and making a found input smaller."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from random import Random

from fuzz.judge import Endless, Finding, Judge
from fuzz.mutate import Mutator, systematic
from fuzz.registry import Target

MAX_FINDINGS = 10
SHRINK_SECONDS = 3.0


Note = Callable[[bytes], None]
"""Told each input before it is tried, so that it is known if the process dies."""


@dataclass
class Report:
    """What a run did, and found: at most MAX_FINDINGS, each of another kind or place."""

    engine: str
    executions: int = 0
    corpus: int = 0
    lines: int = 0
    findings: list[Finding] = field(default_factory=list)

    def add(self, finding: Finding) -> bool:
        """Whether it is a new one."""
        known = {(f.kind, f.where) for f in self.findings}
        if (finding.kind, finding.where) in known or len(self.findings) >= MAX_FINDINGS:
            return False
        self.findings.append(finding)
        return True

    def is_full(self) -> bool:
        """Whether to go on makes no sense: what has no end would be met again and again."""
        return len(self.findings) >= MAX_FINDINGS or any(f.kind == "endless" for f in self.findings)


Done = Callable[[Report], None]


class Bounds:
    """How long a loop goes on: a number of inputs, seconds, or what ends first."""

    def __init__(self, executions: int, seconds: float) -> None:
        self.left = executions
        self.end = time.monotonic() + seconds

    def take(self) -> bool:
        """One more?"""
        self.left -= 1
        return self.left >= 0 and time.monotonic() < self.end


def replay(target: Target, inputs: Iterable[bytes], note: Note) -> Report:
    """Judge given inputs only, their time in any case."""
    report, judge = Report("replay"), Judge(target)
    for data in inputs:
        note(data)
        report.executions += 1
        finding = judge.judge(data)[1]
        if finding:
            report.add(finding)
    return report


def mutation_loop(target: Target, seed: int, bounds: Bounds, note: Note) -> Report:
    """Our own: half of it systematic inputs in random order, then mutants of whatever reached a new line."""
    report, judge, source = Report("mutation loop"), Judge(target), Random(seed)
    corpus = target.corpus()

    def one(data: bytes) -> None:
        note(data)
        report.executions += 1
        new, finding = judge.judge(data)
        if finding:
            if report.add(finding):
                report.findings[-1] = shrink(judge, finding)
            judge.watch_time &= finding.kind != "time"  # one is enough: each more costs as much
        elif new:
            corpus.append(data)

    for data in [b"", *corpus]:
        bounds.take()
        one(data)
    ordered = [case for data in list(corpus) for case in systematic(target, data)]
    source.shuffle(ordered)
    for data in ordered[: max(0, bounds.left // 2)]:
        if report.is_full() or not bounds.take():
            break
        one(data)
    mutator = Mutator(target, source)
    while bounds.take() and not report.is_full():
        one(mutator.mutant(source.choice(corpus), source.choice(corpus)))
    report.corpus, report.lines = len(corpus), judge.lines()
    return report


def coverage_guided(target: Target, seed: int, seconds: float, note: Note, corpus: str, done: Done) -> None:
    """By atheris. It never returns: libFuzzer owns the process, so `done` gets the report and must end it.

    corpus: an empty directory for the seeds and what grows from them.
    """
    import atheris  # type: ignore[import-not-found]

    report, judge = Report("atheris"), Judge(target, trace=False)
    mutator, seeds = Mutator(target, Random(seed)), target.corpus()
    end = time.monotonic() + seconds
    for number, data in enumerate(seeds):
        with open(f"{corpus}/seed-{number}", "wb") as file:
            file.write(data)

    def one(data: bytes) -> None:
        note(data)
        report.executions += 1
        finding = judge.judge(data)[1]
        if finding and report.add(finding):
            report.findings[-1] = shrink(judge, finding)
        if time.monotonic() > end or report.is_full():
            report.corpus = len(os.listdir(corpus))
            done(report)

    def mutate(data: bytes, max_size: int, number: int) -> bytes:
        if mutator.source.random() < 0.3:
            return bytes(atheris.Mutate(data, max_size))
        return mutator.mutant(data, mutator.source.choice(seeds))[:max_size]

    words = [f"-seed={seed & 0x7FFFFFFF or 1}", f"-max_len={target.max_size}", "-rss_limit_mb=0", "-verbosity=0"]
    atheris.Setup([sys.argv[0], *words, corpus], one, custom_mutator=mutate)
    atheris.Fuzz()


def shrink(judge: Judge, finding: Finding) -> Finding:
    """A smaller input with the same finding, within a few seconds: blocks taken out, then bytes set to zero."""
    if finding.kind in {"endless", "memory", "descriptors"}:
        return finding
    end = time.monotonic() + SHRINK_SECONDS

    def same(data: bytes) -> bool:
        try:
            again = judge.judge(data)[1]
        except Endless:
            return False
        return again is not None and (again.kind, again.where) == (finding.kind, finding.where)

    best = finding.data
    size = max(1, len(best) // 2)
    while size and time.monotonic() < end:
        at = 0
        while at < len(best) and time.monotonic() < end:
            less = best[:at] + best[at + size :]
            if same(less):
                best = less
            else:
                at += size
        size //= 2
    for at in range(len(best)):
        if time.monotonic() > end:
            break
        plain = best[:at] + b"\0" + best[at + 1 :]
        if best[at] and same(plain):
            best = plain
    last = judge.judge(best)[1]
    return last if last is not None else replace(finding, data=best)
