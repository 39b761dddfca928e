"""`nvoci explain`: what the prestart hook would give a container, and why."""

from __future__ import annotations

import json

import click

from nvoci.ctl.node import HostPath


@click.command("explain")
@click.option(
    "--bundle",
    metavar="DIR",
    type=HostPath(file_okay=False),
    required=True,
    help="The container's bundle: the directory of its config.json.",
)
@click.option(
    "--config",
    metavar="FILE",
    type=HostPath(),
    help="The hook's -config; default: where the hook looks for config.toml.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of lines: see docs/explain.md.")
def command(*, bundle: str, config: str | None, as_json: bool) -> None:
    """Say what nvidia-container-runtime-hook would put into the container of a bundle, and why.

    \b
    nvoci explain --bundle /run/containerd/io.containerd.runtime.v2.task/moby/ID
    nvoci explain --bundle . --json

    Told are which variable or mount asked, which keys of config.toml decided, the devices that were meant, each file
    and device node with its mount options and device rule, and what was not found and where it was looked for. The
    container need not run, nor its root be there. Nothing is changed: no kernel module is loaded, no node made.

    Exit status: 0 it was explained, also where the container asks for no GPU; 1 the hook would fail, with its own
    message, or config.json cannot be read.
    """
    from nvoci.ctl import explain_data, explain_text

    document = explain_data.explain(bundle, config or "")
    click.echo(json.dumps(document, indent=2) if as_json else "\n".join(explain_text.lines(document)))
    click.get_current_context().exit(1 if document["result"] == explain_data.FAILS else 0)
