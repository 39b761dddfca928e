"""`nvidia-ctk cdi generate`: the CDI specification of this node."""

from __future__ import annotations

from typing import Any

import click
from click.core import ParameterSource

from nvoci import log
from nvoci.ctl import generating
from nvoci.ctl.ctk import CONFIG
from nvoci.ctl.flags import Tolerant

_DEFAULTS = generating.Defaults(hooks="reference", vendor="nvidia.com", class_="gpu", annotate=False, anywhere=True)


@click.command("generate", cls=Tolerant, params=list(generating.flags(_DEFAULTS)))
@click.pass_context
def command(ctx: click.Context, /, **given: Any) -> None:
    """Make the CDI specification of this node, for engines that give containers devices by name.

    A file is replaced whole or not at all, and can be read by everybody. A name without .yaml or .json gets that of its
    form. With the feature enable-coherent-annotations there may be two more, NAME.coherent and NAME.noncoherent.
    """
    voice = generating.Voice(log.info, log.warning, log.debug)
    is_given = ctx.get_parameter_source("format") is not ParameterSource.DEFAULT
    generating.run(given, _DEFAULTS, ctx.meta[CONFIG], voice, is_format_given=is_given)
