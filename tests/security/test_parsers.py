"""Rows F2, F5 and F6: files of the image that lead a parser in circles, out of bounds, or out of a directory."""

from __future__ import annotations

import platform
import struct
from collections.abc import Callable

import pytest
from lib import elfmaker, rootfs
from security.arena import COMPAT, LDCACHE, LIBDIR, Arena, attempt, escapes

MACHINE = platform.machine()
COMPAT_ARGS = ["enable-cuda-compat", "--host-driver-version", "550.54.15"]
PLANNED = [
    "etc/ld.so.cache", "etc/ld.so.conf.d/zz-nvcr-*", "etc/ld.so.conf.d/00-*-nvoci.conf", f"{LIBDIR}/libfoo.so.1",
]  # fmt: skip

# -- F2 -------------------------------------------------------------------------------------------------------------

CIRCLES = {
    "self": "file etc/ld.so.conf include /etc/ld.so.conf\\n",
    "two": "file etc/ld.so.conf include /etc/c/b\\n\nfile etc/c/b include /etc/ld.so.conf\\n",
    "glob": "file etc/ld.so.conf include /etc/c/*\\n\n"
    + "\n".join(f"file etc/c/{n} include /etc/c/*\\n" for n in range(8)),
    "deep": "file etc/ld.so.conf include /etc/c/0\\n\n"
    + "\n".join(f"file etc/c/{n} include /etc/c/{n + 1}\\n" for n in range(2000)),
}


@pytest.mark.parametrize("stage", ["outside", "inside"])
@pytest.mark.parametrize("shape", CIRCLES)
def test_f2_includes_in_a_circle_end(arena: Arena, profile: str, engine: str, shape: str, stage: str) -> None:
    rootfs.tree(arena.root, CIRCLES[shape])
    ok = None if shape == "deep" else True  # more files than are read: refused by name
    assert attempt(arena, LDCACHE[engine], stage, ok=ok, planned=PLANNED, max_wall=3.0) == []


def test_naive_f2_includes_in_a_circle_do_not_end(arena: Arena) -> None:
    rootfs.tree(arena.root, CIRCLES["glob"])
    assert any("deadline" in v for v in attempt(arena, LDCACHE["builtin"], naive=True, planned=PLANNED))


# -- F5 -------------------------------------------------------------------------------------------------------------


def put(offset: int, fmt: str, value: int) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        out = bytearray(data)
        struct.pack_into("<" + fmt, out, offset, value)
        return bytes(out)

    return change


def dynamic(tag: int, value: int) -> Callable[[bytes], bytes]:
    """Set the value of a tag in .dynamic."""

    def change(data: bytes) -> bytes:
        at = data.index(struct.pack("<QQ", 14, 0)[:8] + data_value(data, 14))
        while struct.unpack_from("<Q", data, at)[0] != tag:
            at += 16
        return put(at + 8, "Q", value)(data)

    return change


def data_value(data: bytes, tag: int) -> bytes:
    """The eight bytes of a tag's value, found through the program headers."""
    offset, count = struct.unpack_from("<Q", data, 32)[0], struct.unpack_from("<H", data, 56)[0]
    for i in range(count):
        kind, _, start, _, _, size = struct.unpack_from("<IIQQQQ", data, offset + 56 * i)
        if kind == elfmaker.PT_DYNAMIC:
            return struct.pack("<Q", dict(struct.iter_unpack("<QQ", data[start : start + size]))[tag])
    raise AssertionError("no .dynamic")


MALFORMED: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "1-byte": lambda data: data[:1],
    "63-bytes": lambda data: data[:63],
    "magic": put(0, "B", 0),
    "class": put(4, "B", 9),
    "endian": put(5, "B", 2),
    "phoff": put(32, "Q", 1 << 62),
    "phnum": put(56, "H", 0xFFFF),
    "phentsize": put(54, "H", 1),
    "shoff": put(40, "Q", 1 << 63),
    "shnum": put(60, "H", 0),
    "dynamic": lambda data: data[: len(data) // 2],
    "strtab": dynamic(elfmaker.DT_STRTAB, 1 << 60),
    "strsz": dynamic(elfmaker.DT_STRSZ, 1 << 60),
    "soname-offset": dynamic(elfmaker.DT_SONAME, 1 << 50),
    "noise": lambda data: bytes(i * 7 & 0xFF for i in range(4096)),
}


def malformed(arena: Arena, kind: str) -> None:
    """As a library of the image and as its compat library."""
    library = elfmaker.make_so(arena.root / LIBDIR / "libbar.so.1.0", "libbar.so.1", machine=MACHINE)
    library.write_bytes(MALFORMED[kind](library.read_bytes()))
    other = arena.root / COMPAT / "libcuda.so.600.1.2"
    other.write_bytes(MALFORMED[kind](other.read_bytes()))


@pytest.mark.parametrize("kind", MALFORMED)
def test_f5_a_malformed_library_is_no_obstacle(arena: Arena, profile: str, engine: str, kind: str) -> None:
    malformed(arena, kind)
    stage = "outside" if profile == "new" else "inside"
    words = ["run", "--", *COMPAT_ARGS, "--", *LDCACHE[engine]]
    planned = [*PLANNED, f"{LIBDIR}/libbar.so.1", f"{COMPAT}/libcuda.so.1"]
    assert attempt(arena, words, stage, ok=True, planned=planned, lines=3, max_wall=3.0) == []
    text = (arena.root / "etc/ld.so.cache").read_bytes()
    assert b"libfoo.so.1\0" in text, "the good library is missing"


NAIVE_FALLS = [k for k in MALFORMED if k not in ("magic", "class", "endian", "shoff", "shnum", "strsz")]


@pytest.mark.parametrize("kind", NAIVE_FALLS)
def test_naive_f5_a_malformed_library_ends_the_hook(arena: Arena, kind: str) -> None:
    malformed(arena, kind)
    assert attempt(arena, LDCACHE["builtin"], naive=True, ok=True, planned=[*PLANNED, f"{LIBDIR}/libbar.so.1"])


# -- F6 -------------------------------------------------------------------------------------------------------------

SONAMES = {
    "up": "../../../etc/x",
    "up-to-the-host": "../" * 25 + "{canary}/x",
    "absolute": "{canary}/x",
    "empty": "",
    "dot": ".",
    "dots": "..",
    "slash": "a/b",
    "newline": "x\n\tlibevil.so.1 -> libfoo.so.1.0",
    "arrow": "libevil.so.1 -> libfoo.so.1.0",
    "long": "a" * 300,
}


def named(arena: Arena, kind: str) -> None:
    soname = SONAMES[kind].format(canary=arena.canary).replace("/" * 2, "/")
    elfmaker.make_so(arena.root / LIBDIR / "libbar.so.1.0", soname, machine=MACHINE)


@pytest.mark.parametrize("kind", SONAMES)
def test_f6_a_soname_that_is_a_path_makes_no_link(arena: Arena, profile: str, engine: str, kind: str) -> None:
    """`arrow` is a file name: it is no more than odd, except in what ldconfig prints."""
    named(arena, kind)
    stage = "outside" if profile == "new" else "inside"
    planned = [*PLANNED, f"{LIBDIR}/{SONAMES[kind]}"] if (kind, engine) == ("arrow", "builtin") else PLANNED
    assert attempt(arena, LDCACHE[engine], stage, ok=True, planned=planned, lines=None, max_wall=3.0) == []


@pytest.mark.parametrize("kind", ["up", "up-to-the-host", "absolute", "slash"])
def test_naive_f6_a_soname_that_is_a_path_makes_a_link(arena: Arena, kind: str) -> None:
    named(arena, kind)
    found = attempt(arena, LDCACHE["builtin"], naive=True, planned=PLANNED, lines=None)
    assert found
    assert escapes(found) or kind in ("up", "slash")
