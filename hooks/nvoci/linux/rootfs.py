"""`Rootfs`: the container's root, by handle. The only way to a path below it.

Performance contract: a directory is resolved once per hook process and its handle kept (at most MAX_HANDLES open),
so that 1,000 links in one directory cost one lookup. Every name given here is hostile; nothing here takes a path
of the host but `Rootfs.open`. Methods raise OSError with the path below the root as filename.
"""

from __future__ import annotations

import posix
import sys
import time
from _stat import S_IMODE, S_ISDIR, S_ISLNK, S_ISREG
from errno import E2BIG, EEXIST, EINVAL, EISDIR, ELOOP, ENAMETOOLONG, ENOENT, ENOTDIR, ENOTEMPTY, ESTALE

from nvoci.errors import HookError, hook_error, printable
from nvoci.linux import abi, procfs
from nvoci.linux.fd import Fd, read_at_most
from nvoci.linux.lookup import PATH_MAX, lookup
from nvoci.linux.pattern import is_pattern, literal_prefix, match
from nvoci.linux.syscalls import fstatfs_type

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    class Guard(Protocol):
        """Knows of what must not be changed."""

        def check(self, unsafe_path: bytes, fd: int) -> None:
            """Asked of what is to be changed, and of the directory where something is to be. Raises HookError."""


MAX_HANDLES = 64
MAX_ENTRIES = 1_000_000
_ABSENT = (ENOENT, ENOTDIR, ELOOP, ENAMETOOLONG)
_DIRECTORY = posix.O_DIRECTORY | posix.O_CLOEXEC
_TICK_NS = 20_000_000  # by so much at most a file system's clock is behind: a tick of the kernel's, at 100 Hz


def fsencode(name: str) -> bytes:
    """os.fsencode: the bytes that Python decoded `name` from."""
    return name.encode(sys.getfilesystemencoding(), sys.getfilesystemencodeerrors())


def split(unsafe_path: bytes) -> tuple[bytes, bytes]:
    """(directory, last component) of a path below the root. Raises OSError: EINVAL where there is no last
    component, ENAMETOOLONG."""
    directory, _, name = unsafe_path.rstrip(b"/").rpartition(b"/")
    if name in (b"", b".", b"..") or b"\0" in unsafe_path:
        raise OSError(EINVAL, "no file name", unsafe_path)
    if len(unsafe_path) >= PATH_MAX:  # its directory alone may be short enough; nobody could open it by this path
        raise OSError(ENAMETOOLONG, "path too long", unsafe_path)
    return directory, name


def is_pseudo(fd: int) -> bool:
    """Whether `fd` lies on a file system of the kernel's own, whose regular files are none: reading /proc/kmsg takes
    the host's messages away."""
    return fstatfs_type(fd) in abi.PSEUDO_FS


def _open_regular(handle: Fd, unsafe_path: bytes, pseudo: bool = False) -> Fd:
    """What an O_PATH handle refers to, open for reading, if it is a regular file: the type comes before the open."""
    mode = handle.stat().st_mode
    if not S_ISREG(mode) or (not pseudo and is_pseudo(handle.fileno())):
        raise OSError(EISDIR if S_ISDIR(mode) else EINVAL, "not a regular file", unsafe_path)
    return Fd(procfs.open_regular(handle.fileno(), unsafe_path))


class Dir:
    """A directory below the root. `fileno()` opens it again if its handle was closed meanwhile, and then insists on
    the same inode, so one path never means two directories."""

    __slots__ = ("_fd", "_rootfs", "identity", "path")

    def __init__(self, rootfs: Rootfs, path: bytes, fd: int) -> None:
        self._rootfs = rootfs
        self.path = path
        self._fd = fd
        st = posix.fstat(fd)
        self.identity = (st.st_dev, st.st_ino)

    def fileno(self) -> int:
        """An O_PATH descriptor, owned by this object."""
        if self._fd < 0:
            fd = lookup(self._rootfs.fileno(), self.path, posix.O_DIRECTORY)
            st = posix.fstat(fd)
            if (st.st_dev, st.st_ino) != self.identity:
                posix.close(fd)
                raise OSError(ESTALE, "replaced by another directory", self.path)
            self._fd = fd
            self._rootfs.keep(self)
        return self._fd

    def open_file(self, name: bytes) -> Fd:
        """`Rootfs.open_file` of a name in this directory; a link is EINVAL."""
        flags = posix.O_PATH | posix.O_NOFOLLOW | posix.O_CLOEXEC
        with Fd(posix.open(name, flags, dir_fd=self.fileno())) as handle:
            return _open_regular(handle, name)

    def check(self) -> None:
        """To be called before something is changed in it. Raises HookError where the root's guard forbids that."""
        self._rootfs.check(self.path, self)

    def release(self) -> None:
        """Close the handle; the directory stays usable."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            posix.close(fd)


class Budget:
    """What `match` may spend: directories to list in all, names at a time, steps of comparing in all."""

    __slots__ = ("directories", "names", "steps")

    def __init__(self, directories: int = 256, names: int = 10_000) -> None:
        self.directories = directories
        self.names = names
        self.steps = 2_000_000  # half a second


class Made:
    """Directories made on the way to one path, innermost last, so that undo can take them away again."""

    __slots__ = ("_steps",)

    def __init__(self) -> None:
        self._steps: list[tuple[Dir, bytes, tuple[int, int]]] = []

    def add(self, parent: Dir, name: bytes, st: posix.stat_result) -> None:
        """Remember `name` in `parent` as made by us."""
        self._steps.append((parent, name, (st.st_dev, st.st_ino)))

    def undo(self) -> None:
        """Remove those that are still ours and empty. At one that is not empty it stops, and a later call goes on: a
        staging directory may still lie there, or it was filled by somebody else and is theirs now."""
        while self._steps:
            parent, name, identity = self._steps[-1]
            try:
                st = posix.stat(name, dir_fd=parent.fileno(), follow_symlinks=False)
                if (st.st_dev, st.st_ino) == identity:
                    posix.rmdir(name, dir_fd=parent.fileno())
            except OSError as e:
                if e.errno in (ENOTEMPTY, EEXIST):
                    return
            self._steps.pop()


class Rootfs:
    """A container's root directory, opened once. pseudo: whether files of procfs and its like count as regular."""

    __slots__ = ("_dirs", "_fd", "_open", "followed", "guard", "name")
    pseudo = False

    def __init__(self, fd: Fd, name: str) -> None:
        self._fd = fd
        self.name = name
        self._dirs: dict[bytes, Dir] = {}
        self._open: list[Dir] = []
        self.guard: Guard | None = None
        self.followed = 0  # see nvoci.linux.canonical

    @classmethod
    def open(cls, path: str) -> Rootfs:
        """Open the root by its host path; the string survives only for messages. Raises HookError."""
        if not path.startswith("/"):
            raise HookError(f"open rootfs `{printable(path)}`: not an absolute path",
                            "check `root` in the container's state")  # fmt: skip
        try:
            # Directories above it may be links of the host (/var/run); the root itself may not: runc refuses that, too.
            fd = Fd(posix.open(path.rstrip("/") or "/", posix.O_PATH | _DIRECTORY | posix.O_NOFOLLOW))
        except (OSError, ValueError) as e:
            error = e if isinstance(e, OSError) else OSError(EINVAL, str(e))
            hint = "check `root` and `bundle` of the state; it must be a directory, not a link"
            raise hook_error("open rootfs", path, error, hint) from None
        here, host = fd.stat(), posix.stat("/")
        if (here.st_dev, here.st_ino) == (host.st_dev, host.st_ino):
            fd.close()
            raise HookError(f"open rootfs `{printable(path)}`: is the host's own root",
                            "give the container a root of its own")  # fmt: skip
        return cls(fd, path)

    def fileno(self) -> int:
        """The O_PATH descriptor of the root, owned by this object."""
        return self._fd.fileno()

    def close(self) -> None:
        """Close the root and every directory handle below it."""
        for d in self._open:
            d.release()
        self._open.clear()
        self._dirs.clear()
        self._fd.close()

    # -- reading ------------------------------------------------------------------------------------------------

    def lookup(self, unsafe_path: bytes, flags: int = 0) -> Fd:
        """An O_PATH descriptor of any object; flags as in `nvoci.linux.lookup`."""
        return Fd(lookup(self.fileno(), unsafe_path, flags))

    def stat(self, unsafe_path: bytes) -> posix.stat_result:
        """stat(2) inside the root."""
        with self.lookup(unsafe_path) as fd:
            return fd.stat()

    def lstat(self, unsafe_path: bytes) -> posix.stat_result:
        """lstat(2) inside the root."""
        with self.lookup(unsafe_path, posix.O_NOFOLLOW) as fd:
            return fd.stat()

    def readlink(self, unsafe_path: bytes) -> bytes:
        """readlink(2) inside the root; EINVAL where it is not a link."""
        with self.lookup(unsafe_path, posix.O_NOFOLLOW) as fd:
            if not S_ISLNK(fd.stat().st_mode):
                raise OSError(EINVAL, "not a symbolic link", unsafe_path)
            return posix.readlink(b"", dir_fd=fd.fileno())

    def exists(self, unsafe_path: bytes) -> bool:
        """Whether `unsafe_path` resolves to something inside the root; other errors than absence are raised."""
        try:
            self.lookup(unsafe_path).close()
        except OSError as e:
            if e.errno in _ABSENT:
                return False
            raise
        return True

    def open_file(self, unsafe_path: bytes, flags: int = 0) -> Fd:
        """A regular file, open for reading. The type is checked on the handle before anything is opened for I/O, so
        a FIFO, device or socket is never touched: EISDIR or EINVAL."""
        with self.lookup(unsafe_path, flags) as handle:
            return _open_regular(handle, unsafe_path, self.pseudo)

    def read_file(self, unsafe_path: bytes, limit: int) -> bytes:
        """The whole of a regular file of at most `limit` bytes; EFBIG beyond."""
        with self.open_file(unsafe_path) as fd:
            try:
                return read_at_most(fd.fileno(), limit)
            except OSError as e:
                raise OSError(e.errno, e.strerror, unsafe_path) from None

    def match(self, unsafe_pattern: bytes, budget: Budget) -> list[bytes]:
        """glob(3) inside the root: the paths that match, in bytewise order; components without a wildcard are not
        looked for. E2BIG where `budget` is used up."""
        paths = [b""]
        if len(unsafe_pattern) > PATH_MAX:
            return []
        for component in unsafe_pattern.split(b"/"):
            if not component:
                continue
            if not is_pattern(component):
                paths = [path + b"/" + component for path in paths]
                continue
            paths = [path + b"/" + name for path in paths for name in sorted(self._matching(path, component, budget))]
            paths = [path for path in paths if len(path) < PATH_MAX]
            if len(paths) > budget.names:
                raise OSError(E2BIG, f"more than {budget.names} names match", unsafe_pattern)
        return paths

    def _matching(self, directory: bytes, pattern: bytes, budget: Budget) -> list[bytes]:
        budget.directories -= 1
        if budget.directories < 0:
            raise OSError(E2BIG, "too many directories to search", directory)
        try:
            names = self.list(directory or b".", budget.names)
        except OSError as e:
            if e.errno in _ABSENT:
                return []
            raise
        budget.steps -= len(pattern) * sum(map(len, names))
        if budget.steps < 0:
            raise OSError(E2BIG, "too many names to compare", directory)
        prefix = literal_prefix(pattern)
        return [name for name in names if name.startswith(prefix) and match(pattern, name)]

    def list(self, unsafe_path: bytes, limit: int = MAX_ENTRIES) -> list[bytes]:
        """The names in a directory, unsorted; E2BIG where there are more than `limit`."""
        with self.lookup(unsafe_path, posix.O_DIRECTORY) as handle:
            fd = procfs.reopen(handle.fileno(), posix.O_RDONLY | posix.O_DIRECTORY)
        try:
            names: list[bytes] = []
            with posix.scandir(fd) as entries:
                for entry in entries:
                    names.append(fsencode(entry.name))
                    if len(names) > limit:
                        raise OSError(E2BIG, f"more than {limit} entries")
            return names
        except OSError as e:
            raise OSError(e.errno, e.strerror, unsafe_path) from None  # scandir's own names the descriptor
        finally:
            posix.close(fd)

    # -- directories to act in ----------------------------------------------------------------------------------

    def dir(self, unsafe_path: bytes) -> Dir:
        """An existing directory, resolved at the first call and kept."""
        known = self._dirs.get(unsafe_path)
        if known is None:
            known = Dir(self, unsafe_path, lookup(self.fileno(), unsafe_path, posix.O_DIRECTORY))
            self._dirs[unsafe_path] = known
            self.keep(known)
        return known

    def mkdirs(self, unsafe_path: bytes, mode: int, made: Made) -> Dir:
        """`dir()`, making what is missing with exactly `mode`. `made` is told of each new directory as it is made.

        Missing components are made one by one on handles, never through a link: a dangling link in the way is
        ENOTDIR, `..` below a missing directory is ENOENT.
        """
        missing: list[bytes] = []
        path = unsafe_path
        while True:
            try:
                directory = self.dir(path)
                break
            except FileNotFoundError:
                path = path.rstrip(b"/")
                if path.endswith(b"/."):
                    path = path[:-2]
                elif path.endswith(b"/.."):
                    raise
                else:
                    path, name = split(path)
                    missing.append(name)
        while missing:
            name = missing.pop()
            path = path + b"/" + name
            directory = self._mkdir(directory, name, path, mode, made)
        return directory

    def check(self, unsafe_path: bytes, handle: Fd | Dir) -> None:
        """Ask the guard, if there is one, whether what `unsafe_path` has led to may be changed. Raises HookError."""
        if self.guard is not None:
            self.guard.check(unsafe_path, handle.fileno())

    def _mkdir(self, parent: Dir, name: bytes, path: bytes, mode: int, made: Made) -> Dir:
        """One missing directory, or the one that somebody else made meanwhile."""
        parent.check()
        began = time.time_ns()
        try:
            # Made with its final mode, so that a kill leaves nothing half-done; a hook's umask is 0.
            posix.mkdir(name, mode, dir_fd=parent.fileno())
            fresh = True
        except FileExistsError:
            fresh = False  # or a dangling link, which the next line refuses
        except OSError as e:
            raise OSError(e.errno, e.strerror, path) from None
        fd = -1
        try:
            fd = posix.open(name, posix.O_PATH | _DIRECTORY | posix.O_NOFOLLOW, dir_fd=parent.fileno())
            directory, st = Dir(self, path, fd), posix.fstat(fd)
        except OSError as e:
            if fd >= 0:
                posix.close(fd)
            if fresh:
                _rmdir_quietly(name, parent.fileno())  # EMFILE: nobody could tell later that it was made here
            raise OSError(e.errno, e.strerror, path) from None
        self._dirs[path] = directory
        self.keep(directory)
        if fresh and _is_new(fd, st, mode, began):
            made.add(parent, name, st)
            if S_IMODE(st.st_mode) & 0o777 != mode:
                posix.chmod(procfs.fd_path(fd), mode, dir_fd=procfs.handle())
        return directory

    def keep(self, directory: Dir) -> None:
        """Count an open handle; the oldest is released beyond MAX_HANDLES."""
        self._open.append(directory)
        if len(self._open) > MAX_HANDLES:
            self._open.pop(0).release()


def _is_new(fd: int, st: posix.stat_result, mode: int, began: int) -> bool:
    """Whether the directory that was opened is the one that was made just now. Where others may write they may have put
    another in its place, of root's with a mode that is to stay. Of a mode with fewer bits, which a default ACL gives:
    only one that is empty, and as young as can be told."""
    if st.st_uid != posix.geteuid():
        return False
    has = S_IMODE(st.st_mode) & 0o777
    if has == mode & 0o777:
        return True
    if has & ~mode or st.st_mtime_ns < began - _TICK_NS:
        return False
    try:
        with Fd(procfs.reopen(fd, posix.O_RDONLY | posix.O_DIRECTORY)) as opened:
            return not posix.listdir(opened.fileno())
    except OSError:
        return False


def _rmdir_quietly(name: bytes, parent: int) -> None:
    try:
        posix.rmdir(name, dir_fd=parent)
    except OSError:
        pass  # gone, or filled by somebody else
