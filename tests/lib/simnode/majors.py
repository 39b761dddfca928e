"""/proc/devices: the names of major numbers."""

from __future__ import annotations

import re
from collections.abc import Iterable

from lib.simnode.description import Node

# Device node below /dev -> the name its driver has registered (register_chrdev in the driver, its /proc/devices line).
_NAMES = (
    (r"nvidia\d+", "nvidia"),
    (r"nvidia-uvm(-tools)?", "nvidia-uvm"),
    (r"nvidia-nvlink", "nvidia-nvlink"),
    (r"nvidia-nvswitch(ctl|\d+)", "nvidia-nvswitch"),
    (r"nvidia-caps/nvidia-cap\d+", "nvidia-caps"),
    (r"nvidia-caps-imex-channels/channel\d+", "nvidia-caps-imex-channels"),
    (r"nvidia-fs\d+", "nvidia-fs"),
    (r"gdrdrv", "gdrdrv"),
    (r"dri/(card|renderD)\d+", "drm"),
    (r"infiniband/uverbs\d+", "infiniband_verbs"),
    (r"infiniband/rdma_cm|dxg", "misc"),
    (r"nvhost-.*|nvmap|nvgpu/.*|v4l2-.*", "nvhost"),
)
_HEADS = ("Character devices:", "Block devices:")


def derive(node: Node) -> bytes:
    """The table for the character devices of a node."""
    found: set[tuple[int, str]] = set()
    for entry in node.files:
        if entry.kind == "char" and "/dev/" in entry.path:
            name = entry.path.partition("/dev/")[2]
            known = (label for pattern, label in _NAMES if re.fullmatch(pattern, name))
            found.add((entry.major, next(known, name.rpartition("/")[2])))
    return _write(found, ())


def merge(host: str, simulated: str) -> str:
    """The host's table in which every name and number of the simulated one is replaced."""
    characters, blocks = _read(host)
    new, _ = _read(simulated)
    taken = {major for major, _ in new}, {name for _, name in new}
    kept = [(major, name) for major, name in characters if major not in taken[0] and name not in taken[1]]
    return _write([*kept, *new], blocks).decode()


def _read(text: str) -> tuple[list[tuple[int, str]], list[tuple[int, str]]]:
    characters, _, blocks = text.partition(_HEADS[1])
    return _lines(characters), _lines(blocks)


def _lines(text: str) -> list[tuple[int, str]]:
    return [(int(m[1]), m[2]) for m in re.finditer(r"^ *(\d+) (\S+)$", text, re.MULTILINE)]


def _write(characters: Iterable[tuple[int, str]], blocks: Iterable[tuple[int, str]]) -> bytes:
    parts = [
        f"{head}\n" + "".join(f"{m:3d} {n}\n" for m, n in sorted(lines))
        for head, lines in zip(_HEADS, (characters, blocks))
    ]
    return "\n".join(parts).encode()
