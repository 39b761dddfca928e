"""Rows B1, B2, B3, B5 and B11: what a hook works on is exchanged while it works.

One round is one lookup of the hook while a flipper exchanges two names as fast as it can. The links that are made in
a round all lie below the exchanged directory, in both of its meanings: so the hook never has a reason to stop early.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from kernel import namespaced
from lib import driver, rootfs, session
from lib.flipper import Flipper
from lib.hookproc import FakeContainer, run_hook
from lib.oracle import Oracle
from security.arena import COMPAT, NAIVE, STAGES, Arena, attempt, escapes

from nvoci.hook import disable_device_node_modification as params_hook
from nvoci.hook.mounts import GeneratedMount
from nvoci.hook.operation import Transaction
from nvoci.linux import procfs
from nvoci.linux.rootfs import Rootfs

# Lookups in one hook process: fewer than the handles it keeps open. A handle it had to close is opened again only if
# the path still leads to the same directory (ESTALE), and with that the whole hook ends.
BATCH = 50


def rounds(profile: str, *, long: bool) -> int:
    return 500 if not long else 20_000 if profile == "new" else 1_000


def flipped(arena: Arena) -> tuple[Path, Path]:
    """`flip` in the root, a directory, and its other meaning, a link to the canary. The canary's path exists below the
    root too, so that the link resolves there."""
    rootfs.tree(arena.root, f"dir flip\ndir {str(arena.canary)[1:]}\nsymlink other {arena.canary}")
    return arena.root / "flip", arena.root / "other"


def made(arena: Arena, pattern: str) -> int:
    return len(list((arena.root / "flip").glob(pattern))) + len(
        list((arena.root / str(arena.canary)[1:]).glob(pattern))
    )


def subdirectories(arena: Arena, count: int) -> None:
    for place in (arena.root / "flip", arena.root / str(arena.canary)[1:], arena.canary):
        for n in range(count):
            (place / f"d{n}").mkdir()


RACES = {"B1-create": "d{n}/link", "B2-mkdir": "n{run}-{n}/link"}


def race(arena: Arena, kind: str, stage: str, total: int, *, naive: bool = False) -> list[str]:
    """`total` links below a directory that is exchanged all the time. Violations."""
    a, b = flipped(arena)
    if kind == "B1-create":
        subdirectories(arena, BATCH)
    planned = [".", "flip", "other", "flip/**", f"{str(arena.canary)[1:]}/**"]
    out: list[str] = []
    program = NAIVE if naive else None
    with FakeContainer(arena.root) as c, Oracle(arena.canary, arena.root, planned) as oracle:
        before = made(arena, RACES[kind].format(run="*", n="*") + "*")
        with Flipper(a, b) as flipper:
            for run in range(total // BATCH):
                words = ["create-symlinks"]
                for n in range(BATCH):
                    words += ["--link", f"target-{run}::/flip/" + RACES[kind].format(run=run, n=n)]
                result = run_hook(words, container=c, stage=STAGES[stage], program=program, timeout=30)
                if not naive:
                    out += oracle._outcome(result, True, 0)
        assert flipper.rounds > 50, "there was no race"
        out += oracle.check()
        out += [] if naive or made(arena, RACES[kind].format(run="*", n="*") + "*") > before else ["no link was made"]
    return out


@pytest.mark.parametrize("kind", RACES)
def test_a_flipping_parent_never_leads_out_of_the_root(arena: Arena, profile: str, kind: str, long: bool) -> None:
    stage = "outside" if profile == "new" else "inside"
    assert race(arena, kind, stage, rounds(profile, long=long)) == []


@pytest.mark.parametrize("kind", RACES)
def test_naive_a_flipping_parent_leads_out(arena: Arena, kind: str) -> None:
    assert escapes(race(arena, kind, "outside", 1000, naive=True))


# -- B3 -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def params() -> Iterator[Path]:
    with driver.make(session.new_dir("driver")) as d:
        yield d.proc


def mount_race(arena: Arena, kernel: namespaced.Kernel, count: int) -> tuple[int, int, list[str]]:
    """(mounted, refused, escapes) of `count` mounts on a name that is a file, then a link to the canary, then …"""
    rootfs.tree(arena.root, "file proc/driver/nvidia/params old")
    rootfs.tree(arena.root, f"file {str(arena.canary)[1:]}/secret twin")
    rootfs.tree(arena.root, f"symlink proc/driver/nvidia/other {arena.canary}/secret")
    folder = arena.root / "proc/driver/nvidia"

    def body() -> tuple[int, int, list[str]]:
        kernel.start()
        procfs.handle()
        mounted, refused, bad = 0, 0, []
        home = {m.split()[0] for m in namespaced.mountinfo()}
        for _ in range(count):
            container = namespaced.make_container(arena.root, "outside")
            operation = GeneratedMount(container, b"proc/" + params_hook.PARAMS, b"new\n", 0o444, "params")
            try:
                operation.execute(Transaction())
                mounted += 1
            except (OSError, Exception):  # noqa: BLE001  # EAGAIN, ESTALE: a clean refusal
                refused += 1
            new = [m for m in namespaced.mountinfo() if m.split()[0] not in home]
            bad += [m for m in new if not m.split()[4].startswith(f"{arena.root}/")]
            operation.undo()
            container.rootfs.close()
        return mounted, refused, bad

    # The mounts hide the names from nobody but this process: the flipper goes on in the namespace outside.
    with Flipper(folder / "params", folder / "other") as flipper:
        answer: tuple[int, int, list[str]] = namespaced.isolated(body, limit=1500)
    assert flipper.rounds > 50, "there was no race"
    return answer


def test_b3_a_flipping_mount_target_is_the_opened_one_or_refused(arena: Arena, profile: str, long: bool) -> None:
    old = namespaced.Kernel("old", ("openat2", *namespaced.MOUNT_API), clone_unattached=False)
    kernel = namespaced.Kernel("all") if profile == "new" else old
    with Oracle(arena.canary) as oracle:
        mounted, refused, bad = mount_race(arena, kernel, rounds(profile, long=long))
        assert oracle.check() == []
    assert bad == []
    assert mounted > 0, f"all {refused} were refused"


def flip_params(arena: Arena, params: Path, count: int, *, naive: bool = False) -> list[str]:
    """Whole hook processes, with the flipper at the target inside the container's namespace."""
    rootfs.tree(arena.root, "file proc/driver/nvidia/params ModifyDeviceFiles: 1\\n")
    rootfs.tree(
        arena.root, f"file {str(arena.canary)[1:]}/secret twin\nsymlink proc/driver/nvidia/other {arena.canary}/secret"
    )
    out: list[str] = []
    folder = arena.root / "proc/driver/nvidia"
    with Flipper(folder / "params", folder / "other"):
        for _ in range(count):
            found = attempt(arena, ["disable-device-node-modification"], params=params, naive=naive, lines=None,
                            container={"proc_mount": False}, still=False)  # fmt: skip
            out += found if naive else [v for v in found if "deadline" in v or escapes([v])]
    return out


def test_b3_hook_processes_with_a_flipping_target(arena: Arena, params: Path, profile: str, long: bool) -> None:
    assert flip_params(arena, params, 100 if long else 10) == []


def test_naive_b3_a_flipping_target_is_mounted_on_the_host_path(arena: Arena, params: Path) -> None:
    assert escapes(flip_params(arena, params, 15, naive=True))


# -- B5 -------------------------------------------------------------------------------------------------------------


def test_b5_a_file_that_becomes_a_fifo_is_never_opened(arena: Arena, profile: str, long: bool) -> None:
    """`read_file` is the only way by which hooks read a file of the image."""
    rootfs.tree(arena.root, "file etc/x data\nfifo etc/y")
    blocked = () if profile == "new" else ("openat2",)

    def body() -> tuple[int, int]:
        namespaced.Kernel("b5", blocked).start()
        procfs.handle()
        root = Rootfs.open(str(arena.root))
        read = refused = 0
        for _ in range(rounds(profile, long=long)):
            try:
                assert root.read_file(b"etc/x", 1 << 20) == b"data"
                read += 1
            except OSError:
                refused += 1
        return read, refused

    with Flipper(arena.root / "etc/x", arena.root / "etc/y"):
        read, refused = namespaced.isolated(body, limit=600)
    assert read > 0
    assert refused > 0


COMPAT_ARGS = ["enable-cuda-compat", "--host-driver-version", "550.54.15"]


def flip_library(arena: Arena, count: int, *, naive: bool = False) -> list[str]:
    """The compat library is a FIFO every other moment."""
    library = arena.root / COMPAT / "libcuda.so.600.1.2"
    os.mkfifo(arena.top / "fifo")
    out: list[str] = []
    with Flipper(library, arena.top / "fifo"):
        for _ in range(count):
            found = attempt(arena, COMPAT_ARGS, naive=naive, still=False, lines=None if naive else 1, max_wall=3.0)
            out += found
            if naive and any("deadline" in v for v in out):
                break
    return out


def test_b5_a_library_that_becomes_a_fifo_blocks_nothing(arena: Arena, profile: str, long: bool) -> None:
    assert flip_library(arena, 100 if long else 10) == []


def test_naive_b5_a_library_that_becomes_a_fifo_blocks(arena: Arena) -> None:
    assert any("deadline" in v for v in flip_library(arena, 40, naive=True))


# -- B11 ------------------------------------------------------------------------------------------------------------


def test_b11_renames_elsewhere_never_make_a_hook_fail(arena: Arena, profile: str, tmp_path: Path, long: bool) -> None:
    """openat2 answers EAGAIN for paths with `..` while anything on the host is renamed."""
    rootfs.tree(tmp_path, "dir a\ndir b\ndir c\ndir d")
    for n in range(BATCH):
        (arena.root / f"d{n}").mkdir()
    words = ["create-symlinks"]
    for n in range(BATCH):
        words += ["--link", f"target::/usr/lib/../share/../../d{n}/../d{n}/link"]
    with (
        Flipper(tmp_path / "a", tmp_path / "b"),
        Flipper(tmp_path / "c", tmp_path / "d"),
        FakeContainer(arena.root) as c,
    ):
        for run in range(rounds(profile, long=long) // BATCH):
            result = run_hook(words, container=c, stage=("createRuntime", "createContainer")[run % 2], timeout=30)
            assert (result.rc, result.stderr) == (0, "")
            links = [arena.root / f"d{n}/link" for n in range(BATCH)]
            assert all(os.readlink(link) == "target" for link in links)
            for link in links:
                link.unlink()


def test_naive_b11_one_try_is_not_enough(arena: Arena, tmp_path: Path) -> None:
    """The naive lookup: openat2 once. The storm is strong enough to make it fail."""
    from nvoci.linux import abi
    from nvoci.linux.syscalls import openat2

    rootfs.tree(tmp_path, "dir a\ndir b\ndir c\ndir d")
    root = os.open(arena.root, os.O_PATH)
    failed = 0
    try:
        with Flipper(tmp_path / "a", tmp_path / "b"), Flipper(tmp_path / "c", tmp_path / "d"):
            for _ in range(20_000):
                try:
                    os.close(openat2(root, b"usr/lib/../share/../../etc", os.O_PATH, abi.RESOLVE_IN_ROOT))
                except BlockingIOError:
                    failed += 1
    finally:
        os.close(root)
    assert failed > 0
