"""Caches that lie about themselves: each is an error or an answer, in little time and memory, and never a wrong one."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from fuzz.limits import cpu_seconds, mebibytes, outcome
from fuzz.target_cache import cache_file, hwcaps_section, plain

from nvoci.ldcache.cache import MAX_STRING, Cache, CacheError, Entry, encode, parse, redirected

ONE = [(0x303, b"liba.so.1", b"/l/liba.so.1", 0)]
MANY = [(0x303, b"lib%04d.so" % i, b"/l/lib%04d.so" % i, 0) for i in range(2000)]
GENERATOR = (0, 0, b"someone")


def put(data: bytes, offset: int, fmt: str, *values: int) -> bytes:
    out = bytearray(data)
    struct.pack_into("<" + fmt, out, offset, *values)
    return bytes(out)


def extension_of(data: bytes) -> int:
    return int(struct.unpack_from("<I", data, 32)[0])


def looped(where: int) -> bytes:
    """A cache whose hwcaps section lies at `where` bytes from the extension's start."""
    data = cache_file(ONE, sections=[(1, 0, bytes(8))])
    at = extension_of(data)
    return put(data, at + 16, "II", max(0, at + where), 8)


EXTENSION = cache_file(ONE, sections=[GENERATOR])
SHARED = 9000
"""Entries that all name one string of 4,000 bytes: little to read, much to make of it."""

SHAPES: dict[str, tuple[bytes, str]] = {
    "the extension is the header": (put(EXTENSION, 32, "I", 4), "malformed extension"),
    "the extension is the table": (put(EXTENSION, 32, "I", 48), "malformed extension"),
    "a section is the extension itself": (looped(0), "string outside"),
    "a section is its own directory entry": (looped(8), "answer"),
    "a section is the file's header": (looped(-(1 << 20)), "string outside"),
    "all sections are one": (
        put(cache_file(ONE, sections=[GENERATOR] * 3), extension_of(EXTENSION) + 16, "II", 0, 8), "answer"
    ),
    "64 sections, each the whole file": (
        cache_file(ONE, sections=[(9, 0, b"")] * 64).replace(struct.pack("<4I", 9, 0, 0, 0), b""), "answer"
    ),
    "sections 2^32-1": (put(EXTENSION, extension_of(EXTENSION) + 4, "I", 0xFFFFFFFF), "malformed extension"),
    "size of a section 2^32-1": (put(EXTENSION, extension_of(EXTENSION) + 20, "I", 0xFFFFFFFF), "outside"),
    "place and size that wrap at 2^32": (
        put(EXTENSION, extension_of(EXTENSION) + 16, "II", 0xFFFFFFFC, 8), "outside"
    ),
    "count is one too many": (put(cache_file(MANY), 20, "I", 1 << 20), "more entries"),
    "count 2^32-1": (put(cache_file(MANY), 20, "I", 0xFFFFFFFF), "more entries"),
    "count that wraps at 2^32 with the size of an entry": (put(cache_file(MANY), 20, "I", 0xAAAAAAB), "more entries"),
    "the last path is behind the end": (put(cache_file(MANY), 48 + 24 * 2000 - 16, "I", 1 << 30), "string outside"),
    "the old format in front of itself": (
        b"ld.so-1.7.0\0" + struct.pack("<I", 0) + b"ld.so-1.7.0\0" + bytes(100), "no cache of the new"
    ),
    "the new format far behind the old": (
        b"ld.so-1.7.0\0" + struct.pack("<I", 100) + bytes(1200) + cache_file(ONE), "answer"
    ),
    "one string of 4 KiB, 9,000 times": (
        struct.pack("<20sIIB3xI12x", b"glibc-ld.so.cache1.1", SHARED, 0, 2, 0)
        + struct.pack("<iIIIQ", 3, 48 + 24 * SHARED, 48 + 24 * SHARED, 0, 0) * SHARED + b"x" * 4000 + b"\0",
        "more text",
    ),
    "strings that are one another's end": (
        put(cache_file(ONE), 48, "iII", 0x303, 48 + 24 + 13, 48 + 24 + 10), "answer"
    ),
}  # fmt: skip


def shape_of(shape: str) -> tuple[bytes, str]:
    data, wanted = SHAPES[shape]
    if shape.startswith("64 sections"):
        at = extension_of(data)
        data = data[: at + 8] + struct.pack("<4I", 9, 0, 0, at) * 64 + data[at + 8 :]
    return data, wanted


@pytest.mark.parametrize("shape", SHAPES)
def test_a_cache_that_lies_is_an_error_or_an_answer(shape: str) -> None:
    data, wanted = shape_of(shape)
    found = outcome(lambda: parse(data), (CacheError,))
    if wanted == "answer":
        assert isinstance(found, Cache), found
        assert len(found.entries) == 1
    else:
        assert isinstance(found, CacheError), "an answer"
        assert wanted in str(found)


@pytest.mark.parametrize("shape", SHAPES)
def test_it_costs_little(shape: str) -> None:
    data, _ = shape_of(shape)
    assert cpu_seconds(lambda: parse(data), (CacheError,)) < 0.010
    assert mebibytes(lambda: parse(data), (CacheError,)) < 1 + 8 * len(data) / (1 << 20)


@pytest.mark.parametrize("shape", SHAPES)
def test_redirection_makes_the_same_errors(shape: str) -> None:
    data, wanted = shape_of(shape)
    found = outcome(lambda: redirected(data, {b"/l/liba.so.1": b"/other"}), (CacheError,))
    assert isinstance(found, (bytes, CacheError))
    if wanted.startswith(("more entries", "no cache")) or "path" in shape:
        assert isinstance(found, CacheError), "no error"


@pytest.mark.parametrize("order", ["<", ">"])
def test_entries_out_of_order_are_read_in_the_files_order(order: str) -> None:
    entries = [(3, name, b"/l/" + name, 0) for name in (b"a.so", b"z.so", b"m.so", b"z.so", b"")]
    assert [e.unsafe_soname for e in parse(cache_file(entries, order)).entries] == [name for _, name, _, _ in entries]


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_cache_behind_ten_thousand_old_entries_is_found(order: str) -> None:
    old = b"ld.so-1.7.0\0" + struct.pack("=I", 10_000) + bytes(120_000)
    (entry,) = parse(old + cache_file(ONE, order)).entries
    assert plain(entry)[:3] == ONE[0][:3]


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_name_of_glibc_hwcaps_is_a_string_like_others(order: str) -> None:
    """One that is long, and one that is no name at all: what it is used for has to see to that."""
    path = b"/l/glibc-hwcaps/x/liba.so.1"
    entry = (0x303, b"liba.so.1", path, 1 << 62 | 1)
    data = cache_file([entry], order, [hwcaps_section(order, 1, len(b"liba.so.1") + len(path) + 2)])
    assert parse(data).entries[0].hwcaps_name == b"x86-64-v3"
    other = data.replace(b"x86-64-v3\0", b"../../etc\0")
    assert parse(other).entries[0].hwcaps_name == b"../../etc"


def test_a_string_of_the_greatest_length_is_read_and_written() -> None:
    path = b"/" + b"x" * (MAX_STRING - 1)
    data = encode([Entry(3, b"x", path)])
    assert parse(data).entries[0].unsafe_path == path
    assert cpu_seconds(lambda: parse(data), ()) < 0.010


def _written(entries: list[Entry]) -> Any:
    return outcome(lambda: parse(encode(entries)), (CacheError,))


@pytest.mark.parametrize("length", [MAX_STRING + 1, 1 << 20])
def test_a_string_that_is_too_long_is_no_cache(length: int) -> None:
    assert isinstance(_written([Entry(3, b"x", b"/" + b"x" * length)]), CacheError)
