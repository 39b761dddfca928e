"""What each mode gives, of what discovery found; that of Tegra systems is `nvoci.generate.tegra`. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nvoci.errors import HookError, printable
from nvoci.generate import devices, driverparts, tegra
from nvoci.generate.options import ALL, COHERENT, CSV, IMEX, MANAGEMENT, NONE, NVML, WSL, GenerateOptions
from nvoci.generate.parts import CREATE_SYMLINKS, STAGE, VOID, Call, Entry, Link, Parts, Share, nothing
from nvoci.generate.shares import by_path, calls_of, chmod, gpu_share, nodes_of, unique_nodes

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from nvoci.discover.model import Found
    from nvoci.generate.devices import Chosen

    Mode = Callable[[Found, GenerateOptions, Sequence[Sequence[tuple[str, str]]]], Parts]

_EMPTY_DEVICE = "NVCT_EMPTY_DEVICE="
_MAX_CHANNEL = (1 << 20) - 1
_MAX_TOLD = 4
_SILENT = "ask NVML about"  # the stage of a problem that stands for a GPU left out
_CHANNEL = "channel"
_CHANNELS = "/dev/nvidia-caps-imex-channels"
_MAKE_CHANNEL = (
    "the driver makes channel 0 where NVreg_CreateImexChannel0=1 is set; mknod makes others, with the major of "
    "nvidia-caps-imex-channels in /proc/devices"
)
_MANAGED = ("control", "gpu", "mig", "mig-config", "mig-monitor", "imex", "other")
_UNUSABLE = "use device"  # the stage of a problem about a node that is not what it should be
_PLACES = {
    "gds": "/nvidia-fs",
    "mofed": "/infiniband/",
    "gdrcopy": "/gdrdrv",
    "nvswitch": "/nvidia-nvswitch",
    IMEX: f"{_CHANNELS}/",
}
# What there may be -> where it is looked for, and what makes it.
_GATED = {
    "gds": ("no GPUDirect Storage: no /dev/nvidia-fs*", "load its kernel module: modprobe nvidia-fs"),
    "mofed": ("no InfiniBand verbs: no /dev/infiniband/uverbs* and no rdma_cm", "is an RDMA driver loaded?"),
    "gdrcopy": ("no GDRCopy: no /dev/gdrdrv", "load its kernel module: modprobe gdrdrv"),
    "nvswitch": ("no NVSwitch: no /dev/nvidia-nvswitch* and no nvidia-nvswitchctl", "has this machine any?"),
}


def parts(mode: str, found: Found, options: GenerateOptions, link_lists: Sequence[Sequence[tuple[str, str]]]) -> Parts:
    """Of a mode, which `auto` is none of. link_lists: those of discovery. Raises HookError where there is no device."""
    return _MODES[mode](found, options, link_lists)


# -- GPUs -------------------------------------------------------------------------------------------------------------


def _nvml(found: Found, options: GenerateOptions, link_lists: object) -> Parts:
    driverparts.check(found)
    control = [each for each in found.device_nodes if each.kind == "control" and not each.owner]
    common = driverparts.share(found, options, control)
    wanted = devices.first_of_all_or_none(options.device_ids)
    if wanted == NONE:
        return Parts((Entry((NONE,), Share(env=(_EMPTY_DEVICE,))),), common)
    chosen = devices.everything(found) if wanted == ALL else devices.by_id(found, options.device_ids)
    warnings = _without_mig_devices(found) if wanted == ALL else []
    entries = []
    for each in chosen:
        missing = _missing(found, each)
        if missing and each.named:
            raise HookError(f"{STAGE}: use {each.words}: {missing}", _hint(found, each))
        if missing:
            warnings.append(f"{each.words} is left out: {missing} ({_hint(found, each)})")
        else:
            entries.append(_gpu(found, each, options))
    if not entries:
        raise _no_gpu(found, warnings)
    return Parts(tuple(entries), common, tuple(warnings))


def _no_gpu(found: Found, warnings: list[str]) -> HookError:
    if warnings:
        return nothing(f"no GPU that a container could have: {'; '.join(warnings)}", "")
    silent = [each for each in found.problems if each.stage == _SILENT]
    if silent:
        told = "; ".join([each.replace(hint="").line() for each in silent[:_MAX_TOLD]])
        return nothing(f"no GPU that answers: {told}", silent[0].hint)
    nodes = [each.host_path for each in found.device_nodes if each.kind == "gpu"]
    there = f"there is {', '.join(nodes[:_MAX_TOLD])}" if nodes else "there is no nvidia0"
    nvml = found.driver.nvml_path or f"in {found.driver.root}"
    return nothing(f"no GPU: NVML {nvml} knows of none, and in {found.driver.dev_root.rstrip('/')}/dev {there}",
                   "is there one? see lspci -d 10de: and the kernel's log for NVRM")  # fmt: skip


def _without_mig_devices(found: Found) -> list[str]:
    """GPUs of which a container can have nothing."""
    empty = [str(gpu.index) for gpu in found.gpus if gpu.mig_enabled and not gpu.mig_devices]
    if not empty:
        return []
    told = f"GPU {', '.join(empty)}: MIG mode is on and there is no MIG device, so containers can have nothing of it"
    gpu = empty[0]
    return [f"{told} (make some: nvidia-smi mig -i {gpu} -cgi PROFILE -C; or turn it off: nvidia-smi -i {gpu} -mig 0)"]


def _missing(found: Found, chosen: Chosen) -> str:
    """Which node it lacks that nothing works without; "" for none."""
    if not nodes_of(found, chosen.gpu.uuid, "gpu"):
        name = "" if chosen.gpu.minor is None else f" /dev/nvidia{chosen.gpu.minor}"
        return f"it has no device node{name}"
    if chosen.mig and len(chosen.mig.cap_nodes) != 2:
        return "it has not both of its capability nodes in /dev/nvidia-caps"
    return ""


def _hint(found: Found, chosen: Chosen) -> str:
    """What discovery says to do about it."""
    minor = chosen.gpu.minor
    ends = (chosen.gpu.uuid, f"/dev/nvidia{minor}")
    parts = (f"gpu{minor}/gi", "/dev/nvidia-caps/") if chosen.mig else ()
    for problem in found.problems:
        subject = problem.subject
        if problem.hint and (subject.endswith(ends) or any(part in subject for part in parts)):
            return problem.hint
    return "see `nvoci info`"


def _gpu(found: Found, chosen: Chosen, options: GenerateOptions) -> Entry:
    names = devices.names(options.name_strategies, chosen)
    uuid, mig = chosen.gpu.uuid, chosen.mig
    if mig is None:
        coherent = chosen.gpu.coherent if options.has(COHERENT) else None
        return Entry(names, gpu_share(nodes_of(found, uuid, "gpu", "drm")), coherent)
    drm = nodes_of(found, uuid, "drm") if mig.graphics else []
    nodes = [*nodes_of(found, uuid, "gpu"), *drm, *nodes_of(found, mig.uuid, "mig")]
    return Entry(names, Share(nodes=unique_nodes(nodes), calls=(by_path(nodes),)))


# -- everything -------------------------------------------------------------------------------------------------------


def _management(found: Found, options: GenerateOptions, link_lists: object) -> Parts:
    """All nodes of the driver, those of GPUs that do not answer too."""
    driverparts.check(found, whole=False)
    nodes = unique_nodes(each for each in found.device_nodes if each.kind in _MANAGED)
    if not nodes:
        dev = f"{found.driver.dev_root.rstrip('/')}/dev"
        raise HookError(f"{STAGE}: no NVIDIA device nodes found: none in {dev}",
                        "load the kernel module: modprobe nvidia; then make them: nvidia-modprobe")  # fmt: skip
    common = driverparts.share(found, options, graphics=False)
    return Parts((Entry((ALL,), Share(nodes=nodes, calls=(chmod(nodes),))),), common)


def _wsl(found: Found, options: GenerateOptions, link_lists: object) -> Parts:
    """One device for all GPUs."""
    nodes = [each for each in found.device_nodes if each.kind == "wsl"]
    if not nodes:
        raise nothing(
            "no GPU of Windows: no /dev/dxg", "is the NVIDIA driver of Windows installed? then `wsl --shutdown`"
        )
    mounts = tuple([each for each in found.mounts if "gds" not in each.capabilities])
    links = tuple([Link(target, path) for each in mounts for target, path in each.links])
    calls = [Call(CREATE_SYMLINKS, links=links), *calls_of(found)]
    return Parts((Entry((ALL,), Share(nodes=tuple(nodes))),), Share((VOID,), mounts=mounts, calls=tuple(calls)))


# -- parts of the machine ---------------------------------------------------------------------------------------------


def _gated(kind: str) -> Mode:
    def mode(found: Found, options: GenerateOptions, link_lists: object) -> Parts:
        nodes = unique_nodes(each for each in found.device_nodes if each.kind == kind)
        wrong = _wrong(found, kind)
        if not nodes:
            what, hint = _GATED[kind]
            raise nothing("; ".join([what, *wrong]), hint)
        mounts = tuple([each for each in found.mounts if kind in each.capabilities])
        return Parts((Entry((ALL,), Share(nodes=nodes, mounts=mounts)),), warnings=wrong)

    return mode


def _wrong(found: Found, kind: str) -> tuple[str, ...]:
    """Nodes of a part that are there and cannot be used."""
    problems = [each for each in found.problems if each.stage == _UNUSABLE and _PLACES[kind] in each.subject]
    return tuple([each.line() for each in problems])


def _imex(found: Found, options: GenerateOptions, link_lists: object) -> Parts:
    """One device for each channel, by its number."""
    known = {each.owner: each for each in found.device_nodes if each.kind == "imex"}
    top = found.driver.dev_root.rstrip("/") + _CHANNELS
    wanted = list(known) if ALL in map(_channel, options.device_ids) else [_number(each) for each in options.device_ids]
    for each in wanted:
        if each not in known:
            raise HookError(f"IMEX channel {each} not found at {top}/channel{each}", _MAKE_CHANNEL)
    wrong = _wrong(found, IMEX)
    if not wanted:
        raise nothing("; ".join([f"no IMEX channel in {top}", *wrong]), _MAKE_CHANNEL)
    entries = [Entry((each,), Share(nodes=(known[each],), path_only=True)) for each in dict.fromkeys(wanted)]
    return Parts(tuple(entries), warnings=wrong)


def _channel(unsafe_id: str) -> str:
    return unsafe_id[len(_CHANNEL) :] if unsafe_id.startswith(_CHANNEL) else unsafe_id


def _number(unsafe_id: str) -> str:
    """`7` of `channel7`. Raises HookError."""
    number = devices.number(_channel(unsafe_id))
    if number is None or number > _MAX_CHANNEL:
        raise HookError(f"invalid channel ID {printable(unsafe_id)}: must be in the range [0, {_MAX_CHANNEL}]",
                        "such as 0, channel0 or all")  # fmt: skip
    return str(number)


_MODES: dict[str, Mode] = {
    NVML: _nvml,
    CSV: tegra.parts,
    WSL: _wsl,
    MANAGEMENT: _management,
    IMEX: _imex,
    **{kind: _gated(kind) for kind in _GATED},
}
