"""The prestart hook's operations on real mounts: mount points found or made, flags, links of the image, undo; on this
kernel and on older ones."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from kernel import namespaced
from kernel.namespaced import KERNELS, Kernel
from lib import oracle, rootfs, session

from nvoci.discover.inventory import Stale
from nvoci.discover.model import DeviceNode
from nvoci.errors import HookError
from nvoci.hook.container import CALLER, HOST, OUTSIDE
from nvoci.hook.operation import AllowDevices, Operation, Transaction
from nvoci.linux import abi, mount, syscalls
from nvoci.linux.devicerule import DeviceRule
from nvoci.prestart import hostfiles, overlay
from nvoci.prestart.binds import Bind, KeepLink, MakeDirectory
from nvoci.prestart.hostfiles import Host, Source
from nvoci.prestart.points import Points

pytestmark = [pytest.mark.kernel, pytest.mark.skipif(os.geteuid() != 0, reason="mounts")]
HOST_TREE = """
file lib/libcuda.so.1.2 library
exec bin/tool tool
symlink bin/alias tool
dir data
file data/x x
socket run/sock
char dev/nvidia0 195 0 666
"""
ROOT_TREE = """
file etc/passwd image's own
dir usr/lib
dir tmp
symlink lib usr/lib
symlink usr/lib/to-passwd /etc/passwd
symlink usr/lib/dangling /opt/deep/er/x
symlink usr/lib/up ../../../../../../etc/passwd
symlink opt2 /srv/there
fifo usr/lib/fifo
dir usr/lib/directory
symlink usr/lib/magic /proc/self/attr/exec
symlink usr/lib/loop loop
symlink tmp/loop-dir loop-dir
symlink tmp/data2 data
"""
NODE = DeviceNode(host_path="/x", container_path="/dev/nvidia0", kind="gpu", type="c", major=195, minor=0)
Make = Callable[[Points, "Taken"], list[Operation]]


class Taken(NamedTuple):
    """Of the host."""

    library: Source
    tool: Source
    socket: Source
    data: Source
    node: Source


class Scene:
    """A host's files and an image."""

    def __init__(self) -> None:
        top = session.new_dir("scene")
        self.host = rootfs.tree(top / "host", HOST_TREE)
        self.root = rootfs.tree(top / "rootfs", ROOT_TREE)

    def take(self) -> Taken:
        with Host(str(self.host)) as host:
            node = NODE.replace(host_path=f"{self.host}/dev/nvidia0")
            return Taken(
                host.file(f"{self.host}/lib/libcuda.so.1.2"),
                host.file(f"{self.host}/bin/alias", resolve=True),
                host.socket(f"{self.host}/run/sock"),
                host.directory(f"{self.host}/data", hostfiles.SOCKET),
                host.node(node),
            )

    def run(
        self, make: Make, kernel: Kernel = KERNELS[0], *, setup: str = "", owner: tuple[int, int] | None = None,
        place: str = OUTSIDE, undo: bool = False, times: int = 1,
    ) -> Result:  # fmt: skip
        """In a worker that has taken the host's files and entered a container's mount namespace."""

        def work(pid: int) -> Result:
            kernel.start()
            os.umask(0)
            taken = self.take()
            fd = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY)
            syscalls.setns(fd, abi.CLONE_NEWNS)
            os.chdir("/")
            container = namespaced.make_container(self.root, place)
            transaction, error = Transaction(), ""
            try:
                for _ in range(times):
                    for operation in make(Points(container, owner), taken):
                        transaction.perform("t", operation)
            except HookError as e:
                error = e.line()
                transaction.undo()
            if undo:
                transaction.undo()
            lines = [line.split() for line in namespaced.mountinfo()]
            below = {
                line[4][len(str(self.root)) :]: line[5].replace(",relatime", "")
                for line in lines if line[4].startswith(f"{self.root}/") and not line[4].endswith("/proc")
            }  # fmt: skip
            return Result(error, below, [str(rule) for rule in transaction.rules])

        with namespaced.container(self.root, setup) as pid:
            found: Result = namespaced.isolated(work, pid)
            return found


class Result(NamedTuple):
    """error: "" for none. mounts: path in the container -> options; rules: asked for."""

    error: str
    mounts: dict[str, str]
    rules: list[str]


@pytest.fixture
def scene() -> Scene:
    return Scene()


def everything(points: Points, taken: Taken) -> list[Operation]:
    """One of each."""
    tree = overlay.Tree(read_only=True, size="1m")
    tree.add_file("params", b"ModifyDeviceFiles: 0\n", 0o444)
    tree.add_directory("gpus/0000:07:00.0", 0o555)
    return [
        overlay.Generated(points, b"srv/made/here", tree, "a tree", 0o555),
        Bind(points, taken.data, b"/srv/made/here/gpus/0000:07:00.0"),
        MakeDirectory(points, b"/usr/lib32"),
        Bind(points, taken.library, b"/usr/lib/" + taken.library.name),
        Bind(points, taken.tool, b"/usr/bin/" + taken.tool.name),
        Bind(points, taken.socket, b"/run/deep/sock"),
        KeepLink(points, b"libcuda.so.1", b"/usr/lib/libcuda.so"),
        KeepLink(points, b"other", b"/usr/lib/loop"),
        Bind(points, taken.node, b"/dev/nvidia0", allow=True),
        AllowDevices([DeviceRule("c", 236, 7)]),
    ]


MOUNTED = {
    "/srv/made/here": "ro,nosuid,nodev,noexec",
    "/srv/made/here/gpus/0000:07:00.0": "rw,nosuid,nodev,noexec",
    "/usr/lib/libcuda.so.1.2": "ro,nosuid,nodev",
    "/usr/bin/tool": "ro,nosuid,nodev",
    "/run/deep/sock": "rw,nosuid,nodev,noexec",
    "/dev/nvidia0": "ro,nosuid,noexec",
}
RULES = ["c 195:0 rw", "c 236:7 rw"]
each_kernel = pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)


@each_kernel
@pytest.mark.parametrize("times", [1, 2])
def test_everything_is_mounted_with_its_flags_once(scene: Scene, kernel: Kernel, times: int) -> None:
    assert scene.run(everything, kernel, times=times) == Result("", MOUNTED, RULES)
    root = scene.root
    modes = {"usr/bin/tool": 0o755, "run/deep/sock": 0o644, "dev/nvidia0": 0o644}
    assert {path: stat.S_IMODE((root / path).lstat().st_mode) for path in modes} == modes
    assert os.readlink(root / "usr/lib/libcuda.so") == "libcuda.so.1"
    assert os.readlink(root / "usr/lib/loop") == "loop"
    assert (root / "usr/lib32").is_dir()
    assert stat.S_IMODE((root / "srv/made/here").stat().st_mode) == 0o555


@each_kernel
def test_undo_leaves_nothing(scene: Scene, kernel: Kernel) -> None:
    before = oracle.content_only(oracle.snapshot(scene.root))
    assert scene.run(everything, kernel, undo=True) == Result("", {}, RULES)
    (scene.root / "proc").rmdir()
    assert oracle.content_only(oracle.snapshot(scene.root)) == before


def one(path: str, kind: str = "library") -> Make:
    return lambda points, taken: [Bind(points, getattr(taken, kind), path.encode())]


# path -> where the mount is then
FOLLOWED = {
    "/lib/x": "/usr/lib/x",
    "/usr/lib/to-passwd": "/etc/passwd",
    "/usr/lib/up": "/etc/passwd",
    "/usr/lib/dangling": "/opt/deep/er/x",
    "/opt2/lib/x": "/srv/there/lib/x",
    "/usr/lib/fifo": "/usr/lib/fifo",
    "/../../usr/lib/x": "/usr/lib/x",
}


@pytest.mark.parametrize("kernel", [KERNELS[0], KERNELS[3]], ids=lambda kernel: kernel.name)
@pytest.mark.parametrize("path", FOLLOWED)
def test_links_are_followed_in_the_root_and_odd_files_covered(scene: Scene, path: str, kernel: Kernel) -> None:
    result = scene.run(one(path), kernel)
    assert (result.error, list(result.mounts)) == ("", [FOLLOWED[path]])
    assert (scene.root / "etc/passwd").read_text() == "image's own"
    assert stat.S_ISFIFO((scene.root / "usr/lib/fifo").lstat().st_mode)


# path, what -> words of the error
REFUSED: dict[tuple[str, str], str] = {
    ("/usr/lib/directory", "library"): "mount on /usr/lib/directory: EISDIR (the image has a directory where a file",
    ("/etc/passwd", "data"): "mount on /etc/passwd: ENOTDIR (the image has a file where a directory",
    ("/usr/lib/magic", "library"): "leads into a file system of the kernel's",
    ("/proc/meminfo", "library"): "mount on /proc/meminfo: leads into a file system of the kernel's",
    ("/proc/new", "library"): "ENOENT",
    ("/usr/lib/loop", "library"): "ELOOP",
    ("/tmp/loop-dir/x", "library"): "ELOOP",
    ("/etc/passwd/x", "library"): "ENOTDIR",
    ("/usr/lib/x\0", "library"): "EINVAL",
    ("/", "data"): "EINVAL",
}


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: f"{case[1]} on {case[0]!r}")
def test_what_cannot_be_is_one_error_and_nothing_is_left(scene: Scene, case: tuple[str, str]) -> None:
    before = oracle.content_only(oracle.snapshot(scene.root))
    result = scene.run(one(*case))
    assert REFUSED[case] in result.error
    assert result.mounts == {}
    (scene.root / "proc").rmdir()
    assert oracle.content_only(oracle.snapshot(scene.root)) == before


def test_nothing_is_made_in_a_directory_of_the_host_that_was_mounted_before(scene: Scene) -> None:
    """An image that names it through a link."""
    make: Make = lambda points, taken: [
        Bind(points, taken.data, b"/tmp/data"), Bind(points, taken.library, b"/tmp/data2/new"),
    ]  # fmt: skip
    result = scene.run(make)
    assert "lies in a directory of the host, mounted before" in result.error
    assert result.mounts == {}
    assert sorted(os.listdir(scene.host / "data")) == ["x"]
    inside: Make = lambda points, taken: [
        Bind(points, taken.data, b"/tmp/data"), Bind(points, taken.library, b"/usr/lib/new"),
    ]  # fmt: skip
    assert scene.run(inside).error == ""


SETUPS = {
    "read-only": ("mount -o remount,ro,bind {}", "/opt/x", "make mount point /opt/x: EROFS"),
    "read-only, directories": ("mount -o remount,ro,bind {}", "/new/er/x", "EROFS"),
    "shared": ("mount --make-shared {}", "/usr/lib/x", "lies on a shared mount, and would appear on the host"),
    "full": ("mount -t tmpfs -o nr_inodes=2 t {}/tmp", "/tmp/a/b/c", "ENOSPC"),
}  # fmt: skip


@pytest.mark.parametrize("case", SETUPS)
def test_a_root_that_does_not_allow_it(scene: Scene, case: str) -> None:
    setup, path, words = SETUPS[case]
    result = scene.run(one(path), setup=setup.format(*[scene.root] * 2))
    assert words in result.error
    assert path not in result.mounts


def test_a_mount_point_on_a_read_only_root_is_used(scene: Scene) -> None:
    setup = f"mount -o remount,ro,bind {scene.root}"
    assert scene.run(one("/etc/passwd"), setup=setup).mounts["/etc/passwd"] == "ro,nosuid,nodev"


@pytest.mark.parametrize("kernel", [KERNELS[0], KERNELS[3]], ids=lambda kernel: kernel.name)
def test_who_calls_for_its_own_namespace_may_share_it(scene: Scene, kernel: Kernel) -> None:
    setup = f"mount --make-shared {scene.root}"
    assert scene.run(everything, kernel, setup=setup, place=CALLER).mounts == MOUNTED


def test_without_a_mount_namespace_nothing_is_mounted(scene: Scene) -> None:
    assert "the container has no mount namespace" in scene.run(one("/usr/lib/x"), place=HOST).error


class NoDevices(Scene):
    """The host's /dev lies on a mount with nodev, and what is mounted of it keeps that."""

    def take(self) -> Taken:
        dev = f"{self.host}/dev"
        namespaced.sh(f"mount --bind {dev} {dev}; mount -o remount,bind,nodev {dev}")
        taken = super().take()
        taken.data.close()
        with Host(str(self.host)) as host:
            return taken._replace(data=host.directory(dev, hostfiles.NODES))


@pytest.mark.parametrize("what", ["node", "data"], ids=["a node", "a directory of nodes"])
def test_what_lies_on_a_mount_without_devices_is_refused(what: str) -> None:
    for scene, words in ((Scene(), ""), (NoDevices(), "lies on a mount with nodev, where no device can be opened")):
        result = scene.run(one("/dev/nvidia0" if what == "node" else "/srv/caps", what))
        assert words in result.error
        assert (len(result.mounts), bool(result.error)) == (not words, bool(words))


def test_an_unfinished_tree_of_an_earlier_run_is_made_anew(scene: Scene) -> None:
    """Before Linux 5.2 it is filled where it is: a killed run leaves one that is not read-only."""
    setup = f"mkdir -p {scene.root}/srv/made/here; mount -t tmpfs nvoci {scene.root}/srv/made/here"
    setup += f"; echo half >{scene.root}/srv/made/here/params"
    result = scene.run(everything, KERNELS[3], setup=setup)
    assert result == Result("", MOUNTED, RULES)
    others = scene.run(everything, setup=setup.replace("nvoci", "theirs"))
    assert others == Result("", MOUNTED, RULES)


# --- the host's side -------------------------------------------------------------------------------------------------


def test_the_name_of_a_program_is_its_own(scene: Scene) -> None:
    taken = scene.take()
    assert (taken.tool.name, taken.library.name, taken.data.is_directory) == (b"tool", b"libcuda.so.1.2", True)
    assert str(taken.library) == f"{scene.host}/lib/libcuda.so.1.2 (ro,nosuid,nodev)"
    assert str(taken.node.rule) == "c 195:0 rw"
    for source in taken:
        source.close()


CHANGED: dict[str, tuple[str, str]] = {
    "a file is gone": ("lib/libcuda.so.1.2", "ENOENT"),
    "a directory is gone": ("data", "ENOENT"),
    "a socket is gone": ("run/sock", "ENOENT"),
    "a node is gone": ("dev/nvidia0", "ENOENT"),
}


@pytest.mark.parametrize("case", CHANGED)
def test_what_is_not_as_it_was_found_is_told(scene: Scene, case: str) -> None:
    name, words = CHANGED[case]
    path = scene.host / name
    path.rename(path.with_name("away"))
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(Stale, match=words):
        scene.take()
    assert len(os.listdir("/proc/self/fd")) == before
    path.mkdir() if name != "data" else path.write_text("")
    with pytest.raises(Stale, match=r"not .* any more"):
        scene.take()


def test_a_node_with_another_number_is_told(scene: Scene) -> None:
    (scene.host / "dev/nvidia0").unlink()
    os.mknod(scene.host / "dev/nvidia0", stat.S_IFCHR | 0o666, os.makedev(195, 1))
    with pytest.raises(Stale, match="not the device c 195:0 any more"):
        scene.take()


def test_links_of_a_driver_root_stay_inside_of_it(scene: Scene) -> None:
    (scene.host / "lib/absolute").symlink_to("/lib/libcuda.so.1.2")
    (scene.host / "lib/out").symlink_to("../../rootfs/etc/passwd")
    with Host(f"{scene.host}/") as host:
        source = host.file(f"{scene.host}/lib/absolute", resolve=True)
        assert source.name == b"libcuda.so.1.2"
        source.close()
        for path in (f"{scene.host}/lib/out", f"{scene.root}/etc/passwd", "relative"):
            with pytest.raises(Stale):
                host.file(path)


def test_too_many_mounts_are_refused_before_descriptors_run_out(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hostfiles, "MAX_SOURCES", 3)
    with pytest.raises(HookError, match="more than 3 mounts"):
        scene.take()


def test_a_source_without_the_mount_api_is_a_handle(scene: Scene) -> None:
    def body() -> list[bool]:
        KERNELS[3].start()
        return [source.tree is None for source in scene.take()]

    assert namespaced.isolated(body) == [True] * 5
    assert mount.missing == set()


def test_a_path_is_not_read_as_text(scene: Scene) -> None:
    path = Path(os.fsdecode(os.fsencode(scene.host) + b"/lib/caf\xe9"))
    path.write_text("x")
    with Host(str(scene.host)) as host:
        source = host.file(str(path))
        assert source.name == b"caf\xe9"
        source.close()
