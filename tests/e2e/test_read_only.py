"""Read-only roots: the mount decides, not config.json. crun's createContainer hooks find the root read-only already;
under runc, and at createRuntime, it is still writable while hooks run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from e2e.gpunode import ALL, CHANGES, HOOKS, LIBDIR, PARAMS, PLAIN, Node, Program, run_words
from lib import jail, oracle

pytestmark = pytest.mark.e2e
TOUCH = "touch /x 2>/dev/null && echo writable || echo read-only"
# What hooks can still do where they can't write: mounts, and the cache as one.
BY_MOUNTS = {
    **PLAIN,
    **CHANGES["disable-device-node-modification"],
    **CHANGES["update-ldcache"],
    "link": PLAIN["link"],
}


@pytest.fixture
def prepared(node: Node) -> Node:
    """A node whose image has the mount points: no runtime can make them on a read-only root."""
    assert node.start("runc", "createRuntime").said == PLAIN
    return node


def log_setup(log: Path, **settings: bool) -> str:
    return jail.host_files({"/etc/nvoci/hook.json": json.dumps({"log": {"file": str(log)}, **settings})})


WRITABLE = [("runc", "createRuntime"), ("runc", "createContainer"), ("crun", "createRuntime")]


@pytest.mark.parametrize(("name", "stage"), WRITABLE, ids=[" ".join(w) for w in WRITABLE])
def test_where_the_root_is_still_writable_all_is_as_usual(
    prepared: Node, each_program: Program, name: str, stage: str
) -> None:
    seen = prepared.start(name, stage, each_program.entry(*run_words()), readonly=True, more=TOUCH)
    assert seen.result.stdout.splitlines()[-1:] == ["read-only"], seen.result.stderr
    assert seen.said == {**PLAIN, **ALL}


def test_where_it_is_read_only_libraries_load_by_soname(prepared: Node, each_program: Program, tmp_path: Path) -> None:
    """What needs a file in the image is left out, each with a warning that names it."""
    before = oracle.content_only(oracle.snapshot(prepared.root))
    entry, log = each_program.entry(*run_words()), tmp_path / "hook.log"
    more = f"{TOUCH}; sed -n 's|.* /etc/ld.so.cache \\([^ ]*\\) .*|mount \\1|p' /proc/self/mountinfo"
    seen = prepared.start("crun", "createContainer", entry, readonly=True, more=more, setup=log_setup(log))
    assert seen.said["cuda_loads"] + seen.said["ml_loads"] == "00", log.read_text()
    assert seen.said == BY_MOUNTS, seen.result.stderr
    assert seen.result.stdout.splitlines()[-2:] == ["read-only", "mount ro,nosuid,nodev,noexec,relatime"]
    assert oracle.content_only(oracle.snapshot(prepared.root)) == before
    said = log.read_text()
    for left_out in (f"{LIBDIR}/libcuda.so", "chmod 1777", "00-compat-nvoci.conf", "10-container.conf"):
        assert any(left_out in x and "EROFS" in x and "level=warning" in x for x in said.splitlines()), said
    assert PARAMS not in said


@pytest.mark.parametrize("how", ["flag", "setting"])
def test_strict_makes_it_an_error(prepared: Node, tmp_path: Path, how: str) -> None:
    log = tmp_path / "hook.log"
    words = run_words(*HOOKS.values(), options=["--strict"] if how == "flag" else [])
    entry = prepared.program.entry(*words)
    setup = log_setup(log, strict=how == "setting")
    seen = prepared.start("crun", "createContainer", entry, readonly=True, setup=setup)
    assert (seen.said, seen.result.rc != 0) == ({}, True)
    lines = log.read_text().splitlines()
    assert [("EROFS" in x, "level=error" in x) for x in lines] == [(True, True)]
