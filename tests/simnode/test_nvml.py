"""What pynvml gets from the simulated library is what the description says."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pynvml
import pytest
from lib import session, simnode
from lib.simnode.answers import architecture
from simnode.nodes import answers, built, needs_x86, run

pytestmark = needs_x86

WITH_NVML = [name for name in simnode.variants() if "gpus" in simnode.sample(name).get("nvml", {})]

SYSTEM = """
n.nvmlInit()
for name in ("SystemGetDriverVersion", "SystemGetCudaDriverVersion", "SystemGetCudaDriverVersion_v2",
             "SystemGetNVMLVersion", "DeviceGetCount"):
    answers[name] = ask("nvml" + name)
n.nvmlShutdown()
answers["after"] = ask("nvmlDeviceGetCount")
"""

GPUS = """
n.nvmlInit()
answers["gpus"] = []
for index in range(n.nvmlDeviceGetCount()):
    try:
        handle = n.nvmlDeviceGetHandleByIndex(index)
    except n.NVMLError as e:
        answers["gpus"].append({"handle": e.value})
        continue
    found = {name: ask("nvmlDeviceGet" + name, handle) for name in (
        "UUID", "MinorNumber", "Name", "Brand", "CudaComputeCapability", "PciInfo_v3", "MemoryInfo", "MigMode",
        "MaxMigDeviceCount", "PersistenceMode", "Architecture", "Index", "Serial", "NumaNodeId", "Attributes_v2",
        "GpuInstanceId")}
    found["MemoryInfo_v2"] = ask("nvmlDeviceGetMemoryInfo", handle, n.nvmlMemory_v2)
    found["IsMig"] = n.nvmlDeviceIsMigDeviceHandle(handle).value
    answers["gpus"].append(found)
"""


@pytest.mark.parametrize("name", WITH_NVML)
def test_the_system_answers(name: str) -> None:
    nvml = simnode.sample(name)["nvml"]
    found = answers(built(name), SYSTEM)
    assert found == {
        "SystemGetDriverVersion": nvml["driver_version"],
        "SystemGetCudaDriverVersion": nvml["cuda_driver_version"],
        "SystemGetCudaDriverVersion_v2": nvml["cuda_driver_version"],
        "SystemGetNVMLVersion": f"{nvml['cuda_driver_version'] // 1000}.{nvml['driver_version']}",
        "DeviceGetCount": len(nvml["gpus"]),
        "after": {"error": pynvml.NVML_ERROR_UNINITIALIZED},
    }


def pci_info(gpu: dict[str, Any]) -> dict[str, Any]:
    if isinstance(gpu["pci_bus_id"], dict):
        return dict(gpu["pci_bus_id"])
    found = {f"{key}": gpu[f"pci_{key}"] for key in ("domain", "bus", "device")}
    found |= {"pciDeviceId": gpu["pci_device_id"], "pciSubSystemId": 0, "busId": gpu["pci_bus_id"]}
    return {**found, "busIdLegacy": gpu["pci_bus_id"][4:]}


@pytest.mark.parametrize("name", WITH_NVML)
def test_every_gpu_answers_as_described(name: str) -> None:
    missing = {"error": pynvml.NVML_ERROR_NOT_SUPPORTED}
    expected = []
    for gpu in simnode.sample(name)["nvml"]["gpus"]:
        if "error" in gpu:
            expected.append({"handle": gpu["error"]})
            continue
        total = gpu["memory"]
        expected.append(
            {
                "UUID": gpu["uuid"],
                "MinorNumber": gpu["minor"],
                "Name": gpu["name"],
                "Brand": gpu["brand"],
                "CudaComputeCapability": gpu["compute_capability"],
                "PciInfo_v3": pci_info(gpu),
                "MemoryInfo": {"total": total, "free": total, "used": 0},
                "MemoryInfo_v2": {
                    "version": pynvml.nvmlMemory_v2,
                    "total": total,
                    "reserved": 0,
                    "free": total,
                    "used": 0,
                },
                "MigMode": gpu["mig_mode"],
                "MaxMigDeviceCount": gpu["max_mig_devices"],
                "PersistenceMode": 0,
                "Architecture": architecture(gpu["compute_capability"]),
                "Index": gpu["index"],
                "Serial": missing,
                "NumaNodeId": missing,
                "Attributes_v2": {"error": pynvml.NVML_ERROR_INVALID_ARGUMENT},
                "GpuInstanceId": {"error": pynvml.NVML_ERROR_INVALID_ARGUMENT},
                "IsMig": 0,
            }
        )
    assert answers(built(name), GPUS) == {"gpus": expected}


def test_handles_are_found_by_every_name() -> None:
    gpus = simnode.sample("a100")["nvml"]["gpus"]
    program = f"""
n.nvmlInit()
index = lambda call, *a: n.nvmlDeviceGetIndex(getattr(n, "nvmlDeviceGetHandleBy" + call)(*a))
answers["uuid"] = [index("UUID", u) for u in {[g["uuid"] for g in gpus]}]
answers["uuidv"] = [index("UUIDV", u, n.NVML_UUID_TYPE_ASCII) for u in {[g["uuid"] for g in gpus]}]
answers["binary"] = [index("UUIDV", bytes.fromhex(u[4:].replace("-", "")), n.NVML_UUID_TYPE_BINARY)
                     for u in {[g["uuid"] for g in gpus]}]
answers["pci"] = [index("PciBusId", b) for b in {[g["pci_bus_id"] for g in gpus]}]
answers["lower"] = [index("PciBusId", b[4:].lower()) for b in {[g["pci_bus_id"] for g in gpus]}]
answers["bus"] = index("PciBusId", "47:00.0")
for name, call, value in (("no uuid", "UUID", "GPU-x"), ("no bus", "PciBusId", "0000:ff:00.0"),
                          ("bad bus", "PciBusId", "x"), ("bus and more", "PciBusId", "0000:07:00.0x"),
                          ("no index", "Index", 8), ("no serial", "Serial", "1")):
    answers[name] = ask("nvmlDeviceGetHandleBy" + call, value)
"""
    found = answers(built("a100"), program)
    assert [found[key] for key in ("uuid", "uuidv", "binary", "pci", "lower")] == [list(range(8))] * 5
    assert found["bus"] == 2
    errors = [found[key]["error"] for key in ("no uuid", "no bus", "bad bus", "bus and more", "no index", "no serial")]
    assert errors == [6, 6, 2, 2, 2, 6]


def test_wrong_arguments_are_answered_and_not_followed() -> None:
    program = """
from ctypes import *
n.nvmlInit()
lib, gpu = n.nvmlLib, n.nvmlDeviceGetHandleByIndex(0)
name = create_string_buffer(8)
answers["small"] = lib.nvmlDeviceGetName(gpu, name, 8)
answers["null"] = lib.nvmlDeviceGetName(gpu, None, 96)
answers["handle"] = lib.nvmlDeviceGetName(c_void_p(0x1234), name, 8)
answers["no handle"] = lib.nvmlDeviceGetName(None, name, 8)
answers["instance"] = lib.nvmlGpuInstanceGetInfo(gpu, byref(n.c_nvmlGpuInstanceInfo_t()))
memory = n.c_nvmlMemory_v2_t(version=0x01000028)
answers["version"] = lib.nvmlDeviceGetMemoryInfo_v2(gpu, byref(memory))
answers["flags"] = lib.nvmlInitWithFlags(1 << 30)
answers["no gpus"] = lib.nvmlInitWithFlags(1)
"""
    expected = {"small": 7, "null": 2, "handle": 2, "no handle": 2, "instance": 2, "version": 25, "flags": 2}
    assert answers(built("a100"), program) == {**expected, "no gpus": 0}


def test_old_and_new_pci_structures_hold_the_same() -> None:
    program = """
from ctypes import *
n.nvmlInit()
gpu = n.nvmlDeviceGetHandleByIndex(1)
for call in ("nvmlDeviceGetPciInfo", "nvmlDeviceGetPciInfo_v2"):
    info = n.nvmlPciInfo_v2_t()
    assert getattr(n.nvmlLib, call)(gpu, byref(info)) == 0
    answers[call] = plain(info)
ext = n.nvmlPciInfoExt_v1_t(version=n.nvmlPciInfoExt_v1)
n.nvmlDeviceGetPciInfoExt(gpu, byref(ext))
answers["ext"] = plain(ext)
wrong = n.nvmlPciInfoExt_v1_t(version=7)
answers["wrong"] = ask("nvmlDeviceGetPciInfoExt", gpu, byref(wrong))
"""
    gpu = simnode.sample("a100")["nvml"]["gpus"][1]
    found = answers(built("a100"), program)
    for call in ("nvmlDeviceGetPciInfo", "nvmlDeviceGetPciInfo_v2"):
        assert (found[call]["busId"], found[call]["bus"]) == ("0000:0F:00.0", 15)
        assert found[call]["pciDeviceId"] == gpu["pci_device_id"]
    assert (found["ext"]["busId"], found["ext"]["pciDeviceId"]) == (gpu["pci_bus_id"], gpu["pci_device_id"])
    assert found["wrong"] == {"error": pynvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH}


EXTRAS = {
    "pci_subsystem_id": 0x12345678,
    "memory_used": 3 << 30,
    "memory_reserved": 1 << 30,
    "persistence_mode": 1,
    "architecture": 7,
    "serial": "1320021012345",
    "numa_node": 3,
    "cpu_affinity": [0xFFFF0000FFFF0000, 0xFFFFFFFFFFFFFFFF],
    "memory_affinity": [8],
    "nvlinks": [{"active": 1, "remote_pci_bus_id": "00000000:BD:00.0"}, {"active": 0}],
    "peers": [{"index": 1, "level": 50, "p2p": [0, 0, 0, 5, 6]}],
}


def test_what_may_be_described_is_answered_too() -> None:
    document = simnode.sample("no-drm")
    document["nvml"]["gpus"][0].update(EXTRAS)
    document["nvml"]["nvml_version"] = "12.550.99"
    node = simnode.build(simnode.load(document), session.new_dir("node"))
    program = """
n.nvmlInit()
gpu, other = n.nvmlDeviceGetHandleByIndex(0), n.nvmlDeviceGetHandleByIndex(1)
for name in ("PersistenceMode", "Architecture", "Serial", "NumaNodeId", "MemoryInfo"):
    answers[name] = ask("nvmlDeviceGet" + name, gpu)
answers["subsystem"] = n.nvmlDeviceGetPciInfo(gpu).pciSubSystemId
answers["version 2"] = ask("nvmlDeviceGetMemoryInfo", gpu, n.nvmlMemory_v2)
answers["cpus"] = ask("nvmlDeviceGetCpuAffinity", gpu, 3)
answers["few"] = ask("nvmlDeviceGetCpuAffinity", gpu, 1)
answers["nodes"] = ask("nvmlDeviceGetMemoryAffinity", gpu, 1, n.NVML_AFFINITY_SCOPE_NODE)
answers["links"] = [ask("nvmlDeviceGetNvLinkState", gpu, link) for link in range(3)]
answers["remote"] = [ask("nvmlDeviceGetNvLinkRemotePciInfo", gpu, link) for link in range(2)]
answers["level"] = ask("nvmlDeviceGetTopologyCommonAncestor", gpu, other)
answers["p2p"] = [ask("nvmlDeviceGetP2PStatus", gpu, other, which) for which in range(6)]
answers["back"] = ask("nvmlDeviceGetTopologyCommonAncestor", other, gpu)
answers["serial"] = n.nvmlDeviceGetIndex(n.nvmlDeviceGetHandleBySerial("1320021012345"))
answers["library"] = ask("nvmlSystemGetNVMLVersion")
"""
    found = answers(node, program)
    total = document["nvml"]["gpus"][0]["memory"]
    free = total - (4 << 30)
    assert [found[k] for k in ("PersistenceMode", "Architecture", "Serial", "NumaNodeId")] == [
        1,
        7,
        EXTRAS["serial"],
        3,
    ]
    assert found["MemoryInfo"] == {"total": total, "free": free, "used": 4 << 30}
    assert {k: found["version 2"][k] for k in ("reserved", "free", "used")} == {
        "reserved": 1 << 30,
        "free": free,
        "used": 3 << 30,
    }
    assert (found["subsystem"], found["cpus"]) == (0x12345678, [*EXTRAS["cpu_affinity"], 0])
    assert (found["few"], found["nodes"]) == ({"error": pynvml.NVML_ERROR_INSUFFICIENT_SIZE}, [8])
    assert found["links"] == [1, 0, {"error": pynvml.NVML_ERROR_INVALID_ARGUMENT}]
    assert (found["remote"][0]["busId"], found["remote"][0]["bus"]) == ("00000000:BD:00.0", 0xBD)
    assert found["remote"][1] == found["back"] == {"error": pynvml.NVML_ERROR_NOT_SUPPORTED}
    assert (found["level"], found["p2p"]) == (50, [0, 0, 0, 5, 6, {"error": pynvml.NVML_ERROR_INVALID_ARGUMENT}])
    assert (found["serial"], found["library"]) == (0, "12.550.99")


def test_errors_have_the_words_of_pynvml() -> None:
    program = "n._LoadNvmlLibrary()\nanswers = {str(c): n.nvmlErrorString(c) for c in (*range(31), 999, 12345)}"
    found = answers(built("a100"), program)
    own = {13: "Function Not Found", 16: "GPU requires reset", 17: "GPU access blocked by the operating system"}
    own |= {9: "Driver Not Loaded", 15: "GPU is lost", 18: "Driver/library version mismatch", 999: "Unknown Error"}
    assert {code: found[str(code)] for code in own} == own
    assert all(found.values())


def exported(library: Path) -> set[str]:
    done = subprocess.run(["nm", "-D", "--defined-only", library], capture_output=True, text=True, check=True)
    return {line.split()[-1] for line in done.stdout.splitlines()}


def test_every_function_that_pynvml_knows_is_there() -> None:
    library = built("a100").nvml
    assert library is not None
    asked = set(re.findall(r'_nvmlGetFunctionPointer\("(\w+)"\)', Path(pynvml.__file__).read_text()))
    there = exported(library)
    assert asked - there == set()
    assert len(asked) > 400
    assert {"nvmlInit", "nvmlInit_v2", "nvmlDeviceGetCount", "nvmlInternalGetExportTable"} <= there
    assert [name for name in there if not name.startswith("nvml")] == []


def test_a_function_that_nothing_is_known_about_is_not_supported() -> None:
    program = """
answers["before"] = ask("nvmlUnitGetCount")
n.nvmlInit()
gpu = n.nvmlDeviceGetHandleByIndex(0)
answers["power"] = ask("nvmlDeviceGetPowerUsage", gpu)
answers["processes"] = ask("nvmlDeviceGetComputeRunningProcesses_v3", gpu)
answers["mode"] = ask("nvmlDeviceSetMigMode", gpu, 1)
"""
    program = f"n._LoadNvmlLibrary()\n{program}"
    assert answers(built("a100"), program) == {
        "before": {"error": 1},
        **{key: {"error": pynvml.NVML_ERROR_NOT_SUPPORTED} for key in ("power", "processes", "mode")},
    }


def test_the_library_can_be_initialised_twice() -> None:
    program = """
n.nvmlInit(); n.nvmlInit(); n.nvmlShutdown()
answers["still"] = ask("nvmlDeviceGetCount")
n.nvmlShutdown()
answers["last"] = ask("nvmlShutdown")
"""
    assert answers(built("a100"), program) == {"still": 8, "last": {"error": 1}}


@pytest.mark.parametrize(("name", "code"), [("version-mismatch", 18), ("driver-not-loaded", 9)])
def test_a_node_without_working_nvml_refuses_to_begin(name: str, code: int) -> None:
    assert answers(built(name), 'answers["init"] = ask("nvmlInit")') == {"init": {"error": code}}


def test_of_two_versions_the_other_one_does_not_match_the_driver() -> None:
    node = built("two-versions")
    assert node.nvml is not None
    old = node.nvml.with_name("libnvidia-ml.so.535.183.01")
    program = f'import ctypes\nctypes.CDLL({str(old)!r}, ctypes.RTLD_GLOBAL)\nanswers["init"] = ask("nvmlInit")'
    assert answers(node, program) == {"init": {"error": pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH}}


def test_a_node_without_a_library_has_none_to_load() -> None:
    node = built("half-removed")
    assert (node.nvml, node.environ()) == (None, {})
    assert run(node, 'answers["init"] = ask("nvmlInit")').stdout == '{"init": {"error": 12}}\n'
