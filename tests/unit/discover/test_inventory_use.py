"""The inventory's handles of files, which stay inside of the root they were found in, and what it costs to use one."""

from __future__ import annotations

import posix
import subprocess
from pathlib import Path

import pytest
from static.layering import HOT_IMPORTS
from unit.discover.nodetree import Node, found

from nvoci.discover import inventory
from nvoci.discover.inventory import Inventory, Stale

PYTHON = "/usr/bin/python3"
HOOKS = Path(__file__).resolve().parents[3] / "hooks"


def test_a_source_is_looked_up_inside_its_root(tmp_path: Path) -> None:
    root, outside = tmp_path / "driver", tmp_path / "outside"
    for top in (root, outside):
        (top / "lib").mkdir(parents=True)
        (top / "lib/libcuda.so").write_text(top.name)
    (root / "absolute").symlink_to("/lib/libcuda.so")
    (root / "up").symlink_to("../../outside/lib/libcuda.so")
    (root / "outside").symlink_to(outside)
    (root / "there").symlink_to(outside / "lib")
    for name in ("lib/libcuda.so", "absolute"):
        with inventory.open_source(f"{root}/{name}", f"{root}/") as fd:
            assert (fd.stat().st_dev, fd.stat().st_ino) == _identity(root / "lib/libcuda.so")
            assert posix.get_inheritable(fd.fileno()) is False
    (root / "up2").symlink_to("../../lib/libcuda.so")
    with inventory.open_source(f"{root}/up2", str(root)) as fd:
        assert (fd.stat().st_dev, fd.stat().st_ino) == _identity(root / "lib/libcuda.so")
    for name in ("up", "outside/lib/libcuda.so", "there/libcuda.so"):
        with pytest.raises(Stale, match=r"open .*: ENOENT"):
            inventory.open_source(f"{root}/{name}", str(root))
    for path in (f"{outside}/lib/libcuda.so", f"{root}2/x", str(root)):
        with pytest.raises(Stale, match="not below"):
            inventory.open_source(path, str(root))
    with pytest.raises(Stale, match="ENOENT"):
        inventory.open_source(f"{root}/none/lib", f"{root}/none")
    with inventory.open_source(f"{outside}/lib/libcuda.so", "/") as fd:
        assert (fd.stat().st_dev, fd.stat().st_ino) == _identity(outside / "lib/libcuda.so")


def _identity(path: Path) -> tuple[int, int]:
    st = path.stat()
    return st.st_dev, st.st_ino


# -- cost -------------------------------------------------------------------------------------------------------------

_COST = """
import sys, time
sys.path.insert(0, sys.argv[1])
from nvoci.discover import inventory
from nvoci.discover.fingerprint import Sources
sources = Sources(sys.argv[3], proc=sys.argv[4])
best = [9.0, 9.0]
for _ in range(100):
    t0 = time.perf_counter()
    loaded = inventory.current(sources, sys.argv[2])
    t1 = time.perf_counter()
    loaded.inventory.found
    t2 = time.perf_counter()
    best = [min(best[0], t1 - t0), min(best[1], t2 - t1)]
print(best[0] * 1000, best[1] * 1000, *sys.modules)
"""


def _cost(place: Path, instances: int) -> tuple[float, float, list[str]]:
    node = Node(place, gpus=8, instances=instances)
    path = place / "inventory"
    inventory.store(Inventory(inventory.fingerprint.take(node.sources()), found(8, 200)), str(path))
    argv = [PYTHON, "-IS", "-c", _COST, str(HOOKS), str(path), str(node.root), str(node.proc)]
    words = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60).stdout.split()
    return float(words[0]), float(words[1]), words[2:]


def test_reading_and_checking_takes_less_than_a_millisecond(tmp_path: Path) -> None:
    reading, building, modules = _cost(tmp_path, 0)
    assert reading < 1, "8 GPUs, 200 files"
    assert building < 2
    command = [PYTHON, "-ISc", "import sys; print(*sys.modules)"]
    floor = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert not {m for m in modules if m.split(".")[0] != "nvoci"} - {*HOT_IMPORTS, "_ctypes"} - set(floor)
    ours = {m for m in modules if m.startswith("nvoci.discover.")}
    assert ours == {f"nvoci.discover.{m}" for m in ("fingerprint", "inventory", "model", "record")}


def test_a_node_full_of_mig_devices_costs_a_little_more(tmp_path: Path) -> None:
    reading, _, _ = _cost(tmp_path, 7)
    assert reading < 3
