"""What NVML answers on a node: the `nvml` part of a description, its check, and the values that follow from others.

    {"driver_version": "550.163.01", "cuda_driver_version": 12040, "gpus": [GPU…]}      optional: "nvml_version"
    {"error": 9}                  nvmlInit answers with this nvmlReturn_t

    GPU     index, uuid, minor, name, brand, compute_capability [8, 0], pci_bus_id "00000000:07:00.0", pci_domain,
            pci_bus, pci_device, pci_device_id (device << 16 | vendor), memory (bytes), mig_mode [current, pending],
            max_mig_devices, mig_devices [MIG…]
            {"index": 3, "error": 15}       its handle can not be had
      optional, with what holds where it is missing:
            pci_subsystem_id (0), memory_used (0), memory_reserved (0), persistence_mode (0), architecture (follows from
            compute_capability), serial, numa_node, cpu_affinity [words of 64 bits], memory_affinity [words],
            nvlinks [{"active": 1, "remote_pci_bus_id": "…"}], peers [{"index": 1, "level": 30, "p2p": [0, 0, 0, 0, 0]}]
            (NVML_ERROR_NOT_SUPPORTED)
    MIG     index, uuid, gpu_instance_id, compute_instance_id, name,
            gpu_instance_profile {enum, id, slices, memory_mib}, compute_instance_profile {enum, id, slices},
            attributes {gpu_instance_slices, compute_instance_slices, memory_mib}

Any value that one call answers may be {"error": CODE} instead; pci_bus_id stands for all of nvmlPciInfo_t. Numbers of
NVML are those of nvml.h: nvmlReturn_t, nvmlBrandType_t, nvmlGpuTopologyLevel_t, NVML_GPU_INSTANCE_PROFILE_*.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from lib.simnode.document import At

NOT_SUPPORTED = 3
MAX_GPUS, MAX_MIG, MAX_LINKS, MAX_WORDS = 64, 64, 36, 64
BUS_ID = "[0-9A-Fa-f]{8}:[0-9A-Fa-f]{2}:[0-9A-Fa-f]{2}\\.0"
P2P_CAPABILITIES = 5  # READ, WRITE, NVLINK, ATOMICS, PCI
_U64 = (1 << 64) - 1
_PCI = ("pci_domain", "pci_bus", "pci_device", "pci_device_id")
# Capability from which an architecture (nvmlDeviceArchitecture_t) counts.
_ARCHITECTURES = (
    ((3, 0), 2),
    ((5, 0), 3),
    ((6, 0), 4),
    ((7, 0), 5),
    ((7, 5), 6),
    ((8, 0), 7),
    ((8, 9), 8),
    ((9, 0), 9),
)
_BLACKWELL = 10

Check = Callable[[At], Any]


def architecture(capability: Any) -> Any:
    """nvmlDeviceArchitecture_t that a compute capability has; an error where that is one."""
    if isinstance(capability, Mapping):
        return dict(capability)
    if tuple(capability) >= (10, 0):
        return _BLACKWELL
    return next((arch for least, arch in reversed(_ARCHITECTURES) if tuple(capability) >= least), 0xFFFFFFFF)


def check(at: At) -> dict[str, Any]:
    """The `nvml` member, checked; the same values."""
    if _is_error(at):
        return _error(at)
    members = at.object({"driver_version", "cuda_driver_version", "gpus"}, {"nvml_version"})
    _answer(_text(79))(members["driver_version"])
    _answer(_number(1 << 30))(members["cuda_driver_version"])
    if "nvml_version" in members:
        _answer(_text(79))(members["nvml_version"])
    gpus = members["gpus"].each(_gpu, MAX_GPUS)
    for position, gpu in enumerate(gpus):
        if gpu["index"] != position:
            members["gpus"].array()[position].fail(f"index {gpu['index']} is not its place in the list, {position}")
    _check_unique(members["gpus"])
    return dict(at.value)


def _check_unique(at: At) -> None:
    """Handles are asked for by UUID and by bus id: each leads to one device."""
    seen: dict[str, str] = {}
    for gpu in at.array():
        members = [gpu, *(gpu.object(gpu.value)["mig_devices"].array() if "mig_devices" in gpu.value else [])]
        for member in members:
            for key in ("uuid", "pci_bus_id"):
                value = member.value.get(key)
                name = f"{key} {value.upper()}" if isinstance(value, str) else ""
                if name and name in seen:
                    member.fail(f"{key} `{value}` is that of {seen[name]} already")
                seen[name] = member.place


def _gpu(at: At) -> dict[str, Any]:
    if isinstance(at.value, dict) and "error" in at.value:
        members = at.object({"index", "error"})
        members["error"].number(999, 1)
        members["index"].number(MAX_GPUS)
        return dict(at.value)
    is_pci = not (isinstance(at.value, dict) and isinstance(at.value.get("pci_bus_id"), dict))
    required = {*_GPU, *(_PCI if is_pci else ())}
    members = at.object({"index", "mig_devices", *required}, {*_GPU_OPTIONAL, *_PCI})
    members["index"].number(MAX_GPUS)
    for key, member in members.items():
        if key in _GPU:
            _answer(_GPU[key])(member)
        elif key in _GPU_OPTIONAL:
            _answer(_GPU_OPTIONAL[key])(member)
        elif key in _PCI:
            member.number()
    migs = members["mig_devices"].each(_mig, MAX_MIG)
    most = members["max_mig_devices"].value
    for mig, each in zip(migs, members["mig_devices"].array()):
        if mig["index"] >= (most if isinstance(most, int) else 0):
            each.fail(f"index {mig['index']} is not below max_mig_devices")
    if len({mig["index"] for mig in migs}) != len(migs):
        members["mig_devices"].fail("an index stands twice")
    return dict(at.value)


def _mig(at: At) -> dict[str, Any]:
    members = at.object({"index", *_MIG})
    members["index"].number(MAX_MIG)
    for key, checker in _MIG.items():
        _answer(checker)(members[key])
    return dict(at.value)


def _is_error(at: At) -> bool:
    return isinstance(at.value, dict) and "error" in at.value


def _error(at: At) -> dict[str, Any]:
    at.object({"error"})["error"].number(999, 1)
    return dict(at.value)


def _answer(checker: Check) -> Check:
    """`checker`, or {"error": CODE}."""
    return lambda at: _error(at) if _is_error(at) else checker(at)


def _text(most: int) -> Check:
    return lambda at: at.text(most)


def _number(most: int = (1 << 32) - 1, least: int = 0) -> Check:
    return lambda at: at.number(most, least)


def _numbers(count: int, most: int = (1 << 32) - 1) -> Check:
    def checker(at: At) -> None:
        if len(at.each(lambda each: each.number(most), MAX_WORDS)) != count:
            at.fail(f"{len(at.value)} numbers, not {count}")

    return checker


def _fields(*keys: str) -> Check:
    def checker(at: At) -> None:
        for member in at.object(set(keys)).values():
            member.number()

    return checker


def _words(at: At) -> None:
    at.each(lambda each: each.number(_U64), MAX_WORDS)


def _links(at: At) -> None:
    for link in at.array(MAX_LINKS):
        members = link.object({"active"}, {"remote_pci_bus_id"})
        members["active"].number(1)
        if "remote_pci_bus_id" in members:
            members["remote_pci_bus_id"].text(31, BUS_ID)


def _peers(at: At) -> None:
    for peer in at.array(MAX_GPUS):
        members = peer.object({"index"}, {"level", "p2p"})
        members["index"].number(MAX_GPUS)
        if "level" in members:
            members["level"].number(50)
        if "p2p" in members:
            _numbers(P2P_CAPABILITIES, 6)(members["p2p"])


_GPU: dict[str, Check] = {
    "uuid": _text(95),
    "minor": _number(),
    "name": _text(95),
    "brand": _number(),
    "compute_capability": _numbers(2),
    "pci_bus_id": lambda at: at.text(31, BUS_ID),
    "memory": _number(_U64),
    "mig_mode": _numbers(2, 1),
    "max_mig_devices": _number(MAX_MIG),
}
_GPU_OPTIONAL: dict[str, Check] = {
    "pci_subsystem_id": _number(),
    "memory_used": _number(_U64),
    "memory_reserved": _number(_U64),
    "persistence_mode": _number(1),
    "architecture": _number(),
    "serial": _text(29),
    "numa_node": _number(1 << 16),
    "cpu_affinity": _words,
    "memory_affinity": _words,
    "nvlinks": _links,
    "peers": _peers,
}
_MIG: dict[str, Check] = {
    "uuid": _text(95),
    "gpu_instance_id": _number(255),
    "compute_instance_id": _number(255),
    "name": _text(95),
    "gpu_instance_profile": _fields("enum", "id", "slices", "memory_mib"),
    "compute_instance_profile": _fields("enum", "id", "slices"),
    "attributes": _fields("gpu_instance_slices", "compute_instance_slices", "memory_mib"),
}
