"""Small trees to be looked at, and simulated nodes that are built once for a session."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from lib import elfmaker, rootfs, session, simnode

from nvoci.discover import nvml
from nvoci.discover.found import Discovery, discover
from nvoci.discover.model import DeviceNode, Gpu, Mount, Problem
from nvoci.discover.node import Node, Options
from nvoci.discover.nvml import NvmlAnswer
from nvoci.discover.search import Search

X86 = "x86_64"
V = "550.163.01"
LIB = "/usr/lib/x86_64-linux-gnu"
UUID = "GPU-12345678-1234-1234-1234-12345678{:04x}"
needs_mknod = pytest.mark.skipif(os.geteuid() != 0, reason="device nodes can only be made by root")
needs_gcc = pytest.mark.skipif(
    shutil.which("gcc") is None or platform.machine() != X86,
    reason="the NVML of the samples is built by gcc for x86_64",
)


@contextmanager
def look(root: Path, dev_root: Path | None = None, **more: str) -> Iterator[Node]:
    """A node whose procfs and sysfs lie in the tree."""
    for each in ("proc", "sys"):
        (root / each).mkdir(exist_ok=True)
    words = {"machine": X86, "release": "6.1.0-test", "proc": str(root / "proc"), "sys": str(root / "sys"), **more}
    with Node.open(str(root), str(dev_root or ""), **words) as node:
        yield node


def library(root: Path, path: str, soname: str | None = None, machine: str = X86, bits: int | None = None) -> Path:
    """A shared object at `path` below the root."""
    return elfmaker.make_so(root / path.lstrip("/"), soname, ["libc.so.6"], machine, bits, mode=0o755)


def driver(root: Path, version: str = V, directory: str = LIB, machine: str = X86) -> Path:
    """The least a driver has: libcuda, NVML and PTX compiler, with their links."""
    for stem in ("libcuda", "libnvidia-ml", "libnvidia-ptxjitcompiler"):
        library(root, f"{directory}/{stem}.so.{version}", f"{stem}.so.1", machine)
        link(root, f"{directory}/{stem}.so.1", f"{stem}.so.{version}")
    return root


def link(root: Path, path: str, target: str) -> None:
    """A symbolic link, in place of whatever is there."""
    place = root / path.lstrip("/")
    place.parent.mkdir(parents=True, exist_ok=True)
    place.unlink(missing_ok=True)
    place.symlink_to(target)


def module(root: Path, version: str) -> None:
    """What procfs says of a loaded kernel module."""
    line = f"NVRM version: NVIDIA UNIX x86_64 Kernel Module  {version}  Tue Apr  8 12:41:17 UTC 2025\\n"
    rootfs.tree(root, f"file proc/driver/nvidia/version {line}")


def answer(gpus: tuple[Gpu, ...] = (), version: str = V, cuda: tuple[int, int] | None = (12, 4)) -> NvmlAnswer:
    """What NVML might have said."""
    return NvmlAnswer(driver_version=version, cuda_version=cuda, count=len(gpus), gpus=gpus)


def gpu(index: int = 0, **more: Any) -> Gpu:
    """One that answers."""
    known = {"minor": index, "pci_bus_id": f"0000:{index + 7:02x}:00.0", "name": "NVIDIA A100-SXM4-40GB", **more}
    return Gpu(index=index, uuid=UUID.format(index), **known)


def lines(problems: Search | Discovery | tuple[Problem, ...], root: Path | None = None) -> list[str]:
    """The lines of the problems, with paths below the root."""
    if isinstance(problems, Search):
        problems = tuple(problems.problems)
    elif isinstance(problems, Discovery):
        problems = problems.found.problems
    return [each.line().replace(str(root), "") if root else each.line() for each in problems]


def by_name(mounts: tuple[Mount, ...] | list[Mount]) -> dict[str, Mount]:
    """Container path -> mount."""
    return {each.container_path: each for each in mounts}


def paths(nodes: tuple[DeviceNode, ...] | list[DeviceNode], kind: str = "", owner: str | None = None) -> list[str]:
    """Container paths of nodes of a kind and owner."""
    return [n.container_path for n in nodes if kind in ("", n.kind) and owner in (None, n.owner)]


# -- simulated nodes --------------------------------------------------------------------------------------------------


@cache
def built(name: str) -> simnode.Built:
    """A simulated node, not to be changed."""
    return simnode.build(simnode.load(simnode.sample(name)), session.new_dir(f"node-{name}") / "root")


@cache
def asked(name: str) -> NvmlAnswer | None:
    """What its NVML says to the real question; None where it refuses, or there is none."""
    library_path = built(name).nvml
    try:
        return nvml.query(str(library_path)) if library_path else None
    except nvml.HookError:
        return None


@contextmanager
def discovery(name: str, options: Options | None = None, root: str = "", with_nvml: bool = True) -> Iterator[Discovery]:
    """A look at a simulated node. root: its driver root, below the node's."""
    top = built(name).root
    with Node.open(
        f"{top}{root}", str(top), proc=f"{top}/proc", sys=f"{top}/sys", machine=X86, release="6.1.0-test"
    ) as node:
        yield discover(node, asked(name) if with_nvml else None, options)


def copied(name: str, to: Path) -> Path:
    """A simulated node that may be changed."""
    subprocess.run(["cp", "-a", f"{built(name).root}/.", to], check=True)
    return to
