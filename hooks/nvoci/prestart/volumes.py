"""Devices asked for by mounts: /dev/null on /var/run/nvidia-container-devices/NAME. A cluster can say who may mount,
where anybody can set a variable."""

from __future__ import annotations

from nvoci import log
from nvoci.prestart.ask import MOUNTS
from nvoci.prestart.names import qualified

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    Mounts = Iterable[tuple[str, str]]

_CDI, _IMEX = "cdi/", "imex/"
_SOURCE = "/dev/null"


def devices(mounts: Mounts) -> list[str]:
    """The names of devices, each once. `cdi/VENDOR/CLASS/DEVICE` stands for a CDI device. mounts: (source,
    destination)."""
    found = []
    for name in _names(mounts):
        if name.startswith(_CDI):
            device = _cdi_device(name[len(_CDI) :])
            if not qualified(device):
                log.warning("a mount names no CDI device: ignored", mount=f"{MOUNTS}/{name[:200]}")
                continue
            found.append(device)
        elif not name.startswith(_IMEX):
            found.append(name)
    return list(dict.fromkeys(found))


def imex_channels(mounts: Mounts) -> list[str]:
    """The names of IMEX channels, those below `imex`."""
    return [name[len(_IMEX) :] for name in _names(mounts) if name.startswith(_IMEX)]


def _names(mounts: Mounts) -> list[str]:
    """What is mounted below MOUNTS, in order."""
    top = MOUNTS + "/"
    found: dict[str, None] = {}
    for source, destination in mounts:
        if "null" in source and clean(source) == _SOURCE:
            path = clean(destination)
            if path.startswith(top):
                found[path[len(top) :]] = None
    return list(found)


def _cdi_device(name: str) -> str:
    if qualified(name):
        return name
    parts = name.split("/", 2)
    return "{}/{}={}".format(*parts) if len(parts) == 3 else name


def clean(path: str) -> str:
    """The path without `//`, `.` and `..`, by its text alone; "." for an empty one."""
    rooted = path.startswith("/")
    kept: list[str] = []
    for part in path.split("/"):
        if part == ".." and (rooted or (kept and kept[-1] != "..")):
            if kept:
                kept.pop()
        elif part not in ("", "."):
            kept.append(part)
    return "/" * rooted + "/".join(kept) or "."
