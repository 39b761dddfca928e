"""Patterns as Go's regexp package (RE2 syntax) takes them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from nvoci.ctl import regex

GOOD = [
    "", ".*", "^nvidia\\.com/gpu$", "(a|b)+?", "[[:alpha:]]+", "[^]a]", "[*+]", "[(?=]", "a(?i)b", "(?i:a)b(?-s)",
    "(?U)a", "(?P<n>a)", "(?<n>a)", "\\pL\\p{Greek}\\PN", "\\z", "\\A", "\\x{10FFFF}", "\\Q(\\E", "\\Q(", "a{2,1000}",
    "\\C", "{", "\\*+",
]  # fmt: skip
BAD = [
    "(", ")", "[", "*", "a**", "a++", "a{2}+", "(?=a)", "(?!a)", "(?<=a)", "(?<!a)", "(?>a)", "(a)\\1", "(?P=n)", "\\Z",
    "a{1001}", "a{1,1001}", "\\", "[b-a]", "(?#x)", "(?(1)a)", "(?x)a",
]  # fmt: skip


@pytest.mark.parametrize("pattern", GOOD)
def test_a_pattern_that_go_compiles_is_accepted(pattern: str) -> None:
    check: Callable[[str], object] = regex.check
    assert check(pattern) is None


@pytest.mark.parametrize("pattern", BAD)
def test_a_pattern_that_go_refuses_is_refused_with_a_reason(pattern: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        regex.check(pattern)


def test_a_pattern_made_to_exhaust_the_checker_is_refused() -> None:
    with pytest.raises(ValueError, match=r"."):
        regex.check("(" * 100_000 + ")" * 100_000)
