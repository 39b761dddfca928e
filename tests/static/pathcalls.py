"""Calls that hand a path to the kernel, found in a syntax tree, and which of them could leave a directory.

A path is resolved by the kernel from the process's own root unless the call has a `dir_fd`; and with one, a link at its
end, or on the way, leads out of that directory. So of each call this tells how it looks a name up:

    "string"    from the root, or the working directory: nothing holds it below a rootfs
    "follows"   below a handle, but a link at the end is followed
    "handle"    below a handle, and a link at the end is not followed, or a descriptor alone
"""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

# Functions of `posix` and `os` that take a path first. In capitals below: those that follow no link at the end anyway.
_FOLLOW = set(
    "open stat access listdir scandir chmod chown mkfifo truncate utime chdir chroot statvfs getxattr setxattr "
    "removexattr listxattr execv execve posix_spawn posix_spawnp walk fwalk makedirs removedirs renames pathconf "
    "lchmod link".split()
)
_DO_NOT_FOLLOW = set("lstat readlink mkdir mknod symlink unlink remove rmdir rename replace lchown".split())
_OS_PATH = set(
    "exists lexists isfile isdir islink ismount realpath getsize getmtime getatime getctime samefile abspath "
    "expanduser".split()
)
# Of our own modules: those that take a host's path as a string.
_OWN = set("read_file open_regular write_atomic fsync_directory CDLL dlopen umount2 pivot_root mount_by_path".split())
_OWN_MODULES = {"", "jsonfile", "syscalls", "_ctypes", "ctypes"}
_PATHLIB = set(
    "read_text read_bytes write_text write_bytes iterdir glob rglob is_file is_dir is_symlink exists resolve "
    "touch".split()
)
_GIVES_DESCRIPTOR = {"fileno", "open", "reopen", "dup", "fd_path"}
_MODULES = {"posix", "os", "io", "shutil", "tempfile", "glob"}


class Call:
    """function: `Class.name` or `name` around it, "" at the top of the module. called: `posix.open`."""

    def __init__(self, function: str, line: int, called: str, how: str) -> None:
        self.function = function
        self.line = line
        self.called = called
        self.how = how

    def __repr__(self) -> str:
        return f"{self.function}:{self.line} {self.called} ({self.how})"


def calls(source: str) -> list[Call]:
    """All of them, in order."""
    tree = ast.parse(source)
    constants = {
        target.id: node.value
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    return list(_walk(tree, (), constants))


def _walk(node: ast.AST, inside: tuple[str, ...], constants: dict[str, ast.expr]) -> Iterator[Call]:
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        inside = (*inside, node.name)
        constants = {**constants, **_locals(node)}
    if isinstance(node, ast.Call):
        called = _called(node.func)
        how = _how(node, called, constants)
        if how:
            yield Call(".".join(inside), node.lineno, called, how)
    for child in ast.iter_child_nodes(node):
        yield from _walk(child, inside, constants)


def _locals(node: ast.AST) -> dict[str, ast.expr]:
    """What the names of a function stand for, where it is said there; of an argument, its annotation."""
    found: dict[str, ast.expr] = {}
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        found.update({each.arg: each.annotation for each in arguments if each.annotation is not None})
    return found | {
        target.id: each.value
        for each in ast.walk(node)
        if isinstance(each, ast.Assign)
        for target in each.targets
        if isinstance(target, ast.Name)
    }


def _called(func: ast.expr) -> str:
    if isinstance(func, ast.Attribute):
        return f"{_called(func.value)}.{func.attr}" if isinstance(func.value, (ast.Name, ast.Attribute)) else func.attr
    return func.id if isinstance(func, ast.Name) else ""


def _how(node: ast.Call, called: str, constants: dict[str, ast.expr]) -> str:
    """ "" where it is none of these calls."""
    module, _, name = called.rpartition(".")
    if module in {"os.path", "path", "posixpath"} and name in _OS_PATH:
        return "string"
    if (
        called == "open"
        or (name in _OWN and module in _OWN_MODULES)
        or (module in {"shutil", "tempfile", "glob", "io"} and name)
    ):
        return "string"
    if name in _PATHLIB and not module and isinstance(node.func, ast.Attribute):
        return "string"  # Path(…).read_text()
    if called in {"Path", "pathlib.Path"}:
        return "string"
    if module not in _MODULES or name not in _FOLLOW | _DO_NOT_FOLLOW:
        return ""
    if node.args and _is_descriptor(node.args[0], constants):
        return "handle"
    words = {word.arg: word.value for word in node.keywords}
    if not {"dir_fd", "src_dir_fd", "dst_dir_fd"} & set(words):
        return "string"
    if name in _DO_NOT_FOLLOW or _is_empty(node):
        return "handle"
    if name == "open":
        flags = node.args[1] if len(node.args) > 1 else words.get("flags")
        return "handle" if flags is not None and "O_NOFOLLOW" in _names(flags, constants) else "follows"
    follow = words.get("follow_symlinks")
    return "handle" if isinstance(follow, ast.Constant) and follow.value is False else "follows"


def _is_descriptor(first: ast.expr, constants: dict[str, ast.expr]) -> bool:
    """Whether what stands where a path would is `….fileno()`, what another open gave, or an `int`; or what our own
    procfs calls a descriptor."""
    if isinstance(first, ast.Name) and first.id in constants:
        first = constants[first.id]
    if isinstance(first, ast.Name):
        return first.id == "int"  # the annotation of an argument
    return isinstance(first, ast.Call) and _called(first.func).rpartition(".")[2] in _GIVES_DESCRIPTOR


def _is_empty(node: ast.Call) -> bool:
    first = node.args[0] if node.args else None
    return isinstance(first, ast.Constant) and first.value in {b"", "", b".", b"..", "."}


def _names(node: ast.expr, constants: dict[str, ast.expr], depth: int = 0) -> set[str]:
    """All names in an expression, and in what they stand for."""
    found: set[str] = set()
    for each in ast.walk(node):
        name = each.attr if isinstance(each, ast.Attribute) else each.id if isinstance(each, ast.Name) else ""
        if name and name not in found:
            found.add(name)
            if name in constants and depth < 8:
                found |= _names(constants[name], constants, depth + 1)
    return found
