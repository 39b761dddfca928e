"""What a specification was made for, in its annotations: enough to tell, without NVML, that it is out of date.

A device node's major number is the kernel's to choose for most drivers, at each load of a module; a specification that
has it is wrong after a boot that chose another. The names are those of /proc/devices.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from nvoci.discover.model import DeviceNode, Found

DRIVER_VERSION = "nvoci.io/driver-version"
DEVICE_MAJORS = "nvoci.io/device-majors"
DEVICE_IDS = "nvoci.io/device-ids"
"""Only where some of the node's devices were asked for: those that are missing are then meant to be."""
_ALL = "all"
_UVM = ("/dev/nvidia-uvm", "/dev/nvidia-uvm-tools")
_DRIVERS = {
    "gpu": "nvidia",
    "control": "nvidia",
    "mig": "nvidia-caps",
    "mig-config": "nvidia-caps",
    "mig-monitor": "nvidia-caps",
    "imex": "nvidia-caps-imex-channels",
    "nvswitch": "nvidia-nvswitch",
    "gds": "nvidia-fs",
    "gdrcopy": "gdrdrv",
}


def made_for(found: Found, nodes: Iterable[DeviceNode], device_ids: Iterable[str] = (_ALL,)) -> dict[str, str]:
    """The annotations of a specification with these nodes. device_ids: what was asked for. What is not known is left
    out."""
    majors = device_majors(nodes)
    ids = tuple(device_ids)
    told = {
        DRIVER_VERSION: found.driver.version,
        DEVICE_MAJORS: ",".join([f"{name}={majors[name]}" for name in sorted(majors)]),
        DEVICE_IDS: "" if _ALL in ids else ",".join(ids),
    }
    return {key: value for key, value in told.items() if value}


def device_majors(nodes: Iterable[DeviceNode]) -> dict[str, int]:
    """Driver, as /proc/devices names it -> major number; of the nodes whose driver is known."""
    found: dict[str, int] = {}
    for each in nodes:
        name = "nvidia-uvm" if each.container_path in _UVM else _DRIVERS.get(each.kind, "")
        if name and each.type:
            found.setdefault(name, each.major)
    return found


def parse_majors(text: str) -> dict[str, int]:
    """What DEVICE_MAJORS says; parts that make no sense are passed over."""
    pairs = [part.partition("=") for part in text.split(",")]
    return {name: int(number) for name, _, number in pairs if name and number.isascii() and number.isdigit()}
