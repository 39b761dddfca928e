"""Inputs from other inputs: systematic ones (every cut, every integer at its limits), and random ones without end."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from random import Random

from fuzz.registry import Field, Target

_FORMAT = {1: "B", 2: "H", 4: "I", 8: "Q"}
_MAX_CUTS = 2048
_OPERATIONS = 4  # at most, on one input


def limits(size: int, length: int) -> list[int]:
    """Values of an integer of `size` bytes that parsers stumble over, given the length of the input."""
    bits = 8 * size
    powers = [1 << n for n in (7, 8, 15, 16, 20, 24, 31, 32, 40, 62, 63)]
    around = [v + d for v in (*powers, length, 1 << bits) for d in (-1, 0, 1)]
    found = [0, 1, 2, 3, 4, 0xFF, 0xFFFF, 0xFFFFFFFF, length // 2, *around]
    return sorted({value for value in found if 0 <= value < 1 << bits})


def read_field(data: bytes | bytearray, field: Field) -> int | None:
    """The integer there; None where the input ends before."""
    offset, size, order = field
    if offset < 0 or offset + size > len(data):
        return None
    value: int = struct.unpack_from(order + _FORMAT[size], data, offset)[0]
    return value


def write_field(data: bytearray, field: Field, value: int) -> None:
    """Put an integer there, cut to its size; nothing where the input ends before."""
    offset, size, order = field
    if offset >= 0 and offset + size <= len(data):
        struct.pack_into(order + _FORMAT[size], data, offset, value & (1 << 8 * size) - 1)


def systematic(target: Target, seed: bytes) -> Iterator[bytes]:
    """The seed cut at each byte (evenly, where there are more than 2,048), then each field at each of its limits."""
    step = max(1, len(seed) // _MAX_CUTS)
    for size in range(0, len(seed), step):
        yield seed[:size]
    for field in target.fields(seed):
        for value in limits(field[1], len(seed)):
            changed = bytearray(seed)
            write_field(changed, field, value)
            yield bytes(changed)


class Mutator:
    """Random inputs of one target, all from one source of numbers: the same seed gives the same inputs."""

    def __init__(self, target: Target, source: Random) -> None:
        self.target = target
        self.source = source
        self.operations = [self._flip, self._byte, self._cut, self._remove, self._duplicate, self._repeat, self._swap,
                           self._integer, self._splice, self._run]  # fmt: skip
        if target.tokens:
            self.operations += [self._token] * 4

    def mutant(self, data: bytes, other: bytes) -> bytes:
        """One input near `data`, perhaps with parts of `other`."""
        out = bytearray(data)
        fields = self.target.fields(data)
        operations = self.operations + [lambda d, o: self._field(d, fields)] * (8 if fields else 0)
        for _ in range(self.source.randint(1, _OPERATIONS)):
            self.source.choice(operations)(out, other)
        return bytes(out[: self.target.max_size])

    def _span(self, data: bytes | bytearray, longest: int = 256) -> tuple[int, int]:
        start = self.source.randrange(len(data) + 1)
        return start, min(len(data), start + self.source.randint(1, longest))

    def _flip(self, data: bytearray, other: bytes) -> None:
        if data:
            data[self.source.randrange(len(data))] ^= 1 << self.source.randrange(8)

    def _byte(self, data: bytearray, other: bytes) -> None:
        if data:
            at = self.source.randrange(len(data))
            data[at] = self.source.choice((0, 1, 0x7F, 0x80, 0xFF, self.source.randrange(256)))

    def _cut(self, data: bytearray, other: bytes) -> None:
        del data[self.source.randrange(len(data) + 1) :]

    def _remove(self, data: bytearray, other: bytes) -> None:
        start, end = self._span(data)
        del data[start:end]

    def _duplicate(self, data: bytearray, other: bytes) -> None:
        start, end = self._span(data)
        at = self.source.randrange(len(data) + 1)
        data[at:at] = data[start:end]

    def _repeat(self, data: bytearray, other: bytes) -> None:
        """One block very often: what is quadratic shows."""
        start, end = self._span(data, 32)
        room = max(0, self.target.max_size - len(data)) // max(1, end - start)
        data[start:start] = data[start:end] * self.source.randint(1, max(1, room))

    def _swap(self, data: bytearray, other: bytes) -> None:
        one, two = sorted((self._span(data, 64), self._span(data, 64)))
        if one[1] <= two[0]:
            data[:] = (
                data[: one[0]] + data[two[0] : two[1]] + data[one[1] : two[0]] + data[one[0] : one[1]] + data[two[1] :]
            )

    def _integer(self, data: bytearray, other: bytes) -> None:
        size = self.source.choice((1, 2, 4, 8))
        if len(data) >= size:
            field = (self.source.randrange(len(data) - size + 1), size, self.source.choice("<>"))
            write_field(data, field, self.source.choice(limits(size, len(data))))

    def _splice(self, data: bytearray, other: bytes) -> None:
        start, end = self._span(other, 1024)
        at = self.source.randrange(len(data) + 1)
        data[at : at + self.source.choice((0, end - start))] = other[start:end]

    def _run(self, data: bytearray, other: bytes) -> None:
        """One byte, long."""
        at = self.source.randrange(len(data) + 1)
        data[at:at] = bytes([self.source.randrange(256)]) * self.source.choice((1, 16, 255, 256, 4095, 4096, 4097))

    def _token(self, data: bytearray, other: bytes) -> None:
        at = self.source.randrange(len(data) + 1)
        data[at : at + self.source.choice((0, 0, 1, 8))] = self.source.choice(self.target.tokens)

    def _field(self, data: bytearray, fields: list[Field]) -> None:
        """An integer gets a limit, the value of another one, or one near its own."""
        field, other = self.source.choice(fields), self.source.choice(fields)
        own, theirs = read_field(data, field), read_field(data, other)
        near = (own or 0) + self.source.choice((-8, -4, -1, 1, 4, 8, 24, 4096))
        limit = self.source.choice(limits(field[1], len(data)))
        write_field(data, field, self.source.choice((limit, limit, theirs or 0, near)))
