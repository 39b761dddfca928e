"""`nvidia-ctk`: all of it but `hook`, which `nvoci.hook.main` runs without this.

In place of the reference's program: the same flags, variables of the environment, messages and exit statuses, of the
commands that are here. An error is one line on stderr and exit status 1, a command that is not here 3.
"""

from __future__ import annotations

import sys
from errno import EPIPE
from io import TextIOWrapper

import click

from nvoci import __version__, log
from nvoci.ctl import tomlconfig
from nvoci.ctl.flags import BOOL, Flag, Group, NoTopic
from nvoci.errors import FAILED, OK, HookError, hook_error, printable
from nvoci.hook import help as hook_help
from nvoci.hook import table
from nvoci.jsonfile import dumps

NAME = "nvidia-ctk"
NO_TOPIC = 3
CONFIG = "nvoci.config"  # in Context.meta: the path that --config gives, "" if it is not given
_CDI = {
    "generate": "nvoci.ctl.ctk_generate",
    "list": "nvoci.ctl.ctk_list",
    "transform": "nvoci.ctl.ctk_transform",
}


def _print_features(ctx: click.Context, _param: click.Parameter, asked: bool) -> None:
    if asked and not ctx.resilient_parsing:
        click.echo(dumps(table.features()))
        ctx.exit()


@click.group("cdi", cls=Group, modules=_CDI)
def cdi() -> None:
    """Make, list and change CDI specifications."""


@click.command("hook", add_help_option=False,
               context_settings={"ignore_unknown_options": True, "allow_extra_args": True})  # fmt: skip
def hook() -> None:
    """Run a hook in a container that is being made."""
    click.echo(hook_help.program(f"{NAME} hook", "NVIDIA CDI Hook"), nl=False)


@click.group(NAME, cls=Group, modules={"cdi": f"{__name__}:cdi", "hook": f"{__name__}:hook"},
             context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}, params=[
    Flag("debug", "d", kind=BOOL, env=["NVIDIA_CTK_DEBUG"], help="Debug messages on stderr."),
    Flag("quiet", kind=BOOL, env=["NVIDIA_CTK_QUIET"], help="Errors only; wins over --debug."),
    Flag("config", metavar="FILE", env=["NVIDIA_CTK_CONFIG"],
         otherwise=tomlconfig.LOOKUP, help="Where config.toml is."),
])  # fmt: skip
@click.option("--features", is_flag=True, is_eager=True, expose_value=False, callback=_print_features,
              help="Print as JSON which hooks and flags of them there are.")  # fmt: skip
@click.version_option(__version__, "--version", "-v", message="NVIDIA Container Toolkit CLI version %(version)s")
@click.pass_context
def program(ctx: click.Context, debug: bool, quiet: bool, config: str) -> None:
    """Tools of the NVIDIA container toolkit."""
    log.set_level(log.ERROR if quiet else log.DEBUG if debug else log.INFO)
    ctx.meta[CONFIG] = config


def run(words: list[str]) -> int:
    """The exit status of a command line."""
    try:
        code = program.main(words, prog_name=NAME, standalone_mode=False)
    except NoTopic as e:
        log.plain(f"No help topic for '{printable(e.name)}'")
        return NO_TOPIC
    except HookError as e:
        log.error(e.line())
    except click.ClickException as e:
        log.error(e.format_message())
    except click.Abort:
        log.error("interrupted")
    except MemoryError:
        log.error("out of memory (ENOMEM)")
    except OSError as e:
        if e.errno != EPIPE:
            log.error(hook_error("use", e.filename or "", e).line())
    else:
        return code if isinstance(code, int) else OK
    return FAILED


def main() -> None:
    """Entry point of `nvidia-ctk` where its words are not for `hook`; does not return."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a name that the locale's encoding does not have
    sys.exit(run(sys.argv[1:]))
