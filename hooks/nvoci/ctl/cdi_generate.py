"""`nvoci cdi generate`: the CDI specification of this node, in our form."""

from __future__ import annotations

from typing import Any

import click
from click.core import ParameterSource

from nvoci.ctl import generating, node, tomlconfig
from nvoci.ctl.flags import SECONDS, Command, Flag
from nvoci.discover import nvml

_DEFAULTS = generating.Defaults(hooks="merged", vendor="", class_="", annotate=True)
_FLAGS = [
    *generating.flags(_DEFAULTS),
    Flag("config", metavar="FILE", env=["NVIDIA_CTK_CONFIG"], otherwise=tomlconfig.LOOKUP,
         help="Where config.toml is."),
    Flag("timeout", kind=SECONDS, metavar="SECONDS", default=nvml.SECONDS, help="How long NVML may take."),
]  # fmt: skip


def _say(line: str) -> None:
    click.echo(f"nvoci: {line}", err=True)


@click.command("generate", cls=Command, params=_FLAGS)
@click.pass_context
def command(ctx: click.Context, /, **given: Any) -> None:
    """Make the CDI specification of this node, for engines that give containers devices by name.

    As `nvidia-ctk cdi generate`, with the same flags, but for these defaults: one hook for the whole container
    (--hooks merged), the kind that is usual in the mode (nvidia.com/imex-channel for imex), and annotations that tell
    what the specification was made for. A file is replaced whole or not at all, and can be read by everybody.
    A directory that others can write is refused, and so is such a hook program.

    The annotations, by which `nvoci cdi check` tells most, take version 0.6.0 of CDI; groups of device nodes take
    0.7.0. Podman 4 reads at most 0.5.0, and passes over a newer one without a word: --max-cdi-version 0.5.0 makes one
    for it, without annotations and groups.
    """
    voice = generating.Voice(_say, node.warn, lambda line: None)
    is_given = ctx.get_parameter_source("format") is not ParameterSource.DEFAULT
    generating.run(given, _DEFAULTS, given["config"], voice, is_format_given=is_given, timeout=given["timeout"])
