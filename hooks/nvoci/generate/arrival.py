"""What of a driver is not there yet: it comes in parts, long after the machine has started, or never.

Told by procfs and by whether files are there: cheap, and nothing of the driver is loaded or opened.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nvoci.discover import fingerprint
from nvoci.discover import look as looking
from nvoci.discover.fingerprint import ABSENT
from nvoci.discover.tegra import RELEASE
from nvoci.discover.wsl import DEVICE as WINDOWS
from nvoci.generate.options import AUTO, MANAGEMENT, NVML

if TYPE_CHECKING:
    from nvoci.discover.look import Place

_MAKE = "make them: nvidia-modprobe -u -c 0, or enable nvidia-persistenced"
_CONTROL, _UVM = "/dev/nvidiactl", "/dev/nvidia-uvm"
_GPU = "/dev/nvidia"
_FAMILY = "/devices/soc0/family"
_VENDOR, _DISPLAY = "0x10de", "0x03"
_MAX_FILE = 64


@dataclass(frozen=True)
class Arrival:
    """missing: what is not there, "" if all is; hint: what makes it come. is_absent: whether that leaves no driver at
    all, and not only part of one. may_come: whether there is a GPU that a driver might come for."""

    missing: str = ""
    hint: str = ""
    is_absent: bool = False
    may_come: bool = True


def look(place: Place, mode: str) -> Arrival:
    """How far it is. mode: of `generate`; only GPUs with NVML are waited for. Raises HookError for what keeps us from
    looking at all."""
    if mode not in {AUTO, NVML, MANAGEMENT} or (mode == AUTO and is_other(place)):
        return Arrival()
    sources = place.sources()
    mark = fingerprint.take(sources)
    dev = (place.dev_root or place.root).rstrip("/")
    absent = {path for path, state in mark.watched if state == ABSENT}
    if mark.root.endswith(f" {ABSENT}"):
        return _none(f"the driver root {place.root} is not there", "is the driver's container running?", mark.module)
    if not mark.module:
        return _none("the kernel module nvidia is not loaded", "modprobe nvidia", "")
    if dev + _CONTROL in absent:
        return _none(f"{dev}{_CONTROL} is not there, though the kernel module is loaded", _MAKE, mark.module)
    if not mark.gpus:
        return _none("the kernel module has no GPU", "see lspci -d 10de: and the kernel's log for NVRM", "")
    gpus = [path for path in absent if path.startswith(dev + _GPU) and path[len(dev + _GPU) :].isdigit()]
    nodes = sorted(gpus) + ([dev + _UVM] if dev + _UVM in absent else [])
    return Arrival(f"{', '.join(nodes)} not there yet", _MAKE) if nodes else Arrival()


def _none(missing: str, hint: str, module: str) -> Arrival:
    return Arrival(missing, hint, True, bool(module) or has_gpu())


def is_other(place: Place) -> bool:
    """A Tegra system or WSL: what they need is there from the start, and may come with no kernel module `nvidia`."""
    if os.path.exists(place.root.rstrip("/") + RELEASE) or _text(looking.SYS + _FAMILY).lower().startswith("tegra"):
        return True
    return os.path.exists((place.dev_root or place.root).rstrip("/") + WINDOWS)


def has_gpu() -> bool:
    """Whether there is one on the PCI bus, whatever driver it has."""
    top = f"{looking.SYS}/bus/pci/devices"
    try:
        names = os.listdir(top)
    except OSError:
        return False
    return any(
        _text(f"{top}/{name}/vendor") == _VENDOR and _text(f"{top}/{name}/class").startswith(_DISPLAY) for name in names
    )


def _text(path: str) -> str:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read(_MAX_FILE).strip()
    except OSError:
        return ""
