"""Asks one NVML library everything a description holds: `python _nvml_child.py LIBRARY`; JSON on what was stdout.

A program of its own, since a driver library may hang, crash and write to stdout. Root becomes nobody before anything
of the library is loaded, and can not get back (no_new_privs). Needs pynvml.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pynvml as nvml

_TESTS = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(_TESTS), str(_TESTS.parent / "hooks")]
sys.dont_write_bytecode = True

from lib.simnode.answers import MAX_LINKS, NOT_SUPPORTED, P2P_CAPABILITIES, architecture  # noqa: E402
from lib.simnode.header import nvml_version, own_version  # noqa: E402
from nvoci.discover.nvml import node_groups  # noqa: E402
from nvoci.linux import abi  # noqa: E402
from nvoci.linux.syscalls import prctl  # noqa: E402

_INVALID_ARGUMENT = 2
_PROFILES = 0x20  # more than there are of any kind
_WORDS = 64
_NOBODY = 65534


def ask(call: Callable[..., Any], *arguments: Any) -> Any:
    """The answer, or {"error": CODE}."""
    try:
        return call(*arguments)
    except nvml.NVMLError as e:
        return {"error": e.value}


def is_error(value: Any) -> bool:
    """Whether `ask` met one."""
    return isinstance(value, dict) and "error" in value


def main() -> None:
    """Load the library by its path: by its soname, libnvidia-ml.so.1, pynvml then gets the same."""
    out = os.dup(1)
    os.dup2(os.open("/dev/null", os.O_WRONLY), 1)
    become_nobody()
    ctypes.CDLL(sys.argv[1], ctypes.RTLD_GLOBAL)
    begun = ask(nvml.nvmlInit)
    found = begun if is_error(begun) else node(sys.argv[1])
    with os.fdopen(out, "w") as file:
        json.dump(found, file)


def become_nobody() -> None:
    """Give up root's rights for good, but for groups that may use the driver's device nodes; die with the parent."""
    parent = os.getppid()
    groups = node_groups()  # looks at /dev
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if os.geteuid() == 0:
        os.setgroups(groups)
        os.setresgid(_NOBODY, _NOBODY, _NOBODY)
        os.setresuid(_NOBODY, _NOBODY, _NOBODY)
    prctl(abi.PR_SET_NO_NEW_PRIVS, 1)
    prctl(abi.PR_SET_PDEATHSIG, signal.SIGKILL)  # after setresuid, which clears it
    if os.getppid() != parent:
        sys.exit("the parent is gone")


def node(path: str) -> dict[str, Any]:
    """The `nvml` part of a description."""
    driver, cuda = ask(nvml.nvmlSystemGetDriverVersion), ask(nvml.nvmlSystemGetCudaDriverVersion)
    found = {"driver_version": driver, "cuda_driver_version": cuda}
    version = ask(nvml.nvmlSystemGetNVMLVersion)
    if version != nvml_version(cuda, own_version(os.path.realpath(path)) or driver):
        found["nvml_version"] = version
    count = ask(nvml.nvmlDeviceGetCount)
    handles = [ask(nvml.nvmlDeviceGetHandleByIndex, index) for index in range(0 if is_error(count) else count)]
    found["gpus"] = [
        {"index": index, **handle} if is_error(handle) else gpu(index, handle, handles)
        for index, handle in enumerate(handles)
    ]
    return found


def gpu(index: int, handle: Any, handles: list[Any]) -> dict[str, Any]:
    """One GPU."""
    found = {
        "index": index,
        "uuid": ask(nvml.nvmlDeviceGetUUID, handle),
        "minor": ask(nvml.nvmlDeviceGetMinorNumber, handle),
        "name": ask(nvml.nvmlDeviceGetName, handle),
        "brand": ask(nvml.nvmlDeviceGetBrand, handle),
        "compute_capability": _list(ask(nvml.nvmlDeviceGetCudaComputeCapability, handle)),
        "mig_mode": ask(nvml.nvmlDeviceGetMigMode, handle),
        "max_mig_devices": ask(nvml.nvmlDeviceGetMaxMigDeviceCount, handle),
        **_pci(ask(nvml.nvmlDeviceGetPciInfo_v3, handle)),
        **_memory(handle),
    }
    most = found["max_mig_devices"]
    migs = [mig(handle, each) for each in range(0 if is_error(most) else most)]
    found["mig_devices"] = [each for each in migs if each]
    return found | _optional(handle, found["compute_capability"], index, handles)


def _list(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _pci(info: Any) -> dict[str, Any]:
    if is_error(info):
        return {"pci_bus_id": info}
    found = {"pci_bus_id": info.busId, "pci_domain": info.domain, "pci_bus": info.bus, "pci_device": info.device}
    found["pci_device_id"] = info.pciDeviceId
    return {**found, "pci_subsystem_id": info.pciSubSystemId} if info.pciSubSystemId else found


def _memory(handle: Any) -> dict[str, Any]:
    """Of the two structures the second tells reserved memory from used memory; older libraries have the first."""
    info = ask(nvml.nvmlDeviceGetMemoryInfo, handle, nvml.nvmlMemory_v2)
    if is_error(info):
        info = ask(nvml.nvmlDeviceGetMemoryInfo, handle)
    if is_error(info):
        return {"memory": info}
    numbers = {"memory_used": info.used, "memory_reserved": getattr(info, "reserved", 0)}
    return {"memory": info.total, **{key: value for key, value in numbers.items() if value}}


def _optional(handle: Any, capability: Any, index: int, handles: list[Any]) -> dict[str, Any]:
    """What a description leaves out where it is as it would be without it."""
    found = {
        "persistence_mode": (ask(nvml.nvmlDeviceGetPersistenceMode, handle), 0),
        "architecture": (ask(nvml.nvmlDeviceGetArchitecture, handle), architecture(capability)),
        "serial": (ask(nvml.nvmlDeviceGetSerial, handle), None),
        "numa_node": (ask(nvml.nvmlDeviceGetNumaNodeId, handle), None),
        "cpu_affinity": (_words(ask(nvml.nvmlDeviceGetCpuAffinity, handle, _WORDS)), None),
        "memory_affinity": (_words(ask(nvml.nvmlDeviceGetMemoryAffinity, handle, _WORDS, 0)), None),
        "nvlinks": (_links(handle), None),
        "peers": (_peers(index, handles), None),
    }
    without = {"error": NOT_SUPPORTED}
    return {key: value for key, (value, default) in found.items() if value not in (default, without)}


def _words(value: Any) -> Any:
    if is_error(value):
        return value
    words = list(value)
    while words and not words[-1]:
        words.pop()
    return words


def _links(handle: Any) -> Any:
    found: list[dict[str, Any]] = []
    for number in range(MAX_LINKS):
        active = ask(nvml.nvmlDeviceGetNvLinkState, handle, number)
        if is_error(active):
            return found or (active if active["error"] != _INVALID_ARGUMENT else None)
        remote = ask(nvml.nvmlDeviceGetNvLinkRemotePciInfo, handle, number)
        found.append({"active": active} if is_error(remote) else {"active": active, "remote_pci_bus_id": remote.busId})
    return found


def _peers(index: int, handles: list[Any]) -> Any:
    found: list[dict[str, Any]] = []
    for other, handle in enumerate(handles):
        if other == index or is_error(handle):
            continue
        level = ask(nvml.nvmlDeviceGetTopologyCommonAncestor, handles[index], handle)
        p2p = [ask(nvml.nvmlDeviceGetP2PStatus, handles[index], handle, which) for which in range(P2P_CAPABILITIES)]
        peer = {} if is_error(level) else {"level": level}
        peer |= {} if any(map(is_error, p2p)) else {"p2p": p2p}
        found += [{"index": other, **peer}] if peer else []
    return found or None


def mig(parent: Any, index: int) -> dict[str, Any] | None:
    """One MIG device; None where there is none with this index."""
    handle = ask(nvml.nvmlDeviceGetMigDeviceHandleByIndex, parent, index)
    if is_error(handle):
        return None
    instance, compute = ask(nvml.nvmlDeviceGetGpuInstanceId, handle), ask(nvml.nvmlDeviceGetComputeInstanceId, handle)
    attributes = ask(nvml.nvmlDeviceGetAttributes_v2, handle)
    if not is_error(attributes):
        slices = {"gpu_instance_slices": attributes.gpuInstanceSliceCount}
        slices["compute_instance_slices"] = attributes.computeInstanceSliceCount
        attributes = {**slices, "memory_mib": attributes.memorySizeMB}
    return {
        "index": index,
        "uuid": ask(nvml.nvmlDeviceGetUUID, handle),
        "gpu_instance_id": instance,
        "compute_instance_id": compute,
        "name": ask(nvml.nvmlDeviceGetName, handle),
        **_profiles(parent, instance, compute),
        "attributes": attributes,
    }


def _profiles(parent: Any, instance_id: Any, compute_id: Any) -> dict[str, Any]:
    """Profiles are found by trying all of their numbers until one has the id."""
    instance = instance_id if is_error(instance_id) else ask(nvml.nvmlDeviceGetGpuInstanceById, parent, instance_id)
    if is_error(instance):
        return {"gpu_instance_profile": instance, "compute_instance_profile": instance}
    compute = (
        compute_id if is_error(compute_id) else ask(nvml.nvmlGpuInstanceGetComputeInstanceById, instance, compute_id)
    )
    by_kind = nvml.nvmlDeviceGetGpuInstanceProfileInfo
    gpu_profile = _profile(ask(nvml.nvmlGpuInstanceGetInfo, instance), lambda kind: ask(by_kind, parent, kind, 1))
    by_kind_too = nvml.nvmlGpuInstanceGetComputeInstanceProfileInfo
    info = compute if is_error(compute) else ask(nvml.nvmlComputeInstanceGetInfo, compute)
    compute_profile = _profile(info, lambda kind: ask(by_kind_too, instance, kind, 0, 1))
    return {"gpu_instance_profile": gpu_profile, "compute_instance_profile": compute_profile}


def _profile(instance: Any, by_kind: Callable[[int], Any]) -> dict[str, Any]:
    if is_error(instance):
        return dict(instance)
    for kind in range(_PROFILES):
        info = by_kind(kind)
        if is_error(info) or info.id != instance.profileId:
            continue
        found = {"enum": kind, "id": info.id, "slices": info.sliceCount}
        return {**found, "memory_mib": info.memorySizeMB} if hasattr(info, "memorySizeMB") else found
    return {"error": NOT_SUPPORTED}


if __name__ == "__main__":
    main()
