"""`nvoci completion SHELL`: the shell's completion script, as click makes it."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "fish", "zsh"]))
@click.pass_context
def command(ctx: click.Context, shell: str) -> None:
    """Print a shell's completion script.

    To try it in bash: eval "$(nvoci completion bash)". To keep it, write it to /etc/bash_completion.d/nvoci, to a
    file that ~/.zshrc sources, or to ~/.config/fish/completions/nvoci.fish.
    """
    found = get_completion_class(shell)
    if found is None:
        raise click.UsageError(f"this click has no completion for {shell}")
    click.echo(found(ctx.find_root().command, {}, "nvoci", "_NVOCI_COMPLETE").source())
