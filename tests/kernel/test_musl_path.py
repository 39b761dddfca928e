"""update-ldcache and musl's path file, which becomes a file of root."""

from __future__ import annotations

import os
from pathlib import Path

from lib.hookproc import run_hook
from lib.rootfs import glibc_rootfs


def test_a_setuid_bit_of_the_image_is_not_carried_over(tmp_path: Path) -> None:
    root = glibc_rootfs(tmp_path / "root")
    path = root / f"etc/ld-musl-{os.uname().machine}.path"
    (root / "etc/alpine-release").touch()
    path.write_text("/lib\n")
    os.chown(path, 1000, 1000)
    path.chmod(0o4755)
    done = run_hook(["update-ldcache", "--folder", "/opt/nv"], {"bundle": "/", "root": str(root)})
    assert (done.rc, done.stderr) == (0, "")
    assert path.read_text().startswith("/lib\n/opt/nv\n")
    assert oct(path.stat().st_mode & 0o7777) == "0o644"
