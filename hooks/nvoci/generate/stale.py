"""What of a specification is not so any more on the node: its driver, its device nodes, its files.

GPUs are in `nvoci.generate.stalegpus`; what the hooks call is not looked at.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from errno import ENOENT, ENOTDIR
from stat import S_IMODE, S_ISBLK, S_ISCHR, S_ISFIFO
from typing import TYPE_CHECKING, Any

from nvoci.discover.node import type_name
from nvoci.errors import errno_name
from nvoci.generate import origin, stalegpus
from nvoci.generate.findings import MAX_TOLD, Finding, several
from nvoci.generate.now import NVML
from nvoci.jsonfile import path_from_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from nvoci.cdi.model import ContainerEdits, DeviceNode, Mount, Spec
    from nvoci.generate.now import Now

_ABSENT = (ENOENT, ENOTDIR)
_BINDS = ("bind", "rbind")
_TYPES = {"b": S_ISBLK, "p": S_ISFIFO, "c": S_ISCHR, "u": S_ISCHR}


def findings(spec: Spec, now: Now) -> list[Finding]:
    """All of them, but for what the hooks call. Device nodes and mounted files are looked at on the host."""
    renumbered = majors(spec, now)
    return [
        *version(spec, now),
        *[each.finding for each in renumbered],
        *nodes(spec, {(each.then, each.number) for each in renumbered}),
        *stalegpus.gpus(spec, now),
        *stalegpus.groups(spec, now),
        *mounts(spec),
    ]


def not_compared(spec: Spec, now: Now) -> list[str]:
    """What could not be compared, and why; one line each."""
    found = []
    if now.silence and now.parts is None and stalegpus.has_gpus(spec):
        found.append(f"which GPUs and MIG devices there are: {now.silence}")
    if now.kind == NVML and origin.has_driver(spec) and not origin.driver_version(spec)[0]:
        found.append("the driver's version: nothing in the specification tells which it was made for")
    return found


# -- the driver -------------------------------------------------------------------------------------------------------


def version(spec: Spec, now: Now) -> list[Finding]:
    """Of the driver, where the specification has anything of one version: IMEX channels alone have not."""
    told, where = origin.driver_version(spec)
    if not told or not _depends(spec, where):
        return []
    what = "driver version"
    if now.kind == NVML and not now.version:
        hint = "install the driver, or name its root with --driver-root"
        return [Finding(where, what, f"{told} in the specification, and there is no driver in {now.root}", hint, False)]
    found = []
    if now.version and told != now.version:
        found.append(Finding(where, what, f"{told} in the specification, {now.version} on this node"))
    if now.kind == NVML and not now.module:
        found.append(Finding(where, what, "the kernel module is not loaded", "load it: modprobe nvidia", False))
    elif now.mismatch[0]:
        found.append(Finding(where, what, *now.mismatch, False))
    return found


def _depends(spec: Spec, where: str) -> bool:
    """Whether any driver but the one that it was made for is the wrong one. where: the place that tells which."""
    return origin.has_driver(spec) or not where.startswith("annotations")


@dataclass(frozen=True)
class Renumbered:
    """A driver whose major number is not `then` any more but `number`; -1 where it has none."""

    finding: Finding
    then: int
    number: int


def majors(spec: Spec, now: Now) -> list[Renumbered]:
    """Of drivers whose nodes the specification has."""
    if now.kind == NVML and not now.module and version(spec, now):
        return []  # which is told already
    found = []
    for name, (then, where) in origin.majors(spec).items():
        what, number = f"driver {name}", now.major(name)
        if number is None:
            hint = "load its kernel module: modprobe " + ("nvidia" if name.startswith("nvidia-caps") else name)
            found.append(Renumbered(Finding(where, what, "it is not in /proc/devices", hint, False), then, -1))
        elif number != then:
            why = f"major number {then} in the specification, {number} on this node"
            found.append(Renumbered(Finding(where, what, why), then, number))
    return found


# -- device nodes and files -------------------------------------------------------------------------------------------


class _Place:
    """Where something stands first, and the devices that have it; none for any."""

    def __init__(self, where: str) -> None:
        self.where = where
        self._names: list[str] = []

    def also(self, names: Iterable[str]) -> None:
        """Of these devices too."""
        self._names += names

    def of(self) -> str:
        """For people."""
        return f" of {several('device', self._names)}" if self._names else ""


def nodes(spec: Spec, renumbered: Iterable[tuple[int, int]] = ()) -> list[Finding]:
    """Device nodes that are not there, or are others. renumbered: (then, now) of drivers that are told already."""
    told = set(renumbered)

    def each(edits: ContainerEdits) -> Iterable[tuple[str, DeviceNode]]:
        return [(node.host_path or node.path, node) for node in edits.device_nodes]

    def look(path: str, node: DeviceNode) -> str:
        return _difference(os.lstat(path), node, told)

    return _looked_at(spec, "device node", "deviceNodes", each, look)


def mounts(spec: Spec) -> list[Finding]:
    """Files that are not there."""

    def each(edits: ContainerEdits) -> Iterable[tuple[str, Mount | None]]:
        return [(mount.host_path, None if _is_of_host(mount) else mount) for mount in edits.mounts]

    def look(path: str, other: Mount | None) -> str:
        if other is None:
            os.stat(path)
        return ""

    return _looked_at(spec, "file", "mounts", each, look)


def _looked_at(
    spec: Spec, what: str, member: str, each: Callable[[ContainerEdits], Iterable[tuple[str, object]]],
    look: Callable[[str, Any], str],
) -> list[Finding]:  # fmt: skip
    """Look at each file once. each: of some edits, in the order of their `member`: (host path, what `look` needs);
    look: how it differs, "" if it does not; raises OSError."""
    seen: dict[tuple[str, object], _Place] = {}
    for where, names, edits in origin.places(spec):
        for i, key in enumerate(each(edits)):
            seen.setdefault(key, _Place(f"{where}.{member}[{i}]")).also(names)
    gone, found = [], []
    for (path, more), place in seen.items():
        try:
            why = look(path_from_json(path), more)
        except OSError as e:
            if e.errno in _ABSENT:
                gone.append((path, place))
                continue
            why = errno_name(e.errno or 0)
        except ValueError:
            why = "not a path"
        if why:
            found.append(Finding(place.where, f"{what} {path}{place.of()}", why))
    return [*_gone(what, gone), *found]


def _gone(what: str, gone: list[tuple[str, _Place]]) -> list[Finding]:
    """A line each for a few, one line for many: another driver leaves a hundred behind."""
    if len(gone) <= MAX_TOLD:
        return [Finding(place.where, f"{what} {path}{place.of()}", "not there") for path, place in gone]
    return [Finding(gone[0][1].where, f"{len(gone)} {what}s, {', '.join([p for p, _ in gone[:MAX_TOLD]])}, …",
                    "not there")]  # fmt: skip


def _is_of_host(mount: Mount) -> bool:
    """Whether its source is a file: one of another type than a bind mount has none."""
    return mount.type in ("", *_BINDS) or any(each in _BINDS for each in mount.options)


def _difference(st: os.stat_result, node: DeviceNode, renumbered: set[tuple[int, int]]) -> str:
    """Between the host's node and the one of the specification; "" for none."""
    wanted = [_TYPES[node.type]] if node.type in _TYPES else [S_ISCHR, S_ISBLK]
    if not any(test(st.st_mode) for test in wanted):
        return f"it is {type_name(st.st_mode)}"
    number, then = (os.major(st.st_rdev), os.minor(st.st_rdev)), (node.major, node.minor)
    if node.major and number != then and not (number[1] == then[1] and (then[0], number[0]) in renumbered):
        return f"{then[0]}:{then[1]} in the specification, {number[0]}:{number[1]} on this node"
    if node.file_mode is None:
        return ""
    access, was = (S_IMODE(st.st_mode) & 0o777, st.st_gid), (node.file_mode & 0o777, node.gid or 0)
    words = "mode {:04o} and group {} in the specification, {:04o} and {} on this node"
    return words.format(*was, *access) if access != was else ""
