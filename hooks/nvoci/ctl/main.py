"""`nvoci`: the commands for people. A command's module is loaded when the command is named."""

from __future__ import annotations

import sys
from io import TextIOWrapper
from typing import Any

import click

from nvoci import __version__
from nvoci.ctl.lazy import LazyGroup
from nvoci.errors import FAILED, HookError, hook_error

_COMMANDS = {
    "cdi": "nvoci.ctl.cdi",
    "completion": "nvoci.ctl.completion",
    "explain": "nvoci.ctl.explain",
    "hook": "nvoci.ctl.hook",
    "hooksd": "nvoci.ctl.hooksd",
    "info": "nvoci.ctl.info",
    "inventory": "nvoci.ctl.inventory",
    "ldcache": "nvoci.ctl.ldcache",
    "why": "nvoci.ctl.why",
}


@click.group(
    cls=LazyGroup,
    modules=_COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.version_option(__version__, "--version", "-v", message="nvoci %(version)s")
def nvoci() -> None:
    """GPUs for containers: hooks, and what an administrator needs around them."""


def run(words: list[str] | None = None, **options: Any) -> Any:
    """The command line with HookError and OSError turned into one line and exit status 1; usage errors are 2."""
    try:
        return nvoci.main(words, prog_name="nvoci", **options)
    except HookError as e:
        click.echo(f"nvoci: {e.line()}", err=True)
    except OSError as e:
        click.echo(f"nvoci: {hook_error('use', e.filename or '', e).line()}", err=True)
    sys.exit(FAILED)


def main() -> None:
    """Entry point of `nvoci`; does not return."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a name that the locale's encoding does not have
    run()
