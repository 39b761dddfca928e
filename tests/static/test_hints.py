"""Every error says what to do: which `HookError` of the sources has no hint, and why it needs none."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from static.layering import module_name

if TYPE_CHECKING:
    from collections.abc import Iterator

HOOKS = Path(__file__).resolve().parents[2] / "hooks"
SOURCES = sorted((HOOKS / "nvoci").rglob("*.py"))
# module.function -> how many are there, and why each of them needs none.
ALLOWED: dict[str, tuple[int, str]] = {
    "nvoci.hook.settings._check": (1, "the message names the key and what it has to be"),
    "nvoci.prestart.devices.management": (1, "the message says which word is taken, in the words of the reference"),
}


def bare(source: str) -> Iterator[tuple[str, int]]:
    """(the function, the line) of every HookError that is made without a hint, or with an empty one."""
    yield from _walk(ast.parse(source), "")


def _walk(node: ast.AST, function: str) -> Iterator[tuple[str, int]]:
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        function = node.name
    if isinstance(node, ast.Call) and _called(node) == "HookError" and not _has_hint(node):
        yield function, node.lineno
    for child in ast.iter_child_nodes(node):
        yield from _walk(child, function)


def _called(node: ast.Call) -> str:
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def _has_hint(node: ast.Call) -> bool:
    if any(isinstance(each, ast.Starred) for each in node.args) or any(word.arg is None for word in node.keywords):
        return True  # as many as the caller gave
    hints = [*node.args[1:], *[word.value for word in node.keywords if word.arg == "hint"]]
    return bool(hints) and not (isinstance(hints[0], ast.Constant) and hints[0].value == "")


def test_an_error_says_what_to_do_or_is_known_not_to_need_it() -> None:
    found: dict[str, list[int]] = {}
    for path in SOURCES:
        for function, line in bare(path.read_text()):
            found.setdefault(f"{module_name(path, HOOKS)}.{function}", []).append(line)
    assert {name: lines for name, lines in found.items() if len(lines) > ALLOWED.get(name, (0, ""))[0]} == {}
    assert {name: number for name, (number, _) in ALLOWED.items()} == {name: len(found[name]) for name in found}


MADE: dict[str, tuple[str, int]] = {
    "no hint": ("HookError('x: ENOENT')", 1),
    "an empty one": ("HookError('x', '')", 1),
    "an empty one by name": ("HookError('x', hint='')", 1),
    "of a module": ("errors.HookError('x')", 1),
    "a hint": ("HookError('x', 'do')", 0),
    "a hint by name": ("HookError('x', hint=do)", 0),
    "one of two": ("HookError('x', '' if y else 'do')", 0),
    "handed on": ("HookError(*e.args)", 0),
    "another error": ("OSError('x')", 0),
}


@pytest.mark.parametrize(("made", "number"), MADE.values(), ids=MADE)
def test_the_walk_finds_what_has_none(made: str, number: int) -> None:
    assert list(bare(f"def f():\n    raise {made}\n")) == [("f", 2)] * number
