"""What is mounted from the host: files, directories and device nodes, each taken by one descriptor before the container
is entered, and proved to be what the inventory says.

Sockets and directories may lie where others than root can put things: they are opened component by component, judged by
that handle and cloned from it. Files and nodes are root's, with all that leads to them.

Performance contract: three system calls a file on a node whose driver lies in `/`: the clone of its mount is made by
name, and what is checked is the clone.
"""

from __future__ import annotations

import posix
from _stat import S_ISCHR, S_ISDIR, S_ISREG, S_ISSOCK
from errno import EBADF, EINVAL, ELOOP, EMFILE, ENOENT, ENOTDIR, ENXIO

from nvoci.discover.inventory import Stale
from nvoci.errors import HookError, errno_name, hook_error, printable
from nvoci.linux import abi, guarded, mount, procfs
from nvoci.linux.devicerule import DeviceRule
from nvoci.linux.fd import Fd
from nvoci.linux.lookup import lookup
from nvoci.linux.rootfs import fsencode
from nvoci.linux.syscalls import mount_setattr, move_mount, open_tree
from nvoci.prestart.wanted import MPS_DIRECTORY

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from nvoci.discover.model import DeviceNode
    from nvoci.hook.devices import Source as Node

# Of mount(2): libraries and programs; procfs; sockets and the directory of a daemon; nodes.
FILE = mount.READ_ONLY
DATA = mount.READ_ONLY_DATA
SOCKET = abi.MS_NOSUID | abi.MS_NODEV | abi.MS_NOEXEC
NODE = abi.MS_RDONLY | abi.MS_NOSUID | abi.MS_NOEXEC
NODES = abi.MS_NOSUID | abi.MS_NOEXEC
_WORDS = ((abi.MS_NOSUID, "nosuid"), (abi.MS_NODEV, "nodev"), (abi.MS_NOEXEC, "noexec"))
# One descriptor each, and select(2) knows no number above 1023.
MAX_SOURCES = 900
_MANY = "raise LimitNOFILE of the engine: a descriptor for each mount is needed"
_DIRECTORY = posix.O_PATH | posix.O_DIRECTORY | posix.O_CLOEXEC
_GONE = (ENOENT, ENOTDIR, ENXIO, ELOOP)


class Source(mount.Source):
    """path: on the host. name: its last component. st: of the object. rule: to open it, where it is a device node."""

    __slots__ = ("name", "path", "rule", "st")

    def __init__(self, path: str, handle: Fd, flags: int, tree: Fd | None) -> None:
        """Takes the descriptors over."""
        super().__init__(handle, flags, tree)
        self.path = path
        self.name = fsencode(path.rpartition("/")[2])
        self.st = handle.stat()
        self.rule: DeviceRule | None = None

    @property
    def is_directory(self) -> bool:
        """What has to be there to mount it on."""
        return S_ISDIR(self.st.st_mode)

    def __str__(self) -> str:
        words = ["ro" if self.flags & abi.MS_RDONLY else "rw"]
        words += [word for bit, word in _WORDS if self.flags & bit]
        return f"{printable(self.path)} ({','.join(words)})"


class Host:
    """Opens them; all are closed if its `with` is left by an error. root: the driver root."""

    __slots__ = ("_movable", "_opened", "_root", "root")

    def __init__(self, root: str) -> None:
        self.root = root.rstrip("/")
        self._root = Fd(-1)
        self._opened: list[Source] = []
        self._movable = can_move()

    def __enter__(self) -> Host:
        try:
            self._root = Fd(posix.open(fsencode(self.root) or b"/", _DIRECTORY))
        except OSError as e:
            raise hook_error("open driver root", self.root, e) from None
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._root.close()
        if kind is not None:
            for source in self._opened:
                source.close()

    def file(self, path: str, *, resolve: bool = False) -> Source:
        """A regular file. resolve: its name is the one it has itself, whatever link leads to it. Raises Stale if it is
        not there any more, HookError for any other failure."""
        return self._checked(self._below(path, FILE, resolve=resolve), S_ISREG, "a regular file")

    def socket(self, path: str) -> Source:
        """A socket. Raises as `file`."""
        return self._checked(self._guarded(path, SOCKET), S_ISSOCK, "a socket")

    def directory(self, path: str, flags: int) -> Source:
        """A directory, which another than root has not put there. Raises as `file`."""
        return self._checked(self._guarded(path, flags), S_ISDIR, "a directory")

    def node(self, node: DeviceNode) -> Source:
        """A device node with the number that it was found with. Raises as `file`."""
        number = f"the device {node.type} {node.major}:{node.minor}"
        source = self._checked(self._below(node.host_path, NODE), S_ISCHR, number)
        if source.st.st_rdev != posix.makedev(node.major, node.minor):
            raise Stale(f"open {printable(node.host_path)}: not {number} any more")
        source.rule = DeviceRule("c", node.major, node.minor)
        return source

    def template(self, node: DeviceNode) -> Node:
        """A device node with the number that it was found with, to make another like it. Raises as `file`."""
        from nvoci.hook import devices  # before imports are sealed

        self.node(node).close()
        number = (node.type, node.major, node.minor)
        return devices.Source.open(self._root.fileno(), fsencode(node.host_path[len(self.root) :]), number)

    def proc(self, path: str) -> Source:
        """A file or directory of procfs, which is the same whatever the driver root. Raises as `file`."""
        def take() -> Source:
            with Fd(posix.open(path, posix.O_PATH | posix.O_NOFOLLOW | posix.O_CLOEXEC, dir_fd=procfs.handle())) as fd:
                return clone(f"/proc/{path}", fd, DATA, movable=self._movable)

        return self._taken(f"/proc/{path}", take)

    def _guarded(self, path: str, flags: int) -> Source:
        """By one handle, and by the rules that discovery has for the MPS directory and its like."""
        self._check_below(path)
        own = path[len(self.root) :] != MPS_DIRECTORY

        def take() -> Source:
            with guarded.find(self._root.fileno(), fsencode(path[len(self.root) :]), follow=own) as found:
                words = found.stranger()
                if not own and found.st.st_uid != 0:
                    words = f"owned by uid {found.st.st_uid}, not by root"
                if words:
                    raise Stale(f"open {printable(path)}: {words}")
                return clone(path, found.fd, flags, movable=self._movable)

        return self._taken(path, take)

    def _check_below(self, path: str) -> None:
        if not path.startswith(self.root + "/"):
            raise Stale(f"open {printable(path)}: not below {printable(self.root)}")

    def _below(self, path: str, flags: int, *, resolve: bool = False) -> Source:
        self._check_below(path)

        def take() -> Source:
            if not self.root and not resolve and self._movable:
                found = _clone_by_name(path, flags)
                if found is not None:
                    return found
            with Fd(lookup(self._root.fileno(), fsencode(path[len(self.root) :]))) as fd:
                source = clone(path, fd, flags, movable=self._movable)
                if resolve:
                    source.name = procfs.name_of(fd.fileno()).rpartition(b"/")[2]
                return source

        return self._taken(path, take)

    def _taken(self, path: str, take: Callable[[], Source]) -> Source:
        if len(self._opened) >= MAX_SOURCES:
            raise HookError(f"open {printable(path)}: more than {MAX_SOURCES} mounts", "ask for fewer devices")
        try:
            source = take()
        except (OSError, ValueError) as e:
            error = e if isinstance(e, OSError) else OSError(EINVAL, str(e))
            if error.errno in _GONE:
                words = f": {guarded.LINK}" if error.strerror == guarded.LINK else ""
                raise Stale(f"open {printable(path)}: {errno_name(error.errno or 0)}{words}") from None
            hint = _MANY if error.errno == EMFILE else ""
            raise hook_error("open", path, error, hint) from None
        self._opened.append(source)
        return source

    def _checked(self, source: Source, test: Callable[[int], bool], what: str) -> Source:
        if not test(source.st.st_mode):
            raise Stale(f"open {printable(source.path)}: not {what} any more")
        return source


def _clone_by_name(path: str, flags: int) -> Source | None:
    """None where the kernel cannot, or is not known to."""
    name = fsencode(path)
    tree = mount.attempt("open_tree", lambda: open_tree(abi.AT_FDCWD, name, abi.OPEN_TREE_CLONE))
    return None if tree is None else _made_ready(path, Fd(tree), flags)


def clone(path: str, handle: Fd, flags: int, *, movable: bool) -> Source:
    """Of what `handle` has open in the present mount namespace. movable: can_move(). Raises OSError."""
    flags_of_clone = abi.OPEN_TREE_CLONE | abi.AT_EMPTY_PATH
    tree = None
    if movable:
        tree = mount.attempt("open_tree", lambda: open_tree(handle.fileno(), b"", flags_of_clone))
    if tree is None:
        return Source(path, Fd(posix.dup(handle.fileno())), flags, None)
    return _made_ready(path, Fd(tree), flags)


def can_move() -> bool:
    """Whether move_mount(2) is there: a clone could not be attached without."""
    try:
        return mount.attempt("move_mount", lambda: move_mount(-1, -1)) is not None
    except OSError as e:
        return e.errno == EBADF


def _made_ready(path: str, tree: Fd, flags: int) -> Source:
    """Attributes and propagation are those that it will have."""
    try:
        source = Source(path, tree, flags, tree)
        set_flags = mount.attempt("mount_setattr", lambda: mount_setattr(tree.fileno(), flags, abi.MS_PRIVATE))
        source.ready = set_flags is not None
    except OSError:
        tree.close()
        raise
    return source
