"""Calls that fail as a kernel, or somebody else in the meantime, would have them fail."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

Call = Callable[..., Any]


def always(*args: Any) -> bool:
    return True


def refusing(call: Call, number: int, when: Call = always) -> Call:
    """`call`, but for arguments of which `when` is true: OSError `number`."""

    def refused(*args: Any, **named: Any) -> Any:
        if when(*args):
            raise OSError(number, os.strerror(number))
        return call(*args, **named)

    return refused


def refuse(module: Any, name: str, number: int, when: Call = always) -> None:
    """For a process that ends with the test, such as that of `isolated`; elsewhere give `refusing` to a monkeypatch."""
    setattr(module, name, refusing(getattr(module, name), number, when))


def nth(count: int) -> Call:
    """When it is called for the `count`-th time, and from then on."""
    calls = 0

    def counted(*args: Any) -> bool:
        nonlocal calls
        calls += 1
        return calls >= count

    return counted


@contextmanager
def descriptors_closed() -> Iterator[None]:
    """What is opened meanwhile and left open is closed at the end: a hook's process would have ended."""
    before = set(os.listdir("/proc/self/fd"))
    yield
    for name in set(os.listdir("/proc/self/fd")) - before:
        with suppress(OSError):
            os.close(int(name))
