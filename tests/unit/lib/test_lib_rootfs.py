"""lib.rootfs and lib.driver build what they say."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
from pathlib import Path

from lib import driver, proc, rootfs


def test_the_glibc_root_runs_dynamic_programs_and_has_a_cache(tmp_path: Path) -> None:
    root = rootfs.glibc_rootfs(tmp_path / "r")
    found = rootfs.add_probe(root, "libc.so.6")
    missing = rootfs.add_probe(root, "libnone.so.1")
    assert proc.run(["chroot", root, "getent", "passwd", "root"]).stdout.startswith("root:x:0")
    assert "libc.so.6 (libc6" in proc.run(["chroot", root, "ldconfig", "-p"]).stdout
    assert proc.run(["chroot", root, found]).rc == 0
    assert proc.run(["chroot", root, missing]).rc == 127


def test_the_busybox_root_has_no_loader(tmp_path: Path) -> None:
    root = rootfs.busybox_rootfs(tmp_path / "r")
    assert proc.run(["chroot", root, "sh", "-c", "echo ok; ls /etc"]).stdout.startswith("ok\n")
    assert not (root / "etc/ld.so.cache").exists()
    assert not list(root.rglob("ld-*"))


def test_copies_of_a_root_do_not_share_files(tmp_path: Path) -> None:
    one, two = rootfs.glibc_rootfs(tmp_path / "1"), rootfs.glibc_rootfs(tmp_path / "2")
    (one / "etc/hosts").write_text("changed")
    assert (two / "etc/hosts").read_text() != "changed"


def test_an_overlay_root_leaves_the_base_alone(tmp_path: Path) -> None:
    with rootfs.overlay_rootfs(tmp_path / "o") as root:
        (root / "etc/hosts").write_text("changed")
        assert any(str(root) in m and " overlay " in m for m in proc.mountinfo())
    with rootfs.overlay_rootfs(tmp_path / "o") as root:
        assert (root / "etc/hosts").read_text() != "changed"
    assert not any(str(tmp_path) in m for m in proc.mountinfo())


def test_a_tree_is_what_its_lines_say(tmp_path: Path) -> None:
    root = rootfs.tree(
        tmp_path / "t",
        """
        dir a 700
        file a/b one two\\n
        symlink a/c /etc/b
        hardlink a/d a/b
        char null 1 3
        block loop 7 0 640
        fifo f
        socket s
        sparse big 1T
        mode a/b 4755
        owner a/c 5 6
        """,
    )
    assert stat.S_IMODE((root / "a").stat().st_mode) == 0o700
    assert (root / "a/b").read_text() == "one two\n"
    assert os.readlink(root / "a/c") == "/etc/b"
    assert (root / "a/b").stat().st_nlink == 2
    assert (root / "null").stat().st_rdev == os.makedev(1, 3)
    assert (root / "loop").is_block_device()
    assert (root / "f").is_fifo()
    assert (root / "s").is_socket()
    assert (root / "big").stat().st_size == 1 << 40
    assert (root / "big").stat().st_blocks < 16
    assert stat.S_IMODE((root / "a/b").stat().st_mode) == 0o4755
    assert ((root / "a/c").lstat().st_uid, (root / "a/c").lstat().st_gid) == (5, 6)


def test_the_driver_has_libraries_nodes_firmware_and_a_listening_socket(tmp_path: Path) -> None:
    with driver.make(tmp_path / "d", gpus=2) as d:
        text = subprocess.run(
            ["readelf", "-d", d.library("libcuda")], capture_output=True, text=True, check=True
        ).stdout
        assert "[libcuda.so.1]" in text
        assert len(d.libraries) >= 20
        assert all(p.is_file() for p in [*d.libraries, *d.firmware, d.params])
        assert {n.stat().st_rdev for n in d.nodes} >= {os.makedev(195, i) for i in (0, 1, 254, 255)}
        with socket.socket(socket.AF_UNIX) as s:
            s.connect(str(d.persistenced))
    assert not (tmp_path / "d").exists()
