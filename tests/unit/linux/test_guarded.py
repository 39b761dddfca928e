"""Paths through directories that others may write: which links are followed, whose things are trusted, and a race."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from errno import EINVAL, ELOOP, ENAMETOOLONG, ENOENT, ENOTDIR
from pathlib import Path
from typing import Any

import pytest
from lib import rootfs, session
from lib.flipper import Flipper

from nvoci.linux import guarded
from nvoci.linux.fd import Fd
from nvoci.linux.lookup import lookup

pytestmark = [pytest.mark.security, pytest.mark.skipif(os.geteuid() != 0, reason="gives directories to somebody else")]
TREE = """
dir etc/secret
dir run/daemon
symlink var/run /run
symlink var/up ../../../../run
symlink loop loop
symlink dangling nowhere
dir tmp
dir tmp/own
file tmp/file x
symlink tmp/link ../etc/secret
symlink tmp/absolute /etc/secret
dir home/pipe
symlink home/link ../etc/secret
dir staff
symlink staff/link ../etc
dir group
symlink group/link ../etc
dir theirs/root
"""
STRANGER = 1234


@pytest.fixture
def top() -> Path:
    found = rootfs.tree(session.new_dir("top") / "t", TREE)
    (found / "tmp").chmod(0o1777)
    (found / "group").chmod(0o775)
    (found / "staff").chmod(0o775)
    os.chown(found / "staff", 0, 50)
    for name in ("tmp/own", "tmp/link", "home", "home/pipe", "home/link", "theirs", "run/daemon"):
        os.chown(found / name, STRANGER, STRANGER, follow_symlinks=False)
    return found


@pytest.fixture
def root(top: Path) -> Iterator[int]:
    with Fd(os.open(top, os.O_PATH)) as fd:
        yield fd.fileno()


FOLLOWED = ["", "/", "etc/secret", "/var/run/daemon", "var/up/daemon", "tmp/own", "tmp/file", "home/pipe", "group/link",
            "var/../var/./run//daemon/", "../../etc", "theirs/root"]  # fmt: skip


@pytest.mark.parametrize("path", FOLLOWED)
def test_it_leads_where_a_lookup_in_the_root_leads(root: int, path: str) -> None:
    with guarded.find(root, path.encode()) as found, Fd(lookup(root, path.encode())) as other:
        assert os.path.samestat(found.st, other.stat())
        assert os.path.samestat(found.st, found.fd.stat())


@pytest.mark.parametrize("path", ["tmp/link", "tmp/absolute", "home/link", "staff/link", "/tmp/link/x"])
def test_no_link_is_followed_that_another_may_have_put_there(root: int, path: str) -> None:
    with pytest.raises(OSError, match=guarded.LINK) as caught:
        guarded.find(root, path.encode())
    assert (caught.value.errno, caught.value.filename) == (ELOOP, path.encode())


ERRORS: dict[bytes, int] = {
    b"loop": ELOOP, b"dangling": ENOENT, b"nowhere/x": ENOENT, b"tmp/file/x": ENOTDIR, b"etc\0": EINVAL,
    b"x/" * 2048: ENAMETOOLONG,
}  # fmt: skip


@pytest.mark.parametrize("path", ERRORS, ids=lambda path: repr(path[:12]))
def test_what_cannot_be_found(root: int, path: bytes) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError) as caught:  # noqa: PT011
        guarded.find(root, path)
    assert caught.value.errno == ERRORS[path]
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_link_itself(top: Path, root: int) -> None:
    with guarded.find(root, b"/var/run", follow=False) as found:
        assert os.path.samestat(found.st, (top / "var/run").lstat())
    with guarded.find(root, b"/var/run/daemon", follow=False) as found:
        assert os.path.samestat(found.st, (top / "run/daemon").stat())


STRANGERS: dict[str, str] = {
    "etc/secret": "", "run/daemon": "", "tmp/file": "", "home/pipe": "", "theirs/root": "",
    "tmp/own": f"owned by uid {STRANGER}, in a directory that others may write",
}  # fmt: skip


@pytest.mark.parametrize("path", STRANGERS)
def test_whose_a_thing_may_be(root: int, path: str) -> None:
    with guarded.find(root, path.encode()) as found:
        assert found.stranger() == STRANGERS[path]


def test_what_two_may_write_is_the_thing_of_neither(top: Path, root: int) -> None:
    os.chown(top / "home/pipe", STRANGER + 1, 0)
    with guarded.find(root, b"home/pipe") as found:
        assert found.stranger() == f"owned by uid {STRANGER + 1}, in a directory that others may write"


def test_the_owner_of_the_root_is_trusted(top: Path) -> None:
    """Root of the host, as a user namespace shows it that does not map it."""
    for name in (".", "tmp", "etc/secret"):
        os.chown(top / name, 65534, 65534)
    with Fd(os.open(top, os.O_PATH)) as fd, guarded.find(fd.fileno(), b"var/run/daemon") as found:
        assert found.stranger() == ""


Swap = Callable[[Path], tuple[Path, Path]]


def _link_for_directory(top: Path) -> tuple[Path, Path]:
    (top / "tmp/mps").mkdir()
    (top / "tmp/x").symlink_to(top / "etc/secret")
    return top / "tmp/mps", top / "tmp/x"


def _link_above(top: Path) -> tuple[Path, Path]:
    (top / "tmp/a/mps").mkdir(parents=True)
    (top / "etc/mps").mkdir()
    (top / "tmp/x").symlink_to("../etc")
    return top / "tmp/a", top / "tmp/x"


@pytest.mark.parametrize(("swap", "path"), [(_link_for_directory, "tmp/mps"), (_link_above, "tmp/a/mps")])
def test_who_exchanges_a_directory_for_a_link_gets_neither_checked_nor_opened_another(
    top: Path, root: int, swap: Swap, path: str
) -> None:
    names = swap(top)
    wanted = (top / path).stat()
    outcomes: dict[Any, int] = {}
    with Flipper(*names) as flipper:
        for _ in range(4000):
            try:
                with guarded.find(root, path.encode()) as found:
                    outcome = found.st.st_ino == wanted.st_ino == found.fd.stat().st_ino
            except OSError as e:
                outcome = e.strerror == guarded.LINK
            outcomes[outcome] = outcomes.get(outcome, 0) + 1
        assert flipper.rounds > 10
    assert list(outcomes) == [True]
