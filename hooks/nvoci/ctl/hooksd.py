"""`nvoci hooksd …`: entries of oci-hooks directories, for Podman and CRI-O."""

from __future__ import annotations

import os
import shlex
from typing import TYPE_CHECKING, Any

import click

from nvoci.ctl import cdispec, entries, log, prestartentry, regex
from nvoci.ctl.hook import HookGroup
from nvoci.errors import FAILED, HookError, hook_error, printable
from nvoci.oci import hooksd

if TYPE_CHECKING:
    from collections.abc import Callable

    from nvoci.hook import table

# Podman's and CRI-O's own; a name in the first hides the same name in the second.
DIRECTORIES = ("/etc/containers/oci/hooks.d", "/usr/share/containers/oci/hooks.d")
PODMAN, CRIO = "podman", "cri-o"
# Stages in which our hooks can work: later ones see the container's files only, or are too late.
_OUR_STAGES = ("createRuntime", "createContainer", "prestart")

_to = click.option("--dir", "directory", metavar="DIR", help="The directory of the entries, e.g. " + DIRECTORIES[0])
_from = click.option(
    "--dir",
    "directories",
    metavar="DIR",
    multiple=True,
    help="A directory to read; default: " + " and ".join(DIRECTORIES),
)


_CONDITIONS = (
    click.option("--has-bind-mounts", is_flag=True, help="Run if the container has bind mounts of the host."),
    click.option(
        "--command",
        "commands",
        multiple=True,
        metavar="REGEX",
        help="Run if the container's command matches one of these.",
    ),
    click.option(
        "--annotation",
        "annotations",
        multiple=True,
        metavar="KEY=VALUE",
        help="Run if an annotation matches: a regular expression for its key, one for its value. All that are given.",
    ),
    click.option("--always", is_flag=True, help="Run for every container: the default without another condition."),
)


def _conditions(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options that make the entry's `when`."""
    for option in _CONDITIONS:
        function = option(function)
    return function


def _when(
    *, always: bool, annotations: tuple[str, ...], commands: tuple[str, ...], has_bind_mounts: bool
) -> hooksd.When:
    """The conditions as given; `always` where none is."""
    if always and (annotations or commands or has_bind_mounts):
        raise click.UsageError("--always with another condition: the engine asks for all of them, so leave it out")
    pairs: dict[str, str] = {}
    for text in annotations:
        key, separator, value = text.partition("=")
        if not separator or key in pairs:
            raise click.BadParameter(f"`{text}` is not KEY=VALUE, or KEY is given twice", param_hint="--annotation")
        pairs[key] = value
    for pattern in (*pairs, *pairs.values(), *commands):
        try:
            regex.check(pattern)
        except ValueError as e:
            raise click.UsageError(f"`{pattern}` is no regular expression: {e}")
    return hooksd.When(
        always=None if pairs or commands or has_bind_mounts else True,
        annotations=pairs or None,
        commands=list(commands) or None,
        has_bind_mounts=True if has_bind_mounts else None,
    )


def _needs(directory: str | None) -> str:
    if not directory:
        raise click.UsageError(f"Missing option '--dir', e.g. --dir {DIRECTORIES[0]}")
    return directory


@click.group("hooksd")
def command() -> None:
    """Entries of hooks directories (Podman, CRI-O).

    Every entry has a non-empty `env` with NVOCI_HOOK in it, by which it is known as ours.
    """


# --- install --------------------------------------------------------------------------------------------------------


def _install(ctx: click.Context, hook: table.Hook, words: list[str]) -> None:
    chosen = ctx.find_object(dict) or {}
    directory = _needs(chosen["directory"])
    entries.check_options(hook, words)
    name, template = entries.read_template(hook.name, entries.find_program(chosen["program"]))
    stages = list(dict.fromkeys(chosen["stages"])) or template.stages
    entry = entries.fill_in(template, words, chosen["when"], stages)
    _write(directory, chosen["name"] or name, entry)


def _write(directory: str, name: str, entry: hooksd.Entry) -> None:
    name = hooksd.file_name(name)
    click.echo(hooksd.write(entries.prepare_directory(directory), name, entry, regex.check))


@click.command(prestartentry.NAME)
@click.option("--config", metavar="FILE", default="", help="The hook's config.toml; default: where the hook looks.")
@click.option("--debug", is_flag=True, help="The hook tells everything on stderr.")
@click.pass_context
def _install_prestart(ctx: click.Context, config: str, *, debug: bool) -> None:
    """Give containers their GPUs: nvidia-container-runtime-hook.

    Every container gets what its environment asks for (NVIDIA_VISIBLE_DEVICES, NVIDIA_DRIVER_CAPABILITIES, ...). One
    that asks for nothing is left alone.
    """
    chosen = ctx.find_object(dict) or {}
    directory = _needs(chosen["directory"])
    program = entries.find_program(chosen["program"], prestartentry.PROGRAM)
    name, template = entries.read_template(prestartentry.NAME, program)
    stages = list(dict.fromkeys(chosen["stages"])) or template.stages
    entry = prestartentry.fill_in(template, chosen["when"], stages, config=config, debug=debug)
    _write(directory, chosen["name"] or name, entry)


class _InstallGroup(HookGroup):
    """The hooks of nvidia-cdi-hook, and the one that is a program of its own."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [prestartentry.NAME, *super().list_commands(ctx)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return _install_prestart if cmd_name == prestartentry.NAME else super().get_command(ctx, cmd_name)


@command.group("install", cls=_InstallGroup, runner=_install, strict=True)
@_to
@click.option(
    "--stage", "stages", multiple=True, type=click.Choice(_OUR_STAGES), help="When to run; default: the template's."
)
@click.option("--name", metavar="NAME", default="", help="The entry's file name; default: that of the hook's template.")
@click.option("--program", metavar="PATH", default="", help="The hook program; default: the one beside nvoci.")
@_conditions
@click.pass_context
def install(ctx: click.Context, /, **chosen: Any) -> None:
    """Write an entry for a hook.

    \b
    nvoci hooksd install --dir D prestart
    nvoci hooksd install --dir D create-symlinks --link A::B
    nvoci hooksd install --dir D run -- create-symlinks --link A::B -- update-ldcache --folder C

    Without a condition the entry is for every container (`always`). An entry of ours under the same name is replaced:
    choose a --name for a second one of the same hook. The hook's options are checked before anything is written.
    Engines run entries in the order of their file names.
    """
    conditions = {key: chosen.pop(key) for key in ("always", "annotations", "commands", "has_bind_mounts")}
    ctx.obj = {**chosen, "when": _when(**conditions)}


# --- from-cdi -------------------------------------------------------------------------------------------------------


@command.command("from-cdi")
@click.argument("spec", metavar="SPEC")
@_to
@click.option(
    "--device",
    "devices",
    multiple=True,
    metavar="NAME",
    help="Take this device's hooks; default: `all`, if there is one.",
)
@_conditions
def from_cdi(spec: str, directory: str | None, devices: tuple[str, ...], **conditions: Any) -> None:
    """Turn the hooks of a CDI spec (JSON or YAML) into entries.

    The spec must be valid, and nobody's to write but root's and yours. Taken are the hooks that all devices share, then
    those of the chosen devices, in that order. Only hooks: a hooks directory has no device nodes, mounts and variables.
    Entries made before from a spec of the same kind are replaced, and removed if they are no longer there.
    """
    target = _needs(directory)
    when = _when(**conditions)
    found = cdispec.read(spec)
    made = cdispec.entries(found, devices, when)
    if not made:
        raise HookError(f"read CDI spec {printable(spec)}: no hooks in what was chosen", "name a --device")
    for _, entry in made:
        entries.check_program(entry.path)
    others = cdispec.others(cdispec.choose(found, devices))
    if others:
        log.warning(
            "only hooks are carried over; the engine must get the rest in another way", left_out=", ".join(others)
        )
    target = entries.prepare_directory(target)
    origin = made[0][1].origin()
    for name, _ in made:
        hooksd.check_free(f"{target}/{hooksd.file_name(name)}", origin, regex.check)
    for name, entry in made:
        click.echo(hooksd.write(target, name, entry, regex.check))
    names = {name for name, _ in made}
    for old in hooksd.listing(target, regex.check):
        if old.entry and old.entry.origin() == origin and old.name not in names:
            click.echo("removed " + hooksd.remove(target, old.name, regex.check))


# --- list, validate, remove -----------------------------------------------------------------------------------------


def _existing(directories: tuple[str, ...]) -> list[str]:
    """Those given must exist; of the engines' own, those that do."""
    return list(directories) or [path for path in DIRECTORIES if os.path.isdir(path)]


@command.command("list")
@_from
def list_entries(directories: tuple[str, ...]) -> None:
    """List entries in the order of their runs.

    Columns: file, whose (`hooksd`, `cdi:KIND`, `foreign`, `invalid`), stages, conditions and command line.
    """
    rows = [
        (printable(f"{directory}/{found.name}"), *_describe(found))
        for directory in _existing(directories)
        for found in hooksd.listing(directory, regex.check)
    ]
    widths = [max(len(row[i]) for row in rows) for i in range(3)] if rows else []
    for row in rows:
        click.echo("  ".join([*(cell.ljust(width) for cell, width in zip(row, widths)), *row[3:]]))


def _describe(found: hooksd.Found) -> tuple[str, ...]:
    entry = found.entry
    if entry is None:
        return ("invalid", "-", found.error.line() if found.error else "")
    when = entry.when
    conditions = ["always" if when.always else "never"] if when.always is not None else []
    conditions += [f"annotation {key}={value}" for key, value in (when.annotations or {}).items()]
    conditions += ["command " + " or ".join(when.commands)] if when.commands else []
    conditions += ["bind mounts" if when.has_bind_mounts else "never"] if when.has_bind_mounts is not None else []
    line = shlex.join([entry.path, *entry.args[1:]])
    return (entry.origin() or "foreign", ",".join(entry.stages), printable(f"when {' and '.join(conditions)}: {line}"))


@command.command("validate")
@click.argument("files", nargs=-1, metavar="[FILE]...")
@_from
@click.option("--engine", type=click.Choice((PODMAN, CRIO)), help="Check for this engine; default: what either reads.")
@click.pass_context
def validate(ctx: click.Context, files: tuple[str, ...], directories: tuple[str, ...], engine: str | None) -> None:
    """Check entries: FILEs, or all of the directories.

    Exit status 1 if one of them is not right.
    One that an engine refuses stops every container start, and one that it finds odd is left out without a word, so
    check before you copy one into place. Checked are
    the schema, unknown keys, regular expressions, that the program is there, that `env` is not empty where runc would
    give the hook the container's environment, and the arguments of our own programs.
    """
    bad = 0
    for path in files or [f"{d}/{n}" for d in _existing(directories) for n in _names(d)]:
        try:
            _check(hooksd.read(path, regex.check), engine)
            click.echo(f"{printable(path)}: valid")
        except HookError as e:
            bad += 1
            click.echo(e.line() if printable(path) in e.message else f"{printable(path)}: {e.line()}", err=True)
    ctx.exit(FAILED if bad else 0)


def _names(directory: str) -> list[str]:
    try:
        return sorted(name for name in os.listdir(directory) if name.endswith(hooksd.SUFFIX))
    except OSError as e:
        raise hook_error("list entries", directory, e) from None


def _check(entry: hooksd.Entry, engine: str | None) -> None:
    extensions = [stage for stage in entry.stages if stage in hooksd.EXTENSION_STAGES]
    if engine == CRIO and extensions:
        raise HookError(f"`stages` holds `{extensions[0]}`, a stage of Podman's own", "CRI-O would not start with it")
    if "startContainer" not in entry.stages:  # there the path is the container's
        entries.check_program(entry.path)
    if not entry.env and {"createContainer", "startContainer"} & set(entry.stages):
        raise HookError("`hook.env` is empty", "runc before 1.3 then gives the hook the container's environment")
    entries.check_program_options(entry)


@command.command("remove")
@_to
@click.option("--all", "everything", is_flag=True, help="Every entry of ours.")
@click.argument("names", nargs=-1, metavar="[NAME]...")
def remove(directory: str | None, names: tuple[str, ...], *, everything: bool) -> None:
    """Remove entries of ours; those of others stay."""
    target = _needs(directory)
    if bool(names) == everything:
        raise click.UsageError("give the names of entries, or --all")
    if everything:
        names = tuple(f.name for f in hooksd.listing(target, regex.check) if f.entry and f.entry.origin())
    for name in names:
        click.echo(hooksd.remove(target, name, regex.check))
