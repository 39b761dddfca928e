"""Patterns of names: what is quick to ask says nothing else than what is exact."""

from __future__ import annotations

import fnmatch
import itertools

import pytest

from nvoci.linux.pattern import literal_prefix, match


@pytest.mark.parametrize(
    ("pattern", "prefix"),
    [(b"", b""), (b"lib", b"lib"), (b"lib*.so", b"lib"), (b"a?b", b"a"), (b"[ab]c", b""), (b"a\\*b*", b"a")],
)
def test_the_prefix_ends_at_the_first_character_that_is_not_its_own(pattern: bytes, prefix: bytes) -> None:
    assert literal_prefix(pattern) == prefix


def test_what_matches_begins_with_the_prefix() -> None:
    names = [bytes(each) for n in range(4) for each in itertools.product(b"ab.*", repeat=n)]
    patterns = [bytes(each) for n in range(4) for each in itertools.product(b"ab*?", repeat=n)]
    matched = [(pattern, name) for pattern in patterns for name in names if match(pattern, name)]
    assert len(matched) > 500
    assert [pair for pair in matched if not pair[1].startswith(literal_prefix(pair[0]))] == []


def test_python_agrees_where_no_name_begins_with_a_dot() -> None:
    names = ["".join(each) for n in range(5) for each in itertools.product("abc", repeat=n)]
    patterns = ["".join(each) for n in range(4) for each in itertools.product("ab*?", repeat=n)]
    for pattern in patterns:
        assert {n for n in names if match(pattern.encode(), n.encode())} == set(fnmatch.filter(names, pattern)), pattern
