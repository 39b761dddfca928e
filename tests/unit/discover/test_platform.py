"""What kind of node it is."""

from __future__ import annotations

from pathlib import Path

import pytest
from lib.rootfs import tree
from unit.discover.looktools import answer, driver, gpu, library, look

from nvoci.discover.libraries import Libraries
from nvoci.discover.model import Gpu
from nvoci.discover.node import Options
from nvoci.discover.platform import Platform, platform
from nvoci.discover.search import Search


def kind(root: Path, gpus: tuple[Gpu, ...] | None = None, mode: str = "auto") -> Platform:
    with look(root) as node:
        search = Search()
        said = answer(gpus) if gpus is not None else None
        return platform(node, search, Libraries(node, search), said, Options(mode))


RELEASE = "file etc/nv_tegra_release # R36\\n"
FAMILY = "file sys/devices/soc0/family {}\\n"
# spec, driver there, GPUs of NVML -> kind, what the evidence says
NODES = {
    "nothing": ("", False, None, "nvml", "no sign of any kind"),
    "driver, NVML silent": ("", True, None, "nvml", "libnvidia-ml.so.1 is there"),
    "NVML answers": ("", True, (gpu(),), "nvml", "NVML answers"),
    "Tegra by release": (RELEASE, False, None, "csv", "/etc/nv_tegra_release is there"),
    "Tegra by family": (FAMILY.format("Tegra"), False, None, "csv", "system family Tegra"),
    "Tegra by family, small": (FAMILY.format("tegra 234"), False, None, "csv", "system family tegra 234"),
    "another family": (FAMILY.format("i.MX"), False, None, "nvml", "no sign"),
    "Tegra with NVML": (RELEASE, True, (gpu(),), "nvml", "NVML answers"),
    "integrated GPU": ("", True, (gpu(0, name="Orin (nvgpu)"),), "csv", "an integrated GPU, Orin (nvgpu)"),
    "Thor and another": (RELEASE, True, (gpu(0, name="NVIDIA Thor"), gpu(1)), "csv", "an integrated GPU, NVIDIA Thor"),
    "WSL": (
        "file usr/lib/wsl/lib/libdxcore.so x",
        True,
        (gpu(),),
        "wsl",
        "libdxcore.so is there, /dev/dxg is not there",
    ),
    "release is a FIFO": ("fifo etc/nv_tegra_release", False, None, "nvml", "no sign"),
    "family is a FIFO": ("fifo sys/devices/soc0/family", False, None, "nvml", "no sign"),
}


@pytest.mark.parametrize("case", NODES)
def test_files_and_gpus_tell_the_kind(tmp_path: Path, case: str) -> None:
    spec, there, gpus, expected, words = NODES[case]
    tree(tmp_path, spec)
    if there:
        driver(tmp_path)
    found = kind(tmp_path, gpus)
    assert found.kind == expected
    assert words in "; ".join(found.evidence)


def test_libdxcore_may_lie_in_any_library_directory(tmp_path: Path) -> None:
    library(tmp_path, "/usr/lib64/libdxcore.so")
    assert kind(tmp_path).kind == "wsl"


def test_who_asks_for_a_mode_gets_it(tmp_path: Path) -> None:
    tree(tmp_path, RELEASE)
    found = kind(tmp_path, None, "nvml")
    assert (found.kind, found.evidence) == ("nvml", ["mode nvml was asked for"])
