"""The order of ld.so.cache, which ld.so searches by halves: glibc's _dl_cache_libcmp(), and ldconfig's compare().

Sonames descend, with runs of digits compared as numbers; then flags descend; then files below glibc-hwcaps come first,
by the name of their subdirectory; then the bits of legacy subdirectories descend; then directories come as configured.
"""

from __future__ import annotations

from nvoci.linux import abi

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from nvoci.ldcache.cache import Entry

    Key = tuple[tuple[int, ...], int, bool, bytes, int, int]

_NUMBER = 1 << 40  # above every byte: a digit is greater than any other character
_SIGNED_CHAR = abi.MACHINE == "x86_64"
# Digits above all other bytes: enough to tell most neighbours apart without looking at each character.
_DIGITS_LAST = bytes(range(0x30)) + bytes(range(0xF6, 0x100)) + bytes(range(0x3A, 0xF6)) + bytes(range(0x30, 0x3A))


def libcmp_key(name: bytes) -> tuple[int, ...]:
    """What sorts as _dl_cache_libcmp() does, ascending. Numbers wrap at 32 bits, as its `int` does."""
    out: list[int] = []
    number = -1
    for c in name:
        if 0x30 <= c <= 0x39:
            number = c - 0x30 if number < 0 else (number * 10 + c - 0x30) & 0xFFFFFFFF
            continue
        if number >= 0:
            out.append(_number(number))
            number = -1
        out.append(c - 256 if _SIGNED_CHAR and c >= 0x80 else c)
    if number >= 0:
        out.append(_number(number))
    out.append(0)
    return tuple(out)


def _number(value: int) -> int:
    return _NUMBER + (value - (1 << 32) if value >= 1 << 31 else value)


class Order:
    """Sorts entries; `rank` gives an entry's place among directories, 0 for the first."""

    __slots__ = ("_names", "_rank")

    def __init__(self, rank: Callable[[Entry], int]) -> None:
        self._rank = rank
        self._names: dict[bytes, tuple[int, ...]] = {}

    def key(self, e: Entry) -> Key:
        """What sorts as the cache is sorted."""
        return (self._name(e), *self._rest(e))

    def _name(self, e: Entry) -> tuple[int, ...]:
        name = self._names.get(e.unsafe_soname)
        if name is None:
            name = self._names[e.unsafe_soname] = tuple(-x for x in libcmp_key(e.unsafe_soname))
        return name

    def _rest(self, e: Entry) -> tuple[int, bool, bytes, int, int]:
        return -e.flags, e.hwcaps_name is None, e.hwcaps_name or b"", -e.hwcap, self._rank(e)

    def merge(self, kept: list[Entry], new: Iterable[Entry]) -> list[Entry]:
        """All of them in order. `kept` is in the order of an existing cache, which is nearly always the right one:
        then only the new ones are compared, by halves."""
        if not self._is_ordered(kept):
            return sorted((*kept, *new), key=self.key)
        out = kept[:]
        for entry in new:
            out.insert(self._place(out, entry), entry)
        return out

    def _place(self, entries: list[Entry], new: Entry) -> int:
        """Where it belongs among ordered entries: behind its equals."""
        name, rest = self._name(new), self._rest(new)
        low, high = 0, len(entries)
        while low < high:
            middle = (low + high) // 2
            other = self._name(entries[middle])
            if other < name or (other == name and self._rest(entries[middle]) <= rest):
                low = middle + 1
            else:
                high = middle
        return low

    def _is_ordered(self, entries: list[Entry]) -> bool:
        names = [e.unsafe_soname.translate(_DIGITS_LAST) for e in entries]
        for i in range(1, len(entries)):
            if names[i - 1] > names[i]:
                continue  # or they differ in the length of a number, which ldconfig would not have written so
            before, after = entries[i - 1], entries[i]
            if before.unsafe_soname == after.unsafe_soname:
                if self._rest(before) > self._rest(after):
                    return False
            elif self.key(before) > self.key(after):
                return False
        return True
