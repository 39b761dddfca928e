"""The host's files and directories that this process has mounted, so that nothing is changed in them.

A link of the image may lead to where one is: what a hook then made, changed or removed would be the host's. `Rootfs`
and the transaction ask before they do so. Nothing is to be paid by a hook that mounts nothing.
"""

from __future__ import annotations

import posix
from _stat import S_ISDIR

from nvoci.errors import HookError
from nvoci.hook.operations import shown
from nvoci.linux import abi
from nvoci.linux.mountinfo import mount_id, own_mounts

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nvoci.linux.rootfs import Rootfs


class HostMounts:
    """Mounts, by id."""

    __slots__ = ("_ids", "_known")

    def __init__(self) -> None:
        self._ids: set[int] = set()
        self._known: dict[int, bool] = {}  # id of a mount -> whether it is one of these or lies below one

    @classmethod
    def of(cls, rootfs: Rootfs) -> HostMounts:
        """Those of all who mount in this root."""
        return rootfs.guard if isinstance(rootfs.guard, cls) else cls()

    def add(self, rootfs: Rootfs, fd: int) -> None:
        """Remember the mount that `fd` lies on, and guard `rootfs` from now on."""
        found = mount_id(fd)
        self._ids.add(found)
        if S_ISDIR(posix.fstat(fd).st_mode):
            self._known.clear()  # mounts below it may have come with it
        self._known[found] = True
        rootfs.guard = self

    def holds(self, fd: int) -> bool:
        """Whether `fd` lies on one of these, or on a mount below."""
        if not self._ids:
            return False
        found = mount_id(fd)
        if found not in self._known:
            parents = {one.id: one.parent for one in own_mounts()}
            self._known[found] = not self._ids.isdisjoint(lineage(parents, found))
        return self._known[found]

    def check(self, unsafe_path: bytes, fd: int) -> None:
        """Refuse what `unsafe_path` has led to, where it can be changed. Raises HookError; what is mounted read-only is
        left to the kernel to refuse."""
        if self.holds(fd) and not posix.fstatvfs(fd).f_flag & abi.ST_RDONLY:
            raise HookError(f"change {shown(unsafe_path)}: leads into what was mounted from the host",
                            "name a path that is the container's own, or mount it read-only")  # fmt: skip


def lineage(parents: dict[int, int], mount: int) -> list[int]:
    """A mount's id, that of the mount it lies on, and so on."""
    found = [mount]
    while (mount := parents.get(mount, mount)) != found[-1]:
        found.append(mount)
    return found
