"""The pure core of `generate`: what was found, and the options, give the specifications. Loaded while NVML starts."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from nvoci.cdi import consumers, validate, version
from nvoci.cdi.error import SpecError
from nvoci.cdi.model import Device, Spec
from nvoci.discover.look import grave
from nvoci.errors import HookError
from nvoci.generate import freshness, modes, simplify
from nvoci.generate.devices import first_of_all_or_none
from nvoci.generate.edits import edits
from nvoci.generate.hooks import Hooks, unconditional
from nvoci.generate.options import (
    ALL,
    AUTO,
    CHOOSABLE,
    MANAGEMENT,
    MERGED,
    NO_GIDS,
    NONE,
    NVML,
    WITHOUT_NVML,
    GenerateOptions,
    checked,
)
from nvoci.generate.parts import NO_NODE_CHANGES, STAGE
from nvoci.generate.specs import COHERENT_SUFFIX, NONCOHERENT_SUFFIX, Generated, Named

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from nvoci.discover.model import Found
    from nvoci.discover.nvml import NvmlAnswer
    from nvoci.discover.platform import Platform
    from nvoci.generate.parts import Entry, Parts
    from nvoci.generate.specs import Links

_MAX_TOLD = 4
_CHANNEL = "channel"  # an IMEX channel may be asked for as channel7, and all of them as channelall


def from_found(
    found: Found, answer: NvmlAnswer | None, options: GenerateOptions, platform: Platform, link_lists: Links = ()
) -> Generated:
    """As `nvoci.generate.specs.from_found`."""
    options = checked(options)
    mode = platform.kind if options.mode == AUTO else options.mode
    if mode == NVML and answer is None:
        hints = [each.hint for each in found.problems if each.hint]
        raise HookError(f"{STAGE}: NVML of {found.driver.root} gave no answer", hints[0] if hints else "")
    parts = modes.parts(mode, found, options, link_lists)
    hooks = Hooks(options, (NO_NODE_CHANGES,) if mode == MANAGEMENT else ())
    told = [] if mode in WITHOUT_NVML else [each.line() for each in grave(found, answer)]
    specs = []
    for suffix, entries in _splits(parts.entries):
        spec = _spec(found, replace(parts, entries=tuple(entries)), hooks, options, mode, suffix)
        try:
            spec, left_out = _of_version(spec, options.max_cdi_version)
        except SpecError as e:
            if not suffix:
                raise
            told.append(f"the specification for {spec.kind} is left out: {e.why}")
            continue
        told += [f"left out of {spec.kind}: {each}" for each in _grouped(left_out)]
        told += consumers.warnings(spec)
        validate.validate(spec)
        specs.append(Named(suffix, spec))
    warnings = dict.fromkeys([*told, *parts.warnings, *hooks.warnings])
    return Generated(tuple(specs), tuple(warnings), mode)


def _splits(entries: Sequence[Entry]) -> list[tuple[str, list[Entry]]]:
    """All of them, and where it is known of any, those whose memory is coherent and those whose is not."""
    parts = [(COHERENT_SUFFIX, True), (NONCOHERENT_SUFFIX, False)]
    split = [(suffix, [each for each in entries if each.coherent is value]) for suffix, value in parts]
    return [("", list(entries)), *[(suffix, some) for suffix, some in split if some]]


def _spec(found: Found, parts: Parts, hooks: Hooks, options: GenerateOptions, mode: str, suffix: str) -> Spec:
    gids = not options.has(NO_GIDS)
    merged = options.hooks_form == MERGED
    calls = [call for entry in parts.entries for call in entry.share.calls]
    common = hooks.together([*parts.common.calls, *calls]) if merged else hooks.separate(parts.common.calls)
    known: dict[str, Device] = {}
    for entry in parts.entries:
        own = [] if merged else hooks.separate(map(unconditional, entry.share.calls))
        changes = edits(entry.share, own, gids)
        for name in entry.names:
            known.setdefault(name, Device(name, changes))
    spec = Spec("", options.kind(mode) + suffix, tuple(known.values()), edits(parts.common, common, gids))
    spec = simplify.simplified(spec)
    if not options.no_all_device and NONE not in options.device_ids:
        spec = simplify.simplified(simplify.with_all(spec, ALL))
    if options.annotate and merged:
        nodes = [node for share in (parts.common, *[e.share for e in parts.entries]) for node in share.nodes]
        spec = replace(spec, annotations=freshness.made_for(found, nodes, _asked_for(options, mode)))
    return simplify.in_order(spec)


def _asked_for(options: GenerateOptions, mode: str) -> Sequence[str]:
    """The devices, where they can be chosen: some parts of the machine are there whole or not at all."""
    if mode not in CHOOSABLE:
        return (ALL,)
    ids = [each.removeprefix(_CHANNEL) for each in options.device_ids]
    first = first_of_all_or_none(ids)
    return [first] if first else ids


def _of_version(spec: Spec, newest: str) -> tuple[Spec, tuple[str, ...]]:
    """In the least version that can say it, and what `newest` cannot say left out."""
    spec = replace(spec, cdi_version=version.minimum(spec))
    if not newest or version.parse(spec.cdi_version) <= version.parse(newest):
        return spec, ()
    return version.reduced(spec, newest)


def _grouped(left_out: Iterable[str]) -> list[str]:
    """One line for what was left out of many devices: every GPU has the same to lose, by each of its names."""
    groups: dict[tuple[str, str], list[str]] = {}
    for line in left_out:
        head, device, rest = line.partition("device `")
        name, _, tail = rest.partition("`")
        groups.setdefault((head, tail) if device else (line, ""), []).append(name)
    lines = []
    for (head, tail), names in groups.items():
        shown = ", ".join(names[:_MAX_TOLD]) + (", …" if len(names) > _MAX_TOLD else "")
        lines.append(f"{head}device {shown}{tail}" if names[0] else head)
    return lines
