"""CSV lists of a Tegra system: the lines, and a whole list on a root that has what it may name."""

from __future__ import annotations

import contextlib
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from fuzz.registry import Target, register
from fuzz.trees import build

from nvoci.discover.model import DeviceNode, Mount
from nvoci.discover.node import Node, Options
from nvoci.discover.search import Search
from nvoci.discover.tegra import Tegra, parse

_FILE = "/etc/nvidia-container-runtime/host-files-for-container.d/drivers.csv"
_LIST = b"""\
# a comment
dev, /dev/nvhost-gpu
dir, /lib/firmware/tegra
lib, /usr/lib/tegra/libcuda.so.1.1
sym, /usr/lib/tegra/libcuda.so
"""
_TREE = (
    _LIST
    + b"""
@device dev/nvhost-gpu
@dir lib/firmware/tegra
@lib usr/lib/tegra/libcuda.so.1.1 libcuda.so.1
@link usr/lib/tegra/libcuda.so libcuda.so.1.1
@file etc/nv_tegra_release
# R36
"""
)
_PATTERNS = b"""\
lib, /usr/lib/*/lib*.so*
sym, /usr/lib/tegra/*.so
dev, /dev/nv*
dir, /lib/*
lib, /usr/lib/../../etc/passwd
sym, /out
@lib usr/lib/tegra/libx.so.1 ../libx.so
@link usr/lib/tegra/liby.so ../../../../../etc/passwd
@link usr/lib/tegra/libz.so libz.so
@link out ../../../../etc
@device dev/nvmap
@fifo usr/lib/tegra/libf.so
@link lib /usr/lib
"""


def _check_lines(data: bytes, case: str, answer: list[tuple[str, str]]) -> None:
    """By a regular expression."""
    wanted = []
    for line in case.split("\n"):
        found = re.fullmatch(r"\s*(dev|dir|lib|sym)\s*,\s*(\S(?:.*\S)?)\s*", line, re.DOTALL)
        if found:
            wanted.append((found[1], found[2]))
    assert answer == wanted


@contextlib.contextmanager
def _text(data: bytes) -> Iterator[str]:
    yield data.decode("utf-8", "replace")


register(
    Target(
        "csv", parse=parse, prepare=_text, errors=(), check=_check_lines, max_size=1 << 12, executions=2500,
        seeds=lambda: [_LIST, b"lib,/a\r\n sym , /b,c \nlib /d\nbogus, /e\n,\nlib,\n"],
        tokens=(b"lib, ", b"sym, ", b"dir, ", b"dev, ", b",", b"/", b"\n", b"\r", b"#", b" ", b"\t", b"\xc2\xa0",
                b"\x1c", b"\xe2\x80\xa8"),
    )
)  # fmt: skip


Taken = tuple[list[Mount], list[DeviceNode], Search]


@contextlib.contextmanager
def _root(data: bytes) -> Iterator[str]:
    root = Path(tempfile.mkdtemp())
    try:
        build(root, data, _FILE.lstrip("/").encode())
        for name in ("proc", "sys"):
            if not (root / name).is_dir():
                (root / name).unlink(missing_ok=True)
                (root / name).mkdir()
        yield str(root)
    finally:
        shutil.rmtree(root)


def _take(root: str) -> Taken:
    search = Search()
    with Node.open(root, proc=f"{root}/proc", sys=f"{root}/sys", machine="aarch64", release="5.15-tegra") as node:
        found = Tegra(node, search, Options("csv", csv_files=[_FILE], csv_ignore=["**/*.ignored"]))
        found.hooks(None)
        found.link_lists()
        return found.mounts(), list(found.devices.values()), search


def _check_taken(data: bytes, root: str, answer: Taken) -> None:
    """Nothing outside of the root, nothing that is not of its kind there, each place in the container once."""
    mounts, nodes, search = answer
    top = Path(root)
    for mount in mounts:
        host = Path(mount.host_path)
        assert host.is_relative_to(top)
        assert host.resolve() == host, "a link is mounted, or what lies outside"
        assert host.is_dir() if mount.kind == "directory" else host.is_file()
        assert mount.container_path.startswith("/")
        assert ".." not in mount.container_path.split("/")
    for node in nodes:
        assert Path(node.host_path).is_char_device()
        assert Path(node.host_path).is_relative_to(top)
    places = [each.container_path for each in (*mounts, *nodes)]
    assert len(set(places)) == len(places)
    lines = [problem.line() for problem in search.problems]
    assert all(line.isprintable() for line in lines)
    words = [line for lookup in search.lookups for line in lookup.lines()]
    assert all(isinstance(word, str) for word in words)


register(
    Target(
        "tegra", parse=_take, prepare=_root, errors=(), check=_check_taken, max_size=1 << 12, executions=500,
        seconds=0.05,
        seeds=lambda: [_TREE, _PATTERNS, b"", b"lib, /\nsym, /\ndir, /\ndev, /\n"],
        tokens=(b"lib, ", b"sym, ", b"dir, ", b"dev, ", b"/usr/lib/tegra/", b"*", b"?", b"[a-z]", b"\n", b"..",
                b"/", b"\n@link ",
                b"\n@lib usr/lib/tegra/libn.so.2 libn.so\n", b"\n@dir ", b"\n@device dev/", b"\n@fifo ", b"\0",
                b"\xff", b".ignored"),
    )
)  # fmt: skip
