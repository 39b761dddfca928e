"""The library that misbehaves as a test says (nvml_liar.c): made, asked, and nothing of it left."""

from __future__ import annotations

import os
import posix
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from lib import proc, session

from nvoci.discover import nvml
from nvoci.discover.nvml import NvmlAnswer
from nvoci.errors import HookError
from nvoci.linux import procfs

SOURCE = Path(__file__).with_name("nvml_liar.c")
NAME = "libnvidia-ml.so.1"
marks = [
    pytest.mark.kernel,
    pytest.mark.skipif(os.geteuid() != 0, reason="dropping privileges needs root"),
    pytest.mark.skipif(shutil.which("gcc") is None, reason="no gcc: apt-get install gcc libc6-dev"),
]
_made: dict[tuple[str, ...], Path] = {}


def library(*defines: str, soname: str = NAME) -> str:
    """A library that does as told, made once."""
    key = (soname, *defines)
    if key not in _made:
        out = session.new_dir("nvml") / "libnvidia-ml.so.550.163.01"
        flags = ["-shared", "-fPIC", "-Wall", "-Werror", "-Wno-misleading-indentation", f"-Wl,-soname,{soname}"]
        subprocess.run(["gcc", *flags, *(f"-D{d}" for d in defines), "-o", out, SOURCE], check=True, timeout=60)
        out.with_name(NAME).symlink_to(out.name)
        _made[key] = out
    return str(_made[key])


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """No child, no descriptor."""
    proc.become_subreaper()
    procfs.handle()  # stays open
    known, fds = set(proc.children()), len(os.listdir("/proc/self/fd"))
    yield
    assert proc.kill_survivors(known) == []
    assert len(os.listdir("/proc/self/fd")) == fds


def error(*defines: str, seconds: float = 10.0, wanted: Sequence[str] = (), soname: str = NAME) -> str:
    """The one line that comes of it, and quickly."""
    path = library(*defines, soname=soname)
    start = time.monotonic()
    with pytest.raises(HookError) as caught:
        nvml.query(path, seconds=seconds, wanted=wanted)
    assert time.monotonic() - start < seconds + 2
    line = caught.value.line()
    assert "\n" not in line
    assert caught.value.hint
    return line


def ask(*defines: str, wanted: Sequence[str] = ()) -> NvmlAnswer:
    return nvml.query(library(*defines), wanted=wanted)


def alive(pid: int) -> bool:
    """Running; as an orphan it is ours to reap."""
    try:
        if posix.waitpid(pid, posix.WNOHANG)[0] == pid:
            return False
    except ChildProcessError:
        pass
    return os.path.exists(f"/proc/{pid}")
