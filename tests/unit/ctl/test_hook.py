"""`nvoci hook`: one table, two parsers that agree, and the program's own behaviour."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import click
import pytest
from lib import proc

from nvoci.ctl import hook as ctl_hook
from nvoci.errors import HookError
from nvoci.hook import options, table

HOOKS = [*table.HOOKS.values(), table.RUN]


def strict(hook: table.Hook) -> ctl_hook.HookCommand:
    return ctl_hook.HookCommand(hook, lambda *_: None, strict=True)


def click_parse(hook: table.Hook, words: list[str]) -> dict[str, Any]:
    """What click makes of a command line, under the table's names. Raises click.UsageError."""
    params = strict(hook).make_context(hook.name, list(words)).params
    return {option.name: params[option.name.replace("-", "_")] for option in hook.options}


@pytest.mark.parametrize("hook", HOOKS, ids=lambda h: h.name)
def test_click_has_exactly_the_options_of_the_table(hook: table.Hook) -> None:
    found = {p.opts[0]: p for p in strict(hook).params if isinstance(p, click.Option)}
    assert list(found) == [f"--{option.name}" for option in hook.options]
    for option in hook.options:
        param = found[f"--{option.name}"]
        assert param.hidden == option.hidden
        assert param.is_flag == (option.kind == table.FLAG)
        assert param.multiple == (option.kind == table.LIST)
        assert (param.help or "").startswith(option.help)


@pytest.mark.parametrize("hook", HOOKS, ids=lambda h: h.name)
def test_both_parsers_have_the_same_defaults(hook: table.Hook) -> None:
    assert click_parse(hook, []) == options.parse_hook(hook, [])


SAMPLES = {table.LIST: ["a", "a,b", " a , b ", "", "-x"], table.TEXT: ["a", "", "a,b", "-"], table.NUMBER: ["1", "2.5"]}


@pytest.mark.parametrize("hook", HOOKS, ids=lambda h: h.name)
def test_both_parsers_read_each_option_alike(hook: table.Hook) -> None:
    lines: list[list[str]] = [["--dry-run", "--strict"]]
    for option in hook.options:
        if option.kind == table.FLAG:
            lines.append([f"--{option.name}"])
            continue
        for value in SAMPLES[option.kind]:
            lines += [[f"--{option.name}={value}"], [f"--{option.name}", value, "--strict"]]
        last = SAMPLES[option.kind][0]
        lines.append([f"--{option.name}", last, f"--{option.name}={last}"])
    for line in lines:
        assert click_parse(hook, line) == options.parse_hook(hook, line), line


LINES = {
    "links": "create-symlinks --link a::/b --link=c::/d,e::/f --link-if /dev/x=g::/h",
    "links, spec": "create-symlinks --container-spec - --link a::/b",
    "mode": "chmod --mode 755 --path /a --path=/b,/c --timeout 3",
    "compat": "enable-cuda-compat --host-driver-version=550.1 --host-cuda-version=12.4 --cuda-compat-container-root=/x",
    "ldcache": "update-ldcache --ldconfig-path /sbin/ldconfig --folder /a --folder /b,/c",
    "ldcache, engine": "update-ldcache --engine ldconfig --folder=/a --engine=builtin",
    "values that look like options": "chmod --mode --path --path --mode",
    "run": "run --strict --timeout=1 --container-spec x",
    "noop": "noop --dry-run",
}


@pytest.mark.parametrize("line", LINES.values(), ids=LINES.keys())
def test_both_parsers_read_the_same_line_alike(line: str) -> None:
    name, *words = shlex.split(line)
    hook = table.RUN if name == "run" else table.HOOKS[name]
    found = options.parse_hook(hook, words)
    assert click_parse(hook, words) == found
    assert found != options.parse_hook(hook, [])


REFUSED = {
    "unknown flag": "create-symlinks --links a::b",
    "no value": "create-symlinks --link",
    "not a number": "chmod --timeout soon",
    "zero": "chmod --timeout 0",
    "too long": "run --timeout 601",
    "flag of another hook": "noop --link a::b",
}


@pytest.mark.parametrize("line", REFUSED.values(), ids=REFUSED.keys())
def test_both_parsers_refuse_the_same_line(line: str) -> None:
    name, *words = shlex.split(line)
    hook = table.RUN if name == "run" else table.HOOKS[name]
    with pytest.raises(HookError):
        options.parse_hook(hook, words)
    with pytest.raises(click.UsageError):
        click_parse(hook, words)


PROGRAM_LINES = [
    "--version",
    "--features",
    "--bar",
    "foo --bar",
    "--quiet foo",
    "--debug=no noop",
    "noop --bar",
    "noop -dry-run ignored",
    "create-symlinks --link x",
    "create-symlinks --link a::/b",
    "update-ldcache --engine magic",
    "run -- update-ldcache --engine= --folder a",
    "run -- foo",
    "run -- create-symlinks --link a",
    "chmod --mode 9",
    "chmod --dry-run=maybe --mode 7",
]


@pytest.mark.parametrize("line", PROGRAM_LINES)
def test_the_command_does_and_says_what_the_program_does_and_says(bin_dir: Path, line: str) -> None:
    ran = []
    for program in ([bin_dir / "nvidia-cdi-hook"], [bin_dir / "nvoci", "hook"]):
        result = proc.run([*program, *shlex.split(line)])
        ran.append((result.rc, result.stdout, [text.partition(" ")[2] for text in result.stderr.splitlines()]))
    assert ran[0] == ran[1]
    assert ran[0][1] or ran[0][2] or ran[0][0] == 0


def test_help_is_clicks(bin_dir: Path) -> None:
    result = proc.run([bin_dir / "nvoci", "hook", "create-symlinks", "--help"])
    assert result.rc == 0
    assert "Usage: nvoci hook create-symlinks" in result.stdout
    assert "--container-spec" not in result.stdout
    assert "TARGET::LINK" in result.stdout


def test_the_command_changes_a_container_as_the_program_does(bin_dir: Path, tmp_path: Path) -> None:
    root = tmp_path / "rootfs"
    root.mkdir()
    state = f'{{"ociVersion": "1.0.2", "id": "x", "status": "creating", "bundle": "{tmp_path}", "root": "{root}"}}'
    words = ["create-symlinks", "--link", "target::/a/link"]
    result = proc.run([bin_dir / "nvoci", "hook", *words], stdin=state.encode())
    assert (result.rc, result.stderr) == (0, "")
    assert (root / "a/link").readlink() == Path("target")
