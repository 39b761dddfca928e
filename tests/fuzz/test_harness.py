"""The harness finds what it is for, in parsers that have it; and finds nothing in a good one."""

from __future__ import annotations

import struct
from pathlib import Path
from random import Random

import pytest
from fuzz import harness, mutate
from fuzz.judge import Finding
from fuzz.naive import TARGETS, ParseError
from fuzz.registry import Target
from fuzz.worker import have_atheris

KINDS = {
    "exception": "exception", "time": "time", "endless": "endless", "deaf": "endless", "memory": "memory",
    "more-memory": "memory", "descriptors": "descriptors", "died": "died", "oracle": "oracle", "errno": "exception",
}  # fmt: skip

GUIDED = ("exception", "time", "memory", "endless")


def fuzz(name: str, engine: str = "own") -> list[Finding]:
    return harness.fuzz(TARGETS[name], 1, 20, TARGETS[name].executions, engine).findings


@pytest.mark.parametrize("name", KINDS)
def test_a_naive_parser_is_found_out(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "STALLED", 8.0)
    found = fuzz(name)
    assert [f.kind for f in found] == [KINDS[name]]
    assert found[0].data.startswith(b"!")


def test_a_good_parser_is_not() -> None:
    report = harness.fuzz(TARGETS["good"], 1, 60, 2000, "own")
    assert (report.findings, report.executions) == ([], 2000)


def test_what_is_found_is_made_small() -> None:
    assert [f.data for f in fuzz("exception")] == [b"!"]


@pytest.mark.skipif(not have_atheris(), reason="atheris is not installed")
@pytest.mark.parametrize("name", ["oracle", *[pytest.param(name, marks=pytest.mark.long) for name in GUIDED]])
def test_the_coverage_guided_engine_finds_the_same(name: str) -> None:
    report = harness.fuzz(TARGETS[name], 1, 4 if name == "oracle" else 20, engine="atheris")
    assert (report.engine, [f.kind for f in report.findings]) == ("atheris", [KINDS[name]])


def test_the_same_seed_tries_the_same_inputs() -> None:
    target = TARGETS["good"]

    def inputs(seed: int) -> list[bytes]:
        mutator = mutate.Mutator(target, Random(seed))
        return [mutator.mutant(b"abcdefgh" * 9, b"other") for _ in range(200)]

    assert inputs(1) == inputs(1) != inputs(2)


def test_an_old_crash_is_tried_again(tmp_path: Path) -> None:
    (tmp_path / "crash").write_bytes(b"!")
    report = harness.replay(TARGETS["exception"], [tmp_path / "crash"])
    assert [(f.kind, f.data) for f in report.findings] == [("exception", b"!")]


def test_a_finding_is_saved_once_under_its_own_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fuzz.registry.DATA", tmp_path)
    finding = Finding("time", "", "", b"abc")
    (one,) = set(harness.save(TARGETS["good"], [finding, finding]))
    assert one.read_bytes() == b"abc"
    assert one.parent == tmp_path / "crashes" / "naive:good"


def test_run_is_the_whole_contract() -> None:
    TARGETS["good"].run(b"")
    TARGETS["good"].run(b"x")
    with pytest.raises(IndexError):
        TARGETS["exception"].run(b"!")
    with pytest.raises(AssertionError):
        TARGETS["oracle"].run(b"!")
    with pytest.raises(OSError, match="odd"):
        TARGETS["errno"].run(b"!")
    with pytest.raises(ParseError):
        Target("x", TARGETS["good"].parse, (), list).run(b"")


def test_systematic_inputs_are_all_cuts_and_all_limits() -> None:
    def fields(data: bytes) -> list[tuple[int, int, str]]:
        return [(2, 4, ">")]

    target = Target("x", len, (), list, fields=fields)
    found = list(mutate.systematic(target, b"abcdefgh"))
    assert found[:8] == [b"abcdefgh"[:i] for i in range(8)]
    values = [struct.unpack(">2xI2x", data)[0] for data in found[8:]]
    assert {0, 1, 7, 8, 9, 1 << 31, (1 << 31) - 1, (1 << 32) - 1} <= set(values)
    assert len(values) == len(set(values))


@pytest.mark.parametrize("seed", range(5))
def test_mutants_keep_to_their_size(seed: int) -> None:
    target, source = Target("x", len, (), list, max_size=100, tokens=(b"include",)), Random(seed)
    mutator = mutate.Mutator(target, source)
    assert max(len(mutator.mutant(b"x" * 80, b"y" * 80)) for _ in range(500)) <= 100
    assert isinstance(mutator.mutant(b"", b""), bytes)
