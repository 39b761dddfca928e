"""Mount points in a container: directories and empty files, found or made by handle, and mounts put on them.

A link is followed inside the root, also where it dangles; anything but a directory is covered by a file, whatever it
is. What is made belongs to the container's root. Nothing is made in a directory of the host that was mounted before,
and nothing is mounted on a file system of the kernel's, unless the caller says so: a link of the image to
/proc/1/attr/exec would make the runtime's security label go to a file of the host.

Performance contract: a directory is looked up once. A new file in it costs 10 system calls with its mount and the check
of that (50 us); `nvoci.linux.mount`, which does the same for any target, takes three times that.
"""

from __future__ import annotations

import posix
from _stat import S_ISDIR, S_ISLNK, S_ISREG
from errno import EEXIST, ELOOP, ENOENT, ENOSPC, ENOTEMPTY, EROFS, ESTALE

from nvoci.errors import HookError
from nvoci.hook.container import CALLER, HOST
from nvoci.hook.hostmounts import HostMounts
from nvoci.hook.operations import shown
from nvoci.linux import mount, procfs
from nvoci.linux.acting import Acting
from nvoci.linux.canonical import canonical, link_text
from nvoci.linux.fd import Fd
from nvoci.linux.mountinfo import mount_id
from nvoci.linux.rootfs import Made, is_pseudo, split
from nvoci.linux.syscalls import move_mount

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    from nvoci.hook.container import Container
    from nvoci.linux.rootfs import Dir, Rootfs

    T = TypeVar("T")

_NEW = posix.O_WRONLY | posix.O_CREAT | posix.O_EXCL | posix.O_NOFOLLOW | posix.O_NONBLOCK | posix.O_CLOEXEC
_PATH = posix.O_PATH | posix.O_NOFOLLOW | posix.O_CLOEXEC
_DIRECTORY_MODE = 0o755
_MOUNTS_LIMIT = 64 << 20


class Point:
    """One of them, open. fresh: it was made here."""

    __slots__ = ("_identity", "directory", "fd", "fresh", "name", "st")

    def __init__(self, directory: Dir, name: bytes, fd: Fd, *, fresh: bool) -> None:
        self.directory = directory
        self.name = name
        self.fd = fd
        self.fresh = fresh
        self.st = fd.stat()
        self._identity = (self.st.st_dev, self.st.st_ino)

    def reopen(self) -> Fd:
        """What is at the name now: a mount, if one was made."""
        return Fd(posix.open(self.name, _PATH, dir_fd=self.directory.fileno()))

    def remove(self) -> None:
        """If it was made here, is still that, and empty. Raises OSError."""
        if not self.fresh:
            return
        self.fresh = False
        parent = self.directory.fileno()
        try:
            st = posix.stat(self.name, dir_fd=parent, follow_symlinks=False)
            if (st.st_dev, st.st_ino) != self._identity:
                return
            if S_ISDIR(st.st_mode):
                posix.rmdir(self.name, dir_fd=parent)
            elif st.st_size == 0:
                posix.unlink(self.name, dir_fd=parent)
        except OSError as e:
            if e.errno not in (ENOENT, ENOTEMPTY, EEXIST):  # gone, or filled by somebody else and theirs now
                raise


class Points:
    """Of one container. owner: (uid, gid) of its root as the host has them; None where they are ours."""

    __slots__ = ("_private", "_pseudo", "_table", "container", "owner")

    def __init__(self, container: Container, owner: tuple[int, int] | None) -> None:
        self.container = container
        self.owner = owner
        self._pseudo: dict[int, bool] = {}  # by st_dev
        self._private: set[tuple[int, int]] = set()  # directories whose mounts are
        self._table = b""

    @property
    def rootfs(self) -> Rootfs:
        """The container's."""
        return self.container.rootfs

    # -- finding and making -----------------------------------------------------------------------------------------

    def directory(self, unsafe_path: bytes, made: Made, wanted: bytes = b"") -> Dir:
        """A directory to act in; what is missing is made with 0755. made: is told of it. wanted: what is to be in it,
        for a message. Raises OSError, HookError."""
        try:
            try:
                found = self._mkdirs(unsafe_path, made)
            except NotADirectoryError:
                # A link that leads nowhere yet, perhaps: its target is made.
                found = self._mkdirs(canonical(unsafe_path, lambda path: link_text(self.rootfs, path)), made)
        except OSError as e:
            raise _not_made(wanted or unsafe_path, e) from None
        if HostMounts.of(self.rootfs).holds(found.fileno()):
            raise HookError(f"make mount point {shown(wanted or unsafe_path)}: lies in a directory of the host, "
                            "mounted before", "the image has a link where it needs a directory")  # fmt: skip
        return found

    def _mkdirs(self, unsafe_path: bytes, made: Made) -> Dir:
        if self.owner is None:
            return self.rootfs.mkdirs(unsafe_path, _DIRECTORY_MODE, made)
        try:
            return self.rootfs.dir(unsafe_path)
        except FileNotFoundError:
            pass
        try:
            with Acting(*self.owner):
                return self.rootfs.mkdirs(unsafe_path, _DIRECTORY_MODE, made)
        except PermissionError:  # in a directory of another's
            return self.rootfs.mkdirs(unsafe_path, _DIRECTORY_MODE, _Given(made, self.owner))

    def find(
        self, unsafe_path: bytes, mode: int, made: Made, *, directory: bool = False, pseudo: bool = False
    ) -> Point:
        """The file or directory to mount on, made with `mode` if it is missing. pseudo: it may be the kernel's. Raises
        OSError, HookError."""
        self.check_place(unsafe_path)
        point = self._point(unsafe_path, mode, made, directory)
        if S_ISLNK(point.st.st_mode):
            point.fd.close()
            resolved = canonical(unsafe_path, lambda path: link_text(self.rootfs, path))
            point = self._point(resolved, mode, made, directory)
        try:
            if S_ISLNK(point.st.st_mode):
                raise OSError(ELOOP, "a link again", unsafe_path)
            self._check(point, unsafe_path, directory=directory, pseudo=pseudo)
        except (OSError, HookError):
            point.fd.close()
            point.remove()
            raise
        return point

    def _point(self, unsafe_path: bytes, mode: int, made: Made, directory: bool) -> Point:
        """As `find`, but a link is returned as it is."""
        above, name = split(unsafe_path)
        parent = self.directory(above, made, unsafe_path)
        fd = None
        try:
            if directory:
                self._made(parent, name, lambda: posix.mkdir(name, mode, dir_fd=parent.fileno()))
            else:
                fd = Fd(self._made(parent, name, lambda: posix.open(name, _NEW, mode, dir_fd=parent.fileno())))
        except FileExistsError:
            return Point(parent, name, _open(parent, name, unsafe_path), fresh=False)
        except OSError as e:
            raise _not_made(unsafe_path, e) from None
        try:
            return Point(parent, name, fd or _open(parent, name, unsafe_path), fresh=True)
        except OSError as e:
            _take_back(parent, name)
            raise OSError(e.errno, e.strerror, unsafe_path) from None

    def _made(self, parent: Dir, name: bytes, make: Callable[[], T]) -> T:
        """make(), so that what is made at `name` is the container's root's. Raises OSError."""
        if self.owner is None:
            return make()
        try:
            with Acting(*self.owner):
                return make()
        except PermissionError:  # in a directory of another's
            result = make()
            try:
                posix.chown(name, *self.owner, dir_fd=parent.fileno(), follow_symlinks=False)
            except OSError:
                _take_back(parent, name)
                raise
            return result

    def make_link(self, parent: Dir, name: bytes, target: bytes) -> None:
        """A new link. Raises OSError, EEXIST where something is there; EROFS is for the caller's transaction."""
        self._made(parent, name, lambda: posix.symlink(target, name, dir_fd=parent.fileno()))

    def check_place(self, unsafe_path: bytes) -> None:
        """Raise HookError where there is no container, to which a mount would be confined."""
        if self.container.place == HOST:
            raise HookError(f"mount on {shown(unsafe_path)}: the container has no mount namespace to mount in",
                            "call the hook with the state of a created container")  # fmt: skip

    # -- looking before mounting ----------------------------------------------------------------------------------

    def _check(self, point: Point, unsafe_path: bytes, *, directory: bool, pseudo: bool) -> None:
        if S_ISDIR(point.st.st_mode) != directory:
            there, mounted = ("file", "directory") if directory else ("directory", "file")
            raise HookError(f"mount on {shown(unsafe_path)}: {'ENOTDIR' if directory else 'EISDIR'}",
                            f"the image has a {there} where a {mounted} is to be mounted")  # fmt: skip
        device = point.st.st_dev
        if device not in self._pseudo:
            self._pseudo[device] = is_pseudo(point.fd.fileno())
        if self._pseudo[device] and not pseudo:
            raise HookError(f"mount on {shown(unsafe_path)}: leads into a file system of the kernel's",
                            "what is there would be hidden from the runtime too")  # fmt: skip

    def _check_private(self, point: Point, unsafe_path: bytes) -> None:
        """As `mount.check_propagation`. A new file lies on its directory's mount, and that is looked at once; the table
        is read again only for a mount that is newer than the last look."""
        if point.fresh and point.directory.identity in self._private:
            return
        start = b"\n%d " % mount_id(point.fd.fileno())
        at = self._table.find(start)
        if at < 0:
            self._table = b"\n" + procfs.read(b"self/mountinfo", _MOUNTS_LIMIT)
            at = self._table.find(start)
        # Fields are separated by blanks, and hold none.
        if b" shared:" in self._table[at + 1 : self._table.find(b"\n", at + 1)].partition(b" - ")[0]:
            raise HookError(f"mount on {shown(unsafe_path)}: lies on a shared mount, and would appear on the host",
                            "give the container `rootfsPropagation` slave or private")  # fmt: skip
        if point.fresh:
            self._private.add(point.directory.identity)

    # -- mounting -----------------------------------------------------------------------------------------------------

    def attach(self, source: mount.Source, point: Point, unsafe_path: bytes) -> mount.Mounted:
        """Mount on the very inode that `point` has open, and see that it is there with its flags. Raises OSError,
        HookError."""
        if self.container.place != CALLER:
            self._check_private(point, unsafe_path)
        try:
            return self._attached(source, point, unsafe_path)
        except OSError as e:
            if e.errno == ENOSPC:
                raise HookError(f"mount on {shown(unsafe_path)}: ENOSPC",
                                "limit of mounts reached: see fs.mount-max") from None  # fmt: skip
            raise OSError(e.errno, e.strerror, unsafe_path) from None

    def _attached(self, source: mount.Source, point: Point, unsafe_path: bytes) -> mount.Mounted:
        tree = source.tree
        moved = None
        if tree is not None and source.ready:
            moved = mount.attempt("move_mount", lambda: move_mount(tree.fileno(), point.fd.fileno()))
        if tree is None or moved is None:
            parent = Fd(posix.dup(point.directory.fileno()))
            with mount.Target(unsafe_path, parent, point.name, Fd(posix.dup(point.fd.fileno()))) as target:
                return mount.attach(source, target, peers=self.container.place == CALLER)
        mounted = mount.Mounted(tree)
        try:
            with point.reopen() as seen:
                flags = posix.fstatvfs(seen.fileno()).f_flag
                if not _same(seen.stat(), tree.stat()) or flags & source.flags != source.flags:
                    raise OSError(ESTALE, "replaced while it was mounted on")
        except OSError:
            mounted.detach()
            raise
        return mounted

    def add_host(self, fd: Fd) -> None:
        """Remember the mount that `fd` lies on as the host's: nothing is to be made or changed there, by later steps
        of this process neither."""
        HostMounts.of(self.rootfs).add(self.rootfs, fd.fileno())


class _Given(Made):
    """Hands what is made on to its owner, and to another record."""

    __slots__ = ("_made", "_owner")

    def __init__(self, made: Made, owner: tuple[int, int]) -> None:
        super().__init__()
        self._made = made
        self._owner = owner

    def add(self, parent: Dir, name: bytes, st: posix.stat_result) -> None:
        """A directory of ours for a moment."""
        self._made.add(parent, name, st)
        posix.chown(name, *self._owner, dir_fd=parent.fileno(), follow_symlinks=False)


def _open(parent: Dir, name: bytes, unsafe_path: bytes) -> Fd:
    try:
        return Fd(posix.open(name, _PATH, dir_fd=parent.fileno()))
    except OSError as e:
        raise OSError(e.errno, e.strerror, unsafe_path) from None


def _take_back(parent: Dir, name: bytes) -> None:
    """Remove what was made a moment ago, and cannot be told from another's later: only something empty, or a link."""
    try:
        st = posix.stat(name, dir_fd=parent.fileno(), follow_symlinks=False)
        if S_ISDIR(st.st_mode):
            posix.rmdir(name, dir_fd=parent.fileno())
        elif S_ISLNK(st.st_mode) or (S_ISREG(st.st_mode) and not st.st_size):
            posix.unlink(name, dir_fd=parent.fileno())
    except OSError:
        pass  # filled, or gone


def _same(a: posix.stat_result, b: posix.stat_result) -> bool:
    return (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino)


def _not_made(unsafe_path: bytes, error: OSError) -> OSError | HookError:
    """A read-only file system is an error, where other operations are left out: a driver without a file is none."""
    if error.errno != EROFS:
        return OSError(error.errno, error.strerror, unsafe_path)
    return HookError(f"make mount point {shown(unsafe_path)}: EROFS",
                     "the container's root is read-only and has nothing there: make it in the image")  # fmt: skip
