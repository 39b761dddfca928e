"""Rows C1 and C8 (with C3 to C5): something that is no file, or too much of one, wherever a file is expected.

The hook returns in time, says at most one line, leaves no process, and what was in the way is still there.
"""

from __future__ import annotations

import os
import stat

import pytest
from lib import rootfs
from security.arena import COMPAT, ENGINES, GPU_NODE, LDCACHE, LIBDIR, PROFILE, Arena, attempt, settled

KINDS = {
    "C1-fifo": "fifo {path}",
    "C3-zero": "char {path} 1 5",
    "C3-null": "char {path} 1 3",
    "C4-block": "block {path} 7 0",
    "C4-socket": "socket {path}",
    "C5-dir": "dir {path}",
    "C8-sparse": "sparse {path} 1T",
}
COMPAT_ARGS = ["enable-cuda-compat", "--host-driver-version", "550.54.15"]
CACHE_FILES = (
    "etc/ld.so.cache", "etc/ld.so.conf.d/00-nvcr-nvoci.conf", "etc/ld.so.conf.d/zz-nvcr-nvoci.conf",
    f"{LIBDIR}/libfoo.so.1",
)  # fmt: skip
PLACES: dict[str, tuple[list[str], str]] = {  # without arguments: update-ldcache, with either engine
    "ld.so.conf": ([], "etc/ld.so.conf"),
    "ld.so.conf.d": ([], "etc/ld.so.conf.d/x.conf"),
    "ld.so.cache": ([], "etc/ld.so.cache"),
    "drop-in": ([], "etc/ld.so.conf.d/zz-nvcr-nvoci.conf"),
    "library": ([], f"{LIBDIR}/libbar.so.1.0"),
    "soname": ([], f"{LIBDIR}/libfoo.so.1"),
    "debian_version": ([], "etc/debian_version"),
    "compat-library": (COMPAT_ARGS, f"{COMPAT}/libcuda.so.600.1.2"),
    "compat-drop-in": (COMPAT_ARGS, "etc/ld.so.conf.d/00-compat-nvoci.conf"),
    "profile": (["update-application-profile"], PROFILE),
    "link": (["create-symlinks", "--link", f"libcuda.so.1::/{LIBDIR}/libcuda.so"], f"{LIBDIR}/libcuda.so"),
    "link-parent": (["create-symlinks", "--link", "x::/usr/share/nvidia/file/x"], "usr/share/nvidia/file"),
    "chmod": (["chmod", "--mode", "640", "--path", "/usr/share/nvidia/file"], "usr/share/nvidia/file"),
}
# A regular file, however large, is replaced where a file or link of ours belongs.
REPLACED = ("ld.so.cache", "drop-in", "compat-drop-in", "profile", "link")


def special(
    arena: Arena, place: str, kind: str, stage: str, *, engine: str = ENGINES[0], naive: bool = False
) -> list[str]:
    args, path = PLACES[place]
    args = args or LDCACHE[engine]
    rootfs.tree(arena.root, KINDS[kind].format(path=path))
    before = os.lstat(arena.root / path)
    planned = [
        p for p in (*CACHE_FILES, "etc/ld.so.conf.d/00-compat-nvoci.conf", "etc/ld.so.conf.d/zz-nvcr-*") if p != path
    ]
    if place == "chmod" or (kind == "C8-sparse" and place in REPLACED) or (kind == "C5-dir" and place == "link-parent"):
        planned += [path, f"{path}/x"]
    if place == "soname":
        planned.append(path)  # ldconfig decides whether the name is a library of its own
    lines = None if place in ("library", "soname") else 1
    found = attempt(arena, args, stage, naive=naive, planned=planned, lines=lines, max_wall=3.0, max_rss=64 << 10,
                    container={"setup": GPU_NODE})  # fmt: skip
    found = settled(arena, found)
    after = os.lstat(arena.root / path)
    if kind != "C8-sparse" and (stat.S_IFMT(before.st_mode), before.st_ino) != (
        stat.S_IFMT(after.st_mode),
        after.st_ino,
    ):
        found.append(f"{path}: the image's own object is gone")
    return found


BY_ENGINE = [
    pytest.param(place, e, id=f"{place}-{e}" if e != ENGINES[0] else place)
    for place, (args, _) in PLACES.items()
    for e in (ENGINES[:1] if args else ENGINES)
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("place", "engine"), BY_ENGINE)
def test_a_special_file_neither_holds_the_hook_nor_is_lost(
    arena: Arena, profile: str, place: str, engine: str, kind: str
) -> None:
    assert special(arena, place, kind, "outside" if profile == "new" else "inside", engine=engine) == []


# Where the naive hook opens, or replaces, what it finds. (Never a block device: it would write to it.)
BITES = [
    ("ld.so.conf", "C1-fifo"), ("ld.so.conf.d", "C1-fifo"), ("ld.so.conf", "C3-zero"), ("ld.so.conf.d", "C3-zero"),
    ("ld.so.cache", "C5-dir"), ("drop-in", "C1-fifo"), ("drop-in", "C5-dir"), ("drop-in", "C4-socket"),
    ("library", "C1-fifo"), ("library", "C3-zero"), ("library", "C3-null"), ("library", "C4-socket"),
    ("library", "C8-sparse"),
    ("compat-library", "C1-fifo"), ("compat-library", "C3-zero"), ("compat-library", "C4-socket"),
    ("compat-library", "C5-dir"), ("compat-library", "C8-sparse"), ("compat-drop-in", "C1-fifo"),
    ("profile", "C1-fifo"), ("profile", "C4-socket"), ("profile", "C5-dir"),
    ("link", "C1-fifo"), ("link", "C3-null"), ("link", "C4-socket"), ("link-parent", "C1-fifo"),
]  # fmt: skip


@pytest.mark.parametrize(("place", "kind"), BITES)
def test_naive_a_special_file_holds_the_hook_or_is_lost(arena: Arena, place: str, kind: str) -> None:
    assert special(arena, place, kind, "outside", naive=True)
