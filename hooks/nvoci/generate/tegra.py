"""A Tegra system: what its CSV files name, as one device, or one for the integrated and one for each discrete GPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nvoci.discover.tegra import TELL_STAGE
from nvoci.errors import HookError, printable
from nvoci.generate import devices
from nvoci.generate.options import ALL, COHERENT, INDEX, TYPE_INDEX
from nvoci.generate.parts import CREATE_SYMLINKS, EMPTY, STAGE, VOID, Call, Entry, Link, Parts, Share, nothing
from nvoci.generate.shares import calls_of, gpu_share, nodes_of, unique_nodes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nvoci.discover.model import Found, Gpu
    from nvoci.generate.options import GenerateOptions

    Links = Sequence[tuple[str, str]]

_KIND = "tegra"
_DISCRETE = ("gpu", "drm")


def parts(found: Found, options: GenerateOptions, link_lists: Sequence[Links]) -> Parts:
    """Nodes are always a device's, never common. Raises HookError."""
    nodes = [each for each in found.device_nodes if each.kind == _KIND]
    if not nodes:
        raise nothing("no device of a Tegra system: the CSV files name none that is there",
                      "is this a Tegra system? reinstall nvidia-l4t-init, or name its CSV files")  # fmt: skip
    mounts = tuple([each for each in found.mounts if "gds" not in each.capabilities])
    lists = link_lists or [[link for each in mounts for link in each.links]]
    links = [Call(CREATE_SYMLINKS, links=tuple([Link(target, path) for target, path in each])) for each in lists]
    common = Share((VOID,), mounts=mounts, calls=(*links, *calls_of(found)))
    if len({each.owner for each in nodes}) == 1:
        told = [each.line() for each in found.problems if each.stage == TELL_STAGE]
        return Parts((_single(found, options),), common, tuple(told))
    return Parts(tuple([_gpu(found, gpu, options) for gpu in _chosen(found, options.device_ids)]), common)


def _single(found: Found, options: GenerateOptions) -> Entry:
    """All of it is GPU 0, of which no UUID is told."""
    for each in options.device_ids:
        if each not in {ALL, "0"}:
            raise HookError(f"unsupported device id: {printable(each)}", "this system is one device, 0 or all")
    names = devices.gpu_names(options.name_strategies, 0, "")
    if not names:
        raise HookError(f"{STAGE}: name the device: {EMPTY}", f"it has no UUID: use {INDEX} or {TYPE_INDEX}")
    return Entry(names, Share(nodes=unique_nodes(each for each in found.device_nodes if each.kind == _KIND)))


def _chosen(found: Found, ids: Sequence[str]) -> list[Gpu]:
    if ALL in ids:
        return list(found.gpus)
    chosen: dict[str, Gpu] = {}
    for each in ids:
        gpu = _one(found, each)
        chosen.setdefault(gpu.uuid, gpu)
    return list(chosen.values())


def _one(found: Found, unsafe_id: str) -> Gpu:
    """By index or UUID; that of an integrated GPU may be a bare one."""
    for gpu in found.gpus:
        if devices.number(unsafe_id) == gpu.index or unsafe_id.lower() == gpu.uuid.lower():
            return gpu
    if unsafe_id.startswith("MIG-") or ":" in unsafe_id:
        raise HookError(f'generating a CDI spec for MIG id "{printable(unsafe_id)}" is not supported in CSV mode',
                        "ask for a GPU")  # fmt: skip
    if not devices.is_identifier(unsafe_id) and not devices.is_uuid(unsafe_id):
        raise devices.not_identifier(unsafe_id)
    raise HookError(f"use GPU {printable(unsafe_id)}: no such device",
                    f"this node has {', '.join([str(gpu.index) for gpu in found.gpus])}")  # fmt: skip


def _gpu(found: Found, gpu: Gpu, options: GenerateOptions) -> Entry:
    names = devices.gpu_names(options.name_strategies, gpu.index, gpu.uuid)
    listed = nodes_of(found, gpu.uuid, _KIND)
    if gpu.integrated:
        return Entry(names, Share(nodes=tuple(listed)))
    share = gpu_share(nodes_of(found, gpu.uuid, *_DISCRETE), [*nodes_of(found, gpu.uuid, "control"), *listed])
    return Entry(names, share, gpu.coherent if options.has(COHERENT) else None)
