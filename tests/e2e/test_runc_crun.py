"""What each hook does is seen in containers started by the real runc and crun, at every stage a hook can be called."""

from __future__ import annotations

import pytest
from e2e.gpunode import ALL, CHANGES, HOOKS, PLAIN, STAGES, Node, Program, run_words
from lib import runtimes

pytestmark = pytest.mark.e2e


def test_without_hooks_nothing_of_it_is_there(node: Node, runtime: str) -> None:
    """What the other tests compare with, and proof that the report can tell."""
    seen = node.start(runtime, "createRuntime")
    assert seen.said == PLAIN, seen.result.stderr


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("hook", HOOKS)
def test_a_single_hook_changes_what_it_says_and_nothing_else(node: Node, runtime: str, stage: str, hook: str) -> None:
    seen = node.start(runtime, stage, node.program.entry(*HOOKS[hook]))
    assert seen.said == {**PLAIN, **CHANGES[hook]}, seen.result.stderr
    assert (seen.result.rc, seen.result.survivors, seen.result.mounts_added) == (0, [], [])


@pytest.mark.parametrize("stage", STAGES)
def test_all_hooks_in_one_run(node: Node, each_program: Program, runtime: str, stage: str) -> None:
    seen = node.start(runtime, stage, each_program.entry(*run_words()))
    assert seen.said == {**PLAIN, **ALL}, seen.result.stderr
    assert (seen.result.rc, seen.result.stderr) == (0, "")
    assert (seen.result.survivors, seen.result.mounts_added, runtimes.leftovers()) == ([], [], [])


def test_nvidia_ctk_is_the_same_program(node: Node, runtime: str) -> None:
    ctk = Program(node.program.path.with_name("nvidia-ctk"))
    seen = node.start(runtime, "createContainer", ctk.entry("hook", *run_words()))
    assert seen.said == {**PLAIN, **ALL}, seen.result.stderr


@pytest.mark.parametrize("stage", STAGES)
def test_mounts_on_a_kernel_before_6_15(node: Node, runtime: str, stage: str) -> None:
    """Where a file of a tmpfs that is attached nowhere cannot be cloned, another way gives the same."""
    older = node.folder / "nvidia-cdi-hook"
    call = "cdi_hook()"
    text = node.program.path.read_text()
    assert text.count(call) == 1
    older.write_text(
        text.replace(call, f"from nvoci.linux import generated\ngenerated.clone_unattached = False\n{call}")
    )
    older.chmod(0o755)
    seen = node.start(runtime, stage, Program(older).entry(*run_words()))
    assert seen.said == {**PLAIN, **ALL}, seen.result.stderr


def test_an_unknown_hook_does_not_stop_the_start(node: Node, runtime: str) -> None:
    """A spec may name a hook that this version does not have."""
    entries = [node.program.entry(*words) for words in (("from-the-future", "--x"), HOOKS["chmod"])]
    assert node.start(runtime, "createContainer", *entries).said == {**PLAIN, **CHANGES["chmod"]}


@pytest.mark.parametrize("stage", STAGES)
def test_all_hooks_as_entries_of_their_own(node: Node, runtime: str, stage: str) -> None:
    """The form in which CDI specs of the reference toolkit call them: one process each."""
    seen = node.start(runtime, stage, *(node.program.entry(*words) for words in HOOKS.values()))
    assert seen.said == {**PLAIN, **ALL}, seen.result.stderr
