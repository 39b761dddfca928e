"""Lookups, patterns and new directories at their limits, and where the file system or somebody else interferes."""

from __future__ import annotations

import os
import posix
from collections.abc import Callable, Iterator
from errno import E2BIG, EACCES, EAGAIN, EBUSY, EINVAL, EIO, ELOOP, EMFILE
from pathlib import Path

import pytest
from lib.rootfs import tree

from nvoci.linux import canonical, devnode, inotify, lookup, procfs
from nvoci.linux.fd import Fd, free_reserve, hold_reserve, with_reserve
from nvoci.linux.rootfs import PATH_MAX, Budget, Made, Rootfs
from tests.kernel.namespaced import os_error
from tests.kernel.refusal import nth, refusing

pytestmark = pytest.mark.kernel
Patch = pytest.MonkeyPatch
TREE = """
file a/1.conf x
file a/2.conf x
file b/1.conf x
symlink link a/1.conf
symlink loop loop
symlink over ../../a
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tree(tmp_path / "rootfs", TREE)


@pytest.fixture(params=["openat2", "walk"])
def rootfs(path: Path, monkeypatch: Patch, request: pytest.FixtureRequest) -> Iterator[Rootfs]:
    monkeypatch.setattr(lookup, "_openat2_works", request.param == "openat2")
    procfs.handle()
    before = sorted(os.listdir("/proc/self/fd"))
    opened = Rootfs.open(str(path))
    yield opened
    opened.close()
    assert sorted(os.listdir("/proc/self/fd")) == before, "a descriptor was left open"


# -- patterns ---------------------------------------------------------------------------------------------------------


def test_patterns_find_what_is_there(rootfs: Rootfs) -> None:
    assert rootfs.match(b"/*/1.conf", Budget()) == [b"/a/1.conf", b"/b/1.conf", b"/link/1.conf", b"/loop/1.conf",
                                                    b"/over/1.conf"]  # fmt: skip
    assert rootfs.match(b"//[ab]//*.conf", Budget()) == [b"/a/1.conf", b"/a/2.conf", b"/b/1.conf"]
    assert rootfs.match(b"/none/*.conf", Budget()) == []
    assert rootfs.match(b"/a/1.conf/*", Budget()) == []


@pytest.mark.parametrize(
    ("budget", "steps"), [(Budget(directories=1), None), (Budget(names=1), None), (Budget(), 3)],
    ids=["directories", "names", "steps"],
)  # fmt: skip
def test_patterns_are_bounded(rootfs: Rootfs, budget: Budget, steps: int | None) -> None:
    budget = Budget(budget.directories, budget.names)
    if steps is not None:
        budget.steps = steps
    with os_error() as caught:
        rootfs.match(b"/[ab]/*.conf", budget)
    assert caught.value.errno == E2BIG


def test_what_matches_in_all_is_bounded(rootfs: Rootfs, path: Path) -> None:
    """Each directory has few enough names, all of them together do not."""
    for name in ("3.conf", "4.conf", "5.conf"):
        (path / "a" / name).touch()
        (path / "b" / name).touch()
    with os_error() as caught:
        rootfs.match(b"/[ab]/*.conf", Budget(names=6))
    assert caught.value.errno == E2BIG


def test_a_pattern_that_no_path_can_have_matches_nothing(rootfs: Rootfs) -> None:
    assert rootfs.match(b"/*" * PATH_MAX, Budget()) == []


def test_a_directory_that_does_not_let_itself_be_listed_is_an_error(rootfs: Rootfs, monkeypatch: Patch) -> None:
    monkeypatch.setattr(Rootfs, "list", refusing(Rootfs.list, EIO))
    with os_error() as caught:
        rootfs.match(b"/a/*", Budget())
    assert caught.value.errno == EIO


@pytest.mark.parametrize(("name", "there"), [(b"a", True), (b"none", False), (b"a/1.conf/x", False), (b"link", True)])
def test_what_exists(rootfs: Rootfs, name: bytes, there: bool) -> None:
    assert rootfs.exists(name) is there


def test_whether_something_exists_may_not_be_known(rootfs: Rootfs, monkeypatch: Patch) -> None:
    monkeypatch.setattr(Rootfs, "lookup", refusing(Rootfs.lookup, EACCES))
    with os_error() as caught:
        rootfs.exists(b"a")
    assert caught.value.errno == EACCES


# -- names without links ----------------------------------------------------------------------------------------------


def test_texts_of_links(rootfs: Rootfs, path: Path) -> None:
    assert canonical.link_text(rootfs, b"over") == b"../../a"
    for name in (b"a", b"none", b"a/1.conf", b"a/1.conf/x", b"x" * 300):
        assert canonical.link_text(rootfs, name) is None
    with os_error() as caught:
        canonical.link_text(rootfs, b"loop/x")
    assert caught.value.errno == ELOOP


@pytest.mark.skipif(os.geteuid() != 0, reason="the host's /proc stands for a container's")
def test_magic_links_have_no_text() -> None:
    with Fd(os.open("/", os.O_PATH)) as root:
        host = _Root(root.fileno())
        assert canonical.link_text(host, b"proc/mounts") == b"self/mounts"  # type: ignore[arg-type]
        with os_error() as caught:
            canonical.link_text(host, b"proc/1/exe")  # type: ignore[arg-type]
    assert caught.value.errno == ELOOP


class _Root:
    """As much of a Rootfs as is asked for."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.followed = 0

    def fileno(self) -> int:
        return self.fd


CANONICAL: dict[bytes, bytes | int] = {
    b"/a/../b/./1.conf": b"b/1.conf", b"over/x": b"a/x", b"../../none//x": b"none/x", b"loop": ELOOP,
    b"a\0": EINVAL,
}  # fmt: skip


@pytest.mark.parametrize("name", CANONICAL, ids=repr)
def test_names_as_the_container_has_them(rootfs: Rootfs, name: bytes) -> None:
    def link_of(path: bytes) -> bytes | None:
        return b"loop" if path == b"loop" else canonical.link_text(rootfs, path)

    wanted = CANONICAL[name]
    if isinstance(wanted, bytes):
        assert canonical.canonical(name, link_of) == wanted
        return
    with os_error() as caught:
        canonical.canonical(name, link_of)
    assert (caught.value.errno, caught.value.filename) == (wanted, name)


def test_the_last_link_may_stay(rootfs: Rootfs) -> None:
    def link_of(path: bytes) -> bytes | None:
        return canonical.link_text(rootfs, path)

    assert canonical.canonical(b"/link/", link_of, nofollow=True) == b"link"
    assert canonical.canonical(b"/over/1.conf", link_of, nofollow=True) == b"a/1.conf"


# -- new directories --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["mkdir", "open", "fstat"])
def test_a_directory_that_cannot_be_made_and_held_is_not_left(
    rootfs: Rootfs, path: Path, monkeypatch: Patch, call: str
) -> None:
    made = Made()
    rootfs.dir(b"a").fileno()
    times = {"mkdir": 1, "open": 1, "fstat": 1}[call]
    with monkeypatch.context() as patch, os_error() as caught:
        if call == "mkdir":
            patch.setattr(posix, call, refusing(getattr(posix, call), EMFILE))
        else:
            real, mkdir = getattr(posix, call), posix.mkdir

            def then(*args: object, **named: object) -> None:
                mkdir(*args, **named)  # type: ignore[arg-type]
                patch.setattr(posix, call, refusing(real, EMFILE, nth(times)))

            patch.setattr(posix, "mkdir", then)
        rootfs.mkdirs(b"a/new/newer", 0o755, made)
    assert caught.value.errno == EMFILE
    made.undo()
    assert sorted(os.listdir(path / "a")) == ["1.conf", "2.conf"]


def test_what_was_filled_meanwhile_stays(rootfs: Rootfs, path: Path, monkeypatch: Patch) -> None:
    real = posix.mkdir

    def filled(name: bytes, *args: object, **named: object) -> None:
        real(name, *args, **named)  # type: ignore[arg-type]
        (path / "a/new/theirs").touch()
        monkeypatch.setattr(posix, "open", refusing(posix.open, EMFILE))

    rootfs.dir(b"a").fileno()
    with monkeypatch.context() as patch, os_error() as caught:
        patch.setattr(posix, "mkdir", filled)
        rootfs.mkdirs(b"a/new", 0o755, Made())
    monkeypatch.undo()
    assert caught.value.errno == EMFILE
    assert os.listdir(path / "a/new") == ["theirs"]


def test_undo_goes_past_what_is_gone_or_another(rootfs: Rootfs, path: Path) -> None:
    made = Made()
    rootfs.mkdirs(b"a/x/y/z", 0o755, made)
    (path / "a/x/y/z").rmdir()
    (path / "a/x/y").rename(path / "a/x/old")
    (path / "a/x/y").mkdir()
    (path / "a/x/old").rmdir()
    made.undo()
    assert os.listdir(path / "a/x") == ["y"]
    (path / "a/x/y").rmdir()
    made.undo()
    assert sorted(os.listdir(path / "a")) == ["1.conf", "2.conf"]


def test_a_handle_is_released_once(rootfs: Rootfs) -> None:
    directory = rootfs.dir(b"a")
    directory.fileno()
    directory.release()
    directory.release()
    assert os.fstat(directory.fileno()).st_ino


# -- the walk ---------------------------------------------------------------------------------------------------------


def test_a_directory_that_is_always_moved_out_is_an_error(path: Path, monkeypatch: Patch) -> None:
    """The walk's last check, each time."""
    monkeypatch.setattr(lookup, "_openat2_works", False)
    monkeypatch.setattr(lookup, "_is_below", lambda root, fd: False)
    with Rootfs.open(str(path))._fd as root:
        before = len(os.listdir("/proc/self/fd"))
        with os_error() as caught:
            lookup.lookup(root.fileno(), b"a/1.conf")
        assert (caught.value.errno, caught.value.filename) == (EAGAIN, b"a/1.conf")
        assert len(os.listdir("/proc/self/fd")) == before


# -- small things -----------------------------------------------------------------------------------------------------


@pytest.mark.skipif(os.geteuid() != 0, reason="device nodes need root")
@pytest.mark.parametrize("what", ["another", "owner"])
def test_a_node_that_is_not_what_was_made_is_gone(path: Path, monkeypatch: Patch, what: str) -> None:
    procfs.handle()
    with Fd(os.open(path / "a", os.O_RDONLY)) as directory:
        if what == "another":
            monkeypatch.setattr(devnode, "number_of", lambda st: ("c", 1, 3))
        else:
            monkeypatch.setattr(posix, "chown", refusing(posix.chown, EINVAL))
        with os_error() as caught:
            devnode.make(directory.fileno(), b"node", ("c", 195, 0), 0o666, (1, 1))
        assert caught.value.errno == EINVAL
    assert sorted(os.listdir(path / "a")) == ["1.conf", "2.conf"]


def test_an_inotify_that_another_has_read_is_empty(tmp_path: Path, monkeypatch: Patch) -> None:
    with inotify.Inotify() as watch:
        watch.add(bytes(tmp_path), inotify.abi.IN_CREATE)
        (tmp_path / "x").touch()
        monkeypatch.setattr(posix, "read", _would_block)
        assert watch.read(5) == []


def _would_block(*args: object) -> bytes:
    raise BlockingIOError


CALLS: list[tuple[int, bool, bool]] = [(EMFILE, True, True), (EMFILE, False, False), (EBUSY, True, False)]


@pytest.mark.parametrize(("number", "held", "works"), CALLS)
def test_the_reserve_is_for_a_want_of_descriptors(number: int, held: bool, works: bool) -> None:
    first = nth(2)
    call: Callable[[], int] = refusing(lambda: 7, number, lambda: not first())
    free_reserve()
    with Fd(os.open("/", os.O_PATH)) as fd:
        if held:
            hold_reserve(fd.fileno())
            hold_reserve(fd.fileno())
        if works:
            assert with_reserve(call) == 7
            assert not free_reserve()
        else:
            with os_error() as caught:
                with_reserve(call)
            assert caught.value.errno == number
            assert free_reserve() is held
