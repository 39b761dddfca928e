"""MIG capabilities in a container: what is mounted where, what is made for it, what is refused, and undo."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from lib import mignode
from lib.mignode import CI, GI, MINORS, MigNode
from lib.rootfs import tree

from nvoci.errors import HookError
from nvoci.hook import migcaps, migmounts
from nvoci.hook.container import HOST, Container
from nvoci.hook.operation import Operation, Transaction
from nvoci.hook.preview import Preview
from nvoci.linux import abi, procfs
from tests.kernel import namespaced
from tests.kernel.namespaced import KERNELS, Kernel, isolated, sh

pytestmark = [pytest.mark.kernel, pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")]

READ_ONLY, NODE, DIRECTORY = "nodev,noexec,nosuid,ro", "noexec,nosuid,ro", "noexec,nosuid,rw"
COVER = "mount -t tmpfs -o mode=555 cover {root}/proc/driver"  # an injector's, with nothing in it yet
TREE = mignode.CAPABILITIES


@pytest.fixture
def node(tmp_path: Path) -> MigNode:
    return mignode.make(tmp_path / "node")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tree(tmp_path / "rootfs", "dir proc\ndir dev\ndir etc\nfile etc/passwd image\\n")


Taken = tuple[list[migcaps.Capability], migcaps.Management]
Work = Callable[[Container, list[Operation]], Any]


def in_container(
    node: MigNode,
    root: Path,
    work: Work,
    *,
    setup: str | None = None,
    kernel: Kernel = KERNELS[0],
    instances: Sequence[str] = (GI, CI),
    managed: bool = False,
    runs: int = 1,
    **how: Any,
) -> Any:
    """work(container, operations) in a worker that entered a container; the host's side is taken before, as a hook
    does. setup: of the container, else its procfs shows the driver's tree. runs: make them so often. how: for the
    operations."""

    def take() -> Any:
        kernel.start()
        sh(node.setup())
        procfs._handle = -1
        with migcaps.Host(str(node.root)) as host:
            given = [host.capability(mignode.access(each).removeprefix("proc/").encode()) for each in instances]
            manage = host.management(["config"], [0]) if managed else None
        inside = node.in_container(str(root)) if setup is None else setup.format(root=root)
        with namespaced.container(root, inside) as pid:

            def enter(container: Container) -> Any:
                operations: list[Operation] = []
                for _ in range(runs):
                    if manage is not None:
                        operations += migmounts.management(container, manage, allow=how.get("allow", True))
                    for each in given:
                        operations += migmounts.capability(container, each, **how)
                return work(container, operations)

            return namespaced.in_container(pid, root, Kernel("as before"), enter)

    return isolated(take)


def mounts(root: Path) -> dict[str, str]:
    """Path below the root -> flags, of every mount at or below the capabilities and their nodes."""
    found = {}
    for line in namespaced.mountinfo():
        fields = line.split()
        path = fields[4].removeprefix(f"{root}/")
        if path.startswith((TREE, "dev")):
            found[path] = ",".join(sorted(set(fields[5].split(",")) - {"relatime"}))
    return found


def perform(operations: Sequence[Operation], transaction: Transaction | None = None) -> Transaction:
    transaction = transaction or Transaction()
    for operation in operations:
        transaction.perform("test", operation)
    return transaction


def given(*instances: str) -> dict[str, str]:
    out = {}
    for each in instances:
        out |= {mignode.access(each): READ_ONLY, mignode.node(each): NODE}
    return out


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda k: k.name)
def test_file_and_node_are_the_hosts_and_undone_again(node: MigNode, root: Path, kernel: Kernel) -> None:
    def work(container: Container, operations: list[Operation]) -> Any:
        before = namespaced.mountinfo()
        transaction = perform(operations)
        after = mounts(root), [str(rule) for rule in transaction.rules]
        text = (root / mignode.access(CI)).read_text()
        transaction.undo()
        assert (namespaced.mountinfo(), sorted(os.listdir(root / "dev"))) == (before, [])
        return after, text

    after, text = in_container(node, root, work, kernel=kernel)
    assert after == (given(GI, CI), ["c 236:12 rw", "c 236:13 rw"])
    assert text == f"DeviceFileMinor: {MINORS[CI]}\nDeviceFileMode: 292\nDeviceFileModify: 1\n"


def test_a_second_run_finds_everything_done(node: MigNode, root: Path) -> None:
    def work(container: Container, operations: list[Operation]) -> Any:
        perform(operations[:4])
        once, paths = len(namespaced.mountinfo()), sorted(map(str, (root / "dev").rglob("*")))
        view = Preview(container.rootfs)
        assert [op.preview(view) for op in operations[4:]] == [False] * 4
        again = perform(operations[4:])
        assert len(again.rules) == 2
        again.undo()  # what the first run made is not the second one's to take away
        return once == len(namespaced.mountinfo()), paths == sorted(map(str, (root / "dev").rglob("*")))

    assert in_container(node, root, work, runs=2) == (True, True)


SWITCHES: dict[str, tuple[dict[str, bool], list[str], list[str]]] = {
    "no node, with its rule": ({"bind": False}, [mignode.access(GI)], ["c 236:12 rw"]),
    "no rule": ({"allow": False}, [mignode.access(GI), mignode.node(GI)], []),
    "neither": ({"bind": False, "allow": False}, [mignode.access(GI)], []),
}


@pytest.mark.parametrize(("how", "paths", "rules"), SWITCHES.values(), ids=SWITCHES)
def test_nodes_and_rules_can_be_left_out(
    node: MigNode, root: Path, how: dict[str, bool], paths: list[str], rules: list[str]
) -> None:
    def work(container: Container, operations: list[Operation]) -> Any:
        transaction = perform(operations)
        return sorted(mounts(root)), [str(rule) for rule in transaction.rules]

    assert in_container(node, root, work, instances=[GI], **how) == (sorted(paths), rules)


# -- what is made -----------------------------------------------------------------------------------------------------


def test_below_what_covers_the_drivers_tree_the_files_are_made(node: MigNode, root: Path) -> None:
    def work(container: Container, operations: list[Operation]) -> Any:
        transaction = perform(operations)
        seen, content = mounts(root), (root / mignode.access(CI)).read_bytes()
        transaction.undo()
        return seen, content, os.listdir(root / "proc/driver")

    seen, content, left = in_container(node, root, work, setup=COVER)
    assert (seen, left) == (given(GI, CI), [])
    assert content == (node.root / mignode.access(CI)).read_bytes()


@pytest.mark.parametrize("managed", [False, True])
def test_a_procfs_without_the_driver_is_an_error_and_nothing_is_made(node: MigNode, root: Path, managed: bool) -> None:
    def work(container: Container, operations: list[Operation]) -> Any:
        before = namespaced.mountinfo()
        with pytest.raises(HookError) as caught:
            perform(operations)
        assert namespaced.mountinfo() == before
        return caught.value.line(), os.listdir(root / "dev")

    line, left = in_container(node, root, work, setup="true", managed=managed)
    assert "ENOENT, and nothing can be made in a file system of the kernel's (the container's /proc does not" in line
    assert left == []


READ_ONLY_PLACES = {
    "proc": (f"{COVER}; mount -o remount,ro {{root}}/proc/driver", f"/{mignode.access(GI)}: EROFS"),
    "dev": ("mount -t tmpfs -o ro dev {root}/dev; " + COVER, f"/{mignode.node(GI)}: EROFS"),
}


@pytest.mark.parametrize(("setup", "message"), READ_ONLY_PLACES.values(), ids=READ_ONLY_PLACES)
def test_a_read_only_place_is_an_error_and_no_warning(node: MigNode, root: Path, setup: str, message: str) -> None:
    def work(container: Container, operations: list[Operation]) -> Any:
        with pytest.raises(HookError) as caught:
            perform(operations)
        return caught.value.line()

    assert message in in_container(node, root, work, setup=setup)


def test_on_the_host_there_is_nothing_to_mount_in(node: MigNode, root: Path) -> None:
    def work(container: Container, operations: list[Operation]) -> Any:
        container.place = HOST
        before = namespaced.mountinfo()
        for operation in operations[:2] + operations[3:]:
            transaction = Transaction()
            with pytest.raises(HookError, match="no mount namespace to mount in"):
                transaction.perform("test", operation)
            transaction.undo()
        return namespaced.mountinfo() == before, os.listdir(root / "dev")

    assert in_container(node, root, work, managed=True, instances=[GI]) == (True, [])


# -- what is refused --------------------------------------------------------------------------------------------------

ACCESS = mignode.access(GI)
LINKS = {
    "a file of a process": "ln -s /proc/1/attr/exec {link}",
    "another file of the procfs": "ln -s ../../../../../../cpuinfo {link}",
    "the tree under another name": "mount -t proc proc {root}/etc; ln -s /etc/cpuinfo {link}",
}


@pytest.mark.parametrize("change", LINKS.values(), ids=LINKS)
@pytest.mark.parametrize("path", [ACCESS, mignode.node(GI)], ids=["file", "node"])
def test_a_link_into_a_procfs_is_refused(node: MigNode, root: Path, path: str, change: str) -> None:
    link = f"{root}/{path}"
    script = f"mkdir -p $(dirname {link}); " + change.replace("{link}", link)
    if path == ACCESS:
        script = f"mkdir -p {root}/proc/driver/nvidia/capabilities/gpu0/mig/gi1; {script}"
    script = f"{COVER}; {script}".replace("../../../../../../cpuinfo", "/proc/cpuinfo")

    def work(container: Container, operations: list[Operation]) -> Any:
        with pytest.raises(HookError) as caught:
            perform(operations)
        return caught.value.line(), [m for m in namespaced.mountinfo() if "attr" in m or "cpuinfo" in m]

    line, seen = in_container(node, root, work, setup=script, instances=[GI])
    assert "leads into a file system of the kernel's" in line or "ELOOP" in line
    assert seen == []


IN_THE_WAY = {
    "a directory for the file": (f"mkdir -p {{root}}/{ACCESS}", "EISDIR"),
    "a file for a directory": (f"mkdir -p {{root}}/{TREE}; touch {{root}}/{TREE}/gpu0", "ENOTDIR"),
    "a directory for the node": (f"mkdir -p {{root}}/{mignode.node(GI)}", "EISDIR"),
    "a link to nowhere": (f"mkdir -p {{root}}/dev/nvidia-caps; ln -s /nowhere {{root}}/{mignode.node(GI)}", "ENOENT"),
    "a link to itself": ("ln -s nvidia-caps {root}/dev/nvidia-caps", "ELOOP"),
}


@pytest.mark.parametrize(("change", "errno"), IN_THE_WAY.values(), ids=IN_THE_WAY)
def test_what_is_in_the_way_is_told_and_nothing_stays(node: MigNode, root: Path, change: str, errno: str) -> None:
    def work(container: Container, operations: list[Operation]) -> Any:
        before = namespaced.mountinfo()
        listing = [sorted(map(str, (root / name).rglob("*"))) for name in ("dev", "proc/driver")]
        transaction = Transaction()
        with pytest.raises(HookError) as caught:
            perform(operations, transaction)
        transaction.undo()
        assert namespaced.mountinfo() == before
        assert [sorted(map(str, (root / name).rglob("*"))) for name in ("dev", "proc/driver")] == listing
        return caught.value.line()

    assert errno in in_container(node, root, work, setup=f"{COVER}; {change}")


def test_in_a_real_procfs_the_very_file_is_covered_and_no_other(
    node: MigNode, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel here has no driver: /proc/cpuinfo stands for an access file, /proc/driver for their directory."""
    monkeypatch.setattr(migmounts, "CAPABILITIES", b"")

    def work(container: Container, operations: list[Operation]) -> Any:
        file, directory = operations[3], operations[0]
        assert isinstance(file, migmounts.MountFile)
        assert isinstance(directory, migmounts.MountDirectory)
        file.path, directory.path = b"proc/cpuinfo", b"proc/driver"
        perform([file, directory])
        assert (root / "proc/cpuinfo").read_text().startswith("DeviceFileMinor: 12")
        assert (root / "proc/driver/mig/config").exists()
        monkeypatch.setattr(migmounts, "CAPABILITIES", migcaps.CAPABILITIES)
        file.path = b"proc/meminfo"
        with pytest.raises(HookError, match="leads into a file system of the kernel's"):
            file.execute(Transaction())
        return len([m for m in namespaced.mountinfo() if m.split()[4].startswith(f"{root}/proc/")])

    assert in_container(node, root, work, setup="true", managed=True, instances=[GI]) == 2


# -- managing MIG -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda k: k.name)
def test_management_is_both_directories_and_their_undo(node: MigNode, root: Path, kernel: Kernel) -> None:
    def work(container: Container, operations: list[Operation]) -> Any:
        before = namespaced.mountinfo()
        transaction = perform(operations[:5])
        seen, rules = mounts(root), len(transaction.rules)
        names = os.listdir(root / "dev/nvidia-caps"), os.listdir(root / TREE)
        (root / "dev/nvidia-caps/new").touch()  # as nvidia-modprobe in the container does
        again = perform(operations[5:])
        assert len(namespaced.mountinfo()) == len(before) + 4
        again.undo()
        transaction.undo()
        assert (namespaced.mountinfo(), os.listdir(root / "dev")) == (before, [])
        return seen, rules, [sorted(each) for each in names]

    seen, rules, (nodes, files) = in_container(node, root, work, kernel=kernel, managed=True, instances=[GI], runs=2)
    assert seen == {TREE: READ_ONLY, "dev/nvidia-caps": DIRECTORY, **given(GI)}
    assert (rules, "nvidia-cap12" in nodes) == (1 + 135, True)
    assert files == ["gpu0", "gpu1", "gpu3", "gpu4", "mig"]
    assert (node.root / "dev/nvidia-caps/new").exists()


def test_directories_are_made_below_what_covers_the_drivers_tree(node: MigNode, root: Path) -> None:
    def work(container: Container, operations: list[Operation]) -> Any:
        transaction = perform(operations)
        seen = mounts(root)
        transaction.undo()
        return seen, os.listdir(root / "proc/driver"), os.listdir(root / "dev")

    seen, *left = in_container(node, root, work, setup=COVER, managed=True, instances=[])
    assert (seen, left) == ({TREE: READ_ONLY, "dev/nvidia-caps": DIRECTORY}, [[], []])


def test_a_directory_of_nodes_that_cannot_be_opened_is_an_error(node: MigNode, root: Path) -> None:
    caps = node.root / "dev/nvidia-caps"

    def body() -> str:
        sh(f"mount --bind {caps} {caps}; mount -o remount,bind,nodev {caps}")

        def work(container: Container, operations: list[Operation]) -> Any:
            before = namespaced.mountinfo()
            transaction = Transaction()
            with pytest.raises(HookError) as caught:
                transaction.perform("test", operations[1])
            transaction.undo()
            assert (namespaced.mountinfo(), os.listdir(root / "dev")) == (before, [])
            return caught.value.line()

        return str(in_container(node, root, work, managed=True, instances=[]))

    assert "lies on a mount with nodev" in isolated(body)


def test_beside_the_directory_of_nodes_no_file_is_made_for_an_instance(node: MigNode, root: Path) -> None:
    def work(container: Container, operations: list[Operation]) -> Any:
        perform(operations)
        there = set(mounts(root))
        sh(f"umount -l {root}/dev/nvidia-caps")
        return there, os.listdir(root / "dev/nvidia-caps")

    wanted = {TREE, "dev/nvidia-caps", *given(GI)}
    assert in_container(node, root, work, managed=True, instances=[GI]) == (wanted, [])


def test_a_file_where_a_directory_belongs_is_an_error(node: MigNode, root: Path) -> None:
    tree(root, "file dev/nvidia-caps text")

    def work(container: Container, operations: list[Operation]) -> Any:
        with pytest.raises(HookError) as caught:
            perform(operations)
        return caught.value.line()

    assert "ENOTDIR" in in_container(node, root, work, managed=True, instances=[])
    assert abi.ST_NODEV == abi.MS_NODEV
