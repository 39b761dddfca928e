"""Cgroups of a test's own, with device programs or a device list, and processes in them that try to open nodes."""

from __future__ import annotations

import errno
import json
import os
import stat
import struct
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from lib import session

from nvoci.linux import bpf, syscalls

# Numbers without a driver: an open that is allowed ends with ENXIO, one that is not with EPERM.
GPU, OTHER, DISK = ("c", 195, 0), ("c", 195, 1), ("b", 195, 0)
NULL = ("c", 1, 3)
FLAGS = {"r": os.O_RDONLY, "w": os.O_WRONLY, "rw": os.O_RDWR}


def top(kind: str) -> Path:
    """Where this host has its cgroup2 (`unified`), or the v1 `devices` hierarchy."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, target, fstype, options, *_ = line.split()
        needed = ("cgroup2", {"rw"}) if kind == "unified" else ("cgroup", {"rw", kind})
        if fstype == needed[0] and needed[1] <= set(options.split(",")):
            return Path(target)
    pytest.skip(f"no {kind} hierarchy is mounted here")


@contextmanager
def cgroup(kind: str, *below: str, setup: Callable[[Path], object] | None = None) -> Iterator[Path]:
    """A new cgroup, or a chain of them: cgroup("unified", "a", "b") yields …/a/b. setup(path) is called of the topmost
    before there are others below it."""
    made = [top(kind) / session.unique("dev")]
    made += [made[0].joinpath(*below[: i + 1]) for i in range(len(below))]
    made[0].mkdir()
    if setup is not None:
        setup(made[0])
    for path in made[1:]:
        path.mkdir()
    try:
        yield made[-1]
    finally:
        for path in reversed(made):
            path.rmdir()


@contextmanager
def member(*cgroups: Path, setup: Callable[[], object] | None = None) -> Iterator[int]:
    """A process in these cgroups; setup() is done in it. Yields its pid."""
    ready, told = os.pipe()
    hold, release = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(release)
            join(*cgroups)
            if setup is not None:
                setup()
            os.write(told, b"!")
            os.read(hold, 1)
        finally:
            os._exit(0)
    os.close(told)
    os.close(hold)
    try:
        assert os.read(ready, 1) == b"!", "the process did not get into its cgroups"
        yield pid
    finally:
        os.close(release)
        os.close(ready)
        os.waitpid(pid, 0)


def join(*cgroups: Path) -> None:
    """This process moves."""
    for path in cgroups:
        (path / "cgroup.procs").write_text(str(os.getpid()))


def answers(folder: Path, *cgroups: Path, wanted: Sequence[tuple[str, int, int]] = (GPU, OTHER)) -> list[str]:
    """`r w rw m` for each node as far as it is allowed to a process of these cgroups, e.g. ["r w rw", ""]."""
    for i, (kind, major, minor) in enumerate(wanted):
        node = folder / f"node{i}"
        if not node.exists():
            os.mknod(node, 0o666 | (stat.S_IFCHR if kind == "c" else stat.S_IFBLK), os.makedev(major, minor))
    receive, send = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            join(*cgroups)
            told = [_tries(folder / f"node{i}", number) for i, number in enumerate(wanted)]
            os.write(send, json.dumps(told).encode())
        finally:
            os._exit(0)
    os.close(send)
    with os.fdopen(receive) as stream:
        data = stream.read()
    os.waitpid(pid, 0)
    result: list[str] = json.loads(data)
    return result


def _tries(node: Path, number: tuple[str, int, int]) -> str:
    out = [
        name for name, flags in FLAGS.items() if _errno(lambda flags=flags: os.close(os.open(node, flags))) != "EPERM"
    ]
    made = node.with_name("made")
    kind = stat.S_IFCHR if number[0] == "c" else stat.S_IFBLK
    if _errno(lambda: os.mknod(made, kind | 0o600, os.makedev(*number[1:]))) == "":
        made.unlink()
        out.append("m")
    return " ".join(out)


def _errno(call: Callable[[], object]) -> str:
    try:
        call()
    except OSError as e:
        return errno.errorcode[e.errno or 0]
    return ""


# -- programs ---------------------------------------------------------------------------------------------------------


def attach(path: Path, code: bytes, flags: int = bpf.F_ALLOW_MULTI, name: bytes = b"theirs") -> int:
    """Load and attach; the program's id."""
    fd = bpf.prog_load(code, name)
    try:
        attach_fd(path, fd, flags)
        return prog_id(fd)
    finally:
        os.close(fd)


def attach_fd(path: Path, fd: int, flags: int = bpf.F_ALLOW_MULTI) -> None:
    directory = os.open(path, os.O_RDONLY)
    bpf.prog_attach(directory, fd, flags)
    os.close(directory)


def prog_id(fd: int) -> int:
    """As fdinfo has it."""
    lines = Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("prog_id:"))


def attached(path: Path) -> list[dict[str, Any]]:
    """bpftool's view of the device programs of a cgroup: id, attach_flags, name."""
    done = subprocess.run(["bpftool", "-j", "cgroup", "show", path], capture_output=True, text=True, check=True)
    shown = json.loads(done.stdout) if done.stdout.strip() else []
    return [one for one in shown if one["attach_type"] in {"device", "cgroup_device"}]


def ids(path: Path) -> list[int]:
    return [one["id"] for one in attached(path)]


def xlated(number: int) -> bytes:
    """The instructions as bpftool dumps them."""
    command = ["bpftool", "-j", "prog", "dump", "xlated", "id", str(number), "opcodes"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    out = b""
    for line in json.loads(done.stdout):
        codes = line["opcodes"]
        low, high = int(codes["src_reg"], 16), int(codes["dst_reg"], 16)
        out += bytes([int(codes["code"], 16), high | low << 4])
        out += bytes(int(c, 16) for c in (*codes["off"], *codes["imm"]))
    return out


def sysctl(name: str, value: str) -> Any:
    """Set /proc/sys/NAME for the length of a `with`."""

    @contextmanager
    def held() -> Iterator[None]:
        file = Path("/proc/sys") / name
        before = file.read_text()
        file.write_text(value)
        try:
            yield
        finally:
            file.write_text(before)

    return held()


def drop_capabilities(*numbers: int) -> None:
    """This process no longer has them."""
    line = next(one for one in Path("/proc/self/status").read_text().splitlines() if one.startswith("CapEff:"))
    left = int(line.split()[1], 16)
    for number in numbers:
        left &= ~(1 << number)
    syscalls.capset(left, left, 0)


def words(*numbers: int) -> bytes:
    """u32 each, for union bpf_attr."""
    return struct.pack(f"={len(numbers)}I", *numbers)
