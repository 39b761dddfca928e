"""`nvoci`: what it loads, and how it ends."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from lib import proc, session

from nvoci import __version__
from nvoci.ctl import main

Invoke = Callable[..., proc.Result]


def test_version_and_help_are_for_stdout(nvoci: Invoke) -> None:
    assert nvoci("--version").stdout == f"nvoci {__version__}\n"
    shown = nvoci("--help")
    assert (shown.rc, shown.stderr) == (0, "")
    assert all(f"  {name} " in shown.stdout for name in ("completion", "hook", "hooksd", "ldcache"))


@pytest.mark.parametrize("words", [("nonsense",), ("--nonsense",), ("hooksd", "nonsense"), ("completion", "tcsh")])
def test_a_usage_error_is_exit_status_2(nvoci: Invoke, words: tuple[str, ...]) -> None:
    result = nvoci(*words)
    assert result.rc == 2
    assert "Error: " in result.stderr
    assert result.stdout == ""


def test_an_error_is_one_line_and_exit_status_1(nvoci: Invoke, tmp_path: Path) -> None:
    result = nvoci("hooksd", "remove", "--dir", tmp_path, "none")
    assert (result.rc, result.stderr) == (1, f"nvoci: read entry {tmp_path}/none.json: ENOENT\n")


def test_an_errno_nobody_expected_is_one_line_too(nvoci: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise PermissionError(13, "denied", "/some/file")

    monkeypatch.setattr(main.nvoci, "main", fail)
    result = nvoci("hooksd")
    assert result.rc == 1
    assert result.stderr.startswith("nvoci: use /some/file: EACCES")
    assert result.stderr.count("\n") == 1


LOADED = """
import sys
sys.path.insert(0, {hooks!r}); sys.path.insert(1, {vendor!r})
from nvoci.ctl import main
try:
    main.nvoci.main({words!r}, prog_name="nvoci")
except SystemExit:
    pass
print(*sorted(sys.modules), file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("words", "loaded", "not_loaded"),
    [
        (["--version"], "nvoci.ctl.main", "nvoci.ctl.hook nvoci.ctl.hooksd nvoci.hook structlog yaml json.decoder"),
        (["hook", "--help"], "nvoci.ctl.hook", "nvoci.ctl.hooksd nvoci.hook.main structlog yaml"),
        (["hooksd", "list", "--help"], "nvoci.ctl.hooksd", "nvoci.hook.main structlog yaml"),
        (["ldcache", "show", "--help"], "nvoci.ctl.ldcache", "nvoci.ctl.hooksd structlog yaml"),
    ],
    ids=["version", "hook", "hooksd", "ldcache"],
)
def test_a_command_is_loaded_when_it_is_named(words: list[str], loaded: str, not_loaded: str) -> None:
    import click

    code = LOADED.format(hooks=str(session.HOOKS), vendor=str(Path(click.__file__).parent.parent), words=words)
    result = proc.run([session.PYTHON, "-ISB", "-c", code])
    modules = result.stderr.split()
    assert loaded in modules
    assert sorted(set(not_loaded.split()) & set(modules)) == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_completion_script_is_one_its_shell_accepts(nvoci: Invoke, shell: str) -> None:
    result = nvoci("completion", shell)
    assert result.rc == 0
    assert "_NVOCI_COMPLETE=" in result.stdout
    path = shutil.which(shell)
    if path:
        subprocess.run([path, "-n", "/dev/stdin"], input=result.stdout, text=True, check=True)


COMPLETED = {
    "commands": ("nvoci hook", 1, {"hook", "hooksd"}),
    "hooks": ("nvoci hook create", 2, {"create-symlinks"}),
    "options of a hook": ("nvoci hook create-symlinks --li", 3, {"--link", "--link-if"}),
    "hooks to install": ("nvoci hooksd install --dir x upd", 5, {"update-ldcache", "update-application-profile"}),
    "options to install": ("nvoci hooksd install chmod --mo", 4, {"--mode"}),
    "no hidden ones": ("nvoci hook noo", 2, set()),
    "stages": ("nvoci hooksd install --stage create", 4, {"createRuntime", "createContainer"}),
}


@pytest.mark.parametrize(("line", "at", "expected"), COMPLETED.values(), ids=COMPLETED.keys())
def test_completion_knows_hooks_and_their_options(bin_dir: Path, line: str, at: int, expected: set[str]) -> None:
    env = {"_NVOCI_COMPLETE": "bash_complete", "COMP_WORDS": line, "COMP_CWORD": str(at), "PATH": "/usr/bin"}
    result = proc.run([bin_dir / "nvoci"], env=env)
    assert {word.partition(",")[2] for word in result.stdout.split()} == expected
