"""ld.so.cache read from bytes and written to bytes: glibc's `dl-cache.h`, format 1.1 with its extension section.

What is read is a stranger's: every count, offset and length is checked, and the text is bounded in all. The old format
(`ld.so-1.7.0`) in front of the new one is skipped; alone it is an error, as for every ld.so since glibc 2.2.
"""

from __future__ import annotations

import sys
from _struct import calcsize, iter_unpack, pack, pack_into, unpack_from

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

OLD_MAGIC = b"ld.so-1.7.0"
NEW_MAGIC = b"glibc-ld.so.cache1.1"
_OLD_HEADER, _OLD_ENTRY = 16, 12
_HEADER = "20sIIBxxxIxxxxxxxxxxxx"  # magic and version, entries, length of strings, flags, offset of the extension
_NEW_HEADER, _NEW_ENTRY = 48, 24
_ENTRY = "iIIIQ"  # flags, soname, path, osversion, hwcap
_LITTLE_ENDIAN, _BIG_ENDIAN = 2, 3  # cache_file_new_flags_endian_*
_EXTENSION_MAGIC = 0xEAA42174
_GENERATOR, _HWCAPS = 0, 1  # cache_extension_tag
_SECTION = "IIII"  # tag, flags, offset, size
# DL_CACHE_HWCAP_EXTENSION: the low word is the index of a glibc-hwcaps name, ten bits above it the ISA level
HWCAP_EXTENSION = 1 << 62
_ISA_LEVEL_MASK = 0x3FF << 32
_INDEX_MASK = 0xFFFFFFFF
MAX_ENTRIES = 200_000
MAX_STRINGS = 32 << 20  # in all, since many entries may name the same string
MAX_STRING = 4096
MAX_SIZE = 16 << 20  # of a file
MAX_HWCAPS = 1024
MAX_SECTIONS = 64
NATIVE = "<" if sys.byteorder == "little" else ">"


class CacheError(ValueError):
    """The bytes are not a cache of the known formats; the message is a few words."""


class Entry:
    """One library. flags: FLAG_* of ldconfig.h. hwcap: bits of a legacy subdirectory, or HWCAP_EXTENSION and the ISA
    level in bits 32 to 41 for a file below glibc-hwcaps/`hwcaps_name`; 0 and None for all others."""

    __slots__ = ("flags", "hwcap", "hwcaps_name", "osversion", "unsafe_path", "unsafe_soname")

    def __init__(
        self, flags: int, unsafe_soname: bytes, unsafe_path: bytes, osversion: int = 0, hwcap: int = 0,
        hwcaps_name: bytes | None = None,
    ) -> None:  # fmt: skip
        self.flags = flags
        self.unsafe_soname = unsafe_soname
        self.unsafe_path = unsafe_path
        self.osversion = osversion
        self.hwcap = hwcap
        self.hwcaps_name = hwcaps_name


class Cache:
    """entries: in the order of the file. order: `<` or `>`. known: whether every extension is one that we can write."""

    __slots__ = ("entries", "known", "order", "unsafe_generator")

    def __init__(self, entries: list[Entry], order: str, unsafe_generator: bytes, known: bool) -> None:
        self.entries = entries
        self.order = order
        self.unsafe_generator = unsafe_generator
        self.known = known


def parse(data: bytes) -> Cache:
    """What a cache holds. Raises CacheError; a cache of the old format alone is one too."""
    start = _new_header(data)
    order = ">" if data[start + 28] & 3 == _BIG_ENDIAN else "<"
    _, count, _, _, extension = unpack_from(order + _HEADER, data, start)
    table = start + _NEW_HEADER
    if count > MAX_ENTRIES or table + count * _NEW_ENTRY > len(data):
        raise CacheError("more entries than the file has room for")
    generator, hwcaps, known = _extension(data, start, extension, order)
    found: list[Entry] = []
    left = min(MAX_STRINGS, 4 * len(data))  # ldconfig writes a string once, and a soname within a path
    for flags, key, value, osversion, bits in iter_unpack(order + _ENTRY, data[table : table + count * _NEW_ENTRY]):
        path = _string(data, start + value)
        # The soname is nearly always the end of the path.
        soname = path[key - value :] if 0 <= key - value < len(path) else _string(data, start + key)
        name, hwcap = None, bits
        if bits and (bits & ~_ISA_LEVEL_MASK) >> 32 == HWCAP_EXTENSION >> 32:
            if bits & _INDEX_MASK >= len(hwcaps):
                raise CacheError("glibc-hwcaps name that is not there")
            name, hwcap = hwcaps[bits & _INDEX_MASK], bits & ~_INDEX_MASK
        found.append(Entry(flags, soname, path, osversion, hwcap, name))
        left -= len(soname) + len(path)
        if left < 0:
            raise CacheError("more text than a cache has")
    return Cache(found, order, generator, known)


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


def _extension(data: bytes, start: int, offset: int, order: str) -> tuple[bytes, list[bytes], bool]:
    """(generator, glibc-hwcaps names, whether there is nothing else) of the extension section at `offset`."""
    if offset == 0:
        return b"", [], True
    if offset % 4 or offset + 8 > len(data):
        raise CacheError("extension outside of the file")
    magic, count = unpack_from(order + "II", data, offset)
    if magic != _EXTENSION_MAGIC or count > MAX_SECTIONS or offset + 8 + 16 * count > len(data):
        raise CacheError("malformed extension")
    generator, hwcaps, tags = b"", [], []
    for at in range(offset + 8, offset + 8 + 16 * count, 16):
        tag, flags, where, size = unpack_from(order + _SECTION, data, at)
        if where + size > len(data):
            raise CacheError("extension outside of the file")
        tags.append((tag, flags))
        if tag == _GENERATOR:
            generator = data[where : where + min(size, MAX_STRING)]
        elif tag == _HWCAPS:
            if size % 4 or size // 4 > MAX_HWCAPS:
                raise CacheError("too many glibc-hwcaps names")
            hwcaps = [_string(data, start + i) for (i,) in iter_unpack(order + "I", data[where : where + size])]
    known = len(set(tags)) == len(tags) and {(_GENERATOR, 0), (_HWCAPS, 0)}.issuperset(tags)
    return generator, hwcaps, known


def encode(entries: Sequence[Entry], generator: bytes = b"") -> bytes:
    """A cache of these entries, in this order, which must be ld.so's (nvoci.ldcache.order), in this machine's byte
    order. Raises CacheError where the file would not be one that `parse` takes."""
    names = sorted({e.hwcaps_name for e in entries if e.hwcaps_name is not None})
    index = {name: i for i, name in enumerate(names)}
    base = _NEW_HEADER + _NEW_ENTRY * len(entries)
    strings: list[bytes] = []
    table: list[bytes] = []
    at, text = base, 0
    for e in entries:
        path, soname = e.unsafe_path, e.unsafe_soname
        strings.append(path)
        key = at + len(path) - len(soname)
        end = at + len(path) + 1
        if not path.endswith(soname):
            strings.append(soname)
            key = end
            end += len(soname) + 1
        hwcap = e.hwcap if e.hwcaps_name is None else e.hwcap | index[e.hwcaps_name]
        text += len(path) + len(soname)
        if text > MAX_STRINGS:
            break
        table.append(pack(NATIVE + _ENTRY, e.flags, key, at, e.osversion, hwcap))
        at = end
    places = []
    for name in names:
        strings.append(name)
        places.append(at)
        at += len(name) + 1
    if text > MAX_STRINGS or at > MAX_SIZE - (1 << 16) or len(entries) > MAX_ENTRIES or len(names) > MAX_HWCAPS:
        raise CacheError("more libraries than a cache takes")
    extension = at + -at % 4
    flags = _LITTLE_ENDIAN if NATIVE == "<" else _BIG_ENDIAN
    head = pack(NATIVE + _HEADER, NEW_MAGIC, len(entries), at - base, flags, extension)
    text_of_all = (s + b"\0" for s in strings)
    return b"".join((head, *table, *text_of_all, bytes(extension - at), _sections(extension, generator, places)))


def _sections(start: int, generator: bytes, places: Iterable[int]) -> bytes:
    """The extension section at `start`: the generator, and where each glibc-hwcaps name stands."""
    hwcaps = b"".join(pack(NATIVE + "I", place) for place in places)
    sections = [(_GENERATOR, generator)] if not hwcaps else [(_GENERATOR, generator), (_HWCAPS, hwcaps)]
    at = start + 8 + len(sections) * calcsize(_SECTION)
    head = [pack(NATIVE + "II", _EXTENSION_MAGIC, len(sections))]
    ends = at + len(hwcaps)  # the offsets first, since they are aligned
    for tag, content in sections:
        head.append(pack(NATIVE + _SECTION, tag, 0, at if tag == _HWCAPS else ends, len(content)))
    return b"".join((*head, hwcaps, generator))


def redirected(data: bytes, paths: Mapping[bytes, bytes]) -> bytes:
    """The cache with other files behind its names: for each path in `paths` the one given there. Raises CacheError.

    The new strings stand at the end, behind the extensions: ld.so checks offsets against the size of the file alone.
    """
    start = _new_header(data)
    order = ">" if data[start + 28] & 3 == _BIG_ENDIAN else "<"
    count = unpack_from(order + "I", data, start + 20)[0]
    if start + _NEW_HEADER + count * _NEW_ENTRY > len(data):
        raise CacheError("more entries than the file has room for")
    out = bytearray(data)
    for at in range(start + _NEW_HEADER + 8, start + _NEW_HEADER + count * _NEW_ENTRY, _NEW_ENTRY):
        path = paths.get(_string(data, start + unpack_from(order + "I", data, at)[0]))
        if path is not None:
            pack_into(order + "I", out, at, len(out) - start)
            out += path + b"\0"
    return bytes(out)
