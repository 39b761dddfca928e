"""Our own procfs handle, verified, and what is done through it.

A /proc below a rootfs is a stranger's. /proc/<getpid()> names the wrong process inside the container's pid
namespace while the host's procfs is mounted; only `self` is used. The handle is opened once, before anything of
the container is entered, and stays valid in another mount namespace.
"""

from __future__ import annotations

import posix
from errno import EINVAL

from nvoci.errors import HookError, errno_name
from nvoci.linux import abi
from nvoci.linux.fd import read_at_most
from nvoci.linux.syscalls import fstatfs_type

_handle = -1


def handle() -> int:
    """The descriptor of our procfs' root directory; opened and verified at the first call. Raises HookError."""
    global _handle
    if _handle < 0:
        _handle = _open()
    return _handle


def _open() -> int:
    try:
        fd = posix.open(b"/proc", posix.O_PATH | posix.O_DIRECTORY | posix.O_NOFOLLOW | posix.O_CLOEXEC)
    except OSError as e:
        raise HookError(f"start: open /proc: {errno_name(e.errno or 0)}", "the host's procfs must be mounted") from None
    if posix.fstat(fd).st_ino != abi.PROC_ROOT_INO or not is_procfs(fd):
        posix.close(fd)
        raise HookError("start: /proc is not a procfs", "the hook runs with the host's procfs at /proc")
    return fd


def is_procfs(fd: int) -> bool:
    """Whether `fd` lies on a procfs (fstatfs(2), f_type == PROC_SUPER_MAGIC)."""
    return fstatfs_type(fd) == abi.PROC_SUPER_MAGIC


def fd_path(fd: int) -> bytes:
    """`self/fd/N`, to be used with `dir_fd=handle()`: the very object that `fd` has open."""
    return b"self/fd/%d" % fd


def reopen(fd: int, flags: int) -> int:
    """open(2) of what an O_PATH descriptor refers to. Raises OSError."""
    return posix.open(fd_path(fd), flags | posix.O_CLOEXEC, dir_fd=handle())


def name_of(fd: int) -> bytes:
    """Where the kernel says `fd` lies, for messages and for the walk's last check; never used to open anything."""
    return posix.readlink(fd_path(fd), dir_fd=handle())


def absolute(fd: int) -> bytes:
    """A path for the calls that take no dir_fd (mount(2)): only where /proc is still our own."""
    return b"/proc/self/fd/%d" % fd


def read(path: bytes, limit: int = 4 << 20, dirfd: int | None = None) -> bytes:
    """A procfs file, read from our own handle (or from a directory opened on it). Raises OSError."""
    fd = posix.open(path, posix.O_RDONLY | posix.O_CLOEXEC, dir_fd=handle() if dirfd is None else dirfd)
    try:
        return read_at_most(fd, limit)
    finally:
        posix.close(fd)


def ns_id(path: bytes, dirfd: int | None = None) -> tuple[int, int]:
    """Identity (st_dev, st_ino) of a namespace file such as `self/ns/mnt` (namespaces(7))."""
    st = posix.stat(path, dir_fd=handle() if dirfd is None else dirfd)
    return st.st_dev, st.st_ino


def parse_pid(text: bytes) -> int:
    """A decimal pid as procfs writes it. Raises OSError(EINVAL) for anything else."""
    if not text.isdigit() or len(text) > 10:
        raise OSError(EINVAL, "not a pid")
    return int(text)
