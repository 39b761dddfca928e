"""`nvoci cdi …`: specifications of the Container Device Interface, their devices, and what these do to a container."""

from __future__ import annotations

from functools import wraps
from typing import TYPE_CHECKING, Any

import click

from nvoci.ctl import node
from nvoci.ctl.lazy import LazyGroup

if TYPE_CHECKING:
    from collections.abc import Callable

    from nvoci.cdi.specdir import Registry

_COMMANDS = {
    "check": "nvoci.ctl.cdi_check",
    "devices": "nvoci.ctl.cdi_list:devices",
    "dirs": "nvoci.ctl.cdi_list:dirs",
    "generate": "nvoci.ctl.cdi_generate",
    "inject": "nvoci.ctl.cdi_inject",
    "list": "nvoci.ctl.cdi_list:specs",
    "refresh": "nvoci.ctl.cdi_refresh",
    "validate": "nvoci.ctl.cdi_validate",
    "watch": "nvoci.ctl.cdi_watch",
}

as_json = click.option("--json", "as_json", is_flag=True, help="One JSON object instead of a table.")


@click.group("cdi", cls=LazyGroup, modules=_COMMANDS)
def command() -> None:
    """Devices of the Container Device Interface (CDI).

    Specifications lie in directories, /etc/cdi and /var/run/cdi unless --spec-dir or CDI_SPEC_DIRS (separated by
    colons) says otherwise. A later directory has the higher priority.
    """


def in_dirs(function: Callable[..., Any]) -> Callable[..., Any]:
    """--spec-dir, as a `registry` that has not looked yet."""

    @click.option(
        "--spec-dir",
        "dirs",
        metavar="DIR",
        multiple=True,
        type=node.HostPath(file_okay=False),
        help="A directory of specifications, instead of the usual ones; may be repeated.",
    )
    @wraps(function)
    def call(*args: Any, dirs: tuple[str, ...], **more: Any) -> Any:
        return function(*args, registry=_registry(dirs), **more)

    return call


def _registry(dirs: tuple[str, ...]) -> Registry:
    from nvoci.cdi.specdir import Registry

    return Registry(dirs)


def warn(registry: Registry) -> None:
    """Each error on a line of its own: what it is about was left out, and the rest is right."""
    for errors in registry.errors.values():
        for error in errors:
            node.warn(error.line())
