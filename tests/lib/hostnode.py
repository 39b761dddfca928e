"""A simulated node as the host of containers: a set-up line that shows it, and what its driver does to each procfs."""

from __future__ import annotations

import shlex
from pathlib import Path

from lib import session
from lib.bundle import Json, shell_hook

_SHOW = """
import sys
sys.dont_write_bytecode = True
sys.path[:0] = sys.argv[1:3]
from pathlib import Path
from lib.simnode import run
run.show(Path(sys.argv[3]), installed=True)
"""


def show(root: Path) -> str:
    """Set-up: the node that was built at `root` takes the place of this mount namespace's own files."""
    words = [session.PYTHON, "-IS", "-c", _SHOW, session.CHECKOUT / "tests", session.HOOKS, root]
    return f"{shlex.join(map(str, words))}\n"


def driver_hook(driver: Path, root: str | Path) -> Json:
    """What a driver's kernel module adds to every procfs: mounted in the container by a hook before ours. driver: a
    directory such as the node's proc/driver; root: the container's."""
    there = shlex.quote(f"{root}/proc/driver")
    copy = f"mount -t tmpfs -o mode=555 driver {there} && cp -r {shlex.quote(str(driver))}/. {there}"
    pid = """pid=$(tr -d '\\n' | sed 's/.*"pid": *\\([0-9]*\\).*/\\1/')"""
    return shell_hook(f'{pid}; exec nsenter --target "$pid" --mount /bin/sh -ec {shlex.quote(copy)}')
