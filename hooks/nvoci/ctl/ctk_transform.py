"""`nvidia-ctk cdi transform root`: a CDI specification for another driver root."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from nvoci.ctl import specout
from nvoci.ctl.flags import Flag, Group, Tolerant
from nvoci.errors import HookError, hook_error, printable
from nvoci.linux.fd import read_at_most

if TYPE_CHECKING:
    from nvoci.cdi.model import Spec

STDIN = "-"
_FORM = "yaml"
_FLAGS = (
    Flag("from", metavar="DIR", help="The root that paths of the specification are below."),
    Flag("to", metavar="DIR", help="The root to put in its place. If it is the same, nothing changes."),
    Flag("input", metavar="FILE", default=STDIN, help="The file to read the specification from; - for stdin."),
    Flag("output", metavar="FILE", help="The file to write; without it, stdout."),
    Flag("relative-to", metavar="host|container", default="host", help="Whose paths change."),
)  # fmt: skip


@click.command("root", cls=Tolerant, params=list(_FLAGS))
def root(**given: str) -> None:
    """Change the root in the paths of a CDI specification.

    Only whole components match: /driver is no root of /driver-backup. The version that the specification declares
    stays. YAML may have several, as `cdi generate` writes them for memory that is coherent and memory that is not: all
    are changed, and each has a file of its own, named after its kind.
    """
    from nvoci.generate import transform

    if given["relative_to"] not in {transform.HOST, transform.CONTAINER}:
        raise HookError(f"invalid --relative-to value: {printable(given['relative_to'])}", "use host or container")
    if given["output"]:
        specout.place(given["output"], _FORM)  # a bad name is told before anything is read
    specs = [transform.root(each, given["from_"], given["to"], given["relative_to"]) for each in _read(given["input"])]
    specout.emit([specout.Output(_path(given["output"], each, specs[0]), each) for each in specs], _FORM)


def _path(output: str, spec: Spec, first: Spec) -> str:
    """As `cdi generate` names them: the first has the name that is given, and the kind of another begins with that of
    the first and ends in what its file's name has more. Raises HookError."""
    if not output:
        return ""
    more = spec.kind.removeprefix(first.kind)
    if spec is not first and (not more or more == spec.kind):
        raise HookError(f"write CDI spec {printable(output)}: no file name for {printable(spec.kind)} beside "
                        f"{printable(first.kind)}", "leave out --output, or transform one at a time")  # fmt: skip
    return specout.place(specout.infixed(output, more) if more else output, _FORM)


def _read(path: str) -> list[Spec]:
    from nvoci.cdi import text

    if path != STDIN:
        return text.loads_all(text.read_bytes(path), path)
    try:
        return text.loads_all(read_at_most(0, text.MAX_SPEC), "stdin")
    except OSError as e:
        raise hook_error("read CDI spec", "stdin", e, f"at most {text.MAX_SPEC} bytes are read") from None


@click.group("transform", cls=Group, modules={"root": f"{__name__}:root"})
def command() -> None:
    """Change a CDI specification."""
