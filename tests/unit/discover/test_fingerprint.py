"""What makes a node another one, and what does not."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from unit.discover.nodetree import DEVICES, UUID, VERSION, Node

from nvoci.discover import fingerprint, found
from nvoci.discover.fingerprint import Fingerprint, Sources
from nvoci.discover.node import Options
from nvoci.errors import HookError

UNKNOWN = "GPU-????????-????-????-????-????????????"


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path, gpus=2, instances=2)


def test_it_tells_the_node(node: Node) -> None:
    mark = fingerprint.take(node.sources(configuration="c"))
    assert mark.boot_id == "9d0f2c6e-0000-4000-8000-000000000001"
    assert mark.module == VERSION.split("\n", maxsplit=1)[0]
    assert [name for name, _ in mark.gpus] == ["0000:07:00.0", "0000:08:00.0"]
    assert mark.capabilities == (
        "gpu0", "gpu0/mig", "gpu0/gi1", "gpu0/gi1/ci0", "gpu0/gi2", "gpu0/gi2/ci0",
        "gpu1", "gpu1/mig", "gpu1/gi1", "gpu1/gi1/ci0", "gpu1/gi2", "gpu1/gi2/ci0",
    )  # fmt: skip
    assert mark.watched == tuple((f"{node.root}/dev/nvidia{minor}", "absent") for minor in (0, 1))
    assert mark.majors == ("195 nvidia", "195 nvidia-modeset", "226 drm", "236 nvidia-caps", "510 nvidia-uvm")
    st = (node.root / "etc/ld.so.cache").stat()
    assert mark.ldcache == f"{st.st_dev}:{st.st_ino}:{st.st_size}:{st.st_mtime_ns}:{st.st_ctime_ns}"
    assert mark.root == mark.dev_root == f"{node.root} {node.root.stat().st_dev}:{node.root.stat().st_ino}"
    assert Fingerprint.from_json(mark.to_json()) == mark


def test_it_tells_this_machine() -> None:
    mark = fingerprint.take(Sources())
    assert mark.boot_id == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert fingerprint.difference(mark, fingerprint.take(Sources())) == ""


def _device(node: Node, name: str, *number: int) -> None:
    path = node.root / "dev" / name
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    os.mknod(path, 0o020666, os.makedev(*number))


CHANGES: dict[str, tuple[Callable[[Node], object], str]] = {
    "boot": (lambda n: n.write("sys/kernel/random/boot_id", "another\n"), "the boot id is another"),
    "driver": (lambda n: n.write("driver/nvidia/version", VERSION.replace("550", "560")), "the driver's module"),
    "driver unloaded": (lambda n: shutil.rmtree(n.proc / "driver"), "the driver's module is another"),
    "GPU gone": (lambda n: shutil.rmtree(n.proc / "driver/nvidia/gpus/0000:08:00.0"), "GPUs came or went"),
    "GPU added": (lambda n: n.information(2), "GPUs came or went"),
    "GPU exchanged": (lambda n: n.information(1, UUID.format(5)), "GPU 0000:08:00.0 is another"),
    "instance gone": (lambda n: shutil.rmtree(n.proc / "driver/nvidia/capabilities/gpu0/mig/gi1"), "MIG capabilities"),
    "instance added": (lambda n: n.instance(1, 3), "MIG capabilities"),
    "compute instance added": (lambda n: n.instance(1, 2, 1), "MIG capabilities"),
    "MIG mode": (lambda n: (n.proc / "driver/nvidia/capabilities/gpu9/mig").mkdir(parents=True), "MIG capabilities"),
    "major": (lambda n: n.write("devices", "Character devices:\n195 nvidia\n"), "a device number"),
    "ld.so.cache": (lambda n: os.utime(n.root / "etc/ld.so.cache"), "ld.so.cache is another"),
    "ld.so.cache gone": (lambda n: (n.root / "etc/ld.so.cache").unlink(), "ld.so.cache is another"),
    "root": (lambda n: (n.root.rename(n.root.with_name("r")), shutil.copytree(n.root.with_name("r"), n.root)), "root"),
    "socket": (lambda n: (n.root / "socket").touch(), "a watched path is another"),
}


@pytest.mark.parametrize("case", CHANGES)
def test_what_makes_another_node(case: str, node: Node) -> None:
    change, words = CHANGES[case]
    sources = node.sources(watch=[str(node.root / "socket")])
    before = fingerprint.take(sources)
    assert fingerprint.difference(before, fingerprint.take(sources)) == ""
    change(node)
    assert words in fingerprint.difference(before, fingerprint.take(sources))


def test_mig_mode_counts_without_instances(tmp_path: Path) -> None:
    node = Node(tmp_path)
    gpu = node.proc / "driver/nvidia/capabilities/gpu0"
    marks = [fingerprint.take(node.sources())]
    for path in (gpu, gpu / "mig"):
        path.mkdir(parents=True)
        marks.append(fingerprint.take(node.sources()))
    assert [mark.capabilities for mark in marks] == [(), ("gpu0",), ("gpu0", "gpu0/mig")]
    assert "MIG capabilities" in fingerprint.difference(marks[1], marks[2])
    assert "MIG capabilities" in fingerprint.difference(marks[2], marks[1])


@pytest.mark.skipif(os.geteuid() != 0, reason="device nodes can only be made by root")
def test_the_device_node_of_each_gpu_counts(node: Node) -> None:
    marks = [fingerprint.take(node.sources())]
    for number in ((1, 3), (1, 5)):
        _device(node, "nvidia1", *number)
        marks.append(fingerprint.take(node.sources()))
    path = f"{node.root}/dev/nvidia1"
    assert [mark.watched[1] for mark in marks] == [(path, "absent"), (path, "20000 1:3"), (path, "20000 1:5")]
    assert "a watched path" in fingerprint.difference(marks[0], marks[1])
    assert "a watched path" in fingerprint.difference(marks[1], marks[2])
    _device(node, "nvidia7", 1, 3)  # nobody's
    assert fingerprint.difference(marks[2], fingerprint.take(node.sources())) == ""
    elsewhere = fingerprint.take(node.sources(dev_root="/nonexistent/"))
    assert [name for name, _ in elsewhere.watched] == ["/nonexistent/dev/nvidia0", "/nonexistent/dev/nvidia1"]


def test_a_minor_that_is_no_number_names_no_path(node: Node) -> None:
    path = node.information(0)
    path.write_text("Device Minor: ../../x\nDevice Minor:\nDevice Minor: \u0664\n")
    assert [name for name, _ in fingerprint.take(node.sources()).watched] == [f"{node.root}/dev/nvidia1"]


def _no_file(path: Path) -> None:
    path.unlink()
    path.mkdir()


UNREADABLE = {"EISDIR": _no_file, "EFBIG": lambda path: path.write_text("x" * ((1 << 20) + 1))}


@pytest.mark.parametrize("error", UNREADABLE)
def test_a_gpu_that_cannot_be_read_is_told_and_leaves_the_others(error: str, node: Node) -> None:
    before = fingerprint.take(node.sources())
    path = node.information(0)
    UNREADABLE[error](path)
    mark = fingerprint.take(node.sources())
    assert mark.gpus == (("0000:07:00.0", f"unreadable: {error}"), before.gpus[1])
    assert "GPU 0000:07:00.0" in fingerprint.difference(before, mark)
    assert "GPU 0000:07:00.0" in fingerprint.difference(mark, before)
    assert fingerprint.difference(mark, fingerprint.take(node.sources())) == ""


def test_an_input_error_of_one_gpu(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    real = fingerprint.read_at_most

    def broken(fd: int, limit: int) -> bytes:
        if "0000:08:00.0" in os.readlink(f"/proc/self/fd/{fd}"):
            raise OSError(errno.EIO, "")
        return real(fd, limit)

    monkeypatch.setattr(fingerprint, "read_at_most", broken)
    gpus = fingerprint.take(node.sources()).gpus
    assert gpus[0][1].startswith("Model: NVIDIA A100")
    assert gpus[1] == ("0000:08:00.0", "unreadable: EIO")


def test_every_option_is_in_the_configuration() -> None:
    plain = found.configuration(Options())
    assert plain == found.configuration(Options())
    assert plain.isprintable()
    others: dict[str, Any] = {
        "mode": "csv", "path": ["/b"], "data_dirs": ["/d"], "library_search_path": ["/l"],
        "config_search_path": ["/c"], "explicit_libraries": True, "mps_directory": "/m", "csv_files": ["/f"],
        "csv_ignore": ["x"], "compat_root": "/r", "single_device": True,
    }  # fmt: skip
    assert set(others) == set(Options.__slots__)
    texts = {found.configuration(Options(**{name: value})) for name, value in others.items()}
    assert len(texts | {plain}) == len(others) + 1
    assert found.configuration(Options(path=["/a", "/b"])) != found.configuration(Options(path=["/a /b"]))


def test_what_comes_and_goes_in_dev_is_watched() -> None:
    watched = found.watch_paths("/run/nvidia/driver", "/")
    assert {"/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools", "/dev/infiniband"} <= set(watched)


def test_configuration_and_program_count(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    before = fingerprint.take(node.sources())
    assert "the configuration" in fingerprint.difference(before, fingerprint.take(node.sources(configuration="b")))
    assert "the dev root" in fingerprint.difference(before, fingerprint.take(node.sources(dev_root="/")))
    monkeypatch.setattr(fingerprint, "__version__", "99")
    assert "the version of nvoci" in fingerprint.difference(before, fingerprint.take(node.sources()))


SAME: dict[str, Callable[[Node], object]] = {
    "interrupt, as without a user of the GPU": lambda n: n.information(0, irq=0),
    "video BIOS, as without a user of the GPU": lambda n: n.information(0, bios="??.??.??.??.??"),
    "UUID not known for now": lambda n: n.information(0, UNKNOWN),
    "no line of the UUID": lambda n: n.write(
        "driver/nvidia/gpus/0000:07:00.0/information",
        "".join(line for line in n.information(0).read_text().splitlines(True) if "UUID" not in line),
    ),
    "another driver's major": lambda n: n.write("devices", DEVICES.replace("mem", "mem\n 99 new")),
    "a block device's major": lambda n: n.write("devices", DEVICES + "196 nvidia-block\n"),
}


@pytest.mark.parametrize("case", SAME)
@pytest.mark.parametrize("order", [1, -1])
def test_what_does_not(case: str, order: int, node: Node) -> None:
    marks = [fingerprint.take(node.sources())]
    SAME[case](node)
    marks.append(fingerprint.take(node.sources()))
    assert fingerprint.difference(*marks[::order]) == ""


def test_a_gpu_without_uuid_is_still_told_by_the_rest(node: Node) -> None:
    before = fingerprint.take(node.sources())
    path = node.information(0, UNKNOWN)
    path.write_text(path.read_text().replace("Minor: \t\t 0", "Minor: \t\t 7").replace("Minor: \t 0", "Minor: \t 7"))
    assert "GPU 0000:07:00.0" in fingerprint.difference(before, fingerprint.take(node.sources()))


def test_a_watched_directory_counts_with_its_entries(node: Node) -> None:
    place = node.root / "channels"
    place.mkdir()
    os.utime(place, (1, 1))
    sources = node.sources(watch=[str(place)])
    before = fingerprint.take(sources)
    (place / "channel0").touch()
    assert "a watched path" in fingerprint.difference(before, fingerprint.take(sources))


def test_without_boot_id_nothing_holds(node: Node) -> None:
    node.write("sys/kernel/random/boot_id", "")
    mark = fingerprint.take(node.sources())
    assert fingerprint.difference(mark, mark) == "there is no boot id"


def test_ld_so_cache_is_found_inside_the_driver_root(node: Node) -> None:
    (node.root / "real").mkdir()
    shutil.move(node.root / "etc/ld.so.cache", node.root / "real/cache")
    (node.root / "etc/ld.so.cache").symlink_to("/real/cache")
    st = (node.root / "real/cache").stat()
    assert fingerprint.take(node.sources()).ldcache.startswith(f"{st.st_dev}:{st.st_ino}:")


def test_a_node_without_anything(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    mark = fingerprint.take(Sources(str(tmp_path / "none"), proc=str(tmp_path / "proc")))
    assert (mark.module, mark.gpus, mark.capabilities, mark.majors) == ("", (), (), ())
    assert mark.root.endswith(" absent")
    assert mark.ldcache == "absent"


def test_a_procfs_file_that_is_too_large_or_none(node: Node) -> None:
    node.write("devices", "x" * (1 << 20) + "x")
    with pytest.raises(HookError, match=r"look at the node: read .*/proc/devices: EFBIG"):
        fingerprint.take(node.sources())
    (node.proc / "devices").unlink()
    (node.proc / "devices").mkdir()
    with pytest.raises(HookError, match=r"look at the node: read .*/proc/devices: EISDIR"):
        fingerprint.take(node.sources())
    with pytest.raises(HookError, match="look at the node: read /nonexistent: ENOENT"):
        fingerprint.take(Sources(proc="/nonexistent"))


LINES = {
    VERSION.split("\n", maxsplit=1)[0]: "550.163.01",
    "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.15  Release Build  (dvs-builder@U16)": "570.86.15",
    "NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  540.4.0  Release Build": "540.4.0",
    "NVRM version: NVIDIA UNIX x86_64 Kernel Module  396.26  Mon": "396.26",
    "NVRM version: NVIDIA": "",
    "x..y 1.2.3.4 1.b": "",
    "": "",
}


@pytest.mark.parametrize("line", LINES)
def test_the_version_of_the_kernel_module(line: str) -> None:
    assert fingerprint.module_version(line) == LINES[line]
