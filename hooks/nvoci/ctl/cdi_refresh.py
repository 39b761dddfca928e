"""`nvoci cdi refresh`: the specification of this node as a file that is made anew when the node has changed.

That there is no driver yet is a state and no failure: systemd starts this at boot, and whenever something of a driver
comes or goes. A specification of ours that is left then names devices and files that are not there; an engine that
finds it fails with an error of the runtime about some mount, one that finds none says that it knows no such device. So
it is removed, unless --when-gone says otherwise.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from nvoci.cdi import specdir, store
from nvoci.ctl import cdi_files, generating, node, specout, tomlconfig
from nvoci.ctl.flags import SECONDS, Command, Flag
from nvoci.discover import nvml
from nvoci.errors import HookError, printable

if TYPE_CHECKING:
    from nvoci.discover.look import Place
    from nvoci.generate.arrival import Arrival
    from nvoci.generate.options import GenerateOptions
    from nvoci.generate.specs import Generated

REMOVE, KEEP = "remove", "keep"
_PAUSE, _MAX_PAUSE = 0.25, 5.0
_ATTEMPTS = 3
_USUAL_KIND, _USUAL_NAME = "nvidia.com/gpu", "nvidia"
_DEFAULTS = generating.Defaults(hooks="merged", vendor="", class_="", annotate=True)
_FLAGS = [
    Flag("output", metavar="FILE|DIR", env=["NVIDIA_CTK_CDI_OUTPUT_FILE_PATH"],
         otherwise="nvidia.yaml, or VENDOR-CLASS.yaml, in the last of $CDI_SPEC_DIRS, or else in /var/run/cdi",
         help="The file to keep up to date, or its directory."),
    Flag("wait", kind=SECONDS, metavar="SECONDS",
         help="How long to wait for a driver that works, if this machine has a GPU: with growing pauses it is looked "
              "for again."),
    Flag("when-gone", metavar="remove|keep", default=REMOVE,
         help="What is done to a specification of ours while there is no driver."),
    *[flag for flag in generating.flags(_DEFAULTS) if flag.names[0] != "output"],
    Flag("config", metavar="FILE", env=["NVIDIA_CTK_CONFIG"], otherwise=tomlconfig.LOOKUP,
         help="Where config.toml is."),
    Flag("timeout", kind=SECONDS, metavar="SECONDS", default=nvml.SECONDS, help="How long NVML may take."),
]  # fmt: skip


def _say(line: str) -> None:
    click.echo(f"nvoci: {line}", err=True)


@click.command("refresh", cls=Command, params=_FLAGS)
@click.pass_context
def command(ctx: click.Context, /, **given: Any) -> None:
    """Make the CDI specification of this node, and put it in place of the one that is there if that is another.

    The flags are those of `nvoci cdi generate`. A specification that says the same already is not touched. If it fails,
    or is killed, the one before stays. As root it also refreshes the inventory (see `nvoci inventory`) where that does
    not hold any more.

    Exit status: 0 also where there is no driver, or no device of the kind asked for: a line says so, and a
    specification of ours that is there is removed, so that engines tell that they know no such device. 1 if a driver
    is there and does not work.
    """
    if given["when_gone"] not in {REMOVE, KEEP}:
        raise HookError(f"invalid --when-gone: {printable(given['when_gone'])}", f"use {REMOVE} or {KEEP}")
    voice = generating.Voice(lambda line: None, node.warn, lambda line: None)
    is_given = ctx.get_parameter_source("format") is not ParameterSource.DEFAULT
    options, path = _settings(given, voice, is_format_given=is_given)
    try:
        made = _made(options, given["wait"])
    except _Absent as e:
        click.echo(f"no driver: {e.reason}")
        _tell(cdi_files.gone(path, options.kind(options.mode), remove=given["when_gone"] == REMOVE))
    else:
        for line in made.warnings:
            node.warn(line)
        _tell(cdi_files.keep(path, options.kind(made.mode), made))
        _tell(cdi_files.inventory(options))


def _tell(lines: list[str]) -> None:
    for line in lines:
        click.echo(line)


# -- where ------------------------------------------------------------------------------------------------------------


def _settings(given: dict[str, Any], voice: generating.Voice, *, is_format_given: bool) -> tuple[GenerateOptions, str]:
    """What to make, and the path of the file. Raises HookError."""
    form = given["format"].lower()
    if form not in specout.FORMATS:
        raise HookError(f"invalid output format: {printable(form)}", "use " + " or ".join(specout.FORMATS))
    options = generating.options_of(given, _DEFAULTS, given["config"], voice, given["timeout"])
    output = given["output"] or specdir.directories()[-1] + "/"
    if output.endswith("/") or os.path.isdir(output):
        output = os.path.join(output, _usual_name(options.kind(options.mode)))
    form = generating.settled_format(form, output, voice, is_format_given=is_format_given)
    path = specout.place(output, form)
    specout.check_directory(path)
    return options, path


def _usual_name(kind: str) -> str:
    """Without suffix. That of GPUs is the one that the reference's own service uses: of two files in one directory with
    the same devices an engine takes neither."""
    return _USUAL_NAME if kind == _USUAL_KIND else store.spec_name(*kind.split("/", 1))


# -- when -------------------------------------------------------------------------------------------------------------


class _Absent(Exception):
    """There is nothing to make a specification of."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def _made(options: GenerateOptions, wait: float) -> Generated:
    """Look at the node, until there is a whole driver that works or the time is up. Raises _Absent where there is none
    at all, HookError where there is one that does not work."""
    from nvoci.discover.look import Place
    from nvoci.generate import arrival

    place = Place(options.driver_root or "/", options.dev_root, options.timeout)
    end, pause, is_told = time.monotonic() + wait, _PAUSE, False
    while True:
        seen = arrival.look(place, options.mode)
        is_last = time.monotonic() >= end or not seen.may_come
        reason = seen.missing
        if is_last or not reason:
            try:
                return _steady(options, place)
            except HookError as e:
                if is_last:
                    raise _judged(e, seen, options) from None
                reason = e.message
        if not is_told:
            _say(f"waiting up to {wait:g} s for the driver: {reason}")
        is_told = True
        time.sleep(max(0.0, min(pause, end - time.monotonic())))
        pause = min(2 * pause, _MAX_PAUSE)


def _steady(options: GenerateOptions, place: Place) -> Generated:
    """Of a node that stays as it is while it is looked at: a driver that is being loaded brings one device after the
    other."""
    from nvoci.discover import fingerprint
    from nvoci.generate.specs import generate

    sources = place.sources()
    before = fingerprint.take(sources)
    for _ in range(_ATTEMPTS):
        made = generate(options)
        after = fingerprint.take(sources)
        if not fingerprint.difference(before, after):
            break
        before = after
    return made


def _judged(error: HookError, seen: Arrival, options: GenerateOptions) -> Exception:
    """Whether that it failed means that there is nothing."""
    from nvoci.generate.options import WITHOUT_NVML
    from nvoci.generate.parts import EMPTY

    if seen.is_absent:
        return _Absent(f"{seen.missing} ({seen.hint})")
    if options.mode in WITHOUT_NVML and EMPTY in error.message:
        return _Absent(error.line())
    return error
