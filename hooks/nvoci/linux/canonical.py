"""The path of an object below the root without links: what a process in the container would call it.

A name, not a handle: for configuration that must hold a path, and for directories that are still to be made. Whoever
opens what it names resolves it again in the root, and can land nowhere else than in the root.
"""

from __future__ import annotations

import posix
from _stat import S_ISLNK
from errno import E2BIG, EINVAL, ELOOP, ENAMETOOLONG, ENOENT, ENOTDIR

from nvoci.linux import abi, procfs
from nvoci.linux.lookup import MAX_LINKS, lookup

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from nvoci.linux.rootfs import Rootfs

# What may be looked at in one root to find out where links lead, in bytes of paths; each look counts as 16 more:
# 140,000 names at an ordinary depth, 1.5 s. An image of 1,000 libraries behind links takes 6,000. A path may have forty
# links, each of 2,000 names, so that without it 6 KB of ld.so.conf were worth half a minute.
MAX_FOLLOWED = 8 << 20
_LOOK = 16


def link_text(rootfs: Rootfs, unsafe_path: bytes) -> bytes | None:
    """The text of a link; None where there is none. Raises OSError for other reasons than absence; ELOOP for a magic
    link of a procfs, as every lookup answers: its text is a path of whoever it is about, not of the container; E2BIG
    beyond MAX_FOLLOWED."""
    rootfs.followed += len(unsafe_path) + _LOOK
    if rootfs.followed > MAX_FOLLOWED:
        raise OSError(E2BIG, "links of the image lead through too many names: make them shorter", unsafe_path[:256])
    try:
        fd = lookup(rootfs.fileno(), unsafe_path, posix.O_NOFOLLOW)
    except OSError as e:
        if e.errno in (ENOENT, ENOTDIR, ENAMETOOLONG):
            return None
        raise
    try:
        if not S_ISLNK(posix.fstat(fd).st_mode):
            return None
        if procfs.is_procfs(fd) and not _in_procfs_root(rootfs, unsafe_path):
            raise OSError(ELOOP, "magic link", unsafe_path)
        return posix.readlink(b"", dir_fd=fd)
    finally:
        posix.close(fd)


def _in_procfs_root(rootfs: Rootfs, unsafe_path: bytes) -> bool:
    """Whether the link lies where a procfs has its only ordinary ones: self, thread-self, mounts, net."""
    fd = lookup(rootfs.fileno(), unsafe_path.rstrip(b"/").rpartition(b"/")[0], posix.O_DIRECTORY)
    try:
        return posix.fstat(fd).st_ino == abi.PROC_ROOT_INO
    finally:
        posix.close(fd)


def canonical(unsafe_path: bytes, link_of: Callable[[bytes], bytes | None], nofollow: bool = False) -> bytes:
    """`unsafe_path` with every link taken from `link_of`; what is missing stays as it is written. No leading slash.

    nofollow: a link as the last component stays. Raises OSError(ELOOP), OSError(EINVAL) for a NUL.
    """
    if b"\0" in unsafe_path:
        raise OSError(EINVAL, "NUL in path", unsafe_path)
    todo = unsafe_path.split(b"/")[::-1]
    done: list[bytes] = []
    links = 0
    while todo:
        name = todo.pop()
        if name in (b"", b"."):
            continue
        if name == b"..":
            del done[-1:]
            continue
        try:
            text = None if nofollow and not any(todo) else link_of(b"/".join((*done, name)))
        except OSError as e:
            if e.errno != E2BIG:
                raise
            raise OSError(E2BIG, e.strerror, unsafe_path) from None
        if text is None:
            done.append(name)
            continue
        links += 1
        if links > MAX_LINKS:
            raise OSError(ELOOP, "too many links", unsafe_path)
        if text.startswith(b"/"):
            done.clear()
        todo.extend(text.split(b"/")[::-1])
    return b"/".join(done)
