"""The whole computation, and the extension of a cache. Second witness: ldconfig, run until it finds nothing new."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from lib import elfmaker
from lib.rootfs import MACHINE, tree

from nvoci.ldcache import compute as module
from nvoci.ldcache.cache import HWCAP_EXTENSION, NATIVE, Cache, Entry, encode, parse
from nvoci.ldcache.compute import NOT_A_NAME, Result, compute, is_name
from nvoci.linux.rootfs import Rootfs
from tests.kernel.namespaced import os_error

LDCONFIG = "/sbin/ldconfig"
needs_ldconfig = pytest.mark.skipif(not os.path.exists(LDCONFIG), reason="no ldconfig on this host")
CACHE = "etc/ld.so.cache"
FOLDERS = [b"/one", b"/two"]


def so(root: Path, path: str, soname: str | None = "", machine: str = MACHINE) -> Path:
    """A library; by default its soname is its file's name."""
    return elfmaker.make_so(root / path, Path(path).name if soname == "" else soname, machine=machine)


def shown(root: Path) -> list[str]:
    argv = [LDCONFIG, "-p", "-C", root / CACHE]
    text = subprocess.run(argv, check=True, capture_output=True, text=True, errors="surrogateescape", env={}).stdout
    return [line for line in text.split("\n") if line.startswith("\t")]


def run_ldconfig(root: Path) -> list[str]:
    (root / "etc").mkdir(exist_ok=True)
    (root / "etc/ld.so.conf").write_bytes(b"\n".join(FOLDERS) + b"\n")
    found: list[str] = []
    for _ in range(4):
        subprocess.run([LDCONFIG, "-r", root, "-i", "-C", f"/{CACHE}"], check=True, capture_output=True, env={})
        before, found = found, shown(root)
        if found == before:
            break
    return found


def take(root: Path, cache: Cache | None = None, **how: object) -> Result:
    return compute(Rootfs.open(str(root)), FOLDERS, cache, **how)  # type: ignore[arg-type]


def apply(root: Path, result: Result) -> list[str]:
    """Make the links, write the cache, and ask ldconfig what is in it."""
    for link in result.links:
        path = root / os.fsdecode(link.unsafe_path).lstrip("/")
        path.unlink(missing_ok=True)
        path.symlink_to(os.fsdecode(link.unsafe_target))
    (root / "etc").mkdir(exist_ok=True)
    (root / CACHE).write_bytes(encode(result.entries, b"nvoci"))
    return shown(root)


def as_ldconfig(root: Path, lines: list[str]) -> list[str]:
    """Where something that is no link has a soname's place, we name the library, and ldconfig that other object."""
    out = []
    for line in lines:
        before, arrow, path = line.partition(" => ")
        folder, _, name = path.rpartition("/")
        place = root / folder[1:] / before.split()[0]
        taken = name != place.name and "glibc-hwcaps" not in folder and not place.is_symlink() and place.exists()
        out.append(f"{before}{arrow}{folder}/{place.name}" if taken else line)
    return out


def image(root: Path) -> Cache:
    return parse((root / CACHE).read_bytes())


def texts(root: Path) -> dict[str, str]:
    return {str(p.relative_to(root)): os.readlink(p) for p in root.rglob("*") if p.is_symlink()}


def both(root: Path) -> tuple[list[str], list[str], dict[str, str], dict[str, str]]:
    """(our entries, ldconfig's, our links, ldconfig's), on two copies."""
    other = root.parent / f"{root.name}-other"
    subprocess.run(["cp", "-a", root, other], check=True)
    ours = as_ldconfig(root, apply(root, take(root)))
    theirs = run_ldconfig(other)
    return ours, theirs, texts(root), texts(other)


def lay(root: Path, spec: str) -> None:
    """Lines of tree(); and `so PATH [SONAME [MACHINE]]`, where the soname `-` is none at all."""
    root.mkdir(exist_ok=True)
    for folder in FOLDERS:
        (root / folder.decode()[1:]).mkdir(exist_ok=True)
    for line in spec.split(";"):
        words = line.split()
        if words[0] == "so":
            so(root, words[1], None if words[2:3] == ["-"] else (words[2:] or [""])[0], *words[3:])
        else:
            tree(root, line.strip())


SHAPES = {
    "nothing": "dir one",
    "its soname is its name": "so one/liba.so.1",
    "a version": "so one/liba.so.1.2 liba.so.1",
    "two versions": "so one/liba.so.1.9 liba.so.1; so one/liba.so.1.10 liba.so.1",
    "a right link": "so one/liba.so.1.2 liba.so.1; symlink one/liba.so.1 liba.so.1.2",
    "a right link by another way": "so one/liba.so.1.2 liba.so.1; symlink one/liba.so.1 ../one/liba.so.1.2",
    "a link to the older one": (
        "so one/liba.so.1.2 liba.so.1; so one/liba.so.1.3 liba.so.1; symlink one/liba.so.1 liba.so.1.2"
    ),
    "a file and a link for one soname": (
        "so one/liba.so.1.2 libx.so.1; so two/liba.so.1.9 libx.so.1"
        "; symlink one/libz.so.1.3 ../two/liba.so.1.9"
    ),
    "no soname": "so one/liba.so -",
    "no soname, and a link": "so one/liba.so.1.2 -; symlink one/liba.so.1 liba.so.1.2; symlink one/liba.so liba.so.1",
    "a development link": "so one/liba.so.1.2 liba.so.1; symlink one/liba.so liba.so.1.2",
    "a development link to the soname": "so one/liba.so.1.2 liba.so.1; symlink one/liba.so liba.so.1",
    "a development link of another name": "so one/liba.so.1.2 liba.so.1; symlink one/libb.so liba.so.1.2",
    "a link of another name": "so one/liba.so.1.2 liba.so.1; symlink one/libb.so.7 liba.so.1.2",
    "a link into another directory": "so two/liba.so.1.2 liba.so.1; symlink one/liba.so.1 ../two/liba.so.1.2",
    "an absolute link": "so two/liba.so.1.2 liba.so.1; symlink one/liba.so.1 /two/liba.so.1.2",
    "a link out of the directories": "so far/liba.so.1.2 liba.so.1; symlink one/liba.so.1 ../far/liba.so.1.2",
    "only the link's own name counts": "so far/x.so liba.so.1; symlink one/liba.so.1.2 ../far/x.so",
    "another's soname is a file": "so one/liba.so.1.2 libb.so.1; so one/libb.so.1",
    "a soname that is another directory's": "so one/liba.so.1.2 liba.so.1; so two/liba.so.1.3 liba.so.1",
    "the loader": "so one/ld-linux-x86-64.so.2; so one/ld-2.31.so ld-linux.so.2",
    "other names": "so one/a.so; so one/libb; so one/libc.sox; so one/xlibd.so.1; so one/LIBE.so.1; so one/ld.so",
    "prelink's": "so one/liba.so.1.#prelink#; so one/libb.so.1.#prelink#.abcdef; so one/libc.so.#prelink#.abc",
    "python's": (
        "so one/libpython3.so; so one/libpython3.11.so.1.0"
        "; symlink one/libpython3.11.so.1 libpython3.11.so.1.0"
    ),
    "two classes": "so one/liba.so.1; so two/liba.so.1 liba.so.1 i386",
    "hwcaps": (
        "so one/liba.so.1; so one/glibc-hwcaps/x86-64-v3/liba.so.1"
        "; so one/glibc-hwcaps/x86-64-v2/liba.so.1.5 liba.so.1"
    ),
    "hwcaps of a name of its own": "so one/glibc-hwcaps/mine/liba.so.1; so two/glibc-hwcaps/mine/liba.so.1",
    "hwcaps with versions and links": (
        "so two/glibc-hwcaps/v/liba.so.1.2 liba.so.1; so two/glibc-hwcaps/v/liba.so.1.3 liba.so.1"
        "; symlink two/glibc-hwcaps/v/liba.so.1 liba.so.1.2"
    ),
    "hwcaps is a file": "file one/glibc-hwcaps text; so one/liba.so.1",
    "hwcaps has a file": "file one/glibc-hwcaps/v text; so one/liba.so.1",
    "hwcaps is a link": "so far/v/liba.so.1; symlink one/glibc-hwcaps ../far",
    "hwcaps has a link": "so far/liba.so.1; dir one/glibc-hwcaps; symlink one/glibc-hwcaps/v ../../far",
    "one directory is a link to the other": "so one/liba.so.1.2 liba.so.1; symlink two one",
    "a link that leads nowhere": "so one/liba.so.1.2 liba.so.1; symlink one/libb.so none",
    "a chain that ends in a soname link to be made": (
        "so one/liba.so.1.2 liba.so.1; symlink one/liba.so liba.so.1; symlink two/liba.so ../one/liba.so"
    ),
    "a soname link as a directory": "so one/liba.so.1; dir one/libb.so.1; so one/libb.so.1.2 libb.so.1",
    "text": "file one/liba.so INPUT(libb.so); so one/libb.so.1",
    "another machine": "so one/liba.so.1 liba.so.1 i386; so one/libb.so.1",
}  # fmt: skip


@needs_ldconfig
@pytest.mark.parametrize("shape", SHAPES)
def test_everything_is_found_as_ldconfig_finds_it(tmp_path: Path, shape: str) -> None:
    root = tmp_path / "root"
    lay(root, SHAPES[shape])
    ours, theirs, links, wanted = both(root)
    assert ours == theirs
    assert {k: v for k, v in links.items() if wanted.get(k) != v and (root / k).exists()} == {}
    assert set(wanted) <= set(links)


def scatter(root: Path, source: random.Random, count: int) -> None:
    """Random libraries and links in both directories."""
    for _ in range(count):
        folder = source.choice(["one", "two", "one/glibc-hwcaps/x86-64-v2"])
        stem, version = source.choice("abc"), source.choice(["1", "1.2", "1.10", "2", ""])
        path = root / folder / f"lib{stem}.so{'.' if version else ''}{version}"
        if path.is_symlink() or path.exists():
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        kind = source.random()
        if kind < 0.55:
            names = [f"lib{stem}.so.1", f"lib{stem}.so.{version or 1}", path.name, None, "libother.so.1"]
            soname = source.choice(names)
            elfmaker.make_so(path, soname, machine=MACHINE)
        elif kind < 0.9:
            others = sorted(p.name for p in path.parent.iterdir() if p.name != "glibc-hwcaps") or ["none"]
            target = source.choice(others)
            if source.random() < 0.2:
                target = f"/{source.choice(['one', 'two'])}/lib{source.choice('abc')}.so.1"
            path.symlink_to(target)
        else:
            path.write_bytes(b"" if source.random() < 0.5 else b"x" * 100)


@needs_ldconfig
@pytest.mark.parametrize("seed", range(40))
def test_random_directories_are_as_ldconfig_finds_them(tmp_path: Path, seed: int) -> None:
    root = tmp_path / "root"
    lay(root, "dir etc")
    scatter(root, random.Random(seed), 12)
    ours, theirs, _, _ = both(root)
    assert ours == theirs, "".join(subprocess.run(["ls", "-lR", root], capture_output=True, text=True).stdout)


# -- extension --------------------------------------------------------------------------------------------------

CHANGES: dict[str, Callable[[Path], object]] = {
    "nothing": lambda root: None,
    "a new library": lambda root: so(root, "one/libnew.so.1.2", "libnew.so.1"),
    "a newer version": lambda root: so(root, "one/liba.so.1.10", "liba.so.1"),
    "an older version": lambda root: so(root, "one/liba.so.1.0", "liba.so.1"),
    "the same soname in the other directory": lambda root: so(root, "two/liba.so.1.9", "liba.so.1"),
    "a library is gone": lambda root: (root / "one/liba.so.1.2").unlink(),
    "a link is gone": lambda root: (root / "one/liba.so.1").unlink(),
    "both are gone": lambda root: [(root / f"one/liba.so.1{v}").unlink() for v in ("", ".2")],
    "a directory is gone": lambda root: shutil.rmtree(root / "one"),
    "a new hwcaps subdirectory": lambda root: so(root, "one/glibc-hwcaps/x86-64-v4/liba.so.1"),
    "a hwcaps subdirectory is gone": lambda root: shutil.rmtree(root / "two/glibc-hwcaps"),
    "a hwcaps library is replaced": lambda root: so(root, "two/glibc-hwcaps/v/libh.so.1", "libi.so.1"),
    "a development link": lambda root: (root / "one/liba.so").symlink_to("liba.so.1"),
    "a file takes a link's place": lambda root: [(root / "one/liba.so.1").unlink(), so(root, "one/liba.so.1")],
}


@needs_ldconfig
@pytest.mark.parametrize(("name", "dropped"), [("liba", False), ("libcuda", True), ("libGLX_nvidia", True)])
def test_an_empty_library_is_dropped_if_it_is_a_drivers(tmp_path: Path, name: str, dropped: bool) -> None:
    """A mount target of an earlier start; of other names no size is asked for, in the first run as in the second."""
    lay(tmp_path, f"so one/{name}.so.1.2 {name}.so.1")
    run_ldconfig(tmp_path)
    (tmp_path / f"one/{name}.so.1.2").write_bytes(b"")
    for _ in range(2):
        lines = apply(tmp_path, take(tmp_path, image(tmp_path)))
        assert dropped is not any(f"{name}.so.1 " in line for line in lines)


@needs_ldconfig
@pytest.mark.parametrize("change", CHANGES)
def test_an_extended_cache_is_as_a_new_one(tmp_path: Path, change: str) -> None:
    root = tmp_path / "root"
    lay(root, "so one/liba.so.1.2 liba.so.1; so two/libb.so.2; so two/glibc-hwcaps/v/libh.so.1; so one/libc.so.6")
    run_ldconfig(root)
    CHANGES[change](root)
    other = tmp_path / "other"
    subprocess.run(["cp", "-a", root, other], check=True)
    assert apply(root, take(root, image(root))) == run_ldconfig(other)
    if change != "a file takes a link's place":  # which rule 6 keeps, and which is right all the same
        assert [e.unsafe_path for e in take(root, image(root)).entries] == [e.unsafe_path for e in image(root).entries]


@needs_ldconfig
@pytest.mark.parametrize("seed", range(40))
def test_random_additions_are_as_in_a_new_one(tmp_path: Path, seed: int) -> None:
    root, source = tmp_path / "root", random.Random(1000 + seed)
    lay(root, "dir etc")
    scatter(root, source, 8)
    run_ldconfig(root)
    scatter(root, source, 5)
    other = tmp_path / "other"
    subprocess.run(["cp", "-a", root, other], check=True)
    assert as_ldconfig(root, apply(root, take(root, image(root)))) == run_ldconfig(other)


def test_where_something_else_has_a_sonames_place_the_library_itself_is_named(tmp_path: Path) -> None:
    """Else ld.so would load that, or nothing: a difference to ldconfig."""
    for kind in ("so one/liba.so.1 libz.so.1", "file one/liba.so.1 text", "dir one/liba.so.1", "fifo one/liba.so.1"):
        root = tmp_path / kind.replace("/", "-").replace(" ", "-")
        lay(root, f"so one/liba.so.1.2 liba.so.1; {kind}")
        found = {e.unsafe_soname: e.unsafe_path for e in take(root).entries}
        assert found[b"liba.so.1"] == b"/one/liba.so.1.2"
        assert b"/one/liba.so.1" not in {link.unsafe_path for link in take(root).links}


@needs_ldconfig
def test_what_is_outside_stays_behind_all_others_in_its_own_order(tmp_path: Path) -> None:
    root = tmp_path / "root"
    lay(root, "so one/liba.so.1; so far/liba.so.1; so away/liba.so.1")
    old = [Entry(0x303, b"liba.so.1", path)
           for path in (b"/away/liba.so.1", b"/far/liba.so.1", b"/gone/liba.so.1", b"rel")]  # fmt: skip
    found = take(root, Cache(old, NATIVE, b"", True)).entries
    assert [e.unsafe_path for e in found] == [b"/one/liba.so.1", b"/away/liba.so.1", b"/far/liba.so.1"]


def test_no_more_of_what_is_outside_is_kept_than_is_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MAX_OUTSIDE", 4)  # one of them is for the directory
    lay(tmp_path / "root", "so far/liba.so.1")
    old = [Entry(0x303, b"lib%d.so.1" % i, b"/far/liba.so.1") for i in range(9, 0, -1)]
    assert len(take(tmp_path / "root", Cache(old, NATIVE, b"", True)).entries) == 3


@pytest.mark.parametrize(("order", "known"), [("<>".replace(NATIVE, ""), True), (NATIVE, False)])
def test_a_cache_that_this_machine_would_not_write_is_not_extended(tmp_path: Path, order: str, known: bool) -> None:
    lay(tmp_path / "root", "so one/liba.so.1 libother.so.1")
    old = [Entry(0x303, b"liba.so.1", b"/one/liba.so.1")]
    for cache, wanted in ((Cache(old, order, b"", known), b"libother.so.1"), (Cache(old, NATIVE, b"", True), old[0])):
        found = take(tmp_path / "root", cache).entries
        assert [e.unsafe_soname for e in found] == [getattr(wanted, "unsafe_soname", wanted)]


LIES = {
    "another path": Entry(0x303, b"liba.so.1", b"/one/libb.so.1"),
    "hwcap bits": Entry(0x303, b"liba.so.1", b"/one/liba.so.1", 0, 1 << 63),
    "hwcaps name": Entry(0x303, b"liba.so.1", b"/one/liba.so.1", 0, HWCAP_EXTENSION, b"x"),
    "no such file": Entry(0x303, b"libz.so.1", b"/one/libz.so.1"),
    "a path with dots": Entry(0x303, b"liba.so.1", b"/one/../../one/../etc/liba.so.1"),
    "an endless path": Entry(0x303, b"liba.so.1", b"/" + b"one/../" * 500 + b"one/liba.so.1"),
    "no name": Entry(0x303, b"", b"/one/"),
    "a NUL": Entry(0x303, b"a\0b", b"/one/a\0b"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_cache_that_lies_does_no_harm(tmp_path: Path, lie: str) -> None:
    root = tmp_path / "root"
    lay(root, "so one/liba.so.1; so one/libb.so.1")
    found = take(root, Cache([LIES[lie]], NATIVE, b"", True)).entries
    assert {b"liba.so.1", b"libb.so.1"} <= {e.unsafe_soname for e in found}
    assert all(e.unsafe_path in (b"/one/liba.so.1", b"/one/libb.so.1") for e in found)


# -- sonames, development links ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [b"", b".", b"..", b"/", b"a/b", b"a\0", b"a\n", b"\x7f", b"\x1f", b"x" * 256])
def test_what_is_no_file_name(name: bytes) -> None:
    assert not is_name(name)


@pytest.mark.parametrize("name", [b"a", b"a.conf.so", b" ", b"-", b"\xff\x80", b"a b", b"x" * 255, "é".encode()])
def test_what_is_a_file_name(name: bytes) -> None:
    assert is_name(name)


NO_NAMES = ["", ".", "..", ".nvoci-tmp", "x.conf", "ld.so.cache", "a/b", "/etc/x", "../x", "a\nb", "a" * 256]


@pytest.mark.parametrize("soname", NO_NAMES)
def test_a_soname_that_is_no_file_name_is_left_out_by_name(tmp_path: Path, soname: str) -> None:
    lay(tmp_path / "root", "so one/libb.so.1; so one/glibc-hwcaps/v/libb.so.1")
    for folder in ("one", "one/glibc-hwcaps/v"):
        elfmaker.make_so(tmp_path / f"root/{folder}/liba.so.1", soname, machine=MACHINE)
    found = take(tmp_path / "root")
    assert [e.unsafe_soname for e in found.entries] == [b"libb.so.1", b"libb.so.1"]
    assert found.links == []
    refused = [path for path, why in found.left_out if why == NOT_A_NAME]
    assert refused == [b"/one/liba.so.1", b"/one/glibc-hwcaps/v/liba.so.1"]


def test_no_development_link_for_what_is_not_mounted(tmp_path: Path) -> None:
    lay(tmp_path / "root", "so one/liba.so.1.2 liba.so.1")
    found = take(tmp_path / "root", development={b"liba.so.1": b"liba.so"})
    assert [(link.unsafe_path, link.unsafe_target, link.target_path()) for link in found.links] == [
        (b"/one/liba.so.1", b"liba.so.1.2", b"/one/liba.so.1.2")
    ]


def test_nothing_is_changed(tmp_path: Path) -> None:
    root = tmp_path / "root"
    lay(root, SHAPES["two versions"])
    before = sorted((p, p.lstat().st_mtime_ns) for p in root.rglob("*"))
    assert take(root).links
    assert sorted((p, p.lstat().st_mtime_ns) for p in root.rglob("*")) == before


def test_too_many_files_to_read_is_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nvoci.ldcache.directory.MAX_OPENED", 2)
    lay(tmp_path / "root", "so one/liba.so.1; so one/libb.so.1; so one/libc.so.1")
    with os_error() as e:
        take(tmp_path / "root")
    assert e.value.strerror == "more than 2 files to read"
