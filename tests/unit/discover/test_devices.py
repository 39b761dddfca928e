"""Device nodes: each one what the kernel's tables say, or left out with one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from lib.rootfs import tree
from unit.discover.looktools import UUID, gpu, lines, look, needs_mknod, paths

from nvoci.discover.devices import Devices
from nvoci.discover.devnode import numbered
from nvoci.discover.model import Gpu
from nvoci.discover.search import Search

pytestmark = needs_mknod

DEVICES = """file proc/devices Character devices:\\n  1 mem\\n195 nvidia\\n195 nvidia-modeset\\n226 drm\\n\\
236 nvidia-caps\\n237 nvidia-caps-imex-channels\\n510 nvidia-uvm\\n\\nBlock devices:\\n  7 nvidia-uvm\\n""".replace(
    "\\\n", ""
)
CONTROL = """
char dev/nvidiactl 195 255 666
char dev/nvidia-modeset 195 254 666
char dev/nvidia-uvm 510 0 666
char dev/nvidia-uvm-tools 510 1 666
"""
GPU0 = """
char dev/nvidia0 195 0 666
char dev/dri/card1 226 1 660
char dev/dri/renderD128 226 128 660
symlink dev/dri/by-path/pci-0000:07:00.0-card ../card1
symlink dev/dri/by-path/pci-0000:07:00.0-render ../renderD128
dir sys/bus/pci/devices/0000:07:00.0/drm/card1
dir sys/bus/pci/devices/0000:07:00.0/drm/renderD128
"""
INFORMATION = (
    "file proc/driver/nvidia/gpus/{bus}/information "
    "GPU UUID: \\t {uuid}\\nBus Location: \\t {bus}\\nDevice Minor: \\t {minor}\\n"
)


def act(root: Path, spec: str, what: Callable[[Devices], object]) -> tuple[Devices, object, list[str]]:
    """Look at a tree: the devices, what the action gave, the problems."""
    tree(root, spec)
    with look(root) as node:
        search = Search()
        devices = Devices(node, search)
        given = what(devices)
    return devices, given, lines(search, root)


def gpus(root: Path, spec: str, *some: Gpu) -> tuple[Devices, list[Gpu], list[str]]:
    devices, given, problems = act(root, DEVICES + "\n" + spec, lambda d: d.gpus(some or (gpu(),)))
    assert isinstance(given, list)
    return devices, given, problems


# -- control nodes ----------------------------------------------------------------------------------------------------


def test_control_nodes_carry_what_stat_says(tmp_path: Path) -> None:
    devices, _, problems = act(tmp_path, DEVICES + CONTROL + "owner dev/nvidia-uvm 5 6\n", lambda d: d.control(True))
    told = {n.container_path: (n.major, n.minor, n.mode, n.uid, n.gid, n.capabilities) for n in devices.nodes}
    assert told == {
        "/dev/nvidia-modeset": (195, 254, 0o666, 0, 0, ("display", "graphics")),
        "/dev/nvidia-uvm-tools": (510, 1, 0o666, 0, 0, ("compute",)),
        "/dev/nvidia-uvm": (510, 0, 0o666, 5, 6, ("compute",)),
        "/dev/nvidiactl": (195, 255, 0o666, 0, 0, ()),
    }
    assert {n.host_path for n in devices.nodes} == {f"{tmp_path}{path}" for path in told}
    assert problems == []


def test_of_a_loaded_driver_two_nodes_are_missed(tmp_path: Path) -> None:
    _, _, problems = act(tmp_path, DEVICES, lambda d: d.control(True))
    uvm, control = problems
    assert uvm.startswith("use device /dev/nvidia-uvm: ENOENT (make it: nvidia-modprobe -u")
    assert control.startswith("use device /dev/nvidiactl: ENOENT (make it: nvidia-modprobe")


def test_of_a_driver_that_is_not_loaded_nothing_is_missed(tmp_path: Path) -> None:
    assert act(tmp_path, DEVICES, lambda d: d.control(False))[2] == []


# in place of /dev/nvidia0 -> why it is not used
BAD = {
    "missing": ("", "ENOENT (make it: nvidia-modprobe -c 0)"),
    "a file": ("file dev/nvidia0 x", "a regular file, not a character device (remove it, and make it again"),
    "a block device": ("block dev/nvidia0 195 0", "a block device, not a character device (remove it"),
    "a directory": ("dir dev/nvidia0", "a directory, not a character device (remove it"),
    "a FIFO": ("fifo dev/nvidia0", "a FIFO, not a character device (remove it"),
    "a link to a node": (
        "char dev/other 195 0\nsymlink dev/nvidia0 other",
        "a link, not a character device (remove it",
    ),
    "a link that loops": ("symlink dev/nvidia0 nvidia0", "a link, not a character device (remove it"),
    "another minor": ("char dev/nvidia0 195 3", "is 195:3, should be 195:0 (remove it"),
    "another major": ("char dev/nvidia0 1 0", "is 1:0, should be 195:0 (remove it"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_gpu_node_is_one_line_and_the_others_stay(tmp_path: Path, case: str) -> None:
    spec, words = BAD[case]
    devices, found, (told,) = gpus(tmp_path, spec + "\nchar dev/nvidia1 195 1", gpu(0), gpu(1))
    assert paths(devices.nodes, "gpu") == ["/dev/nvidia1"]
    assert told.startswith(f"use device /dev/nvidia0: {words}"), told
    assert [each.index for each in found] == [0, 1]


def test_majors_are_those_of_the_running_kernel(tmp_path: Path) -> None:
    spec = DEVICES.replace("195 nvidia\\n", "251 nvidia-frontend\\n") + "\nchar dev/nvidia0 251 0"
    devices, _, problems = act(tmp_path, spec, lambda d: d.gpus((gpu(),)))
    assert [(n.major, n.minor) for n in devices.nodes] == [(251, 0)]
    assert problems == []


def test_without_a_table_of_majors_the_assigned_one_counts(tmp_path: Path) -> None:
    devices, _, problems = act(tmp_path, "char dev/nvidia0 251 0", lambda d: d.gpus((gpu(),)))
    assert devices.nodes == []
    assert "is 251:0, should be 195:0" in problems[0]


TABLES = {"a FIFO": "fifo proc/devices", "a directory": "dir proc/devices", "endless": "sparse proc/devices 3M"}


@pytest.mark.parametrize("case", TABLES)
def test_a_table_of_majors_that_is_none_is_one_problem(tmp_path: Path, case: str) -> None:
    devices, _, problems = act(tmp_path, TABLES[case] + "\nchar dev/nvidia0 195 0", lambda d: d.gpus((gpu(),)))
    assert paths(devices.nodes) == ["/dev/nvidia0"]
    assert problems[0].startswith("read device numbers /proc/devices: ")


# -- GPUs -------------------------------------------------------------------------------------------------------------


def test_a_gpu_has_its_node_and_its_drm_nodes(tmp_path: Path) -> None:
    devices, (found,), problems = gpus(tmp_path, GPU0)
    assert paths(devices.nodes, owner=UUID.format(0)) == ["/dev/nvidia0", "/dev/dri/card1", "/dev/dri/renderD128"]
    assert found.drm_nodes == ("/dev/dri/card1", "/dev/dri/renderD128")
    assert [n.links for n in devices.nodes] == [
        (),
        (("../card1", "/dev/dri/by-path/pci-0000:07:00.0-card"),),
        (("../renderD128", "/dev/dri/by-path/pci-0000:07:00.0-render"),),
    ]
    assert problems == []


def test_by_path_links_have_no_prefix_of_the_dev_root(tmp_path: Path) -> None:
    tree(tmp_path / "host", DEVICES + GPU0)
    tree(tmp_path / "drv", "dir usr")
    host = tmp_path / "host"
    with look(tmp_path / "drv", host, proc=f"{host}/proc", sys=f"{host}/sys") as node:
        devices = Devices(node, Search())
        devices.gpus((gpu(),))
    assert [link for n in devices.nodes for _, link in n.links] == [
        "/dev/dri/by-path/pci-0000:07:00.0-card",
        "/dev/dri/by-path/pci-0000:07:00.0-render",
    ]
    assert devices.nodes[0].host_path == f"{host}/dev/nvidia0"


BY_PATH = {
    "missing": "",
    "a file": "file dev/dri/by-path/pci-0000:07:00.0-card x",
    "to another GPU's": "char dev/dri/card9 226 9\nsymlink dev/dri/by-path/pci-0000:07:00.0-card ../card9",
    "out of /dev": "symlink dev/dri/by-path/pci-0000:07:00.0-card ../../../../../etc/passwd",
    "with a separator": "symlink dev/dri/by-path/pci-0000:07:00.0-card ../card1::/etc/x",
    "to itself": "symlink dev/dri/by-path/pci-0000:07:00.0-card pci-0000:07:00.0-card",
}


@pytest.mark.parametrize("case", BY_PATH)
def test_a_link_that_leads_elsewhere_is_not_made_again(tmp_path: Path, case: str) -> None:
    spec = GPU0.replace("symlink dev/dri/by-path/pci-0000:07:00.0-card ../card1\n", BY_PATH[case] + "\n")
    devices, _, problems = gpus(tmp_path, spec)
    assert [link for n in devices.nodes for _, link in n.links] == ["/dev/dri/by-path/pci-0000:07:00.0-render"]
    assert problems == []


def test_a_link_may_be_absolute(tmp_path: Path) -> None:
    spec = GPU0.replace("00.0-card ../card1", "00.0-card /dev/dri/card1")
    devices, _, _ = gpus(tmp_path, spec)
    assert devices.nodes[1].links == (("/dev/dri/card1", "/dev/dri/by-path/pci-0000:07:00.0-card"),)


def test_sysfs_says_which_number_a_drm_node_has(tmp_path: Path) -> None:
    number = "file sys/bus/pci/devices/0000:07:00.0/drm/{}/dev {}\\n"
    spec = GPU0 + number.format("card1", "226:1") + "\n" + number.format("renderD128", "226:129")
    devices, (found,), (told,) = gpus(tmp_path, spec)
    assert found.drm_nodes == ("/dev/dri/card1",)
    assert told.startswith("use device /dev/dri/renderD128: is 226:128, should be 226:129 (")
    assert paths(devices.nodes) == ["/dev/nvidia0", "/dev/dri/card1"]


def test_a_drm_node_that_is_missing_is_one_line(tmp_path: Path) -> None:
    _, (found,), (told,) = gpus(tmp_path, GPU0.replace("char dev/dri/renderD128 226 128 660\n", ""))
    assert found.drm_nodes == ("/dev/dri/card1",)
    assert told == "use device /dev/dri/renderD128: ENOENT (restart udev)"


def test_a_dev_root_without_graphics_misses_nothing(tmp_path: Path) -> None:
    spec = "\n".join(line for line in GPU0.splitlines() if "dev/dri" not in line)
    _, (found,), problems = gpus(tmp_path, spec)
    assert (found.drm_nodes, problems) == ((), [])


def test_other_names_below_drm_are_no_nodes(tmp_path: Path) -> None:
    odd = "\n".join(
        f"dir sys/bus/pci/devices/0000:07:00.0/drm/{n}" for n in ("version", "card01", "card-1", "..card", "cardX")
    )
    _, (found,), problems = gpus(tmp_path, GPU0 + odd)
    assert found.drm_nodes == ("/dev/dri/card1", "/dev/dri/renderD128")
    assert problems == []


def test_nvml_and_procfs_must_agree_on_the_minor(tmp_path: Path) -> None:
    told_by_procfs = INFORMATION.format(bus="0000:07:00.0", uuid=UUID.format(0), minor=1)
    devices, _, problems = gpus(tmp_path, f"char dev/nvidia0 195 0\nchar dev/nvidia1 195 1\n{told_by_procfs}")
    assert devices.nodes == []
    assert problems == [f"use GPU {UUID.format(0)}: minor 0 by NVML, 1 by procfs (reload the driver's kernel module)"]


def test_a_gpu_that_is_lost_keeps_its_node_for_itself(tmp_path: Path) -> None:
    spec = "\n".join(INFORMATION.format(bus=f"0000:0{i + 7}:00.0", uuid=UUID.format(i), minor=i) for i in (0, 1))
    devices, _, problems = act(
        tmp_path,
        f"{DEVICES}\n{spec}\nchar dev/nvidia0 195 0\nchar dev/nvidia1 195 1",
        lambda d: d.silent_gpus(d.gpus((gpu(0),))),
    )
    assert paths(devices.nodes, "gpu", UUID.format(1)) == ["/dev/nvidia1"]
    assert paths(devices.nodes, "gpu", "") == []
    assert problems == []


PROCFS = {
    "a FIFO": ("fifo proc/driver/nvidia/gpus/0000:09:00.0/information", "EINVAL: not a regular file"),
    "a directory": ("dir proc/driver/nvidia/gpus/0000:09:00.0/information", "EISDIR: not a regular file"),
    "no minor": ("file proc/driver/nvidia/gpus/0000:09:00.0/information GPU UUID: x\\n", "no Device Minor"),
    "no number": ("file proc/driver/nvidia/gpus/0000:09:00.0/information Device Minor: -1\\n", "no Device Minor"),
    "endless": ("sparse proc/driver/nvidia/gpus/0000:09:00.0/information 1M", "EFBIG: larger than 65536 bytes"),
    "garbage": ("file proc/driver/nvidia/gpus/0000:09:00.0/information \\xff\\x00\\x1b", "no Device Minor"),
}


@pytest.mark.parametrize("case", PROCFS)
def test_a_bad_file_of_procfs_is_one_line_and_the_gpu_stays(tmp_path: Path, case: str) -> None:
    spec, words = PROCFS[case]
    devices, _, (told,) = gpus(tmp_path, f"char dev/nvidia0 195 0\n{spec}")
    assert paths(devices.nodes, "gpu") == ["/dev/nvidia0"]
    assert told.startswith("read GPU /proc/driver/nvidia/gpus/0000:09:00.0/information: " + words)


def test_uuids_of_procfs_are_not_believed(tmp_path: Path) -> None:
    bad = INFORMATION.format(bus="0000:09:00.0", uuid="GPU-../../etc", minor=2)
    unknown = INFORMATION.format(bus="0000:0a:00.0", uuid="GPU-????????-????-????-????-????????????", minor=3)
    spec = f"{DEVICES}\n{bad}\n{unknown}\nchar dev/nvidia2 195 2\nchar dev/nvidia3 195 3"
    assert act(tmp_path, spec, lambda d: d.silent_gpus(()))[0].nodes == []


# -- others -----------------------------------------------------------------------------------------------------------


def test_imex_channels_are_owned_by_their_number(tmp_path: Path) -> None:
    top = "char dev/nvidia-caps-imex-channels/channel{} 237 {}"
    spec = "\n".join(top.format(i, i) for i in (0, 2047, 10)) + "\nfile dev/nvidia-caps-imex-channels/channelx x"
    devices, _, problems = act(tmp_path, f"{DEVICES}\n{spec}\n{top.format(5, 6)}", lambda d: d.imex())
    assert [(n.owner, n.minor) for n in devices.nodes] == [("0", 0), ("10", 10), ("2047", 2047)]
    (told,) = problems
    assert told.startswith("use device /dev/nvidia-caps-imex-channels/channel5: is 237:6, should be 237:5 (")


OTHERS = {
    "nvswitch": ["/dev/nvidia-nvswitchctl", "/dev/nvidia-nvswitch0", "/dev/nvidia-nvswitch1"],
    "nvlink": ["/dev/nvidia-nvlink"],
    "gds": ["/dev/nvidia-fs0", "/dev/nvidia-fs1"],
    "gdrcopy": ["/dev/gdrdrv"],
    "mofed": ["/dev/infiniband/rdma_cm", "/dev/infiniband/uverbs0"],
}


def test_other_parts_have_kinds_of_their_own(tmp_path: Path) -> None:
    minors = {"/dev/nvidia-nvswitchctl": 255, "/dev/nvidia-nvswitch1": 1}
    spec = "\n".join(f"char {path} 300 {minors.get(path, 0)}" for some in OTHERS.values() for path in some)
    devices, _, problems = act(tmp_path, spec + "\nfile dev/nvidia-fs9 x\nchar dev/random 1 8", lambda d: d.others())
    assert {kind: paths(devices.nodes, kind) for kind in OTHERS} == OTHERS
    assert sum(len(some) for some in OTHERS.values()) == len(devices.nodes)
    (told,) = problems
    assert told.startswith("use device /dev/nvidia-fs9: a regular file, not a character device (remove it, and make it")


def test_whatever_else_the_driver_has_is_for_who_manages_all_of_it(tmp_path: Path) -> None:
    spec = "char dev/nvidia7 195 7\nchar dev/nvidia-vgpu0 300 0\nchar dev/nvidia-nvlink 300 1\nchar dev/random 1 8\n"
    spec += "dir dev/nvidia-caps\nfile dev/nvidia-x x\nsymlink dev/nvidia-y nvidia7\nchar dev/nvidiactl 195 255"

    def all_of_it(devices: Devices) -> None:
        devices.control(True)
        devices.others()
        devices.rest()

    devices, _, _ = act(tmp_path, spec, all_of_it)
    assert paths(devices.nodes, "other") == ["/dev/nvidia-vgpu0", "/dev/nvidia7"]
    assert paths(devices.nodes, "nvlink") == ["/dev/nvidia-nvlink"]
    assert len({node.container_path for node in devices.nodes}) == len(devices.nodes)


def test_storage_brings_its_files_only_with_its_nodes(tmp_path: Path) -> None:
    def both(devices: Devices) -> object:
        devices.others()
        return [(m.container_path, m.kind, m.capabilities) for m in devices.storage_mounts()]

    files = "dir run/udev\nfile etc/cufile.json {}\n"
    assert act(tmp_path, files, both)[1] == []
    expected = [("/run/udev", "directory", ("gds",)), ("/etc/cufile.json", "config", ("gds",))]
    assert act(tmp_path, files + "char dev/nvidia-fs0 300 0", both)[1] == expected


NUMBERS = {
    "nvidia0": 0,
    "nvidia15": 15,
    "nvidia": None,
    "nvidia01": None,
    "nvidia-1": None,
    "nvidia\u0663": None,
    "nvidia99999999": None,
    "xnvidia1": None,
}


@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_is_written_as_the_kernel_writes_it(name: str) -> None:
    assert numbered(name, "nvidia") == NUMBERS[name]
