"""nvoci.hook.devices: the host's node bound in a container, or one made there, and the rule that is asked for."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lib.rootfs import tree

from nvoci.errors import HookError
from nvoci.hook.container import HOST, Container
from nvoci.hook.devices import BindNode, EmptyFile, MakeNode, Source
from nvoci.hook.operation import AllowDevices, Transaction
from nvoci.hook.preview import Preview
from nvoci.linux import devnode
from nvoci.linux.devicerule import DeviceRule
from tests.kernel import namespaced
from tests.kernel.namespaced import KERNELS, Kernel, block, isolated

pytestmark = [pytest.mark.kernel, pytest.mark.skipif(os.geteuid() != 0, reason="device nodes need root")]

HOST_TREE = "char dev/nvidia0 195 0 666\nchar dev/nvidia1 195 1 640"


@pytest.fixture
def host(tmp_path: Path) -> Path:
    return tree(tmp_path / "host", HOST_TREE)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    path = tree(tmp_path / "rootfs", "dir proc\ndir dev\ndir bin\ndir etc\nfile etc/target image\\n\ndir other")
    (path / "bin/busybox").write_bytes(Path("/bin/busybox").read_bytes())
    (path / "bin/busybox").chmod(0o755)
    return path


def opened(path: Path) -> int:
    return os.open(path, os.O_PATH | os.O_DIRECTORY)


Work = Callable[[Container, Source], Any]


def in_container(
    root: Path, host: Path, work: Work, kernel: Kernel = KERNELS[0], setup: str = "", node: bytes = b"dev/nvidia0"
) -> Any:
    """work(container, source) in a worker that entered a container; the source is made ready before, as a hook does."""

    def body() -> Any:
        kernel.start()
        with namespaced.container(root, setup) as pid:
            source = Source.open(opened(host), node)
            return namespaced.in_container(pid, root, Kernel("as before"), lambda c: work(c, source))

    return isolated(body)


def seen(root: Path, name: str = "dev/nvidia0") -> tuple[str, str, int, set[str]]:
    """As it lies there in this mount namespace: type and number, owner, mode; flags of the mount on it."""
    path = root / name
    st = path.lstat()
    flags: set[str] = set()
    for line in namespaced.mountinfo():
        if line.split()[4] == str(path):
            flags = set(line.split()[5].split(",")) - {"relatime"}
    number = devnode.number_of(st)
    return devnode.shown(number) if number else "-", f"{st.st_uid}:{st.st_gid}", stat.S_IMODE(st.st_mode), flags


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda k: k.name)
def test_the_hosts_node_is_bound_and_its_rule_asked_for(root: Path, host: Path, kernel: Kernel) -> None:
    def work(c: Container, source: Source) -> Any:
        transaction = Transaction()
        transaction.perform("test", BindNode(c, source, b"/dev/nvidia0"))
        after, rules = seen(root), [str(rule) for rule in transaction.rules]
        transaction.undo()
        assert not (root / "dev/nvidia0").exists()
        assert sorted(p.name for p in (root / "dev").iterdir()) == []
        return after, rules

    after, rules = in_container(root, host, work, kernel)
    assert after == ("c 195:0", "0:0", 0o666, {"ro", "nosuid", "noexec"})
    assert rules == ["c 195:0 rw"]


def test_mode_and_owner_of_the_hosts_node_cannot_be_changed_through_the_bind(root: Path, host: Path) -> None:
    def work(c: Container, source: Source) -> str:
        Transaction().perform("test", BindNode(c, source, b"/dev/nvidia0"))
        try:
            os.chmod(root / "dev/nvidia0", 0o600)
        except OSError as e:
            return os.strerror(e.errno or 0)
        return "changed"

    assert in_container(root, host, work) == "Read-only file system"


@pytest.mark.parametrize(
    ("there", "where", "made"),
    [
        ("file dev/nvidia0 text", "dev/nvidia0", False),
        ("char dev/nvidia0 1 3 600", "dev/nvidia0", False),
        ("symlink dev/nvidia0 ../other/real\nfile other/real x", "other/real", False),
        ("symlink dev/nvidia0 /other/real\nfile other/real x", "other/real", False),
        ("dir sub", "dev/nvidia0", True),
    ],
)
def test_what_is_there_already_is_shadowed_and_never_changed(
    root: Path, host: Path, there: str, where: str, made: bool
) -> None:
    tree(root, there)
    before = sorted((str(p), p.lstat().st_mode, p.lstat().st_ino) for p in root.rglob("*"))

    def work(c: Container, source: Source) -> Any:
        transaction = Transaction()
        transaction.perform("test", BindNode(c, source, b"/dev/nvidia0"))
        after = seen(root, where)
        transaction.undo()
        return after

    assert in_container(root, host, work) == ("c 195:0", "0:0", 0o666, {"ro", "nosuid", "noexec"})
    assert sorted((str(p), p.lstat().st_mode, p.lstat().st_ino) for p in root.rglob("*")) == before
    assert made is not any("dev/nvidia0" in path for path, *_ in before)


@pytest.mark.parametrize(
    ("there", "reason"),
    [
        ("dir dev/nvidia0", "EISDIR"),
        ("symlink dev/nvidia0 /nowhere", "ENOENT"),
        ("symlink dev/nvidia0 nvidia0", "ELOOP"),
        ("symlink dev/nvidia0 /dev", "EISDIR"),
        ("file dev/deep x", "ENOTDIR"),
        ("symlink dev/nvidia0 /proc/meminfo", "leads into a file system of the kernel's"),
        ("symlink dev/nvidia0 /proc/self/attr/exec", "leads into a file system of the kernel's"),
    ],
)
@pytest.mark.parametrize("kind", [BindNode, MakeNode])
def test_what_cannot_be_mounted_on_is_an_error_and_nothing_stays(
    root: Path, host: Path, kind: type[BindNode | MakeNode], there: str, reason: str
) -> None:
    tree(root, there)
    path = b"/dev/deep/nvidia0" if reason == "ENOTDIR" else b"/dev/nvidia0"
    before = sorted(str(p) for p in root.rglob("*"))

    def work(c: Container, source: Source) -> str:
        transaction, mounts = Transaction(), namespaced.mountinfo()
        with pytest.raises(HookError) as caught:
            transaction.perform("test", kind(c, source, path))
        transaction.undo()
        assert (transaction.rules, namespaced.mountinfo()) == ({}, mounts)
        return caught.value.line()

    assert reason in in_container(root, host, work)
    assert sorted(str(p) for p in root.rglob("*")) == before


def test_directories_on_the_way_are_made_and_removed(root: Path, host: Path) -> None:
    def work(c: Container, source: Source) -> Any:
        transaction = Transaction()
        transaction.perform("test", BindNode(c, source, b"/a/b/cap", owner=(77, 88)))
        transaction.perform("test", MakeNode(c, source, b"/a/c/node", owner=(77, 88), mode=0o640))
        after = (seen(root, "a/b/cap")[0], seen(root, "a/c/node"), [p.name for p in (root / "a/c").iterdir()])
        transaction.undo()
        return after

    bound, made, names = in_container(root, host, work)
    assert (bound, made) == ("c 195:0", ("c 195:0", "77:88", 0o640, set()))
    assert sorted(names) == [".nvoci-tmp", "node"]  # until commit
    assert not (root / "a").exists()


def test_a_file_to_mount_on_gets_its_owner_before_its_name(root: Path) -> None:
    def body() -> None:
        transaction, file = Transaction(), EmptyFile()
        file.make(transaction, namespaced.make_container(root).rootfs, b"/dev/x", 0o644, (77, 88))
        st = (root / "dev/x").lstat()
        assert (st.st_uid, st.st_gid, stat.S_IMODE(st.st_mode), st.st_size) == (77, 88, 0o644, 0)
        transaction.commit()
        assert sorted(os.listdir(root / "dev")) == ["x"]
        file.undo()
        assert os.listdir(root / "dev") == []

    os.umask(0o022)
    isolated(lambda: (os.umask(0), body())[1])


def test_a_file_that_was_written_to_is_not_removed(root: Path) -> None:
    def body() -> None:
        transaction, file = Transaction(), EmptyFile()
        file.make(transaction, namespaced.make_container(root).rootfs, b"/dev/x", 0o644)
        (root / "dev/x").write_text("somebody's")
        file.undo()
        assert (root / "dev/x").read_text() == "somebody's"

    isolated(body)


def test_a_made_node_is_the_containers_own(root: Path, host: Path) -> None:
    def work(c: Container, source: Source) -> Any:
        transaction = Transaction()
        transaction.perform("test", MakeNode(c, source, b"/dev/nvidia1"))
        transaction.commit()
        return seen(root, "dev/nvidia1"), [str(rule) for rule in transaction.rules]

    after, rules = in_container(root, host, work, node=b"dev/nvidia1")
    assert (after, rules) == (("c 195:1", "0:0", 0o640, set()), ["c 195:1 rw"])
    assert (root / "dev/nvidia1").lstat().st_ino != (host / "dev/nvidia1").lstat().st_ino


def test_a_second_run_finds_both_done(root: Path, host: Path) -> None:
    def work(c: Container, source: Source) -> Any:
        counts = []
        for _ in range(2):
            transaction = Transaction()
            transaction.perform("test", BindNode(c, source, b"/dev/nvidia0"))
            transaction.perform("test", MakeNode(c, source, b"/dev/made"))
            counts.append((len(namespaced.mountinfo()), (root / "dev/made").lstat().st_ino, len(transaction.rules)))
        transaction.undo()  # what the first one made is not the second one's to remove
        assert (seen(root)[0], seen(root, "dev/made")[0]) == ("c 195:0", "c 195:0")
        return counts

    first, second = in_container(root, host, work)
    assert first == second


def test_over_another_file_the_hosts_node_is_mounted_instead_of_made(root: Path, host: Path) -> None:
    tree(root, "char dev/nvidia0 1 3 600")

    def work(c: Container, source: Source) -> Any:
        transaction = Transaction()
        transaction.perform("test", MakeNode(c, source, b"/dev/nvidia0"))
        after = seen(root), [str(rule) for rule in transaction.rules]
        transaction.undo()
        return after

    after = in_container(root, host, work)
    assert after == (("c 195:0", "0:0", 0o666, {"ro", "nosuid", "noexec"}), ["c 195:0 rw"])
    assert devnode.number_of((root / "dev/nvidia0").lstat()) == ("c", 1, 3)


def test_where_no_node_may_be_made_the_hosts_is_mounted(root: Path, host: Path) -> None:
    """As in a user namespace."""

    def work(c: Container, source: Source) -> Any:
        block(("mknodat",), 1)
        transaction = Transaction()
        transaction.perform("test", MakeNode(c, source, b"/dev/nvidia0"))
        return seen(root)

    namespaced.abi.NR.setdefault("mknodat", 259 if os.uname().machine == "x86_64" else 33)
    assert in_container(root, host, work) == ("c 195:0", "0:0", 0o666, {"ro", "nosuid", "noexec"})


@pytest.mark.parametrize("kind", [BindNode, MakeNode])
def test_a_node_where_devices_do_not_work_is_an_error(root: Path, host: Path, kind: type[BindNode | MakeNode]) -> None:
    def body() -> str:
        namespaced.sh(f"mount -t tmpfs -o nodev x {root}/dev; mount --bind {host} {host}")
        if kind is BindNode:
            namespaced.sh(f"mount -o remount,bind,nodev {host}")
        with namespaced.container(root) as pid:
            namespaced.sh(f"nsenter -t {pid} -m mount -t tmpfs -o nodev x {root}/dev")
            source = Source.open(opened(host), b"dev/nvidia0")

            def work(c: Container) -> str:
                transaction, mounts = Transaction(), namespaced.mountinfo()
                with pytest.raises(HookError) as caught:
                    transaction.perform("test", kind(c, source, b"/dev/nvidia0"))
                transaction.undo()
                assert (namespaced.mountinfo(), os.listdir(root / "dev")) == (mounts, [])
                return caught.value.line()

            return str(namespaced.in_container(pid, root, Kernel("all"), work))

    assert "lies on a mount with nodev" in isolated(body)


@pytest.mark.parametrize("kind", [BindNode, MakeNode])
def test_on_the_host_there_is_no_container_to_give_it_to(
    root: Path, host: Path, kind: type[BindNode | MakeNode]
) -> None:
    def body() -> None:
        transaction, source = Transaction(), Source.open(opened(host), b"dev/nvidia0")
        with pytest.raises(HookError, match=r"no mount namespace|no container"):
            transaction.perform("test", kind(namespaced.make_container(root, HOST), source, b"/dev/nvidia0"))
        transaction.undo()
        assert os.listdir(root / "dev") == []

    isolated(body)


def test_another_device_on_the_target_is_noticed(root: Path, host: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The number is read once more from what the container will open."""

    def work(c: Container, source: Source) -> str:
        source.number = ("c", 195, 7)
        transaction, mounts = Transaction(), namespaced.mountinfo()
        with pytest.raises(HookError) as caught:
            transaction.perform("test", BindNode(c, source, b"/dev/nvidia0"))
        assert (namespaced.mountinfo(), transaction.rules) == (mounts, {})
        return caught.value.message

    assert "another device is seen there" in in_container(root, host, work)


# -- words ----------------------------------------------------------------------------------------------------------


def test_operations_say_what_they_do_and_whether_there_is_anything_to_do(root: Path, host: Path) -> None:
    def work(c: Container, source: Source) -> list[Any]:
        view = Preview(c.rootfs)
        rule = DeviceRule("c", 235, 1)
        bind, make, bare = BindNode(c, source, b"/dev/nvidia0"), MakeNode(c, source, b"dev/m"), AllowDevices([rule])
        quiet = BindNode(c, source, b"/dev/nvidia0", allow=False), MakeNode(c, source, b"dev/m", allow=False)
        said: list[Any] = [op.describe() for op in (bind, make, bare, *quiet)]
        said += [op.preview(view) for op in (bind, make)]
        transaction = Transaction()
        for op in (*quiet, bare):
            transaction.perform("test", op)
        assert list(transaction.rules) == [rule]
        return [*said, *(op.preview(view) for op in (bind, make))]

    assert in_container(root, host, work) == [
        "mount /dev/nvidia0 (c 195:0) on /dev/nvidia0, and allow rw",
        "mknod /dev/m c 195:0 mode 0666, and allow rw",
        "allow c 235:1 rw",
        "mount /dev/nvidia0 (c 195:0) on /dev/nvidia0",
        "mknod /dev/m c 195:0 mode 0666",
        True,
        True,
        False,
        False,
    ]


def test_a_rule_is_asked_for_once() -> None:
    transaction = Transaction()
    for access in ("rw", "r", "rw"):
        transaction.allow(DeviceRule("c", 1, 3, access))
    assert [str(rule) for rule in transaction.rules] == ["c 1:3 rw", "c 1:3 r"]
