"""The operations that give a container a device: a bind of the host's node, or a node of its own, and the device rule.

A hook that uses them says `DEVICES = True` in its module. On the host it makes a `Source` for each node; in the
container `BindNode` mounts it, read-only (a container's root could otherwise change owner and mode of the host's node;
what is written goes to the device all the same), `nosuid` and `noexec`. The rule that is asked for is the number of the
node that was opened, for reading and writing; all rules are given together when every operation is done.
"""

from __future__ import annotations

import posix
from _stat import S_ISREG
from errno import EACCES, EOVERFLOW, EPERM

from nvoci import log
from nvoci.errors import HookError
from nvoci.hook.container import HOST
from nvoci.hook.mounts import BindMount
from nvoci.hook.operation import Operation, Transaction
from nvoci.hook.operations import shown
from nvoci.linux import abi, devnode, mount
from nvoci.linux.acting import Acting
from nvoci.linux.devicerule import DeviceRule
from nvoci.linux.fd import Fd
from nvoci.linux.rootfs import is_pseudo, split
from nvoci.linux.staging import rename_noreplace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from nvoci.hook.container import Container
    from nvoci.hook.preview import Preview
    from nvoci.linux.rootfs import Dir, Made, Rootfs

# Not MS_NODEV: it would make the node useless.
_FLAGS = abi.MS_RDONLY | abi.MS_NOSUID | abi.MS_NOEXEC
_NODE = posix.O_PATH | posix.O_NOFOLLOW | posix.O_CLOEXEC
_CREATE = posix.O_WRONLY | posix.O_CREAT | posix.O_EXCL | posix.O_NOFOLLOW | posix.O_CLOEXEC
# How mknod(2) ends in a user namespace, or on a file system of one.
_NOT_ALLOWED = (EPERM, EACCES, EOVERFLOW)


class Source:
    """A node of the host, made ready to be mounted while we are on the host."""

    __slots__ = ("mode", "number", "path", "tree")

    def __init__(self, node: devnode.HostNode) -> None:
        """Takes the node over. Raises OSError."""
        self.path = node.path
        self.number = node.number
        self.mode = node.mode
        self.tree = mount.clone(node.fd.fileno(), _FLAGS)
        node.close()

    @classmethod
    def open(cls, root: int, path: bytes, number: devnode.Number | None = None) -> Source:
        """`devnode.HostNode.open`, made ready. Raises HookError, OSError."""
        return cls(devnode.HostNode.open(root, path, number))

    def rule(self) -> DeviceRule:
        """To open it for reading and writing."""
        return DeviceRule(*self.number)

    def __str__(self) -> str:
        return f"{shown(self.path)} ({devnode.shown(self.number)})"


class _New:
    """A file or node that was made at a name where nothing was, by its identity."""

    __slots__ = ("_dir", "_identity", "_name")

    def __init__(self, directory: Dir, name: bytes, st: posix.stat_result) -> None:
        self._dir = directory
        self._name = name
        self._identity = (st.st_dev, st.st_ino)

    def remove(self) -> None:
        """Unless it has been written to, or is another's by now. Raises OSError."""
        try:
            st = posix.stat(self._name, dir_fd=self._dir.fileno(), follow_symlinks=False)
            if (st.st_dev, st.st_ino) == self._identity and not (S_ISREG(st.st_mode) and st.st_size):
                posix.unlink(self._name, dir_fd=self._dir.fileno())
        except FileNotFoundError:
            pass  # gone


def _staged(
    transaction: Transaction, directory: Dir, name: bytes, make: Callable[[int, bytes], posix.stat_result]
) -> _New:
    """Have `make(dirfd, name)` make it in the staging directory, and only then give it its name, so that a killed run
    leaves no half-made one. Raises OSError, EEXIST where something has that name."""
    staging = transaction.staging(directory)
    temporary = staging.temporary()
    st = make(staging.fileno(), temporary)
    try:
        rename_noreplace(staging.fileno(), temporary, directory.fileno(), name)
    except OSError:
        posix.unlink(temporary, dir_fd=staging.fileno())
        raise
    return _New(directory, name, st)


class EmptyFile:
    """A file to mount on: what is there already is used as it is, else an empty file is made, and undone."""

    __slots__ = ("_made", "_new")

    def __init__(self) -> None:
        self._made: Made | None = None
        self._new: _New | None = None

    def make(
        self, transaction: Transaction, rootfs: Rootfs, path: bytes, mode: int, owner: tuple[int, int] | None = None
    ) -> None:
        """mode and owner (uid, gid) are those of a new file; directories are made with 0755. Without an owner it is
        ours, or, on a file system of a user namespace that does not know us, the directory's. A link is left, and
        followed inside the root by what looks for its target to mount on. Raises OSError."""
        self._made = transaction.made()
        try:
            try:
                self._make(transaction, rootfs, path, mode, owner)
            except OSError as e:
                if e.errno != EOVERFLOW:
                    raise
                with Acting(*(owner or _owner_above(rootfs, path))):
                    self._make(transaction, rootfs, path, mode, None)
        except OSError as e:
            raise OSError(e.errno, e.strerror, path) from None

    def _make(
        self, transaction: Transaction, rootfs: Rootfs, path: bytes, mode: int, owner: tuple[int, int] | None
    ) -> None:
        directory, name = split(path)
        parent = rootfs.mkdirs(directory, 0o755, self._made or transaction.made())
        transaction.visit(parent)

        def make(dirfd: int, temporary: bytes) -> posix.stat_result:
            with Fd(posix.open(temporary, _CREATE, mode, dir_fd=dirfd)) as fd:
                try:
                    if owner is not None:
                        posix.chown(fd.fileno(), *owner)
                    return fd.stat()
                except OSError:
                    posix.unlink(temporary, dir_fd=dirfd)  # nobody could tell later that it was made here
                    raise

        try:
            if owner is None:  # no more than one step
                self._new = _New(parent, name, make(parent.fileno(), name))
            elif not _exists(parent, name):
                self._new = _staged(transaction, parent, name, make)
        except FileExistsError:
            pass

    def undo(self) -> None:
        """Remove the file, if it is still ours and empty, and the directories made for it. Raises OSError."""
        new, self._new = self._new, None
        if new is not None:
            new.remove()
        if self._made is not None:
            self._made.undo()


def _owner_above(rootfs: Rootfs, path: bytes) -> tuple[int, int]:
    """Whose the innermost directory is that is there already."""
    while True:
        path = path.rstrip(b"/").rpartition(b"/")[0]
        try:
            with rootfs.lookup(path, posix.O_DIRECTORY) as directory:
                st = directory.stat()
                return st.st_uid, st.st_gid
        except FileNotFoundError:
            if not path:
                raise


def _exists(directory: Dir, name: bytes) -> bool:
    try:
        posix.stat(name, dir_fd=directory.fileno(), follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


class BindNode(BindMount):
    """Mount the host's node on a path of the container, and ask for its rule."""

    __slots__ = ("_file", "allow", "node", "owner")

    def __init__(
        self, container: Container, node: Source, path: bytes, *, allow: bool = True,
        owner: tuple[int, int] | None = None,
    ) -> None:  # fmt: skip
        """allow: ask for the device rule. owner: (uid, gid) of a file that is made to mount on."""
        super().__init__(container, node.tree, path, str(node))
        self.node = node
        self.allow = allow
        self.owner = owner
        self._file = EmptyFile()

    def describe(self) -> str:
        return super().describe() + (", and allow rw" if self.allow else "")

    def execute(self, transaction: Transaction) -> None:
        super().execute(transaction)
        if self.allow:
            transaction.allow(self.node.rule())

    def _find(self, transaction: Transaction) -> mount.Target:
        self._file.make(transaction, self.container.rootfs, self.path, self.node.mode & 0o777, self.owner)
        return super()._find(transaction)

    def _mount(self, target: mount.Target) -> mount.Mounted:
        if is_pseudo(target.fd.fileno()):  # a link of the image to /proc/1/attr/exec hides that from the runtime
            raise HookError(f"{self.describe()}: leads into a file system of the kernel's", "no device belongs there")
        mounted = super()._mount(target)
        try:
            with target.reopen() as seen:
                if devnode.number_of(seen.stat()) != self.node.number:
                    raise HookError(f"{self.describe()}: another device is seen there", "run again")
                _check_usable(seen.fileno(), self.describe())
        except (OSError, HookError):
            mounted.detach()
            raise
        return mounted

    def undo(self) -> None:
        try:
            super().undo()
        finally:
            self._file.undo()


class MakeNode(Operation):
    """A node of the container's own, with the number of the host's, and its rule. The same node already there is used
    as it is. Over anything else that is there the host's node is mounted, as it is in a user namespace, which may make
    no nodes."""

    __slots__ = ("_bind", "_made", "_new", "allow", "container", "mode", "node", "owner", "path")

    def __init__(
        self, container: Container, node: Source, path: bytes, *, allow: bool = True,
        owner: tuple[int, int] | None = None, mode: int | None = None,
    ) -> None:  # fmt: skip
        """mode: the host's node's where none is given. allow, owner: as for `BindNode`."""
        self.container = container
        self.node = node
        self.path = path
        self.allow = allow
        self.owner = owner
        self.mode = node.mode if mode is None else mode
        self._bind: BindNode | None = None
        self._made: Made | None = None
        self._new: _New | None = None

    def describe(self) -> str:
        rule = ", and allow rw" if self.allow else ""
        return f"mknod {shown(self.path)} {devnode.shown(self.node.number)} mode {self.mode:04o}{rule}"

    def preview(self, view: Preview) -> bool:
        try:
            return devnode.number_of(view.lstat(self.path)) != self.node.number
        except OSError:
            return True

    def execute(self, transaction: Transaction) -> None:
        if self.container.place == HOST:
            raise HookError(f"{self.describe()}: there is no container to make it in",
                            "call the hook with the state of a created container")  # fmt: skip
        directory, name = split(self.path)
        self._made = transaction.made()
        parent = self.container.rootfs.mkdirs(directory, 0o755, self._made)
        transaction.visit(parent)
        try:
            if not _exists(parent, name):
                self._new = _staged(transaction, parent, name, self._make)
            right = self._is_right(parent, name)
        except OSError as e:
            if e.errno not in _NOT_ALLOWED:
                raise
            log.info("no node can be made", path=shown(self.path), errno=e.errno)
            right = False
        if not right:
            self._bind = BindNode(self.container, self.node, self.path, allow=self.allow, owner=self.owner)
            self._bind.execute(transaction)
        elif self.allow:
            transaction.allow(self.node.rule())

    def _make(self, dirfd: int, temporary: bytes) -> posix.stat_result:
        with devnode.make(dirfd, temporary, self.node.number, self.mode, self.owner) as fd:
            return fd.stat()

    def _is_right(self, parent: Dir, name: bytes) -> bool:
        with Fd(posix.open(name, _NODE, dir_fd=parent.fileno())) as fd:
            if devnode.number_of(fd.stat()) != self.node.number:
                return False
            _check_usable(fd.fileno(), self.describe())
            return True

    def undo(self) -> None:
        if self._bind is not None:
            self._bind.undo()
        new, self._new = self._new, None
        if new is not None:
            new.remove()
        if self._made is not None:
            self._made.undo()


def _check_usable(fd: int, what: str) -> None:
    if posix.fstatvfs(fd).f_flag & abi.ST_NODEV:
        raise HookError(f"{what}: lies on a mount with nodev, where no device can be opened",
                        "mount it without nodev")  # fmt: skip
