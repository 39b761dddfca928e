"""The second part of scripts/demo: the same by the Container Device Interface, with no mount, device or hook by hand.

`nvoci cdi generate` describes the node, `nvoci cdi inject` puts a GPU of it into a container's config.json by its
name, and runc starts it. The node is this machine if it has a driver, else a simulated one with 8 GPUs whose NVML
library answers.
"""

from __future__ import annotations

import importlib
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import _demo_container as container
from _demo_node import LIBDIR, MACHINE, NODES, Node
from _private import CHECKOUT, ToolError

SAMPLE = "a100"
HOOKS = "hook processes"
_LINKED = ("/bin/", "/lib/", "/lib64/", "/sbin/")  # links of the image, to the same in /usr


class Spec(NamedTuple):
    """A specification on disk, what it was made with, the first device in it, and what a container with that is
    promised: device nodes and the driver's files by their paths there. hook_words: arguments of its hooks. started: a
    file with a line for each hook process that there was."""

    directory: Path
    command: list[str]
    device: str
    nodes: list[str]
    mounts: list[str]
    hook_words: list[str]
    started: Path

    def inject_command(self, config: str) -> list[str]:
        """That puts the device into a config.json."""
        return ["nvoci", "cdi", "inject", "--in-place", "--spec-dir", str(self.directory), config, self.device]

    def gpu_mask(self) -> int:
        """A bit for the minor of each GPU."""
        return sum(1 << int(found[1]) for path in self.nodes if (found := re.fullmatch(r"/dev/nvidia(\d+)", path)))

    def links_are_usual(self) -> bool:
        """Whether the driver's libraries are where Debian has them, and GBM's among them."""
        return f"../libnvidia-allocator.so.1::{container.IMAGE_LINK}/nvidia-drm_gbm.so" in self.hook_words


def node_with_nvml(place: Path, node: Node) -> Node | None:
    """`node` if it is this machine, else a simulated one; with what the claims about it are made of. None where the
    simulated one's NVML library cannot be loaded."""
    if node.real:
        return node._replace(smi=None, socket=None, firmware=[])
    return simulated(place, SAMPLE)


def simulated(place: Path, sample: str) -> Node | None:
    """A node of lib.simnode; None where its NVML library cannot be loaded."""
    if MACHINE != "x86_64":
        return None
    simnode: Any = importlib.import_module("lib.simnode")
    try:
        root = simnode.build(simnode.load(simnode.sample(sample)), place).root
    except simnode.BuildError as e:
        raise ToolError(str(e)) from None
    (cuda,) = (root / LIBDIR[1:]).glob("libcuda.so.[0-9]*.[0-9]*")
    version = cuda.name.partition(".so.")[2]
    return Node(
        real=False,
        version=version,
        libraries=sorted((root / LIBDIR[1:]).glob(f"lib*.so.{version}")),
        firmware=[],
        nodes=sorted(path for path in (root / "dev").iterdir() if NODES.fullmatch(path.name)),
        socket=None,
        smi=None,
        proc=root / "proc/driver",
        params=root / "proc/driver/nvidia/params",
    )


def generate(place: Path, program: Path, node: Node) -> Spec:
    """By `nvoci cdi generate`, for hooks that are counted."""
    place.mkdir()
    started, hook = place / "started", place / program.name
    started.touch()
    hook.write_text(f'#!/bin/sh\necho >>{shlex.quote(str(started))}\nexec {shlex.quote(str(program))} "$@"\n')
    hook.chmod(0o755)
    file = place / "cdi/nvidia.json"
    command = ["nvoci", "cdi", "generate", "--output", str(file)]
    inside: list[str] = []
    if node.proc:  # its /proc, /sys and /dev are seen there, and its other files lie where they are
        root = str(node.proc.parent.parent)
        command += ["--driver-root", root]
        inside = [sys.executable, "-IS", str(CHECKOUT / "scripts/simnode"), "run", root, "--"]
    nvoci = str(program.with_name("nvoci"))
    _do([*inside, nvoci, *command[1:], "--nvidia-cdi-hook-path", str(hook)])
    document = json.loads(file.read_text())
    first = document["devices"][0]
    edits = [document["containerEdits"], first["containerEdits"]]
    nodes = [each["path"] for found in edits for each in found.get("deviceNodes", ())]
    mounts = [each["containerPath"] for found in edits for each in found.get("mounts", ())]
    words = [word for found in edits for each in found.get("hooks", ()) for word in each["args"]]
    return Spec(file.parent, command, f"{document['kind']}={first['name']}", nodes, mounts, words, started)


def _do(command: list[str]) -> None:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ToolError(f"run `{' '.join(command)}`: {done.stderr.strip()[-600:]}")


def run(place: Path, program: Path, image: Path, node: Node, spec: Spec, *, is_given: bool) -> dict[str, str]:
    """Start a container with nothing of the driver, or with the device; what it says, by key, and how many hook
    processes it took."""
    before = len(spec.started.read_text().splitlines())

    def edit(config: Path) -> None:
        if is_given:
            _do([str(program.with_name("nvoci")), *spec.inject_command(str(config))[1:]])

    said = container.run(place, image, node, [], edit)
    targets = {f"/usr{path}" if path.startswith(_LINKED) else path for path in spec.mounts}
    return {
        **said,
        "nodes": str(sum(key.startswith("node:") and value != "-" for key, value in said.items())),
        "mounts": str(len(targets.intersection(said["mounts"].split()))),
        HOOKS: str(len(spec.started.read_text().splitlines()) - before),
    }
