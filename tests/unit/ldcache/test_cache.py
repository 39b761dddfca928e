"""ld.so.cache as it is made, and as a stranger may make it. Second witness: ldconfig -p."""

from __future__ import annotations

import os
import random
import re
import struct
import subprocess
import time
from pathlib import Path

import pytest
from lib import elfmaker
from lib.rootfs import tree

from nvoci.ldcache import cache as ldcache
from nvoci.ldcache.cache import HWCAP_EXTENSION, CacheError, Entry, encode, parse, redirected

LDCONFIG = "/sbin/ldconfig"
needs_ldconfig = pytest.mark.skipif(not os.path.exists(LDCONFIG), reason="no ldconfig on this host")
Fields = tuple[int, bytes, bytes, int, int, "bytes | None"]


def shown(cache: Path) -> bytes:
    return subprocess.run([LDCONFIG, "-p", "-C", cache], check=True, capture_output=True, env={}).stdout


def witness(cache: Path) -> list[tuple[bytes, bytes]]:
    text = shown(cache)
    return re.findall(rb"^\t(\S+) \(.*\) => (.*)$", text, re.MULTILINE)


def build(root: Path, form: str) -> Path:
    for name in ("liba.so.1", "libb.so.2", "libcuda.so.1"):
        elfmaker.make_so(root / "opt" / f"{name}.0", name)
    for level in ("v3", "v2"):
        elfmaker.make_so(root / f"opt/glibc-hwcaps/x86-64-{level}/liba.so.1.0", "liba.so.1")
    tree(root, "file etc/ld.so.conf /opt\\n")
    cache = root / "etc/ld.so.cache"
    subprocess.run([LDCONFIG, "-r", root, "-c", form, "-C", "/etc/ld.so.cache"], check=True, capture_output=True)
    return cache


def pairs(data: bytes) -> list[tuple[bytes, bytes]]:
    return [(e.unsafe_soname, e.unsafe_path) for e in parse(data).entries]


def fields(e: Entry) -> Fields:
    return e.flags, e.unsafe_soname, e.unsafe_path, e.osversion, e.hwcap, e.hwcaps_name


# -- reading ----------------------------------------------------------------------------------------------------


@needs_ldconfig
def test_the_hosts_cache_reads_as_ldconfig_reads_it() -> None:
    cache = Path("/etc/ld.so.cache")
    if not cache.exists():
        pytest.skip("this host has no ld.so.cache")
    assert pairs(cache.read_bytes()) == witness(cache)


@needs_ldconfig
@pytest.mark.parametrize("form", ["new", "compat"])
def test_both_formats_read_alike(tmp_path: Path, form: str) -> None:
    cache = build(tmp_path, form)
    found = pairs(cache.read_bytes())
    assert found == witness(cache)
    assert (b"libcuda.so.1", b"/opt/libcuda.so.1") in found
    assert cache.read_bytes().startswith(ldcache.OLD_MAGIC if form == "compat" else ldcache.NEW_MAGIC)


@needs_ldconfig
def test_hwcaps_entries_have_bit_62_and_the_name_of_their_subdirectory(tmp_path: Path) -> None:
    cache = parse(build(tmp_path, "new").read_bytes())
    found = [(e.hwcap, e.hwcaps_name) for e in cache.entries if e.unsafe_soname == b"liba.so.1"]
    assert found == [(HWCAP_EXTENSION, b"x86-64-v2"), (HWCAP_EXTENSION, b"x86-64-v3"), (0, None)]
    assert cache.known
    assert cache.unsafe_generator.startswith(b"ldconfig ")


@needs_ldconfig
def test_the_old_format_alone_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CacheError):
        parse(build(tmp_path, "old").read_bytes())


def make(
    order: str = "<", count: int = 1, key: int = 72, value: int = 76, strings: bytes = b"lib\0/lib\0", hwcap: int = 0,
    sections: list[tuple[int, int, bytes]] | None = None, magic: int = 0xEAA42174,
) -> bytes:  # fmt: skip
    """struct cache_file_new of dl-cache.h with one entry; strings begin at 72. sections: (tag, flags, content) of the
    extension, which lies behind them."""
    at = (72 + len(strings) + 3) & ~3
    flags = 2 if order == "<" else 3
    extension = 0 if sections is None else at
    head = struct.pack(order + "20sIIBxxxIxxxxxxxxxxxx", ldcache.NEW_MAGIC, count, len(strings), flags, extension)
    data = head + struct.pack(order + "iIIIQ", 0x303, key, value, 0, hwcap) + strings
    if sections is None:
        return data
    data = data.ljust(at, b"\0") + struct.pack(order + "II", magic, len(sections))
    content, start = b"", at + 8 + 16 * len(sections)
    for tag, flag, body in sections:
        data += struct.pack(order + "IIII", tag, flag, start + len(content), len(body))
        content += body
    return data + content


@pytest.mark.parametrize("order", ["<", ">"])
def test_both_byte_orders_are_read(order: str) -> None:
    cache = parse(make(order))
    assert [fields(e) for e in cache.entries] == [(0x303, b"lib", b"/lib", 0, 0, None)]
    assert (cache.order, cache.known, cache.unsafe_generator) == (order, True, b"")


@pytest.mark.parametrize("order", ["<", ">"])
def test_the_extension_is_read_in_both_byte_orders(order: str) -> None:
    names = struct.pack(order + "II", 82, 92)
    data = make(order, strings=b"lib\0/lib\0\0x86-64-v2\0x86-64-v3\0", hwcap=HWCAP_EXTENSION | 3 << 32 | 1,
                sections=[(0, 0, b"someone 1.0"), (1, 0, names)])  # fmt: skip
    cache = parse(data)
    assert [fields(e)[4:] for e in cache.entries] == [(HWCAP_EXTENSION | 3 << 32, b"x86-64-v3")]
    assert (cache.unsafe_generator, cache.known) == (b"someone 1.0", True)


LEGACY = {"platform": 1 << 48, "tls": 1 << 63, "bit 61": 1 << 61, "extension and another bit": 1 << 62 | 1 << 48}


@pytest.mark.parametrize("bits", LEGACY.values(), ids=LEGACY)
def test_bits_of_legacy_subdirectories_are_kept_as_they_are(bits: int) -> None:
    """dl-cache.h: an entry is an extension only if bit 62 stands alone above the ISA level."""
    assert [fields(e)[4:] for e in parse(make(hwcap=bits)).entries] == [(bits, None)]


UNKNOWN = {
    "other tag": [(7, 0, b"x")],
    "flags of a section": [(0, 1, b"x")],
    "the same twice": [(0, 0, b"x"), (0, 0, b"y")],
    "known ones, and another": [(0, 0, b"x"), (1, 0, b""), (2, 0, b"")],
}


@pytest.mark.parametrize("sections", UNKNOWN.values(), ids=UNKNOWN)
def test_an_extension_that_we_cannot_write_is_told(sections: list[tuple[int, int, bytes]]) -> None:
    cache = parse(make(sections=sections))
    assert not cache.known
    assert pairs(make(sections=sections)) == [(b"lib", b"/lib")]


def test_a_cache_without_entries_is_one() -> None:
    assert parse(make(count=0)).entries == []


MALFORMED = {
    "empty": b"",
    "magic only": ldcache.NEW_MAGIC,
    "other magic": b"x" * 100,
    "version 1.2": ldcache.NEW_MAGIC[:-1] + make()[20:],
    "count 2^31": make(count=1 << 31),
    "count 2": make(count=2),
    "key beyond the end": make(key=1 << 20),
    "value huge": make(value=0xFFFFFFFF),
    "string without end": make(strings=b"lib\0/lib"),
    "string too long": make(strings=b"lib\0" + b"x" * (ldcache.MAX_STRING + 1) + b"\0"),
    "old header cut": ldcache.OLD_MAGIC,
    "old header with huge count": ldcache.OLD_MAGIC + b"\0" + struct.pack("<I", 0xFFFFFFFF),
    "old format without new": ldcache.OLD_MAGIC + b"\0" * 200,
    "hwcaps name that is not there": make(hwcap=HWCAP_EXTENSION),
    "hwcaps index 2^32 - 1": make(hwcap=HWCAP_EXTENSION | 0xFFFFFFFF, sections=[(1, 0, bytes(4))]),
    "extension magic": make(sections=[], magic=1),
    "too many sections": make(sections=[(9, 0, b"")] * (ldcache.MAX_SECTIONS + 1)),
    "too many hwcaps names": make(sections=[(1, 0, struct.pack("<I", 72) * (ldcache.MAX_HWCAPS + 1))]),
    "hwcaps of 5 bytes": make(sections=[(1, 0, b"\x48\0\0\0\0")]),
    "hwcaps name beyond the end": make(sections=[(1, 0, b"\xff\xff\xff\x7f")]),
    "section beyond the end": make(sections=[(0, 0, b"x" * 64)])[:-1],
    "extension beyond the end": make(sections=[])[:-8],
    "extension not aligned": bytearray(make(sections=[(0, 0, b"x")])),
}
struct.pack_into("<I", MALFORMED["extension not aligned"], 32, 83)


@pytest.mark.parametrize("shape", MALFORMED)
def test_malformed_cache_is_one_error(shape: str) -> None:
    with pytest.raises(CacheError):
        parse(bytes(MALFORMED[shape]))


@needs_ldconfig
def test_every_truncation_and_random_damage_is_one_error_or_an_answer(tmp_path: Path) -> None:
    data = build(tmp_path, "compat").read_bytes()
    source = random.Random(3)
    samples = [data[:size] for size in range(len(data))]
    for _ in range(1000):
        damaged = bytearray(data)
        for _ in range(source.randint(1, 6)):
            damaged[source.randrange(len(data))] = source.randrange(256)
        samples.append(bytes(damaged))
    answers = 0
    for sample in samples:
        try:
            answers += bool(parse(sample).entries)
        except CacheError:
            continue
    assert answers > 0


def test_many_entries_with_one_long_string_are_quick() -> None:
    head = struct.pack("<20sIIBxxxIxxxxxxxxxxxx", ldcache.NEW_MAGIC, 50_000, 0, 2, 0)
    at = 48 + 24 * 50_000
    data = head + struct.pack("<iIIIQ", 1, at, at, 0, 0) * 50_000 + b"x" * (1 << 20)
    start = time.monotonic()
    with pytest.raises(CacheError):
        parse(data)
    assert time.monotonic() - start < 5


def test_the_text_of_all_entries_together_is_bounded() -> None:
    """Each of them may name the same 4 KiB: the file is small, what is read from it is not."""
    count = 20_000
    at = 48 + 24 * count
    head = struct.pack("<20sIIBxxxIxxxxxxxxxxxx", ldcache.NEW_MAGIC, count, 0, 2, 0)
    data = head + struct.pack("<iIIIQ", 1, at, at, 0, 0) * count + b"x" * ldcache.MAX_STRING + b"\0"
    with pytest.raises(CacheError, match="more text"):
        parse(data)


# -- writing ----------------------------------------------------------------------------------------------------

V3 = HWCAP_EXTENSION | 2 << 32
ENTRIES = [
    Entry(0x303, b"libb.so.2", b"/opt/libb.so.2"),
    Entry(0x303, b"liba.so.1", b"/opt/glibc-hwcaps/x86-64-v2/liba.so.1.5", 0, HWCAP_EXTENSION, b"x86-64-v2"),
    Entry(0x303, b"liba.so.1", b"/opt/glibc-hwcaps/x86-64-v3/liba.so.1.5", 0, V3, b"x86-64-v3"),
    Entry(0x303, b"liba.so.1", b"/opt/\xff\xfe/liba.so.1"),
    Entry(0x3, b"liba.so.1", b"/opt/other", 0x20600, 1 << 63),
]


def test_what_is_written_is_read_again() -> None:
    cache = parse(encode(ENTRIES, b"nvoci 1"))
    assert [fields(e) for e in cache.entries] == [fields(e) for e in ENTRIES]
    assert (cache.order, cache.known, cache.unsafe_generator) == (ldcache.NATIVE, True, b"nvoci 1")


@needs_ldconfig
def test_ldconfig_lists_what_is_written(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache.write_bytes(encode(ENTRIES, b"nvoci 1"))
    text = shown(cache)
    assert witness(cache) == [(e.unsafe_soname, e.unsafe_path) for e in ENTRIES]
    assert b'(libc6,x86-64, hwcap: "x86-64-v2") =>' in text
    assert b'(libc6,x86-64, hwcap: "x86-64-v3") =>' in text
    assert b"Cache generated by: nvoci 1\n" in text


@needs_ldconfig
@pytest.mark.parametrize("form", ["new", "compat"])
def test_a_cache_of_ldconfig_written_again_is_the_same_to_ldconfig(tmp_path: Path, form: str) -> None:
    path = build(tmp_path, form)
    old = shown(path)
    cache = parse(path.read_bytes())
    path.write_bytes(encode(cache.entries, cache.unsafe_generator))
    if form == "compat":  # ldconfig looks for glibc-hwcaps names of its own compat caches in the wrong place
        old = re.sub(rb'0x4\w+|(?<=hwcap: ")[^"]*', b"?", old)
        assert re.sub(rb'(?<=hwcap: ")[^"]*', b"?", shown(path)) == old
        assert [e.hwcaps_name for e in cache.entries[-3:]] == [b"x86-64-v2", b"x86-64-v3", None]
        return
    assert shown(path) == old


@needs_ldconfig
def test_a_cache_without_entries_is_written_and_ldconfig_reads_it(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache.write_bytes(encode([]))
    assert witness(cache) == parse(cache.read_bytes()).entries == []


LIMITS = {
    "entries": ("MAX_ENTRIES", [Entry(3, b"a", b"/a")] * 3),
    "strings": ("MAX_STRINGS", [Entry(3, b"a", b"/a")]),
    "hwcaps names": (
        "MAX_HWCAPS", [Entry(3, b"a", b"/a%d" % i, 0, HWCAP_EXTENSION, b"n%d" % i) for i in range(3)],
    ),
}  # fmt: skip


@pytest.mark.parametrize("limit", LIMITS)
def test_what_could_not_be_read_again_is_not_written(monkeypatch: pytest.MonkeyPatch, limit: str) -> None:
    name, entries = LIMITS[limit]
    assert encode(entries)
    monkeypatch.setattr(ldcache, name, 2)
    with pytest.raises(CacheError):
        encode(entries)


def test_a_string_that_could_not_be_read_again_is_not_written() -> None:
    with pytest.raises(CacheError):
        parse(encode([Entry(3, b"a", b"/" + b"x" * ldcache.MAX_STRING)]))


# -- other files behind the names -----------------------------------------------------------------------------------


@needs_ldconfig
def test_a_redirected_entry_leads_to_the_other_file_and_ldconfig_reads_it(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    subprocess.run(["/sbin/ldconfig", "-X", "-C", cache], check=True)
    old = parse(cache.read_bytes()).entries
    chosen = old[len(old) // 2]
    cache.write_bytes(redirected(cache.read_bytes(), {chosen.unsafe_path: b"/x/the-file-itself.so.9"}))
    new = parse(cache.read_bytes()).entries
    assert [e.unsafe_path for e in new] == [
        b"/x/the-file-itself.so.9" if e.unsafe_path == chosen.unsafe_path else e.unsafe_path for e in old
    ]
    assert b"=> /x/the-file-itself.so.9\n" in shown(cache)


@pytest.mark.parametrize("order", ["<", ">"])
def test_redirection_keeps_byte_order_and_extension(order: str) -> None:
    data = make(order, strings=b"lib\0/lib\0\0v2\0", hwcap=HWCAP_EXTENSION,
                sections=[(1, 0, struct.pack(order + "I", 82))])  # fmt: skip
    cache = parse(redirected(data, {b"/lib": b"/other", b"/not/there": b"/x"}))
    assert cache.order == order
    assert [fields(e) for e in cache.entries] == [(0x303, b"lib", b"/other", 0, HWCAP_EXTENSION, b"v2")]


def test_redirection_of_nothing_changes_nothing() -> None:
    data = encode(ENTRIES)
    assert redirected(data, {b"/no": b"/x"}) == data


def test_a_cache_that_ends_before_its_entries_is_not_redirected() -> None:
    with pytest.raises(CacheError, match="more entries than the file has room for"):
        redirected(encode(ENTRIES)[: 48 + 24], {b"/no": b"/x"})
