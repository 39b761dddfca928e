"""ld.so.cache read from bytes, and the directories that ld.so.conf names, resolved in a container's root.

Both are a stranger's: every count, offset, length, number of files and of directory listings is bounded. The cache is
glibc's `dl-cache.h`: the new format alone, or embedded behind the old one. ld.so.conf is read as ldconfig(8) reads
it, except that a file is read once however often it is included, so that circles end, and that nothing but a regular
file is ever opened.
"""

from __future__ import annotations

from _struct import iter_unpack, pack_into, unpack_from
from errno import E2BIG, EISDIR, ELOOP, ENOENT, ENOTDIR

from nvoci.linux.fd import read_at_most
from nvoci.linux.rootfs import Budget

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from nvoci.linux.rootfs import Rootfs

# -- the cache --------------------------------------------------------------------------------------------------

OLD_MAGIC = b"ld.so-1.7.0"
NEW_MAGIC = b"glibc-ld.so.cache1.1"
_OLD_HEADER, _OLD_ENTRY = 16, 12
_NEW_HEADER, _NEW_ENTRY = 48, 24
_BIG_ENDIAN = 3  # cache_file_new_flags_endian_big
MAX_ENTRIES = 1_000_000
MAX_STRINGS = 64 << 20  # in all, since many entries may name the same string
MAX_STRING = 4096


class CacheError(ValueError):
    """The bytes are not a cache of the known formats; the message is a few words."""


class Entry:
    """One library. flags: FLAG_* of ldconfig.h; hwcap: with bit 62 set, the low word counts glibc-hwcaps names."""

    __slots__ = ("flags", "hwcap", "osversion", "unsafe_path", "unsafe_soname")

    def __init__(self, flags: int, unsafe_soname: bytes, unsafe_path: bytes, osversion: int, hwcap: int) -> None:
        self.flags = flags
        self.unsafe_soname = unsafe_soname
        self.unsafe_path = unsafe_path
        self.osversion = osversion
        self.hwcap = hwcap


def parse(data: bytes) -> list[Entry]:
    """The entries in the order of the file. Raises CacheError; a cache of the old format alone is one too."""
    start = _new_header(data)
    order = ">" if data[start + 28] & 3 == _BIG_ENDIAN else "<"
    count = unpack_from(order + "I", data, start + 20)[0]
    table = start + _NEW_HEADER
    if count > MAX_ENTRIES or table + count * _NEW_ENTRY > len(data):
        raise CacheError("more entries than the file has room for")
    found: list[Entry] = []
    left = MAX_STRINGS
    for flags, key, value, osversion, hwcap in iter_unpack(order + "iIIIQ", data[table : table + count * _NEW_ENTRY]):
        entry = Entry(flags, _string(data, start + key), _string(data, start + value), osversion, hwcap)
        left -= len(entry.unsafe_soname) + len(entry.unsafe_path)
        if left < 0:
            raise CacheError("more text than a cache has")
        found.append(entry)
    return found


def _new_header(data: bytes) -> int:
    """Where the new format begins; its string offsets count from there."""
    start = 0
    if data.startswith(OLD_MAGIC):
        if len(data) < _OLD_HEADER:
            raise CacheError("truncated")
        start = _OLD_HEADER + unpack_from("=I", data, 12)[0] * _OLD_ENTRY
        start += -start % 8
    if len(data) < start + _NEW_HEADER:
        raise CacheError("truncated")
    if data[start : start + len(NEW_MAGIC)] != NEW_MAGIC:
        raise CacheError("no cache of the new format")
    return start


def _string(data: bytes, at: int) -> bytes:
    end = data.find(b"\0", at, at + MAX_STRING + 1)
    if end < 0:
        raise CacheError("string outside of the file, or without end")
    return data[at:end]


def redirected(data: bytes, paths: Mapping[bytes, bytes]) -> bytes:
    """The cache with other files behind its names: for each path in `paths` the one given there. Raises CacheError.

    The new strings stand at the end, behind the extensions: ld.so checks offsets against the size of the file alone.
    """
    start = _new_header(data)
    order = ">" if data[start + 28] & 3 == _BIG_ENDIAN else "<"
    count = unpack_from(order + "I", data, start + 20)[0]
    out = bytearray(data)
    for at in range(start + _NEW_HEADER + 8, start + _NEW_HEADER + count * _NEW_ENTRY, _NEW_ENTRY):
        path = paths.get(_string(data, start + unpack_from(order + "I", data, at)[0]))
        if path is not None:
            pack_into(order + "I", out, at, len(out) - start)
            out += path + b"\0"
    return bytes(out)


# -- ld.so.conf -------------------------------------------------------------------------------------------------

CONF = b"/etc/ld.so.conf"
MAX_CONF = 1 << 20
MAX_FILES = 1024
MAX_DIRECTORIES = 4096
MAX_DEPTH = 64
_SPACE = b" \t\r\v\f"
_ABSENT = (ENOENT, ENOTDIR, ELOOP)


def conf_directories(rootfs: Rootfs, start: bytes = CONF, skip: Collection[bytes] = ()) -> list[bytes]:
    """The directories that `start` and its includes name, in ldconfig's order, each once, as written.

    skip: names of included files that are passed over. Raises OSError: EINVAL for a FIFO, device or socket in the
    place of a file, EISDIR where `start` is a directory, EFBIG for too large a file, E2BIG for too many.
    """
    reader = _Reader(rootfs, skip)
    reader.read(start, 0)
    return list(reader.found)


class _Reader:
    """Depth first, as ldconfig: an include's directories take its place."""

    __slots__ = ("budget", "found", "rootfs", "seen", "skip")

    def __init__(self, rootfs: Rootfs, skip: Collection[bytes]) -> None:
        self.rootfs = rootfs
        self.skip = skip
        self.found: dict[bytes, None] = {}
        self.seen: set[tuple[int, int]] = set()
        self.budget = Budget()

    def read(self, path: bytes, depth: int) -> None:
        data = self._content(path, depth)
        if data is None:
            return
        if depth > MAX_DEPTH:
            raise OSError(E2BIG, f"included more than {MAX_DEPTH} deep", path)
        for raw in data.split(b"\n"):
            line = raw.partition(b"#")[0].strip(_SPACE)
            if line.startswith((b"include ", b"include\t")):
                for pattern in line[8:].split():
                    self._include(pattern, path, depth)
            elif line.startswith(b"/") and b"\0" not in line:
                self._add(line, path)

    def _add(self, line: bytes, path: bytes) -> None:
        directory = line.partition(b"=")[0].rstrip(_SPACE).rstrip(b"/") or b"/"
        self.found[directory] = None
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
                return read_at_most(fd.fileno(), MAX_CONF)
            except OSError as e:
                raise OSError(e.errno, e.strerror, path) from None

    def _include(self, pattern: bytes, path: bytes, depth: int) -> None:
        if not pattern.startswith(b"/"):
            pattern = path.rpartition(b"/")[0] + b"/" + pattern
        if b"\0" in pattern:
            return
        for found in self.rootfs.match(pattern, self.budget):
            if found.rpartition(b"/")[2] not in self.skip:
                self.read(found, depth + 1)
