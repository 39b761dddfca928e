"""The fourth part of scripts/demo: `docker run --gpus`, by a Docker daemon in namespaces of its own.

The daemon finds the prestart hook in its PATH and calls it for containers that ask for GPUs. It has its own socket,
files and /run; nothing of a daemon that the machine has is used.
"""

from __future__ import annotations

import importlib
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import _demo_container as container
import _demo_prestart as prestart
from _private import ToolError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from _demo_node import Node


class Engine(NamedTuple):
    """A running daemon (lib.docker's) that has the image; what the claims call it."""

    daemon: Any
    image: str
    version: str


def ask(node: Node, asked: prestart.Asked) -> prestart.Asked:
    """The MIG device, if `asked`, of runc's part, is for one; else two GPUs, or the one that there is."""
    return asked if asked.access is not None else prestart.ask_gpus(node, *range(min(2, len(node.gpus()))))


def words(asked: prestart.Asked) -> list[str]:
    """Of `docker run`. Docker reads the value as CSV: the quotes are part of it."""
    return ["--gpus", f'"device={asked.devices}"']


@contextmanager
def start(place: Path, program: Path, image: Path, node: Node) -> Iterator[Engine]:
    """The daemon, while the `with` lasts, on a host that is `node`. program: of the installed tree."""
    docker = importlib.import_module("lib.docker")
    place.mkdir()
    more = {"node": docker.node_runtime(node.proc)} if node.proc else {}
    try:
        with docker.Docker(path=[program.parent], setup=prestart.host(place, node), add_runtimes=more) as daemon:
            found = daemon.call("version", "--format={{.Server.Version}}").stdout.strip()
            yield Engine(daemon, daemon.load(image), found)
    except docker.DockerError as e:
        lines = str(e).splitlines()  # the end of the daemon's log among them
        raise ToolError(" … ".join(dict.fromkeys((lines[0], lines[-1])))[:600]) from None


def run(engine: Engine, node: Node, asked: prestart.Asked, *, is_asked: bool) -> dict[str, str]:
    """Start a container that asks, or one that does not; what it says, by key."""
    options = words(asked) if is_asked else []
    done = engine.daemon.run(
        [*options, engine.image, "/bin/sh", "-c", prestart.script(node, asked)], timeout=prestart.TIMEOUT
    )
    said = container.said(done, "Docker")
    return prestart.digest(node, {**said, "left": ", ".join(engine.daemon.leftovers()) or "nothing"})
