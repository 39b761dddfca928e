"""`nvoci cdi refresh` in the tests' own process, with a generator that only says what it was asked for."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from lib import proc
from unit.ctl.conftest import Invoke
from unit.ctl.ctktools import SPEC, Generator
from unit.discover.nodetree import Node

from nvoci.cdi.model import Device
from nvoci.ctl import cdi_files, cdi_refresh
from nvoci.discover import look
from nvoci.generate import specs

OURS = replace(SPEC, cdi_version="0.6.0", annotations={"nvoci.io/driver-version": "550.163.01"})
OTHER = replace(OURS, devices=(*OURS.devices, Device("1", OURS.devices[0].container_edits)))
TOLD = "nvidia.com/gpu, 1 devices, driver 550.163.01"


class Refresh:
    """A node, a file, and the command. naps: how long it has slept, each time."""

    def __init__(self, nvoci: Invoke, node: Node, sys: Path, path: Path) -> None:
        self.nvoci = nvoci
        self.node = node
        self.sys = sys
        self.path = path
        self.naps: list[float] = []
        self.after: dict[int, Callable[[], object]] = {}

    def run(self, *words: str | Path, output: str | Path | None = None) -> proc.Result:
        """On the node."""
        place = ("--driver-root", self.node.root, "--output", output or self.path)
        return self.nvoci("cdi", "refresh", *place, *words)

    def told(self, done: proc.Result) -> list[str]:
        """stdout, with FILE for the file's path."""
        assert done.rc == 0, done.stderr
        return done.stdout.replace(str(self.path), "FILE").splitlines()

    def identity(self) -> tuple[int, int]:
        """Of the file."""
        status = self.path.stat()
        return status.st_ino, status.st_mtime_ns

    def sleep(self, seconds: float) -> None:
        """In place of time.sleep: the time passes, and something may happen."""
        self.naps.append(seconds)
        self.after.pop(len(self.naps), lambda: None)()

    def monotonic(self) -> float:
        """The time that was slept."""
        return sum(self.naps)

    def unload(self) -> None:
        """The kernel module."""
        (self.node.proc / "driver/nvidia/version").rename(self.node.proc / "unloaded")

    def load(self) -> None:
        """It is there again."""
        (self.node.proc / "unloaded").rename(self.node.proc / "driver/nvidia/version")


@pytest.fixture
def refresh(
    nvoci: Invoke, generator: Generator, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Refresh:
    """Of a node with one GPU, on a machine with a GPU on the bus; the inventory is left alone."""
    node = Node(tmp_path, gpus=1)
    (node.root / "dev").mkdir()
    for i, name in enumerate(("nvidia0", "nvidiactl", "nvidia-uvm")):
        os.mknod(node.root / "dev" / name, 0o020666, os.makedev(195, i))
    device = tmp_path / "sys/bus/pci/devices/0000:07:00.0"
    device.mkdir(parents=True)
    (device / "vendor").write_text("0x10de\n")
    (device / "class").write_text("0x030200\n")
    monkeypatch.setattr(look, "PROC", str(node.proc))
    monkeypatch.setattr(look, "SYS", str(tmp_path / "sys"))
    monkeypatch.setattr(cdi_files, "inventory", lambda options: [])
    monkeypatch.setenv("XDG_CONFIG_HOME", "/nowhere")
    generator.specs = [specs.Named("", OURS)]
    made = Refresh(nvoci, node, tmp_path / "sys", tmp_path / "cdi/nvidia.yaml")
    monkeypatch.setattr(cdi_refresh.time, "sleep", made.sleep)
    monkeypatch.setattr(cdi_refresh.time, "monotonic", made.monotonic)
    return made
