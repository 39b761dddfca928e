"""`nvoci inventory …`: what container starts know of this node without asking NVML."""

from __future__ import annotations

import json
import os
import time
from errno import ENOENT, ENOTDIR
from typing import TYPE_CHECKING

import click

from nvoci.ctl import changes, node
from nvoci.discover import fingerprint, inventory
from nvoci.errors import HookError, errno_name, printable

if TYPE_CHECKING:
    from nvoci.discover.fingerprint import Fingerprint
    from nvoci.discover.inventory import Inventory
    from nvoci.discover.look import Place
    from nvoci.discover.model import Found

_DOES_NOT_HOLD = 1
_ATTEMPTS = 3
_REFRESH = "nvoci inventory refresh"
_ABSENT = (errno_name(ENOENT), errno_name(ENOTDIR))
_UNITS = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))

_path = click.option(
    "--path",
    metavar="FILE",
    type=node.HostPath(),
    default=inventory.PATH,
    show_default=True,
    help="Where the inventory lies.",
)
_json = click.option("--json", "as_json", is_flag=True, help="One JSON object instead of lines.")


@click.group("inventory")
def command() -> None:
    """What container starts know of this node.

    The first container start looks at the node and stores what it finds; later ones use that for as long as the node
    stays as it was. Nothing has to be done by hand.
    """


def _read(path: str) -> Inventory:
    """The inventory, whether it holds or not, proved to be whole. Raises HookError."""
    loaded = inventory.load(path)
    stage = f"read inventory {printable(path)}"
    if loaded.inventory is None:
        absent = loaded.reason in _ABSENT
        hint = "the first container start makes it, or `" if absent else "it is not used, and replaced when one is "
        raise HookError(f"{stage}: {loaded.reason}", hint + (f"{_REFRESH}`" if absent else "needed"))
    try:
        loaded.inventory.found  # noqa: B018  # it is built now, and may be malformed
    except ValueError as e:
        raise HookError(f"{stage}: malformed: {printable(e)}"[:400], "it is replaced when one is needed") from None
    return loaded.inventory


def _difference(kept: Inventory, place: Place) -> str:
    """Why it does not hold; "" if it does."""
    reason = inventory.check(kept, place.sources())
    made_for = kept.fingerprint.root.rpartition(" ")[0]
    if reason and made_for != place.root:
        return f"it was made for the driver root {printable(made_for)}, not {printable(place.root)}"
    return reason


# -- show -------------------------------------------------------------------------------------------------------------


@command.command("show")
@node.at_place
@_path
@_json
def show(*, place: Place, path: str, as_json: bool) -> None:
    """Show the inventory: its age, what it depends on, and what it holds.

    Exit status: 0, also if it does not hold any more; 1 if there is none that could be used.
    """
    kept = _read(path)
    reason = _difference(kept, place)
    made = kept.identity[1] / 1e9
    if as_json:
        document = {
            "path": printable(path),
            "made": _stamp(made),
            "age_seconds": round(time.time() - made, 3),
            "holds": not reason,
            "reason": reason,
            "fingerprint": kept.fingerprint.to_json(),
            "found": kept.found.to_json(),
        }
        click.echo(json.dumps(document, indent=2))
        return
    holds = f"no: {reason}" if reason else "yes"
    rows = [("inventory", path), ("made", f"{_stamp(made)}, {_age(time.time() - made)} ago"), ("holds", holds)]
    out = [*node.table([(key, printable(text)) for key, text in rows]), "", "depends on:"]
    out += [f"  {line}" for line in node.table(_mark(kept.fingerprint))]
    out += ["", "content:", *[f"  {line}" for line in changes.listing(kept.found)]]
    click.echo("\n".join(out))


def _stamp(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def _age(seconds: float) -> str:
    """`2 h 5 min`: the two largest units."""
    left = max(0, int(seconds))
    words: list[str] = []
    for size, unit in _UNITS:
        if left >= size or (unit == "s" and not words):
            words.append(f"{left // size} {unit}")
            left %= size
    return " ".join(words[:2])


def _mark(mark: Fingerprint) -> list[tuple[str, str]]:
    """The fingerprint: name and content of each part that has one."""
    rows = [
        ("boot", mark.boot_id),
        ("kernel module", mark.module),
        *[(f"GPU {name}", " | ".join(text.split("\n"))) for name, text in mark.gpus],
        ("MIG capabilities", ", ".join(mark.capabilities)),
        ("device numbers", ", ".join(mark.majors)),
        ("driver root", mark.root),
        ("dev root", mark.dev_root),
        ("ld.so.cache", mark.ldcache),
        *[("watched", f"{path}: {state}") for path, state in mark.watched],
        ("configuration", mark.configuration),
        ("version", mark.program),
    ]
    return [(printable(name), printable(text)) for name, text in rows if text]


# -- check ------------------------------------------------------------------------------------------------------------


@command.command("check")
@node.at_place
@_path
def check(*, place: Place, path: str) -> None:
    """Say whether a container start would use the inventory, or why not.

    Exit status: 0 it holds, 1 it does not, or there is none.
    """
    reason = _difference(_read(path), place)
    click.echo(f"{printable(path)}: " + (f"does not hold: {reason}" if reason else "holds"))
    click.get_current_context().exit(_DOES_NOT_HOLD if reason else 0)


# -- refresh ----------------------------------------------------------------------------------------------------------


@command.command("refresh")
@node.looks
@_path
def refresh(*, place: Place, phases: node.Phases, path: str) -> None:
    """Look at the node now, store what is found, and print what changed.

    Where there is no driver that works nothing is stored, and the exit status is 1. So it is where NVML gives no answer
    about a GPU, for instance a lost one: the inventory is removed, and container starts ask NVML until it answers.
    """
    old = inventory.load(path)
    before: Found | None = None
    try:
        before = old.inventory.found if old.inventory else None
    except ValueError as e:
        old.reason = f"malformed: {printable(e)}"[:200]
    made = _look(place, phases)
    _store(made, path)
    phases.done("store")
    phases.total()
    if before is None or old.inventory is None:
        known = "there was none" if old.reason in _ABSENT else f"the one before was of no use: {old.reason}"
        click.echo("\n".join([f"{printable(path)}: made; {known}", *changes.listing(made.found)]))
        return
    lines = changes.between(before, made.found)
    reason = fingerprint.difference(old.inventory.fingerprint, made.fingerprint)
    held = f"the one before did not hold: {reason}" if reason else "the one before held"
    told = "nothing changed" if not lines else f"{len(lines)} change" + ("s" if len(lines) > 1 else "")
    click.echo("\n".join([f"{printable(path)}: made anew; {held}; {told}", *lines]))


def _store(made: Inventory, path: str) -> None:
    """Raises HookError, also for what must not be stored."""
    silent = inventory.unanswered(made.found)
    try:
        if not silent:
            inventory.store(made, path)
            return
        inventory.forget(path)
    except HookError as e:
        raise HookError(e.message, "run it as root" if os.geteuid() else e.hint) from None
    hint = "container starts ask NVML until it answers"
    raise HookError(f"store inventory {printable(path)}: not stored: {silent}", hint)


def _look(place: Place, phases: node.Phases) -> Inventory:
    """What is found now, which belongs to a fingerprint only if that is the same before and after. Raises HookError."""
    sources = place.sources()
    before = fingerprint.take(sources)
    for _ in range(_ATTEMPTS):
        found = _found(place, phases)
        after = fingerprint.take(sources)
        changed = fingerprint.difference(before, after)
        if not changed:
            return inventory.Inventory(after, found)
        before = after
    raise HookError(f"look at the node: it kept changing: {changed}", "try again")


def _found(place: Place, phases: node.Phases) -> Found:
    from nvoci.discover.look import failure, look, warnings

    with look(place, phases.done) as seen:
        error = failure(seen)
        if error:
            raise error
        for problem in warnings(seen):
            node.warn(problem.line())
        return seen.found
