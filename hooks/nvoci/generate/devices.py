"""Which of the node's GPUs and MIG devices are asked for, and what they are called."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from nvoci.errors import HookError, printable
from nvoci.generate.options import ALL, INDEX, NONE, TYPE_INDEX
from nvoci.generate.parts import unique

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from nvoci.discover.model import Found, Gpu, MigDevice

_UUID_PARTS = (8, 4, 4, 4, 12)
_HEX = frozenset("0123456789abcdefABCDEF")
_MAX_DIGITS = 9


@dataclass(frozen=True)
class Chosen:
    """A device. named: whether it was asked for by name, and not by `all`."""

    gpu: Gpu
    mig: MigDevice | None
    named: bool

    @property
    def words(self) -> str:
        """For people."""
        if self.mig:
            return f"MIG device {self.mig.name} ({self.mig.uuid})"
        return f"GPU {self.gpu.index} ({self.gpu.uuid})"


def first_of_all_or_none(ids: Iterable[str]) -> str:
    """ALL or NONE, whichever comes first; "" where neither is asked for."""
    return next((each for each in ids if each in (ALL, NONE)), "")


def everything(found: Found) -> list[Chosen]:
    """GPUs without MIG mode, and the MIG devices of those that have it on, in NVML's order."""
    chosen = []
    for gpu in found.gpus:
        chosen += [Chosen(gpu, mig, False) for mig in gpu.mig_devices]
        if not gpu.mig_enabled:
            chosen.append(Chosen(gpu, None, False))
    return chosen


def by_id(found: Found, ids: Sequence[str]) -> list[Chosen]:
    """Those of the identifiers, each once. Raises HookError for what is no identifier, or nobody's."""
    chosen: dict[str, Chosen] = {}
    for each in ids:
        one = _one(found, each)
        chosen.setdefault(one.mig.uuid if one.mig else one.gpu.uuid, one)
    return list(chosen.values())


def _one(found: Found, unsafe_id: str) -> Chosen:
    for gpu in found.gpus:
        if _is_gpu(gpu, unsafe_id):
            if gpu.mig_enabled:
                raise HookError(f"use GPU {gpu.index}: MIG mode is on, so it has MIG devices alone",
                                f"ask for one of {_names(gpu)}" if gpu.mig_devices else _make_some(gpu))  # fmt: skip
            return Chosen(gpu, None, True)
        for mig in gpu.mig_devices:
            if _is_mig(mig, unsafe_id):
                return Chosen(gpu, mig, True)
    if not is_identifier(unsafe_id):
        raise not_identifier(unsafe_id)
    names = ", ".join([str(gpu.index) if not gpu.mig_enabled else _names(gpu) for gpu in found.gpus])
    raise HookError(f"use GPU {printable(unsafe_id)}: no such device", f"this node has {names or 'none'}")


def _names(gpu: Gpu) -> str:
    return ", ".join([mig.name for mig in gpu.mig_devices]) or f"no MIG device on GPU {gpu.index}"


def _make_some(gpu: Gpu) -> str:
    return f"make MIG devices: nvidia-smi mig -i {gpu.index} -cgi PROFILE -C"


def not_identifier(unsafe_id: str) -> HookError:
    """In the words of the reference tools."""
    return HookError(f'identifier is not a valid UUID or index: "{printable(unsafe_id)}"',
                     "such as 0, 0:1, GPU-…, MIG-…, all or none")  # fmt: skip


def _is_gpu(gpu: Gpu, identifier: str) -> bool:
    return number(identifier) == gpu.index or identifier.lower() == gpu.uuid.lower()


def _is_mig(mig: MigDevice, identifier: str) -> bool:
    """By index, by UUID, or by the form of old drivers, MIG-GPU-UUID/GI/CI."""
    parent, separator, index = identifier.partition(":")
    if separator:
        return (number(parent), number(index)) == (mig.parent_index, mig.index)
    old = f"MIG-{mig.parent}/{mig.gpu_instance}/{mig.compute_instance}"
    return identifier.lower() in (mig.uuid.lower(), old.lower())


def number(text: str) -> int | None:
    """A decimal number; None for anything else."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS else None


def is_uuid(text: str) -> bool:
    """Five groups of hexadecimal digits."""
    parts = text.split("-")
    return tuple(map(len, parts)) == _UUID_PARTS and all(_HEX.issuperset(part) for part in parts)


def is_identifier(text: str) -> bool:
    """Whether a GPU or a MIG device might be called this."""
    if text.startswith("GPU-"):
        return is_uuid(text[4:])
    if text.startswith("MIG-"):
        return is_uuid(text[4:]) or _is_old_mig(text[4:])
    gpu, separator, mig = text.partition(":")
    return number(gpu) is not None and (not separator or number(mig) is not None)


def _is_old_mig(text: str) -> bool:
    """GPU-UUID/GI/CI."""
    parts = text.split("/")
    return (
        len(parts) == 3 and parts[0].startswith("GPU-") and is_uuid(parts[0][4:]) and None not in map(number, parts[1:])
    )


def names(strategies: Iterable[str], chosen: Chosen) -> tuple[str, ...]:
    """By each strategy."""
    device = chosen.mig
    if device is None:
        return gpu_names(strategies, chosen.gpu.index, chosen.gpu.uuid)
    known = {INDEX: device.name, TYPE_INDEX: f"mig{device.name}"}
    return unique(known.get(each, device.uuid) for each in strategies)


def gpu_names(strategies: Iterable[str], index: int, uuid: str) -> tuple[str, ...]:
    """uuid: "" for a GPU of which none is known: that strategy then gives no name."""
    known = {INDEX: str(index), TYPE_INDEX: f"gpu{index}"}
    return unique(name for each in strategies if (name := known.get(each, uuid)))
