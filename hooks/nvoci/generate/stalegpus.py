"""GPUs, MIG devices and IMEX channels: those that the node has and a specification has not, and the other way round."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from nvoci.generate import devices, freshness, origin
from nvoci.generate.findings import MAX_TOLD, Finding, several
from nvoci.generate.now import CSV, NVML

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from nvoci.cdi.model import Device, Spec
    from nvoci.generate.now import Now, Part

_GPU = re.compile(r".*/nvidia[0-9]+")
_TYPE = re.compile(r"(gpu|mig)(?=[0-9])")
_NEW = "on this node, and not in the specification"



def has_gpus(spec: Spec) -> bool:
    """Whether any of its devices is a GPU, or part of one."""
    return bool(_gpu_devices(spec))


def _gpu_devices(spec: Spec) -> list[tuple[int, Device]]:
    """With their index."""
    return [(i, each) for i, each in enumerate(spec.devices)
            if any(map(_GPU.fullmatch, origin.node_paths(each.container_edits)))]  # fmt: skip


def gpus(spec: Spec, now: Now) -> list[Finding]:
    """GPUs and MIG devices that the node has and the specification has not, and the other way round."""
    own = _gpu_devices(spec)
    if not own or now.kind not in {NVML, CSV} or (now.kind == NVML and not now.module):
        return []
    if now.parts is None:
        return [*_missing_minors(spec, now), *_unknown_minors(own, now)] if now.kind == NVML else []
    known = {name: part for part in now.parts for name in part.names}
    return [*_missing(spec, now.parts, now.kind == CSV), *_unknown(own, known, now), *_others(spec, own, known)]


def _is_meant(spec: Spec) -> bool:
    """Whether what is missing was not asked for."""
    return freshness.DEVICE_IDS in spec.annotations


def _covered(spec: Spec) -> set[str]:
    """Host paths of all device nodes."""
    return {path for _, _, edits in origin.places(spec) for path in origin.node_paths(edits)}


# -- with NVML --------------------------------------------------------------------------------------------------------


def _missing(spec: Spec, parts: Iterable[Part], by_name: bool) -> list[Finding]:
    """One without a device node can be in no specification."""
    if _is_meant(spec):
        return []
    names, covered = {device.name for device in spec.devices}, _covered(spec)
    if by_name:
        missing = [part for part in parts if not names & set(part.names)]
    else:
        missing = [part for part in parts if part.needed and not part.needed <= covered]
    words = [part.words for part in missing]
    if len(words) <= MAX_TOLD:
        return [Finding("devices", each, _NEW) for each in words]
    return [Finding("devices", f"{len(words)} GPUs and MIG devices, {', '.join(words[:MAX_TOLD])}, …", _NEW)]


def _unknown(own: Iterable[tuple[int, Device]], known: Mapping[str, Part], now: Now) -> list[Finding]:
    """Devices whose name is that of a GPU, and of none that there is."""
    gone = [(i, each.name) for i, each in own if _is_gpu_name(each.name) and each.name not in known]
    if not gone:
        return []
    told = f"; {now.unanswered[0]}" if now.unanswered else ""
    return [Finding(f"devices[{gone[0][0]}].name", several("device", [name for _, name in gone]),
                    f"no GPU or MIG device of this node that answers{told}")]  # fmt: skip


def _is_gpu_name(name: str) -> bool:
    return devices.is_identifier(_TYPE.sub("", name, count=1))


def _others(spec: Spec, own: Iterable[tuple[int, Device]], known: Mapping[str, Part]) -> list[Finding]:
    """Devices that have nodes of another GPU than the one whose name they have: indices and DRM nodes may be given anew
    at each boot."""
    common = set(origin.node_paths(spec.container_edits))
    every = {path for part in known.values() for path in part.nodes}
    found: dict[tuple[str, str], list[tuple[int, str]]] = {}
    for i, device in own:
        part, has = known.get(device.name), set(origin.node_paths(device.container_edits))
        if part is None or not part.nodes:
            continue
        foreign, lacks = sorted((has & every) - part.nodes), sorted(part.nodes - has - common)
        words = [f"has {', '.join(foreign)} of another GPU"] if foreign else []
        words += [f"lacks {', '.join(lacks)}"] if lacks else []
        if words:
            found.setdefault((part.words, ", ".join(words)), []).append((i, device.name))
    return [Finding(f"devices[{which[0][0]}].{origin.COMMON}.deviceNodes",
                    f"{several('device', [name for _, name in which])}, {words}", why)
            for (words, why), which in found.items()]  # fmt: skip


# -- without ----------------------------------------------------------------------------------------------------------


def _missing_minors(spec: Spec, now: Now) -> list[Finding]:
    """Whole GPUs; of MIG devices procfs tells too little."""
    if _is_meant(spec):
        return []
    covered, whole = _covered(spec), [path for path, mig in (now.minors or {}).items() if not mig]
    return [Finding("devices", f"GPU {path}", _NEW) for path in whole if path not in covered and os.path.lexists(path)]


def _unknown_minors(own: Iterable[tuple[int, Device]], now: Now) -> list[Finding]:
    """Device nodes that were left behind."""
    found: dict[str, int] = {}
    for i, device in own:
        for path in filter(_GPU.fullmatch, origin.node_paths(device.container_edits)):
            if path not in (now.minors or {}) and os.path.lexists(path):
                found.setdefault(path, i)
    return [Finding(f"devices[{i}].{origin.COMMON}.deviceNodes", f"device node {path}", "the driver has no such GPU")
            for path, i in found.items()]  # fmt: skip


# -- other devices ----------------------------------------------------------------------------------------------------


def groups(spec: Spec, now: Now) -> list[Finding]:
    """Nodes of a kind of which the specification has some and the node has more, such as IMEX channels."""
    covered, found = _covered(spec), []
    for paths in (now.groups or {}).values():
        missing = [path for path in paths if path not in covered]
        if missing and len(missing) < len(paths) and not _is_meant(spec):
            found.append(Finding("devices", several("device node", missing), _NEW))
    return found
