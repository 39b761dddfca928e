"""Rows Q6 and Q7: the tree that is installed, and its removal while a hook is at work."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from lib import proc, session
from lib.hookproc import FakeContainer
from security.arena import LIBDIR, Arena

pytestmark = pytest.mark.long  # tests/install has as much for every run
WORDS = [
    "run", "--", "create-symlinks", "--link", f"libcuda.so.1::/{LIBDIR}/libcuda.so",
    "--", "enable-cuda-compat", "--host-driver-version", "550.54.15", "--", "update-ldcache", "--folder", "/opt/x",
]  # fmt: skip


def install(prefix: Path, *words: str) -> str:
    done = proc.run([session.CHECKOUT / "scripts/install", "--prefix", prefix, *words], timeout=120)
    assert done.rc == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def prefix() -> Iterator[Path]:
    top = session.new_dir("installed")
    install(top / "nvoci")
    yield top / "nvoci"
    shutil.rmtree(top)


def contents(prefix: Path) -> dict[str, tuple[int, bytes]]:
    """Of every file below; the prefix itself, which entry files and the manifest name, is left out."""
    found = {}
    for path in sorted(prefix.rglob("*")):
        name, status = str(path.relative_to(prefix)), path.lstat()
        data = os.fsencode(os.readlink(path)) if path.is_symlink() else path.read_bytes() if path.is_file() else b""
        found[name] = (status.st_mode, data)
    return found


def test_q7_what_is_installed_is_root_s_and_without_special_modes_and_twice_the_same(prefix: Path) -> None:
    first = contents(prefix)
    for path in (prefix, *prefix.rglob("*")):
        status = path.lstat()
        assert (status.st_uid, status.st_gid) == (0, 0), path
        if not path.is_symlink():
            assert stat.S_IMODE(status.st_mode) in (0o755, 0o644), path
            assert not path.is_dir() or stat.S_IMODE(status.st_mode) == 0o755
            assert os.listxattr(path) == []
    install(prefix, "--uninstall")
    assert not prefix.exists() or list(prefix.rglob("*")) == []
    install(prefix)
    again = contents(prefix)
    assert [name for name in {*first, *again} if first.get(name) != again.get(name)] == []
    assert len(first) > 100


def test_q6_a_hook_that_runs_while_it_is_removed_does_all_or_nothing(prefix: Path, arena: Arena) -> None:
    """It has started, and waits for its state; by then all that it needs is loaded, or it says so in one line."""
    with FakeContainer(arena.root) as c:
        before = sorted(os.listdir(arena.root / LIBDIR))
        argv = [str(prefix / "bin/nvidia-cdi-hook"), *WORDS]
        with subprocess.Popen(argv, stdin=subprocess.PIPE, stderr=subprocess.PIPE, env=dict(proc.PLAIN_ENV)) as hook:
            while "nvidia-cdi-hook" not in proc.command_line(hook.pid) or not _waits(hook.pid):
                assert hook.poll() is None
            install(prefix, "--uninstall")
            _, said = hook.communicate(json.dumps(c.state()).encode(), timeout=20)
        made = os.path.lexists(arena.root / LIBDIR / "libcuda.so")
        assert made == (hook.returncode == 0), said
        if hook.returncode:
            assert said.count(b"\n") == 1
            assert sorted(os.listdir(arena.root / LIBDIR)) == before
    assert list(arena.root.rglob(".nvoci-*")) == []


def _waits(pid: int) -> bool:
    """For descriptor 0, in select(2)."""
    try:
        words = Path(f"/proc/{pid}/syscall").read_text().split()
    except OSError:
        return False
    return words[0] in ("23", "270", "72")  # select and pselect6 of x86_64, pselect6 of aarch64
