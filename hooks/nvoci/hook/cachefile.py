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
CACHE_MAX = MAX_SIZE


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
    """The operation that writes the cache, or mounts it over the image's where the root is read-only; none where it
    is there already, or cannot be. Raises HookError for that with `strict`."""
    rootfs = container.rootfs
    if not is_read_only(rootfs, b"etc"):
        return [WriteFile(rootfs, CACHE, cache, 0o644)]
    try:
        if rootfs.read_file(CACHE, CACHE_MAX) == cache:
            return []
    except OSError as e:
        if e.errno not in (ENOENT, ENOTDIR, ELOOP):
            raise hook_error("read", CACHE, e) from None
        message = f"{shown(CACHE)}: not there, and the root is read-only (EROFS), so it cannot be made"
        hint = "put an ld.so.cache into the image, or call the hook as createRuntime"
        if container.settings.strict:
            raise HookError(message, hint) from None
        log.warning(f"update-ldcache: {message}; {hint}")
        return []
    return [GeneratedMount(container, CACHE, cache, 0o644, "a new ld.so.cache")]


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
