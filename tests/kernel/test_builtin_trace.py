"""The system calls of a builtin update-ldcache: no process is started, nothing is opened but what has to be."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from lib import elfmaker, hookproc, proc
from lib.hookproc import FakeContainer, run_hook
from lib.rootfs import TRIPLET, glibc_rootfs, tree

from tests.kernel.ldcaches import MARKS, driver, listed, run_ldconfig

pytestmark = MARKS
LIBDIR = f"usr/lib/{TRIPLET}"
WORDS = ["update-ldcache", "--folder", "/opt/nv"]
STARTS = "clone,clone3,fork,vfork,execve,execveat"
# With --compat a wrapper, which strace starts, executes the hook.
WRAPPERS = 1 if os.environ.get(hookproc.COMPAT_SWITCH) else 0


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Fifty libraries in the image's cache, and two of a driver that are not."""
    path = glibc_rootfs(tmp_path / "rootfs")
    for i in range(50):
        elfmaker.make_so(path / LIBDIR / f"libold{i}.so.1.2", f"libold{i}.so.1")
    run_ldconfig(path)
    driver(path)
    return path


def traced(
    root: Path, calls: str, stage: hookproc.Stage = "createContainer", words: Sequence[str] = WORDS, setup: str = "",
    *flags: str,
) -> list[str]:  # fmt: skip
    """The lines of strace for a run in a container that went well; each begins with a pid."""
    log = root.parent / "trace"
    prefix = ["strace", "-f", "-qqq", "-s", "512", *flags, "-e", f"trace={calls}", "-e", "signal=none", "-o", str(log)]
    with FakeContainer(root, setup=setup) as c:
        result: proc.Result = run_hook(words, container=c, stage=stage, prefix=prefix, timeout=30.0)
    assert (result.rc, result.stderr) == (0, "")
    return log.read_text(errors="replace").splitlines()


# -- processes ------------------------------------------------------------------------------------------------------


def test_inside_the_container_no_process_is_started(root: Path) -> None:
    """createContainer: execve of the interpreter by strace is the first call and the only one."""
    lines = traced(root, STARTS)
    assert [re.sub(r"^\d+ +(\w+)\(.*", r"\1", line) for line in lines] == ["execve"] * (WRAPPERS + 1)
    assert "libnva.so.1" in listed(root)


def test_outside_there_is_the_hooks_own_worker_and_nothing_else(root: Path) -> None:
    """createRuntime: one fork of the interpreter, to enter the container's mount namespace; it executes nothing."""
    lines = traced(root, STARTS, "createRuntime")[WRAPPERS:]
    calls = [re.sub(r"^\d+ +(\w+)\(.*", r"\1", line) for line in lines]
    assert calls[0] == "execve"
    assert len(calls) == 2
    assert calls[1] in ("clone", "clone3", "fork", "vfork")
    first, second = (line.split()[0] for line in lines)
    assert first == second, "the worker has started something"


def test_the_ldconfig_engine_is_seen_to_start_processes(root: Path) -> None:
    """What the two tests above look at is there when there is something to see."""
    lines = traced(root, STARTS, words=[*WORDS, "--engine", "ldconfig"])
    assert sum("exec" in line for line in lines) > 1
    assert any(re.match(r"\d+ +(clone|fork|vfork)", line) for line in lines)


def test_without_the_newer_system_calls_no_process_is_started_either(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(hookproc.COMPAT_SWITCH, "1")
    lines = traced(root, STARTS)
    assert not any(re.match(r"\d+ +(clone|fork|vfork)", line) for line in lines)


# -- opens ----------------------------------------------------------------------------------------------------------


def opens(root: Path, setup: str = "") -> list[str]:
    """Every open of the hook below the root (strace -y tells which file it was), without the interpreter's own."""
    lines = traced(root, "open,openat,openat2", "createContainer", WORDS, setup, "-y")
    return [line for line in lines if f"<{root}" in line and "AT_FDCWD" not in line]


def opened(lines: Sequence[str]) -> set[str]:
    """The libraries among them, by name."""
    return {m[1] for line in lines for m in re.finditer(r'[/"]((?:lib|ld-)[^/">]*\.so[^/">]*)[">]', line)}


def test_what_the_cache_explains_is_not_opened(root: Path) -> None:
    assert opened(opens(root)) == {"libnva.so.1.2", "libnvb.so.1.2"}


def test_without_a_cache_everything_is_opened(root: Path) -> None:
    """So the test before would see it."""
    (root / "etc/ld.so.cache").unlink()
    names = opened(opens(root))
    assert {f"libold{i}.so.1.2" for i in range(50)} <= names


def test_a_mounted_library_is_opened_though_the_cache_has_it(root: Path, tmp_path: Path) -> None:
    new = elfmaker.make_so(tmp_path / "new", "libold7.so.1")
    setup = f'mount --bind {new} "$R/{LIBDIR}/libold7.so.1.2"'
    names = opened(opens(root, setup))
    assert names - {"libold7.so.1"} == {"libold7.so.1.2", "libnva.so.1.2", "libnvb.so.1.2"}


SPECIAL = {"fifo": "fifo {}", "socket": "socket {}", "zero": "char {} 1 5", "block": "block {} 7 0"}


@pytest.mark.parametrize("kind", SPECIAL)
@pytest.mark.parametrize("how", ["file", "link"])
def test_what_is_no_regular_file_is_never_opened_for_reading(root: Path, kind: str, how: str) -> None:
    """O_PATH is not an open: no driver and no peer hears of it. What the listing shows to be none is not even that."""
    path = "opt/nv/libspecial.so.1" if how == "file" else "opt/nv/special"
    tree(root, SPECIAL[kind].format(path))
    if how == "link":
        tree(root, "symlink opt/nv/libspecial.so.1 special")
    lines = opens(root)
    assert any("libnva.so.1.2" in line for line in lines)
    about = [line for line in lines if "special" in line]
    assert bool(about) == (how == "link")
    assert [line for line in about if "O_PATH" not in line] == []


def test_a_fifo_without_a_writer_holds_nobody_and_a_reader_is_never_seen(root: Path) -> None:
    """A writer that is opened without waiting gets ENXIO as long as there is no reader."""
    tree(root, "fifo opt/nv/libfifo.so.1\nfifo opt/nv/libfifo2.so\nsymlink opt/nv/libfifo3.so.1 libfifo2.so")
    with FakeContainer(root) as c:
        result = run_hook(WORDS, container=c, stage="createContainer", timeout=5.0)
    assert result.ok, result.stderr
    assert result.wall < 3
    with pytest.raises(OSError, match="No such device or address"):
        os.open(root / "opt/nv/libfifo.so.1", os.O_WRONLY | os.O_NONBLOCK)


def test_nothing_in_the_root_is_mapped_or_executed(root: Path) -> None:
    """A file that is truncated while it is mapped is a SIGBUS: libraries are read with pread(2)."""
    lines = traced(root, "mmap,execve,execveat,uselib", "createContainer", WORDS, "", "-y")
    assert [line for line in lines if f"<{root}/" in line] == []


def test_nothing_is_synced(root: Path) -> None:
    """No fsync in a container's root: a start must not wait for a disk."""
    assert traced(root, "fsync,fdatasync,sync,syncfs,sync_file_range,msync") == []
