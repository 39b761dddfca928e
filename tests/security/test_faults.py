"""Rows D1, D3, D6 and I2: a root that can not be written, is full, or belongs to somebody else."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from errno import ENOSPC
from pathlib import Path

import pytest
from lib import elfmaker, hookproc, proc, rootfs, session
from lib.oracle import Oracle, snapshot
from lib.runtimes import Runtime, bind, make_bundle
from security import arena as arenas
from security.arena import GPU_NODE, LDCACHE, LIBDIR, NAIVE, Arena, attempt, settled

OTHERS = [
    "run", "--", "create-symlinks", "--link", f"libcuda.so.1::/{LIBDIR}/libcuda.so",
    "--", "update-application-profile",
    "--", "enable-cuda-compat", "--host-driver-version", "550.54.15",
]  # fmt: skip
ALL = {engine: [*OTHERS, "--", *words] for engine, words in LDCACHE.items()}

# -- D1 -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def image(tmp_path: Path) -> Path:
    root = rootfs.glibc_rootfs(tmp_path / "rootfs")
    rootfs.tree(root, "file opt/nvidia/lib/libinjected.so.1.0")  # to be mounted on
    rootfs.add_probe(root, "libinjected.so.1")
    return root


@pytest.fixture(scope="module")
def injected() -> Path:
    folder = session.new_dir("driver")
    elfmaker.make_so(folder / "libinjected.so.1.0", "libinjected.so.1", machine=platform.machine(), functions={"f": 0})
    return folder


def read_only(
    image: Path, injected: Path, runtime: str, stage: str, words: list[str], *, naive: bool = False
) -> proc.Result:
    """Start a container with `root.readonly`; it tells whether it can write, and whether ld.so finds the library."""
    script = "touch /x 2>/dev/null && echo writable; ldconfig -p >/dev/null && echo cache; "
    script += "probe-libinjected.so.1 && echo found"
    entry = hookproc.hook_entry(words, program=NAIVE if naive else None)
    mounts = [bind(injected / "libinjected.so.1.0", "/opt/nvidia/lib/libinjected.so.1.0", "ro")]
    bundle = make_bundle(
        session.new_dir("bundle"), image, ["sh", "-c", script], {stage: [entry]}, mounts=mounts, readonly=True
    )
    return Runtime(runtime).run(bundle)


@pytest.mark.parametrize("stage", ["createRuntime", "createContainer"])
def test_d1_a_read_only_root_starts(
    image: Path, injected: Path, profile: str, engine: str, runtime: str, stage: str
) -> None:
    written = ["etc/ld.so.c*", "etc/ld.so.conf.d/**", "opt/nvidia/lib/*", f"{LIBDIR}/*"]
    planned = [] if runtime == "crun" and stage == "createContainer" else written  # the mount decides, not config.json
    with Oracle(rootfs=image, planned=planned) as oracle:
        result = read_only(image, injected, runtime, stage, LDCACHE[engine])
        assert oracle.check(result, ok=None, lines=None) == []
    words = result.stdout.split()
    assert words[:1] == ["cache"], (result.rc, result.stdout, result.stderr)
    assert "writable" not in words
    # On a root that is read-only already, a soname link cannot be made beside the library.
    assert "found" in words or not planned


def test_d1_strict_refuses_a_read_only_root(image: Path, profile: str) -> None:
    words = ["create-symlinks", "--strict", "--link", f"x::/{LIBDIR}/new"]
    bundle = make_bundle(
        session.new_dir("bundle"), image, ["true"], {"createContainer": [hookproc.hook_entry(words)]}, readonly=True
    )
    with Oracle(rootfs=image) as oracle:
        assert oracle.check(Runtime("crun").run(bundle), ok=False, lines=None) == []


def test_naive_d1_a_read_only_root_does_not_start(image: Path, injected: Path) -> None:
    result = read_only(image, injected, "crun", "createContainer", LDCACHE["builtin"], naive=True)
    assert not result.ok


@pytest.mark.parametrize("stage", ["outside", "inside"])
def test_d1_every_hook_on_a_read_only_root(arena: Arena, profile: str, engine: str, stage: str) -> None:
    options, words = {"setup": GPU_NODE, "readonly": True}, ALL[engine]
    assert attempt(arena, words, stage, ok=True, lines=None, container=options) == []
    assert attempt(arena, [words[0], "--strict", *words[1:]], stage, ok=False, parts=["EROFS"], container=options) == []


# -- D3, D6 ---------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["D3-space", "D6-inodes"])
def full(request: pytest.FixtureRequest) -> Iterator[Arena]:
    """A root on a file system with nothing left."""
    top = session.new_dir("full")
    options = "size=1m" if request.param == "D3-space" else "nr_inodes=150"
    with rootfs.tmpfs(top / "rootfs", options):
        arena = arenas.make(top)
        rootfs.tree(arena.root, "dir filler")
        try:
            if request.param == "D3-space":
                with open(arena.root / "filler/file", "wb", buffering=0) as f:
                    while True:
                        f.write(bytes(4096))
            for n in range(1000):
                (arena.root / f"filler/{n}").touch()
        except OSError as e:
            if e.errno != ENOSPC:
                raise
        yield arena


WRITERS = {
    "ldcache": LDCACHE["builtin"],
    "ldcache-ldconfig": LDCACHE["ldconfig"],
    "profile": ["update-application-profile"],
    "compat": ["enable-cuda-compat", "--host-driver-version", "550.54.15"],
    "run": ALL["builtin"],
    "run-ldconfig": ALL["ldconfig"],
}


@pytest.mark.parametrize("hook", WRITERS)
def test_a_full_disk_is_one_error_and_changes_nothing(full: Arena, profile: str, hook: str) -> None:
    stage = "outside" if profile == "new" else "inside"
    found = attempt(full, WRITERS[hook], stage, ok=False, parts=["ENOSPC"], container={"setup": GPU_NODE, "dev": True})
    assert settled(full, found) == []
    assert (full.root / "etc/ld.so.cache").read_text() == "old cache\n"


@pytest.mark.parametrize("hook", WRITERS)
def test_naive_a_full_disk_leaves_half_a_file(full: Arena, hook: str) -> None:
    words = WRITERS["profile"] if hook.startswith("run") else WRITERS[hook]
    assert attempt(full, words, naive=True, ok=False)


# -- I2 -------------------------------------------------------------------------------------------------------------

FIRST_ID = 100_000
LINK = ["create-symlinks", "--link", "target::/made/by/the/hook"]


def in_user_namespace(
    runtime: str, stage: str, owner: int, tmp_path: Path, *, naive: bool = False
) -> tuple[proc.Result, Path, list[str]]:
    """A container whose root is mapped to FIRST_ID, on a root that belongs to `owner`."""
    root = rootfs.busybox_rootfs(session.new_dir("image"))
    for path in (root, *root.rglob("*")):
        os.lchown(path, owner, owner)
    entry = hookproc.hook_entry(LINK, program=NAIVE if naive else None)
    args = ["readlink", "/made/by/the/hook"]
    bundle = make_bundle(session.new_dir("bundle"), root, args, {stage: [entry]}, userns=(FIRST_ID, 65536))
    (session.tmp() / "canary").mkdir(exist_ok=True)
    with Oracle(session.tmp() / "canary", root, ["made/**", "dev", "proc", "sys"]) as oracle:
        result = Runtime(runtime).run(bundle)
        return result, root, oracle.check(result, lines=None)


@pytest.mark.parametrize("owner", [0, FIRST_ID])
@pytest.mark.parametrize("stage", ["createRuntime", "createContainer"])
def test_i2_a_mapped_root_writes_where_it_may(
    tmp_path: Path, profile: str, runtime: str, stage: str, owner: int
) -> None:
    result, root, found = in_user_namespace(runtime, stage, owner, tmp_path)
    assert found == []
    if stage == "createRuntime" or owner == FIRST_ID:
        assert (result.rc, result.stdout) == (0, "target\n"), result.stderr
        return
    assert result.rc != 0
    assert "made" not in snapshot(root)
    if runtime == "runc":  # crun drops a hook's stderr
        assert "EACCES" in result.stderr, result.stderr


def test_naive_i2_a_mapped_root_gets_a_traceback(tmp_path: Path) -> None:
    result, _, _ = in_user_namespace("runc", "createContainer", 0, tmp_path, naive=True)
    assert "Traceback" in result.stderr
