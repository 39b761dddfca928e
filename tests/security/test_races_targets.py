"""Row B3 for the mount points of inject and of mount-mig-devices themselves: one that is a file, then a link out of the
image, then the file again. test_inject.py and test_mig.py have the directories above."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from kernel import namespaced
from lib import mignode, rootfs, session
from lib.flipper import Flipper
from lib.oracle import Oracle
from security import racing
from security.arena import Arena, attempt, escapes
from security.test_inject import NAIVE
from security.test_races import rounds
from unit.inject.thing import Thing

from nvoci.hook.operation import Transaction
from nvoci.inject import mountopts, mounts, sources, targets
from nvoci.linux import procfs

NODE = mignode.node(mignode.GI)
OTHERS = {"a link out": "symlink srv/other {canary}/secret", "another file": "file srv/other other"}


def injected(arena: Arena) -> tuple[racing.Attempt, str]:
    """A host file on srv/thing; (an attempt, set-up of the host)."""
    thing, options = Thing(), mountopts.parse(["ro", "bind"])

    @contextmanager
    def once(_: int) -> Iterator[Callable[[], object]]:
        container = namespaced.make_container(arena.root, "outside")
        source = sources.open_source(thing.host("libthing.so"), options)
        operation = mounts.Bind(container, targets.Place(container.rootfs), source, b"/srv/thing")
        yield lambda: operation.execute(Transaction())
        operation.undo()
        source.close()
        operation.place.rootfs.close()
        container.rootfs.close()

    return once, ""


def mig(arena: Arena) -> tuple[racing.Attempt, str]:
    """A capability's node on a file that flips, and its access file."""
    node = mignode.make(session.new_dir("mig") / "node")
    rootfs.tree(arena.root, "symlink dev/nvidia-caps /srv")
    return racing.capability(arena.root, node, mignode.access(mignode.GI)), node.setup()


MAKE = {"inject": (injected, "srv/thing"), "mount-mig-devices": (mig, f"srv/{NODE.rpartition('/')[2]}")}


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("what", MAKE)
def test_b3_a_mount_point_that_flips_itself_is_mounted_on_or_refused(
    arena: Arena, profile: str, what: str, other: str, long: bool
) -> None:
    make, path = MAKE[what]
    twin = str(arena.canary)[1:]
    rootfs.tree(arena.root, f"file {path} image\nfile {twin}/secret twin\n{OTHERS[other].format(canary=arena.canary)}")
    once, setup = make(arena)
    old = namespaced.Kernel("old", ("openat2", *namespaced.MOUNT_API), clone_unattached=False)
    kernel = namespaced.Kernel("all") if profile == "new" else old

    def body() -> tuple[int, int, list[str]]:
        kernel.start()
        if setup:
            namespaced.sh(setup)
        procfs._handle = -1
        return racing.race(arena.root, rounds(profile, long=long), once)

    with Oracle(arena.canary) as oracle:
        with Flipper(arena.root / path, arena.root / "srv/other") as flipper:
            mounted, refused, bad = namespaced.isolated(body, limit=1500)
        assert flipper.rounds > 50, "there was no race"
        assert oracle.check() == []
    assert bad == []
    assert mounted + refused >= rounds(profile, long=long)


def test_naive_b3_a_mount_point_that_flips_is_the_host_s(arena: Arena) -> None:
    thing = Thing()
    rootfs.tree(arena.root, f"file srv/thing image\nsymlink srv/other {arena.canary}/secret")
    thing.write({"a": {"mounts": [thing.mount("libthing.so", "/srv/thing") for _ in range(10)]}})
    found: list[str] = []
    with Flipper(arena.root / "srv/thing", arena.root / "srv/other"):
        for _ in range(40):
            found += attempt(arena, thing.words(), program=NAIVE, still=False, lines=None)
            if escapes(found):
                break
    assert escapes(found)
