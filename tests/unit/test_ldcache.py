"""ld.so.cache and ld.so.conf as they are made, and as a stranger may make them. Second witness: ldconfig -p."""

from __future__ import annotations

import errno
import fnmatch
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

from nvoci import ldcache
from nvoci.ldcache import CacheError, conf_directories, parse
from nvoci.linux.pattern import match
from nvoci.linux.rootfs import Rootfs
from tests.kernel.namespaced import os_error

LDCONFIG = "/sbin/ldconfig"
needs_ldconfig = pytest.mark.skipif(not os.path.exists(LDCONFIG), reason="no ldconfig on this host")


def witness(cache: Path) -> list[tuple[bytes, bytes]]:
    text = subprocess.run([LDCONFIG, "-p", "-C", cache], check=True, capture_output=True, env={}).stdout
    return re.findall(rb"^\t(\S+) \(.*\) => (.*)$", text, re.MULTILINE)


def build(root: Path, form: str) -> Path:
    for name in ("liba.so.1", "libb.so.2", "libcuda.so.1"):
        elfmaker.make_so(root / "opt" / f"{name}.0", name)
    elfmaker.make_so(root / "opt/glibc-hwcaps/x86-64-v3/liba.so.1.0", "liba.so.1")
    tree(root, "file etc/ld.so.conf /opt\\n")
    cache = root / "etc/ld.so.cache"
    subprocess.run([LDCONFIG, "-r", root, "-c", form, "-C", "/etc/ld.so.cache"], check=True, capture_output=True)
    return cache


def pairs(data: bytes) -> list[tuple[bytes, bytes]]:
    return [(e.unsafe_soname, e.unsafe_path) for e in parse(data)]


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
def test_hwcaps_entries_have_bit_62(tmp_path: Path) -> None:
    entries = parse(build(tmp_path, "new").read_bytes())
    assert [e.hwcap >> 62 & 1 for e in entries if e.unsafe_soname == b"liba.so.1"] == [1, 0]


@needs_ldconfig
def test_the_old_format_alone_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CacheError):
        parse(build(tmp_path, "old").read_bytes())


def make(order: str = "<", count: int = 1, key: int = 72, value: int = 76, strings: bytes = b"lib\0/lib\0") -> bytes:
    """struct cache_file_new of dl-cache.h with one entry; strings begin at 72."""
    flags = 2 if order == "<" else 3
    head = struct.pack(order + "20sIIBxxxIxxxxxxxxxxxx", ldcache.NEW_MAGIC, count, len(strings), flags, 0)
    return head + struct.pack(order + "iIIIQ", 0x303, key, value, 0, 0) + strings


@pytest.mark.parametrize("order", ["<", ">"])
def test_both_byte_orders_are_read(order: str) -> None:
    (entry,) = parse(make(order))
    assert (entry.flags, entry.unsafe_soname, entry.unsafe_path) == (0x303, b"lib", b"/lib")


MALFORMED = {
    "empty": b"",
    "magic only": ldcache.NEW_MAGIC,
    "other magic": b"x" * 100,
    "count 2^31": make(count=1 << 31),
    "count 2": make(count=2),
    "key beyond the end": make(key=1 << 20),
    "value huge": make(value=0xFFFFFFFF),
    "string without end": make(strings=b"lib\0/lib"),
    "string too long": make(strings=b"lib\0" + b"x" * (ldcache.MAX_STRING + 1) + b"\0"),
    "old header cut": ldcache.OLD_MAGIC,
    "old header with huge count": ldcache.OLD_MAGIC + b"\0" + struct.pack("<I", 0xFFFFFFFF),
    "old format without new": ldcache.OLD_MAGIC + b"\0" * 200,
}


@pytest.mark.parametrize("shape", MALFORMED)
def test_malformed_cache_is_one_error(shape: str) -> None:
    with pytest.raises(CacheError):
        parse(MALFORMED[shape])


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
            answers += bool(parse(sample))
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


# -- ld.so.conf -------------------------------------------------------------------------------------------------


def read(root: Path, spec: str, **how: object) -> list[bytes]:
    tree(root, spec)
    return conf_directories(Rootfs.open(str(root)), **how)  # type: ignore[arg-type]


CONFS = {
    "plain": ("file etc/ld.so.conf /a\\n/b/\\n  /c  \\n", [b"/a", b"/b", b"/c"]),
    "comments": ("file etc/ld.so.conf # x\\n\\n/a # y\\n#/b\\n", [b"/a"]),
    "no newline": ("file etc/ld.so.conf /a", [b"/a"]),
    "crlf": ("file etc/ld.so.conf /a\\r\\n/b\\r\\n", [b"/a", b"/b"]),
    "byte order mark": ("file etc/ld.so.conf \\xef\\xbb\\xbf/a\\n/b\\n", [b"/b"]),
    "nul": ("file etc/ld.so.conf /a\\x00/x\\n/b\\n", [b"/b"]),
    "not utf-8": ("file etc/ld.so.conf /\\xff\\n", [b"/\xff"]),
    "flavour": ("file etc/ld.so.conf /a=libc6\\n", [b"/a"]),
    "hwcap": ("file etc/ld.so.conf hwcap 1 x\\n/a\\n", [b"/a"]),
    "relative directory": ("file etc/ld.so.conf a/b\\n/c\\n", [b"/c"]),
    "include without argument": ("file etc/ld.so.conf include\\ninclude \\n/a\\n", [b"/a"]),
    "twice": ("file etc/ld.so.conf /a\\n/b\\n/a\\n", [b"/a", b"/b"]),
    "include": (
        """
        file etc/ld.so.conf /a\\ninclude /etc/c/*.conf\\n/z\\n
        file etc/c/2.conf /2\\n
        file etc/c/1.conf /1\\n
        file etc/c/x /no\\n
        file etc/c/.h.conf /no\\n
        """,
        [b"/a", b"/1", b"/2", b"/z"],
    ),
    "relative include": ("file etc/ld.so.conf include c/*\\n\nfile etc/c/x /1\\n\nfile c/x /no\\n", [b"/1"]),
    "two patterns": ("file etc/ld.so.conf include /etc/a /etc/b\\n\nfile etc/a /1\nfile etc/b /2", [b"/1", b"/2"]),
    "self include": ("file etc/ld.so.conf include /etc/ld.so.conf\\n/a\\n", [b"/a"]),
    "link in the root": ("symlink etc/ld.so.conf /usr/x\nfile usr/x /a\\n", [b"/a"]),
    "link out of the root": ("symlink etc/ld.so.conf ../../../../etc/ld.so.conf\ndir etc", []),
    "dangling include": ("file etc/ld.so.conf include /etc/none /etc/c/*\\n/a\\n\nsymlink etc/c/x /none", [b"/a"]),
    "included directory": ("file etc/ld.so.conf include /etc/c/*\\n/a\\n\ndir etc/c/x.conf", [b"/a"]),
    "pattern for directories": ("file etc/ld.so.conf include /e*/?/x\\n\nfile etc/c/x /1\nfile etc/dd/x /2", [b"/1"]),
    "none": ("dir etc", []),
}


@pytest.mark.parametrize("shape", CONFS)
def test_directories_are_found_in_order(tmp_path: Path, shape: str) -> None:
    spec, wanted = CONFS[shape]
    assert read(tmp_path, spec) == wanted


@needs_ldconfig
@pytest.mark.parametrize("shape", ["plain", "comments", "include", "relative include", "two patterns"])
def test_ldconfig_finds_the_same(tmp_path: Path, shape: str) -> None:
    spec, wanted = CONFS[shape]
    tree(tmp_path, spec)
    for directory in wanted:
        (tmp_path / directory.decode().lstrip("/")).mkdir(exist_ok=True)
    run = [LDCONFIG, "-r", tmp_path, "-v", "-N", "-X"]
    text = subprocess.run(run, check=True, capture_output=True, env={}).stdout
    found = re.findall(rb"^(/.*): \(from /etc", text, re.MULTILINE)
    assert found == wanted


def test_a_mutual_include_of_many_files_ends_at_once(tmp_path: Path) -> None:
    files = "".join(f"file etc/c/{i} include /etc/c/*\\n/d{i}\\n\n" for i in range(8))
    start = time.monotonic()
    assert sorted(read(tmp_path, files + "file etc/ld.so.conf include /etc/c/*\\n")) == [b"/d%d" % i for i in range(8)]
    assert time.monotonic() - start < 2


REFUSED = {
    "fifo": ("fifo etc/ld.so.conf", errno.EINVAL, b"/etc/ld.so.conf"),
    "socket": ("socket etc/ld.so.conf", errno.EINVAL, b"/etc/ld.so.conf"),
    "zero": ("char etc/ld.so.conf 1 5", errno.EINVAL, b"/etc/ld.so.conf"),
    "directory": ("dir etc/ld.so.conf", errno.EISDIR, b"/etc/ld.so.conf"),
    "1 TiB": ("sparse etc/ld.so.conf 1T", errno.EFBIG, b"/etc/ld.so.conf"),
    "included fifo": ("file etc/ld.so.conf include /etc/c/*\\n\nfifo etc/c/x.conf", errno.EINVAL, b"/etc/c/x.conf"),
    "link to a device": ("char dev/zero 1 5\nsymlink etc/ld.so.conf /dev/zero", errno.EINVAL, b"/etc/ld.so.conf"),
    "deep": (
        "".join(f"file etc/{i} include /etc/{i + 1}\n" for i in range(200)) + "file etc/ld.so.conf include /etc/0",
        errno.E2BIG,
        b"/etc/64",
    ),
    "glob bomb": (
        "".join(f"dir {a}/{b}/{c}\n" for a in "abcdefgh" for b in "abcdefgh" for c in "abcdefgh")
        + "file etc/ld.so.conf include /*/*/*/*/*/*\\n",
        errno.E2BIG,
        None,
    ),
}


@pytest.mark.parametrize("shape", REFUSED)
def test_what_cannot_be_read_is_named(tmp_path: Path, shape: str) -> None:
    spec, number, name = REFUSED[shape]
    start = time.monotonic()
    with os_error() as e:
        read(tmp_path, spec)
    assert e.value.errno == number
    assert name is None or e.value.filename == name
    assert time.monotonic() - start < 2


def test_own_drop_ins_can_be_passed_over(tmp_path: Path) -> None:
    spec = "file etc/ld.so.conf include /etc/c/*\\n\nfile etc/c/a /a\\n\nfile etc/c/b /b\\n"
    assert read(tmp_path, spec, skip=(b"a",)) == [b"/b"]


PATTERNS = ["*", "a*", "*a", "a*b*c", "?", "[abc]", "[!abc]", "[a-c]x", "[]]", "[!]]", "[", "a[", "*.conf", "\\*", "**"]
NAMES = ["", "a", "b", "abc", "aXbYc", "x", "ax", "bx", "]", "[", "a[", "a.conf", "*", "-", "ab.conf.x", "dd"]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_patterns_match_as_the_shells_do(pattern: str) -> None:
    if pattern == "\\*":
        assert [n for n in NAMES if match(pattern.encode(), n.encode())] == ["*"]
        return
    wanted = [n for n in NAMES if fnmatch.fnmatchcase(n, pattern)]
    assert [n for n in NAMES if match(pattern.encode(), n.encode())] == wanted


def test_hidden_names_are_matched_by_a_dot_only() -> None:
    assert not match(b"*", b".a")
    assert not match(b"?a", b".a")
    assert match(b".*", b".a")


def test_a_pattern_with_many_stars_is_quick() -> None:
    start = time.monotonic()
    assert not match(b"*a" * 120 + b"b", b"a" * 255)
    assert time.monotonic() - start < 1


def test_a_redirected_entry_leads_to_the_other_file_and_ldconfig_reads_it(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    subprocess.run(["/sbin/ldconfig", "-X", "-C", cache], check=True)
    old = ldcache.parse(cache.read_bytes())
    chosen = old[len(old) // 2]
    cache.write_bytes(ldcache.redirected(cache.read_bytes(), {chosen.unsafe_path: b"/x/the-file-itself.so.9"}))
    new = ldcache.parse(cache.read_bytes())
    assert [e.unsafe_path for e in new] == [
        b"/x/the-file-itself.so.9" if e.unsafe_path == chosen.unsafe_path else e.unsafe_path for e in old
    ]
    shown = subprocess.run(["/sbin/ldconfig", "-p", "-C", cache], capture_output=True, check=True).stdout
    assert b"=> /x/the-file-itself.so.9\n" in shown
