"""What hooks call: the programs, and what they know of what they are asked."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
from lib import session

from nvoci.cdi.model import ContainerEdits, Device, Hook, Spec
from nvoci.ctl import cdi_programs
from nvoci.ctl.cdi_programs import REFERENCE, Programs
from nvoci.generate.findings import Finding
from nvoci.hook import table

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="programs must be root's")

START = "no container with these devices would start: install it, or make the specification anew"
OTHERS = "others can change what would run at each start"
OURS = "let the specification name our program: make it anew with --nvidia-cdi-hook-path"
SILENT = "hook program PROGRAM, which does not know --features and is not ours: "


@pytest.fixture
def place() -> Path:
    """A directory that nobody else can write, on all of its way."""
    return session.new_dir("programs")


def program(place: Path, text: str = "exit 0\n", name: str = "nvidia-cdi-hook", mode: int = 0o755) -> Path:
    """A shell script."""
    path = place / name
    path.write_text(f"#!/bin/sh\n{text}")
    path.chmod(mode)
    return path


def ours(place: Path, name: str = "nvidia-cdi-hook", function: str = "cdi_hook") -> Path:
    """As installed."""
    path = place / name
    path.write_text(
        f"#!{session.ENTRY_PYTHON} -ISB\nimport sys\nsys.path.insert(0, {str(session.HOOKS)!r})\n"
        f"from nvoci.hook.main import {function}\n{function}()\n"
    )
    path.chmod(0o755)
    return path


def spec(path: Path | str, *calls: str, edits: dict[str, Any] | None = None) -> Spec:
    """With these hooks, in the edits for all devices."""
    name = str(path).rpartition("/")[2]
    hooks = tuple([Hook("createContainer", str(path), (name, *words.split()), ("A=1",)) for words in calls])
    return Spec("0.6.0", "nvidia.com/gpu", (Device("x", ContainerEdits(env=("A=1",))),), ContainerEdits(hooks=hooks))


def lines(findings: list[Finding], path: Path | str) -> list[str]:
    """With the program's path as PROGRAM."""
    return [each.line().replace(str(path), "PROGRAM") for each in findings]


def of(path: Path | str, *calls: str) -> list[str]:
    """The findings for these."""
    return lines(Programs().findings(spec(path, *calls)), path)


# -- the program ------------------------------------------------------------------------------------------------------


def test_a_program_is_told_once_where_it_stands_first() -> None:
    given = spec("/nowhere/nvidia-cdi-hook", "noop", "chmod --mode 755 --path /x")
    line = f"containerEdits.hooks[0].path: hook program PROGRAM: ENOENT ({START})"
    assert lines(Programs().findings(given), "/nowhere/nvidia-cdi-hook") == [line]


def test_it_is_told_of_a_devices_own_hooks(place: Path) -> None:
    hook = Hook("createContainer", "nvidia-cdi-hook", ("nvidia-cdi-hook", "noop"), ("A=1",))
    given = Spec("0.6.0", "nvidia.com/gpu", (Device("x", ContainerEdits(hooks=(hook,))),))
    (finding,) = Programs().findings(given)
    assert (finding.where, finding.why) == ("devices[0].containerEdits.hooks[0].path", "not an absolute path")
    assert not finding.mended


BAD = {
    "not executable": ({"mode": 0o644}, "not an executable file", "name a program"),
    "others may write it": ({"mode": 0o777}, "uid 0, mode 0777", OTHERS),
    "of any name": ({"mode": 0o777, "name": "other"}, "uid 0, mode 0777", OTHERS),
}


@pytest.mark.parametrize("case", BAD)
def test_a_program_that_cannot_be_used(place: Path, case: str) -> None:
    more, why, hint = BAD[case]
    path = program(place, **more)
    assert of(path, "noop") == [f"containerEdits.hooks[0].path: hook program PROGRAM: {why} ({hint})"]


def test_a_directory_that_others_can_write_is_told_and_nothing_run(place: Path) -> None:
    path = program(place, f"touch {place}/ran\n")
    place.chmod(0o777)
    assert of(path, "noop") == [
        f"containerEdits.hooks[0].path: hook program PROGRAM: {place} has uid 0, mode 0777 ({OTHERS})"
    ]
    assert not (place / "ran").exists()


def test_a_link_in_such_a_directory_too(place: Path) -> None:
    path, open_place = ours(place), session.new_dir("open")
    (open_place / "nvidia-cdi-hook").symlink_to(path)
    assert of(open_place / "nvidia-cdi-hook", "noop") == []
    open_place.chmod(0o757)
    assert f"{open_place} has uid 0, mode 0757" in of(open_place / "nvidia-cdi-hook", "noop")[0]


def test_a_program_of_another_name_is_not_run(place: Path) -> None:
    path = program(place, f"touch {place}/ran\n", name="nvidia-cdi-hook.real")
    assert of(path, "whatever --it takes") == []
    assert not (place / "ran").exists()


# -- what it says -----------------------------------------------------------------------------------------------------


def test_ours_knows_its_own_hooks(place: Path) -> None:
    path = ours(place)
    calls = ["run --strict -- create-symlinks --link-if /x=a::/b --link a::/b -- update-ldcache --folder /x -- noop"]
    calls += [f"{name} --dry-run --container-spec -" for name in table.HOOKS]
    assert of(path, *calls) == []
    assert Programs()._of(str(path)) == cdi_programs.Features(
        {name: frozenset(options) for name, options in table.features()["hooks"].items()},
        frozenset(table.features()["run"]),
    )


def test_nvidia_ctk_is_asked_as_well(place: Path) -> None:
    path = ours(place, "nvidia-ctk", "ctk")
    assert of(path, "hook run -- noop", "hook create-symlinks --link a::/b") == []
    assert of(path, "hook banana", "cdi list") == [
        f"containerEdits.hooks[0].args: hook program PROGRAM: it would leave out `banana`, with a warning ({OURS})",
        f"containerEdits.hooks[1].args: hook program PROGRAM: its first argument is not `hook` ({OURS})",
    ]


UNKNOWN = {
    "a hook": ("banana --x", ["it would leave out `banana`, with a warning"]),
    "a hook within": ("run -- noop -- banana -- noop", ["it would leave out `banana`, with a warning"]),
    "an option": ("noop --banana=1", ["`noop` has no option `--banana`: no container would start"]),
    "an option with one dash": ("noop -banana", ["`noop` has no option `--banana`: no container would start"]),
    "an option of run": ("run --link a::/b -- noop", ["`run` has no option `--link`: no container would start"]),
    "an option within": ("run -- noop -- chmod --link x", ["`chmod` has no option `--link`: no container would start"]),
    "two": ("run -- noop --a -- b", ["`noop` has no option `--a`: no container would start",
                                     "it would leave out `b`, with a warning"]),
    "a value like an option": ("create-symlinks --link --banana", []),
    "a word that is none": ("noop banana - x", []),
    "after the end of options": ("noop -- --banana", []),
    "options of the program": ("--debug --quiet=false noop", []),
    "nothing": ("", []),
}  # fmt: skip


@pytest.mark.parametrize("case", UNKNOWN)
def test_what_it_does_not_know_is_told(place: Path, case: str) -> None:
    words, whys = UNKNOWN[case]
    expected = [f"containerEdits.hooks[0].args: hook program PROGRAM: {why} ({OURS})" for why in whys]
    assert of(ours(place), words) == expected


# What the reference's program does with a flag that it does not know: a warning, and exit status 0.
REFERENCES = 'echo "level=warning msg=\\"No CDI hook specified\\"" >&2\n'
FOREIGN = {
    "the reference's": REFERENCES,
    "an old one of ours": "echo 'nvoci: unknown option'; exit 1\n",
    "one that says nothing": "exit 0\n",
    "no JSON": "echo '{'\n",
    "another JSON": "echo '[1]'\n",
    "another version": "echo '{\"version\": 2, \"run\": [], \"hooks\": {}}'\n",
    "other types": 'echo \'{"version": 1, "run": {}, "hooks": {"noop": [1]}}\'\n',
    "too much": "yes\n",
}


@pytest.mark.parametrize("case", FOREIGN)
def test_another_program_knows_what_the_reference_does(place: Path, case: str) -> None:
    path = program(place, FOREIGN[case])
    assert of(path, "create-symlinks --link a::/b", "chmod --mode 755 --path /x", "update-ldcache --folder /x") == []
    assert of(path, "run -- banana --x -- y") == [
        f"containerEdits.hooks[0].args: {SILENT}it would leave out `run`, with a warning ({OURS})"
    ]
    why = "`create-symlinks` has no option `--link-if`: no container would start"
    assert of(path, "create-symlinks --link-if x=a::/b") == [f"containerEdits.hooks[0].args: {SILENT}{why} ({OURS})"]


def test_what_the_reference_has_we_have() -> None:
    for name, options in REFERENCE.hooks.items():
        assert options <= {each.name for each in table.HOOKS[name].options}


def test_a_program_that_hangs_is_ended_with_all_that_it_started(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = program(place, f"sleep 60 & echo $! > {place}/pid\nwait\n")
    began = time.monotonic()
    assert cdi_programs._answer([str(path)], 0.5) == b""
    assert time.monotonic() - began < 10
    pid = int((place / "pid").read_text())
    assert not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text().split()[2]


def test_it_gets_no_environment_and_no_input(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_PRELOAD", "/nowhere.so")
    path = program(place, "env; cat; pwd\n")
    told = cdi_programs._answer([str(path)]).decode().split()
    assert "NVOCI_HOOK=features" in told
    assert not [each for each in told if each.startswith(("LD_", "HOME", "USER"))]
    assert told[-1] == "/"


def test_a_program_that_cannot_be_started_is_told(place: Path) -> None:
    path = place / "nvidia-cdi-hook"
    path.write_bytes(b"\x7fELF and no more")
    path.chmod(0o755)
    assert "hook program PROGRAM: ENOEXEC" in of(path, "noop")[0]


def test_each_program_is_asked_once(place: Path) -> None:
    path = program(place, f"echo x >> {place}/asked\n")
    programs = Programs()
    for _ in range(3):
        programs.findings(spec(path, "noop", "noop"))
    assert (place / "asked").read_text() == "x\n"
