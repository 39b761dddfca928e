"""No import once a container may be looked at: what the sources may import late, and what each program really does.

An import reads files by name. Before the container's root is entered `process.seal_imports` takes away what could.
"""

from __future__ import annotations

import ast
import functools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from lib import hookproc, proc, session
from lib.hookproc import FakeContainer
from security import arena as arenas
from security import prestartscene
from security.prestartscene import Scene
from static.layering import is_hot, module_name, room_of
from static.sealrules import LATE
from unit.inject.thing import Thing

from nvoci.hook import table

HOOKS = Path(__file__).resolve().parents[2] / "hooks"
SOURCES = {
    module_name(path, HOOKS): path
    for path in sorted((HOOKS / "nvoci").rglob("*.py"))
    if is_hot(module_name(path, HOOKS)) or room_of(module_name(path, HOOKS)) == "inject"
}
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="containers need root")

# -- the sources ------------------------------------------------------------------------------------------------------


def late_imports(source: str) -> Iterator[tuple[str, int, str]]:
    """(function, line, module) of every import inside a function."""
    yield from _walk(ast.parse(source), ())


def _walk(node: ast.AST, inside: tuple[str, ...]) -> Iterator[tuple[str, int, str]]:
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        inside = (*inside, node.name)
    function = ".".join(inside)
    if inside and isinstance(node, ast.Import):
        yield from ((function, node.lineno, alias.name) for alias in node.names)
    if inside and isinstance(node, ast.ImportFrom):
        yield function, node.lineno, node.module or "."
    if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in {"__import__", "import_module"}:
        first = node.args[0] if node.args else None
        named = isinstance(first, ast.Constant)
        yield function, node.lineno, str(first.value) if isinstance(first, ast.Constant) and named else "(computed)"
    for child in ast.iter_child_nodes(node):
        yield from _walk(child, inside)


@functools.cache
def found() -> dict[str, set[str]]:
    """As LATE has it."""
    out: dict[str, set[str]] = {}
    for name, path in SOURCES.items():
        for function, _, module in late_imports(path.read_text()):
            out.setdefault(f"{name.removeprefix('nvoci.')}:{function}", set()).add(module)
    return out


def test_each_late_import_of_a_hook_process_is_listed_with_its_reason() -> None:
    listed = {key: set(modules.split()) for key, (modules, _) in LATE.items()}
    unlisted = {key: sorted(modules - listed.get(key, set())) for key, modules in found().items()}
    assert {key: modules for key, modules in unlisted.items() if modules} == {}


def test_no_late_import_is_listed_that_is_not_there() -> None:
    unused = {key: sorted(set(modules.split()) - found().get(key, set())) for key, (modules, _) in LATE.items()}
    assert {key: modules for key, modules in unused.items() if modules} == {}
    assert all(len(reason.split()) >= 4 for _, reason in LATE.values())


def imports_behind_the_seal(source: str) -> list[tuple[str, int]]:
    """(function, line) of an import that stands behind a call of seal_imports in the same function."""
    out = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.FunctionDef):
            continue
        calls = [each for each in ast.walk(node) if isinstance(each, ast.Call)]
        sealed = [each.lineno for each in calls if ast.unparse(each.func).endswith("seal_imports")]
        lines = [line for _, line, _ in late_imports(ast.unparse(ast.Module([node], [])))]
        inside = [
            each.lineno
            for each in ast.walk(node)
            if isinstance(each, (ast.Import, ast.ImportFrom))
            or (isinstance(each, ast.Call) and ast.unparse(each.func).endswith(("__import__", "import_module")))
        ]
        assert len(lines) <= len(inside)
        out += [(node.name, line) for line in inside if sealed and line > min(sealed)]
    return out


def test_no_import_stands_behind_the_seal() -> None:
    wrong = {name: imports_behind_the_seal(path.read_text()) for name, path in SOURCES.items()}
    assert {name: lines for name, lines in wrong.items() if lines} == {}
    assert imports_behind_the_seal("def f():\n    process.seal_imports()\n    import json\n") == [("f", 3)]
    assert imports_behind_the_seal("def f():\n    import json\n    process.seal_imports()\n") == []


NAIVE = {
    "import": "def f():\n    import json",
    "from": "class A:\n    def f(self):\n        from nvoci import log",
    "by call": "def f():\n    __import__('json')",
    "by a computed name": "def f(name):\n    importlib.import_module(name)",
}


@pytest.mark.parametrize("case", NAIVE)
def test_a_naive_late_import_is_found(case: str) -> None:
    assert len(list(late_imports(NAIVE[case]))) == 1


# -- the programs -----------------------------------------------------------------------------------------------------

# Tells, once imports are sealed: that it was, each import that is tried from then on, and that none can succeed.
WATCH = """
from nvoci.hook import process as _process
import posix as _posix

_looking = False

def _tell(text):
    _posix.write(_report, text.encode() + b"\\n")

def _see(event, words):
    if event == "import" and not _looking:
        _tell("TRIED " + str(words[0]))

def _seal(real=_process.seal_imports):
    global _report, _looking
    _looking = True
    _report = _posix.open({report!r}, _posix.O_WRONLY | _posix.O_CREAT | _posix.O_APPEND, 0o666)
    real()
    for name in {names!r}:
        if name in sys.modules:
            continue
        try:
            __import__(name)
        except ImportError:
            _tell("refused " + name)
        else:
            _tell("IMPORTED " + name)
    left = (sys.path, sys.meta_path, sys.path_hooks, dict(sys.path_importer_cache))
    _tell("sealed " + str(_posix.getpid()) + " " + repr(left))
    sys.addaudithook(_see)
    _looking = False
    {extra}

_process.seal_imports = _seal
"""
NAMES = (
    "json",
    "colorsys",
    "_bisect",
    "nvoci.ctl.main",
    "nvoci.hook.noop",
    "zipimport",
    "json.decoder",
    "encodings.cp037",
)
START = "import sys\nsys.path[:0] = [{hooks!r}]\nsys.path.append({vendor!r})\n"
SEALED = "([], [], [], {})"


class Watched:
    """A program with WATCH in it, and what that told. extra: more that it does behind the seal."""

    def __init__(self, module: str, function: str, extra: str = "pass") -> None:
        folder = session.new_dir("sealed")
        folder.chmod(0o777)
        self.report = folder / "report"
        self.watch = WATCH.format(report=str(self.report), names=NAMES, extra=extra)
        self.program = folder / "nvidia-cdi-hook"
        vendor = str(Path(prestartscene.pynvml.__file__).parent)
        start = START.format(hooks=str(session.HOOKS), vendor=vendor)
        self.program.write_text(f"{start}{self.watch}\nfrom {module} import {function}\n{function}()\n")

    def judged(self, result: proc.Result, processes: int) -> list[str]:
        """What is wrong. processes: how many have sealed."""
        told = self.report.read_text().splitlines() if self.report.exists() else []
        out = [] if result.rc == 0 else [f"exit status {result.rc}: {result.stderr}"]
        out += [line for line in told if not line.startswith(("refused ", "sealed "))]
        sealed = [line.split(" ", 2)[1:] for line in told if line.startswith("sealed ")]
        out += [left for _, left in sealed if left != SEALED]
        seen = len({number for number, _ in sealed})
        if seen != processes:
            out.append(f"{seen} processes sealed their imports, not {processes}")
        refused = {line.partition(" ")[2] for line in told if line.startswith("refused ")}
        return out + ([] if "colorsys" in refused else ["nothing was tried"])


LINKS = ["create-symlinks", "--link", "a::/opt/b", "--link-if", "/dev/nvidia0=a::/opt/c"]
CALLS: dict[str, Sequence[str]] = {
    "create-symlinks": LINKS,
    "chmod": ["chmod", "--path", "/etc", "--mode", "755"],
    "enable-cuda-compat": ["enable-cuda-compat", "--host-driver-version", "550.54.15"],
    "update-ldcache": ["update-ldcache", "--folder", "/opt/nvidia/lib"],
    "update-ldcache by ldconfig": ["update-ldcache", "--engine", "ldconfig", "--folder", "/opt/nvidia/lib"],
    "disable-device-node-modification": ["disable-device-node-modification"],
    "update-application-profile": ["update-application-profile"],
    "dry run": ["update-ldcache", "--dry-run", "--folder", "/opt/nvidia/lib"],
    "run": ["run", "--", *LINKS, "--", "update-ldcache", "--folder", "/lib", "--", "update-application-profile"],
}  # fmt: skip
# Hooks of the table that are watched below, or are made for tests.
ELSEWHERE = {"inject", "mount-mig-devices"}
PROCESSES = {"outside": 2, "inside": 1}
NOTHING_TO_DO = {"disable-device-node-modification"}  # on a machine without a driver


def test_every_hook_is_watched() -> None:
    assert {words[0] for words in CALLS.values()} | ELSEWHERE >= {n for n, h in table.HOOKS.items() if not h.hidden}


@needs_root
@pytest.mark.parametrize("stage", PROCESSES)
@pytest.mark.parametrize("name", [name for name in CALLS if name not in NOTHING_TO_DO])
def test_a_hook_imports_nothing_behind_the_seal(name: str, stage: str, tmp_path: Path) -> None:
    arena, watched = arenas.make(tmp_path), Watched("nvoci.hook.main", "cdi_hook")
    with FakeContainer(arena.root, setup=arenas.GPU_NODE) as container:
        result = arenas.run(CALLS[name], container, stage, program=watched.program)
    assert watched.judged(result, PROCESSES[stage]) == []


@needs_root
@pytest.mark.parametrize("stage", PROCESSES)
def test_inject_imports_nothing_behind_the_seal(stage: str, tmp_path: Path) -> None:
    arena, watched, thing = arenas.make(tmp_path), Watched("nvoci.hook.main", "cdi_hook"), Thing()
    nodes = [{"path": "/dev/thing", "hostPath": "/dev/zero", "permissions": "none"}]
    thing.write({"a": {"mounts": [thing.mount("libthing.so", "/opt/thing", "ro", "bind")], "deviceNodes": nodes}})
    with FakeContainer(arena.root) as container:
        result = arenas.run(thing.words(), container, stage, program=watched.program)
    assert watched.judged(result, PROCESSES[stage]) == []


def _prestart() -> list[str]:
    """On the node: from looking anew, and from the inventory."""
    out = []
    for _ in range(2):
        watched = Watched("nvoci.prestart.main", "main")
        with Scene("devices").container() as site:
            result = hookproc.run_hook(["prestart"], container=site.container, program=watched.program, timeout=30)
        out += watched.judged(result, 2)
    return out


def _cli() -> list[str]:
    watched = Watched("nvoci.prestart.cli", "main")
    with Scene("devices").container() as site:
        words = ["configure", f"--pid={site.container.pid}", "--device=0", "-cug", "--no-cgroups"]
        argv = hookproc.command([*words, str(site.container.rootfs)], watched.program)
        return watched.judged(proc.run(argv, timeout=30), 2)


def _mig() -> list[str]:
    """With a GPU instance that the node has."""
    instance = sorted(Path("/proc/driver/nvidia/capabilities").glob("gpu*/mig/gi*"))[0]
    number = f"{instance.parts[-3].removeprefix('gpu')}:{instance.name.removeprefix('gi')}"
    watched = Watched("nvoci.hook.main", "cdi_hook")
    with Scene("devices").container() as site:
        words = ["mount-mig-devices", "--gpu-instance", number, "--no-cgroups"]
        result = hookproc.run_hook(words, container=site.container, program=watched.program, timeout=30)
    return watched.judged(result, 2)


PROGRAMS: dict[str, tuple[Any, str]] = {
    "prestart": (_prestart, "a100"), "container-cli": (_cli, "a100"), "mount-mig-devices": (_mig, "a100-mig"),
}  # fmt: skip


@needs_root
@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_on_a_node_imports_nothing_behind_the_seal(name: str) -> None:
    assert prestartscene.on_node(*PROGRAMS[name]) == []


@needs_root
def test_an_import_behind_the_seal_is_found(tmp_path: Path) -> None:
    """Of a module that is there, and of one that a stranger could put there."""
    arena = arenas.make(tmp_path)
    watched = Watched(
        "nvoci.hook.main", "cdi_hook", extra="\n    try: __import__('this')\n    except ImportError: pass"
    )
    with FakeContainer(arena.root) as container:
        result = arenas.run(LINKS, container, "inside", program=watched.program)
    assert watched.judged(result, 1) == ["TRIED this"]
