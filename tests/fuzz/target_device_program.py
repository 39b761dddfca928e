"""Our device rules in front of a program that somebody else attached: an interpreter says what it says, and the
kernel's verifier that it is one.

An input: the number of rules, 5 bytes for each, then the program as the kernel shows it (8 bytes an instruction).
"""

from __future__ import annotations

import contextlib
import functools
import os
import struct
from collections.abc import Iterator
from itertools import product

from fuzz.registry import Field, Target, register
from fuzz.words import short
from lib import bpfvm, devprogs
from lib.devprogs import Rule

from nvoci.linux import bpf, bpfdevice
from nvoci.linux.devicerule import DeviceRule

MAJORS, MINORS = (1, 195, 4095), (0, 3, 255, (1 << 20) - 1)
ACCESSES = ("", "r", "w", "m", "rw", "rwm")
_NAMES = ("r", "w", "rw")
_STEPS = 2000
_THEIRS = [Rule(True, "c", 1, 3), Rule(False, "c", 195), Rule(True, "b", None, 0, "r"), Rule(True, "c", 195, 255, "rw")]
_RULE = struct.Struct("=BBBBB")


def rules_of(data: bytes) -> tuple[list[DeviceRule], bytes]:
    """Our rules, and the rest: whole instructions."""
    count = min(data[0] % 8, (len(data) - 1) // _RULE.size) if data else 0
    rules = []
    for kind, major, minor, access, _ in _RULE.iter_unpack(data[1 : 1 + count * _RULE.size]):
        numbers = MAJORS[major % len(MAJORS)], MINORS[minor % len(MINORS)]
        rules.append(DeviceRule("bc"[kind % 2], *numbers, _NAMES[access % 3]))
    rest = data[1 + count * _RULE.size :]
    return rules, rest[: len(rest) // 8 * 8]


def _input(count: int, code: bytes) -> bytes:
    return bytes([count]) + b"".join(_RULE.pack(1, n, n + 1, 2 - n % 3, 0) for n in range(count)) + code


def _seeds() -> list[bytes]:
    programs = [form(_THEIRS) for form in devprogs.FORMS.values()]
    ours = bpfdevice.prefix([DeviceRule("c", 195, 0), DeviceRule("c", 195, 3), DeviceRule("b", 1, 0, "r")])
    wide = bpfvm.assemble([(0x18, 0, 0, 0, 1), (0, 0, 0, 0, 0), (0x95, 0, 0, 0, 0)])
    hidden = [bpfvm.blind(ours + programs[0], 7), bpfvm.blind(wide, 1)]
    call = bpfvm.assemble([(0x85, 0, 0, 0, 5), (0x95, 0, 0, 0, 0)])
    far = bpfvm.assemble([(0x06, 0, 0, 0, 1), (0xB7, 0, 0, 0, 0), (0xB7, 0, 0, 0, 1), (0x95, 0, 0, 0, 0)])
    made = [*programs, ours + programs[1], *hidden, wide, call, far]
    return [_input(n % 4, code) for n, code in enumerate(made)] + [b""]


Merged = tuple[list[DeviceRule], bytes, bytes, bytes]


@contextlib.contextmanager
def _whole(data: bytes) -> Iterator[tuple[list[DeviceRule], bytes]]:
    yield rules_of(data)


def merge(case: tuple[list[DeviceRule], bytes]) -> Merged:
    """(rules, as it was shown, as it can be loaded, as it would be loaded). Raises ValueError(why not)."""
    rules, shown = case
    plain = bpfdevice.loadable(shown)
    return rules, shown, plain, bpfdevice.prefix(bpfdevice.missing(plain, rules)) + plain


def verdict(code: bytes, kind: str, major: int, minor: int, access: str) -> bool | None:
    """Allowed or not; None where the program is none that the verifier would let pass."""
    bits = ("m" in access) | ("r" in access) << 1 | ("w" in access) << 2
    machine = bpfvm.Machine(code, bits << 16 | {"b": 1, "c": 2}[kind], major, minor)
    try:
        return machine.run(_STEPS) == 1
    except (RuntimeError, LookupError):
        return None


def _stays_inside(code: bytes) -> bool:
    """Whether each jump, and what follows the last instruction, leads to an instruction: the interpreter takes an index
    as Python does, from behind too."""
    lines = bpfvm.disassemble(code)
    targets = [len(lines) - (bool(lines) and lines[-1][0] == bpfvm.EXIT)]
    for index, (opcode, _, _, off, imm) in enumerate(lines):
        if opcode & 7 in {5, 6} and opcode & 0xF0 not in {0x80, 0x90}:
            targets.append(index + 1 + (imm if opcode == 0x06 else off))
    return all(0 <= target < len(lines) for target in targets)


def _ours(rules: list[DeviceRule], kind: str, major: int, minor: int, access: str) -> bool:
    return any((r.type, r.major, r.minor) == (kind, major, minor) and set(access) <= set(r.access) for r in rules)


def accesses() -> list[tuple[str, int, int, str]]:
    """All that is asked of a program: every type, number and access of a few."""
    return list(product("bc", (*MAJORS, 2), (*MINORS, 4), ACCESSES))


def _check(data: bytes, case: object, answer: Merged) -> None:
    """Ours or theirs, for every access; ours are known again; made plain it says what it said; and what the kernel
    takes alone it takes with ours in front."""
    rules, shown, plain, merged = answer
    assert bpfdevice.missing(merged, rules) == []
    assert bpfdevice.loadable(merged) == merged
    assert merged[len(merged) - len(plain) :] == plain
    if not plain or not _stays_inside(plain) or not _stays_inside(shown):
        return
    salt = sum(data) % 17
    for number, access in enumerate(accesses()):
        if number % 17 != salt:
            continue
        theirs = verdict(plain, *access)
        said = verdict(shown, *access) if shown != plain else theirs
        assert said is None or said == theirs, "made plain it says something else"
        if theirs is not None:
            assert verdict(merged, *access) == (_ours(rules, *access) or theirs), access
    if _loads(plain):
        assert _loads(merged), "the kernel takes theirs, and not the merged one"


@functools.lru_cache(256)
def _loads(code: bytes) -> bool:
    """Whether the verifier takes it; never where this process may not ask."""
    if os.geteuid() != 0:
        return False
    try:
        os.close(bpf.prog_load(code, b"nvoci_fuzz"))
    except OSError:
        return False
    return True


def _fields(data: bytes) -> list[Field]:
    """Opcode, registers, offset and immediate of each instruction."""
    rules, code = rules_of(data)
    start = 1 + len(rules) * _RULE.size if data else 0
    found: list[Field] = []
    for at in range(start, start + min(len(code), 8 * 40), 8):
        found += [(at, 1, "<"), (at + 1, 1, "<"), (at + 2, 2, "<"), (at + 4, 4, "<")]
    return found


register(
    Target(
        "device-program", parse=merge, prepare=_whole, errors=(ValueError,), allowed=short, check=_check,
        seeds=_seeds,
        fields=_fields, max_size=1 << 12, executions=700,
    )
)  # fmt: skip
