"""What the prestart hook's operations do when a step fails, or when somebody else has been there: what is not theirs
stays, and nothing of theirs does."""

from __future__ import annotations

import os
import posix
from collections.abc import Callable
from errno import EINVAL, EIO, ENOSPC, EPERM, EROFS
from pathlib import Path
from typing import Any

import pytest
from kernel import namespaced
from kernel.namespaced import KERNELS, Kernel
from kernel.test_prestart_mounts import Make, Scene, Taken, one
from lib import oracle

from nvoci.errors import HookError
from nvoci.hook.operation import Operation, Transaction
from nvoci.hook.preview import Preview
from nvoci.linux.rootfs import Made
from nvoci.prestart import overlay
from nvoci.prestart import points as module
from nvoci.prestart.binds import Bind, KeepLink, MakeDirectory
from nvoci.prestart.hostfiles import Host
from nvoci.prestart.points import Points

pytestmark = [pytest.mark.kernel, pytest.mark.skipif(os.geteuid() != 0, reason="mounts")]
NEW = b"/usr/lib/new"


@pytest.fixture
def scene() -> Scene:
    return Scene()


class Then(Operation):
    """Somebody else does something."""

    def __init__(self, act: Callable[[], object]) -> None:
        self.act = act

    def describe(self) -> str:
        return "somebody else"

    def execute(self, transaction: Transaction) -> None:
        self.act()


def state(scene: Scene) -> dict[str, tuple[object, ...]]:
    """Of the image; the set-up makes its /proc."""
    (scene.root / "proc").mkdir(exist_ok=True)
    found = oracle.content_only(oracle.snapshot(scene.root))
    (scene.root / "proc").rmdir()
    return found


def every(points: Points, taken: Taken) -> list[Operation]:
    tree = overlay.Generated(points, b"srv/tree", overlay.profile_tree([0]), "a tree", 0o555)
    binds = [Bind(points, taken.library, NEW), Bind(points, taken.node, b"/dev/nvidia0", allow=True)]
    return [tree, *binds, MakeDirectory(points, b"/usr/lib32"), KeepLink(points, b"x", b"/usr/lib/link")]


def test_undo_of_what_was_not_begun_does_nothing(scene: Scene) -> None:
    before = state(scene)

    def make(points: Points, taken: Taken) -> list[Operation]:
        for operation in every(points, taken):
            operation.undo()
        return []

    assert scene.run(make) == ("", {}, [])
    assert state(scene) == before


def link(scene: Scene) -> Path:
    return scene.root / "usr/lib/link"


# what somebody does with a link of ours -> its text then
LINKS: dict[str, tuple[Callable[[Path], object], str]] = {
    "nothing": (lambda path: None, ""),
    "removed": (lambda path: path.unlink(), ""),
    "another link": (lambda path: (path.unlink(), path.symlink_to("y")), "y"),
}


@pytest.mark.parametrize("case", LINKS)
def test_undo_leaves_a_link_that_says_something_else(scene: Scene, case: str) -> None:
    act, text = LINKS[case]
    make: Make = lambda points, taken: [
        KeepLink(points, b"x", b"/usr/lib/link"), Then(lambda: act(link(scene))),
    ]  # fmt: skip
    assert scene.run(make, undo=True).error == ""
    assert os.path.lexists(link(scene)) is bool(text)
    assert not text or os.readlink(link(scene)) == text


def fill(path: Path) -> None:
    path.write_text("theirs") if path.is_file() else (path / "theirs").write_text("theirs")


def replace(path: Path) -> None:
    path.rename(path.with_name("away"))
    path.with_name("theirs").touch()
    path.with_name("theirs").rename(path)


# what somebody does with a mount point of ours -> whether something is there then
POINTS: dict[str, tuple[Callable[[Path], object], bool]] = {
    "nothing": (lambda path: None, False),
    "filled": (fill, True),
    "replaced": (replace, True),
    "removed": (lambda path: path.rename(path.with_name("away")), False),
}


@pytest.mark.parametrize("directory", [False, True], ids=["file", "directory"])
@pytest.mark.parametrize("case", POINTS)
def test_undo_leaves_a_mount_point_that_is_not_the_one_that_was_made(scene: Scene, case: str, directory: bool) -> None:
    act, stays = POINTS[case]
    path = scene.root / "usr/lib/new"

    def make(points: Points, taken: Taken) -> list[Operation]:
        point = points.find(NEW, 0o755, Made(), directory=directory)
        with point.fd:
            act(path)
            for _ in range(2):
                point.remove()
        return []

    assert scene.run(make).error == ""
    assert path.exists() is stays


def test_a_mount_point_that_cannot_be_removed_is_told(scene: Scene) -> None:
    def make(points: Points, taken: Taken) -> list[Operation]:
        point = points.find(NEW, 0o644, Made())
        point.fd.close()
        namespaced.sh(f"mount -o remount,ro,bind {scene.root}")
        with namespaced.os_error() as e:
            point.remove()
        assert e.value.errno == EROFS
        return []

    assert scene.run(make).error == ""
    assert (scene.root / "usr/lib/new").exists()


# -- races for a mount point ------------------------------------------------------------------------------------------


def test_a_link_that_was_resolved_and_is_followed_by_another_is_refused(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = module.canonical

    def resolved(*args: Any) -> bytes:
        found = real(*args)
        (scene.root / os.fsdecode(found)).symlink_to("/etc/passwd")
        return found

    (scene.root / "usr/lib/first").symlink_to("second")
    monkeypatch.setattr(module, "canonical", resolved)
    result = scene.run(one("/usr/lib/first"))
    assert ("usr/lib/first" in result.error, "ELOOP" in result.error, result.mounts) == (True, True, {})


def test_a_directory_that_is_removed_as_soon_as_it_is_made_is_told(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = posix.mkdir

    def made(path: Any, *args: Any, **more: Any) -> None:
        real(path, *args, **more)
        if path == b"new":
            posix.rmdir(path, dir_fd=more["dir_fd"])

    monkeypatch.setattr(posix, "mkdir", made)
    before = state(scene)
    assert "ENOENT" in scene.run(one("/usr/lib/new", "data")).error
    assert state(scene) == before


@pytest.mark.parametrize("kind", ["library", "data"])
def test_a_mount_point_that_cannot_be_looked_at_is_taken_away(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Nobody could tell later that it was made here."""
    real = module.Point

    def looked_at(*args: Any, fresh: bool) -> module.Point:
        if fresh:
            raise OSError(EIO, "sick")
        return real(*args, fresh=fresh)

    monkeypatch.setattr(module, "Point", looked_at)
    before = state(scene)
    result = scene.run(one("/usr/lib/new", kind))
    assert ("on /usr/lib/new: EIO" in result.error, result.mounts) == (True, {}), result.error
    assert state(scene) == before


def test_what_is_mounted_on_ours_at_once_is_not_taken_for_it(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both are gone then."""
    real = module.move_mount

    def moved(*args: Any) -> None:
        real(*args)
        namespaced.sh(f"mount --bind {scene.root}/etc/passwd {scene.root}/usr/lib/new")

    monkeypatch.setattr(module, "move_mount", moved)
    before = state(scene)
    result = scene.run(one("/usr/lib/new"))
    assert ("/usr/lib/new" in result.error, "ESTALE" in result.error, result.mounts) == (True, True, {})
    assert state(scene) == before


# -- errors of the kernel ---------------------------------------------------------------------------------------------

ATTACH = {
    ENOSPC: "mount on /usr/lib/new: ENOSPC (limit of mounts reached: see fs.mount-max)",
    EIO: "(ro,nosuid,nodev) on /usr/lib/new: EIO",
}


@pytest.mark.parametrize("number", ATTACH, ids=os.strerror)
def test_a_mount_that_fails_is_told_and_its_point_taken_away(scene: Scene, number: int) -> None:
    """Its sources were taken before."""
    before = state(scene)

    def make(points: Points, taken: Taken) -> list[Operation]:
        namespaced.block(("move_mount",), number)
        return [Bind(points, taken.library, NEW)]

    result = scene.run(make)
    assert (ATTACH[number] in result.error, result.mounts) == (True, {}), result.error
    assert state(scene) == before


OLD = [Kernel("before-5.8", ("statx",)), Kernel("filtered", ("statx",), EPERM), Kernel("sick", ("statx",), EIO)]


@pytest.mark.parametrize("kernel", OLD, ids=lambda kernel: kernel.name)
def test_the_number_of_a_mount_is_known_without_statx(scene: Scene, kernel: Kernel) -> None:
    setup = f"mount --bind {scene.root}/tmp {scene.root}/tmp; mount --make-shared {scene.root}/tmp"
    private, shared = (scene.run(one(path), kernel, setup=setup) for path in ("/usr/lib/new", "/tmp/new"))
    if kernel.error == EIO:
        assert "EIO" in private.error
        assert "/usr/lib/new" not in private.mounts
    else:
        assert (private.error, private.mounts["/usr/lib/new"]) == ("", "ro,nosuid,nodev")
        assert "lies on a shared mount" in shared.error


@pytest.mark.parametrize("kernel", [KERNELS[0], KERNELS[3]], ids=lambda kernel: kernel.name)
def test_a_tree_that_is_too_large_for_its_file_system_is_an_error(scene: Scene, kernel: Kernel) -> None:
    tree = overlay.Tree(read_only=True, size="16k")
    tree.add_file("params", b"x" * 65536, 0o444)
    before = state(scene)
    result = scene.run(lambda points, _: [overlay.Generated(points, b"srv/tree", tree, "a tree", 0o555)], kernel)
    assert ("on /srv/tree: ENOSPC" in result.error, result.mounts) == (True, {}), result.error
    assert state(scene) == before


# -- a look beforehand ------------------------------------------------------------------------------------------------


def test_what_is_there_as_asked_for_is_not_told_by_a_dry_run(scene: Scene) -> None:
    told: list[list[bool]] = []

    def make(points: Points, taken: Taken) -> list[Operation]:
        operations = every(points, taken)
        view = Preview(points.rootfs)
        told.append([operation.preview(view) for operation in operations])
        return [*operations, Then(lambda: check(points, taken))]

    def check(points: Points, taken: Taken) -> None:
        view = Preview(points.rootfs)
        assert [operation.preview(view) for operation in every(points, taken)] == [False] * 5
        assert told == [[True] * 5]
        other = overlay.Generated(points, b"srv/tree", overlay.profile_tree([1]), "another tree", 0o555)
        nowhere = overlay.Generated(points, b"srv/none", overlay.profile_tree([1]), "another tree", 0o555)
        image = overlay.Generated(points, b"usr/lib", overlay.profile_tree([1]), "another tree", 0o555)
        assert [each.preview(view) for each in (other, nowhere, image)] == [True] * 3

    assert scene.run(make).error == ""


# -- the host's side --------------------------------------------------------------------------------------------------


def test_a_driver_root_that_is_not_there_is_an_error() -> None:
    with pytest.raises(HookError) as caught, Host("/nowhere/driver/"):
        pass
    assert caught.value.message == "open driver root /nowhere/driver: ENOENT"


def test_flags_that_cannot_be_set_on_a_clone_are_an_error_and_it_is_closed(scene: Scene) -> None:
    def body() -> tuple[str, int]:
        path = str(scene.host / "lib/libcuda.so.1.2")
        with Host(str(scene.host)):
            before = len(os.listdir("/proc/self/fd"))
        Kernel("sick", ("mount_setattr",), EINVAL).start()
        with pytest.raises(HookError) as caught, Host(str(scene.host)) as host:
            host.file(path)
        return caught.value.line().replace(path, "PATH"), len(os.listdir("/proc/self/fd")) - before

    told, opened = namespaced.isolated(body)
    assert (told.startswith("open PATH: EINVAL"), opened < 1) == (True, True), told


def test_a_driver_in_the_root_is_cloned_by_handle_where_it_cannot_be_by_name(scene: Scene) -> None:
    def body() -> list[bool]:
        (kernel,) = (each for each in KERNELS if each.name == "no-open_tree")
        path, found = str(scene.host / "lib/libcuda.so.1.2"), []
        for start in (KERNELS[0], kernel):
            start.start()
            with Host("/") as host, host.file(path) as source:
                found.append(source.tree is None)
                assert source.st.st_ino == os.stat(path).st_ino
        return found

    assert namespaced.isolated(body) == [False, True]


# -- where the driver is not ------------------------------------------------------------------------------------------

NO_DRIVER = {
    "not loaded": ("", "ENOENT (the container has no procfs, or the driver is not loaded"),
    "no procfs": ("umount {0}/proc", "ENOENT (the container has no procfs, or the driver is not loaded"),
    "a loop": ("mount -t tmpfs t {0}/proc; mkdir {0}/proc/driver; ln -s nvidia {0}/proc/driver/nvidia", "ELOOP"),
}


@pytest.mark.parametrize("case", NO_DRIVER)
def test_a_container_without_the_driver_s_files_is_told(scene: Scene, case: str) -> None:
    setup, words = NO_DRIVER[case]
    if not setup and Path("/proc/driver/nvidia").exists():
        pytest.skip("this machine has the driver")
    make: Make = lambda points, _: [overlay.Generated(points, overlay.DRIVER, overlay.profile_tree([]), "its files")]
    result = scene.run(make, setup=setup.format(scene.root))
    assert (words in result.error, "/proc/driver/nvidia" in result.mounts) == (True, False), result.error
