"""An NVIDIA_REQUIRE_* expression, against a second reader that goes about it in another way."""

from __future__ import annotations

import re
from itertools import zip_longest

from fuzz.registry import Target, register

from nvoci.prestart.requirements import MAX_EXPRESSION, Host, Invalid, Unknown, holds

HOST = Host("12.4", "550.163.01", "8.0", "Tesla")
TOKENS = (
    b"cuda", b"driver", b"arch", b"brand", b"CUDA", b"=", b"!=", b"<", b"<=", b">", b">=", b"!", b"==", b" ", b",",
    b".", b"12.4", b"12.4.0", b"550.163.01", b"8.0", b"tesla", b"0", b"00", b"18446744073709551615", b"\t", b"\0",
    b"\xff", b" cuda>=12.4", b",driver>=550", b" brand=tesla,driver<551", b"foo=1", b"..",
)  # fmt: skip
_CUDA_IMAGE = (
    b"cuda>=12.8 brand=unknown,driver>=470,driver<471 brand=grid,driver>=470,driver<471 "
    b"brand=tesla,driver>=470,driver<471 brand=nvidia,driver>=470,driver<471 brand=quadro,driver>=535,driver<536 "
    b"brand=tesla,driver>=550,driver<551"
)


def _seeds() -> list[bytes]:
    return [
        b"", b"cuda>=12.4", b"cuda=12.4.0,driver!=550", b"arch<8.6 brand=geforce", b"brand!=tesla arch>=9 , ,cuda>13",
        b"CUDA!12.3,Driver<=550.163.1", b"cuda>=13 foo=1", b"cuda==12", b"cuda>=12..4", b"brand>=tesla", _CUDA_IMAGE,
        b"cuda<18446744073709551614 cuda>00000000000000000000012", b"cuda<" + b"0" * 130,
    ]  # fmt: skip


def _holds(data: bytes) -> object:
    """True, False, or the class of the error."""
    try:
        return holds(data.decode("utf-8", "replace")[:MAX_EXPRESSION], HOST)
    except (Invalid, Unknown) as e:
        return type(e)


# -- the second reader: regular expressions, and versions as lists that are made of one length -----------------------

_TERM = re.compile(r"(?i)(cuda|driver|arch|brand)(=|!=?|<=?|>=?)([^<>=!].*)", re.DOTALL)
_OTHERS = {"=": "==", "!": "!=", "!=": "!="}


def _again(data: bytes) -> object:
    text = data.decode("utf-8", "replace")[:MAX_EXPRESSION]
    alternatives = [part for part in text.split(" ") if part]
    for alternative in alternatives:
        value: object = True
        for term in filter(None, alternative.split(",")):
            value = _term(term)
            if value is not True:
                break
        if value is not False:
            return value
    return not alternatives


def _term(term: str) -> object:
    found = _TERM.fullmatch(term)
    if not found:
        return Invalid
    name, operator, wanted = found[1].lower(), found[2], found[3]
    if name == "brand":
        if operator[0] in "<>":
            return Invalid
        true = (wanted.lower() == HOST.brand.lower()) == (operator == "=")  # type: ignore[union-attr]
    else:
        order = _order(getattr(HOST, name), wanted)
        if order is None:
            return Invalid
        true = {"=": order == 0, "!": order != 0, "<": order < 0, ">": order > 0}[operator[0]]
        true = true or (operator in {"<=", ">="} and order == 0)
    too_long = len(name) + (2 if operator == "!" else len(operator)) + len(wanted) >= 128
    return Invalid if not true and too_long else true


def _order(actual: str, wanted: str) -> int | None:
    if not re.fullmatch(r"[0-9][0-9.]*", wanted):
        return None
    left = actual.split(".")
    right = re.sub(r"\.+$", "", wanted).split(".")
    for at, (one, other) in enumerate(zip_longest(left, right, fillvalue="")):
        if at < min(len(left), len(right)):
            number = int(other.lstrip("0")[:21] or "0")
            if not other or number >= (1 << 64) - 1:
                return None
            if int(one) != number:
                return 1 if int(one) > number else -1
        elif (one + other).strip("0"):
            return 1 if one.strip("0") else -1
    return 0


def _check(data: bytes, case: bytes, answer: object) -> None:
    assert answer == _again(data)


register(
    Target(
        "requirements", parse=_holds, errors=(), check=_check, seeds=_seeds, tokens=TOKENS, max_size=1 << 12,
        executions=8000,
    )
)  # fmt: skip
