"""Arcs of processes that are forked, killed and sealed, as coverage.py names them."""

from __future__ import annotations

import os
from collections import defaultdict
from pathlib import Path

import pytest
from coverage import Coverage
from lib import arcs, proc, session

SOURCE = """
import os
import posix


def branch(x):
    if x:
        y = 1
    else:
        y = 2
    for n in range(y):
        try:
            raise ValueError(n)
        except ValueError:
            continue
    return y


def numbers():
    for n in range(2):
        yield n


def main():
    branch(1)
    list(numbers())
    if not posix.fork():
        branch(0)
        posix.kill(posix.getpid(), 9)
    os.wait()
    posix._exit(0)


main()
"""


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "hooks/nvoci/program.py"
    path.parent.mkdir(parents=True)
    path.write_text(SOURCE)
    return path


def traced(program: Path) -> set[tuple[int, int]]:
    """Arcs of the program, by the tracer of a copy of arcs.py that takes the program's directory for the package."""
    folder = program.parents[2]
    (folder / "tests/lib").mkdir(parents=True)
    (folder / "tests/lib/arcs.py").write_bytes(Path(arcs.__file__).read_bytes())
    (folder / "found").mkdir()
    argv = [session.PYTHON, "-ISB", folder / "tests/lib/arcs.py", folder / "found", program]
    done = proc.run(list(map(str, argv)))
    assert done.rc == 0, done.stderr
    return {(first, last) for _, first, last in arcs.read(str(folder / "found"))}


def test_what_a_killed_child_did_is_told(program: Path) -> None:
    lines = {abs(n) for arc in traced(program) for n in arc}
    assert lines >= {SOURCE.split("\n").index("        y = 1") + 1, SOURCE.split("\n").index("        y = 2") + 1}


def test_arcs_are_those_of_coverage(program: Path, tmp_path: Path) -> None:
    """The same lines and branches missing as coverage.py's own tracer finds, which sees no killed child."""
    source = SOURCE.replace("    if not posix.fork():\n        branch(0)\n        posix.kill(posix.getpid(), 9)\n", "")
    program.write_text(source.replace("    os.wait()\n    posix._exit(0)\n", ""))
    command = ["-m", "coverage", "run", "--branch", f"--data-file={tmp_path / 'data'}", str(program)]
    done = proc.run([os.path.join(session.CHECKOUT, ".venv/bin/python"), *command], cwd=tmp_path)
    assert done.rc == 0, done.stderr
    theirs = Coverage(data_file=str(tmp_path / "data"), config_file=False)
    theirs.load()
    ours = Coverage(data_file=None, branch=True, config_file=False)
    found = defaultdict(set)
    found[str(program)] |= traced(program)
    ours.get_data().add_arcs(found)
    for report in (ours, theirs):
        assert report.analysis2(str(program))[3] == [source.split("\n").index("        y = 2") + 1]
    assert ours.branch_stats(str(program)) == theirs.branch_stats(str(program)) != {}


def test_the_wrapper_is_a_python_for_everything_else(tmp_path: Path) -> None:
    wrapper = tmp_path / "python"
    wrapper.write_text(arcs.wrapper(str(tmp_path)))
    wrapper.chmod(0o755)
    assert proc.run([str(wrapper), "-ISBc", "print(1)"]).stdout == "1\n"
    (tmp_path / "entry").write_text("import sys\nprint(__name__, sys.argv[1:])\n")
    assert proc.run([str(wrapper), "-ISB", str(tmp_path / "entry"), "x"]).stdout == "__main__ ['x']\n"
