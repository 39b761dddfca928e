"""What a hook must not change, though a path of the container leads there: files of the host, and what the container's
own root could not change.

A link of the image may lead into a volume, or to where a file or directory of the host has just been mounted: what a
hook made, changed or removed there would not be the container's. `Rootfs` and the transaction ask before they do so.
A volume that lies on the very path which a hook was told is where its owner wants the change.
"""

from __future__ import annotations

import posix
from _stat import S_ISDIR

from nvoci.errors import HookError
from nvoci.hook.operations import shown
from nvoci.linux import abi, mountinfo, procfs
from nvoci.linux.mountinfo import Mount, mount_id

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nvoci.linux.rootfs import Rootfs


# Links at the top of a distribution's root: /lib/firmware is asked for, and the volume lies at /usr/lib/firmware.
_MERGED = {name: (b"usr", name) for name in (b"bin", b"sbin", b"lib", b"lib32", b"lib64", b"libx32")}


class HostMounts:
    """Of one container's root. owner: (uid, gid) of the container's root on the host where it has a user namespace
    other than ours. own_root: whether the mount that the root lies on was made by the engine, for this container."""

    __slots__ = ("_fine", "_ids", "_known", "_own_root", "_owner", "_root", "_table", "_top")

    def __init__(self, owner: tuple[int, int] | None = None, *, own_root: bool = True) -> None:
        self._ids: set[int] = set()  # of mounts that were made here
        self._known: dict[int, bool] = {}  # id of a mount -> whether it is one of these or lies below one
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

    def _wrong(self, unsafe_path: bytes, fd: int, st: posix.stat_result) -> str:
        if self.holds(fd):
            return "leads into what was mounted from the host"
        if not self._root:
            return ""  # nobody has said what this root is
        number = mount_id(fd)
        if number != self._root or not self._own_root:
            if self._owner is not None:
                if st.st_uid != self._owner[0]:
                    return f"its owner, uid {st.st_uid}, is not root of the container"
            elif self._is_foreign(number):
                # Not remembered: by another path the same directory is none that was named.
                return "" if self._is_named(unsafe_path, number) else "leads into a volume of the host"
        self._fine.add((st.st_dev, st.st_ino))
        return ""

    def _mount(self, number: int) -> Mount | None:
        found = mountinfo.find(number, self._table)
        if found is None:  # made after the last look
            self._table = mountinfo.own_table()
            found = mountinfo.find(number, self._table)
        return found

    def _is_foreign(self, number: int) -> bool:
        """Whether the file system is mounted outside of the root too; one that the engine made for the container, as
        a tmpfs at /dev, is not."""
        mount = self._mount(number)
        if mount is None:
            return True
        inside = self._top + b"/"
        device = b" " + mount.device + b" "
        lines = [line for line in self._table.split(b"\n") if device in line]
        others = [one for one in mountinfo.parse(b"\n".join(lines)) if one.device == mount.device]
        return any(one.target != self._top and not one.target.startswith(inside) for one in others)

    def _is_named(self, unsafe_path: bytes, number: int) -> bool:
        """Whether the path goes through the very place where it is mounted, without a link."""
        mount = self._mount(number)
        parts = [part for part in unsafe_path.split(b"/") if part not in (b"", b".")]
        if mount is None or b".." in parts or not mount.target.startswith(self._top):
            return False
        where = [part for part in mount.target[len(self._top) :].split(b"/") if part]
        merged = [*_MERGED[parts[0]], *parts[1:]] if parts[:1] and parts[0] in _MERGED else parts
        return where in (parts[: len(where)], merged[: len(where)])
