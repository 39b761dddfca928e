"""Entries of hooks directories for the prestart hook: what is written, and what is refused as by the engines."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lib import proc, session

Invoke = Callable[..., proc.Result]
NAME = "10-nvoci-prestart.json"
PROGRAM = "nvidia-container-runtime-hook"


def load(directory: Path, name: str = NAME) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((directory / name).read_bytes())
    return found


# --- install --------------------------------------------------------------------------------------------------------


def test_the_entry_is_that_of_the_template(nvoci: Invoke, bin_dir: Path, tmp_path: Path) -> None:
    result = nvoci("hooksd", "install", "--dir", tmp_path / "d", "prestart")
    assert (result.rc, result.stdout, result.stderr) == (0, f"{tmp_path}/d/{NAME}\n", "")
    assert load(tmp_path / "d") == {
        "version": "1.0.0",
        "hook": {
            "path": f"{bin_dir}/{PROGRAM}",
            "args": [PROGRAM, "prestart"],
            "env": ["NVOCI_HOOK=hooksd"],
        },
        "when": {"always": True},
        "stages": ["prestart"],
    }
    text = (session.CHECKOUT / f"oci-hooks.d/{NAME}.in").read_text().replace("@PROGRAM@", f"{bin_dir}/{PROGRAM}")
    assert (tmp_path / "d" / NAME).read_text() == text


def test_the_program_s_flags_come_before_its_command(nvoci: Invoke, tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text("")
    words = ["--stage", "createRuntime", "--annotation", "^gpu$=yes", "--name", "05-gpu"]
    nvoci("hooksd", "install", "--dir", tmp_path, *words, "prestart", "--config", tmp_path / "c.toml", "--debug")
    made = load(tmp_path, "05-gpu.json")
    assert made["hook"]["args"] == [PROGRAM, "-config", f"{tmp_path}/c.toml", "-debug", "prestart"]
    assert (made["stages"], made["when"]) == (["createRuntime"], {"annotations": {"^gpu$": "yes"}})
    assert nvoci("hooksd", "validate", tmp_path / "05-gpu.json").rc == 0


def test_it_runs_before_the_other_hooks(nvoci: Invoke, tmp_path: Path) -> None:
    """They work with the files that it brings."""
    for words in (["update-ldcache"], ["prestart"], ["create-symlinks", "--link", "a::/b"]):
        assert nvoci("hooksd", "install", "--dir", tmp_path, *words).rc == 0
    first, *_ = nvoci("hooksd", "list", "--dir", tmp_path).stdout.splitlines()
    assert first.split()[1:3] == ["hooksd", "prestart"]
    assert first.endswith(f"when always: {load(tmp_path)['hook']['path']} prestart")
    assert nvoci("hooksd", "remove", "--dir", tmp_path, "--all").rc == 0
    assert os.listdir(tmp_path) == []


WRONG = {
    "no directory": (2, ["prestart"], "--dir"),
    "stage": (1, ["--dir", "D", "--stage", "createContainer", "prestart"], "cannot work at stage createContainer"),
    "flag": (2, ["--dir", "D", "prestart", "--device", "0"], "--device"),
    "word": (2, ["--dir", "D", "prestart", "poststop"], "poststop"),
    "config": (1, ["--dir", "D", "prestart", "--config", "/nowhere/config.toml"], "ENOENT"),
    "config directory": (1, ["--dir", "D", "prestart", "--config", "/etc"], "not a regular file"),
    "program": (1, ["--dir", "D", "--program", "/nowhere", "prestart"], "ENOENT"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_command_line_writes_nothing(nvoci: Invoke, tmp_path: Path, case: str) -> None:
    code, words, message = WRONG[case]
    result = nvoci("hooksd", "install", *[f"{tmp_path}/d" if word == "D" else word for word in words])
    assert (result.rc, message in result.stderr) == (code, True), result.stderr
    assert code == 2 or result.stderr.count("\n") == 1
    assert os.listdir(tmp_path) == []


def test_help_names_it_first_and_says_what_it_does(nvoci: Invoke) -> None:
    listed = nvoci("hooksd", "install", "--help").stdout.partition("Commands:")[2].split()
    assert listed[0] == "prestart"
    assert "NVIDIA_VISIBLE_DEVICES" in nvoci("hooksd", "install", "prestart", "--help").stdout


# --- validate -------------------------------------------------------------------------------------------------------


def write(directory: Path, program: Path, **changes: Any) -> Path:
    """An entry as other toolkits write it, with changes of its hook or, by other names, of itself."""
    hook = {"path": str(program), "args": [PROGRAM, "prestart"], "env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"]}
    doc = {"version": "1.0.0", "hook": hook, "when": {"always": True, "commands": [".*"]}, "stages": ["prestart"]}
    for key, value in changes.items():
        target: dict[str, Any] = hook if key in ("path", "args", "env", "timeout") else doc
        target[key] = value
        if value is None:
            del target[key]
    made = directory / "oci-nvidia-hook.json"
    made.write_text(json.dumps(doc))
    return made


RIGHT: dict[str, dict[str, Any]] = {
    "as other toolkits write it": {},
    "by hand, with flags": {"args": [PROGRAM, "--debug", "-config=/etc/c.toml", "prestart"]},
    "at createRuntime": {"stages": ["createRuntime"]},
    "what does nothing, anywhere": {"args": [PROGRAM, "poststop"], "stages": ["poststop"]},
}


@pytest.mark.parametrize("engine", [[], ["--engine", "cri-o"], ["--engine", "podman"]], ids=["any", "cri-o", "podman"])
@pytest.mark.parametrize("case", RIGHT)
def test_what_every_engine_reads_is_valid(
    nvoci: Invoke, bin_dir: Path, tmp_path: Path, case: str, engine: list[str]
) -> None:
    path = write(tmp_path, bin_dir / PROGRAM, **RIGHT[case])
    result = nvoci("hooksd", "validate", *engine, path)
    assert (result.rc, result.stdout, result.stderr) == (0, f"{path}: valid\n", "")


# What CRI-O does not start with, does not find or passes over without a word; then what our program would refuse.
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "version": ({"version": "2.0.0"}, "`version`"),
    "no version": ({"version": None}, "`version`"),
    "no path": ({"path": None}, "`hook.path` is missing"),
    "relative path": ({"path": PROGRAM}, "absolute path"),
    "program that is not there": ({"path": f"/nowhere/{PROGRAM}"}, "ENOENT"),
    "no stages": ({"stages": None}, "`stages` is missing"),
    "empty stages": ({"stages": []}, "`stages`"),
    "stage misspelt": ({"stages": ["preStart"]}, "`preStart`"),
    "stage of podman's": ({"stages": ["prestart", "precreate"]}, "Podman's own"),
    "annotation that is no pattern": ({"when": {"annotations": {"(": "x"}}}, "regular expression"),
    "value that is no pattern": ({"when": {"annotations": {"x": "["}}}, "regular expression"),
    "command that is no pattern": ({"when": {"commands": ["*"]}}, "regular expression"),
    "condition misspelt": ({"when": {"allways": True}}, "unknown key `when.allways`"),
    "condition of the older schema": ({"when": {"cmds": [".*"]}}, "unknown key `when.cmds`"),
    "no condition": ({"when": {}}, "never runs"),
    "condition of another type": ({"when": {"always": "true"}}, "`when.always`"),
    "timeout 0": ({"timeout": 0}, "greater than 0"),
    "environment": ({"env": ["PATH"]}, "NAME=value"),
    "no arguments": ({"args": None}, "asks for nothing"),
    "name left out": ({"args": ["prestart"]}, "asks for nothing"),
    "unknown command": ({"args": [PROGRAM, "prestrat"]}, "asks for prestrat"),
    "unknown flag": ({"args": [PROGRAM, "-debgu", "prestart"]}, "-debgu"),
    "version only": ({"args": [PROGRAM, "-version", "prestart"]}, "asks for -version"),
    "help": ({"args": [PROGRAM, "-h"]}, "help"),
    "dry run": ({"args": [PROGRAM, "-dry-run", "prestart"]}, "no container would get a GPU"),
    "relative config": ({"args": [PROGRAM, "-config", "c.toml", "prestart"]}, "not an absolute path"),
    "too late": ({"stages": ["poststart"]}, "cannot work at stage poststart"),
    "inside": ({"stages": ["createContainer"]}, "cannot work at stage createContainer"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cri_o_or_the_program_refuses_is_refused(nvoci: Invoke, bin_dir: Path, tmp_path: Path, case: str) -> None:
    changes, message = BAD[case]
    path = write(tmp_path, bin_dir / PROGRAM, **changes)
    result = nvoci("hooksd", "validate", "--engine", "cri-o", "--dir", tmp_path)
    assert (result.rc, result.stdout, result.stderr.count("\n")) == (1, "", 1)
    assert str(path) in result.stderr
    assert message in result.stderr


def test_a_stage_of_podman_s_own_is_valid_for_podman(nvoci: Invoke, tmp_path: Path) -> None:
    path = write(tmp_path, Path("/bin/true"), stages=["precreate"])
    codes = [nvoci("hooksd", "validate", *words, path).rc for words in ([], ["--engine=podman"], ["--engine=cri-o"])]
    assert codes == [0, 0, 1]
