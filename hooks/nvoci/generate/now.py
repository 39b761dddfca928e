"""The node as it is now, in the words that a specification is compared in. One look, with NVML or without.

Without NVML the kernel module still tells, in procfs, its version, its device numbers and the minor number of each GPU.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from nvoci.discover import fingerprint
from nvoci.discover import look as looking
from nvoci.discover.devnode import NVIDIA
from nvoci.discover.driver import MATCH_STAGE
from nvoci.generate import arrival, devices
from nvoci.generate.options import STRATEGIES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from nvoci.discover.fingerprint import Fingerprint
    from nvoci.discover.look import Place
    from nvoci.discover.model import Found
    from nvoci.generate.devices import Chosen

NVML, CSV = "nvml", "csv"  # kinds of node
NOT_ASKED = "NVML was not asked"
NOT_LOADED = "the kernel module is not loaded"
GROUPS = ("imex", "nvswitch", "gds", "mofed", "gdrcopy")
"""Kinds of device nodes of which a specification has all there are, if it has any."""
_MINOR = "Device Minor:"


@dataclass(frozen=True)
class Part:
    """A GPU or a MIG device that containers can have. words: for people. names: all that a specification may call it.
    needed: host paths of the nodes that nothing works without; nodes: with those, all of its own."""

    words: str
    names: tuple[str, ...]
    needed: frozenset[str] = frozenset()
    nodes: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Now:
    """kind: of node, nvml, csv or wsl. root, dev_root: where was looked. version: of the driver's files, "" without
    any; module: of the kernel module, "" where it is not loaded. mismatch: how the two do not fit together, with what
    to do. majors: by name in /proc/devices, of drivers of ours. minors: /dev/nvidiaN -> whether MIG mode is on, of the
    GPUs that the module has. groups: host paths of nodes, by kind.

    parts: None where NVML gave no answer; `silence` says why it did not, "" where there is none to ask. unanswered:
    GPUs that NVML gave none about, a line each.
    """

    kind: str = NVML
    root: str = "/"
    dev_root: str = "/"
    version: str = ""
    module: str = ""
    mismatch: tuple[str, str] = ("", "")
    majors: Mapping[str, int] | None = None
    minors: Mapping[str, bool] | None = None
    groups: Mapping[str, tuple[str, ...]] | None = None
    parts: tuple[Part, ...] | None = None
    silence: str = ""
    unanswered: tuple[str, ...] = ()

    def major(self, name: str) -> int | None:
        """Of a driver; `nvidia` has been called otherwise."""
        names = NVIDIA if name == NVIDIA[0] else (name,)
        return next((number for each in names if (number := (self.majors or {}).get(each)) is not None), None)


def _silent(phase: str) -> None:
    pass


def at(place: Place, ask: bool = True, done: Callable[[str], None] = _silent) -> Now:
    """Look at a node. ask: NVML too. done: told the name of each phase at its end. Raises HookError for what keeps us
    from looking at all."""
    mark = fingerprint.take(place.sources())
    done("procfs")
    is_loaded = mark.module != "" or arrival.is_other(place)
    if not ask or not is_loaded:  # NVML would say no more than that, and may take its time
        seen = looking.look_at_files(place, done)
        return _now(mark, seen.found, seen.platform.kind, None, NOT_LOADED if ask else NOT_ASKED)
    with looking.look(place, done) as look:
        kind = look.discovery.platform.kind
        if look.answer is None:
            refusal = look.refusal or (looking.failure(look) if kind == NVML else None)
            return _now(mark, look.found, kind, None, refusal.line() if refusal else "")
        found = _now(mark, look.found, kind, _parts(look.found, kind), "")
        return replace(found, unanswered=tuple([each.line() for each in look.answer.problems]))


def _now(mark: Fingerprint, found: Found, kind: str, parts: tuple[Part, ...] | None, silence: str) -> Now:
    driver = found.driver
    bad = [each for each in found.problems if each.stage == MATCH_STAGE]
    return Now(
        kind=kind,
        root=driver.root,
        dev_root=driver.dev_root,
        version=driver.version,
        module=driver.module_version,
        mismatch=(f"{bad[0].subject}: {bad[0].error}", bad[0].hint) if bad else ("", ""),
        majors=_majors(mark.majors),
        minors=_minors(mark, driver.dev_root),
        groups={kind: tuple([n.host_path for n in found.device_nodes if n.kind == kind]) for kind in GROUPS},
        parts=parts,
        silence=silence,
    )


def _majors(lines: Iterable[str]) -> dict[str, int]:
    """Of lines `195 nvidia`; the first of a name counts."""
    found: dict[str, int] = {}
    for line in lines:
        number, _, name = line.partition(" ")
        if number.isascii() and number.isdigit():
            found.setdefault(name, int(number))
    return found


def _minors(mark: Fingerprint, dev_root: str) -> dict[str, bool]:
    found = {}
    for _, text in mark.gpus:
        for line in text.split("\n"):
            minor = line[len(_MINOR) :].strip()
            if line.startswith(_MINOR) and minor.isascii() and minor.isdigit():
                found[f"{dev_root.rstrip('/')}/dev/nvidia{minor}"] = f"gpu{minor}/mig" in mark.capabilities
    return found


def _parts(found: Found, kind: str) -> tuple[Part, ...] | None:
    """On a Tegra system devices are told by their names alone; WSL has one device for all GPUs."""
    if kind == CSV:
        return tuple([Part(each.words, devices.names(STRATEGIES, each)) for each in devices.everything(found)])
    return tuple([_part(found, each) for each in devices.everything(found)]) if kind == NVML else None


def _part(found: Found, chosen: Chosen) -> Part:
    uuid, mig = chosen.gpu.uuid, chosen.mig
    own = {uuid: ["gpu", *(["drm"] if mig is None or mig.graphics else [])], **({mig.uuid: ["mig"]} if mig else {})}
    nodes = [each for each in found.device_nodes if each.kind in own.get(each.owner, ())]
    return Part(
        chosen.words,
        devices.names(STRATEGIES, chosen),
        frozenset([each.host_path for each in nodes if each.kind != "drm"]),
        frozenset([each.host_path for each in nodes]),
    )
