"""`nvoci hook …`: the hook program's own table, with click's help and completion.

click only describes: what is typed goes to the hook program's code as it was typed, so that there is one parser, one
set of messages and one set of exit statuses. (An unknown hook is a warning and exit 0 here too.)
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from nvoci.errors import HookError
from nvoci.hook import options, table

if TYPE_CHECKING:
    from collections.abc import Callable

    Runner = Callable[[click.Context, table.Hook, list[str]], Any]

# In Context.meta, words as they were typed: those of one hook, and all after `nvoci hook`.
WORDS, _ALL = "nvoci.words", "nvoci.all"
_RUN_HELP = """

    \b
    run -- create-symlinks --link A::B -- update-ldcache --folder D"""


def _split(_ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> list[str]:
    """Lists are split at commas, as the hook program does."""
    return [part.strip() for value in values for part in value.split(",")]


def _seconds(ctx: click.Context, param: click.Parameter, value: str) -> float:
    """A number of seconds, as the hook program reads it; 0.0 where it is not given."""
    if not value:
        return 0.0
    try:
        return float(options.parse_hook(table.RUN, [f"--{table.TIMEOUT.name}={value}"])[table.TIMEOUT.name])
    except HookError as e:
        raise click.BadParameter(e.line(), ctx, param)


def parameter(option: table.Option) -> click.Option:
    """The click form of a table's option; values come out as `options.parse_hook` gives them."""
    names = [f"--{option.name}", option.name.replace("-", "_")]
    text = option.help
    if option.kind == table.FLAG:
        return click.Option(names, is_flag=True, help=text, hidden=option.hidden)
    common: dict[str, Any] = {"hidden": option.hidden, "metavar": option.metavar or None}
    if option.kind == table.LIST:
        text += "; may be repeated, or list several with commas"
        return click.Option(names, multiple=True, callback=_split, help=text, **common)
    if option.kind == table.NUMBER:
        return click.Option(names, default="", callback=_seconds, help=text, **common)
    return click.Option(names, default=option.default, show_default=bool(option.default), help=text, **common)


class HookCommand(click.Command):
    """One hook. `strict`: a command line that click finds wrong is a usage error; else the runner judges it."""

    def __init__(self, hook: table.Hook, runner: Runner, *, strict: bool) -> None:
        text = hook.help + (_RUN_HELP if hook is table.RUN else ".")
        super().__init__(
            hook.name,
            params=[parameter(option) for option in hook.options],
            help=text,
            hidden=hook.hidden,
            context_settings={"allow_extra_args": not strict or hook is table.RUN},
            options_metavar="[OPTIONS] [-- HOOK [OPTIONS]]..." if hook is table.RUN else "[OPTIONS]",
        )
        self.hook = hook
        self.runner = runner
        self.strict = strict

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta[WORDS] = list(args)
        try:
            return super().parse_args(ctx, args)
        except click.UsageError:
            if self.strict or ctx.resilient_parsing:
                raise
            return []

    def invoke(self, ctx: click.Context) -> Any:
        return self.runner(ctx, self.hook, ctx.meta[WORDS])


class HookGroup(click.Group):
    """A group whose subcommands are the table's hooks and `run`."""

    def __init__(self, *args: Any, runner: Runner, strict: bool = False, **attrs: Any) -> None:
        super().__init__(*args, **attrs)
        self.runner = runner
        self.strict = strict

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*table.HOOKS, table.RUN.name]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        hook = table.RUN if cmd_name == table.RUN.name else table.HOOKS.get(cmd_name)
        return HookCommand(hook, self.runner, strict=self.strict) if hook else None


class _Verbatim(HookGroup):
    """`nvoci hook`: global options and unknown hooks too are left to the hook program."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta[_ALL] = list(args)
        try:
            return super().parse_args(ctx, args)
        except click.UsageError:
            if ctx.resilient_parsing or not ctx.meta[_ALL]:
                raise
            return []

    def invoke(self, ctx: click.Context) -> Any:
        words = [*getattr(ctx, "_protected_args", ()), *ctx.args]
        if not words or self.get_command(ctx, words[0]) is None:
            return run_program(ctx.meta[_ALL])
        return super().invoke(ctx)


def run_program(words: list[str]) -> None:
    """Become the hook program: this process, its code, its exit status. Does not return."""
    from nvoci.hook.main import cdi_hook

    sys.argv = ["nvidia-cdi-hook", *words]
    cdi_hook()


def _run_as_typed(ctx: click.Context, hook: table.Hook, words: list[str]) -> None:
    run_program(ctx.meta[_ALL])


command = _Verbatim(
    "hook",
    runner=_run_as_typed,
    no_args_is_help=True,
    params=[
        click.Option(["--debug", "-d"], is_flag=True, help="debug messages on stderr"),
        click.Option(["--quiet"], is_flag=True, help="errors only"),
        click.Option(["--features"], is_flag=True, help="print as JSON which commands and flags there are"),
    ],
    help="""Run a hook by hand, exactly as nvidia-cdi-hook would.

    It reads the OCI state of the container from stdin; try --dry-run first.""",
)
