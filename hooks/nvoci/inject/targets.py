"""Where things are mounted: paths of the container, found in its root or made there, by handle.

As runc does, what is missing is made: directories of mode 0755, an empty file of mode 0755, links followed inside the
root even where they dangle. What is there is covered and not changed. Nothing is made below what was mounted here,
since that is the host's. And nothing is mounted on a file system of the kernel's unless the path itself says so: a
link of the image to /proc/1/attr/exec would make the runtime's security label go to a file of the host.
"""

from __future__ import annotations

import posix
from errno import EEXIST, ENOENT, ENOTEMPTY, EOVERFLOW, EROFS
from stat import S_ISDIR

from nvoci.cdi import apply
from nvoci.cdi.error import SpecError
from nvoci.errors import HookError, hook_error, printable
from nvoci.hook.hostmounts import HostMounts
from nvoci.hook.operations import shown
from nvoci.linux import procfs
from nvoci.linux.acting import Acting
from nvoci.linux.canonical import canonical, link_text
from nvoci.linux.fd import Fd
from nvoci.linux.mount import Target, find_target
from nvoci.linux.rootfs import Dir, Rootfs, is_pseudo, split

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nvoci.linux.rootfs import Made

_MODE = 0o755
_NEW = posix.O_WRONLY | posix.O_CREAT | posix.O_EXCL | posix.O_NOFOLLOW | posix.O_NONBLOCK | posix.O_CLOEXEC
# The files of a procfs that runc lets be covered (libcontainer, checkProcMount).
_PROC_FILES = frozenset((
    b"proc/cpuinfo", b"proc/diskstats", b"proc/meminfo", b"proc/stat", b"proc/swaps", b"proc/uptime", b"proc/loadavg",
    b"proc/slabinfo", b"proc/net/dev", b"proc/sys/kernel/ns_last_pid", b"proc/sys/crypto/fips_enabled",
))  # fmt: skip


def check_path(path: str, where: str) -> None:
    """That something can be mounted at this path of a specification. Raises SpecError, told of `where`."""
    if ".." in path.split("/"):
        raise SpecError(f"{printable(path)}: `..` in a path of the container", where,
                        hint="write the path that it comes to")  # fmt: skip
    if apply.clean(f"/{path}") == "/":
        raise SpecError(f"{printable(path) or 'empty'}: the container's root", where,
                        hint="nothing can be mounted over it: name what lies below it")  # fmt: skip


class Place:
    """The root as one injection sees it: its own directory handles, so that those which later hooks use are not of
    directories that are covered by then; and the host's mounts made so far, where later hooks change nothing."""

    __slots__ = ("_guarded", "_mounts", "rootfs")

    def __init__(self, rootfs: Rootfs) -> None:
        self.rootfs = Rootfs(Fd(posix.dup(rootfs.fileno())), rootfs.name)
        self._guarded = rootfs
        self._mounts = HostMounts.of(rootfs)

    def add(self, fd: int) -> None:
        """Remember the mount that `fd` lies on as the host's."""
        self._mounts.add(self._guarded, fd)

    def is_host(self, fd: int) -> bool:
        """Whether `fd` lies on a mount made here, or on one below."""
        return self._mounts.holds(fd)


    def check(self, unsafe_path: bytes, fd: int) -> None:
        """Raise HookError where nothing must be made."""
        self._mounts.check(unsafe_path, fd)


class MountPoint:
    """What was made to be mounted on, so that undo can take it away again. As the guard of a `Place`'s root it sees
    every directory in which something is about to be made for it."""

    __slots__ = ("_identity", "_is_directory", "_name", "_owner", "_parent", "_path", "_place", "made")

    def __init__(self, made: Made) -> None:
        self.made = made
        self._parent: Dir | None = None
        self._name = b""
        self._identity = (0, 0)
        self._is_directory = False
        self._place: Place | None = None
        self._path = b""
        self._owner = (0, 0)  # uid and gid of the directory that was checked last

    def make(self, place: Place, unsafe_path: bytes, *, directory: bool) -> None:
        """An empty file or directory at `unsafe_path`, unless somebody else makes one meanwhile. Raises OSError,
        HookError."""
        rootfs = place.rootfs
        path = canonical(unsafe_path, lambda p: link_text(rootfs, p))
        folder, name = split(path)
        self._place, self._path, rootfs.guard = place, unsafe_path, self
        try:
            self._check_above(rootfs, folder)
            try:
                self._create(rootfs.mkdirs(folder, _MODE, self.made), name, directory)
            except OSError as e:
                if e.errno != EOVERFLOW:
                    raise
                try:
                    with Acting(*self._owner):  # a file system of the container's user namespace, such as its /dev
                        self._create(rootfs.mkdirs(folder, _MODE, self.made), name, directory)
                except OSError:
                    raise e from None
        except OSError as e:
            if e.errno != EROFS:
                raise
            raise HookError(f"make mount point {shown(unsafe_path)}: EROFS", "the container's root is read-only and "
                            "has nothing there: make it in the image") from None  # fmt: skip
        finally:
            self._place = rootfs.guard = None

    def _check_above(self, rootfs: Rootfs, folder: bytes) -> None:
        """What exists of the path as it is now: `mkdirs` may know directories that are covered meanwhile."""
        while True:
            try:
                above = rootfs.lookup(folder, posix.O_DIRECTORY)
                break
            except FileNotFoundError:
                if not folder:
                    raise
                folder = folder.rpartition(b"/")[0]
        with above:
            self.check(folder, above.fileno())

    def check(self, unsafe_path: bytes, fd: int) -> None:
        """Only in what is the container's, and where files can be made, something is. Raises HookError."""
        if self._place is not None and self._place.is_host(fd):
            raise HookError(f"make mount point {shown(self._path)}: lies in a directory of the host, mounted "
                            f"before, that has nothing there", "make it on the host")  # fmt: skip
        if self._place is not None:
            self._place.check(self._path, fd)
        if is_pseudo(fd):
            raise HookError(f"make mount point {shown(self._path)}: lies in a file system of the kernel's",
                            "there are no files to be made there")  # fmt: skip
        st = posix.fstat(fd)
        self._owner = (st.st_uid, st.st_gid)

    def _create(self, parent: Dir, name: bytes, directory: bool) -> None:
        parent.check()
        made: Fd | None = None
        try:
            if directory:
                posix.mkdir(name, _MODE, dir_fd=parent.fileno())
            else:
                made = Fd(posix.open(name, _NEW, _MODE, dir_fd=parent.fileno()))
        except FileExistsError:
            return  # the next lookup sees what it is
        try:
            # The file's by its descriptor: the name may be another's by now, which undo must not remove.
            st = made.stat() if made else posix.stat(name, dir_fd=parent.fileno(), follow_symlinks=False)
        except OSError:
            remove = posix.rmdir if directory else posix.unlink
            remove(name, dir_fd=parent.fileno())  # nobody could tell later that it was made here
            raise
        finally:
            if made is not None:
                made.close()
        self._parent, self._name, self._is_directory = parent, name, directory
        self._identity = (st.st_dev, st.st_ino)

    def undo(self) -> None:
        """Remove what is still ours and empty. Raises OSError."""
        parent, self._parent = self._parent, None
        if parent is not None:
            try:
                st = posix.stat(self._name, dir_fd=parent.fileno(), follow_symlinks=False)
                if (st.st_dev, st.st_ino) == self._identity:
                    if self._is_directory:
                        posix.rmdir(self._name, dir_fd=parent.fileno())
                    elif st.st_size == 0:
                        posix.unlink(self._name, dir_fd=parent.fileno())
            except OSError as e:
                if e.errno not in (ENOENT, ENOTEMPTY, EEXIST):  # gone, or filled by somebody else and theirs now
                    raise
        self.made.undo()


def find(place: Place, unsafe_path: bytes, *, directory: bool, point: MountPoint) -> Target:
    """The file or directory at `unsafe_path` to mount on, made if it is missing. Raises OSError, HookError."""
    try:
        target = find_target(place.rootfs, unsafe_path)
    except FileNotFoundError:
        point.make(place, unsafe_path, directory=directory)
        try:
            target = find_target(place.rootfs, unsafe_path)
        except FileNotFoundError as e:
            raise hook_error("make mount point", shown(unsafe_path), e, "removed again, or a link in the way") from None
    try:
        check(target, unsafe_path, directory=directory)
    except (OSError, HookError):
        target.close()
        raise
    return target


def check(target: Target, unsafe_path: bytes, *, directory: bool) -> None:
    """Refuse a target of another kind, and one in a file system of the kernel's. Raises HookError."""
    if S_ISDIR(target.fd.stat().st_mode) != directory:
        there, mounted = ("file", "directory") if directory else ("directory", "file")
        raise HookError(f"mount on {shown(unsafe_path)}: {'ENOTDIR' if directory else 'EISDIR'}",
                        f"the image has a {there} where a {mounted} is to be mounted")  # fmt: skip
    if is_pseudo(target.fd.fileno()) and not _may_cover(target, unsafe_path):
        raise HookError(f"mount on {shown(unsafe_path)}: leads into a file system of the kernel's",
                        "what is there would be hidden from the runtime too")  # fmt: skip


def _may_cover(target: Target, unsafe_path: bytes) -> bool:
    """One of those files of /proc, or something in /sys that is no mount; the kernel must call it what the path does,
    so that no link has led to it."""
    path = b"/".join(part for part in unsafe_path.split(b"/") if part not in (b"", b"."))
    if target.is_mount_point() or not procfs.name_of(target.fd.fileno()).endswith(b"/" + path):
        return False
    return path in _PROC_FILES if procfs.is_procfs(target.fd.fileno()) else path.startswith(b"sys/")
