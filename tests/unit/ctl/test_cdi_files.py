"""The inventory that `nvoci cdi refresh` keeps beside its files."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from lib import session
from unit.ctl.nodetools import NEEDS, at, copied
from unit.ctl.test_inventory import boot

from nvoci.ctl import cdi_files
from nvoci.discover import inventory as kept
from nvoci.generate.options import GenerateOptions

pytestmark = NEEDS


@pytest.fixture
def root(monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of a node with two GPUs, and an inventory of its own."""
    node = copied("no-drm")
    boot(node.root)
    at(node, monkeypatch)
    monkeypatch.setattr(kept, "PATH", str(session.new_dir("inventory") / "nvoci/inventory"))
    return node.root


def refresh(root: Path, mode: str = "auto") -> list[str]:
    """What is told."""
    return cdi_files.inventory(GenerateOptions(driver_root=str(root), mode=mode, timeout=5.0))


def test_it_is_made_where_it_does_not_hold(root: Path) -> None:
    assert refresh(root) == [f"{kept.PATH}: made"]
    made = kept.load(kept.PATH).inventory
    assert made is not None
    assert len(made.found.gpus) == 2
    before = Path(kept.PATH).stat()
    assert refresh(root) == []
    assert Path(kept.PATH).stat() == before
    boot(root, "another")
    assert refresh(root) == [f"{kept.PATH}: made"]


def test_a_node_without_one_is_a_warning(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(root / "usr")
    (root / "usr").mkdir()
    assert refresh(root) == []
    assert capsys.readouterr().err.startswith(f"nvoci: warning: find the driver {root}: ")
    assert not Path(kept.PATH).exists()


@pytest.mark.parametrize("mode", ["imex", "gds"])
def test_it_is_no_matter_of_other_parts_of_the_machine(root: Path, mode: str) -> None:
    assert refresh(root, mode) == []
    assert not Path(kept.PATH).exists()


def test_it_is_roots(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cdi_files.os, "geteuid", lambda: 1000)
    assert refresh(root) == []
