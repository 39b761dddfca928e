"""Each deliberate difference is real, and needed: without it the judge says something else."""

from __future__ import annotations

import itertools
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from diff import differences, judge, layouts, story
from diff.differences import BUILTIN, TABLE
from diff.judge import Line
from diff.story import Mounts
from lib import elfmaker, rootfs

pytestmark = pytest.mark.kernel
LIB = "/opt/nv"


def _image(root: Path) -> None:
    layouts.distroless(root)
    layouts.conf(root, "ld.so.conf", LIB)
    layouts.library(root / "opt/nv/libimage.so.1", "libimage.so.1")


def development(root: Path, mounts: Mounts) -> None:
    library = elfmaker.make_so(root.parent / "libcuda.so.550.54.15", "libcuda.so.1")
    mounts[LIB] = [library]


def fixed_point(root: Path, mounts: Mounts) -> None:
    layouts.library(root / "opt/nv/libnew.so.1.2", "libnew.so.1")
    (root / "opt/nv/libnew.so").symlink_to("libnew.so.1")


def file_names(root: Path, mounts: Mounts) -> None:
    for i, soname in enumerate(("no/x", "", ".", "..", "a\x07b")):
        layouts.library(root / f"opt/nv/libodd{i}.so.1", soname)


def legacy(root: Path, mounts: Mounts) -> None:
    for folder in ("tls", "haswell", "haswell/avx512_1"):
        layouts.library(root / f"opt/nv/{folder}/liblegacy.so.1", "liblegacy.so.1")


def not_read_again(root: Path, mounts: Mounts) -> None:
    judge.ldconfig(root)
    layouts.library(root / "opt/nv/libimage.so.1", "libreplaced.so.1")


def taken(root: Path, mounts: Mounts) -> None:
    layouts.library(root / "opt/nv/libtaken.so.1.2", "libtaken.so.1")
    (root / "opt/nv/libtaken.so.1").write_text("not a library\n" * 9)


def outside(root: Path, mounts: Mounts) -> None:
    """Made with -f another file; one of its libraries has a rival within the configuration, one is gone."""
    for name in ("libout.so.1", "libimage.so.1", "libgone.so.1"):
        layouts.library(root / "opt/out" / name, name)
    layouts.conf(root, "other.conf", "/opt/out", LIB)
    judge.ldconfig(root, "/etc/other.conf")
    (root / "opt/out/libgone.so.1").unlink()


SHAPES: dict[str, Callable[[Path, Mounts], None]] = {
    "development links": development,
    differences.FIXED_POINT: fixed_point,
    "sonames are file names": file_names,
    "no legacy subdirectories": legacy,
    "files are not read again": not_read_again,
    "the file itself where its soname is taken": taken,
    "entries outside of the configuration stay": outside,
}
WHAT_IT_DOES = {
    "development links": [Line("libcuda.so", "libc6,x86-64", "/opt/nv/libcuda.so")],
    differences.FIXED_POINT: [Line("libnew.so", "libc6,x86-64", "/opt/nv/libnew.so")],
    "files are not read again": [Line("libimage.so.1", "libc6,x86-64", "/opt/nv/libimage.so.1")],
    "the file itself where its soname is taken": [Line("libtaken.so.1", "libc6,x86-64", "/opt/nv/libtaken.so.1.2")],
    "entries outside of the configuration stay": [
        Line("libout.so.1", "libc6,x86-64", "/opt/out/libout.so.1"),
        Line("libimage.so.1", "libc6,x86-64", "/opt/out/libimage.so.1"),
    ],
}


def seen(tmp_path: Path, name: str, without: str) -> tuple[list[Line], list[Line]]:
    """(the hook's cache, what is expected if the table has all but one)."""
    lower, mounts = tmp_path / "lower", Mounts()
    _image(lower)
    SHAPES[name](lower, mounts)
    with story.Layers(lower) as layers:
        chapter = story.start(layers, BUILTIN, [LIB], mounts, without)
    assert chapter.changed == []
    return chapter.lines, chapter.expected


def test_every_difference_of_the_table_has_a_case() -> None:
    assert [d.name for d in TABLE] == list(SHAPES)
    assert all(d.why and d.engines for d in TABLE)


@pytest.mark.parametrize("name", SHAPES)
def test_with_the_whole_table_the_judge_agrees(node: story.Node, tmp_path: Path, name: str) -> None:
    lines, expected = seen(tmp_path, name, "")
    assert lines == expected


@pytest.mark.parametrize("name", SHAPES)
def test_without_this_difference_the_judge_disagrees(node: story.Node, tmp_path: Path, name: str) -> None:
    lines, expected = seen(tmp_path, name, name)
    only_ours = [line for line in lines if line not in expected]
    assert lines != expected
    assert only_ours == WHAT_IT_DOES.get(name, [])


def test_order_of_the_table_is_the_one_that_ldconfig_sorts_by(tmp_path: Path) -> None:
    """The table relies on it where it adds lines; this list has what seldom meets."""
    root = tmp_path / "root"
    layouts.distroless(root)
    names = ("libx.so.9", "libx.so.10", "libx.so.010", "libx-1.so", "libX.so", "lib\udcff.so.1", "libx1.so", "libxa.so")
    layouts.conf(root, "ld.so.conf", "/opt/b", "/opt/a")
    below = ("a", "b", "a/glibc-hwcaps/x86-64-v2", "a/glibc-hwcaps/x86-64-v3", "b/tls")
    for name, folder in itertools.product(names, below):
        layouts.library(root / "opt" / folder / name, None)
    layouts.library(root / "opt/a/libi.so.1", "libx.so.9", "i386")
    judge.ldconfig(root)
    lines = judge.listing(root)
    assert len(lines) > 5 * len(names)
    assert differences.is_ordered(lines)
    assert not differences.is_ordered(lines[::-1])


def test_the_host_root_is_not_written_through_the_layers(node: story.Node) -> None:
    """The layout that is this host's own."""
    before = subprocess.run(["ls", "-la", layouts.MULTIARCH], capture_output=True, check=True).stdout
    with story.Layers(Path("/")) as layers:
        rootfs.tree(layers.path, f"file {layouts.MULTIARCH}/libwritten.so.1 x")
    assert subprocess.run(["ls", "-la", layouts.MULTIARCH], capture_output=True, check=True).stdout == before
