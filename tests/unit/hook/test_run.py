"""run: several hooks in one process, in order, all or nothing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from lib import proc, rootfs
from unit.hook.hooktools import Container, Program, one_error, snapshot


def run_fakes(program: Program, *groups: list[str], words: list[str] | None = None, **how: object) -> proc.Result:
    """`run WORDS -- GROUP -- GROUP ...`, where a group may be the fake hook."""
    argv = ["run", *(words or [])]
    for group in groups:
        argv += ["--", *group]
    how.setdefault("stdin", program.state())
    return proc.run([program.entry(fake=True), *argv], **how)  # type: ignore[arg-type]


@pytest.fixture(params=["here", "outside"])
def place(request: pytest.FixtureRequest, program: Program) -> tuple[bytes, Path]:
    """The state, and where the root is to be seen."""
    if request.param == "here":
        return program.state(), program.root
    container: Container = request.getfixturevalue("container")
    return program.state(pid=container.pid), container.inside


def test_hooks_run_in_order_each_planned_after_the_one_before(program: Program, place: tuple[bytes, Path]) -> None:
    result = run_fakes(program, program.fake("step:1", "step:2"), program.fake("step:3"), stdin=place[0])
    assert (result.rc, result.stderr) == (0, "")
    assert program.journal() == ["plan", "do step 1", "do step 2", "plan", "do step 3"]


def test_the_first_failure_undoes_all_in_reverse_and_ends_it(program: Program, place: tuple[bytes, Path]) -> None:
    result = run_fakes(program, program.fake("step:1"), program.fake("step:2", "errno:EIO", "step:3"),
                       program.fake("step:4"), stdin=place[0])  # fmt: skip
    assert "fake: errno EIO: EIO (check the disk and the kernel's log)" in one_error(result)
    assert program.journal() == ["plan", "do step 1", "plan", "do step 2", "do errno EIO",
                                 "undo errno EIO", "undo step 2", "undo step 1"]  # fmt: skip


FAILURES = {
    "a plan that fails with an errno": ("plan-errno:ENOMEM", "fake: plan /planned: ENOMEM"),
    "a plan that fails with a message": ("plan-error:no good", "fake: no good (as told)"),
    "an operation that fails with a message": ("error:no good", "fake: no good (as told)"),
}


@pytest.mark.parametrize(("action", "reason"), FAILURES.values(), ids=FAILURES)
def test_a_failure_of_the_second_hook_undoes_the_first(
    program: Program, place: tuple[bytes, Path], action: str, reason: str
) -> None:
    state, root = place
    before = snapshot(root)
    result = run_fakes(program, ["create-symlinks", "--link", "a::/d/b"], program.fake(action), stdin=state)
    assert reason in one_error(result)
    assert snapshot(root) == before


def test_an_undo_that_fails_is_logged_and_does_not_stop_the_rest(program: Program) -> None:
    result = run_fakes(program, program.fake("step:1", "undo-fails:x", "step:2", "errno:EIO"))
    assert result.rc == 1
    first, second = result.stderr.splitlines()
    assert "fake: undo undo-fails x: EIO" in first
    assert "fake: errno EIO: EIO" in second
    assert program.journal()[-3:] == ["undo step 2", "undo undo-fails x", "undo step 1"]


def test_every_command_line_is_checked_before_anything_is_done(program: Program) -> None:
    before = snapshot(program.root)
    for bad in (["chmod", "--path", "/x"], ["create-symlinks", "--link", "bad"], ["noop", "--bar"]):
        one_error(run_fakes(program, ["create-symlinks", "--link", "a::/b"], program.fake("step:1"), bad))
    assert "do step 1" not in program.journal()
    assert snapshot(program.root) == before


def test_unknown_hooks_are_left_out_with_a_warning(program: Program) -> None:
    result = run_fakes(program, ["foo", "--bar", "x"], ["create-symlinks", "--link", "a::/b"], ["newer", "-x"])
    assert result.rc == 0
    first, second = result.stderr.splitlines()
    assert 'level=warning msg="Unsupported CDI hook: foo"' in first
    assert 'level=warning msg="Unsupported CDI hook: newer"' in second
    assert os.readlink(program.root / "b") == "a"


def test_run_inside_run_is_an_unknown_hook(program: Program) -> None:
    result = run_fakes(program, ["run"], ["create-symlinks", "--link", "a::/b"])
    assert result.rc == 0
    assert "Unsupported CDI hook: run" in result.stderr
    assert os.readlink(program.root / "b") == "a"


def test_real_hooks_together_and_the_later_sees_what_the_earlier_did(
    program: Program, place: tuple[bytes, Path]
) -> None:
    state, root = place
    rootfs.tree(root, "file lib/libx.so.1\nsymlink lib/libx.so old")
    (root / "lib/libx.so.1").chmod(0o644)
    result = run_fakes(program, ["create-symlinks", "--link", "libx.so.1::/lib/libx.so,libx.so::/lib/liby.so"],
                       ["chmod", "--mode", "4711", "--path", "/lib/liby.so"], ["noop"], stdin=state)  # fmt: skip
    assert (result.rc, result.stderr) == (0, "")
    assert (root / "lib/libx.so.1").stat().st_mode & 0o7777 == 0o4711
    assert sorted(os.listdir(root / "lib")) == ["libx.so", "libx.so.1", "liby.so"]


def test_a_failure_of_the_last_restores_links_files_and_modes(program: Program, place: tuple[bytes, Path]) -> None:
    state, root = place
    rootfs.tree(root, "file lib/libx.so.1\nsymlink lib/libx.so old\nfile lib/plain content\ndir dir")
    (root / "lib/libx.so.1").chmod(0o2644)
    before = snapshot(root)
    one_error(run_fakes(
        program, ["create-symlinks", "--link", "libx.so.1::/lib/libx.so,t::/lib/plain,t::/new/x/y"],
        ["chmod", "--mode", "4711", "--path", "/lib/libx.so"], ["create-symlinks", "--link", "t::/dir"], stdin=state,
    ))  # fmt: skip
    assert snapshot(root) == before


@pytest.mark.parametrize("where", ["run", "hook"])
def test_dry_run_prints_every_hook_and_changes_nothing(program: Program, place: tuple[bytes, Path], where: str) -> None:
    state, root = place
    rootfs.tree(root, "file x")
    before = snapshot(root)
    last = ["chmod", "--mode", "4711", "--path", "/x", *(["--dry-run"] if where == "hook" else [])]
    result = run_fakes(program, ["create-symlinks", "--link", "a::/d/b"], program.fake("step:1"), last, stdin=state,
                       words=["--dry-run"] if where == "run" else [])  # fmt: skip
    assert (result.rc, result.stderr) == (0, "")
    assert result.stdout.splitlines() == [
        "create-symlinks: symlink /d/b -> a", "fake: step 1", "chmod: chmod 4711 /x"]  # fmt: skip
    assert snapshot(root) == before
    assert program.journal() == ["plan"]


@pytest.mark.parametrize("where", ["run", "hook"])
def test_container_spec_and_timeout_of_any_hook_hold_for_the_run(program: Program, where: str) -> None:
    spec = program.folder / "state"
    spec.write_bytes(program.state())
    extra = ["--container-spec", str(spec), "--timeout", "0.2"]
    fake = program.fake("wait:20")
    result = proc.run(
        [program.entry("from nvoci.hook import watchdog; watchdog.GRACE = 0.2", fake=True), "run",
         *(extra if where == "run" else []), "--", *fake, *(extra if where == "hook" else [])], stdin=b"garbage",
    )  # fmt: skip
    assert "not finished after 0.2 s" in one_error(result)


def test_hooks_with_nothing_to_do_need_no_state(program: Program) -> None:
    assert run_fakes(program, ["noop"], program.fake("nothing"), stdin=b"garbage").rc == 0
