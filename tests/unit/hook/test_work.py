"""The worker: forked, enters, reports in one message; the parent never enters and always hears the outcome."""

from __future__ import annotations

import os
import time

import pytest
from lib import proc
from unit.hook.hooktools import Container, Program, one_error, snapshot

pytestmark = pytest.mark.kernel


@pytest.fixture
def state(program: Program, container: Container) -> bytes:
    return program.state(pid=container.pid)


ACTIONS = {
    "an errno": ("errno:ENOSPC", "fake: errno ENOSPC: ENOSPC (the file system is full, or out of inodes)"),
    "a message with its hint": ("error:no good", "fake: no good (as told)"),
    "a failing plan": ("plan-errno:EACCES", "fake: plan /planned: EACCES"),
    "a name with control characters": ("plan-error:a\x1bb\x7f", r"a\\x1bb\\x7f"),
    "a name that is not UTF-8": (os.fsdecode(b"plan-error:a\xffb"), r"a\\udcffb"),
    "a very long message": ("plan-error:" + "x" * 100_000, "[cut]"),
}


@pytest.mark.parametrize(("action", "reason"), ACTIONS.values(), ids=ACTIONS)
def test_an_error_of_the_worker_is_told_by_the_parent(program: Program, state: bytes, action: str, reason: str) -> None:
    line = one_error(program.do("step:1", action, stdin=state))
    assert reason in line
    assert line.isprintable()
    assert len(line) < 9000


def test_a_bug_in_the_worker_is_one_line(program: Program, state: bytes) -> None:
    result = program.do("step:1", "bug:oh", stdin=state)
    assert (result.rc, result.stderr.count("\n")) == (1, 1)
    assert "hook: internal error: TypeError: oh" in result.stderr
    assert program.journal()[-1] == "undo step 1"


def test_a_worker_that_dies_is_reported_and_leaves_no_process(program: Program, state: bytes) -> None:
    result = program.do("die:now", stdin=state)
    assert "the worker in the container's mount namespace died" in one_error(result)
    assert result.survivors == []


def test_nothing_of_the_container_or_host_mounts_changes_beyond_the_plan(
    program: Program, container: Container, state: bytes
) -> None:
    host, inside = proc.mountinfo(), proc.mountinfo(container.pid)
    before = snapshot(container.inside)
    result = program.run("create-symlinks", "--link", "t::/a/b", stdin=state)
    assert (result.rc, result.stdout, result.stderr) == (0, "", "")
    assert (proc.mountinfo(), proc.mountinfo(container.pid)) == (host, inside)
    added = set(snapshot(container.inside)) - set(before)
    assert {os.path.relpath(p, container.inside) for p in added} == {"a", "a/b"}


def test_a_root_that_exists_only_on_the_host_is_an_error(program: Program, container: Container) -> None:
    only = program.folder / "later"
    (container.inside / "x").mkdir()
    line = one_error(program.run("create-symlinks", "--link", "t::/a",
                                 stdin=program.state(pid=container.pid, root=str(only))))  # fmt: skip
    assert f"open rootfs {only}: ENOENT" in line


def test_a_root_that_exists_only_in_the_container_is_found(program: Program, container: Container) -> None:
    (container.inside / "x").mkdir()
    assert not (program.root / "x").exists()
    state = program.state(pid=container.pid, root=str(program.root / "x"))
    assert program.run("create-symlinks", "--link", "t::/a", stdin=state).ok
    assert os.readlink(container.inside / "x/a") == "t"


def test_dry_run_in_the_worker_prints_once(program: Program, container: Container, state: bytes) -> None:
    before = snapshot(container.inside)
    result = program.run("create-symlinks", "--link", "t::/a", "--dry-run", stdin=state)
    assert (result.rc, result.stdout, result.stderr) == (0, "create-symlinks: symlink /a -> t\n", "")
    assert snapshot(container.inside) == before


def test_dry_run_into_a_full_device_is_an_error(program: Program) -> None:
    (program.folder / "state").write_bytes(program.state())
    script = 'exec "$@" --dry-run <"$0" >/dev/full'
    result = proc.run(["/bin/sh", "-c", script, program.folder / "state", program.entry(), "create-symlinks", "--link",
                       "t::/a"])  # fmt: skip
    assert "ENOSPC" in one_error(result)


def test_logs_of_the_worker_reach_stderr_whole(program: Program, state: bytes) -> None:
    result = program.run("--debug", "create-symlinks", *(w for i in range(200) for w in ("--link", f"t::/{i}")),
                         stdin=state)  # fmt: skip
    assert result.rc == 0
    lines = result.stderr.splitlines()
    assert sum("link made" in line for line in lines) == 200
    assert all(line.startswith('time="') for line in lines)


def test_a_worker_is_gone_when_the_hook_ends(program: Program, state: bytes) -> None:
    start = time.monotonic()
    for action in ("step:1", "errno:EIO", "die:now"):
        assert program.do(action, stdin=state).survivors == []
    assert time.monotonic() - start < 10
