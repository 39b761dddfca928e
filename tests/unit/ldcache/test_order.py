"""The order of ld.so.cache. Witnesses: glibc's comparison as a model, ldconfig's sorting, ld.so's search by halves."""

from __future__ import annotations

import functools
import os
import random
import re
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from lib import elfmaker
from lib.rootfs import MACHINE, glibc_rootfs, tree

from nvoci.ldcache.cache import HWCAP_EXTENSION, Entry, encode, parse
from nvoci.ldcache.order import Order, libcmp_key

LDCONFIG = "/sbin/ldconfig"
needs_ldconfig = pytest.mark.skipif(not os.path.exists(LDCONFIG), reason="no ldconfig on this host")
CHAR_IS_SIGNED = MACHINE == "x86_64"


# -- the model: elf/dl-cache.c, _dl_cache_libcmp() --------------------------------------------------------------------


def libcmp(first: bytes, second: bytes) -> int:
    """As the C source reads, one step after the other; NUL ends a string, `int` wraps."""
    p1, p2 = Text(first), Text(second)
    while p1.char() != 0:
        if p1.is_digit():
            if not p2.is_digit():
                return 1
            value1, value2 = p1.number(), p2.number()
            if value1 != value2:
                return value1 - value2
        elif p2.is_digit():
            return -1
        elif p1.char() != p2.char():
            return p1.char() - p2.char()
        else:
            p1.at += 1
            p2.at += 1
    return p1.char() - p2.char()


class Text:
    def __init__(self, data: bytes) -> None:
        self.data = data + b"\0"
        self.at = 0

    def char(self) -> int:
        return struct.unpack_from("b" if CHAR_IS_SIGNED else "B", self.data, self.at)[0]

    def is_digit(self) -> bool:
        return ord("0") <= self.char() <= ord("9")

    def number(self) -> int:
        value = 0
        while self.is_digit():
            value = (value * 10 + self.char() - ord("0") + (1 << 31)) % (1 << 32) - (1 << 31)
            self.at += 1
        return value


def sign(value: int) -> int:
    return (value > 0) - (value < 0)


ANY = bytes(range(33, 256)).replace(b"/", b"")


def random_name(source: random.Random, longest: int = 14) -> bytes:
    alphabet = source.choice([b"ab", b"01", b"a1.", b"a0-9._", b"lib.so0123456789", ANY])
    return bytes(source.choices(alphabet, k=source.randint(1, longest)))


EDGES = [
    b"a", b"ab", b"a0", b"a00", b"a01", b"a1", b"a9", b"a10", b"a010", b"a1a", b"a1b", b"a1.1", b"a-1", b"a.1",
    b"a\xff", b"a\x80", b"a\x7f", b"a!", b"", b"0", b"9", b"10", b"2147483647", b"a2147483648", b"a4294967295",
    b"a4294967296", b"a4294967297", b"lib", b"lib.so", b"lib.so.1", b"lib.so.10", b"lib.so.2",
    b"lib2.so", b"lib10.so", b"libA.so",
]  # fmt: skip


def test_the_key_orders_as_the_comparison_does() -> None:
    source = random.Random(11)
    names = EDGES + [random_name(source) for _ in range(1500)]
    pairs = [(a, b) for a in EDGES for b in EDGES]
    pairs += [(source.choice(names), source.choice(names)) for _ in range(40_000)]
    for a, b in pairs:
        wanted = libcmp(a, b)
        if abs(wanted) >= 1 << 31:  # the difference overflows: C says nothing then
            continue
        key_a, key_b = libcmp_key(a), libcmp_key(b)
        assert (key_a > key_b) - (key_a < key_b) == sign(wanted), (a, b)


def test_names_that_differ_in_leading_zeros_only_are_equal() -> None:
    assert libcmp(b"lib01.so", b"lib1.so") == 0
    assert libcmp_key(b"lib01.so") == libcmp_key(b"lib1.so")


@functools.cache
def sonames(count: int, seed: int = 5) -> list[bytes]:
    """Random ones, of which no two are equal to the comparison; each can be a file name. No number is so large that a
    difference would overflow: with these, C's comparison is no order at all."""
    source = random.Random(seed)
    found: dict[tuple[int, ...], bytes] = {}
    while len(found) < count:
        name = b"lib" + random_name(source) if source.random() < 0.7 else random_name(source)
        if name not in (b".", b"..") and b"\x7f" not in name and not re.search(rb"\d{10}", name):
            found.setdefault(libcmp_key(name), name)
    return list(found.values())


def make_libraries(folder: Path, names: Sequence[bytes], machine: str = "x86_64") -> None:
    """Files whose own names say nothing, with these sonames."""
    data = elfmaker.make_so(folder / "x", "@" * 40, machine=machine).read_bytes()
    (folder / "x").unlink()
    for i, name in enumerate(names):
        (folder / f"libfile{i}.so").write_bytes(data.replace(b"@" * 40, name + bytes(40 - len(name))))


def by_order(entries: Sequence[Entry], folders: Sequence[bytes]) -> list[Entry]:
    """Shuffled, and sorted again."""
    shuffled = list(entries)
    random.Random(1).shuffle(shuffled)
    ranks = {folder: rank for rank, folder in enumerate(folders)}
    return Order(lambda e: ranks[e.unsafe_path.rpartition(b"/")[0]]).merge([], shuffled)


@needs_ldconfig
def test_ldconfig_sorts_thousands_of_names_alike(tmp_path: Path) -> None:
    make_libraries(tmp_path / "opt", sonames(4000))
    tree(tmp_path, "file etc/ld.so.conf /opt\\n")
    subprocess.run([LDCONFIG, "-r", tmp_path, "-C", "/etc/ld.so.cache"], check=True, capture_output=True, env={})
    entries = parse((tmp_path / "etc/ld.so.cache").read_bytes()).entries
    assert {e.unsafe_soname for e in entries} == set(sonames(4000))
    assert by_order(entries, [b"/opt"]) == entries


@needs_ldconfig
def test_ldconfig_sorts_classes_subdirectories_and_directories_alike(tmp_path: Path) -> None:
    """The same few sonames everywhere: 64 and 32 bits, below glibc-hwcaps, in several directories."""
    names = sonames(12)
    conf = ["/z", "/m/lib", "/a"]
    for folder in conf:
        for below, machine in (("", "x86_64"), ("/i", "i386"), ("/glibc-hwcaps/x86-64-v2", "x86_64"),
                               ("/glibc-hwcaps/x86-64-v3", "x86_64"), ("/glibc-hwcaps/other", "x86_64")):  # fmt: skip
            make_libraries(Path(f"{tmp_path}{folder}{below}"), names, machine)
    every = [f for folder in conf for f in (folder, f"{folder}/i")]
    tree(tmp_path, "file etc/ld.so.conf " + "".join(f"{f}\\n" for f in every))
    subprocess.run([LDCONFIG, "-r", tmp_path, "-C", "/etc/ld.so.cache"], check=True, capture_output=True, env={})
    entries = parse((tmp_path / "etc/ld.so.cache").read_bytes()).entries
    assert len(entries) == 12 * 3 * 5
    folders = [f"{f}{below}".encode() for f in every
               for below in ("", *(f"/glibc-hwcaps/{n}" for n in ("other", "x86-64-v2", "x86-64-v3")))]  # fmt: skip
    assert by_order(entries, folders) == entries


# -- ld.so --------------------------------------------------------------------------------------------------------

DLOPEN = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <link.h>
#include <stdio.h>
#include <string.h>
int main(void) {
    char name[300];
    while (fgets(name, sizeof name, stdin)) {
        name[strcspn(name, "\\n")] = 0;
        struct link_map *map = 0;
        void *found = dlopen(name, RTLD_NOW);
        if (found) dlinfo(found, RTLD_DI_LINKMAP, &map);
        printf("%s\\n", map ? map->l_name : dlerror());
        if (found) dlclose(found);
    }
}
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("gcc") is None:
        pytest.skip("no gcc to build a program that opens libraries")
    if os.geteuid() != 0:
        pytest.skip("chroot needs root")
    out = tmp_path_factory.mktemp("dlopen") / "dlopen"
    subprocess.run(["gcc", "-x", "c", "-o", out, "-", "-ldl"], input=DLOPEN.encode(), check=True)
    return out


def opened(root: Path, program: Path, names: Sequence[bytes]) -> list[bytes]:
    """What a program of this root gets for each name."""
    shutil.copy2(program, root / "dlopen")
    run = ["/usr/sbin/chroot", root, "/dlopen"]
    done = subprocess.run(run, input=b"\n".join(names) + b"\n", capture_output=True, check=True, env={})
    return done.stdout.splitlines()


@needs_ldconfig
def test_ld_so_finds_every_name_by_halves(tmp_path: Path, program: Path) -> None:
    """The cache is written from scratch, in our order; the directory is in nobody's search path."""
    root = glibc_rootfs(tmp_path / "root")
    names = sonames(2500)
    make_libraries(root / "opt", names)
    new = [Entry(0x303, name, b"/opt/libfile%d.so" % i) for i, name in enumerate(names)]
    kept = parse((root / "etc/ld.so.cache").read_bytes()).entries
    merged = Order(lambda e: 0).merge(kept, new)
    (root / "etc/ld.so.cache").write_bytes(encode(merged))
    assert opened(root, program, names) == [e.unsafe_path for e in new]


@needs_ldconfig
def test_ld_so_does_not_find_names_in_a_wrong_order(tmp_path: Path, program: Path) -> None:
    """So the test before can fail."""
    root = glibc_rootfs(tmp_path / "root")
    names = sonames(300)
    make_libraries(root / "opt", names)
    new = [Entry(0x303, name, b"/opt/libfile%d.so" % i) for i, name in enumerate(names)]
    kept = parse((root / "etc/ld.so.cache").read_bytes()).entries
    (root / "etc/ld.so.cache").write_bytes(encode([*kept, *sorted(new, key=lambda e: e.unsafe_soname)]))
    assert opened(root, program, names) != [e.unsafe_path for e in new]


@needs_ldconfig
def test_ld_so_takes_the_first_directory_for_a_name_that_several_have(tmp_path: Path, program: Path) -> None:
    root = glibc_rootfs(tmp_path / "root")
    names = sonames(50)
    for folder in ("opt/a", "opt/b", "opt/c"):
        make_libraries(root / folder, names)
    order = Order(lambda e: (b"/opt/b", b"/opt/c", b"/opt/a", b"").index(e.unsafe_path[:6].replace(b"/lib/x", b"")))
    new = [Entry(0x303, n, b"/opt/%c/libfile%d.so" % (x, i)) for x in b"abc" for i, n in enumerate(names)]
    kept = parse((root / "etc/ld.so.cache").read_bytes()).entries
    (root / "etc/ld.so.cache").write_bytes(encode(order.merge(kept, new)))
    assert opened(root, program, names) == [b"/opt/b/libfile%d.so" % i for i in range(50)]


# -- merging --------------------------------------------------------------------------------------------------------


def entries_of(source: random.Random, count: int) -> list[Entry]:
    out = []
    for i in range(count):
        hwcaps = source.choice([None, None, None, b"x86-64-v2", b"x86-64-v3"])
        hwcap = 0 if hwcaps is None else HWCAP_EXTENSION | source.randrange(4) << 32
        path = b"/%d/%d" % (source.randrange(5), i)
        out.append(Entry(source.choice([0x303, 0x3, 0x1]), random_name(source, 4), path, 0, hwcap, hwcaps))
    return out


def rank(e: Entry) -> int:
    return int(e.unsafe_path.split(b"/")[1])


@pytest.mark.parametrize("seed", range(20))
def test_new_ones_among_ordered_ones_stand_where_sorting_puts_them(seed: int) -> None:
    source = random.Random(seed)
    kept, new = entries_of(source, source.randrange(80)), entries_of(source, source.randrange(20))
    order = Order(rank)
    kept.sort(key=order.key)
    assert [order.key(e) for e in order.merge(kept, new)] == sorted(order.key(e) for e in [*kept, *new])
    assert {id(e) for e in order.merge(kept, new)} == {id(e) for e in [*kept, *new]}


@pytest.mark.parametrize("seed", range(20))
def test_what_is_not_in_order_is_sorted(seed: int) -> None:
    """Names of a stranger's cache, of equal lengths of numbers: the quick look must not take them for ordered."""
    source = random.Random(seed)
    kept = [Entry(3, b"lib%s.so.%d" % (bytes(source.choices(b"abcXY-_\xe9", k=3)), source.randrange(9)), b"/0/x")
            for _ in range(30)]  # fmt: skip
    order = Order(rank)
    merged = order.merge(kept, [])
    assert [order.key(e) for e in merged] == sorted(order.key(e) for e in kept)


@pytest.mark.skipif(sys.gettrace() is not None, reason="takes longer where lines are traced")
def test_three_new_ones_among_10_000_are_quick() -> None:
    order = Order(rank)
    kept = sorted((Entry(3, b"lib%d.so" % i, b"/0/x") for i in range(10_000)), key=Order(rank).key)
    new = [Entry(3, name, b"/0/x") for name in (b"liba.so", b"lib5000.so.1", b"z.so")]
    start = time.monotonic()
    merged = order.merge(kept, new)
    assert time.monotonic() - start < 0.5
    assert [order.key(e) for e in merged] == sorted(Order(rank).key(e) for e in [*kept, *new])


@pytest.mark.parametrize("names", [("libx.so.9", "libx.so.10"), ("libx9a.so", "libx10b.so"), ("liba.so", "libb.so")])
def test_neighbours_in_a_wrong_order_are_noticed(names: tuple[str, str]) -> None:
    """Also where only the length of a number tells."""
    kept = [Entry(0x303, n.encode(), b"/0/" + n.encode()) for n in names]
    assert [e.unsafe_soname.decode() for e in Order(rank).merge(kept, [])] == [names[1], names[0]]
    assert [e.unsafe_soname.decode() for e in Order(rank).merge(kept[::-1], [])] == [names[1], names[0]]
