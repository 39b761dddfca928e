"""ld.so.cache: read, written again, and with paths exchanged (glibc, dl-cache.h).

The files among the seeds are of ldconfig 2.36: new, behind the old format, the old format alone, with glibc-hwcaps.
"""

from __future__ import annotations

import struct

from fuzz.registry import Field, Target, register

from nvoci.ldcache.cache import HWCAP_EXTENSION, Cache, CacheError, Entry, encode, parse, redirected

_HEADER = ((20, 4), (24, 4), (28, 1), (32, 4))  # entries, length of strings, flags, offset of the extension
_ENTRY = ((0, 4), (4, 4), (8, 4), (12, 4), (16, 8), (20, 4))  # flags, soname, path, osversion, hwcap, its high word
_MAX_FIELDS = 64
NEW = b"glibc-ld.so.cache1.1"
Section = tuple[int, int, bytes]


def cache_file(
    entries: list[tuple[int, bytes, bytes, int]], order: str = "<", sections: list[Section] | None = None
) -> bytes:
    """A cache made by hand. entries: (flags, soname, path, hwcap). sections: (tag, flags, content)."""
    at = 48 + 24 * len(entries)
    table = text = b""
    for flags, soname, path, hwcap in entries:
        place = at + len(text)
        table += struct.pack(order + "iIIIQ", flags, place, place + len(soname) + 1, 0, hwcap)
        text += soname + b"\0" + path + b"\0"
    text += b"x86-64-v2\0x86-64-v3\0" + b"\0" * 4
    extension = (at + len(text) + 3) & ~3 if sections is not None else 0
    head = struct.pack(order + "20sIIB3xI12x", NEW, len(entries), len(text), 2 if order == "<" else 3, extension)
    out = head + table + text
    if sections is not None:
        out = out.ljust(extension, b"\0") + struct.pack(order + "II", 0xEAA42174, len(sections))
        content, start = b"", extension + 8 + 16 * len(sections)
        for tag, flag, body in sections:
            out += struct.pack(order + "IIII", tag, flag, start + len(content), len(body))
            content += body
        out += content
    return out


def hwcaps_section(order: str, entries: int, text: int) -> Section:
    """The places of the two glibc-hwcaps names behind `text` bytes of other strings."""
    at = 48 + 24 * entries + text
    return 1, 0, struct.pack(order + "II", at, at + 10)


def _seeds() -> list[bytes]:
    out = []
    for order in "<>":
        plain = [(0x303, b"libb.so.2", b"/l/libb.so.2", 0), (0x303, b"liba.so.1", b"/l/liba.so.1", 0)]
        out += [cache_file([], order), cache_file(plain, order), cache_file(plain, order, [(0, 0, b"ldconfig 2.36")])]
        level = [(0x303, b"liba.so.1", b"/l/glibc-hwcaps/x86-64-v3/liba.so.1", HWCAP_EXTENSION | 2 << 32 | 1)]
        text = sum(len(soname) + len(path) + 2 for _, soname, path, _ in level)
        out.append(cache_file(level, order, [(0, 0, b"g"), hwcaps_section(order, 1, text)]))
        out.append(cache_file(plain, order, [(7, 0, b"new"), (0, 1, b"g")]))
    return out


def fields(data: bytes) -> list[Field]:
    """Header, entries, and the extension, of the new format, wherever it is."""
    start = data.find(NEW)
    if start < 0 or len(data) < start + 48:
        return []
    order = ">" if data[start + 28] & 3 == 3 else "<"
    found: list[Field] = [(start + at, size, order) for at, size in _HEADER]
    count, extension = struct.unpack_from(order + "I8xI", data, start + 20)
    for i in range(min(count, 4)):
        found += [(start + 48 + 24 * i + at, size, order) for at, size in _ENTRY]
    if extension:
        found += [(at, 4, order) for at in range(extension, min(extension + 8 + 16 * 3, len(data) - 3), 4)]
        found += [(at, 4, order) for at in range(extension + 40, min(extension + 56, len(data) - 3), 4)]
    if start:
        found.append((12, 4, order))  # entries of the old format
    return found[:_MAX_FIELDS]


def plain(e: Entry) -> tuple[int, bytes, bytes, int, int, bytes | None]:
    """An entry, to be compared."""
    return e.flags, e.unsafe_soname, e.unsafe_path, e.osversion, e.hwcap, e.hwcaps_name


def _check(data: bytes, case: bytes, cache: Cache) -> None:
    """Written and read again it is the same, and so is a cache in which paths were exchanged."""
    entries = [plain(e) for e in cache.entries]
    again = parse(encode(cache.entries, cache.unsafe_generator))
    assert [plain(e) for e in again.entries] == entries
    assert again.unsafe_generator == cache.unsafe_generator
    assert redirected(data, {}) == data
    if _text_is_table(data, len(entries)):
        return
    changes = {e.unsafe_path: b"/other" for e in cache.entries[:2]}
    other = parse(redirected(data, changes))
    assert [plain(e) for e in other.entries] == [(*e[:2], changes.get(e[2], e[2]), *e[3:]) for e in entries]


def _text_is_table(data: bytes, count: int) -> bool:
    """Whether a string lies within the entries, which exchanging paths changes."""
    start = data.find(NEW)
    order = ">" if data[start + 28] & 3 == 3 else "<"
    table = 48 + 24 * count
    entries = struct.iter_unpack(order + "4xII12x", data[start + 48 : start + table])
    return any(place < table for entry in entries for place in entry)


PARSE = register(
    Target("ld.so.cache", parse=parse, errors=(CacheError,), seeds=_seeds, fields=fields, check=_check, tokens=(NEW,))
)


def _redirect(data: bytes) -> bytes:
    return redirected(data, {b"/l/liba.so.1": b"/other", b"": b"/root"})


register(Target("ld.so.cache-redirected", parse=_redirect, errors=(CacheError,), seeds=PARSE.corpus, fields=fields))
