"""Where a node is looked at: its driver root, dev root, procfs and sysfs, each by handle, and what may be set.

A path is resolved inside of the root that it is asked for below, and the types of files are checked on handles. The
files are the host's: less trusted than code, more than an image. What is found becomes names in a specification, so
a name that no driver gives (control characters, bytes that are no text) is refused here.
"""

from __future__ import annotations

import posix
from _stat import S_ISBLK, S_ISCHR, S_ISDIR, S_ISFIFO, S_ISLNK, S_ISREG, S_ISSOCK
from errno import EINVAL, ENOENT, ENOTDIR

from nvoci.errors import hook_error
from nvoci.linux import abi, guarded, procfs
from nvoci.linux.fd import Fd
from nvoci.linux.rootfs import Budget, Rootfs, fsencode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

ABSENT = (ENOENT, ENOTDIR)
PATH = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")
DATA_DIRS = ("/usr/local/share", "/usr/share")
MPS_DIRECTORY = "/tmp/nvidia-mps"
MAX_NAMES = 100_000
_TYPES = (
    (S_ISREG, "a regular file"), (S_ISDIR, "a directory"), (S_ISLNK, "a link"), (S_ISCHR, "a character device"),
    (S_ISBLK, "a block device"), (S_ISFIFO, "a FIFO"), (S_ISSOCK, "a socket"),
)  # fmt: skip


def type_name(mode: int) -> str:
    """What kind of file st_mode tells of, in words."""
    return next((name for test, name in _TYPES if test(mode)), "something unknown")


def plain(unsafe: bytes | str) -> str:
    """A name as text; "" where it is no printable UTF-8, or has `::`, which parts the arguments of a hook."""
    try:
        text = unsafe.decode() if isinstance(unsafe, bytes) else unsafe
    except UnicodeDecodeError:
        return ""
    return text if text.isprintable() and "::" not in text else ""


def joined(top: str, text: str) -> str:
    """Where the text of a link in the directory `top` leads, links on the way left aside."""
    parts: list[str] = [] if text.startswith("/") else [part for part in top.split("/") if part]
    for part in text.split("/"):
        if part == "..":
            parts = parts[:-1]
        elif part not in ("", "."):
            parts.append(part)
    return "/" + "/".join(parts)


class Hit:
    """A file below a root. path: as it was asked for; resolved: without links, as `Root.resolve` gives it."""

    __slots__ = ("path", "resolved", "stat")

    def __init__(self, path: str, resolved: str, stat: posix.stat_result) -> None:
        self.path = path
        self.resolved = resolved
        self.stat = stat


class Root(Rootfs):
    """A directory of the host that paths are resolved in; unlike a container's it may be the host's own root, and be
    named through a link."""

    __slots__ = ("_real",)
    pseudo = True  # the host's own, and what it says of the driver
    _real: bytes

    @classmethod
    def open(cls, path: str) -> Root:
        """Raises HookError."""
        try:
            fd = posix.open(fsencode(path), posix.O_PATH | posix.O_DIRECTORY | posix.O_CLOEXEC)
        except (OSError, ValueError) as e:
            error = e if isinstance(e, OSError) else OSError(EINVAL, str(e))
            raise hook_error("open directory", path, error, "check the driver root and the dev root") from None
        root = cls(Fd(fd), path.rstrip("/"))
        root._real = procfs.name_of(fd).rstrip(b"/")
        return root

    def host(self, path: str) -> str:
        """The host's path of a path below this root."""
        return self.name + path

    def resolve(self, path: str, flags: int = 0) -> Hit:
        """Where `path` leads: any kind of file; with O_NOFOLLOW a link itself. Raises OSError."""
        with self.lookup(fsencode(path), flags) as fd:
            return self._hit(path, fd)

    def guarded(self, path: str, *, follow: bool = True) -> tuple[Hit, str]:
        """`resolve`, for where others than root may put things (`nvoci.linux.guarded`), and whose it may be; ""
        where it is root's, or nobody put it there but its owner. Raises OSError."""
        with guarded.find(self.fileno(), fsencode(path), follow=follow) as found:
            return self._hit(path, found.fd), found.stranger()

    def open_resolved(self, path: str) -> tuple[Fd, Hit]:
        """A regular file, open for reading, and what it is. Raises OSError; EINVAL for another kind of file, which is
        not touched."""
        with self.lookup(fsencode(path)) as fd:
            hit = self._hit(path, fd)
            if not S_ISREG(hit.stat.st_mode):
                raise OSError(EINVAL, f"{type_name(hit.stat.st_mode)}, not a regular file", path)
            return Fd(procfs.reopen(fd.fileno(), posix.O_RDONLY | posix.O_NONBLOCK | posix.O_NOCTTY)), hit

    def _hit(self, path: str, fd: Fd) -> Hit:
        real = procfs.name_of(fd.fileno())
        if not real.startswith(self._real + b"/") and real != self._real:
            raise OSError(ENOENT, "moved out of its root", path)
        resolved = plain(real[len(self._real) :] or b"/")
        if not resolved:
            raise OSError(EINVAL, "a name that is no plain text", path)
        return Hit(path, resolved, fd.stat())

    def source(self, hit: Hit) -> str:
        """The host's path to mount a file from: as it was found, unless that leads out of this root (an absolute link
        below a driver root)."""
        if not self.name:
            return hit.path
        try:
            st = posix.stat(self.host(hit.path))
            if (st.st_dev, st.st_ino) == (hit.stat.st_dev, hit.stat.st_ino):
                return self.host(hit.path)
        except OSError:
            pass  # a dead end of the host's is none of the driver root's
        return self.host(hit.resolved)

    def link(self, path: str) -> str | None:
        """The text of a link, None for anything else that is there. Raises OSError."""
        with self.lookup(fsencode(path), posix.O_NOFOLLOW) as fd:
            if not S_ISLNK(fd.stat().st_mode):
                return None
            text = plain(posix.readlink(b"", dir_fd=fd.fileno()))
        if not text:
            raise OSError(EINVAL, "a link to a name that is no plain text", path)
        return text

    def is_link(self, path: str) -> bool:
        """Whether there is a link, wherever it leads."""
        try:
            return S_ISLNK(self.lstat(fsencode(path)).st_mode)
        except OSError:
            return False

    def is_device(self, path: str) -> bool:
        """Whether there is a character device, and no link to one."""
        try:
            return S_ISCHR(self.lstat(fsencode(path)).st_mode)
        except OSError:
            return False

    def names(self, path: str) -> list[bytes]:
        """The sorted names in a directory; none where it is not there. Raises OSError; E2BIG beyond MAX_NAMES."""
        try:
            return sorted(self.list(fsencode(path), MAX_NAMES))
        except OSError as e:
            if e.errno in ABSENT:
                return []
            raise

    def glob(self, pattern: str) -> list[str]:
        """The paths that match (components with wildcards exist, others may not), and are plain text, in bytewise
        order. Raises OSError(E2BIG) for too many."""
        return [text for path in self.match(fsencode(pattern), Budget()) if (text := plain(path))]

    def text(self, path: str, limit: int = 1 << 20) -> str:
        """A regular file's content; undecodable bytes escaped. Raises OSError, EFBIG beyond `limit` bytes."""
        return self.read_file(fsencode(path), limit).decode("utf-8", "backslashreplace")


class Options:
    """What may be set. mode: auto, nvml, csv or wsl. path, data_dirs: $PATH and $XDG_DATA_DIRS of who asks.
    library_search_path, config_search_path: searched instead of the usual directories. All directories are those of
    the driver root. explicit_libraries: also the vendor-neutral GL libraries. mps_directory: $CUDA_MPS_PIPE_DIRECTORY.
    csv_files, csv_ignore: of a Tegra system. compat_root: of CUDA's compat libraries there. single_device: all of a
    Tegra system is one device."""

    __slots__ = ("compat_root", "config_search_path", "csv_files", "csv_ignore", "data_dirs", "explicit_libraries",
                 "library_search_path", "mode", "mps_directory", "path", "single_device")  # fmt: skip

    def __init__(
        self,
        mode: str = "auto",
        *,
        path: Sequence[str] = PATH,
        data_dirs: Sequence[str] = DATA_DIRS,
        library_search_path: Sequence[str] = (),
        config_search_path: Sequence[str] = (),
        explicit_libraries: bool = False,
        mps_directory: str = MPS_DIRECTORY,
        csv_files: Sequence[str] = (),
        csv_ignore: Sequence[str] = (),
        compat_root: str = "",
        single_device: bool = False,
    ) -> None:
        self.mode = mode
        self.path = tuple(path)
        self.data_dirs = tuple(data_dirs)
        self.library_search_path = tuple(library_search_path)
        self.config_search_path = tuple(config_search_path)
        self.explicit_libraries = explicit_libraries
        self.mps_directory = mps_directory
        self.csv_files = tuple(csv_files)
        self.csv_ignore = tuple(csv_ignore)
        self.compat_root = compat_root
        self.single_device = single_device


class Node:
    """The handles. root: the driver's files; dev: the directory that has `dev`; proc, sys: procfs and sysfs, of which
    only tests name others. machine: as uname(2) says; release: of the running kernel. Close it, or leave its `with`."""

    __slots__ = ("dev", "machine", "proc", "release", "root", "sys")

    def __init__(self, root: Root, dev: Root, proc: Root, sys: Root, machine: str = "", release: str = "") -> None:
        self.root = root
        self.dev = dev
        self.proc = proc
        self.sys = sys
        self.machine = machine or abi.MACHINE
        self.release = release or posix.uname().release

    @classmethod
    def open(
        cls, root: str = "/", dev_root: str = "", *, proc: str = "/proc", sys: str = "/sys", machine: str = "",
        release: str = "",
    ) -> Node:  # fmt: skip
        """By host paths. Raises HookError."""
        opened: list[Root] = []
        try:
            for path in (root, dev_root or root, proc, sys):
                opened += [Root.open(path)]
        except BaseException:
            for each in opened:
                each.close()
            raise
        return cls(opened[0], opened[1], opened[2], opened[3], machine, release)

    def close(self) -> None:
        """Close all handles."""
        for each in (self.root, self.dev, self.proc, self.sys):
            each.close()

    def __enter__(self) -> Node:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
