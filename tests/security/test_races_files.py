"""Rows B4 and B6 to B10: host files that flip, files cut off while they are read, directories carried out of the root,
links that change between two runs, and a neighbour at our temporaries."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from kernel import namespaced
from kernel.namespaced import KERNELS, Kernel
from lib import rootfs
from lib.flipper import Flipper
from lib.oracle import Oracle
from security import racing
from security.arena import COMPAT, LDCACHE, LIBDIR, Arena, attempt
from security.racing import Tally
from security.test_paths import COMPAT_ARGS, LINK
from security.test_races import rounds

from nvoci.discover.inventory import Stale
from nvoci.discover.model import DeviceNode
from nvoci.linux import lookup, procfs
from nvoci.prestart.hostfiles import Host

NEW, OLD = KERNELS[0], KERNELS[3]
KERNEL = pytest.mark.parametrize("kernel", [NEW, OLD], ids=lambda kernel: kernel.name)


def count(kernel: Kernel, long: bool) -> int:
    return rounds("new" if kernel is NEW else "compat", long=long)


# -- B4: a source under the driver root -------------------------------------------------------------------------------

SOURCES = {
    "a link out": "symlink usr/lib/other {canary}/secret",
    "a link out, relative": "symlink usr/lib/other ../../../../../../../../..{canary}/secret",
    "another file": "file usr/lib/other other",
    "a FIFO": "fifo usr/lib/other",
    "a directory": "dir usr/lib/other",
}


@KERNEL
@pytest.mark.parametrize("kind", SOURCES)
def test_b4_what_was_opened_under_the_driver_root_is_what_is_mounted(
    arena: Arena, kernel: Kernel, kind: str, long: bool
) -> None:
    """It is a regular file of the driver root, and the handle that was judged is the one that is mounted."""
    spec = "file usr/lib/libx.so.1 driver\n" + SOURCES[kind].format(canary=arena.canary)
    driver = rootfs.tree(arena.top / "driver", spec)
    right = {os.stat(driver / "usr/lib/libx.so.1").st_ino}
    if kind == "another file":
        right.add(os.stat(driver / "usr/lib/other").st_ino)

    def body() -> tuple[int, list[str]]:
        kernel.start()
        procfs._handle = -1
        opened: list[int] = []
        bad: list[str] = []
        for _ in racing.tries(count(kernel, long), lambda: bool(opened)):
            with Host(str(driver)) as host:
                try:
                    source = host.file(f"{driver}/usr/lib/libx.so.1")
                except Stale:
                    continue
                opened.append(source.st.st_ino)
                if source.st.st_ino not in right or os.fstat(source.object.fileno()).st_ino != source.st.st_ino:
                    bad.append(source.path)
                source.close()
        return len(opened), bad

    with Flipper(driver / "usr/lib/libx.so.1", driver / "usr/lib/other") as flipper:
        opened, bad = namespaced.isolated(body, limit=900)
        assert flipper.rounds > 50
    assert bad == []
    assert opened > 0


@KERNEL
def test_b4_a_node_that_flips_has_its_number_or_is_not_given(arena: Arena, kernel: Kernel, long: bool) -> None:
    driver = rootfs.tree(arena.top / "driver", "char dev/nvidia0 195 0\nchar dev/other 1 5")
    path = f"{driver}/dev/nvidia0"
    node = DeviceNode(host_path=path, container_path=path, kind="gpu", type="c", major=195, minor=0)

    def body() -> tuple[int, int, list[int]]:
        kernel.start()
        procfs._handle = -1
        opened: list[int] = []
        stale: list[int] = []
        bad: list[int] = []
        for _ in racing.tries(count(kernel, long), lambda: bool(opened and stale)):
            with Host(str(driver)) as host:
                try:
                    source = host.node(node)
                except Stale:
                    stale.append(0)
                    continue
                number = os.fstat(source.object.fileno()).st_rdev
                opened.append(number)
                if number != os.makedev(195, 0) or str(source.rule) != "c 195:0 rw":
                    bad.append(number)
                source.close()
        return len(opened), len(stale), bad

    with Flipper(driver / "dev/nvidia0", driver / "dev/other"):
        opened, stale, bad = namespaced.isolated(body, limit=900)
    assert bad == []
    assert opened > 0
    assert stale > 0


# -- B6: cut off while it is read -------------------------------------------------------------------------------------

CUT = {
    "ld.so.cache": ("etc/ld.so.cache", "builtin"),
    "ld.so.conf": ("etc/ld.so.conf", "builtin"),
    "library": (f"{LIBDIR}/libfoo.so.1.0", "builtin"),
    "compat-library": (f"{COMPAT}/libcuda.so.600.1.2", "compat"),
    "library-ldconfig": (f"{LIBDIR}/libfoo.so.1.0", "ldconfig"),
}


def cutter(path: Path) -> Callable[[], None]:
    """A body that cuts the file off at ever other places, and makes it whole again."""
    whole = path.read_bytes()
    step = [0]

    def body() -> None:
        step[0] = (step[0] * 5 + 7) % (len(whole) + 1)
        fd = os.open(path, os.O_WRONLY)
        os.ftruncate(fd, step[0])
        os.pwrite(fd, whole, 0)
        os.close(fd)

    return body


@pytest.mark.parametrize("what", CUT)
def test_b6_a_file_that_is_cut_off_while_it_is_read(arena: Arena, profile: str, what: str, long: bool) -> None:
    """Read and not mapped: no SIGBUS. ldconfig maps; what becomes of it is one error, and nothing is left."""
    path, how = CUT[what]
    if what == "ld.so.cache":
        (arena.root / path).unlink()
        assert attempt(arena, LDCACHE["builtin"], ok=True, still=False) == []
        (arena.root / LIBDIR / "libfoo.so.1").unlink()
    words = COMPAT_ARGS if how == "compat" else LDCACHE[how]

    def body() -> Tally:
        namespaced.Kernel("race", () if profile == "new" else ("openat2",)).start()
        os.umask(0)
        procfs.handle()
        return racing.until(rounds(profile, long=long), lambda: racing.hook_once(arena.root, words))

    with namespaced.forked(cutter(arena.root / path)), Oracle(arena.canary) as oracle:
        if how == "ldconfig":
            for _ in range(20 if long else 3):
                assert attempt(arena, words, "outside", still=False, max_wall=8.0) == []
        else:
            tally = namespaced.isolated(body, limit=900)
            assert tally.done > 0
            assert tally.worst < 5
        assert oracle.check() == []


# -- B7: carried out of the root ---------------------------------------------------------------------------------------


def carried(arena: Arena) -> tuple[Path, Path]:
    """a/b of the root and a directory outside change places; above each of them is a `file`."""
    rootfs.tree(arena.root, "dir a/b/c\nfile file image\nfile a/file image")
    rootfs.tree(arena.canary, "dir b/c\nfile file host")
    (arena.top / "file").write_text("host")
    return arena.root / "a/b", arena.canary / "b"


def kernels_dots(root: int, path: bytes) -> int:
    """The naive walk: `..` is what the kernel says it is."""
    here = os.dup(root)
    for name in path.split(b"/"):
        there = os.open(name, os.O_PATH | os.O_NOFOLLOW, dir_fd=here)
        os.close(here)
        here = there
    return here


def look_up(arena: Arena, profile: str, total: int, find: Callable[[int, bytes], int] | None = None) -> tuple[int, int]:
    """(how often a file of the image was found, how often one of the host's)."""
    a, b = carried(arena)
    images = {os.stat(arena.root / name).st_ino for name in ("file", "a/file")}

    def body() -> tuple[int, int]:
        namespaced.Kernel("race", () if profile == "new" else ("openat2",)).start()
        procfs.handle()
        top, found = os.open(arena.root, os.O_PATH), [0, 0]
        for n in racing.tries(total, lambda: found[0] > 0 and (find is None or found[1] > 0)):
            path = (b"a/b/c/../../../file", b"a/b/../file", b"a/b/c/../../file")[n % 3]
            try:
                fd = (find or lookup.lookup)(top, path)
            except OSError:
                continue
            found[os.fstat(fd).st_ino not in images] += 1
            os.close(fd)
        return found[0], found[1]

    with Flipper(a, b):
        answer: tuple[int, int] = namespaced.isolated(body, limit=900)
        return answer


def test_b7_a_directory_that_is_carried_out_while_it_is_walked(arena: Arena, profile: str, long: bool) -> None:
    images, hosts = look_up(arena, profile, 10 * rounds(profile, long=long))
    assert hosts == 0
    assert images > 0


def test_naive_b7_dots_lead_out(arena: Arena) -> None:
    assert look_up(arena, "new", 20_000, kernels_dots)[1] > 0


# -- B8: changed between two runs -------------------------------------------------------------------------------------

ALL = ["run", "--", *LINK, "--", *COMPAT_ARGS, "--", *LDCACHE["builtin"]]
OURS = {
    "link": (f"{LIBDIR}/libcuda.so", "libcuda.so.1"),
    "soname": (f"{LIBDIR}/libfoo.so.1", "libfoo.so.1.0"),
    "drop-in": ("etc/ld.so.conf.d/00-compat-nvoci.conf", ""),
    "folders": ("etc/ld.so.conf.d/zz-nvcr-nvoci.conf", ""),
    "cache": ("etc/ld.so.cache", ""),
}
BECOMES = {
    "a link out": "symlink {path} {canary}/secret",
    "a link to nothing": "symlink {path} nothing",
    "a file": "file {path} other",
    "gone": "",
}


def state_of(root: Path) -> dict[str, str]:
    return {
        name: os.readlink(root / path) if (root / path).is_symlink() else (root / path).read_bytes().hex()
        for name, (path, _) in OURS.items()
    }


@pytest.mark.parametrize("becomes", BECOMES)
@pytest.mark.parametrize("what", OURS)
def test_b8_a_second_run_is_consistent(arena: Arena, what: str, becomes: str) -> None:
    """What was changed in between is as after the first run; a file that took a soname's place is the image's."""
    assert attempt(arena, ALL, ok=True, still=False) == []
    first, (path, _) = state_of(arena.root), OURS[what]
    (arena.root / path).unlink()
    rootfs.tree(arena.root, BECOMES[becomes].format(path=path, canary=arena.canary))
    assert attempt(arena, ALL, "inside", ok=True, still=False) == []
    second = state_of(arena.root)
    if (what, becomes) == ("soname", "a file"):
        assert bytes.fromhex(second.pop("soname")) == b"other"
        first.pop("soname")
        first.pop("cache")
        second.pop("cache")
    assert second == first


# -- B9, B10: at our temporaries ---------------------------------------------------------------------------------------

NEIGHBOURS = {
    "unlinks": "unlink",
    "puts a hard link there": "link",
    "puts a link there": "symlink",
    "takes the directory away": "rename",
}
PLACES = {"link": (LIBDIR, LINK), "drop-in": ("etc/ld.so.conf.d", COMPAT_ARGS), "cache": ("etc", LDCACHE["builtin"])}


def neighbour(arena: Arena, place: str, how: str) -> Callable[[], None]:
    """A body that lies in wait for a temporary beside `place`, and does it."""
    folder = os.fsencode(arena.root / PLACES[place][0])
    staging, victim = folder + b"/.nvoci-tmp", os.fsencode(arena.root / "etc/hostname")

    def body() -> None:
        try:
            if how == "rename":
                os.rename(staging, folder + b"/theirs%d" % (os.getpid() % 2))
            for name in os.listdir(staging):
                path = staging + b"/" + name
                os.unlink(path)
                if how == "link":
                    os.link(victim, path)
                elif how == "symlink":
                    os.symlink(os.fsencode(arena.canary / "secret"), path)
        except OSError:
            pass

    return body


@pytest.mark.parametrize("how", NEIGHBOURS)
@pytest.mark.parametrize("place", PLACES)
def test_b9_b10_a_neighbour_at_our_temporaries(arena: Arena, profile: str, place: str, how: str, long: bool) -> None:
    """One who shares the volume. Success or an error, soon; neither the host's files nor another of the image is
    written to, whatever has our temporary's name."""
    folder, words = PLACES[place]
    victim = arena.root / "etc/hostname"
    before = os.stat(victim)
    name = {"link": "libcuda.so", "drop-in": "00-compat-nvoci.conf", "cache": "ld.so.cache"}[place]
    theirs = arena.root / folder / name

    def once() -> None:
        theirs.unlink(missing_ok=True)
        theirs.write_text("the image's")  # in the way: it has to be replaced
        racing.hook_once(arena.root, words)

    def body() -> Tally:
        namespaced.Kernel("race", () if profile == "new" else ("openat2",)).start()
        os.umask(0)
        procfs.handle()
        return racing.until(rounds(profile, long=True) if long else 60, once)  # whole hooks; nothing flips

    with Oracle(arena.canary) as oracle:
        with namespaced.forked(neighbour(arena, place, NEIGHBOURS[how])):
            tally = namespaced.isolated(body, limit=900)
        assert oracle.check() == []
    assert tally.done + tally.refused > 0
    assert tally.worst < 5
    after = os.stat(victim)
    assert (victim.read_text(), after.st_ino, after.st_mode, after.st_uid) == (
        "image\n", before.st_ino, before.st_mode, before.st_uid,
    )  # fmt: skip
    shutil.rmtree(arena.root / folder / ".nvoci-tmp", ignore_errors=True)
    for each in (arena.root / folder).glob("theirs*"):
        shutil.rmtree(each, ignore_errors=True)
    assert attempt(arena, words, ok=True, still=False) == []


def test_naive_b10_a_temporary_is_written_by_name(arena: Arena) -> None:
    """One that is opened by its name again writes into whatever has that name by then."""
    temporary = arena.root / "etc/.naive"
    victim = arena.root / "etc/hostname"

    def swap() -> None:
        try:
            os.unlink(temporary)
            os.link(victim, temporary)
        except OSError:
            pass

    with namespaced.forked(swap):
        for _ in range(5000):
            temporary.write_text("")
            with open(temporary, "w") as f:
                f.write("generated")
            if victim.read_text() != "image\n":
                break
    assert victim.read_text() != "image\n"
