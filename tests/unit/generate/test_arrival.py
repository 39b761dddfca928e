"""How far a driver has come, told without touching it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from unit.discover.looktools import needs_mknod
from unit.discover.nodetree import Node

from nvoci.discover import look
from nvoci.discover.look import Place
from nvoci.generate import arrival
from nvoci.generate.arrival import Arrival

pytestmark = needs_mknod

MAKE = "make them: nvidia-modprobe -u -c 0, or enable nvidia-persistenced"
GPU = "bus/pci/devices/0000:07:00.0"


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Node:
    """With two GPUs on the bus, and a whole driver."""
    made = Node(tmp_path)
    (made.root / "dev").mkdir()
    for i, name in enumerate(("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm")):
        os.mknod(made.root / "dev" / name, 0o020666, os.makedev(195, i))
    on_bus(tmp_path / "sys", "0x10de", "0x030200")
    monkeypatch.setattr(look, "PROC", str(made.proc))
    monkeypatch.setattr(look, "SYS", str(tmp_path / "sys"))
    return made


def on_bus(top: Path, vendor: str, kind: str) -> None:
    """A device there."""
    (top / GPU).mkdir(parents=True, exist_ok=True)
    (top / GPU / "vendor").write_text(f"{vendor}\n")
    (top / GPU / "class").write_text(f"{kind}\n")


def unlink(*names: str) -> Callable[[Node], None]:
    """What changes."""
    return lambda node: [(node.root / "dev" / name).unlink() for name in names] and None


def unload(node: Node) -> None:
    """The kernel module."""
    (node.proc / "driver/nvidia/version").unlink()


def no_gpus(node: Node) -> None:
    """Of the kernel module."""
    for each in (node.proc / "driver/nvidia/gpus").iterdir():
        (each / "information").unlink()
        each.rmdir()


CASES: dict[str, tuple[Callable[[Node], object], Arrival]] = {
    "all of it": (lambda node: None, Arrival()),
    "no module": (unload, Arrival("the kernel module nvidia is not loaded", "modprobe nvidia", True)),
    "no control node": (
        unlink("nvidiactl"),
        Arrival("ROOT/dev/nvidiactl is not there, though the kernel module is loaded", MAKE, True),
    ),
    "no GPU": (
        no_gpus,
        Arrival("the kernel module has no GPU", "see lspci -d 10de: and the kernel's log for NVRM", True),
    ),
    "no node of a GPU": (unlink("nvidia1"), Arrival("ROOT/dev/nvidia1 not there yet", MAKE)),
    "no nodes": (
        unlink("nvidia1", "nvidia0", "nvidia-uvm"),
        Arrival("ROOT/dev/nvidia0, ROOT/dev/nvidia1, ROOT/dev/nvidia-uvm not there yet", MAKE),
    ),
}


@pytest.mark.parametrize("mode", ["auto", "nvml", "management"])
@pytest.mark.parametrize("case", CASES)
def test_what_is_missing(node: Node, case: str, mode: str) -> None:
    change, expected = CASES[case]
    change(node)
    found = arrival.look(Place(str(node.root)), mode)
    assert Arrival(found.missing.replace(str(node.root), "ROOT"), *_rest(found)) == expected


def _rest(found: Arrival) -> tuple[str, bool, bool]:
    return found.hint, found.is_absent, found.may_come


def test_a_dev_root_of_its_own(node: Node, tmp_path: Path) -> None:
    (tmp_path / "driver/etc").mkdir(parents=True)
    assert arrival.look(Place(str(tmp_path / "driver"), str(node.root)), "auto") == Arrival()
    assert arrival.look(Place(str(tmp_path / "driver")), "auto").is_absent


def test_a_driver_root_that_is_not_there(node: Node, tmp_path: Path) -> None:
    found = arrival.look(Place(str(tmp_path / "nowhere"), str(node.root)), "auto")
    assert found.missing == f"the driver root {tmp_path}/nowhere is not there"
    assert _rest(found) == ("is the driver's container running?", True, True)


BUS = {
    "a GPU": ("0x10de", "0x030000", True),
    "a GPU without a display": ("0x10de", "0x030200", True),
    "its audio": ("0x10de", "0x040300", False),
    "a GPU of another": ("0x1002", "0x030000", False),
    "nothing legible": ("\xff", "", False),
}


@pytest.mark.parametrize("case", BUS)
def test_whether_there_is_anything_to_wait_for(node: Node, tmp_path: Path, case: str) -> None:
    vendor, kind, expected = BUS[case]
    on_bus(tmp_path / "sys", vendor, kind)
    unload(node)
    assert arrival.look(Place(str(node.root)), "auto").may_come is expected
    assert arrival.has_gpu() is expected


def test_a_machine_without_a_bus_has_no_gpu(node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(look, "SYS", str(tmp_path / "nowhere"))
    assert not arrival.has_gpu()


@pytest.mark.parametrize("mode", ["csv", "wsl", "imex", "gds"])
def test_other_modes_do_not_wait(node: Node, mode: str) -> None:
    unload(node)
    assert arrival.look(Place(str(node.root)), mode) == Arrival()


@pytest.mark.parametrize("name", ["etc/nv_tegra_release", "dev/dxg"])
def test_other_kinds_of_node_do_not_wait(node: Node, name: str) -> None:
    unload(node)
    (node.root / name).touch()
    assert arrival.look(Place(str(node.root)), "auto") == Arrival()
