"""The operations on files that hooks share: links, generated files, removal, modes.

Performance contract: a new link costs one symlinkat(2) and a dictionary look-up; nothing is read before.
"""

from __future__ import annotations

import posix
from _stat import S_IMODE, S_ISBLK, S_ISCHR, S_ISDIR, S_ISLNK, S_ISREG
from errno import EEXIST, EINVAL, EISDIR, ENOENT

from nvoci import log
from nvoci.errors import HookError, printable
from nvoci.hook.operation import Operation, Transaction
from nvoci.linux import procfs
from nvoci.linux.fd import read_at_most
from nvoci.linux.rootfs import Dir, Made, Rootfs, split

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nvoci.hook.preview import Preview
    from nvoci.linux.staging import Replaced

OWN_MAX = 1 << 20  # of a generated file that is only looked for


def shown(unsafe_path: bytes) -> str:
    """A path below the root, as the container would write it."""
    return "/" + printable(unsafe_path).lstrip("/")


class MakeLink(Operation):
    """`ln -sf TARGET LINK` in the root: the drop-in contract. A link or regular file in the way is replaced, with a
    log line; a directory or special file is an error; the right link already there is left alone."""

    __slots__ = ("_dir", "_made", "_name", "_new", "_replaced", "link", "mode", "rootfs", "target")

    def __init__(self, rootfs: Rootfs, target: bytes, link: bytes, mode: int = 0o755) -> None:
        self.rootfs = rootfs
        self.target = target
        self.link = link
        self.mode = mode
        self._made: Made | None = None
        self._dir: Dir | None = None
        self._name = b""
        self._new = False
        self._replaced: Replaced | None = None

    def describe(self) -> str:
        return f"symlink {shown(self.link)} -> {printable(self.target)}"

    def preview(self, view: Preview) -> bool:
        try:
            if view.readlink(self.link) == self.target:
                return False
        except OSError as e:
            if e.errno not in (EINVAL, ENOENT):
                raise
        view.plan_link(self.link, self.target)
        return True

    def execute(self, transaction: Transaction) -> None:
        directory, self._name = split(self.link)
        try:
            self._dir = self.rootfs.dir(directory)
        except FileNotFoundError:
            self._made = transaction.made()
            self._dir = self.rootfs.mkdirs(directory, self.mode, self._made)
        if self._is_right(self._dir):
            transaction.pass_by(self._dir)
            return  # also where it must not be changed
        transaction.visit(self._dir)
        try:
            posix.symlink(self.target, self._name, dir_fd=self._dir.fileno())
            self._new = True
            log.info("link made", link=shown(self.link), target=self.target)
        except FileExistsError:
            self._replace(self._dir, transaction)

    def _is_right(self, directory: Dir) -> bool:
        return _link_text(directory, self._name) == self.target

    def _replace(self, directory: Dir, transaction: Transaction) -> None:
        if self._is_right(directory):
            return
        staging = transaction.staging(directory)
        self._replaced = staging.publish(staging.new_link(self.target), self._name)
        if self._replaced.replaced:
            log.info("link replaces what was there", link=shown(self.link), target=self.target)

    def undo(self) -> None:
        if self._new and self._dir is not None:
            self._new = False
            _unlink_own_link(self._dir, self._name, self.target)
        if self._replaced is not None:
            self._replaced.undo()
            self._replaced = None
        if self._made is not None:
            self._made.undo()


def _link_text(directory: Dir, name: bytes) -> bytes | None:
    """None where there is no link. Raises OSError."""
    try:
        return posix.readlink(name, dir_fd=directory.fileno())
    except OSError as e:
        if e.errno not in (EINVAL, ENOENT):
            raise
        return None


def _unlink_own_link(directory: Dir, name: bytes, target: bytes) -> None:
    try:
        if posix.readlink(name, dir_fd=directory.fileno()) == target:
            posix.unlink(name, dir_fd=directory.fileno())
    except OSError as e:
        if e.errno not in (EINVAL, ENOENT):  # a file of somebody else, or gone
            raise


class WriteFile(Operation):
    """A generated file with exactly this content and mode, replaced atomically; an equal one is left alone."""

    __slots__ = ("_made", "_replaced", "data", "dir_mode", "mode", "path", "rootfs")

    def __init__(self, rootfs: Rootfs, path: bytes, data: bytes, mode: int, dir_mode: int = 0o755) -> None:
        self.rootfs = rootfs
        self.path = path
        self.data = data
        self.mode = mode
        self.dir_mode = dir_mode
        self._made: Made | None = None
        self._replaced: Replaced | None = None

    def describe(self) -> str:
        return f"write {shown(self.path)} ({len(self.data)} bytes, mode {self.mode:04o})"

    def preview(self, view: Preview) -> bool:
        if view.content(self.path, len(self.data)) == self.data:
            return False
        view.plan_file(self.path, self.data)
        return True

    def execute(self, transaction: Transaction) -> None:
        directory_path, name = split(self.path)
        self._made = transaction.made()
        directory = self.rootfs.mkdirs(directory_path, self.dir_mode, self._made)
        if self._is_right(directory, name):
            transaction.pass_by(directory)
            return  # also where it must not be changed
        transaction.visit(directory)
        if self._is_right(directory, name):
            return
        staging = transaction.staging(directory)
        link = _link_text(directory, name)
        self._replaced = staging.publish(staging.new_file(self.data, self.mode), name)
        if link is not None:
            log.info("file replaces a link", path=shown(self.path), target=link)

    def _is_right(self, directory: Dir, name: bytes) -> bool:
        try:
            with directory.open_file(name) as fd:
                st = fd.stat()
                if st.st_size != len(self.data) or S_IMODE(st.st_mode) != self.mode:
                    return False
                return read_at_most(fd.fileno(), len(self.data)) == self.data
        except OSError:
            return False

    def undo(self) -> None:
        if self._replaced is not None:
            self._replaced.undo()
            self._replaced = None
        if self._made is not None:
            self._made.undo()


class RemoveFile(Operation):
    """Take away a file of our own that no longer applies; nothing to do where there is none."""

    __slots__ = ("_taken", "path", "rootfs")

    def __init__(self, rootfs: Rootfs, path: bytes) -> None:
        self.rootfs = rootfs
        self.path = path
        self._taken: Replaced | None = None

    def describe(self) -> str:
        return f"remove {shown(self.path)}"

    def preview(self, view: Preview) -> bool:
        present = view.content(self.path, OWN_MAX) is not None
        if present:
            view.plan_file(self.path, None)
        return present

    def execute(self, transaction: Transaction) -> None:
        directory_path, name = split(self.path)
        try:
            directory = self.rootfs.dir(directory_path)
            if not self._is_there(directory, name):
                transaction.pass_by(directory)
                return  # also where it must not be changed
            transaction.visit(directory)
            mode = posix.stat(name, dir_fd=directory.fileno(), follow_symlinks=False).st_mode
        except (FileNotFoundError, NotADirectoryError):
            return
        if not (S_ISREG(mode) or S_ISLNK(mode)):
            raise OSError(EISDIR if S_ISDIR(mode) else EEXIST, "in the way", self.path)
        self._taken = transaction.staging(directory).take(name)

    def _is_there(self, directory: Dir, name: bytes) -> bool:
        try:
            posix.stat(name, dir_fd=directory.fileno(), follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    def undo(self) -> None:
        if self._taken is not None:
            self._taken.undo()
            self._taken = None


class Chmod(Operation):
    """chmod of what a path resolves to inside the root. A path that is not there, or whose mode may not be changed,
    is passed over, as the reference does."""

    __slots__ = ("_fd", "_old", "host_dev", "mode", "path", "rootfs")

    def __init__(self, rootfs: Rootfs, path: bytes, mode: int, host_dev: int) -> None:
        self.rootfs = rootfs
        self.path = path
        self.mode = mode
        self.host_dev = host_dev
        self._fd = -1
        self._old = 0

    def describe(self) -> str:
        return f"chmod {self.mode:04o} {shown(self.path)}"

    def preview(self, view: Preview) -> bool:
        try:
            return S_IMODE(self.rootfs.stat(self.path).st_mode) != self.mode
        except OSError:
            return False

    def execute(self, transaction: Transaction) -> None:
        try:
            handle = self.rootfs.lookup(self.path)
        except (FileNotFoundError, NotADirectoryError):
            log.debug("chmod: no such file", path=shown(self.path))
            return
        with handle:
            st = handle.stat()
            if S_IMODE(st.st_mode) == self.mode:
                return
            if st.st_dev == self.host_dev and (S_ISCHR(st.st_mode) or S_ISBLK(st.st_mode)):
                raise HookError(f"{self.describe()}: is the host's own device node, bind mounted",
                                "changing it would change the host; set the mode on the host")  # fmt: skip
            self.rootfs.check(self.path, handle)
            try:
                posix.chmod(procfs.fd_path(handle.fileno()), self.mode, dir_fd=procfs.handle())
            except PermissionError as e:
                log.debug("chmod: not permitted", path=shown(self.path), errno=e.errno)
                return
            self._old = S_IMODE(st.st_mode)
            self._fd = handle.into_raw_fd()

    def undo(self) -> None:
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            try:
                posix.chmod(procfs.fd_path(fd), self._old, dir_fd=procfs.handle())
            finally:
                posix.close(fd)
