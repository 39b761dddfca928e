"""nvoci.linux.mount and generated where a call fails half way: the error, and nothing mounted or open that was not."""

from __future__ import annotations

import os
import posix
from collections.abc import Callable
from errno import EACCES, EAGAIN, EBUSY, EINVAL, ELOOP, EMFILE, ENOENT, ENOMEM, EPERM, ESTALE
from pathlib import Path
from typing import Any

import pytest

from nvoci.errors import HookError
from nvoci.linux import generated, mount, procfs
from nvoci.linux.fd import Fd
from nvoci.linux.rootfs import Rootfs
from tests.kernel import namespaced
from tests.kernel.namespaced import KERNELS, Kernel, isolated, os_error, sh
from tests.kernel.refusal import refuse

pytestmark = [pytest.mark.kernel, pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")]
NEW = KERNELS[0]
NO_ATTRIBUTES, OLD, NO_MOVE = (next(k for k in KERNELS if k.name == n) for n in ("before-5.12", "before-5.2",
                                                                                 "no-move_mount"))  # fmt: skip
PATH = b"etc/target"
Setup = Callable[[], None]


def begin(root: Path, kernel: Kernel) -> Rootfs:
    """The root as a mount of its own, in this process."""
    sh(f"mount --bind {root} {root}")
    kernel.start()
    procfs.handle()  # which stays open
    return Rootfs.open(str(root))


def state() -> tuple[list[str], list[str]]:
    return namespaced.mountinfo(), sorted(os.listdir("/proc/self/fd"))


def source(root: Path) -> mount.Source:
    with Fd(os.open(root / "bin/busybox", os.O_PATH)) as fd:
        return mount.clone(fd.fileno(), mount.READ_ONLY)


# -- attaching --------------------------------------------------------------------------------------------------------


def _refused(name: str, number: int, when: Callable[..., bool] = lambda *args: True) -> Setup:
    return lambda: refuse(mount, name, number, when)


def is_bind(*args: Any) -> bool:
    return bool(args[3] == mount.abi.MS_BIND)


def is_private(*args: Any) -> bool:
    return bool(args[3] == mount.abi.MS_PRIVATE)


ATTACHING: dict[str, tuple[Setup, Kernel, int]] = {
    "move_mount": (_refused("move_mount", EBUSY), NEW, EBUSY),
    "bind": (_refused("mount", EBUSY, is_bind), OLD, EBUSY),
    "bind, no move_mount": (_refused("mount", ENOMEM, is_bind), NO_MOVE, ENOMEM),
    "remount after move_mount": (_refused("mount", EPERM), NO_ATTRIBUTES, EPERM),
    "remount after bind": (_refused("mount", EPERM, lambda *a: a[3] & mount.abi.MS_REMOUNT), OLD, EPERM),
    "private after bind": (_refused("mount", EINVAL, is_private), OLD, EINVAL),
    "look after move_mount": (lambda: refuse(posix, "fstatvfs", EACCES), NEW, EACCES),
}


@pytest.mark.parametrize("call", ATTACHING)
def test_a_mount_that_fails_is_no_mount(root: Path, call: str) -> None:
    setup, kernel, number = ATTACHING[call]

    def body() -> tuple[int, Any]:
        rootfs = begin(root, kernel)
        before = state()
        with source(root) as it, mount.find_target(rootfs, PATH) as target:
            setup()
            with os_error() as caught:
                mount.attach(it, target)
        assert state() == before
        return caught.value.errno or 0, caught.value.filename

    found, name = isolated(body)
    assert found == number
    assert name == PATH or call == "look after move_mount"


def test_a_handle_of_another_namespace_whose_name_means_another_file_is_not_bound(root: Path) -> None:
    """Without the mount API: mount(2) answers EINVAL for what is not of this namespace."""

    def body() -> None:
        rootfs = begin(root, OLD)
        with source(root) as it, mount.find_target(rootfs, PATH) as target:
            before = namespaced.mountinfo()
            refuse(mount, "mount", EINVAL, is_bind)
            procfs.name_of = lambda fd: str(root / "etc/target").encode()
            with os_error() as caught:
                mount.attach(it, target)
            assert caught.value.errno == ESTALE
            assert namespaced.mountinfo() == before

    isolated(body)


def test_attributes_that_are_refused_leave_no_clone(root: Path) -> None:
    def body() -> None:
        NEW.start()
        refuse(mount, "mount_setattr", ENOMEM)
        with Fd(os.open(root / "etc/target", os.O_PATH)) as fd:
            before = state()
            with os_error() as caught:
                mount.clone(fd.fileno(), mount.READ_ONLY)
            assert caught.value.errno == ENOMEM
            assert state() == before

    isolated(body)


def test_a_release_of_the_kernel_says_whose_mount_api_is_not_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    for release, refused in {
        "4.18.0-553.el8_10.x86_64": True, "5.1.21": True, "3.10.0-1160.el7": True, "5.2.0": False, "6.8.0-45-generic":
        False, "5.14.0-427.el9": False, "5": False, "rolling": False, "": False, "5.x": False,
    }.items():  # fmt: skip
        monkeypatch.setattr(mount, "missing", set())
        mount._refuse_backports(release)
        assert bool(mount.missing) == refused, release
        assert "open_tree" in mount.missing or not refused


# -- taking away ------------------------------------------------------------------------------------------------------


def test_a_mount_that_is_gone_already_needs_no_undo(root: Path) -> None:
    def body() -> None:
        rootfs = begin(root, NEW)
        before = namespaced.mountinfo()
        with source(root) as it, mount.find_target(rootfs, PATH) as target:
            mounted = mount.attach(it, target)
            sh(f"umount -l {root}/etc/target")
            mounted.detach()
        assert namespaced.mountinfo() == before

    isolated(body)


def test_a_mount_that_cannot_be_taken_away_is_an_error(root: Path) -> None:
    def body() -> None:
        rootfs = begin(root, NEW)
        with source(root) as it, mount.find_target(rootfs, PATH) as target:
            mounted = mount.attach(it, target)
            refuse(mount, "umount2", EPERM)
            with os_error() as caught:
                mounted.detach()
            assert caught.value.errno == EPERM

    isolated(body)


def ours(fd: int) -> bool:
    return os.fstat(fd).st_size > 1000  # busybox


def taking_away(root: Path, script: str, setup: Callable[[Path], None] = lambda root: None) -> list[str]:
    """What take_away() unmounts of that which `script` mounts ($0: the root), by mount points below it."""

    def body() -> list[str]:
        rootfs = begin(root, OLD)
        with mount.find_target(rootfs, PATH) as target:
            before = mount.table_before(target)
            sh(script.replace("$0", str(root)))
            there = namespaced.mountinfo()
            setup(root)
            mount.take_away(target, before, ours)
            after = namespaced.mountinfo()
        assert set(after) <= set(there)
        return [os.path.relpath(line.split()[4], root) for line in there if line not in after]

    found: list[str] = isolated(body)
    return found


BIND = "mount --bind $0/bin/busybox $0/etc/target"
TAKEN: dict[str, tuple[str, list[str]]] = {
    "ours": (BIND, ["etc/target"]),
    "gone already": ("true", []),
    "another's only": ("mount -t tmpfs other $0/usr", []),
    "ours, of another name": (f"touch $0/etc/x; {BIND.replace('target', 'x')}", ["etc/x"]),
    "ours, covered by another": (f"{BIND}; touch $0/etc/y; mount --bind $0/etc/y $0/etc/target", []),
}


@pytest.mark.parametrize("case", TAKEN)
def test_only_our_own_mount_is_taken_away(root: Path, case: str) -> None:
    script, taken = TAKEN[case]
    assert taking_away(root, script) == taken


def test_a_name_that_moves_while_it_is_taken_away_is_looked_up_again(root: Path) -> None:
    def setup(root: Path) -> None:
        times = iter((ENOENT, ELOOP))
        real = posix.open

        def opened(path: Any, *args: Any, **named: Any) -> int:
            if path == bytes(root / "etc/target") and (number := next(times, 0)):
                raise OSError(number, os.strerror(number), path)
            return real(path, *args, **named)

        posix.open = opened

    assert taking_away(root, BIND, setup) == ["etc/target"]


def test_what_cannot_be_looked_at_is_an_error(root: Path) -> None:
    def setup(root: Path) -> None:
        refuse(posix, "open", EACCES, lambda path, *args: path == bytes(root / "etc/target"))

    with pytest.raises(AssertionError, match="PermissionError"):
        taking_away(root, BIND, setup)


def test_undo_has_a_descriptor_where_none_is_left(root: Path) -> None:
    """The reserve of `nvoci.linux.fd` is for this."""

    def body() -> None:
        rootfs = begin(root, OLD)
        with source(root) as it, mount.find_target(rootfs, PATH) as target:
            mounted = mount.attach(it, target)
            refuse(posix, "open", EMFILE)
            with os_error() as caught:
                mounted.detach()
            assert caught.value.errno == EMFILE

    isolated(body)


# -- finding ----------------------------------------------------------------------------------------------------------


def meanwhile(change: Callable[[], None], after: Callable[[], None] = lambda: None) -> None:
    """change() between the lookup of a target and that of its parent."""
    real = mount._parent_of

    def parent_of(rootfs: Rootfs, path: bytes) -> tuple[Fd, bytes]:
        change()
        try:
            return real(rootfs, path)
        finally:
            after()

    mount._parent_of = parent_of


def finding(root: Path, kernel: Kernel, *changes: Callable[[], None]) -> int:
    """The errno with which a target is not found; no descriptor is left."""

    def body() -> int:
        rootfs = begin(root, kernel)
        before = state()[1]
        meanwhile(*changes)
        with os_error() as caught:
            mount.find_target(rootfs, PATH)
        assert state()[1] == before
        assert caught.value.filename == PATH
        return caught.value.errno or 0

    number: int = isolated(body)
    return number


@pytest.mark.parametrize("kernel_", [NEW, OLD], ids=lambda k: k.name)
def test_a_target_that_is_replaced_all_the_time_is_not_found(root: Path, kernel_: Kernel) -> None:
    def replace() -> None:
        (root / "etc/other").write_text("other")
        os.rename(root / "etc/other", root / "etc/target")

    assert finding(root, kernel_, replace) == EAGAIN


@pytest.mark.parametrize("kernel_", [NEW, OLD], ids=lambda k: k.name)
def test_a_target_that_comes_and_goes_is_not_found(root: Path, kernel_: Kernel) -> None:
    target = root / "etc/target"
    assert finding(root, kernel_, target.unlink, target.touch) == EAGAIN


def test_a_target_that_turns_into_a_loop_is_not_found(root: Path) -> None:
    def loop() -> None:
        (root / "etc/target").unlink()
        (root / "etc/target").symlink_to("target")

    assert finding(root, NEW, loop) == ELOOP


def test_a_target_that_was_away_for_a_moment_is_found(root: Path) -> None:
    target = root / "etc/target"

    def body() -> None:
        rootfs = begin(root, NEW)
        before = state()[1]
        away = iter((True,))

        def change() -> None:
            if next(away, False):
                os.rename(target, root / "etc/away")

        def back() -> None:
            if not target.exists():
                os.rename(root / "etc/away", target)

        meanwhile(change, back)
        with mount.find_target(rootfs, PATH) as found:
            assert found.name == b"target"
            assert found.fd.stat().st_ino == target.stat().st_ino
        assert state()[1] == before

    isolated(body)


# -- generated files --------------------------------------------------------------------------------------------------


def bomb(*args: Any) -> Any:
    raise HookError("the deadline")


GENERATED: dict[str, tuple[Kernel, Setup, str]] = {
    "fsconfig": (NEW, lambda: refuse(generated, "fsconfig_create", ENOMEM), "ENOMEM"),
    "the clone": (NEW, lambda: refuse(mount, "open_tree", ENOMEM), "ENOMEM"),
    "attaching": (NEW, lambda: refuse(mount, "move_mount", EBUSY), "EBUSY"),
    "the tmpfs": (OLD, lambda: refuse(generated, "mount", ENOMEM), "ENOMEM"),
    "attaching, without the mount API": (OLD, lambda: refuse(mount, "mount", EBUSY, is_bind), "EBUSY"),
    "the deadline, without the mount API": (OLD, lambda: setattr(generated, "attach", bomb), "the deadline"),
}


@pytest.mark.parametrize("step", GENERATED)
def test_a_generated_file_that_cannot_be_mounted_leaves_nothing(root: Path, step: str) -> None:
    kernel, setup, wanted = GENERATED[step]

    def body() -> str:
        rootfs = begin(root, kernel)
        before = state()
        with mount.find_target(rootfs, PATH) as target:
            setup()
            with pytest.raises((OSError, HookError)) as caught:
                generated.mount_generated(rootfs, target, b"data", 0o444)
        assert state() == before
        error = caught.value
        return error.message if isinstance(error, HookError) else os.strerror(error.errno or 0)

    said = isolated(body)
    assert said in (wanted, os.strerror(getattr(os, wanted, 0) or {"ENOMEM": ENOMEM, "EBUSY": EBUSY}.get(wanted, 0)))


def test_selinux_gives_the_tmpfs_a_context(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As mount(8) has it, quoted for mount(2) because of the comma between categories."""
    label = "system_u:object_r:container_file_t:s0:c1,c2"
    monkeypatch.setattr(procfs, "read", lambda path, *args: b"nodev\tselinuxfs\n" if path == b"filesystems" else b"")
    assert (b"context", label.encode()) in generated._options(4, label)
    assert b"context" not in dict(generated._options(4, ""))
    monkeypatch.setattr(procfs, "read", lambda path, *args: b"nodev\ttmpfs\n")
    assert b"context" not in dict(generated._options(4, label))
