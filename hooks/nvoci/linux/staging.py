"""Replace a name atomically, keep what was there until commit, and leave nothing behind after a SIGKILL.

Everything temporary lives in one directory `.nvoci-tmp` beside the target, locked with flock(2) by its writer. A
symbolic link cannot be locked, a directory can: so a run that finds the directory unlocked knows that its writer is
dead and empties it, and one mkdir(2) is all that the ordinary case pays for the search. Protocol:

    open     mkdir .nvoci-tmp, lock it, empty it if it was left over
    put      make the new object inside, rename it over the name: RENAME_NOREPLACE for a new name, RENAME_EXCHANGE
             for one that exists, so that the old object now lies in .nvoci-tmp
    undo     exchange or rename back
    close    empty and remove the directory (this is the commit)
"""

from __future__ import annotations

import fcntl
import posix
import select
from _stat import S_ISDIR, S_ISLNK, S_ISREG
from errno import EBUSY, EEXIST, EINVAL, EISDIR, ELOOP, ENOENT, ENOSYS, ENOTDIR, EPERM, EWOULDBLOCK

from nvoci.linux import abi
from nvoci.linux.fd import Fd, write_all
from nvoci.linux.rootfs import Dir, fsencode
from nvoci.linux.syscalls import renameat2

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

NAME = b".nvoci-tmp"
# The others are for where something else is in the way of NAME, or holds its lock; all are looked for by the next run.
NAMES = (NAME, NAME + b"-1", NAME + b"-2", NAME + b"-3")
_WAIT_MS = 5
_WAITS = 400
_TRIES = 16


class Staging:
    """The locked temporary directory in one `Dir`."""

    __slots__ = ("_count", "_fd", "_name", "directory")

    def __init__(self, directory: Dir) -> None:
        self.directory = directory
        self._count = 0
        self._name, self._fd = _open_locked(directory)

    def fileno(self) -> int:
        """The descriptor of the temporary directory."""
        return self._fd.fileno()

    def new_link(self, target: bytes) -> bytes:
        """Make a symbolic link here and return its temporary name."""
        return self._make(lambda name, fd: posix.symlink(target, name, dir_fd=fd))

    def new_file(self, data: bytes, mode: int) -> bytes:
        """Write a regular file here, with exactly `mode`, and return its temporary name."""

        def write(name: bytes, dirfd: int) -> None:
            flags = posix.O_WRONLY | posix.O_CREAT | posix.O_EXCL | posix.O_NOFOLLOW | posix.O_CLOEXEC
            with Fd(posix.open(name, flags, 0o600, dir_fd=dirfd)) as fd:
                write_all(fd.fileno(), data)
                posix.fchmod(fd.fileno(), mode)

        return self._make(write)

    def _make(self, make: Callable[[bytes, int], None]) -> bytes:
        name = b"%d" % self._count
        self._count += 1
        make(name, self.fileno())
        return name

    def publish(self, temporary: bytes, name: bytes) -> Replaced:
        """Put the staged object at `name` beside this directory. A symbolic link or regular file there is kept
        here until `close()`; a directory is EISDIR, anything else EEXIST."""
        here, target = self.fileno(), self.directory.fileno()
        # Asked for before the rename: afterwards the name may be another's.
        st = posix.stat(temporary, dir_fd=here, follow_symlinks=False)
        for _ in range(_TRIES):
            try:
                rename_noreplace(here, temporary, target, name)
                return Replaced(self, temporary, name, False, st)
            except FileExistsError:
                pass
            try:
                _check_replaceable(target, name, name)
                exchange(here, temporary, target, name)
            except FileNotFoundError:
                continue  # removed meanwhile
            try:
                _check_replaceable(here, temporary, name)
            except OSError:
                exchange(here, temporary, target, name)  # it came after the first look
                raise
            return Replaced(self, temporary, name, True, st)
        raise OSError(EBUSY, "changes all the time", name)

    def take(self, name: bytes) -> Replaced:
        """Move the regular file or link `name` in here; ENOENT where there is none."""
        temporary = b"%d" % self._count
        self._count += 1
        here, there = self.fileno(), self.directory.fileno()
        posix.rename(name, temporary, src_dir_fd=there, dst_dir_fd=here)
        try:
            _check_replaceable(here, temporary, name)
        except OSError:
            rename_noreplace(here, temporary, there, name)  # it came after the caller's look
            raise
        return Replaced(self, temporary, name, None, None)

    def close(self) -> None:
        """Remove what is kept here, and the directory. Raises OSError; the next run then clears what is left."""
        if self._fd.closed:
            return
        try:
            _empty(self.fileno())
            posix.rmdir(self._name, dir_fd=self.directory.fileno())
        finally:
            self._fd.close()


def _check_replaceable(dirfd: int, entry: bytes, name: bytes) -> None:
    """Raise EISDIR or EEXIST, for `name`, unless `entry` is a symbolic link or a regular file."""
    mode = posix.stat(entry, dir_fd=dirfd, follow_symlinks=False).st_mode
    if not (S_ISLNK(mode) or S_ISREG(mode)):
        raise OSError(EISDIR if S_ISDIR(mode) else EEXIST, "in the way", name)


class Replaced:
    """What `publish` or `take` did, so that it can be undone. `kept`: an old object waits in the staging directory
    (None: only the old object exists)."""

    __slots__ = ("_identity", "_kept", "_name", "_staging", "_temporary")

    def __init__(
        self, staging: Staging, temporary: bytes, name: bytes, kept: bool | None, st: posix.stat_result | None
    ) -> None:
        self._staging = staging
        self._temporary = temporary
        self._name = name
        self._kept = kept
        self._identity = (0, 0) if st is None else (st.st_dev, st.st_ino)

    @property
    def replaced(self) -> bool:
        """Whether something was in the way."""
        return self._kept is True

    def undo(self) -> None:
        """Bring back the old state, unless the name has been changed by somebody else since. Raises OSError."""
        here, there = self._staging.fileno(), self._staging.directory.fileno()
        if self._kept is None:
            rename_noreplace(here, self._temporary, there, self._name)
            return
        try:
            st = posix.stat(self._name, dir_fd=there, follow_symlinks=False)
        except FileNotFoundError:
            return
        if (st.st_dev, st.st_ino) != self._identity:
            return
        if self._kept:
            exchange(here, self._temporary, there, self._name)
        else:
            posix.rename(self._name, self._temporary, src_dir_fd=there, dst_dir_fd=here)


def sweep(directory: Dir) -> None:
    """Remove what a killed run left in `directory`; what a live one holds is left alone. Four stat(2) otherwise."""
    for name in NAMES:
        try:
            posix.stat(name, dir_fd=directory.fileno(), follow_symlinks=False)
            fd = _try_lock(directory, name)
            if fd is not None:
                with fd:
                    _empty(fd.fileno())
                    posix.rmdir(name, dir_fd=directory.fileno())
        except OSError:
            continue  # none there; or not ours, and then it stays


def rename_noreplace(olddirfd: int, old: bytes, newdirfd: int, new: bytes) -> None:
    """renameat2(RENAME_NOREPLACE); a hard link and an unlink where the file system has no such flag."""
    try:
        renameat2(olddirfd, old, newdirfd, new, abi.RENAME_NOREPLACE)
    except OSError as e:
        if e.errno not in (EINVAL, ENOSYS):
            raise
        posix.link(old, new, src_dir_fd=olddirfd, dst_dir_fd=newdirfd, follow_symlinks=False)
        posix.unlink(old, dir_fd=olddirfd)


def exchange(olddirfd: int, old: bytes, newdirfd: int, new: bytes) -> None:
    """renameat2(RENAME_EXCHANGE); where the file system has no such flag the old object gets a second name first,
    and an ordinary rename replaces it."""
    try:
        renameat2(olddirfd, old, newdirfd, new, abi.RENAME_EXCHANGE)
    except OSError as e:
        if e.errno not in (EINVAL, ENOSYS):
            raise
        aside = old + b"-old"
        posix.link(new, aside, src_dir_fd=newdirfd, dst_dir_fd=olddirfd, follow_symlinks=False)
        posix.rename(old, new, src_dir_fd=olddirfd, dst_dir_fd=newdirfd)
        posix.rename(aside, old, src_dir_fd=olddirfd, dst_dir_fd=olddirfd)


def _open_locked(directory: Dir) -> tuple[bytes, Fd]:
    """The staging directory's name and locked descriptor. A name that another holds for two seconds, or that is not
    a directory of ours, is passed over for the next."""
    waits = _WAITS
    for name in NAMES:
        while True:
            try:
                fd = _try_lock(directory, name)
                if fd is not None:
                    _empty_or_remove(directory, name, fd)
                    return name, fd
            except OSError as e:
                if e.errno not in (ENOTDIR, ELOOP, EISDIR, EPERM):
                    raise
                break
            if waits <= 0:
                break
            waits -= 1
            select.select([], [], [], _WAIT_MS / 1000)
    raise OSError(EBUSY, "no staging directory can be locked", directory.path + b"/" + NAME)


def _empty_or_remove(directory: Dir, name: bytes, fd: Fd) -> None:
    """Empty a directory just locked; where that fails it is let go, and removed if it is empty."""
    try:
        _empty(fd.fileno())
    except OSError:
        with fd:
            _rmdir_if_empty(name, directory.fileno())
        raise


def _try_lock(directory: Dir, name: bytes) -> Fd | None:
    """Make or find `name`, lock it, and see that it is still there; None where another holds it or removed it."""
    parent = directory.fileno()
    fresh = True
    try:
        posix.mkdir(name, 0o700, dir_fd=parent)
    except FileExistsError:
        fresh = False
    except OSError as e:
        raise OSError(e.errno, e.strerror, directory.path) from None
    try:
        flags = posix.O_RDONLY | posix.O_DIRECTORY | posix.O_NOFOLLOW | posix.O_CLOEXEC | posix.O_NONBLOCK
        fd = Fd(posix.open(name, flags, dir_fd=parent))
    except FileNotFoundError:
        return None
    except OSError:
        if fresh:
            _rmdir_if_empty(name, parent)
        raise
    try:
        fcntl.flock(fd.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        now, held = posix.stat(name, dir_fd=parent, follow_symlinks=False), fd.stat()
        if (now.st_dev, now.st_ino) == (held.st_dev, held.st_ino):
            return fd
    except OSError as e:
        if e.errno not in (EWOULDBLOCK, ENOENT):
            with fd:
                if fresh:
                    _rmdir_if_empty(name, parent)
            raise
    fd.close()
    return None


def _rmdir_if_empty(name: bytes, parent: int) -> None:
    """What cannot be used (EMFILE, a file system without flock) is not left behind."""
    try:
        posix.rmdir(name, dir_fd=parent)
    except OSError:
        pass


def _empty(fd: int) -> None:
    """Unlink everything in a staging directory; a directory in there is not ours and makes its removal fail."""
    for name in posix.listdir(fd):
        posix.unlink(fsencode(name), dir_fd=fd)
