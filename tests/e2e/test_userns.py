"""Containers in a user namespace (0 -> 100000): outside the hook is root, inside it is host uid 100000 with every
capability there, so that the root's owner decides what it can write."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from e2e.gpunode import ALL, HOOKS, PLAIN, Node, Program, run_words
from lib import jail, oracle, proc, runtimes

pytestmark = [pytest.mark.e2e, pytest.mark.security]
FIRST = 100000
USERNS: dict[str, Any] = {"userns": (FIRST, 65536), "devices": ()}  # a device node needs the initial user namespace
EXPECTED = {**PLAIN, **ALL, "profile": "-", "device": "-"}
WHO = "sed 's/^ *\\([0-9]*\\) *\\([0-9]*\\) .*/map \\2/' /proc/self/uid_map"


def give_to(root: Path, owner: int) -> None:
    subprocess.run(["chown", "-hR", f"{owner}:{owner}", root], check=True)


@pytest.fixture
def mapped(node: Node) -> Node:
    """The node, where the mount points are made: a mapped user cannot make them in a root of host root's."""
    assert node.start("runc" if runtimes.available("runc") else "crun", "createRuntime").said == PLAIN
    return node


@pytest.mark.parametrize("owner", [FIRST, 0])
@pytest.mark.parametrize("stage", ["createRuntime", "prestart"])
def test_from_outside_every_root_can_be_written(
    mapped: Node, each_program: Program, runtime: str, stage: str, owner: int
) -> None:
    give_to(mapped.root, owner)
    seen = mapped.start(runtime, stage, each_program.entry(*run_words()), more=WHO, **USERNS)
    assert seen.result.stdout.splitlines()[-1:] == [f"map {FIRST}"], seen.result.stderr
    assert seen.said == EXPECTED, seen.result.stderr


def test_from_inside_a_root_of_the_mapped_user_can_be_written(
    mapped: Node, each_program: Program, runtime: str
) -> None:
    give_to(mapped.root, FIRST)
    seen = mapped.start(runtime, "createContainer", each_program.entry(*run_words()), more=WHO, **USERNS)
    assert seen.result.stdout.splitlines()[-1:] == [f"map {FIRST}"], seen.result.stderr
    assert seen.said == EXPECTED, seen.result.stderr


def test_from_inside_a_root_of_host_root_is_a_clear_error(mapped: Node, runtime: str) -> None:
    """And nothing is changed; the log says what to do."""
    give_to(mapped.root, 0)
    log = mapped.folder / "hook.log"
    log.touch()
    log.chmod(0o666)
    files = {"/etc/nvoci/hook.json": json.dumps({"log": {"file": str(log)}})}
    before = oracle.snapshot(mapped.root)
    entry = mapped.program.entry(*run_words(HOOKS["create-symlinks"]))
    seen = mapped.start(runtime, "createContainer", entry, setup=jail.host_files(files), **USERNS)
    assert seen.said == {}
    assert oracle.changes(before, oracle.snapshot(mapped.root)) == []
    said = (log.read_text() + seen.result.stderr).splitlines()
    assert any(("EACCES" in x or "EOVERFLOW" in x) and "createRuntime" in x for x in said), said


def test_files_made_from_outside_belong_to_host_root(mapped: Node, runtime: str) -> None:
    """The container sees them as nobody's: it can read them and never change them."""
    give_to(mapped.root, FIRST)
    entry = mapped.program.entry(*run_words())
    probe = "stat -c 'owner %u' /etc/ld.so.cache; echo x 2>/dev/null >>/etc/ld.so.cache || echo kept"
    seen = mapped.start(runtime, "createRuntime", entry, more=probe, **USERNS)
    assert seen.result.stdout.splitlines()[-2:] == ["owner 65534", "kept"], seen.result.stderr
    assert proc.run(["/sbin/ldconfig", "-r", mapped.root, "-p"]).ok
