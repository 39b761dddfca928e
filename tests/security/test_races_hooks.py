"""Rows B1, B2 and B5 counted by lookups: parents, targets and files of every hook that looks at an image are exchanged.

The hook runs in this process, again and again, until so many paths have been resolved under the flipper: 500, and with
`--long` 20,000, or 1,000 where there is no openat2. It may succeed or end with one error. test_races.py has whole
processes, test_prestart_races.py, test_inject.py and test_mig.py what is mounted.
"""

from __future__ import annotations

import os
import platform

import pytest
from kernel import namespaced
from lib import driver, elfmaker, rootfs
from lib.flipper import Flipper
from lib.oracle import Oracle
from security import racing, test_ldcache_races
from security.arena import COMPAT, LDCACHE, LIBDIR, PROFILE, Arena, attempt, escapes
from security.racing import Tally
from security.test_paths import CHMOD, COMPAT_ARGS, LINK
from security.test_races import rounds

from nvoci.linux import procfs

GPU_NODE = 'mknod -m 666 "$R/dev/nvidia0" c 195 0\n'
PROFILE_ARGS = ["update-application-profile"]
CONF = "etc/ld.so.conf.d/00-compat-nvoci.conf"
LIBRARY = f"{COMPAT}/libcuda.so.600.1.2"
# name: (hook, what is exchanged, with what). What a link to the canary leads to is in the root, too.
FLIPS: dict[str, tuple[list[str], str, str]] = {
    "create-symlinks-parent": (LINK, LIBDIR, "symlink {other} {canary}"),
    "create-symlinks-parent-up": (LINK, "usr/lib", "symlink {other} ../../../../../../../..{canary}"),
    "create-symlinks-target": (LINK, f"{LIBDIR}/libcuda.so", "symlink {other} {canary}/secret"),
    "create-symlinks-target-directory": (LINK, f"{LIBDIR}/libcuda.so", "dir {other}"),
    "chmod-parent": (CHMOD, "usr/share/nvidia", "symlink {other} {canary}"),
    "chmod-file": (CHMOD, "usr/share/nvidia/file", "symlink {other} {canary}/file"),
    "profile-parent": (PROFILE_ARGS, "etc/nvidia", "symlink {other} {canary}"),
    "profile-target": (PROFILE_ARGS, PROFILE, "symlink {other} {canary}/file"),
    "profile-target-fifo": (PROFILE_ARGS, PROFILE, "fifo {other}"),
    "compat-parent": (COMPAT_ARGS, "etc/ld.so.conf.d", "symlink {other} {canary}"),
    "compat-target": (COMPAT_ARGS, CONF, "symlink {other} {canary}/file"),
    "compat-library": (COMPAT_ARGS, LIBRARY, "symlink {other} {canary}/libcuda.so.700.1"),
    "compat-library-fifo": (COMPAT_ARGS, LIBRARY, "fifo {other}"),
    "compat-directory": (COMPAT_ARGS, COMPAT, "symlink {other} {canary}"),
}
RARE = ("create-symlinks-parent-up", "profile-target-fifo", "compat-library-fifo", "create-symlinks-target-directory")
SOME = [pytest.param(name, marks=pytest.mark.long) if name in RARE else name for name in FLIPS]


def lay(arena: Arena, name: str) -> tuple[str, str]:
    """The two that are exchanged."""
    _, path, other = FLIPS[name]
    if not (arena.root / path).exists():
        rootfs.tree(arena.root, f"file {path} image")
    (arena.canary / "file").write_text("host's")
    driver.compat_library(arena.canary, "700.1")
    twin = str(arena.canary)[1:]
    rootfs.tree(arena.root, f"dir {twin}\nfile {twin}/file twin\nfile {twin}/secret twin")
    beside = f"{path}-other"
    rootfs.tree(arena.root, other.format(other=beside, canary=arena.canary))
    return str(arena.root / path), str(arena.root / beside)


def race(arena: Arena, pair: tuple[str, str], words: list[str], profile: str, count: int) -> tuple[Tally, list[str]]:
    """What came of it, and violations."""

    with Oracle(arena.canary) as oracle:
        with Flipper(*pair) as flipper:

            def body() -> Tally:
                namespaced.Kernel("race", () if profile == "new" else ("openat2",)).start()
                os.umask(0)
                procfs.handle()
                return racing.until(count, lambda: racing.hook_once(arena.root, words), flipper)

            tally: Tally = namespaced.isolated(body, limit=1500)
        assert flipper.rounds > 50, "there was no race"
        return tally, oracle.check()


@pytest.mark.parametrize("name", SOME)
def test_what_is_exchanged_is_taken_in_the_root_or_refused(arena: Arena, profile: str, name: str, long: bool) -> None:
    tally, found = race(arena, lay(arena, name), FLIPS[name][0], profile, rounds(profile, long=long))
    assert found == []
    assert tally.lookups >= rounds(profile, long=long)
    assert tally.done > 0, f"all {tally.refused} were refused"
    assert tally.worst < 5


@pytest.mark.parametrize("name", ["create-symlinks-parent", "chmod-file", "profile-target", "compat-target"])
def test_naive_what_is_exchanged_is_followed(arena: Arena, name: str) -> None:
    found: list[str] = []
    with Flipper(*lay(arena, name)):
        for _ in range(60):
            found += attempt(arena, FLIPS[name][0], naive=True, still=False, lines=None, container={"setup": GPU_NODE})
            if escapes(found):
                break
    assert escapes(found)


LDCACHE_RARE = ("library-device", "library-sparse", "directory-file", "soname-directory", "conf-fifo")
LDCACHE_SOME = [pytest.param(k, marks=pytest.mark.long) if k in LDCACHE_RARE else k for k in test_ldcache_races.RACES]


@pytest.mark.parametrize("kind", LDCACHE_SOME)
def test_the_builtin_engine_while_what_it_works_on_is_exchanged(
    arena: Arena, profile: str, kind: str, long: bool
) -> None:
    pair = test_ldcache_races.lay(arena, kind)
    tally, found = race(arena, pair, LDCACHE["builtin"], profile, rounds(profile, long=long))
    assert found == []
    assert tally.lookups >= rounds(profile, long=long)
    assert tally.worst < 5


def test_what_counts_as_a_round_is_a_path_that_is_resolved(arena: Arena) -> None:
    """One update-ldcache of this image by the builtin engine: more than ten and fewer than a hundred."""
    elfmaker.make_so(arena.root / LIBDIR / "libbar.so.1.0", "libbar.so.1", machine=platform.machine())

    def body() -> int:
        procfs.handle()
        return racing.until(1, lambda: racing.hook_once(arena.root, LDCACHE["builtin"])).lookups

    assert 10 < namespaced.isolated(body) < 100
