"""What differs from start to start and must not matter: the stage's state and working directory, how config.json names
the root, what file system it lies on, which cgroups the host has, what the hook inherits."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from e2e.gpunode import ALL, CHANGES, HOOKS, PLAIN, STAGES, Node, Program, run_words
from lib import proc, rootfs, session

pytestmark = pytest.mark.e2e
EVERYTHING = {**PLAIN, **ALL}
INSIDE_AND_OUT = ("createRuntime", "createContainer")


# What the two runtimes really tell a hook: runc 1.1 and crun 1.8.
@pytest.mark.parametrize("stage", STAGES)
def test_each_stage_gives_what_the_hook_is_made_for(node: Node, runtime: str, stage: str, tmp_path: Path) -> None:
    """The cases the other tests rely on: a host pid outside, 1 or 0 inside, the root in crun's state alone."""
    record = tmp_path / "record"
    shell = f'cat >{record}.state; pwd -P >{record}.cwd; exec "$@" <{record}.state'
    seen = node.start(runtime, stage, node.program.entry(*run_words(), shell=shell))
    assert seen.said == EVERYTHING, seen.result.stderr
    state, cwd = json.loads(Path(f"{record}.state").read_text()), Path(f"{record}.cwd").read_text().strip()
    inside = stage == "createContainer"
    assert state.get("root") == (str(node.root) if runtime == "crun" else None)
    assert (state["pid"] in (0, 1)) == inside
    assert cwd == (str(node.root) if inside and runtime == "runc" else state["bundle"])


@pytest.mark.parametrize("stage", INSIDE_AND_OUT)
@pytest.mark.parametrize(
    ("folder", "said"),
    {
        "relative": ("bundle", "rootfs"),
        "relative with dots": ("bundle", "./x/../rootfs/"),
        "odd characters": ("a  bundle; $(touch x) 'q' \"d\" \u00fc\u20ac%s", "rootfs"),
        "a root with odd characters": ("bundle", "the root: 'q' $x\\n \u00fc %d,ro"),
    }.values(),
    ids=["relative", "relative with dots", "odd bundle", "odd root"],
)
def test_the_root_as_config_json_names_it(node: Node, runtime: str, stage: str, folder: str, said: str) -> None:
    bundle = session.new_dir("place") / folder
    (bundle / "x").mkdir(parents=True)
    root = bundle / said.replace("./x/../", "").rstrip("/")
    shutil.move(node.root, root)
    node.root = root
    entry = node.program.entry(*run_words())
    seen = node.start(runtime, stage, entry, bundle=bundle, root=root, config_root=said)
    assert seen.said == EVERYTHING, seen.result.stderr


@pytest.fixture(params=["overlay", "overlay, no redirect, metacopy", "tmpfs"])
def other_root(node: Node, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """The node's image on another file system."""
    out = tmp_path / "mounted"
    out.mkdir()
    if request.param == "tmpfs":
        with rootfs.tmpfs(out):
            proc.run(["cp", "-a", f"{node.root}/.", out])
            yield out
        return
    options = "redirect_dir=off,metacopy=off" if "," in request.param else ""
    upper, work = session.new_dir("upper"), session.new_dir("work")
    upper.chmod(0o755)
    layers = f"lowerdir={node.root},upperdir={upper},workdir={work}" + (f",{options}" if options else "")
    done = proc.run(["mount", "-t", "overlay", "-o", layers, "overlay", out])
    assert done.ok, done.stderr
    yield out
    assert proc.run(["umount", "-l", out]).ok


@pytest.mark.parametrize("stage", INSIDE_AND_OUT)
def test_roots_on_other_file_systems(
    node: Node, each_program: Program, other_root: Path, runtime: str, stage: str
) -> None:
    for start in ("first", "second"):
        seen = node.start(runtime, stage, each_program.entry(*run_words()), root=other_root)
        assert seen.said == EVERYTHING, (start, seen.result.stderr)
    assert list(other_root.rglob(".nvoci-*")) == []


@pytest.mark.parametrize("stage", INSIDE_AND_OUT)
def test_pure_cgroup_v2(node: Node, runtime: str, stage: str) -> None:
    seen = node.start(runtime, stage, node.program.entry(*run_words()), cgroups="v2")
    assert seen.said == EVERYTHING, seen.result.stderr


INHERITED = {
    "closed stderr": 'exec "$@" 2>&-',
    "closed stdout and stderr": 'exec "$@" >&- 2>&-',
    "stderr that nobody reads": '{ "$@"; } 2>&1 >/dev/null | true',
    "leaked descriptors": 'exec 7</etc/passwd 8</ 9>/dev/null; exec "$@"',
    "umask 0777": 'umask 0777; exec "$@"',
    "low limits": 'ulimit -n 96; ulimit -c unlimited; exec "$@"',
    "another directory": 'cd /proc; exec "$@"',
}


@pytest.mark.parametrize("stage", INSIDE_AND_OUT)
@pytest.mark.parametrize("shell", INHERITED.values(), ids=INHERITED.keys())
def test_what_the_hook_inherits_does_not_matter(node: Node, runtime: str, stage: str, shell: str) -> None:
    seen = node.start(runtime, stage, node.program.entry(*run_words(), shell=shell))
    assert seen.said == EVERYTHING, seen.result.stderr


def test_a_container_without_devices_gets_no_profile(node: Node, runtime: str) -> None:
    entry = node.program.entry(*HOOKS["update-application-profile"])
    assert node.start(runtime, "createContainer", entry, devices=()).said == PLAIN


@pytest.mark.parametrize(
    ("driver", "cuda", "used"),
    [("550.54.15", "", True), ("575.57.08", "", False), ("580.1", "", False), ("", "12.8", True)],
)
def test_the_compatibility_library_is_used_by_version(
    node: Node, runtime: str, driver: str, cuda: str, used: bool
) -> None:
    words = ("enable-cuda-compat", "--host-driver-version", driver, "--host-cuda-version", cuda or "12.4")
    entry = node.program.entry(*run_words(words, HOOKS["update-ldcache"]))
    changes = {**CHANGES["update-ldcache"], **({"compat": ALL["compat"], "cuda": ALL["cuda"]} if used else {})}
    assert node.start(runtime, "createContainer", entry).said == {**PLAIN, **changes}
