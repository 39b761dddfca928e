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
    stays.
    """
    from nvoci.generate import transform

    if given["relative_to"] not in {transform.HOST, transform.CONTAINER}:
        raise HookError(f"invalid --relative-to value: {printable(given['relative_to'])}", "use host or container")
    path = specout.place(given["output"], "yaml") if given["output"] else ""
    spec = transform.root(_read(given["input"]), given["from_"], given["to"], given["relative_to"])
    specout.emit([specout.Output(path, spec)], "yaml")


def _read(path: str) -> Spec:
    from nvoci.cdi import text

    if path != STDIN:
        return text.read(path)
    try:
        return text.loads(read_at_most(0, text.MAX_SPEC), "stdin")
    except OSError as e:
        raise hook_error("read CDI spec", "stdin", e, f"at most {text.MAX_SPEC} bytes are read") from None


@click.group("transform", cls=Group, modules={"root": f"{__name__}:root"})
def command() -> None:
    """Change a CDI specification."""
