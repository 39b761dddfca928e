"""Fixtures of this folder."""

from __future__ import annotations

from pathlib import Path

import pytest

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
