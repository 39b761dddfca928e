"""Attacks by the name of the temporary directory: what has it is a volume's, the image's own, or another user's.

Only what a run could have made itself is used or emptied; all else is passed over, and one line says so. What a killed
run has put aside stays until a run has succeeded.
"""

from __future__ import annotations

import os
import select
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from lib import bundle, hookproc, proc, rootfs, session, strace
from lib.hookproc import FakeContainer, run_hook
from lib.oracle import Snapshot, changes, content_only, snapshot
from lib.runtimes import Runtime
from security import prestartscene
from security.arena import LDCACHE, STAGES, Arena
from security.prestartscene import Scene, on_node

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")

TMP = ".nvoci-tmp"
NAMES = (TMP, f"{TMP}-1", f"{TMP}-2", f"{TMP}-3")
SAID = "was not made by a hook, and is left as it is"
LINK = ["create-symlinks", "--link", "other::/etc/hostname"]
FAILS = ["--link", "y::/proc/nope/zz"]
WORDS = {"link": LINK, "cache": LDCACHE["builtin"]}
# A file that could be one of ours: nothing but the mount tells.
LIKE_OURS = "file 0 precious\nmode . 700"
OTHERS = "file database precious\nmode . 755"
LAYERS = "lowerdir={volume},upperdir={volume}-u,workdir={volume}-w"
MOUNTED = {
    "bind": (OTHERS, "mount --bind {volume} {point}"),
    "bind-like-ours": (LIKE_OURS, "mount --bind {volume} {point}"),
    "tmpfs": ("", "mount -t tmpfs -o mode=700 t {point}; echo precious >{point}/0"),
    "mqueue": ("", "mount -t mqueue q {point}; chmod 700 {point}; touch {point}/0"),
    "overlay": (LIKE_OURS, f"mkdir -pm 700 {{volume}}-u {{volume}}-w; mount -t overlay -o {LAYERS} o {{point}}"),
}


def warned(stderr: str) -> list[str]:
    """Which directories were told to be left."""
    return [line.split('msg="')[1].split(": ")[0] for line in stderr.splitlines() if SAID in line]


# -- mounts ---------------------------------------------------------------------------------------------------------


def mounting(arena: Arena, kind: str, folder: str, names: tuple[str, ...] = (TMP,)) -> tuple[str, Path]:
    spec, line = MOUNTED[kind]
    volume = rootfs.tree(arena.top / "volume", spec)
    points = [f'"$R/{folder}/{name}"' for name in names]
    return "".join(f"mkdir -p {p}\n{line.format(volume=volume, point=p)}\n" for p in points), volume


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("words", WORDS)
@pytest.mark.parametrize("kind", MOUNTED)
def test_a_mount_with_our_name_is_not_emptied(arena: Arena, profile: str, kind: str, words: str, stage: str) -> None:
    setup, volume = mounting(arena, kind, "etc")
    before = snapshot(volume)
    with FakeContainer(arena.root, setup=setup) as c:
        held = c.listdir(f"etc/{TMP}")
        result = run_hook(WORDS[words], container=c, stage=STAGES[stage])
        assert (result.rc, warned(result.stderr), result.stderr.count("\n")) == (0, [f"/etc/{TMP}"], 1), result.stderr
        assert c.listdir(f"etc/{TMP}") == held != []
    assert snapshot(volume) == before
    assert [name for name in os.listdir(arena.root / "etc") if name.startswith(TMP)] == [TMP]  # the mount point
    if words == "link":
        assert os.readlink(arena.root / "etc/hostname") == "other"


@pytest.mark.parametrize("stage", STAGES)
def test_mounts_with_all_our_names_are_an_error_of_its_own(arena: Arena, profile: str, stage: str) -> None:
    setup, volume = mounting(arena, "bind-like-ours", "etc", NAMES)
    before = snapshot(volume)
    with FakeContainer(arena.root, setup=setup) as c:
        result = run_hook(LINK, container=c, stage=STAGES[stage])
    assert result.rc == 1
    assert f"make a staging directory in /etc: EEXIST (what has the names {TMP} to {TMP}-3 there is not ours" in (
        result.stderr
    )
    assert snapshot(volume) == before
    assert (arena.root / "etc/hostname").read_text() == "image\n"


@pytest.mark.parametrize("stage", ["createRuntime", "createContainer"])
@pytest.mark.parametrize("userns", [False, True])
def test_a_volume_of_the_host_s_root_stays(runtime: str, stage: str, userns: bool) -> None:
    """In a user namespace the container's own root could not remove what is in it."""
    root = rootfs.tree(rootfs.busybox_rootfs(session.new_dir("image") / "rootfs"), f"dir etc/{TMP}")
    for name in ("proc", "dev/pts", "dev/shm", "dev/mqueue", "sys"):
        (root / name).mkdir(parents=True, exist_ok=True)
    if userns:
        subprocess.run(["chown", "-hR", "100000:100000", root], check=True)
    theirs = rootfs.tree(session.new_dir("volume") / "v", LIKE_OURS)
    before = snapshot(theirs)
    hooks = {stage: [hookproc.hook_entry(["create-symlinks", "--link", "x::/etc/passwd"])]}
    made = bundle.make_bundle(
        session.new_dir("bundle"), root, ["/bin/sh", "-c", "true"], hooks,
        userns=(100_000, 65_536) if userns else None, mounts=[bundle.bind(theirs, f"/etc/{TMP}")],
    )  # fmt: skip
    result = Runtime(runtime).run(made)
    assert result.rc == 0, result.stderr
    assert snapshot(theirs) == before
    assert os.readlink(root / "etc/passwd") == "x"


def test_prestart_leaves_it_too() -> None:
    volume = rootfs.tree(session.new_dir("volume") / "v", LIKE_OURS)
    before = snapshot(volume)
    points = ["etc", "etc/ld.so.conf.d", "usr/bin", "usr/lib/firmware"]
    setup = "".join(f'mkdir -p "$R/{p}/{TMP}"; mount --bind {volume} "$R/{p}/{TMP}"\n' for p in points)

    def body() -> tuple[int, str]:
        with Scene(setup=prestartscene.Scene().setup + setup).container() as site:
            result = site.hook()
            return result.rc, result.stderr

    rc, said = on_node(body)
    assert rc == 0, said
    assert snapshot(volume) == before
    assert len(warned(said)) == 1


def test_naive_what_has_the_name_is_emptied(arena: Arena) -> None:
    setup, volume = mounting(arena, "bind-like-ours", "etc")
    with FakeContainer(arena.root, setup=setup) as c:
        for name in c.listdir(f"etc/{TMP}"):
            os.unlink(c.path(f"etc/{TMP}/{name}"))
    assert os.listdir(volume) == []


# -- the image's own, and another user's ----------------------------------------------------------------------------

FOREIGN = {
    "other-name": f"dir etc/{TMP} 700\nfile etc/{TMP}/0 a\nfile etc/{TMP}/notes b",
    "leading-zero": f"dir etc/{TMP} 700\nfile etc/{TMP}/00 a",
    "long-number": f"dir etc/{TMP} 700\nfile etc/{TMP}/1234567890 a",
    "digits-of-unicode": f"dir etc/{TMP} 700\nfile etc/{TMP}/\u0663 a",
    "old-of-nothing": f"dir etc/{TMP} 700\nfile etc/{TMP}/-old a",
    "directory": f"dir etc/{TMP} 700\ndir etc/{TMP}/0",
    "fifo": f"dir etc/{TMP} 700\nfifo etc/{TMP}/0",
    "socket": f"dir etc/{TMP} 700\nsocket etc/{TMP}/0",
    "mode-755": f"dir etc/{TMP} 755\nfile etc/{TMP}/0 a",
    "mode-1700": f"dir etc/{TMP} 1700\nfile etc/{TMP}/0 a",
    "mode-4700": f"dir etc/{TMP} 4700\nfile etc/{TMP}/0 a",
    "mode-701": f"dir etc/{TMP} 701\nfile etc/{TMP}/0 a",
    "owner": f"dir etc/{TMP} 700\nfile etc/{TMP}/0 a\nowner etc/{TMP} 1000 1000",
    "file": f"file etc/{TMP} a",
    "link": f"symlink etc/{TMP} ../usr",
}


@pytest.mark.parametrize("what", FOREIGN)
def test_what_no_run_has_made_stays(arena: Arena, profile: str, what: str) -> None:
    rootfs.tree(arena.root, FOREIGN[what])
    before = snapshot(arena.root)
    with FakeContainer(arena.root) as c:
        result = run_hook(LINK, container=c)
    assert (result.rc, warned(result.stderr)) == (0, [f"/etc/{TMP}"]), result.stderr
    found = [v for v in changes(before, snapshot(arena.root), ["etc/hostname"]) if "mtime" not in v]
    assert found == []
    assert os.readlink(arena.root / "etc/hostname") == "other"


@pytest.mark.parametrize("name", NAMES)
def test_what_a_run_has_left_goes(arena: Arena, name: str) -> None:
    """In a directory that gives its group to what is made there, too."""
    rootfs.tree(arena.root, f"dir etc/{name} 2700")
    rootfs.tree(arena.root / "etc" / name, "file 0 a\nsymlink 17 b\nfile 18-old c\nchar 2 1 3")
    with FakeContainer(arena.root) as c:
        result = run_hook(LINK, container=c)
    assert (result.rc, result.stderr) == (0, "")
    assert [each for each in os.listdir(arena.root / "etc") if each.startswith(TMP)] == []


def test_an_image_full_of_them_gets_one_line(arena: Arena) -> None:
    rootfs.tree(arena.root, "\n".join(f"file many/{n}/{name} a" for n in range(50) for name in NAMES))
    args = ["create-symlinks", *(word for n in range(50) for word in ("--link", f"x::/many/{n}/new"))]
    with FakeContainer(arena.root) as c:
        result = run_hook(args, container=c)
    assert (result.rc, warned(result.stderr), result.stderr.count("\n")) == (0, [f"/many/0/{TMP}"], 1)


# Holds the lock of a directory of its own for 0.3 s, and counts what comes into it.
THIEF = f"""
import ctypes, fcntl, os, select, sys
os.mkdir("{TMP}")
os.chmod("{TMP}", int(sys.argv[1], 8))
held = os.open("{TMP}", os.O_RDONLY)
fcntl.flock(held, fcntl.LOCK_EX)
libc = ctypes.CDLL(None)
seen = libc.inotify_init()
libc.inotify_add_watch(seen, b"{TMP}", 0x180)  # IN_CREATE, IN_MOVED_TO
print("ready", flush=True)
select.select([0], [], [], 0.3)
os.close(held)
sys.stdin.read()
print(len(os.read(seen, 1 << 16)) if select.select([seen], [], [], 0)[0] else 0)
"""


@contextmanager
def thief(folder: Path, mode: str) -> Iterator[subprocess.Popen[str]]:
    user = ["setpriv", "--reuid=1000", "--regid=1000", "--clear-groups"]
    argv = [*user, "/usr/bin/python3", "-IS", "-c", THIEF, mode]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(argv, **pipes, text=True, env=proc.PLAIN_ENV, cwd=folder) as p:
        assert p.stdout is not None
        assert select.select([p.stdout], [], [], 10)[0]
        assert p.stdout.readline() == "ready\n"
        yield p


@pytest.mark.parametrize("mode", ["700", "777"])
@pytest.mark.parametrize("ends", ["success", "failure"])
def test_another_user_s_directory_is_not_used(arena: Arena, mode: str, ends: str) -> None:
    """In a directory where everybody may make names. Its owner has the lock when the hook looks, and then gives it
    back: nobody waits for that."""
    folder = rootfs.tree(arena.root / "shared", "file config root's own")
    folder.chmod(0o1777)
    with thief(folder, mode) as other, FakeContainer(arena.root) as c:
        args = ["create-symlinks", "--link", "x::/shared/config"]
        started = time.monotonic()
        result = run_hook([*args, *(FAILS if ends == "failure" else [])], container=c)
        took = time.monotonic() - started
        said, _ = other.communicate(timeout=10)
    assert (result.rc, warned(result.stderr)) == (int(ends == "failure"), [f"/shared/{TMP}"]), result.stderr
    assert said == "0\n"
    assert took < 2
    assert sorted(os.listdir(folder)) == [TMP, "config"]
    assert os.listdir(folder / TMP) == []
    config = folder / "config"
    assert os.readlink(config) == "x" if ends == "success" else config.read_text() == "root's own"


# -- killed, and then failing ---------------------------------------------------------------------------------------


def kill(c: FakeContainer, args: list[str], call: str, stage: str, when: int = 1) -> None:
    result = run_hook(args, container=c, stage=STAGES[stage], prefix=strace.inject_kill(call, when), timeout=30)
    assert result.rc != 0


def state(arena: Arena) -> Snapshot:
    """With inodes and times of all but directories, into which something came for a moment."""
    found = snapshot(arena.root)
    return {name: entry for name, entry in found.items() if not (arena.root / name).is_dir()}


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("then", ["the same", "another"])
def test_what_a_killed_run_has_replaced_outlives_a_rerun_that_fails(
    arena: Arena, profile: str, then: str, stage: str
) -> None:
    """Killed at its commit; a rerun that fails, twice, leaves it as it was found; one that does not leaves nothing."""
    image = os.stat(arena.root / "etc/hostname").st_ino
    again = LINK if then == "the same" else ["create-symlinks", "--link", "third::/etc/hostname"]
    with FakeContainer(arena.root) as c:
        kill(c, LINK, "unlink,unlinkat", stage)
        assert os.readlink(arena.root / "etc/hostname") == "other"
        found = state(arena)
        for _ in range(2):
            result = run_hook([*again, *FAILS], container=c, stage=STAGES[stage])
            assert result.rc == 1
            assert result.stderr.count("level=error") == 1
            assert f"/etc/{TMP}: what a killed run had put aside stays until a run succeeds" in result.stderr
            assert state(arena) == found
            kept = list((arena.root / "etc" / TMP).iterdir())
            assert [(path.read_text(), path.stat().st_ino) for path in kept] == [("image\n", image)]
        result = run_hook(again, container=c, stage=STAGES[stage])
        assert (result.rc, result.stderr) == (0, "")
    assert os.readlink(arena.root / "etc/hostname") == ("other" if then == "the same" else "third")
    assert [name for name in os.listdir(arena.root / "etc") if name.startswith(TMP)] == []


def test_runs_killed_one_after_the_other_leave_what_one_leaves(arena: Arena, profile: str) -> None:
    """Each finds the directory of the one before, and gives its own objects other names."""
    with FakeContainer(arena.root) as c:
        for n in range(6):
            kill(c, ["create-symlinks", "--link", f"target{n}::/etc/hostname"], "unlink,unlinkat", "outside")
            assert os.readlink(arena.root / "etc/hostname") == f"target{n}"
        assert [name for name in os.listdir(arena.root / "etc") if name.startswith(TMP)] == [TMP]
        assert "image\n" in [p.read_text() for p in (arena.root / "etc" / TMP).iterdir() if not p.is_symlink()]
        assert run_hook(LINK, container=c).rc == 0
    assert os.readlink(arena.root / "etc/hostname") == "other"
    assert [name for name in os.listdir(arena.root / "etc") if name.startswith(TMP)] == []


def test_a_rerun_that_finds_all_right_clears_as_well(arena: Arena) -> None:
    """And so does one that does something else in that directory."""
    for words in (LINK, ["create-symlinks", "--link", "a::/etc/new"]):
        with FakeContainer(arena.root) as c:
            (arena.root / "etc/hostname").unlink(missing_ok=True)
            (arena.root / "etc/hostname").write_text("image\n")
            kill(c, LINK, "unlink,unlinkat", "outside")
            assert os.listdir(arena.root / "etc" / TMP)
            assert run_hook(words, container=c).rc == 0
        assert content_only(snapshot(arena.root / "etc")).get(TMP) is None
