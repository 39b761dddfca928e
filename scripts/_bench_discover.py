"""What scripts/bench measures of discovery: all of it on a simulated node with 8 GPUs, and an inventory that holds.

Needs gcc, for the node's NVML library.
"""

from __future__ import annotations

import importlib
import statistics
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

from _private import ToolError

GPUS = 8
SAMPLE = "a100"
LOOPS = 301
MOST_MS = 1.0

_HEAD = """
import posix, sys
tree, root, path, *watch = sys.argv[1:]
sys.path[:0] = [tree, tree + "/vendor"]
"""
_PLACE = """
from nvoci.discover import look
look.PROC, look.SYS = root + "/proc", root + "/sys"
place = look.Place(root)
"""
_SOURCES = """
from nvoci.discover import inventory
from nvoci.discover.fingerprint import Sources
sources = Sources(root, proc=root + "/proc", watch=watch)
"""
PROGRAMS = {
    "discover": _HEAD + _PLACE + f"""
with look.look(place) as seen:
    posix._exit(len(seen.found.gpus) != {GPUS} or bool(seen.found.problems))
""",
    "info": _HEAD + _PLACE + """
from nvoci.ctl.main import run
run(["info", "--json", "--driver-root", root])
""",
    "inventory": _HEAD + _SOURCES + f"""
posix._exit(inventory.use(sources, sys.exit, lambda found: len(found.gpus), path=path) != {GPUS})
""",
}  # fmt: skip
_MAKE = _HEAD + _PLACE + """
from nvoci.discover import fingerprint, inventory
from nvoci.discover.fingerprint import Sources
with look.look(place) as seen:
    sources = Sources(root, proc=root + "/proc", watch=place.sources().watch)
    inventory.store(inventory.Inventory(fingerprint.take(sources), seen.found), path)
print(*place.sources().watch, sep="\\n")
"""  # fmt: skip
_LOOP = _HEAD + _SOURCES + f"""
import time
times = []
for _ in range({LOOPS}):
    begin = time.perf_counter_ns()
    held = inventory.current(sources, path).inventory
    times.append(time.perf_counter_ns() - begin)
    assert held is not None
print(*times)
"""  # fmt: skip


class Node(NamedTuple):
    """A simulated node with an inventory: the arguments of every program."""

    python: str
    words: tuple[str, ...]

    def argv(self, program: str) -> list[str]:
        """The command line of a program."""
        return [self.python, "-ISB", "-c", program, *self.words]


def make_node(top: Path, python: str, tree: str) -> Node:
    """tree: the directory of an installed tree that has nvoci and vendor. Raises ToolError."""
    simnode: Any = importlib.import_module("lib.simnode")  # scripts/bench has put tests on the path
    try:
        root = simnode.build(simnode.load(simnode.sample(SAMPLE)), top / "node").root
    except simnode.BuildError as e:
        raise ToolError(str(e)) from None
    (root / "proc/sys/kernel/random").mkdir(parents=True)
    (root / "proc/sys/kernel/random/boot_id").write_text("bench\n")
    path = top / "inventory/inventory"
    node = Node(python, (tree, str(root), str(path)))
    return Node(python, (*node.words, *_output(node.argv(_MAKE)).split()))


def relation(node: Node) -> dict[str, Any]:
    """How long reading and checking takes in a process that has loaded all it needs, among what stands in relation."""
    ms = statistics.median(map(int, _output(node.argv(_LOOP)).split())) / 1e6
    what = "inventory, read and checked in process"
    return {"what": what, "stage": "ms", "ratio": ms, "target": MOST_MS, "met": ms <= MOST_MS}


def _output(argv: list[str]) -> str:
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, env={})
    if done.returncode or done.stderr:
        raise ToolError(f"look at a simulated node: {done.stderr.strip()[-300:]}")
    return done.stdout
