"""The prestart hook's modules in two files: one for every container, one for those that ask for a GPU."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest
from install.conftest import copy_project

PYTHON = os.path.realpath("/usr/bin/python3")
HOOK, ALIAS = "nvidia-container-runtime-hook", "nvidia-container-toolkit"
ASK, PRESTART = "nvoci_ask.pyc", "nvoci_prestart.pyc"
WITHOUT, WITH = "NVIDIA_VISIBLE_DEVICES=void", "NVIDIA_VISIBLE_DEVICES=0"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prefix with the real package."""
    top = tmp_path_factory.mktemp("project")
    done = copy_project(top / "checkout").install(top / "prefix")
    assert (done.code, done.err) == (0, "")
    return top / "prefix"


def run(prefix: Path, folder: Path, variable: str, name: str = HOOK, *options: str) -> tuple[int, str]:
    """Exit status and stderr; the container has no process, the node no driver root."""
    config = {"ociVersion": "1.0.2", "process": {"env": [variable]}, "root": {"path": "rootfs"}}
    (folder / "rootfs").mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "config.toml").write_text(f'[nvidia-container-cli]\nroot = "{folder}/none"\n')
    (folder / "config.toml").chmod(0o644)
    state = {"ociVersion": "1.0.2", "id": "x", "status": "creating", "pid": 0, "bundle": str(folder)}
    command = [PYTHON, "-ISB", *options, prefix / "bin" / name, "-config", folder / "config.toml", "prestart"]
    done = subprocess.run(command, input=json.dumps(state), capture_output=True, text=True, cwd="/")
    return done.returncode, re.sub(r'time="[^"]*"', "", done.stderr)


def read(prefix: Path, folder: Path, variable: str) -> list[str]:
    """Names of the .pyc files of the tree that a run reads."""
    told = run(prefix, folder, variable, HOOK, "-v")[1]
    paths = re.findall(rf"^# code object from '({prefix}/lib/.+)'$", told, re.MULTILINE)
    return [path.rpartition("/")[2] for path in paths]


def test_the_entry_files_are_alike(project: Path) -> None:
    texts = [(project / "bin" / name).read_text() for name in (HOOK, ALIAS)]
    assert texts[0] == texts[1]
    hot = ["try:", "    import nvoci_ask", "except Exception:", "    pass"]
    assert texts[0].splitlines()[3:] == [*hot, "from nvoci.prestart.main import main", "main()"]


def test_a_container_without_a_gpu_reads_one_small_file(project: Path, tmp_path: Path) -> None:
    assert read(project, tmp_path, WITHOUT) == [ASK]
    sizes = {name: (project / "lib/nvoci" / name).stat().st_size for name in (ASK, PRESTART)}
    assert sizes[ASK] * 5 < sizes[PRESTART]


def test_a_container_with_one_reads_both_and_what_a_look_takes(project: Path, tmp_path: Path) -> None:
    files = read(project, tmp_path, WITH)
    assert files[:2] == [ASK, PRESTART]
    content = (project / "lib/nvoci" / PRESTART).read_bytes()
    names = {name.decode() for name in re.findall(rb"/nvoci/([\w/]+)\.py", content)}
    assert {"prestart/start", "prestart/plan", "hook/work", "hook/grant", "hook/ldbuiltin", "linux/cgroup"} <= names
    assert {name for name in names if name.startswith("discover/")} == {
        "discover/__init__", "discover/fingerprint", "discover/inventory", "discover/model", "discover/record",
    }  # fmt: skip
    assert {"prestart/main", "prestart/compile", "oci/state"} & names == set()


DAMAGE = {
    "missing": lambda path: path.rename(path.with_suffix(".away")),
    "damaged": lambda path: path.write_bytes(path.read_bytes()[:5000]),
    "of another Python": lambda path: path.write_bytes(b"\xff\xff\r\n" + path.read_bytes()[4:]),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("file", [ASK, PRESTART])
@pytest.mark.parametrize("name", [HOOK, ALIAS])
def test_without_a_usable_file_it_does_the_same(
    project: Path, tmp_path: Path, file: str, damage: str, name: str
) -> None:
    first = [run(project, tmp_path, variable, name) for variable in (WITHOUT, WITH)]
    path = (project / "lib/nvoci").resolve() / file
    whole = path.read_bytes()
    DAMAGE[damage](path)
    try:
        assert [run(project, tmp_path, variable, name) for variable in (WITHOUT, WITH)] == first
    finally:
        path.write_bytes(whole)
        path.chmod(0o644)
    assert first[0] == (0, "")
    assert (first[1][0], f"{tmp_path}/none" in first[1][1]) == (1, True)


@pytest.mark.parametrize("file", [ASK, PRESTART])
def test_a_file_that_others_can_write_is_refused_for_what_mounts(project: Path, tmp_path: Path, file: str) -> None:
    path = (project / "lib/nvoci").resolve() / file
    path.chmod(0o666)
    try:
        code, said = run(project, tmp_path, WITH)
    finally:
        path.chmod(0o644)
    assert (code, f"start: {path}: owned by uid 0, mode 0666" in said) == (1, True)
