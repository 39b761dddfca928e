"""A container's root that is named through links."""

from __future__ import annotations

import os

import pytest
from unit.hook.hooktools import Program, one_error


@pytest.mark.parametrize("end", ["", "/", "//"])
def test_a_root_that_is_a_link_is_refused(program: Program, end: str) -> None:
    (program.folder / "link").symlink_to("rootfs")
    state = program.state(root=str(program.folder / "link") + end)
    assert "not a link" in one_error(program.run("create-symlinks", "--link", "a::/b", stdin=state))
    assert not any(program.root.iterdir())


def test_a_link_above_the_root_is_followed(program: Program) -> None:
    (program.folder / "up").symlink_to(".")
    state = program.state(root=str(program.folder / "up/rootfs"))
    assert program.run("create-symlinks", "--link", "a::/b", stdin=state).ok
    assert os.readlink(program.root / "b") == "a"
