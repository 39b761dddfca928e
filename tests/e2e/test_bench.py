"""scripts/bench: its table has every case at its stages, each proved to have done its work. No timing is judged."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from lib import jail, proc

ROOT = Path(__file__).resolve().parents[2]
BENCH = ROOT / "scripts/bench"
STAGES = ("createContainer", "createRuntime")
REACH = {
    "noop": 1.6,
    "link": 1.6,
    "chmod": 1.6,
    "profile": 1.6,
    "compat": 1.6,
    "run": 1.9,
    "links": 6.0,
    "ldcache": 2.1,
    "ldcache-large": 4.0,
    "ldconfig": None,
    "ldconfig-large": None,
    "six": 2.6,
    "six-large": 4.5,
    "ldcache-half": None,
    "ldcache-many": 25.0,
}
MEMORY = {case: 24 if "ld" in case or "six" in case else 20 for case in REACH}
DISCOVERY = {"discover": 12.0, "info": None, "inventory": None}
MEMORY |= {"discover": 24, "info": 24, "inventory": 20}
GENERATION = {"generate": 20.0, "ctk-generate": 20.0}
MEMORY |= dict.fromkeys(GENERATION, 60)
PRESTART = {"none": 1.5, "one": 2.4, "eight": 2.8, "all": 3.6, "cold": 8.0}
PRESTART = {f"prestart-{name}": reach for name, reach in PRESTART.items()}
MEMORY |= dict.fromkeys(PRESTART, 24)
CONTAINERS = [f"{form}-{gpus}" for gpus in (1, 8) for form in ("plain", "merged", "reference")]
CONTAINERS += ["plain-large", "merged-large"]

pytestmark = pytest.mark.e2e


def bench(*words: str) -> subprocess.CompletedProcess[str]:
    """Run it with few runs."""
    return subprocess.run([BENCH, "--runs", "3", *words], capture_output=True, text=True, timeout=300, cwd="/")


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    """One bench of everything, as JSON."""
    done = bench("--json", "--group", "all")
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.long
def test_every_case_is_measured_at_its_stages(document: dict[str, Any]) -> None:
    rows = [(row["case"], row["stage"]) for row in document["rows"]]
    hooks = [(case, stage) for case in REACH for stage in STAGES]
    containers = [(case, "runc run") for case in ("floor", *CONTAINERS)]
    last = [(case, "prestart") for case in ("floor", *PRESTART)]
    assert rows == [("floor", ""), *hooks, *((case, "") for case in (*DISCOVERY, *GENERATION)), *containers, *last]
    assert [row for row in document["rows"] if "failed" in row] == []


@pytest.mark.long
def test_a_row_has_its_times_its_ratio_its_memory_and_what_it_should_reach(document: dict[str, Any]) -> None:
    floor: dict[str, Any] = {}
    for row in document["rows"]:
        if row["case"] == "floor":
            floor = row
        assert 0 < row["min_ms"] <= row["median_ms"]
        assert row["ratio"] == pytest.approx(row["median_ms"] / floor["median_ms"])
        assert 1 < row["rss_mib"] < 1000
        assert row["target"] == {**REACH, **DISCOVERY, **GENERATION, **PRESTART}.get(row["case"])
        assert row["rss_target"] == MEMORY.get(row["case"], 20)
        assert row["rss_met"] == (row["rss_mib"] <= row["rss_target"])
        if row["target"]:
            assert row["met"] == (row["ratio"] <= row["target"])


@pytest.mark.long
def test_engines_and_sizes_are_set_in_relation(document: dict[str, Any]) -> None:
    times = {(row["case"], row["stage"]): row["median_ms"] for row in document["rows"]}
    floor = times["floor", ""]
    engines = [times["ldcache-large", stage] / times["ldconfig-large", stage] for stage in STAGES]
    sizes = [(times["ldcache-many", stage] - floor) / (times["ldcache-half", stage] - floor) for stage in STAGES]
    relations, inventory = document["relations"][:4], document["relations"][4]
    assert (inventory["what"], inventory["stage"]) == ("inventory, read and checked in process", "ms")
    assert (inventory["target"], inventory["met"]) == (1.0, inventory["ratio"] <= 1)
    assert inventory["ratio"] > 0
    assert [each["stage"] for each in relations] == [*STAGES, *STAGES]
    assert [each["ratio"] for each in relations] == pytest.approx([*engines, *sizes])
    assert [each["target"] for each in relations] == [0.4, 0.4, 2.2, 2.2]
    assert all(each["met"] == (each["ratio"] <= each["target"]) for each in relations)


@pytest.mark.long
def test_what_the_hooks_of_a_container_add_is_set_in_relation(document: dict[str, Any]) -> None:
    times = {row["case"]: row["median_ms"] for row in document["rows"] if row["stage"] == "runc run"}
    cases = ["merged-1", "merged-8", "merged-large", "reference-1", "reference-8"]
    ratios = [times[case] - times[f"plain-{case.rpartition('-')[2]}"] for case in cases]
    divisors = [times["floor"], ratios[0], times["floor"], times["floor"], times["floor"]]
    relations, loaded = document["relations"][5:10], document["relations"][10:]
    assert [each["ratio"] for each in relations] == pytest.approx([a / b for a, b in zip(ratios, divisors)])
    assert [each["target"] for each in relations] == [3.5, 1.2, 5.0, None, None]
    assert [(each["stage"], each["target"]) for each in loaded] == [("ms", 60.0), ("ms", None)]
    assert 0 < loaded[0]["ratio"] < loaded[1]["ratio"]


@pytest.mark.long
def test_a_hook_needs_more_memory_than_its_floor_and_not_the_bench_s_own(document: dict[str, Any]) -> None:
    memory = {row["case"]: row["rss_mib"] for row in document["rows"] if row["case"] not in GENERATION}
    floor, cases = memory.pop("floor"), memory.values()
    assert floor < min(cases)
    assert max(cases) < 4 * floor


@pytest.mark.long
def test_the_facts_of_the_machine_are_given(document: dict[str, Any]) -> None:
    facts = document["facts"]
    assert facts["kernel"] == Path("/proc/sys/kernel/osrelease").read_text().strip()
    assert facts["python"].startswith("/usr/bin/python3")
    assert facts["runs"] == 3
    assert facts["cgroup"] == ("v1" if Path("/sys/fs/cgroup/devices").is_dir() else "v2")


def test_with_cgroup_v2_alone_containers_have_a_device_program_that_the_hook_replaces(tmp_path: Path) -> None:
    log = tmp_path / "log"
    tracer = ["strace", "-f", "-qq", "-e", "signal=none", "-e", "trace=bpf", "-o", log]
    words = [BENCH, "--runs", "1", "--case", "prestart-one"]
    done = proc.run([*jail.prefix(jail.cgroup_v2_only()), *tracer, *words], timeout=120)
    assert done.rc == 0, done.stdout + done.stderr
    assert re.match(r"kernel \S+ \S+, cgroup v2, \d+ cores", done.stdout)
    pids = [line.split()[0] for line in log.read_text().splitlines() if "bpf(BPF_PROG_ATTACH, " in line]
    ours = max(pids, key=pids.count)
    assert [pid == ours for pid in pids] == [True, False] * (len(pids) // 2)
    assert len(pids) >= 4


def left() -> list[str]:
    """What a bench has on the host while it runs."""
    mounts = [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if "nvoci-bench" in line]
    return [*mounts, *(str(path) for top in ("/tmp", "/var/tmp") for path in Path(top).glob("nvoci-bench-*"))]


def test_the_table_of_one_case_fits_the_terminal_and_leaves_nothing() -> None:
    before = left()
    done = bench("--case", "link")
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert [line[32:48].strip() for line in lines if line.startswith("create-symlinks, one link")] == list(STAGES)
    assert re.fullmatch(r"bench: \d of 2 ratios met, RSS at most 20 MiB (met|missed)", lines[-1])
    assert max(map(len, lines)) <= 100
    assert [each for each in left() if each not in before] == []


def test_a_group_and_a_case_are_chosen_together() -> None:
    done = bench("--group", "many", "--case", "ldcache-half", "--stage", "createContainer", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    document = json.loads(done.stdout)
    assert [row["case"] for row in document["rows"]] == ["floor", "ldcache-half"]
    assert document["relations"] == []
    assert bench("--group", "start", "--case", "ldcache-half").returncode == 2


def test_a_hook_that_fails_is_named_and_the_exit_status_says_so(tmp_path: Path) -> None:
    done = bench("--python", str(tmp_path / "none"), "--case", "noop")
    assert done.returncode == 1
    assert "bench: install nvoci" in done.stderr
    assert "ENOENT" in done.stderr
