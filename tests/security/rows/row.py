"""What a row of the matrix is, and all of them.

A module of this folder has one letter's rows: `ROWS = {"A1": Row(...)}`. test_rows.py holds them against the tests that
they name, and README.md against them.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
TESTS = HERE.parents[1]


@dataclass(frozen=True)
class Row:
    """what: the case, and what is expected, in few words. tests: "security/test_paths.py::test_a3_…", relative to
    tests/, functions without parameters. open: what no test covers, and why it can't be covered or needn't be.
    risk: what that may cost; a row with `open` has one."""

    what: str
    tests: tuple[str, ...] = ()
    open: str = ""
    risk: str = ""


def load() -> dict[str, Row]:
    """Every row, in the order of the letters and numbers."""
    found: dict[str, Row] = {}
    for path in sorted(HERE.glob("[a-z]_*.py")):
        rows: dict[str, Row] = importlib.import_module(f"security.rows.{path.stem}").ROWS
        letter = path.stem[0].upper()
        wrong = [name for name in rows if name[0] != letter or name in found]
        if wrong:
            raise ValueError(f"{path.name} has {wrong}")
        found.update(rows)
    return found
