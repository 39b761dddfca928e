"""The strict JSON reader, against the json package."""

from __future__ import annotations

import json
from typing import Any

from fuzz.registry import Target, register
from fuzz.words import JSON_TOKENS, dump, short

from nvoci.jsonfile import MAX_DIGITS, loads

_SEEDS = [
    b"{}", b' [1, -2.5e3, true, false, null, "a\\n\\u00e9\\ud83d\\ude00"]\n', b'{"a": {"b": [[], {}, ""]}, "c": 1}',
    b'{"a": 1, "a": 2}', b"[" * 400 + b"]" * 400, b"1" * MAX_DIGITS, b"1" * (MAX_DIGITS + 1), b"[1] x", b"NaN",
    b"1e400",
    '"\u00e9\u202e\U0001f600"'.encode(), b"\xef\xbb\xbf{}", b'"\\ud800"', b"-", b'"', b"tru", b"[1,]",
]  # fmt: skip


def _seeds() -> list[bytes]:
    return [*_SEEDS, dump({str(n): [n, {"x": n / 7}] for n in range(40)})]


def _strict(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    assert len(dict(pairs)) == len(pairs), "a key given twice is taken"
    return dict(pairs)


def _constant(text: str) -> Any:
    raise AssertionError(f"{text} is taken")


def _number(text: str) -> Any:
    assert len(text) <= MAX_DIGITS, "a long number is taken"
    return int(text) if text.lstrip("-").isdigit() else float(text)


def _check(data: bytes, case: bytes, answer: Any) -> None:
    """The package reads the same, with nothing in it that is to be refused."""
    again = json.loads(
        data.decode(), object_pairs_hook=_strict, parse_constant=_constant, parse_int=_number, parse_float=_number
    )
    assert repr(again) == repr(answer)
    assert "inf" not in repr(answer) or "inf" in data.decode()


register(
    Target(
        "json", parse=loads, errors=(ValueError,), allowed=short, check=_check, seeds=_seeds, tokens=JSON_TOKENS,
        max_size=1 << 13, executions=2000,
    )
)  # fmt: skip
