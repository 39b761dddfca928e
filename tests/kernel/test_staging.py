"""nvoci.linux.staging: atomic replacement, undo, and what a killed run leaves."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nvoci.linux import procfs, staging
from nvoci.linux.rootfs import Rootfs
from nvoci.linux.staging import NAME, Staging, look, sweep
from tests.kernel.namespaced import forked, os_error

pytestmark = pytest.mark.kernel
TMP = NAME.decode()


@pytest.fixture(params=["exchange", "no-exchange"], autouse=True)
def file_system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With renameat2's flags, and as on a file system that has none of them."""
    procfs.handle()
    if request.param == "no-exchange":

        def refused(olddirfd: int, old: bytes, newdirfd: int, new: bytes, flags: int) -> None:
            raise OSError(errno.EINVAL, "no such flag", new)

        monkeypatch.setattr(staging, "renameat2", refused)


@pytest.fixture
def stage(rootfs: Rootfs) -> Iterator[Staging]:
    opened = Staging(rootfs.dir(b"d"))
    yield opened
    opened.close()


def test_new_name_is_published_and_undone(path: Path, stage: Staging) -> None:
    done = stage.publish(stage.new_link(b"target"), b"link")
    assert os.readlink(path / "link") == "target"
    assert not done.replaced
    done.undo()
    stage.close()
    assert os.listdir(path) == []


@pytest.mark.parametrize("kind", ["file", "link"])
def test_what_was_there_is_the_same_inode_after_undo(path: Path, stage: Staging, kind: str) -> None:
    name = path / "name"
    name.write_text("image") if kind == "file" else name.symlink_to("image")
    before = name.lstat()
    done = stage.publish(stage.new_file(b"ours", 0o640), b"name")
    assert done.replaced
    assert name.read_text() == "ours"
    assert name.stat().st_mode & 0o7777 == 0o640
    done.undo()
    stage.close()
    after = name.lstat()
    assert (after.st_ino, after.st_mode, after.st_size, after.st_mtime_ns) == (
        before.st_ino, before.st_mode, before.st_size, before.st_mtime_ns
    )  # fmt: skip
    assert os.listdir(path) == ["name"]


def test_close_is_the_commit(path: Path, stage: Staging) -> None:
    (path / "name").write_text("image")
    stage.publish(stage.new_file(b"ours", 0o644), b"name")
    stage.close()
    stage.close()
    assert os.listdir(path) == ["name"]
    assert (path / "name").read_text() == "ours"
    assert (path / "name").stat().st_nlink == 1


def test_name_changed_by_another_since_is_not_undone(path: Path, stage: Staging) -> None:
    (path / "name").write_text("image")
    done = stage.publish(stage.new_file(b"ours", 0o644), b"name")
    (path / "theirs").write_text("theirs")
    os.rename(path / "theirs", path / "name")
    done.undo()
    assert (path / "name").read_text() == "theirs"


def test_name_removed_by_another_since_stays_removed(path: Path, stage: Staging) -> None:
    done = stage.publish(stage.new_link(b"x"), b"name")
    os.unlink(path / "name")
    done.undo()
    assert not os.path.lexists(path / "name")


def test_taken_file_comes_back(path: Path, stage: Staging) -> None:
    (path / "name").write_text("image")
    inode = (path / "name").stat().st_ino
    done = stage.take(b"name")
    assert not (path / "name").exists()
    done.undo()
    assert (path / "name").stat().st_ino == inode


@pytest.mark.skipif(os.geteuid() != 0, reason="a device node needs root")
@pytest.mark.parametrize(
    ("kind", "number"), [("directory", errno.EISDIR), ("fifo", errno.EEXIST), ("char", errno.EEXIST)]
)
def test_directories_and_special_files_are_not_replaced(path: Path, stage: Staging, kind: str, number: int) -> None:
    if kind == "directory":
        (path / "name").mkdir()
    elif kind == "fifo":
        os.mkfifo(path / "name")
    else:
        os.mknod(path / "name", 0o020666, os.makedev(1, 3))
    before = (path / "name").lstat()
    with os_error() as e:
        stage.publish(stage.new_link(b"x"), b"name")
    assert e.value.errno == number
    assert (path / "name").lstat().st_ino == before.st_ino


def test_file_mode_does_not_depend_on_the_umask(path: Path, stage: Staging) -> None:
    old = os.umask(0o777)
    try:
        stage.publish(stage.new_file(b"", 0o4755), b"name")
    finally:
        os.umask(old)
    assert (path / "name").stat().st_mode & 0o7777 == 0o4755


# -- what other runs leave and do -----------------------------------------------------------------------------------


def test_staging_of_a_killed_run_is_cleared(path: Path, rootfs: Rootfs) -> None:
    """Killed between the exchange and the commit: what it published stays, its temporaries go."""
    (path / "name").write_text("image")
    pid = os.fork()
    if pid == 0:
        stage = Staging(rootfs.dir(b"d"))
        stage.publish(stage.new_file(b"ours", 0o644), b"name")
        stage.new_link(b"unpublished")
        os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    assert sorted(os.listdir(path)) == [TMP, "name"]
    assert os.listdir(path / TMP)
    Staging(rootfs.dir(b"d")).close()
    assert os.listdir(path) == ["name"]
    assert (path / "name").read_text() == "ours"


def test_staging_held_by_another_is_waited_for(path: Path, rootfs: Rootfs) -> None:
    (path / TMP).mkdir(0o700)
    hold, release = os.pipe()
    ready, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        signal.alarm(30)
        fd = os.open(path / TMP, os.O_RDONLY)
        fcntl.flock(fd, fcntl.LOCK_EX)
        (path / TMP / "0").touch()
        os.write(tell, b"!")
        os.read(hold, 1)
        os.unlink(path / TMP / "0")
        os._exit(0)
    os.read(ready, 1)
    waits = 0

    def count(*args: object) -> None:
        nonlocal waits
        waits += 1
        if waits == 3:
            os.write(release, b"!")
            os.waitpid(pid, 0)

    patch = pytest.MonkeyPatch()
    patch.setattr(staging.select, "select", count)
    stage = Staging(rootfs.dir(b"d"))
    patch.undo()
    assert waits >= 3
    assert os.listdir(path) == [TMP]
    stage.close()
    for fd in (hold, release, ready, tell):
        os.close(fd)
    assert os.listdir(path) == []


@pytest.mark.parametrize("kind", ["held", "file", "link", "fifo"])
def test_name_that_cannot_be_had_is_left_alone_for_a_random_one(
    path: Path, rootfs: Rootfs, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(staging, "_WAITS", 3)
    canary = path.parent / "canary"
    canary.mkdir()
    (canary / "theirs").touch()
    holder = -1
    if kind == "held":
        (path / TMP).mkdir(0o700)
        (path / TMP / "0").touch()
        holder = os.open(path / TMP, os.O_RDONLY)
        fcntl.flock(holder, fcntl.LOCK_EX)
    elif kind == "file":
        (path / TMP).write_text("theirs")
    elif kind == "fifo":
        os.mkfifo(path / TMP)
    else:
        (path / TMP).symlink_to("../canary")
    stage = Staging(rootfs.dir(b"d"))
    stage.publish(stage.new_link(b"x"), b"name")
    assert len([n for n in os.listdir(path) if n.startswith(TMP + "-")]) == 1
    stage.close()
    assert sorted(os.listdir(path)) == [TMP, "name"]
    assert os.listdir(canary) == ["theirs"]
    if holder >= 0:
        assert os.listdir(path / TMP) == ["0"]
        os.close(holder)


def test_sixteen_processes_at_once_leave_what_one_leaves(path: Path) -> None:
    def run(number: int) -> None:
        rootfs = Rootfs.open(str(path.parent))
        for i in range(10):
            stage = Staging(rootfs.dir(b"d"))
            stage.publish(stage.new_file(b"%d" % i, 0o644), b"name")
            stage.publish(stage.new_link(b"%d" % number), b"own%d" % number)
            stage.close()

    pids = []
    for number in range(16):
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                signal.alarm(60)
                run(number)
                status = 0
            finally:
                os._exit(status)
        pids.append(pid)
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids] == [0] * 16
    assert sorted(os.listdir(path)) == sorted(["name", *(f"own{n}" for n in range(16))])
    assert [os.readlink(path / f"own{n}") for n in range(16)] == [str(n) for n in range(16)]
    assert (path / "name").read_text().isdigit()


def test_name_unlinked_all_the_time_by_another_is_bounded(path: Path, rootfs: Rootfs) -> None:
    def unlink() -> None:
        try:
            os.unlink(path / "name")
        except FileNotFoundError:
            pass
        try:
            os.symlink("theirs", path / "name")
        except FileExistsError:
            pass

    outcomes = set()
    with forked(unlink):
        for _ in range(100):
            stage = Staging(rootfs.dir(b"d"))
            try:
                stage.publish(stage.new_link(b"ours"), b"name")
                outcomes.add("done")
            except OSError as e:
                outcomes.add(errno.errorcode[e.errno or 0])
            stage.close()
    assert "done" in outcomes
    assert outcomes <= {"done", "EAGAIN", "ENOENT"}
    assert [n for n in os.listdir(path) if n.startswith(TMP)] == []


@pytest.mark.parametrize("there", [False, True])
def test_name_unlinked_right_after_publishing_is_published_all_the_same(
    path: Path, stage: Staging, monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    """The rename was done: what came after it is another's, and the old object is not put back in our place."""
    if there:
        (path / "name").write_text("image")
    for call in ("exchange", "rename_noreplace"):
        real = getattr(staging, call)

        def then_unlink(*args: object, real: Callable[..., None] = real) -> None:
            real(*args)
            os.unlink(path / "name")

        monkeypatch.setattr(staging, call, then_unlink)
    done = stage.publish(stage.new_link(b"ours"), b"name")
    assert done.replaced == there
    done.undo()
    assert not os.path.lexists(path / "name")


def test_directory_that_comes_in_the_way_while_replacing_goes_back(
    path: Path, stage: Staging, monkeypatch: pytest.MonkeyPatch
) -> None:
    (path / "name").write_text("image")
    (path / "other").mkdir()
    (path / "other/theirs").touch()
    real = staging.exchange
    calls = []

    def swap_first(*args: object) -> None:
        if not calls:
            os.unlink(path / "name")
            os.rename(path / "other", path / "name")
        calls.append(args)
        real(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(staging, "exchange", swap_first)
    with os_error() as e:
        stage.publish(stage.new_link(b"ours"), b"name")
    assert e.value.errno in (errno.EISDIR, errno.EPERM)  # EPERM: link(2) of a directory, where there is no exchange
    assert os.listdir(path / "name") == ["theirs"]


def test_a_directory_with_a_directory_in_it_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / ".nvoci-tmp/theirs").mkdir(parents=True)
    (tmp_path / "x").write_text("old")
    root = Rootfs.open(str(tmp_path))
    staging = Staging(root.dir(b""))
    assert staging.publish(staging.new_link(b"new"), b"x").replaced
    staging.close()
    assert os.readlink(tmp_path / "x") == "new"
    assert sorted(os.listdir(tmp_path)) == [".nvoci-tmp", "x"]


@pytest.mark.parametrize("name", [".nvoci-tmp", ".nvoci-tmp-1", ".nvoci-tmp-3"])
def test_every_name_that_a_killed_run_can_leave_is_swept(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir(0o700)
    (tmp_path / name / "0").touch()
    sweep(Rootfs.open(str(tmp_path)).dir(b""))
    assert os.listdir(tmp_path) == []
    assert look(Rootfs.open(str(tmp_path)).dir(b"")) == (False, b"")


def killed_holding(path: Path, rootfs: Rootfs, data: bytes) -> None:
    """A run that has replaced `name` by `data`, and was killed before its commit."""
    pid = os.fork()
    if pid == 0:
        stage = Staging(rootfs.dir(b"d"))
        stage.publish(stage.new_file(data, 0o644), b"name")
        os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


@pytest.mark.parametrize("undone", [True, False])
def test_what_killed_runs_have_replaced_is_kept_until_one_commits(path: Path, rootfs: Rootfs, undone: bool) -> None:
    (path / "name").write_text("image")
    inode = (path / "name").stat().st_ino
    killed_holding(path, rootfs, b"first")
    killed_holding(path, rootfs, b"second")
    (path / TMP / "7-old").write_text("killed in the middle of an exchange")
    found = {p.name: (p.read_text(), p.stat().st_ino) for p in (path / TMP).iterdir()}
    assert ("image", inode) in found.values()
    assert len(found) == 3
    assert look(rootfs.dir(b"d")) == (True, b"")
    stage = Staging(rootfs.dir(b"d"))
    made = [stage.publish(stage.new_file(b"ours", 0o644), b"name"), stage.take(b"name")]
    stage.new_link(b"unpublished")
    assert not {stage.temporary() for _ in range(20)} & {*map(os.fsencode, found), b"7"}
    for each in made[::-1]:
        each.undo()
    stage.close(undone=undone)
    assert (path / "name").read_text() == "second"
    if undone:
        assert {p.name: (p.read_text(), p.stat().st_ino) for p in (path / TMP).iterdir()} == found
    else:
        assert os.listdir(path) == ["name"]


@pytest.mark.skipif(os.geteuid() != 0, reason="an owner needs root")
@pytest.mark.parametrize(("above", "owner", "ours"), [(0, 1000, False), (1000, 1000, True), (1000, 1001, False)])
def test_a_directory_of_whom_the_directory_above_belongs_to_is_ours(
    path: Path, rootfs: Rootfs, above: int, owner: int, ours: bool
) -> None:
    """In a user namespace a run works as its owner."""
    os.chown(path, above, 0)
    (path / TMP).mkdir(0o700)
    (path / TMP / "0").touch()
    os.chown(path / TMP, owner, 0)
    assert look(rootfs.dir(b"d")) == ((True, b"") if ours else (False, NAME))
    sweep(rootfs.dir(b"d"))
    assert os.listdir(path) == ([] if ours else [TMP])
