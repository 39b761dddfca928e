"""ld.so.conf: the directories that it and its includes name, resolved in a container's root.

It is a stranger's: the number of files, of directories and of directory listings, and the size of each file, are
bounded. It is read as ldconfig(8) reads it, except that a file is read once however often it is included, so that
circles end, and that nothing but a regular file is ever opened.
"""

from __future__ import annotations

from errno import E2BIG, EISDIR, ELOOP, ENAMETOOLONG, ENOENT, ENOTDIR

from nvoci.linux.canonical import canonical, link_text
from nvoci.linux.fd import read_at_most
from nvoci.linux.pattern import is_pattern, match
from nvoci.linux.rootfs import Budget

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection

    from nvoci.linux.rootfs import Rootfs

CONF = b"/etc/ld.so.conf"
CONF_FOLDER = b"etc/ld.so.conf.d"
DEFAULT = b"include /etc/ld.so.conf.d/*.conf\n"
MAX_CONF = 1 << 20  # bytes of all files together
MAX_LINES = 20_000  # of all files
MAX_INCLUDES = 4096  # words behind `include`
MAX_FILES = 1024
MAX_DIRECTORIES = 16_384
MAX_DEPTH = 64
MAX_PATH = 1024  # longer ones are passed over
_SPACE = b" \t\r\v\f"
_ABSENT = (ENOENT, ENOTDIR, ELOOP, ENAMETOOLONG)


def conf_directories(rootfs: Rootfs, start: bytes = CONF, marks: Collection[bytes] = ()) -> list[bytes]:
    """The directories that `start` and its includes name, in ldconfig's order, each once, as written.

    Where `start` is missing it counts as DEFAULT, which update-ldcache writes then.

    marks: names of files in /etc/ld.so.conf.d that are yet to be written. What is there is not read; `mark(name)`
    stands in the list where ldconfig would read it. Raises OSError: EINVAL for a FIFO, device or socket in the
    place of a file, EISDIR where `start` is a directory, EFBIG for too large a file, E2BIG for too many.
    """
    return list(conf_origins(rootfs, start, marks))


def mark(name: bytes) -> bytes:
    """What stands for a file that is yet to be written; no directory has such a name."""
    return b"\0" + name


def conf_origins(
    rootfs: Rootfs, start: bytes = CONF, marks: Collection[bytes] = ()
) -> dict[bytes, tuple[bytes, int]]:
    """The same with (file, line) of where each directory is named first, lines counted from 1."""
    reader = _Reader(rootfs, marks)
    reader.read(start, 0)
    return reader.found


class _Reader:
    """Depth first, as ldconfig: an include's directories take its place."""

    __slots__ = ("budget", "bytes", "found", "includes", "lines", "marks", "rootfs", "seen")

    def __init__(self, rootfs: Rootfs, marks: Collection[bytes]) -> None:
        self.rootfs = rootfs
        self.marks = marks
        self.found: dict[bytes, tuple[bytes, int]] = {}
        self.seen: set[tuple[int, int]] = set()
        self.budget = Budget()
        self.bytes, self.lines, self.includes = MAX_CONF, MAX_LINES, MAX_INCLUDES

    def read(self, path: bytes, depth: int) -> None:
        data = self._content(path, depth)
        if data is None:
            if depth or self.seen or not self._is_missing(path):
                return
            data = DEFAULT
        if depth > MAX_DEPTH:
            raise OSError(E2BIG, f"included more than {MAX_DEPTH} deep", path)
        self.lines -= data.count(b"\n")
        if self.lines < 0:
            raise OSError(E2BIG, f"more than {MAX_LINES} lines", path)
        for number, raw in enumerate(data.split(b"\n"), 1):
            line = raw.partition(b"#")[0].lstrip(_SPACE)
            if line.startswith((b"include ", b"include\t")):
                patterns = [p for p in line[8:].replace(b"\t", b" ").split(b" ", MAX_INCLUDES) if p]
                self.includes -= len(patterns)
                if self.includes < 0:
                    raise OSError(E2BIG, f"more than {MAX_INCLUDES} includes", path)
                for pattern in patterns:
                    self._include(pattern, path, depth)
            elif line.startswith(b"/") and b"\0" not in line:
                self._add(line, path, number)

    def _is_missing(self, path: bytes) -> bool:
        """Whether not even a link that leads nowhere is there."""
        try:
            self.rootfs.lstat(path)
        except OSError as e:
            if e.errno not in _ABSENT:
                raise
            return True
        return False

    def _add(self, line: bytes, path: bytes, number: int) -> None:
        directory = line.partition(b"=")[0].rstrip(_SPACE).rstrip(b"/") or b"/"
        if len(directory) <= MAX_PATH:
            self.found.setdefault(directory, (path, number))
        if len(self.found) > MAX_DIRECTORIES:
            raise OSError(E2BIG, f"more than {MAX_DIRECTORIES} directories", path)

    def _content(self, path: bytes, depth: int) -> bytes | None:
        """The file, or None where there is none, or it was read already. An included directory counts as none."""
        try:
            fd = self.rootfs.open_file(path)
        except OSError as e:
            if e.errno in _ABSENT or (e.errno == EISDIR and depth):
                return None
            raise
        with fd:
            st = fd.stat()
            if (st.st_dev, st.st_ino) in self.seen:
                return None
            self.seen.add((st.st_dev, st.st_ino))
            if len(self.seen) > MAX_FILES:
                raise OSError(E2BIG, f"more than {MAX_FILES} files", path)
            try:
                data = read_at_most(fd.fileno(), self.bytes)
            except OSError as e:
                raise OSError(e.errno, e.strerror, path) from None
            self.bytes -= len(data)
            return data

    def _include(self, pattern: bytes, path: bytes, depth: int) -> None:
        if not pattern.startswith(b"/"):
            pattern = path.rpartition(b"/")[0] + b"/" + pattern
        if b"\0" in pattern:
            return
        for found in sorted({*self.rootfs.match(pattern, self.budget), *self._marks(pattern)}):
            parent, _, name = found.rpartition(b"/")
            if name in self.marks and self._is_folder(parent):
                self.found.setdefault(mark(name), (path, 0))
            else:
                self.read(found, depth + 1)

    def _marks(self, pattern: bytes) -> list[bytes]:
        """The files yet to be written that an include names."""
        head, _, last = pattern.rpartition(b"/")
        names = [name for name in self.marks if match(last, name)]
        if not names:
            return []
        parents = self.rootfs.match(head, self.budget) if is_pattern(head) else [head]
        return [parent + b"/" + name for parent in parents if self._is_folder(parent) for name in names]

    def _is_folder(self, path: bytes) -> bool:
        """Whether it is /etc/ld.so.conf.d, by whatever name, be it missing."""
        if path.strip(b"/") == CONF_FOLDER:
            return True
        found = self._canonical(path)
        return found is not None and found == self._canonical(CONF_FOLDER)

    def _canonical(self, path: bytes) -> bytes | None:
        try:
            return canonical(path, lambda p: link_text(self.rootfs, p))
        except OSError as e:
            if e.errno in _ABSENT:
                return None
            raise
