"""What runs text as code, or a command line through a shell, is nowhere; each exception is listed with its reason."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from nvoci.cdi import yamltext
from nvoci.cdi.error import SpecError

ROOT = Path(__file__).resolve().parents[2]
MODULES = {"pickle", "marshal", "shelve", "dill", "cPickle", "commands", "popen2", "code", "codeop", "pty"}
CALLS = {
    "eval", "exec", "compile", "execfile", "os.system", "os.popen", "posix.system", "posix.popen", "tempfile.mktemp",
    "mktemp", "subprocess.getoutput", "subprocess.getstatusoutput", "builtins.eval", "builtins.exec", "popen", "system",
}  # fmt: skip
YAML_LOADS = {"load", "load_all", "unsafe_load", "unsafe_load_all", "full_load", "full_load_all", "UnsafeLoader",
              "FullLoader", "Loader", "CLoader", "CFullLoader", "CUnsafeLoader"}  # fmt: skip
# Rooms where a helper process is not to be started by `subprocess` (7 ms, and threads): they fork and confine it.
HOT = ("linux", "oci", "elf", "ldcache", "hook", "prestart", "inject", "errors", "log", "jsonfile")

# file -> what is in it, and why it may be.
EXCEPTIONS: dict[str, dict[str, str]] = {
    "scripts/_install_hot.py": {
        "marshal": "writes the compiled modules of this checkout into one file, as .pyc files are written",
        "compile": "of the modules of this checkout, for that file",
    },
    "scripts/_install_hot_loader.py": {
        "marshal": "reads what _install_hot.py wrote: a part of the file that is running",
        "exec": "runs a module of ours, as the import system does",
    },
}


def python_files() -> list[Path]:
    """Of the package and of the scripts."""
    scripts = [path for path in (ROOT / "scripts").iterdir() if path.is_file()]
    named = [path for path in scripts if path.suffix == ".py" or _says_python(path)]
    return sorted([*(ROOT / "hooks/nvoci").rglob("*.py"), *named])


def _says_python(path: Path) -> bool:
    return not path.suffix and re.match(r"#!.*python", path.read_text(errors="replace")) is not None


def forbidden(source: str) -> Iterator[tuple[int, str]]:
    """(line, what) of each."""
    for node in ast.walk(ast.parse(source)):
        line = getattr(node, "lineno", 0)
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            for name in names:
                if name.partition(".")[0] in MODULES:
                    yield line, name.partition(".")[0]
            if isinstance(node, ast.ImportFrom) and node.module == "yaml":
                yield from ((line, f"yaml.{alias.name}") for alias in node.names if alias.name in YAML_LOADS)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "yaml":
            if node.attr in YAML_LOADS:
                yield line, f"yaml.{node.attr}"
        elif isinstance(node, ast.Call):
            yield from ((line, what) for what in _of_call(node))


def _of_call(node: ast.Call) -> Iterator[str]:
    called = ast.unparse(node.func)
    if called in CALLS:
        yield called
    for word in node.keywords:
        if word.arg == "shell" and not (isinstance(word.value, ast.Constant) and word.value.value is False):
            yield "shell="
    if called in {"__import__", "import_module", "importlib.import_module"} and node.args:
        name = node.args[0]
        if isinstance(name, ast.Constant) and str(name.value).partition(".")[0] in MODULES:
            yield str(name.value)


def name_of(path: Path) -> str:
    """For the table."""
    return str(path.relative_to(ROOT))


FOUND = {name_of(path): list(forbidden(path.read_text())) for path in python_files()}


def test_no_text_is_run_as_code_and_no_shell_is_called() -> None:
    unlisted = {
        name: [(line, what) for line, what in found if what not in EXCEPTIONS.get(name, {})]
        for name, found in FOUND.items()
    }
    assert {name: found for name, found in unlisted.items() if found} == {}


def test_no_exception_is_unused() -> None:
    assert {name: sorted(why) for name, why in EXCEPTIONS.items()} == {
        name: sorted({what for _, what in FOUND[name]}) for name in EXCEPTIONS
    }


def test_the_walk_finds_the_sources() -> None:
    assert {"hooks/nvoci/__init__.py", "scripts/install", "scripts/_demo.py"} <= set(FOUND)


def test_yaml_is_read_in_one_module_by_the_events_of_a_safe_loader() -> None:
    """What takes a loader's name names a safe one; a tag that would call Python is refused."""
    named = {
        each
        for name in FOUND
        if name.startswith("hooks/nvoci/")
        for each in re.findall(r"yaml\.\w*Loader\b|\"\w+Loader\"", (ROOT / name).read_text())
    }
    assert named == {"yaml.SafeLoader", '"CSafeLoader"'}
    assert issubclass(yamltext.best_loader(yaml), (yaml.SafeLoader, getattr(yaml, "CSafeLoader", yaml.SafeLoader)))
    with pytest.raises(SpecError):
        yamltext.loads(b"!!python/object/apply:os.getcwd []", "x.yaml")


def _imported(name: str) -> set[str]:
    tree = ast.parse((ROOT / name).read_text())
    return {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}


def test_no_room_of_a_hook_process_knows_subprocess() -> None:
    wrong = {}
    for name in FOUND:
        room = name.removeprefix("hooks/nvoci/").partition("/")[0].removesuffix(".py")
        tree = ast.parse((ROOT / name).read_text())
        modules = _imported(name) | {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        if name.startswith("hooks/") and room in HOT and modules & {"subprocess", "multiprocessing", "threading"}:
            wrong[name] = modules
    assert wrong == {}


SHELL_FILES = sorted(
    path
    for folder in ("scripts", ".ci")
    for path in (ROOT / folder).iterdir()
    if path.is_file() and re.match(r"#!.*\b(ba|da)?sh\b", path.read_text(errors="replace"))
)


@pytest.mark.parametrize("path", SHELL_FILES, ids=name_of)
def test_no_script_of_the_shell_evaluates_text(path: Path) -> None:
    assert not re.search(r"^\s*(eval|source\s+/dev/stdin)\b|\bsh -c \"\$|mktemp -u", path.read_text(), re.MULTILINE)


NAIVE = {
    "eval": "eval(text)",
    "exec": "exec(text, {})",
    "a compiled text": "compile(text, 'x', 'exec')",
    "pickle": "import pickle",
    "a part of it": "from pickle import loads",
    "marshal, late": "def f():\n    import marshal",
    "marshal, by name": "__import__('marshal')",
    "a shell": "subprocess.run(x, shell=True)",
    "a shell, perhaps": "subprocess.run(x, shell=y)",
    "system": "os.system('x')",
    "popen": "os.popen('x')",
    "a name for a file": "tempfile.mktemp()",
    "yaml.load": "yaml.load(x, Loader=y)",
    "yaml.load, imported": "from yaml import load",
    "any loader": "yaml.load_all(x, yaml.SafeLoader)",
    "the full loader": "class A(yaml.FullLoader): ...",
}


@pytest.mark.parametrize("case", NAIVE)
def test_a_naive_line_is_found(case: str) -> None:
    assert list(forbidden(NAIVE[case]))


GOOD = ["subprocess.run(x, shell=False)", "re.compile(x)", "yaml.SafeLoader(x)", "tempfile.mkdtemp()", "json.loads(x)"]


@pytest.mark.parametrize("source", GOOD)
def test_a_good_line_passes(source: str) -> None:
    assert list(forbidden(source)) == []
