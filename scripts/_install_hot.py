"""Make `nvoci_hot.pyc`: all that a hook process may import of nvoci, in one file beside the package. And
the same for the prestart hook, in two files, since it is called for every container: `nvoci_ask.pyc` for the question
whether it wants a GPU, `nvoci_prestart.pyc` for those that do; and `nvoci_cli.pyc` for nvidia-container-cli.

    PYTHON -ISB -X no_debug_ranges _install_hot.py STAGING FINAL      (by the interpreter the hooks will run on)

An entry file imports one first. It is an ordinary sourceless .pyc, so the interpreter itself refuses one that another
Python made; then, or when it is missing or damaged, the entry file's imports find the package as they do without it.
Nothing here is a list by hand: what a hook may import follows from the import statements below `nvoci.hook.main` (or
one of the others' roots), and from the strings there that name a module (the table of hooks has one for each).

Measured with Python 3.11 (start of the interpreter alone: 5.6 ms): a hook with one link 8.8 -> 7.4 ms, 1.57 -> 1.33
times that; enable-cuda-compat 9.2 -> 7.5 ms; five hooks in one process 2 ms less.

The code is that of the sources, less what a hook never looks at: annotations, docstrings, the type checker's imports,
columns of tracebacks.
"""

from __future__ import annotations
import __future__

import ast
import marshal
import sys
from _frozen_importlib_external import MAGIC_NUMBER
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Union

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import CodeType

LOADER = Path(__file__).with_name("_install_hot_loader.py")


class Bundle(NamedTuple):
    """core: with what they import at once, what every start of it executes. root: the module that decides what else may
    be needed, which waits until it is imported; "" for nothing. after: a bundle that is loaded before."""

    core: tuple[str, ...]
    root: str = ""
    after: str = ""


NAME, ASK, PRESTART, CLI = "nvoci_hot", "nvoci_ask", "nvoci_prestart", "nvoci_cli"
BUNDLES = {
    NAME: Bundle(("nvoci.hook.main", "nvoci.hook.work", "nvoci.oci.config"), "nvoci.hook.main"),
    ASK: Bundle(("nvoci.prestart.main",)),
    PRESTART: Bundle(("nvoci.prestart.start", "nvoci.hook.grant", "nvoci.hook.ldbuiltin"), "nvoci.prestart.start", ASK),
    CLI: Bundle(("nvoci.prestart.cli",), "nvoci.prestart.cli"),
}
# What is loaded from its files, since few starts need it: a subcommand of a room of its own, a look at the node, TOML.
COLD = ("nvoci.inject", "nvoci.discover.", "nvoci.prestart.compile")
NOT_COLD = tuple(f"nvoci.discover.{name}" for name in ("model", "record", "fingerprint", "inventory"))
FLAGS_AND_HASH = b"\1\0\0\0" + bytes(8)  # PEP 552: hash-based, not checked

Function = Union[ast.FunctionDef, ast.AsyncFunctionDef]


class Slim(ast.NodeTransformer):
    """Drops what costs a start and does nothing in it. Never an assert."""

    def visit_Module(self, node: ast.Module) -> ast.AST:
        """Its docstring."""
        return self._without_docstring(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        """Its docstring."""
        return self._without_docstring(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        """Its docstring and annotations."""
        return self._without_annotations(node)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> ast.AST:
        """The same."""
        return self._without_annotations(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        """`x: int = 1` becomes `x = 1`."""
        self.generic_visit(node)
        return ast.copy_location(ast.Assign([node.target], node.value) if node.value else ast.Pass(), node)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.AST | None:
        """`from __future__ import annotations` is a real import too (0.12 ms); the compiler is told by a flag."""
        return None if node.module == "__future__" else node

    def visit_If(self, node: ast.If) -> ast.AST | list[ast.stmt]:
        """`if TYPE_CHECKING:`, a constant of each module that is False when it runs."""
        self.generic_visit(node)
        dead = isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        return (node.orelse or ast.copy_location(ast.Pass(), node)) if dead else node

    def _without_docstring(self, node: ast.Module | ast.ClassDef | Function) -> ast.AST:
        self.generic_visit(node)
        if ast.get_docstring(node, clean=False) is not None:
            node.body[:1] = [] if node.body[1:] else [ast.copy_location(ast.Pass(), node.body[0])]
        return node

    def _without_annotations(self, node: Function) -> ast.AST:
        node.returns = None
        every = node.args
        for each in (*every.posonlyargs, *every.args, *every.kwonlyargs, every.vararg, every.kwarg):
            if each is not None:
                each.annotation = None
        return self._without_docstring(node)


class Package:
    """The modules below a directory: their syntax trees when asked for, and who needs whom."""

    def __init__(self, top: Path, final: str) -> None:
        self.top, self.final = top, final
        self.paths = {module_name(path.relative_to(top)): path for path in sorted(top.glob("nvoci/**/*.py"))}
        self.trees: dict[str, ast.Module] = {}

    def tree(self, name: str) -> ast.Module:
        """Slim, parsed once."""
        if name not in self.trees:
            self.trees[name] = slim(self.paths[name])
        return self.trees[name]

    def place(self, name: str) -> str:
        """Where the source will be: `__file__` and co_filename."""
        return f"{self.final}/{self.paths[name].relative_to(self.top)}"

    def code(self, name: str) -> CodeType:
        """Compiled by the interpreter that runs this."""
        return compile_slim(self.tree(name), self.place(name))

    def order(self, *roots: str, late: bool = False) -> list[str]:
        """`roots` and all they import, each after what it imports; `late`: imports inside functions, and strings that
        name a module, count too."""
        found: dict[str, None] = {}
        entered = set()

        def visit(name: str) -> None:
            if name in self.paths and name not in entered and not is_cold(name):
                entered.add(name)
                visit(name.rpartition(".")[0])
                for other in named(self.tree(name), late):
                    visit(other)
                found[name] = None

        for root in roots:
            visit(root)
        return list(found)


def named(node: ast.AST, late: bool) -> Iterator[str]:
    """The names an import statement may take for modules: `from a import b` may mean a.b."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            yield child.module or ""
            yield from (f"{child.module}.{alias.name}" for alias in child.names)
        elif late and isinstance(child, ast.Constant) and isinstance(child.value, str):
            yield child.value
        if late or not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            yield from named(child, late)


def is_cold(name: str) -> bool:
    """Whether no bundle has this module."""
    return name.startswith(COLD) and name not in NOT_COLD


def module_name(path: Path) -> str:
    """nvoci/linux/fd.py -> nvoci.linux.fd; nvoci/linux/__init__.py -> nvoci.linux."""
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def slim(path: Path) -> ast.Module:
    """The syntax tree of a source, without what Slim drops."""
    tree = Slim().visit(ast.parse(path.read_bytes()))
    assert isinstance(tree, ast.Module)
    return ast.fix_missing_locations(tree)


def compile_slim(tree: ast.Module, place: str) -> CodeType:
    """With the flag that stands for the import Slim drops."""
    flags = __future__.annotations.compiler_flag
    return compile(tree, place, "exec", flags=flags, dont_inherit=True)  # type: ignore[no-any-return]


def bundle(package: Package, name: str) -> bytes:
    """The whole .pyc file: the loader and, last, its call."""
    wanted = BUNDLES[name]
    before = package.order(*BUNDLES[wanted.after].core) if wanted.after else []
    core = [module for module in package.order(*wanted.core) if module not in before]
    late = package.order(wanted.root, late=True) if wanted.root else []
    rest = [module for module in late if module not in core and module not in before]
    needs = {module: tuple(each for each in package.order(module)[:-1] if each in rest) for module in rest}
    data = {
        "(core)": tuple((each, package.place(each), package.code(each)) for each in core),
        "(rest)": tuple((m, (package.place(m), needs[m], marshal.dumps(package.code(m)))) for m in rest),
    }
    program = slim(LOADER)
    program.body.append(ast.Expr(ast.Call(ast.Name("start", ast.Load()), [ast.Constant(word) for word in data], [])))
    code = compile_slim(ast.fix_missing_locations(program), f"{package.final}/{name}.pyc")
    # A source cannot say "this code object": the call is compiled with two strings, and these are then exchanged.
    # Marshalled bytes in their place would do, and cost a hook 0.2 ms.
    code = code.replace(co_consts=tuple(data.get(each, each) for each in code.co_consts))
    return bytes(MAGIC_NUMBER) + FLAGS_AND_HASH + marshal.dumps(code)


if __name__ == "__main__":
    staging = Path(sys.argv[1])
    package = Package(staging, sys.argv[2])
    for each, wanted in BUNDLES.items():
        if wanted.core[0] in package.paths:
            (staging / f"{each}.pyc").write_bytes(bundle(package, each))
