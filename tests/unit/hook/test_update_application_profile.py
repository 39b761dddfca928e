"""The profile that tells EGL which GPUs there are."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from lib.hookproc import run_hook
from lib.rootfs import tree

from nvoci import log
from nvoci.errors import HookError
from nvoci.hook import update_application_profile as hook
from nvoci.hook.operation import Transaction
from nvoci.hook.settings import Settings
from tests.kernel.namespaced import make_container

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="device nodes need root")
FILE = "etc/nvidia/nvidia-application-profiles-rc.d/10-container.conf"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    path = tmp_path / "rootfs"
    (path / "dev").mkdir(parents=True)
    (path / "etc").mkdir()
    return path


def char(root: Path, name: str, minor: int, major: int = 195) -> None:
    os.mknod(root / "dev" / name, stat.S_IFCHR | 0o666, os.makedev(major, minor))


def run(root: Path) -> None:
    prepared = hook.prepare({}, Settings())
    assert prepared is not None
    transaction = Transaction()
    for operation in hook.plan(prepared, make_container(root)):
        transaction.perform("test", operation)
    transaction.commit()


def test_profile_is_the_drivers_format() -> None:
    assert hook.profile(0b1001) == (
        b'{"profiles":[{"name":"_container_","settings":["EGLVisibleDGPUDevices",0x9]}],'
        b'"rules":[{"pattern":[],"profile":"_container_"}]}'
    )
    assert b",0xffffffffffffffff]" in hook.profile((1 << 64) - 1)


@needs_root
def test_minor_numbers_count_and_not_names(root: Path) -> None:
    char(root, "nvidia7", 0)
    char(root, "nvidia0", 3)
    char(root, "nvidia1", 63)
    for name in ("nvidiactl", "nvidia-uvm", "nvidia", "nvidia0x", "xnvidia1", "nvidia1\n", "nvidia\u0661"):
        char(root, name, 5)
    (root / "dev/nvidia2").write_text("")
    (root / "dev/nvidia3").symlink_to("nvidia7")
    os.mknod(root / "dev/nvidia4", stat.S_IFBLK | 0o666, os.makedev(195, 4))
    run(root)
    assert (root / FILE).read_bytes() == hook.profile(1 | 1 << 3 | 1 << 63)


@needs_root
def test_file_and_directories_have_the_references_modes(root: Path) -> None:
    char(root, "nvidia0", 0)
    old = os.umask(0o077)
    try:
        run(root)
    finally:
        os.umask(old)
    assert stat.S_IMODE((root / FILE).stat().st_mode) == 0o444
    assert stat.S_IMODE((root / FILE).parent.stat().st_mode) == 0o555
    assert stat.S_IMODE((root / "etc/nvidia").stat().st_mode) == 0o555
    assert stat.S_IMODE((root / "etc").stat().st_mode) == 0o755
    assert os.listdir((root / FILE).parent) == ["10-container.conf"]


@needs_root
def test_absolute_link_at_etc_nvidia_stays_in_the_root(root: Path) -> None:
    canary = root.parent / "canary"
    canary.mkdir()
    inside = root / str(canary).lstrip("/")
    inside.mkdir(parents=True)
    (root / "etc/nvidia").symlink_to(canary)
    char(root, "nvidia0", 0)
    run(root)
    assert list(canary.iterdir()) == []
    assert (inside / "nvidia-application-profiles-rc.d/10-container.conf").read_bytes() == hook.profile(1)


@needs_root
def test_second_run_keeps_the_file_and_a_changed_device_replaces_it(root: Path) -> None:
    char(root, "nvidia0", 0)
    run(root)
    before = (root / FILE).stat().st_ino
    run(root)
    assert (root / FILE).stat().st_ino == before
    char(root, "nvidia1", 1)
    run(root)
    assert (root / FILE).read_bytes() == hook.profile(3)


@needs_root
def test_minor_beyond_the_mask_is_dropped_with_a_warning(root: Path) -> None:
    lines: list[str] = []
    log.add_sink(log.WARNING, lines.append)
    char(root, "nvidia64", 64)
    try:
        run(root)
    finally:
        log._sinks.pop()
    assert not (root / "etc/nvidia").exists()
    assert len(lines) == 1
    assert 'msg="dropping invalid minor number 64"' in lines[0]


def test_container_without_dev_or_gpu_gets_nothing(root: Path) -> None:
    run(root)
    (root / "dev").rmdir()
    run(root)
    assert os.listdir(root / "etc") == []


def test_dev_that_is_a_file_is_an_error(root: Path) -> None:
    (root / "dev").rmdir()
    (root / "dev").write_text("")
    with pytest.raises(HookError, match=r"list /dev: ENOTDIR"):
        run(root)


@pytest.mark.parametrize("link", ["/nonexist/nvidia", "../opt/deep/nvidia", "/"])
def test_a_link_at_etc_nvidia_that_leads_nowhere_is_followed_in_the_root(tmp_path: Path, link: str) -> None:
    tree(tmp_path, f"char dev/nvidia0 195 0\ndir etc\nsymlink etc/nvidia {link}")
    state = {"bundle": "/", "root": str(tmp_path)}
    done = run_hook(["update-application-profile"], state)
    assert (done.rc, done.stderr) == (0, "")
    where = link.removeprefix("..").lstrip("/")
    assert (tmp_path / where / "nvidia-application-profiles-rc.d/10-container.conf").is_file()
