"""A command line as GNU's argp reads it (glibc manual, "Parsing Program Options with Argp"), without a library.

    -kn -dFILE -d FILE --debug=FILE --debug FILE --deb FILE -u -u1:2 --user=1:2 -- WORD

A long name may be cut short as far as it means one option; a letter may be followed by others. What an option says is
told in the order of the command line, so the first that is wrong decides. A command that has commands itself stops at
the first word that is no option; any other takes options also behind its words.

Performance contract: part of every start of nvidia-container-cli.
"""

from __future__ import annotations

from nvoci.errors import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

HELP, USAGE, VERSION = "help", "usage", "version"
TOO_MANY = "Too many arguments"


class Option:
    """`--name`, and `-key` where it has a letter. argument: what the help calls its argument, "" for none; optional:
    the argument may be missing, and is read only where it is attached. hidden: not in the help."""

    __slots__ = ("argument", "help", "hidden", "key", "name", "optional")

    def __init__(
        self, name: str, key: str, help: str, argument: str = "", optional: bool = False, hidden: bool = False
    ) -> None:
        self.name = name
        self.key = key
        self.help = help
        self.argument = argument
        self.optional = optional
        self.hidden = hidden


DEFAULT = (
    Option(HELP, "?", "Give this help list"),
    Option(USAGE, "", "Give a short usage message"),
    Option("program-name", "", "", "NAME", hidden=True),
    Option(VERSION, "V", "Print program version"),
)


class Command:
    """A program or one of its commands. name: with that of the program. words: what the help calls the words it takes
    behind its options, "" for none. about: paragraphs of the help. commands: (name, what it is for)."""

    __slots__ = ("about", "commands", "name", "options", "words")

    def __init__(
        self, name: str, about: tuple[str, ...], options: Iterable[Option], words: str = "",
        commands: tuple[tuple[str, str], ...] = (),
    ) -> None:  # fmt: skip
        self.name = name
        self.about = about
        self.options = (*options, *DEFAULT)
        self.words = words
        self.commands = commands


class Shown(Exception):
    """Text was asked for: HELP, USAGE or VERSION."""

    def __init__(self, command: Command, what: str) -> None:
        super().__init__()
        self.command = command
        self.what = what


class UsageError(Exception):
    """The command line makes no sense. message: what is wrong; "" where the usage says it best."""

    def __init__(self, command: Command, message: str = "") -> None:
        super().__init__()
        self.command = command
        self.message = message


def read(command: Command, words: list[str], take: Callable[[str, str | None], None]) -> list[str]:
    """Hand each option to `take`, by its full name and with its argument, None for none. Returns the other words: of a
    command that has commands, all from the first of them on. Raises Shown, UsageError, and what `take` raises."""
    found: list[str] = []
    rest = words[::-1]
    while rest:
        word = rest.pop()
        if word == "--":
            return found + rest[::-1]
        if word[:1] != "-" or word == "-":
            found.append(word)
            if command.commands:
                return found + rest[::-1]
        elif word.startswith("--"):
            _long(command, word[2:], rest, take)
        else:
            _letters(command, word[1:], rest, take)
    return found


def _long(command: Command, word: str, rest: list[str], take: Callable[[str, str | None], None]) -> None:
    name, equals, value = word.partition("=")
    option = _named(command, name, word)
    if equals and not option.argument:
        raise UsageError(command, f"option '--{option.name}' doesn't allow an argument")
    if option.argument and not option.optional and not equals:
        if not rest:
            raise UsageError(command, f"option '--{option.name}' requires an argument")
        equals, value = "=", rest.pop()
    _tell(command, option, value if equals else None, take)


def _named(command: Command, name: str, word: str) -> Option:
    """The option of this name, or the only one whose name begins so. word: for the message."""
    found = [option for option in command.options if option.name.startswith(name)]
    for option in found:
        if option.name == name or len(found) == 1:
            return option
    shown = printable(word[:200])
    if not found:
        raise UsageError(command, f"unrecognized option '--{shown}'")
    possible = " ".join([f"'--{option.name}'" for option in found])
    raise UsageError(command, f"option '--{shown}' is ambiguous; possibilities: {possible}")


def _letters(command: Command, letters: str, rest: list[str], take: Callable[[str, str | None], None]) -> None:
    for at, letter in enumerate(letters):
        option = next((each for each in command.options if each.key == letter), None)
        if option is None:
            raise UsageError(command, f"invalid option -- '{printable(letter)}'")
        if option.argument:
            value: str | None = letters[at + 1 :] or None
            if value is None and not option.optional:
                if not rest:
                    raise UsageError(command, f"option requires an argument -- '{letter}'")
                value = rest.pop()
            _tell(command, option, value, take)
            return
        _tell(command, option, None, take)


def _tell(command: Command, option: Option, value: str | None, take: Callable[[str, str | None], None]) -> None:
    if option.name in (HELP, USAGE, VERSION):
        raise Shown(command, option.name)
    if option not in DEFAULT:
        take(option.name, value)
