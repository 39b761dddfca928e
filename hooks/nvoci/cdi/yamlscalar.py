"""YAML scalars without quotes. What `0`, `yes` or `0666` stands for is decided by the field it is given for: for a
string its text, where engines take that too, and for a number or a boolean what is read here.
"""

from __future__ import annotations

import re
from struct import pack, unpack

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


# --- where a string is wanted ----------------------------------------------------------------------------------------

_ENGINE_WORDS = {
    **dict.fromkeys((*TRUE, "y", "Y"), "true"),
    **dict.fromkeys((*FALSE, "n", "N"), "false"),
    **{sign + word: f"{sign or '+'}Inf" for sign in ("", "+", "-") for word in (".inf", ".Inf", ".INF")},
    **dict.fromkeys((".nan", ".NaN", ".NAN"), "NaN"),
}
_STARTS = frozenset("0123456789+-.")
_WHOLE = re.compile(r"[-+]?(?:0[xX][0-9a-fA-F]+|0[oO]?[0-7]+|0[bB][01]+|0|[1-9][0-9]*)")
_REAL = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_TOO_BIG = "a number of more than 64 bits"


def as_string(text: str) -> str:
    """What container engines make of the text where a string is wanted, by sigs.k8s.io/yaml on go-yaml 2: a boolean or
    a number first, and of that a string. The text itself for nearly all.

    >>> [as_string(text) for text in ("0", "0x10", "1.0", "1e3", "no", "n", "190:20:30", "2001-01-01", "/dev/0x10")]
    ['0', '16', '1', '1000', 'false', 'false', '190:20:30', '2001-01-01', '/dev/0x10']
    """
    if text[:1] not in _STARTS:
        return _ENGINE_WORDS.get(text, text)
    if text in _ENGINE_WORDS:
        return _ENGINE_WORDS[text]
    plain = text if text[0] == "." else text.replace("_", "")
    if _WHOLE.fullmatch(plain):
        number = _whole(plain)
        if number is not None:
            return str(number)
    if _REAL.fullmatch(plain):
        real = float(plain)
        if real not in (float("inf"), float("-inf")):
            return _go_float(real)
    return _TOO_BIG if _WHOLE.fullmatch(plain) else str(text)


def _whole(text: str) -> int | None:
    """None for one of more than 64 bits."""
    digits = text.lstrip("+-")
    if len(digits) > MAX_DIGITS + 2:
        return None
    base = _BASES.get(digits[:2].lower(), 0)
    value = int(digits[2:], base) if base else int(digits, 8 if digits[0] == "0" else 10)
    if text[0] == "-":
        value = -value
    return value if -(1 << 63) <= value < 1 << (63 if text[0] in "+-" else 64) else None


def _go_float(value: float) -> str:
    """As strconv.FormatFloat(value, 'g', -1, 32): the shortest digits that a float of 32 bits is read again from."""
    try:
        single = unpack("<f", pack("<f", value))[0]
    except OverflowError:
        return f"{'-' if value < 0 else '+'}Inf"
    told = next(told for told in (f"{single:.{n}e}" for n in range(9)) if _is_single(float(told), single))
    mantissa, _, power = told.partition("e")
    exponent = int(power)
    if exponent < -4 or exponent >= 6:
        return f"{mantissa}e{exponent:+03}"
    places = max(len(mantissa.lstrip("-").replace(".", "")) - 1 - exponent, 0)
    return f"{float(told):.{places}f}"


def _is_single(value: float, single: float) -> bool:
    try:
        return bool(unpack("<f", pack("<f", value))[0] == single)
    except OverflowError:
        return False
