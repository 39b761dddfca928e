"""What is made for the container's root, and given to it: never another's, and never something with a content."""

from __future__ import annotations

import os
from errno import ESTALE
from pathlib import Path

import pytest
from lib.rootfs import tree
from unit.prestart.prestarttools import needs_root

from nvoci.linux.fd import Fd
from nvoci.linux.rootfs import Made, Rootfs
from nvoci.prestart.rights import Given, give, take_back
from tests.kernel.namespaced import os_error

pytestmark = needs_root
OWNER = (1234, 1235)
TREE = "dir empty\ndir full\nfile full/x x\nfile text x\nfile nothing\nsymlink link text\nsymlink loop loop"


def owner(path: Path) -> tuple[int, int]:
    return path.lstat().st_uid, path.lstat().st_gid


def handle(path: Path) -> Fd:
    return Fd(os.open(path, os.O_PATH | os.O_NOFOLLOW))


def test_an_empty_directory_of_ours_is_given(tmp_path: Path) -> None:
    with handle(tree(tmp_path, TREE) / "empty") as fd:
        give(fd, OWNER, directory=True)
    assert owner(tmp_path / "empty") == OWNER


@pytest.mark.parametrize("name", ["full", "text", "link", "theirs"])
def test_what_took_its_place_is_not(tmp_path: Path, name: str) -> None:
    tree(tmp_path, TREE)
    (tmp_path / "theirs").mkdir()
    os.chown(tmp_path / "theirs", 5, 5)
    before = owner(tmp_path / name)
    with handle(tmp_path / name) as fd, os_error() as e:
        give(fd, OWNER, directory=True)
    assert (e.value.errno, owner(tmp_path / name)) == (ESTALE, before)


@pytest.mark.parametrize("made", ["empty", "full"])
def test_a_directory_on_the_way_is_given_if_it_is_the_one_that_was_made(tmp_path: Path, made: str) -> None:
    """It is on record before, so that undo takes it away again."""
    tree(tmp_path, TREE)
    parent, record = Rootfs.open(str(tmp_path)).dir(b""), Made()
    st = (tmp_path / "empty").stat()
    if made == "empty":
        Given(record, OWNER).add(parent, b"empty", st)
        assert owner(tmp_path / "empty") == OWNER
    else:
        with os_error() as e:
            Given(record, OWNER).add(parent, b"full", st)
        assert (e.value.errno, owner(tmp_path / "full")) == (ESTALE, (0, 0))
    record.undo()
    assert ((tmp_path / "empty").exists(), (tmp_path / "full/x").exists()) == (made == "full", True)


# name -> whether it is gone then
TAKEN = {"empty": True, "full": False, "text": False, "nothing": True, "link": True, "loop": True, "none": True}


@pytest.mark.parametrize("name", TAKEN)
def test_only_what_is_empty_is_taken_back(tmp_path: Path, name: str) -> None:
    take_back(Rootfs.open(str(tree(tmp_path, TREE))).dir(b""), name.encode())
    left = {*os.listdir(tmp_path)}
    assert left == {*TAKEN} - {"none"} - ({name} if TAKEN[name] else set())
