"""The matrix is whole: every row has tests that exist, or says why not and what that may cost.

As a program it writes the table of README.md anew.
"""

from __future__ import annotations

import ast
import functools
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

import pytest
from security.rows.row import TESTS, Row, load

# How many rows each letter has.
COUNTS = {
    "A": 17, "B": 14, "C": 13, "D": 17, "E": 15, "F": 13, "G": 12, "H": 8, "I": 8, "J": 16, "K": 12, "L": 8, "M": 7,
    "N": 9, "O": 12, "P": 11, "Q": 7,
}  # fmt: skip
IDS = [f"{letter}{n}" for letter, count in COUNTS.items() for n in range(1, count + 1)]
ROWS = load()


@functools.cache
def functions(file: str) -> set[str]:
    """The tests of a file below tests/."""
    tree = ast.parse((TESTS / file).read_text())
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


def test_every_row_is_there() -> None:
    assert list(ROWS) == IDS


@pytest.mark.parametrize("name", IDS)
def test_a_row_has_tests_or_a_reason(name: str) -> None:
    row = ROWS[name]
    assert row.what
    assert row.tests or row.open
    assert bool(row.open) == bool(row.risk), "what is open has a risk, and what has a risk is open"
    missing = [t for t in row.tests if t.partition("::")[2] not in functions(t.partition("::")[0])]
    assert missing == []


def test_the_readme_has_the_rows_as_they_are() -> None:
    assert README.read_text() == written(README.read_text()), f"write them: python3 {Path(__file__).name}"


README = TESTS / "security/README.md"
HEAD = "| row | what | where | not covered, and what that may cost |\n|---|---|---|---|\n"


def written(text: str) -> str:
    """The README with the table as the rows are."""
    before, _, rest = text.partition(HEAD)
    _, _, after = rest.partition("\n\n")
    return f"{before}{HEAD}" + "\n".join(line(name, row) for name, row in ROWS.items()) + f"\n\n{after}"


def line(name: str, row: Row) -> str:
    """One row of the table."""
    files = dict.fromkeys(t.partition("::")[0] for t in row.tests)
    where = ", ".join(f"`{file.removeprefix('security/')}`" for file in files)
    return f"| {name} | {row.what} | {where} | {f'{row.open}; {row.risk}' if row.open else ''} |"


if __name__ == "__main__":
    README.write_text(written(README.read_text()))
