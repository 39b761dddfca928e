"""Where `--debug` and NVC_DEBUG_FILE may write: not to what somebody else has put there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from lib import rootfs, session
from unit.prestart.prestarttools import needs_root

from nvoci import log
from nvoci.prestart import clilog

pytestmark = [pytest.mark.security, needs_root]
TREE = """
file etc/crontab host
dir logs
symlink logs/link ../etc/crontab
symlink logs/dangling ../etc/new
dir tmp
symlink tmp/link ../etc/crontab
symlink tmp/dangling ../etc/new
symlink tmp/etc ../etc
file tmp/own x
file tmp/theirs x
fifo tmp/fifo
dir home
file home/theirs x
"""
STRANGER = 1234


@pytest.fixture
def top(monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(log, "_sinks", [])
    found = rootfs.tree(session.new_dir("logs") / "t", TREE)
    (found / "tmp").chmod(0o1777)
    for name in ("tmp/theirs", "tmp/link", "tmp/fifo", "home", "home/theirs"):
        os.chown(found / name, STRANGER, STRANGER, follow_symlinks=False)
    os.link(found / "etc/crontab", found / "tmp/hard")
    return found


def logged(top: Path, name: str) -> bool:
    """Whether there is a log then."""
    clilog.start(f"{top}/{name}")
    log.info("told")
    return bool(log._sinks)


@pytest.mark.parametrize("name", ["logs/new", "tmp/new", "tmp/own", "home/new", "home/theirs", "etc/crontab"])
def test_a_file_of_ones_own_gets_the_log(top: Path, name: str) -> None:
    assert logged(top, name)
    text = (top / name).read_text()
    assert "debugging purposes" in text
    assert text.endswith("] told\n")


def test_a_link_that_root_has_put_there_is_followed(top: Path) -> None:
    assert logged(top, "logs/link")
    assert (top / "etc/crontab").read_text().startswith("host\n-- WARNING")


@pytest.mark.parametrize("name", ["tmp/link", "tmp/dangling", "tmp/etc/crontab", "tmp/etc/new", "tmp/hard", "tmp/fifo",
                                  "tmp/theirs", "logs/dangling", "tmp", "tmp/..", "nowhere/x"])  # fmt: skip
def test_nothing_is_written_to_what_another_has_put_there(top: Path, name: str) -> None:
    reader = os.open(top / "tmp/fifo", os.O_RDONLY | os.O_NONBLOCK)
    before = len(os.listdir("/proc/self/fd"))
    assert not logged(top, name)
    assert len(os.listdir("/proc/self/fd")) == before
    assert os.read(reader, 100) == b""
    os.close(reader)
    assert (top / "etc/crontab").read_text() == "host"
    assert (top / "tmp/theirs").read_text() == "x"
    assert os.listdir(top / "etc") == ["crontab"]


@pytest.mark.parametrize("name", ["/dev/stderr", "/dev/fd/2", "/proc/self/fd/2"])
def test_what_is_open_is_written_to_wherever_it_lies(top: Path, name: str) -> None:
    """A file in a directory of another's, or nothing that has a name at all."""
    reader, writer = os.pipe()
    saved = os.dup(2)
    os.dup2(writer, 2)
    try:
        clilog.start(name)
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(writer)
    assert b"debugging purposes" in os.read(reader, 200)
    os.close(reader)
