"""The import rules of hooks/nvoci, as data, and the checker that walks the syntax tree."""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

EVERYBODY = {"errors", "log", "jsonfile"}
ROOMS: dict[str, set[str]] = {
    "": set(),  # nvoci/__init__.py: every hook pays for it
    "errors": set(),
    "log": set(),
    "jsonfile": {"linux"},  # opens and writes files through Fd; linux must not import it back
    "linux": set(),
    "elf": {"linux"},
    "ldcache": {"linux", "elf"},
    "oci": set(),
    "hook": {"linux", "elf", "ldcache", "oci"},
    "discover": {"linux", "elf", "ldcache"},
    "prestart": {"discover", "hook", "linux", "elf", "oci", "ldcache"},
    "cdi": {"oci"},
    "inject": {"cdi", "hook", "linux", "oci"},
    "generate": {"discover", "cdi"},
    "ctl": {"linux", "elf", "ldcache", "oci", "hook", "discover", "prestart", "cdi", "inject", "generate"},
}
THIRD_PARTY: dict[str, set[str]] = {
    "discover": {"pynvml", "elftools"},
    "cdi": {"yaml", "fastjsonschema"},
    "ctl": {"click", "structlog", "tomlkit", "yaml"},
}

HOT = {
    "",
    "errors",
    "log",
    "jsonfile",
    "linux",
    "elf",
    "ldcache",
    "oci",
    "hook",
    "discover.model",
    "discover.inventory",
    "discover.record",
    "discover.fingerprint",
    "prestart",
}
# _stat and _struct are the C halves of stat and struct; posix is that of os.
HOT_IMPORTS = set("__future__ sys gc posix errno stat _stat struct _struct fcntl select time _signal _json".split())
HOT_IMPORTS_OF_ROOM = {"linux": {"_ctypes"}}
# What a hot module may import inside a function, with the reason.
HOT_EXCEPTIONS = {
    ("nvoci.jsonfile", "json"): "fallback where the private scanner is missing or has changed",
    ("nvoci.prestart.compile", "tomllib"): "once for each version of config.toml; later starts read what it made",
    ("nvoci.prestart.compile", "tomlkit"): "the same, before Python 3.11",
    ("nvoci.prestart.main", "nvoci_prestart"): "its own modules, in one file of an installed tree",
}
# Which hot module may import one whose name is computed.
COMPUTED = {"nvoci.hook.main": "the subcommand's module, from the table"}


def room_of(module: str) -> str:
    """nvoci.linux.fd -> linux; nvoci -> ""."""
    return module.split(".")[1] if "." in module else ""


def is_hot(module: str) -> bool:
    """Whether a hook process may load it."""
    parts = module.split(".")[1:]
    return ".".join(parts[:1]) in HOT or ".".join(parts[:2]) in HOT


def module_name(path: Path, top: Path) -> str:
    """hooks/nvoci/linux/fd.py -> nvoci.linux.fd."""
    parts = path.relative_to(top).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(tree: ast.AST, module: str, package: str) -> Iterator[tuple[int, str, bool, bool]]:
    """(line, name imported, only for the type checker, inside a function) of every import, however it is written."""
    yield from _walk(tree, package, False, False)


def _walk(node: ast.AST, package: str, typing_only: bool, inside: bool) -> Iterator[tuple[int, str, bool, bool]]:
    for name in _named(node, package):
        yield getattr(node, "lineno", 0), name, typing_only, inside
    if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
        for child in node.body:
            yield from _walk(child, package, True, inside)
        for child in node.orelse:
            yield from _walk(child, package, typing_only, inside)
        return
    inside = inside or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
    for child in ast.iter_child_nodes(node):
        yield from _walk(child, package, typing_only, inside)


def _named(node: ast.AST, package: str) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        parts = package.split(".")
        base = ".".join(parts[: len(parts) - node.level + 1]) if node.level else ""
        source = ".".join(part for part in (base, node.module or "") if part)
        # `from nvoci import log` names a room; `from nvoci import __version__` the package itself.
        return (
            [f"nvoci.{a.name}" if a.name in ROOMS else "nvoci" for a in node.names] if source == "nvoci" else [source]
        )
    if isinstance(node, ast.Call):
        called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if called in {"__import__", "import_module"} and node.args:
            first = node.args[0]
            return [first.value] if isinstance(first, ast.Constant) and isinstance(first.value, str) else ["(computed)"]
    return []


def violations(source: str, module: str, is_package: bool = False) -> list[str]:
    """One line for each import of `module` that the table does not allow."""
    package = module if is_package else module.rpartition(".")[0]
    found = []
    for line, name, typing_only, inside in imports(ast.parse(source), module, package):
        reason = _refusal(module, name, typing_only, inside)
        if reason:
            found.append(f"{module}:{line} imports {name}: {reason}")
    return found


def _refusal(module: str, name: str, typing_only: bool, inside: bool) -> str:
    room, top = room_of(module), name.split(".", maxsplit=1)[0]
    if room not in ROOMS:
        return "a room the table does not know"
    if name == "(computed)":
        return "" if module in COMPUTED or not is_hot(module) else "the name is computed"
    if top == "nvoci":
        other = room_of(name)
        return "" if other in {"", room} | EVERYBODY | ROOMS[room] else f"{room} may not import {other}"
    if typing_only:
        return ""
    if is_hot(module):
        allowed = HOT_IMPORTS | HOT_IMPORTS_OF_ROOM.get(room, set())
        excepted = inside and (module, name) in HOT_EXCEPTIONS
        return "" if name in allowed or excepted else "not on the hot list"
    if top in sys.stdlib_module_names or top in THIRD_PARTY.get(room, set()):
        return ""
    return f"no third-party package of {room}"
