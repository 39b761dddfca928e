"""Entries of ours: from the shipped templates, with the hook's options checked before anything is written."""

from __future__ import annotations

import os
import stat
import sys
from importlib import import_module
from pathlib import Path

import nvoci
from nvoci.ctl import prestartentry, regex, trust
from nvoci.errors import HookError, hook_error, printable
from nvoci.hook import options, table
from nvoci.hook.settings import Settings
from nvoci.jsonfile import load_object, read_file
from nvoci.oci import hooksd

PROGRAM = "nvidia-cdi-hook"
_PROGRAM_MARK, _OPTIONS_MARK = "@PROGRAM@", "@OPTIONS@"
_TEMPLATES = "oci-hooks.d"
_DAMAGED = "nvoci is not installed whole: run scripts/install again"
_MISSING = "Podman leaves out an entry whose program is not there, without a word"


def read_template(hook: str, program: str) -> tuple[str, hooksd.Entry]:
    """The file name without `.in`, and the entry with `program` in it, the options still to come. Raises HookError."""
    stage = "read template"
    package = Path(nvoci.__file__).parent
    # Beside the package in an installed tree, beside its source root in a checkout.
    for place in (package.parent / _TEMPLATES, package.parent.parent / _TEMPLATES):
        for path in sorted(place.glob(f"[0-9][0-9]-nvoci-{hook}.json.in")):
            doc = load_object(read_file(str(path), hooksd.MAX_ENTRY, stage), stage, str(path))
            if not isinstance(doc.get("hook"), dict) or doc["hook"].get("path") != _PROGRAM_MARK:
                raise HookError(f"{stage} {printable(path)}: `hook.path` is not {_PROGRAM_MARK}", _DAMAGED)
            doc["hook"]["path"] = program
            return path.name.removesuffix(".in"), hooksd.parse(doc, str(path), regex.check, stage)
    raise HookError(f"{stage} {_TEMPLATES}/*-nvoci-{printable(hook)}.json.in: ENOENT",
                    _DAMAGED)  # fmt: skip


def fill_in(template: hooksd.Entry, words: list[str], when: hooksd.When, stages: list[str]) -> hooksd.Entry:
    """An entry from a template; `words` are the hook's options. Raises HookError where a template needs some."""
    head = [arg for arg in template.args if arg != _OPTIONS_MARK]
    if not words and len(head) < len(template.args):
        raise HookError(f"{head[-1]}: it does nothing without options", f"see nvoci hooksd install {head[-1]} --help")
    return hooksd.ours(template.path, [*head, *words], template.env, when, stages, template.timeout)


# --- the hook's own options -----------------------------------------------------------------------------------------


def check_options(hook: table.Hook, words: list[str]) -> None:
    """Parse the options as the hook program does, and let each hook look at its values. Stricter than the program:
    an unknown hook, or a word that is no option, is an error here, since nobody would notice it later. Raises
    HookError."""
    if hook is not table.RUN:
        _check_one(hook, words)
        return
    own, groups = options.split_run(words)
    options.parse_hook(hook, own)
    if not groups:
        raise HookError("run: no hook given", "run -- HOOK [OPTIONS] -- HOOK [OPTIONS] ...")
    for name, *rest in groups:
        if name not in table.HOOKS:
            raise HookError(f"run: unknown hook `{printable(name)}`", "one of " + ", ".join(table.HOOKS))
        _check_one(table.HOOKS[name], rest)


def _check_one(hook: table.Hook, words: list[str]) -> None:
    parsed = options.parse_hook(hook, words)
    import_module(hook.module).prepare(parsed, Settings())


def check_program_options(entry: hooksd.Entry) -> None:
    """For an entry that starts one of our programs: its arguments. Raises HookError."""
    if Path(entry.path).name in prestartentry.PROGRAMS:
        prestartentry.check(entry)
        return
    if Path(entry.path).name not in (PROGRAM, "nvidia-ctk"):
        return
    words = entry.args[1:]
    if Path(entry.path).name == "nvidia-ctk":
        if words[:1] != ["hook"]:
            raise HookError(
                f"nvidia-ctk: `{printable(' '.join(words[:1]))}` is no hook", "its first argument is `hook`"
            )
        words = words[1:]
    words = options.parse_globals(words, {}).words
    if not words:
        raise HookError("`hook.args` names no hook", "it starts with the program's name, then comes the hook")
    hook = table.RUN if words[0] == table.RUN.name else table.HOOKS.get(words[0])
    if hook is None:
        raise HookError(f"`hook.args` names an unknown hook `{printable(words[0])}`", "it would be left out")
    own, groups = options.split_run(words[1:]) if hook is table.RUN else (words[1:], [])
    options.parse_hook(hook, own)
    for name, *rest in groups:
        if name in table.HOOKS:
            options.parse_hook(table.HOOKS[name], rest)


# --- files on the host ----------------------------------------------------------------------------------------------


def find_program(given: str, name: str = PROGRAM) -> str:
    """The absolute path of the hook program: `given`, or `name` beside `nvoci`. Raises HookError."""
    if given:
        check_program(os.path.abspath(given))
        return os.path.abspath(given)
    here = os.path.abspath(sys.argv[0])
    for place in dict.fromkeys((os.path.dirname(here), os.path.dirname(os.path.realpath(here)))):
        path = f"{place}/{name}"
        if os.path.exists(path):
            check_program(path)
            return path
    raise HookError(f"find {name}: not beside {printable(here)}", "name it with --program")


def check_program(path: str, missing: str = _MISSING) -> None:
    """Raises HookError unless it can be executed and only root (or who runs this) can change it. missing: the hint
    where it is not there."""
    stage = "use program"
    try:
        status = os.stat(path)
    except OSError as e:
        raise hook_error(stage, path, e, missing) from None
    if not stat.S_ISREG(status.st_mode) or not status.st_mode & 0o111:
        raise HookError(f"{stage} {printable(path)}: not an executable file", "name a program")
    if trust.others_can_write(status):
        raise HookError(f"{stage} {printable(path)}: uid {status.st_uid}, mode {status.st_mode & 0o7777:04o}",
                        "others can change what would run at each start")  # fmt: skip


def prepare_directory(path: str) -> str:
    """The directory to write entries to, made if it is missing. Raises HookError if others can write to it: entries
    decide what the engine, often root, executes."""
    directory = os.path.abspath(path)
    try:
        os.makedirs(directory, mode=0o755, exist_ok=True)
        status = os.stat(directory)
    except OSError as e:
        raise hook_error("make directory", e.filename or directory, e) from None
    if trust.others_can_write(status):
        raise HookError(f"use directory {printable(directory)}: uid {status.st_uid}, "
                        f"mode {status.st_mode & 0o7777:04o}", "others can write to it: chmod go-w")  # fmt: skip
    return directory
