"""Bad input to the prestart hook: what lies in the place of its mount points, and the kernel's limits.

Where the image has something else that can be mounted on, it is covered and not touched; else it is one line and
nothing is left. `test_prestart.py` has the rest.
"""

from __future__ import annotations

import os
import resource
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from lib import rootfs, strace
from lib.oracle import Oracle
from security import prestartscene
from security.arena import LIBDIR
from security.prestartcase import Case, errors, judged, refused, visible
from security.prestartscene import PARENT, WORKER, Scene, View, on_node
from security.test_prestart_crash import attached

BARE = {"dev": False}  # the image's own /dev, not the runtime's


def targets(view: View) -> list[str]:
    """Where the hook mounts, but for what lies in the procfs."""
    return [mount[0] for mount in view.mounts if not mount[0].startswith("/proc") and mount[0] != "/dev"]


def usual() -> View:
    return prestartscene.ready(Scene(options=BARE))


@pytest.mark.parametrize("what", ["fifo", "socket", "char", "link", "read-only"])
def test_every_mount_target_of_another_kind_is_covered_and_not_touched(what: str) -> None:
    """A link leads to a file of the image, whatever it says; a FIFO is never opened."""

    def body() -> tuple[list[str], list[str]]:
        wanted = usual()
        paths = [path for path in targets(wanted) if "profiles" not in path]
        spec = {"fifo": "fifo {}", "socket": "socket {}", "char": "char {} 1 5", "read-only": "file {} image"}
        lines = [spec.get(what, "symlink {} /elsewhere{}").format(path[1:], path) for path in paths]
        more = "\ndir etc/nvidia/nvidia-application-profiles-rc.d\ndir usr/lib/firmware\ndir usr/bin\n"
        scene = Scene(spec="\n".join([*lines, more]), options={**BARE, "readonly": what == "read-only"})
        with scene.container() as site, Oracle(site.scene.arena.canary) as oracle:
            before = {path: os.lstat(f"{scene.arena.root}{path}") for path in paths}
            done = site.hook()
            found = oracle.check(done, ok=True, lines=None)
            got = sorted(mount[0].removeprefix("/elsewhere") for mount in site.view().mounts)
            after = {path: os.lstat(f"{scene.arena.root}{path}") for path in paths}
        found += [p for p in paths if (before[p].st_ino, before[p].st_mode) != (after[p].st_ino, after[p].st_mode)]
        mine = [path for path in got if path in paths]
        return found, sorted({*paths} ^ {*mine})

    assert on_node(body) == ([], [])


def test_every_mount_target_that_is_a_directory_is_an_error_that_names_it(long: bool) -> None:
    def body() -> list[str]:
        found = []
        paths = [path for path in targets(usual()) if "profiles" not in path]
        for path in paths if long else paths[:: len(paths) // 7]:
            with Scene(spec=f"dir {path[1:]}", options=BARE).container() as site:
                found += judged(site, [f"mount on {path}: EISDIR (the image has a directory"])
        return found

    assert on_node(body) == []


def test_every_mount_target_below_something_else_is_an_error_that_names_it(long: bool) -> None:
    """A FIFO where a directory is needed."""

    def body() -> list[str]:
        found = []
        folders = sorted({str(Path(path).parent) for path in targets(usual())} - {"/dev", f"/{LIBDIR}"})
        for path in folders if long else folders[::2]:
            if os.path.isdir(f"{Scene().arena.root}{path}"):
                continue
            with Scene(spec=f"fifo {path[1:]}", options=BARE).container() as site:
                found += judged(site, ["ENOTDIR"])
        return found

    assert on_node(body) == []


COVER = 'rm -r "$R/proc/driver/nvidia"; '
IN_THE_WAY = {
    "procfs: a FIFO": Case(["ENOENT", "the driver is not loaded"], setup=COVER + 'mkfifo "$R/proc/driver/nvidia"'),
    "procfs: a file": Case(["ENOENT", "the driver is not loaded"], setup=COVER + 'echo >"$R/proc/driver/nvidia"'),
    "procfs: a link to nowhere": Case(["ENOENT"], setup=COVER + 'ln -s /nowhere "$R/proc/driver/nvidia"'),
    "procfs: a loop": Case(["ELOOP"], setup=COVER + 'ln -s nvidia "$R/proc/driver/nvidia"'),
    "read-only": Case(["EROFS", "make it in the image"], container={"readonly": True}),
    "full": Case(
        ["ENOSPC", "the file system is full"],
        setup='mount -t tmpfs -o size=8k full "$R/etc"; mkdir "$R/etc/ld.so.conf.d"; mkdir -p '
        '"$R/etc/nvidia/nvidia-application-profiles-rc.d"; head -c 8192 /dev/zero >"$R/etc/x" || true',
    ),
    "out of inodes": Case(
        ["ENOSPC", "out of inodes"], setup=f'mount -t tmpfs -o nr_inodes=7 few "$R/{LIBDIR}"',
    ),
    "out of inodes, for directories": Case(
        ["ENOSPC", "out of inodes"], setup='mkdir "$R/run"; mount -t tmpfs -o nr_inodes=2 few "$R/run"',
    ),
    "out of mounts": Case(
        ["ENOSPC (limit of mounts reached: see fs.mount-max)"],
        how={"tracer": attached(strace.inject_error("move_mount", "ENOSPC", "20")), "who": WORKER},
    ),
    "out of mounts for what is generated": Case(
        ["ENOSPC (limit of mounts reached: see fs.mount-max)"],
        how={"tracer": attached(strace.inject_error("move_mount", "ENOSPC", "1")), "who": WORKER},
    ),
    "out of mounts on the host": Case(
        ["ENOSPC"], how={"tracer": attached(strace.inject_error("open_tree", "ENOSPC", "20")), "who": PARENT}
    ),
    "out of memory": Case(
        ["ENOMEM"], how={"tracer": attached(strace.inject_error("fsmount", "ENOMEM", "2")), "who": WORKER}
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", IN_THE_WAY)
def test_what_cannot_be_mounted_or_made(name: str) -> None:
    assert on_node(lambda: refused(IN_THE_WAY[name]._replace(looked=True))) == []


def test_descriptors_that_run_out_anywhere_leave_nothing(long: bool) -> None:
    """From what the interpreter needs up to what a start needs."""

    def limited(count: int) -> Callable[[], None]:
        return lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (count, count))

    def body() -> list[str]:
        usual()
        found = []
        for count in range(12, 130) if long else (12, 16, 30, 48, 52, 56, 60, 64, 72, 80):
            with Scene().container() as site, Oracle(site.scene.arena.canary, max_wall=15) as oracle:
                before = site.view()
                done = site.hook(preexec=limited(count))
                bad = oracle.check(done, lines=None)
                if done.rc:
                    bad += before.differences(site.view())
                    bad += [] if "EMFILE" in done.stderr and len(errors(done.stderr)) == 1 else [done.stderr]
            found += [f"{count}: {each}" for each in bad]
        return found

    assert on_node(body) == []


def test_a_node_of_the_image_is_never_taken_for_the_host_s() -> None:
    """What an image has at /dev/nvidia0 is covered by the host's node; only its number is allowed."""

    def body() -> tuple[list[object], int]:
        with Scene(env=visible("0"), spec="char dev/nvidia0x 8 0", options=BARE).container() as site:
            rootfs.tree(site.scene.arena.root, "char dev/sda 8 0")
            assert site.hook().rc == 0
            return site.rules(), stat.S_IFMT(os.lstat(site.container.path("dev/nvidia0")).st_mode)

    rules, kind = on_node(body)
    assert kind == stat.S_IFCHR
    assert "c 195:0 rw" in rules
    assert not [rule for rule in rules if " 8:" in str(rule)]
