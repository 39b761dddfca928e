"""What `inject` makes and mounts on in a hostile root: rows A1 to A4, B3, C1 to C5 for its mount points.

Everything it resolves lies in the root; what is there is covered and stays as it is; nothing is made in a directory of
the host; and where it fails, nothing has changed. Rows L1 and L7: `crashscenes`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from kernel import namespaced
from lib import hookproc, rootfs
from lib.flipper import Flipper
from lib.hookproc import FakeContainer, run_hook
from lib.oracle import Oracle, snapshot
from security import racing
from security.arena import STAGES, Arena, attempt, escapes, settled
from security.test_races import rounds
from unit.inject.thing import Json, Thing

from nvoci.hook.operation import Transaction
from nvoci.inject import mountopts, mounts, sources, targets
from nvoci.linux import procfs

NAIVE = Path(__file__).with_name("naive_inject.py")
UP = "../" * 25
TARGET = "opt/vendor/thing"
COMPONENTS = ["/".join(TARGET.split("/")[: n + 1]) for n in range(3)]
KINDS = ("file", "directory", "tmpfs", "node")


@pytest.fixture
def thing() -> Thing:
    return Thing()


def edits(thing: Thing, kind: str, target: str = TARGET) -> Json:
    """One edit of this kind at `target`."""
    if kind == "node":
        return {"deviceNodes": [{"path": f"/{target}", "hostPath": "/dev/zero", "permissions": "none"}]}
    if kind == "tmpfs":
        return {"mounts": [{"hostPath": "tmpfs", "containerPath": f"/{target}", "type": "tmpfs"}]}
    return {"mounts": [thing.mount({"file": "libthing.so", "directory": "data"}[kind], f"/{target}", "ro", "bind")]}


def words(thing: Thing, kind: str, target: str = TARGET) -> list[str]:
    thing.write({"a": edits(thing, kind, target)})
    return thing.words()


def lay(arena: Arena, component: str, kind: str, text: str, where: str) -> None:
    """The component becomes a link that says `text`, the path of the canary; `inside`: the same path is in the root."""
    last = component == TARGET and kind in ("file", "node")
    rootfs.tree(arena.root, f"symlink {component} {text}{'/file' if last else ''}")
    (arena.canary / "file").touch()
    if where == "inside":
        rootfs.tree(arena.root, f"dir {str(arena.canary)[1:]}\nfile {str(arena.canary)[1:]}/file twin")


def mounted_at(container: FakeContainer) -> list[str]:
    top = f"{container.rootfs}/"
    inside = [line.split()[4].removeprefix(top) for line in container.mountinfo() if line.split()[4].startswith(top)]
    return [path for path in inside if path.split("/")[0] not in ("proc", "dev")]


def leads_to(arena: Arena, component: str, kind: str) -> str:
    """Where the mount belongs when the component leads to the canary's path inside the root."""
    last = component == TARGET and kind in ("file", "node")
    rest = TARGET.removeprefix(component).strip("/") or ("file" if last else "")
    return f"{str(arena.canary)[1:]}/{rest}".rstrip("/")


def stage_of(profile: str) -> hookproc.Stage:
    """Each of the two stages with one of the two kernels; `tests/e2e/test_inject.py` has the other pairs."""
    return STAGES["outside" if profile == "new" else "inside"]


# --- A1 to A4: links --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("row", "where"), [("A1", "inside"), ("A2", "nowhere")])
@pytest.mark.parametrize("component", COMPONENTS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_link_to_the_host_resolves_in_the_root(
    arena: Arena, thing: Thing, profile: str, kind: str, component: str, row: str, where: str
) -> None:
    """As in runc, a link that leads nowhere is followed too, and what it leads to is made inside the root."""
    text = str(arena.canary) if row == "A1" else UP + str(arena.canary)[1:]
    lay(arena, component, kind, text, where)
    inside = f"{str(arena.canary)[1:].partition('/')[0]}/**"
    with FakeContainer(arena.root) as c, Oracle(arena.canary, arena.root, [".", "opt/**", inside]) as oracle:
        result = run_hook(words(thing, kind), container=c, stage=stage_of(profile))
        found = oracle.check(result, ok=True)
        assert (found, mounted_at(c)) == ([], [leads_to(arena, component, kind)])
    assert os.readlink(arena.root / component).startswith(text), "the image's own link was lost"


@pytest.mark.parametrize("component", COMPONENTS)
@pytest.mark.parametrize("kind", ["file", "directory"])
def test_naive_a_link_leads_to_the_host(arena: Arena, thing: Thing, kind: str, component: str) -> None:
    lay(arena, component, kind, str(arena.canary), "nowhere")
    found = attempt(arena, words(thing, kind), program=NAIVE, planned=["**", "*"], lines=None)
    assert escapes(found)


MAGIC = ("/proc/self/root", "/proc/1/root", "/proc/self/cwd", "/proc/thread-self/root", "/proc/self/fd/3")


@pytest.mark.parametrize("text", MAGIC)
@pytest.mark.parametrize("component", [COMPONENTS[0], COMPONENTS[-1]])
def test_a_magic_link_is_an_error_and_nothing_is_made(
    arena: Arena, thing: Thing, profile: str, component: str, text: str
) -> None:
    kind = "directory" if component == TARGET else "file"
    rootfs.tree(arena.root, f"symlink {component} {text}")
    stage = "outside" if profile == "new" else "inside"
    assert settled(arena, attempt(arena, words(thing, kind), stage, ok=False, parts=["inject:"])) == []


KERNEL = ("/proc/1/attr/exec", "/proc/self/attr/exec", "/proc/meminfo")


@pytest.mark.parametrize("text", KERNEL)
@pytest.mark.parametrize("kind", ["file", "node"])
def test_a_link_into_proc_does_not_hide_anything_from_the_runtime(
    arena: Arena, thing: Thing, profile: str, kind: str, text: str
) -> None:
    """A security label that the runtime writes would go to the host's file (CVE-2019-16884)."""
    rootfs.tree(arena.root, f"symlink {TARGET} {text}")
    stage = "outside" if profile == "new" else "inside"
    assert settled(arena, attempt(arena, words(thing, kind), stage, ok=False, parts=["inject:"])) == []


def test_naive_a_link_into_proc_is_covered(arena: Arena, thing: Thing) -> None:
    rootfs.tree(arena.root, f"symlink {TARGET} ../../proc/1/attr/exec")
    thing.write({"a": edits(thing, "file")})
    with FakeContainer(arena.root) as c:
        assert run_hook(thing.words(), container=c, stage="createContainer", program=NAIVE).rc == 0
        assert c.mounts_at("proc/1/attr/exec")


# --- C: what is in the way -----------------------------------------------------------------------------------------

SPECIAL = {
    "C1-fifo": f"fifo {TARGET}",
    "C3-zero": f"char {TARGET} 1 5",
    "C4-block": f"block {TARGET} 7 0",
    "C4-socket": f"socket {TARGET}",
    "C5-dir": f"dir {TARGET}",
    "C8-sparse": f"sparse {TARGET} 1T",
    "file": f"file {TARGET} image",
}


@pytest.mark.parametrize("what", SPECIAL)
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_at_the_mount_point_is_covered_or_refused_and_never_touched(
    arena: Arena, thing: Thing, kind: str, what: str
) -> None:
    rootfs.tree(arena.root, SPECIAL[what])
    before = os.lstat(arena.root / TARGET)
    fits = (what == "C5-dir") == (kind in ("directory", "tmpfs"))
    parts = [] if fits else ["EISDIR" if what == "C5-dir" else "ENOTDIR"]
    stage = "inside" if kind in ("file", "tmpfs") else "outside"
    assert attempt(arena, words(thing, kind), stage, ok=fits, parts=parts, max_wall=3.0, max_rss=64 << 10) == []
    after = os.lstat(arena.root / TARGET)
    assert (before.st_ino, before.st_mode, before.st_mtime_ns) == (after.st_ino, after.st_mode, after.st_mtime_ns)


@pytest.mark.parametrize("what", sorted(set(SPECIAL) - {"C5-dir"}))
def test_nothing_is_made_below_what_is_no_directory(arena: Arena, thing: Thing, what: str) -> None:
    rootfs.tree(arena.root, SPECIAL[what])
    found = attempt(arena, words(thing, "file", f"{TARGET}/below"), ok=False, parts=["ENOTDIR"], max_wall=3.0)
    assert found == []


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_made_in_a_directory_of_the_host(arena: Arena, thing: Thing, kind: str) -> None:
    """Writable, so it could be: a runtime does."""
    first = thing.mount("data", "/opt/vendor", "rw", "rbind")
    second = edits(thing, kind)
    thing.write({"a": {**second, "mounts": [*second.get("mounts", []), first]}})
    before = snapshot(thing.folder)
    parts = ["lies in a directory of the host", "make it on the host"]
    found = attempt(arena, thing.words(), "outside", ok=False, parts=parts, planned=[])
    assert settled(arena, found) == []
    assert snapshot(thing.folder) == before


def test_naive_something_is_made_in_a_directory_of_the_host(arena: Arena, thing: Thing) -> None:
    thing.write({"a": {"mounts": [thing.mount("data", "/opt/vendor"), thing.mount("tool", "/opt/vendor/thing")]}})
    before = snapshot(thing.folder)
    with FakeContainer(arena.root) as c:
        run_hook(thing.words(), container=c, stage="createContainer", program=NAIVE)
    assert snapshot(thing.folder) != before


# --- B3: a mount point that is exchanged meanwhile -------------------------------------------------------------------


def race(arena: Arena, kernel: namespaced.Kernel, thing: Thing, count: int) -> tuple[int, int, list[str]]:
    """(mounted, refused, escapes) of `count` mounts on a missing file below a directory that is a link to the canary
    every other moment."""
    rootfs.tree(arena.root, f"dir flip\ndir {str(arena.canary)[1:]}\nsymlink other {arena.canary}")

    def body() -> tuple[int, int, list[str]]:
        kernel.start()
        procfs.handle()
        options = mountopts.parse(["ro", "bind"])

        @contextmanager
        def once(n: int) -> Iterator[Callable[[], object]]:
            container = namespaced.make_container(arena.root, "outside")
            source = sources.open_source(thing.host("libthing.so"), options)
            operation = mounts.Bind(container, targets.Place(container.rootfs), source, b"/flip/n%d/thing" % (n % 7))
            yield lambda: operation.execute(Transaction())
            operation.undo()
            source.close()
            operation.place.rootfs.close()
            container.rootfs.close()

        return racing.race(arena.root, count, once)

    with Flipper(arena.root / "flip", arena.root / "other") as flipper:
        answer: tuple[int, int, list[str]] = namespaced.isolated(body, limit=1500)
    assert flipper.rounds > 50, "there was no race"
    return answer


def test_b3_a_mount_point_that_is_made_while_its_directory_flips_is_in_the_root(
    arena: Arena, thing: Thing, profile: str, long: bool
) -> None:
    old = namespaced.Kernel("old", ("openat2", *namespaced.MOUNT_API), clone_unattached=False)
    with Oracle(arena.canary) as oracle:
        mounted, refused, bad = race(
            arena, namespaced.Kernel("all") if profile == "new" else old, thing, rounds(profile, long=long)
        )
        assert oracle.check() == []
    assert bad == []
    assert mounted > 0, f"all {refused} were refused"


def test_naive_b3_a_flipping_directory_leads_out(arena: Arena, thing: Thing) -> None:
    rootfs.tree(arena.root, f"dir flip\nsymlink other {arena.canary}")
    thing.write({"a": {"mounts": [thing.mount("tool", f"/flip/n{n}/thing") for n in range(50)]}})
    found: list[str] = []
    with Flipper(arena.root / "flip", arena.root / "other"):
        for _ in range(5):
            found += attempt(arena, thing.words(), program=NAIVE, still=False, lines=None)
            if escapes(found):
                break
    assert escapes(found)
