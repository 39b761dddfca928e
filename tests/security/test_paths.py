"""Rows A1 to A4 and A7: a link at every component of every path that a hook works on."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from lib import driver, rootfs, session
from security.arena import COMPAT, ENGINES, GPU_NODE, LDCACHE, LIBDIR, PROFILE, Arena, attempt, escapes

LINK = ["create-symlinks", "--link", f"libcuda.so.1::/{LIBDIR}/libcuda.so"]
CHMOD = ["chmod", "--mode", "755", "--path", "/usr/share/nvidia/file"]
UPDATE = LDCACHE[ENGINES[0]]
COMPAT_ARGS = ["enable-cuda-compat", "--host-driver-version", "550.54.15"]


@dataclass(frozen=True)
class Plan:
    """A path that a hook works on. `replaces`: a link as its last component is replaced, not followed. `makes`: where
    it leads to is made, inside the root.
    `missing_is_ok`: nothing to do where it leads nowhere. `also`: what else the hook changes."""

    id: str
    args: list[str]
    path: str
    replaces: bool = False
    missing_is_ok: bool = False
    makes: bool = False
    also: tuple[str, ...] = ()
    first: int = 0


CACHE_FILES = (
    "etc/ld.so.cache", "etc/ld.so.conf.d/00-nvcr-nvoci.conf", "etc/ld.so.conf.d/zz-nvcr-nvoci.conf",
    f"{LIBDIR}/libfoo.so.1",
)  # fmt: skip
PLANS = (
    Plan("create-symlinks", LINK, f"{LIBDIR}/libcuda.so", replaces=True),
    Plan("chmod", CHMOD, "usr/share/nvidia/file", missing_is_ok=True),
    Plan("profile", ["update-application-profile"], PROFILE, replaces=True, makes=True),
    Plan("compat-conf", COMPAT_ARGS, "etc/ld.so.conf.d/00-compat-nvoci.conf", replaces=True),
    Plan("compat-dir", COMPAT_ARGS, f"{COMPAT}/libcuda.so.600.1.2", missing_is_ok=True,
         also=("etc/ld.so.conf.d/00-compat-nvoci.conf",)),
    Plan("params", ["disable-device-node-modification"], "proc/driver/nvidia/params"),
    Plan("ldcache-conf", UPDATE, "etc/ld.so.conf.d/zz-nvcr-nvoci.conf", replaces=True, also=CACHE_FILES),
    Plan("ldcache-cache", UPDATE, "etc/ld.so.cache", replaces=True, also=CACHE_FILES, first=1),
    Plan("ldcache-link", UPDATE, f"{LIBDIR}/libfoo.so.1", replaces=True, missing_is_ok=True, also=CACHE_FILES),
)  # fmt: skip


def engines(plan: Plan) -> tuple[str, ...]:
    """update-ldcache has two, of which each has to withstand everything; no other hook has one."""
    return ENGINES if plan.args[0] == "update-ldcache" else ENGINES[:1]


def case(plan: Plan, k: int, engine: str, name: str) -> Any:
    if engine != ENGINES[0]:
        plan, name = replace(plan, args=LDCACHE[engine]), f"{name}-{engine}"
    return pytest.param(plan, k, engine, id=name)


CASES = [
    case(p, k, e, f"{p.id}-{p.path.split('/')[k]}")
    for p in PLANS
    for k in range(p.first, p.path.count("/") + 1)
    for e in engines(p)
]
# The naive hook knows no engines.
NAIVE = [pytest.param(*c.values[:2], id=c.id) for c in CASES if c.values[2] == ENGINES[0]]
NAIVE_FOLLOWS = ("create-symlinks", "chmod", "profile", "compat-conf")
UP = "../" * 25


@pytest.fixture(scope="module")
def params() -> Iterator[Path]:
    with driver.make(session.new_dir("driver")) as d:
        yield d.proc


def lay(arena: Arena, plan: Plan, k: int, text: str, where: str) -> str:
    """Component `k` becomes a link that says `text`; what was there is now in the canary, and, `inside`, also at the
    same path below the root. The path of the component."""
    if plan.id == "params":
        rootfs.tree(arena.root, f"file {plan.path} ModifyDeviceFiles: 1\\n")
    component = "/".join(plan.path.split("/")[: k + 1])
    victim = arena.root / component
    twin = arena.root / str(arena.canary)[1:]
    if victim.is_dir():
        subprocess.run(["cp", "-a", f"{victim}/.", arena.canary], check=True)
    elif victim.exists():
        shutil.copy2(victim, arena.canary / "file")
    if where == "inside":
        twin.parent.mkdir(parents=True)
        if victim.is_dir():
            shutil.copytree(victim, twin, symlinks=True)
        else:
            twin.mkdir()
            if victim.exists():
                shutil.copy2(victim, twin / "file")
    to_file = component == plan.path and plan.id != "create-symlinks"  # whose naive form goes wrong at a directory
    rootfs.tree(arena.root, f"symlink {component} {text}{'/file' if to_file else ''}")
    return component


def go(arena: Arena, plan: Plan, stage: str, params: Path, *, proc_mount: bool, **how: object) -> list[str]:
    """The hook in a container that has what this hook wants."""
    options = {"setup": GPU_NODE, "proc_mount": proc_mount and plan.id != "params"}
    return attempt(arena, plan.args, stage, params=params if plan.id == "params" else None, container=options, **how)


def expected(plan: Plan, k: int, where: str, arena: Arena, component: str) -> tuple[bool | None, list[str]]:
    """(success or failure, what may change)."""
    inside = f"{str(arena.canary)[1:]}/**"
    if k == plan.path.count("/") and plan.replaces:
        return True, [*plan.also, plan.path]
    if where == "inside":
        return True, [*plan.also, inside]
    if plan.makes:
        return True, [".", f"{inside.partition('/')[0]}/**"]
    if plan.id.startswith("ldcache"):  # a directory is gone, of which other files of the same hook do not depend
        return None, list(plan.also)
    return plan.missing_is_ok, []


@pytest.mark.parametrize("stage", ["outside", "inside"])
@pytest.mark.parametrize("where", ["inside", "nowhere"])
@pytest.mark.parametrize("row", ["A1", "A2"])
@pytest.mark.parametrize(("plan", "k", "engine"), CASES)
def test_a_link_to_the_host_resolves_in_the_root(
    arena: Arena, params: Path, profile: str, plan: Plan, k: int, engine: str, row: str, where: str, stage: str
) -> None:
    text = str(arena.canary) if row == "A1" else UP + str(arena.canary)[1:]
    component = lay(arena, plan, k, text, where)
    ok, planned = expected(plan, k, where, arena, component)
    assert go(arena, plan, stage, params, proc_mount=True, ok=ok, planned=planned, lines=None if ok else 1) == []
    kept = os.readlink(arena.root / component) if (arena.root / component).is_symlink() else ""
    assert kept.startswith(text) or plan.replaces, "the image's own link was lost"
    if where == "inside" and plan.id == "chmod":
        assert sorted(p.stat().st_mode & 0o777 for p in (arena.root / str(arena.canary)[1:]).rglob("file")) == [0o755]
    if where == "inside" and plan.id == "create-symlinks":
        assert os.readlink(arena.root / str(arena.canary)[1:] / Path(plan.path).relative_to(component)
                           if component != plan.path else arena.root / plan.path) == "libcuda.so.1"  # fmt: skip


@pytest.mark.parametrize("row", ["A1", "A2"])
@pytest.mark.parametrize(("plan", "k"), [c for c in NAIVE if not c.values[0].id.startswith(("ldcache-c", "ldcache-l"))])
def test_naive_a_link_to_the_host_is_followed(arena: Arena, params: Path, plan: Plan, k: int, row: str) -> None:
    text = str(arena.canary) if row == "A1" else UP + str(arena.canary)[1:]
    component = lay(arena, plan, k, text, "nowhere")
    ok, planned = expected(plan, k, "nowhere", arena, component)
    found = go(arena, plan, "outside", params, proc_mount=True, naive=True, ok=ok, planned=planned)
    if plan.id == "compat-dir":  # it reads on the host, and writes what it read into the container
        assert found
    else:
        assert escapes(found), found


# -- links of procfs ------------------------------------------------------------------------------------------------

FILES = [c for c in CASES if c.values[0].id != "params"]  # with a real procfs in the root, whose links these are
FIRST = [case(p, p.first, e, p.id) for p in PLANS if p.id != "params" for e in engines(p)]


@pytest.mark.parametrize("stage", ["outside", "inside"])
@pytest.mark.parametrize(("plan", "k", "engine"), FILES)
def test_a3_the_root_of_another_process_is_not_entered(
    arena: Arena, params: Path, profile: str, plan: Plan, k: int, engine: str, stage: str
) -> None:
    lay(arena, plan, k, f"/proc/1/root{arena.canary}", "nowhere")
    replaced = k == plan.path.count("/") and plan.replaces
    ok = True if replaced else False if plan.id in ("create-symlinks", "chmod", "profile", "compat-conf") else None
    planned = [*plan.also, plan.path] if replaced or ok is None else []
    found = go(arena, plan, stage, params, proc_mount=True, ok=ok, planned=planned, lines=None if ok is None else 1,
               parts=["ELOOP"] if ok is False else [])  # fmt: skip
    assert found == []


@pytest.mark.parametrize(
    ("plan", "k"), [c for c in NAIVE if c.values[0].id in NAIVE_FOLLOWS]
)
def test_naive_a3_the_root_of_another_process_is_entered(arena: Arena, params: Path, plan: Plan, k: int) -> None:
    lay(arena, plan, k, f"{some_root()}{arena.canary}", "nowhere")
    assert escapes(go(arena, plan, "outside", params, proc_mount=True, naive=True))


def some_root() -> str:
    """What a naive hook is led through: the root of pid 1, or of this process where pid 1 may not be looked at."""
    pid = 1 if os.access("/proc/1/root/tmp", os.R_OK) else os.getpid()
    return f"/proc/{pid}/root"


MAGIC = {
    "self-root": "/proc/self/root{canary}",
    "thread-self-root": "/proc/thread-self/root{canary}",
    "self-task-cwd": "/proc/thread-self/cwd",
    "self-cwd": "/proc/self/cwd",
    "self-fd": "/proc/self/fd/{fd}",
    "dev-fd": "/dev/fd/{fd}",
}


def through_own_process(arena: Arena, plan: Plan, k: int, link: str, stage: str, **how: object) -> list[str]:
    """The hook with the canary as its working directory and an inherited descriptor: the link leads to either."""
    options = {"setup": GPU_NODE + 'ln -s /proc/self/fd "$R/dev/fd"\n'}
    fd = os.open(arena.canary, os.O_RDONLY | os.O_DIRECTORY)
    try:
        lay(arena, plan, k, MAGIC[link].format(canary=arena.canary, fd=fd), "nowhere")
        return attempt(arena, plan.args, stage, container=options, cwd=arena.canary, pass_fds=[fd], **how)
    finally:
        os.close(fd)


@pytest.mark.parametrize("stage", ["outside", "inside"])
@pytest.mark.parametrize("link", MAGIC)
@pytest.mark.parametrize(("plan", "k", "engine"), FIRST)
def test_a4_the_hooks_own_links_in_procfs_are_not_entered(
    arena: Arena, profile: str, plan: Plan, k: int, engine: str, link: str, stage: str
) -> None:
    planned = list(plan.also)
    assert through_own_process(arena, plan, k, link, stage, planned=planned, lines=None if plan.also else 1) == []


@pytest.mark.parametrize("link", MAGIC)
@pytest.mark.parametrize(
    ("plan", "k"), [pytest.param(*c.values[:2], id=c.id) for c in FIRST if c.values[0].id in NAIVE_FOLLOWS]
)
def test_naive_a4_the_hooks_own_links_in_procfs_are_entered(arena: Arena, plan: Plan, k: int, link: str) -> None:
    assert escapes(through_own_process(arena, plan, k, link, "outside", naive=True))


# -- a dangling link where a file is to be made ----------------------------------------------------------------------

MADE = [
    ("profile", ["update-application-profile"], PROFILE),
    ("compat-conf", COMPAT_ARGS, "etc/ld.so.conf.d/00-compat-nvoci.conf"),
    ("ldcache-folders", [], "etc/ld.so.conf.d/00-nvcr-nvoci.conf"),
    ("ldcache-system", [], "etc/ld.so.conf.d/zz-nvcr-nvoci.conf"),
    ("ldcache-cache", [], "etc/ld.so.cache"),
    ("ldcache-soname", [], f"{LIBDIR}/libfoo.so.1"),
]
MADE_BY = [
    pytest.param(args or LDCACHE[e], path, e, id=f"{name}-{e}" if e != ENGINES[0] else name)
    for name, args, path in MADE
    for e in (ENGINES[:1] if args else ENGINES)
]
DANGLING = ["{canary}/new", UP + "{canary}/new", "/proc/1/root{canary}/new", "new-in-the-root"]


@pytest.mark.parametrize("stage", ["outside", "inside"])
@pytest.mark.parametrize("text", DANGLING, ids=["absolute", "relative", "procfs", "inside"])
@pytest.mark.parametrize(("args", "path", "engine"), MADE_BY)
def test_a7_a_dangling_link_is_replaced_and_not_written_through(
    arena: Arena, profile: str, args: list[str], path: str, engine: str, text: str, stage: str
) -> None:
    rootfs.tree(arena.root, f"symlink {path} {text.format(canary=arena.canary)}")
    planned = [*CACHE_FILES, path] if args == LDCACHE[engine] else [path]
    assert attempt(arena, args, stage, ok=True, planned=planned, container={"setup": GPU_NODE}) == []
    made = arena.root / path
    assert made.is_file(), "nothing was made there"
    assert made.is_symlink() == path.startswith("usr"), "the link is still there"


@pytest.mark.parametrize("text", DANGLING, ids=["absolute", "relative", "procfs", "inside"])
@pytest.mark.parametrize(
    ("args", "path"),
    [
        pytest.param(a or LDCACHE["builtin"], p, id=i)
        for i, a, p in MADE
        if i in ("profile", "compat-conf", "ldcache-system")
    ],
)
def test_naive_a7_a_dangling_link_is_written_through(arena: Arena, args: list[str], path: str, text: str) -> None:
    text = text.replace("/proc/1/root", some_root())
    rootfs.tree(arena.root, f"symlink {path} {text.format(canary=arena.canary)}")
    planned = [*CACHE_FILES, path, f"{path.rpartition('/')[0]}/*.conf"]
    found = attempt(arena, args, naive=True, planned=planned, lines=None)
    assert found
    assert escapes(found) or text == DANGLING[-1]
