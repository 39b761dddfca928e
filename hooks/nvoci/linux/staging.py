"""Replace a name atomically, keep what was there until commit, and leave nothing behind after a SIGKILL.

Everything temporary lives in one directory `.nvoci-tmp` beside the target, locked with flock(2) by its writer. A
symbolic link cannot be locked, a directory can: so a run that finds the directory unlocked knows that its writer is
dead, and one mkdir(2) is all that the ordinary case pays for the search. Protocol:

    look     on the way into a directory: has a killed run left something?
    open     mkdir .nvoci-tmp, lock it; what lies there already is left alone, and its names are not used again
    put      make the new object inside, rename it over the name: RENAME_NOREPLACE for a new name, RENAME_EXCHANGE
             for one that exists, so that the old object now lies in .nvoci-tmp
    undo     exchange or rename back
    close    after undo: remove what this run has put there, and the directory if that was all
             as the commit: empty and remove the directory
    sweep    after the commit: the same in the directories that were not opened

What a killed run has left may be an object of the image that it had replaced, so it stays until a run has succeeded.

The name may be anybody's: a volume's, the image's own, another user's in a directory that everybody may write. So
only what a run could have made counts as ours (`_is_ours`, `_own_names`, asked of what was opened); all else is passed
over for the next name, and nothing is removed from it.
"""

from __future__ import annotations

import fcntl
import posix
import select
from _stat import S_IMODE, S_ISCHR, S_ISDIR, S_ISGID, S_ISLNK, S_ISREG
from errno import EACCES, EAGAIN, EEXIST, EINVAL, EISDIR, ELOOP, ENOENT, ENOSYS, ENOTDIR, EPERM, EWOULDBLOCK

from nvoci.errors import HookError, printable
from nvoci.linux import abi
from nvoci.linux.fd import Fd, write_all
from nvoci.linux.mountinfo import mount_id
from nvoci.linux.rootfs import Dir, fsencode
from nvoci.linux.syscalls import renameat2, statx_mount

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

NAME = b".nvoci-tmp"
# The others are for where somebody else has NAME, or another run its lock; all are looked for by the next run.
NAMES = (NAME, NAME + b"-1", NAME + b"-2", NAME + b"-3")
_WAIT_MS = 5
_WAITS = 400
_TRIES = 16
_MODE = 0o700
_OLD = b"-old"  # see `exchange`
_DIGITS = 9
_OPEN = posix.O_RDONLY | posix.O_DIRECTORY | posix.O_NOFOLLOW | posix.O_CLOEXEC | posix.O_NONBLOCK
# How open(2) answers for what is no directory, or one that we may not read.
_UNREADABLE = (ENOTDIR, ELOOP, EACCES, EPERM)


class _NotOursError(Exception):
    """What has one of our names was not made by a run of ours."""


class Staging:
    """The locked temporary directory in one `Dir`."""

    __slots__ = ("_count", "_fd", "_found", "_name", "directory")

    def __init__(self, directory: Dir) -> None:
        """Raises OSError, and HookError where every name is taken."""
        self.directory = directory
        self._count = 0
        self._name, self._fd, self._found = _open_locked(directory)

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
                fd.close_written()

        return self._make(write)

    def _make(self, make: Callable[[bytes, int], None]) -> bytes:
        name = self.temporary()
        make(name, self.fileno())
        return name

    def temporary(self) -> bytes:
        """A name that nothing has here yet. All that is put here must have one of these: a later run knows it by that,
        and removes nothing else."""
        while True:
            name = b"%d" % self._count
            self._count += 1
            if name not in self._found and name + _OLD not in self._found:
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
        raise OSError(EAGAIN, "changes all the time", name)

    def take(self, name: bytes) -> Replaced:
        """Move the regular file or link `name` in here; ENOENT where there is none."""
        temporary = self.temporary()
        here, there = self.fileno(), self.directory.fileno()
        posix.rename(name, temporary, src_dir_fd=there, dst_dir_fd=here)
        try:
            _check_replaceable(here, temporary, name)
        except OSError:
            rename_noreplace(here, temporary, there, name)  # it came after the caller's look
            raise
        return Replaced(self, temporary, name, None, None)

    def close(self, *, undone: bool = False) -> None:
        """Remove what is kept here, and the directory; after an undo, what a killed run has left stays. Raises OSError;
        the next run then clears what is left."""
        if self._fd.closed:
            return
        stays = self._found if undone else frozenset()
        try:
            fd = self.fileno()
            posix.lseek(fd, 0, 0)  # btrfs: without it what was made since the last listing is not listed
            _unlink(fd, [name for name in map(fsencode, posix.listdir(fd)) if _is_own(name) and name not in stays])
            if not stays:
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


def look(directory: Dir) -> tuple[bool, bytes]:
    """(whether a run has left something in `directory`, one of our names that somebody else has). Four stat(2) where
    there is neither."""
    left, strange = False, b""
    for name in NAMES:
        try:
            posix.stat(name, dir_fd=directory.fileno(), follow_symlinks=False)
        except OSError:
            continue
        try:
            with _open_ours(directory, name)[0] as fd:
                _own_names(fd.fileno())
            left = True
        except _NotOursError:
            strange = strange or name
        except OSError:
            left = True  # if it is
    return left, strange


def sweep(directory: Dir) -> None:
    """Remove what a killed run left in `directory`; what a live one holds is left alone."""
    for name in NAMES:
        try:
            fd, st = _open_ours(directory, name)
            with fd:
                if _is_locked(directory, name, fd, st):
                    _unlink(fd.fileno(), _own_names(fd.fileno()))
                    posix.rmdir(name, dir_fd=directory.fileno())
        except (OSError, _NotOursError):
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
        aside = old + _OLD
        posix.link(new, aside, src_dir_fd=newdirfd, dst_dir_fd=olddirfd, follow_symlinks=False)
        posix.rename(old, new, src_dir_fd=olddirfd, dst_dir_fd=newdirfd)
        posix.rename(aside, old, src_dir_fd=olddirfd, dst_dir_fd=olddirfd)


def _open_locked(directory: Dir) -> tuple[bytes, Fd, frozenset[bytes]]:
    """The staging directory's name, locked descriptor, and the names that are in it already. A name that another run
    holds for two seconds, or that somebody else has, is passed over for the next."""
    waits, held = _WAITS, False
    for name in NAMES:
        while True:
            try:
                found = _try_lock(directory, name)
            except _NotOursError:
                break
            if found is not None:
                return name, *found
            if waits <= 0:
                held = True
                break
            waits -= 1
            select.select([], [], [], _WAIT_MS / 1000)
    what = f"make a staging directory in /{printable(directory.path).strip('/')}"
    names = f"{NAMES[0].decode()} to {NAMES[-1].decode()}"
    if held:
        raise HookError(f"{what}: EBUSY", f"other runs hold {names} there; run again when they have ended")
    raise HookError(f"{what}: EEXIST", f"what has the names {names} there is not ours; remove or unmount one of them")


def _try_lock(directory: Dir, name: bytes) -> tuple[Fd, frozenset[bytes]] | None:
    """Make or find `name`, lock it, and see that it is still there; None where another run holds it or removed it.
    Raises OSError, _NotOursError."""
    parent = directory.fileno()
    fresh = True
    try:
        posix.mkdir(name, _MODE, dir_fd=parent)
    except FileExistsError:
        fresh = False
    except OSError as e:
        raise OSError(e.errno, e.strerror, directory.path) from None
    try:
        fd, st = _open_ours(directory, name)
        try:
            if _is_locked(directory, name, fd, st):
                return fd, _own_names(fd.fileno())
        except BaseException:
            fd.close()
            raise
    except FileNotFoundError:
        return None
    except (OSError, _NotOursError):
        if fresh:
            _rmdir_if_empty(name, parent)
        raise
    fd.close()
    return None


def _open_ours(directory: Dir, name: bytes) -> tuple[Fd, posix.stat_result]:
    """`name`, open for listing, and its stat. Raises OSError, _NotOursError."""
    try:
        fd = Fd(posix.open(name, _OPEN, dir_fd=directory.fileno()))
    except OSError as e:
        if e.errno in _UNREADABLE:
            raise _NotOursError from None
        raise
    try:
        st = fd.stat()
        if _is_ours(directory, fd, st):
            return fd, st
    except BaseException:
        fd.close()
        raise
    fd.close()
    raise _NotOursError


def _is_ours(directory: Dir, fd: Fd, st: posix.stat_result) -> bool:
    """Whether a run could have made it, and nobody else can reach into it."""
    if S_IMODE(st.st_mode) & ~S_ISGID != _MODE:  # which is inherited
        return False
    # The owner of `directory` can rename and remove all that is in it anyway; some runs work as that owner (acting).
    if st.st_uid != posix.geteuid() and st.st_uid != posix.fstat(directory.fileno()).st_uid:
        return False
    try:
        return not statx_mount(fd.fileno())[1]
    except OSError as e:
        if e.errno not in (ENOSYS, EPERM):
            raise
        return mount_id(fd.fileno()) == mount_id(directory.fileno())


def _is_locked(directory: Dir, name: bytes, fd: Fd, st: posix.stat_result) -> bool:
    """Lock it, and see that it still has its name; False where another run holds it or removed it. Raises OSError."""
    try:
        fcntl.flock(fd.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        now = posix.stat(name, dir_fd=directory.fileno(), follow_symlinks=False)
    except OSError as e:
        if e.errno not in (EWOULDBLOCK, ENOENT):
            raise
        return False
    return (now.st_dev, now.st_ino) == (st.st_dev, st.st_ino)


def _own_names(fd: int) -> frozenset[bytes]:
    """What is in a staging directory. Raises _NotOursError where a name, or the kind of what has it, is none of a
    staging directory; OSError."""
    names = []
    posix.lseek(fd, 0, 0)  # btrfs: see `close`
    with posix.scandir(fd) as entries:
        for entry in entries:
            name = fsencode(entry.name)
            if not _is_own(name) or not (
                entry.is_symlink() or entry.is_file(follow_symlinks=False) or _is_node(fd, name)
            ):
                raise _NotOursError
            names.append(name)
    return frozenset(names)


def _is_own(name: bytes) -> bool:
    """Whether it is as `temporary` and `exchange` make them."""
    number = name.removesuffix(_OLD)
    return number.isdigit() and len(number) <= _DIGITS and (number == b"0" or not number.startswith(b"0"))


def _is_node(fd: int, name: bytes) -> bool:
    return S_ISCHR(posix.stat(name, dir_fd=fd, follow_symlinks=False).st_mode)


def _unlink(fd: int, names: Iterable[bytes]) -> None:
    for name in names:
        posix.unlink(name, dir_fd=fd)


def _rmdir_if_empty(name: bytes, parent: int) -> None:
    """What cannot be used (EMFILE, a file system without flock) is not left behind."""
    try:
        posix.rmdir(name, dir_fd=parent)
    except OSError:
        pass
