"""The files that `nvoci cdi refresh` keeps: written when they would change, removed when they are for nothing."""

from __future__ import annotations

import os
from errno import ENOENT
from typing import TYPE_CHECKING

from nvoci.cdi import specdir, text, validate
from nvoci.ctl import node, specout
from nvoci.errors import HookError, hook_error, printable
from nvoci.generate import freshness, origin
from nvoci.generate.options import WITHOUT_NVML
from nvoci.generate.specs import COHERENT_SUFFIX, NONCOHERENT_SUFFIX

if TYPE_CHECKING:
    from nvoci.cdi.model import Spec
    from nvoci.discover.model import Found
    from nvoci.generate.options import GenerateOptions
    from nvoci.generate.specs import Generated

_SUFFIXES = ("", COHERENT_SUFFIX, NONCOHERENT_SUFFIX)


def keep(path: str, kind: str, made: Generated) -> list[str]:
    """Write what was made to the file, and its parts beside it; a part that there is no more is removed. One that says
    the same already, and is safe from others, is left alone, whatever it looks like. Returns a line for each file.
    Raises HookError; what was there before then is there still."""
    specs = {_place(path, each.suffix): each.spec for each in made.specs}
    for place, spec in specs.items():
        validate.validate(spec, place)
    changed = {place: spec for place, spec in specs.items() if _read(place) != spec}
    there = {place for place in changed if os.path.lexists(place)}
    specout.write([specout.Output(place, spec) for place, spec in changed.items()])
    lines = []
    for place, spec in specs.items():
        done = "unchanged" if place not in changed else "made anew" if place in there else "made"
        driver = spec.annotations.get(freshness.DRIVER_VERSION, "")
        told = f"{spec.kind}, {len(spec.devices)} devices" + (f", driver {driver}" if driver else "")
        lines.append(f"{printable(place)}: {done}: {told}")
    for suffix in _SUFFIXES:
        place = _place(path, suffix)
        if place not in specs and _is_ours(_read(place), kind + suffix):
            lines.append(_remove(place, "the node has no such GPU any more"))
    return lines


def _place(path: str, suffix: str) -> str:
    return specout.infixed(path, suffix) if suffix else path


def _read(path: str) -> Spec | None:
    """None for a file that cannot be used: it is not there, is no specification, or others can write it."""
    try:
        return text.loads(specdir.read_trusted(path), path)
    except HookError:
        return None


def _is_ours(spec: Spec | None, kind: str) -> bool:
    """Whether a command of ours has made it, for such devices."""
    return spec is not None and spec.kind == kind and (origin.is_annotated(spec) or origin.is_merged(spec))


def gone(path: str, kind: str, *, remove: bool) -> list[str]:
    """What is done where there are no devices. Returns a line for each file that is there. Raises HookError."""
    lines = []
    for suffix in _SUFFIXES:
        place = _place(path, suffix)
        if not os.path.lexists(place):
            continue
        if not _is_ours(_read(place), kind + suffix):
            lines.append(f"{printable(place)}: left as it is: it is not one of ours for {kind}{suffix}")
        elif remove:
            lines.append(_remove(place, "it is for devices that are not there"))
        else:
            lines.append(f"{printable(place)}: left as it is, though it is for devices that are not there")
    return lines


def _remove(path: str, why: str) -> str:
    try:
        os.unlink(path)
    except OSError as e:
        if e.errno != ENOENT:
            raise hook_error("remove CDI spec", path, e) from None
    return f"{printable(path)}: removed: {why}"


# -- the inventory ----------------------------------------------------------------------------------------------------


def inventory(options: GenerateOptions) -> list[str]:
    """Look at the node for the injectors too, if what they know does not hold any more; it is root's to write. Returns
    a line if it was made; that it could not be is a warning."""
    from nvoci.discover import inventory as kept
    from nvoci.discover.look import Place

    place = Place(options.driver_root or "/", options.dev_root, options.timeout)
    if os.geteuid() or options.mode in WITHOUT_NVML:
        return []

    def build() -> Found:
        from nvoci.discover.look import failure, look

        with look(place) as seen:
            error = failure(seen)
            if error:
                raise error
            return seen.found

    try:
        sources = place.sources()
        if kept.current(sources, kept.PATH).inventory is not None:
            return []
        kept.refresh(sources, build, kept.PATH)
        made = kept.current(sources, kept.PATH)
    except HookError as e:
        node.warn(e.line())
        return []
    return [f"{kept.PATH}: made"] if made.inventory is not None else []
