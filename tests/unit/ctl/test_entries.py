"""The shipped templates, and what is checked before an entry is made of one."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lib import session

from nvoci.ctl import entries, regex
from nvoci.errors import HookError
from nvoci.hook import table
from nvoci.oci import hooksd

TEMPLATES = session.CHECKOUT / "oci-hooks.d"
PRESTART = "10-nvoci-prestart.json.in"  # of another program: test_prestartentry.py
NAMES = sorted(path.name for path in TEMPLATES.glob("*.json.in") if path.name != PRESTART)


def test_every_hook_for_people_has_one_template() -> None:
    hooks = sorted(hook.name for hook in (*table.HOOKS.values(), table.RUN) if not hook.hidden)
    assert sorted(re.sub(r"^\d\d-nvoci-(.*)\.json\.in$", r"\1", name) for name in NAMES) == hooks


def test_nothing_that_is_shipped_is_read_by_an_engine() -> None:
    assert list(TEMPLATES.glob("*.json")) == []


@pytest.mark.parametrize("name", NAMES)
def test_a_template_filled_in_is_an_entry_of_ours(name: str) -> None:
    text = (TEMPLATES / name).read_text().replace("@PROGRAM@", "/usr/bin/nvidia-cdi-hook")
    made = hooksd.parse(json.loads(text.replace('"@OPTIONS@"', '"--strict"')), name, regex.check)
    assert made.origin() == hooksd.ORIGIN
    hook = made.args[1]
    # cgroups may be out of reach inside
    stage = "createRuntime" if hook in ("inject", "mount-mig-devices") else "createContainer"
    assert (made.stages, made.when.document()) == ([stage], {"always": True})
    words = ["--strict"] if "@OPTIONS@" in text else []
    found_name, template = entries.read_template(hook, "/usr/bin/nvidia-cdi-hook")
    filled = entries.fill_in(template, words, template.when, template.stages)
    assert (f"{found_name}.in", filled.document()) == (name, made.document())
    assert hooksd.render(filled).decode() == text.replace('"@OPTIONS@"', '"--strict"')


def test_the_templates_are_in_the_order_in_which_hooks_build_on_each_other() -> None:
    order = [name.partition("-nvoci-")[2].partition(".")[0] for name in NAMES]
    assert order.index("create-symlinks") < order.index("enable-cuda-compat") < order.index("update-ldcache")


def test_a_hook_without_a_template_is_an_error() -> None:
    with pytest.raises(HookError, match="ENOENT"):
        entries.read_template("noop", "/bin/true")


BAD_OPTIONS = {
    "unknown flag": ("create-symlinks", ["--lnk", "a::/b"], "not defined"),
    "bad link": ("create-symlinks", ["--link", "a"], "invalid symlink specification"),
    "bad mode": ("chmod", ["--mode", "9"], "octal"),
    "run without hooks": ("run", [], "no hook given"),
    "run of an unknown hook": ("run", ["--", "create-symlink"], "unknown hook `create-symlink`"),
    "run of a bad link": ("run", ["--", "noop", "--", "create-symlinks", "--link", "a"], "invalid symlink"),
    "run of itself": ("run", ["--", "run"], "unknown hook `run`"),
}


@pytest.mark.parametrize(("name", "words", "message"), BAD_OPTIONS.values(), ids=BAD_OPTIONS.keys())
def test_options_that_the_hook_would_refuse_are_refused(name: str, words: list[str], message: str) -> None:
    hook = table.RUN if name == "run" else table.HOOKS[name]
    with pytest.raises(HookError) as e:
        entries.check_options(hook, words)
    assert message in e.value.message


def entry(path: str, *args: str) -> hooksd.Entry:
    return hooksd.ours(path, list(args), [], hooksd.When(always=True), ["createContainer"])


PROGRAM_LINES: dict[str, tuple[str, list[str], str]] = {
    "right": ("/b/nvidia-cdi-hook", ["create-symlinks", "--link", "a::/b"], ""),
    "right, ctk": ("/b/nvidia-ctk", ["hook", "--debug", "create-symlinks", "--link", "a::/b"], ""),
    "right, run": ("/b/nvidia-cdi-hook", ["run", "--", "create-symlinks", "--link", "a::/b"], ""),
    "another program": ("/b/other", ["--whatever"], ""),
    "no hook": ("/b/nvidia-cdi-hook", [], "names no hook"),
    "no hook word": ("/b/nvidia-ctk", ["create-symlinks"], "is no hook"),
    "unknown hook": ("/b/nvidia-cdi-hook", ["create-links"], "unknown hook `create-links`"),
    "unknown flag": ("/b/nvidia-cdi-hook", ["chmod", "--link", "a::b"], "not defined"),
    "unknown flag in run": ("/b/nvidia-cdi-hook", ["run", "--", "chmod", "--link", "a::b"], "not defined"),
}


@pytest.mark.parametrize(("path", "words", "message"), PROGRAM_LINES.values(), ids=PROGRAM_LINES.keys())
def test_arguments_of_our_own_programs_are_checked(path: str, words: list[str], message: str) -> None:
    made = entry(path, "name", *words)
    if not message:
        check: Callable[[hooksd.Entry], object] = entries.check_program_options
        assert check(made) is None
        return
    with pytest.raises(HookError) as e:
        entries.check_program_options(made)
    assert message in e.value.message


def test_the_program_beside_the_command_is_found_also_through_a_link(
    bin_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = tmp_path / "nvoci"
    link.symlink_to(bin_dir / "nvoci")
    for command in (bin_dir / "nvoci", link):
        monkeypatch.setattr("sys.argv", [str(command)])
        assert entries.find_program("") == str(bin_dir / "nvidia-cdi-hook")
    monkeypatch.setattr("sys.argv", [str(tmp_path / "elsewhere/nvoci")])
    with pytest.raises(HookError, match="not beside"):
        entries.find_program("")


def make_program(path: Path, kind: str) -> Path:
    if kind == "directory":
        path.mkdir()
    elif kind != "missing":
        path.write_text("#!/bin/sh\n")
        path.chmod({"not executable": 0o644, "others can write": 0o757, "right": 0o755}[kind])
    return path


@pytest.mark.parametrize("kind", ["missing", "directory", "not executable", "others can write"])
def test_a_program_that_would_not_run_or_is_not_safe_is_refused(tmp_path: Path, kind: str) -> None:
    with pytest.raises(HookError, match="use program"):
        entries.find_program(str(make_program(tmp_path / "p", kind)))


def test_a_program_named_by_a_relative_path_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_program(tmp_path / "p", "right")
    monkeypatch.chdir(tmp_path)
    assert entries.find_program("p") == str(tmp_path / "p")


@pytest.mark.parametrize("mode", [0o777, 0o775, 0o1777])
def test_a_directory_that_others_can_write_is_refused(tmp_path: Path, mode: int) -> None:
    directory = tmp_path / "d"
    directory.mkdir()
    directory.chmod(mode)
    with pytest.raises(HookError, match=r"use directory .* mode 0?1?7"):
        entries.prepare_directory(str(directory))


def test_a_directory_that_is_missing_is_made(tmp_path: Path) -> None:
    directory = tmp_path / "a/b"
    assert entries.prepare_directory(f"{directory}/") == str(directory)
    assert directory.stat().st_mode & 0o7777 == 0o755


def test_a_file_in_place_of_the_directory_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("")
    with pytest.raises(HookError, match=r"make directory .*: EEXIST"):
        entries.prepare_directory(str(tmp_path / "f"))


def test_a_damaged_template_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "nvoci/__init__.py"
    monkeypatch.setattr("nvoci.__file__", str(package))
    (tmp_path / "oci-hooks.d").mkdir()
    template = tmp_path / "oci-hooks.d/10-nvoci-chmod.json.in"
    for content in ("", "{}", '{"hook": {"path": "/fixed"}}'):
        template.write_text(content)
        with pytest.raises(HookError, match="read template"):
            entries.read_template("chmod", "/bin/true")
    found: Any = json.loads((TEMPLATES / "60-nvoci-chmod.json.in").read_text())
    template.write_text(json.dumps({**found, "extra": 1}))
    with pytest.raises(HookError, match="unknown key `extra`"):
        entries.read_template("chmod", "/bin/true")
