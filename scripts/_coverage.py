"""Branch coverage of the package from what a test run left: scripts/test --coverage calls it.

    _coverage.py FOLDER [--missing ROOM]

The rooms that run as root in a container's root must be covered to LIMIT per cent, lines and branches together.
"""

from __future__ import annotations

import contextlib
import io
import sys
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from coverage import Coverage, CoverageData  # noqa: E402  (the path is set above)
from lib import arcs  # noqa: E402

LIMIT = 95.0
GUARDED = ("linux", "hook", "prestart", "ldcache")


def measured(folder: str) -> Coverage:
    """What coverage.py makes of the arcs."""
    found: dict[str, set[tuple[int, int]]] = defaultdict(set)
    for file, first, last in arcs.read(folder):
        found[file].add((first, last))
    report = Coverage(data_file=None, branch=True, config_file=str(ROOT / "pyproject.toml"))
    data: CoverageData = report.get_data()
    data.add_arcs(found)
    return report


def room(path: str) -> str:
    """hooks/nvoci/linux/fd.py -> linux; hooks/nvoci/elf.py -> elf."""
    return Path(path).relative_to(arcs.PACKAGE).parts[0].removesuffix(".py")


def per_cent(report: Coverage, files: list[str]) -> tuple[float, str]:
    """(per cent, coverage.py's table with what is missing)."""
    out = io.StringIO()
    total = report.report(morfs=files, file=out, show_missing=True, skip_covered=True)
    return total, out.getvalue()


def main(folder: str, *words: str) -> int:
    """Print a line for each room; 1 if a guarded one is below the limit."""
    report = measured(folder)
    files: dict[str, list[str]] = defaultdict(list)
    for path in sorted(Path(arcs.PACKAGE).rglob("*.py")):
        if path.name != "__init__.py" or path.stat().st_size > 200:
            files[room(str(path))].append(str(path))
    if words[:1] == ("--missing",):
        for name in words[1:]:
            print(per_cent(report, files[name])[1])
        return 0
    low = []
    for name, paths in files.items():
        with contextlib.redirect_stderr(io.StringIO()):
            total, _ = per_cent(report, paths)
        guarded = name in GUARDED
        if guarded and total < LIMIT:
            low.append(name)
        print(f"coverage: {name}: {total:.1f} %{f' (at least {LIMIT:.0f})' if guarded else ''}")
    print(f"coverage: {'too little of ' + ', '.join(low) if low else 'ok'}")
    return int(bool(low))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
