"""nvoci.linux.mount: a target or a mount table that changes meanwhile is never missed."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from nvoci.errors import HookError
from nvoci.hook.container import Container
from nvoci.linux import generated, mount
from tests.kernel import namespaced
from tests.kernel.mounting import TEXT
from tests.kernel.namespaced import Kernel, isolated, os_error

pytestmark = [pytest.mark.kernel, pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")]


def test_target_swapped_while_mounting_is_never_missed(root: Path, kernel: Kernel) -> None:
    """The name leads to another file by the time of the mount: an error, the other file is not mounted on, and the one
    that was meant is not either any more."""

    def work(c: Container) -> bytes:
        before = namespaced.mountinfo()
        with mount.find_target(c.rootfs, b"etc/target") as target:
            os.rename(root / "etc/target", root / "etc/moved")
            (root / "etc/target").write_text("other\n")
            with os_error() as e:
                generated.mount_generated(c.rootfs, target, TEXT, 0o444)
        assert e.value.errno == errno.ESTALE
        assert namespaced.mountinfo() == before
        return c.rootfs.read_file(b"etc/target", 1000)

    def body() -> Any:
        with namespaced.container(root) as pid:
            return namespaced.in_container(pid, root, kernel, work)

    assert isolated(body) == b"other\n"


def test_the_table_is_read_again_only_for_a_new_mount(root: Path, kernel: Kernel) -> None:
    """With thousands of mounts each reading takes tens of milliseconds."""
    reads: list[bytes] = []

    def work(c: Container) -> list[bytes]:
        read = mount.own_table
        mount.own_table = lambda: reads.append(table := read()) or table
        source = os.open(root / "etc/target", os.O_PATH)
        for n in range(20):
            (root / f"etc/{n}").touch()
            with mount.find_target(c.rootfs, b"etc/%d" % n) as target:
                mount.attach(mount.clone(source, mount.READ_ONLY), target).close()
        assert len(reads) == 1
        namespaced.sh(f"mount -t tmpfs --make-shared new {root}/bin; touch {root}/bin/f")
        with mount.find_target(c.rootfs, b"bin/f") as target, pytest.raises(HookError, match="lies on a shared mount"):
            mount.attach(mount.clone(source, mount.READ_ONLY), target)
        return reads

    def body() -> Any:
        with namespaced.container(root) as pid:
            return namespaced.in_container(pid, root, kernel, work)

    assert len(isolated(body)) == 2


def test_a_host_file_on_a_swapped_target_is_taken_away_again(root: Path, kernel: Kernel) -> None:
    """Without the mount API too, where only the name says what was mounted; of two alike only the one that was."""

    def work(c: Container) -> None:
        source = os.open(root / "bin/busybox", os.O_PATH)
        (root / "etc/first").touch()
        with mount.find_target(c.rootfs, b"etc/first") as target:
            mount.attach(mount.clone(source, mount.READ_ONLY), target).close()
        before = namespaced.mountinfo()
        with mount.find_target(c.rootfs, b"etc/target") as target:
            os.rename(root / "etc/target", root / "etc/moved")
            (root / "etc/target").write_text("other\n")
            with os_error() as e:
                mount.attach(mount.clone(source, mount.READ_ONLY), target)
        assert e.value.errno == errno.ESTALE
        assert namespaced.mountinfo() == before

    def body() -> None:
        with namespaced.container(root) as pid:
            namespaced.in_container(pid, root, kernel, work)

    isolated(body)
