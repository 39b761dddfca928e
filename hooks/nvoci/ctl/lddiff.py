"""Two caches compared: the one that a root has, and the one that it should have."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nvoci.ctl import ldtext
from nvoci.errors import printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nvoci.ldcache.cache import Entry
    from nvoci.ldcache.compute import Link, Result

    Key = tuple[bytes, int, int, "bytes | None"]
    Whole = tuple[Key, bytes]


class Difference:
    """missing, extra: entries only in the computed one, only in the cache. moved: (as cached, as computed). disordered:
    neighbours in the cache of which the second has to come first. links: soname links that are not there."""

    def __init__(self) -> None:
        self.extra: list[Entry] = []
        self.missing: list[Entry] = []
        self.moved: list[tuple[Entry, Entry]] = []
        self.disordered: list[tuple[Entry, Entry]] = []
        self.links: list[Link] = []

    def __bool__(self) -> bool:
        return bool(self.extra or self.missing or self.moved or self.disordered or self.links)

    def lines(self) -> list[str]:
        """One for each: `-` only in the cache, `+` only computed, `~` another path, `!` order, `>` a soname link."""
        return [
            *("- " + ldtext.line(e) for e in self.extra),
            *("+ " + ldtext.line(e) for e in self.missing),
            *(f"~ {ldtext.line(a)}, computed: {printable(b.unsafe_path)}" for a, b in self.moved),
            *(f"! {ldtext.line(a)} stands before {ldtext.line(b)}" for a, b in self.disordered),
            *(f"> {printable(link.unsafe_path)} -> {printable(link.unsafe_target)}" for link in self.links),
        ]

    def document(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "only_in_cache": [ldtext.document(e) for e in self.extra],
            "only_computed": [ldtext.document(e) for e in self.missing],
            "other_path": [{"cache": ldtext.document(a), "computed": ldtext.document(b)} for a, b in self.moved],
            "order": [{"first": ldtext.document(a), "second": ldtext.document(b)} for a, b in self.disordered],
            "links": [
                {"path": ldtext.text(link.unsafe_path), "target": ldtext.text(link.unsafe_target)}
                for link in self.links
            ],
        }


def compare(cached: Sequence[Entry], computed: Result) -> Difference:
    """Entries are the same if soname, flags, hwcaps and path are; osversion is nothing since glibc 2.36."""
    found = Difference()
    before: dict[Whole, Entry] = {}
    for entry in cached:
        if before.setdefault(_whole(entry), entry) is not entry:
            found.extra.append(entry)  # listed twice
    found.links = computed.links
    after = {_whole(e): e for e in computed.entries}
    extra, missing = _only(before, after), _only(after, before)
    for key, entries in extra.items():
        others = missing.get(key, [])
        pairs = min(len(entries), len(others))
        found.moved += zip(entries[:pairs], others[:pairs])
        found.extra += entries[pairs:]
        del others[:pairs]
    found.missing = [e for entries in missing.values() for e in entries]
    place = {whole: i for i, whole in enumerate(after)}
    common = [whole for whole in before if whole in after]
    found.disordered = [(before[a], before[b]) for a, b in zip(common, common[1:]) if place[a] > place[b]]
    return found


def _whole(e: Entry) -> Whole:
    return (e.unsafe_soname, e.flags, e.hwcap, e.hwcaps_name), e.unsafe_path


def _only(here: dict[Whole, Entry], there: dict[Whole, Entry]) -> dict[Key, list[Entry]]:
    """The entries that are not in the other one, by all but their path."""
    found: dict[Key, list[Entry]] = {}
    for whole, entry in here.items():
        if whole not in there:
            found.setdefault(whole[0], []).append(entry)
    return found
