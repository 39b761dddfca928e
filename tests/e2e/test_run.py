"""`run` in real containers: all of its hooks or none, and the same again at a restart or after a driver upgrade."""

from __future__ import annotations

import dataclasses
import json
import os
import stat
from pathlib import Path

import pytest
from e2e.gpunode import ALL, CACHE_DIR, COMPAT_CONF, CUDA, HOOKS, LIBDIR, PARAMS, PLAIN, Node, Program, run_words
from lib import driver, jail, oracle, proc

pytestmark = pytest.mark.e2e
IN_THE_WAY = f"{LIBDIR}/in-the-way"
FAILING = ("create-symlinks", "--link", f"x::{IN_THE_WAY}")
MESSAGE = f"create-symlinks: symlink {IN_THE_WAY} -> x: EISDIR"


@pytest.fixture
def started(node: Node, runtime: str) -> Node:
    """A node whose image has had a container: the runtime has made its mount points."""
    (node.root / IN_THE_WAY[1:]).mkdir()
    assert node.start(runtime, "createRuntime").said == PLAIN
    return node


def files(root: Path) -> oracle.Snapshot:
    """Everything down to inodes and times, but the times of directories: making and undoing leaves its mark there."""
    found = oracle.snapshot(root)
    return {n: dataclasses.replace(e, mtime=0) if stat.S_ISDIR(e.kind) else e for n, e in found.items()}


def failing_run() -> list[str]:
    """Two hooks that change files, one that mounts, the one that fails, and one that is not reached."""
    before = [HOOKS[name] for name in ("create-symlinks", "chmod", "disable-device-node-modification")]
    return run_words(*before, HOOKS["update-application-profile"], FAILING, HOOKS["update-ldcache"])


@pytest.mark.parametrize("stage", ["createRuntime", "createContainer"])
def test_a_failure_in_the_middle_leaves_the_image_as_it_was(
    started: Node, each_program: Program, runtime: str, stage: str
) -> None:
    before = files(started.root)
    entry = each_program.entry(*failing_run())
    with oracle.Oracle(canary=started.driver.root) as witness:
        seen = started.start(runtime, stage, entry)
    assert (seen.said, oracle.changes(before, files(started.root))) == ({}, [])
    parts = [MESSAGE] if runtime == "runc" else [entry["path"]]
    assert witness.check(seen.result, ok=False, parts=parts, lines=None) == []


def test_the_failing_hook_s_line_is_in_the_log_file(started: Node, runtime: str, tmp_path: Path) -> None:
    """crun gives a hook no stderr, so that the file is the only place."""
    log = tmp_path / "hook.log"
    files = {"/etc/nvoci/hook.json": json.dumps({"log": {"file": str(log)}})}
    entry = started.program.entry(*failing_run())
    seen = started.start(runtime, "createContainer", entry, setup=jail.host_files(files))
    assert seen.said == {}
    lines = log.read_text().splitlines()
    assert [MESSAGE in line and "level=error" in line for line in lines] == [True]
    assert (MESSAGE in seen.result.stderr) == (runtime == "runc")


def test_after_the_obstacle_is_gone_the_same_container_starts(started: Node, runtime: str) -> None:
    words = run_words(*HOOKS.values(), FAILING)
    assert started.start(runtime, "createContainer", started.program.entry(*words)).said == {}
    (started.root / IN_THE_WAY[1:]).rmdir()
    seen = started.start(runtime, "createContainer", started.program.entry(*words))
    assert seen.said == {**PLAIN, **ALL}, seen.result.stderr


@pytest.mark.parametrize("stage", ["createRuntime", "createContainer"])
def test_a_second_start_changes_nothing(node: Node, each_program: Program, runtime: str, stage: str) -> None:
    entry = each_program.entry(*run_words())
    assert node.start(runtime, stage, entry).said == {**PLAIN, **ALL}
    states = []
    for _ in range(2):
        seen = node.start(runtime, stage, entry)
        assert seen.said == {**PLAIN, **ALL}, seen.result.stderr
        states.append(files(node.root))
    assert oracle.changes(*states) == []


def test_the_first_start_leaves_what_every_other_leaves(node: Node, runtime: str) -> None:
    """Also the cache, although libcuda.so leads nowhere before its soname link is made."""
    entry = node.program.entry(*run_words())
    node.start(runtime, "createContainer", entry)
    first = oracle.content_only(oracle.snapshot(node.root))
    assert "libcuda.so" in cache_names(node.root)
    node.start(runtime, "createContainer", entry)
    assert oracle.content_only(oracle.snapshot(node.root)) == first


def cache_names(root: Path) -> set[str]:
    """The names that ldconfig itself reads from the cache."""
    shown = proc.run(["/sbin/ldconfig", "-r", root, "-p"])
    return {line.split()[0] for line in shown.stdout.splitlines() if "=>" in line}


def test_two_stages_of_one_start_leave_what_one_leaves(node: Node, runtime: str) -> None:
    """An engine's hooks.d entry and a CDI spec may both name the hook."""
    entry = node.program.entry(*run_words())
    mounts = f"grep -c '{PARAMS} ' /proc/self/mountinfo"
    seen = node.start(
        runtime,
        "createRuntime",
        entry,
        edit=lambda config: config["hooks"].update(createContainer=[entry]),
        more=mounts,
    )
    assert seen.said == {**PLAIN, **ALL}, seen.result.stderr
    assert seen.result.stdout.splitlines()[-1] == "1"


NEW, NEWER_THAN_COMPAT = "570.86.10", "590.44.01"


def install_driver(node: Node, folder: Path, version: str) -> None:
    """Another driver in place of the node's, whose files are gone; the image stays."""
    node.driver.close()
    node.driver = driver.make(folder, version=version)


def words_for(version: str) -> list[str]:
    compat = ("enable-cuda-compat", "--host-driver-version", version, "--host-cuda-version", "12.8")
    return run_words(*({**HOOKS, "enable-cuda-compat": compat}.values()))


@pytest.mark.parametrize("compat", ["still applies", "no longer applies"])
def test_after_a_driver_upgrade_the_new_libraries_are_found(
    node: Node, runtime: str, tmp_path: Path, compat: str
) -> None:
    """The old mount points are empty files and the old links dangle or lead to them."""
    assert node.start(runtime, "createContainer", node.program.entry(*run_words())).said == {**PLAIN, **ALL}
    version = NEW if compat == "still applies" else NEWER_THAN_COMPAT
    install_driver(node, tmp_path / "newer", version)
    stale = node.root / LIBDIR[1:] / f"libcuda.so.{driver.VERSION}"
    assert stale.stat().st_size == 0
    seen = node.start(runtime, "createContainer", node.program.entry(*words_for(version)))
    expected = {**PLAIN, **ALL, "ml": f"{LIBDIR}/libnvidia-ml.so.{version}"}
    if compat == "no longer applies":
        expected.update(compat="-", cuda=f"{LIBDIR}/libcuda.so.{version}")
        assert not (node.root / COMPAT_CONF[1:]).exists()
    assert seen.said == expected, seen.result.stderr


def test_a_downgrade_after_an_upgrade_gives_the_first_state(node: Node, runtime: str, tmp_path: Path) -> None:
    for number, version in enumerate((driver.VERSION, NEWER_THAN_COMPAT, driver.VERSION)):
        install_driver(node, tmp_path / str(number), version)
        seen = node.start(runtime, "createRuntime", node.program.entry(*words_for(version)))
        assert seen.said["ml"] == f"{LIBDIR}/libnvidia-ml.so.{version}", seen.result.stderr
    assert seen.said == {**PLAIN, **ALL}


def test_modes_and_links_survive_in_the_image(node: Node, runtime: str) -> None:
    """Second witness from the host, when the container is gone: files stay, the mount does not."""
    node.start(runtime, "createContainer", node.program.entry(*run_words()))
    assert os.readlink(node.root / LIBDIR[1:] / "libcuda.so") == CUDA
    assert (node.root / CACHE_DIR[1:]).stat().st_mode & 0o7777 == 0o1777
    assert list((node.root / "proc").iterdir()) == []
    assert list(node.root.rglob(".nvoci-*")) == []
