"""Rows E1 to E15: what kind of image it is. The merged hook starts it, twice, and the second time changes nothing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from lib import driver, elfmaker, rootfs, session
from security import arena as arenas
from security.arena import COMPAT, ENGINES, GPU_NODE, LDCACHE, LIBDIR, PROFILE, Arena, attempt, settled
from security.test_faults import ALL

PLANNED = (
    "etc", "etc/ld.so.c*", "etc/ld.so.conf.d/*-nvoci.conf", f"{LIBDIR}/lib*", "usr/lib/lib*", PROFILE, "etc/nvidia/**",
    f"{COMPAT}/libcuda.so.1", "opt/**", "usr", "usr/lib/**", "lib", "lib/**", "etc/ld-musl-*.path",
)  # fmt: skip
Shape = Callable[[Arena], None]


def stage_of(profile: str) -> str:
    """Each stage with one of the two kernels."""
    return "outside" if profile == "new" else "inside"


def cache(arena: Arena) -> bytes:
    return (arena.root / "etc/ld.so.cache").read_bytes()


def emptied(arena: Arena, *names: str) -> None:
    for name in names:
        path = arena.root / name
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)


def musl(arena: Arena) -> None:
    emptied(arena, "etc/ld.so.conf", "etc/ld.so.conf.d", "etc/ld.so.cache", "etc/debian_version")
    rootfs.tree(
        arena.root, "file etc/alpine-release 3.19.0\\n\nfile etc/ld-musl-x86_64.path /own/lib:/lib\\n/usr/lib\\n"
    )


def distroless(arena: Arena) -> None:
    """Libraries, no shell, no configuration of the loader."""
    emptied(
        arena, "etc/ld.so.conf", "etc/ld.so.conf.d", "etc/ld.so.cache", "tmp", "usr/share", "etc/nvidia", "usr/local"
    )


def scratch(arena: Arena) -> None:
    """One static program, and what the runtime mounts on."""
    emptied(arena, "etc", "usr", "lib", "tmp", "sys")
    rootfs.tree(arena.root, "exec app x")


def foreign(arena: Arena) -> None:
    for machine in ("aarch64", "i386"):
        elfmaker.make_so(arena.root / f"usr/lib/lib{machine}.so.1.0", f"lib{machine}.so.1", machine=machine)


def own_driver(arena: Arena) -> None:
    """An older libcuda as a file, a newer one behind a link, and one under the very name of the development link."""
    folder = arena.root / LIBDIR
    for version in ("470.82.01", "999.1"):
        elfmaker.make_so(folder / f"libcuda.so.{version}", "libcuda.so.1", machine="x86_64")
    rootfs.tree(arena.root, f"symlink {LIBDIR}/libcuda.so.1 libcuda.so.470.82.01")


SHAPES: dict[str, Shape] = {
    "E1-no-etc": lambda arena: emptied(arena, "etc"),
    "E2-no-cache-no-conf": lambda arena: emptied(arena, "etc/ld.so.cache", "etc/ld.so.conf", "etc/ld.so.conf.d"),
    "E3-musl": musl,
    "E4-distroless": distroless,
    "E5-scratch": scratch,
    "E7-foreign": foreign,
    "E8-own-driver": own_driver,
    "E9-ld.so.preload": lambda arena: nothing_runs(arena, "etc/ld.so.preload", "/evil.so /nowhere.so"),
    "E15-tunables.conf": lambda arena: nothing_runs(arena, "etc/tunables.conf", "glibc.malloc.check=3\\nglibc.rtld=x"),
}


def nothing_runs(arena: Arena, name: str, text: str) -> None:
    rootfs.tree(arena.root, f"file {name} {text}\\n\nexec evil.so not a library")


def twice(arena: Arena, words: list[str], stage: str, container: Mapping[str, Any] | None = None) -> list[str]:
    options = {"setup": GPU_NODE} if container is None else dict(container)
    found = attempt(arena, words, stage, ok=True, planned=PLANNED, lines=0, container=options)
    return found + attempt(arena, words, stage, ok=True, lines=0, container=options)


LDCONFIG_TOO = ("E4-distroless", "E9-ld.so.preload", "E15-tunables.conf")
CASES = [
    pytest.param(shape, engine, marks=[] if engine == "builtin" or shape in LDCONFIG_TOO else pytest.mark.long)
    for shape in SHAPES
    for engine in ENGINES
]


@pytest.mark.parametrize(("shape", "engine"), CASES)
def test_an_image_of_this_shape_starts(arena: Arena, profile: str, engine: str, shape: str) -> None:
    """Nothing of it is executed, no line is said, and its own files stay."""
    SHAPES[shape](arena)
    words = list(ALL[engine])
    assert settled(arena, twice(arena, words, stage_of(profile))) == []
    found = {name: name.encode() + b"\0" in cache(arena) for name in ("libfoo.so.1", "libaarch64.so.1")}
    # Where Debian's loader is not, nothing looks into its directory; the host's ldconfig does, if that is Debian's.
    looked_at = found["libfoo.so.1"] if engine == "ldconfig" else (arena.root / "etc/debian_version").exists()
    assert found == {"libfoo.so.1": looked_at, "libaarch64.so.1": False}
    if shape.startswith("E3"):
        path = (arena.root / "etc/ld-musl-x86_64.path").read_text().replace(":", "\n").split()
        assert path[:3] == ["/own/lib", "/lib", "/usr/lib"]
        assert len(path) == len(set(path))


def test_naive_an_image_without_etc_does_not_start(arena: Arena) -> None:
    emptied(arena, "etc", "usr/lib")
    assert attempt(arena, LDCACHE["builtin"], naive=True, ok=True, planned=PLANNED)


# -- E10 -------------------------------------------------------------------------------------------------------------

# (versions of the image's libcuda, whether the drop-in is made on a host of driver 550).
COMPATS: dict[str, tuple[tuple[str, ...], bool]] = {
    "newer": (("600.1.2",), True),
    "older": (("470.1.2",), False),
    "same": (("550.54.15",), False),
    "two": (("600.1.2", "610.1.2"), False),
    "not-a-version": (("600.x",), False),
    "huge": ((f"{'9' * 30}.1",), False),
    "path": (("600.1.2\n/evil",), False),
    "none": ((), False),
}


@pytest.mark.parametrize("case", COMPATS)
def test_e10_compat_libraries_are_configured_and_never_mounted(arena: Arena, profile: str, case: str) -> None:
    versions, wanted = COMPATS[case]
    shutil.rmtree(arena.root / COMPAT)
    (arena.root / COMPAT).mkdir(parents=True)
    for version in versions:
        if "/" not in version:
            driver.compat_library(arena.root / COMPAT, version)
    words = ["run", "--", "enable-cuda-compat", "--host-driver-version", "550.54.15", "--", *LDCACHE["builtin"]]
    mounts: list[str] = []
    found = attempt(arena, words, stage_of(profile), ok=True, planned=PLANNED, lines=1,
                    during=lambda c: mounts.extend(c.mountinfo()))  # fmt: skip
    assert found == []
    assert (arena.root / "etc/ld.so.conf.d/00-compat-nvoci.conf").exists() == wanted
    assert not any(COMPAT in line for line in mounts)


# -- E11, E12 --------------------------------------------------------------------------------------------------------


def crowd(folder: Path, count: int) -> None:
    """`count` names in one directory, one inode for most of them."""
    first = elfmaker.make_so(folder / "libmany.so.1.0", "libmany.so.1", machine="x86_64")
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    for n in range(count):
        if n % 10 == 0:
            os.close(os.open(f"file{n}", os.O_CREAT | os.O_WRONLY, 0o644, dir_fd=fd))
        else:
            os.symlink(first.name, f"liblink{n}.so.1", dir_fd=fd)
    os.close(fd)


LIMITS = {"20,000": (20_000, 96 << 10, 8.0), "1,000,000": (999_000, 1 << 20, 60.0)}


@pytest.mark.parametrize("size", ["20,000", pytest.param("1,000,000", marks=pytest.mark.long)])
def test_e11_a_crowded_directory_takes_bounded_time_and_memory(size: str) -> None:
    """One answer: the libraries, or one error that names the directory."""
    count, memory, seconds = LIMITS[size]
    top = session.new_dir("crowd")
    with rootfs.tmpfs(top / "rootfs", "size=2g,nr_inodes=0"):
        arena = arenas.make(top)
        crowd(arena.root / LIBDIR, count)
        found = attempt(arena, LDCACHE["builtin"], "inside", still=False, max_wall=seconds, timeout=2 * seconds,
                        max_rss=memory)  # fmt: skip
        assert found == []


def test_e12_ten_thousand_configured_directories(arena: Arena, profile: str) -> None:
    lines = "".join(f"/opt/{n}\\n" for n in range(10_000))
    rootfs.tree(arena.root, f"file etc/ld.so.conf.d/many.conf {lines}")
    found = attempt(arena, ALL["builtin"], stage_of(profile), ok=True, planned=PLANNED, lines=0, max_rss=96 << 10,
                    container={"setup": GPU_NODE})  # fmt: skip
    assert found == []
    assert b"libfoo.so.1\0" in cache(arena)


# -- E13, E14 --------------------------------------------------------------------------------------------------------

WITHOUT: dict[str, dict[str, Any]] = {
    "dev": {"dev": False},
    "proc": {"proc_mount": False, "setup": GPU_NODE},
    "dev-and-proc": {"dev": False, "proc_mount": False},
}


@pytest.mark.parametrize("what", WITHOUT)
@pytest.mark.parametrize(
    "kept", [pytest.param(True, id="empty", marks=pytest.mark.long), pytest.param(False, id="gone")]
)
def test_e13_a_container_without_the_usual_mounts(arena: Arena, profile: str, what: str, kept: bool) -> None:
    """The hook has a procfs and a /dev of its own; of the image's it needs none."""
    missing = [name for name in ("dev", "proc") if name in what]
    emptied(arena, *([] if kept else [*missing, "sys"]))
    assert settled(arena, twice(arena, ALL["builtin"], stage_of(profile), WITHOUT[what])) == []


@pytest.mark.parametrize("root", ["/", "//", "/.", "/tmp/..", "/proc/self/root", "/proc/1/root/"])
def test_e14_the_hosts_own_root_is_refused(arena: Arena, profile: str, root: str) -> None:
    found = attempt(arena, ALL["builtin"], stage_of(profile), ok=False, parts=["root"], change={"root": root})
    assert found == []
