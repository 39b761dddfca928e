"""Operations on files, each executed and undone on a real root: what is made, what is kept, what is brought back."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from errno import EISDIR, ENOSPC
from pathlib import Path

import pytest
from lib import rootfs as trees
from unit.hook.hooktools import snapshot

from nvoci.errors import HookError
from nvoci.hook.operation import Operation, Transaction
from nvoci.hook.operations import Chmod, MakeLink, RemoveFile, WriteFile
from nvoci.hook.preview import Preview
from nvoci.linux import staging
from nvoci.linux.rootfs import Rootfs

TREE = """
symlink l old
file f content
mode f 640
dir d 700
file d/x y
fifo p
symlink loop loop
symlink out /etc/passwd
symlink dir-link d
"""


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Rootfs]:
    trees.tree(tmp_path, TREE)
    with_umask = os.umask(0)
    opened = Rootfs.open(str(tmp_path))
    yield opened
    opened.close()
    os.umask(with_umask)


def _write(path: bytes, data: bytes = b"new", mode: int = 0o644, **more: bool) -> Callable[[Rootfs], Operation]:
    return lambda root: WriteFile(root, path, data, mode, **more)  # type: ignore[arg-type]


def _link(path: bytes, target: bytes = b"t") -> Callable[[Rootfs], Operation]:
    return lambda root: MakeLink(root, target, path)


def _chmod(path: bytes, mode: int) -> Callable[[Rootfs], Operation]:
    return lambda root: Chmod(root, path, mode, 0)


def _remove(path: bytes) -> Callable[[Rootfs], Operation]:
    return lambda root: RemoveFile(root, path)


# operation: (what it says, what it leaves: path -> link text, or (content, mode), or None)
DONE: dict[str, tuple[Callable[[Rootfs], Operation], str, dict[str, object]]] = {
    "new link": (_link(b"/new"), "symlink /new -> t", {"new": "t"}),
    "link replaces link": (_link(b"l"), "symlink /l -> t", {"l": "t"}),
    "link replaces file": (_link(b"/f"), "symlink /f -> t", {"f": "t"}),
    "link below made parents": (_link(b"/a/./b//c"), "symlink /a/./b//c -> t", {"a/b/c": "t"}),
    "link through a link": (_link(b"/dir-link/n"), "symlink /dir-link/n -> t", {"d/n": "t"}),
    "link with hostile names": (_link(b"/a\n", b"\xff"), r"symlink /a\n -> \xff", {"a\n": "\udcff"}),
    "new file": (_write(b"/n/f"), "write /n/f (3 bytes, mode 0644)", {"n/f": (b"new", 0o644)}),
    "file replaces file": (_write(b"/f", mode=0o400), "write /f (3 bytes, mode 0400)", {"f": (b"new", 0o400)}),
    "file replaces link": (_write(b"/l"), "write /l (3 bytes, mode 0644)", {"l": (b"new", 0o644)}),
    "file replaces the link, not its target": (_write(b"/out"), "write /out (3 bytes, mode 0644)",
                                               {"out": (b"new", 0o644)}),
    "empty file": (_write(b"/e", b""), "write /e (0 bytes, mode 0644)", {"e": (b"", 0o644)}),
    "remove file": (_remove(b"/f"), "remove /f", {"f": None}),
    "remove link": (_remove(b"/l"), "remove /l", {"l": None}),
    "remove the link, not its target": (_remove(b"/out"), "remove /out", {"out": None}),
    "mode": (_chmod(b"/f", 0o4711), "chmod 4711 /f", {"f": (b"content", 0o4711)}),
    "mode through a link": (_chmod(b"/dir-link/x", 0o600), "chmod 0600 /dir-link/x", {"d/x": (b"y", 0o600)}),
}  # fmt: skip


def _seen(path: Path) -> object:
    if path.is_symlink():
        return os.readlink(path)
    return (path.read_bytes(), path.stat().st_mode & 0o7777) if path.exists() else None


@pytest.mark.parametrize(("make", "text", "left"), DONE.values(), ids=DONE)
def test_an_operation_says_does_and_undoes(
    root: Rootfs, tmp_path: Path, make: Callable[[Rootfs], Operation], text: str, left: dict[str, object]
) -> None:
    before = snapshot(tmp_path)
    operation, transaction = make(root), Transaction()
    assert operation.describe() == text
    transaction.perform("h", operation)
    assert {name: _seen(tmp_path / name) for name in left} == left
    transaction.undo()
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize(("make", "text", "left"), DONE.values(), ids=DONE)
def test_a_committed_operation_leaves_nothing_else_and_a_rerun_changes_nothing(
    root: Rootfs, tmp_path: Path, make: Callable[[Rootfs], Operation], text: str, left: dict[str, object]
) -> None:
    for _ in range(2):
        transaction = Transaction()
        transaction.perform("h", make(root))
        transaction.commit()
        now = {p: os.lstat(p).st_ino for p in snapshot(tmp_path)}
    assert {name: _seen(tmp_path / name) for name in left} == left
    assert not any(".nvoci-tmp" in path for path in now)
    inodes = {name: os.lstat(tmp_path / name).st_ino for name, what in left.items() if what is not None}
    transaction = Transaction()
    transaction.perform("h", make(root))
    transaction.undo()
    assert {name: os.lstat(tmp_path / name).st_ino for name in inodes} == inodes


def test_undo_takes_a_made_directory_away_where_a_link_in_it_was_replaced(root: Rootfs, tmp_path: Path) -> None:
    before, transaction = snapshot(tmp_path), Transaction()
    transaction.perform("h", _link(b"/new/deep/l")(root))
    transaction.perform("h", _link(b"/new/deep/l", b"u")(root))
    transaction.perform("h", _write(b"/new/f")(root))
    transaction.undo()
    assert snapshot(tmp_path) == before


def test_undo_takes_a_made_directory_away_where_writing_failed(
    root: Rootfs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(fd: int, data: bytes) -> None:
        raise OSError(ENOSPC, "full")

    before, transaction = snapshot(tmp_path), Transaction()
    monkeypatch.setattr(staging, "write_all", full)
    with pytest.raises(HookError, match="ENOSPC"):
        transaction.perform("h", _write(b"/new/f")(root))
    transaction.undo()
    assert snapshot(tmp_path) == before


REFUSED: dict[str, tuple[Callable[[Rootfs], Operation], str]] = {
    "link over a directory": (_link(b"/d"), "EISDIR"),
    "link over a FIFO": (_link(b"/p"), "EEXIST"),
    "link below a file": (_link(b"/f/x"), "ENOTDIR"),
    "link below a loop": (_link(b"/loop/x"), "ELOOP"),
    "link below a dangling link": (_link(b"/l/x"), "ENOTDIR"),
    "link below a missing directory's parent": (_link(b"/none/../x"), "ENOENT"),
    "file over a directory": (_write(b"/d"), "EISDIR"),
    "file over a FIFO": (_write(b"/p"), "EEXIST"),
    "remove a directory": (_remove(b"/d"), "EISDIR"),
    "mode of a loop": (_chmod(b"/loop", 0o600), "ELOOP"),
}


@pytest.mark.parametrize(("make", "errno"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused_names_its_errno_and_changes_nothing(
    root: Rootfs, tmp_path: Path, make: Callable[[Rootfs], Operation], errno: str
) -> None:
    before = snapshot(tmp_path)
    operation, transaction = make(root), Transaction()
    with pytest.raises(HookError) as caught:
        transaction.perform("h", operation)
    assert caught.value.message == f"h: {operation.describe()}: {errno}"
    transaction.undo()
    assert snapshot(tmp_path) == before


NOTHING = {
    "remove what is not there": _remove(b"/none"),
    "remove below what is not there": _remove(b"/none/x"),
    "remove below a file": _remove(b"/f/x"),
    "mode of what is not there": _chmod(b"/none", 0o600),
    "mode below a file": _chmod(b"/f/x", 0o600),
    "mode that is right": _chmod(b"/f", 0o640),
    "link that is right": _link(b"/l", b"old"),
    "file that is right": _write(b"/f", b"content", 0o640),
}


@pytest.mark.parametrize("make", NOTHING.values(), ids=NOTHING)
def test_where_there_is_nothing_to_do_nothing_changes(
    root: Rootfs, tmp_path: Path, make: Callable[[Rootfs], Operation]
) -> None:
    before = {p: os.lstat(p).st_ctime_ns for p in snapshot(tmp_path)}
    assert not make(root).preview(Preview(root))
    transaction = Transaction()
    transaction.perform("h", make(root))
    transaction.commit()
    assert {p: os.lstat(p).st_ctime_ns for p in snapshot(tmp_path)} == before


def test_undo_leaves_alone_what_somebody_else_has_changed_since(root: Rootfs, tmp_path: Path) -> None:
    transaction = Transaction()
    for make in (_link(b"/n1"), _link(b"/l"), _write(b"/f"), _link(b"/m/x")):
        transaction.perform("h", make(root))
    for name in ("n1", "l", "f"):
        (tmp_path / "new").write_text("theirs")  # before the old one goes, so that it gets another inode number
        (tmp_path / "new").rename(tmp_path / name)
    (tmp_path / "m/theirs").touch()
    transaction.undo()
    assert [(tmp_path / name).read_text() for name in ("n1", "l", "f")] == ["theirs"] * 3
    assert os.listdir(tmp_path / "m") == ["theirs"]


def test_a_sparse_file_in_the_way_is_not_read(root: Rootfs, tmp_path: Path) -> None:
    (tmp_path / "big").touch()
    os.truncate(tmp_path / "big", 1 << 40)
    transaction = Transaction()
    assert _write(b"/big")(root).preview(Preview(root))
    transaction.perform("h", _write(b"/big")(root))
    transaction.undo()
    assert (tmp_path / "big").stat().st_size == 1 << 40


# -- preview -------------------------------------------------------------------------------------------------------

def test_preview_sees_the_operations_planned_before(root: Rootfs) -> None:
    view = Preview(root)
    assert _link(b"/q//x")(root).preview(view)
    assert not _link(b"q/./x")(root).preview(view)
    assert _link(b"q/x", b"other")(root).preview(view)
    assert _write(b"//w", b"1")(root).preview(view)
    assert not _write(b"/w/", b"1")(root).preview(view)
    assert _remove(b"./w")(root).preview(view)
    assert not _remove(b"w")(root).preview(view)
    assert view.content(b"/f", 100) == b"content"
    assert view.content(b"/p", 100) is None


def test_preview_reads_and_changes_modes_through_planned_links(root: Rootfs) -> None:
    view = Preview(root)
    assert _link(b"/to-f", b"/f")(root).preview(view)
    assert _link(b"/to-root", b".")(root).preview(view)
    assert view.content(b"/to-root/to-f", 100) == b"content"
    assert view.exists(b"/to-root/to-f")
    assert _chmod(b"/to-f", 0o600)(view).preview(view)
    assert _write(b"/to-root/new", b"1")(root).preview(view)
    assert view.content(b"/new", 100) == b"1"


def test_preview_of_a_loop_of_planned_links_is_eloop(root: Rootfs) -> None:
    view = Preview(root)
    for link, target in ((b"/la", b"lb"), (b"/lb", b"la")):
        assert _link(link, target)(root).preview(view)
    assert not view.exists(b"/la")


def test_preview_fails_where_the_operation_would(root: Rootfs) -> None:
    with pytest.raises(OSError, match="in the way") as e:
        _link(b"/d")(root).preview(Preview(root))
    assert e.value.errno == EISDIR
