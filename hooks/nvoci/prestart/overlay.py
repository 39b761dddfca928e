"""What is generated for a container as a small file system of its own: /proc/driver/nvidia, and the directory of the
driver's application profiles.

The former has the host's params, with `ModifyDeviceFiles: 0`, version and registry as plain files, and directories on
which those of the GPUs (and MIG devices) that the container gets are mounted. It is read-only once it is filled.

The tmpfs is filled before anybody can reach it, and mounted whole. Before Linux 5.2 it is filled in its place; a run
that is killed meanwhile leaves one that is not read-only, and the next run starts anew.
"""

from __future__ import annotations

import posix
from _stat import S_IMODE
from errno import ENOENT, ENOTDIR

from nvoci import log
from nvoci.errors import HookError, hook_error
from nvoci.hook.container import CALLER
from nvoci.hook.operations import shown
from nvoci.linux import abi, mount, procfs
from nvoci.linux.fd import Fd, read_at_most, write_all
from nvoci.linux.mountinfo import ids, mount_id, own_mounts, own_table
from nvoci.linux.rootfs import Made, is_pseudo
from nvoci.linux.syscalls import fsconfig_create, fsconfig_set_string, fsmount, fsopen, fstatfs_type, mount_setattr
from nvoci.linux.syscalls import mount as mount_by_path
from nvoci.prestart.points import OnPoint

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nvoci.hook.operation import Transaction
    from nvoci.hook.preview import Preview
    from nvoci.prestart.points import Point, Points

DRIVER = b"proc/driver/nvidia"
PROFILES = b"etc/nvidia/nvidia-application-profiles-rc.d"
_PROFILE = "10-container.conf"
_PROC = "driver/nvidia"
_FILES = ("params", "version", "registry")
_LIMIT = 1 << 20
_SOURCE, _TMPFS = b"nvoci", b"tmpfs"  # as mountinfo shows it, which tells a rerun
_ON, _OFF = b"ModifyDeviceFiles: 1", b"ModifyDeviceFiles: 0"
_FLAGS = abi.MS_NOSUID | abi.MS_NODEV | abi.MS_NOEXEC
_NEW = posix.O_WRONLY | posix.O_CREAT | posix.O_EXCL | posix.O_NOFOLLOW | posix.O_CLOEXEC
_DIR = posix.O_PATH | posix.O_DIRECTORY | posix.O_NOFOLLOW | posix.O_CLOEXEC
_MAX_BIT = 64


class Tree:
    """Content of a small file system: path -> (content, mode), with None as the content of a directory. Directories
    come before what is in them; those above are made with 0755."""

    __slots__ = ("entries", "read_only", "size")

    def __init__(self, *, read_only: bool, size: str) -> None:
        """size: at most that is stored, as tmpfs(5) writes it."""
        self.read_only = read_only
        self.size = size
        self.entries: dict[str, tuple[bytes | None, int]] = {}

    def add_directory(self, path: str, mode: int = 0o755) -> None:
        """With those above."""
        above = path.rpartition("/")[0]
        if above and above not in self.entries:
            self.add_directory(above)
        self.entries.setdefault(path, (None, mode))

    def add_file(self, path: str, data: bytes, mode: int) -> None:
        """With the directories above."""
        above = path.rpartition("/")[0]
        if above:
            self.add_directory(above)
        self.entries[path] = (data, mode)

    def write(self, root: int, owner: tuple[int, int] | None) -> None:
        """Make all of it in the directory that `root` has open. A directory is given away after what is in it, and all
        of it was made: its new owner may have it within reach. Raises OSError."""
        for path, (data, mode) in self.entries.items():
            if data is None:
                posix.mkdir(path, mode, dir_fd=root)
            else:
                with Fd(posix.open(path, _NEW, mode, dir_fd=root)) as fd:
                    write_all(fd.fileno(), data)
        if owner is not None:
            for path in reversed(self.entries):
                posix.chown(path, *owner, dir_fd=root, follow_symlinks=False)

    def is_in(self, root: int) -> bool:
        """Whether all of it is there, files with their content."""
        try:
            for path, (data, mode) in self.entries.items():
                if data is None:
                    posix.close(posix.open(path, _DIR, dir_fd=root))
                    continue
                if not data:
                    posix.stat(path, dir_fd=root, follow_symlinks=False)  # something may be mounted on it by now
                    continue
                flags = posix.O_RDONLY | posix.O_NOFOLLOW | posix.O_NONBLOCK | posix.O_CLOEXEC
                with Fd(posix.open(path, flags, dir_fd=root)) as fd:
                    if S_IMODE(fd.stat().st_mode) != mode or read_at_most(fd.fileno(), len(data)) != data:
                        return False
        except OSError:
            return False
        return True


def driver_tree() -> Tree:
    """The files of the host's /proc/driver/nvidia; one that is not there is left out. Raises HookError."""
    tree = Tree(read_only=True, size="1m")
    for name in _FILES:
        path = f"{_PROC}/{name}"
        try:
            with Fd(posix.open(path, posix.O_RDONLY | posix.O_CLOEXEC, dir_fd=procfs.handle())) as fd:
                data, mode = read_at_most(fd.fileno(), _LIMIT), S_IMODE(fd.stat().st_mode) & 0o777
        except OSError as e:
            if e.errno not in (ENOENT, ENOTDIR):
                raise hook_error("read", f"/proc/{path}", e) from None
            log.info("not there: left out", file=f"/proc/{path}")
            continue
        tree.add_file(name, data.replace(_ON, _OFF, 1) if name == "params" else data, mode)
    return tree


def profile_tree(minors: list[int]) -> Tree:
    """A profile that tells EGL which GPUs the container has; none without a GPU. The directory stays writable, as a
    container may have profiles of its own."""
    tree = Tree(read_only=False, size="1m")
    mask = 0
    for minor in minors:
        if minor < _MAX_BIT:
            mask |= 1 << minor
        else:
            log.warning(f"application profile: no bit for /dev/nvidia{minor}: left out")
    if minors:
        setting = f'["EGLVisibleDGPUDevices", 0x{mask:x}]'
        text = (
            f'{{ "profiles": [{{"name": "_container_", "settings": {setting}}}], '
            '"rules": [{"pattern": [], "profile": "_container_"}]}'
        )
        tree.add_file(_PROFILE, text.encode(), 0o555)
    return tree


class Generated(OnPoint):
    """Mount a tree on a directory. mode: of a directory that is made for it; 0: it must be there."""

    __slots__ = ("mode", "tree", "what")

    def __init__(self, points: Points, path: bytes, tree: Tree, what: str, mode: int = 0) -> None:
        super().__init__(points, path)
        self.tree = tree
        self.what = what
        self.mode = mode

    @property
    def flags(self) -> int:
        """Of the mount."""
        return _FLAGS | (abi.MS_RDONLY if self.tree.read_only else 0)

    def describe(self) -> str:
        words = f"{'ro' if self.tree.read_only else 'rw'},nosuid,nodev,noexec"
        return f"mount {self.what} ({words}) on {shown(self.path)}"

    def preview(self, view: Preview) -> bool:
        try:
            with mount.find_target(view, self.path) as target:
                return not (self._is_ours(target.fd.fileno()) and self._is_complete(target.fd))
        except OSError:
            return True

    def execute(self, transaction: Transaction) -> None:
        self._made = transaction.made()
        self.points.check_place(self.path)
        if not self.mode:
            self._check_there()
        self._point = self._find(self._made)
        if not self._point.fresh and self._is_ours(self._point.fd.fileno()):
            if self._is_complete(self._point.fd):
                log.info("mounted already", path=shown(self.path))
                self._point.fd.close()
                return
            mount.Mounted(self._point.fd).detach()
            self._point = self._find(self._made)
        with self._point.fd:
            self._mounted = self._attach(self._point)

    def _find(self, made: Made) -> Point:
        point = self.points.find(self.path, self.mode, made, directory=True, pseudo=not self.mode)
        try:
            self._check_own(point.fd.fileno())
        except (OSError, HookError):
            point.fd.close()
            point.remove()
            raise
        return point

    def _check_own(self, fd: int) -> None:
        """Refuse another directory of the kernel's, which a link of the image leads to: the kernel must call it so."""
        if is_pseudo(fd) and not (procfs.is_procfs(fd) and procfs.name_of(fd).endswith(b"/" + self.path)):
            raise HookError(f"mount on {shown(self.path)}: leads into a file system of the kernel's",
                            "what is there would be hidden from the runtime too")  # fmt: skip

    def _check_there(self) -> None:
        try:
            self.points.rootfs.lookup(self.path, posix.O_DIRECTORY).close()
        except OSError as e:
            if e.errno not in (ENOENT, ENOTDIR):
                raise
            raise HookError(f"{self.describe()}: ENOENT", "the container has no procfs, or the driver is not loaded: "
                            "see `mounts` of its config.json, and modprobe nvidia") from None  # fmt: skip

    def _is_ours(self, fd: int) -> bool:
        """Made by an earlier run. The table of mounts is read for a tmpfs only, which a first run does not find."""
        if fstatfs_type(fd) != abi.TMPFS_MAGIC:
            return False
        here = mount_id(fd)
        return any(one.id == here and (one.fstype, one.source) == (_TMPFS, _SOURCE) for one in own_mounts())

    def _is_complete(self, fd: Fd) -> bool:
        flags = posix.fstatvfs(fd.fileno()).f_flag & (_FLAGS | abi.MS_RDONLY)
        return flags == self.flags and self.tree.is_in(fd.fileno())

    def _attach(self, point: Point) -> mount.Mounted:
        source = self._filled()
        if source is None:
            return self._mount_in_place(point)
        return self.points.attach(source, point, self.path)

    def _options(self) -> list[tuple[bytes, bytes]]:
        options = [(b"mode", b"0555"), (b"size", self.tree.size.encode())]
        label = self.points.container.mount_label
        if label and b"\tselinuxfs\n" in procfs.read(b"filesystems"):
            options.append((b"context", label.encode()))
        return options

    def _filled(self) -> mount.Source | None:
        """Mounted nowhere yet; None where the kernel has no such calls."""
        context = mount.attempt("fsopen", lambda: fsopen(_TMPFS))
        if context is None or "move_mount" in mount.missing:
            return None
        with Fd(context):
            fsconfig_set_string(context, b"source", _SOURCE)
            for key, value in self._options():
                fsconfig_set_string(context, key, value)
            fsconfig_create(context)
            tree = Fd(fsmount(context, _FLAGS))
        try:
            self.tree.write(tree.fileno(), self.points.owner)
            source = mount.Source(tree, self.flags, tree)
            ready = mount.attempt("mount_setattr", lambda: mount_setattr(tree.fileno(), self.flags, abi.MS_PRIVATE))
            source.ready = ready is not None
        except OSError:
            tree.close()
            raise
        return source

    def _mount_in_place(self, point: Point) -> mount.Mounted:
        parent = Fd(posix.dup(point.directory.fileno()))
        with mount.Target(self.path, parent, point.name, Fd(posix.dup(point.fd.fileno()))) as target:
            if self.points.container.place != CALLER:
                mount.check_propagation(target)
            path = procfs.fd_path(target.fd.fileno())
            # A security context has commas of its own.
            words = [b'%s="%s"' % (key, value) if b"," in value else b"%s=%s" % (key, value)
                     for key, value in self._options()]  # fmt: skip
            before = own_table()
            known = ids(before)
            mount.at_procfs(lambda: mount_by_path(_SOURCE, path, _TMPFS, _FLAGS, b",".join(words)))
            # A tmpfs of ours that was there before, at the name of which something else lies by now, is not this one.
            mounted = mount.seen(target, before, lambda fd: mount_id(fd) not in known and self._is_ours(fd))
        try:
            with Fd(procfs.reopen(mounted.fd.fileno(), posix.O_RDONLY | posix.O_DIRECTORY)) as root:
                self.tree.write(root.fileno(), self.points.owner)
            path = procfs.fd_path(mounted.fd.fileno())
            flags = abi.MS_REMOUNT | abi.MS_BIND | self.flags
            mount.at_procfs(lambda: mount_by_path(None, path, None, flags))
            mount.at_procfs(lambda: mount_by_path(None, path, None, abi.MS_PRIVATE))
        except OSError:
            mounted.detach()
            raise
        return mounted
