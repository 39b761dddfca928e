"""The options of the commands that look at the node, and the times of its phases."""

from __future__ import annotations

import os
import time
from functools import wraps
from typing import TYPE_CHECKING, Any

import click

from nvoci import log
from nvoci.discover.nvml import SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from nvoci.discover.look import Place

_MOST_SECONDS = 3600.0


class HostPath(click.Path):
    """A path of the host, made absolute; whether anything is there is said by who opens it."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        path = os.path.join(os.getcwd(), value)
        if not value or not path.isprintable():
            self.fail("not a plain path", param, ctx)
        return path


class Phases:
    """Says on stderr how long each phase took, if asked to."""

    def __init__(self, *, told: bool) -> None:
        self._told = told
        self._begin = self._last = time.monotonic()

    def done(self, phase: str) -> None:
        """The end of a phase, which is the beginning of the next."""
        now = time.monotonic()
        self._say(phase, now - self._last)
        self._last = now

    def total(self) -> None:
        """The end of the last."""
        self._say("all phases", time.monotonic() - self._begin)

    def _say(self, phase: str, seconds: float) -> None:
        if self._told:
            click.echo(f"nvoci: {seconds * 1000:8.1f} ms  {phase}", err=True)


_ROOTS = (
    click.option(
        "--driver-root",
        metavar="DIR",
        type=HostPath(file_okay=False),
        default="/",
        show_default=True,
        help="Where the driver's files are.",
    ),
    click.option(
        "--dev-root",
        metavar="DIR",
        type=HostPath(file_okay=False),
        help="The directory that has `dev`; default: DRIVER-ROOT.",
    ),
)
_LOOK = (
    click.option(
        "--timeout",
        metavar="SECONDS",
        type=click.FloatRange(0, _MOST_SECONDS, min_open=True),
        default=SECONDS,
        show_default=True,
        help="How long NVML may take.",
    ),
    click.option("--debug", is_flag=True, help="Say on stderr how long each phase takes."),
)


def at_place(function: Callable[..., Any]) -> Callable[..., Any]:
    """--driver-root and --dev-root, as `place`."""

    @wraps(function)
    def call(*args: Any, driver_root: str, dev_root: str | None, **more: Any) -> Any:
        return function(*args, place=_place(driver_root, dev_root), **more)

    return _with(call, _ROOTS)


def looks(function: Callable[..., Any]) -> Callable[..., Any]:
    """Also --timeout and --debug, the latter as `phases`."""

    @wraps(function)
    def call(*args: Any, driver_root: str, dev_root: str | None, timeout: float, debug: bool, **more: Any) -> Any:
        phases = Phases(told=debug)
        if debug:
            log.set_level(log.DEBUG)
        place = _place(driver_root, dev_root, timeout)
        phases.done("load modules")
        return function(*args, place=place, phases=phases, **more)

    return _with(call, (*_ROOTS, *_LOOK))


def _with(function: Callable[..., Any], options: tuple[Callable[..., Any], ...]) -> Callable[..., Any]:
    for option in reversed(options):
        function = option(function)
    return function


def _place(root: str, dev_root: str | None, seconds: float = SECONDS) -> Place:
    from nvoci.discover import look

    return look.Place(root, dev_root or "", seconds)


def warn(line: str) -> None:
    """Something was left out, and the rest is right."""
    click.echo(f"nvoci: warning: {line}", err=True)


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines with aligned columns; the cells have had their control characters escaped."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
