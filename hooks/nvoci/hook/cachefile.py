"""What both engines of update-ldcache share: the directories that count, and how a new ld.so.cache is published."""

from __future__ import annotations

import posix
from errno import ELOOP, ENOENT, ENOTDIR

from nvoci import log
from nvoci.errors import HookError, hook_error
from nvoci.hook import dropins
from nvoci.hook.mounts import GeneratedMount
from nvoci.hook.operations import WriteFile, shown
from nvoci.ldcache import conf
from nvoci.ldcache.cache import MAX_SIZE
from nvoci.linux import abi

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from nvoci.hook.container import Container
    from nvoci.hook.operation import Operation
    from nvoci.linux.rootfs import Rootfs

CACHE = b"etc/ld.so.cache"
FEWER = "the image has too many libraries: name fewer directories in its ld.so.conf"  # the hint where that is the limit
MUSL = b"etc/alpine-release"  # tells of an image whose loader is musl's


def search_path(
    rootfs: Rootfs, folders: Sequence[bytes], system: Sequence[bytes]
) -> tuple[list[bytes], list[bytes]]:
    """(the directories to search, in order; those of `folders` that a drop-in has to name). Raises OSError.

    In order: what ld.so.conf and its includes name, with our drop-ins in their places as if they were written already;
    those come first, and the system's paths last, where the image does not include them.
    """
    named = conf.conf_directories(rootfs, marks=(dropins.FOLDERS, dropins.SYSTEM))
    known = set(named)
    new = [f for f in folders if f not in system and (f.rstrip(b"/") or b"/") not in known]
    ours = {conf.mark(dropins.FOLDERS): new, conf.mark(dropins.SYSTEM): list(system)}
    found = [d for d in _compat(rootfs) if d not in known]
    if conf.mark(dropins.FOLDERS) not in known:
        found += new
    for directory in named:
        found += ours.get(directory) or ([] if directory in ours else [directory])
    found += system
    return list(dict.fromkeys(found)), new


def _compat(rootfs: Rootfs) -> list[bytes]:
    """What enable-cuda-compat wrote, also where the image does not include it."""
    path = b"/" + dropins.FOLDER + dropins.COMPAT
    return conf.conf_directories(rootfs, path) if rootfs.exists(path) else []


def publish(container: Container, cache: bytes) -> list[Operation]:
    """The operation that makes `cache` the container's ld.so.cache, if there is one; see `put`."""
    rootfs = container.rootfs
    if rootfs.exists(MUSL) and is_read_only(rootfs, b"etc") and not rootfs.exists(CACHE):
        return []  # its loader reads none: nothing is amiss
    return put(container, CACHE, cache, 0o644, "a new ld.so.cache")


def put(container: Container, path: bytes, data: bytes, mode: int, what: str) -> list[Operation]:
    """The operation that writes a file in /etc, or mounts it over the image's where the root is read-only; none where
    that is right already, or is not there to be mounted on. Raises HookError for the latter with `strict`."""
    rootfs = container.rootfs
    if not is_read_only(rootfs, b"etc"):
        return [WriteFile(rootfs, path, data, mode)]
    try:
        if rootfs.read_file(path, MAX_SIZE) == data:
            return []
    except OSError as e:
        if e.errno not in (ENOENT, ENOTDIR, ELOOP):
            raise hook_error("read", path, e) from None
        message = f"{shown(path)}: not there, and the root is read-only (EROFS), so it cannot be made"
        hint = f"put an {path.rpartition(b'/')[2].decode()} into the image, or call the hook as createRuntime"
        if container.settings.strict:
            raise HookError(message, hint) from None
        log.warning(f"update-ldcache: {message}; {hint}")
        return []
    return [GeneratedMount(container, path, data, mode, what)]


def is_read_only(rootfs: Rootfs, path: bytes) -> bool:
    """Whether `path` lies on a read-only mount (or, where it is missing, the root does)."""
    try:
        handle = rootfs.lookup(path)
    except OSError as e:
        if e.errno not in (ENOENT, ENOTDIR):
            raise
        handle = rootfs.lookup(b".")
    with handle:
        return bool(posix.fstatvfs(handle.fileno()).f_flag & abi.ST_RDONLY)
