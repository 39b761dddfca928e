"""CUDA compatibility libraries of an image: which are mounted, and that none leads out of it."""

from __future__ import annotations

from errno import EIO
from pathlib import Path
from typing import Any

import pytest
from lib import rootfs
from unit.prestart.prestarttools import error

from nvoci.linux.rootfs import Rootfs
from nvoci.prestart.compatlibs import is_of_another_branch, sources

DRIVER = "550.163.01"
BRANCHES = {
    "libcuda.so.575.57.08": True, "libcuda.so.530.1": True, "libcuda.so.550.54.14": False, "libcuda.so.1": True,
    "libcuda.so.5": False, "libcuda.so.55": False, "libcuda.so": False, "libcuda.so.x": False, "libcuda": False,
    "libnvidia-nvvm.so.4": True, "libcuda.so.575.so.550": True, "": False,
}  # fmt: skip


@pytest.mark.parametrize("name", BRANCHES)
def test_the_driver_s_own_branch_is_left_out(name: str) -> None:
    assert is_of_another_branch(name, DRIVER) is BRANCHES[name]


TREE = """
file usr/local/cuda-12.9/compat/libcuda.so.575.57.08 new
symlink usr/local/cuda cuda-12.9
symlink usr/local/cuda-12.9/compat/libcuda.so.1 libcuda.so.575.57.08
symlink usr/local/cuda-12.9/compat/libcuda.so libcuda.so.1
file usr/local/cuda-12.9/compat/libcuda.so.550.54.14 same
file usr/local/cuda-12.9/compat/libcuda.so.530.1 old
file usr/local/cuda-12.9/compat/libnvidia-nvvm70.so.4 unknown
file usr/local/cuda-12.9/compat/libnvidia-nvvm.so.575.57.08 nvvm
file usr/local/cuda-12.9/compat/libnvidia-encode.so.575.57.08 video
file usr/local/cuda-12.9/compat/other.so.575 x
fifo usr/local/cuda-12.9/compat/libcuda.so.576.1
dir usr/local/cuda-12.9/compat/libcuda.so.577.1
symlink usr/local/cuda-12.9/compat/libcuda.so.578.1 ../../../../../../../../../etc/passwd
symlink usr/local/cuda-12.9/compat/libcuda.so.579.1 libcuda.so.579.1
symlink usr/local/cuda-12.9/compat/libcuda.so.580.1 /elsewhere/libcuda.so.581.1
file elsewhere/libcuda.so.581.1 there
"""


def found(root: Path, *parts: str) -> dict[str, str]:
    """Name -> content."""
    out = {}
    for source in sources(Rootfs.open(str(root)), b"/usr/local/cuda/compat", frozenset(parts), DRIVER):
        path = Path(f"/proc/self/fd/{source.object.fileno()}")
        out[source.name.decode()] = path.read_text()
        source.close()
    return out


def test_libraries_of_wanted_groups_and_other_branches(tmp_path: Path) -> None:
    root = rootfs.tree(tmp_path / "rootfs", TREE)
    compute = {"libcuda.so.575.57.08": "new", "libcuda.so.530.1": "old", "libnvidia-nvvm.so.575.57.08": "nvvm",
               "libcuda.so.581.1": "there"}  # fmt: skip
    assert found(root, "compute") == compute
    assert found(root, "compute", "video") == {**compute, "libnvidia-encode.so.575.57.08": "video"}
    assert found(root, "utility") == {}


@pytest.mark.parametrize("spec", ["dir usr", "file usr/local/cuda x", "symlink usr/local/cuda cuda",
                                  "symlink usr/local/cuda /proc/self/root", "dir usr/local/cuda/compat"])  # fmt: skip
def test_an_image_without_any(tmp_path: Path, spec: str) -> None:
    assert found(rootfs.tree(tmp_path / "rootfs", spec), "compute") == {}


def test_an_image_that_cannot_be_looked_at_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A link that leads nowhere is none, however long it is."""
    root = rootfs.tree(tmp_path / "rootfs", f"symlink usr/local/cuda/compat/libcuda.so.581.1 {'x' * 300}")
    assert found(root, "compute") == {}
    real = Rootfs.lookup

    def fails(self: Rootfs, path: bytes, *flags: int) -> Any:
        if path.endswith(b".581.1"):
            raise OSError(EIO, "sick", path)
        return real(self, path, *flags)

    monkeypatch.setattr(Rootfs, "lookup", fails)
    refused = error(lambda: found(root, "compute"))
    assert refused.message == "look for compatibility libraries in /usr/local/cuda/compat: EIO"
