"""Device nodes: of the host, opened and checked by handle; in a container, made and checked by handle.

What is allowed in the end is the number of the node that was opened, and never one that was only read somewhere. O_PATH
opens no device, so looking at a node wakes no driver.
"""

from __future__ import annotations

import posix
from _stat import S_IFBLK, S_IFCHR, S_IMODE, S_ISBLK, S_ISCHR
from errno import EINVAL

from nvoci.errors import HookError, hook_error, printable
from nvoci.linux import procfs
from nvoci.linux.fd import Fd
from nvoci.linux.lookup import lookup

TYPE_CHECKING = False
if TYPE_CHECKING:
    # "c" or "b", major, minor
    Number = tuple[str, int, int]

_IFMT = {"c": S_IFCHR, "b": S_IFBLK}
_MAKE = "load the driver and make its nodes: nvidia-modprobe"
_REMAKE = "remove it, and make it again: nvidia-modprobe, or restart udev"


def number_of(st: posix.stat_result) -> Number | None:
    """Type and number of a device node; None for any other file."""
    kind = "c" if S_ISCHR(st.st_mode) else "b" if S_ISBLK(st.st_mode) else ""
    return (kind, posix.major(st.st_rdev), posix.minor(st.st_rdev)) if kind else None


def shown(number: Number) -> str:
    """`c 195:0`"""
    return f"{number[0]} {number[1]}:{number[2]}"


class HostNode:
    """A device node of the host by an O_PATH handle, checked once and kept open: it stays what it was."""

    __slots__ = ("fd", "mode", "number", "path")

    def __init__(self, fd: Fd, path: bytes, number: Number, mode: int) -> None:
        self.fd = fd
        self.path = path
        self.number = number
        self.mode = mode

    @classmethod
    def open(cls, root: int, path: bytes, number: Number | None = None, hint: str = _MAKE) -> HostNode:
        """The node at `path` below the directory that `root` has open (the host's root, or a driver's). Links of
        directories are followed inside it; the node itself may not be one. number: what it must be; without, whatever
        device it is. hint: where it cannot be opened. Raises HookError."""
        try:
            fd = Fd(lookup(root, path, posix.O_NOFOLLOW))
        except OSError as e:
            raise hook_error("use device", path, e, hint) from None
        st = fd.stat()
        found = number_of(st)
        if found is not None and number in (None, found):
            return cls(fd, path, found, S_IMODE(st.st_mode))
        fd.close()
        if found is None:
            raise HookError(f"use device {printable(path)}: is not a device node", _REMAKE)
        raise HookError(f"use device {printable(path)}: is {shown(found)}, should be {shown(number or found)}", _REMAKE)

    def close(self) -> None:
        """Close the handle."""
        self.fd.close()


def make(directory: int, name: bytes, number: Number, mode: int, owner: tuple[int, int] | None) -> Fd:
    """mknodat(2) of a new node, with exactly this mode and owner (uid, gid); an O_PATH handle of it, by which type and
    number have been checked. Raises OSError (EEXIST, where something is there) or HookError; the node is then gone."""
    kind, major, minor = number
    # Nobody can use it before it is as it should be.
    posix.mknod(name, _IFMT[kind], posix.makedev(major, minor), dir_fd=directory)
    fd = Fd(-1)
    try:
        fd = Fd(posix.open(name, posix.O_PATH | posix.O_NOFOLLOW | posix.O_CLOEXEC, dir_fd=directory))
        if number_of(fd.stat()) != number:
            raise OSError(EINVAL, "not the node that was made", name)
        path = procfs.fd_path(fd.fileno())
        if owner is not None:
            posix.chown(path, *owner, dir_fd=procfs.handle())
        posix.chmod(path, mode, dir_fd=procfs.handle())
    except OSError:
        fd.close()
        posix.unlink(name, dir_fd=directory)
        raise
    return fd
