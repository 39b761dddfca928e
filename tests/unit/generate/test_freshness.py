"""What a specification was made for."""

from __future__ import annotations

import pytest
from unit.generate.gentools import control_nodes, found, gpu, gpu_nodes, mig, node, other_nodes

from nvoci.discover.model import Driver
from nvoci.generate import freshness


def test_the_version_and_the_majors_are_told() -> None:
    split = gpu(0, mig_enabled=True, mig_devices=(mig(),))
    told = freshness.made_for(found(split), [*control_nodes(), *gpu_nodes(split)])
    assert told == {
        "nvoci.io/driver-version": "550.163.01",
        "nvoci.io/device-majors": "nvidia=195,nvidia-caps=236,nvidia-uvm=510",
    }


ASKED = {
    "all": (("all",), None), "all and one": (("0", "all"), None), "one": (("0",), "0"),
    "two": (("0", "GPU-x"), "0,GPU-x"),
}  # fmt: skip


@pytest.mark.parametrize("case", ASKED)
def test_a_choice_of_devices_is_told(case: str) -> None:
    ids, told = ASKED[case]
    assert freshness.made_for(found(gpu(0)), control_nodes(), ids).get("nvoci.io/device-ids") == told


def test_majors_are_by_the_names_of_procfs() -> None:
    assert freshness.device_majors(other_nodes()) == {
        "nvidia-caps": 236,
        "nvidia-caps-imex-channels": 234,
        "nvidia-nvswitch": 237,
        "nvidia-fs": 239,
        "gdrdrv": 240,
    }


def test_what_is_not_known_is_left_out() -> None:
    node_without_type = node("/dev/nvidia0", "gpu", type="")
    assert freshness.made_for(found().replace(driver=Driver()), [node_without_type, node("/dev/x", "tegra")]) == {}


def test_majors_are_read_again() -> None:
    majors = {"nvidia": 195, "nvidia-uvm": 510}
    assert freshness.parse_majors("nvidia=195,nvidia-uvm=510") == majors
    assert freshness.parse_majors("") == {}
    assert freshness.parse_majors("a=b,=1,c,d=-1,nvidia=195,e=²") == {"nvidia": 195}
