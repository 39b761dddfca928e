"""What is generated for a container: the driver's files in procfs, application profiles."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from kernel.namespaced import make_container
from unit.prestart.prestarttools import error

from nvoci.linux import procfs
from nvoci.prestart import overlay
from nvoci.prestart.points import Points

PARAMS = "ResmanDebugLevel: 4294967295\nModifyDeviceFiles: 1\nDeviceFileUID: 0\n"


@pytest.fixture
def proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """In the place of procfs: its driver/nvidia."""
    top = tmp_path / "proc/driver/nvidia"
    top.mkdir(parents=True)
    fd = os.open(tmp_path / "proc", os.O_PATH | os.O_DIRECTORY)
    monkeypatch.setattr(procfs, "_handle", fd)
    yield top
    os.close(fd)


def test_the_driver_s_files_are_copied_with_their_modes_and_one_change(proc: Path) -> None:
    texts = {"params": PARAMS, "version": "NVRM\n", "registry": "", "other": "x"}
    for (name, text), mode in zip(texts.items(), (0o444, 0o644, 0o640, 0o444)):
        (proc / name).write_text(text)
        (proc / name).chmod(mode)
    tree = overlay.driver_tree()
    assert tree.read_only
    assert tree.entries == {
        "params": (PARAMS.replace("Files: 1", "Files: 0").encode(), 0o444),
        "version": (b"NVRM\n", 0o644),
        "registry": (b"", 0o640),
    }


def test_what_the_driver_does_not_have_is_left_out(proc: Path) -> None:
    (proc / "params").write_text("ModifyDeviceFiles: 0\n")
    (proc / "params").chmod(0o4555)
    assert overlay.driver_tree().entries == {"params": (b"ModifyDeviceFiles: 0\n", 0o555)}
    (proc / "params").unlink()
    assert overlay.driver_tree().entries == {}


def test_what_cannot_be_read_is_an_error(proc: Path) -> None:
    (proc / "params").mkdir()
    assert error(overlay.driver_tree).message == "read /proc/driver/nvidia/params: EISDIR"
    (proc / "params").rmdir()
    (proc / "params").write_bytes(b"x" * ((1 << 20) + 1))
    assert error(overlay.driver_tree).message == "read /proc/driver/nvidia/params: EFBIG"


PROFILES = {(0,): "0x1", (0, 2): "0x5", (2, 0): "0x5", (63,): "0x8000000000000000", (1, 64, 99): "0x2"}


@pytest.mark.parametrize("minors", PROFILES)
def test_the_profile_has_a_bit_for_each_gpu(minors: tuple[int, ...]) -> None:
    tree = overlay.profile_tree(list(minors))
    text = (
        '{ "profiles": [{"name": "_container_", "settings": ["EGLVisibleDGPUDevices", MASK]}], '
        '"rules": [{"pattern": [], "profile": "_container_"}]}'
    ).replace("MASK", PROFILES[minors])
    assert tree.entries == {"10-container.conf": (text.encode(), 0o555)}
    assert not tree.read_only


def test_without_a_gpu_there_is_a_directory_alone() -> None:
    assert overlay.profile_tree([]).entries == {}


def tree() -> overlay.Tree:
    found = overlay.Tree(read_only=True, size="1m")
    found.add_file("a/b/file", b"text", 0o440)
    found.add_directory("a/c/deep", 0o555)
    found.add_directory("a/c/deep", 0o700)
    found.add_file("a/c/point", b"", 0o444)
    return found


@pytest.mark.parametrize("umask", [0, 0o777])
def test_a_tree_is_written_with_directories_above(tmp_path: Path, umask: int) -> None:
    old = os.umask(0)
    try:
        fd = os.open(tmp_path, os.O_RDONLY)
        tree().write(fd, None)
    finally:
        os.umask(old)
    modes = {str(p.relative_to(tmp_path)): oct(stat.S_IMODE(p.stat().st_mode)) for p in tmp_path.rglob("*")}
    assert modes == {"a": "0o755", "a/b": "0o755", "a/b/file": "0o440", "a/c": "0o755", "a/c/deep": "0o555",
                     "a/c/point": "0o444"}  # fmt: skip
    assert tree().is_in(fd)
    os.close(fd)


CHANGES = {
    "another text": lambda top: (top / "a/b/file").write_text("texT"),
    "longer": lambda top: (top / "a/b/file").write_text("text and more"),
    "another mode": lambda top: (top / "a/b/file").chmod(0o444),
    "no directory": lambda top: (top / "a/c/deep").rmdir(),
    "no mount point": lambda top: (top / "a/c/point").unlink(),
    "a FIFO": lambda top: (top / "a/b/file").unlink() or os.mkfifo(top / "a/b/file"),
    "a link": lambda top: (top / "a/b/file").rename(top / "x") and (top / "a/b/file").symlink_to(top / "x"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_tree_that_is_not_whole_is_seen(tmp_path: Path, change: str) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    tree().write(fd, None)
    for path in tmp_path.rglob("*"):
        path.chmod({"file": 0o440, "point": 0o444}.get(path.name, 0o755))
    assert tree().is_in(fd)
    CHANGES[change](tmp_path)
    assert not tree().is_in(fd)
    os.close(fd)


def test_what_is_mounted_on_a_mount_point_does_not_count(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    tree().write(fd, None)
    for path in tmp_path.rglob("*"):
        path.chmod({"file": 0o440}.get(path.name, 0o755))
    (tmp_path / "a/c/point").write_text("the host's")
    assert tree().is_in(fd)
    os.close(fd)


LABEL = "system_u:object_r:container_file_t:s0:c1,c2"


@pytest.mark.parametrize(("kernel", "label", "wanted"), [
    ("nodev\ttmpfs\nnodev\tselinuxfs\n\text4\n", LABEL, [(b"context", LABEL.encode())]),
    ("nodev\ttmpfs\nnodev\tselinuxfs\n\text4\n", "", []),
    ("nodev\ttmpfs\n\text4\n", LABEL, []),
], ids=["SELinux", "no label", "a kernel without"])  # fmt: skip
def test_a_tmpfs_has_the_container_s_label_where_the_kernel_has_labels(
    proc: Path, tmp_path: Path, kernel: str, label: str, wanted: list[tuple[bytes, bytes]]
) -> None:
    (tmp_path / "proc/filesystems").write_text(kernel)
    (tmp_path / "rootfs").mkdir()
    container = make_container(tmp_path / "rootfs")
    container.mount_label = label
    made = overlay.Generated(Points(container, None), overlay.DRIVER, tree(), "a tree")
    assert made._options() == [(b"mode", b"0555"), (b"size", b"1m"), *wanted]
