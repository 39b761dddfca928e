"""From what a container gets to operations: which, where, in which order."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from errno import EIO
from pathlib import Path
from typing import Any

import pytest
from kernel.namespaced import make_container
from lib import elfmaker, rootfs
from unit.discover.nodetree import DEVICES
from unit.prestart.chosentools import VERSION, a_node, asked
from unit.prestart.prestarttools import error, needs_root

from nvoci.discover.inventory import Stale
from nvoci.discover.model import DeviceNode, Found
from nvoci.hook.container import OUTSIDE
from nvoci.hook.enter import Place
from nvoci.hook.settings import Settings
from nvoci.linux import procfs
from nvoci.linux.fd import Fd
from nvoci.linux.rootfs import Rootfs
from nvoci.prestart import plan
from nvoci.prestart.choose import MissingNode
from nvoci.prestart.plan import Prepared, library_directories

pytestmark = needs_root
LIB = "/usr/lib/x86_64-linux-gnu"
TOP = "driver/nvidia/capabilities"
ABI_TAG = bytes.fromhex("00000000020000000300000063000000")


class Node:
    """The files of `chosentools.a_node` below a driver root, and a procfs."""

    def __init__(self, top: Path, migs: int = 0) -> None:
        self.root = top / "driver"
        found = a_node(2, migs)
        lines = []
        for mount in found.mounts:
            kind = {"socket": "socket", "directory": "dir"}.get(mount.kind, "file")
            lines.append(f"{kind} {mount.host_path[1:]}" + (" x" if kind == "file" else ""))
        lines += [f"char {each.host_path[1:]} {each.major} {each.minor}" for each in found.device_nodes]
        rootfs.tree(self.root, "\n".join(lines))
        mounts = [mount.replace(host_path=f"{self.root}{mount.host_path}") for mount in found.mounts]
        nodes = [node.replace(host_path=f"{self.root}{node.host_path}") for node in found.device_nodes]
        driver = found.driver.replace(root=str(self.root), dev_root=str(self.root))
        self.found = found.replace(mounts=mounts, device_nodes=nodes, driver=driver)
        self.tls(LIB)
        proc = ["file params ModifyDeviceFiles: 1\\n", "dir gpus/0000:07:00.0", "dir gpus/00000000:08:00.0"]
        for instance in range(1, migs + 1):
            top_of = f"capabilities/gpu1/mig/gi{instance}"
            names = (f"{top_of}/access", f"{top_of}/ci0/access")
            proc += [f"file {name} DeviceFileMinor: {10 * instance + i}\\n" for i, name in enumerate(names)]
        proc.append("file capabilities/mig/config DeviceFileMinor: 1\\n")
        rootfs.tree(top / "proc/driver/nvidia", "\n".join(proc))
        rootfs.tree(top / "proc/driver/nvidia-caps", "file mig-minors gpu1/gi9/access 99\\n")
        self.proc = top / "proc"
        (self.proc / "devices").write_text(DEVICES)
        rootfs.tree(top / "rootfs", "file etc/debian_version 12\ndir usr/bin\ndir proc/driver/nvidia\ndir dev")
        self.image = top / "rootfs"

    def tls(self, directory: str, desc: bytes = ABI_TAG) -> None:
        notes = [(".note.ABI-tag", "GNU", 1, desc)]
        elfmaker.make_so(self.root / f"{directory[1:]}/libnvidia-tls.so.{VERSION}", "libnvidia-tls", notes=notes)

    def prepared(self, *devices: str, found: Found | None = None, **more: Any) -> Prepared:
        return plan.prepare(found or self.found, asked(*devices, driver_root=str(self.root), **more), Settings())

    def steps(self, prepared: Prepared) -> list[tuple[str, list[str]]]:
        """(name, what its operations do), the host's directory left out."""
        made = prepared.steps(None, Place(OUTSIDE))  # type: ignore[arg-type]
        container = make_container(self.image, OUTSIDE)
        return [(name, self.told(function(own, container))) for name, function, own in made]

    def told(self, operations: list[Any]) -> list[str]:
        return [each.describe().replace(str(self.root), "") for each in operations]

    def first(self, *devices: str, **more: Any) -> list[str]:
        return self.steps(self.prepared(*devices, **more))[0][1]


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Node]:
    yield from a_procfs(Node(tmp_path), monkeypatch)


@pytest.fixture
def mig_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Node]:
    yield from a_procfs(Node(tmp_path, migs=2), monkeypatch)


def a_procfs(node: Node, monkeypatch: pytest.MonkeyPatch) -> Iterator[Node]:
    """The kernel's own for /proc/self, the node's for its driver."""
    own = procfs.handle()
    for name in ("self", "filesystems"):
        os.symlink(f"/proc/{name}", node.proc / name)
    fd = os.open(node.proc, os.O_PATH | os.O_DIRECTORY)
    monkeypatch.setattr(procfs, "_handle", fd)
    yield node
    monkeypatch.setattr(procfs, "_handle", own)
    os.close(fd)


FILE, NODE = "(ro,nosuid,nodev)", "(ro,nosuid,noexec)"
PROC, SOCKET = "(ro,nosuid,nodev,noexec)", "(rw,nosuid,nodev,noexec)"


def test_the_least_in_order(node: Node) -> None:
    steps = node.steps(node.prepared("1", capabilities="utility"))
    assert [name for name, _ in steps] == ["prestart", "enable-cuda-compat", "update-ldcache", "prestart"]
    so = f"libnvidia-ml.so.{VERSION}"
    assert steps[0][1] == [
        f"mount the driver's files in procfs {PROC} on /proc/driver/nvidia",
        "make directory /usr/bin",
        f"mount /usr/bin/nvidia-smi {FILE} on /usr/bin/nvidia-smi",
        f"mount /usr/bin/nvidia-debugdump {FILE} on /usr/bin/nvidia-debugdump",
        f"make directory {LIB}",
        f"mount {LIB}/{so} {FILE} on {LIB}/{so}",
        f"mount /lib/firmware/nvidia/{VERSION}/gsp_ga10x.bin {FILE} on /lib/firmware/nvidia/{VERSION}/gsp_ga10x.bin",
        f"mount /run/nvidia-persistenced/socket {SOCKET} on /run/nvidia-persistenced/socket",
        f"mount /run/nvidia-fabricmanager/socket {SOCKET} on /run/nvidia-fabricmanager/socket",
        f"mount /proc/driver/nvidia/gpus/00000000:08:00.0 {PROC} on /proc/driver/nvidia/gpus/00000000:08:00.0",
        f"mount /dev/nvidiactl {NODE} on /dev/nvidiactl, and allow c 195:255 rw",
        f"mount /dev/nvidia1 {NODE} on /dev/nvidia1, and allow c 195:1 rw",
    ]
    assert steps[1][1] == steps[3][1] == []
    assert steps[2][1][-1].startswith("write /etc/ld.so.cache (")


def test_a_daemon_s_directory_comes_last(node: Node) -> None:
    steps = node.steps(node.prepared("0", capabilities="compute"))
    assert steps[3][1] == [f"mount /tmp/nvidia-mps {SOCKET} on /tmp/nvidia-mps"]


def test_links_beside_what_was_mounted(node: Node) -> None:
    said = [line for line in node.first("0", capabilities="all,video,graphics") if line.startswith("symlink")]
    assert said == [
        f"symlink {LIB}/libcuda.so -> libcuda.so.1, unless something is there",
        f"symlink {LIB}/libGLX_indirect.so.0 -> libGLX_nvidia.so.{VERSION}, unless something is there",
        f"symlink {LIB}/libnvidia-opticalflow.so -> libnvidia-opticalflow.so.1, unless something is there",
    ]


def test_graphics_has_profiles_and_the_tls_library_with_the_note(node: Node) -> None:
    said = node.first("0", capabilities="graphics")
    where = "/etc/nvidia/nvidia-application-profiles-rc.d"
    assert f"mount application profiles (rw,nosuid,nodev,noexec) on {where}" in said
    tls = f"libnvidia-tls.so.{VERSION}"
    assert [line for line in said if "tls" in line] == [f"mount {LIB}/{tls} {FILE} on {LIB}/{tls}"]
    node.tls(LIB, bytes(16))
    assert [line for line in node.first("0", capabilities="graphics") if "tls" in line] == []
    node.tls(f"{LIB}/tls")
    assert [line for line in node.first("0", capabilities="graphics") if "tls" in line] == [
        f"mount {LIB}/tls/{tls} {FILE} on {LIB}/{tls}"
    ]


def test_32_bit_libraries_go_to_a_directory_of_their_own(node: Node) -> None:
    said = node.first("0", capabilities="compute,compat32")
    old, so = "/usr/lib/i386-linux-gnu", f"libcuda.so.{VERSION}"
    assert [line for line in said if old in line] == [
        f"make directory {old}",
        f"mount {old}/{so} {FILE} on {old}/{so}",
        f"symlink {old}/libcuda.so -> libcuda.so.1, unless something is there",
    ]


def test_without_rules_or_without_nodes(node: Node) -> None:
    assert not any("allow" in line for line in node.first("0", cgroups=False))
    assert node.first("0", devbind=False, capabilities="utility")[-1] == "allow c 195:255 rw, c 195:0 rw"
    assert not any("allow" in line or "/dev/" in line for line in node.first("0", devbind=False, cgroups=False))


def test_a_mig_device_has_files_and_nodes(mig_node: Node) -> None:
    said = mig_node.first("1:0", "1:1", "1:0", capabilities="")
    top = "/proc/driver/nvidia/capabilities/gpu1/mig"
    access = [f"{top}/gi{i}/{name}" for i in (1, 2) for name in ("access", "ci0/access")]
    assert [line for line in said if "capabilities" in line] == [f"mount {path} {PROC} on {path}" for path in access]
    caps = "/dev/nvidia-caps/nvidia-cap"
    assert [line for line in said if "nvidia-caps" in line] == [
        f"mount {caps}{n} {NODE} on {caps}{n}, and allow c 236:{n} rw" for n in (10, 11, 20, 21)
    ]
    prepared = mig_node.prepared("1:0", capabilities="")
    assert prepared.driver is not None
    assert {"capabilities/gpu1/mig/gi1/access", "gpus/00000000:08:00.0"} <= prepared.driver.entries.keys()


def test_a_mig_device_without_its_node_is_refused(mig_node: Node) -> None:
    before = open_files()
    (mig_node.root / "dev/nvidia-caps/nvidia-cap11").unlink()
    refused = error(lambda: mig_node.prepared("1:0"))
    assert isinstance(refused, MissingNode)
    assert refused.message == "use device /dev/nvidia-caps/nvidia-cap11: ENOENT"
    assert refused.hint == f"make it: nvidia-modprobe -f /proc/{TOP}/gpu1/mig/gi1/ci0/access"
    assert open_files() == before
    (mig_node.proc / "devices").write_text("")
    nodes = [each for each in mig_node.found.device_nodes if "nvidia-cap1" not in each.container_path]
    said = mig_node.steps(mig_node.prepared("1:0", found=mig_node.found.replace(device_nodes=nodes)))[0][1]
    assert any("gi1/ci0/access" in line for line in said)
    assert not any("nvidia-caps" in line for line in said)


def test_a_node_that_was_made_since_the_look_has_the_node_looked_at_again(mig_node: Node) -> None:
    nodes = [each for each in mig_node.found.device_nodes if "cap11" not in each.container_path]
    with pytest.raises(Stale, match="a node of it was not there"):
        mig_node.prepared("1:0", found=mig_node.found.replace(device_nodes=nodes))


# What is wrong with the host: access file of gi1 or None, node of gi1, what is told.
WRONG: dict[str, tuple[str | None, str, str]] = {
    "another minor in the file": ("DeviceFileMinor: 12\n", "", "nvidia-cap12: ENOENT"),
    "no minor in the file": ("DeviceFileMode: 292\n", "", "gi1/access: no DeviceFileMinor"),
    "an endless file": ("x" * 70000, "", "gi1/access: EFBIG"),
    "another node": (None, "char nvidia-cap10 236 11", "is c 236:11, should be c 236:10"),
    "another driver's node": (None, "char nvidia-cap10 195 10", "is c 195:10, should be c 236:10"),
    "a link to the other node": (None, "symlink nvidia-cap10 nvidia-cap11", "is not a device node"),
    "a file": (None, "file nvidia-cap10 x", "is not a device node"),
    "a FIFO": (None, "fifo nvidia-cap10", "is not a device node"),
}


@pytest.mark.parametrize(("text", "made", "told"), WRONG.values(), ids=WRONG)
def test_file_and_node_of_an_instance_must_agree(mig_node: Node, text: str | None, made: str, told: str) -> None:
    before = open_files()
    if text is not None:
        (mig_node.proc / TOP / "gpu1/mig/gi1/access").write_text(text)
    else:
        (mig_node.root / "dev/nvidia-caps/nvidia-cap10").unlink()
        rootfs.tree(mig_node.root / "dev/nvidia-caps", made)
    assert told in error(lambda: mig_node.prepared("1:0")).line()
    assert open_files() == before


def test_management_has_the_whole_tree_and_exact_rules(mig_node: Node) -> None:
    steps = mig_node.steps(mig_node.prepared("all", capabilities="", mig_config=("all",)))
    top = "/proc/driver/nvidia/capabilities"
    assert [line for line in steps[0][1] if "capabilities" in line] == [f"mount {top} {PROC} on {top}"]
    assert steps[0][1][-1] == "allow c 236:1 rw, c 236:99 rw"
    assert steps[3][1] == ["mount /dev/nvidia-caps (rw,nosuid,noexec) on /dev/nvidia-caps"]


def test_management_of_a_driver_without_nodes_is_the_tree(mig_node: Node) -> None:
    (mig_node.proc / "devices").write_text("195 nvidia\n")
    steps = mig_node.steps(mig_node.prepared("all", capabilities="", mig_config=("all",)))
    assert (steps[0][1][-1].startswith("allow"), steps[3][1]) == (False, [])


# What is missing for the management: a shell would say `rm`; below the driver root, or the procfs.
UNMANAGED: dict[str, tuple[str, str, str]] = {
    "no node": ("driver/dev/nvidia-caps/nvidia-cap1", "", "use device /dev/nvidia-caps/nvidia-cap1: ENOENT (make it: "),
    "another node": ("driver/dev/nvidia-caps/nvidia-cap1", "char nvidia-cap1 236 2", "is c 236:2, should be c 236:1"),
    "no number": (f"proc/{TOP}/mig/config", "file config x", "mig/config: no DeviceFileMinor"),
    "no access file": (f"proc/{TOP}/mig/config", "", "mig/config: ENOENT"),
    "no table": ("proc/driver/nvidia-caps/mig-minors", "", "mig-minors: ENOENT"),
    "a bad table": ("proc/driver/nvidia-caps/mig-minors", "file mig-minors gpu1/gi9/access", "line `gpu1/gi9/access`"),
}  # fmt: skip


@pytest.mark.parametrize(("gone", "made", "told"), UNMANAGED.values(), ids=UNMANAGED)
def test_management_that_would_not_work_is_refused(mig_node: Node, gone: str, made: str, told: str) -> None:
    """Also where the look at the node found it."""
    before, path = open_files(), mig_node.proc.parent / gone
    path.unlink()
    rootfs.tree(path.parent, made)
    for found in (mig_node.found, mig_node.found.replace(device_nodes=without_caps(mig_node.found))):
        refused = error(lambda: mig_node.prepared("all", found=found, mig_config=("all",), capabilities=""))  # noqa: B023
        assert isinstance(refused, MissingNode)  # --load-kmods may make it
        assert told in refused.line()
    assert open_files() == before


def without_caps(found: Found) -> list[DeviceNode]:
    return [each for each in found.device_nodes if "nvidia-caps/" not in each.container_path]


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


COMPAT = "/usr/local/cuda/compat/libcuda.so.575.1"


def test_compatibility_libraries(node: Node) -> None:
    rootfs.tree(node.image, f"file {COMPAT[1:]} x\nfile etc/ld.so.conf.d/00-compat-nvoci.conf old")
    off = node.steps(node.prepared("0"))
    assert off[1][1] == ["remove /etc/ld.so.conf.d/00-compat-nvoci.conf"]
    assert not any("575" in line for line in off[0][1])
    mounted = node.steps(node.prepared("0", compat_mode="mount"))
    assert [line for line in mounted[0][1] if "575" in line] == [
        f"mount libcuda.so.575.1 {FILE} on {LIB}/libcuda.so.575.1"
    ]
    linked = node.steps(node.prepared("0", compat_mode="ldconfig"))
    assert [line.partition(" (")[0] for line in linked[1][1]] == ["write /etc/ld.so.conf.d/00-compat-nvoci.conf"]
    assert node.steps(node.prepared("0", compat_mode="ldconfig", capabilities="utility"))[1][1] == off[1][1]


def test_what_is_gone_since_the_look_is_told_and_nothing_stays_open(node: Node) -> None:
    before = len(os.listdir("/proc/self/fd"))
    (node.root / "dev/nvidia0").unlink()
    with pytest.raises(Stale, match="dev/nvidia0: ENOENT"):
        node.prepared("0")
    assert len(os.listdir("/proc/self/fd")) == before
    (node.proc / "driver/nvidia/gpus/00000000:08:00.0").rmdir()
    with pytest.raises(Stale, match=r"gpus/00000000:08:00\.0: ENOENT"):
        node.prepared("1")


def test_whose_mount_points_are(node: Node) -> None:
    prepared = node.prepared("0")
    _, function, own = prepared.steps(None, Place(OUTSIDE))[0]  # type: ignore[arg-type]
    container = make_container(node.image, OUTSIDE)
    function(own, container)
    assert prepared.points(container).owner is None


def test_two_mig_devices_of_one_instance_share_its_file_and_node(mig_node: Node) -> None:
    found, second = mig_node.found, mig_node.found.gpus[1].mig_devices[1]
    second = second.replace(gpu_instance=1, compute_instance=1)
    devices = (found.gpus[1].mig_devices[0], second)
    shared = found.replace(gpus=(found.gpus[0], found.gpus[1].replace(mig_devices=devices)))
    rootfs.tree(mig_node.proc / TOP / "gpu1/mig/gi1/ci1", "file access DeviceFileMinor: 21\\n")
    nodes = [each.replace(owner=second.uuid) if each.minor in (20, 21) else each for each in found.device_nodes]
    nodes += [each.replace(owner=second.uuid) for each in nodes if each.minor == 10 and each.kind == "mig"]
    said = mig_node.first("1:0", "1:1", capabilities="", found=shared.replace(device_nodes=nodes))
    for name in ("gi1/access", "gi1/ci0/access", "gi1/ci1/access"):
        assert len([line for line in said if line.endswith(f"/{name}")]) == 1
    assert [line.rpartition(" ")[0].rpartition(" ")[2] for line in said if "allow c 236:" in line] == [
        "236:10", "236:11", "236:21",
    ]  # fmt: skip


def test_a_library_that_cannot_be_read_is_an_error(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what it says leaves libnvidia-tls out."""

    def fails(handle: int) -> str:
        raise OSError(EIO, "sick")

    before = open_files()
    monkeypatch.setattr(plan.tls, "refusal", fails)
    refused = error(lambda: node.prepared("0", capabilities="graphics"))
    assert refused.message == f"read {node.root}{LIB}/libnvidia-tls.so.{VERSION}: EIO"
    assert open_files() == before


def test_whose_container_it_is_cannot_be_told_of_one_that_is_gone(node: Node) -> None:
    prepared = node.prepared("0")
    process = subprocess.Popen(["/bin/sleep", "60"])
    handle = Fd(os.open(f"/proc/{process.pid}", os.O_RDONLY))
    process.kill()
    process.wait()
    with handle:
        refused = error(lambda: prepared.steps(None, Place(OUTSIDE, process.pid, handle)))  # type: ignore[arg-type]
    assert refused.message.startswith(f"read state: pid {process.pid}: E")


# --- where libraries go ----------------------------------------------------------------------------------------------

TRIPLET, OLD = LIB, "/usr/lib/i386-linux-gnu"
# files of an image -> directory of 64-bit libraries, of 32-bit ones
DIRECTORIES = {
    "file etc/debian_version 12": (TRIPLET, OLD),
    "symlink etc/debian_version nowhere": ("/usr/lib64", "/usr/lib32"),
    "dir etc/debian_version": (TRIPLET, OLD),
    "dir etc": ("/usr/lib64", "/usr/lib32"),
    "dir usr/lib64\ndir usr/lib": ("/usr/lib64", "/usr/lib"),
    "dir usr/lib": ("/usr/lib64", "/usr/lib"),
    "dir usr/lib64\ndir usr/lib\ndir usr/lib32": ("/usr/lib64", "/usr/lib32"),
    "dir usr/lib\nsymlink usr/lib64 lib": ("/usr/lib64", "/usr/lib32"),
    "symlink usr/lib /opt\ndir opt\ndir usr/lib64": ("/usr/lib64", "/usr/lib"),
}


@pytest.mark.parametrize("spec", DIRECTORIES)
def test_directories_of_libraries_are_the_image_s(tmp_path: Path, spec: str) -> None:
    if os.uname().machine != "x86_64":
        pytest.skip("names of another machine")
    root = Rootfs.open(str(rootfs.tree(tmp_path / "rootfs", spec)))
    assert tuple(each.decode() for each in library_directories(root)) == DIRECTORIES[spec]
