"""What several targets ask of an error and of an answer."""

from __future__ import annotations

import json
from typing import Any

from nvoci.errors import HookError


def one_line(error: Exception) -> bool:
    """Of a HookError: one printable line of at most 4 KiB, which may go to a log, whatever the input holds."""
    if not isinstance(error, HookError):
        return True
    line = error.line()
    return bool(error.message) and line.isprintable() and len(line) <= 4096


def short(error: Exception) -> bool:
    """Of any error."""
    return bool(str(error)) and len(str(error)) <= 4096


def dump(value: Any) -> bytes:
    """JSON, for seeds."""
    return json.dumps(value).encode()


# What mutants of any JSON document are made with.
JSON_TOKENS = (
    b"null", b"true", b"false", b"{}", b"[]", b'""', b"{", b"}", b"[", b"]", b",", b":", b'"', b"\\u0000", b"\\ud800",
    b"\\udc00", b"\\", b"-1", b"0", b"1e9", b"0.5", b"-0", b"4294967296", b"9" * 70, b"NaN", b"Infinity", b"1e999",
    b"\xef\xbb\xbf", b"\xff", b"\0", b'"/"', b'"/a"', b'":', b'{"', b'","', b"\\u202e", b"\n",
)  # fmt: skip
