"""The prestart hook of scripts/bench: containers that ask a simulated node of 8 GPUs for some of them.

Every run has a fresh overlay on a small image, a procfs and a /dev as a runtime makes them, and a process in a
container's namespaces and in a device cgroup of its own. Needs gcc, for the node's NVML library.
Standard library only, Python >= 3.9.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from _bench_cases import DISCOVER_RSS_MIB, PRESTART, Case
from _bench_stage import Bundle, ContainerProcess, Workplace
from _private import ToolError

from nvoci.linux import abi, bpf
from nvoci.linux.syscalls import mount, umount2

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

STAGE = "prestart"
SAMPLE, GPUS = "a100", 8
INVENTORY = Path("/run/nvoci/inventory")
_V1, _V2 = Path("/sys/fs/cgroup/devices"), Path("/sys/fs/cgroup")
# What runc allows every container: specconv.AllowedDevices of its libcontainer.
_RUNC_RULES = (
    ("c", None, None, "m"), ("b", None, None, "m"), ("c", 1, 3, "rwm"), ("c", 1, 8, "rwm"), ("c", 1, 7, "rwm"),
    ("c", 5, 0, "rwm"), ("c", 1, 5, "rwm"), ("c", 1, 9, "rwm"), ("c", 136, None, "rwm"), ("c", 5, 2, "rwm"),
)  # fmt: skip
LIBRARY = f"usr/lib/{os.uname().machine}-linux-gnu/libcuda.so.550.163.01"


def _given(count: int) -> Callable[[Path], bool]:
    """Whether so many GPUs are there, and with any of them the driver."""

    def proof(root: Path) -> bool:
        found = [name for name in os.listdir(root / "dev") if name[6:].isdigit()]
        return len(found) == count and (root / LIBRARY).exists() is bool(count)

    return proof


def _case(
    name: str, what: str, devices: str, capabilities: str, target: float, count: int, *, cold: bool = False
) -> Case:
    """words: NVIDIA_VISIBLE_DEVICES, NVIDIA_DRIVER_CAPABILITIES, and whether there is no inventory."""
    words = (devices, capabilities, "cold" if cold else "")
    return Case(name, what, words, _given(count), target, PRESTART, rss_mib=DISCOVER_RSS_MIB)


CASES = (
    _case("prestart-none", "prestart, no GPU asked for", "", "", 1.5, 0),
    _case("prestart-one", "prestart, 1 GPU", "0", "", 2.4, 1),
    _case("prestart-eight", "prestart, 8 GPUs", "all", "", 2.8, GPUS),
    _case("prestart-all", "prestart, 8 GPUs, all of it", "all", "all", 3.6, GPUS),
    _case("prestart-cold", "prestart, 8 GPUs, no inventory", "all", "", 8.0, GPUS, cold=True),
)


class GpuNode:
    """The node, shown in place of this namespace's files from here on."""

    def __init__(self, top: Path, hook: Path, place: Workplace) -> None:
        self.top = top
        self.hook = hook.with_name("nvidia-container-runtime-hook")
        self.place = place
        simnode: Any = importlib.import_module("lib.simnode")
        # Not on a tmpfs: the driver's /proc is none either.
        self.files = Path(tempfile.mkdtemp(prefix="nvoci-bench-", dir="/var/tmp"))
        root = simnode.build(simnode.load(simnode.sample(SAMPLE)), self.files / "root").root
        importlib.import_module("lib.simnode.run").show(root, installed=True)
        self.image = importlib.import_module("lib.rootfs").glibc_rootfs(top / "prestart-image")

    def remove(self) -> None:
        """What is not on the tmpfs."""
        shutil.rmtree(self.files, ignore_errors=True)

    def argv(self) -> list[str]:
        """The hook."""
        return [str(self.hook), "prestart"]

    @contextmanager
    def bundle(self, case: Case) -> Iterator[Bundle]:
        """A container that asks for what the case says."""
        devices, capabilities, cold = case.words
        if cold:
            INVENTORY.unlink(missing_ok=True)
        bundle = self.top / "run"
        root = bundle / "rootfs"
        for name in ("rootfs", "upper", "work"):
            (bundle / name).mkdir(parents=True)
        layers = f"lowerdir={self.image},upperdir={bundle}/upper,workdir={bundle}/work"
        mount(b"overlay", os.fsencode(root), b"overlay", 0, layers.encode())
        mount(b"/proc", os.fsencode(root / "proc"), None, abi.MS_BIND | abi.MS_REC)
        mount(b"tmpfs", os.fsencode(root / "dev"), b"tmpfs", 0, b"mode=755")
        (bundle / "config.json").write_text(json.dumps(_config(devices, capabilities, root)))
        process = ContainerProcess()
        cgroup = _join_cgroup(process.pid)
        state = {"ociVersion": "1.0.2", "id": "bench", "status": "creating", "pid": process.pid, "bundle": str(bundle)}
        self.place.state.write_text(json.dumps(state))
        time.sleep(0.01)
        try:
            yield Bundle(root, Path(f"/proc/{process.pid}/root{root}"), self.place.state)
        finally:
            process.stop()
            _remove(cgroup)
            umount2(os.fsencode(root), abi.MNT_DETACH)
            shutil.rmtree(bundle)


def _config(devices: str, capabilities: str, root: Path) -> dict[str, Any]:
    asked = {"NVIDIA_VISIBLE_DEVICES": devices, "NVIDIA_DRIVER_CAPABILITIES": capabilities}
    env = ["PATH=/bin", *[f"{name}={value}" for name, value in asked.items() if value]]
    process = {"env": env, "args": ["sh"], "capabilities": {"bounding": ["CAP_CHOWN"]}}
    return {"ociVersion": "1.0.2", "process": process, "root": {"path": str(root)}}


def cgroup_version() -> str:
    """Of the containers' device cgroups: v1 where this host has it, v2 where it has nothing else."""
    if _V1.is_dir():
        return "v1"
    if (_V2 / "cgroup.controllers").exists():
        return "v2"
    raise ToolError(f"find device cgroups: neither `{_V1}` nor a cgroup2 at `{_V2}`")


def _join_cgroup(pid: int) -> Path:
    """A device cgroup: v1 forbids everything, v2 has the program that runc attaches when a container has no devices but
    its own."""
    is_v1 = cgroup_version() == "v1"
    found = (_V1 if is_v1 else _V2) / f"nvoci-bench-{os.getpid()}"
    found.mkdir()
    if is_v1:
        (found / "devices.deny").write_text("a *:* rwm")
    else:
        _attach(found)
    (found / "cgroup.procs").write_text(str(pid))
    return found


def _attach(cgroup: Path) -> None:
    """It goes with the cgroup."""
    devprogs: Any = importlib.import_module("lib.devprogs")
    rules = [devprogs.Rule(True, kind, major, minor, access) for kind, major, minor, access in _RUNC_RULES]
    program = bpf.prog_load(devprogs.runc(rules), b"bench")
    directory = os.open(cgroup, os.O_RDONLY)
    bpf.prog_attach(directory, program, bpf.F_ALLOW_MULTI)
    os.close(directory)
    os.close(program)


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
