#!/usr/bin/python3 -IS
"""Measure the prestart hook on a simulated node of 8 GPUs, against the start of the interpreter it runs on.

    scripts/_bench_prestart.py [--runs N] [--case NAME]...

Every run has a fresh overlay on a small image, a procfs and a /dev as a runtime makes them, and a process in a
container's namespaces and in a device cgroup of its own. All cases and the floor are shuffled. Each case is run once
before, and must then have done its work. Needs gcc, for the node's NVML library, and cgroup v1 or v2.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import shutil
import statistics
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

CHECKOUT = Path(__file__).resolve().parent.parent
# -I leaves the script's own directory out of sys.path.
sys.path[:0] = [str(CHECKOUT / "scripts"), str(CHECKOUT / "hooks"), str(CHECKOUT / "tests")]
sys.dont_write_bytecode = True

from _bench_stage import Workplace, _Container  # noqa: E402
from _private import WITHIN, ToolError, enter, install, require_root, run_again, set_up_venv  # noqa: E402

from nvoci.linux import abi  # noqa: E402
from nvoci.linux.syscalls import mount, umount2  # noqa: E402

SAMPLE, GPUS, RUNS = "a100", 8, 25
INVENTORY = Path("/run/nvoci/inventory")
LIBRARY = f"usr/lib/{os.uname().machine}-linux-gnu/libcuda.so.550.163.01"


class Case(NamedTuple):
    """devices, capabilities: what the container asks for, "" for nothing. target: ratio to be reached; cold: without an
    inventory."""

    name: str
    what: str
    devices: str
    capabilities: str
    target: float
    cold: bool = False

    def nodes(self) -> int:
        """GPUs that it gets."""
        return 0 if not self.devices else GPUS if self.devices == "all" else len(self.devices.split(","))


CASES = (
    Case("none", "no GPU asked for", "", "", 1.5),
    Case("one", "1 GPU, compute and utility", "0", "", 2.4),
    Case("eight", "8 GPUs, compute and utility", "all", "", 2.8),
    Case("everything", "8 GPUs, all capabilities", "all", "all", 3.6),
    Case("cold", "8 GPUs, without an inventory", "all", "", 8.0, cold=True),
)  # fmt: skip


class Bench:
    """The installed tree, the node, and the samples by case; the floor is ""."""

    def __init__(self, top: Path, python: str) -> None:
        self.top = top
        self.python = os.path.realpath(python)
        self.hook = install(top / "prefix", python).with_name("nvidia-container-runtime-hook")
        simnode: Any = importlib.import_module("lib.simnode")
        # Not on a tmpfs: the driver's /proc is none either.
        self.node = Path(tempfile.mkdtemp(prefix="nvoci-bench-", dir="/var/tmp"))
        root = simnode.build(simnode.load(simnode.sample(SAMPLE)), self.node / "root").root
        self.place = Workplace(top)
        importlib.import_module("lib.simnode.run").show(root, installed=True)
        self.image = importlib.import_module("lib.rootfs").glibc_rootfs(top / "image")
        self.samples: dict[str, list[float]] = {}

    def run(self, case: Case | None, *, keep: bool) -> None:
        """One run. Raises ToolError where it did not do its work."""
        if case is None:
            time.sleep(0.01)
            run = self.place.spawn([self.python, "-I", "-S", "-c", "pass"])
        else:
            if case.cold:
                INVENTORY.unlink(missing_ok=True)
            with self.container(case) as seen:
                run = self.place.spawn([str(self.hook), "prestart"])
                if not run.complaint:
                    found = len([name for name in os.listdir(seen / "dev") if name[6:].isdigit()])
                    if found != case.nodes() or (seen / LIBRARY).exists() is not bool(found):
                        raise ToolError(f"case {case.name}: it did not do its work")
        if run.complaint:
            raise ToolError(f"case {case.name if case else 'floor'}: {run.complaint}")
        if keep:
            self.samples.setdefault(case.name if case else "", []).append(run.ms)

    @contextmanager
    def container(self, case: Case) -> Iterator[Path]:
        """A container that asks for what the case says; yields its root as it sees it."""
        bundle = self.top / "run"
        root = bundle / "rootfs"
        for name in ("rootfs", "upper", "work"):
            (bundle / name).mkdir(parents=True)
        layers = f"lowerdir={self.image},upperdir={bundle}/upper,workdir={bundle}/work"
        mount(b"overlay", os.fsencode(root), b"overlay", 0, layers.encode())
        mount(b"/proc", os.fsencode(root / "proc"), None, abi.MS_BIND | abi.MS_REC)
        mount(b"tmpfs", os.fsencode(root / "dev"), b"tmpfs", 0, b"mode=755")
        (bundle / "config.json").write_text(json.dumps(_config(case, root)))
        process = _Container()
        cgroup = _join_cgroup(process.pid)
        state = {"ociVersion": "1.0.2", "id": "bench", "status": "creating", "pid": process.pid, "bundle": str(bundle)}
        self.place.state.write_text(json.dumps(state))
        time.sleep(0.01)
        try:
            yield Path(f"/proc/{process.pid}/root{root}")
        finally:
            process.stop()
            _remove(cgroup)
            umount2(os.fsencode(root), abi.MNT_DETACH)
            shutil.rmtree(bundle)

    def measure(self, cases: list[Case], runs: int) -> None:
        """All of them, shuffled; a case without an inventory makes one for the others."""
        for case in cases:
            self.run(case, keep=False)
        for _ in range(runs):
            turn: list[Case | None] = [*cases, None, None]
            random.shuffle(turn)
            for each in turn:
                self.run(each, keep=True)

    def report(self, cases: list[Case]) -> Iterator[str]:
        """A line for the floor and for each case."""
        floor = self.samples[""]
        yield f"{'what':32} {'median':>7} {'min':>7} {'x':>5} {'x min':>5} {'reach':>5}"
        for name, what, target in [("", "python -I -S -c pass", 0.0), *[(c.name, c.what, c.target) for c in cases]]:
            times = self.samples[name]
            ratio, least = statistics.median(times) / statistics.median(floor), min(times) / min(floor)
            verdict = f"{target:5.1f} {'met' if ratio <= target else 'missed'}" if target else ""
            yield f"{what:32} {statistics.median(times):7.2f} {min(times):7.2f} {ratio:5.2f} {least:5.2f} {verdict}"


def _config(case: Case, root: Path) -> dict[str, Any]:
    asked = {"NVIDIA_VISIBLE_DEVICES": case.devices, "NVIDIA_DRIVER_CAPABILITIES": case.capabilities}
    env = ["PATH=/bin", *[f"{name}={value}" for name, value in asked.items() if value]]
    process = {"env": env, "args": ["sh"], "capabilities": {"bounding": ["CAP_CHOWN"]}}
    return {"ociVersion": "1.0.2", "process": process, "root": {"path": str(root)}}


def _join_cgroup(pid: int) -> Path:
    """A device cgroup that forbids everything, where this host has cgroup v1; else one without a program."""
    top = Path("/sys/fs/cgroup/devices")
    found = (top if top.is_dir() else top.parent) / f"nvoci-bench-{os.getpid()}"
    found.mkdir()
    if top.is_dir():
        (found / "devices.deny").write_text("a *:* rwm")
    (found / "cgroup.procs").write_text(str(pid))
    return found


def _remove(cgroup: Path) -> None:
    """Its processes are dead, and it takes the kernel a moment to see that."""
    for _ in range(200):
        try:
            cgroup.rmdir()
        except OSError:
            time.sleep(0.005)
        else:
            return
    raise ToolError(f"remove `{cgroup}`: EBUSY (a process is left in it)")


def parse(words: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="scripts/_bench_prestart.py", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--runs", type=int, default=RUNS, metavar="N", help=f"runs of each case [{RUNS}]")
    parser.add_argument("--case", action="append", choices=[case.name for case in CASES], help="only this one")
    parser.add_argument("--python", default="/usr/bin/python3", metavar="PATH", help="the hooks' interpreter")
    parser.add_argument(WITHIN, metavar="DIR", help=argparse.SUPPRESS)
    return parser.parse_args(words)


def within(options: argparse.Namespace) -> int:
    """In the private mount namespace."""
    bench = Bench(enter(options.within), options.python)
    try:
        cases = [case for case in CASES if not options.case or case.name in options.case]
        bench.measure(cases, options.runs)
        print("\n".join(bench.report(cases)))
    finally:
        shutil.rmtree(bench.node, ignore_errors=True)
    return 0


def main() -> int:
    """Exit status: 0 measured, 1 something failed, 2 usage."""
    words = sys.argv[1:]
    options = parse(words)
    try:
        if options.within:
            return within(options)
        require_root("bench")
        set_up_venv()
        return run_again(Path(__file__).name, words)
    except ToolError as error:
        print(f"bench: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        return 130
    return 1


if __name__ == "__main__":
    sys.exit(main())
