"""answers.h: what the simulated NVML library of one node answers, as C tables (their types stand in nvml_types.h)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from lib.simnode.answers import NOT_SUPPORTED, architecture
from lib.simnode.description import DRIVER_NOT_LOADED, ElfNote, Entry

LIB_RM_VERSION_MISMATCH = 18
_MISSING = {"error": NOT_SUPPORTED}
_PLAIN = re.compile(rb"[A-Za-z0-9 _.:/+-]")


def text(entry: Entry, nvml: Mapping[str, Any]) -> str:
    """The header for the library at `entry`. Its own version is that of its name: where the driver has another one,
    nvmlInit answers NVML_ERROR_LIB_RM_VERSION_MISMATCH, as a real library does."""
    code, version = nvml.get("error", 0), nvml.get("driver_version", "")
    own = own_version(entry.path)
    if not code and own and isinstance(version, str) and own != version:
        code = LIB_RM_VERSION_MISMATCH
    gpus = [] if code else nvml["gpus"]
    return "\n".join(
        [
            f"#define GPU_COUNT {len(gpus)}u",
            f"#define MIG_COUNT {sum(len(gpu.get('mig_devices', ())) for gpu in gpus)}u",
            f"static const char OWN_PATH[] = {_string(entry.path)};",
            f"static const int INIT_RETURN = {code};",
            *_system(nvml, own),
            *(line for index, gpu in enumerate(gpus) for line in _arrays(index, gpu)),
            f"static const struct mig MIGS[] = {{\n{_migs(gpus)}}};",
            f"static const struct gpu GPUS[] = {{\n{''.join(_gpu(gpu, i) for i, gpu in enumerate(gpus))}{{0}}}};",
            *_notes(entry.elf.notes if entry.elf else ()),
            "",
        ]
    )


def own_version(path: str) -> str:
    """ "550.163.01" for /usr/lib/libnvidia-ml.so.550.163.01; "" where the name has none (libnvidia-ml.so.1)."""
    found = re.search(r"\.so\.(\d+\.\d[\d.]*)$", path)
    return found[1] if found else ""


def nvml_version(cuda: Any, driver: Any) -> str:
    """What nvmlSystemGetNVMLVersion answers: major version of CUDA, then the driver's."""
    return f"{cuda // 1000 if isinstance(cuda, int) else 0}.{driver if isinstance(driver, str) else '0'}"


def _system(nvml: Mapping[str, Any], own: str) -> Iterable[str]:
    cuda = nvml.get("cuda_driver_version", {"error": DRIVER_NOT_LOADED})
    driver = nvml.get("driver_version", {"error": DRIVER_NOT_LOADED})
    version = nvml.get("nvml_version", nvml_version(cuda, own or driver))
    yield f"static const struct text DRIVER_VERSION = {_text(driver)};"
    yield f"static const struct text NVML_VERSION = {_text(version)};"
    yield f"static const struct number CUDA_VERSION = {_number(cuda)};"


def _string(value: str) -> str:
    """A string literal of C. All but a few harmless characters are octal escapes, which end after three digits: a
    compiler sees no quotes, backslashes, line ends or trigraphs ("??/") in it."""
    data = value.encode("utf-8", "surrogateescape")
    return '"' + "".join(chr(b) if _PLAIN.match(bytes([b])) else f"\\{b:03o}" for b in data) + '"'


def _is_error(value: Any) -> bool:
    return isinstance(value, Mapping) and "error" in value


def _text(value: Any) -> str:
    return f"{{{value['error']}, 0}}" if _is_error(value) else f"{{0, {_string(value)}}}"


def _number(value: Any) -> str:
    return f"{{{value['error']}, 0}}" if _is_error(value) else f"{{0, {value}u}}"


def _pair(value: Any) -> str:
    return f"{{{value['error']}, {{0}}}}" if _is_error(value) else f"{{0, {{{value[0]}, {value[1]}}}}}"


def _group(value: Any, *keys: str) -> str:
    """A struct of a return code and numbers."""
    if _is_error(value):
        return f"{{.ret = {value['error']}}}"
    return "{0, " + ", ".join(str(value[key]) for key in keys) + "}"


def _list(value: Any, name: str) -> str:
    """A struct of a return code, a count, and an array that _arrays has written."""
    return f"{{.ret = {value['error']}}}" if _is_error(value) else f"{{0, {len(value)}, {name}}}"


def _arrays(index: int, gpu: Mapping[str, Any]) -> Iterable[str]:
    for key, kind in (("cpu_affinity", "uint64_t"), ("memory_affinity", "uint64_t")):
        if isinstance(gpu.get(key), list):
            yield f"static const {kind} {key}_{index}[] = {{{', '.join(f'{word}u' for word in gpu[key])}}};"
    if isinstance(gpu.get("nvlinks"), list):
        yield f"static const struct link nvlinks_{index}[] = {{{', '.join(map(_link, gpu['nvlinks']))}}};"
    if isinstance(gpu.get("peers"), list):
        yield f"static const struct peer peers_{index}[] = {{{', '.join(map(_peer, gpu['peers']))}}};"


def _link(link: Mapping[str, Any]) -> str:
    remote = link.get("remote_pci_bus_id")
    return f"{{{link['active']}, {_string(remote) if remote else 0}}}"


def _peer(peer: Mapping[str, Any]) -> str:
    level, p2p = peer.get("level"), peer.get("p2p")
    numbers = ", ".join(map(str, p2p or [0]))
    return f"{{{peer['index']}, {int(level is not None)}, {level or 0}, {int(p2p is not None)}, {{{numbers}}}}}"


def _gpu(gpu: Mapping[str, Any], index: int) -> str:
    if "error" in gpu:
        return f"{{.ret = {gpu['error']}}},\n"
    fields = {key: _text(gpu.get(key, _MISSING)) for key in ("uuid", "name", "serial")}
    numbers = ("minor", "brand", "memory", "max_mig_devices", "numa_node")
    fields |= {key: _number(gpu.get(key, _MISSING)) for key in numbers}
    zeros = ("memory_used", "memory_reserved", "persistence_mode", "pci_subsystem_id")
    fields |= {key: _number(gpu.get(key, 0)) for key in zeros}
    fields["architecture"] = _number(gpu.get("architecture", architecture(gpu["compute_capability"])))
    fields |= {key: _pair(gpu[key]) for key in ("compute_capability", "mig_mode")}
    fields["pci"] = _pci(gpu)
    for key in ("cpu_affinity", "memory_affinity", "nvlinks", "peers"):
        fields[key] = _list(gpu.get(key, _MISSING), f"{key}_{index}")
    return "{" + ",\n ".join(f".{key} = {value}" for key, value in fields.items()) + "},\n"


def _pci(gpu: Mapping[str, Any]) -> str:
    if _is_error(gpu["pci_bus_id"]):
        return f"{{.ret = {gpu['pci_bus_id']['error']}}}"
    numbers = ", ".join(str(gpu[key]) + "u" for key in ("pci_domain", "pci_bus", "pci_device", "pci_device_id"))
    return f"{{0, {numbers}, {_string(gpu['pci_bus_id'])}}}"


def _migs(gpus: Iterable[Mapping[str, Any]]) -> str:
    """All MIG devices. Where they lie is not described: one beside the other, in the order of the list."""
    out = ""
    for index, gpu in enumerate(gpus):
        starts: dict[Any, int] = {}
        used: dict[Any, int] = {}
        for mig in gpu.get("mig_devices", ()):
            instance = str(mig["gpu_instance_id"])
            if instance not in starts:
                starts[instance] = sum(used.values())
                used[instance] = _slices(mig["gpu_instance_profile"])
            within = f"{instance} "
            out += _mig(mig, index, starts[instance], starts.get(within, 0))
            starts[within] = starts.get(within, 0) + _slices(mig["compute_instance_profile"])
    return out + "{0}"


def _slices(profile: Mapping[str, Any]) -> int:
    return int(profile.get("slices", 0))


def _mig(mig: Mapping[str, Any], gpu: int, gpu_start: int, compute_start: int) -> str:
    fields = {"gpu": str(gpu), "index": str(mig["index"])}
    fields |= {"gpu_start": str(gpu_start), "compute_start": str(compute_start)}
    fields |= {key: _text(mig[key]) for key in ("uuid", "name")}
    fields |= {key: _number(mig[key]) for key in ("gpu_instance_id", "compute_instance_id")}
    fields["gpu_instance_profile"] = _group(mig["gpu_instance_profile"], "enum", "id", "slices", "memory_mib")
    profile = mig["compute_instance_profile"]
    fields["compute_instance_profile"] = _group(profile, "enum", "id", "slices")
    slices = ("gpu_instance_slices", "compute_instance_slices", "memory_mib")
    fields["attributes"] = _group(mig["attributes"], *slices)
    return "{" + ", ".join(f".{key} = {value}" for key, value in fields.items()) + "},\n"


def _notes(notes: Iterable[ElfNote]) -> Iterable[str]:
    for index, note in enumerate(notes):
        data = ", ".join(map(str, note.raw))
        where = f"__attribute__((section({_string(note.section)}), aligned(4), used))"
        yield f"{where} static const unsigned char NOTE_{index}[] = {{{data}}};"
