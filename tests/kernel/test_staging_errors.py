"""nvoci.linux.staging where something else is quicker, or the file system refuses: an error, and nothing left."""

from __future__ import annotations

import fcntl
import os
import posix
from collections.abc import Callable
from errno import EAGAIN, EISDIR, EMFILE, ENOLCK, ENOSPC, EPERM, EROFS
from pathlib import Path
from typing import Any

import pytest

from nvoci.errors import HookError
from nvoci.linux import staging
from nvoci.linux.rootfs import Rootfs
from nvoci.linux.staging import NAME, NAMES, Staging, sweep
from tests.kernel.namespaced import os_error
from tests.kernel.refusal import nth, refusing

pytestmark = pytest.mark.kernel
Patch = pytest.MonkeyPatch
TMP = NAME.decode()


def test_a_name_that_comes_and_goes_is_given_up(path: Path, rootfs: Rootfs, monkeypatch: Patch) -> None:
    """It is there for the rename, and gone for the look at it, each time."""

    def there(*args: Any) -> None:
        raise FileExistsError

    monkeypatch.setattr(staging, "rename_noreplace", there)
    stage = Staging(rootfs.dir(b"d"))
    with os_error() as caught:
        stage.publish(stage.new_link(b"x"), b"name")
    stage.close()
    assert (caught.value.errno, caught.value.filename) == (EAGAIN, b"name")
    assert os.listdir(path) == []


def test_a_directory_that_comes_before_it_is_taken_goes_back(path: Path, rootfs: Rootfs) -> None:
    (path / "name").mkdir()
    (path / "name/theirs").touch()
    stage = Staging(rootfs.dir(b"d"))
    with os_error() as caught:
        stage.take(b"name")
    assert (caught.value.errno, caught.value.filename) == (EISDIR, b"name")
    stage.close()
    assert os.listdir(path) == ["name"]
    assert os.listdir(path / "name") == ["theirs"]


def test_what_is_not_there_is_not_taken(path: Path, rootfs: Rootfs) -> None:
    stage = Staging(rootfs.dir(b"d"))
    with pytest.raises(FileNotFoundError):
        stage.take(b"none")
    stage.close()
    assert os.listdir(path) == []


@pytest.mark.parametrize("call", ["rename_noreplace", "exchange"])
@pytest.mark.parametrize("number", [EROFS, ENOSPC, EPERM])
def test_a_rename_that_is_refused_is_an_error(
    path: Path, rootfs: Rootfs, monkeypatch: Patch, call: str, number: int
) -> None:
    (path / "name").write_text("image")
    flags = getattr(staging.abi, "RENAME_NOREPLACE" if call == "rename_noreplace" else "RENAME_EXCHANGE")
    monkeypatch.setattr(staging, "renameat2", refusing(staging.renameat2, number, lambda *a: a[4] == flags))
    stage = Staging(rootfs.dir(b"d"))
    with os_error() as caught:
        stage.publish(stage.new_file(b"ours", 0o644), b"name")
    stage.close()
    assert caught.value.errno == number
    assert os.listdir(path) == ["name"]
    assert (path / "name").read_text() == "image"


OPENING: dict[str, tuple[Callable[[Patch], None], int]] = {
    "no directory can be made": (lambda m: m.setattr(posix, "mkdir", refusing(posix.mkdir, EROFS)), EROFS),
    "no descriptor is left": (lambda m: m.setattr(posix, "open", refusing(posix.open, EMFILE)), EMFILE),
    "no locks": (lambda m: m.setattr(fcntl, "flock", refusing(fcntl.flock, ENOLCK)), ENOLCK),
    "not to be listed": (lambda m: m.setattr(posix, "scandir", refusing(posix.scandir, ENOSPC)), ENOSPC),
    "immutable": (lambda m: m.setattr(posix, "scandir", refusing(posix.scandir, EPERM)), EPERM),
}


@pytest.mark.parametrize("case", OPENING)
def test_a_directory_that_cannot_be_used_is_not_left_behind(
    path: Path, rootfs: Rootfs, monkeypatch: Patch, case: str
) -> None:
    setup, number = OPENING[case]
    directory = rootfs.dir(b"d")
    directory.fileno()
    with monkeypatch.context() as patch:
        setup(patch)
        with os_error() as caught:
            Staging(directory)
    assert caught.value.errno == number
    assert os.listdir(path) == []


def test_what_is_no_lock_and_cannot_be_removed_stays(path: Path, rootfs: Rootfs, monkeypatch: Patch) -> None:
    """It was there before, with something in it: another's."""
    (path / TMP).mkdir()
    (path / TMP / "theirs").touch()
    with monkeypatch.context() as patch, os_error() as caught:
        patch.setattr(fcntl, "flock", refusing(fcntl.flock, ENOLCK))
        Staging(rootfs.dir(b"d"))
    assert caught.value.errno == ENOLCK
    assert os.listdir(path / TMP) == ["theirs"]


def test_a_directory_removed_by_its_owner_meanwhile_is_made_again(
    path: Path, rootfs: Rootfs, monkeypatch: Patch
) -> None:
    """Between our mkdir and our open, and between our open and our lock."""
    real_open, real_flock = posix.open, fcntl.flock
    opens, locks = nth(2), nth(2)

    def opened(name: Any, *args: Any, **named: Any) -> int:
        if name == NAME and not opens():
            os.rmdir(path / TMP)
        return real_open(name, *args, **named)

    def locked(fd: int, operation: int) -> None:
        if not locks():
            os.rmdir(path / TMP)
        real_flock(fd, operation)

    monkeypatch.setattr(posix, "open", opened)
    monkeypatch.setattr(fcntl, "flock", locked)
    stage = Staging(rootfs.dir(b"d"))
    assert os.listdir(path) == [TMP]
    stage.close()
    assert os.listdir(path) == []


def test_a_directory_replaced_by_another_meanwhile_is_not_ours(path: Path, rootfs: Rootfs, monkeypatch: Patch) -> None:
    real = fcntl.flock
    first = nth(2)

    def locked(fd: int, operation: int) -> None:
        real(fd, operation)
        if not first():
            os.rename(path / TMP, path / "old")
            (path / TMP).mkdir(0o700)

    monkeypatch.setattr(fcntl, "flock", locked)
    stage = Staging(rootfs.dir(b"d"))
    assert os.stat(stage.fileno()).st_ino == (path / TMP).stat().st_ino
    stage.close()
    assert os.listdir(path) == ["old"]


@pytest.mark.parametrize(("mode", "wanted"), [(0o700, "EBUSY"), (0o755, "EEXIST")])
def test_every_name_in_use_is_an_error(path: Path, rootfs: Rootfs, monkeypatch: Patch, mode: int, wanted: str) -> None:
    """By other runs, or by somebody else, whose directories have another mode."""
    monkeypatch.setattr(staging, "_WAITS", 2)
    held = []
    for name in NAMES:
        (path / os.fsdecode(name)).mkdir(mode)
        held.append(os.open(path / os.fsdecode(name), os.O_RDONLY))
        fcntl.flock(held[-1], fcntl.LOCK_EX)
    with pytest.raises(HookError, match=f"^make a staging directory in /d: {wanted}"):
        Staging(rootfs.dir(b"d"))
    sweep(rootfs.dir(b"d"))
    assert len(os.listdir(path)) == len(NAMES)  # what a live run holds is left alone
    for fd in held:
        os.close(fd)


def test_what_was_replaced_comes_back_only_to_its_own_place(path: Path, rootfs: Rootfs) -> None:
    """An undo that the file system refuses is an error, and the old object is kept for the next run to clear."""
    (path / "name").write_text("image")
    stage = Staging(rootfs.dir(b"d"))
    done = stage.publish(stage.new_file(b"ours", 0o644), b"name")
    real = staging.renameat2
    staging.renameat2 = refusing(real, EROFS)
    try:
        with os_error() as caught:
            done.undo()
    finally:
        staging.renameat2 = real
    assert caught.value.errno == EROFS
    done.undo()
    assert (path / "name").read_text() == "image"
    stage.close()
    assert os.listdir(path) == ["name"]
