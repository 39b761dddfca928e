"""The command line of the hook programs, without a library (argparse alone would cost 5 ms at every start).

Rules of the reference: `--flag value`, `--flag=value`, one dash or two; an unknown hook is a warning and exit 0, so
that a spec which names a newer or removed hook never breaks a start; an unknown flag of a known hook is an error.
"""

from __future__ import annotations

from nvoci.errors import HookError, printable
from nvoci.hook import table

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

# What Go's strconv.ParseBool takes.
TRUE = ("1", "t", "T", "TRUE", "true", "True")
FALSE = ("0", "f", "F", "FALSE", "false", "False")
_DEBUG_ENV = (b"NVIDIA_CTK_DEBUG", b"NVIDIA_CDI_DEBUG")
_QUIET_ENV = (b"NVIDIA_CTK_QUIET", b"NVIDIA_CDI_QUIET")
MAX_TIMEOUT = 600.0


class Help(Exception):
    """--help was asked for: of the program (None) or of one hook."""

    def __init__(self, hook: table.Hook | None) -> None:
        super().__init__()
        self.hook = hook


class Globals:
    """What stands before the subcommand. `words` is the rest, from the subcommand on."""

    __slots__ = ("debug", "features", "quiet", "version", "words")

    def __init__(self) -> None:
        self.debug = False
        self.quiet = False
        self.version = False
        self.features = False
        self.words: list[str] = []


def parse_globals(words: list[str], env: Mapping[bytes, bytes]) -> Globals:
    """Global flags and their environment switches. An unknown global flag ends the parsing, as in the reference:
    nothing after it is looked at, and no hook is run. Raises HookError for a switch that is not a boolean."""
    found = Globals()
    found.debug = _env_flag(env, _DEBUG_ENV)
    found.quiet = _env_flag(env, _QUIET_ENV)
    rest = list(words)
    while rest:
        word = rest[0]
        if not word.startswith("-") or word == "-":
            found.words = rest
            return found
        rest.pop(0)
        name, separator, value = word.lstrip("-").partition("=")
        if name in ("debug", "d"):
            found.debug = _bool(value, f"--{name}") if separator else True
        elif name == "quiet":
            found.quiet = _bool(value, "--quiet") if separator else True
        elif name in ("version", "v"):
            found.version = True
        elif name == "features":
            found.features = True
        elif name in ("help", "h"):
            raise Help(None)
        else:
            return found
    return found


def _env_flag(env: Mapping[bytes, bytes], names: tuple[bytes, ...]) -> bool:
    for name in names:
        if name in env:
            value = env[name].decode("utf-8", "replace")
            return _bool(value, f"environment variable {name.decode()}") if value else False
    return False


def _bool(text: str, where: str) -> bool:
    if text in TRUE:
        return True
    if text in FALSE:
        return False
    raise HookError(f"could not parse `{printable(text)}` as bool value from {where}", "use true or false")


def parse_hook(hook: table.Hook, words: list[str]) -> dict[str, Any]:
    """The options of one hook, every one of them present: LIST list[str], TEXT str, FLAG bool, NUMBER float (0.0:
    not given). Words that are no option are ignored, as the reference does. Raises HookError or Help."""
    found: dict[str, Any] = {}
    by_name: dict[str, table.Option] = {}
    for option in hook.options:
        by_name[option.name] = option
        found[option.name] = _default(option)
    at = 0
    while at < len(words):
        word = words[at]
        at += 1
        if word == "--":
            break
        if not word.startswith("-") or word == "-":
            continue
        name, separator, value = word[2 if word.startswith("--") else 1 :].partition("=")
        if name in ("help", "h"):
            raise Help(hook)
        known = by_name.get(name)
        if known is None:
            raise HookError(f"{hook.name}: flag provided but not defined: `{printable(word)}`", "see --help")
        if known.kind == table.FLAG:
            found[name] = _bool(value, f"--{name}") if separator else True
            continue
        if not separator:
            if at >= len(words):
                raise HookError(f"{hook.name}: flag needs an argument: `--{name}`", "see --help")
            value = words[at]
            at += 1
        _store(hook, found, known, value)
    return found


def _default(option: table.Option) -> Any:
    return {table.LIST: [], table.TEXT: option.default, table.FLAG: False, table.NUMBER: 0.0}[option.kind]


def _store(hook: table.Hook, found: dict[str, Any], option: table.Option, value: str) -> None:
    if "\0" in value:
        raise HookError(f"{hook.name}: `--{option.name}` holds a NUL", "no path and no name has one")
    if option.kind == table.LIST:
        found[option.name] += [part.strip() for part in value.split(",")]
    elif option.kind == table.TEXT:
        found[option.name] = value
    else:
        digits = value.replace(".", "", 1)
        if not digits.isdigit() or not digits.isascii() or len(digits) > 9 or not 0 < float(value) <= MAX_TIMEOUT:
            raise HookError(f"{hook.name}: `--{option.name} {printable(value)}` is not a number of seconds",
                            f"more than 0 and at most {MAX_TIMEOUT:g}")  # fmt: skip
        found[option.name] = float(value)


def split_run(words: list[str]) -> tuple[list[str], list[list[str]]]:
    """Take `run [OPTIONS] -- HOOK ... -- HOOK ...` apart: run's own words, and those of each hook."""
    groups: list[list[str]] = [[]]
    for word in words:
        if word == "--":
            groups.append([])
        else:
            groups[-1].append(word)
    return groups[0], [group for group in groups[1:] if group]
