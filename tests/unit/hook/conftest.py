"""Fixtures of this folder: a hook program with a root, and a container's process."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from unit.hook.hooktools import Container, Program, running_container


@pytest.fixture
def program(tmp_path: Path) -> Program:
    root = tmp_path / "rootfs"
    root.mkdir()
    (tmp_path / "config.json").write_text(json.dumps({"root": {"path": "rootfs"}}))
    (tmp_path / "config.json").chmod(0o644)
    return Program(tmp_path, root)


@pytest.fixture
def container(program: Program) -> Iterator[Container]:
    with running_container(program.root) as found:
        yield found
