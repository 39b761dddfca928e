"""Device programs in the forms that runc, crun and systemd attach, made from a list of rules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lib import bpfvm
from lib.bpfvm import AND32_K, EXIT, JA, JEQ_K, JNE_K, JNE_X, LDX_H, LDX_W, MOV32_X, MOV64_K, RSH32_K, Line

_TYPES = {"b": 1, "c": 2}
# Registers that all three use: type, access, major, minor.
_LOADS: list[Line | str] = [
    (LDX_W, 3, 1, 0, 0),
    (RSH32_K, 3, 0, 0, 16),
    (LDX_W, 4, 1, 4, 0),
    (LDX_W, 5, 1, 8, 0),
]


@dataclass(frozen=True)
class Rule:
    """As in `linux.resources.devices` of a config: None is any number, kind `a` any type."""

    allow: bool
    kind: str = "a"
    major: int | None = None
    minor: int | None = None
    access: str = "rwm"

    def bits(self) -> int:
        return sum({"m": 1, "r": 2, "w": 4}[letter] for letter in self.access)

    def matches(self, kind: str, major: int, minor: int, access: str) -> bool:
        """runc's and systemd's reading: all that is asked for must be covered."""
        return (
            self.kind in ("a", kind)
            and self.major in (None, major)
            and self.minor in (None, minor)
            and set(access) <= set(self.access)
        )


def verdict(rules: Sequence[Rule], kind: str, major: int, minor: int, access: str) -> bool:
    """The last rule that matches decides; without one it is forbidden."""
    return next((rule.allow for rule in reversed(rules) if rule.matches(kind, major, minor, access)), False)


def runc(rules: Sequence[Rule]) -> bytes:
    """One block for each rule, the last first; the type by a 16-bit load, the access by comparing with its mask."""
    lines: list[Line | str] = [(LDX_H, 2, 1, 0, 0), *_LOADS]
    for i, rule in enumerate(reversed(rules)):
        lines += _block(rule, f"next{i}")
    return bpfvm.assemble([*lines, (MOV64_K, 0, 0, 0, 0), (EXIT, 0, 0, 0, 0)])


def _block(rule: Rule, out: str) -> list[Line | str]:
    lines: list[Line | str] = []
    if rule.kind != "a":
        lines.append((JNE_K, 2, 0, out, _TYPES[rule.kind]))
    if rule.bits() != 7:
        lines += [(MOV32_X, 1, 3, 0, 0), (AND32_K, 1, 0, 0, rule.bits()), (JNE_X, 1, 3, out, 0)]
    if rule.major is not None:
        lines.append((JNE_K, 4, 0, out, rule.major))
    if rule.minor is not None:
        lines.append((JNE_K, 5, 0, out, rule.minor))
    return [*lines, (MOV64_K, 0, 0, 0, int(rule.allow)), (EXIT, 0, 0, 0, 0), out]


def crun(rules: Sequence[Rule]) -> bytes:
    """As runc's, but a rule matches where it covers any of what is asked for."""
    lines: list[Line | str] = [(LDX_H, 2, 1, 0, 0), *_LOADS]
    for i, rule in enumerate(reversed(rules)):
        block = [
            (JEQ_K, 1, 0, line[3], 0) if not isinstance(line, str) and line[0] == JNE_X else line
            for line in _block(rule, f"next{i}")
        ]
        lines += block
    return bpfvm.assemble([*lines, (MOV64_K, 0, 0, 0, 0), (EXIT, 0, 0, 0, 0)])


def systemd(rules: Sequence[Rule]) -> bytes:
    """An allow list: each match jumps to one common end; the type by a mask. Rules that forbid are left out."""
    lines: list[Line | str] = [(LDX_W, 2, 1, 0, 0), (AND32_K, 2, 0, 0, 0xFFFF), *_LOADS]
    for i, rule in enumerate(rule for rule in rules if rule.allow):
        block = _block(rule, f"next{i}")
        lines += [*block[:-3], (JA, 0, 0, "pass", 0), f"next{i}"]
    return bpfvm.assemble(
        [*lines, (MOV64_K, 0, 0, 0, 0), (JA, 0, 0, "end", 0), "pass", (MOV64_K, 0, 0, 0, 1), "end", (EXIT, 0, 0, 0, 0)]
    )


FORMS = {"runc": runc, "crun": crun, "systemd": systemd}
