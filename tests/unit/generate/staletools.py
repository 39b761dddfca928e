"""A small node on disk, a specification of it, and what was seen of it."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from nvoci.cdi.model import ContainerEdits, Device, DeviceNode, Hook, Mount, Spec
from nvoci.generate.findings import Finding
from nvoci.generate.now import Now, Part

V = "550.163.01"
UUID = "GPU-12345678-1234-1234-1234-12345678000{}"
NODES = {"nvidia0": (195, 0), "nvidia1": (195, 1), "nvidiactl": (195, 255), "nvidia-uvm": (510, 0)}
FILES = (f"lib/libcuda.so.{V}", "bin/nvidia-smi", "run/socket")


class Host:
    """Device nodes and files below a directory."""

    def __init__(self, top: Path) -> None:
        self.top = top
        (top / "dev").mkdir()
        for name, (major, minor) in NODES.items():
            self.node(name, major, minor)
        for name in FILES:
            path = top / name
            path.parent.mkdir(exist_ok=True)
            path.touch()

    def node(self, name: str, major: int, minor: int, mode: int = 0o666) -> None:
        """Made, in place of any other."""
        path = self.top / "dev" / name
        path.unlink(missing_ok=True)
        path.parent.mkdir(exist_ok=True)
        os.mknod(path, 0o020000 | mode, os.makedev(major, minor))
        path.chmod(mode)

    def path(self, name: str) -> str:
        """On the host."""
        return f"{self.top}/dev/{name}"

    def edits(self, *names: str, **more: Any) -> ContainerEdits:
        """With these device nodes."""
        return ContainerEdits(device_nodes=tuple([self.cdi_node(name) for name in names]), **more)

    def cdi_node(self, name: str, **more: Any) -> DeviceNode:
        """As a specification has it."""
        major, minor = NODES.get(name, (236, 1))
        fields = {"major": major, "minor": minor, "file_mode": 0o666, "permissions": "rwm", **more}
        return DeviceNode(f"/dev/{name}", self.path(name), **fields)

    def spec(self, **changes: Any) -> Spec:
        """Of two GPUs, fresh."""
        mounts = tuple([Mount(f"{self.top}/{name}", f"/{name}", ("ro", "rbind")) for name in FILES])
        hooks = (Hook("createContainer", "/bin/true", ("true", "noop"), ("A=1",)),)
        annotations = {
            "nvoci.io/driver-version": V, "nvoci.io/device-majors": "nvidia=195,nvidia-uvm=510",
        }  # fmt: skip
        devices = [Device(name, self.edits(f"nvidia{i}")) for i in (0, 1) for name in (str(i), UUID.format(i))]
        devices.append(Device("all", self.edits("nvidia0", "nvidia1")))
        common = self.edits("nvidiactl", "nvidia-uvm", mounts=mounts, hooks=hooks)
        return replace(Spec("0.6.0", "nvidia.com/gpu", tuple(devices), common, annotations), **changes)

    def part(self, index: int, *more: str) -> Part:
        """A GPU. more: its nodes that it could do without."""
        own = frozenset([self.path(f"nvidia{index}")])
        names = (str(index), f"gpu{index}", UUID.format(index))
        return Part(f"GPU {index} ({names[-1]})", names, own, own | {self.path(each) for each in more})

    def now(self, **changes: Any) -> Now:
        """As the specification has it."""
        known = {
            "root": str(self.top), "dev_root": str(self.top), "version": V, "module": V,
            "majors": {"nvidia": 195, "nvidia-uvm": 510}, "parts": (self.part(0), self.part(1)),
            "minors": {self.path("nvidia0"): False, self.path("nvidia1"): False},
        }  # fmt: skip
        return Now(**{**known, **changes})

    def silent(self, **changes: Any) -> Now:
        """Where NVML was not asked."""
        return self.now(**{"parts": None, "silence": "NVML was not asked", **changes})

    def lines(self, findings: list[Finding]) -> list[str]:
        """With paths below the host's."""
        return [each.line().replace(str(self.top), "HOST") for each in findings]
