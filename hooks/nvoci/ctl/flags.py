"""Flags as the reference's programs read them, for click: `nvidia-ctk` and what shares its options.

click keeps the help, the order of sources (words, environment, default) and the commands; the words are read here:

- `--flag VALUE`, `--flag=VALUE`, one dash or two; a value may start with a dash; `--bool`, `--bool=false`;
- a flag that lists may be repeated, is split at commas, and then its default does not count;
- of several variables of the environment the first that is not empty counts, if no word gives the flag;
- words that are no flags may stand among them, and after `--` there are no flags.
"""

from __future__ import annotations

import os
from keyword import iskeyword
from textwrap import wrap
from typing import TYPE_CHECKING, Any

import click

from nvoci import log
from nvoci.ctl.lazy import LazyGroup
from nvoci.errors import HookError, printable
from nvoci.hook.options import FALSE, TRUE

if TYPE_CHECKING:
    from collections.abc import Sequence

TEXT, LIST, BOOL, SECONDS = "text", "list", "bool", "seconds"
MAX_SECONDS = 3600.0


class Flag(click.Option):
    """One flag. names: without dashes, the first is the name, the others aliases; one of a single letter is shown with
    one dash. otherwise: what counts where neither a word, the environment nor `default` says anything, for the help.
    Values: TEXT str, LIST tuple[str, ...], BOOL bool, SECONDS float."""

    def __init__(self, *names: str, kind: str = TEXT, default: Any = None, env: Sequence[str] = (), metavar: str = "",
                 help: str = "", otherwise: str = "") -> None:  # fmt: skip
        own: dict[str, Any] = {TEXT: "", LIST: (), BOOL: False, SECONDS: 0.0}
        value = own[kind] if default is None else default
        to = names[0].replace("-", "_").replace(".", "_")
        super().__init__([f"{to}_" if iskeyword(to) else to, *[f"{'-' * min(2, len(name))}{name}" for name in names]],
                         default=value, multiple=kind == LIST, help=help, type=click.UNPROCESSED)  # fmt: skip
        self.names = names
        self.kind = kind
        self.env = tuple(env)
        self.placeholder = metavar
        self.otherwise = otherwise

    def of(self, text: str, where: str) -> Any:
        """The value of one word or variable: a list of its parts where the flag lists. Raises HookError."""
        if self.kind == LIST:
            return [part.strip() for part in text.split(",")]
        if self.kind == SECONDS:
            return seconds(text, where)
        return boolean(text, where) if self.kind == BOOL else text

    def resolve_envvar_value(self, ctx: click.Context) -> str | None:
        """The first variable that is set and not empty."""
        return next((os.environ[name] for name in self.env if os.environ.get(name)), None)

    def value_from_envvar(self, ctx: click.Context) -> Any:
        """Its value, or None."""
        for name in self.env:
            if os.environ.get(name):
                return self.of(os.environ[name], f"environment variable {name}")
        return None

    def get_help_record(self, ctx: click.Context) -> tuple[str, str]:
        """Its line of the help."""
        left = ", ".join(self.opts) + (f" {self.placeholder}" if self.kind != BOOL else "")
        default = ",".join(self.default) if self.kind == LIST else self.default  # type: ignore[arg-type]
        notes = ["may be repeated, or list several with commas"] if self.kind == LIST else []
        notes += [f"default: {default or self.otherwise}"] if default or self.otherwise else []
        notes += [", ".join(f"${name}" for name in self.env)] if self.env else []
        return left, f"{self.help}  [{'; '.join(notes)}]" if notes else str(self.help)


def boolean(text: str, where: str) -> bool:
    """Raises HookError unless it is a word for true or false."""
    if text in TRUE:
        return True
    if text in FALSE:
        return False
    raise HookError(f"could not parse `{printable(text)}` as bool value from {where}", "use true or false")


def seconds(text: str, where: str) -> float:
    """Raises HookError unless it is a number of seconds, more than 0 and at most MAX_SECONDS."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= MAX_SECONDS:
        raise HookError(f"`{printable(text)}` from {where} is no number of seconds",
                        f"more than 0 and at most {MAX_SECONDS:g}")  # fmt: skip
    return value


class _Words:
    """In place of click's parser: the words of one command."""

    _opt_prefixes = frozenset({"-", "--"})  # click reads it

    def __init__(self, command: click.Command, ctx: click.Context) -> None:
        self._stops = not ctx.allow_interspersed_args
        self._is_whole = not ctx.resilient_parsing  # else a shell asks, before the line is finished
        self._flags = {
            name.lstrip("-"): each for each in command.get_params(ctx) if isinstance(each, click.Option)
            for name in each.opts
        }  # fmt: skip

    def parse_args(self, args: list[str]) -> tuple[dict[str, Any], list[str], list[click.Parameter]]:
        """Values by destination, the words that are no flags, and the flags in their order. Raises HookError."""
        found: dict[str, Any] = {}
        order: list[click.Parameter] = []
        others: list[str] = []
        words = list(reversed(args))
        while words:
            word = words.pop()
            if word == "--" or (self._stops and not _is_flag(word)):
                others += [*([] if word == "--" else [word]), *reversed(words)]
                break
            if not _is_flag(word):
                others.append(word)
                continue
            try:
                order.append(self._read(word, words, found))
            except HookError:
                if self._is_whole:
                    raise
        return found, others, order

    def _read(self, word: str, words: list[str], found: dict[str, Any]) -> click.Option:
        name, equals, text = word[2 if word.startswith("--") else 1 :].partition("=")
        option = self._flags.get(name)
        if option is None:
            raise HookError(f"flag provided but not defined: -{printable(name)}", "see --help")
        to = str(option.name)
        if not isinstance(option, Flag):  # --help, --version
            found[to] = boolean(text, f"--{name}") if equals else True
            return option
        if option.kind != BOOL and not equals:
            if not words:
                raise HookError(f"flag needs an argument: --{printable(name)}", "see --help")
            text = words.pop()
        if "\0" in text:
            raise HookError(f"`--{printable(name)}` holds a NUL", "no path and no name has one")
        value = True if option.kind == BOOL and not equals else option.of(text, f"--{name}")
        if option.kind == LIST:
            found.setdefault(to, []).extend(value)
        else:
            found[to] = value
        return option


def _is_flag(word: str) -> bool:
    return word.startswith("-") and word != "-"


class Command(click.Command):
    """A command with such flags."""

    def make_parser(self, ctx: click.Context) -> Any:
        """Ours."""
        return _Words(self, ctx)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Each flag on a line, what it is for on the next: names, values and variables are long."""
        formatter.write("\nOptions:\n")
        for param in self.get_params(ctx):
            left, text = param.get_help_record(ctx) or ("", "")
            formatter.write(f"  {left}\n")
            for line in wrap(text, formatter.width - 6, break_long_words=False, break_on_hyphens=False):
                formatter.write(f"      {line}\n")


class Tolerant(Command):
    """One that ignores words that are no flags, as the reference does, and tells of them."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Leaves no such word."""
        ctx.allow_extra_args = True
        rest = super().parse_args(ctx, args)
        for word in () if ctx.resilient_parsing else rest:
            log.warning(f"ignoring the argument `{printable(word)}`: it is no flag")
        ctx.args = []
        return []


class NoTopic(Exception):
    """A command that is not there."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


class Group(LazyGroup):
    """Commands; without a word for one, its help."""

    def __init__(self, *args: Any, **attrs: Any) -> None:
        super().__init__(*args, **attrs)
        self.invoke_without_command = True
        self.no_args_is_help = False

    def make_parser(self, ctx: click.Context) -> Any:
        """Ours."""
        return _Words(self, ctx)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str, click.Command, list[str]]:
        """Raises NoTopic. `help [COMMAND]` is `[COMMAND] --help`."""
        name, rest = args[0], args[1:]
        if name in {"help", "h"} and self.get_command(ctx, name) is None:
            name, rest = (rest[0], [*rest[1:], "--help"]) if rest else ("", [])
            if not name:
                click.echo(ctx.get_help())
                ctx.exit()
        command = self.get_command(ctx, name)
        if command is None:
            raise NoTopic(name)
        return name, command, rest

    def invoke(self, ctx: click.Context) -> Any:
        """With the help if no command is named."""
        value = super().invoke(ctx)
        if ctx.invoked_subcommand is None:
            click.echo(ctx.get_help())
        return value
