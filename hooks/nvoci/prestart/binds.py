"""The operations that put something of the host into a container: files, directories, device nodes; and links.

What is there already, as asked for, is left alone: a rerun leaves what one run leaves.
"""

from __future__ import annotations

import posix
from _stat import S_IMODE

from nvoci import log
from nvoci.errors import HookError, printable
from nvoci.hook.operation import Operation
from nvoci.hook.operations import shown
from nvoci.linux import abi, mount
from nvoci.linux.rootfs import Made, split
from nvoci.prestart.points import OnPoint

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nvoci.hook.operation import Transaction
    from nvoci.hook.preview import Preview
    from nvoci.linux.fd import Fd
    from nvoci.linux.rootfs import Dir
    from nvoci.prestart.hostfiles import Source
    from nvoci.prestart.points import Point, Points

# A mount point has the mode of what is mounted on it, as far as the usual umask allows.
_UMASK = 0o022


class Bind(OnPoint):
    """Mount a source on a path, where a mount point is found or made. rule: of a device node is asked for, too."""

    __slots__ = ("allow", "source")

    def __init__(self, points: Points, source: Source, path: bytes, *, allow: bool = False) -> None:
        """allow: the container may open it, a device node."""
        super().__init__(points, path)
        self.source = source
        self.allow = allow

    def describe(self) -> str:
        rule = f", and allow {self.source.rule}" if self.allow else ""
        return f"mount {self.source} on {shown(self.path)}{rule}"

    def preview(self, view: Preview) -> bool:
        try:
            with mount.find_target(view, self.path) as target:
                return not mount.is_mounted(self.source, target)
        except OSError:
            return True

    def execute(self, transaction: Transaction) -> None:
        source = self.source
        self._made = transaction.made()
        mode = S_IMODE(source.st.st_mode) & 0o777 & ~_UMASK
        point = self._point = self.points.find(self.path, mode, self._made, directory=source.is_directory)
        with point.fd:
            handle = point.fd
            if point.fresh or not self._is_there(point):
                self._mounted = self.points.attach(source, point, self.path)
                handle = self._mounted.fd
                if not source.flags & abi.MS_NODEV:
                    self._check_usable(handle)
            else:
                log.info("mounted already", path=shown(self.path))
            if not source.flags & abi.MS_RDONLY:
                self.points.add_host(handle)
        if self.allow and source.rule is not None:
            transaction.allow(source.rule)

    def _is_there(self, point: Point) -> bool:
        """Mounted with these flags by an earlier run."""
        found, wanted = point.st, self.source.st
        same = (found.st_dev, found.st_ino) == (wanted.st_dev, wanted.st_ino)
        return same and posix.fstatvfs(point.fd.fileno()).f_flag & self.source.flags == self.source.flags

    def _check_usable(self, mounted: Fd) -> None:
        """Of a device node, or a directory of such; when the mount is on record for undo."""
        if posix.fstatvfs(mounted.fileno()).f_flag & abi.ST_NODEV:
            raise HookError(f"{self.describe()}: lies on a mount with nodev, where no device can be opened",
                            "mount the host's /dev without nodev")  # fmt: skip


class MakeDirectory(Operation):
    """A directory that is there even if nothing comes into it."""

    __slots__ = ("_made", "path", "points")

    def __init__(self, points: Points, path: bytes) -> None:
        self.points = points
        self.path = path
        self._made: Made | None = None

    def describe(self) -> str:
        return f"make directory {shown(self.path)}"

    def preview(self, view: Preview) -> bool:
        return not view.exists(self.path)

    def execute(self, transaction: Transaction) -> None:
        self._made = transaction.made()
        self.points.directory(self.path, self._made)

    def undo(self) -> None:
        if self._made is not None:
            self._made.undo()


class KeepLink(Operation):
    """A link that is made only where nothing is."""

    __slots__ = ("_dir", "_made", "_name", "link", "points", "target")

    def __init__(self, points: Points, target: bytes, link: bytes) -> None:
        self.points = points
        self.target = target
        self.link = link
        self._made: Made | None = None
        self._dir: Dir | None = None  # where it was made
        self._name = b""

    def describe(self) -> str:
        return f"symlink {shown(self.link)} -> {printable(self.target)}, unless something is there"

    def preview(self, view: Preview) -> bool:
        try:
            view.lstat(self.link)
        except OSError:
            view.plan_link(self.link, self.target)
            return True
        return False

    def execute(self, transaction: Transaction) -> None:
        above, self._name = split(self.link)
        self._made = transaction.made()
        directory = self.points.directory(above, self._made)
        try:
            self.points.make_link(directory, self._name, self.target, self.link)
            self._dir = directory
        except FileExistsError:
            log.debug("link left as it is", link=shown(self.link))

    def undo(self) -> None:
        if self._dir is not None:
            directory, self._dir = self._dir, None
            try:
                if posix.readlink(self._name, dir_fd=directory.fileno()) == self.target:
                    posix.unlink(self._name, dir_fd=directory.fileno())
            except OSError as e:
                log.debug("link not removed", link=shown(self.link), errno=e.errno)
        if self._made is not None:
            self._made.undo()
