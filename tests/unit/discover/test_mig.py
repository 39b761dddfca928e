"""Capability nodes of MIG devices, by the two tables that the driver has of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from unit.discover.looktools import UUID, gpu, needs_mknod, paths
from unit.discover.test_devices import DEVICES, act, gpus

from nvoci.discover.devices import Devices
from nvoci.discover.model import MigDevice

pytestmark = needs_mknod

MINORS = "file proc/driver/nvidia-caps/mig-minors config 1\\nmonitor 2\\ngpu0/gi1/access 12\\ngpu0/gi1/ci0/access 13\\n"
TREE = """
file proc/driver/nvidia/capabilities/gpu0/mig/gi1/access DeviceFileMinor: 12\\nDeviceFileMode: 292\\n
file proc/driver/nvidia/capabilities/gpu0/mig/gi1/ci0/access DeviceFileMinor: 13\\nDeviceFileMode: 292\\n
"""
CAPS = """
char dev/nvidia0 195 0
char dev/nvidia-caps/nvidia-cap12 236 12 444
char dev/nvidia-caps/nvidia-cap13 236 13 444
"""
MIG = MigDevice(
    uuid="MIG-00000000-aaaa-5bbb-8ccc-000000010000",
    parent=UUID.format(0),
    parent_index=0,
    index=0,
    gpu_instance=1,
    compute_instance=0,
)
BOTH = ["/dev/nvidia-caps/nvidia-cap12", "/dev/nvidia-caps/nvidia-cap13"]

# tables -> nodes, what the one problem says
CAPABILITIES = {
    "both tables": (MINORS + "\n" + TREE, BOTH, ""),
    "mig-minors alone": (MINORS, BOTH, ""),
    "the tree alone": (TREE, BOTH, ""),
    "mig-minors of another driver": (
        MINORS.replace("access 12", "access 99") + "\n" + TREE,
        BOTH,
        "gpu0/gi1/access: minor 12 or 99",
    ),
    "a malformed line": (
        MINORS + "\\nx y z\\ngpu0\\n",
        BOTH,
        "read MIG capabilities /proc/driver/nvidia-caps/mig-minors: line `x y z`",
    ),
    "an entry missing": (MINORS.replace("gpu0/gi1/ci0/access 13\\n", ""), BOTH[:1], "gpu0/gi1/ci0/access: not there"),
    "access without a minor": (
        MINORS + "\n" + TREE.replace("DeviceFileMinor: 12", "DeviceFileMinor: x"),
        BOTH,
        "no DeviceFileMinor",
    ),
    "access is a FIFO": (
        MINORS + "\nfifo proc/driver/nvidia/capabilities/gpu0/mig/gi1/access",
        BOTH,
        "EINVAL: not a regular file",
    ),
}


@pytest.mark.parametrize("case", CAPABILITIES)
def test_capability_nodes_are_those_of_either_table(tmp_path: Path, case: str) -> None:
    spec, expected, words = CAPABILITIES[case]
    devices, (found,), problems = gpus(tmp_path, f"{CAPS}\n{spec}", gpu(0, mig_enabled=True, mig_devices=(MIG,)))
    assert list(found.mig_devices[0].cap_nodes) == expected
    assert paths(devices.nodes, "mig", MIG.uuid) == expected
    assert len(problems) == bool(words), problems
    assert all(words in each for each in problems)


def test_a_capability_node_with_a_wrong_number_gives_no_access(tmp_path: Path) -> None:
    spec = CAPS.replace("236 13", "236 14") + MINORS
    _, (found,), (told,) = gpus(tmp_path, spec, gpu(0, mig_devices=(MIG,)))
    assert found.mig_devices[0].cap_nodes == (BOTH[0],)
    assert told.startswith("use device /dev/nvidia-caps/nvidia-cap13: is 236:14, should be 236:13 (")


def test_two_devices_of_one_gpu_instance_share_its_node(tmp_path: Path) -> None:
    other = MIG.replace(uuid="MIG-00000001-aaaa-5bbb-8ccc-000000010001", index=1, compute_instance=1)
    spec = CAPS + "char dev/nvidia-caps/nvidia-cap14 236 14 444\n" + MINORS + "gpu0/gi1/ci1/access 14\\n"
    devices, _, problems = gpus(tmp_path, spec, gpu(0, mig_devices=(MIG, other)))
    assert paths(devices.nodes, owner=MIG.uuid) == BOTH
    assert paths(devices.nodes, owner=other.uuid) == [BOTH[0], "/dev/nvidia-caps/nvidia-cap14"]
    assert problems == []


def test_management_has_its_own_nodes_and_all_that_nobody_has(tmp_path: Path) -> None:
    more = "char dev/nvidia-caps/nvidia-cap1 236 1\nchar dev/nvidia-caps/nvidia-cap2 236 2\nfile dev/nvidia-caps/x x"
    spec = f"{DEVICES}\n{CAPS}\n{more}\n{MINORS}"

    def both(devices: Devices) -> None:
        devices.gpus((gpu(0, mig_devices=(MIG.replace(compute_instance=9),)),))
        devices.mig_management()

    devices, _, problems = act(tmp_path, spec, both)
    assert paths(devices.nodes, "mig-config") == ["/dev/nvidia-caps/nvidia-cap1"]
    assert paths(devices.nodes, "mig-monitor") == ["/dev/nvidia-caps/nvidia-cap2"]
    assert paths(devices.nodes, "mig", MIG.uuid) == BOTH[:1]
    assert paths(devices.nodes, "mig", "") == BOTH[1:]
    assert len(problems) == 1
