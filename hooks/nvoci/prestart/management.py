"""MIG in a container: the capability files and nodes of single devices, and those of who manages or watches all.

A capability is a file below /proc/driver/nvidia/capabilities; opening it needs the device node of its number
(/dev/nvidia-caps), where the driver has such nodes (from 450 on). The tables that say so are the host's own, whatever
the driver root.
"""

from __future__ import annotations

from errno import ENOENT, ENOTDIR

from nvoci.errors import HookError, hook_error, printable
from nvoci.linux import procfs
from nvoci.linux.devicerule import DeviceRule

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from nvoci.discover.model import DeviceNode, Gpu, MigDevice

CAPABILITIES = "driver/nvidia/capabilities"
NODES = "/dev/nvidia-caps"
_MINORS = b"driver/nvidia-caps/mig-minors"
_DRIVER = b"nvidia-caps"
_LIMIT = 4 << 20
_MAKE = "make its nodes: nvidia-modprobe -f /proc/{}"


def access_files(mig: MigDevice, gpu: Gpu) -> list[str]:
    """Below /proc: of the GPU instance, then of the compute instance."""
    if gpu.minor is None:
        raise HookError(f"mount error: GPU {gpu.uuid}: no minor number", "NVML does not tell it: update the driver")
    top = f"{CAPABILITIES}/gpu{gpu.minor}/mig/gi{mig.gpu_instance}"
    return [f"{top}/access", f"{top}/ci{mig.compute_instance}/access"]


def check_nodes(mig: MigDevice, files: list[str], nodes: list[DeviceNode]) -> None:
    """A device node for each access file, unless the driver has none at all. Raises HookError."""
    if len(nodes) < len(files) and major() is not None:
        raise HookError(f"mount error: {printable(mig.uuid)}: {len(nodes)} of its {len(files)} nodes in {NODES}",
                        _MAKE.format(files[len(nodes)]))  # fmt: skip


def major() -> int | None:
    """Of /dev/nvidia-caps, as /proc/devices has it."""
    for line in _read(b"devices").partition(b"Block devices:")[0].split(b"\n"):
        number, _, name = line.strip().partition(b" ")
        if name == _DRIVER and number.isdigit():
            return int(number)
    return None


def rules(gpus: Iterable[Gpu]) -> list[DeviceRule]:
    """For all MIG devices that these GPUs have or may get: their numbers are set before there are nodes."""
    number = major()
    if number is None:
        return []
    wanted = tuple([b"gpu%d/" % gpu.minor for gpu in gpus if gpu.minor is not None])
    found = []
    for line in _read(_MINORS).split(b"\n"):
        name, _, minor = line.rpartition(b" ")
        if wanted and name.startswith(wanted) and minor.isdigit() and len(minor) < 8:
            found.append(DeviceRule("c", number, int(minor)))
    return found


def _read(path: bytes) -> bytes:
    """A file of procfs; empty where it is not there."""
    try:
        return procfs.read(path, _LIMIT)
    except OSError as e:
        if e.errno in (ENOENT, ENOTDIR):
            return b""
        raise hook_error("read", b"/proc/" + path, e) from None
