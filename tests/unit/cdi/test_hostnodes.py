"""What device nodes leave to the host, asked of a made-up one and of the real /dev."""

from __future__ import annotations

import os
import stat
from dataclasses import replace
from errno import EACCES, ENOENT
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nvoci.cdi import hostnodes
from nvoci.cdi.error import SpecError
from nvoci.cdi.model import ContainerEdits, DeviceNode

CHAR, BLOCK, FIFO, FILE, LINK = stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFREG, stat.S_IFLNK
HOST = {
    "/dev/c": (CHAR | 0o660, 195, 7),
    "/dev/b": (BLOCK | 0o4600, 8, 1),
    "/dev/p": (FIFO | 0o600, 0, 0),
    "/dev/f": (FILE | 0o600, 0, 0),
    "/dev/l": (LINK | 0o777, 0, 0),
    "/dev/é": (CHAR | 0o666, 1, 3),
}


def lstat(path: str) -> Any:
    if path == "/dev/secret":
        raise PermissionError(EACCES, "no", path)
    if path not in HOST:
        raise FileNotFoundError(ENOENT, "no", path)
    mode, major, minor = HOST[path]
    return SimpleNamespace(st_mode=mode, st_rdev=os.makedev(major, minor))


def filled(node: DeviceNode) -> DeviceNode:
    edits = hostnodes.fill_in(ContainerEdits(env=("A=1",), device_nodes=(node,)), lstat)
    assert edits.env == ("A=1",)
    return edits.device_nodes[0]


CASES = {
    "all of it": (DeviceNode("/dev/c"), {"type": "c", "major": 195, "minor": 7, "file_mode": 0o660}),
    "by the host's path": (
        DeviceNode("/x", host_path="/dev/b"), {"type": "b", "major": 8, "minor": 1, "file_mode": 0o600},
    ),
    "a FIFO has no numbers": (DeviceNode("/dev/p"), {"type": "p", "file_mode": 0o600}),
    "the mode that is given stays": (
        DeviceNode("/dev/c", file_mode=0), {"type": "c", "major": 195, "minor": 7, "file_mode": 0},
    ),
    "the numbers that are given stay": (
        DeviceNode("/dev/c", major=1, minor=0), {"type": "c", "file_mode": 0o660},
    ),
    "a minor number alone is none": (
        DeviceNode("/dev/c", minor=3), {"type": "c", "major": 195, "minor": 7, "file_mode": 0o660},
    ),
    "a type alone": (DeviceNode("/dev/c", type="c"), {"major": 195, "minor": 7, "file_mode": 0o660}),
    "an unbuffered one": (DeviceNode("/dev/c", type="u"), {"major": 195, "minor": 7, "file_mode": 0o660}),
    "whole: only the mode": (DeviceNode("/dev/c", type="b", major=1), {"file_mode": 0o660}),
    "whole, and not there": (DeviceNode("/dev/none", type="c", major=1, minor=2), {}),
    "whole, and unreadable": (DeviceNode("/dev/secret", type="c", major=1), {}),
    "whole, and a file there": (DeviceNode("/dev/f", type="c", major=1), {}),
    "a FIFO that is not there": (DeviceNode("/dev/none", type="p"), {}),
    "not ASCII": (DeviceNode("/dev/é"), {"type": "c", "major": 1, "minor": 3, "file_mode": 0o666}),
}  # fmt: skip


@pytest.mark.parametrize(("node", "fields"), CASES.values(), ids=CASES.keys())
def test_what_is_left_out_is_that_of_the_host(node: DeviceNode, fields: dict[str, Any]) -> None:
    done = filled(node)
    assert done == replace(node, **fields)
    assert filled(done) == done


ERRORS = {
    "missing": (DeviceNode("/dev/none"), "stat device node /dev/none: ENOENT"),
    "missing, of the host's path": (DeviceNode("/x", host_path="/y\n"), "stat device node /y\\n: ENOENT"),
    "type but no number": (DeviceNode("/dev/none", type="c"), "stat device node /dev/none: ENOENT"),
    "number but no type": (DeviceNode("/dev/none", major=1), "stat device node /dev/none: ENOENT"),
    "unreadable": (DeviceNode("/dev/secret"), "stat device node /dev/secret: EACCES"),
    "file": (DeviceNode("/dev/f"), "stat device node /dev/f: not a device node"),
    "link": (DeviceNode("/dev/l"), "stat device node /dev/l: not a device node"),
    "another type": (DeviceNode("/dev/c", type="b"), "stat device node /dev/c: its type is c, not b"),
    "no FIFO": (DeviceNode("/dev/p", type="c"), "stat device node /dev/p: its type is p, not c"),
    "no path": (DeviceNode("/dev/\0"), "stat device node /dev/\\x00: not a path"),
}


@pytest.mark.parametrize(("node", "why"), ERRORS.values(), ids=ERRORS.keys())
def test_what_is_not_there_is_an_error(node: DeviceNode, why: str) -> None:
    with pytest.raises(SpecError) as e:
        hostnodes.fill_in(ContainerEdits(device_nodes=(DeviceNode("/dev/c"), node)), lstat)
    assert (e.value.why, e.value.where) == (why, "deviceNodes[1]")


def test_edits_that_need_nothing_are_returned_as_they_are() -> None:
    for edits in (ContainerEdits(env=("A=1",)), ContainerEdits(device_nodes=(DeviceNode("/n", type="c", major=1),))):
        assert hostnodes.fill_in(edits, lstat) is edits


def test_the_real_host_is_asked(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo", 0o640)
    edits = ContainerEdits(device_nodes=(DeviceNode("/dev/null"), DeviceNode(str(tmp_path / "fifo"))))
    null, fifo = hostnodes.fill_in(edits).device_nodes
    assert (null.type, null.major, null.minor) == ("c", 1, 3)
    assert fifo.type == "p"
    assert fifo.file_mode == os.stat(tmp_path / "fifo").st_mode & 0o777
