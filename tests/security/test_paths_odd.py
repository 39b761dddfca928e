"""Rows A5, A6, A8, A13 and A17: circles, chains, merged directories, odd spellings, and the wrong kind at the end.

The paths are those of test_paths.py; the stage is that of the kernel, and with `--long` the other one too.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from lib import driver, mignode, rootfs, session
from security.arena import COMPAT, ENGINES, GPU_NODE, LDCACHE, LIBDIR, PROFILE, Arena, at_places, attempt
from security.test_inject import TARGET, words
from security.test_mig import BARE, go
from security.test_paths import CACHE_FILES, CHMOD, COMPAT_ARGS, LINK, PLANS, Plan, engines
from unit.inject.thing import Thing

LONG = pytest.mark.long
OTHER_STAGE = pytest.mark.parametrize("other", [False, pytest.param(True, marks=LONG)], ids=["", "other-stage"])


def rarely(names: Iterable[str], *rare: str) -> list[Any]:
    """The names, of which some are for `--long`."""
    return [pytest.param(name, marks=LONG) if name in rare else name for name in names]


def stage_of(profile: str, other: bool) -> str:
    return "outside" if (profile == "new") != other else "inside"


PLACE = at_places("old-inside")


@pytest.fixture(scope="module")
def params() -> Iterator[Path]:
    with driver.make(session.new_dir("driver")) as d:
        yield d.proc


# -- A5, A6: a parent that leads in circles, far, or nowhere ----------------------------------------------------------

PARENTS = {
    "A5-self": "symlink {parent} {name}",
    "A5-two": "symlink {parent} /two\nsymlink two {parent}",
    "A5-41-deep": "symlink {parent} /chain40",
    "A5-39-deep": "symlink {parent} /chain38",
    "A6-dangling": "symlink {parent} /not/there",
    "A6-dangling-up": "symlink {parent} ../../../../../../../../not/there",
}
GONE = {"create-symlinks": "ENOTDIR", "compat-conf": "ENOTDIR"}  # a link is in the way of the directory
REFUSED = ("create-symlinks", "chmod", "profile", "compat-conf", "params")
BY_PLAN = [pytest.param(p, e, id=p.id if e == ENGINES[0] else f"{p.id}-{e}") for p in PLANS for e in engines(p)]


def lay_parent(arena: Arena, plan: Plan, kind: str) -> Path:
    """The directory of the plan's path becomes a link; what was in it is now the end of a chain. That end."""
    parent = plan.path.rpartition("/")[0]
    if plan.id == "params":
        rootfs.tree(arena.root, f"file {plan.path} ModifyDeviceFiles: 1\\n")
    end = arena.root / "chain0"
    shutil.move(arena.root / parent, end)
    for n in range(1, 41):
        (arena.root / f"chain{n}").symlink_to(f"chain{n - 1}")
    rootfs.tree(arena.root, PARENTS[kind].format(parent=parent, name=Path(parent).name))
    return end


def expectation(plan: Plan, kind: str) -> tuple[bool | None, list[str], list[str]]:
    """(success or failure, parts of the message, what may change)."""
    if kind == "A5-39-deep":
        return True, [], ["chain0/**", *plan.also]
    if kind.startswith("A6"):
        if plan.makes:
            return True, [], [".", "not/**"]
        if plan.id in REFUSED:
            return plan.missing_is_ok, [] if plan.missing_is_ok else [GONE.get(plan.id, "ENOENT")], []
    if plan.id in REFUSED:
        return False, ["ELOOP"], []
    return None, [], list(plan.also)


def through_parent(arena: Arena, plan: Plan, engine: str, kind: str, stage: str, params: Path, **how: Any) -> list[str]:
    """What the oracle says, with what the case is to end with."""
    lay_parent(arena, plan, kind)
    ok, parts, planned = expectation(plan, kind)
    args = LDCACHE[engine] if plan.args[0] == "update-ldcache" else plan.args
    own = plan.id == "params"
    options = {"setup": GPU_NODE, "proc_mount": not own}
    return attempt(arena, args, stage, params=params if own else None, container=options, ok=ok, parts=parts,
                   planned=planned, lines=None if ok is None else 1, **how)  # fmt: skip


@OTHER_STAGE
@pytest.mark.parametrize("kind", rarely(PARENTS, "A5-two", "A6-dangling-up"))
@pytest.mark.parametrize(("plan", "engine"), BY_PLAN)
def test_a_parent_that_leads_in_circles_far_or_nowhere(
    arena: Arena, params: Path, profile: str, plan: Plan, engine: str, kind: str, other: bool
) -> None:
    assert through_parent(arena, plan, engine, kind, stage_of(profile, other), params) == []
    name = plan.path.rpartition("/")[2]
    if kind == "A5-39-deep" and plan.id != "compat-dir":
        assert os.path.lexists(arena.root / "chain0" / name), "nothing was made at the end of the chain"
    if kind.startswith("A6") and plan.makes:
        assert (arena.root / "not/there" / name).is_file()
    assert (arena.root / plan.path).parent.is_symlink(), "the image's own link was lost"


LOOPS = {"self": "{name}", "two": "/two"}


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("component", [TARGET, "opt/vendor", "opt"])
@pytest.mark.parametrize("kind", ["file", "node"])
def test_a5_inject_refuses_a_loop(arena: Arena, profile: str, kind: str, component: str, loop: str) -> None:
    rootfs.tree(arena.root, f"symlink {component} {LOOPS[loop].format(name=Path(component).name)}")
    rootfs.tree(arena.root, f"symlink two /{component}")
    assert attempt(arena, words(Thing(), kind), stage_of(profile, False), ok=False, parts=["ELOOP"]) == []


@pytest.mark.parametrize("component", ["dev/nvidia-caps", mignode.node(mignode.GI), "proc/driver/nvidia"])
def test_a5_mount_mig_devices_refuses_a_loop(arena: Arena, profile: str, component: str) -> None:
    (arena.root / component).parent.mkdir(parents=True, exist_ok=True)
    rootfs.tree(arena.root, f"symlink {component} {Path(component).name}")
    node = mignode.make(session.new_dir("mig") / "node")
    found = go(arena, node, stage_of(profile, False), container=BARE, ok=False, parts=["ELOOP"])
    assert [v for v in found if "changed mtime" not in v] == []


# -- A8: merged directories -------------------------------------------------------------------------------------------

ALL = [
    "run", "--", "update-application-profile", "--", *LINK, "--", *CHMOD, "--", *COMPAT_ARGS, "--", *LDCACHE["builtin"],
]  # fmt: skip
MERGED = {
    "usr-is-dot": (["lib"], "symlink usr ."),
    "lib-is-usr-lib": ([], "symlink lib usr/lib"),
    "lib64-is-lib": ([], "symlink lib64 lib"),
    "usr-lib64-is-lib": ([], "symlink usr/lib64 lib\nsymlink lib64 usr/lib64"),
}


def merge(arena: Arena, layout: str) -> None:
    gone, spec = MERGED[layout]
    for name in gone:
        (arena.root / name).unlink()
    if layout == "usr-is-dot":
        for path in (arena.root / "usr").iterdir():
            path.rename(arena.root / path.name)
        (arena.root / "usr").rmdir()
    rootfs.tree(arena.root, spec)


@PLACE
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("layout", rarely(MERGED, "usr-lib64-is-lib"))
def test_a8_merged_directories_are_as_good_as_others(arena: Arena, place: str, layout: str, engine: str) -> None:
    merge(arena, layout)
    args = [*ALL, "--engine", engine]
    found = attempt(arena, args, place, ok=True, planned=["**", "*"], still=False,
                    container={"setup": GPU_NODE})  # fmt: skip
    assert found == []
    assert os.readlink(arena.root / LIBDIR / "libcuda.so") == "libcuda.so.1"
    assert (arena.root / LIBDIR / "libfoo.so.1").is_symlink()
    assert (arena.root / PROFILE).is_file()
    folder = COMPAT.removeprefix("usr/") if layout == "usr-is-dot" else COMPAT  # by the name that the kernel gives it
    assert (arena.root / "etc/ld.so.conf.d/00-compat-nvoci.conf").read_text() == f"/{folder}\n"
    assert (arena.root / "usr/share/nvidia/file").stat().st_mode & 0o777 == 0o755
    cache = (arena.root / "etc/ld.so.cache").read_bytes()
    assert cache.count(b"libfoo.so.1\0") > 0
    assert not list(arena.root.rglob(".nvoci-*"))


# -- A13: odd spellings -----------------------------------------------------------------------------------------------

SPELLED = {
    "dots-at-the-root": "/../../../usr/share/nvidia/{name}",
    "slashes": "//usr///share//nvidia/{name}",
    "dot": "/./usr/./share/././nvidia/./{name}",
    "up-and-down": "/usr/lib/../share/../../usr/share/nvidia/{name}",
    "trailing-slash": "/usr/share/nvidia/{name}/",
    "relative": "usr/share/nvidia/{name}",
}
HOW: dict[str, list[str]] = {
    "create-symlinks": ["create-symlinks", "--link", "target::{path}"],
    "chmod": ["chmod", "--mode", "751", "--path", "{path}"],
    "update-ldcache": ["update-ldcache", "--folder", "{path}"],
}


@PLACE
@pytest.mark.parametrize("spelling", rarely(SPELLED, "slashes", "dot"))
@pytest.mark.parametrize("hook", HOW)
def test_a13_odd_spellings_are_the_same_path(arena: Arena, place: str, hook: str, spelling: str) -> None:
    """A folder must be absolute; a trailing slash asks for a directory."""
    (arena.root / "usr/share/nvidia/folder").mkdir()
    name = "new" if hook == "create-symlinks" else "folder"
    path = SPELLED[spelling].format(name=name)
    refused = spelling == "relative" and hook == "update-ldcache"
    args = [word.format(path=path) for word in HOW[hook]]
    planned = [f"usr/share/nvidia/{name}"] if hook != "update-ldcache" else list(CACHE_FILES)
    stage = place
    assert attempt(arena, args, stage, ok=not refused, planned=[] if refused else planned) == []
    if refused:
        return
    if hook == "create-symlinks":
        assert os.readlink(arena.root / "usr/share/nvidia/new") == "target"
    if hook == "chmod":
        assert (arena.root / "usr/share/nvidia/folder").stat().st_mode & 0o777 == 0o751


# -- A17: the wrong kind at the end -----------------------------------------------------------------------------------

MADE = {
    "profile": (["update-application-profile"], PROFILE),
    "compat-conf": (COMPAT_ARGS, "etc/ld.so.conf.d/00-compat-nvoci.conf"),
    "create-symlinks": (LINK, f"{LIBDIR}/libcuda.so"),
    "ldcache-conf": (LDCACHE["builtin"], "etc/ld.so.conf.d/zz-nvcr-nvoci.conf"),
    "ldcache-cache": (LDCACHE["builtin"], "etc/ld.so.cache"),
    "ldcache-conf-ldconfig": (LDCACHE["ldconfig"], "etc/ld.so.conf.d/zz-nvcr-nvoci.conf"),
    "ldcache-cache-ldconfig": (LDCACHE["ldconfig"], "etc/ld.so.cache"),
}
KINDS = {
    "directory": ("dir {path}\nfile {path}/kept image", "EISDIR"),
    "file-for-directory": ("file {parent} image", "ENOTDIR"),
}


@PLACE
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("what", MADE)
def test_a17_the_wrong_kind_is_an_error_that_names_it(arena: Arena, place: str, what: str, kind: str) -> None:
    args, path = MADE[what]
    spec, error = KINDS[kind]
    parent = path.rpartition("/")[0]
    if kind == "file-for-directory" and what.startswith("ldcache-cache"):
        parent = "etc/ld.so.conf.d"  # without /etc there is nothing to read either
    lay = spec.format(path=path, parent=parent)
    if kind == "file-for-directory":
        shutil.rmtree(arena.root / parent)
    rootfs.tree(arena.root, lay)
    found = attempt(arena, args, place, ok=False, parts=[error], container={"setup": GPU_NODE})
    assert [v for v in found if "changed mtime" not in v] == []
    assert (arena.root / (f"{path}/kept" if kind == "directory" else parent)).read_text() == "image"
