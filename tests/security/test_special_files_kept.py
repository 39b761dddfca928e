"""Rows C2, C6, C7, C9, C10, C12 and C13: files that never end, belong to two places, may not be changed, or that only
a server could answer for; and what must be kept of those that are not in the plan."""

from __future__ import annotations

import array
import fcntl
import os
import shlex
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from lib import rootfs, session, silentfuse
from lib.oracle import TEMPORARY
from security.arena import COMPAT, ENGINES, GPU_NODE, LDCACHE, LIBDIR, PROFILE, STAGES, Arena, attempt, settled
from security.test_faults import ALL
from security.test_special_files import CACHE_FILES, PLACES, REPLACED

PLANNED = (*CACHE_FILES, "etc/ld.so.conf.d/*-nvoci.conf", f"{LIBDIR}/libcuda.so", f"{COMPAT}/libcuda.so.1", PROFILE)
READ = (
    "ld.so.conf", "ld.so.conf.d", "ld.so.cache", "drop-in", "library", "debian_version", "compat-library", "profile",
    "chmod",
)  # fmt: skip


def stage_of(profile: str) -> str:
    """Each stage with one of the two kernels."""
    return "outside" if profile == "new" else "inside"


def words_of(place: str) -> tuple[list[str], str]:
    args, path = PLACES[place]
    return args or LDCACHE[ENGINES[0]], path


# -- C2 --------------------------------------------------------------------------------------------------------------


@contextmanager
def dripping(path: Path) -> Iterator[None]:
    """Somebody has the FIFO open and writes a byte now and then."""
    fd = os.open(path, os.O_RDWR | os.O_NONBLOCK)
    os.write(fd, b"/")
    done = threading.Event()

    def write() -> None:
        while not done.wait(0.2):
            os.write(fd, b"/")

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        os.close(fd)


@pytest.mark.parametrize("place", READ)
def test_c2_a_fifo_with_a_slow_writer_holds_nobody(arena: Arena, profile: str, place: str) -> None:
    """And nothing is taken from it."""
    words, path = words_of(place)
    rootfs.tree(arena.root, f"fifo {path}")
    planned = [p for p in PLANNED if p != path]
    with dripping(arena.root / path):
        found = attempt(arena, words, stage_of(profile), planned=planned, container={"setup": GPU_NODE}, max_wall=3.0,
                        lines=2)  # fmt: skip
        with open(os.open(arena.root / path, os.O_RDONLY | os.O_NONBLOCK), "rb", buffering=0) as f:
            left = array.array("i", [0])
            fcntl.ioctl(f, 0x541B, left)  # FIONREAD, asm-generic/ioctls.h
            assert left[0] > 0
    # What writes to a FIFO changes its time; chmod is asked to change its mode.
    changed = tuple(f"rootfs: {path!r} changed {what}" for what in ("mtime", "mode")[: 1 + (place == "chmod")])
    assert [v for v in settled(arena, found) if not v.startswith(changed)] == []
    assert stat.S_ISFIFO(os.lstat(arena.root / path).st_mode)


@pytest.mark.parametrize("place", ["ld.so.conf", "library", "compat-library"])
def test_naive_c2_a_fifo_with_a_slow_writer_holds_the_hook(arena: Arena, place: str) -> None:
    words, path = words_of(place)
    rootfs.tree(arena.root, f"fifo {path}")
    with dripping(arena.root / path):
        assert attempt(arena, words, naive=True, planned=PLANNED, lines=None)


# -- C6 --------------------------------------------------------------------------------------------------------------

ENDLESS = {"C6-zero": "/dev/zero", "C6-kmsg": "/proc/kmsg", "C6-mem": "/proc/self/mem", "C6-pagemap": "/proc/1/pagemap",
           "C6-dev-kmsg": "/dev/kmsg"}  # fmt: skip
NODES = GPU_NODE + 'mknod "$R/dev/zero" c 1 5\nmknod "$R/dev/kmsg" c 1 11\n'


OFTEN = ("C6-zero", "C6-kmsg", "C6-mem")
KINDS = [pytest.param(kind, marks=[] if kind in OFTEN else pytest.mark.long) for kind in ENDLESS]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("place", [p for p in READ if p != "chmod"])
def test_c6_a_link_to_what_never_ends_is_not_read(arena: Arena, place: str, kind: str) -> None:
    """Where a file of ours belongs the link is replaced; the image's own links stay."""
    words, path = words_of(place)
    rootfs.tree(arena.root, f"symlink {path} {ENDLESS[kind]}")
    planned = [p for p in PLANNED if p != path or place in REPLACED]
    stage = "outside" if kind == "C6-mem" else "inside"
    found = attempt(arena, words, stage, planned=planned, lines=None, max_wall=3.0, max_rss=64 << 10,
                    container={"setup": NODES})  # fmt: skip
    assert settled(arena, found) == []


@pytest.mark.parametrize("place", ["library", "compat-library"])
def test_naive_c6_a_link_to_what_never_ends_is_read(arena: Arena, place: str) -> None:
    words, path = words_of(place)
    rootfs.tree(arena.root, f"symlink {path} /dev/zero")
    assert attempt(arena, words, naive=True, planned=PLANNED, lines=None)


# -- C7 --------------------------------------------------------------------------------------------------------------

TARGETS = ("etc/ld.so.cache", "etc/ld.so.conf.d/zz-nvcr-nvoci.conf", "etc/ld.so.conf.d/00-compat-nvoci.conf", PROFILE,
           f"{LIBDIR}/libcuda.so")  # fmt: skip


def test_c7_one_inode_in_the_place_of_every_file_of_ours(arena: Arena, profile: str, engine: str) -> None:
    """Each name gets a file of its own, and the file whose other names they were stays what it was."""
    rootfs.tree(arena.root, "\n".join(f"hardlink {name} etc/hostname" for name in TARGETS))
    before = os.lstat(arena.root / "etc/hostname")
    assert attempt(arena, ALL[engine], stage_of(profile), ok=True, planned=PLANNED, lines=None,
                   container={"setup": GPU_NODE}) == []  # fmt: skip
    after = os.lstat(arena.root / "etc/hostname")
    assert ((arena.root / "etc/hostname").read_text(), after.st_ino, after.st_mode) == (
        "image\n", before.st_ino, before.st_mode,
    )  # fmt: skip
    assert len({os.lstat(arena.root / name).st_ino for name in TARGETS}) == len(TARGETS)
    assert after.st_nlink == 1


def test_naive_c7_one_inode_is_written_by_its_other_name(arena: Arena) -> None:
    rootfs.tree(arena.root, f"hardlink {PROFILE} etc/hostname")
    found = attempt(arena, ["update-application-profile"], naive=True, planned=[PROFILE],
                    container={"setup": GPU_NODE})  # fmt: skip
    assert any("etc/hostname" in v for v in found)


def test_c7_chmod_of_one_name_is_chmod_of_the_inode(arena: Arena, profile: str) -> None:
    """As chmod(1): there is but one mode."""
    rootfs.tree(arena.root, "hardlink usr/share/nvidia/file etc/hostname")
    words = ["chmod", "--mode", "640", "--path", "/usr/share/nvidia/file"]
    assert attempt(arena, words, stage_of(profile), ok=True, planned=["usr/share/nvidia/file", "etc/hostname"]) == []
    assert stat.S_IMODE(os.lstat(arena.root / "etc/hostname").st_mode) == 0o640


# -- C9 --------------------------------------------------------------------------------------------------------------

# linux/fs.h
FS_IOC_GETFLAGS, FS_IOC_SETFLAGS = 0x80086601, 0x40086602
FLAGS = {"immutable": 0x10, "append-only": 0x20}
PROTECTED = {
    "cache": (LDCACHE["builtin"], "etc/ld.so.cache"),
    "drop-in": (LDCACHE["builtin"], "etc/ld.so.conf.d/zz-nvcr-nvoci.conf"),
    "conf.d": (LDCACHE["builtin"], "etc/ld.so.conf.d"),
    "etc": (LDCACHE["builtin"], "etc"),
    "libraries": (LDCACHE["builtin"], LIBDIR),
    "profile": (["update-application-profile"], PROFILE),
    "profiles": (["update-application-profile"], str(Path(PROFILE).parent)),
    "link": (["create-symlinks", "--link", "x::/usr/share/nvidia/file"], "usr/share/nvidia/file"),
    "link-parent": (["create-symlinks", "--link", "x::/usr/share/nvidia/new"], "usr/share/nvidia"),
    "merged": (ALL["builtin"], "etc/ld.so.cache"),
}


@contextmanager
def flagged(path: Path, flag: int) -> Iterator[None]:
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        flags = array.array("i", [0])
        fcntl.ioctl(fd, FS_IOC_GETFLAGS, flags)
        old = flags[0]
        fcntl.ioctl(fd, FS_IOC_SETFLAGS, array.array("i", [old | flag]))
    except OSError as e:
        os.close(fd)
        pytest.skip(f"no attributes on this file system: {e}")
    try:
        yield
    finally:
        fcntl.ioctl(fd, FS_IOC_SETFLAGS, array.array("i", [old]))
        os.close(fd)


def protected(place: str, arena: Arena) -> tuple[list[str], Path]:
    words, path = PROTECTED[place]
    if not (arena.root / path).exists():
        rootfs.tree(arena.root, f"file {path} old")
    return words, arena.root / path


FOLDERS = ("conf.d", "etc", "libraries", "profiles", "link-parent")
CASES = [(place, flag) for place in PROTECTED for flag in FLAGS if place not in FOLDERS or flag == "immutable"]


@pytest.mark.parametrize(("place", "flag"), CASES)
def test_c9_what_may_not_be_changed_is_one_error_and_everything_is_as_it_was(
    arena: Arena, profile: str, place: str, flag: str
) -> None:
    words, path = protected(place, arena)
    with flagged(path, FLAGS[flag]):
        found = attempt(arena, words, stage_of(profile), ok=False, parts=["EPERM"], container={"setup": GPU_NODE})
    assert settled(arena, found) == []


@pytest.mark.parametrize("place", FOLDERS)
def test_c9_a_directory_that_only_takes_more_keeps_the_temporary_one_until_it_may_go(
    arena: Arena, profile: str, place: str
) -> None:
    """What is new can be made there, what is old cannot be replaced, and nothing can be removed."""
    words, path = protected(place, arena)
    with flagged(path, FLAGS["append-only"]):
        found = attempt(arena, words, stage_of(profile), lines=None, container={"setup": GPU_NODE},
                        planned=[*PLANNED, "usr/share/nvidia/new"])  # fmt: skip
    left = [v for v in found if "temporary left" in v]
    assert len(left) <= 2
    assert [v for v in settled(arena, found) if TEMPORARY not in v] == []
    assert attempt(arena, words, stage_of(profile), ok=True, lines=None, container={"setup": GPU_NODE},
                   planned=[*PLANNED, "usr/share/nvidia/new", "**/.nvoci-tmp*", "*/.nvoci-tmp*"]) == []  # fmt: skip
    assert not list(path.glob(f"{TEMPORARY}*"))


# -- C10 -------------------------------------------------------------------------------------------------------------

# struct vfs_cap_data (linux/capability.h): revision 2, permitted = cap_net_raw.
CAPABILITY = bytes.fromhex("0100000200200000000000000000000000000000")


def test_c10_modes_and_attributes_of_the_image_are_kept(arena: Arena, profile: str, engine: str) -> None:
    """The oracle compares modes, owners and extended attributes; root reads files of mode 0000."""
    rootfs.tree(arena.root, "file usr/bin/ping x\nfile usr/bin/su x\nmode etc/ld.so.conf 0\nmode etc/debian_version 0\n"
                f"mode etc/ld.so.conf.d/libc.conf 0\nmode {LIBDIR}/libfoo.so.1.0 6751\nowner usr/bin/su 7 8\n"
                "mode usr/bin/su 6755\nmode etc/hostname 0\nmode etc/ld.so.conf.d 1700")  # fmt: skip
    for name in ("usr/bin/ping", f"{LIBDIR}/libfoo.so.1.0"):
        os.setxattr(arena.root / name, "security.capability", CAPABILITY)
        os.setxattr(arena.root / name, "trusted.image", b"\0\xff")
    assert attempt(arena, ALL[engine], stage_of(profile), ok=True, planned=PLANNED, lines=None,
                   container={"setup": GPU_NODE}) == []  # fmt: skip
    assert b"libfoo.so.1\0" in (arena.root / "etc/ld.so.cache").read_bytes()


@pytest.mark.parametrize("mode", ["0", "6755", "4777", "1000"])
def test_c10_what_replaces_a_file_has_neither_its_setuid_bit_nor_its_attributes(
    arena: Arena, profile: str, mode: str
) -> None:
    rootfs.tree(arena.root, f"mode etc/ld.so.cache {mode}\nfile etc/ld.so.conf.d/zz-nvcr-nvoci.conf x\n"
                f"mode etc/ld.so.conf.d/zz-nvcr-nvoci.conf {mode}")  # fmt: skip
    os.setxattr(arena.root / "etc/ld.so.cache", "security.capability", CAPABILITY)
    assert attempt(arena, LDCACHE["builtin"], stage_of(profile), ok=True, planned=PLANNED) == []
    for name in ("etc/ld.so.cache", "etc/ld.so.conf.d/zz-nvcr-nvoci.conf"):
        assert stat.S_IMODE(os.lstat(arena.root / name).st_mode) == 0o644
        assert "security.capability" not in os.listxattr(arena.root / name)


# -- C12 -------------------------------------------------------------------------------------------------------------

SILENT = {"usr/lib": LDCACHE["builtin"], "etc": LDCACHE["builtin"], COMPAT: PLACES["compat-library"][0],
          "usr/share/nvidia": ["create-symlinks", "--link", "x::/usr/share/nvidia/a/b"]}  # fmt: skip
_IMPATIENT = """\
import sys
sys.path.insert(0, {hooks!r})
from nvoci.hook import watchdog
from nvoci.hook.main import cdi_hook
watchdog.GRACE = 0.2
watchdog.KILL_AFTER = 0.5
cdi_hook()
"""


def impatient() -> Path:
    path = session.new_dir("entry") / "nvidia-cdi-hook"
    path.write_text(_IMPATIENT.format(hooks=str(session.HOOKS)))
    return path


@pytest.mark.parametrize("path", SILENT)
def test_c12_a_server_that_never_answers_does_not_hold_the_runtime(arena: Arena, profile: str, path: str) -> None:
    """SIGKILL is all that this wait lets through: no error line then, but an end."""
    words = [SILENT[path][0], "--timeout", "0.3", *SILENT[path][1:]]
    found = attempt(arena, words, stage_of(profile), lines=None, timeout=8.0, max_wall=4.0, program=impatient(),
                    container={"setup": silentfuse.setup(arena.root / path, "deaf")})  # fmt: skip
    assert settled(arena, found) == []


# -- C13 -------------------------------------------------------------------------------------------------------------

# Mounts an automount trigger that waits for its daemon, which only writes down that it was asked.
_AUTOFS = """\
import ctypes, os, sys
point, told = sys.argv[1:]
read, write = os.pipe()
os.setpgid(0, 0)
libc = ctypes.CDLL(None, use_errno=True)
data = f"fd={write},pgrp={os.getpgrp()},minproto=5,maxproto=5,direct".encode()
if libc.mount(b"automount", point.encode(), b"autofs", 0, data):
    sys.exit(f"mount autofs: errno {ctypes.get_errno()}")
if os.fork():
    os._exit(0)
os.close(write)
while os.read(read, 4096):
    open(told, "a").write("asked\\n")
"""


def autofs(point: Path, told: Path) -> str:
    words = [os.path.realpath("/usr/bin/python3"), "-ISBc", _AUTOFS, str(point), str(told)]
    return shlex.join(words) + " </dev/null >/dev/null\n"


@pytest.fixture
def told() -> Path:
    if "autofs" not in Path("/proc/filesystems").read_text():
        pytest.skip("this kernel has no autofs")
    return session.new_dir("autofs") / "told"


@pytest.mark.parametrize("place", ["ld.so.conf.d", "compat-library", "soname", "debian_version"])
def test_c13_an_automount_trigger_in_the_place_of_a_file_is_not_triggered(
    arena: Arena, told: Path, profile: str, place: str
) -> None:
    """In the container's pid namespace: from another one the kernel never asks this daemon."""
    words, path = words_of(place)
    rootfs.tree(arena.root, f"dir {path}")
    found = attempt(arena, words, "inside", planned=[p for p in PLANNED if p != path], lines=None,
                    container={"setup": autofs(arena.root / path, told)}, max_wall=3.0)  # fmt: skip
    assert settled(arena, found) == []
    assert not told.exists()


def test_c13_a_trigger_that_must_be_passed_is_an_error_in_time(arena: Arena, told: Path, profile: str) -> None:
    """Below it nothing can be found without its daemon, which does not answer. openat2 asks it, and is ended by the
    deadline; the walk, which opens each component with O_PATH, finds a directory in which nothing can be made."""
    rootfs.tree(arena.root, "dir usr/share/auto")
    words = ["create-symlinks", "--timeout", "0.3", "--link", "x::/usr/share/auto/a/b"]
    container = {"setup": autofs(arena.root / "usr/share/auto", told)}
    for stage in STAGES:
        found = attempt(arena, words, stage, ok=False, lines=None, max_wall=4.0, timeout=8.0, program=impatient(),
                        container=container)  # fmt: skip
        assert settled(arena, found) == []
    assert told.exists() == (profile == "new")
