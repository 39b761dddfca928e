"""Windows Subsystem for Linux: the store of drivers that Windows shows."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from lib.rootfs import tree
from unit.discover.looktools import by_name, lines, look, needs_mknod, paths

from nvoci.discover.found import Discovery, discover
from nvoci.discover.node import Options

STORE = "/usr/lib/wsl/drivers/nv_dispi.inf_amd64_{}"
REQUIRED = (
    "libcuda.so.1.1",
    "libcuda_loader.so",
    "libnvidia-ptxjitcompiler.so.1",
    "libnvidia-ml.so.1",
    "libnvidia-ml_loader.so",
    "libnvdxgdmal.so.1",
    "nvcubins.bin",
    "nvidia-smi",
)


def store(root: Path, which: str, *more: str, text: str = "x") -> str:
    top = STORE.format(which)
    tree(root, "\n".join(f"exec {top}/{name} {text}" for name in (*REQUIRED, *more)))
    return top


def find(root: Path) -> Discovery:
    tree(root, "file usr/lib/wsl/lib/libdxcore.so x")
    with look(root) as node:
        return discover(node, None, Options("wsl"))


@needs_mknod
def test_all_of_the_store_that_linux_uses_is_mounted(tmp_path: Path) -> None:
    tree(tmp_path, "char dev/dxg 10 125")
    top = store(tmp_path, "1", "libnvwgf2umx.so", "nvdlppx.dll", "extra.bin", "nvlddmkm.sys", "nv-vk64.json")
    found = find(tmp_path)
    mounts = by_name(found.found.mounts)
    expected = [f"{top}/{name}" for name in (*REQUIRED, "extra.bin", "libnvwgf2umx.so", "nvdlppx.dll")]
    assert list(mounts) == [*expected, "/usr/lib/wsl/lib/libdxcore.so"]
    assert mounts[f"{top}/nvidia-smi"].links == ((f"{top}/nvidia-smi", "/usr/bin/nvidia-smi"),)
    assert mounts[f"{top}/nvidia-smi"].kind == "binary"
    assert [n.owner for n in found.found.device_nodes] == [""]
    assert paths(found.found.device_nodes, "wsl") == ["/dev/dxg"]
    (hook,) = found.found.hooks
    assert (hook.name, hook.args) == ("update-ldcache", ("--folder", top, "--folder", "/usr/lib/wsl/lib"))
    assert lines(found) == []


def test_of_two_drivers_the_one_in_use_is_taken(tmp_path: Path) -> None:
    old, new = store(tmp_path, "z-old"), store(tmp_path, "a-new", text="newer")
    tree(tmp_path, "file usr/lib/wsl/lib/libcuda.so.1.1 newer")
    stat = os.stat(tmp_path / f"{new[1:]}/libcuda.so.1.1")
    os.utime(tmp_path / "usr/lib/wsl/lib/libcuda.so.1.1", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    found = find(tmp_path)
    places = list(by_name(found.found.mounts))
    assert f"{new}/nvidia-smi" in places
    assert f"{old}/nvidia-smi" not in places
    assert not any("drivers" in each and "taken" in each for each in lines(found))


def test_where_it_can_not_be_told_a_line_says_which(tmp_path: Path) -> None:
    store(tmp_path, "1")
    second = store(tmp_path, "2")
    found = find(tmp_path)
    assert f"{second}/nvidia-smi" in by_name(found.found.mounts)
    assert any(f"2 drivers, {second}/libcuda.so.1.1 is taken" in each for each in lines(found))


@pytest.mark.parametrize("name", REQUIRED[1:])
def test_a_missing_part_is_one_line(tmp_path: Path, name: str) -> None:
    top = store(tmp_path, "1")
    (tmp_path / top[1:] / name).unlink()
    found = find(tmp_path)
    told = [each for each in lines(found, tmp_path) if "/dev/dxg" not in each]
    assert told == [
        f"find in the driver store {top}/{name}: not there (update the NVIDIA driver of Windows, then `wsl --shutdown`)"
    ]


def test_no_store_and_no_device_are_a_line_each(tmp_path: Path) -> None:
    tree(tmp_path, "dir usr/lib/wsl/drivers/other")
    device, none = lines(find(tmp_path), tmp_path)
    assert device.startswith("use device /dev/dxg: ENOENT (")
    assert none.startswith("find the driver store /usr/lib/wsl/drivers: no directory with libcuda.so.1.1 (")
