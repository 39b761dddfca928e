"""No path of a container is handed to the kernel as a string: every call that could is listed with its reason."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from static import pathrules
from static.layering import ROOMS as ALL_ROOMS
from static.layering import module_name
from static.pathcalls import calls
from static.pathrules import ALSO, EXCEPTIONS, HOST_ONLY, RESOLVES

HOOKS = Path(__file__).resolve().parents[2] / "hooks"
MODULES = {
    module_name(path, HOOKS).removeprefix("nvoci").removeprefix("."): path
    for path in sorted((HOOKS / "nvoci").rglob("*.py"))
}
CHECKED = [name for name in MODULES if name.split(".")[0] in pathrules.ROOMS or name in ALSO]


def found_in(name: str, source: str) -> dict[str, set[str]]:
    """`module:function` -> the calls that no handle holds."""
    out: dict[str, set[str]] = {}
    for call in calls(source):
        if call.how != "handle":
            out.setdefault(f"{name}:{call.function}", set()).add(call.called)
    return out


FOUND = {key: called for name in CHECKED for key, called in found_in(name, MODULES[name].read_text()).items()}


def test_each_path_that_no_handle_holds_is_listed_with_its_reason() -> None:
    allowed = {key: set(called.split()) for key, (called, _) in EXCEPTIONS.items()}
    unlisted = {key: sorted(called - allowed.get(key, set())) for key, called in FOUND.items()}
    assert {key: called for key, called in unlisted.items() if called} == {}


def test_no_exception_is_unused() -> None:
    unused = {key: sorted(set(called.split()) - FOUND.get(key, set())) for key, (called, _) in EXCEPTIONS.items()}
    assert {key: called for key, called in unused.items() if called} == {}


def test_each_has_a_reason_and_every_room_is_accounted_for() -> None:
    assert all(len(reason.split()) >= 4 for _, reason in EXCEPTIONS.values())
    assert {*pathrules.ROOMS, *HOST_ONLY} == set(ALL_ROOMS)
    assert set(ALSO) <= set(MODULES)


def test_the_rooms_of_the_host_get_no_handle_of_a_root() -> None:
    """Who imports what resolves below a root is checked above."""
    for name, path in MODULES.items():
        if name in CHECKED:
            continue
        imported = {
            node.module for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)
        }  # fmt: skip
        assert not imported & {f"nvoci.{each}" for each in RESOLVES}, name


ROOT_NAMES = {"rootfs", "root", "container", "rootfs_path", "container_root"}
PATH_NAMES = {"path", "unsafe_path", "name", "target", "link", "file"}
# A root given as a string together with a path below it: module:function -> why.
_DRIVER_ROOT = "the driver's root, of the host; it becomes a handle in the first line, and the path is looked up below"
_PASSED_ON = "of the driver's root: handed on to what makes a handle of it"
STRINGS: dict[str, str] = {
    "discover.nvml:_open": _DRIVER_ROOT,
    "discover.nvml:open_library": _PASSED_ON,
    "discover.look:_Asked.__init__": _PASSED_ON,
    "discover.inventory:open_source": _DRIVER_ROOT,
    "prestart.clinode:resolved": _DRIVER_ROOT,
    "prestart.tls:_refusal_of": _PASSED_ON,
    "ctl.ldcache:show": "options of a command line, which become a handle",
    "ctl.ldcache:explain": "options of a command line, which become a handle",
}


def string_pairs(source: str) -> list[str]:
    """Functions that take a root as str or bytes, and a path beside it."""
    found = []

    def walk(node: ast.AST, inside: tuple[str, ...]) -> None:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            inside = (*inside, node.name)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            arguments = {
                each.arg: ast.unparse(each.annotation) if each.annotation else ""
                for each in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
            }
            texts = {name for name, kind in arguments.items() if kind.split(" |")[0] in {"str", "bytes", "Path"}}
            if texts & ROOT_NAMES and texts & PATH_NAMES:
                found.append(".".join(inside))
        for child in ast.iter_child_nodes(node):
            walk(child, inside)

    walk(ast.parse(source), ())
    return found


def test_no_function_takes_the_root_as_a_string_and_a_path_below_it() -> None:
    found = {f"{name}:{each}" for name in CHECKED for each in string_pairs(MODULES[name].read_text())}
    assert found == set(STRINGS)
    assert string_pairs("class A:\n    def f(self, rootfs: str, unsafe_path: bytes | None) -> None: ...") == ["A.f"]
    assert string_pairs("def f(rootfs: Rootfs, unsafe_path: bytes) -> None: ...") == []


NAIVE: dict[str, tuple[str, str]] = {
    "joined to the root": ("hook.x", "def f(root, path):\n    return posix.open(root + path, posix.O_RDONLY)"),
    "by os": ("hook.x", "def f(root, path):\n    return os.stat(os.path.join(root, path))"),
    "realpath": ("prestart.x", "def f(path):\n    return os.path.realpath(path)"),
    "the builtin": ("inject.x", "def f(path):\n    with open(path) as file:\n        return file.read()"),
    "pathlib": ("ldcache.x", "def f(path):\n    return pathlib.Path(path)"),
    "pathlib's method": ("ldcache.x", "def f(path):\n    return (root() / path).read_text()"),
    "a handle, and its links followed": ("hook.x", "def f(r, n):\n    return posix.open(n, posix.O_RDONLY, dir_fd=r)"),
    "stat that follows": ("hook.x", "def f(r, n):\n    return posix.stat(n, dir_fd=r)"),
    "a host file's reader on a container's": ("elf.x", "def f(path):\n    return jsonfile.read_file(path, 9, '')"),
    "flags from a constant that follows": (
        "hook.x", "_F = posix.O_PATH\ndef f(r, n):\n    return posix.open(n, _F, dir_fd=r)",
    ),
    "rename by name": ("hook.x", "def f(a, b):\n    posix.rename(a, b)"),
    "mount by name": ("hook.x", "def f(a, b):\n    mount_by_path(a, b, None, 0)"),
    "loaded": ("linux.x", "def f(a):\n    return ctypes.CDLL(a)"),
    "by shutil": ("hook.x", "def f(a, b):\n    shutil.copy(a, b)"),
}  # fmt: skip


@pytest.mark.parametrize("case", NAIVE)
def test_a_naive_function_is_found(case: str) -> None:
    name, source = NAIVE[case]
    assert set(found_in(name, source)) == {f"{name}:f"}


GOOD: dict[str, str] = {
    "a handle and O_NOFOLLOW": "def f(r, n):\n    return posix.open(n, posix.O_PATH | posix.O_NOFOLLOW, dir_fd=r)",
    "flags from a constant": "_F = posix.O_PATH | posix.O_NOFOLLOW\ndef f(r, n):\n    posix.open(n, _F, dir_fd=r)",
    "of a constant of a constant": "_A = posix.O_NOFOLLOW\n_F = _A | 1\ndef f(r, n):\n    posix.open(n, _F, dir_fd=r)",
    "stat that does not follow": "def f(r, n):\n    return posix.stat(n, dir_fd=r, follow_symlinks=False)",
    "a descriptor": "def f(r):\n    return posix.listdir(r.fileno())",
    "an int": "def f(fd: int):\n    return posix.listdir(fd)",
    "the very object": "def f(r):\n    return posix.readlink(b'', dir_fd=r)",
    "what our procfs calls it": "def f(fd):\n    posix.chmod(procfs.fd_path(fd), 0o7, dir_fd=procfs.handle())",
    "a method of the root": "def f(rootfs, path):\n    return rootfs.read_file(path, 9)",
}


@pytest.mark.parametrize("case", GOOD)
def test_a_function_with_handles_passes(case: str) -> None:
    assert found_in("hook.x", GOOD[case]) == {}
