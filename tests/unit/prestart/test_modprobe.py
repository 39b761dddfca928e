"""modprobe as it is run: which program may be, how it ends, and that nothing of it stays."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from lib import proc
from lib.rootfs import busybox_rootfs

from nvoci.errors import HookError
from nvoci.prestart import modprobe
from tests.kernel.namespaced import isolated, sh

pytestmark = [pytest.mark.kernel, pytest.mark.skipif(os.geteuid() != 0, reason="runs a program as root")]
FLAGS = os.O_PATH | os.O_DIRECTORY


def program(folder: Path, script: str = "exit 0", mode: int = 0o755) -> Path:
    path = folder / "modprobe"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(mode)
    return path


def load(path: Path | str, seconds: float = 10.0, root: Path | str = "/") -> str:
    """The line of its error; "" for success."""
    before = set(os.listdir("/proc/self/fd"))
    fd = os.open(root, FLAGS)
    try:
        modprobe.load(fd, os.fsencode(path), b"nvidia", time.monotonic() + seconds)
    except HookError as e:
        return e.line()
    finally:
        os.close(fd)
        assert set(os.listdir("/proc/self/fd")) == before
    return ""


# -- which ------------------------------------------------------------------------------------------------------------

SETTING = {"as usual": ("/usr/bin/modprobe\n", b"/usr/bin/modprobe"), "without newline": ("/x", b"/x"),
           "turned off": ("\n", b""), "empty": ("", b"")}  # fmt: skip


@pytest.mark.parametrize(("text", "path"), SETTING.values(), ids=SETTING)
def test_the_program_is_the_kernels(tmp_path: Path, text: str, path: bytes) -> None:
    (tmp_path / "sys/kernel").mkdir(parents=True)
    fd = os.open(tmp_path, FLAGS)
    assert modprobe.program(fd) == b"/sbin/modprobe"
    (tmp_path / "sys/kernel/modprobe").write_text(text)
    assert modprobe.program(fd) == path


def test_a_program_of_roots_is_run(tmp_path: Path) -> None:
    assert load(program(tmp_path, f"echo $0 $1 >{tmp_path}/out")) == ""
    assert (tmp_path / "out").read_text().split()[1:] == ["nvidia"]


def test_links_lead_to_it(tmp_path: Path) -> None:
    program(tmp_path)
    (tmp_path / "link").symlink_to("modprobe")
    assert load(tmp_path / "link") == ""


REFUSED = {
    "others can write": ("chmod 757 modprobe", "mode 0757"),
    "the group can write": ("chgrp 5 modprobe; chmod 775 modprobe", "mode 0775"),
    "somebody's": ("chown 1000 modprobe", "owned by uid 1000"),
    "not executable": ("chmod 644 modprobe", "mode 0644"),
    "a directory": ("rm modprobe; mkdir modprobe", "a program of root's"),
    "a FIFO": ("rm modprobe; mkfifo -m 755 modprobe", "a program of root's"),
    "not there": ("rm modprobe", "ENOENT"),
    "a loop": ("rm modprobe; ln -s modprobe modprobe", "ELOOP"),
    "no program": ("printf '\\177ELF' >modprobe", "exit status 127: ENOEXEC"),
}


@pytest.mark.parametrize(("change", "reason"), REFUSED.values(), ids=REFUSED)
def test_any_other_is_not(tmp_path: Path, change: str, reason: str) -> None:
    program(tmp_path, f"touch {tmp_path}/ran")
    sh(f"cd {tmp_path}; {change}")
    assert reason in load(tmp_path / "modprobe")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("path", ["modprobe", "", "./modprobe", "sbin/../modprobe"])
def test_a_path_that_is_not_absolute_is_refused(path: str) -> None:
    assert "not an absolute path" in load(path)


def test_what_is_run_is_what_was_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another one that takes its name meanwhile is not."""
    path = program(tmp_path, f"echo good >{tmp_path}/out")
    fork = os.fork

    def exchanged() -> int:
        path.rename(tmp_path / "old")
        program(tmp_path, f"echo bad >{tmp_path}/out")
        return fork()

    monkeypatch.setattr("nvoci.prestart.modprobe.posix.fork", exchanged)
    assert load(path) == ""
    assert (tmp_path / "out").read_text() == "good\n"


# -- how it ends ------------------------------------------------------------------------------------------------------

ENDS = {
    "a status": ("echo one >&2; echo 'FATAL: no such module' >&2; exit 3", "exit status 3: FATAL: no such module"),
    "a signal": ("kill -9 $$", "killed by signal 9"),
    "silent": ("exit 1", "exit status 1: "),
    "not text": ("printf '\\033[2J\\377' >&2; exit 1", "exit status 1: \\x1b[2J"),
    "endless words": ("yes | head -c 1000000 >&2; exit 1", "exit status 1"),
}


@pytest.mark.parametrize(("script", "message"), ENDS.values(), ids=ENDS)
def test_how_it_ends_is_told(tmp_path: Path, script: str, message: str) -> None:
    line = load(program(tmp_path, script))
    assert message in line
    assert len(line) < 700
    assert line.isprintable()


@pytest.mark.parametrize("script", ["sleep 60", "sleep 60 & wait", "trap '' TERM; while :; do sleep 60; done"])
def test_at_the_deadline_all_of_it_is_killed(tmp_path: Path, script: str) -> None:
    begun = time.monotonic()
    assert "not finished in time, and killed" in load(program(tmp_path, f"echo $$ >{tmp_path}/pid; {script}"), 0.3)
    assert time.monotonic() - begun < 5
    pid = int((tmp_path / "pid").read_text())
    deadline = time.monotonic() + 5
    while any(f"{pid}" == line.split(")")[-1].split()[3] for line in _stats()) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(f"{pid}" == line.split(")")[-1].split()[3] for line in _stats()), "its session lives on"


def _stats() -> list[str]:
    """/proc/PID/stat of every process that is not a zombie."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            line = path.read_text()
        except OSError:
            continue
        if line.split(")")[-1].split()[0] != "Z":
            found.append(line)
    return found


def test_what_it_leaves_running_is_not_waited_for(tmp_path: Path) -> None:
    """Its stderr is held open by another process."""
    begun = time.monotonic()
    assert load(program(tmp_path, "sleep 3 & echo $! >" + str(tmp_path / "pid"))) == ""
    assert time.monotonic() - begun < 2
    os.kill(int((tmp_path / "pid").read_text()), 9)


def test_it_ends_with_us(tmp_path: Path) -> None:
    path = program(tmp_path, f"echo $$ >{tmp_path}/pid; exec sleep 60")
    pid = os.fork()
    if pid == 0:
        load(path, 60)
        os._exit(0)
    deadline = time.monotonic() + 10
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    child = int((tmp_path / "pid").read_text())
    while proc.children(os.getpid()).count(child) and time.monotonic() < deadline:
        os.waitpid(child, 0)  # it was given to us, a subreaper
    assert not Path(f"/proc/{child}").exists()


def test_in_a_root_of_its_own(tmp_path: Path) -> None:
    """The driver's: path, interpreter and module are those of that root."""
    root = busybox_rootfs(tmp_path / "root")
    (root / "sbin").mkdir()
    program(root / "sbin", "echo $1 >/out; pwd >>/out; ls / >>/out")

    def body() -> str:
        # A script is opened once more, by /dev/fd; a real modprobe is none.
        sh(f"mount -t proc proc {root}/proc; ln -s /proc/self/fd {root}/dev/fd; mknod -m 666 {root}/dev/null c 1 3")
        return load("/sbin/modprobe", root=root)

    assert isolated(body) == ""
    words = (root / "out").read_text().split()
    assert words[:2] == ["nvidia", "/"]
    assert {"sbin", "etc"} <= set(words)
    assert "vmlinuz" not in words


def test_who_has_lost_its_parent_does_not_run_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the fork and the call that ends it with us."""
    parents = iter([1, 2])
    monkeypatch.setattr("nvoci.prestart.modprobe.posix.getppid", lambda: next(parents))
    assert "exit status 127" in load(program(tmp_path, f"touch {tmp_path}/ran"))
    assert not (tmp_path / "ran").exists()


def test_at_the_deadline_it_is_killed_before_it_has_a_session_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nvoci.prestart.modprobe.posix.setsid", lambda: time.sleep(60))
    begun = time.monotonic()
    assert "not finished in time, and killed" in load(program(tmp_path, f"touch {tmp_path}/ran"), 0.2)
    assert (time.monotonic() - begun < 5, (tmp_path / "ran").exists()) == (True, False)
