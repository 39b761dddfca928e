"""CUDA compatibility libraries of the image, mounted beside the driver's (cuda-compat-mode `mount`).

They are the image's files, put where the loader looks, so nothing here may lead out of the image: each is opened once,
in the container's root, and that handle is judged and mounted.
"""

from __future__ import annotations

import posix
from _stat import S_ISREG
from errno import ELOOP, ENOENT, ENOTDIR

from nvoci.errors import hook_error
from nvoci.linux import procfs
from nvoci.linux.rootfs import Budget, is_pseudo
from nvoci.prestart.choose import library_names, stem
from nvoci.prestart.hostfiles import FILE, Source, can_move, clone

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nvoci.linux.fd import Fd
    from nvoci.linux.rootfs import Rootfs

_PATTERN = b"/lib*.so.*"
_ABSENT = (ENOENT, ENOTDIR, ELOOP)


def sources(rootfs: Rootfs, directory: bytes, parts: frozenset[str], version: str) -> list[Source]:
    """Those in a directory that are of the wanted groups of libraries and not of the driver's own branch, each file
    once. version: of the driver. To be called in the container's mount namespace. Raises HookError."""
    names = library_names(parts)
    found: dict[tuple[int, int], Source] = {}
    try:
        for path in rootfs.match(directory + _PATTERN, Budget()):
            source = _source(rootfs, path, names, version)
            if source is not None:
                found.setdefault((source.st.st_dev, source.st.st_ino), source)
    except OSError as e:
        raise hook_error("look for compatibility libraries in", directory, e) from None
    return list(found.values())


def _source(rootfs: Rootfs, unsafe_path: bytes, names: frozenset[str], version: str) -> Source | None:
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
        return clone(name, handle, FILE, movable=can_move())


def _is_plain(handle: Fd) -> bool:
    return S_ISREG(posix.fstat(handle.fileno()).st_mode) and not is_pseudo(handle.fileno())


def is_of_another_branch(name: str, version: str) -> bool:
    """Whether the first number of a library's version is another than the driver's; a name without one is of none."""
    after = name.partition(".so.")[2]
    branch = after[: len(after) - len(after.lstrip("0123456789"))]
    return bool(branch) and not version.startswith(branch)
