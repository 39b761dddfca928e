"""ctypes is known to one room, and what a function of libc takes is said once, where the function is made."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

HOOKS = Path(__file__).resolve().parents[2] / "hooks"
SOURCES = sorted((HOOKS / "nvoci").rglob("*.py"))
ATTRIBUTES = {"argtypes", "restype", "_argtypes_", "_restype_", "errcheck", "_flags_"}
# Who may set one, and why.
SETTERS = {
    "nvoci/linux/libc.py": "the room's own types of functions, made once when it is imported",
}
# Who knows ctypes beside that room.
USERS = {
    "nvoci/linux/libc.py": "the calls",
    "nvoci/linux/bpf.py": "the type of a buffer, for the type checker",
    "nvoci/linux/syscalls.py": "the type of a buffer, for the type checker",
    "nvoci/discover/_nvml_child.py": "a process of its own, which loads NVML and is no hook",
}


def prototypes(source: str) -> Iterator[tuple[int, str, bool]]:
    """(line, attribute, inside a function) of each assignment of one."""
    yield from _walk(ast.parse(source), False)


def _walk(node: ast.AST, inside: bool) -> Iterator[tuple[int, str, bool]]:
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    for target in targets:
        name = target.attr if isinstance(target, ast.Attribute) else target.id if isinstance(target, ast.Name) else ""
        if name in ATTRIBUTES:
            yield target.lineno, name, inside
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "setattr":
        named = node.args[1] if len(node.args) > 1 else None
        if isinstance(named, ast.Constant) and named.value in ATTRIBUTES:
            yield node.lineno, str(named.value), inside
    inside = inside or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
    for child in ast.iter_child_nodes(node):
        yield from _walk(child, inside)


def _name(path: Path) -> str:
    return str(path.relative_to(HOOKS))


def test_a_prototype_is_set_in_one_place_for_a_function_that_was_just_made() -> None:
    found = {_name(path): list(prototypes(path.read_text())) for path in SOURCES}
    assert {name for name, lines in found.items() if lines} == set(SETTERS)
    assert [line[1] for lines in found.values() for line in lines if line[2]] == ["argtypes"]


def test_functions_of_libc_are_made_when_a_module_is_imported_and_each_once() -> None:
    """`load` of nvoci.linux.libc is called at the top of a module only: no call finds another prototype than the one
    before it."""
    made: list[str] = []
    for path in SOURCES:
        tree = ast.parse(path.read_text())
        top = {id(node.value) for node in tree.body if isinstance(node, (ast.Assign, ast.AnnAssign)) and node.value}
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and _is_load(node, tree):
                assert id(node) in top, f"{_name(path)}:{node.lineno}"
                made.append(ast.literal_eval(node.args[0]))
    assert made
    assert len(set(made)) == len(made)


def _is_load(node: ast.Call, tree: ast.Module) -> bool:
    """Whether it is that function, here or imported."""
    own = any(isinstance(each, ast.FunctionDef) and each.name == "load" for each in tree.body)
    imported = any(
        isinstance(each, ast.ImportFrom)
        and each.module == "nvoci.linux.libc"
        and "load" in {a.name for a in each.names}
        for each in tree.body
    )
    called = ast.unparse(node.func)
    about_libc = imported or (
        own and any(isinstance(each, ast.ClassDef) and each.name == "_Function" for each in tree.body)
    )
    return (called == "load" and about_libc) or called == "libc.load"


def test_ctypes_is_known_to_one_room() -> None:
    users = set()
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if {name.partition(".")[0] for name in names} & {"ctypes", "_ctypes", "cffi"}:
                users.add(_name(path))
    assert users == set(USERS)


def test_a_prototype_that_is_set_for_each_call_is_found() -> None:
    assert list(prototypes("def f():\n    libc.mount.argtypes = [int]\n")) == [(2, "argtypes", True)]
    assert list(prototypes("libc.mount.restype = int\n")) == [(1, "restype", False)]
    assert list(prototypes("class A:\n    _restype_ = int\n")) == [(2, "_restype_", False)]
    assert list(prototypes("setattr(libc.mount, 'errcheck', f)\n")) == [(1, "errcheck", False)]
    assert list(prototypes("x = libc.mount\n")) == []
