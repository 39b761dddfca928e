"""`nvoci cdi list`, `devices` and `dirs`: what there is."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

from nvoci.cdi import document, names, text
from nvoci.cdi.error import SpecError
from nvoci.ctl import cdi, node
from nvoci.errors import HookError, printable
from nvoci.jsonfile import dumps

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nvoci.cdi.model import ContainerEdits
    from nvoci.cdi.specdir import Entry, Registry

_SPEC = ("PRIORITY", "FILE", "KIND", "VERSION", "DEVICES", "ERRORS")
_DIRECTORY = ("PRIORITY", "DIRECTORY", "STATE", "SPECS", "DEVICES", "ERRORS")
_DEVICE = ("DEVICE", "EDITS", "FILE")
_EDITS = (
    ("env", "variable", "variables"),
    ("device_nodes", "device node", "device nodes"),
    ("net_devices", "network device", "network devices"),
    ("hooks", "hook", "hooks"),
    ("mounts", "mount", "mounts"),
    ("additional_gids", "group", "groups"),
)


def _json(value: Any) -> None:
    click.echo(dumps(value, indent=2))


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    cells = [tuple([printable(cell) or "-" for cell in row]) for row in rows]
    for line in node.table([head, *cells]):
        click.echo(line)


def _errors(registry: Registry, path: str) -> list[str]:
    return [error.line() for error in registry.errors.get(path, ())]


# -- list -------------------------------------------------------------------------------------------------------------


@click.command("list")
@cdi.in_dirs
@cdi.as_json
def specs(*, registry: Registry, as_json: bool) -> None:
    """List the specifications, by priority and name, also those that are left out because of an error.

    What is wrong is said on stderr, and by `nvoci cdi validate`; the exit status is 0.
    """
    rows = _specs(registry)
    if as_json:
        directories = {path: _errors(registry, path) for path in registry.dirs if path in registry.errors}
        _json({"specs": rows, "directories": directories})
    elif rows:
        keys = ("priority", "path", "kind", "version", "devices")
        _table(_SPEC, [(*[row[key] for key in keys], len(row["errors"])) for row in rows])
    cdi.warn(registry)


def _specs(registry: Registry) -> list[dict[str, Any]]:
    loaded = {each.path: each for each in registry.specs()}
    rows = []
    for path in registry.paths():
        spec = loaded[path].spec if path in loaded else None
        rows.append({
            "path": printable(path),
            "priority": registry.dirs.index(os.path.dirname(path)),
            "kind": spec.kind if spec else "",
            "version": spec.cdi_version if spec else "",
            "devices": len(spec.devices) if spec else 0,
            "errors": _errors(registry, path),
        })  # fmt: skip
    return rows


# -- dirs -------------------------------------------------------------------------------------------------------------


@click.command("dirs")
@cdi.in_dirs
@cdi.as_json
def dirs(*, registry: Registry, as_json: bool) -> None:
    """List the directories that are looked in, lowest priority first.

    DEVICES are those that a container gets from there: not the ones that a file of a higher priority has as well.
    """
    entries = [registry.find(name) for name in registry.devices()]
    rows: list[dict[str, Any]] = []
    for priority, path in enumerate(registry.dirs):
        rows.append({
            "path": printable(path),
            "priority": priority,
            "state": "refused" if path in registry.errors else "there" if os.path.isdir(path) else "missing",
            "specs": sum(each.priority == priority for each in registry.specs()),
            "devices": sum(entry is not None and entry.priority == priority for entry in entries),
            "errors": [
                line
                for each in registry.errors
                if each == path or os.path.dirname(each) == path
                for line in _errors(registry, each)
            ],
        })  # fmt: skip
    if as_json:
        _json({"directories": rows})
    else:
        keys = ("priority", "path", "state", "specs", "devices")
        _table(_DIRECTORY, [(*[row[key] for key in keys], len(row["errors"])) for row in rows])
    cdi.warn(registry)


# -- devices ----------------------------------------------------------------------------------------------------------


def _kind(_ctx: click.Context, param: click.Parameter, value: str | None) -> str:
    try:
        if value:
            names.parse_kind(value)
    except SpecError as e:
        raise click.BadParameter(e.why, param=param)
    return value or ""


@click.command("devices")
@click.argument("kind", metavar="[VENDOR/CLASS]", required=False, callback=_kind)
@click.option("--verbose", "-v", is_flag=True, help="Also print the edits, as a specification has them.")
@cdi.in_dirs
@cdi.as_json
def devices(*, registry: Registry, kind: str, verbose: bool, as_json: bool) -> None:
    """List the devices that can be injected, of all kinds or of one.

    EDITS are the device's own; its specification may have some for any of its devices, which -v and --json show too.

    Exit status: 0, or 1 if there is no device of VENDOR/CLASS.
    """
    entries = [entry for entry in map(registry.find, registry.devices()) if entry is not None]
    entries = [entry for entry in entries if kind in ("", entry.spec.kind)]
    if as_json:
        _json({"devices": [_device(entry) for entry in entries], "specs": _commons(entries)})
    elif verbose:
        _print_edits(entries)
    elif entries:
        _table(_DEVICE, [(entry.name, summary(entry.device.container_edits), entry.path) for entry in entries])
    cdi.warn(registry)
    if kind and not entries:
        raise HookError(f"list devices: none of kind {kind}", "`nvoci cdi list` lists the specifications")


def summary(edits: ContainerEdits) -> str:
    """`2 device nodes, 1 mount`."""
    counts = [(len(getattr(edits, attribute)), one, many) for attribute, one, many in _EDITS]
    words = [f"{count} {one if count == 1 else many}" for count, one, many in counts if count]
    return ", ".join(words + (["resource director"] if edits.intel_rdt is not None else []))


def _device(entry: Entry) -> dict[str, Any]:
    return {
        "name": entry.name,
        "path": printable(entry.path),
        "priority": entry.priority,
        "annotations": dict(entry.device.annotations),
        "containerEdits": document.edits_to_object(entry.device.container_edits),
    }


def _commons(entries: list[Entry]) -> list[dict[str, Any]]:
    """The specifications of these devices, with the edits for any of them."""
    found = {entry.path: entry.spec for entry in entries}
    return [
        {
            "path": printable(path),
            "kind": spec.kind,
            "version": spec.cdi_version,
            "annotations": dict(spec.annotations),
            "containerEdits": document.edits_to_object(spec.container_edits),
        }
        for path, spec in found.items()
    ]


def _print_edits(entries: list[Entry]) -> None:
    for entry in entries:
        click.echo(f"{entry.name}  {printable(entry.path)}")
        _print_indented(entry.device.container_edits)
    for path, spec in {entry.path: entry.spec for entry in entries}.items():
        if spec.container_edits:
            click.echo(f"any device of {printable(path)}")
            _print_indented(spec.container_edits)


def _print_indented(edits: ContainerEdits) -> None:
    for line in text.dumps_object(document.edits_to_object(edits)).splitlines():
        if line != "---":
            click.echo(f"    {printable(line)}")
