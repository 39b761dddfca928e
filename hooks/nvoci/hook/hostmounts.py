"""What a hook must not change, though a path of the container leads there: files of the host, and what the container's
own root could not change.

A link of the image may lead into a volume, or to where a file or directory of the host has just been mounted: what a
hook made, changed or removed there would not be the container's. `Rootfs` and the transaction ask before they do so.
A volume that lies on the very path which a hook was told is where its owner wants the change; not where a link in the
volume leads to, which may be that of another who may write there.

And what a hook copies into the root's own files must be the image's own: as root it can read what a user of the
container cannot.
"""

from __future__ import annotations

import posix
from _stat import S_ISBLK, S_ISCHR, S_ISDIR

from nvoci.errors import HookError
from nvoci.hook.operations import shown
from nvoci.linux import abi, mountinfo, procfs
from nvoci.linux.mountinfo import Mount, mount_id
from nvoci.linux.rootfs import is_pseudo

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nvoci.linux.rootfs import Rootfs


# Links at the top of a distribution's root: /lib/firmware is asked for, and the volume lies at /usr/lib/firmware.
_MERGED = {name: (b"usr", name) for name in (b"bin", b"sbin", b"lib", b"lib32", b"lib64", b"libx32")}
# What an engine makes for every container: file systems by type, and where; none has anything of the host in it. There
# is one devtmpfs, one sysfs and one cgroup2, the host's; a procfs has modes of files that count for all.
_MADE = {
    b"tmpfs": (b"dev", b"run", b"tmp", b"var/run", b"var/tmp"),
    b"devpts": (b"dev",),
    b"mqueue": (b"dev",),
}


class HostMounts:
    """Of one container's root. owner: (uid, gid) of the container's root on the host where it has a user namespace
    other than ours. own_root: whether the mount that the root lies on was made by the engine, for this container."""

    __slots__ = ("_fine", "_ids", "_known", "_own", "_own_root", "_owner", "_root", "_table", "_top")

    def __init__(self, owner: tuple[int, int] | None = None, *, own_root: bool = True) -> None:
        self._ids: set[int] = set()  # of mounts that were made here
        self._known: dict[int, bool] = {}  # id of a mount -> whether it is one of these or lies below one
        self._own: dict[int, bool] = {}  # id of a mount -> whether it is the container's own
        self._fine: set[tuple[int, int]] = set()  # (device, inode) of what was checked
        self._table = b""  # of mounts, read again where it lacks one
        self._owner = owner
        self._own_root = own_root
        self._root = 0  # the mount that the root lies on
        self._top = b""  # and its path

    @classmethod
    def of(cls, rootfs: Rootfs) -> HostMounts:
        """Those of all who mount in this root."""
        return rootfs.guard if isinstance(rootfs.guard, cls) else cls()

    def protect(self, rootfs: Rootfs) -> None:
        """Guard `rootfs` from now on. Raises OSError."""
        self._root = mount_id(rootfs.fileno())
        self._top = posix.readlink(b"self/fd/%d" % rootfs.fileno(), dir_fd=procfs.handle()).rstrip(b"/")
        rootfs.guard = self

    def add(self, rootfs: Rootfs, fd: int) -> None:
        """Remember the mount that `fd` lies on, and guard `rootfs` from now on."""
        found = mount_id(fd)
        self._ids.add(found)
        self._fine.clear()
        if S_ISDIR(posix.fstat(fd).st_mode):
            self._known.clear()  # mounts below it may have come with it
            self._own.clear()
        self._known[found] = True
        if rootfs.guard is not self:
            self.protect(rootfs)

    def holds(self, fd: int) -> bool:
        """Whether `fd` lies on one of the mounts made here, or on a mount below."""
        if not self._ids:
            return False
        st = posix.fstat(fd)
        if (st.st_dev, st.st_ino) in self._fine:
            return False
        found = mount_id(fd)
        if found not in self._known:
            self._mount(found)
            self._known[found] = not self._ids.isdisjoint(mountinfo.lineage(found, self._table))
        return self._known[found]

    def check(self, unsafe_path: bytes, fd: int) -> None:
        """Refuse what `unsafe_path` has led to, where it can be changed. Raises HookError; what is mounted read-only is
        left to the kernel to refuse."""
        st = posix.fstat(fd)
        if (st.st_dev, st.st_ino) in self._fine:
            return
        why = self._wrong(unsafe_path, fd, st)
        if why and not posix.fstatvfs(fd).f_flag & abi.ST_RDONLY:
            raise HookError(f"change {shown(unsafe_path)}: {why}",
                            "name a path that is the container's own, or mount it read-only")  # fmt: skip

    def check_copy(self, unsafe_path: bytes, fd: int) -> None:
        """Refuse to copy into the root what `unsafe_path` has led to, unless it lies in the image, or a mount on the
        very path has it. Raises HookError, OSError."""
        if not self._root:
            return  # nobody has said what this root is
        if mount_id(fd) == self._root:
            if self._own_root or self._owner is None or posix.fstat(fd).st_uid == self._owner[0]:
                return
        elif self._is_named(unsafe_path, fd):
            return
        raise HookError(f"copy {shown(unsafe_path)}: leads out of the image",
                        "what not all may read would be for all to read: put the file itself there")  # fmt: skip

    def _wrong(self, unsafe_path: bytes, fd: int, st: posix.stat_result) -> str:
        if self.holds(fd):
            return "leads into what was mounted from the host"
        if not self._root:
            return ""
        number = mount_id(fd)
        if number != self._root or not self._own_root:
            if self._owner is not None and st.st_uid != self._owner[0]:
                return f"its owner, uid {st.st_uid}, is not root of the container"
            if number != self._root and not self._is_own(number):
                # Not remembered: by another path the same directory is none that was named.
                if not self._is_named(unsafe_path, fd):
                    what = "file system of the kernel's" if is_pseudo(fd) else "volume of the host"
                    return f"leads into a {what}"
                is_device = S_ISCHR(st.st_mode) or S_ISBLK(st.st_mode)
                return "is the host's own device node, bind mounted" if is_device else ""
        self._fine.add((st.st_dev, st.st_ino))
        return ""

    def _mount(self, number: int) -> Mount | None:
        found = mountinfo.find(number, self._table)
        if found is None:  # made after the last look
            self._table = mountinfo.own_table()
            found = mountinfo.find(number, self._table)
        return found

    def _is_own(self, number: int) -> bool:
        """Whether the engine has made this file system for the container, or it is that of the root."""
        if number not in self._own:
            mount = self._mount(number)
            self._own[number] = mount is not None and self._is_made(mount) and not self._is_outside(mount)
        return self._own[number]

    def _is_made(self, mount: Mount) -> bool:
        if not mount.target.startswith(self._top + b"/"):
            return False
        place = mount.target[len(self._top) :] + b"/"
        if any(place.startswith(b"/" + folder + b"/") for folder in _MADE.get(mount.fstype, ())):
            return True
        root = self._mount(self._root)
        if root is None or root.device != mount.device:
            return False
        return (mount.root + b"/").startswith(root.root.rstrip(b"/") + b"/")

    def _is_outside(self, mount: Mount) -> bool:
        """Whether its file system is mounted outside of the root too."""
        inside = self._top + b"/"
        device = b" " + mount.device + b" "
        lines = [line for line in self._table.split(b"\n") if device in line]
        others = [one for one in mountinfo.parse(b"\n".join(lines)) if one.device == mount.device]
        return any(one.target != self._top and not one.target.startswith(inside) for one in others)

    def _is_named(self, unsafe_path: bytes, fd: int) -> bool:
        """Whether the kernel has for `fd` the name that the path has for it, or for what it lies in: then no link has
        led there, neither to where it is mounted nor below."""
        parts = [part for part in unsafe_path.split(b"/") if part not in (b"", b".")]
        name = procfs.name_of(fd)
        if b".." in parts or not name.startswith(self._top + b"/"):
            return False
        where = name[len(self._top) + 1 :].split(b"/")
        merged = [*_MERGED[parts[0]], *parts[1:]] if parts[:1] and parts[0] in _MERGED else parts
        return where in (parts[: len(where)], merged[: len(where)])
