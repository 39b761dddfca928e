"""A mount in the container never appears on the host."""

from __future__ import annotations

from pathlib import Path

import pytest

from nvoci.errors import HookError
from nvoci.hook.container import OUTSIDE
from nvoci.hook.mounts import GeneratedMount
from nvoci.hook.operation import Transaction
from tests.kernel import namespaced
from tests.kernel.namespaced import isolated


@pytest.mark.parametrize("propagation", ["shared", "slave", "private"])
def test_a_target_that_shares_its_mount_with_the_host_is_refused(tmp_path: Path, propagation: str) -> None:
    (tmp_path / "target").write_text("image")

    def body() -> tuple[bool, bool]:
        """(whether it was mounted in the container, whether the other peer got a mount)"""
        peer = tmp_path.parent / "peer"
        peer.mkdir()
        namespaced.sh(f"mount --bind {tmp_path} {tmp_path}; mount --make-shared {tmp_path}")
        namespaced.sh(f"mount --bind {tmp_path} {peer}")
        if propagation != "shared":
            namespaced.sh(f"mount --make-{propagation} {tmp_path}")
        c = namespaced.make_container(tmp_path, OUTSIDE)
        transaction, mounted = Transaction(), True
        try:
            transaction.perform("test", GeneratedMount(c, b"target", b"ours", 0o444, "file"))
        except HookError as e:
            assert "appear on the host" in e.message
            mounted = False
        return mounted, (peer / "target").read_text() != "image"

    assert isolated(body) == (propagation != "shared", False)
