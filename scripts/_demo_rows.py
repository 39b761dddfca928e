"""The tables of scripts/demo: claims about a container before and after, each of which is checked as it is shown."""

from __future__ import annotations

from typing import Callable, NamedTuple

ABSENT = "-"
LABEL, WIDTH = 32, 43  # of the first column and the last; a line has at most 100

Check = Callable[[str, str], bool]


class Row(NamedTuple):
    """One claim: what is looked at, by which key of the container's report, and what before and after must be."""

    label: str
    key: str
    check: Check


Rows = dict[str, list[Row]]  # heading -> claims


def becomes(old: str, new: str) -> Check:
    """Exactly this before, and that after."""
    return lambda before, after: (before, after) == (old, new)


def stays(value: str = "") -> Check:
    """The same before and after: `value`, or anything that is there."""
    return lambda before, after: before == after and after == (value or after) and after not in {"", ABSENT}


def _brief(key: str, value: str) -> str:
    if key == "profile" and "[" in value:
        value = value.rpartition('DGPUDevices",')[2].partition("]")[0]
        value = f"EGLVisibleDGPUDevices {value}"
    value = value or ABSENT
    return value if len(value) <= WIDTH else f"…{value[1 - WIDTH :]}"


def show(rows: Rows, before: dict[str, str], after: dict[str, str]) -> list[str]:
    """Print the table, at most 100 columns wide; the labels of the claims that do not hold."""
    wrong = []
    print(f"\n{'':34} {'before':15} {'after'}")
    for heading, group in rows.items():
        print(heading)
        for row in group:
            old, new = before.get(row.key, "?"), after.get(row.key, "?")
            holds = row.check(old, new)
            wrong += [] if holds else [row.label]
            shown = f"{_brief(row.key, old):15} {_brief(row.key, new):{WIDTH}}"
            label = row.label if len(row.label) <= LABEL else f"{row.label[: LABEL - 1]}…"
            print(f"  {label:{LABEL}} {shown} {'ok' if holds else 'WRONG'}")
    return wrong
