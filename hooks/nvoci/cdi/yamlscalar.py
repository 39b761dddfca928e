"""YAML scalars without quotes. What `0`, `yes` or `0666` stands for is decided by the field it is given for: for a
string its text is taken, for a number or a boolean it is read here.
"""

from __future__ import annotations

MAX_DIGITS = 64
NULLS = frozenset(("", "~", "null", "Null", "NULL"))
TRUE = frozenset(("true", "True", "TRUE", "yes", "Yes", "YES", "on", "On", "ON"))
FALSE = frozenset(("false", "False", "FALSE", "no", "No", "NO", "off", "Off", "OFF"))
_BASES = {"0x": 16, "0o": 8, "0b": 2}


class Plain(str):
    """A scalar without quotes (and that is no null), by its text."""

    __slots__ = ()


def integer(text: str) -> int | None:
    """The number: decimal, 0x, 0o, 0b, or octal by a leading 0, as in YAML 1.1; None where the text is none."""
    digits = text[1:] if text[:1] in ("-", "+") else text
    if len(digits) > MAX_DIGITS or not digits.isascii() or not digits[:1].isdigit():
        return None
    if not digits.replace("_", "").isalnum():
        return None  # int() would take spaces
    base = _BASES.get(digits[:2].lower(), 0)
    if base:
        digits = digits[2:]
    else:
        base = 8 if len(digits) > 1 and digits[0] == "0" else 10
    try:
        value = int(digits, base) if digits[:1].isalnum() else None
    except ValueError:
        return None
    return -value if value and text[0] == "-" else value


def boolean(text: str) -> bool | None:
    """True or False by YAML 1.1's words (but y and n); None where the text is none of them."""
    if text in TRUE:
        return True
    return False if text in FALSE else None


def generic(text: str) -> str | int | float | bool:
    """What the text is where no field says it: a boolean by YAML 1.2's words, a number, else a string."""
    if text in ("true", "True", "TRUE", "false", "False", "FALSE"):
        return text in TRUE
    number = integer(text)
    if number is not None:
        return number
    return _real(text)


def _real(text: str) -> str | float:
    if len(text) > MAX_DIGITS or not text.isascii() or not text.lstrip("+-.")[:1].isdigit():
        return str(text)
    try:
        return float(text) if "_" not in text else str(text)
    except ValueError:
        return str(text)
