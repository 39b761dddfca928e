"""Fixtures of this folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from nvoci.linux import procfs
from nvoci.linux.rootfs import Rootfs
from tests.kernel.namespaced import KERNELS, Kernel


@pytest.fixture(params=KERNELS, ids=lambda k: k.name)
def kernel(request: pytest.FixtureRequest) -> Kernel:
    """Each by the calls that it has."""
    value: Kernel = request.param
    return value


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root with a shell, and a file to mount on."""
    path = tmp_path / "rootfs"
    for name in ("bin", "proc", "etc", "usr/lib"):
        (path / name).mkdir(parents=True)
    (path / "bin/busybox").write_bytes(Path("/bin/busybox").read_bytes())
    (path / "bin/busybox").chmod(0o755)
    (path / "etc/target").write_text("image\n")
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A directory of a root, in which something is staged."""
    (tmp_path / "rootfs/d").mkdir(parents=True)
    return tmp_path / "rootfs/d"


@pytest.fixture
def rootfs(path: Path) -> Iterator[Rootfs]:
    """The root of `path`; no descriptor may be left open."""
    procfs.handle()
    before = len(os.listdir("/proc/self/fd"))
    opened = Rootfs.open(str(path.parent))
    yield opened
    opened.close()
    assert len(os.listdir("/proc/self/fd")) == before, "a descriptor was left open"
