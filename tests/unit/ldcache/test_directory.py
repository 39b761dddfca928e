"""One library directory: its names, its mount points, and what the image's cache explains of it."""

from __future__ import annotations

import os
from errno import E2BIG
from pathlib import Path

import pytest
from lib import elfmaker
from lib.rootfs import MACHINE, tree

from nvoci.ldcache import directory as module
from nvoci.ldcache.cache import HWCAP_EXTENSION, Entry
from nvoci.ldcache.directory import Directory, Opener, open_directories
from nvoci.linux import syscalls
from nvoci.linux.rootfs import Rootfs
from tests.kernel.namespaced import isolated, os_error


def look(root: Path, *paths: bytes) -> list[Directory]:
    return open_directories(Rootfs.open(str(root)), paths or (b"/lib",), [])


def library(root: Path, path: str) -> Path:
    name = Path(path).name
    return elfmaker.make_so(root / path, name if name.isprintable() else "libodd.so", machine=MACHINE)


# -- names ----------------------------------------------------------------------------------------------------------

NAMES = {
    "liba.so": True, "liba.so.1": True, "lib.so": True, "lib.so.": True, "libfoo.sox": True, "liba.so-gdb.py": True,
    "ld-linux.so.2": True, "ld-2.31.so": True, "ld-.so": True, "lib\udcff.so": True,
    "a.so": False, "Liba.so": False, "liba": False, "liba.s": False, "ld.so": False, "ld.so.cache": False,
    "xlib.so": False, "liba.so.#prelink#": False, "liba.so.#prelink#.Ab0xyz": False, "liba.so.#prelink#.Ab0xy": True,
    ".liba.so": False, "lib": False, "glibc-hwcaps": False,
}  # fmt: skip


def test_names_are_those_that_ldconfig_looks_at(tmp_path: Path) -> None:
    for name in NAMES:
        library(tmp_path, f"lib/{name}")
    (found,) = look(tmp_path)
    assert {os.fsdecode(name) for name in found.names} == {name for name, wanted in NAMES.items() if wanted}


def test_links_are_told_from_files_and_nothing_else_is_listed(tmp_path: Path) -> None:
    tree(tmp_path, "file lib/liba.so x\nsymlink lib/libb.so none\nfifo lib/libc.so\nsocket lib/libd.so\ndir lib/lib.so")
    (found,) = look(tmp_path)
    assert found.names == {b"liba.so": False, b"libb.so": True}


def test_too_many_entries_are_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_ENTRIES", 5)
    tree(tmp_path, "".join(f"file lib/{i}\n" for i in range(5)))
    assert look(tmp_path)[0].names == {}
    tree(tmp_path, "file lib/another")
    with os_error() as e:
        look(tmp_path)
    assert (e.value.errno, e.value.filename) == (E2BIG, b"/lib")


# -- links ----------------------------------------------------------------------------------------------------------

LINKS = {
    "itself": ("file lib/liba.so x", b"liba.so", b"liba.so"),
    "one step": ("file lib/liba.so.1 x\nsymlink lib/liba.so liba.so.1", b"liba.so", b"liba.so.1"),
    "two": ("file lib/libc.so x\nsymlink lib/liba.so libb.so\nsymlink lib/libb.so libc.so", b"liba.so", b"libc.so"),
    "out of the directory": ("file o/liba.so x\nsymlink lib/liba.so ../o/liba.so", b"liba.so", None),
    "back into it": ("file lib/libb.so x\nsymlink lib/liba.so ../lib/libb.so", b"liba.so", None),
    "absolute": ("file lib/libb.so x\nsymlink lib/liba.so /lib/libb.so", b"liba.so", None),
    "to a name that is no library's": ("file lib/x x\nsymlink lib/liba.so x", b"liba.so", None),
    "nowhere": ("symlink lib/liba.so libb.so", b"liba.so", None),
    "a loop": ("symlink lib/liba.so libb.so\nsymlink lib/libb.so liba.so", b"liba.so", None),
    "to itself": ("symlink lib/liba.so liba.so", b"liba.so", None),
    "to a directory": ("dir lib/libb.so\nsymlink lib/liba.so libb.so", b"liba.so", None),
    "not there": ("dir lib", b"liba.so", None),
    "a long chain": (
        "file lib/lib99.so x\n" + "".join(f"symlink lib/lib{i}.so lib{i + 1}.so\n" for i in range(40, 99)),
        b"lib40.so", None,
    ),
}  # fmt: skip


@pytest.mark.parametrize("shape", LINKS)
def test_a_name_is_followed_within_its_directory_only(tmp_path: Path, shape: str) -> None:
    spec, name, wanted = LINKS[shape]
    (found,) = look(tree(tmp_path, spec))
    assert found.end_of(name) == wanted


def test_a_link_that_is_gone_or_replaced_meanwhile_says_nothing(tmp_path: Path) -> None:
    (found,) = look(tree(tmp_path, "symlink lib/liba.so x\nsymlink lib/libb.so x"))
    (tmp_path / "lib/liba.so").unlink()
    tree(tmp_path, "file lib/libb.so text")
    assert (found.text(b"liba.so"), found.text(b"libb.so")) == (b"", b"")


# -- explained --------------------------------------------------------------------------------------------------------


def entry(name: str, path: str = "", hwcap: int = 0) -> Entry:
    return Entry(0x303, name.encode(), (path or f"/lib/{name}").encode(), 0, hwcap)


EXPLAINED: dict[str, tuple[list[Entry], set[bytes], set[bytes]]] = {
    "a link and its file": ([entry("liba.so.1")], {b"liba.so.1"}, {b"liba.so.1", b"liba.so.1.2"}),
    "a development link leaves its file open": ([entry("liba.so")], {b"liba.so"}, {b"liba.so"}),
    "both": (
        [entry("liba.so.1"), entry("liba.so")],
        {b"liba.so.1", b"liba.so"}, {b"liba.so.1", b"liba.so.1.2", b"liba.so"},
    ),
    "a file": ([entry("libb.so.1")], {b"libb.so.1"}, {b"libb.so.1"}),
    "gone": ([entry("libz.so.1")], set(), set()),
    "empty": ([entry("libnvempty.so.1")], set(), set()),
    "a link to an empty one": ([entry("libnve.so.1")], set(), set()),
    "51 bytes": ([entry("libnvshort.so.1")], set(), set()),
    "a directory": ([entry("libdir.so.1")], set(), set()),
    "leaves the directory": ([entry("libout.so.1")], set(), set()),
    "another path": ([entry("libb.so.1", "/lib/libb.so.2")], set(), set()),
    "another directory's spelling": ([entry("libb.so.1", "/usr/lib/libb.so.1")], {b"libb.so.1"}, {b"libb.so.1"}),
    "legacy hwcap": ([entry("libb.so.1", hwcap=1 << 63)], set(), set()),
    "extension": ([entry("libb.so.1", hwcap=HWCAP_EXTENSION)], set(), set()),
}  # fmt: skip
TREE = """
symlink lib/liba.so liba.so.1
symlink lib/liba.so.1 liba.so.1.2
file lib/libnvempty.so.1
symlink lib/libnve.so.1 libnvempty.so.1
dir lib/libdir.so.1
symlink lib/libout.so.1 ../o/libout.so.1
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    tree(tmp_path, TREE + "file lib/libnvshort.so.1 " + "x" * 51)
    for path in ("lib/liba.so.1.2", "lib/libb.so.1", "o/libout.so.1"):
        library(tmp_path, path)
    return tmp_path


@pytest.mark.parametrize("shape", EXPLAINED)
def test_what_a_cached_entry_explains(root: Path, shape: str) -> None:
    cached, sonames, names = EXPLAINED[shape]
    (found,) = look(root)
    kept, explained = found.explained(cached)
    assert (set(kept), explained) == (sonames, names)
    assert all(kept[e.unsafe_soname] is e for e in cached if e.unsafe_soname in kept)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_mount_point_is_not_explained_and_neither_is_a_link_to_it(root: Path) -> None:
    def body() -> tuple[set[bytes], set[bytes]]:
        source, target = (os.fsencode(root / name) for name in ("lib/libb.so.1", "lib/liba.so.1.2"))
        syscalls.mount(source, target, None, 0x1000)  # MS_BIND
        (found,) = look(root)
        kept, _ = found.explained([entry("liba.so.1"), entry("libb.so.1")])
        return found.mounted, set(kept)

    assert isolated(body) == ({b"liba.so.1.2"}, {b"libb.so.1"})


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_mount_points_of_names_with_odd_characters_are_found(tmp_path: Path) -> None:
    names = ["liba b.so", "liba\tb.so", "liba\nb.so", "liba\\040.so", "lib\udcff.so"]
    for name in names:
        library(tmp_path, f"lib/{name}")

    def body() -> set[bytes]:
        for name in names:
            path = os.fsencode(tmp_path / "lib" / name)
            syscalls.mount(path, path, None, 0x1000)
        return look(tmp_path)[0].mounted

    assert isolated(body) == {os.fsencode(name) for name in names}


# -- directories ------------------------------------------------------------------------------------------------------


def listed(root: Path, *paths: bytes) -> tuple[list[tuple[bytes, bytes | None]], dict[bytes, str]]:
    left_out: list[tuple[bytes, str]] = []
    found = open_directories(Rootfs.open(str(root)), paths, left_out)
    assert [d.rank for d in found] == list(range(len(found)))
    return [(d.path, d.hwcaps_name) for d in found], dict(left_out)


def test_each_directory_is_listed_once_under_its_first_name(tmp_path: Path) -> None:
    tree(tmp_path, "dir a\nsymlink b a\nsymlink c /a\ndir d")
    found, left_out = listed(tmp_path, b"/b", b"/a/", b"/c", b"/d", b"/b", b"/none", b"/")
    assert found == [(b"/b", None), (b"/d", None)]
    assert left_out == {
        b"/a": "listed already under another name", b"/c": "listed already under another name",
        b"/none": "no such directory",
    }  # fmt: skip


def test_hwcaps_subdirectories_come_behind_their_directory_in_order(tmp_path: Path) -> None:
    tree(tmp_path, "dir a/glibc-hwcaps/x86-64-v3\ndir a/glibc-hwcaps/x86-64-v2\nfile a/glibc-hwcaps/x\ndir b")
    found, left_out = listed(tmp_path, b"/a", b"/b")
    top = b"/a/glibc-hwcaps/"
    below = [(top + name, name) for name in (b"x86-64-v2", b"x86-64-v3")]
    assert found == [(b"/a", None), *below, (b"/b", None)]
    assert left_out == {top + b"x": "no such directory"}


@pytest.mark.parametrize("spec", ["file {} text", "symlink {} glibc-hwcaps", "fifo {}", "symlink {} none"])
def test_hwcaps_that_is_no_directory_does_not_matter(tmp_path: Path, spec: str) -> None:
    assert listed(tree(tmp_path, spec.format("a/glibc-hwcaps")), b"/a")[0] == [(b"/a", None)]


@pytest.mark.parametrize("path", [b"/f", b"/loop", b"/fifo", b"/dangling", b"/f/x"])
def test_what_is_no_directory_is_left_out(tmp_path: Path, path: bytes) -> None:
    tree(tmp_path, "file f x\nsymlink loop loop\nfifo fifo\nsymlink dangling none\ndir lib")
    assert listed(tmp_path, path, b"/lib")[0] == [(b"/lib", None)]


# -- opening ----------------------------------------------------------------------------------------------------------


def test_each_inode_is_read_once_and_the_number_of_them_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_OPENED", 2)
    library(tmp_path, "lib/liba.so.1")
    tree(tmp_path, "hardlink lib/libh.so.1 lib/liba.so.1\nsymlink lib/libs.so.1 liba.so.1")
    tree(tmp_path, "file lib/libt.so " + "x" * 60)
    library(tmp_path, "lib/libz.so.1")
    rootfs = Rootfs.open(str(tmp_path))
    opener, where = Opener(rootfs), rootfs.dir(b"/lib")
    first = opener.examine(where, b"liba.so.1", False, False)
    assert not isinstance(first, str)
    assert first.unsafe_soname == b"liba.so.1"
    assert opener.examine(where, b"libh.so.1", False, False) is first
    assert opener.examine(where, b"libs.so.1", True, False) is first
    assert opener.at(b"/lib/libs.so.1", False) is first
    assert opener.examine(where, b"libt.so", False, False) == "no ELF magic"
    with os_error() as e:
        opener.examine(where, b"libz.so.1", False, False)
    assert e.value.errno == E2BIG


WHY = {
    "gone": ("dir lib", False, "gone"),
    "a link that leads nowhere": ("symlink lib/libx.so none", True, "leads nowhere"),
    "a loop": ("symlink lib/libx.so libx.so", True, "leads nowhere"),
    "a link to a fifo": ("fifo lib/f\nsymlink lib/libx.so f", True, "not a regular file"),
    "a link to a device": ("char lib/f 1 5\nsymlink lib/libx.so f", True, "not a regular file"),
    "a fifo in the place of a file": ("fifo lib/libx.so", False, "not a regular file"),
    "a link in the place of a file": ("file lib/f x\nsymlink lib/libx.so f", False, "not a regular file"),
    "too short": ("file lib/libx.so x", False, "too short for an ELF file"),
    "text": ("file lib/libx.so " + "x" * 60, False, "no ELF magic"),
}  # fmt: skip


@pytest.mark.parametrize("shape", WHY)
def test_why_a_name_is_no_library(tmp_path: Path, shape: str) -> None:
    """Also where it is no longer what the listing has shown."""
    spec, is_link, why = WHY[shape]
    if spec.startswith("char") and os.geteuid() != 0:
        pytest.skip("device nodes need root")
    rootfs = Rootfs.open(str(tree(tmp_path, spec)))
    assert Opener(rootfs).examine(rootfs.dir(b"/lib"), b"libx.so", is_link, False) == why


def test_hwcaps_names_that_ld_so_cannot_use_are_passed_over_and_directories_come_before_links(tmp_path: Path) -> None:
    for name in ("x86-64-v3", ".hidden", "a:b"):
        (tmp_path / "a/glibc-hwcaps" / name).mkdir(parents=True)
    (tmp_path / "a/glibc-hwcaps/a-link").symlink_to("x86-64-v3")
    found, left_out = listed(tmp_path, b"/a")
    assert found == [(b"/a", None), (b"/a/glibc-hwcaps/x86-64-v3", b"x86-64-v3")]
    assert left_out == {b"/a/glibc-hwcaps/a-link": "listed already under another name"}
