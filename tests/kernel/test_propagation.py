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
    root, peer = tmp_path / "root", tmp_path / "peer"
    root.mkdir()
    peer.mkdir()
    (root / "target").write_text("image")

    def body() -> tuple[bool, bool]:
        """(whether it was mounted in the container, whether the other peer got a mount)"""
        namespaced.sh(f"mount --bind {root} {root}; mount --make-shared {root}")
        namespaced.sh(f"mount --bind {root} {peer}")
        if propagation != "shared":
            namespaced.sh(f"mount --make-{propagation} {root}")
        c = namespaced.make_container(root, OUTSIDE)
        operation = GeneratedMount(c, b"target", b"ours", 0o444, "file")
        if propagation == "shared":
            with pytest.raises(HookError, match="appear on the host"):
                Transaction().perform("test", operation)
        else:
            Transaction().perform("test", operation)
        return (root / "target").read_text() == "ours", (peer / "target").read_text() == "ours"

    assert isolated(body) == (propagation != "shared", False)
