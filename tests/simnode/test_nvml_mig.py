"""What pynvml gets from the simulated library about MIG devices, and about the instances they are made of."""

from __future__ import annotations

from typing import Any

import pynvml
from lib import simnode
from simnode.nodes import answers, built, needs_x86

pytestmark = needs_x86

MIG = """
n.nvmlInit()
answers["gpus"] = []
for index in range(n.nvmlDeviceGetCount()):
    parent = n.nvmlDeviceGetHandleByIndex(index)
    migs = []
    for position in range(n.nvmlDeviceGetMaxMigDeviceCount(parent)):
        try:
            handle = n.nvmlDeviceGetMigDeviceHandleByIndex(parent, position)
        except n.NVMLError as e:
            migs.append(e.value)
            continue
        gi = n.nvmlDeviceGetGpuInstanceById(parent, n.nvmlDeviceGetGpuInstanceId(handle))
        ci = n.nvmlGpuInstanceGetComputeInstanceById(gi, n.nvmlDeviceGetComputeInstanceId(handle))
        gi_info, ci_info = n.nvmlGpuInstanceGetInfo(gi), n.nvmlComputeInstanceGetInfo_v2(ci)
        attributes = n.nvmlDeviceGetAttributes_v2(handle)
        migs.append({
            "uuid": n.nvmlDeviceGetUUID(handle),
            "index": n.nvmlDeviceGetIndex(handle),
            "is_mig": n.nvmlDeviceIsMigDeviceHandle(handle).value,
            "name": ask("nvmlDeviceGetName", handle),
            "parent": n.nvmlDeviceGetIndex(n.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(handle)),
            "gi": gi_info.id, "ci": ci_info.id,
            "gi_profile": gi_info.profileId, "ci_profile": ci_info.profileId,
            "gi_parent": n.nvmlDeviceGetIndex(gi_info.device),
            "ci_parent": n.nvmlGpuInstanceGetInfo(ci_info.gpuInstance).id,
            "gi_place": [gi_info.placement.start, gi_info.placement.size],
            "slices": [attributes.gpuInstanceSliceCount, attributes.computeInstanceSliceCount],
            "mib": attributes.memorySizeMB,
            "bytes": n.nvmlDeviceGetMemoryInfo(handle).total,
            "by_uuid": n.nvmlDeviceGetIndex(n.nvmlDeviceGetHandleByUUID(n.nvmlDeviceGetUUID(handle))),
            "pci": ask("nvmlDeviceGetPciInfo", handle),
        })
    answers["gpus"].append(migs)
    answers["beyond"] = ask("nvmlDeviceGetMigDeviceHandleByIndex", parent, 7)
"""


def expected_mig(mig: dict[str, Any], parent: int, start: int) -> dict[str, Any]:
    attributes, gpu_profile = mig["attributes"], mig["gpu_instance_profile"]
    return {
        "uuid": mig["uuid"],
        "index": mig["index"],
        "is_mig": 1,
        "name": mig["name"],
        "parent": parent,
        "gi": mig["gpu_instance_id"],
        "ci": mig["compute_instance_id"],
        "gi_profile": gpu_profile["id"],
        "ci_profile": mig["compute_instance_profile"]["id"],
        "gi_parent": parent,
        "ci_parent": mig["gpu_instance_id"],
        "gi_place": [start, gpu_profile["slices"]],
        "slices": [attributes["gpu_instance_slices"], attributes["compute_instance_slices"]],
        "mib": attributes["memory_mib"],
        "bytes": attributes["memory_mib"] << 20,
        "by_uuid": mig["index"],
        "pci": {"error": pynvml.NVML_ERROR_INVALID_ARGUMENT},
    }


def test_every_mig_device_answers_as_described() -> None:
    expected = []
    for gpu in simnode.sample("a100-mig")["nvml"]["gpus"]:
        found: list[Any] = [pynvml.NVML_ERROR_NOT_FOUND] * 7
        starts: dict[int, int] = {}
        for mig in gpu["mig_devices"]:
            instance = mig["gpu_instance_id"]
            taken = {m["gpu_instance_id"]: m["gpu_instance_profile"]["slices"] for m in gpu["mig_devices"]}
            starts.setdefault(instance, sum(taken[each] for each in starts))
            found[mig["index"]] = expected_mig(mig, gpu["index"], starts[instance])
        expected.append(found)
    found_all = answers(built("a100-mig"), MIG)
    assert found_all["gpus"] == expected
    assert found_all["beyond"] == {"error": pynvml.NVML_ERROR_INVALID_ARGUMENT}


def test_instances_can_be_enumerated_by_their_profiles() -> None:
    program = """
n.nvmlInit()
gpu = n.nvmlDeviceGetHandleByIndex(1)
for kind in range(n.NVML_GPU_INSTANCE_PROFILE_COUNT + 1):
    for version in (1, 2):
        answers[f"{kind} v{version}"] = ask("nvmlDeviceGetGpuInstanceProfileInfo", gpu, kind, version)
count = n.c_uint()
array = (n.c_nvmlGpuInstance_t * 7)()
n.nvmlDeviceGetGpuInstances(gpu, 9, array, n.byref(count))
answers["instances"] = [n.nvmlGpuInstanceGetInfo(each).id for each in array[:count.value]]
gi = array[0]
compute = (n.c_nvmlComputeInstance_t * 7)()
for profile in (0, 1, 2):
    n.nvmlGpuInstanceGetComputeInstances(gi, profile, compute, n.byref(count))
    answers[f"compute {profile}"] = [n.nvmlComputeInstanceGetInfo(each).id for each in compute[:count.value]]
answers["shared"] = ask("nvmlGpuInstanceGetComputeInstanceProfileInfo", gi, 1, 0)
answers["no engine"] = ask("nvmlGpuInstanceGetComputeInstanceProfileInfo", gi, 1, 1)
"""
    found = answers(built("a100-mig"), program)
    assert (found["instances"], [found[f"compute {p}"] for p in (0, 1, 2)]) == ([2], [[0], [1], []])
    known = {key for key, value in found.items() if " v" in key and "error" not in value}
    assert known == {"2 v1", "2 v2"}
    assert {key: found["2 v2"][key] for key in ("id", "sliceCount", "instanceCount", "memorySizeMB", "name")} == {
        "id": 9,
        "sliceCount": 3,
        "instanceCount": 2,
        "memorySizeMB": 19968,
        "name": "MIG 3g.20gb",
    }
    assert found["2 v1"] == {key: value for key, value in found["2 v2"].items() if key not in {"version", "name"}}
    assert found["18 v2"] == {"error": pynvml.NVML_ERROR_INVALID_ARGUMENT}
    assert (found["shared"]["id"], found["shared"]["sliceCount"], found["shared"]["name"]) == (1, 2, "MIG 2c.3g.20gb")
    assert found["no engine"] == {"error": pynvml.NVML_ERROR_INVALID_ARGUMENT}
