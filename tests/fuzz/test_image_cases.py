"""Caches that are well formed, and meant to keep whoever extends them busy: bounded in time, and nothing is lost."""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest
from fuzz.limits import cpu_seconds, outcome
from fuzz.target_image import PATHS, SONAMES, image

from nvoci.ldcache.cache import Entry, encode, parse
from nvoci.ldcache.compute import Result, compute

COUNT = 50_000
OUTSIDE = b"/o/libc.so.3"  # a library of the image in a directory that is not configured
SHAPES: dict[str, Callable[[], list[Entry]]] = {
    "each in another directory that is not there": lambda: [
        Entry(3, b"liba.so.1", b"/x%d/liba.so.1" % i) for i in range(COUNT)
    ],
    "each by another way to the same directory": lambda: [
        Entry(3, b"liba.so.1", b"/l/" + b"../l/" * (i % 20) + b"./" * (i // 20) + b"liba.so.1") for i in range(1000)
    ],
    "the same library by many names": lambda: [Entry(3, b"libx%d.so.1" % i, OUTSIDE) for i in range(COUNT)],
    "the same entry": lambda: [Entry(3, b"libc.so.3", OUTSIDE)] * COUNT,
    "a library that is gone, by many names": lambda: [
        Entry(3, b"lib%d.so" % i, b"/l/lib%d.so" % i) for i in range(COUNT)
    ],
    "long names out of order": lambda: [
        Entry(3, b"lib%d" % (i * 7919 % 5000) + b"9" * 3000, OUTSIDE) for i in range(5000)
    ],
    "paths with long components": lambda: [
        Entry(3, b"liba.so.1", b"/%d" % i + b"x" * 300 + b"/liba.so.1") for i in range(2000)
    ],
}
NO_NAMES = [b"", b".", b"..", b"/", b"../../etc/x", b"/etc/x", b"a\nb", b"x" * 256]


@pytest.mark.parametrize("shape", SHAPES)
def test_it_costs_little_and_loses_nothing(shape: str) -> None:
    cache = parse(encode(SHAPES[shape]()))
    with image() as rootfs:

        def call() -> Result:
            return compute(rootfs, PATHS, cache)

        found = outcome(call, (OSError,))
        if isinstance(found, OSError):
            assert found.errno == errno.E2BIG
        else:
            assert {e.unsafe_soname for e in found.entries} >= SONAMES
        assert cpu_seconds(call, (OSError,), 0.250) < 0.250


@pytest.mark.parametrize("name", NO_NAMES)
def test_a_cached_soname_that_is_no_file_name_is_not_taken_over(name: bytes) -> None:
    with image() as rootfs:
        found = compute(rootfs, PATHS, parse(encode([Entry(0x303, name, OUTSIDE)])))
    assert name not in {e.unsafe_soname for e in found.entries}
