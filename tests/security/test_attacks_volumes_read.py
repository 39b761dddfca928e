"""Attacks by what a hook reads with root's rights and copies, or mounts, to where all of the container can read it; and
by what a generated file is mounted on."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kernel import namespaced
from lib import rootfs
from lib.hookproc import FakeContainer, run_hook
from security.arena import COMPAT, LDCACHE, LIBDIR, STAGES, Arena

from nvoci import log
from nvoci.errors import HookError
from nvoci.hook import ldbuiltin, mounts
from nvoci.hook.hostmounts import HostMounts
from nvoci.hook.mounts import GeneratedMount
from nvoci.hook.operation import Transaction
from nvoci.hook.operations import WriteFile
from nvoci.ldcache.cache import Cache, Entry, encode, parse
from nvoci.linux.rootfs import Rootfs
from nvoci.prestart import compatlibs

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")

MUSL = f"etc/ld-musl-{platform.machine()}.path"
CACHE = "etc/ld.so.cache"
SECRET = "/hunter2\n"
REFUSED = "leads out of the image"
BIND = 'mount --bind {0}/volume "$R/vol"\n'


@pytest.fixture
def alpine(arena: Arena) -> Arena:
    """With a volume in which only root may enter `private`; the file in there may be read by all."""
    rootfs.tree(arena.root, "file etc/alpine-release 3.20\\n\ndir vol")
    theirs = rootfs.tree(arena.top / "volume", "dir private/etc\nmode private 700")
    (theirs / "private/secret").write_text(SECRET)
    (theirs / "private" / MUSL).write_text(SECRET)
    return arena


def as_user(c: FakeContainer, path: str) -> str:
    """What a process of the container that is not root reads."""
    words = ["nsenter", "--mount", "--target", str(c.pid), "setpriv", "--reuid=1000", "--regid=1000", "--clear-groups"]
    words += ["--bounding-set=-all", "cat", f"{c.rootfs}/{path}"]
    return subprocess.run(words, check=False, capture_output=True).stdout.decode("utf-8", "replace")


# --- the path file of musl -------------------------------------------------------------------------------------------

LEAKS = {
    "a link": (f"symlink {MUSL} /vol/private/secret", BIND),
    "a relative link": (f"symlink {MUSL} ../vol/private/secret", BIND),
    "by two links": (f"symlink {MUSL} /opt/a\nsymlink opt/a /vol/private/secret", BIND),
    "a read-only volume": (f"symlink {MUSL} /vol/private/secret", BIND + 'mount -o remount,bind,ro "$R/vol"\n'),
    "a secret of the engine's": (
        f"dir run\nsymlink {MUSL} /run/secrets/token",
        'mount -t tmpfs t "$R/run"; mkdir -m 700 "$R/run/secrets"; echo /hunter2 >"$R/run/secrets/token"\n',
    ),
    "a link in a named volume": ("", 'rm -r "$R/etc/"*; mount --bind {0}/etc "$R/etc"\n' + BIND),
}


@pytest.mark.parametrize("engine", LDCACHE)
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("case", LEAKS)
def test_what_root_alone_can_read_is_not_copied_for_all(alpine: Arena, case: str, stage: str, engine: str) -> None:
    """And the image's own link stays."""
    spec, setup = LEAKS[case]
    rootfs.tree(alpine.root, spec)
    rootfs.tree(alpine.top / "etc", f"file alpine-release 3.20\\n\nsymlink {Path(MUSL).name} /vol/private/secret")
    with FakeContainer(alpine.root, setup=setup.format(alpine.top)) as c:
        link = os.readlink(c.path(MUSL))
        result = run_hook(LDCACHE[engine], container=c, stage=STAGES[stage])
        assert (result.rc, REFUSED in result.stderr, result.stderr.count("\n")) == (1, True, 1), result.stderr
        assert "hunter2" not in as_user(c, MUSL)
        assert os.readlink(c.path(MUSL)) == link
        assert "00-nvcr-nvoci.conf" not in c.listdir("etc/ld.so.conf.d" if spec else "etc")


def test_nor_mounted_over_a_read_only_image_s(alpine: Arena) -> None:
    rootfs.tree(alpine.root, f"symlink {MUSL} /vol/private/secret")
    with FakeContainer(alpine.root, setup=BIND.format(alpine.top), readonly=True) as c:
        before = c.mountinfo()
        result = run_hook(LDCACHE["builtin"], container=c)
        assert (result.rc, REFUSED in result.stderr) == (1, True), result.stderr
        assert c.mountinfo() == before


def test_a_file_that_is_mounted_on_the_path_itself_is_its_owner_s_wish(alpine: Arena) -> None:
    rootfs.tree(alpine.root, f"file {MUSL} image")
    (alpine.top / "file").write_text("/their/lib\n")
    setup = f'mount --bind {alpine.top}/file "$R/{MUSL}"\n'
    with FakeContainer(alpine.root, setup=setup, readonly=True) as c:
        result = run_hook(LDCACHE["builtin"], container=c)
        assert (result.rc, result.stderr) == (0, "")
        assert c.read(MUSL).startswith(b"/their/lib\n/opt/nvidia/lib\n")
    assert (alpine.top / "file").read_text() == "/their/lib\n"


def test_a_link_in_the_image_is_read_and_its_end_is_told(alpine: Arena, monkeypatch: pytest.MonkeyPatch) -> None:
    rootfs.tree(alpine.root, f"symlink {MUSL} /opt/path\nfile opt/path /own\\n")
    with FakeContainer(alpine.root) as c:
        assert run_hook(LDCACHE["builtin"], container=c).rc == 0
    assert (alpine.root / MUSL).read_text().startswith("/own\n/opt/nvidia/lib\n")
    lines: list[str] = []
    monkeypatch.setattr(log, "_sinks", [(log.INFO, lines.append)])
    rootfs.tree(alpine.root, "symlink etc/of /opt/path")
    for _ in range(2):
        transaction = Transaction()
        transaction.perform("test", WriteFile(Rootfs.open(str(alpine.root)), b"etc/of", b"new", 0o644))
        transaction.commit()
    assert [line.partition("msg=")[2] for line in lines] == ['"file replaces a link" path=/etc/of target=/opt/path']


# --- a cache that is extended ----------------------------------------------------------------------------------------


def cache_of(path: Path) -> Cache:
    return parse(path.read_bytes())


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("private", [True, False], ids=["of a volume", "of the image"])
def test_only_the_image_s_own_cache_is_extended(arena: Arena, stage: str, private: bool) -> None:
    """What it says of a file outside of the directories that count is taken over as it stands."""
    rootfs.tree(arena.root, f"dir vol\nsymlink {CACHE} /vol/private/cache\ndir vol/private\nsparse opt/outside 4096")
    (arena.top / "volume/private").mkdir(parents=True, mode=0o700)
    flags = cache_of(Path("/etc/ld.so.cache")).entries[0].flags
    told = encode([Entry(flags, b"libhunter2.so", b"/opt/outside")])
    (arena.top / "volume/private/cache" if private else arena.root / "vol/private/cache").write_bytes(told)
    with FakeContainer(arena.root, setup=BIND.format(arena.top) if private else "") as c:
        result = run_hook(LDCACHE["builtin"], container=c, stage=STAGES[stage])
        assert (result.rc, REFUSED in result.stderr) == (0, private), result.stderr
        assert ("hunter2" in as_user(c, CACHE)) == (not private)
        assert b"libfoo.so.1" in c.read(CACHE)


# --- CUDA compatibility libraries, which are mounted beside the driver's ---------------------------------------------

LIBRARIES = {
    "the image's": ("", "libcuda.so.600.1.2"),
    "a link in the image": ("symlink {0}/libcuda.so.601.1 libcuda.so.600.1.2", "libcuda.so.600.1.2"),
    "a link into a volume": ("symlink {0}/libcuda.so.601.1 /vol/private/libcuda.so.602.1", "libcuda.so.600.1.2"),
    "a folder that is one": ("symlink {0} /vol/private", ""),
    "a volume that lies there": ("dir {0}/../named", "libcuda.so.603.1"),
}


@pytest.mark.parametrize("case", LIBRARIES)
def test_no_library_of_a_volume_is_mounted_for_all(arena: Arena, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each that is left out is told of, once; not a link beside the library that it leads to."""
    spec, expected = LIBRARIES[case]
    rootfs.tree(arena.root, "dir vol\n" + spec.format(COMPAT))
    theirs = rootfs.tree(arena.top / "volume", "file private/libcuda.so.602.1 x\nmode private 700")
    links = "symlink libcuda.so.1 libcuda.so.603.1\nsymlink libcuda.so.604.1 private/libcuda.so.605.1"
    named = rootfs.tree(arena.top / "named", f"file libcuda.so.603.1 x\nfile private/libcuda.so.605.1 x\n{links}")
    lines: list[str] = []

    def body() -> tuple[list[str], int]:
        namespaced.sh(f"mount --bind {arena.root} {arena.root}; mount --bind {theirs} {arena.root}/vol")
        if "lies" in case:
            namespaced.sh(f"mount --bind {named} {arena.root}/{COMPAT}")
        root = Rootfs.open(str(arena.root))
        HostMounts().protect(root)
        found = compatlibs.sources(root, b"/" + COMPAT.encode(), frozenset({"compute"}), "550.1")
        return [source.name.decode() for source in found], len(lines)

    monkeypatch.setattr(log, "_sinks", [(log.WARNING, lines.append)])
    assert namespaced.isolated(body) == ([expected] if expected else [], "volume" in case or "one" in case)


# --- what a generated file is mounted on -----------------------------------------------------------------------------

TARGETS: dict[str, tuple[str, bool, bool]] = {
    "a file of the image": ("etc/hostname", False, True),
    "a link to a security attribute": ("etc/exec", False, False),
    "a link to another file of a procfs": ("etc/info", False, False),
    "the same, asked for by a path of procfs": ("etc/info", True, False),
    "a file of procfs that is not to be covered": ("proc/cpuinfo", False, False),
    "one that is": ("proc/cpuinfo", True, True),
    "with dots in the path": ("proc/./cpuinfo", True, False),
    "by a link to the procfs": ("etc/proc/cpuinfo", True, False),
}


@pytest.mark.parametrize("case", TARGETS)
def test_a_generated_file_covers_no_file_of_the_kernel_s(arena: Arena, case: str) -> None:
    """What opened is judged: a neighbour may have put a link where a file was looked at."""
    path, in_proc, good = TARGETS[case]
    rootfs.tree(
        arena.root, "symlink etc/exec /proc/1/attr/exec\nsymlink etc/info /proc/cpuinfo\nsymlink etc/proc /proc"
    )

    def body() -> str:
        namespaced.sh(f"cd {arena.root}; mount --bind . .; mount -t proc p {arena.root}/proc")
        container = namespaced.make_container(arena.root, "outside")
        before = namespaced.mountinfo()
        operation = GeneratedMount(container, path.encode(), b"new\n", 0o444, "file", in_proc=in_proc)
        try:
            operation.execute(Transaction())
        except HookError as e:
            assert namespaced.mountinfo() == before
            return e.message
        assert container.rootfs.lookup(path.encode()).stat().st_size == 4
        return ""

    assert ("file system of the kernel's" in namespaced.isolated(body)) == (not good)


def covered(arena: Arena, theirs: Path, at: int) -> tuple[int, list[str]]:
    """(how often the engine looked for the cache, where a generated file was mounted on a read-only root), if the file
    of a volume that the cache is a link to becomes one to procfs before look number `at`."""
    namespaced.sh(f"cd {arena.root}; mount --bind . .; mount -t proc p {arena.root}/proc")
    namespaced.sh(f"mount --bind {theirs} {arena.root}/vol; mount -o remount,bind,ro {arena.root}")
    container = namespaced.make_container(arena.root, "outside")
    lookup: Callable[..., Any] = Rootfs.lookup
    seen = 0

    def flipped(root: Rootfs, path: bytes, flags: int = 0) -> Any:
        nonlocal seen
        seen += path.endswith(CACHE.encode())
        if seen == at and not (theirs / "aside").exists():
            os.rename(theirs / "cache", theirs / "aside")
            os.rename(theirs / "other", theirs / "cache")
        return lookup(root, path, flags)

    Rootfs.lookup = flipped  # type: ignore[method-assign]  # in this process, which ends
    try:
        for operation in ldbuiltin.operations(container, [b"/" + LIBDIR.encode()]):
            operation.execute(Transaction())
    except (HookError, OSError):
        pass
    if (theirs / "aside").exists():
        os.rename(theirs / "cache", theirs / "other")
        os.rename(theirs / "aside", theirs / "cache")
    return seen, [line.split()[4] for line in namespaced.mountinfo() if " - tmpfs nvoci " in line]


@pytest.mark.parametrize("kernel", [namespaced.KERNELS[0], namespaced.KERNELS[3]], ids=lambda k: k.name)
@pytest.mark.parametrize("naive", [False, True], ids=["", "naive"])
def test_a_cache_in_a_volume_that_becomes_a_link_to_procfs(
    arena: Arena, naive: bool, kernel: namespaced.Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before each look of the hook for it, one after the other."""
    rootfs.tree(arena.root, f"dir vol\nsymlink {CACHE} /vol/cache")
    theirs = rootfs.tree(arena.top / "volume", "file cache old\nsymlink other /proc/1/attr/exec")
    if naive:
        monkeypatch.setattr(mounts, "check_pseudo", lambda *_, **__: None)

    def body(at: int) -> tuple[int, list[str]]:
        kernel.start()
        return covered(arena, theirs, at)

    found = [namespaced.isolated(body, at) for at in range(1, 10)]
    assert 1 < found[-1][0] < 9  # some of those numbers go beyond: what an undisturbed hook does
    assert found[-1][1] == [f"{arena.root}/vol/cache"]
    assert any("/proc/" in path for _, paths in found for path in paths) == naive
    assert theirs.joinpath("cache").read_text() == "old"
