"""`nvoci ldcache …`: the library cache of any root, without running anything in it."""

from __future__ import annotations

import json
import os
import sys
from functools import wraps
from typing import TYPE_CHECKING, Any

import click

from nvoci.ctl import hook, lddiff, ldexplain, ldmusl, ldroot, ldso, ldtext
from nvoci.errors import HookError, printable
from nvoci.hook import table
from nvoci.hook.cachefile import CACHE
from nvoci.ldcache.cache import NATIVE
from nvoci.ldcache.compute import compute

if TYPE_CHECKING:
    from collections.abc import Callable

_DIFFERENT, _NOT_FOUND, _ERROR = 1, 1, 2
_NAME = "/" + CACHE.decode()
_HINT = "a library directory or ld.so.conf of the root cannot be read, or is too large"
_FOLDER = next(option for option in table.HOOKS["update-ldcache"].options if option.name == "folder")


class _Failure(click.ClickException):
    """One line and exit status 2: 1 is an answer here."""

    exit_code = _ERROR

    def show(self, file: Any = None) -> None:
        click.echo(f"nvoci: {self.message}", file=file or sys.stderr)


class _Root(click.Path):
    """Completes directories; what is wrong with one is said by the command."""

    def __init__(self) -> None:
        super().__init__(file_okay=False)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value


def _answers(function: Callable[..., int]) -> Callable[..., None]:
    """A command that returns its exit status; HookError and OSError are 2."""

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> None:
        try:
            status = function(*args, **kwargs)
        except HookError as e:
            raise _Failure(e.line())
        except BrokenPipeError:
            raise
        except OSError as e:
            raise _Failure(ldroot.read_error(e, "root", _HINT).line())
        click.get_current_context().exit(status)

    return call


_root = click.argument("root", metavar="ROOT", type=_Root())
_json = click.option("--json", "as_json", is_flag=True, help="One JSON object instead of lines.")


def _print(as_json: bool, document: dict[str, Any], lines: list[str]) -> None:
    """Lines have had their control characters escaped, and JSON has none."""
    click.echo(json.dumps(document, indent=2) if as_json else "\n".join(lines))


@click.group("ldcache")
def command() -> None:
    """The library cache (ld.so.cache) of a root directory.

    ROOT is any directory that a container has as /, or / itself. Nothing in it is run or changed.
    """


@command.command("show")
@click.argument("root", metavar="[ROOT]", required=False, type=_Root())
@click.option("--cache", "file", metavar="FILE", type=click.Path(), help="Show this file instead of a root's cache.")
@_json
@_answers
def show(root: str | None, file: str | None, *, as_json: bool) -> int:
    """List the cache of ROOT, as `ldconfig -p` does."""
    if (root is None) == (file is None):
        raise click.UsageError("give ROOT, or --cache FILE")
    if file is not None:
        cache, name = ldroot.cache_file(file), file
    else:
        with ldroot.opened(root or "") as rootfs:
            found, name = ldroot.cache_of(rootfs), _NAME
            if found is None:
                hint = "this is a musl root, and musl has none: try `nvoci ldcache explain`"
                hint = hint if ldmusl.is_musl(rootfs) else "no ldconfig has run in this root"
                raise HookError(f"read cache {printable((root or '').rstrip('/') + _NAME)}: ENOENT", hint)
            cache = found
    document = {
        "cache": name,
        "generator": ldtext.text(cache.unsafe_generator),
        "byte_order": "little" if cache.order == "<" else "big",
        "libraries": [ldtext.document(entry) for entry in cache.entries],
    }
    _print(as_json, document, ldtext.listing(cache, name))
    return 0


@command.command("diff")
@_root
@_json
@_answers
def diff(root: str, folder: list[str], *, as_json: bool) -> int:
    """Compare the cache of ROOT with one computed from its libraries.

    Searched are the directories that ldconfig would search in ROOT; with --folder, those that it would after
    update-ldcache with the same options.

    \b
    - only in the cache      ~ another path
    + only computed          ! not in the order that ld.so needs
    > a soname link that is missing, or leads elsewhere

    Exit status: 0 they are equal, 1 they are not, 2 something could not be read.
    """
    with ldroot.opened(root) as rootfs:
        cache = ldroot.cache_of(rootfs)
        if cache is None and ldmusl.is_musl(rootfs):
            raise HookError(f"compare {printable(root)}: this is a musl root, and musl has no cache",
                            "try `nvoci ldcache explain`")  # fmt: skip
        search = ldroot.search(rootfs, ldroot.folders(folder))
        computed = compute(rootfs, search.paths)
    found = lddiff.compare(cache.entries if cache else [], computed)
    lines = [] if cache else [f"there is no {_NAME}"]
    if cache and cache.order != NATIVE:
        lines.append(f"{_NAME} has the other byte order: ld.so passes over it")
    equal = not (found or lines)
    lines += found.lines() or ([f"equal: {len(computed.entries)} libraries"] if equal else [])
    document = {
        "equal": equal,
        "cache": _NAME if cache else None,
        "libraries": len(computed.entries),
        **found.document(),
    }
    _print(as_json, document, lines)
    return 0 if equal else _DIFFERENT


@command.command("explain")
@_root
@click.argument("name", metavar="NAME")
@click.option(
    "--abi",
    type=click.Choice(list(ldso.ABIS)),
    default=ldso.NATIVE.name,
    show_default=True,
    help="The programs that ask for it.",
)
@_json
@_answers
def explain(root: str, name: str, folder: list[str], *, abi: str, as_json: bool) -> int:
    """Say why ld.so finds a library in ROOT or not, and which.

    NAME is a soname, or a file's name or path: then the question is whether that very file is taken. Told are the
    directories that ldconfig searches, the files there that are or look like the library, which one wins and why, and
    what the cache says of it. LD_LIBRARY_PATH and a program's RUNPATH come before all of this, and are not looked at.

    Exit status: 0 it is found, 1 it is not, 2 something could not be read.
    """
    unsafe_name = os.fsencode(name)
    if not unsafe_name:
        raise click.UsageError("NAME is empty")
    with ldroot.opened(root) as rootfs:
        if ldmusl.is_musl(rootfs):
            document = ldmusl.explain(rootfs, unsafe_name)
        else:
            search = ldroot.search(rootfs, ldroot.folders(folder))
            cache = ldroot.cache_of(rootfs)
            document = ldexplain.Explainer(rootfs, search, cache, ldso.ABIS[abi]).explain(unsafe_name)
    _print(as_json, document, [printable(line) for line in lines_of(document)])
    return 0 if document["found"] else _NOT_FOUND


for _command in (diff, explain):
    _command.params.insert(-1, hook.parameter(_FOLDER))


def lines_of(document: dict[str, Any]) -> list[str]:
    """The facts of `explain`, one a line."""
    lines = [f"{document['name']}: asked for by {document.get('programs', 'musl')} programs"]
    if document.get("soname", document["name"]) != document["name"]:
        lines.append(f"soname: {document['soname']}")
    if not document.get("loader_file", {}).get("there", True):
        lines.append(f"loader: {document['loader_file']['path']} is not there: no such program runs in this root")
    lines += map(_directory_line, document["directories"])
    lines += map(_file_line, document["files"])
    if document.get("more_files"):
        lines.append(f"files: {document['more_files']} more")
    lines += _cache_lines(document)
    found = document["found"]
    if found is None:
        return [*lines, f"not found: {document['because']}"]
    file = f" ({found['file']})" if found.get("file", found["path"]) != found["path"] else ""
    return [*lines, f"found: {found['path']}{file}: {document['because']}"]


def _directory_line(row: dict[str, Any]) -> str:
    line = f"directory {row['rank'] or '-'}: {row['path']} ({row['from']})"
    if row["state"] != "searched":
        line += f": {row['state']}"
    if "hwcaps" in row:
        line += ": for this CPU" if row["applies"] else ": not for this CPU"
    return line


def _file_line(row: dict[str, Any]) -> str:
    line = f"file {row['path']}"
    if row.get("link"):
        line += f" -> {row['link']}"
    facts = [row["elf"]] if row["elf"] else []
    facts += [f"soname {row['soname']}"] if row.get("soname") is not None else []
    if row.get("why_not"):
        facts.append("no: " + row["why_not"])
    return f"{line}: {', '.join(facts)}"


def _cache_lines(document: dict[str, Any]) -> list[str]:
    """What wins, and what the cache says of it."""
    lines = []
    wins, cache = document.get("wins"), document.get("cache")
    if wins:
        file = f" ({wins['file']})" if wins["file"] != wins["path"] else ""
        lines.append(f"wins: {wins['path']}{file}: {wins['why']}")
        if wins["missing_link"]:
            lines.append(f"link: {wins['path']} -> {wins['missing_link']} is not there yet")
    if cache is None:
        return lines
    if cache["state"] != "read":
        lines.append(f"cache: {cache['state']}")
    elif not cache["entries"]:
        lines.append("cache: does not name it")
    lines += [f"cache: {row['line']}" + (f": {row['wrong']}" if row["wrong"] else "") for row in cache["entries"]]
    if cache["more"]:
        lines.append(f"cache: {cache['more']} more")
    if cache["stale"]:
        lines.append(f"cache: stale: {cache['stale']}")
    return lines
