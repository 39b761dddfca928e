"""`nvoci why NAME`: where something was looked for on this node, what was found, and why it is not used."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import click

from nvoci.ctl import node
from nvoci.errors import printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nvoci.discover.look import Look, Place
    from nvoci.discover.model import DeviceNode, Mount
    from nvoci.discover.search import Lookup

    Given = Sequence[DeviceNode | Mount]

_NOT_USED = 1
_DEVICE = "device"  # the kind of a lookup
_BECAUSE = " ("  # what stands behind a place, in its `where`


@click.command("why")
@click.argument("name", metavar="NAME")
@node.looks
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of lines.")
def command(name: str, *, place: Place, phases: node.Phases, as_json: bool) -> None:
    """Say why containers get a library, program, device node or file, or not.

    NAME is a library (`libcuda`, `libcuda.so.1`), the name of a program or configuration file, a device (`nvidia0`), a
    path or the end of one, or a pattern of these. Told are the places where it was looked for, in order, and what came
    of each. For a full path the question is whether that very file is used.

    Exit status: 0 if it was found and is used, 1 if not.
    """
    from nvoci.discover.look import failure, look
    from nvoci.discover.why import why

    with look(place, phases.done) as seen:
        lookups = why(seen.node, seen.discovery, name, place.options)
        own = given(seen, name)
        used = bool(own) or is_used(seen, name, lookups)
        phases.done("why")
        phases.total()
        if as_json:
            click.echo(json.dumps(document(name, used, lookups, own), indent=2))
        else:
            click.echo("\n".join(lines(name, used, lookups, own)))
        error = failure(seen)
    if error and not used:
        node.warn(error.line())
    click.get_current_context().exit(0 if used else _NOT_USED)


# -- judging ----------------------------------------------------------------------------------------------------------


def _same(seen: Look, name: str, *, follow: bool) -> set[str]:
    """A full path, of the host or in one of the roots, as paths of the host. follow: also the file that it leads to,
    but not for a device node, which is never taken through a link."""
    flags = 0 if follow else os.O_NOFOLLOW
    same = {name}
    for root in (seen.node.root, seen.node.dev):
        prefix = root.host("")
        path = name[len(prefix) :] if name.startswith(prefix + "/") else name
        same.add(root.host(path))
        try:
            same.add(root.host(root.resolve(path, flags).resolved))
        except OSError:
            pass
    return same


def is_used(seen: Look, name: str, lookups: Sequence[Lookup]) -> bool:
    """Whether anything came of looking for it; of a full path or a library's full name whether it is that file."""
    from nvoci.discover.libnames import version_of

    if name.startswith("/"):
        same = {device: _same(seen, name, follow=not device) for device in (False, True)}
        return any(
            where.partition(_BECAUSE)[0] in same[each.kind == _DEVICE] for each in lookups for where in each.used
        )
    used = [where.partition(_BECAUSE)[0] for each in lookups for where in each.used]
    return bool(used) and (not version_of(name) or any(where.endswith("/" + name) for where in used))


def given(seen: Look, name: str) -> Given:
    """What containers get under that name."""
    from nvoci.discover.libnames import stem_of
    from nvoci.linux.pattern import match
    from nvoci.linux.rootfs import fsencode

    nodes, mounts = seen.found.device_nodes, seen.found.mounts
    if name.startswith("/"):
        literal, led_to = _same(seen, name, follow=False), _same(seen, name, follow=True)
        return [*[n for n in nodes if n.host_path in literal], *[m for m in mounts if m.host_path in led_to]]
    every: list[DeviceNode | Mount] = [*nodes, *mounts]
    pattern, found = fsencode(name), []
    for each in every:
        path = each.host_path
        file = path.rpartition("/")[2]
        words = (stem_of(file), *[link.rpartition("/")[2] for _, link in each.links], getattr(each, "soname", ""))
        if name and (name in words or path.endswith("/" + name) or match(pattern, fsencode(file))):
            found.append(each)
    return found


# -- telling ----------------------------------------------------------------------------------------------------------


def document(name: str, used: bool, lookups: Sequence[Lookup], own: Given) -> dict[str, Any]:
    """What is printed as JSON. containers_get: as in the document of `nvoci info`."""
    return {
        "name": printable(name),
        "used": used,
        "lookups": [
            {
                "kind": each.kind,
                "name": printable(each.name),
                "found": bool(each.used),
                "note": printable(each.note),
                "steps": [{"where": printable(s.where), "outcome": printable(s.outcome)} for s in each.steps],
            }
            for each in lookups
        ],
        "containers_get": [each.to_json() for each in own],
    }


def lines(name: str, used: bool, lookups: Sequence[Lookup], own: Given) -> list[str]:
    """One fact a line, without control characters; the last is the answer."""
    out = [line for each in lookups for line in each.lines()]
    if not lookups:
        out.append("nothing of that name was looked for")
    for each in own:
        words = [f"containers get {each.kind} {each.container_path}"]
        words += [f"from {each.host_path}"] if each.host_path != each.container_path else []
        words += [f"for {' or '.join(each.capabilities)}"] if each.capabilities else []
        owner = getattr(each, "owner", "")
        words += [f"with {owner}"] if owner else []
        out.append(printable(", ".join(words)))
    return [*out, f"{printable(name)}: {'used' if used else 'not used'}"]
