"""Which libnvidia-tls a container would get, for who only lists libraries."""

from __future__ import annotations

import os
from errno import EIO
from pathlib import Path
from typing import Any

import pytest
from lib import elfmaker
from lib.rootfs import MACHINE
from unit.prestart.chosentools import VERSION, library

from nvoci.discover.inventory import Stale
from nvoci.discover.model import Mount
from nvoci.prestart import tls

TAG = bytes.fromhex("00000000020000000300000063000000")
TLS = f"libnvidia-tls.so.{VERSION}"


@pytest.fixture
def node(tmp_path: Path) -> Path:
    """A driver root with a library for each kind of loader, in both classes."""
    for name, notes in {
        "lib/tls": [(".note.ABI-tag", "GNU", 1, TAG)], "lib": [(".note.ABI-tag", "GNU", 1, bytes(16))], "none": [],
        "other": [(".note.ABI-tag", "GNU", 1, TAG)],
    }.items():  # fmt: skip
        elfmaker.make_so(tmp_path / name / TLS, "libnvidia-tls", machine=MACHINE, notes=notes)
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / TLS).write_text("text\n" * 100)
    return tmp_path


def mounts(node: Path, *directories: str) -> list[Mount]:
    return [library("libcuda"), *[library("libnvidia-tls", f"{node}/{each}") for each in directories]]


def test_one_is_taken_and_of_each_other_it_is_told_why_not(node: Path) -> None:
    every = mounts(node, "lib", "none", "text", "lib/tls", "other")
    taken, left_out = tls.taken(every, str(node))
    assert taken == [every[0], every[4]]
    assert [line.removeprefix(f"{node}/").partition(": left out: ")[::2] for line in left_out] == [
        (f"lib/{TLS}", tls.OTHER),
        (f"none/{TLS}", "it has no ABI note"),
        (f"text/{TLS}", "not a usable ELF file: no ELF magic"),
        (f"other/{TLS}", tls.TAKEN),
    ]


def test_one_that_cannot_be_read_is_left_out(node: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> int:
        raise OSError(EIO, os.strerror(EIO))

    monkeypatch.setattr("nvoci.prestart.tls.procfs.reopen", fails)
    every = mounts(node, "lib/tls")
    assert tls.taken(every, str(node)) == (every[:1], [f"{node}/lib/tls/{TLS}: left out: EIO"])


def test_one_that_is_gone_has_the_node_looked_at_again(node: Path) -> None:
    (node / "lib/tls" / TLS).unlink()
    with pytest.raises(Stale, match="ENOENT"):
        tls.taken(mounts(node, "lib/tls"), str(node))
