"""nvoci.linux.rootfs on hostile roots, on both resolvers; the flipper race beside a naive implementation."""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from nvoci.errors import HookError
from nvoci.hook.operation import Transaction
from nvoci.hook.operations import MakeLink
from nvoci.linux import lookup, procfs
from nvoci.linux import rootfs as module
from nvoci.linux.rootfs import Made, Rootfs, split
from tests.kernel.namespaced import forked, isolated, os_error, sh
from tests.kernel.test_lookup import swapper

pytestmark = pytest.mark.kernel
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="device nodes and mounts need root")


@pytest.fixture(params=["openat2", "walk"], autouse=True)
def resolver(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookup, "_openat2_works", request.param == "openat2")
    procfs.handle()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    top = tmp_path / "rootfs"
    (top / "etc").mkdir(parents=True)
    (top / "etc/file").write_text("image")
    return top


@pytest.fixture
def rootfs(path: Path) -> Iterator[Rootfs]:
    fds = sorted(os.listdir("/proc/self/fd"))
    opened = Rootfs.open(str(path))
    yield opened
    opened.close()
    assert sorted(os.listdir("/proc/self/fd")) == fds, "a descriptor was left open"


# -- opening --------------------------------------------------------------------------------------------------------

OPEN = {
    "empty": ("", "not an absolute path"),
    "relative": ("rootfs", "not an absolute path"),
    "host root": ("/", "is the host's own root"),
    "host root with dots": ("/usr/..", "is the host's own root"),
    "link": ("/proc/self/root", "ENOTDIR"),
    "missing": ("/none/none", "ENOENT"),
    "file": ("/etc/passwd", "ENOTDIR"),
    "NUL": ("/a\0b", "EINVAL"),
    "too long": ("/" + "x" * 5000, "ENAMETOOLONG"),
}


@pytest.mark.parametrize(("name", "message"), OPEN.values(), ids=OPEN)
def test_root_that_is_none_is_refused(name: str, message: str) -> None:
    with pytest.raises(HookError) as e:
        Rootfs.open(name)
    assert message in e.value.message
    assert e.value.hint


def test_root_given_through_a_link_above_it_or_dots_is_that_directory(path: Path) -> None:
    (path.parent / "up").symlink_to(".")
    for name in (path.parent / "up" / path.name, path / "etc" / ".."):
        opened = Rootfs.open(str(name))
        assert opened.read_file(b"etc/file", 10) == b"image"
        opened.close()


@needs_root
def test_root_hidden_by_a_mount_is_the_visible_one_throughout(path: Path) -> None:
    def body() -> None:
        sh(f"mount -t tmpfs none {path}; mkdir {path}/etc; echo -n visible > {path}/etc/file")
        opened = Rootfs.open(str(path))
        sh(f"umount -l {path}")
        assert opened.read_file(b"etc/file", 10) == b"visible"

    isolated(body)


# -- reading --------------------------------------------------------------------------------------------------------


@needs_root
@pytest.mark.parametrize("kind", ["fifo", "socket", "char", "directory"])
def test_special_files_are_never_opened(path: Path, rootfs: Rootfs, kind: str) -> None:
    name = path / "etc/special"
    if kind == "fifo":
        os.mkfifo(name)
    elif kind == "socket":
        here = os.getcwd()
        os.chdir(path / "etc")  # a socket's path is short
        with socket.socket(socket.AF_UNIX) as s:
            s.bind("special")
        os.chdir(here)
    elif kind == "char":
        os.mknod(name, stat.S_IFCHR | 0o666, os.makedev(10, 255))  # nobody's: open(2) says ENODEV or ENXIO
    else:
        name.mkdir()
    with os_error() as e:
        rootfs.read_file(b"etc/special", 10)
    assert e.value.errno == (errno.EISDIR if kind == "directory" else errno.EINVAL)
    assert e.value.filename == b"etc/special"


def test_file_is_read_up_to_its_limit_only(path: Path, rootfs: Rootfs) -> None:
    assert rootfs.read_file(b"etc/file", 5) == b"image"
    with pytest.raises(OSError, match="larger than 4"):
        rootfs.read_file(b"etc/file", 4)
    os.truncate(path / "etc/file", 1 << 40)
    with os_error() as e:
        rootfs.read_file(b"etc/file", 1 << 20)
    assert e.value.errno == errno.EFBIG


def test_list_is_bounded_and_complete(path: Path, rootfs: Rootfs) -> None:
    names = {b"n%d" % i for i in range(100)} | {b"\xff\n", b"-x"}
    (path / "d").mkdir()
    for name in names:
        (path / "d" / os.fsdecode(name)).touch()
    assert set(rootfs.list(b"d", 102)) == names
    with os_error() as e:
        rootfs.list(b"d", 101)
    assert e.value.errno == errno.E2BIG
    with pytest.raises(NotADirectoryError):
        rootfs.list(b"etc/file")


def test_stat_and_readlink_stay_inside(path: Path, rootfs: Rootfs) -> None:
    (path / "abs").symlink_to("/etc/file")
    (path / "host").symlink_to("/etc/passwd")
    assert rootfs.stat(b"abs").st_ino == (path / "etc/file").stat().st_ino
    assert stat.S_ISLNK(rootfs.lstat(b"host").st_mode)
    assert rootfs.readlink(b"host") == b"/etc/passwd"
    assert not rootfs.exists(b"host")
    assert rootfs.exists(b"abs")
    with os_error() as e:
        rootfs.readlink(b"etc/file")
    assert e.value.errno == errno.EINVAL


@pytest.mark.parametrize("bad", [b"", b"/", b"//", b".", b"etc/.", b"etc/..", b"etc/\0", b".."])
def test_path_without_file_name_cannot_be_split(bad: bytes) -> None:
    with os_error() as e:
        split(bad)
    assert e.value.errno == errno.EINVAL


# -- making directories ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("umask", [0, 0o22, 0o777])
@pytest.mark.parametrize("mode", [0o755, 0o555, 0o1777])
def test_new_directories_have_exactly_the_mode_and_old_ones_keep_theirs(
    path: Path, rootfs: Rootfs, umask: int, mode: int
) -> None:
    (path / "etc").chmod(0o711)
    old = os.umask(umask)
    try:
        rootfs.mkdirs(b"/etc/a/b/c", mode, Made())
    finally:
        os.umask(old)
    modes = [stat.S_IMODE((path / p).stat().st_mode) for p in ("etc", "etc/a", "etc/a/b", "etc/a/b/c")]
    assert modes == [0o711, mode, mode, mode]


def test_undo_removes_own_empty_directories_and_keeps_the_rest(path: Path, rootfs: Rootfs) -> None:
    made = Made()
    rootfs.mkdirs(b"a/b/c", 0o755, made)
    made.undo()
    assert os.listdir(path) == ["etc"]
    again = Made()
    rootfs2 = Rootfs.open(str(path))
    rootfs2.mkdirs(b"a/b/c", 0o755, again)
    rootfs2.mkdirs(b"etc/x", 0o755, again)
    (path / "a/b/foreign").touch()
    (path / "theirs").mkdir()  # while ours is there, so that it is another inode
    os.rmdir(path / "etc/x")
    os.rename(path / "theirs", path / "etc/x")
    again.undo()
    rootfs2.close()
    assert sorted(os.listdir(path / "a/b")) == ["foreign"]
    assert (path / "etc/x").is_dir()


PARENTS = {
    "dangling link": ("l", "/none", b"l/x", errno.ENOTDIR),
    "dangling link to canary": ("l", "../canary/new", b"l/x", errno.ENOTDIR),
    "file": ("f", None, b"f/x", errno.ENOTDIR),
    "loop": ("l", "l", b"l/x", errno.ELOOP),
    "dots below nothing": ("f", None, b"none/../x/y", errno.EINVAL),
}


@pytest.mark.parametrize(("name", "text", "wanted", "number"), PARENTS.values(), ids=PARENTS)
def test_directories_are_never_made_through_what_is_in_the_way(
    path: Path, rootfs: Rootfs, name: str, text: str | None, wanted: bytes, number: int
) -> None:
    canary = path.parent / "canary"
    canary.mkdir()
    if text is None:
        (path / name).touch()
    else:
        (path / name).symlink_to(text)
    made = Made()
    with os_error() as e:
        rootfs.mkdirs(wanted, 0o755, made)
    made.undo()
    assert e.value.errno in (number, errno.ENOENT)
    assert list(canary.iterdir()) == []
    assert sorted(os.listdir(path)) == sorted(["etc", name])


def test_directories_are_made_inside_where_an_absolute_link_leads(path: Path, rootfs: Rootfs) -> None:
    canary = path.parent / "canary"
    canary.mkdir()
    inside = path / str(canary).lstrip("/")
    inside.mkdir(parents=True)
    (path / "l").symlink_to(canary)
    rootfs.mkdirs(b"l/x/y", 0o755, Made())
    assert list(canary.iterdir()) == []
    assert (inside / "x/y").is_dir()


# -- handles --------------------------------------------------------------------------------------------------------


def test_handles_are_bounded_and_opened_again(path: Path, rootfs: Rootfs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_HANDLES", 4)
    before = len(os.listdir("/proc/self/fd"))
    dirs = []
    for i in range(20):
        (path / f"d{i}").mkdir()
        dirs.append(rootfs.dir(b"d%d" % i))
    assert len(os.listdir("/proc/self/fd")) <= before + 4
    for i, d in enumerate(dirs):
        assert os.fstat(d.fileno()).st_ino == (path / f"d{i}").stat().st_ino
    assert len(os.listdir("/proc/self/fd")) <= before + 4


def test_swapped_directory_is_not_taken_for_the_one_resolved_before(
    path: Path, rootfs: Rootfs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_HANDLES", 1)
    first = rootfs.dir(b"etc")
    (path / "other").mkdir()
    rootfs.dir(b"other")
    (path / "etc").rename(path / "moved")
    (path / "etc").mkdir()
    with os_error() as e:
        first.fileno()
    assert e.value.errno == errno.ESTALE


def test_directory_is_resolved_once(path: Path, rootfs: Rootfs) -> None:
    first = rootfs.dir(b"etc")
    (path / "etc").rename(path / "moved")
    (path / "etc").symlink_to("/")
    assert rootfs.dir(b"etc") is first
    assert os.fstat(first.fileno()).st_ino == (path / "moved").stat().st_ino


# -- races ----------------------------------------------------------------------------------------------------------


def naive_link(root: Path, link: str) -> None:
    """What must not be done: a path string checked, then used."""
    parent = os.path.join(root, os.path.dirname(link))
    if os.path.realpath(parent).startswith(str(root)):
        os.symlink("x", os.path.join(parent, os.path.basename(link)))


def test_flipping_parent_lets_no_link_escape_where_a_naive_one_does(path: Path, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    canary.mkdir()
    (path / "d").mkdir()
    made = 0
    with forked(swapper(path / "d", str(canary))):
        for i in range(500):
            rootfs = Rootfs.open(str(path))
            transaction = Transaction()
            try:
                transaction.perform("test", MakeLink(rootfs, b"x", b"d/l%d" % i))
                made += 1
            except HookError:
                transaction.undo()  # the directory was the link for a moment, which leads nowhere in the root
            rootfs.close()
        assert list(canary.iterdir()) == []
        for i in range(200_000):
            try:
                naive_link(path, f"d/n{i}")
            except OSError:
                continue
            if any(canary.iterdir()):
                break
    assert made
    assert list(canary.iterdir()), "the naive implementation was never caught: the race is no test"


def test_flipping_parent_lets_no_directory_escape(path: Path, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    canary.mkdir()
    (path / "d").mkdir()
    made = 0
    refusals: set[int | None] = set()
    with forked(swapper(path / "d", str(canary))):
        for i in range(500):
            rootfs = Rootfs.open(str(path))
            try:
                rootfs.mkdirs(b"d/a%d/b" % i, 0o755, Made())
                made += 1
            except OSError as e:
                refusals.add(e.errno)
            rootfs.close()
    assert made
    assert refusals <= {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}
    assert list(canary.iterdir()) == []


def test_file_flipping_with_a_fifo_blocks_nobody(path: Path, rootfs: Rootfs) -> None:
    def flip() -> None:
        os.rename(path / "fifo", path / "etc/file")
        os.mkfifo(path / "fifo")
        (path / "regular").write_text("image")
        os.rename(path / "regular", path / "etc/file")

    os.mkfifo(path / "fifo")
    seen: set[bytes | int | None] = set()
    with forked(flip):
        for _ in range(500):
            try:
                seen.add(rootfs.read_file(b"etc/file", 10))
            except OSError as e:
                seen.add(e.errno)
    assert seen <= {b"image", b"", errno.EINVAL}
