"""The operations that mount something over a path of the container: a host file, or a generated read-only one.

The path is resolved once in the root and must exist; what it shadows is not changed. Where the mount is there already,
as asked for, nothing is done: the same hook may be called at two stages of one start.
"""

from __future__ import annotations

import posix
from errno import EINVAL, EISDIR, ENOSPC, ENOTDIR
from stat import S_ISDIR, S_ISREG

from nvoci import log
from nvoci.errors import HookError
from nvoci.hook.container import HOST
from nvoci.hook.operation import Operation, Transaction
from nvoci.hook.operations import shown
from nvoci.linux import abi, generated, mount, procfs
from nvoci.linux.fd import Fd, read_at_most
from nvoci.linux.rootfs import is_pseudo

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nvoci.hook.container import Container
    from nvoci.hook.preview import Preview
    from nvoci.linux.rootfs import Rootfs


def check_pseudo(rootfs: Rootfs, target: mount.Target, *, allowed: bool) -> None:
    """Refuse a target in a file system of the kernel's: what is there, such as /proc/1/attr/exec, would be hidden from
    the runtime too. allowed: that very path of the root's procfs may be covered; the kernel must call it so, so that
    no link has led to it. Raises HookError, OSError."""
    fd = target.fd.fileno()
    if not is_pseudo(fd):
        return
    own = procfs.name_of(rootfs.fileno()).rstrip(b"/") + b"/" + target.path.strip(b"/")
    if not allowed or not procfs.is_procfs(fd) or procfs.name_of(fd) != own:
        raise HookError(f"mount on {shown(target.path)}: leads into a file system of the kernel's",
                        "what is there would be hidden from the runtime too")  # fmt: skip


class MountOver(Operation):
    """What all that mount have in common: the target, the refusal on the host, undo by handle."""

    __slots__ = ("_mounted", "container", "path", "what")

    def __init__(self, container: Container, path: bytes, what: str) -> None:
        self.container = container
        self.path = path
        self.what = what
        self._mounted: mount.Mounted | None = None

    def describe(self) -> str:
        return f"mount {self.what} on {shown(self.path)}"

    def execute(self, transaction: Transaction) -> None:
        if self.container.place == HOST:
            raise HookError(f"{self.describe()}: the container has no mount namespace to mount in",
                            "call the hook with the state of a created container")  # fmt: skip
        with self._find(transaction) as target:
            if self._is_done(target):
                log.info("mounted already", path=shown(self.path))
                self._remember(target.fd.fileno())
                return
            try:
                self._mounted = self._mount(target)
            except OSError as e:
                if e.errno != ENOSPC:
                    raise
                raise HookError(f"{self.describe()}: ENOSPC", "limit of mounts reached: see fs.mount-max") from None
            self._remember(self._mounted.fd.fileno())
            self._complete(self._mounted)

    def _find(self, transaction: Transaction) -> mount.Target:
        try:
            return mount.find_target(self.container.rootfs, self.path)
        except FileNotFoundError:
            raise HookError(f"{self.describe()}: ENOENT", "the container has no such file to mount on") from None

    def _remember(self, fd: int) -> None:
        """Told of the mount, new or there already."""

    def _complete(self, mounted: mount.Mounted) -> None:
        """What is to be done when the mount is on record for undo."""

    def _is_done(self, target: mount.Target) -> bool:
        raise NotImplementedError

    def _mount(self, target: mount.Target) -> mount.Mounted:
        raise NotImplementedError

    def undo(self) -> None:
        if self._mounted is not None:
            mounted, self._mounted = self._mounted, None
            mounted.detach()


class BindMount(MountOver):
    """Mount a clone of a host file or directory, made with `mount.clone()` on the host, over one of its kind."""

    __slots__ = ("source",)

    def __init__(self, container: Container, source: mount.Source, path: bytes, what: str) -> None:
        super().__init__(container, path, what)
        self.source = source

    def preview(self, view: Preview) -> bool:
        try:
            with mount.find_target(self.container.rootfs, self.path) as target:
                return not self._is_done(target)
        except OSError:
            return True

    def _is_done(self, target: mount.Target) -> bool:
        return mount.is_mounted(self.source, target)

    def _mount(self, target: mount.Target) -> mount.Mounted:
        file, onto = (not S_ISDIR(fd.stat().st_mode) for fd in (self.source.object, target.fd))
        if file != onto:
            raise OSError(EISDIR if file else ENOTDIR, "of another kind", self.path)
        return mount.attach(self.source, target)


class GeneratedMount(MountOver):
    """Mount a file with this content over an existing regular file, `ro,nosuid,nodev,noexec`. in_proc: that is a file
    of the container's procfs; else it is none of the kernel's."""

    __slots__ = ("data", "in_proc", "mode")

    def __init__(
        self, container: Container, path: bytes, data: bytes, mode: int, what: str, *, in_proc: bool = False
    ) -> None:
        super().__init__(container, path, what)
        self.data = data
        self.mode = mode
        self.in_proc = in_proc

    def describe(self) -> str:
        return f"{super().describe()} ({len(self.data)} bytes, read-only)"

    def preview(self, view: Preview) -> bool:
        if view.content(self.path, len(self.data)) == self.data:
            return False
        view.plan_file(self.path, self.data)
        return True

    def _is_done(self, target: mount.Target) -> bool:
        """Ours, from an earlier stage: a read-only mount with the same content."""
        check_pseudo(self.container.rootfs, target, allowed=self.in_proc)  # before anything of it is read
        fd = target.fd.fileno()
        mode = target.fd.stat().st_mode
        if not S_ISREG(mode):
            raise OSError(EISDIR if S_ISDIR(mode) else EINVAL, "not a regular file", self.path)
        if not target.is_mount_point() or not posix.fstatvfs(fd).f_flag & abi.ST_RDONLY:
            return False
        try:
            with Fd(procfs.reopen(fd, posix.O_RDONLY)) as file:
                return read_at_most(file.fileno(), len(self.data)) == self.data
        except OSError:
            return False

    def _mount(self, target: mount.Target) -> mount.Mounted:
        container = self.container
        return generated.mount_generated(container.rootfs, target, self.data, self.mode, container.mount_label)
