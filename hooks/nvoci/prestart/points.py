"""Mount points in a container: directories and empty files, found or made by handle, and mounts put on them.

A link is followed inside the root, also where it dangles; anything but a directory is covered by a file, whatever it
is. Nothing is made where `HostMounts` forbids it, as in a volume that a link of the image leads to; and nothing is
mounted on a file system of the kernel's, unless the caller says so: a link of the image to /proc/1/attr/exec would make
the runtime's security label go to a file of the host.

Performance contract: a directory is looked up once. A new file in it costs 12 system calls with its mount and the check
of that (50 us); `nvoci.linux.mount`, which does the same for any target, takes three times that.
"""

from __future__ import annotations

import posix
from _stat import S_ISDIR, S_ISLNK
from errno import EEXIST, ELOOP, ENOENT, ENOSPC, ENOSYS, ENOTEMPTY, EPERM, EROFS, ESTALE

from nvoci.errors import HookError
from nvoci.hook.container import CALLER, HOST
from nvoci.hook.hostmounts import HostMounts
from nvoci.hook.operation import Operation
from nvoci.hook.operations import shown
from nvoci.linux import mount, procfs
from nvoci.linux.canonical import canonical, link_text
from nvoci.linux.fd import Fd
from nvoci.linux.mountinfo import mount_id
from nvoci.linux.rootfs import is_pseudo, split
from nvoci.linux.syscalls import move_mount, statx_mount
from nvoci.prestart.rights import Given, Rights, give, take_back

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nvoci.hook.container import Container
    from nvoci.linux.rootfs import Dir, Made, Rootfs

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
    """Of one container. owner, named: as `Rights` wants them."""

    __slots__ = ("_private", "_pseudo", "_rights", "_table", "container")

    def __init__(self, container: Container, owner: tuple[int, int] | None, *, named: bool = False) -> None:
        self.container = container
        self._rights = Rights(container.rootfs, owner, named=named)
        self._pseudo: dict[int, bool] = {}  # by st_dev
        self._private: set[int] = set()  # ids of mounts that are
        self._table = b""

    @property
    def rootfs(self) -> Rootfs:
        """The container's."""
        return self.container.rootfs

    @property
    def owner(self) -> tuple[int, int] | None:
        """To whom belongs what is made; None where it stays ours."""
        return self._rights.owner

    # -- finding and making -----------------------------------------------------------------------------------------

    def directory(self, unsafe_path: bytes, made: Made, wanted: bytes = b"") -> Dir:
        """A directory to act in; what is missing is made with 0755. made: is told of it. wanted: what is to be in it,
        as the caller was told. Raises OSError, HookError."""
        wanted = wanted or unsafe_path
        try:
            try:
                found = self._mkdirs(unsafe_path, made, wanted)
            except NotADirectoryError:
                # A link that leads nowhere yet, perhaps: its target is made.
                found = self._mkdirs(canonical(unsafe_path, lambda path: link_text(self.rootfs, path)), made, wanted)
        except OSError as e:
            raise _not_made(wanted, e) from None
        if HostMounts.of(self.rootfs).holds(found.fileno()):
            raise HookError(f"make mount point {shown(wanted)}: lies in a directory of the host, mounted before",
                            "the image has a link where it needs a directory")  # fmt: skip
        return found

    def _mkdirs(self, unsafe_path: bytes, made: Made, wanted: bytes) -> Dir:
        try:
            return self.rootfs.dir(unsafe_path)
        except FileNotFoundError:
            pass
        above = self._innermost(unsafe_path)
        refusal = self._rights.refusal(above, wanted)
        if refusal is not None:
            raise refusal
        found, given = self._rights.use(above, wanted, lambda: self.rootfs.mkdirs(unsafe_path, _DIRECTORY_MODE, made))
        if given is not None:
            return self.rootfs.mkdirs(unsafe_path, _DIRECTORY_MODE, Given(made, given))
        assert found is not None
        return found

    def _innermost(self, unsafe_path: bytes) -> Dir:
        """The directory above a missing one that is there."""
        while True:
            unsafe_path = unsafe_path.rstrip(b"/").rpartition(b"/")[0]
            try:
                return self.rootfs.dir(unsafe_path)
            except FileNotFoundError:
                if not unsafe_path:
                    raise

    def find(
        self, unsafe_path: bytes, mode: int, made: Made, *, directory: bool = False, pseudo: bool = False
    ) -> Point:
        """The file or directory to mount on, made with `mode` if it is missing. pseudo: it may be the kernel's. Raises
        OSError, HookError."""
        self.check_place(unsafe_path)
        point = self._point(unsafe_path, mode, made, directory, unsafe_path)
        if S_ISLNK(point.st.st_mode):
            point.fd.close()
            resolved = canonical(unsafe_path, lambda path: link_text(self.rootfs, path))
            point = self._point(resolved, mode, made, directory, unsafe_path)
        try:
            if S_ISLNK(point.st.st_mode):
                raise OSError(ELOOP, "a link again", unsafe_path)
            self._check(point, unsafe_path, directory=directory, pseudo=pseudo)
        except (OSError, HookError):
            point.fd.close()
            point.remove()
            raise
        return point

    def _point(self, path: bytes, mode: int, made: Made, directory: bool, unsafe_path: bytes) -> Point:
        """As `find`, but a link is returned as it is. path: the one to use of `unsafe_path`, which the caller gave."""
        above, name = split(path)
        parent = self.directory(above, made, unsafe_path)
        refusal = self._rights.refusal(parent, unsafe_path)
        try:
            if refusal is not None:
                return Point(parent, name, _open(parent, name, unsafe_path), fresh=False)
            fd = self._new(parent, name, mode, directory, unsafe_path)
        except FileExistsError:
            return Point(parent, name, _open(parent, name, unsafe_path), fresh=False)
        except FileNotFoundError as e:
            raise refusal or _not_made(unsafe_path, e) from None
        except OSError as e:
            raise _not_made(unsafe_path, e) from None
        try:
            return Point(parent, name, fd, fresh=True)
        except OSError as e:
            fd.close()
            take_back(parent, name)  # nobody could tell later that it was made here
            raise _not_made(unsafe_path, e) from None

    def _new(self, parent: Dir, name: bytes, mode: int, directory: bool, wanted: bytes) -> Fd:
        """An empty file or directory, which is the container's root's. Raises OSError, HookError."""

        def make() -> int:
            if not directory:
                return posix.open(name, _NEW, mode, dir_fd=parent.fileno())
            posix.mkdir(name, mode, dir_fd=parent.fileno())
            return -1

        number, given = self._rights.use(parent, wanted, make)
        if number is None:
            number = make()
        fd = None
        try:
            fd = Fd(number) if number >= 0 else Fd(posix.open(name, _PATH, dir_fd=parent.fileno()))
            if given is not None:
                give(fd, given, directory=directory)
        except OSError:
            if fd is not None:
                fd.close()
            take_back(parent, name)
            raise
        return fd

    def make_link(self, parent: Dir, name: bytes, target: bytes, unsafe_path: bytes) -> None:
        """A new link; of its owner nothing depends. unsafe_path: as the caller was told. Raises OSError, EEXIST where
        something is there; EROFS is for the caller's transaction."""

        def make() -> None:
            posix.symlink(target, name, dir_fd=parent.fileno())

        refusal = self._rights.refusal(parent, unsafe_path)
        if refusal is not None:
            try:
                posix.stat(name, dir_fd=parent.fileno(), follow_symlinks=False)
            except FileNotFoundError:
                raise refusal from None
            raise FileExistsError(EEXIST, "there already", unsafe_path)
        if self._rights.use(parent, unsafe_path, make)[1] is not None:
            make()

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
        """As `mount.check_propagation`. A mount is looked at once; the table is read again only for one that is newer
        than the last look."""
        number = _mount_of(point.fd.fileno())
        if number in self._private:
            return
        start = b"\n%d " % number
        at = self._table.find(start)
        if at < 0:
            self._table = b"\n" + procfs.read(b"self/mountinfo", _MOUNTS_LIMIT)
            at = self._table.find(start)
        # Fields are separated by blanks, and hold none.
        if b" shared:" in self._table[at + 1 : self._table.find(b"\n", at + 1)].partition(b" - ")[0]:
            raise HookError(f"mount on {shown(unsafe_path)}: lies on a shared mount, and would appear on the host",
                            "give the container `rootfsPropagation` slave or private")  # fmt: skip
        self._private.add(number)

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


def _open(parent: Dir, name: bytes, unsafe_path: bytes) -> Fd:
    try:
        return Fd(posix.open(name, _PATH, dir_fd=parent.fileno()))
    except OSError as e:
        raise OSError(e.errno, e.strerror, unsafe_path) from None


def _mount_of(fd: int) -> int:
    """`mount_id`, at a third of its cost from Linux 5.8."""
    try:
        return statx_mount(fd)[0]
    except OSError as e:
        if e.errno not in (ENOSYS, EPERM):
            raise
        return mount_id(fd)


def _same(a: posix.stat_result, b: posix.stat_result) -> bool:
    return (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino)


def _not_made(unsafe_path: bytes, error: OSError) -> OSError | HookError:
    """A read-only file system is an error, where other operations are left out: a driver without a file is none."""
    if error.errno != EROFS:
        return OSError(error.errno, error.strerror, unsafe_path)
    return HookError(f"make mount point {shown(unsafe_path)}: EROFS",
                     "the container's root is read-only and has nothing there: make it in the image")  # fmt: skip


class OnPoint(Operation):
    """What mounts on one point: what was made and mounted is on record, and taken away again in reverse."""

    __slots__ = ("_made", "_mounted", "_point", "path", "points")

    def __init__(self, points: Points, path: bytes) -> None:
        self.points = points
        self.path = path
        self._made: Made | None = None
        self._point: Point | None = None
        self._mounted: mount.Mounted | None = None

    def undo(self) -> None:
        try:
            if self._mounted is not None:
                mounted, self._mounted = self._mounted, None
                mounted.detach()
        finally:
            if self._point is not None:
                self._point.remove()
            if self._made is not None:
                self._made.undo()
