"""Rows A9, A10, A14, A15 and A16: which root it is, what is mounted in it, and directories that may not be entered."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from lib import rootfs, session
from lib.hookproc import FakeContainer, run_hook
from lib.oracle import Oracle, snapshot
from security.arena import GPU_NODE, LDCACHE, LIBDIR, STAGES, Arena, attempt, escapes
from security.test_paths import CACHE_FILES, COMPAT_ARGS

LINK = ["create-symlinks", "--link", "target::/made/link"]
MADE = ["made", "made/**"]
STAGE = pytest.mark.parametrize("stage", STAGES)

# -- A9: how the root is given ----------------------------------------------------------------------------------------

# {root}: the root; {top}: the directory above it; {bundle}: has it as `rootfs`.
GIVEN: dict[str, Any] = {
    "through-a-link": ("{top}/link/rootfs", True),
    "through-dots": ("{top}/canary/../rootfs", True),
    "slashes": "//{top}//rootfs///",
    "relative": ("rootfs", True),
    "relative-with-dots": ("./canary/../rootfs/", True),
    "is-a-link": ("{top}/direct", False),
    "the-host": ("/", False),
    "the-host-by-dots": ("{top}/../../../../../../..", False),
    "the-host-by-a-link": ("{top}/slash/.", False),
    "missing": ("{top}/none", False),
    "a-file": ("{top}/file", False),
    "below-a-file": ("{top}/file/x", False),
    "a-fifo": ("{top}/fifo", False),
    "not-a-string": (7, False),
}


def given(arena: Arena, how: str, source: str, stage: str, **more: Any) -> list[str]:
    """The root is told in the state, or (as runc does, whose states have none) in the bundle's config.json."""
    rootfs.tree(arena.top, "symlink link .\nsymlink direct rootfs\nsymlink slash /\nfile file x\nfifo fifo")
    value, ok = GIVEN[how] if isinstance(GIVEN[how], tuple) else (GIVEN[how], True)
    root = value.format(root=arena.root, top=arena.top) if isinstance(value, str) else value
    change: dict[str, Any] = {"bundle": str(arena.top), "root": root}
    if source == "config":
        (arena.top / "config.json").write_text(json.dumps({"root": {"path": root}}))
        change["root"] = None
    planned = MADE if ok else []
    return attempt(arena, LINK, stage, change=change, ok=ok, planned=planned, max_wall=3.0, **more)


@pytest.mark.parametrize("source", ["state", "config"])
@pytest.mark.parametrize("how", GIVEN)
def test_a9_a_root_however_it_is_given(arena: Arena, how: str, source: str) -> None:
    """Outside where the state tells it, inside where config.json does."""
    assert given(arena, how, source, "outside" if source == "state" else "inside") == []
    if isinstance(GIVEN[how], str) or GIVEN[how][1]:
        assert os.readlink(arena.root / "made/link") == "target"


@pytest.mark.parametrize("source", ["state", "config"])
def test_a9_an_empty_root_is_refused(arena: Arena, profile: str, source: str) -> None:
    (arena.top / "config.json").write_text('{"root": {"path": ""}}')
    change = {"bundle": str(arena.top), "root": "" if source == "state" else None}
    parts = ["the container's root is empty"]
    assert attempt(arena, LINK, change=change, ok=False, parts=parts) == []


@pytest.mark.parametrize("how", ["the-host-by-a-link", "is-a-link"])
def test_naive_a9_a_link_is_a_root(arena: Arena, how: str) -> None:
    """The naive hook makes its link wherever that leads; on the host it may make nothing here."""
    words = ["create-symlinks", "--link", f"target::{arena.canary}/link"]
    rootfs.tree(arena.top, "symlink slash /\nsymlink direct canary")
    root = {"the-host-by-a-link": "slash", "is-a-link": "direct"}[how]
    words = words if how == "the-host-by-a-link" else ["create-symlinks", "--link", "target::/link"]
    change = {"bundle": str(arena.top), "root": f"{arena.top}/{root}"}
    assert escapes(attempt(arena, words, naive=True, change=change, lines=None))
    if how == "is-a-link":
        (arena.canary / "link").unlink()
        assert attempt(arena, words, change=change, ok=False) == []


# -- A10: hidden by another mount -------------------------------------------------------------------------------------

HIDDEN = {
    "tmpfs": 'mount -t tmpfs cover "$R"\nmkdir -p "$R/etc" "$R/tmp"\n',
    "bind": 'mount --bind "$R/usr" "$R"\nmkdir -p "$R/etc"\n',
    "twice": 'mount -t tmpfs one "$R"\nmount -t tmpfs two "$R"\nmkdir -p "$R/etc"\n',
}


@STAGE
@pytest.mark.parametrize("cover", HIDDEN)
def test_a10_what_hides_the_root_is_the_root(arena: Arena, profile: str, cover: str, stage: str) -> None:
    """Neither what lies below is touched, nor a mixture made. (The root's own /usr shows what is made there.)"""
    seen: dict[str, str] = {}
    planned = ["usr", "usr/made", "usr/made/**", "usr/etc"] if cover == "bind" else []

    with FakeContainer(arena.root, setup=HIDDEN[cover], dev=False, proc_mount=False) as c:
        with Oracle(arena.canary, arena.root, planned) as oracle:
            result = run_hook(LINK, container=c, stage=STAGES[stage])
            assert oracle.check(result, ok=True) == []
        seen["link"] = os.readlink(c.path("made/link"))
    assert seen == {"link": "target"}
    assert not (arena.root / "made").exists()


# -- A14: a volume of another container -------------------------------------------------------------------------------

WORDS = {
    "create-symlinks": ["create-symlinks", "--link", "target::/led/new"],
    "create-symlinks-deep": ["create-symlinks", "--link", "target::/led/a/b/new"],
    "chmod": ["chmod", "--mode", "777", "--path", "/led/file"],
    "profile": ["update-application-profile"],
    "compat": COMPAT_ARGS,
    "ldcache": LDCACHE["builtin"],
    "ldcache-ldconfig": LDCACHE["ldconfig"],
}
LED = """
symlink led vol
symlink etc/nvidia/nvidia-application-profiles-rc.d ../../vol
symlink etc/ld.so.conf.d ../vol
"""


def into_volume(arena: Arena, args: list[str], stage: str, **how: Any) -> tuple[list[str], list[str]]:
    """(violations, changes of the volume): links of the image lead into a volume that another container has too."""
    volume = rootfs.tree(arena.top / "volume", "file file theirs\nmode file 600")
    rootfs.tree(arena.root, f"dir vol\n{LED}")
    before = snapshot(volume)
    setup = f'mount --bind {volume} "$R/vol"\n{GPU_NODE}'
    found = attempt(arena, args, stage, container={"setup": setup}, lines=None, **how)
    now = snapshot(volume)
    return found, sorted(name for name in {*before, *now} if before.get(name) != now.get(name))


@pytest.mark.parametrize("what", WORDS)
def test_a14_a_link_into_a_volume_is_an_error_that_names_it(arena: Arena, profile: str, what: str) -> None:
    stage = "outside" if profile == "new" else "inside"
    found, changed = into_volume(arena, WORDS[what], stage, ok=False, parts=["leads into a volume of the host"])
    assert changed == []
    assert [v for v in found if "changed mtime" not in v] == []


@pytest.mark.parametrize("what", ["create-symlinks", "chmod", "profile", "compat", "ldcache"])
def test_naive_a14_a_link_into_a_volume_is_followed(arena: Arena, what: str) -> None:
    _, changed = into_volume(arena, WORDS[what], "inside", naive=True)
    assert changed


def test_a14_a_volume_that_is_named_is_meant(arena: Arena, profile: str) -> None:
    volume = rootfs.tree(arena.top / "volume", "file file theirs")
    rootfs.tree(arena.root, "dir vol")
    setup = {"setup": f'mount --bind {volume} "$R/vol"\n'}
    words = ["create-symlinks", "--link", "target::/vol/new"]
    assert attempt(arena, words, "outside" if profile == "new" else "inside", ok=True, container=setup) == []
    assert os.readlink(volume / "new") == "target"


# -- A15: directories that may not be entered -------------------------------------------------------------------------

STRANGER = 1234
MAPPED = ["unshare", "--user", "--map-root-user"]
CLOSED = {
    "create-symlinks": (LINK, "made"),
    "profile": (["update-application-profile"], "etc/nvidia"),
    "compat": (COMPAT_ARGS, "etc/ld.so.conf.d"),
    "compat-library": (COMPAT_ARGS, "usr/local/cuda"),
    "ldcache": (LDCACHE["builtin"], "etc/ld.so.conf.d"),
    "ldcache-libraries": (LDCACHE["builtin"], LIBDIR),
}


def closed(arena: Arena, what: str, owner: int, **how: Any) -> list[str]:
    """The hook as root of a user namespace, in which `owner` is nobody: a directory of mode 0000 is theirs."""
    words, path = CLOSED[what]
    (arena.root / path).mkdir(exist_ok=True, parents=True)
    rootfs.tree(arena.root, "char dev/nvidia0 195 0")
    (arena.root / path).chmod(0)
    os.chown(arena.root / path, owner, owner)
    session.tmp().chmod(0o755)
    state = {"ociVersion": "1.0.2", "bundle": "/", "root": str(arena.root)}
    planned = [path, f"{path}/**", *CACHE_FILES, "etc/ld.so.conf.d/00-compat-nvoci.conf"] if owner == 0 else []
    with Oracle(arena.canary, arena.root, planned) as oracle:
        result = run_hook(words, state, prefix=MAPPED, **how)
        return oracle.check(result, ok=owner == 0, parts=["EACCES"] if owner else [], lines=1)


@pytest.mark.parametrize("owner", [STRANGER, 0], ids=["another", "own"])
@pytest.mark.parametrize("what", CLOSED)
def test_a15_a_directory_that_may_not_be_entered_is_named(arena: Arena, profile: str, what: str, owner: int) -> None:
    found = closed(arena, what, owner)
    assert [v for v in found if "changed mtime" not in v] == []


# -- A16: the root in itself ------------------------------------------------------------------------------------------


@STAGE
@pytest.mark.parametrize("kind", ["rbind", pytest.param("bind", marks=pytest.mark.long), "twice"])
def test_a16_a_root_in_itself_is_one_root(arena: Arena, profile: str, kind: str, stage: str) -> None:
    """Paths through it lead to the same files; a link that goes round and round ends."""
    rootfs.tree(arena.root, "dir self\nsymlink round self/self\nsymlink etc/deep /self/etc")
    setup = f'mount --{kind.replace("twice", "rbind")} "$R" "$R/self"\n'
    if kind == "twice":
        setup += 'mount --rbind "$R" "$R/self/self" 2>/dev/null || true\n'
    words = ["run", "--", *LINK, "--", *LDCACHE["builtin"], "--folder", "/self/usr/lib", "--", *COMPAT_ARGS,
             "--", "chmod", "--mode", "600", "--path", "/etc/hostname"]  # fmt: skip
    planned = [*MADE, *CACHE_FILES, "etc/ld.so.conf.d/00-compat-nvoci.conf", "etc/hostname"]
    found = attempt(arena, words, stage, ok=True, planned=planned, container={"setup": setup}, max_wall=5.0)
    assert found == []
    assert Path(arena.root / "etc/hostname").stat().st_mode & 0o777 == 0o600
