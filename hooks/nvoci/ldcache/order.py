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

    Key = tuple[bytes, int, bool, bytes, int, int]

_NUMBER = b"\xff"  # above every other character; the place of the digits among those is free
_SIGNED_CHAR = 0x80 if abi.MACHINE == "x86_64" else 0
_CHARACTERS = bytes(
    (c ^ _SIGNED_CHAR) - (10 if c > 0x39 and (c < 0x80 or not _SIGNED_CHAR) else 0) for c in range(256)
)
_INVERSE = bytes(range(255, -1, -1))
# Digits above all other bytes: enough to tell most neighbours apart without looking at each character.
_FIRST_DIGIT = 0xF6
_DIGITS_LAST = bytes(range(0x30)) + bytes(range(0xF6, 0x100)) + bytes(range(0x3A, 0xF6)) + bytes(range(0x30, 0x3A))


def libcmp_key(name: bytes) -> bytes:
    """What sorts as _dl_cache_libcmp() does, ascending. Numbers wrap at 32 bits, as its `int` does."""
    out = bytearray()
    number = -1
    for c in name:
        if 0x30 <= c <= 0x39:
            number = c - 0x30 if number < 0 else (number * 10 + c - 0x30) & 0xFFFFFFFF
            continue
        if number >= 0:
            out += _NUMBER + ((number + (1 << 31)) & 0xFFFFFFFF).to_bytes(4, "big")
            number = -1
        out.append(_CHARACTERS[c])
    if number >= 0:
        out += _NUMBER + ((number + (1 << 31)) & 0xFFFFFFFF).to_bytes(4, "big")
    out.append(_CHARACTERS[0])
    return bytes(out)


class Order:
    """Sorts entries; `rank` gives an entry's place among directories, 0 for the first."""

    __slots__ = ("_names", "_rank")

    def __init__(self, rank: Callable[[Entry], int]) -> None:
        self._rank = rank
        self._names: dict[bytes, bytes] = {}

    def key(self, e: Entry) -> Key:
        """What sorts as the cache is sorted."""
        return (self._name(e), *self._rest(e))

    def _name(self, e: Entry) -> bytes:
        name = self._names.get(e.unsafe_soname)
        if name is None:
            name = self._names[e.unsafe_soname] = libcmp_key(e.unsafe_soname).translate(_INVERSE)
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
            if names[i - 1] > names[i] and not _differ_in_a_number(names[i - 1], names[i]):
                continue
            before, after = entries[i - 1], entries[i]
            if before.unsafe_soname == after.unsafe_soname:
                if self._rest(before) > self._rest(after):
                    return False
            elif self.key(before) > self.key(after):
                return False
        return True


def _differ_in_a_number(a: bytes, b: bytes) -> bool:
    """Whether two translated names first differ at a digit of both: then the length of the numbers may decide."""
    size = max(len(a), len(b))
    differing = int.from_bytes(a.ljust(size, b"\0"), "big") ^ int.from_bytes(b.ljust(size, b"\0"), "big")
    at = size - (differing.bit_length() + 7) // 8
    return at < len(b) and a[at] >= _FIRST_DIGIT and b[at] >= _FIRST_DIGIT
