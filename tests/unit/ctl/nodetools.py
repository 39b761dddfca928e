"""Simulated nodes for the commands that look at one: their procfs and sysfs are the tree's."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from lib import proc, session, simnode
from unit.discover.looktools import built, needs_gcc, needs_mknod

from nvoci.discover import look

Invoke = Callable[..., proc.Result]

NEEDS = [needs_mknod, needs_gcc]


def copied(name: str, faults: dict[str, Any] | None = None) -> simnode.Built:
    """A node that may be changed; where uid 65534, as which NVML runs, can read it."""
    place = session.new_dir(f"node-{name}")
    subprocess.run(["cp", "-a", f"{built(name).root}/.", place], check=True)
    node = replace(built(name), root=place)
    node.set_faults(faults)
    return node


def at(node: simnode.Built | Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str | Path, ...]:
    """The options for a node, whose procfs and sysfs are looked at."""
    root = node if isinstance(node, Path) else node.root
    for name in ("PROC", "SYS"):
        place = root / name.lower()
        place.mkdir(exist_ok=True)
        monkeypatch.setattr(look, name, str(place))
    return ("--driver-root", root)
