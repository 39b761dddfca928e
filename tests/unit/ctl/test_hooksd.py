"""`nvoci hooksd`: what each command writes, prints and refuses."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lib import proc

Invoke = Callable[..., proc.Result]
LINK = ("create-symlinks", "--link", "a::/b")


def load(directory: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((directory / name).read_bytes())
    return found


def foreign(directory: Path, name: str = "foreign.json", **hook: Any) -> Path:
    path = directory / name
    hook = {"path": "/bin/true", **hook}
    path.write_text(json.dumps({"version": "1.0.0", "hook": hook, "when": {"always": True}, "stages": ["prestart"]}))
    return path


# --- install --------------------------------------------------------------------------------------------------------


def test_install_writes_one_entry_and_prints_its_path(nvoci: Invoke, bin_dir: Path, tmp_path: Path) -> None:
    result = nvoci("hooksd", "install", "--dir", tmp_path / "d", *LINK, "--link=c::/d,e::/f")
    assert (result.rc, result.stderr) == (0, "")
    assert result.stdout == f"{tmp_path}/d/30-nvoci-create-symlinks.json\n"
    assert load(tmp_path / "d", "30-nvoci-create-symlinks.json") == {
        "version": "1.0.0",
        "hook": {
            "path": f"{bin_dir}/nvidia-cdi-hook",
            "args": ["nvidia-cdi-hook", *LINK, "--link=c::/d,e::/f"],
            "env": ["NVOCI_HOOK=hooksd"],
        },
        "when": {"always": True},
        "stages": ["createContainer"],
    }


def test_install_takes_stages_conditions_a_name_and_a_program(nvoci: Invoke, tmp_path: Path) -> None:
    choices = "--stage createRuntime --stage prestart --stage prestart --name 10-mine --program /bin/true".split()
    when = [
        "--annotation",
        "^a$=^b=c$",
        "--annotation",
        "d=",
        "--command",
        "sh$",
        "--command",
        "x",
        "--has-bind-mounts",
    ]
    assert nvoci("hooksd", "install", "--dir", tmp_path, *choices, *when, "noop").rc == 1  # it has no template
    assert nvoci("hooksd", "install", "--dir", tmp_path, *choices, *when, *LINK).rc == 0
    found = load(tmp_path, "10-mine.json")
    assert found["hook"]["path"] == "/bin/true"
    assert found["stages"] == ["createRuntime", "prestart"]
    assert found["when"] == {
        "annotations": {"^a$": "^b=c$", "d": ""},
        "commands": ["sh$", "x"],
        "hasBindMounts": True,
    }


def test_install_takes_several_hooks_in_one_entry(nvoci: Invoke, tmp_path: Path) -> None:
    words = ["run", "--strict", "--", *LINK, "--", "chmod", "--mode", "755", "--path", "/c"]
    assert nvoci("hooksd", "install", "--dir", tmp_path, *words).rc == 0
    assert load(tmp_path, "50-nvoci-run.json")["hook"]["args"] == ["nvidia-cdi-hook", *words]


def test_install_again_replaces_the_entry(nvoci: Invoke, tmp_path: Path) -> None:
    for target in ("a", "b"):
        assert nvoci("hooksd", "install", "--dir", tmp_path, "create-symlinks", "--link", f"{target}::/l").rc == 0
    assert os.listdir(tmp_path) == ["30-nvoci-create-symlinks.json"]
    assert load(tmp_path, "30-nvoci-create-symlinks.json")["hook"]["args"][-1] == "b::/l"


WRONG = {
    "no directory": (2, ["hooksd", "install", *LINK], "--dir"),
    "no hook": (2, ["hooksd", "install", "--dir", "D"], ""),
    "unknown hook": (2, ["hooksd", "install", "--dir", "D", "foo"], "foo"),
    "unknown flag": (2, ["hooksd", "install", "--dir", "D", "create-symlinks", "--lnk", "a::/b"], "--lnk"),
    "a word too many": (2, ["hooksd", "install", "--dir", "D", *LINK, "x"], "x"),
    "stage": (2, ["hooksd", "install", "--dir", "D", "--stage", "poststop", *LINK], "poststop"),
    "two conditions": (2, ["hooksd", "install", "--dir", "D", "--always", "--command", "x", *LINK], "--always"),
    "pattern": (2, ["hooksd", "install", "--dir", "D", "--command", "(?=x)", *LINK], "look-around"),
    "annotation": (2, ["hooksd", "install", "--dir", "D", "--annotation", "x", *LINK], "KEY=VALUE"),
    "annotation twice": (2, ["hooksd", "install", "--dir", "D", "--annotation=x=", "--annotation=x=y", *LINK], "twice"),
    "no options": (1, ["hooksd", "install", "--dir", "D", "create-symlinks"], "does nothing without options"),
    "bad value": (1, ["hooksd", "install", "--dir", "D", "create-symlinks", "--link", "a"], "invalid symlink"),
    "bad value in run": (1, ["hooksd", "install", "--dir", "D", "run", "--", "chmod", "--mode", "x"], "octal"),
    "name": (1, ["hooksd", "install", "--dir", "D", "--name", "../x", *LINK], "not a plain file name"),
    "program": (1, ["hooksd", "install", "--dir", "D", "--program", "/nowhere", *LINK], "ENOENT"),
}  # fmt: skip


@pytest.mark.parametrize(("code", "words", "message"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_command_line_writes_nothing(
    nvoci: Invoke, tmp_path: Path, code: int, words: list[str], message: str
) -> None:
    result = nvoci(*[f"{tmp_path}/d" if word == "D" else word for word in words])
    assert result.rc == code
    assert message in result.stderr
    assert result.rc == 2 or result.stderr.count("\n") == 1
    assert os.listdir(tmp_path) == []


def test_a_full_or_read_only_directory_is_one_line(nvoci: Invoke) -> None:
    result = nvoci("hooksd", "install", "--dir", "/proc/self", *LINK)
    assert result.rc == 1
    assert result.stderr.startswith("nvoci: ")
    assert result.stderr.count("\n") == 1


# --- list, validate, remove -----------------------------------------------------------------------------------------


def test_list_says_whose_when_and_what(nvoci: Invoke, tmp_path: Path) -> None:
    nvoci("hooksd", "install", "--dir", tmp_path, "--command", "sh$", *LINK)
    foreign(tmp_path, "99-foreign.json", args=["true", "a b"])
    (tmp_path / "bad.json").write_text("{")
    result = nvoci("hooksd", "list", "--dir", tmp_path)
    ours, theirs, bad = result.stdout.splitlines()
    assert result.rc == 0
    assert ours.split()[1:3] == ["hooksd", "createContainer"]
    assert ours.endswith("nvidia-cdi-hook create-symlinks --link a::/b")
    assert "when command sh$: " in ours
    assert theirs.split()[1:3] == ["foreign", "prestart"]
    assert theirs.endswith("when always: /bin/true 'a b'")
    assert bad.split()[1] == "invalid"


def test_list_of_an_empty_directory_is_empty_and_of_a_missing_one_an_error(nvoci: Invoke, tmp_path: Path) -> None:
    assert nvoci("hooksd", "list", "--dir", tmp_path).stdout == ""
    assert nvoci("hooksd", "list", "--dir", tmp_path / "none").rc == 1


def test_a_terminal_is_safe_from_what_an_entry_says(nvoci: Invoke, tmp_path: Path) -> None:
    foreign(tmp_path, args=["\x1b[31m"], env=["A=b"])
    (tmp_path / "\x1b[2J.json").write_text("{")
    assert "\x1b" not in nvoci("hooksd", "list", "--dir", tmp_path).stdout
    result = nvoci("hooksd", "validate", "--dir", tmp_path)
    assert "\x1b" not in result.stdout + result.stderr


def test_what_install_writes_is_valid(nvoci: Invoke, tmp_path: Path) -> None:
    nvoci("hooksd", "install", "--dir", tmp_path, *LINK)
    result = nvoci("hooksd", "validate", "--dir", tmp_path)
    assert (result.rc, result.stderr) == (0, "")
    assert result.stdout == f"{tmp_path}/30-nvoci-create-symlinks.json: valid\n"


INVALID = {
    "program missing": ({"hook": {"path": "/nowhere"}}, "ENOENT"),
    "environment of the container": ({"stages": ["createContainer"]}, "`hook.env` is empty"),
    "unknown key": ({"whence": 1}, "unknown key `whence`"),
    "timeout 0": ({"hook": {"path": "/bin/true", "timeout": 0}}, "greater than 0"),
    "look-ahead": ({"when": {"commands": ["(?=x)"]}}, "RE2"),
}


@pytest.mark.parametrize(("changes", "message"), INVALID.values(), ids=INVALID.keys())
def test_validate_names_file_and_fault(nvoci: Invoke, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = foreign(tmp_path)
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    for words in ([path], ["--dir", tmp_path]):
        result = nvoci("hooksd", "validate", *words)
        assert result.rc == 1
        assert str(path) in result.stderr
        assert message in result.stderr
        assert result.stderr.count("\n") == 1


def test_validate_checks_our_programs_arguments(nvoci: Invoke, bin_dir: Path, tmp_path: Path) -> None:
    path = foreign(tmp_path, path=f"{bin_dir}/nvidia-cdi-hook", args=["create-symlinks", "--link", "a::/b"])
    assert "names no hook" in nvoci("hooksd", "validate", path).stderr


def test_remove_takes_ours_and_leaves_the_rest(nvoci: Invoke, tmp_path: Path) -> None:
    nvoci("hooksd", "install", "--dir", tmp_path, *LINK)
    nvoci("hooksd", "install", "--dir", tmp_path, "--name", "x", *LINK)
    foreign(tmp_path)
    assert nvoci("hooksd", "remove", "--dir", tmp_path, "x").stdout == f"{tmp_path}/x.json\n"
    result = nvoci("hooksd", "remove", "--dir", tmp_path, "foreign.json")
    assert (result.rc, "not ours" in result.stderr) == (1, True)
    assert nvoci("hooksd", "remove", "--dir", tmp_path, "--all").rc == 0
    assert os.listdir(tmp_path) == ["foreign.json"]


@pytest.mark.parametrize("words", [[], ["--all", "x"]], ids=["nothing", "both"])
def test_remove_wants_names_or_all(nvoci: Invoke, tmp_path: Path, words: list[str]) -> None:
    assert nvoci("hooksd", "remove", "--dir", tmp_path, *words).rc == 2


# --- from-cdi -------------------------------------------------------------------------------------------------------


def cdi_hook(*args: str, **more: Any) -> dict[str, Any]:
    return {"hookName": "createContainer", "path": "/bin/true", "args": ["nvidia-cdi-hook", *args], **more}


def spec(path: Path, *common: dict[str, Any], **devices: list[dict[str, Any]]) -> Path:
    doc = {
        "cdiVersion": "0.6.0",
        "kind": "nvidia.com/gpu",
        "devices": [
            {"name": name.strip("_"), "containerEdits": {"hooks": hooks}}
            for name, hooks in (devices or {"other": [cdi_hook("other")]}).items()
        ],
        "containerEdits": {"hooks": list(common), "env": ["NVIDIA_VISIBLE_DEVICES=void"]},
    }
    path.write_text(json.dumps(doc))
    return path


def test_from_cdi_writes_the_spec_s_hooks_and_those_of_all(nvoci: Invoke, tmp_path: Path) -> None:
    source = spec(
        tmp_path / "s.json",
        cdi_hook("create-symlinks", "--link", "a::/b", env=["NVIDIA_CTK_DEBUG=false"]),
        cdi_hook("update-ldcache", hookName="createRuntime", timeout=0),
        all=[cdi_hook("chmod", timeout=9)],
        _0=[cdi_hook("other")],
    )
    result = nvoci("hooksd", "from-cdi", source, "--dir", tmp_path / "d", "--command", "x")
    names = [
        f"50-nvoci-nvidia.com-gpu-00{n}" for n in ("0-create-symlinks.json", "1-update-ldcache.json", "2-chmod.json")
    ]
    assert result.rc == 0
    assert sorted(os.listdir(tmp_path / "d")) == names
    first, second, third = (load(tmp_path / "d", name) for name in names)
    assert first["hook"] == {
        "path": "/bin/true",
        "args": ["nvidia-cdi-hook", "create-symlinks", "--link", "a::/b"],
        "env": ["NVOCI_HOOK=cdi:nvidia.com/gpu", "NVIDIA_CTK_DEBUG=false"],
    }
    assert (second["stages"], second["hook"]["env"]) == (["createRuntime"], ["NVOCI_HOOK=cdi:nvidia.com/gpu"])
    assert "timeout" not in second["hook"]
    assert third["hook"]["timeout"] == 9
    assert [entry["when"] for entry in (first, second, third)] == [{"commands": ["x"]}] * 3
    assert "left_out=env" in result.stderr
    assert "level=warning" in result.stderr


def test_from_cdi_takes_the_devices_that_are_named(nvoci: Invoke, tmp_path: Path) -> None:
    source = spec(tmp_path / "s.json", all=[cdi_hook("a")], _0=[cdi_hook("b")], _1=[cdi_hook("c")])
    nvoci("hooksd", "from-cdi", source, "--dir", tmp_path / "d", "--device", "1", "--device", "0", "--device", "1")
    assert [n.rpartition("-")[2] for n in sorted(os.listdir(tmp_path / "d"))] == ["c.json", "b.json"]


def test_from_cdi_again_leaves_what_one_run_leaves(nvoci: Invoke, tmp_path: Path) -> None:
    directory = tmp_path / "d"
    nvoci("hooksd", "install", "--dir", directory, *LINK)
    nvoci("hooksd", "from-cdi", spec(tmp_path / "s.json", cdi_hook("a"), cdi_hook("b")), "--dir", directory)
    result = nvoci("hooksd", "from-cdi", spec(tmp_path / "s.json", cdi_hook("c")), "--dir", directory)
    assert sorted(os.listdir(directory)) == ["30-nvoci-create-symlinks.json", "50-nvoci-nvidia.com-gpu-000-c.json"]
    assert result.stdout.count("removed ") == 2


BAD_SPECS = {
    "no kind": ({"kind": ...}, "kind: kind `` is not VENDOR/CLASS"),
    "kind": ({"kind": "gpu"}, "kind: kind `gpu` is not VENDOR/CLASS"),
    "version": ({"cdiVersion": "2.0.0"}, 'cdiVersion: invalid version "2.0.0"'),
    "unknown field": ({"hooks": []}, "hooks"),
    "devices": ({"devices": {}}, "devices"),
    "device": ({"devices": ["x"]}, "devices[0]"),
    "device twice": ({"devices": [{"name": "0"}, {"name": "0"}]}, "devices"),
    "edits": ({"containerEdits": []}, "containerEdits"),
    "hooks": ({"containerEdits": {"hooks": {"a": 1}}}, "containerEdits.hooks"),
    "stage": ({"containerEdits": {"hooks": [cdi_hook(hookName="now")]}}, 'hooks[0].hookName: invalid hook name "now"'),
    "no stage": ({"containerEdits": {"hooks": [{"path": "/bin/true"}]}}, 'invalid hook name ""'),
    "path": ({"containerEdits": {"hooks": [cdi_hook(path="true")]}}, "`hook.path`"),
    "program": ({"containerEdits": {"hooks": [cdi_hook(path="/nowhere")]}}, "ENOENT"),
    "args": ({"containerEdits": {"hooks": [cdi_hook(args="x")]}}, "hooks[0].args"),
    "args that start with no program": ({"containerEdits": {"hooks": [cdi_hook(args=["-x"])]}}, "`hook.args`"),
    "env": ({"containerEdits": {"hooks": [cdi_hook(env=["x"])]}}, 'env[0]: invalid environment variable "x"'),
    "timeout": ({"containerEdits": {"hooks": [cdi_hook(timeout=-1)]}}, "greater than 0"),
    "second hook": ({"containerEdits": {"hooks": [cdi_hook(), cdi_hook(hookName="")]}}, "hooks[1]"),
}


@pytest.mark.parametrize(("changes", "message"), BAD_SPECS.values(), ids=BAD_SPECS.keys())
def test_a_bad_spec_writes_nothing(nvoci: Invoke, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    devices = [{"name": "0", "containerEdits": {"env": ["A=1"]}}]
    doc: dict[str, Any] = {"cdiVersion": "0.6.0", "kind": "a.org/b", "devices": devices, **changes}
    source = tmp_path / "s.json"
    source.write_text(json.dumps({key: value for key, value in doc.items() if value is not ...}))
    result = nvoci("hooksd", "from-cdi", source, "--dir", tmp_path / "d")
    assert (result.rc, result.stderr.count("\n")) == (1, 1)
    assert message in result.stderr
    assert not (tmp_path / "d").exists()


def test_a_spec_that_others_can_write_gives_no_entry(nvoci: Invoke, tmp_path: Path) -> None:
    source = spec(tmp_path / "s.json", cdi_hook("a"))
    source.chmod(0o666)
    result = nvoci("hooksd", "from-cdi", source, "--dir", tmp_path / "d")
    assert (result.rc, "mode 0666: others can write it" in result.stderr) == (1, True)
    assert not (tmp_path / "d").exists()


def test_an_unknown_device_is_named_with_those_there_are(nvoci: Invoke, tmp_path: Path) -> None:
    source = spec(tmp_path / "s.json", _0=[cdi_hook("a")])
    result = nvoci("hooksd", "from-cdi", source, "--dir", tmp_path / "d", "--device", "7")
    assert (result.rc, "no device `7` (it has: 0)" in result.stderr) == (1, True)


def test_an_entry_of_another_in_the_way_stops_before_the_first_write(nvoci: Invoke, tmp_path: Path) -> None:
    directory = tmp_path / "d"
    directory.mkdir()
    foreign(directory, "50-nvoci-nvidia.com-gpu-001-b.json")
    source = spec(tmp_path / "s.json", cdi_hook("a"), cdi_hook("b"))
    result = nvoci("hooksd", "from-cdi", source, "--dir", directory)
    assert (result.rc, "EEXIST" in result.stderr) == (1, True)
    assert os.listdir(directory) == ["50-nvoci-nvidia.com-gpu-001-b.json"]
