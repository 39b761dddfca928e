"""The trace of a search, and what `why` makes of it."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from lib.rootfs import tree
from unit.discover.looktools import LIB, V, driver, library, lines, link, look

from nvoci.discover.found import discover
from nvoci.discover.node import Node, Root, joined, plain
from nvoci.discover.search import Lookup, Search, errno_words, first, regular
from nvoci.discover.why import why
from nvoci.errors import HookError


def ask(root: Path, name: str) -> list[str]:
    """The lines for a name, paths below the root."""
    with look(root) as node:
        found = why(node, discover(node, None), name)
    return [line.replace(str(root), "") for each in found for line in each.lines()]


# -- roots ------------------------------------------------------------------------------------------------------------


def test_the_hosts_own_root_may_be_looked_at() -> None:
    with Node.open() as node:
        assert (node.root.host("/etc"), node.dev.host("/dev/null")) == ("/etc", "/dev/null")
        hit = node.root.resolve("/proc/self/../../etc/.")
        assert (hit.resolved, node.root.source(hit)) == (os.path.realpath("/etc"), "/proc/self/../../etc/.")


def test_a_root_may_be_named_through_a_link(tmp_path: Path) -> None:
    tree(tmp_path, "dir real/usr\nsymlink driver real")
    root = Root.open(f"{tmp_path}/driver")
    hit = root.resolve("/usr")
    assert (hit.resolved, root.source(hit)) == ("/usr", f"{tmp_path}/driver/usr")
    root.close()


ROOTS = {"missing": "ENOENT", "a file": "ENOTDIR", "nul\0": "EINVAL"}


@pytest.mark.parametrize("name", ROOTS)
def test_a_root_that_is_none_is_one_line(tmp_path: Path, name: str) -> None:
    (tmp_path / "a file").write_text("x")
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(HookError) as error:
        Node.open("/", f"{tmp_path}/{name}")
    assert error.value.message.endswith(ROOTS[name])
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_node_gives_all_its_descriptors_back(tmp_path: Path) -> None:
    driver(tmp_path)
    before = len(os.listdir("/proc/self/fd"))
    with look(tmp_path) as node:
        discover(node, None)
    assert len(os.listdir("/proc/self/fd")) == before


PLAIN = {
    b"a b": "a b",
    b"\xc3\xa4": "ä",
    b"\xff": "",
    b"a\nb": "",
    b"a\x1b": "",
    b"a::b": "",
    b"a:b": "a:b",
    "\u202e".encode(): "",
    b"": "",
}


@pytest.mark.parametrize("name", PLAIN)
def test_names_are_text(name: bytes) -> None:
    assert plain(name) == PLAIN[name]


JOINED = {
    ("/a/b", "../c"): "/a/c",
    ("/a/b", "c"): "/a/b/c",
    ("/a", "/x/./y"): "/x/y",
    ("/a", "../../.."): "/",
    ("/", "b//c"): "/b/c",
}


@pytest.mark.parametrize("case", JOINED)
def test_the_text_of_a_link_is_joined(case: tuple[str, str]) -> None:
    assert joined(*case) == JOINED[case]


# -- lookups ----------------------------------------------------------------------------------------------------------


def test_a_lookup_tells_each_place_in_order(tmp_path: Path) -> None:
    tree(tmp_path, "fifo b/x\nfile real x\nsymlink c/x /real\nfile d/x x")
    with look(tmp_path) as node:
        search = Search()
        hit = first(search, node.root, "config", "x", ["/a/x", "/b/x", "/c/x", "/d/x"], regular)
    assert hit is not None
    assert [line.replace(str(tmp_path), "") for line in search.lookups[0].lines()] == [
        "config x: found",
        "  1. /a/x: not there",
        "  2. /b/x: a FIFO, not a regular file",
        "  3. /c/x: used: /real",
    ]
    assert lines(search, tmp_path) == [
        "use config /b/x: a FIFO, not a regular file (remove it, or reinstall the driver)",
    ]


def test_a_problem_is_told_once_and_problems_have_an_end() -> None:
    search = Search()
    for i in range(1000):
        search.problem("look at", "one thing", OSError(errno.EIO, "Input/output error"))
        search.problem("look at", str(i), "wrong")
    assert lines(search)[0] == "look at one thing: EIO"
    assert len(search.problems) == 200
    assert len(set(lines(search))) == 200


def test_lines_are_printable_whatever_was_asked_for() -> None:
    lookup = Lookup("library", "a\x1b[2J\nb")
    lookup.tried("/x\r", "\u202e")
    assert all(line.isprintable() for line in lookup.lines())


ERRORS = {
    "ENOENT": OSError(errno.ENOENT, os.strerror(errno.ENOENT), "x"),
    "EFBIG: larger than 9 bytes": OSError(errno.EFBIG, "larger than 9 bytes"),
}


@pytest.mark.parametrize("words", ERRORS)
def test_words_of_the_kernel_are_its_errno(words: str) -> None:
    assert errno_words(ERRORS[words]) == words


# -- why --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["libcuda", "libcuda.so", "libcuda.so.1", f"libcuda.so.{V}", f"{LIB}/libcuda.so.1"])
def test_why_tells_of_every_directory_of_a_library(tmp_path: Path, name: str) -> None:
    driver(tmp_path)
    library(tmp_path, "/usr/lib64/libcuda.so.535.1.2", "libcuda.so.1")
    library(tmp_path, f"/usr/lib32/libcuda.so.{V}", "libcuda.so.1", "mips")
    told = ask(tmp_path, name)
    assert told[:2] == ["library libcuda.so: found", f"  driver version {V}; for compute"]
    steps = [line.partition(". ")[2] for line in told[2:]]
    for step in (
        "/: not there",
        "/usr/lib64/libcuda.so.535.1.2: of another version than the driver",
        f"{LIB}/libcuda.so.1: a link to {LIB}/libcuda.so.{V}",
        f"{LIB}/libcuda.so.{V}: used",
        f"/usr/lib32/libcuda.so.{V}: for another machine (e_machine 8, 32 bits), not x86_64",
        "/run/opengl-driver/lib: the directory: not there",
    ):
        assert step in steps
    assert steps.index("/: not there") < steps.index(f"{LIB}/libcuda.so.{V}: used")


def test_why_tells_that_a_library_is_not_the_drivers(tmp_path: Path) -> None:
    driver(tmp_path)
    library(tmp_path, f"{LIB}/libGL.so.1.7.0", "libGL.so.1")
    told = ask(tmp_path, "libGL.so.1")
    assert told[0] == "library libGL.so: not found"
    assert "no driver's own" in told[1]
    assert any(line.endswith("libGL.so.1.7.0: not of the driver's version") for line in told)


def test_why_tells_of_links_that_lead_nowhere(tmp_path: Path) -> None:
    driver(tmp_path)
    (tmp_path / f"{LIB[1:]}/libnvidia-ml.so.{V}").unlink()
    link(tmp_path, f"{LIB}/libnvidia-ml.so", "libnvidia-ml.so")
    told = ask(tmp_path, "libnvidia-ml")
    assert f"{LIB}/libnvidia-ml.so.1: a link that leads nowhere" in "\n".join(told)
    assert f"{LIB}/libnvidia-ml.so: ELOOP" in "\n".join(told)


NAMES = {
    "nvidia-smi": ("binary nvidia-smi: found", "/usr/bin/nvidia-smi: used"),
    "/usr/bin/nvidia-smi": ("binary nvidia-smi: found", "/usr/bin/nvidia-smi: used"),
    "10_nvidia.json": (
        "config glvnd/egl_vendor.d/10_nvidia.json: not found",
        "/etc/glvnd/egl_vendor.d/10_nvidia.json: not there",
    ),
    "*persistenced*": ("binary nvidia-persistenced: not found", "/usr/sbin/nvidia-persistenced: not there"),
    "gsp_a.bin": ("firmware gsp*.bin: found", f"/lib/firmware/nvidia/{V}/gsp_a.bin: used"),
    "/dev/nvidiactl": ("device /dev/nvidiactl: not found", "/dev/nvidiactl: not there"),
    "nvidia-mps": ("socket nvidia-mps: not found", "/tmp/nvidia-mps: a link, not a directory"),
    "nvidia_drv.so": ("X.Org module nvidia_drv.so: not found", f"{LIB}/nvidia/xorg/nvidia_drv.so: not there"),
    "/etc/passwd": ("path /etc/passwd: not found", "/etc/passwd: there: a regular file"),
    "/etc/gone": ("path /etc/gone: not found", "/etc/gone: ENOENT"),
    "stranger": ("binary stranger: not found", "/usr/bin/stranger: there"),
}


@pytest.mark.parametrize("name", NAMES)
def test_why_answers_for_whatever_is_looked_for(tmp_path: Path, name: str) -> None:
    driver(tmp_path)
    tree(
        tmp_path,
        f"exec usr/bin/nvidia-smi x\nfile lib/firmware/nvidia/{V}/gsp_a.bin x\n"
        "file etc/passwd x\nexec usr/bin/stranger x",
    )
    link(tmp_path, "/tmp/nvidia-mps", "/etc")
    head, step = NAMES[name]
    told = ask(tmp_path, name)
    assert head in told
    assert any(line.endswith(step) for line in told), told


@pytest.mark.parametrize("name", ["", "\x1b[2J", "a\nb", "..", "/", "*" * 50, "x" * 5000])
def test_why_takes_any_name(tmp_path: Path, name: str) -> None:
    assert all(line.isprintable() for line in ask(tmp_path, name))
