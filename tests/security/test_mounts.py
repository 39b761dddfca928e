"""Rows P1 to P3, P6, P7 and P9 to P11: what a mount of ours is, who sees it, and what is left in an image."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from kernel import namespaced
from lib import bundle, hookproc, proc, rootfs, runtimes, session
from lib.hookproc import FakeContainer, run_hook
from lib.oracle import Oracle, snapshot
from security.arena import Arena
from unit.generate.test_hooks import CALLS
from unit.inject.thing import LIB, Json, Thing

from nvoci.generate.hooks import Hooks
from nvoci.generate.options import GenerateOptions
from nvoci.oci import hooksd

START_STAGES = ("createRuntime", "createContainer")
READ_ONLY = ("ro", "nosuid", "nodev", "bind")


@pytest.fixture
def thing() -> Thing:
    found = Thing()
    found.write({"a": {"mounts": [
        found.mount("libthing.so", LIB, *READ_ONLY), found.mount("data", "/opt/data", *READ_ONLY, "noexec"),
    ]}})  # fmt: skip
    return found


@pytest.fixture
def root() -> Path:
    return rootfs.busybox_rootfs(session.new_dir("image") / "rootfs")


def start(
    runtime: str, root: Path, hooks: dict[str, list[Json]], script: str, setup: str = "", **config: Any
) -> proc.Result:
    made = bundle.make_bundle(session.new_dir("bundle"), root, ["/bin/sh", "-c", script], hooks, **config)
    result = runtimes.Runtime(runtime).run(made, setup=setup)
    assert (result.survivors, runtimes.leftovers()) == ([], [])
    return result


# --- P1: propagation -------------------------------------------------------------------------------------------------

SHARED = "mount --make-rshared /\n"
SEEN = f"cat {LIB}; grep -c ' {LIB} ' /proc/self/mountinfo"


@pytest.mark.parametrize(
    "propagation", ["rshared", "rslave", *(pytest.param(p, marks=pytest.mark.long) for p in ("shared", "slave"))]
)
@pytest.mark.parametrize("stage", START_STAGES)
def test_p1_the_host_s_mounts_stay_as_they_are(
    thing: Thing, root: Path, runtime: str, stage: str, propagation: str
) -> None:
    """On a host whose mounts are shared, as systemd makes them. What would be seen there is refused."""
    entry = hookproc.hook_entry(thing.words())
    result = start(runtime, root, {stage: [entry]}, SEEN, SHARED, propagation=propagation)
    assert [line for line in result.mounts_added if LIB in line or "/opt/data" in line] == []
    if result.rc == 0:
        assert result.stdout == "thing one\n1\n"
    else:
        assert "shared" in propagation
        assert runtime == "crun" or "lies on a shared mount, and would appear on the host" in result.stderr
    assert (root / LIB[1:]).exists() == (result.rc == 0)


def test_naive_p1_the_host_sees_it(root: Path) -> None:
    """A container whose root shares its mounts: what is mounted there by name is on the host as well."""
    (root / "opt").mkdir()
    (root / "opt/x").touch()

    def body() -> int:
        namespaced.sh(f"mount --bind {root} {root}; mount --make-shared {root}")
        before = len(namespaced.mountinfo())
        namespaced.sh(f"unshare --mount --propagation unchanged mount --bind /etc/hostname {root}/opt/x")
        return len(namespaced.mountinfo()) - before

    assert namespaced.isolated(body) == 1


# --- P2, P3: flags, and who may change them --------------------------------------------------------------------------

FLAGS = f"""
for path in {LIB} /opt/data; do
    awk -v p=$path '$5 == p {{ sub(",relatime", "", $6); print p " " $6 }}' /proc/self/mountinfo
done
"""
CHANGE = f"""
for path in {LIB} /opt/data; do mount -o remount,bind,rw,exec,suid,dev $path 2>/dev/null; done
(echo changed >{LIB}) 2>/dev/null && echo written
(echo changed >/opt/data/model) 2>/dev/null && echo written
(echo changed >/opt/data/new) 2>/dev/null && echo made
chmod 777 {LIB} /opt/data /opt/data/model 2>/dev/null && echo mode
rm -f {LIB} /opt/data/model 2>/dev/null
umount {LIB} /opt/data 2>/dev/null
cat {LIB} /opt/data/model 2>/dev/null
echo end
"""


@pytest.mark.parametrize("stage", START_STAGES)
def test_p2_the_flags_are_those_asked_for(thing: Thing, root: Path, runtime: str, stage: str) -> None:
    result = start(runtime, root, {stage: [hookproc.hook_entry(thing.words())]}, FLAGS)
    assert (result.rc, result.mounts_added) == (0, []), result.stderr
    assert result.stdout.splitlines() == [f"{LIB} ro,nosuid,nodev", "/opt/data ro,nosuid,nodev,noexec"]


def test_p3_root_of_a_user_namespace_cannot_write_what_it_mounts_writable(
    thing: Thing, root: Path, runtime: str
) -> None:
    """The kernel lets it change mounts in a namespace of its own. The files belong to the host's root, and stay as they
    are; below the mounts there is what the image has: nothing."""
    before = snapshot(thing.folder)
    hooks = {"createRuntime": [hookproc.hook_entry(thing.words())]}
    caps = [*bundle.CAPS, "CAP_SYS_ADMIN"]
    result = start(runtime, root, hooks, CHANGE, userns=(100_000, 65_536), caps=caps)
    assert (result.rc, result.stdout, result.mounts_added) == (0, "end\n", []), result.stderr
    assert snapshot(thing.folder) == before


def test_p3_without_the_capability_nothing_of_it_works(thing: Thing, root: Path, runtime: str) -> None:
    hooks = {"createRuntime": [hookproc.hook_entry(thing.words())]}
    result = start(runtime, root, hooks, CHANGE + FLAGS, userns=(100_000, 65_536))
    wanted = ["thing one", "model", "end", f"{LIB} ro,nosuid,nodev", "/opt/data ro,nosuid,nodev,noexec"]
    assert (result.rc, result.stdout.splitlines()) == (0, wanted)


# --- P5 to P7: odd sources and targets -------------------------------------------------------------------------------


def mounted(arena: Arena, thing: Thing, mounts: Sequence[Json], host: str = "", times: int = 1) -> dict[str, list[str]]:
    """path -> flags and type of each mount on it, the older first, after `times` hooks; every path's content too."""
    thing.write({"a": {"mounts": list(mounts)}})

    def body() -> dict[str, list[str]]:
        namespaced.sh(host)
        with FakeContainer(arena.root) as c, Oracle(arena.canary) as oracle:
            for _ in range(times):
                result = run_hook(thing.words(), container=c)
                assert oracle.check(result, ok=True) == []
            found: dict[str, list[str]] = {}
            for line in c.mountinfo():
                path = line.split()[4].removeprefix(f"{arena.root}/opt")
                if path != line.split()[4]:
                    flags = line.split()[5].replace(",relatime", "")
                    found.setdefault(path, []).append(f"{flags} {line.partition(' - ')[2].split()[0]}")
            for path in list(found):
                there = c.path(f"opt{path}")
                if there.is_file():
                    found[path].append(there.read_text().strip())
            return found

    found: dict[str, list[str]] = namespaced.isolated(body)
    return found


def test_p5_a_chain_of_links_ends_at_the_file(arena: Arena, thing: Thing, profile: str) -> None:
    rootfs.tree(thing.folder, "symlink libthing libthing.1\nsymlink libthing.1 sub/../libthing.so\ndir sub")
    (found,) = mounted(arena, thing, [thing.mount("libthing", "/opt/lib", *READ_ONLY)]).values()
    assert found[-1] == "thing one"
    assert len(found) == 2


FILE_SYSTEMS = {
    "P6-tmpfs": "mount -t tmpfs x {0}",
    "P6-overlay": "mkdir {0}.l {0}.u {0}.w; mount -t overlay -o lowerdir={0}.l,upperdir={0}.u,workdir={0}.w x {0}",
    "P6-ext4": "truncate -s 4M {0}.img; mkfs.ext4 -q {0}.img; mount -o loop {0}.img {0}",
    "P6-below-another": "mount -t tmpfs x {0}; mkdir {0}/sub; mount -t tmpfs below {0}/sub; echo no >{0}/sub/x",
}


@pytest.mark.parametrize("case", FILE_SYSTEMS)
def test_p6_a_source_on_another_file_system_is_one_mount(arena: Arena, thing: Thing, profile: str, case: str) -> None:
    """Of a directory what it has itself, and nothing that is mounted below it."""
    folder = f"{thing.folder}/other"
    os.mkdir(folder)
    host = f"{FILE_SYSTEMS[case].format(folder)}; echo text >{folder}/file"
    mounts = [thing.mount("other/file", "/opt/file", *READ_ONLY), thing.mount("other", "/opt/dir", *READ_ONLY)]
    found = mounted(arena, thing, mounts, host)
    assert {path: len(seen) for path, seen in found.items()} == {"/file": 2, "/dir": 1}
    assert (found["/file"][1], found["/dir"][0].split()[0]) == ("text", "ro,nosuid,nodev")


def test_p7_the_same_target_twice_shows_the_later_and_a_rerun_adds_nothing(
    arena: Arena, thing: Thing, profile: str
) -> None:
    mounts = [thing.mount("libthing.so", "/opt/x", *READ_ONLY), thing.mount("tool", "/opt/x", *READ_ONLY)]
    once = mounted(arena, thing, mounts)
    assert once["/x"][-1].endswith("echo tool")


@pytest.mark.parametrize("times", [pytest.param(1, marks=pytest.mark.long), 2])
def test_p7_a_target_under_another_is_mounted_after_it(arena: Arena, thing: Thing, profile: str, times: int) -> None:
    """In whatever order they are named; what is mounted first does not hide the other."""
    mounts = [thing.mount("libthing.so", "/opt/d/sub/lib", *READ_ONLY), thing.mount("data", "/opt/d", *READ_ONLY)]
    rootfs.tree(thing.folder, "file data/sub/lib here")
    found = mounted(arena, thing, mounts, times=times)
    assert {path: len(seen) for path, seen in found.items()} == {"/d": 1, "/d/sub/lib": 2}
    assert found["/d/sub/lib"][1] == "thing one"


# --- P9, P10: how and when -------------------------------------------------------------------------------------------


def test_p9_the_container_s_namespace_is_entered_and_not_reached_through_procfs(arena: Arena, thing: Thing) -> None:
    """A mount on /proc/PID/root of another namespace is EINVAL; whoever gets there by name is led by the image."""
    log = session.tmp() / session.unique("calls")
    tracer = ["strace", "-f", "-qqq", "-e", "signal=none", "-o", str(log)]
    with FakeContainer(arena.root) as c:
        result = run_hook(thing.words(), container=c, prefix=[*tracer, "-e", "trace=%file,setns,move_mount,mount"])
        assert (result.rc, result.stderr) == (0, "")
        assert c.mounts_at(LIB)
    calls = log.read_text()
    assert re.search(r"setns\(.*= 0", calls)
    assert re.findall(r'.*"(?:/proc/)?\d+/(?:root|cwd)[/"].*', calls) == []


def test_p10_no_hook_of_ours_is_one_of_startcontainer() -> None:
    """There it would run with the container's rights and environment, from the container's files."""
    maker = Hooks(GenerateOptions(enabled_hooks=("chmod",)))
    assert {hook.hook_name for hook in (*maker.separate(CALLS), *maker.together(CALLS))} == {"createContainer"}
    templates = sorted((session.CHECKOUT / "oci-hooks.d").glob("*.json*"))
    stages = {stage for path in templates for stage in json.loads(path.read_text())["stages"]}
    assert stages
    assert stages <= set(hooksd.STAGES) - {"startContainer", "poststart", "poststop"}


# --- P11: what is left in the image ----------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", START_STAGES)
def test_p11_an_image_that_is_committed_has_the_mount_points_and_nothing_else(
    thing: Thing, root: Path, runtime: str, stage: str
) -> None:
    """Those that a dry run names, empty, with the directories on the way; a second start adds nothing."""
    before = snapshot(root)
    with FakeContainer(root) as c:
        told = run_hook([*thing.words(), "--dry-run"], container=c).stdout
    assert snapshot(root).keys() - before.keys() <= {"proc", "dev"}
    named = {path.lstrip("/") for path in re.findall(r" on (/\S+)", told)}
    assert named == {LIB[1:], "opt/data"}
    for _ in range(2):
        assert start(runtime, root, {stage: [hookproc.hook_entry(thing.words())]}, "true").rc == 0
        now = snapshot(root)
        fresh = {name for name in now.keys() - before.keys() if name.split("/")[0] == "opt"}
        ways = {str(parent) for path in named for parent in Path(path).parents} - {"."}
        assert fresh <= named | ways
        assert [p for p in fresh if (root / p).is_file() and (root / p).stat().st_size] == []
        assert list((root / "opt/data").iterdir()) == []


def test_p11_a_hook_that_fails_leaves_no_mount_point(thing: Thing, root: Path, runtime: str) -> None:
    rootfs.tree(root, "file opt/data/x a directory of the image\nfile opt/blocked x")
    thing.write({"a": {"mounts": [
        thing.mount("libthing.so", LIB, *READ_ONLY), thing.mount("data", "/opt/blocked/deep", *READ_ONLY),
    ]}})  # fmt: skip
    before = {name for name in snapshot(root) if name.startswith("opt")}
    assert start(runtime, root, {"createRuntime": [hookproc.hook_entry(thing.words())]}, "true").rc != 0
    assert {name for name in snapshot(root) if name.startswith("opt")} == before
