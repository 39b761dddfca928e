"""Many container starts at once on one host: what was wrong, what the hooks took, and what a start costs without them.

All of them happen in one jail, which is the node that they share: scaledriver.py starts them there. A hook is run by
MEASURE, a small program that takes down its time and its memory, and can make hooks wait for one another.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from lib import jail, oracle, proc, runtimes, session
from lib.bundle import Json, make_bundle

DRIVER = Path(__file__).with_name("scaledriver.py")
# Row N6.
MOST_MEMORY = 25 << 10  # KiB
# RECORD GATE PROGRAM ARGV0 ARG…: runs the program, and adds `NANOSECONDS KIB STATUS` to the file RECORD, KIB being the
# most that it or a process that it waited for had. GATE, if not "-": a file whose lock it waits for before, having
# added a line to GATE.ready.
MEASURE = r"""
#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static long long now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static int append(const char *path) { return open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0666); }

int main(int argc, char **argv) {
    char line[128], ready[4096];
    int status = 0, record = append(argv[1]);
    if (argc < 5 || record < 0) return 125;
    if (strcmp(argv[2], "-")) {
        snprintf(ready, sizeof ready, "%s.ready", argv[2]);
        int gate = open(argv[2], O_RDONLY | O_CLOEXEC), out = append(ready);
        if (gate < 0 || write(out, "x\n", 2) != 2 || flock(gate, LOCK_SH)) return 125;
        close(gate);
        close(out);
    }
    long long began = now();
    pid_t pid = fork();
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        execv(argv[3], argv + 4);
        _exit(127);
    }
    struct rusage usage;
    if (pid < 0 || wait4(pid, &status, 0, &usage) != pid) return 125;
    int code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    int size = snprintf(line, sizeof line, "%lld %ld %d\n", now() - began, usage.ru_maxrss, code);
    return write(record, line, size) == size ? code : 125;
}
"""


def usual(long: bool, yes: bool) -> None:
    """A normal run has only some combinations."""
    if not (yes or long):
        pytest.skip("long: give --long")


@functools.cache
def measure() -> Path:
    """The program."""
    folder = session.new_dir("measure")
    (folder / "measure.c").write_text(MEASURE)
    subprocess.run(["gcc", "-O1", "-o", folder / "measure", folder / "measure.c"], check=True)
    return folder / "measure"


@functools.cache
def installed() -> Path:
    """bin/ of a tree that scripts/install laid down from this checkout."""
    prefix = session.new_dir("installed")
    command = [session.PYTHON, session.CHECKOUT / "scripts/install", "--prefix", prefix, "--python", session.PYTHON]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return prefix / "bin"


def measured(entry: Json, record: Path, gate: Path | None = None) -> Json:
    """A hook entry whose program is run by MEASURE."""
    words = [str(measure()), str(record), str(gate or "-"), entry["path"], *entry["args"]]
    return {**entry, "path": words[0], "args": words}


@dataclass
class Record:
    """What MEASURE took down of hooks: seconds, KiB, exit status of each."""

    path: Path

    def rows(self) -> list[tuple[float, int, int]]:
        found = [line.split() for line in self.path.read_text().splitlines()] if self.path.exists() else []
        return [(int(took) / 1e9, int(memory), int(code)) for took, memory, code in found]

    def memory(self) -> int:
        """KiB: the most."""
        return max((memory for _, memory, _ in self.rows()), default=0)

    def seconds(self, of: float) -> float:
        """`of`: 0.5 for the median, 0.99, 1.0."""
        return quantile([took for took, _, _ in self.rows()], of)


def quantile(values: Sequence[float], of: float) -> float:
    """The least value that `of` of them do not exceed."""
    return sorted(values)[max(-int(-len(values) * of // 1) - 1, 0)]


@dataclass
class Start:
    """See scaledriver.py. config: for make_bundle()."""

    root: Path
    script: str
    hooks: Mapping[str, Sequence[Json]] = field(default_factory=dict)
    expect: str | None = None
    ok: bool | None = True
    then: tuple[str, ...] = ()
    env: Sequence[str] = ()
    bundle: Path | None = None

    def document(self) -> Json:
        if self.bundle is None:
            self.bundle = session.new_dir("bundle")
            more: dict[str, Any] = {"env": self.env} if self.env else {}
            make_bundle(self.bundle, self.root, ["/bin/sh", "-c", self.script], self.hooks, **more)
        return {"bundle": str(self.bundle), "expect": self.expect, "ok": self.ok, "then": list(self.then)}


@dataclass
class Phase:
    """slots: starts that follow one another, beside those of the other slots. gate: where `ready` hooks wait for one
    another."""

    slots: Sequence[Sequence[Start]]
    gate: Path | None = None
    ready: int = 0

    def document(self) -> Json:
        gate = str(self.gate) if self.gate else ""
        slots = [[start.document() for start in slot] for slot in self.slots]
        return {"slots": slots, "gate": gate, "ready": self.ready, "deadline": 60}


@dataclass
class Ran:
    """bad: what was wrong. phases: seconds, ends: {wall, rc, stdout, stderr} of each start."""

    bad: list[str]
    phases: list[Json]

    def walls(self, phase: int) -> list[float]:
        return [end["wall"] for end in self.phases[phase]["ends"]]


def run(runtime: str, phases: Sequence[Phase], setup: str = "", timeout: float = 1800) -> Ran:
    """setup: for the jail."""
    folder = session.new_dir("scale")
    spec = {
        "runtime": shutil.which(runtime), "state": str(session.new_dir("run")), "scratch": str(folder),
        "report": str(folder / "report"), "phases": [phase.document() for phase in phases],
    }  # fmt: skip
    (folder / "spec").write_text(json.dumps(spec))
    before = host()
    cgroup = jail.cgroup_v1_only() if runtime == "crun" else ""
    try:
        command = [session.PYTHON, "-ISB", DRIVER, folder / "spec"]
        result = jail.run(command, setup=cgroup + setup, timeout=timeout, grace=5)
        left = [str(path) for path in runtimes.cgroups() if path.name != session.TOKEN]
    finally:
        runtimes.remove_cgroups()
    if result.rc != 0 or not (folder / "report").exists():
        return Ran([f"the driver ended with {result.rc}: {result.stderr[-3000:]}"], [])
    report = json.loads((folder / "report").read_text())
    found: list[str] = report["bad"] + report["left"] + [f"cgroup {path}" for path in left]
    found += [f"process left: {name}" for name in result.survivors] + [f"mount left: {m}" for m in result.mounts_added]
    found += [f"on the host: {each}" for each in sorted(host() ^ before)]
    for start in (start for phase in phases for slot in phase.slots for start in slot):
        shutil.rmtree(start.bundle or "", ignore_errors=True)
    return Ran(found, report["phases"])


def host() -> set[str]:
    """What no start may change: names and contents that a hook could get wrong."""
    found = set(proc.mountinfo())
    for folder in ("/etc", "/dev", "/run/nvoci", "/etc/ld.so.conf.d", "/usr/lib"):
        found |= {f"{folder}/{name}" for name in (os.listdir(folder) if os.path.isdir(folder) else [])}
    return found


def state_of(root: Path) -> dict[str, tuple[object, ...]]:
    """What runs that should come to the same must agree on."""
    return oracle.content_only(oracle.snapshot(root))


def differing(roots: Sequence[Path], reference: Path) -> list[str]:
    """Of each root from the reference, which one start after another has worked on; and its temporary files."""
    wanted = state_of(reference)
    found = []
    for root in roots:
        now = state_of(root)
        names = {name for name in {*wanted, *now} if wanted.get(name) != now.get(name)}
        found += [f"{root}/{name}: {wanted.get(name)} -> {now.get(name)}" for name in sorted(names)]
        found += [f"{root}/{name}: temporary left" for name in now if oracle.TEMPORARY in name]
    return found
