"""MIG capabilities: files, nodes, and the rules of who manages all of them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from unit.discover.nodetree import DEVICES, gpu, mig
from unit.prestart.chosentools import node
from unit.prestart.prestarttools import error

from nvoci.linux import procfs
from nvoci.prestart import management

MINORS = """config 1
monitor 2
gpu0/gi0/access 3
gpu0/gi0/ci0/access 4
gpu1/gi0/access 138
gpu1/gi13/ci7/access 272
gpu10/gi0/access 1353
gpu1x/gi0/access 9
gpu1/odd -7
gpu1/odd 99999999
gpu1/odd x
"""


@pytest.fixture
def proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """In the place of procfs."""
    (tmp_path / "driver/nvidia-caps").mkdir(parents=True)
    (tmp_path / "devices").write_text(DEVICES)
    (tmp_path / "driver/nvidia-caps/mig-minors").write_text(MINORS)
    fd = os.open(tmp_path, os.O_PATH | os.O_DIRECTORY)
    monkeypatch.setattr(procfs, "_handle", fd)
    yield tmp_path
    os.close(fd)


def test_the_files_of_a_device_go_by_its_gpu_s_minor() -> None:
    device = mig(0, gpu_instance=5, compute_instance=2)
    top = "driver/nvidia/capabilities/gpu3/mig/gi5"
    assert management.access_files(device, gpu(0, minor=3)) == [f"{top}/access", f"{top}/ci2/access"]
    assert "no minor number" in error(lambda: management.access_files(device, gpu(0, minor=None))).message


def test_the_major_is_that_of_character_devices(proc: Path) -> None:
    assert management.major() == 236
    for text in ("Character devices:\n195 nvidia\n\nBlock devices:\n236 nvidia-caps\n", "236 nvidia-caps-imex\n", ""):
        (proc / "devices").write_text(text)
        assert management.major() is None
    (proc / "devices").unlink()
    assert management.major() is None


def test_rules_for_every_instance_that_may_be(proc: Path) -> None:
    def rules(*indices: int) -> list[str]:
        return [str(rule) for rule in management.rules([gpu(i) for i in indices])]

    assert rules(1) == ["c 236:138 rw", "c 236:272 rw"]
    assert rules(0, 10) == ["c 236:3 rw", "c 236:4 rw", "c 236:1353 rw"]
    assert rules() == rules(7) == []
    (proc / "devices").write_text("")
    assert rules(1) == []


def test_a_node_for_each_file_unless_the_driver_has_none(proc: Path) -> None:
    device = mig(0)
    files = management.access_files(device, gpu(0))
    both = [node("mig", f"nvidia-caps/nvidia-cap{n}", 236, n, device.uuid) for n in (3, 4)]
    management.check_nodes(device, files, both)
    found = error(lambda: management.check_nodes(device, files, both[:1]))
    assert found.message == f"mount error: {device.uuid}: 1 of its 2 nodes in /dev/nvidia-caps"
    assert found.hint.endswith(f"/proc/{files[1]}")
    (proc / "devices").write_text("")
    management.check_nodes(device, files, [])


def test_what_cannot_be_read_is_an_error(proc: Path) -> None:
    (proc / "devices").unlink()
    (proc / "devices").mkdir()
    assert error(management.major).message == "read /proc/devices: EISDIR"
