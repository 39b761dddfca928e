"""Mount points: found as they are, made as runc makes them, and taken away again by undo."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from kernel import namespaced
from lib import oracle, rootfs

from nvoci.errors import HookError
from nvoci.inject import targets
from nvoci.linux.rootfs import Made, Rootfs

TREE = """
dir opt
file opt/file image
dir usr
dir usr/lib
symlink lib usr/lib
symlink opt/dangling nowhere/file
symlink opt/absolute /elsewhere/deep
symlink opt/up ../../../../above
symlink opt/loop loop
symlink opt/to-file file
fifo opt/fifo
"""


@pytest.fixture
def place(tmp_path: Path) -> targets.Place:
    rootfs.tree(tmp_path / "rootfs", TREE)
    return targets.Place(Rootfs.open(str(tmp_path / "rootfs")))


@pytest.fixture(autouse=True)
def umask() -> Iterator[None]:
    """That of a hook process."""
    old = os.umask(0)
    yield
    os.umask(old)


def find(place: targets.Place, path: str, *, directory: bool = False) -> tuple[str, targets.MountPoint]:
    """Where below the root the target is, and what was made."""
    point = targets.MountPoint(Made())
    with targets.find(place, path.encode(), directory=directory, point=point) as target:
        return os.readlink(f"/proc/self/fd/{target.fd.fileno()}").removeprefix(place.rootfs.name), point


# path, whether a directory -> where it is then
MADE = {
    ("/opt/new", False): "/opt/new",
    ("/opt/new", True): "/opt/new",
    ("opt/relative", False): "/opt/relative",
    ("/opt//a/./b//c", False): "/opt/a/b/c",
    ("/deep/er/than/that", True): "/deep/er/than/that",
    ("/lib/x.so", False): "/usr/lib/x.so",
    ("/opt/dangling", False): "/opt/nowhere/file",
    ("/opt/dangling/below", True): "/opt/nowhere/file/below",
    ("/opt/absolute/x", False): "/elsewhere/deep/x",
    ("/opt/up/x", False): "/above/x",
    ("/opt/trailing/", True): "/opt/trailing",
}


@pytest.mark.parametrize(("path", "directory"), MADE)
def test_what_is_missing_is_made_and_undone(place: targets.Place, path: str, *, directory: bool) -> None:
    root = Path(place.rootfs.name)
    before = oracle.content_only(oracle.snapshot(root))
    where, point = find(place, path, directory=directory)
    assert where == MADE[path, directory]
    st = (root / where[1:]).lstat()
    assert (stat.S_ISDIR(st.st_mode), stat.S_ISREG(st.st_mode)) == (directory, not directory)
    assert (stat.S_IMODE(st.st_mode), st.st_size if not directory else 0) == (0o755, 0)
    above = [p for p in (root / where[1:]).parents if root in p.parents]
    assert {stat.S_IMODE(p.stat().st_mode) for p in above} <= {0o755}
    assert oracle.content_only(oracle.snapshot(root)) != before
    point.undo()
    assert oracle.content_only(oracle.snapshot(root)) == before


FOUND = {
    ("/opt/file", False): "/opt/file",
    ("/opt", True): "/opt",
    ("/lib", True): "/usr/lib",
    ("/opt/to-file", False): "/opt/file",
    ("/opt/fifo", False): "/opt/fifo",
}


@pytest.mark.parametrize(("path", "directory"), FOUND)
def test_what_is_there_is_used_and_left_as_it_is(place: targets.Place, path: str, *, directory: bool) -> None:
    before = oracle.snapshot(Path(place.rootfs.name))
    where, point = find(place, path, directory=directory)
    point.undo()
    assert where == FOUND[path, directory]
    assert oracle.changes(before, oracle.snapshot(Path(place.rootfs.name))) == []


# path, whether a directory -> errno or words
REFUSED = {
    ("/opt/file", True): "ENOTDIR",
    ("/opt", False): "EISDIR",
    ("/opt/fifo", True): "ENOTDIR",
}


@pytest.mark.parametrize(("path", "directory"), REFUSED)
def test_a_file_is_not_mounted_on_a_directory_nor_the_other_way(
    place: targets.Place, path: str, *, directory: bool
) -> None:
    with pytest.raises(HookError, match=REFUSED[path, directory]):
        find(place, path, directory=directory)


IMPOSSIBLE = {"/": "EINVAL", "": "EINVAL", "/opt/file/below": "ENOTDIR", "/opt/loop": "ELOOP", "/opt/fifo/x": "ENOTDIR"}


@pytest.mark.parametrize("path", IMPOSSIBLE)
def test_where_there_can_be_no_mount_point_nothing_is_made(place: targets.Place, path: str) -> None:
    before = oracle.snapshot(Path(place.rootfs.name))
    with pytest.raises(OSError) as error:  # noqa: PT011  # the errno is looked at
        find(place, path)
    assert errno.errorcode[error.value.errno or 0] == IMPOSSIBLE[path]
    assert oracle.changes(before, oracle.snapshot(Path(place.rootfs.name))) == []


def test_undo_leaves_what_somebody_else_has_filled(place: targets.Place) -> None:
    root = Path(place.rootfs.name)
    _, file = find(place, "/new/a/file")
    _, folder = find(place, "/new/b/folder", directory=True)
    (root / "new/a/file").write_text("theirs")
    (root / "new/b/folder/x").write_text("theirs")
    folder.undo()
    file.undo()
    assert (root / "new/a/file").read_text() == (root / "new/b/folder/x").read_text() == "theirs"


def test_undo_leaves_what_somebody_else_has_put_there(place: targets.Place) -> None:
    root = Path(place.rootfs.name)
    _, point = find(place, "/opt/new")
    (root / "opt/other").write_text("")
    (root / "opt/other").rename(root / "opt/new")
    point.undo()
    assert (root / "opt/new").exists()
    (root / "opt/new").unlink()
    point.undo()


def test_a_path_with_a_nul_is_none(place: targets.Place) -> None:
    with pytest.raises(OSError, match="NUL"):
        find(place, "/opt/a\0b")


PSEUDO = """
dir proc
dir sys
symlink opt/l /proc/1/attr/exec
symlink opt/m /proc/meminfo
symlink opt/s /sys/kernel/uevent_seqnum
symlink opt/p /proc/nvoci
"""


def test_the_kernel_s_own_file_systems_are_not_covered_by_way_of_a_link(tmp_path: Path) -> None:
    """Only by their own names, and of /proc only what runc lets be covered too."""
    rootfs.tree(
        tmp_path / "r", "dir proc\ndir sys\ndir opt\nsymlink opt/l /proc/1/attr/exec\nsymlink opt/m /proc/meminfo"
    )
    rootfs.tree(tmp_path / "r", "symlink opt/s /sys/kernel/uevent_seqnum\nsymlink opt/p /proc/nvoci")

    def body() -> dict[str, str]:
        namespaced.sh(f"mount -t proc proc {tmp_path}/r/proc; mount -t sysfs sysfs {tmp_path}/r/sys")
        place = targets.Place(Rootfs.open(str(tmp_path / "r")))
        said = {}
        for path in ("/opt/l", "/opt/m", "/opt/s", "/opt/p", "/proc/1/status", "/proc/meminfo", "/proc/./meminfo",
                     "/proc/1/../meminfo", "/sys/kernel/uevent_seqnum", "/sys/new", "/proc/new"):  # fmt: skip
            try:
                said[path] = find(place, path)[0]
            except HookError as e:
                said[path] = "refused" if "file system of the kernel's" in e.message else e.message
        for path in ("/proc", "/sys"):
            with pytest.raises(HookError, match="file system of the kernel's"):
                find(place, path, directory=True)
        return said

    refused = ("/opt/l", "/opt/m", "/opt/s", "/opt/p", "/proc/1/status", "/proc/1/../meminfo", "/sys/new", "/proc/new")
    assert namespaced.isolated(body) == {
        **dict.fromkeys(refused, "refused"),
        "/proc/meminfo": "/proc/meminfo",
        "/proc/./meminfo": "/proc/meminfo",
        "/sys/kernel/uevent_seqnum": "/sys/kernel/uevent_seqnum",
    }


@pytest.mark.parametrize("path", ["/host/new", "/host/a/b/new", "/proc/new"])
@pytest.mark.parametrize("directory", [False, True])
def test_what_changes_after_the_first_look_is_seen_before_anything_is_made(
    tmp_path: Path, path: str, monkeypatch: pytest.MonkeyPatch, *, directory: bool
) -> None:
    """As if the path had led elsewhere then."""
    rootfs.tree(tmp_path, "dir r/host\ndir r/proc\ndir vendor")
    monkeypatch.setattr(targets.MountPoint, "_check_above", lambda *_: None)

    def body() -> str:
        namespaced.sh(f"mount -t proc proc {tmp_path}/r/proc; mount --bind {tmp_path}/vendor {tmp_path}/r/host")
        root = Rootfs.open(str(tmp_path / "r"))
        place = targets.Place(root)
        with root.lookup(b"host") as fd:
            place.add(fd.fileno())
        with pytest.raises(HookError) as error:
            find(place, path, directory=directory)
        return error.value.message

    said = "a file system of the kernel's" if path.startswith("/proc") else "a directory of the host, mounted before"
    assert f"make mount point {path}: lies in {said}" in namespaced.isolated(body)
    assert os.listdir(tmp_path / "vendor") == []


def test_nothing_is_made_for_later_hooks_either_once_something_is_mounted(tmp_path: Path) -> None:
    rootfs.tree(tmp_path, "dir r/host\ndir vendor")

    def body() -> list[bool]:
        namespaced.sh(f"mount --bind {tmp_path}/vendor {tmp_path}/r/host")
        root = Rootfs.open(str(tmp_path / "r"))
        before = root.guard is None
        first = targets.Place(root)
        with root.lookup(b"host") as fd:
            first.add(fd.fileno())
            second = targets.Place(root)
            return [before, root.guard is not None, first.is_host(fd.fileno()), second.is_host(fd.fileno())]

    assert namespaced.isolated(body) == [True, True, True, True]
