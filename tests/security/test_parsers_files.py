"""Rows F3, F4 and F7 to F10: what the image's text files and caches may hold. The parsers themselves are fuzzed; here
the whole hook reads the files, under the oracle."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from lib import elfmaker, rootfs, session
from lib.hookproc import FakeContainer
from security.arena import ENGINES, GPU_NODE, LDCACHE, LIBDIR, Arena, attempt, settled
from security.test_faults import ALL
from security.test_parsers import PLANNED

MIB = 1 << 20
CONF = "etc/ld.so.conf"
LIMIT = 3.0


def stage_of(profile: str) -> str:
    """Each stage with one of the two kernels."""
    return "outside" if profile == "new" else "inside"


def found_library(arena: Arena) -> bool:
    return b"libfoo.so.1\0" in (arena.root / "etc/ld.so.cache").read_bytes()


# -- F3, F4 ----------------------------------------------------------------------------------------------------------


def deep(root: Path) -> None:
    (root / "etc/c").mkdir()
    for n in range(500):  # 10,000 of them: tests/fuzz/test_conf_cases.py
        (root / f"etc/c/{n}").write_text(f"include /etc/c/{n + 1}\n")
    (root / CONF).write_text("include /etc/c/0\n")


def globs(root: Path) -> None:
    """Six levels of ten directories would be a million paths."""
    rootfs.tree(root, "\n".join(f"dir {a}/{b}/{c}" for a in "abcdefgh" for b in "abcdefgh" for c in "abcdefgh"))
    (root / CONF).write_text("include /*/*/*/*/*/*\n" * 50)


def classes(root: Path) -> None:
    rootfs.tree(root, "\n".join(f"file w/{'a' * 200}{n}" for n in range(100)))
    (root / CONF).write_bytes(b"include /w/*" + b"[a-z]" * 300 + b"[0-9]\ninclude /w/" + b"[" * 4000 + b"\n")


def odd(root: Path) -> None:
    """Each of these lines means nothing, or a directory that is not there."""
    lines = (b"\xef\xbb\xbf/bom", b"/crlf\r", b"/nul\0/x", b"hwcap 1 nosegneg", b"hwcap", b"include", b"include ",
             b"\xff\xfe\x80", b"/\xff", b"=", b"/=libc5", b"#", b" \t /blank \t", b"include \0", b"/" + b"x" * 5000,
             b"relative/path", b"../../up", b"/../../up")  # fmt: skip
    (root / CONF).write_bytes(b"\n".join(lines * 20) + b"\ninclude /etc/ld.so.conf.d/*.conf")


CONFS = {
    "F3-include-depth": (deep, False),
    "F3-glob-bomb": (globs, False),
    "F3-class-bomb": (classes, False),
    "F4-odd-lines": (odd, True),
    "F4-line-of-10-MiB": (lambda root: (root / CONF).write_bytes(b"/" + b"a" * 10 * MIB), False),
    "F4-comment-of-1-MiB": (lambda root: (root / CONF).write_bytes(b"#" * (MIB - 1)), True),
    "F4-NULs": (lambda root: (root / CONF).write_bytes(bytes(MIB // 2)), True),
}


@pytest.mark.parametrize("shape", CONFS)
def test_f3_f4_an_odd_ld_so_conf_is_passed_over_or_one_error(
    arena: Arena, profile: str, engine: str, shape: str
) -> None:
    make, ok = CONFS[shape]
    make(arena.root)
    planned, parts = (PLANNED, []) if ok else ([], ["ld.so.conf"])
    found = attempt(arena, LDCACHE[engine], stage_of(profile), ok=ok, planned=planned, parts=parts, max_wall=LIMIT,
                    max_rss=96 << 10)  # fmt: skip
    assert settled(arena, found) == []
    assert found_library(arena) == ok


# -- F7 --------------------------------------------------------------------------------------------------------------


def good_cache(arena: Arena) -> bytes:
    """As a first start leaves it."""
    elfmaker.make_so(arena.root / "usr/lib/libbar.so.1", "libbar.so.1", machine="x86_64")
    assert attempt(arena, LDCACHE["builtin"], "inside", ok=True, planned=PLANNED) == []
    return (arena.root / "etc/ld.so.cache").read_bytes()


def put(data: bytes, at: int, value: int) -> bytes:
    return data[:at] + struct.pack("<I", value) + data[at + 4 :]


def damaged(data: bytes) -> dict[str, bytes]:
    """struct cache_file_new of glibc's dl-cache.h: magic 20 bytes, then u32 nlibs, len_strings; entries from 48 on."""
    big = bytearray(data)
    big[28] = 3  # cache_file_new_flags_endian_big
    return {
        "count-2^31": put(data, 20, 1 << 31),
        "count-too-large": put(data, 20, 0xFFFF),
        "strings-too-long": put(data, 24, 0xFFFFFFFF),
        "string-beyond-the-end": put(data, 48 + 4, 0xFFFFFFF0),
        "extension-is-itself": put(data, 32, 32),
        "extension-beyond-the-end": put(data, 32, 0xFFFFFF00),
        "old-format-only": b"ld.so-1.7.0\0" + struct.pack("<I", 0),
        "old-format-of-2^31": b"ld.so-1.7.0\0" + struct.pack("<I", 1 << 31),
        "big-endian": bytes(big),
        "empty": b"",
        "noise": bytes(n * 7 & 0xFF for n in range(8192)),
    }


def test_f7_a_damaged_cache_is_made_anew(arena: Arena) -> None:
    """The same bytes come of it as of no cache at all."""
    good = good_cache(arena)
    path = arena.root / "etc/ld.so.cache"
    bad = []
    for name, data in damaged(good).items():
        path.write_bytes(data)
        bad += [f"{name}: {v}" for v in attempt(arena, LDCACHE["builtin"], "inside", ok=True,
                                                planned=["etc/ld.so.cache"], max_wall=LIMIT)]  # fmt: skip
        if path.read_bytes() != good:
            bad.append(f"{name}: another cache than before")
    assert bad == []


def test_f7_a_cache_cut_anywhere_is_made_anew(arena: Arena, long: bool) -> None:
    """`--long`: at each byte; the parser alone is asked for each byte by test_cache.py."""
    good = good_cache(arena)
    path = arena.root / "etc/ld.so.cache"
    bad = []
    for size in range(0, len(good), 1 if long else len(good) // 8):
        path.write_bytes(good[:size])
        bad += attempt(arena, LDCACHE["builtin"], "inside", ok=True, planned=["etc/ld.so.cache"])
        if path.read_bytes() != good:
            bad.append(f"cut at {size}: another cache than before")
    assert bad == []


# -- F8 --------------------------------------------------------------------------------------------------------------

AUX = "var/cache/ldconfig/aux-cache"


@pytest.mark.parametrize("spec", ["fifo {}", "file {} glibc-ld.so.auxcache-1.0\\xff\\xff\\xff\\x7f", "dir {}",
                                  "sparse {} 1T", "symlink {} /dev/zero"])  # fmt: skip
def test_f8_the_auxiliary_cache_is_neither_read_nor_made(arena: Arena, spec: str) -> None:
    rootfs.tree(arena.root, spec.format(AUX))
    for engine in ENGINES:
        assert attempt(arena, LDCACHE[engine], "inside", ok=True, planned=PLANNED, max_wall=LIMIT) == []


# -- F9 --------------------------------------------------------------------------------------------------------------

RELEASES = {
    "shell": "ID=`touch /canary`\\nVERSION_ID=$(touch /canary)\\n",
    "1-MiB": "ID=" + "x" * MIB,
    "duplicates": "ID=debian\\nID=alpine\\nID=\\n" * 1000,
    "NUL": "ID=\\0\\xff\\n",
}


@pytest.mark.parametrize("text", RELEASES)
def test_f9_what_the_image_says_it_is_is_data_only(arena: Arena, text: str) -> None:
    for name in ("etc/os-release", "etc/debian_version", "etc/alpine-release", "usr/lib/os-release"):
        rootfs.tree(arena.root, f"file {name} {RELEASES[text]}")
    planned = [*PLANNED, "etc/ld-musl-*.path", f"{LIBDIR}/libcuda.so", "usr/local/cuda/compat/libcuda.so.1",
               "etc/nvidia/**"]  # fmt: skip
    assert attempt(arena, ALL["builtin"], "inside", ok=True, planned=planned, lines=0, max_wall=LIMIT,
                   container={"setup": GPU_NODE}) == []  # fmt: skip
    assert found_library(arena)


# -- F10 -------------------------------------------------------------------------------------------------------------

PARAMS = {
    "usual": ("ModifyDeviceFiles: 1\\nDeviceFileMode: 438\\n", True),
    "no-newline": ("ModifyDeviceFiles: 1", True),
    "twice": ("ModifyDeviceFiles: 1\\nModifyDeviceFiles: 1\\n", True),
    "empty": ("", True),
    "NUL": ("ModifyDeviceFiles: 1\\n\\0\\xff\\n", True),
    "1-MiB": ("x" * MIB, None),
}


@pytest.mark.parametrize("text", PARAMS)
def test_f10_the_drivers_parameters_may_be_anything(arena: Arena, text: str) -> None:
    folder = session.new_dir("driver")
    content, ok = PARAMS[text]
    rootfs.tree(folder, f"file nvidia/params {content}")
    setup = 'mount -t tmpfs driver "$R/proc/driver"\n' + f'cp -a {folder}/. "$R/proc/driver/"\n'
    assert attempt(arena, ["disable-device-node-modification"], "inside", ok=ok, params=folder, max_wall=LIMIT,
                   container={"setup": setup}) == []  # fmt: skip


ODD_NAMES = ("a b", "tab\there", "back\\slash", "new\nline", "\\040", "//deleted", "a - tmpfs x rw", "\udcff")


def test_f10_mounts_of_names_that_mountinfo_escapes(arena: Arena, profile: str) -> None:
    """Libraries mounted below such names count as mounted; the table is read with its escapes undone."""
    lines = []
    for n, name in enumerate(ODD_NAMES):
        folder = arena.root / "opt/odd" / name.replace("//", "")
        folder.mkdir(parents=True, exist_ok=True)
        library = elfmaker.make_so(folder / f"libodd{n}.so.1.0", f"libodd{n}.so.1", machine="x86_64")
        lines.append(f"mount --bind \"$(printf '%b' '{octal(library)}')\" \"$(printf '%b' '{octal(library)}')\"")
    (arena.root / CONF).write_text("/opt/odd/a b\n/opt/odd/\\040\ninclude /etc/ld.so.conf.d/*.conf\n")
    setup = "\n".join(lines) + "\n"
    planned = [*PLANNED, "opt/odd/*/libodd*"]
    found = attempt(arena, LDCACHE["builtin"], stage_of(profile), ok=True, planned=planned, container={"setup": setup})
    assert found == []
    with FakeContainer(arena.root, setup=setup) as c:
        assert len([line for line in c.mountinfo() if "libodd" in line]) == len(ODD_NAMES)
    cache = (arena.root / "etc/ld.so.cache").read_bytes()
    assert b"/opt/odd/a b/libodd0.so.1\0" in cache
    assert b"/opt/odd/\\040/libodd4.so.1\0" in cache


def octal(path: Path) -> str:
    """For printf %b."""
    return "".join(f"\\0{byte:03o}" for byte in bytes(path))
