"""What a hook process really imports, in a fresh interpreter: its own hot modules and the hot list. From an installed
tree its own modules come in one file, nvoci_hot.pyc, all of them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from static.layering import HOT_IMPORTS, is_hot, room_of

from nvoci.hook import table
from nvoci.hook.settings import ENGINES, LDCONFIG

HOOKS = Path(__file__).resolve().parents[2] / "hooks"
PYTHON = "/usr/bin/python3"
ENTRY = "import sys; sys.path.insert(0, sys.argv.pop(1)); from nvoci.hook.main import cdi_hook; cdi_hook()"
ALLOWED = HOT_IMPORTS | {"_ctypes"}
# The one that reads specifications, and so may load what that takes; all the others are hot.
COLD = "inject"
HOT_HOOKS = {name: hook for name, hook in table.HOOKS.items() if name != COLD}

# Arguments that make a hook load everything; a subcommand that is not here is run with none.
ARGUMENTS = {
    "create-symlinks": ["--link", "a::/b", "--link-if", "/dev/null=a::/c"],
    "chmod": ["--path", "/a", "--mode", "755"],
    "enable-cuda-compat": ["--host-driver-version", "550.54.15"],
    "update-ldcache": ["--folder", "/usr/lib64"],
    "inject": ["--from-annotations"],
    "mount-mig-devices": ["--gpu-instance", "0:1"],
}


def imported(*command: str) -> set[str]:
    """Modules a fresh interpreter loads for `command`, as -X importtime reports each of them at its import.

    That is written to stderr as it happens, so neither os._exit nor a forked worker hides anything.
    """
    told = stderr_of("-X", "importtime", *command)
    return {m[1] for m in re.finditer(r"^import time: +\d+ \| +\d+ \| +(\S+)$", told, re.MULTILINE)}


def stderr_of(*words: str) -> str:
    """What the interpreter of the hooks tells about its imports."""
    done = subprocess.run([PYTHON, "-ISB", *words], input="{}", capture_output=True, text=True, timeout=60, cwd="/")
    assert "internal error" not in done.stderr
    return done.stderr


def offenders(modules: set[str]) -> set[str]:
    """Those that are neither hot modules of ours, nor on the hot list, nor loaded by every interpreter."""
    others = modules - imported("-c", "pass") - ALLOWED
    return {name for name in others if not (name.split(".")[0] == "nvoci" and is_hot(name))}


def state(tmp_path: Path) -> list[str]:
    """A state file of a container whose root is empty."""
    (tmp_path / "rootfs").mkdir()
    (tmp_path / "config.json").write_text(json.dumps({"ociVersion": "1.0.2", "root": {"path": "rootfs"}}))
    content = {"ociVersion": "1.0.2", "id": "x", "status": "creating", "pid": 0, "bundle": str(tmp_path)}
    (tmp_path / "state.json").write_text(json.dumps(content))
    return ["--container-spec", str(tmp_path / "state.json"), "--dry-run"]


def test_the_oracle_sees_an_import() -> None:
    assert "json" in offenders(imported("-c", "import json"))
    assert "nvoci.hook.main" in imported("-c", ENTRY, str(HOOKS), "noop")


@pytest.mark.parametrize("name", HOT_HOOKS)
def test_a_hook_imports_the_hot_list_only(name: str, tmp_path: Path) -> None:
    modules = imported("-c", ENTRY, str(HOOKS), name, *ARGUMENTS.get(name, []), *state(tmp_path))
    assert table.HOOKS[name].module in modules
    assert offenders(modules) == set()


def test_several_hooks_in_one_process_import_the_hot_list_only(tmp_path: Path) -> None:
    words = [word for name in HOT_HOOKS for word in ("--", name, *ARGUMENTS.get(name, []))]
    modules = imported("-c", ENTRY, str(HOOKS), "run", *state(tmp_path), *words)
    assert {hook.module for hook in HOT_HOOKS.values()} <= modules
    assert offenders(modules) == set()


@pytest.mark.parametrize("name", HOT_HOOKS)
def test_a_hook_does_not_load_another_hook(name: str, tmp_path: Path) -> None:
    modules = imported("-c", ENTRY, str(HOOKS), name, *ARGUMENTS.get(name, []), *state(tmp_path))
    assert modules & {hook.module for hook in table.HOOKS.values()} == {table.HOOKS[name].module}


# What the ldconfig engine starts its process with: nobody else pays for it, and nobody else could start one.
PROCESS_MODULES = {"nvoci.hook.ldconfig", *(f"nvoci.linux.{name}" for name in ("confine", "cell", "seccomp"))}


@pytest.mark.parametrize("engine", ENGINES)
def test_only_the_ldconfig_engine_loads_what_starts_a_process(engine: str, tmp_path: Path) -> None:
    words = ["update-ldcache", "--engine", engine, *ARGUMENTS["update-ldcache"], *state(tmp_path)]
    modules = imported("-c", ENTRY, str(HOOKS), *words)
    wanted = PROCESS_MODULES if engine == LDCONFIG else {"nvoci.hook.ldbuiltin"}
    assert modules & {*PROCESS_MODULES, "nvoci.hook.ldbuiltin"} == wanted
    assert offenders(modules) == set()


def test_a_run_of_all_hooks_loads_nothing_that_starts_a_process(tmp_path: Path) -> None:
    words = [word for name in HOT_HOOKS for word in ("--", name, *ARGUMENTS.get(name, []))]
    modules = imported("-c", ENTRY, str(HOOKS), "run", *state(tmp_path), *words)
    assert "nvoci.hook.ldbuiltin" in modules
    assert modules & PROCESS_MODULES == set()


def test_no_log_named_loads_nothing_that_opens_one(tmp_path: Path) -> None:
    modules = imported("-c", ENTRY, str(HOOKS), "chmod", *ARGUMENTS["chmod"], *state(tmp_path))
    assert "nvoci.hook.main" in modules
    assert modules & {"nvoci.hook.logs", "nvoci.linux.logfile", "nvoci.linux.guarded", "nvoci.linux.syslog"} == set()


def test_only_inject_is_not_hot_and_nothing_of_its_rooms_is_loaded_by_the_others(tmp_path: Path) -> None:
    assert {name for name, hook in table.HOOKS.items() if not is_hot(hook.module)} == {COLD}
    words = [word for name in HOT_HOOKS for word in ("--", name, *ARGUMENTS.get(name, []))]
    modules = imported("-c", ENTRY, str(HOOKS), "run", *state(tmp_path), *words)
    assert {name for name in modules if name.startswith("nvoci.") and room_of(name) in ("inject", "cdi")} == set()


def test_inject_loads_no_package_before_a_specification_in_yaml_needs_it(tmp_path: Path) -> None:
    modules = imported("-c", ENTRY, str(HOOKS), COLD, *ARGUMENTS[COLD], *state(tmp_path))
    assert table.HOOKS[COLD].module in modules
    assert modules & {"yaml", "fastjsonschema", "json", "click", "structlog", "subprocess", "argparse"} == set()


@pytest.mark.parametrize("words", [["--version"], ["unknown-hook"], []], ids=str)
def test_a_call_that_names_no_hook_imports_the_hot_list_only(words: list[str]) -> None:
    assert offenders(imported("-c", ENTRY, str(HOOKS), *words)) == set()


def test_the_hot_list_names_modules_that_exist() -> None:
    assert sys.stdlib_module_names | {"_signal"} >= HOT_IMPORTS


# --- from an installed tree ----------------------------------------------------------------------------------------

EVERY = [word for name in HOT_HOOKS for word in ("--", name, *ARGUMENTS.get(name, []))]
CALLS = {
    **{name: [name, *ARGUMENTS.get(name, [])] for name in HOT_HOOKS},
    "run": ["run", *EVERY],
    "unknown hook": ["unknown-hook"],
    "help": ["--help"],
    "version": ["--version"],
}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prefix this checkout is installed in."""
    prefix = tmp_path_factory.mktemp("installed") / "prefix"
    subprocess.run([HOOKS.parent / "scripts/install", "--prefix", prefix], capture_output=True, check=True)
    return prefix


def call_of(name: str, installed: Path, tmp_path: Path) -> list[str]:
    """A command line for the installed hook; one that names a hook has a container to look at."""
    words = CALLS[name]
    own = state(tmp_path) if name in {*table.HOOKS, "run"} else []
    return [str(installed / "bin/nvidia-cdi-hook"), *words[:1], *own, *words[1:]]


@pytest.mark.parametrize("name", CALLS)
def test_an_installed_hook_imports_the_hot_list_only(name: str, installed: Path, tmp_path: Path) -> None:
    modules = imported(*call_of(name, installed, tmp_path))
    assert "nvoci_hot" in modules
    assert offenders(modules - {"nvoci_hot"}) == set()


@pytest.mark.parametrize("name", CALLS)
def test_all_modules_of_an_installed_hook_come_in_one_file(name: str, installed: Path, tmp_path: Path) -> None:
    told = stderr_of("-v", *call_of(name, installed, tmp_path))
    files = re.findall(rf"^# code object from '({installed}/.+)'$", told, re.MULTILINE)
    assert files == [str((installed / "lib/nvoci/nvoci_hot.pyc").resolve())]
    late = set(re.findall(r"^import '(nvoci\.[\w.]+)' # <nvoci_hot\._Finder ", told, re.MULTILINE))
    wanted = HOT_HOOKS if name == "run" else {name} & set(table.HOOKS)
    assert late & {hook.module for hook in table.HOOKS.values()} == {table.HOOKS[each].module for each in wanted}


def test_the_file_holds_what_a_hook_may_import_and_no_command_for_people(installed: Path) -> None:
    content = (installed / "lib/nvoci/nvoci_hot.pyc").read_bytes()
    names = {name.decode() for name in re.findall(rb"/(nvoci/[\w/]+)\.py", content)}
    modules = {name.replace("/", ".").removesuffix(".__init__") for name in names}
    assert {hook.module for hook in HOT_HOOKS.values()} < modules
    assert {"nvoci", "nvoci.hook.preview", "nvoci.linux.syslog"} < modules
    assert [name for name in modules if not is_hot(name)] == []
