"""eBPF for tests of device programs: an assembler with labels, an interpreter, and what constant blinding does.

The interpreter runs what a cgroup device program may consist of without helpers and maps: arithmetic, jumps, loads from
the context and from the stack. Semantics: Documentation/bpf/standardization/instruction-set.rst of the kernel.
"""

from __future__ import annotations

import operator
import random
import struct
from collections.abc import Callable, Sequence

LDX_W, LDX_H, LDX_B = 0x61, 0x69, 0x71
STX_DW, ST_DW, LDX_DW = 0x7B, 0x7A, 0x79
MOV64_K, MOV64_X, MOV32_K, MOV32_X = 0xB7, 0xBF, 0xB4, 0xBC
AND32_K, RSH32_K = 0x54, 0x74
JA, JEQ_K, JNE_K, JNE_X, JSGT_K, JNE32_K, EXIT, CALL = 0x05, 0x15, 0x55, 0x5D, 0x65, 0x56, 0x95, 0x85
LD_IMM64 = 0x18
AX = 11

# (code, dst, src, off or label, imm); a string alone is a label
Line = tuple[int, int, int, "int | str", int]

_M64, _M32 = (1 << 64) - 1, (1 << 32) - 1
_STACK, _CONTEXT = 0x1000_0000, 0x2000_0000
_STACK_SIZE = 512
_ALU: dict[int, Callable[[int, int, int], int]] = {
    0x00: lambda a, b, w: a + b,
    0x10: lambda a, b, w: a - b,
    0x20: lambda a, b, w: a * b,
    0x30: lambda a, b, w: a // b if b else 0,
    0x40: lambda a, b, w: a | b,
    0x50: lambda a, b, w: a & b,
    0x60: lambda a, b, w: a << (b & (w - 1)),
    0x70: lambda a, b, w: a >> (b & (w - 1)),
    0x80: lambda a, b, w: -a,
    0x90: lambda a, b, w: a % b if b else a,
    0xA0: lambda a, b, w: a ^ b,
    0xB0: lambda a, b, w: b,
    0xC0: lambda a, b, w: _signed(a, w) >> (b & (w - 1)),
}
_UNSIGNED: dict[int, Callable[[int, int], bool]] = {
    0x10: operator.eq, 0x50: operator.ne, 0x20: operator.gt, 0x30: operator.ge, 0xA0: operator.lt, 0xB0: operator.le,
    0x40: lambda a, b: bool(a & b),
}  # fmt: skip
_SIGNED: dict[int, Callable[[int, int], bool]] = {
    0x60: operator.gt, 0x70: operator.ge, 0xC0: operator.lt, 0xD0: operator.le,
}  # fmt: skip


def assemble(lines: Sequence[Line | str]) -> bytes:
    """struct bpf_insn for each line; an offset that is a string is the distance to that label."""
    labels: dict[str, int] = {}
    kept: list[Line] = []
    for line in lines:
        if isinstance(line, str):
            labels[line] = len(kept)
        else:
            kept.append(line)
    out = b""
    for i, (code, dst, src, off, imm) in enumerate(kept):
        distance = labels[off] - i - 1 if isinstance(off, str) else off
        out += struct.pack("=BBhi", code, dst | src << 4, distance, imm)
    return out


def disassemble(code: bytes) -> list[tuple[int, int, int, int, int]]:
    """(code, dst, src, off, imm) of each instruction."""
    return [(c, r & 15, r >> 4, off, imm) for c, r, off, imm in struct.iter_unpack("=BBhi", code)]


def _signed(value: int, width: int) -> int:
    value &= (1 << width) - 1
    return value - (1 << width) if value >> (width - 1) else value


class Machine:
    """One run of a program on one access. Raises RuntimeError for what no verifier would let pass."""

    def __init__(self, code: bytes, access_type: int, major: int, minor: int) -> None:
        self.code = disassemble(code)
        self.context = struct.pack("=III", access_type, major, minor)
        self.stack = bytearray(_STACK_SIZE)
        self.registers: list[int | None] = [None] * 12
        self.registers[1] = _CONTEXT
        self.registers[10] = _STACK + _STACK_SIZE

    def run(self, limit: int = 100_000) -> int:
        at = 0
        for _ in range(limit):
            code, dst, src, off, imm = self.code[at]
            kind = code & 7
            at += 1
            if code == EXIT:
                return self.read(0) & _M32
            if code == LD_IMM64:
                if src:
                    raise RuntimeError("a reference")
                self.registers[dst] = (self.code[at][4] & _M32) << 32 | imm & _M32
                at += 1
            elif kind in (4, 7):
                self._alu(code, dst, src, imm, 64 if kind == 7 else 32)
            elif kind in (5, 6):
                at += self._jump(code, dst, src, off, imm, 64 if kind == 5 else 32)
            else:
                self._memory(code, dst, src, off, imm)
        raise RuntimeError("does not end")

    def read(self, register: int) -> int:
        value = self.registers[register]
        if value is None:
            raise RuntimeError(f"r{register} has no value")
        return value

    def _alu(self, code: int, dst: int, src: int, imm: int, width: int) -> None:
        mask = (1 << width) - 1
        right = (self.read(src) if code & 8 else imm) & mask
        left = self.read(dst) & mask if code & 0xF0 != 0xB0 else 0
        self.registers[dst] = _ALU[code & 0xF0](left, right, width) & mask

    def _jump(self, code: int, dst: int, src: int, off: int, imm: int, width: int) -> int:
        operation = code & 0xF0
        if operation == 0x00:
            return imm if width == 32 else off
        if operation not in _UNSIGNED and operation not in _SIGNED:
            raise RuntimeError(f"jump {code:#x}")
        mask = (1 << width) - 1
        left, right = self.read(dst) & mask, (self.read(src) if code & 8 else imm) & mask
        if operation in _SIGNED:
            taken = _SIGNED[operation](_signed(left, width), _signed(right, width))
        else:
            taken = _UNSIGNED[operation](left, right)
        return off if taken else 0

    def _memory(self, code: int, dst: int, src: int, off: int, imm: int) -> None:
        if code & 0xE0 != 0x60:
            raise RuntimeError(f"mode of {code:#x}")
        size = {0x00: 4, 0x08: 2, 0x10: 1, 0x18: 8}[code & 0x18]
        kind = code & 7
        if kind == 1:
            self.registers[dst] = int.from_bytes(self._view(self.read(src) + off, size, False), "little")
            return
        value = imm if kind == 2 else self.read(src)
        self._view(self.read(dst) + off, size, True)[:] = (value & (1 << 8 * size) - 1).to_bytes(size, "little")

    def _view(self, address: int, size: int, write: bool) -> memoryview:
        if _STACK <= address <= _STACK + _STACK_SIZE - size:
            return memoryview(self.stack)[address - _STACK : address - _STACK + size]
        if not write and _CONTEXT <= address <= _CONTEXT + len(self.context) - size:
            return memoryview(self.context)[address - _CONTEXT : address - _CONTEXT + size]
        raise RuntimeError("memory that is not there")


def allows(code: bytes, kind: str, major: int, minor: int, access: str) -> bool:
    """What the program says to an open or mknod: kind `b` or `c`, access of the letters `rwm`."""
    bits = ("m" in access) | ("r" in access) << 1 | ("w" in access) << 2
    return Machine(code, bits << 16 | {"b": 1, "c": 2}[kind], major, minor).run() == 1


# -- constant blinding --------------------------------------------------------------------------------------------


def blind(code: bytes, seed: int) -> bytes:
    """What kernel/bpf/core.c makes of a program with net.core.bpf_jit_harden=2: no immediate stays readable."""
    numbers = random.Random(seed)
    old = disassemble(code)
    groups = [_blinded(line, numbers) for line in old]
    starts = [sum(map(len, groups[:i])) for i in range(len(groups) + 1)]
    out = []
    for i, group in enumerate(groups):
        last = group[-1]
        if last[0] & 7 in (5, 6) and last[0] & 0xF0 not in (0x80, 0x90):
            end = starts[i] + len(group)
            group[-1] = (*last[:3], starts[i + 1 + old[i][3]] - end, last[4])
        out += group
    return b"".join(struct.pack("=BBhi", c, d | s << 4, o, i) for c, d, s, o, i in out)


def _blinded(line: tuple[int, int, int, int, int], numbers: random.Random) -> list[tuple[int, int, int, int, int]]:
    code, dst, _, off, imm = line
    if code in (MOV64_K, MOV32_K) and imm == 0:
        return [(0xAF, dst, dst, 0, 0)]
    operation, kind = code & 0xF0, code & 7
    arithmetic = kind in (4, 7) and operation in (0x00, 0x10, 0x50, 0x40, 0xA0, 0x20, 0xB0, 0x30, 0x90)
    compares = kind in (5, 6) and (operation in _UNSIGNED or operation in _SIGNED)
    if (code & 8 or not (arithmetic or compares)) and kind != 2:
        return [line]
    rnd = _signed(numbers.getrandbits(32), 32)
    wide = kind in (7, 5)
    first, second = (MOV64_K, 0xA7) if wide else (MOV32_K, 0xA4)
    third = (code + 1, dst, AX, off, 0) if kind == 2 else (code | 8, dst, AX, off, 0)
    return [(first, AX, 0, 0, rnd ^ imm), (second, AX, 0, 0, rnd), third]
