"""Entries of hooks directories that start `nvidia-container-runtime-hook`: its arguments, its stages."""

from __future__ import annotations

import os
import stat

from nvoci.errors import HookError, hook_error, printable
from nvoci.oci import hooksd
from nvoci.prestart import main as prestart

NAME = "prestart"  # of its template, and of the command that writes an entry
PROGRAM = "nvidia-container-runtime-hook"
PROGRAMS = (PROGRAM, "nvidia-container-toolkit")
# The runtime calls it outside of the container there, and the container's process waits: it enters by the pid of the
# state, and may change the container's cgroup. createContainer hooks are inside, and cannot.
STAGES = ("prestart", "createRuntime")
_WORDS = ("prestart", "poststart", "poststop")


def fill_in(
    template: hooksd.Entry, when: hooksd.When, stages: list[str], *, config: str = "", debug: bool = False
) -> hooksd.Entry:
    """An entry from the template. config: a config.toml, which must be there. Raises HookError."""
    _check_stages(stages)
    flags = ["-config", _config(config)] if config else []
    flags += ["-debug"] if debug else []
    name, *words = template.args  # the program's flags come before its command
    return hooksd.ours(template.path, [name, *flags, *words], template.env, when, stages, template.timeout)


def _config(path: str) -> str:
    """Absolute: the engine starts hooks in a directory of its own."""
    found = os.path.abspath(path)
    try:
        status = os.stat(found)
    except OSError as e:
        raise hook_error("use config", found, e) from None
    if not stat.S_ISREG(status.st_mode):
        raise HookError(f"use config {printable(found)}: not a regular file", "name a config.toml")
    return found


def check(entry: hooksd.Entry) -> None:
    """The arguments and stages of an entry that starts the program. Raises HookError."""
    try:
        words = prestart.parse(entry.args[1:])
    except prestart.Usage as e:
        raise HookError(f"`hook.args`: {printable(e) or 'help is no hook'}", "the program would refuse to start")
    if words.version or words.command not in _WORDS:
        found = "-version" if words.version else printable(words.command) or "nothing"
        raise HookError(f"`hook.args` asks for {found}, which is no hook", "one of " + ", ".join(_WORDS))
    if words.command != NAME:
        return
    if words.dry_run:
        raise HookError("`hook.args` has -dry-run", "no container would get a GPU")
    if words.config and not os.path.isabs(words.config):
        raise HookError(f"`hook.args`: -config {printable(words.config)} is not an absolute path",
                        "the engine starts hooks in a directory of its own")  # fmt: skip
    _check_stages(entry.stages)


def _check_stages(stages: list[str]) -> None:
    for stage in stages:
        if stage not in STAGES:
            raise HookError(f"{NAME}: it cannot work at stage {printable(stage)}", "use " + " or ".join(STAGES))
