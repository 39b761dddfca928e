"""Fixtures of this folder: the vendor, and an image that knows nothing of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from lib import rootfs, session
from unit.inject.thing import Thing

IMAGE = """
dir proc
dir dev
dir etc
dir opt
file opt/file image
dir tmp 1777
"""


@pytest.fixture
def thing() -> Thing:
    return Thing()


@pytest.fixture
def root() -> Path:
    return rootfs.tree(session.new_dir("image") / "rootfs", IMAGE)
