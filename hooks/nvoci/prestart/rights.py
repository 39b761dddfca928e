"""What is made in a container: where that may be, with whose rights, and to whom it belongs.

Nothing is made where `HostMounts` forbids it. What is made belongs to the container's root, and is made with no other
rights than it has. Only in the root's own mount it is made with ours where that root may not write, and then given
away, by a descriptor: in a directory of another's, a name may mean something else a moment later.
"""

from __future__ import annotations

import posix
from _stat import S_ISDIR, S_ISLNK, S_ISREG
from errno import EACCES, ESTALE

from nvoci.errors import HookError, errno_name
from nvoci.hook.hostmounts import HostMounts
from nvoci.hook.operations import shown
from nvoci.linux import procfs
from nvoci.linux.acting import Acting
from nvoci.linux.fd import Fd
from nvoci.linux.mountinfo import mount_id
from nvoci.linux.rootfs import Made
from nvoci.linux.userns import NOBODY

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    from nvoci.linux.rootfs import Dir, Rootfs

    T = TypeVar("T")

_PATH = posix.O_PATH | posix.O_NOFOLLOW | posix.O_CLOEXEC
_READ = posix.O_RDONLY | posix.O_DIRECTORY | posix.O_CLOEXEC


class Rights:
    """In one container's root. owner: (uid, gid) of the container's root as `userns.root_of` has them; the attribute is
    None too where nobody is mapped, and what is made stays ours. named: somebody else than a runtime says that this is
    a container, and its mounts may be anybody's."""

    __slots__ = ("_named", "_rootfs", "_unmapped", "owner")

    def __init__(self, rootfs: Rootfs, owner: tuple[int, int] | None, *, named: bool) -> None:
        self._rootfs = rootfs
        self._unmapped = owner is not None and NOBODY in owner
        self.owner = None if self._unmapped else owner
        self._named = named

    def refusal(self, directory: Dir, wanted: bytes) -> HookError | None:
        """Why nothing may be made in a directory that `wanted` has led to."""
        try:
            HostMounts.of(self._rootfs).check(wanted, directory.fileno())
        except HookError as e:
            why = e.message.removeprefix(f"change {shown(wanted)}: ")
            why = why.replace("its owner, ", "owner of the directory, ", 1)
            return HookError(f"make mount point {shown(wanted)}: {why}",
                             "the image has a link there, or a volume lies there: make it on the host")  # fmt: skip
        return None

    def use(self, parent: Dir, wanted: bytes, make: Callable[[], T]) -> tuple[T | None, tuple[int, int] | None]:
        """(make() with the rights of the container's root, None); or, where it has none in `parent` but we may do it,
        (None, to whom it is to be given). Raises OSError, HookError."""
        if self.owner is None:
            if self._unmapped:
                self._check_ours(parent, wanted, EACCES)
            return make(), None
        try:
            with Acting(*self.owner):
                return make(), None
        except PermissionError as e:  # in a directory of another's
            self._check_ours(parent, wanted, e.errno or EACCES)
            return None, self.owner

    def _check_ours(self, parent: Dir, wanted: bytes, number: int) -> None:
        """That the runtime has made the mount for this container, so that there is nothing but the image: what lies in
        a volume is not for us to hand out. Raises HookError."""
        if self._named or mount_id(parent.fileno()) != mount_id(self._rootfs.fileno()):
            raise HookError(f"make mount point {shown(wanted)}: {errno_name(number)}",
                            "the container's root may not write there: make it on the host, or give the directory "
                            "to that root")  # fmt: skip


class Given(Made):
    """Gives what is made to its owner, and tells another record."""

    __slots__ = ("_made", "_owner")

    def __init__(self, made: Made, owner: tuple[int, int]) -> None:
        super().__init__()
        self._made = made
        self._owner = owner

    def add(self, parent: Dir, name: bytes, st: posix.stat_result) -> None:
        """A directory of ours for a moment."""
        self._made.add(parent, name, st)
        with Fd(posix.open(name, _PATH, dir_fd=parent.fileno())) as fd:
            if not _same(fd.stat(), st):
                raise OSError(ESTALE, "replaced while it was made", name)
            give(fd, self._owner, directory=True)


def give(fd: Fd, owner: tuple[int, int], *, directory: bool) -> None:
    """Change the owner of what was made a moment ago. A directory was opened only after it was made: another is there
    by now, perhaps, but then none of ours with anything in it. Raises OSError."""
    if not directory:
        posix.chown(fd.fileno(), *owner)
        return
    if not S_ISDIR(fd.stat().st_mode):
        raise OSError(ESTALE, "replaced while it was made")
    with Fd(procfs.reopen(fd.fileno(), _READ)) as opened:
        if opened.stat().st_uid != posix.geteuid() or posix.listdir(opened.fileno()):
            raise OSError(ESTALE, "replaced while it was made")
        posix.chown(opened.fileno(), *owner)


def take_back(parent: Dir, name: bytes) -> None:
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
