"""CDI devices of a made-up vendor in containers of runc, crun and podman, none of which is asked to know CDI."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from e2e.gpunode import STAGES, Program
from lib import elfmaker, jail, oracle, proc, rootfs, runtimes, session
from lib.bundle import Json, make_bundle
from unit.inject.thing import KIND, LIB, Thing, hook

pytestmark = pytest.mark.e2e
# A device that no runtime allows by itself, and that opening does nothing to.
NODE, NUMBER = "/dev/fuse", "10:229"
REPORT = r"""
at() {
    sed -n "s|^[0-9]* [0-9]* [0-9:]* [^ ]* $1 \([^ ]*\) .*|\1|p" /proc/self/mountinfo | sed 's/,relatime//' |
        tr '\n' ' '
}
for path in /opt/vendor/lib/libthing.so /opt/data /opt/scratch /dev/thing /dev/thing-ro; do
    echo "at $path $(at $path)"
done
echo "lib $(cat /opt/vendor/lib/libthing.so 2>&1)"
echo "data $(cat /opt/data/model 2>&1)"
(echo x >/opt/vendor/lib/libthing.so) 2>&1 | sed 's/.*: /write lib: /'
test -z "$(at /opt/scratch)" || { echo x >/opt/scratch/x && echo "scratch $(cat /opt/scratch/x)"; }
echo "number $(stat -c %t:%T /dev/thing 2>/dev/null)"
for node in /dev/thing /dev/thing-ro; do
    test -c $node || continue
    (: <$node) 2>/dev/null && echo "$node read"
    (: >>$node) 2>/dev/null && echo "$node write"
done
true
"""
MOUNTED = [
    "at /opt/vendor/lib/libthing.so ro,nosuid,nodev ",
    "at /opt/data ro,nosuid,nodev,noexec ",
    "at /opt/scratch rw,nosuid,nodev ",
    "lib thing one",
    "data model",
    "write lib: Read-only file system",
    "scratch x",
]
NODES = [
    "at /dev/thing ro,nosuid,noexec ",
    "at /dev/thing-ro ro,nosuid,noexec ",
    "number a:e5",
    "/dev/thing read",
    "/dev/thing write",
    "/dev/thing-ro read",
]


def edits(thing: Thing) -> Json:
    """Mounts of every kind, and nodes."""
    return {
        "env": ["THING=a"],
        "mounts": [
            thing.mount("libthing.so", LIB, "ro", "nosuid", "nodev", "rbind", "rprivate"),
            thing.mount("data", "/opt/data", "ro", "nosuid", "nodev", "noexec", "bind"),
            {"hostPath": "tmpfs", "containerPath": "/opt/scratch", "type": "tmpfs",
             "options": ["size=64k", "nosuid", "nodev"]},
        ],
        "deviceNodes": [
            {"path": "/dev/thing", "hostPath": NODE, "permissions": "rwm"},
            {"path": "/dev/thing-ro", "hostPath": "/dev/loop-control", "permissions": "r"},
        ],
    }  # fmt: skip


@pytest.fixture
def thing() -> Thing:
    return Thing()


@pytest.fixture
def root() -> Path:
    return rootfs.busybox_rootfs(session.new_dir("image") / "rootfs")


def start(
    runtime: str, root: Path, hooks: dict[str, list[Json]], script: str = REPORT, cgroups: str = "v1", **config: Any
) -> proc.Result:
    """A container; what is mounted and running afterwards is looked at."""
    bundle = make_bundle(session.new_dir("bundle"), root, ["/bin/sh", "-c", script], hooks, **config)
    result = runtimes.Runtime(runtime, cgroups).run(bundle)
    assert (result.survivors, result.mounts_added, runtimes.leftovers()) == ([], [], [])
    return result


def said(result: proc.Result) -> list[str]:
    return list(dict.fromkeys(result.stdout.splitlines()))


def test_without_the_hook_the_container_has_nothing_of_it(root: Path, runtime: str) -> None:
    """What the other tests compare with, and proof that the report can tell."""
    lines = said(start(runtime, root, {}))
    assert not set(lines) & set(MOUNTED + NODES)
    assert "number " in lines


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("cgroups", ["v1", "v2"])
def test_a_device_of_any_vendor(
    program: Program, thing: Thing, root: Path, runtime: str, stage: str, cgroups: str
) -> None:
    thing.write({"a": edits(thing)})
    result = start(runtime, root, {stage: [program.entry(*thing.words())]}, cgroups=cgroups)
    assert (result.rc, [line for line in said(result) if line in MOUNTED + NODES]) == (0, MOUNTED[:3] + NODES[:2] +
            MOUNTED[3:] + NODES[2:]), (result.stdout, result.stderr)  # fmt: skip
    assert "/dev/thing-ro write" not in said(result)


@pytest.mark.parametrize("stage", ["createRuntime", "createContainer"])
def test_without_the_newer_system_calls(
    each_program: Program, thing: Thing, root: Path, runtime: str, stage: str
) -> None:
    thing.write({"a": edits(thing)})
    result = start(runtime, root, {stage: [each_program.entry(*thing.words())]})
    assert set(MOUNTED + NODES) <= set(said(result)), (result.stdout, result.stderr)


YAML = """\
---
cdiVersion: 0.5.0
kind: vendor.example/thing
devices:
    - name: "0"
      containerEdits:
          mounts:
              - hostPath: {lib}
                containerPath: /opt/vendor/lib/libthing.so
                options: [ro, nosuid, nodev, rbind]
"""


def test_a_specification_in_yaml(program: Program, thing: Thing, root: Path, runtime: str) -> None:
    """PyYAML comes from the installed tree."""
    (thing.specs / "thing.yaml").write_text(YAML.format(lib=thing.host("libthing.so")))
    result = start(runtime, root, {"createRuntime": [program.entry(*thing.words("0"))]})
    assert {MOUNTED[0], "lib thing one"} <= set(said(result)), (result.stdout, result.stderr)


def test_two_stages_of_one_start_leave_what_one_leaves(
    program: Program, thing: Thing, root: Path, runtime: str
) -> None:
    thing.write({"a": edits(thing)})
    entry = program.entry(*thing.words())
    result = start(runtime, root, {"prestart": [entry], "createRuntime": [entry], "createContainer": [entry]})
    assert set(MOUNTED + NODES) <= set(said(result)), (result.stdout, result.stderr)
    once = start(runtime, root, {"createContainer": [entry]})
    assert set(MOUNTED + NODES) <= set(said(once)), (once.stdout, once.stderr)


def test_the_mount_points_are_those_that_runc_makes(program: Program, thing: Thing, root: Path) -> None:
    """The second witness is runc itself, given the same mounts in its config.json."""
    thing.write({"a": edits(thing)})
    other = rootfs.busybox_rootfs(session.new_dir("image") / "rootfs")
    assert start("runc", root, {"createRuntime": [program.entry(*thing.words())]}).rc == 0
    mounts = [
        {"destination": m["containerPath"], "source": m["hostPath"], "type": m.get("type", "bind"),
         "options": m["options"]} for m in edits(thing)["mounts"]
    ]  # fmt: skip
    assert start("runc", other, {}, mounts=mounts).rc == 0
    ours, theirs = (oracle.content_only(oracle.snapshot(each)) for each in (root, other))
    assert ours == theirs


# --- user namespaces, read-only roots -------------------------------------------------------------------------------

FIRST = 100000
USERNS: dict[str, Any] = {"userns": (FIRST, 65536)}
ZERO = [{"path": "/dev/thing", "hostPath": "/dev/zero"}]  # one that everybody may open


def plain(thing: Thing) -> Json:
    return {**edits(thing), "deviceNodes": ZERO}


def made_mount_points(root: Path) -> None:
    """A mapped user can make none of them in host root's directories: the runtime's own, made by an ordinary start."""
    assert start("runc" if runtimes.available("runc") else "crun", root, {}).rc == 0


@pytest.mark.parametrize("owner", [FIRST, 0])
def test_in_a_user_namespace_from_outside(
    each_program: Program, thing: Thing, root: Path, runtime: str, owner: int
) -> None:
    made_mount_points(root)
    subprocess.run(["chown", "-hR", f"{owner}:{owner}", root], check=True)
    thing.write({"a": plain(thing)})
    result = start(runtime, root, {"createRuntime": [each_program.entry(*thing.words())]}, **USERNS)
    lines = said(result)
    assert {*MOUNTED, "number 1:5", "/dev/thing read", "/dev/thing write"} <= set(lines), (lines, result.stderr)


def test_in_a_user_namespace_from_inside(each_program: Program, thing: Thing, root: Path, runtime: str) -> None:
    made_mount_points(root)
    subprocess.run(["chown", "-hR", f"{FIRST}:{FIRST}", root], check=True)
    thing.write({"a": plain(thing)})
    result = start(runtime, root, {"createContainer": [each_program.entry(*thing.words())]}, **USERNS)
    assert {*MOUNTED, "number 1:5"} <= set(said(result)), (result.stdout, result.stderr)


@pytest.mark.parametrize("stage", STAGES)
def test_on_a_read_only_root(program: Program, thing: Thing, root: Path, runtime: str, stage: str) -> None:
    """As long as the root can be written, mount points are made; when it cannot, their lack is an error, which names
    what is missing. Where they are there, it makes no difference."""
    thing.write({"a": edits(thing)})
    log = session.tmp() / session.unique("log")
    setup = jail.host_files({"/etc/nvoci/hook.json": json.dumps({"log": {"file": str(log)}})})
    hooks = {stage: [program.entry(*thing.words())]}
    bundle = make_bundle(session.new_dir("bundle"), root, ["/bin/sh", "-c", REPORT], hooks, readonly=True)
    first = runtimes.Runtime(runtime).run(bundle, setup=setup)
    if (runtime, stage) == ("crun", "createContainer"):
        assert (first.rc != 0, first.stdout) == (True, "")
        (line,) = [x for x in log.read_text().splitlines() if "level=error" in x]
        assert "EROFS (the container's root is read-only and has nothing there: make it in the image)" in line
        (root / "opt/data").mkdir(parents=True)
        (root / "opt/scratch").mkdir()
        (root / LIB[1:]).parent.mkdir(parents=True)
        (root / LIB[1:]).touch()
        first = runtimes.Runtime(runtime).run(bundle, setup=setup)
    assert set(MOUNTED + NODES) <= set(said(first)), (first.stdout, first.stderr)


# --- hooks of a device ----------------------------------------------------------------------------------------------

SONAME = "libthing.so.1"


def test_hooks_of_ours_run_after_the_mounts(program: Program, thing: Thing, runtime: str) -> None:
    """A library in a directory of its own is found, whether the hook is in our form or the reference's."""
    root = rootfs.glibc_rootfs(session.new_dir("image") / "rootfs")
    probe = rootfs.add_probe(root, SONAME)
    elfmaker.make_so(thing.folder / "libthing.so.1.0", SONAME, machine=os.uname().machine)
    links = ["create-symlinks", "--link", "libthing.so.1::/opt/thing/libthing.so"]
    cache = ["update-ldcache", "--folder", "/opt/thing"]
    thing.write(
        {"a": {"hooks": [hook("createContainer", "/usr/bin/nvidia-ctk", "hook", *links)]},
         "b": {"hooks": [hook("createContainer", "/usr/bin/nvidia-cdi-hook", "run", "--", *links, "--", *cache)]}},
        {"mounts": [thing.mount("libthing.so.1.0", "/opt/thing/libthing.so.1.0")],
         "hooks": [hook("createContainer", "/usr/bin/nvidia-cdi-hook", *cache)]},
    )  # fmt: skip
    script = f"readlink /opt/thing/libthing.so; {probe} >/dev/null; echo $?"
    for device in "ab":
        result = start(runtime, root, {"createRuntime": [program.entry(*thing.words(device))]}, script)
        assert (result.rc, result.stdout) == (0, "libthing.so.1\n0\n"), result.stderr


@pytest.mark.parametrize("stage", ["createRuntime", "prestart"])
def test_a_program_of_the_vendor_runs_on_the_host_with_the_state(
    program: Program, thing: Thing, root: Path, runtime: str, stage: str
) -> None:
    out = thing.folder / "out"
    script = f"cat >{out}.state; readlink /proc/self/ns/mnt >{out}.ns; env >{out}.env; pwd -P >{out}.cwd"
    vendor = hook(stage, "/bin/sh", "-c", script, env=["PATH=/usr/bin:/bin", "THING=one"], timeout=20)
    thing.write({"a": {**edits(thing), "hooks": [vendor]}})
    witness = hook_entry(f"readlink /proc/self/ns/mnt >{out}.host")
    result = start(runtime, root, {"createRuntime": [witness, program.entry(*thing.words())]})
    assert set(MOUNTED) <= set(said(result)), result.stderr
    state = json.loads(Path(f"{out}.state").read_text())
    assert (state["pid"] > 1, state["bundle"] + "\n") == (True, Path(f"{out}.cwd").read_text())
    assert Path(f"{out}.ns").read_text() == Path(f"{out}.host").read_text()
    env = Path(f"{out}.env").read_text().splitlines()
    assert sorted(x for x in env if not x.startswith(("PWD=", "_=", "SHLVL="))) == ["PATH=/usr/bin:/bin", "THING=one"]


def hook_entry(script: str) -> Json:
    return runtimes.shell_hook(script)


def test_a_vendor_s_program_that_fails_stops_the_start_and_leaves_nothing(
    program: Program, thing: Thing, root: Path, runtime: str
) -> None:
    made_mount_points(root)
    thing.write({"a": {**edits(thing), "hooks": [hook("createRuntime", "/bin/sh", "-c", "echo no thing; exit 3")]}})
    before = oracle.content_only(oracle.snapshot(root))
    result = start(runtime, root, {"createRuntime": [program.entry(*thing.words())]})
    assert (result.rc != 0, result.stdout) == (True, "")
    if runtime == "runc":
        assert "inject: run /bin/sh -c echo no thing; exit 3: exit status 3: no thing" in result.stderr
    assert oracle.content_only(oracle.snapshot(root)) == before


# --- podman: an entry of a hooks directory ----------------------------------------------------------------------------


def podman(
    program: Program,
    thing: Thing,
    root: Path,
    runtime: str,
    install: Sequence[str],
    flags: Sequence[str] = (),
    **how: Any,
) -> proc.Result:
    hooks = session.new_dir("hooks.d")
    done = proc.run([program.path.with_name("nvoci"), "hooksd", "install", "--dir", hooks, *install])
    assert done.ok, done.stderr
    command = ["/bin/sh", "-c", REPORT]
    return runtimes.podman(root, command, runtime=runtime, hooks_dir=hooks, flags=flags, **how)


needs_podman = pytest.mark.skipif(not runtimes.available("podman"), reason="podman is not installed")


@needs_podman
def test_an_entry_of_a_hooks_directory(program: Program, thing: Thing, root: Path, runtime: str) -> None:
    thing.write({"a": edits(thing)})
    result = podman(program, thing, root, runtime, thing.words())
    assert set(MOUNTED + NODES) <= set(said(result)), (result.stdout, result.stderr)


@needs_podman
def test_the_annotations_of_a_container_choose_its_devices(
    program: Program, thing: Thing, root: Path, runtime: str
) -> None:
    """Only of those that have one: the entry's condition, and the hook, read the same annotation."""
    thing.write({"a": edits(thing)})
    install = ["--annotation", r"^cdi\.k8s\.io/=.", "inject", "--from-annotations", "--spec-dir", str(thing.specs)]
    asked = podman(program, thing, root, runtime, install, ["--annotation", f"cdi.k8s.io/test_a={KIND}=a"])
    assert set(MOUNTED + NODES) <= set(said(asked)), (asked.stdout, asked.stderr)
    plain = podman(program, thing, root, runtime, install)
    assert (plain.rc, set(said(plain)) & set(MOUNTED + NODES)) == (0, set()), plain.stderr


@needs_podman
def test_the_container_sees_what_an_engine_with_cdi_would_give_it(
    program: Program, thing: Thing, root: Path, runtime: str
) -> None:
    """The second witness is Podman's own CDI. It makes nodes of its own, where ours are the host's, mounted."""
    path = thing.write({"a": edits(thing)}, version="0.5.0")
    ours = podman(program, thing, root, runtime, thing.words())
    theirs = runtimes.podman(root, ["/bin/sh", "-c", REPORT], runtime=runtime, flags=["--device", f"{KIND}=a"],
                             cdi_specs={"thing.json": path.read_text()})  # fmt: skip
    assert (ours.rc, theirs.rc) == (0, 0), (ours.stderr, theirs.stderr)
    assert [x for x in said(ours) if "at /dev" not in x] == [x for x in said(theirs) if "at /dev" not in x]
