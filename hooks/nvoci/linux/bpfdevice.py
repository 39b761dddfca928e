"""Device programs as bytes: our allow rules as instructions, and how they get in front of a program read back.

Pure: nothing here asks the kernel. An instruction is struct bpf_insn of linux/bpf.h: {u8 code; u8 dst_reg:4, src_reg:4;
s16 off; s32 imm}; jumps are relative, so what stands in front of a program does not change it. The program gets struct
bpf_cgroup_dev_ctx in r1: {u32 access_type; u32 major; u32 minor}, access_type = access << 16 | type, and returns 1 for
"allowed". The kernel leaves accesses to this structure as they were written, so what is read back can be loaded again,
but for what the verifier replaced by things that only it may write (helpers, maps) and for the constants that
net.core.bpf_jit_harden=2 hides, which are made plain again here.
"""

from __future__ import annotations

from _struct import iter_unpack, pack, unpack_from

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from nvoci.linux.devicerule import DeviceRule

    # code, registers (dst | src << 4), off, imm
    Instruction = tuple[int, int, int, int]

SIZE = 8
_LAYOUT = "=BBhi"
# linux/bpf.h: BPF_DEVCG_DEV_*, BPF_DEVCG_ACC_*
_TYPES = {"b": 1, "c": 2}
_ACCESSES = {"r": 2, "w": 4, "rw": 6}
_OF_TYPE = {number: name for name, number in _TYPES.items()}
_OF_ACCESS = {bits: name for name, bits in _ACCESSES.items()}
_ACCESS_SHIFT = 16
_ACCESS_TYPE, _MAJOR, _MINOR = 0, 4, 8  # offsets in struct bpf_cgroup_dev_ctx
_MAX_MINORS = 4096  # in one group: a jump reaches over 32,767 instructions

# linux/bpf_common.h, linux/bpf.h: class in the lowest three bits, operation in the highest four
_LDX_W, _AND32_K, _MOV64_K, _EXIT = 0x61, 0x54, 0xB7, 0x95
_JA, _JEQ_K, _JNE_K = 0x05, 0x15, 0x55
_CLASS, _LD, _ST, _STX, _ALU, _JMP, _JMP32, _ALU64 = 0x07, 0x00, 0x02, 0x03, 0x04, 0x05, 0x06, 0x07
_OPERATION, _OP_JA, _OP_CALL, _OP_EXIT, _OP_TAIL_CALL = 0xF0, 0x00, 0x80, 0x90, 0xF0
_SOURCE_X = 0x08
_LD_IMM64 = 0x18
_XOR64_X = 0xAF
_MAX_REGISTER = 10
# include/linux/filter.h: BPF_REG_AX, the kernel's own; with BPF_MOV|BPF_K and BPF_XOR|BPF_K of either width
_AX = 11
_MOVES, _XORS = {0xB4, 0xB7}, {0xA4, 0xA7}


def _group(kind: int, access: int, major: int, minors: Sequence[int]) -> bytes:
    """The instructions that allow `minors` of one major number: 9 and one for each minor."""
    n = len(minors)
    code = [
        pack(_LAYOUT, _LDX_W, 2 | 1 << 4, _ACCESS_TYPE, 0),  # r2 = access << 16 | type
        pack(_LAYOUT, _AND32_K, 2, 0, ~(access << _ACCESS_SHIFT)),  # w2 &= all but what the rule allows
        pack(_LAYOUT, _JNE_K, 2, n + 6, kind),  # another type, or more is asked for (mknod): out
        pack(_LAYOUT, _LDX_W, 3 | 1 << 4, _MAJOR, 0),
        pack(_LAYOUT, _JNE_K, 3, n + 4, major),  # out
        pack(_LAYOUT, _LDX_W, 4 | 1 << 4, _MINOR, 0),
    ]
    code += [pack(_LAYOUT, _JEQ_K, 4, n - i, minor) for i, minor in enumerate(minors)]  # to "r0 = 1"
    code += [
        pack(_LAYOUT, _JA, 0, 2, 0),  # out
        pack(_LAYOUT, _MOV64_K, 0, 0, 1),  # r0 = 1
        pack(_LAYOUT, _EXIT, 0, 0, 0),
    ]  # out: what follows; it still has r1, and expects nothing in r2 to r5
    return b"".join(code)


def prefix(rules: Iterable[DeviceRule]) -> bytes:
    """What allows exactly these devices and else goes on with what follows."""
    groups: dict[tuple[int, int, int], list[int]] = {}
    for rule in rules:
        groups.setdefault((_TYPES[rule.type], _ACCESSES[rule.access], rule.major), []).append(rule.minor)
    return b"".join(
        _group(*key, minors[start : start + _MAX_MINORS])
        for key, minors in groups.items()
        for start in range(0, len(minors), _MAX_MINORS)
    )


def allowed_by_prefix(code: bytes) -> set[tuple[str, int, int, str]]:
    """(type, major, minor, access) of all that groups of ours, put before this program by earlier runs, allow."""
    found: set[tuple[str, int, int, str]] = set()
    position = 0
    while position + 9 * SIZE <= len(code):
        mask = unpack_from("=i", code, position + 12)[0]
        kind = unpack_from("=i", code, position + 20)[0]
        offset, major = unpack_from("=hi", code, position + 34)
        access, n = ~mask >> _ACCESS_SHIFT, offset - 4
        if not 0 < n <= _MAX_MINORS or kind not in _OF_TYPE or access not in _OF_ACCESS:
            break
        if position + (n + 9) * SIZE > len(code):
            break
        minors = [unpack_from("=i", code, position + (6 + i) * SIZE + 4)[0] for i in range(n)]
        group = _group(kind, access, major, minors)
        if code[position : position + len(group)] != group:
            break
        found.update((_OF_TYPE[kind], major, minor, _OF_ACCESS[access]) for minor in minors)
        position += len(group)
    return found


def missing(code: bytes, rules: Iterable[DeviceRule]) -> list[DeviceRule]:
    """Those of `rules` that the groups of ours before this program do not allow yet."""
    there = allowed_by_prefix(code)
    return [
        rule
        for rule in rules
        if not any((rule.type, rule.major, rule.minor, access) in there for access in (rule.access, "rw"))
    ]


def loadable(code: bytes) -> bytes:
    """A program read back from the kernel, as it can be loaded again. Raises ValueError(why not)."""
    instructions = [*iter_unpack(_LAYOUT, code)]
    hidden = False
    for index in _starts(instructions):
        _check(instructions[index], index)
        if instructions[index][0] == _LD_IMM64 and index + 1 == len(instructions):
            raise ValueError(f"it ends in the middle of a constant (instruction {index})")
        hidden = hidden or _AX in _registers(instructions[index]) or _zeroes(instructions[index])
    return _revealed(instructions) if hidden else code


def _starts(instructions: Sequence[Instruction]) -> Iterator[int]:
    """Indices of all but the second halves of 64-bit immediates."""
    index = 0
    while index < len(instructions):
        yield index
        index += 2 if instructions[index][0] == _LD_IMM64 else 1


def _registers(instruction: Instruction) -> tuple[int, int]:
    return instruction[1] & 0xF, instruction[1] >> 4


def _check(instruction: Instruction, index: int) -> None:
    code, registers, _, _ = instruction
    if code & _CLASS in (_JMP, _JMP32) and code & _OPERATION in (_OP_CALL, _OP_TAIL_CALL):
        raise ValueError(f"it calls a function (instruction {index})")
    if code & _CLASS == _LD and (code != _LD_IMM64 or registers >> 4):
        raise ValueError(f"it refers to an object of the kernel (instruction {index})")
    if max(_registers(instruction)) > _AX:
        raise ValueError(f"it has a register that does not exist (instruction {index})")


# -- constant blinding --------------------------------------------------------------------------------------------
# bpf_jit_blind_insn() of kernel/bpf/core.c turns `OP dst, imm` into `ax = imm ^ random; ax ^= random; OP dst, ax`, and
# `r = 0` into `r ^= r`, which the verifier refuses where r has no value yet.


def _zeroes(instruction: Instruction) -> bool:
    dst, src = _registers(instruction)
    return instruction[0] == _XOR64_X and dst == src


def _revealed(instructions: Sequence[Instruction]) -> bytes:
    plain: list[Instruction] = []
    olds: list[int] = []  # for each of `plain`, its last instruction before
    news: dict[int, int] = {}  # from the first instruction before
    index = 0
    while index < len(instructions):
        width, instruction = _reveal_one(instructions, index)
        news[index] = len(plain)
        olds.append(index + width - 1)
        plain.append(instruction)
        index += width
        if instruction[0] == _LD_IMM64:
            olds.append(index)
            plain.append(instructions[index])
            index += 1
    news[index] = len(plain)
    for new in _starts(plain):
        plain[new] = _retargeted(plain[new], olds[new], new, news)
    return b"".join(pack(_LAYOUT, *instruction) for instruction in plain)


def _reveal_one(instructions: Sequence[Instruction], index: int) -> tuple[int, Instruction]:
    """(how many instructions from `index` on are one, that one)."""
    code, registers, off, imm = first = instructions[index]
    if _zeroes(first):
        return 1, (_MOV64_K, registers & 0xF, 0, 0)
    if _AX not in _registers(first):
        return 1, first
    if code in _MOVES and registers == _AX and index + 2 < len(instructions):
        second, third = instructions[index + 1], instructions[index + 2]
        if second[0] in _XORS and second[1] == _AX and third[1] >> 4 == _AX and third[1] & 0xF != _AX:
            code, registers, off, _ = third
            kind = code & _CLASS
            if kind == _STX:
                return 3, (code - _STX + _ST, registers & 0xF, off, imm ^ second[3])
            if kind in (_ALU, _ALU64, _JMP, _JMP32) and code & _SOURCE_X:
                return 3, (code & ~_SOURCE_X, registers & 0xF, off, imm ^ second[3])
    raise ValueError(f"it uses the kernel's own register (instruction {index})")


def _retargeted(instruction: Instruction, old: int, new: int, news: dict[int, int]) -> Instruction:
    """The same jump, from where it stands now."""
    code, registers, off, imm = instruction
    operation = code & _OPERATION
    if code & _CLASS not in (_JMP, _JMP32) or operation == _OP_EXIT:
        return instruction
    far = code & _CLASS == _JMP32 and operation == _OP_JA
    target = news.get(old + 1 + (imm if far else off))
    if target is None:
        raise ValueError(f"it jumps into what the kernel made of a constant (instruction {old})")
    distance = target - new - 1
    return (code, registers, off, distance) if far else (code, registers, distance, imm)
