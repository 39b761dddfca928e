"""mount-mig-devices in a hostile root: rows A1 to A4, B3, C1 to C5 and J11 for what it mounts on and makes.

The image has /proc and /dev of its own here, as where a container mounts none: the runtime's would hide them. What is
given is decided by the host's tables alone, and a node that is not what they say is never given. Rows L1 and L7:
`crashscenes`.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from kernel import namespaced
from lib import mignode, rootfs, session
from lib.flipper import Flipper
from lib.hookproc import FakeContainer, run_hook
from lib.mignode import GI, MigNode
from lib.oracle import Oracle, snapshot
from security import racing
from security.arena import Arena, attempt, escapes, settled
from security.test_races import rounds

from nvoci.linux import procfs

NAIVE = Path(__file__).with_name("naive_mig.py")
UP = "../" * 25
FILE, NODE = mignode.access(GI), mignode.node(GI)
BARE = {"proc_mount": False, "dev": False}


def components(path: str) -> list[str]:
    parts = path.split("/")
    return ["/".join(parts[: n + 1]) for n in range(len(parts))]


COMPONENTS = [*components(FILE), *components(NODE)]
SOME = ["proc", "proc/driver", FILE, "dev", "dev/nvidia-caps", NODE]


@pytest.fixture
def node() -> MigNode:
    return mignode.make(session.new_dir("mig") / "node")


def stage_of(profile: str) -> str:
    """Each stage with one of the two kernels; `tests/e2e/test_mount_mig_devices.py` has the other pairs."""
    return "outside" if profile == "new" else "inside"


def go(
    arena: Arena, node: MigNode, stage: str, *words: str, container: dict[str, Any] | None = None, **how: Any
) -> Any:
    """One try under the oracle, on the simulated host, of which the container's mount namespace is a copy."""
    options = dict(container or {})
    options["setup"] = node.setup() + options.get("setup", "")
    if stage == "outside":
        how["setup"] = node.setup()
    return attempt(arena, words or node.words(GI), stage, container=options, **how)


def clear(arena: Arena, component: str) -> None:
    """The component is not there, those above it are directories."""
    path = arena.root / component
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        shutil.rmtree(path)


# --- A1 to A4: links --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("row", "where"), [("A1", "inside"), ("A2", "nowhere")])
@pytest.mark.parametrize("component", SOME)
def test_a_link_to_the_host_resolves_in_the_root_or_is_refused(
    arena: Arena, node: MigNode, profile: str, component: str, row: str, where: str
) -> None:
    """With a directory of the same name in the root it is that one which is used; else it is a dangling link."""
    text = str(arena.canary) if row == "A1" else UP + str(arena.canary)[1:]
    is_file = component in (FILE, NODE)
    clear(arena, component)
    rootfs.tree(arena.root, f"symlink {component} {text}{'/file' if is_file else ''}")
    (arena.canary / "file").touch()
    inside = str(arena.canary)[1:]
    if where == "inside":
        rootfs.tree(arena.root, f"dir {inside}" + (f"\nfile {inside}/file twin" if is_file else ""))
    planned = [".", "proc/**", "dev/**", f"{inside.partition('/')[0]}/**"]
    ok = where == "inside"
    found = go(arena, node, stage_of(profile), container=BARE, ok=ok, planned=planned if ok else [])
    assert (found if ok else settled(arena, found)) == []
    assert os.readlink(arena.root / component).startswith(text), "the image's own link was lost"


@pytest.mark.parametrize("component", SOME)
def test_naive_a_link_leads_to_the_host(arena: Arena, node: MigNode, component: str) -> None:
    clear(arena, component)
    file = "/file" if component in (FILE, NODE) else ""
    rootfs.tree(arena.root, f"symlink {component} {arena.canary}{file}")
    found = go(arena, node, "outside", container=BARE, program=NAIVE, planned=["**", "*"], lines=None)
    assert escapes(found)


MAGIC = ("/proc/self/root", "/proc/1/root", "/proc/self/cwd", "/proc/thread-self/root", "/proc/self/fd/3")


@pytest.mark.parametrize("text", MAGIC)
@pytest.mark.parametrize("component", components(NODE))
def test_a_magic_link_is_an_error_and_nothing_is_left(
    arena: Arena, node: MigNode, profile: str, component: str, text: str
) -> None:
    """/proc is a procfs; what is mounted there before the node fails is undone."""
    clear(arena, component)
    rootfs.tree(arena.root, f"symlink {component} {text}")
    options = {"dev": False, "setup": node.in_container()}
    assert settled(arena, go(arena, node, stage_of(profile), container=options, ok=False)) == []


KERNEL = ("/proc/1/attr/exec", "/proc/self/attr/exec", "/proc/meminfo")


@pytest.mark.parametrize("text", KERNEL)
def test_a_link_into_proc_does_not_hide_anything_from_the_runtime(
    arena: Arena, node: MigNode, profile: str, text: str
) -> None:
    """A security label that the runtime writes would go to the host's file (CVE-2019-16884)."""
    rootfs.tree(arena.root, f"dir dev/nvidia-caps\nsymlink {NODE} {text}")
    options = {"dev": False, "setup": node.in_container()}
    assert settled(arena, go(arena, node, stage_of(profile), container=options, ok=False)) == []


def test_naive_a_link_into_proc_is_covered(arena: Arena, node: MigNode) -> None:
    rootfs.tree(arena.root, f"dir dev/nvidia-caps\nsymlink {NODE} ../../proc/1/attr/exec")
    with FakeContainer(arena.root, dev=False, setup=node.setup() + node.in_container()) as c:
        assert run_hook(node.words(GI), container=c, stage="createContainer", program=NAIVE).rc == 0
        assert c.mounts_at("proc/1/attr/exec")


# --- C: what is in the way -----------------------------------------------------------------------------------------

SPECIAL = {
    "C1-fifo": "fifo {}",
    "C3-zero": "char {} 1 5",
    "C3-another-node": "char {} 236 1",
    "C4-block": "block {} 7 0",
    "C4-socket": "socket {}",
    "C5-dir": "dir {}",
    "C8-sparse": "sparse {} 1T",
    "file": "file {} image",
}


@pytest.mark.parametrize("path", [FILE, NODE], ids=["file", "node"])
@pytest.mark.parametrize("what", SPECIAL)
def test_what_is_at_the_mount_point_is_covered_or_refused_and_never_touched(
    arena: Arena, node: MigNode, profile: str, path: str, what: str
) -> None:
    rootfs.tree(arena.root, f"dir {Path(FILE).parent}\nfile {FILE}\ndir {Path(NODE).parent}\nfile {NODE}")
    (arena.root / path).unlink()
    rootfs.tree(arena.root, SPECIAL[what].format(path))
    before = os.lstat(arena.root / path)
    fits = what != "C5-dir"
    parts = [] if fits else ["EISDIR"]
    found = go(arena, node, stage_of(profile), container=BARE, ok=fits, parts=parts, max_wall=3.0, max_rss=64 << 10)
    assert found == []
    after = os.lstat(arena.root / path)
    assert (before.st_ino, before.st_mode, before.st_mtime_ns) == (after.st_ino, after.st_mode, after.st_mtime_ns)


@pytest.mark.parametrize("component", [c for c in COMPONENTS if c not in (FILE, NODE, "proc", "dev")])
def test_what_is_no_directory_is_an_error(arena: Arena, node: MigNode, profile: str, component: str) -> None:
    clear(arena, component)
    rootfs.tree(arena.root, f"fifo {component}")
    found = go(arena, node, stage_of(profile), container=BARE, ok=False, parts=["ENOTDIR"], max_wall=3.0)
    assert settled(arena, found) == []


# --- J11: the host's own tables and nodes ----------------------------------------------------------------------------

HOSTILE = (
    "0:1/../../../../../../../etc",
    "../../../../etc:1",
    "0:1\0",
    "0:*",
    "0:1\n0:2",
    "-1:0",
    "0:" + "1" * 100_000,
)


@pytest.mark.parametrize("value", [v for v in HOSTILE if "\0" not in v], ids=lambda v: repr(v[:20]))
def test_a_number_that_is_none_is_refused_before_anything_is_done(arena: Arena, node: MigNode, value: str) -> None:
    words = ["mount-mig-devices", f"--gpu-instance={value}", "--driver-root", str(node.root)]
    found = go(arena, node, "outside", *words, ok=False, parts=["not MINOR:GI"], planned=[])
    assert settled(arena, found) == []


def test_naive_a_number_that_is_none_is_a_path(arena: Arena, node: MigNode) -> None:
    rootfs.tree(node.root, "dir proc/driver/nvidia/capabilities/gpu0/mig/gi1/x\n")
    for name in (FILE, f"{mignode.CAPABILITIES}/mig/access"):
        (node.root / name).write_bytes((node.root / FILE).read_bytes())
    words = ["mount-mig-devices", "--gpu-instance", "0:1/../../../mig", "--driver-root", str(node.root)]
    options = {"setup": node.in_container()}
    assert go(arena, node, "outside", *words, container=options, program=NAIVE, ok=False, lines=None)


def test_a_node_of_another_number_is_never_given(arena: Arena, node: MigNode, profile: str) -> None:
    (node.root / NODE).unlink()
    rootfs.tree(node.root, f"char {NODE} 1 5 666")
    parts = ["is c 1:5, should be c 236:12"]
    found = go(arena, node, stage_of(profile), container={"setup": node.in_container()}, ok=False, parts=parts)
    assert settled(arena, found) == []


def test_naive_whatever_has_its_name_is_given(arena: Arena, node: MigNode) -> None:
    (node.root / NODE).unlink()
    rootfs.tree(node.root, f"char {NODE} 1 5 666")
    options = {"setup": node.in_container()}
    assert go(arena, node, "outside", container=options, program=NAIVE, ok=False, lines=None)


# --- B3: a mount point whose directory is exchanged meanwhile ---------------------------------------------------------


def race(arena: Arena, node: MigNode, kernel: namespaced.Kernel, count: int) -> tuple[int, int, list[str]]:
    """(mounted, refused, escapes) of `count` times a file and a node below directories that are links to the canary
    every other moment."""

    def body() -> tuple[int, int, list[str]]:
        kernel.start()
        namespaced.sh(node.setup())
        procfs._handle = -1
        return racing.race(arena.root, count, racing.capability(arena.root, node, FILE))

    with Flipper(arena.root / "dev", arena.root / "other") as flipper:
        answer: tuple[int, int, list[str]] = namespaced.isolated(body, limit=1500)
    assert flipper.rounds > 50, "there was no race"
    return answer


def test_b3_a_mount_point_that_is_made_while_its_directory_flips_is_in_the_root(
    arena: Arena, node: MigNode, profile: str, long: bool
) -> None:
    rootfs.tree(arena.root, f"dir {str(arena.canary)[1:]}\nsymlink other {arena.canary}")
    old = namespaced.Kernel("old", ("openat2", *namespaced.MOUNT_API), clone_unattached=False)
    kernel = namespaced.Kernel("all") if profile == "new" else old
    with Oracle(arena.canary) as oracle:
        mounted, refused, bad = race(arena, node, kernel, rounds(profile, long=long))
        assert oracle.check() == []
    assert bad == []
    assert mounted > 0, f"all {refused} were refused"


def test_the_host_is_read_and_never_written(arena: Arena, node: MigNode, profile: str) -> None:
    before = snapshot(node.root)
    assert go(arena, node, stage_of(profile), container={"setup": node.in_container()}, ok=True) == []
    assert snapshot(node.root) == before
