"""The operations that give a container MIG capabilities: access files on those of its procfs, device nodes, rules.

The procfs of a container shows the driver's tree, so there is a file to mount on; where something else covers that
tree, such as the tmpfs of an injector, the file and its directories are made. In a procfs nothing can be made. And
nothing in a file system of the kernel's is covered but the access file itself: a link of the image to
/proc/1/attr/exec would have the runtime write its security label to a file of the host's.
"""

from __future__ import annotations

import posix
from errno import EOVERFLOW, EROFS

from nvoci.errors import HookError
from nvoci.hook.container import HOST
from nvoci.hook.devices import BindNode, EmptyFile
from nvoci.hook.migcaps import CAPABILITIES, DEVICES
from nvoci.hook.mounts import BindMount, check_pseudo
from nvoci.hook.operation import AllowDevices
from nvoci.hook.operations import shown
from nvoci.linux import abi
from nvoci.linux.acting import Acting
from nvoci.linux.rootfs import Made, is_pseudo

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nvoci.hook.container import Container
    from nvoci.hook.devices import Source
    from nvoci.hook.migcaps import Capability, Management
    from nvoci.hook.operation import Operation, Transaction
    from nvoci.linux.fd import Fd
    from nvoci.linux.mount import Mounted, Target
    from nvoci.linux.mount import Source as MountSource
    from nvoci.linux.rootfs import Rootfs

_PROC = b"proc/"
_READ_ONLY = "ro,nosuid,nodev,noexec"


def capability(container: Container, wanted: Capability, *, bind: bool = True, allow: bool = True) -> list[Operation]:
    """The access file, and the node it names. bind: mount the node; allow: its rule."""
    path = _PROC + wanted.path
    found: list[Operation] = [MountFile(container, wanted.file, path, wanted.mode)]
    if wanted.node is not None and bind:
        found.append(MountNode(container, wanted.node, wanted.node.path, allow=allow))
    elif wanted.node is not None and allow:
        found.append(AllowDevices([wanted.node.rule()]))
    return found


def management(container: Container, wanted: Management, *, allow: bool = True) -> list[Operation]:
    """All of the access files, all of the nodes, and the rules."""
    found: list[Operation] = [MountDirectory(container, wanted.files, _PROC + CAPABILITIES, _READ_ONLY)]
    if wanted.nodes is not None:
        found.append(MountDirectory(container, wanted.nodes, DEVICES, "rw,nosuid,noexec"))
    if wanted.rules and allow:
        found.append(AllowDevices(wanted.rules))
    return found


class MountFile(BindMount):
    """Mount an access file on the container's, which is made if there is none."""

    __slots__ = ("_file", "mode")

    def __init__(self, container: Container, source: MountSource, path: bytes, mode: int) -> None:
        super().__init__(container, source, path, f"the host's ({_READ_ONLY})")
        self.mode = mode
        self._file = EmptyFile()

    def execute(self, transaction: Transaction) -> None:
        rootfs = self.container.rootfs
        if self.container.place != HOST and _owner_of_missing(rootfs, self.path) is not None:
            try:
                self._file.make(transaction, rootfs, self.path, self.mode)
            except OSError as e:
                raise _explained(self.path, e) from None
        super().execute(transaction)

    def _mount(self, target: Target) -> Mounted:
        _check(self.container, target)
        return super()._mount(target)

    def undo(self) -> None:
        try:
            super().undo()
        finally:
            self._file.undo()


class MountNode(BindNode):
    """Mount the host's node on the container's, which is made if there is none, and ask for its rule."""

    __slots__ = ()

    def __init__(self, container: Container, node: Source, path: bytes, *, allow: bool) -> None:
        super().__init__(container, node, path, allow=allow)

    def execute(self, transaction: Transaction) -> None:
        try:
            super().execute(transaction)
        except OSError as e:
            raise _explained(self.path, e) from None

    def _find(self, transaction: Transaction) -> Target:
        if self.container.place != HOST and _owner_of_missing(self.container.rootfs, self.path) is None:
            return super(BindNode, self)._find(transaction)  # it may lie in the host's directory by now
        return super()._find(transaction)

    def _mount(self, target: Target) -> Mounted:
        _check(self.container, target)
        return super()._mount(target)


class MountDirectory(BindMount):
    """Mount a directory of the host's on the container's, which is made if there is none. The directories that are
    made for it are undone."""

    __slots__ = ("_made",)

    def __init__(self, container: Container, source: MountSource, path: bytes, flags: str) -> None:
        super().__init__(container, source, path, f"the host's ({flags})")
        self._made: Made | None = None

    def execute(self, transaction: Transaction) -> None:
        if self.container.place != HOST:
            self._made = transaction.made()
            self._make(self.container.rootfs, self._made)
        super().execute(transaction)

    def _make(self, rootfs: Rootfs, made: Made) -> None:
        owner = _owner_of_missing(rootfs, self.path)
        if owner is None:
            return
        try:
            try:
                rootfs.mkdirs(self.path, 0o755, made)
            except OSError as e:
                if e.errno != EOVERFLOW:
                    raise
                with Acting(*owner):  # a file system of the container's user namespace
                    rootfs.mkdirs(self.path, 0o755, made)
        except OSError as e:
            raise _explained(self.path, e) from None

    def _mount(self, target: Target) -> Mounted:
        _check(self.container, target)
        mounted = super()._mount(target)
        with_devices = not self.source.flags & abi.MS_NODEV
        if with_devices and posix.fstatvfs(mounted.fd.fileno()).f_flag & abi.ST_NODEV:
            mounted.detach()
            raise HookError(f"{self.describe()}: the host's directory lies on a mount with nodev",
                            "no device can be opened there: mount it without nodev")  # fmt: skip
        return mounted

    def undo(self) -> None:
        try:
            super().undo()
        finally:
            if self._made is not None:
                self._made.undo()


# -- what is mounted on -----------------------------------------------------------------------------------------------


def _owner_of_missing(rootfs: Rootfs, path: bytes) -> tuple[int, int] | None:
    """None if there is something at `path`; else whose (uid, gid) the innermost directory is that is there. Raises
    HookError where that is one of the kernel's, OSError."""
    try:
        rootfs.lookup(path).close()
        return None
    except FileNotFoundError:
        pass
    with _innermost(rootfs, path) as above:
        if is_pseudo(above.fileno()):
            raise HookError(f"mount on {shown(path)}: ENOENT, and nothing can be made in a file system of the kernel's",
                            "the container's /proc does not show the driver: mount all of a procfs there")  # fmt: skip
        st = above.stat()
        return st.st_uid, st.st_gid


def _innermost(rootfs: Rootfs, path: bytes) -> Fd:
    while True:
        path = path.rstrip(b"/").rpartition(b"/")[0]
        try:
            return rootfs.lookup(path, posix.O_DIRECTORY)
        except FileNotFoundError:
            if not path:
                raise


def _explained(path: bytes, error: OSError) -> Exception:
    """A read-only place is no warning here, as it is elsewhere: the container would have no use of its GPU."""
    if error.errno != EROFS:
        return error
    return HookError(f"make mount point {shown(path)}: EROFS",
                     "the container is read-only there, and has nothing: make it in the image")  # fmt: skip


def _check(container: Container, target: Target) -> None:
    check_pseudo(container.rootfs, target, allowed=target.path.startswith(_PROC + CAPABILITIES))
