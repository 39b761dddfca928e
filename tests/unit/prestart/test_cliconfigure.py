"""Whom `nvidia-container-cli configure` takes for a container's process, before it looks at the node."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from lib import hookproc, jail, proc, session
from unit.prestart.prestarttools import needs_root

from nvoci.errors import HookError
from nvoci.linux.rootfs import Rootfs

pytestmark = needs_root
CLASS = "nvidia-container-cli: container error: "


@pytest.fixture
def zombie() -> Iterator[int]:
    process = subprocess.Popen(["/bin/true"])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    yield process.pid
    process.wait()


def configure(*words: str, prefix: tuple[str, ...] = ()) -> proc.Result:
    program = hookproc.entry("main", "nvoci.prestart.cli", "nvidia-container-cli")
    return proc.run(hookproc.command(["configure", *words, "/nowhere/rootfs"], program, prefix))


def refused(result: proc.Result) -> str:
    """The error, less its class."""
    assert (result.rc, result.stdout, result.survivors) == (1, "", [])
    (line,) = result.stderr.splitlines()
    assert line.startswith(CLASS)
    return line[len(CLASS) :]


def test_one_that_is_gone(zombie: int) -> None:
    assert refused(configure(f"--pid={zombie}")) == (
        f"pid {zombie}: no such process (ESRCH; the container's process is gone)"
    )
    assert refused(configure("-p4194305")).startswith("pid 4194305: no such process (ESRCH; ")


def test_a_kernel_thread() -> None:
    if Path("/proc/2/comm").read_text() != "kthreadd\n":
        pytest.skip("no kernel threads in this pid namespace")
    assert refused(configure("--pid=2")).startswith("pid 2 is a kernel thread (")


def test_a_proc_that_is_none() -> None:
    cover = ("/usr/bin/unshare", "--mount", "/bin/sh", "-c", 'mount -t tmpfs tmpfs /proc && exec "$@"', "sh")
    result = configure("--pid=1", prefix=cover)
    assert (result.rc, "/proc is not a procfs" in result.stderr, len(result.stderr.splitlines())) == (1, True, 1)


def test_settings_that_are_broken(tmp_path: Path) -> None:
    (tmp_path / "hook.json").write_text('{"timeout": "soon"}')
    script = f'mount -t tmpfs tmpfs /etc && mkdir /etc/nvoci && cp {tmp_path}/hook.json /etc/nvoci && exec "$@"'
    cover = ("/usr/bin/unshare", "--mount", "/bin/sh", "-c", script, "sh")
    assert refused(configure(prefix=cover)).startswith("read settings /etc/nvoci/hook.json: `timeout` is not a number")


def test_output_that_cannot_be_written() -> None:
    program = hookproc.entry("main", "nvoci.prestart.cli", "nvidia-container-cli")
    line = " ".join(hookproc.command(["--version"], program))
    full = proc.run(["/bin/sh", "-c", f"{line} >/dev/full"])
    told = "nvidia-container-cli: initialization error: write the output: no space left on device (ENOSPC; "
    assert (full.rc, full.stderr.startswith(told)) == (1, True), full.stderr
    unread = proc.run([session.PYTHON, "-ISc", f"""
import os
read, write = os.pipe()
os.close(read)
os.dup2(write, 1)
os.execv("/bin/sh", ["sh", "-c", {line!r}])
"""])  # fmt: skip
    assert (unread.rc, unread.stderr) == (1, "")


HOSTILE = "a\nnvidia-container-cli: all is well\x1b[2J\u202e"
WORDS: dict[str, list[str]] = {
    "rootfs": ["configure", "/nowhere/" + HOSTILE],
    "root": ["--root=/" + HOSTILE, "configure", "/nowhere/rootfs"],
    "relative root": ["-r", HOSTILE, "info"],
    "ldcache": ["--ldcache=/" + HOSTILE, "info"],
    "user": ["--user=" + HOSTILE, "info"],
    "device": ["configure", "--device=" + HOSTILE, "/nowhere/rootfs"],
    "channel": ["configure", "--imex-channel=" + HOSTILE, "/nowhere/rootfs"],
    "pid": ["configure", "--pid=" + HOSTILE, "/nowhere/rootfs"],
    "mode": ["configure", "--cuda-compat-mode=" + HOSTILE, "/nowhere/rootfs"],
    "relative rootfs": ["configure", HOSTILE],
}


@pytest.mark.security
@pytest.mark.parametrize("words", WORDS.values(), ids=WORDS)
def test_what_is_told_is_one_line(words: list[str]) -> None:
    program = hookproc.entry("main", "nvoci.prestart.cli", "nvidia-container-cli")
    result = proc.run([*jail.prefix("mount -t tmpfs run /run"), *hookproc.command(words, program)])
    assert result.rc == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith("nvidia-container-cli: ")
    assert line.isprintable()


@pytest.mark.security
def test_the_name_of_a_root_is_one_line() -> None:
    for path in (HOSTILE, "/nowhere/" + HOSTILE, f"/{HOSTILE}/../../proc/1/root/" + "../" * 9):
        with pytest.raises(HookError) as caught:
            Rootfs.open(path)
        assert caught.value.line().isprintable()
