"""A sick file system below a library directory: one error that names the path, and never a guess."""

from __future__ import annotations

import os
import posix
from collections.abc import Callable
from errno import EIO, ENOENT
from pathlib import Path
from typing import Any

import pytest
from lib import elfmaker
from lib.rootfs import MACHINE, tree
from unit.ldcache.test_compute import lay, take

from nvoci.ldcache import compute, conf, directory
from nvoci.ldcache.cache import NATIVE, Cache, Entry
from nvoci.ldcache.conf import conf_directories
from nvoci.ldcache.directory import Opener, open_directories
from nvoci.linux import canonical
from nvoci.linux.rootfs import Rootfs
from tests.kernel.namespaced import os_error

Patch = Callable[..., None]


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> Patch:
    """broken(where, call, path): calls that name the path fail from now on. where: a module, or a class."""

    def patch(where: Any, call: str, path: bytes, number: int = EIO) -> None:
        real = getattr(where, call)

        def fails(*args: Any, **more: Any) -> Any:
            if path in args[: 1 if where is posix else 2]:
                raise OSError(number, os.strerror(number), path)
            return real(*args, **more)

        monkeypatch.setattr(where, call, fails)

    return patch


RIGHT = "so one/liba.so.1.2 liba.so.1; symlink one/liba.so.1 ../one/liba.so.1.2"
CHAIN = "so one/liba.so.1.2 liba.so.1; symlink one/liba.so liba.so.1; symlink two/liba.so ../one/liba.so"
# image, what fails, and the path that is named
COMPUTED: dict[str, tuple[str, tuple[Any, str, bytes], bytes | None]] = {
    "the soname's place": ("so one/liba.so.1.2 liba.so.1", (posix, "stat", b"liba.so.1"), b"/one/liba.so.1"),
    "a link's target": (RIGHT, (Rootfs, "stat", b"/one/liba.so.1"), b"/one/liba.so.1"),
    "a link's text": (RIGHT, (posix, "readlink", b"liba.so.1"), b"/one/liba.so.1"),
    "a file": (RIGHT, (posix, "open", b"liba.so.1.2"), b"/one/liba.so.1.2"),
    "a link": (RIGHT, (Rootfs, "lookup", b"/one/liba.so.1"), b"/one/liba.so.1"),
    "a link that another will lead on": (CHAIN, (Opener, "at", b"one/liba.so.1.2"), b"one/liba.so.1.2"),
    "a directory": (RIGHT, (Rootfs, "dir", b"/two"), b"/two"),
    "hwcaps": ("so one/glibc-hwcaps/v/liba.so.1", (Rootfs, "list", b"/one/glibc-hwcaps"), b"/one/glibc-hwcaps"),
}


@pytest.mark.parametrize("case", COMPUTED)
def test_what_cannot_be_looked_at_is_one_error(tmp_path: Path, broken: Patch, case: str) -> None:
    spec, what, path = COMPUTED[case]
    lay(tmp_path / "root", spec)
    assert take(tmp_path / "root").entries
    broken(*what)
    with os_error() as e:
        take(tmp_path / "root")
    assert (e.value.errno, e.value.filename) == (EIO, path)


def test_a_file_that_cannot_be_read_is_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise OSError(EIO, "sick")

    lay(tmp_path / "root", "so one/liba.so.1")
    monkeypatch.setattr(directory, "examine", fails)
    with os_error() as e:
        take(tmp_path / "root")
    assert (e.value.errno, e.value.filename) == (EIO, b"/one/liba.so.1")


def cached(*paths: bytes) -> Cache:
    return Cache([Entry(0x303, path.rpartition(b"/")[2], path) for path in paths], NATIVE, b"", True)


@pytest.mark.parametrize("path", [b"/far/liba.so.1", b"/far"])
def test_what_the_cache_has_elsewhere_is_not_dropped_for_an_error(tmp_path: Path, broken: Patch, path: bytes) -> None:
    lay(tmp_path / "root", "so far/liba.so.1")
    assert take(tmp_path / "root", cached(b"/far/liba.so.1")).entries
    broken(Rootfs, "stat", path)
    with os_error() as e:
        take(tmp_path / "root", cached(b"/far/liba.so.1"))
    assert (e.value.errno, e.value.filename) == (EIO, path)


def test_a_driver_s_library_is_not_taken_for_an_empty_one_for_an_error(tmp_path: Path, broken: Patch) -> None:
    """Gone by now, it is one."""
    lay(tmp_path / "root", "so one/libcuda.so.1")
    (found,) = open_directories(Rootfs.open(str(tmp_path / "root")), [b"/one"], [])
    old = cached(b"/one/libcuda.so.1").entries
    assert found.explained(old)[0] == {b"libcuda.so.1": old[0]}
    broken(posix, "stat", b"libcuda.so.1", ENOENT)
    assert found.explained(old) == ({}, set())
    broken(posix, "stat", b"libcuda.so.1")
    with os_error() as e:
        found.explained(old)
    assert (e.value.errno, e.value.filename) == (EIO, b"/one/libcuda.so.1")


def test_a_link_that_is_gone_by_now_explains_nothing(tmp_path: Path) -> None:
    lay(tmp_path / "root", "so one/liba.so.1.2 liba.so.1; symlink one/liba.so.1 liba.so.1.2")
    (found,) = open_directories(Rootfs.open(str(tmp_path / "root")), [b"/one"], [])
    (tmp_path / "root/one/liba.so.1").unlink()
    assert found.explained(cached(b"/one/liba.so.1").entries) == ({}, set())
    assert found.text(b"liba.so.1") == b""


def test_a_subdirectory_of_hwcaps_that_is_gone_by_now_is_left_out(tmp_path: Path, broken: Patch) -> None:
    root = tmp_path / "root"
    lay(root, "so one/glibc-hwcaps/v1/liba.so.1; so one/glibc-hwcaps/v2/liba.so.1")
    left_out: list[tuple[bytes, str]] = []
    broken(Rootfs, "lstat", b"/one/glibc-hwcaps/v1", ENOENT)
    broken(Rootfs, "dir", b"/one/glibc-hwcaps/v1", ENOENT)
    found = open_directories(Rootfs.open(str(root)), [b"/one"], left_out)
    assert [each.path for each in found] == [b"/one", b"/one/glibc-hwcaps/v2"]
    assert left_out == [(b"/one/glibc-hwcaps/v1", "no such directory")]


# -- bounds -----------------------------------------------------------------------------------------------------------


def test_of_what_is_left_out_so_much_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compute, "_MAX_LEFT_OUT", 2)
    lay(tmp_path / "root", "".join(f"file one/lib{c}.so text;" for c in "abcd") + "so one/libz.so.1")
    found = take(tmp_path / "root")
    assert (len(found.left_out), [e.unsafe_soname for e in found.entries]) == (2, [b"libz.so.1"])


def test_links_are_followed_through_planned_ones_so_often(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compute, "_ROUNDS", 1)
    lay(tmp_path / "root", CHAIN)
    assert {e.unsafe_path for e in take(tmp_path / "root").entries} == {
        b"/one/liba.so.1", b"/one/liba.so", b"/two/liba.so"}  # fmt: skip


def test_too_much_that_is_outside_is_not_looked_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lay(tmp_path / "root", "so far/liba.so.1")
    monkeypatch.setattr(compute, "_MAX_OUTSIDE", 0)
    assert take(tmp_path / "root", cached(b"/far/liba.so.1")).entries == []


def test_too_many_directories_are_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directory, "MAX_LISTED", 2)
    tree(tmp_path, "dir a\ndir b\ndir c")
    assert len(open_directories(Rootfs.open(str(tmp_path)), [b"/a", b"/b"], [])) == 2
    with os_error() as e:
        open_directories(Rootfs.open(str(tmp_path)), [b"/a", b"/b", b"/c"], [])
    assert (e.value.strerror, e.value.filename) == ("more than 2 directories", b"/c")


def test_a_path_that_leads_nowhere_is_no_error(tmp_path: Path) -> None:
    elfmaker.make_so(tmp_path / "lib/liba.so.1", "liba.so.1", machine=MACHINE)
    opener = Opener(Rootfs.open(str(tmp_path)))
    assert (opener.at(b"/lib/libb.so.1", False), opener.at(b"/lib", False)) == ("leads nowhere", "not a regular file")


# -- ld.so.conf -------------------------------------------------------------------------------------------------------

CONF = b"/etc/ld.so.conf"
INCLUDE = "file etc/ld.so.conf include /etc/{}/m.conf\\n/a\\n"
TOO_MANY: dict[str, tuple[str, str]] = {
    "lines": ("file etc/ld.so.conf " + "\\n" * (conf.MAX_LINES + 1), f"more than {conf.MAX_LINES} lines"),
    "includes": ("file etc/ld.so.conf include" + " x" * (conf.MAX_INCLUDES + 1),
                 f"more than {conf.MAX_INCLUDES} includes"),
}  # fmt: skip


@pytest.mark.parametrize("case", TOO_MANY)
def test_too_much_in_ld_so_conf_is_one_error(tmp_path: Path, case: str) -> None:
    spec, told = TOO_MANY[case]
    with os_error() as e:
        conf_directories(Rootfs.open(str(tree(tmp_path, spec))))
    assert (e.value.strerror, e.value.filename) == (told, CONF)


def test_what_no_path_can_be_is_passed_over(tmp_path: Path) -> None:
    long = "x" * conf.MAX_PATH
    spec = f"file etc/ld.so.conf /{long}\\ninclude /etc/\\x00*\\n/a\\n"
    assert conf_directories(Rootfs.open(str(tree(tmp_path, spec)))) == [b"/a"]


def test_a_folder_that_is_a_loop_is_not_that_of_ld_so_conf(tmp_path: Path, broken: Patch) -> None:
    root = tree(tmp_path, INCLUDE.format("loop") + "\nsymlink etc/loop loop\ndir etc/ld.so.conf.d")
    assert conf_directories(Rootfs.open(str(root)), marks=(b"m.conf",)) == [b"/a"]
    broken(canonical, "lookup", b"etc/loop")
    with os_error() as e:
        conf_directories(Rootfs.open(str(root)), marks=(b"m.conf",))
    assert e.value.errno == EIO


def test_whether_ld_so_conf_is_missing_is_known_or_an_error(tmp_path: Path, broken: Patch) -> None:
    broken(Rootfs, "lstat", CONF)
    with os_error() as e:
        conf_directories(Rootfs.open(str(tree(tmp_path, "dir etc"))))
    assert (e.value.errno, e.value.filename) == (EIO, CONF)
