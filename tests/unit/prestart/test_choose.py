"""What of a node a container gets: the reference's tables."""

from __future__ import annotations

from typing import Any

import pytest
from unit.prestart.chosentools import (
    LIB,
    MIG_UUID,
    VERSION,
    a_node,
    asked,
    control,
    file,
    library,
    missing,
    node,
    without,
)
from unit.prestart.prestarttools import error

from nvoci.discover.model import Driver, Found, Problem
from nvoci.prestart.choose import Chosen, choose, library_names, stem


def names(mounts: Any) -> list[str]:
    return [each.host_path.rpartition("/")[2].partition(".so")[0] for each in mounts]


def nodes(each: Any) -> list[str]:
    return [one.container_path.removeprefix("/dev/") for one in each]


# capabilities -> libraries, programs, control nodes, sockets and directories
BY_CAPABILITY: dict[str, tuple[list[str], list[str], list[str], list[str]]] = {
    "utility": (["libnvidia-ml"], ["nvidia-smi", "nvidia-debugdump"], ["nvidiactl"], ["persistenced", "fabricmanager"]),
    "compute": (["libcuda", "libnvidia-gpucomp", "libnvidia-nvvm"], ["nvidia-cuda-mps-control"],
                ["nvidiactl", "nvidia-uvm", "nvidia-uvm-tools"], ["mps"]),
    "video": (["libcuda", "libnvidia-gpucomp", "libnvidia-encode", "libnvidia-nvvm", "libnvidia-opticalflow"], [],
              ["nvidiactl", "nvidia-uvm", "nvidia-uvm-tools"], ["mps"]),
    "graphics": (["libGLX_nvidia", "libnvidia-tls", "libnvidia-tls"], [], ["nvidiactl"], []),
    "display": (["libGLX_nvidia", "libnvidia-tls", "libnvidia-tls"], [], ["nvidiactl", "nvidia-modeset"], []),
    "ngx": (["libnvidia-ngx"], [], ["nvidiactl"], []),
    "": ([], [], ["nvidiactl"], []),
}  # fmt: skip


@pytest.mark.parametrize("capabilities", BY_CAPABILITY)
def test_capabilities(capabilities: str) -> None:
    chosen = choose(a_node(), asked("all", capabilities=capabilities))
    sockets = [each.container_path.replace("/socket", "").rpartition("nvidia-")[2] for each in chosen.sockets]
    got = names(chosen.libraries), names(chosen.programs), nodes(chosen.control), sockets
    assert got == BY_CAPABILITY[capabilities]
    assert names(chosen.firmware) == ["gsp_ga10x.bin"]
    assert chosen.compat32 == []


def test_32_bit_libraries_go_by_the_same_groups() -> None:
    def chosen(capabilities: str) -> Chosen:
        return choose(a_node(), asked("0", capabilities=capabilities))

    assert names(chosen("compat32,compute").compat32) == ["libcuda"]
    assert names(chosen("compat32,graphics").compat32) == ["libGLX_nvidia"]
    assert names(chosen("compat32").compat32) == []
    assert [each.host_path.rpartition("/")[0] for each in chosen("compat32,compute").libraries] == [LIB] * 3


SWITCHES: dict[str, dict[str, Any]] = {
    "persistenced": {"persistenced": False}, "fabricmanager": {"fabricmanager": False},
    "gsp": {"gsp_firmware": False}, "nvidia-mps": {"mps_directory": "/run/other"},
}  # fmt: skip


@pytest.mark.parametrize("name", SWITCHES)
def test_what_can_be_left_out(name: str) -> None:
    def paths(**more: Any) -> list[str]:
        chosen = choose(a_node(), asked("0", **more))
        return [each.container_path for each in (*chosen.sockets, *chosen.firmware)]

    gone = set(paths()) - set(paths(**SWITCHES[name]))
    assert gone == {path for path in paths() if name in path}
    assert len(gone) == 1


def test_gpus_in_the_order_of_the_request_with_their_nodes() -> None:
    chosen = choose(a_node(4), asked("3", "1"))
    paired = [(gpu.index, each.container_path) for gpu, each in chosen.gpu_nodes]
    assert paired == [(3, "/dev/nvidia3"), (1, "/dev/nvidia1")]
    assert choose(a_node(), asked()).gpu_nodes == []


def test_a_mig_device_with_its_gpu_and_nodes() -> None:
    chosen = choose(a_node(2, 3), asked("1:2"))
    assert [gpu.index for gpu, _ in chosen.gpu_nodes] == [1]
    assert [(mig.name, gpu.index, nodes(each)) for mig, gpu, each in chosen.mig_nodes] == [
        ("1:2", 1, ["nvidia-caps/nvidia-cap30", "nvidia-caps/nvidia-cap31"])
    ]
    assert len(choose(a_node(2, 3), asked("all")).mig_nodes) == 3
    assert choose(a_node(2, 3), asked("1")).mig_nodes == []
    assert choose(a_node(2, 3), asked(MIG_UUID.format(1, 0))).mig_nodes[0][0].name == "1:0"


def test_who_manages_mig_devices_gets_no_single_one() -> None:
    chosen = choose(a_node(2, 3), asked("all", mig_config=("all",)))
    assert ([gpu.index for gpu in chosen.mig_config], chosen.mig_monitor, chosen.mig_nodes) == ([0, 1], (), [])
    with_one = error(lambda: choose(a_node(2, 3), asked("1:0", mig_monitor=("all",))))
    assert with_one.message == "mig-monitor error: cannot enable mig-monitor with specific MIG devices selected"


def test_channels_each_by_its_number() -> None:
    assert nodes(choose(a_node(), asked("0", imex_channels=(3,))).channels) == ["nvidia-caps-imex-channels/channel3"]


def test_windows_has_one_node_and_a_driver_store() -> None:
    store = "/usr/lib/wsl/drivers/nv.inf_amd64_1"
    mounts = [file("library", f"{store}/libcuda.so.1.1", "compute"), file("file", f"{store}/nvcubins.bin"),
              file("binary", f"{store}/nvidia-smi", "utility")]  # fmt: skip
    found = Found(driver=Driver(version="555.1"), device_nodes=[node("wsl", "dxg", 10, 127)], mounts=mounts)
    chosen = choose(found, asked("all", capabilities="utility"))
    assert (chosen.wsl, nodes(chosen.control), chosen.gpu_nodes, chosen.firmware) == (True, ["dxg"], [], [])
    assert (names(chosen.libraries), names(chosen.programs)) == (["libcuda", "nvcubins.bin"], ["nvidia-smi"])


# --- what the node does not have -------------------------------------------------------------------------------------


NO_NVML = "libnvidia-ml.so.1: cannot open shared object file: no such file or directory"
REFUSES = Problem(stage="ask NVML", subject="/l/libnvidia-ml.so.1", error="nvmlInit: X")
SILENT = Found(driver=Driver(version=VERSION), problems=[REFUSES])
REFUSED = "/l/libnvidia-ml.so.1: nvmlInit: X"
UNMET = (("NVIDIA_REQUIRE_X", "driver<500"),)
MISSING: dict[str, tuple[Found, Any, str]] = {
    "control": (without("/dev/nvidiactl"), asked("0"), "mount error: stat failed: /dev/nvidiactl: ENOENT"),
    "GPU": (without("/dev/nvidia1"), asked("all"), "mount error: stat failed: /dev/nvidia1: ENOENT"),
    "GPU, and why": (
        without("/dev/nvidia1").replace(problems=[missing("/dev/nvidia1", "is 195:7, should be 195:1")]), asked("1"),
        "mount error: stat failed: /dev/nvidia1: is 195:7, should be 195:1",
    ),
    "channel": (a_node(), asked("0", imex_channels=(3, 4)),
                "mount error: stat failed: /dev/nvidia-caps-imex-channels/channel4: ENOENT"),
    "driver": (Found(driver=Driver(root="/opt/d")), asked(), f"initialization error: load library failed: {NO_NVML}"),
    "NVML": (SILENT, asked(), f"initialization error: nvml error: {REFUSED}"),
    "NVML, and a GPU": (SILENT, asked("0"), f"initialization error: nvml error: {REFUSED}"),
    "requirement": (a_node(), asked("0", requirements=(("NVIDIA_REQUIRE_X", "driver<500"),)),
                    "requirement error: unsatisfied condition: driver<500"),
    "device": (a_node(), asked("0", "7"), "device error: 7: unknown device"),
    "device, before what is demanded": (a_node(), asked("7", requirements=UNMET, mig_config=("0",)),
                                        "device error: 7: unknown device"),
    "MIG, before what is demanded": (a_node(), asked("0", requirements=UNMET, mig_config=("0",)),
                                     "mig-config error: 0: only 'all' devices are currently supported"),
    "what is demanded, before a node": (without("/dev/nvidiactl"), asked("0", requirements=UNMET),
                                        "requirement error: unsatisfied condition: driver<500"),
}  # fmt: skip


@pytest.mark.parametrize("case", MISSING)
def test_what_is_missing_is_an_error_that_names_it(case: str) -> None:
    found, wanted, message = MISSING[case]
    assert error(lambda: choose(found, wanted)).message == message


@pytest.mark.parametrize("name", ["nvidia-uvm", "nvidia-uvm-tools", "nvidia-modeset"])
def test_a_container_starts_without_other_control_nodes_and_the_log_says_so(
    name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    chosen = choose(without(f"/dev/{name}"), asked("0", capabilities="compute,display"))
    assert name not in nodes(chosen.control)
    assert len(chosen.control) == len(control()) - 1
    assert f'msg="missing device /dev/{name}: left out"' in capfd.readouterr().err


def test_of_two_libraries_of_one_name_the_first_is_taken() -> None:
    paths = [each.host_path for each in choose(a_node(), asked("0")).libraries]
    assert f"{LIB}/libcuda.so.550.163.01" in paths
    assert not any(path.startswith("/opt/other") for path in paths)
    moved = a_node().replace(mounts=[library("libcuda", "/opt/other"), library("libcuda")])
    assert [each.host_path.rpartition("/")[0] for each in choose(moved, asked("0")).libraries] == ["/opt/other"]


def test_names_of_libraries() -> None:
    assert library_names(["utility", "nonsense"]) == {"libnvidia-ml", "libnvidia-cfg", "libnvidia-nscq"}
    paths = {"/a/libcuda.so.1.2": "libcuda", "libcuda.so": "libcuda", "/a.so/x": "x", "": ""}
    assert {path: stem(path) for path in paths} == paths


def test_of_several_problems_that_of_the_node_tells_why_it_is_missing() -> None:
    problems = [missing("/dev/nvidia1", "EPERM"), missing("/dev/nvidia0", "is c 1:3")]
    refused = error(lambda: choose(without("/dev/nvidia0").replace(problems=problems), asked("0")))
    assert refused.message == "mount error: stat failed: /dev/nvidia0: is c 1:3"
