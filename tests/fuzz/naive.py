"""Parsers with a fault each, which the harness has to find. It shows on inputs that begin with `!`."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
from collections.abc import Callable
from typing import Any

from fuzz.registry import Target

_left_open: list[int] = []


class ParseError(ValueError):
    """The documented one."""


def _bad(data: bytes) -> bool:
    if not data:
        raise ParseError("empty")
    return data.startswith(b"!")


def _other_exception(data: bytes) -> int:
    return data[1000] if _bad(data) else 0


def _slow(data: bytes) -> int:
    return sum(i % 7 for i in range(500_000)) if _bad(data) else 0


def _endless(data: bytes) -> None:
    while _bad(data):
        pass


def _swallows(data: bytes) -> None:
    """Endless, and deaf."""
    while _bad(data):
        with contextlib.suppress(BaseException):
            _endless(data)


def _hungry(data: bytes) -> bytes:
    if _bad(data):
        return bytes(100 << 20)
    return b""


def _insatiable(data: bytes) -> bytes:
    return bytes(4 << 30) if _bad(data) else b""


def _leaky(data: bytes) -> None:
    if _bad(data):
        _left_open.append(os.open("/dev/null", os.O_RDONLY))


def _crashing(data: bytes) -> None:
    if _bad(data):
        ctypes.string_at(0)


def _never_wrong(data: bytes, case: Any, answer: int) -> None:
    assert answer != 1, "the answer is wrong"


def _undocumented_errno(data: bytes) -> None:
    if _bad(data):
        raise OSError(errno.EIO, "odd")


def _wrong(data: bytes) -> int:
    return 1 if _bad(data) else 0


def _target(name: str, parse: Callable[[bytes], Any], **more: Any) -> Target:
    return Target(f"naive:{name}", parse, (ParseError,), lambda: [b"a!bcd"], executions=2000, **more)


TARGETS = {
    "exception": _target("exception", _other_exception),
    "time": _target("time", _slow),
    "endless": _target("endless", _endless),
    "deaf": _target("deaf", _swallows),
    "memory": _target("memory", _hungry),
    "more-memory": _target("more-memory", _insatiable),
    "descriptors": _target("descriptors", _leaky),
    "died": _target("died", _crashing),
    "oracle": _target("oracle", _wrong, check=_never_wrong),
    "errno": Target(
        "naive:errno", _undocumented_errno, (ParseError, OSError), lambda: [b"a!"], executions=2000,
        allowed=lambda e: not isinstance(e, OSError) or e.errno == errno.ENOENT,
    ),
    "good": _target("good", _bad),
}
