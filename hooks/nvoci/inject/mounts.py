"""The operations that mount what a device brings: a file or directory of the host, or an empty tmpfs.

A mount point that is missing is made, and undo takes it away again. Where the mount is there already, as asked for,
nothing is done: a rerun leaves what one run leaves.
"""

from __future__ import annotations

import posix

from nvoci import log
from nvoci.errors import HookError, printable
from nvoci.hook.mounts import MountOver
from nvoci.inject import targets, tmpfsopts
from nvoci.inject.sources import can_move
from nvoci.linux import abi, mount, procfs
from nvoci.linux.fd import Fd
from nvoci.linux.mountinfo import find, mount_id, own_table, tree_of
from nvoci.linux.syscalls import fsconfig_create, fsconfig_set_string, fsmount, fsopen
from nvoci.linux.syscalls import mount as mount_by_path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nvoci.hook.container import Container
    from nvoci.hook.operation import Transaction
    from nvoci.hook.preview import Preview
    from nvoci.inject.mountopts import MountOptions
    from nvoci.inject.sources import HostSource
    from nvoci.linux.mountinfo import Mount

_TMPFS, _TMPFS_SOURCE = b"tmpfs", b"nvoci"  # the latter is seen in mountinfo, and tells a rerun
_WORDS = {abi.MS_RDONLY: b"ro", abi.MS_NOSUID: b"nosuid", abi.MS_NODEV: b"nodev", abi.MS_NOEXEC: b"noexec"}
_FLAGS = abi.MS_RDONLY | abi.MS_NOSUID | abi.MS_NODEV | abi.MS_NOEXEC


class _OnPoint(MountOver):
    """On a mount point that is made if it is missing."""

    __slots__ = ("_point", "is_directory", "place")

    def __init__(
        self, container: Container, place: targets.Place, path: bytes, what: str, *, is_directory: bool
    ) -> None:
        super().__init__(container, path, what)
        self.place = place
        self.is_directory = is_directory
        self._point: targets.MountPoint | None = None

    def preview(self, view: Preview) -> bool:
        try:
            with mount.find_target(view, self.path) as target:
                return not self._is_done(target)
        except OSError:
            return True

    def _find(self, transaction: Transaction) -> mount.Target:
        self._point = targets.MountPoint(transaction.made())
        return targets.find(self.place, self.path, directory=self.is_directory, point=self._point)

    def undo(self) -> None:
        super().undo()
        if self._point is not None:
            self._point.undo()


class Bind(_OnPoint):
    """Mount what `sources.open_source()` took from the host."""

    __slots__ = ("source",)

    def __init__(self, container: Container, place: targets.Place, source: HostSource, path: bytes) -> None:
        what = f"{source} ({source.options.words()})"
        super().__init__(container, place, path, what, is_directory=source.is_directory)
        self.source = source

    def _is_done(self, target: mount.Target) -> bool:
        options = self.source.options
        return mount.is_mounted(self.source, target) and not (
            options.recursive and options.all_flags and self._lacking(target.fd.fileno(), options.all_flags)
        )

    def _mount(self, target: mount.Target) -> mount.Mounted:
        mounted = mount.attach(self.source, target)
        self.source.close()  # each holds a descriptor, and there may be hundreds
        return mounted

    def _remember(self, fd: int) -> None:
        self.place.add(fd)

    def _complete(self, mounted: mount.Mounted) -> None:
        """Where mount_setattr(2) could not do it before, and the flags of the mounts below, which are then checked."""
        options = self.source.options
        if not self.source.ready and options.recursive:
            path = procfs.fd_path(mounted.fd.fileno())
            mount.at_procfs(lambda: mount_by_path(None, path, None, abi.MS_REC | abi.MS_PRIVATE))
        if not self.source.ready and options.propagation != abi.MS_PRIVATE:
            log.warning(f"inject: {self.describe()}: private, not slave: Linux 5.12 is needed for that")
        if options.recursive and options.all_flags:
            one = self._lacking(mounted.fd.fileno(), options.all_flags)
            if one is not None:
                seen = printable(b",".join(one.options))
                raise HookError(f"{self.describe()}: {printable(one.target)} below it is {seen}",
                                "the kernel did not take its flags")  # fmt: skip

    def _lacking(self, fd: int, flags: int) -> Mount | None:
        """The mount that `fd` lies on, or one below it, if it is without one of `flags`."""
        wanted = {word for bit, word in _WORDS.items() if flags & bit}
        table = own_table()
        for number in tree_of(mount_id(fd), table):
            one = find(number, table)
            if one is not None and not wanted.issubset(one.options):
                return one
        return None


class Tmpfs(_OnPoint):
    """Mount a new, empty tmpfs."""

    __slots__ = ("options",)

    def __init__(self, container: Container, place: targets.Place, options: MountOptions, path: bytes) -> None:
        what = f"a tmpfs ({','.join((options.words(), *options.data))})"
        super().__init__(container, place, path, what, is_directory=True)
        self.options = options

    def _is_done(self, target: mount.Target) -> bool:
        """One of this source's name, with these flags and options: an engine may have mounted another."""
        if not target.is_mount_point():
            return False
        one = find(mount_id(target.fd.fileno()))
        if one is None or (one.fstype, one.source) != (_TMPFS, _TMPFS_SOURCE):
            return False
        stat = posix.fstatvfs(target.fd.fileno())
        got, wanted = stat.f_flag & _FLAGS, self._flags()
        # A kernel before 4.8 adds nodev in a user namespace.
        return got in (wanted, wanted | abi.MS_NODEV) and tmpfsopts.has(one.super_options, stat, self.options.data)

    def _mount(self, target: mount.Target) -> mount.Mounted:
        tree = self._detached()
        if tree is None:
            return self._mount_by_path(target)
        with mount.Source(tree, self._flags(), tree) as source:
            source.ready = True
            return mount.attach(source, target)

    def _flags(self) -> int:
        return self.options.flags | self.options.all_flags

    def _detached(self) -> Fd | None:
        """Made, but mounted nowhere yet; None where the kernel has no such calls (before Linux 5.2)."""
        made = mount.attempt("fsopen", lambda: fsopen(_TMPFS)) if can_move() else None
        if made is None:
            return None
        with Fd(made) as context:
            fsconfig_set_string(made, b"source", _TMPFS_SOURCE)
            for option in self.options.data:
                name, _, value = option.encode().partition(b"=")
                fsconfig_set_string(made, name, value)
            fsconfig_create(context.fileno())
            return Fd(fsmount(context.fileno(), self._flags()))

    def _mount_by_path(self, target: mount.Target) -> mount.Mounted:
        mount.check_propagation(target)
        before = mount.table_before(target)
        flags = self._flags()
        data = ",".join(self.options.data).encode()
        path = procfs.fd_path(target.fd.fileno())
        mount.at_procfs(lambda: mount_by_path(_TMPFS_SOURCE, path, _TMPFS, flags, data))
        mounted = mount.seen(target, before, lambda fd: self._is_on(fd, target))
        got = posix.fstatvfs(mounted.fd.fileno()).f_flag
        if got & flags != flags:
            mounted.detach()
            raise HookError(f"{self.describe()}: flags {got:#x} instead of {flags:#x}", "the kernel did not take them")
        return mounted

    def _is_on(self, fd: int, target: mount.Target) -> bool:
        """Whether `fd` is the root of a tmpfs of ours that was mounted on `target`."""
        one = find(mount_id(fd))
        return one is not None and one.parent == mount_id(target.fd.fileno()) and one.source == _TMPFS_SOURCE
