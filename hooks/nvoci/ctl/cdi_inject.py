"""`nvoci cdi inject`: devices put into an OCI runtime configuration."""

from __future__ import annotations

import os
import sys
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import click

from nvoci.cdi import apply
from nvoci.ctl import cdi
from nvoci.errors import HookError, hook_error, printable
from nvoci.jsonfile import dumps, load_object, read_file, write_atomic
from nvoci.oci.config import MAX_CONFIG

if TYPE_CHECKING:
    from collections.abc import Iterable

    from nvoci.cdi.specdir import Registry

STDIN = "-"
_READ = "read config"
_WANTED = "a config.json of the OCI runtime specification is wanted"
_GLOB = frozenset("*?[")


@click.command("inject")
@click.argument("config", metavar="CONFIG")
@click.argument("devices", metavar="DEVICE...", nargs=-1, required=True)
@click.option("--in-place", "-i", is_flag=True, help="Write CONFIG instead of printing what it would be.")
@cdi.in_dirs
def command(*, registry: Registry, config: str, devices: tuple[str, ...], in_place: bool) -> None:
    """Put devices into CONFIG, an OCI runtime's config.json, or `-` for standard input.

    \b
    nvoci cdi inject bundle/config.json nvidia.com/gpu=0
    nvoci cdi inject --in-place bundle/config.json 'nvidia.com/gpu=GPU-*'

    DEVICE is a qualified name, or a pattern of them with * ? [abc]. If one of them is not there, nothing is changed.
    """
    if in_place and config == STDIN:
        raise click.UsageError("--in-place with standard input: there is no file to write")
    old = _read(config)
    try:
        new = apply.inject(registry, old, expanded(devices, registry.devices()))
    except apply.ConfigError as e:
        raise e.with_file(_name(config)) from None
    except HookError:
        cdi.warn(registry)
        raise
    content = dumps(new, indent=2) + "\n"
    if in_place:
        _write(config, content)
    else:
        click.echo(content, nl=False)


def expanded(patterns: Iterable[str], names: list[str]) -> list[str]:
    """The names that the patterns stand for, each once, in the order of the patterns; what no name matches stays."""
    found: dict[str, None] = {}
    for pattern in patterns:
        if _GLOB.isdisjoint(pattern):
            matches = []
        else:
            matches = [name for name in names if fnmatchcase(name, pattern)]
        found.update(dict.fromkeys(matches or [pattern]))
    return list(found)


def _name(config: str) -> str:
    return "standard input" if config == STDIN else config


def _read(config: str) -> dict[str, Any]:
    if config == STDIN:
        data = sys.stdin.buffer.read(MAX_CONFIG + 1)
        if len(data) > MAX_CONFIG:
            raise HookError(f"{_READ} {_name(config)}: longer than {MAX_CONFIG} bytes", _WANTED)
    else:
        data = read_file(config, MAX_CONFIG, _READ)
    return load_object(data, _READ, _name(config), _WANTED)


def _write(config: str, content: str) -> None:
    """At once, with the mode and the owner that it had."""
    path = os.path.realpath(config)
    try:
        before = os.stat(path)
        write_atomic(path, content.encode(), before.st_mode & 0o7777)
        if (before.st_uid, before.st_gid) != (os.geteuid(), os.getegid()):
            os.chown(path, before.st_uid, before.st_gid)
    except OSError as e:
        raise hook_error("write config", printable(path), e) from None
