"""`generate`: one look at the node, and the CDI specifications of what it has for containers.

NVML takes a third of the time, in a process of its own; what is not needed to ask it is loaded meanwhile. Measured, 8
GPUs, a whole process: 12 x the interpreter's start, 32 MiB.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from nvoci.discover import look as looking
from nvoci.generate.options import ALL, MANAGEMENT, NONE, WITHOUT_NVML, GenerateOptions, checked

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from nvoci.cdi.model import Spec
    from nvoci.discover.found import Discovery
    from nvoci.discover.model import Found
    from nvoci.discover.nvml import NvmlAnswer
    from nvoci.discover.platform import Platform

    Links = Sequence[Sequence[tuple[str, str]]]

COHERENT_SUFFIX, NONCOHERENT_SUFFIX = ".coherent", ".noncoherent"


@dataclass(frozen=True)
class Named:
    """suffix: what the file's name has before its extension, "" or `.coherent`; the class of `spec` ends in it too."""

    suffix: str
    spec: Spec


@dataclass(frozen=True)
class Generated:
    """specs: validated; the first has all devices. warnings: one line each, of what was left out. mode: that was used,
    never `auto`."""

    specs: tuple[Named, ...]
    warnings: tuple[str, ...]
    mode: str


def _silent(phase: str) -> None:
    pass


def generate(options: GenerateOptions, done: Callable[[str], None] = _silent) -> Generated:
    """Look at the node. done: told the name of each phase at its end. Raises HookError where there is nothing for a
    container, with what was looked for and what to do; for a setting that there is not; and for a driver that does not
    work as it is."""
    options = checked(options)
    place = looking.Place(options.driver_root or "/", options.dev_root, options.timeout, options.search())
    if options.mode in WITHOUT_NVML:
        found = looking.look_at_files(place, done)
        return _done(found, None, options, [], done)
    ids = () if ALL in options.device_ids or options.mode == MANAGEMENT else options.device_ids
    with looking.look(place, done, [each for each in ids if each != NONE], _load) as seen:
        refusal = None if options.mode == MANAGEMENT else looking.failure(seen)
        if refusal is not None:
            raise refusal
        told = [each.line() for each in looking.warnings(seen)]
        return _done(seen.discovery, seen.answer, options, told, done)


def _load() -> None:
    """Everything that will be needed."""
    from nvoci.cdi import text, yamlout  # noqa: F401
    from nvoci.generate import core  # noqa: F401


def _done(
    seen: Discovery, answer: NvmlAnswer | None, options: GenerateOptions, told: list[str],
    done: Callable[[str], None],
) -> Generated:  # fmt: skip
    made = from_found(seen.found, answer, options, seen.platform, seen.link_lists)
    done("specifications")
    return replace(made, warnings=tuple(dict.fromkeys([*told, *made.warnings])))


def from_found(
    found: Found, answer: NvmlAnswer | None, options: GenerateOptions, platform: Platform, link_lists: Links = ()
) -> Generated:
    """The specifications of what was found, without another look at anything. answer: NVML's, None where it gave none.
    platform: the kind of node, which counts in mode `auto`. link_lists: as discovery has them; without, links are those
    of the mounts. Raises HookError as `generate` does."""
    from nvoci.generate import core

    return core.from_found(found, answer, options, platform, link_lists)
