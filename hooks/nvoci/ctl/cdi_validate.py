"""`nvoci cdi validate`: everything that is wrong with specifications, a line each."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from nvoci.cdi import consumers, specdir, text, validate
from nvoci.cdi.error import SpecError
from nvoci.ctl import cdi, node
from nvoci.errors import FAILED, HookError, printable

if TYPE_CHECKING:
    from collections.abc import Iterable

    from nvoci.cdi.model import Spec
    from nvoci.cdi.specdir import Registry

STDIN = "-"
_BUILTIN = "builtin"


@click.command("validate")
@click.argument("files", nargs=-1, metavar="[FILE|-]...")
@click.option(
    "--schema",
    type=click.Choice([_BUILTIN, "none"]),
    default=_BUILTIN,
    show_default=True,
    help="The JSON schema to check against, beside the rules.",
)
@cdi.in_dirs
@click.pass_context
def command(ctx: click.Context, files: tuple[str, ...], *, registry: Registry, schema: str) -> None:
    """Check specifications: FILEs, `-` for standard input, or else those of all directories.

    Of the directories it is also said who else could write there, and which devices are in two files of the same
    priority. Errors are on stderr, a line each; so are warnings, of what is right and some engine cannot read.

    Exit status: 0 if all is right, 1 if something is wrong.
    """
    bad = False
    if files:
        for file in files:
            bad |= _tell(file, *_of_file(file, schema))
    else:
        specs = {each.path: each.spec for each in registry.specs()}
        for path in [*registry.dirs, *registry.paths()]:
            if path in registry.dirs:
                problems = registry.errors.get(path, [])
                bad |= bool(problems) and _tell(path, problems)
            else:
                problems = _merged(_by_schema_trusted(path, schema), registry.errors.get(path, []))
                bad |= _tell(path, problems, specs.get(path))
    ctx.exit(FAILED if bad else 0)


def _tell(file: str, problems: list[SpecError], spec: Spec | None = None) -> bool:
    """Say what is wrong, or that nothing is; whether something is. Of a `spec` that is right also what may not work."""
    for problem in problems:
        click.echo(problem.with_file(_name(file)).line(), err=True)
    if not problems:
        for warning in consumers.warnings(spec) if spec else ():
            node.warn(f"CDI spec {printable(_name(file))}: {warning}")
        click.echo(f"{printable(_name(file))}: valid")
    return bool(problems)


def _name(file: str) -> str:
    return "standard input" if file == STDIN else file


def _of_file(file: str, schema: str) -> tuple[list[SpecError], Spec | None]:
    """What is wrong with it, and what it says if it can be read at all."""
    spec = None
    try:
        if file == STDIN:
            data = sys.stdin.buffer.read(text.MAX_SPEC + 1)
        else:
            data = text.read_bytes(file)
    except HookError as e:
        return [_of_reading(e, file)], None
    form = text.format_of("" if file == STDIN else file, data)
    try:
        spec = text.loads(data, format=form)
        by_rules = validate.problems(spec)
    except SpecError as e:
        by_rules = [e]
    return _merged(_by_schema(data, form, schema), by_rules), spec


def _of_reading(error: HookError, file: str) -> SpecError:
    """The same as an error of a specification, without its name, which is said anyway."""
    return SpecError(error.message.rpartition(f"{printable(file)}: ")[2], hint=error.hint)


def _by_schema_trusted(path: str, schema: str) -> list[SpecError]:
    """Nothing for a file that is refused, or gone: the registry tells of it."""
    try:
        data = specdir.read_trusted(path)
    except SpecError:
        return []
    return _by_schema(data, text.format_of(path, data), schema)


def _by_schema(data: bytes, form: str, schema: str) -> list[SpecError]:
    """Nothing for what is no object at all: reading it by the rules says so."""
    if schema != _BUILTIN:
        return []
    try:
        document = text.loads_object(data, format=form)
    except SpecError:
        return []
    if not isinstance(document, dict):
        return []
    from nvoci.cdi.schema import problems

    return problems(document)


def _merged(by_schema: Iterable[SpecError], by_rules: list[SpecError]) -> list[SpecError]:
    """What the rules say of a place is clearer than what the schema says of it."""
    told = {problem.where for problem in by_rules if problem.where}
    return [*(problem for problem in by_schema if problem.where not in told), *by_rules]
