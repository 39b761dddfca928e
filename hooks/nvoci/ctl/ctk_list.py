"""`nvidia-ctk cdi list`: the devices of the CDI specifications on this host."""

from __future__ import annotations

import click

from nvoci import log
from nvoci.ctl.flags import LIST, Flag, Tolerant
from nvoci.errors import HookError, printable

_DIRS = ("/etc/cdi", "/var/run/cdi")


@click.command("list", cls=Tolerant, params=[
    Flag("spec-dir", kind=LIST, metavar="DIR", default=_DIRS, env=["NVIDIA_CTK_CDI_SPEC_DIRS"],
         help="A directory to look for specifications in; a later one has priority."),
])  # fmt: skip
def command(spec_dir: tuple[str, ...]) -> None:
    """List the CDI devices of this host by their qualified names.

    What is wrong with a specification is told on stderr, and the others are listed: the exit status is 0.
    """
    from nvoci.cdi.specdir import Registry

    dirs = [each for each in spec_dir if each]
    if not dirs:
        raise HookError("at least one CDI specification directory must be specified", "--spec-dir DIR")
    registry = Registry(dirs)
    registry.refresh()
    if registry.errors:
        log.warning("The following registry errors were reported:")
        for path, errors in registry.errors.items():
            log.warning(f"{printable(path)}: [{', '.join(error.line() for error in errors)}]")
    names = registry.devices()
    log.info(f"Found {len(names)} CDI devices")
    for name in names:
        click.echo(name)
