"""Row B3 for what the prestart hook mounts: a mount point, or a directory above it, that is exchanged meanwhile.

Trees are generated in their place before Linux 5.2, and moved there whole since; host files are bound, or moved.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from kernel import namespaced
from kernel.namespaced import KERNELS, Kernel
from lib import rootfs
from lib.flipper import Flipper
from lib.oracle import Oracle
from security import racing
from security.arena import Arena
from security.test_races import rounds

from nvoci.hook.container import Container
from nvoci.hook.operation import Operation, Transaction
from nvoci.linux import procfs
from nvoci.linux.rootfs import Made
from nvoci.prestart import compatlibs, hostfiles, overlay
from nvoci.prestart.binds import Bind
from nvoci.prestart.hostfiles import Host
from nvoci.prestart.points import Points

NEW, OLD = KERNELS[0], KERNELS[3]
Make = Callable[[Points, bytes], Operation]


def generated(points: Points, path: bytes) -> overlay.Generated:
    tree = overlay.Tree(read_only=True, size="1m")
    tree.add_file("params", b"ModifyDeviceFiles: 0\n", 0o444)
    return overlay.Generated(points, path, tree, "a tree", 0o555)


def bound(points: Points, path: bytes) -> Bind:
    with Host("") as host:
        return Bind(points, host.file("/etc/hostname"), path)


def directory(points: Points, path: bytes) -> Bind:
    """One that can be written to, which later steps keep out of."""
    with Host("") as host:
        return Bind(points, host.directory("/etc/ld.so.conf.d", hostfiles.SOCKET), path)


MAKE: dict[str, Make] = {"generated": generated, "file": bound, "directory": directory}


def count(kernel: Kernel, long: bool) -> int:
    """Of the rounds of one race."""
    return rounds("new" if kernel is NEW else "compat", long=long)


def in_root(root: Path, kernel: Kernel, body: Callable[[Container], Any]) -> Any:
    """body(container) in a mount namespace of its own, on that kernel."""

    def start() -> Any:
        kernel.start()
        os.umask(0)
        procfs._handle = -1
        return body(namespaced.make_container(root, "outside"))

    return namespaced.isolated(start, limit=1500)


@pytest.mark.parametrize("there", ["a directory", "another tree of ours", "nothing"])
@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
def test_a_tree_on_a_directory_that_was_exchanged_is_taken_away_again(arena: Arena, kernel: Kernel, there: str) -> None:
    """What is at the name by then is left alone, whatever it is."""
    rootfs.tree(arena.root, "dir srv/tree")

    def body(container: Container) -> tuple[list[str], list[str], list[str]]:
        namespaced.sh(f"mount --bind {arena.root} {arena.root}; mount --make-private {arena.root}")
        container = namespaced.make_container(arena.root, "outside")
        points = Points(container, None)
        operation = generated(points, b"/srv/tree")
        point = operation._find(Made())
        (arena.root / "srv/tree").rename(arena.root / "srv/moved")
        if there != "nothing":
            (arena.root / "srv/tree").mkdir()
        if "ours" in there:
            namespaced.sh(f"mount -t tmpfs -o nosuid,nodev,noexec,ro nvoci {arena.root}/srv/tree")
        before = namespaced.mountinfo()
        with namespaced.os_error() as caught:
            operation._attach(point)
        assert caught.value.errno == (errno.ENOENT if there == "nothing" else errno.ESTALE)
        operation.undo()
        after = namespaced.mountinfo()
        return before, after, sorted(os.listdir(arena.root / "srv"))

    before, after, names = in_root(arena.root, kernel, body)
    assert after == before
    assert names == (["moved"] if there == "nothing" else ["moved", "tree"])


def attempts(arena: Arena, make: Make, path: bytes) -> racing.Attempt:
    """For `racing.race`. path: a `%d` in it is one of seven numbers."""

    @contextmanager
    def attempt(n: int) -> Iterator[Callable[[], object]]:
        container = namespaced.make_container(arena.root, "outside")
        transaction = Transaction()
        where = path % (n % 7) if b"%d" in path else path
        yield lambda: transaction.perform("race", make(Points(container, None), where))
        transaction.undo()
        container.rootfs.close()

    return attempt


@pytest.mark.parametrize("kernel", [NEW, OLD], ids=lambda kernel: kernel.name)
@pytest.mark.parametrize("what", MAKE)
def test_b3_what_is_mounted_while_a_directory_above_flips_is_in_the_root(
    arena: Arena, what: str, kernel: Kernel, long: bool
) -> None:
    rootfs.tree(arena.root, f"dir flip\ndir {str(arena.canary)[1:]}\nsymlink other {arena.canary}")

    def body(_: Container) -> tuple[int, int, list[str]]:
        return racing.race(arena.root, count(kernel, long), attempts(arena, MAKE[what], b"/flip/n%d/thing"))

    with Oracle(arena.canary) as oracle:
        with Flipper(arena.root / "flip", arena.root / "other") as flipper:
            mounted, refused, bad = in_root(arena.root, kernel, body)
        assert flipper.rounds > 50, "there was no race"
        assert oracle.check() == []
    assert bad == []
    assert mounted > 0, f"all {refused} were refused"


@pytest.mark.parametrize("kernel", [NEW, OLD], ids=lambda kernel: kernel.name)
@pytest.mark.parametrize("what", MAKE)
def test_b3_a_mount_point_that_flips_itself_is_mounted_on_or_refused(
    arena: Arena, what: str, kernel: Kernel, long: bool
) -> None:
    """By the next moment the name is another's: what was mounted is found and taken away, and nothing else is."""
    kind = "file {} image" if what == "file" else "dir {}"
    rootfs.tree(arena.root, "\n".join(["dir srv", kind.format("srv/thing"), kind.format("srv/twin")]))

    def body(_: Container) -> tuple[int, int, list[str]]:
        return racing.race(arena.root, count(kernel, long), attempts(arena, MAKE[what], b"/srv/thing"))

    with Oracle(arena.canary) as oracle:
        with Flipper(arena.root / "srv/thing", arena.root / "srv/twin") as flipper:
            _, _, bad = in_root(arena.root, kernel, body)
        assert flipper.rounds > 50, "there was no race"
        assert oracle.check() == []
    assert bad == []


@pytest.mark.parametrize("flips", ["the file", "the directory", "a directory above"])
@pytest.mark.parametrize("kernel", [NEW, OLD], ids=lambda kernel: kernel.name)
def test_cve_2025_23359_a_compatibility_library_that_flips_is_the_image_s(
    arena: Arena, kernel: Kernel, flips: str, long: bool
) -> None:
    """Compat mode `mount`: what was checked is what is mounted, never what the host has at that path."""
    name, compat = "libcuda.so.580.1", "usr/local/cuda/compat"
    (arena.canary / "compat").mkdir()
    for folder in (arena.canary, arena.canary / "compat"):
        (folder / name).write_text("the host's")
    away = f"../../../../../../../..{arena.canary}"
    rootfs.tree(arena.root, f"file {compat}/{name} the image's\nsymlink usr/local/cuda/file {arena.canary}/{name}")
    rootfs.tree(arena.root, f"symlink usr/local/cuda/other {away}\nsymlink usr/local/other {away}")
    pair = {
        "the file": (f"{compat}/{name}", "usr/local/cuda/file"),
        "the directory": (compat, "usr/local/cuda/other"),
        "a directory above": ("usr/local/cuda", "usr/local/other"),
    }[flips]

    def body(container: Container) -> tuple[int, list[str]]:
        found, tries, bad = 0, 0, []
        deadline = time.monotonic() + 20
        theirs = {(st.st_dev, st.st_ino) for st in map(os.stat, arena.canary.rglob(name))}
        while tries < count(kernel, long) or (not found and time.monotonic() < deadline):
            tries += 1
            for source in compatlibs.sources(container.rootfs, b"/" + compat.encode(), frozenset({"compute"}), "550.1"):
                found += 1
                if (source.st.st_dev, source.st.st_ino) in theirs:
                    bad.append(source.path)
                source.close()
        return found, bad

    with Flipper(arena.root / pair[0], arena.root / pair[1]):
        found, bad = in_root(arena.root, kernel, body)
    assert bad == []
    assert found > 0
