"""Our own procfs handle, verified, and what is done through it.

A /proc below a rootfs is a stranger's. /proc/<getpid()> names the wrong process inside the container's pid
namespace while the host's procfs is mounted; only `self` is used. The handle is opened once, before anything of
the container is entered, and stays valid in another mount namespace.
"""

from __future__ import annotations

import posix
import time
from errno import EAGAIN, EINVAL

from nvoci.errors import HookError, errno_name
from nvoci.linux import abi
from nvoci.linux.fd import read_at_most
from nvoci.linux.syscalls import fstatfs_type

_LEASE_PAUSE = 0.01
_LEASE_ENDS = "the kernel ends it after as many seconds as /proc/sys/fs/lease-break-time has"

_handle = -1
_patience = 2.0  # seconds that this process waits for leases, in all
_waited = 0.0


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


def set_patience(seconds: float) -> None:
    """How long `open_regular` may wait in this process, all calls together."""
    global _patience
    _patience = seconds


def open_regular(fd: int, unsafe_path: bytes, part: float = 1.0) -> int:
    """`reopen` of a regular file, for reading; nothing is waited for but a lease (fcntl(2), F_SETLEASE), which whoever
    owns a file may take: who means well gives it up when asked, which opening does, and the kernel takes it away after
    /proc/sys/fs/lease-break-time. part: of the patience that this file is worth. Raises OSError with `unsafe_path`;
    EAGAIN with whose lease it is."""
    global _waited
    while True:
        try:
            return reopen(fd, posix.O_RDONLY | posix.O_NONBLOCK | posix.O_NOCTTY)
        except OSError as e:
            if e.errno != EAGAIN:
                raise OSError(e.errno, e.strerror, unsafe_path) from None
        if _waited >= _patience * part:
            raise OSError(EAGAIN, _lease_on(fd), unsafe_path)
        _waited += _LEASE_PAUSE
        time.sleep(_LEASE_PAUSE)


def _lease_on(fd: int) -> str:
    """For messages, by /proc/locks (proc(5)): its file system's number is not always that of stat(2)."""
    inode = b":%d" % posix.fstat(fd).st_ino
    try:
        for line in read(b"locks").split(b"\n"):
            fields = line.split()
            if fields[1:2] == [b"LEASE"] and len(fields) > 5 and fields[5].endswith(inode):
                return f"a lease of process {parse_pid(fields[4])} is on it: {_LEASE_ENDS}"
    except OSError:
        pass
    return f"a lease is on it, see /proc/locks: {_LEASE_ENDS}"


def name_of(fd: int) -> bytes:
    """Where the kernel says `fd` lies, for messages and for the walk's last check; never used to open anything."""
    return posix.readlink(fd_path(fd), dir_fd=handle())


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
