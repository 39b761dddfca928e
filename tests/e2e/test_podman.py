"""Podman containers, with the hooks from a hooks directory and from a CDI spec, by runc and by crun."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from e2e.gpunode import ALL, DEVICES, HOOKS, PLAIN, STAGES, Node, Program, run_words
from lib import oracle, runtimes
from lib.bundle import Json

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(not runtimes.available("podman"), reason="podman is not installed"),
]
EVERYTHING = {**PLAIN, **ALL}
KIND = "nvidia.com/gpu"


def flags(node: Node) -> list[str]:
    """What the engine has to bring, where no CDI spec does: libraries and device nodes."""
    nodes = [f"--device={node.driver.root}{path}:{path}" for path, _, _ in DEVICES]
    return [*nodes, *(f"-v={m['source']}:{m['destination']}:ro" for m in node.driver.mounts())]


def hooks_dir(folder: Path, node: Node, stage: str, *entries: Json) -> Path:
    folder.mkdir()
    first = "prestart" if stage == "prestart" else "createRuntime"
    for number, (at, hook) in enumerate([(first, node.params_hook()), *((stage, entry) for entry in entries)]):
        doc = {"version": "1.0.0", "hook": hook, "when": {"always": True}, "stages": [at]}
        (folder / f"{number:02}.json").write_text(json.dumps(doc))
    return folder


@pytest.mark.parametrize("stage", STAGES)
def test_all_hooks_by_a_hooks_directory(
    node: Node, each_program: Program, runtime: str, stage: str, tmp_path: Path
) -> None:
    folder = hooks_dir(tmp_path / "hooks.d", node, stage, each_program.entry(*run_words()))
    seen = node.podman(runtime, hooks_dir=folder, flags=flags(node))
    assert seen.said == EVERYTHING, seen.result.stderr
    assert (seen.result.survivors, runtimes.leftovers()) == ([], [])


def spec(node: Node, entries: Sequence[tuple[str, Json]]) -> dict[str, Any]:
    """A CDI spec as a generator writes it: libraries and hooks for all devices, one node for each."""
    nodes = [{"path": path, "hostPath": f"{node.driver.root}{path}"} for path, _, _ in DEVICES]
    mounts = [
        {"hostPath": m["source"], "containerPath": m["destination"], "options": ["ro", "nosuid", "nodev", "bind"]}
        for m in node.driver.mounts()
    ]
    hooks = [{"hookName": stage, **hook} for stage, hook in entries]
    devices = [{"name": n["path"][-1], "containerEdits": {"deviceNodes": [n]}} for n in nodes]
    return {
        "cdiVersion": "0.5.0",
        "kind": KIND,
        "devices": devices,
        "containerEdits": {"mounts": mounts, "hooks": hooks, "env": ["NVIDIA_VISIBLE_DEVICES=void"]},
    }


DEVICE_FLAGS = [f"--device={KIND}={path[-1]}" for path, _, _ in DEVICES]


@pytest.mark.parametrize("form", ["one run", "six hooks"])
@pytest.mark.parametrize("stage", STAGES)
def test_all_hooks_by_a_cdi_spec(node: Node, runtime: str, stage: str, form: str) -> None:
    every = [run_words()] if form == "one run" else list(HOOKS.values())
    entries = [(stage, node.program.entry(*words)) for words in every]
    first = "prestart" if stage == "prestart" else "createRuntime"
    cdi = {"nvidia.json": spec(node, [(first, node.params_hook()), *entries])}
    more = "echo void $NVIDIA_VISIBLE_DEVICES; ls -l /dev/nvidia*"
    seen = node.podman(runtime, cdi_specs=cdi, flags=DEVICE_FLAGS, more=more)
    assert seen.said == EVERYTHING, seen.result.stderr
    last = seen.result.stdout.splitlines()[-3:]
    assert last[0] == "void void"
    assert [(line.split()[-1], "195," in line) for line in last[1:]] == [(path, True) for path, _, _ in DEVICES]


def test_one_device_of_the_spec_gives_its_profile_alone(node: Node, runtime: str) -> None:
    entries = [("createRuntime", node.params_hook()), ("createContainer", node.program.entry(*run_words()))]
    seen = node.podman(runtime, cdi_specs={"n.json": spec(node, entries)}, flags=DEVICE_FLAGS[1:])
    assert seen.said == {**EVERYTHING, "profile": ALL["profile"].replace("0x9", "0x8")}, seen.result.stderr


def test_a_read_only_container(node: Node, runtime: str) -> None:
    node.start("runc", "createRuntime")
    entries = [("createRuntime", node.params_hook()), ("createRuntime", node.program.entry(*run_words()))]
    cdi = {"n.json": spec(node, entries)}
    seen = node.podman(runtime, cdi_specs=cdi, flags=[*DEVICE_FLAGS, "--read-only"], more="touch /x || echo read-only")
    assert seen.result.stdout.splitlines()[-1:] == ["read-only"], seen.result.stderr
    assert seen.said == EVERYTHING, seen.result.stderr


def test_a_failing_hook_stops_the_start_and_changes_nothing(node: Node, runtime: str) -> None:
    (node.root / "opt/in-the-way").mkdir()
    params = ("createRuntime", node.params_hook())
    node.podman(runtime, cdi_specs={"n.json": spec(node, [params])}, flags=DEVICE_FLAGS)
    before = oracle.content_only(oracle.snapshot(node.root))
    words = run_words(*HOOKS.values(), ("create-symlinks", "--link", "x::/opt/in-the-way"))
    cdi = {"n.json": spec(node, [params, ("createContainer", node.program.entry(*words))])}
    seen = node.podman(runtime, cdi_specs=cdi, flags=DEVICE_FLAGS)
    assert (seen.said, seen.result.rc != 0) == ({}, True)
    assert ("symlink /opt/in-the-way -> x: EISDIR" in seen.result.stderr) == (runtime == "runc")
    assert oracle.content_only(oracle.snapshot(node.root)) == before
