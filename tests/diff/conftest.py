"""Fixtures of this folder."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from diff import judge, story


@pytest.fixture(scope="module")
def node() -> Iterator[story.Node]:
    """The layouts' base directories and the drivers."""
    if os.geteuid() != 0:
        pytest.skip("mounts and namespaces need root")
    if not os.path.exists(judge.LDCONFIG):
        pytest.skip("no ldconfig on this host to be the judge")
    with story.node() as made:
        yield made
