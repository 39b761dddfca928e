"""A container's root beside a canary, and one try of a hook in it under the eyes of the oracle."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from lib import driver, elfmaker, hookproc, jail, proc, rootfs
from lib.hookproc import FakeContainer
from lib.oracle import Oracle

NAIVE = Path(__file__).with_name("naive.py")
NAIVE_LIMIT = 1.2
MEMORY_LIMIT = 512 << 20
TRIPLET = rootfs.TRIPLET
LIBDIR = f"usr/lib/{TRIPLET}"
COMPAT = "usr/local/cuda/compat"
PROFILE = "etc/nvidia/nvidia-application-profiles-rc.d/10-container.conf"
STAGES: Mapping[str, hookproc.Stage] = {"outside": "createRuntime", "inside": "createContainer"}
ENGINES = ("builtin", "ldconfig")
FOLDER = "/opt/nvidia/lib"
LDCACHE: Mapping[str, list[str]] = {e: ["update-ldcache", "--engine", e, "--folder", FOLDER] for e in ENGINES}
GPU_NODE = 'mknod -m 666 "$R/dev/nvidia0" c 195 0\n'

PLACES = ("new-outside", "new-inside", "old-outside", "old-inside")
"""A kernel and a stage, for the fixture `place`."""


def at_places(normal: str) -> pytest.MarkDecorator:
    """`place` is each of PLACES; a normal run takes the one named."""
    params = [pytest.param(p, marks=[] if p == normal else pytest.mark.long) for p in PLACES]
    return pytest.mark.parametrize("place", params, indirect=True)


# Small, so that hundreds of it can be made; complete enough for every hook.
TREE = f"""
dir proc
dir dev
dir sys
dir tmp 1777
dir {LIBDIR}
symlink lib usr/lib
dir usr/share/nvidia
dir etc/nvidia/nvidia-application-profiles-rc.d
file usr/share/nvidia/file data\\n
file etc/debian_version 12.0\\n
file etc/ld.so.conf include /etc/ld.so.conf.d/*.conf\\n
file etc/ld.so.conf.d/libc.conf /usr/local/lib\\n
file etc/ld.so.cache old cache\\n
file etc/hostname image\\n
char dev/nvidia0 195 0
"""


@dataclass
class Arena:
    """`root` and `canary` lie on one file system, so that they can be exchanged."""

    top: Path
    root: Path
    canary: Path


def make(top: Path, spec: str = "") -> Arena:
    """A root with one library, one compat library and `spec`, and a canary with one file in it."""
    arena = Arena(top, top / "rootfs", top / "canary")
    rootfs.tree(arena.root, TREE)
    elfmaker.make_so(arena.root / LIBDIR / "libfoo.so.1.0", "libfoo.so.1", machine=platform.machine())
    driver.compat_library(arena.root / COMPAT, "600.1.2")
    rootfs.tree(arena.root, spec)
    rootfs.tree(arena.canary, "file secret canary\\n\nmode secret 600")
    return arena


def limited() -> None:
    """In the child: no naive read of an endless device may take the machine's memory."""
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))


def attempt(
    arena: Arena,
    args: Sequence[str],
    stage: str = "outside",
    *,
    naive: bool = False,
    ok: bool | None = None,
    planned: Sequence[str] = (),
    parts: Sequence[str] = (),
    lines: int | None = 1,
    params: Path | None = None,
    max_wall: float = 5.0,
    container: Mapping[str, Any] | None = None,
    during: Callable[[FakeContainer], None] | None = None,
    still: bool = True,
    max_rss: int | None = None,
    change: Mapping[str, Any] | None = None,
    **how: Any,
) -> list[str]:
    """One hook process in a container of its own; what the oracle found wrong.

    params: what is to be seen at /proc/driver on the host. container: for FakeContainer. how: for run_hook.
    during: called with the container before the hook starts. max_rss: KiB.
    change: of the state (None: left out). still: nobody else changes the root meanwhile.
    """
    options = dict(container or {})
    options["setup"] = options.get("setup", "")
    if params is not None:
        options["setup"] += jail.driver_proc(params)
        if stage == "outside":
            how["setup"] = jail.driver_proc(params)
    watched = arena.root if still else None
    with FakeContainer(arena.root, **options) as c, Oracle(arena.canary, watched, planned, max_wall) as oracle:
        if during is not None:
            during(c)
        if change is not None:
            state = {**c.state(STAGES[stage], how.get("runtime", "runc")), **change}
            how["state"] = {k: v for k, v in state.items() if v is not None}
        before = set(c.mountinfo())
        result = run(args, c, stage, naive=naive, measure_rss=max_rss is not None, **how)
        out = oracle.check(result, ok=ok, parts=parts, lines=lines)
        new = [m for m in c.mountinfo() if m not in before]
        out += [f"mount outside the root: {m}" for m in new if not m.split()[4].startswith(f"{arena.root}/")]
        if max_rss is not None and result.maxrss > max_rss:
            out.append(f"{result.maxrss} KiB of memory, at most {max_rss}")
        if ok is False:
            out += [f"mount left by a failed hook: {m}" for m in new]
    return out


def run(args: Sequence[str], container: FakeContainer, stage: str, *, naive: bool = False, **how: Any) -> proc.Result:
    """The hook, or the naive one under a short deadline and a memory limit."""
    if naive:
        how = {"timeout": NAIVE_LIMIT, "preexec": limited, **how, "program": NAIVE}
    return hookproc.run_hook(args, container=container, stage=STAGES[stage], **how)


def settled(arena: Arena, violations: Sequence[str]) -> list[str]:
    """Without times of directories: a temporary directory was in them for a moment, and is gone."""
    folders = [os.path.relpath(folder, arena.root) for folder, _, _ in os.walk(arena.root)]
    times = [f"rootfs: {folder!r} changed mtime" for folder in folders]
    return [v for v in violations if not v.startswith(tuple(times))]


def escapes(violations: Sequence[str]) -> list[str]:
    """Those that say that something outside the root was touched."""
    return [v for v in violations if v.startswith(("canary:", "mount outside", "host mount", "host file"))]
