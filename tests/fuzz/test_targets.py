"""Every target: its seeds and old crashes, some new inputs; with `--fuzz SECONDS` new ones for that long, each."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from fuzz import harness
from fuzz.registry import DATA, Target, files, load

TARGETS = load()
SEED = 1
"""A normal run tries the same inputs each time. `--fuzz` takes another seed each time, and tells it."""
WALL_SECONDS = 120.0


@pytest.fixture(params=sorted(TARGETS))
def target(request: pytest.FixtureRequest) -> Target:
    return TARGETS[request.param]


@pytest.fixture
def seconds(request: pytest.FixtureRequest) -> float | None:
    value: float | None = request.config.getoption("--fuzz")
    return value


def test_seeds_and_old_crashes_hold(target: Target, tmp_path: Path) -> None:
    paths = files(target.crashes())
    for number, data in enumerate(target.corpus()):
        paths.append(tmp_path / f"seed-{number}")
        paths[-1].write_bytes(data)
    report = harness.replay(target, paths)
    assert report.executions == len(paths) > 0
    assert not report.findings, harness.told(target, 0, report)


def test_new_inputs_hold(target: Target, seconds: float | None, capsys: pytest.CaptureFixture[str]) -> None:
    if seconds is None:
        report = harness.fuzz(target, SEED, WALL_SECONDS, target.executions, engine="own")
        sys.stdout.write(harness.told(target, SEED, report) + "\n")
        assert report.findings or report.executions >= min(500, target.executions)
        assert report.findings or report.corpus > len(target.corpus()) // 2
        assert not report.findings, harness.told(target, SEED, report)
        return
    seed = int.from_bytes(os.urandom(4), "little")
    report = harness.fuzz(target, seed, seconds)
    saved = harness.save(target, report.findings)
    with capsys.disabled():
        sys.stdout.write("\n" + harness.told(target, seed, report) + "\n")
    assert not report.findings, f"saved: {', '.join(str(path) for path in saved)}"


@pytest.mark.parametrize("name", sorted(name for name, t in TARGETS.items() if any(t.fields(s) for s in t.seeds())))
def test_every_cut_and_every_number_at_its_limits_holds(name: str, request: pytest.FixtureRequest) -> None:
    """Two hundred thousand ELF files take minutes, as do programs: a normal run tries each thirtieth of them."""
    slow = name in {"elf", "library", "image-cache", "device-program"} and not request.config.getoption("--long")
    report = harness.exhaust(TARGETS[name], 30 if slow else 1)
    assert report.findings or report.executions > 300
    assert not report.findings, harness.told(TARGETS[name], 0, report)


def test_each_directory_of_data_belongs_to_a_target() -> None:
    known = {DATA / kind / name for kind in ("seeds", "crashes") for name in TARGETS}
    assert [path for kind in ("seeds", "crashes") for path in (DATA / kind).glob("*") if path not in known] == []


def test_a_target_has_few_seeds_and_none_is_too_long(target: Target) -> None:
    assert len(target.corpus()) == len(dict.fromkeys([*target.seeds(), *_data_seeds(target)])) <= 64


def _data_seeds(target: Target) -> list[bytes]:
    return [path.read_bytes() for path in files(DATA / "seeds" / target.name)]
