"""Rows C11, D2, D13, D14 and D15: what kind of file system the root lies on.

File systems lie in files, on loop devices that the kernel frees with the mount; all of it in this mount namespace
alone. A kind whose mkfs is not installed, or that the kernel does not have, is skipped.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from lib import rootfs, session, strace
from lib.oracle import content_only, snapshot
from security import arena as arenas
from security.arena import COMPAT, GPU_NODE, LDCACHE, LIBDIR, PROFILE, Arena, attempt, settled
from security.test_faults import ALL

PLANNED = (
    "etc/ld.so.cache", "etc/ld.so.conf.d/*-nvoci.conf", f"{LIBDIR}/lib*", PROFILE, f"{COMPAT}/libcuda.so.1",
)  # fmt: skip
# kind: (options and words of mkfs before the image, its size in MiB).
MKFS: dict[str, tuple[list[str], int]] = {
    "ext4": (["mkfs.ext4", "-q"], 16),
    "ext4-no-journal": (["mkfs.ext4", "-q", "-O", "^has_journal,^64bit,^extent,^dir_index"], 16),
    "ext2": (["mkfs.ext2", "-q", "-I", "128"], 16),
    "xfs": (["mkfs.xfs", "-q"], 320),
    "btrfs": (["mkfs.btrfs", "-q"], 128),
    "vfat": (["mkfs.vfat"], 64),
}
PACKED = {"squashfs": ["mksquashfs", "{tree}", "{image}", "-quiet", "-no-progress"],
          "erofs": ["mkfs.erofs", "--quiet", "{image}", "{tree}"]}  # fmt: skip


def known(fstype: str) -> bool:
    """Whether this kernel has it."""
    return fstype in Path("/proc/filesystems").read_text().split()


def made(words: list[str]) -> None:
    """Run mkfs; skip where there is none."""
    program = shutil.which(words[0], path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if program is None:
        pytest.skip(f"{words[0]} is not installed")
    done = subprocess.run([program, *words[1:]], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@contextlib.contextmanager
def loop(image: Path, at: Path, fstype: str, options: str = "loop") -> Iterator[None]:
    at.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        ["mount", "-t", fstype, "-o", options, image, at], capture_output=True, text=True, check=False
    )
    if done.returncode and "loop device" in done.stderr:
        pytest.skip(f"no loop device: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", at], check=True)
        image.unlink(missing_ok=True)


@contextlib.contextmanager
def empty(kind: str, at: Path) -> Iterator[None]:
    """A new file system of this kind at `at`."""
    if kind == "tmpfs":
        with rootfs.tmpfs(at):
            yield
        return
    words, size = MKFS[kind]
    fstype = kind.partition("-")[0]
    if not known(fstype):
        pytest.skip(f"this kernel has no {fstype}")
    image = session.new_dir("disk") / "image"
    with open(image, "wb") as f:
        f.truncate(size << 20)
    made([*words, str(image)])
    with loop(image, at, fstype):
        yield


def stage_of(profile: str) -> str:
    """Each stage with one of the two kernels."""
    return "outside" if profile == "new" else "inside"


def works(arena: Arena, engine: str, stage: str, planned: tuple[str, ...] = PLANNED) -> list[str]:
    """The merged hook, and once more: then nothing changes."""
    options = {"setup": GPU_NODE}
    found = attempt(arena, ALL[engine], stage, ok=True, planned=planned, lines=None, container=options)
    found += ["no cache"] if (arena.root / "etc/ld.so.cache").read_bytes() == b"old cache\n" else []
    return found + attempt(arena, ALL[engine], stage, ok=True, lines=None, container=options)


# -- D14 -------------------------------------------------------------------------------------------------------------

WRITABLE = ("tmpfs", "ext4", "ext4-no-journal", "ext2", "xfs", "btrfs")
BOTH = pytest.mark.parametrize("engine", ["builtin", pytest.param("ldconfig", marks=pytest.mark.long)])


@pytest.mark.parametrize("kind", WRITABLE)
@BOTH
def test_d14_the_root_lies_on_this_file_system(profile: str, engine: str, kind: str) -> None:
    top = session.new_dir("disk")
    with empty(kind, top / "rootfs"):
        assert settled(arenas.make(top), works(arenas.make(top), engine, stage_of(profile))) == []


@contextlib.contextmanager
def overlay(lower: Path, upper: Path, at: Path, *more: str) -> Iterator[None]:
    """`upper` has the upper and work directories; "" for none: then it is read-only, with an empty second layer."""
    at.mkdir(exist_ok=True)
    for name in ("upper", "work"):
        (upper / name).mkdir(exist_ok=True)
    options = [f"lowerdir={lower}", f"upperdir={upper}/upper", f"workdir={upper}/work", *more]
    done = subprocess.run(["mount", "-t", "overlay", "-o", ",".join(options), "overlay", at], capture_output=True,
                          text=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", at], check=True)


@pytest.mark.parametrize("kind", ["tmpfs", "ext4", "xfs", "btrfs"])
def test_d14_an_overlay_whose_upper_layer_lies_on_this_file_system(profile: str, kind: str) -> None:
    """The lower layer stays as it was."""
    top = session.new_dir("disk")
    lower = arenas.make(session.new_dir("lower"))
    before = content_only(snapshot(lower.root))
    (top / "canary").mkdir()
    with empty(kind, top / "layers"), overlay(lower.root, top / "layers", top / "rootfs"):
        arena = Arena(top, top / "rootfs", top / "canary")
        assert settled(arena, works(arena, "builtin", stage_of(profile))) == []
    assert content_only(snapshot(lower.root)) == before


# -- D2 --------------------------------------------------------------------------------------------------------------


def packed(kind: str, tree: Path, at: Path) -> contextlib.AbstractContextManager[None]:
    """`tree` as a file system that cannot be written at all."""
    if not known(kind):
        pytest.skip(f"this kernel has no {kind}")
    image = session.new_dir("disk") / "image"
    made([word.format(tree=tree, image=image) for word in PACKED[kind]])
    return loop(image, at, kind, "loop,ro")


@contextlib.contextmanager
def unwritable(kind: str, arena: Arena) -> Iterator[Arena]:
    """The same image as a root that is read-only below the mount."""
    top = session.new_dir("disk")
    shutil.copytree(arena.canary, top / "canary")
    seen = Arena(top, top / "rootfs", top / "canary")
    if kind == "overlay":
        (top / "rootfs").mkdir()
        empty_layer = session.new_dir("layer")
        layers = f"lowerdir={arena.root}:{empty_layer}"
        subprocess.run(["mount", "-t", "overlay", "-o", layers, "overlay", seen.root], check=True)
        try:
            yield seen
        finally:
            subprocess.run(["umount", "-l", seen.root], check=True)
        return
    mounted: contextlib.AbstractContextManager[None]
    if kind == "ext4":
        image = session.new_dir("disk") / "image"
        made(["mkfs.ext4", "-q", "-d", str(arena.root), str(image), "16M"])
        mounted = loop(image, seen.root, "ext4", "loop,ro")
    else:
        mounted = packed(kind, arena.root, seen.root)
    with mounted:
        yield seen


@pytest.mark.parametrize("kind", ["overlay", "ext4", "squashfs", "erofs"])
@BOTH
def test_d2_an_image_that_cannot_be_written(arena: Arena, profile: str, engine: str, kind: str) -> None:
    """As on any read-only root: the cache is mounted, and what cannot be is told; with `--strict` it is an error."""
    with unwritable(kind, arena) as seen:
        options = {"setup": GPU_NODE}
        words = ALL[engine]
        stage = stage_of(profile)
        assert attempt(seen, words, stage, ok=True, lines=None, container=options) == []
        strict = [words[0], "--strict", *words[1:]]
        assert attempt(seen, strict, stage, ok=False, parts=["EROFS"], container=options) == []


@pytest.mark.parametrize("kind", ["ext4", "squashfs", "erofs"])
def test_d14_an_overlay_whose_lower_layer_cannot_be_written(arena: Arena, profile: str, kind: str) -> None:
    with unwritable(kind, arena) as lower:
        top = session.new_dir("disk")
        with overlay(lower.root, session.new_dir("layers"), top / "rootfs"):
            seen = Arena(top, top / "rootfs", arena.canary)
            assert settled(seen, works(seen, "builtin", stage_of(profile))) == []


# -- C11 -------------------------------------------------------------------------------------------------------------


def whiteouts(root: Path) -> None:
    """What the lower layer has is hidden by device 0:0, where a hook makes a file, a link, a directory."""
    for name in ("etc/ld.so.cache", "etc/ld.so.conf", "etc/hostname"):
        (root / name).unlink()
    shutil.rmtree(root / "etc/nvidia")


def opaque(root: Path) -> None:
    """Directories that were removed and made again."""
    for name in ("etc/ld.so.conf.d", "etc/nvidia", COMPAT):
        shutil.rmtree(root / name)
        (root / name).mkdir()
    (root / PROFILE).parent.mkdir()


def metacopies(root: Path) -> None:
    """Files whose inode is in the upper layer and whose content is below; and a directory that was renamed."""
    for name in ("etc/ld.so.conf", "etc/ld.so.cache", f"{LIBDIR}/libfoo.so.1.0", f"{COMPAT}/libcuda.so.600.1.2"):
        (root / name).chmod(0o600)
    with contextlib.suppress(OSError):  # EXDEV where directories are not redirected
        (root / "usr/share/nvidia").rename(root / "usr/share/moved")
        (root / "usr/share/moved").rename(root / "usr/share/nvidia")


LAYERED: dict[str, tuple[Callable[[Path], None], str]] = {
    "whiteout": (whiteouts, ""),
    "opaque": (opaque, ""),
    "metacopy": (metacopies, "metacopy=on,redirect_dir=on"),
    "xino": (metacopies, "index=on,xino=on"),
}


@pytest.mark.parametrize("kind", LAYERED)
def test_c11_an_overlay_that_has_changed_its_lower_layer(profile: str, kind: str) -> None:
    change, options = LAYERED[kind]
    lower = arenas.make(session.new_dir("lower"))
    before = content_only(snapshot(lower.root))
    top = session.new_dir("disk")
    (top / "canary").mkdir()
    with overlay(lower.root, session.new_dir("layers"), top / "rootfs", *filter(None, [options])):
        arena = Arena(top, top / "rootfs", top / "canary")
        change(arena.root)
        planned = (*PLANNED, "etc/ld.so.conf", "etc/nvidia/**") if kind == "whiteout" else PLANNED
        if kind == "whiteout":
            (arena.root / "etc/ld.so.cache").write_text("old cache\n")
        assert settled(arena, works(arena, "builtin", stage_of(profile), planned)) == []
    assert content_only(snapshot(lower.root)) == before


# -- D13, D15 --------------------------------------------------------------------------------------------------------

LACKS = {
    # As vfat answers: it has neither symbolic nor hard links, and no owners or modes to change.
    "no-links": ("symlink,symlinkat,link,linkat:error=EPERM", False),
    "no-modes": ("fchmod,fchmodat,fchownat,fchown:error=EPERM", False),
    "no-xattrs": ("fsetxattr,setxattr,fgetxattr,flistxattr:error=EOPNOTSUPP", True),
    # As file systems answer that cannot exchange two names, and kernels that do not know the call.
    "no-renameat2": ("renameat2:error=EINVAL", True),
    "no-renameat2-call": ("renameat2:error=ENOSYS", True),
    "no-locks": ("flock:error=ENOLCK", None),
    "no-fsync": ("fsync,fdatasync,syncfs:error=EINVAL", True),
}


@pytest.mark.parametrize("what", LACKS)
def test_d15_a_file_system_that_lacks_something(arena: Arena, what: str) -> None:
    """Stood in for by strace: done by another way, or one error that leaves the root as it was."""
    inject, ok = LACKS[what]
    prefix = [*strace.QUIET, "-e", f"inject={inject}"]
    found = attempt(arena, ALL["builtin"], "inside", ok=ok, planned=PLANNED if ok is not False else (), lines=None,
                    container={"setup": GPU_NODE}, prefix=prefix)  # fmt: skip
    assert settled(arena, found) == []
    assert settled(arena, works(arena, "builtin", "inside")) == []  # nothing is in the way of the next run


def test_d13_vfat_is_one_error_or_what_it_can_do(profile: str) -> None:
    top = session.new_dir("disk")
    with empty("vfat", top / "rootfs"):
        rootfs.tree(top / "rootfs", f"dir proc\ndir dev\ndir etc\ndir {LIBDIR}\nfile etc/ld.so.conf /usr/lib\\n")
        (top / "canary").mkdir()
        arena = Arena(top, top / "rootfs", top / "canary")
        link = ["create-symlinks", "--link", "x::/usr/lib/new"]
        assert settled(arena, attempt(arena, link, stage_of(profile), ok=False, parts=["EPERM"])) == []
        words = LDCACHE["builtin"]
        assert attempt(arena, words, stage_of(profile), planned=["etc/**"], lines=None) == []
