"""One library directory of the container: its names, and which of them the image's cache explains.

A name is *explained* if the cache has it, or has a link that leads to it: then a full ldconfig run read that very file
when the image was made, and its answer is in the cache. Times are never asked: the runtime has just made its mount
targets in these directories, and layers flatten times. What is mounted is never explained, nor is an empty file
in the place of a driver's library: that is a mount target which an earlier start has left.
"""

from __future__ import annotations

import posix
import sys
from _stat import S_ISLNK, S_ISREG
from errno import E2BIG, EAGAIN, EINVAL, ELOOP, ENAMETOOLONG, ENOENT, ENOTDIR

from nvoci.ldcache.library import Library, NotALibraryError, examine
from nvoci.linux import mountinfo, procfs
from nvoci.linux.fd import Fd
from nvoci.linux.rootfs import MAX_ENTRIES, is_pseudo

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from nvoci.ldcache.cache import Entry
    from nvoci.linux.rootfs import Dir, Rootfs

_PREFIXES = ("lib", "ld-")  # ldconfig looks at lib*.so* and ld-*.so*
_HWCAPS = "glibc-hwcaps"
MAX_LISTED = 8192  # directories, those of glibc-hwcaps included
MAX_OPENED = 100_000  # files of one computation
_DRIVER = (b"libcuda", b"libnv")  # how a driver's libraries are named, beside those with `nvidia` in the name
_MAX_CHAIN = 16
_MAX_HWCAPS = 64  # subdirectories of one glibc-hwcaps
MIN_SIZE = 52  # of an ELF header of 32 bits
_ABSENT = (ENOENT, ENOTDIR, ELOOP, ENAMETOOLONG)
LEASED = "another process has a lease on it"
_LEASE_PART = 0.1  # of the time for leases, for all libraries: they can be done without
_HANDLE = posix.O_PATH | posix.O_NOFOLLOW | posix.O_CLOEXEC


def _is_temporary(name: str) -> bool:
    """Whether prelink has left it: NAME.#prelink# or NAME.#prelink#.XXXXXX."""
    return name.endswith(".#prelink#") or name[-17:-6] == ".#prelink#."


def _is_drivers(soname: bytes) -> bool:
    return soname.startswith(_DRIVER) or b"nvidia" in soname


def _plain(text: bytes) -> bytes:
    """A link's text where it is a mere name, else nothing: 100,000 texts of 4 KiB are not to be kept."""
    return text if len(text) < 256 and b"/" not in text else b""


class Mounted:
    """What is mounted below the root, from one reading of the mount table."""

    __slots__ = ("_names", "_root", "_targets")

    def __init__(self, rootfs: Rootfs) -> None:
        self._root = procfs.name_of(rootfs.fileno()).rstrip(b"/")
        self._targets = set(mountinfo.own_targets())
        self._names: dict[bytes, set[bytes]] = {}
        for target in self._targets:
            parent, _, name = target.rpartition(b"/")
            self._names.setdefault(parent or b"/", set()).add(name)

    def names(self, fd: int) -> set[bytes] | None:
        """The names in the directory that `fd` refers to which are mount points; None where it is mounted itself, or
        lies in what is."""
        path = procfs.name_of(fd)
        above = path
        while len(above) > len(self._root):
            if above in self._targets:
                return None
            above = above.rpartition(b"/")[0]
        return self._names.get(path, set())


class Opener:
    """Examines files, each inode once."""

    __slots__ = ("_known", "_left", "_rootfs")

    def __init__(self, rootfs: Rootfs) -> None:
        self._rootfs = rootfs
        self._known: dict[tuple[int, int, bool], Library | str] = {}
        self._left = MAX_OPENED

    def examine(self, where: Dir, name: bytes, is_link: bool, with_isa_level: bool) -> Library | str:
        """The library behind a name, or why there is none. Raises OSError where that cannot be known."""
        path = where.path + b"/" + name
        try:
            handle = self._rootfs.lookup(path) if is_link else Fd(posix.open(name, _HANDLE, dir_fd=where.fileno()))
        except OSError as e:
            if e.errno in _ABSENT:
                return "leads nowhere" if is_link else "gone"
            raise OSError(e.errno, e.strerror, path) from None
        with handle:
            return self._examine(handle, path, with_isa_level)

    def at(self, path: bytes, with_isa_level: bool) -> Library | str:
        """The same for a path below the root."""
        try:
            handle = self._rootfs.lookup(path)
        except OSError as e:
            if e.errno in _ABSENT:
                return "leads nowhere"
            raise
        with handle:
            return self._examine(handle, path, with_isa_level)

    def _examine(self, handle: Fd, path: bytes, with_isa_level: bool) -> Library | str:
        st = handle.stat()
        if not S_ISREG(st.st_mode) or is_pseudo(handle.fileno()):
            return "not a regular file"
        if st.st_size < MIN_SIZE:
            return "too short for an ELF file"
        key = (st.st_dev, st.st_ino, with_isa_level)
        known = self._known.get(key)
        if known is None:
            self._left -= 1
            if self._left < 0:
                raise OSError(E2BIG, f"more than {MAX_OPENED} files to read", path)
            try:
                known = _read(handle, path, with_isa_level)
            except OSError as e:
                raise OSError(e.errno, e.strerror, path) from None
            self._known[key] = known
        return known


def _read(handle: Fd, path: bytes, with_isa_level: bool) -> Library | str:
    try:
        fd = procfs.open_regular(handle.fileno(), path, _LEASE_PART)
    except OSError as e:
        if e.errno == EAGAIN:
            return LEASED
        raise
    try:
        with Fd(fd) as file:
            found = examine(file.fileno(), with_isa_level)
            if found.unsafe_soname is not None and len(found.unsafe_soname) > 255:
                found.unsafe_soname = b""  # no file name either, and short
            return found
    except NotALibraryError as e:
        return str(e)


class Directory:
    """path: as the cache is to spell it. names: library name -> whether it is a link. mounted: those that are mount
    points; is_mounted: all of it is. hwcaps_name: of a subdirectory of glibc-hwcaps. has_hwcaps: whether there is a
    glibc-hwcaps in it."""

    __slots__ = ("dir", "has_hwcaps", "hwcaps_name", "is_mounted", "mounted", "names", "path", "rank", "texts")

    def __init__(self, where: Dir, path: bytes, rank: int, hwcaps_name: bytes | None, mounted: Mounted) -> None:
        self.dir = where
        self.path = path
        self.rank = rank
        self.hwcaps_name = hwcaps_name
        self.names: dict[bytes, bool] = {}
        self.texts: dict[bytes, bytes] = {}
        self.has_hwcaps = False
        fd = procfs.reopen(where.fileno(), posix.O_RDONLY | posix.O_DIRECTORY)
        try:
            self._list(fd)
            names = mounted.names(fd)
            self.is_mounted = names is None
            self.mounted = set(self.names) if names is None else names.intersection(self.names)
        finally:
            posix.close(fd)

    def _list(self, fd: int) -> None:
        """One system call for many names; this loop and `explained` are most of what a large image costs."""
        names, encoding, errors = self.names, sys.getfilesystemencoding(), sys.getfilesystemencodeerrors()
        left = MAX_ENTRIES
        with posix.scandir(fd) as entries:
            for entry in entries:
                left -= 1
                if left < 0:
                    raise OSError(E2BIG, f"more than {MAX_ENTRIES} entries", self.path)
                name = entry.name
                if name[:3] not in _PREFIXES or ".so" not in name:
                    if name == _HWCAPS:
                        self.has_hwcaps = True
                elif "#" not in name or not _is_temporary(name):
                    if entry.is_symlink():
                        names[name.encode(encoding, errors)] = True
                    elif entry.is_file(follow_symlinks=False):
                        names[name.encode(encoding, errors)] = False

    def text(self, name: bytes) -> bytes:
        """What a link of this directory says, if that is a name in it; empty where it is not, or where it is gone, or
        no link any more."""
        text = self.texts.get(name)
        if text is None:
            try:
                text = _plain(posix.readlink(name, dir_fd=self.dir.fileno()))
            except OSError as e:
                if e.errno not in (*_ABSENT, EINVAL):
                    raise OSError(e.errno, e.strerror, self.path + b"/" + name) from None
                text = b""
            self.texts[name] = text
        return text

    def dangles(self, name: bytes) -> bool:
        """Whether a link names a library in its own directory that is not there; False where that takes a lookup."""
        text = self.text(name)
        if text in self.names or b"/" in text or b"#" in text:
            return False
        return text[:3] == b"lib" and b".so" in text

    def end_of(self, name: bytes) -> bytes | None:
        """The file of this directory that a name leads to by links within it; None where they leave it or fail."""
        names = self.names
        for _ in range(_MAX_CHAIN):
            is_link = names.get(name)
            if not is_link:
                return None if is_link is None or name in self.mounted else name
            name = self.text(name)
        return None

    def explained(self, cached: Sequence[Entry]) -> tuple[dict[bytes, Entry], set[bytes]]:
        """(entries by soname that hold as they are, names that need not be opened)."""
        kept: dict[bytes, Entry] = {}
        names: set[bytes] = set()
        here, listed, mounted = self.dir.fileno(), self.names, self.mounted
        for entry in cached:
            name = entry.unsafe_soname
            is_link, end = listed.get(name), None
            if is_link:
                try:
                    end = self.texts[name] = _plain(posix.readlink(name, dir_fd=here))
                except OSError:
                    pass  # `text` knows what it means
                if end is None or listed.get(end) is not False or end in mounted:
                    end = self.end_of(name)
            elif is_link is not None and name not in mounted:
                end = name
            if end is None or entry.hwcap or not entry.unsafe_path.endswith(b"/" + name):
                continue
            # A start that is over leaves its mount targets as empty files. Of other names no size is asked for: that
            # would be half of what a large image costs.
            if not _is_drivers(name) or end in names or self._size(end) >= MIN_SIZE:
                kept[name] = entry
                names.add(name)
                if name[-3:] != b".so":  # such a link may be one for ld(1) only: its file has another soname
                    names.add(end)
        return kept, names

    def _size(self, name: bytes) -> int:
        try:
            return posix.stat(name, dir_fd=self.dir.fileno(), follow_symlinks=False).st_size
        except OSError as e:
            if e.errno in _ABSENT:
                return 0
            raise OSError(e.errno, e.strerror, self.path + b"/" + name) from None


def _is_link(rootfs: Rootfs, path: bytes) -> bool:
    try:
        return S_ISLNK(rootfs.lstat(path).st_mode)
    except OSError:
        return True


def open_directories(
    rootfs: Rootfs, paths: Iterable[bytes], left_out: list[tuple[bytes, str]]
) -> list[Directory]:
    """Each inode once, in the order of `paths`, the subdirectories of its glibc-hwcaps behind each; in `left_out` why
    one is not among them."""
    found: list[Directory] = []
    seen: set[tuple[int, int]] = set()
    hwcaps: set[tuple[int, int]] = set()
    mounted = Mounted(rootfs)

    def add(path: bytes, hwcaps_name: bytes | None) -> Directory | None:
        try:
            where = rootfs.dir(path)
            if where.identity in seen:
                left_out.append((path, "listed already under another name"))
                return None
            seen.add(where.identity)
            d = Directory(where, path, len(found), hwcaps_name, mounted)
        except OSError as e:
            if e.errno not in _ABSENT:
                raise OSError(e.errno, e.strerror, path) from None
            left_out.append((path, "no such directory"))
            return None
        found.append(d)
        if len(found) > MAX_LISTED:
            raise OSError(E2BIG, f"more than {MAX_LISTED} directories", path)
        return d

    for path in dict.fromkeys(path.rstrip(b"/") for path in paths):
        d = add(path, None) if path else None  # ldconfig passes over the root itself
        if d is not None and d.has_hwcaps:
            top = d.path + b"/" + _HWCAPS.encode()
            try:
                identity = rootfs.dir(top).identity
                names = [] if identity in hwcaps else rootfs.list(top, _MAX_HWCAPS)
                hwcaps.add(identity)
            except OSError as e:
                if e.errno not in _ABSENT:
                    raise
                continue
            for name in sorted(names, key=lambda name: (_is_link(rootfs, top + b"/" + name), name)):
                if not name.startswith(b".") and b":" not in name:  # which ld.so cannot name
                    add(top + b"/" + name, name)
    return found
