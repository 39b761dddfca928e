"""Which GPUs and MIG devices the names in a request mean (`--device` of nvidia-container-cli).

A name is, and the first that fits counts: `all`; a GPU's UUID; its PCI address with the domain; its index; a MIG
device's UUID, or `MIG-GPU-UUID/GI/CI`; `G:M`, the GPU's index and the place of the MIG device in its list. Letters may
be of either case. NVML's index is meant: a GPU that does not answer leaves a hole, and no other takes its place.
"""

from __future__ import annotations

from nvoci.errors import HookError, printable
from nvoci.prestart.names import ALL

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from nvoci.discover.model import Found, Gpu, MigDevice

MAX_IMEX_CHANNEL = 1 << 20
# Of one container: each may become a device node of the host, and is a mount and a device rule. As many as there are.
MAX_IMEX_CHANNELS = 2048
_HEX = "0123456789abcdef"
_BLANKS = " \t\n\v\f\r"
# Stages of the problem that stands for an NVML that did not answer, and of that for a GPU which did not.
_NO_LIBRARY, _NO_ANSWER, _LOST = ("find NVML", "open NVML"), "ask NVML", "ask NVML about"
_FIND_DRIVER = "find the driver"  # of discover.driver
_INITIALIZATION = "initialization error"
# As the dynamic linker says it.
_NOT_THERE = "libnvidia-ml.so.1: cannot open shared object file: no such file or directory"


class Selection:
    """In the order of the request. gpus: also those of which only a MIG device was asked for. everything: `all` was."""

    __slots__ = ("everything", "gpus", "mig_devices")

    def __init__(self, gpus: Iterable[Gpu], mig_devices: Iterable[MigDevice], everything: bool) -> None:
        self.gpus = tuple(gpus)
        self.mig_devices = tuple(mig_devices)
        self.everything = everything


def check_answered(found: Found) -> None:
    """Demand that NVML is there and told of the node, whether a GPU is asked for or not: a driver that does not answer
    is of no use in a container. Raises HookError."""
    if found.gpus or _is_wsl(found):
        return
    refusal = _refusal(found)
    if refusal is not None and refusal.message.startswith(_INITIALIZATION):
        raise refusal
    if not found.driver.nvml_version and not found.driver.cuda_version:
        raise HookError(f"{_INITIALIZATION}: load library failed: {_NOT_THERE}", _why_no_library(found))


def _why_no_library(found: Found) -> str:
    if any(node.kind == "tegra" for node in found.device_nodes):
        return "a Tegra system without it: use CDI"
    told = [problem.line() for problem in found.problems if problem.stage == _FIND_DRIVER]
    return told[0] if told else "install the NVIDIA driver, or name its root"


def select(found: Found, names: Iterable[str]) -> Selection:
    """The devices of these names. Raises HookError for a name that no device has."""
    gpus: dict[int, Gpu] = {}
    migs: dict[str, MigDevice] = {}
    known = None
    for name in names:
        low = name.lower()
        if low == ALL:
            return _everything(found, gpus, migs)
        known = known or _Known(found)
        gpu = known.gpu(low)
        mig = known.mig(low) if gpu is None else None
        if mig is not None:
            migs.setdefault(mig.uuid, mig)
            gpu = known.by_index[mig.parent_index]
        if gpu is not None:
            gpus.setdefault(gpu.index, gpu)
        elif found.gpus or not _is_wsl(found):
            raise _unknown(found, name)
    return Selection(gpus.values(), migs.values(), False)


def _everything(found: Found, gpus: dict[int, Gpu], migs: dict[str, MigDevice]) -> Selection:
    """After those that were asked for by name before."""
    refusal = None if found.gpus or _is_wsl(found) else _refusal(found)
    if refusal:
        raise refusal
    for gpu in found.gpus:
        gpus.setdefault(gpu.index, gpu)
    for mig in found.mig_devices():
        migs.setdefault(mig.uuid, mig)
    return Selection(gpus.values(), migs.values(), True)


def _is_wsl(found: Found) -> bool:
    """There all GPUs are behind one node, and NVML may be missing."""
    return any(node.kind == "wsl" for node in found.device_nodes)


def _refusal(found: Found) -> HookError | None:
    """Why NVML told nothing of all GPUs, or of one, in the reference's classes; None where it told of all."""
    for problem in found.problems:
        what = f"{problem.subject}: {problem.error}"
        if problem.stage in _NO_LIBRARY:
            return HookError(f"{_INITIALIZATION}: load library failed: {what}", problem.hint)
        if problem.stage == _NO_ANSWER:
            return HookError(f"{_INITIALIZATION}: nvml error: {what}", problem.hint)
        if problem.stage == _LOST:
            return HookError(f"detection error: nvml error: {what}", problem.hint)
    return None


def _unknown(found: Found, name: str) -> HookError:
    refusal = _refusal(found)
    if refusal and not found.gpus:
        return refusal
    hint = "this node has no GPU"
    if found.gpus:
        indices = [str(gpu.index) for gpu in found.gpus[:: len(found.gpus) - 1 or 1]]
        hint = f"this node has GPU {' to '.join(indices)}" + (", and MIG devices" if found.mig_devices() else "")
    if refusal:
        hint += f"; {refusal.message.partition(': nvml error: ')[2]}"
    return HookError(f"device error: {printable(name[:200])}: unknown device", f"{hint}: see `nvoci info`")


class _Known:
    """The devices by their names, in lower case."""

    __slots__ = ("_migs", "_named", "by_index")

    def __init__(self, found: Found) -> None:
        self.by_index = {gpu.index: gpu for gpu in found.gpus}
        self._named: dict[object, Gpu] = {}
        self._migs: dict[object, MigDevice] = {}
        for gpu in reversed(found.gpus):
            for name in (gpu.uuid.lower(), *[_address(each) for each in (gpu.pci_bus_id, gpu.nvml_bus_id)]):
                if name:
                    self._named[name] = gpu
            for mig in reversed(gpu.mig_devices):
                old = f"mig-{mig.parent}/{mig.gpu_instance}/{mig.compute_instance}"
                for one in (old.lower(), mig.uuid.lower(), (mig.parent_index, mig.index)):
                    self._migs[one] = mig

    def gpu(self, name: str) -> Gpu | None:
        if name.startswith("gpu-"):
            return self._named.get(name)
        address = _address(name)
        if address is not None:
            return self._named.get(address)
        index = _number(name)
        return None if index is None else self.by_index.get(index)

    def mig(self, name: str) -> MigDevice | None:
        if name.startswith("mig-"):
            return self._migs.get(name)
        gpu, colon, place = name.partition(":")
        return self._migs.get((_number(gpu), _number(place))) if colon else None


def _address(name: str) -> tuple[int, int, int] | None:
    """Domain, bus and device of `00000000:0f:00.0`, in lower case; the function is not looked at, and may be left out.
    None for what is none."""
    domain, _, rest = name.partition(":")
    bus, colon, rest = rest.partition(":")
    device, dot, function = rest.partition(".")
    parts = (domain, bus, device)
    if not colon or len(domain) > 8 or len(bus) > 2 or len(device) > 2 or (dot and len(function) != 1):
        return None
    if not all(parts) or "".join(parts).strip(_HEX) or function.strip(_HEX):
        return None
    return int(domain, 16), int(bus, 16), int(device, 16)


def _number(name: str) -> int | None:
    """As strtoumax(3) reads it, `+` and blanks before it included; None for anything else, or what is too large."""
    digits = name.lstrip(_BLANKS)
    digits = digits[1:] if digits[:1] == "+" else digits
    if not digits.isascii() or not digits.isdigit():
        return None
    digits = digits.lstrip("0") or "0"
    return int(digits) if len(digits) < 10 else None


def management(found: Found, selection: Selection, names: Iterable[str], what: str) -> tuple[Gpu, ...]:
    """The GPUs whose MIG devices a container may see and change (what: "mig-config") or watch ("mig-monitor"): the
    selected ones that have MIG at all. Raises HookError."""
    wanted = tuple(names)
    for name in wanted:
        if name.lower() != ALL:
            raise HookError(f"{what} error: {printable(name[:200])}: only 'all' devices are currently supported")
    if not wanted:
        return ()
    if selection.mig_devices and not selection.everything:
        raise HookError(f"{what} error: cannot enable {what} with specific MIG devices selected",
                        "select whole GPUs, or `all`")  # fmt: skip
    return tuple([gpu for gpu in selection.gpus if gpu.mig_capable])


def imex_channels(names: Iterable[str]) -> tuple[int, ...]:
    """The numbers of IMEX channels, each once. Raises HookError."""
    found: dict[int, None] = {}
    for name in names:
        number = _number(name) if name.isdigit() else None
        if number is None or number >= MAX_IMEX_CHANNEL:
            raise HookError(f"error parsing IMEX info: unsupported IMEX channel value: {printable(name[:200])}",
                            f"a number below {MAX_IMEX_CHANNEL}")  # fmt: skip
        found[number] = None
        if len(found) > MAX_IMEX_CHANNELS:
            raise HookError("error parsing IMEX info: too many IMEX channels", f"at most {MAX_IMEX_CHANNELS}")
    return tuple(found)
