"""Rows B1 and B5 for update-ldcache: what its engines list, read and write is exchanged while they work.

A run may succeed or end with one line; it may not wait, nor touch anything outside of the root.
"""

from __future__ import annotations

import os
import platform

import pytest
from lib import elfmaker, rootfs
from lib.flipper import Flipper
from security.arena import LDCACHE, LIBDIR, Arena, attempt, escapes

MACHINE = platform.machine()
LDCONFIG_SECONDS = 5.0
# ldconfig opens what was a file when it looked, and waits for a FIFO: until the hook's own deadline for it.
WORDS = {**LDCACHE, "ldconfig": [*LDCACHE["ldconfig"], "--timeout", "4"]}
BAR = f"{LIBDIR}/libbar.so.1.0"
# name: (what is exchanged, with what). `other` lies beside the root, on the same file system.
RACES = {
    "library-fifo": (BAR, "fifo other"),
    "library-device": (BAR, "char other 1 5"),
    "library-sparse": (BAR, "sparse other 1T"),
    "library-link": (BAR, "symlink other {canary}/libevil.so.1.0"),
    "directory-link": (LIBDIR, "symlink other {canary}"),
    "directory-file": (LIBDIR, "file other x"),
    "soname-directory": (f"{LIBDIR}/libbar.so.1", "dir other"),
    "soname-link": (f"{LIBDIR}/libbar.so.1", "symlink other {canary}/secret"),
    "cache-fifo": ("etc/ld.so.cache", "fifo other"),
    "cache-link": ("etc/ld.so.cache", "symlink other {canary}/secret"),
    "conf-fifo": ("etc/ld.so.conf", "fifo other"),
    "conf.d-link": ("etc/ld.so.conf.d", "symlink other {canary}"),
    "etc-link": ("etc", "symlink other {canary}"),
}


def lay(arena: Arena, kind: str) -> tuple[str, str]:
    """The two that are exchanged."""
    path, other = RACES[kind]
    elfmaker.make_so(arena.root / BAR, "libbar.so.1", machine=MACHINE)
    elfmaker.make_so(arena.canary / "libevil.so.1.0", "libevil.so.1", machine=MACHINE)
    if path == "etc":
        (arena.canary / "ld.so.conf").write_text("/x\n")
    if kind.startswith("soname"):
        (arena.root / path).symlink_to("libbar.so.1.0")
    rootfs.tree(arena.root, f"dir {str(arena.canary)[1:]}")  # so that the link leads somewhere in the root
    rootfs.tree(arena.top, other.format(canary=arena.canary))
    return str(arena.root / path), str(arena.top / "other")


def race(arena: Arena, kind: str, engine: str, stage: str, count: int, *, naive: bool = False) -> list[str]:
    out: list[str] = []
    with Flipper(*lay(arena, kind)) as flipper:
        for _ in range(count):
            out += attempt(arena, WORDS[engine], stage, naive=naive, still=False, lines=None if naive else 1,
                           max_wall=3.0 if engine == "builtin" else LDCONFIG_SECONDS)  # fmt: skip
            if naive and (escapes(out) or any("deadline" in v for v in out)):
                break
    assert flipper.rounds > 50, "there was no race"
    return out


@pytest.mark.parametrize("kind", RACES)
def test_what_is_exchanged_is_taken_or_refused(arena: Arena, profile: str, engine: str, kind: str, long: bool) -> None:
    stage = "outside" if profile == "new" else "inside"
    count = 100 if long else 4 if (profile, engine) == ("new", "builtin") else 1
    assert race(arena, kind, engine, stage, count) == []
    assert {"libevil.so.1.0", "secret"} <= {*os.listdir(arena.canary)} <= {"ld.so.conf", "libevil.so.1.0", "secret"}


@pytest.mark.parametrize("kind", ["directory-link", "conf.d-link", "etc-link"])
def test_naive_what_is_exchanged_is_written_through(arena: Arena, kind: str) -> None:
    assert escapes(race(arena, kind, "builtin", "outside", 60, naive=True))


@pytest.mark.parametrize("kind", ["library-fifo", "library-device", "conf-fifo"])
def test_naive_what_is_exchanged_holds_it(arena: Arena, kind: str) -> None:
    found = race(arena, kind, "builtin", "outside", 40, naive=True)
    assert any("deadline" in v or "traceback" in v for v in found)
