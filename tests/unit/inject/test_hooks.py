"""What becomes of the hooks of a device, and of all that comes too late."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
from lib import hookproc, oracle, proc
from lib.hookproc import FakeContainer
from unit.hook.hooktools import one_error
from unit.inject.thing import LIB, Json, Thing, hook

LINK = ("create-symlinks", "--link", "thing::/opt/link")
CDI_HOOK, CTK = "/usr/bin/nvidia-cdi-hook", "/usr/local/bin/nvidia-ctk"


def inject(
    root: Path, thing: Thing, edits: Json, stage: Any = "createRuntime", options: tuple[str, ...] = (), **how: Any
) -> tuple[proc.Result, list[str]]:
    """The result of one injection, and the names that are then in the image's /opt."""
    thing.write({"a": edits})
    with FakeContainer(root) as container:
        result = hookproc.run_hook([*thing.words(), *options], container=container, stage=stage, **how)
        assert "internal error" not in result.stderr, result.stderr
        assert (result.survivors, result.timed_out) == ([], False)
        return result, container.listdir("opt")


def messages(result: proc.Result) -> list[str]:
    """level: message of each line of stderr, quotes taken off."""
    found = [re.search(r'level=(\w+) msg="((?:[^"\\]|\\.)*)"', line) for line in result.stderr.splitlines()]
    return [f"{m[1]}: {m[2]}" for m in found if m]


# --- ours ---------------------------------------------------------------------------------------------------------

# the hook's program and arguments -> whether its link is made
OURS: dict[str, tuple[Json, bool]] = {
    "nvidia-cdi-hook": (hook("createContainer", CDI_HOOK, *LINK), True),
    "at prestart": (hook("prestart", CDI_HOOK, *LINK), True),
    "at createRuntime": (hook("createRuntime", CDI_HOOK, *LINK), True),
    "nvidia-ctk hook": (hook("createContainer", CTK, "hook", *LINK), True),
    "with options before": (hook("createContainer", CTK, "--debug", "hook", "--quiet", *LINK), True),
    "run": (hook("createContainer", CDI_HOOK, "run", "--", "noop", "--", *LINK), True),
    "wherever it lies": (hook("createContainer", "/nowhere/nvidia-cdi-hook", *LINK), True),
    "dry run": (hook("createContainer", CDI_HOOK, *LINK, "--dry-run"), False),
    "help": (hook("createContainer", CDI_HOOK, "--help", *LINK), False),
    "help of the hook": (hook("createContainer", CDI_HOOK, *LINK, "--help"), False),
    "version": (hook("createContainer", CDI_HOOK, "--version"), False),
    "nothing": (hook("createContainer", CDI_HOOK), False),
}


@pytest.mark.parametrize("case", OURS)
def test_hooks_of_ours_run_in_this_process(thing: Thing, root: Path, case: str) -> None:
    entry, made = OURS[case]
    log = thing.folder / "trace"
    result, names = inject(root, thing, {"hooks": [entry]}, prefix=["strace", "-f", "-qqq", "-e", "execve", "-o", log])
    assert (result.rc, result.stdout, result.stderr, "link" in names) == (0, "", "", made)
    wrapped = bool(os.environ.get(hookproc.COMPAT_SWITCH))
    assert log.read_text().count("execve(") == 1 + wrapped  # the interpreter


def test_hooks_run_stage_by_stage_in_their_order(thing: Thing, root: Path) -> None:
    """The last link counts, as with `ln -sf`."""
    stages = ("createContainer", "prestart", "createRuntime", "prestart")
    hooks = [
        hook(stage, CDI_HOOK, "create-symlinks", "--link", f"{stage}{n}::/opt/link") for n, stage in enumerate(stages)
    ]
    thing.write({"a": {"hooks": hooks}})
    with FakeContainer(root) as container:
        words = [*thing.words(), "--dry-run"]
        result = hookproc.run_hook(words, container=container)
        texts = re.findall(r"symlink /opt/link -> (\w+)", result.stdout)
        assert texts == ["prestart1", "prestart3", "createRuntime2", "createContainer0"], result.stderr
        assert hookproc.run_hook(words[:-1], container=container).rc == 0
        assert container.path("opt/link").readlink() == Path("createContainer0")


def test_an_unknown_hook_of_ours_is_a_warning(thing: Thing, root: Path) -> None:
    entries = [hook("createContainer", CDI_HOOK, "from-the-future"), hook("createContainer", CDI_HOOK, *LINK)]
    result, names = inject(root, thing, {"hooks": entries})
    assert (result.rc, "link" in names) == (0, True)
    assert messages(result) == ["warning: Unsupported CDI hook: from-the-future"]


BAD: dict[str, tuple[list[str], str]] = {
    "unknown flag": (["create-symlinks", "--x"], "create-symlinks: flag provided but not defined"),
    "bad value": (["create-symlinks", "--link", "x"], "invalid symlink specification `x`"),
    "fails": (["create-symlinks", "--link", "x::/opt"], "create-symlinks: symlink /opt -> x: EISDIR"),
    "bad option before": (["--debug=perhaps", "noop"], "could not parse `perhaps` as bool"),
    "itself": (["inject", "--device", "vendor.example/thing=a"], "inject: hook nvidia-cdi-hook inject --device"),
    "itself in a run": (["run", "--", "noop", "--", "inject", "--device", "v/c=a"], "a device that asks for devices"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_hook_of_ours_that_fails_undoes_everything(thing: Thing, root: Path, case: str) -> None:
    words, expected = BAD[case]
    edits = {"mounts": [thing.mount("tool", LIB)], "hooks": [hook("createContainer", CDI_HOOK, *words)]}
    thing.write({"a": edits})
    before = oracle.content_only(oracle.snapshot(root))
    with FakeContainer(root) as container:
        mounts = container.mountinfo()
        assert expected in one_error(hookproc.run_hook(thing.words(), container=container))
        assert container.mountinfo() == mounts
    assert oracle.content_only(oracle.snapshot(root)) == before


def test_devices_and_hooks_in_one_run(thing: Thing, root: Path) -> None:
    """All of it on one undo stack: a later hook's failure takes the devices away."""
    thing.write({"a": {"mounts": [thing.mount("tool", LIB)]}})
    with FakeContainer(root) as container:
        mounts = container.mountinfo()
        good = ["run", "--", *thing.words(), "--", *LINK]
        bad = [*good, "--", "create-symlinks", "--link", "x::/opt"]
        assert "EISDIR" in one_error(hookproc.run_hook(bad, container=container))
        assert (container.mountinfo(), container.listdir("opt")) == (mounts, ["file"])
        assert hookproc.run_hook(good, container=container).rc == 0
        assert (container.read(LIB), "link" in container.listdir("opt")) == (b"#!/bin/sh\necho tool\n", True)


# --- those of others --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["prestart", "createRuntime"])
def test_a_program_of_others_runs_from_outside_and_is_told_of_from_inside(thing: Thing, root: Path, stage: str) -> None:
    out = thing.folder / "ran"
    edits = {"hooks": [hook(stage, "/bin/sh", "-c", f"echo >>{out}", "--debug=perhaps")]}
    result, _ = inject(root, thing, edits)
    assert (result.rc, result.stderr, out.read_text()) == (0, "", "\n")
    result, _ = inject(root, thing, edits, stage="createContainer")
    assert (result.rc, out.read_text()) == (0, "\n")
    assert [m.partition(": left out: ")[0] for m in messages(result)] == [f"warning: inject: {stage} hook /bin/sh"]
    assert "call inject as createRuntime" in result.stderr


@pytest.mark.parametrize("stage", ["createContainer", "startContainer", "poststart", "poststop"])
def test_a_hook_whose_stage_is_not_now_is_told_of(thing: Thing, root: Path, stage: str) -> None:
    out = thing.folder / "ran"
    hooks = [hook(stage, "/bin/sh", "-c", f"echo >{out}")]
    if stage != "createContainer":
        hooks.append(hook(stage, CDI_HOOK, *LINK))
    result, names = inject(root, thing, {"hooks": hooks})
    assert (result.rc, out.exists(), "link" in names) == (0, False, False)
    told = [f"warning: inject: {stage} hook {h['path']}" for h in hooks]
    assert [m.partition(": left out: ")[0] for m in messages(result)] == told


def test_the_deadline_of_a_program_is_its_own_or_ours(thing: Thing, root: Path) -> None:
    for timeout, options, words in (
        (1, (), "not finished after 1 s, and killed"),
        (None, ("--timeout", "1"), "not finished after 1 s"),
    ):
        more = {} if timeout is None else {"timeout": timeout}
        edits = {"hooks": [hook("createRuntime", "/bin/sh", "-c", "sleep 60", env=["PATH=/bin:/usr/bin"], **more)]}
        result, _ = inject(root, thing, edits, options=options)
        assert words in one_error(result)
        assert result.wall < 5


# --- too late -----------------------------------------------------------------------------------------------------


def test_what_comes_too_late_is_told_in_one_line(thing: Thing, root: Path) -> None:
    edits = {
        "env": ["THING=a", "SECOND=b", "THING=c"],
        "additionalGids": [44, 0, 109],
        "netDevices": [{"hostInterfaceName": "eth9", "name": "net0"}],
        "intelRdt": {"closID": "class"},
        "mounts": [
            thing.mount("tool", LIB, "ro", "noatime", "bind"),
            {"hostPath": "proc", "containerPath": "/opt/proc", "type": "proc"},
        ],
        "deviceNodes": [
            {"path": "/dev/one", "hostPath": "/dev/zero", "fileMode": 0o600, "uid": 7, "permissions": "rwm"},
            {"path": "/dev/two", "hostPath": "/dev/null", "permissions": "r"},
            {"path": "/dev/pipe", "hostPath": "/none", "type": "p"},
        ],
    }
    result, names = inject(root, thing, edits, options=())
    assert result.rc == 0
    assert "proc" not in names
    parts = (
        "environment THING, SECOND",
        "additional group ids 44, 109",
        "network devices eth9",
        "Intel RDT class",
        "mounts /opt/proc (type proc)",
        f"mount options noatime of {LIB}",
        "owners and modes of device nodes mode 0600 uid 7 of /dev/one",
        "device nodes /dev/pipe (a FIFO)",
    )
    (said,) = messages(result)
    head, _, told = said.partition(", left out: ")
    assert head == "warning: inject: too late for a container that exists already"
    assert sorted(told.split("; ")) == sorted(parts)


def test_that_no_node_may_be_made_is_told_once_to_those_who_debug(thing: Thing, root: Path) -> None:
    thing.write({"a": {"deviceNodes": [{"path": f"/dev/{n}", "hostPath": "/dev/zero"} for n in "ab"]}})
    with FakeContainer(root) as container:
        result = hookproc.run_hook(["--debug", *thing.words()], container=container)
    assert result.rc == 0, result.stderr
    told = [m for m in messages(result) if "not allowed to make" in m]
    assert told == ["debug: inject: the container is not allowed to make device nodes"]
    assert 'asked_for="/dev/a, /dev/b"' in result.stderr


# --- --dry-run ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["createRuntime", "createContainer"])
def test_a_dry_run_prints_the_operations_and_does_nothing(thing: Thing, root: Path, stage: Any) -> None:
    out = thing.folder / "ran"
    edits = {
        "mounts": [
            thing.mount("libthing.so", LIB, "ro", "nosuid", "rbind"),
            {"hostPath": "tmpfs", "containerPath": "/opt/t", "type": "tmpfs", "options": ["size=1k"]},
        ],
        "deviceNodes": [
            {"path": "/dev/thing", "hostPath": "/dev/zero"},
            {"path": "/dev/ro", "hostPath": "/dev/null", "permissions": "r"},
            {"path": "/dev/no", "hostPath": "/dev/null", "permissions": "none"},
        ],
        "hooks": [hook("createContainer", CDI_HOOK, *LINK), hook("createRuntime", "/bin/sh", "-c", f"echo >{out}")],
    }
    expected = [
        "inject: mount a tmpfs (rw,size=1k) on /opt/t",
        f"inject: mount {thing.host('libthing.so')} (ro,nosuid) on {LIB}",
        "inject: mount /dev/zero (c 1:5) on /dev/thing",
        "inject: allow c 1:5 rw",
        "inject: mount /dev/null (c 1:3) on /dev/ro",
        "inject: allow c 1:3 r",
        "inject: mount /dev/null (c 1:3) on /dev/no",
        *([f"inject: run /bin/sh -c echo >{out}"] if stage == "createRuntime" else []),
        "create-symlinks: symlink /opt/link -> thing",
    ]
    before = oracle.content_only(oracle.snapshot(root))
    result, names = inject(root, thing, edits, stage, options=("--dry-run",))
    assert (result.rc, result.stdout.splitlines()) == (0, expected), result.stderr
    assert (names, out.exists()) == (["file"], False)
    assert oracle.content_only(oracle.snapshot(root)) == before


def test_a_dry_run_after_a_run_prints_only_what_is_left(thing: Thing, root: Path) -> None:
    thing.write({"a": {"mounts": [thing.mount("libthing.so", LIB)], "hooks": [hook("prestart", CDI_HOOK, *LINK)]}})
    with FakeContainer(root) as container:
        assert hookproc.run_hook(thing.words(), container=container).rc == 0
        again = hookproc.run_hook([*thing.words(), "--dry-run"], container=container)
        assert (again.rc, again.stdout, again.stderr) == (0, "", "")
