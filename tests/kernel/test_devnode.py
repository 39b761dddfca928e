"""nvoci.linux.devnode: nodes of the host are checked by handle, and new ones are what they should be."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from lib.rootfs import tree

from nvoci.errors import HookError
from nvoci.hook.devices import Source
from nvoci.linux import devnode
from nvoci.linux.devnode import HostNode
from tests.kernel.namespaced import isolated

pytestmark = [pytest.mark.kernel, pytest.mark.skipif(os.geteuid() != 0, reason="device nodes need root")]

HOST_TREE = """
char dev/nvidia0 195 0 666
char dev/nvidia1 195 1 640
block dev/disk 7 3 600
dir dev/nvidia-caps
char dev/nvidia-caps/nvidia-cap1 235 1 444
symlink dev/link nvidia0
symlink dev/absolute /dev/nvidia0
symlink dev/out ../../../../../../../../dev/null
symlink dirs/there /dev/nvidia-caps
symlink dirs/outside /../../../../../../../../../../dev
file dev/file text
fifo dev/fifo
socket dev/socket
"""
GPU = ("c", 195, 0)


@pytest.fixture
def host(tmp_path: Path) -> Path:
    return tree(tmp_path / "host", HOST_TREE)


def opened(path: Path) -> int:
    return os.open(path, os.O_PATH | os.O_DIRECTORY)


# -- nodes of the host ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "number", "mode"),
    [
        (b"dev/nvidia0", GPU, 0o666),
        (b"/dev/nvidia1", ("c", 195, 1), 0o640),
        (b"dev/disk", ("b", 7, 3), 0o600),
        (b"dirs/there/nvidia-cap1", ("c", 235, 1), 0o444),
        (b"/../../dev/nvidia0", GPU, 0o666),
    ],
)
def test_a_node_is_what_its_handle_says(host: Path, path: bytes, number: devnode.Number, mode: int) -> None:
    node = HostNode.open(opened(host), path, number)
    assert (node.number, node.mode) == (number, mode)
    assert HostNode.open(opened(host), path).number == number


@pytest.mark.parametrize(
    ("path", "number", "reason"),
    [
        (b"dev/nvidia9", None, "use device dev/nvidia9: ENOENT (load the driver"),
        (b"dev/nvidia1", GPU, "use device dev/nvidia1: is c 195:1, should be c 195:0"),
        (b"dev/disk", ("c", 7, 3), "is b 7:3, should be c 7:3"),
        (b"dev/link", GPU, "is not a device node"),
        (b"dev/absolute", GPU, "is not a device node"),
        (b"dev/file", None, "is not a device node"),
        (b"dev/fifo", None, "is not a device node"),
        (b"dev/socket", None, "is not a device node"),
        (b"dev", None, "is not a device node"),
        (b"dirs/outside/null", None, "ENOENT"),
        (b"dev/nvidia0/x", None, "ENOTDIR"),
    ],
)
def test_anything_else_is_named(host: Path, path: bytes, number: devnode.Number | None, reason: str) -> None:
    with pytest.raises(HookError) as caught:
        HostNode.open(opened(host), path, number)
    assert reason in caught.value.line()


def test_a_node_stays_what_it_was_when_the_name_is_given_to_another(host: Path) -> None:
    """A driver that is loaded anew gives other numbers; what is allowed is that of the node that was opened."""
    node = Source.open(opened(host), b"dev/nvidia0", GPU)
    (host / "dev/nvidia0").unlink()
    os.mknod(host / "dev/nvidia0", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    assert str(node.rule()) == "c 195:0 rw"
    st = node.tree.object.stat()
    assert devnode.number_of(st) == GPU


# -- nodes that are made --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("umask", [0, 0o777])
def test_a_new_node_has_exactly_its_number_mode_and_owner(tmp_path: Path, umask: int) -> None:
    def body() -> None:
        os.umask(umask)
        fd = devnode.make(opened(tmp_path), b"n", ("b", 259, 70_000), 0o640, (1000, 2000))
        st = (tmp_path / "n").lstat()
        assert (fd.stat().st_ino, stat.S_ISBLK(st.st_mode), st.st_rdev) == (st.st_ino, True, os.makedev(259, 70_000))
        assert (stat.S_IMODE(st.st_mode), st.st_uid, st.st_gid) == (0o640, 1000, 2000)

    isolated(body)


@pytest.mark.parametrize("there", ["file n text", "symlink n elsewhere", "dir n", "char n 195 0"])
def test_a_name_that_is_taken_is_left_alone(tmp_path: Path, there: str) -> None:
    tree(tmp_path, there)
    before = (tmp_path / "n").lstat()
    with pytest.raises(FileExistsError):
        devnode.make(opened(tmp_path), b"n", GPU, 0o666, None)
    after = (tmp_path / "n").lstat()
    assert (after.st_ino, after.st_mode) == (before.st_ino, before.st_mode)


def test_a_node_that_cannot_be_finished_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: object, **kwargs: object) -> None:
        raise OSError(1, "not permitted")

    monkeypatch.setattr("nvoci.linux.devnode.posix.chown", fails)
    with pytest.raises(OSError, match="not permitted"):
        devnode.make(opened(tmp_path), b"n", GPU, 0o666, (1, 1))
    assert list(tmp_path.iterdir()) == []
