"""The form of the sources: sizes, docstrings, words; ruff, mypy and shellcheck."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
VENV = ROOT / ".venv/bin"
FILE_LINES = 400
FUNCTION_LINES = 60
TEXT = {"", ".py", ".md", ".toml", ".json", ".c", ".h", ".sh", ".conf"}


def plain_files() -> list[Path]:
    """Everything of the project that is text: no cache, no venv, nothing git ignores at the top."""
    tops = ["hooks", "scripts", "tests", "oci-hooks.d", "systemd", "docs", ".ci"]
    found = [p for top in tops for p in (ROOT / top).rglob("*") if p.is_file() and p.suffix in TEXT]
    found += [p for p in ROOT.iterdir() if p.is_file() and p.suffix in TEXT and p.name != ".git"]
    return sorted(p for p in found if "__pycache__" not in p.parts and "data" not in p.relative_to(ROOT).parts)


def first_line(path: Path) -> str:
    """The #! line, or whatever stands there."""
    return path.read_text(errors="replace").split("\n", 1)[0]


FILES = plain_files()
PYTHON = [p for p in FILES if p.suffix == ".py" or (not p.suffix and re.match(r"#!.*python", first_line(p)))]
SHELL = [p for p in FILES if re.match(r"#!.*\b(ba|da)?sh\b", first_line(p))]
PROGRAMS = [p for p in FILES if p.parent.name in {"scripts", ".ci"} and first_line(p).startswith("#!")]


def name_of(path: Path) -> str:
    """For the test's id."""
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", PYTHON, ids=name_of)
def test_python_file_is_short_and_says_what_it_is(path: Path) -> None:
    source = path.read_text()
    tree = ast.parse(source)
    functions = [n for n in ast.walk(tree) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))]
    long = [f"{f.name}: {size}" for f in functions if (size := (f.end_lineno or 0) - f.lineno + 1) > FUNCTION_LINES]
    assert not long
    assert len(source.splitlines()) <= FILE_LINES
    assert ast.get_docstring(tree)


@pytest.mark.parametrize("path", PYTHON, ids=name_of)
def test_public_class_and_function_of_the_package_is_annotated(path: Path) -> None:
    bare = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            bare += [
                f"{node.name}({a.arg})" for a in arguments if a.annotation is None and a.arg not in {"self", "cls"}
            ]
            bare += [f"{node.name} ->"] if node.returns is None else []
    assert not bare


def test_the_walk_finds_the_sources() -> None:
    assert {"hooks/nvoci/__init__.py", "scripts/install"} <= {name_of(p) for p in PYTHON}
    assert {"scripts/test", "scripts/setup-venv", ".ci/run"} <= {name_of(p) for p in SHELL}


# Written in pieces, so that this file passes its own test.
FORBIDDEN = {
    "unfinished work": re.compile(r"\b(TO" + r"DO|FIX" + r"ME|XX" + r"X)\b"),
    "a developer's path": re.compile(r"/wo" + r"rk/|/ho" + r"me/[a-z]|/ro" + r"ot/\.|\.\./sha" + r"red"),
    "a conflict": re.compile(r"^(<{7}|>{7}) ", re.MULTILINE),
}


@pytest.mark.parametrize("what", FORBIDDEN)
def test_no_file_holds(what: str) -> None:
    found = []
    for path in FILES:
        text = path.read_text(errors="replace")
        found += [
            f"{name_of(path)}:{text.count(chr(10), 0, m.start()) + 1}: {m[0]}" for m in FORBIDDEN[what].finditer(text)
        ]
    assert not found


@pytest.mark.parametrize("path", PROGRAMS, ids=name_of)
def test_program_is_executable_and_names_an_absolute_interpreter(path: Path) -> None:
    assert path.stat().st_mode & 0o111 == 0o111
    assert re.match(r"#!/(bin/bash|bin/sh|usr/bin/python3)( |$)", first_line(path))


def test_scripts_hold_no_unused_executable_bit() -> None:
    assert [p for p in (ROOT / "hooks").rglob("*.py") if p.stat().st_mode & 0o111] == []


def run(*command: str | Path) -> tuple[int, str]:
    """Exit status and output of a checker."""
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    return done.returncode, done.stdout + done.stderr


def test_ruff() -> None:
    code, output = run(VENV / "ruff", "check", "--no-cache", "--output-format=concise", "hooks", "scripts", "tests")
    assert code == 0, output


def test_ruff_finds_something_in_a_naive_file(tmp_path: Path) -> None:
    (tmp_path / "naive.py").write_text("def f(x, y=[]):\n    try:\n        return eval(x)\n    except:\n        pass\n")
    code, output = run(VENV / "ruff", "check", "--no-cache", "--config", ROOT / "pyproject.toml", tmp_path)
    assert code == 1
    assert {"ANN001", "B006", "E722"} <= set(re.findall(r"[A-Z]+\d+", output))


NAMES = ("install", "_install_hot_loader.py", "_demo.py", "bench", "simnode")
PROGRAMS = [(), *(("scripts/" + name,) for name in NAMES)]


@pytest.mark.parametrize("what", PROGRAMS, ids=str)
def test_mypy(what: tuple[str, ...]) -> None:
    missing = [name for name in what if not (ROOT / name).exists()]
    assert not missing
    code, output = run(VENV / "mypy", "--no-error-summary", *what)
    assert code == 0, output


def test_shellcheck() -> None:
    assert shutil.which("shellcheck"), "scripts/test installs it"
    code, output = run("shellcheck", "-x", *SHELL)
    assert code == 0, output
