"""Help texts of nvidia-container-cli, laid out as GNU's argp does; loaded only when asked for."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from nvoci.prestart.cliargs import Command, Option

_WIDTH = 79
_LONG, _TEXT = 6, 29  # columns of long names and of what they are for
_USAGE = 12
_FOOT = (
    "Mandatory or optional arguments to long options are also mandatory or optional for any corresponding short "
    "options."
)


def page(command: Command) -> str:
    """What --help prints."""
    options = sorted([option for option in command.options if not option.hidden], key=_order)
    lines = [*_wrapped([f"Usage: {command.name} [OPTION...]", *_words(command)], 0, _USAGE, _WIDTH - 1)]
    for number, paragraph in enumerate(command.about):
        lines += [*([""] * (number > 0)), *_wrapped(paragraph.split(), 0, 0)]
    if command.commands:
        lines += ["", " Commands:"]
        for name, about in sorted(command.commands):
            lines += _entry("  " + name, about)
        lines += ["", " Options:"]
    else:
        lines.append("")
    for option in options:
        lines += _entry(_names(option), option.help)
    if any(option.key and option.argument for option in options):
        lines += ["", *_wrapped(_FOOT.split(), 0, 0)]
    return "\n".join([*lines, ""])


def usage(command: Command) -> str:
    """What --usage prints."""
    options = sorted([option for option in command.options if not option.hidden], key=_order)
    letters = "".join([option.key for option in options if option.key and not option.argument])
    parts = [f"[-{letters}]"]
    parts += [f"[-{o.key}{_argument(o, ' ')}]" for o in options if o.key and o.argument]
    parts += [f"[--{o.name}{_argument(o, '=')}]" for o in options]
    return "\n".join([*_wrapped([f"Usage: {command.name}", *parts, *_words(command)], 0, _USAGE, _WIDTH - 1), ""])


def hint(command: Command, short: bool) -> str:
    """What ends the message about a command line that makes no sense. short: with the usage before it."""
    lines = _wrapped([f"Usage: {command.name} [OPTION...]", *_words(command)], 0, _USAGE, _WIDTH - 1) if short else []
    words = f"Try `{command.name} --help' or `{command.name} --usage' for more information."
    return "\n".join([*lines, *_wrapped(words.split(), 0, 0)])


def _words(command: Command) -> list[str]:
    return [command.words] if command.words else []


def _order(option: Option) -> tuple[str, bool, bool, str]:
    """By its letter, or the first of its name; a small letter before the same as a capital."""
    letter = option.key or option.name[0]
    return letter.lower(), letter.isupper(), bool(option.key), option.name


def _argument(option: Option, separator: str) -> str:
    if not option.argument:
        return ""
    if option.optional:
        return f"[{separator.strip()}{option.argument}]"
    return separator + option.argument


def _names(option: Option) -> str:
    letter = f"  -{option.key}, " if option.key else ""
    return f"{letter:{_LONG}}--{option.name}{_argument(option, '=')}"


def _entry(names: str, about: str) -> list[str]:
    """names, and behind it, from a column on, what it is for."""
    start = _TEXT if len(names) < _TEXT else len(names) + 3
    lines = _wrapped(about.split(), start, _TEXT)
    return [names.ljust(start) + lines[0][start:], *lines[1:]]


def _wrapped(words: Iterable[str], first: int, others: int, width: int = _WIDTH) -> list[str]:
    """Lines as wide as may be, the first indented by `first`, the others by `others`; a word is never parted."""
    lines, line = [], " " * first
    empty = True
    for word in words:
        if not empty and len(line) + 1 + len(word) > width:
            lines.append(line)
            line, empty = " " * others, True
        line += word if empty else " " + word
        empty = False
    return [*lines, line]
