"""CUDA compatibility libraries of the image, mounted beside the driver's (cuda-compat-mode `mount`).

They are the image's files, put where the loader looks, so nothing here may lead out of the image: each is opened once,
in the container's root, and that handle is judged and mounted.
"""

from __future__ import annotations

import posix
from _stat import S_ISREG
from errno import ELOOP, ENAMETOOLONG, ENOENT, ENOTDIR

from nvoci import log
from nvoci.errors import HookError, hook_error
from nvoci.hook.hostmounts import HostMounts
from nvoci.linux import procfs
from nvoci.linux.rootfs import Budget, is_pseudo
from nvoci.prestart.choose import library_names, stem
from nvoci.prestart.hostfiles import FILE, Source, can_move, clone

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nvoci.linux.fd import Fd
    from nvoci.linux.rootfs import Rootfs

_PATTERN = b"/lib*.so.*"
_ABSENT = (ENOENT, ENOTDIR, ELOOP, ENAMETOOLONG)


def sources(rootfs: Rootfs, directory: bytes, parts: frozenset[str], version: str) -> list[Source]:
    """Those in a directory that are of the wanted groups of libraries and not of the driver's own branch, each file
    once. version: of the driver. To be called in the container's mount namespace. Raises HookError."""
    names = library_names(parts)
    found: dict[tuple[int, int], Source] = {}
    refused: dict[tuple[int, int], str] = {}  # by this name; by another it may be the image's
    try:
        for path in rootfs.match(directory + _PATTERN, Budget()):
            source = _source(rootfs, path, names, version, refused)
            if source is not None:
                found.setdefault((source.st.st_dev, source.st.st_ino), source)
    except OSError as e:
        raise hook_error("look for compatibility libraries in", directory, e) from None
    for identity, why in refused.items():
        if identity not in found:
            log.warning(f"compatibility library left out: {why}")
    return list(found.values())


def _source(
    rootfs: Rootfs, unsafe_path: bytes, names: frozenset[str], version: str, refused: dict[tuple[int, int], str]
) -> Source | None:
    try:
        handle = rootfs.lookup(unsafe_path)
    except OSError as e:
        if e.errno in _ABSENT:
            return None
        raise
    with handle:
        name = procfs.name_of(handle.fileno()).decode("utf-8", "surrogateescape").rpartition("/")[2]
        if stem(name) not in names or not is_of_another_branch(name, version) or not _is_plain(handle):
            return None
        try:
            HostMounts.of(rootfs).check_copy(unsafe_path, handle.fileno())  # where it is mounted all may reach it
        except HookError as e:
            st = handle.stat()
            refused[st.st_dev, st.st_ino] = e.message
            return None
        return clone(name, handle, FILE, movable=can_move())


def _is_plain(handle: Fd) -> bool:
    return S_ISREG(posix.fstat(handle.fileno()).st_mode) and not is_pseudo(handle.fileno())


def is_of_another_branch(name: str, version: str) -> bool:
    """Whether the first number of a library's version is another than the driver's; a name without one is of none."""
    after = name.partition(".so.")[2]
    branch = after[: len(after) - len(after.lstrip("0123456789"))]
    return bool(branch) and not version.startswith(branch)
