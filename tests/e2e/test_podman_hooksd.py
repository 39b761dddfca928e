"""Entries of `nvoci hooksd`, read by the real Podman and run by runc and crun."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import click
import pytest
from lib import proc, rootfs, runtimes, session

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(not runtimes.available("podman"), reason="podman is not installed"),
]

# The hook program, which first writes down the environment it was started with; and the program by its own name.
RECORDER = """
import posix
with open({record!r}, "ab") as file:
    file.write(b"\\0".join(k + b"=" + v for k, v in sorted(posix.environ.items())) + b"\\n")
"""


@pytest.fixture(params=runtimes.NAMES)
def runtime(request: pytest.FixtureRequest) -> str:
    if not runtimes.available(request.param):
        pytest.skip(f"{request.param} is not installed")
    return str(request.param)


def make_entry(path: Path, module: str, function: str, more: str = "") -> Path:
    vendor = Path(click.__file__).parent.parent
    path.write_text(
        f"#!{session.PYTHON} -ISB\nimport sys\nsys.path.insert(0, {str(session.HOOKS)!r})\n"
        f"sys.path.insert(1, {str(vendor)!r})\n{more}\nfrom {module} import {function}\n{function}()\n"
    )
    path.chmod(0o755)
    return path


class Node:
    """A host with `nvoci` installed, a hooks directory and a rootfs."""

    def __init__(self, directory: Path) -> None:
        self.bin = directory / "bin"
        self.bin.mkdir()
        self.hooks = directory / "hooks.d"
        self.record = directory / "environment"
        self.root = rootfs.busybox_rootfs(directory / "rootfs")
        recorder = RECORDER.format(record=str(self.record))
        make_entry(self.bin / "nvidia-cdi-hook", "nvoci.hook.main", "cdi_hook", recorder)
        make_entry(self.bin / "nvoci", "nvoci.ctl.main", "main")

    def hooksd(self, *words: str | Path) -> proc.Result:
        result = proc.run([self.bin / "nvoci", "hooksd", *words])
        assert result.ok, result.stderr
        return result

    def run(self, runtime: str, *command: str, flags: tuple[str, ...] = ()) -> proc.Result:
        return runtimes.podman(self.root, command, runtime=runtime, hooks_dir=self.hooks, flags=flags)

    def environments(self) -> list[list[str]]:
        """One list of NAME=value for each run of the hook program, without what the interpreter adds (PEP 538)."""
        if not self.record.exists():
            return []
        lines = self.record.read_text().splitlines()
        return [[pair for pair in line.split("\0") if pair != "LC_CTYPE=C.UTF-8"] for line in lines]


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


@pytest.mark.parametrize("stage", ["createContainer", "createRuntime", "prestart"])
def test_the_links_of_an_entry_are_in_the_container(node: Node, runtime: str, stage: str) -> None:
    link = ("create-symlinks", "--link", "libcuda.so.1::/opt/lib/libcuda.so")
    node.hooksd("install", "--dir", node.hooks, "--stage", stage, *link)
    result = node.run(runtime, "readlink", "/opt/lib/libcuda.so")
    assert (result.rc, result.stdout) == (0, "libcuda.so.1\n"), result.stderr
    assert node.environments() == [["NVOCI_HOOK=hooksd"]]


def test_several_hooks_of_one_entry_run_in_order(node: Node, runtime: str) -> None:
    words = "run -- create-symlinks --link one::/opt/a -- create-symlinks --link two::/opt/a,three::/opt/b"
    node.hooksd("install", "--dir", node.hooks, *words.split())
    result = node.run(runtime, "sh", "-c", "readlink /opt/a; readlink /opt/b")
    assert result.stdout == "two\nthree\n", result.stderr
    assert node.environments() == [["NVOCI_HOOK=hooksd"]]


def test_the_container_s_environment_does_not_reach_the_hook(node: Node, runtime: str) -> None:
    node.hooksd("install", "--dir", node.hooks, "create-symlinks", "--link", "a::/opt/b")
    flags = ("-e", "LD_PRELOAD=/proc/self/cwd/x.so", "-e", "PYTHONPATH=/proc/self/cwd")
    result = node.run(runtime, "sh", "-c", "echo $LD_PRELOAD; readlink /opt/b", flags=flags)
    assert result.stdout == "/proc/self/cwd/x.so\na\n", result.stderr
    assert node.environments() == [["NVOCI_HOOK=hooksd"]]


def runc_version() -> tuple[int, ...]:
    out = subprocess.run(["runc", "--version"], capture_output=True, text=True, check=False).stdout
    found = re.match(r"runc version (\d+)\.(\d+)", out)
    return tuple(map(int, found.groups())) if found else ()


def test_without_our_environment_it_would(node: Node) -> None:
    """What the entries are protected from: the same entry, `env` taken away, on a runc that has the defect."""
    if not runtimes.available("runc") or not runc_version() < (1, 3):
        pytest.skip("runc 1.3 and later do not pass the container's environment on")
    node.hooksd("install", "--dir", node.hooks, "create-symlinks", "--link", "a::/opt/b")
    path = node.hooks / "30-nvoci-create-symlinks.json"
    naive = json.loads(path.read_text())
    del naive["hook"]["env"]
    path.write_text(json.dumps(naive))
    node.run("runc", "true", flags=("-e", "LD_PRELOAD=/proc/self/cwd/x.so"))
    assert "LD_PRELOAD=/proc/self/cwd/x.so" in node.environments()[0]
    assert proc.run([node.bin / "nvoci", "hooksd", "validate", path]).rc == 1


CONDITIONS = {
    "annotation": (["--annotation", r"^nvoci\.test/gpu$=^y(es)?$"], ("--annotation", "nvoci.test/gpu=yes"), True),
    "other annotation": (["--annotation", r"^nvoci\.test/gpu$=^y(es)?$"], ("--annotation", "nvoci.test/gpu=no"), False),
    "no annotation": (["--annotation", r"^nvoci\.test/gpu$=^y(es)?$"], (), False),
    "command": (["--command", "true$"], (), True),
    "other command": (["--command", "^false$"], (), False),
    "bind mounts": (["--has-bind-mounts"], ("-v", "/etc/hostname:/mnt:ro"), True),
    "no bind mounts": (["--has-bind-mounts"], (), False),
}


@pytest.mark.parametrize(("when", "flags", "runs"), CONDITIONS.values(), ids=CONDITIONS.keys())
def test_conditions_mean_what_the_options_say(node: Node, when: list[str], flags: tuple[str, ...], runs: bool) -> None:
    node.hooksd("install", "--dir", node.hooks, *when, "create-symlinks", "--link", "a::/opt/b")
    result = node.run("runc", "/bin/true", flags=flags)
    assert result.rc == 0, result.stderr
    assert len(node.environments()) == runs


def test_the_hooks_of_a_cdi_spec_run_as_entries(node: Node, runtime: str, tmp_path: Path) -> None:
    program = str(node.bin / "nvidia-cdi-hook")
    hooks: list[dict[str, Any]] = [
        {"hookName": "createContainer", "path": program, "args": ["nvidia-cdi-hook", "create-symlinks", "--link", link]}
        for link in ("one::/opt/a", "two::/opt/a")
    ]
    hooks[0]["timeout"] = 0
    spec = {
        "cdiVersion": "0.5.0",
        "kind": "nvidia.com/gpu",
        "devices": [{"name": "all", "containerEdits": {"hooks": hooks[1:]}}],
        "containerEdits": {"hooks": hooks[:1]},
    }
    (tmp_path / "spec.json").write_text(json.dumps(spec))
    node.hooksd("from-cdi", tmp_path / "spec.json", "--dir", node.hooks)
    result = node.run(runtime, "readlink", "/opt/a", flags=("-e", "LD_PRELOAD=/proc/self/cwd/x.so"))
    assert result.stdout == "two\n", result.stderr
    assert node.environments() == [["NVOCI_HOOK=cdi:nvidia.com/gpu"]] * 2


def test_a_container_does_not_start_when_its_hook_fails(node: Node, runtime: str) -> None:
    (node.root / "opt/b").mkdir(parents=True)
    node.hooksd("install", "--dir", node.hooks, "create-symlinks", "--link", "a::/opt/b")
    result = node.run(runtime, "echo", "started")
    assert result.rc != 0
    assert "started" not in result.stdout


def test_what_validate_refuses_is_what_stops_every_container(node: Node) -> None:
    """Why `validate` is there: one entry with an unknown stage, and Podman starts nothing."""
    node.hooksd("install", "--dir", node.hooks, "create-symlinks", "--link", "a::/opt/b")
    path = node.hooks / "30-nvoci-create-symlinks.json"
    path.write_text(path.read_text().replace("createContainer", "createcontainer"))
    assert node.run("runc", "true").rc != 0
    refused = proc.run([node.bin / "nvoci", "hooksd", "validate", "--dir", node.hooks])
    assert (refused.rc, "`createcontainer`" in refused.stderr) == (1, True)


def test_the_shipped_directory_may_be_named_to_podman_and_does_nothing(node: Node) -> None:
    node.hooks = session.CHECKOUT / "oci-hooks.d"
    result = node.run("runc", "echo", "started")
    assert (result.rc, result.stdout, node.environments()) == (0, "started\n", [])


def test_after_remove_no_hook_runs(node: Node) -> None:
    node.hooksd("install", "--dir", node.hooks, "create-symlinks", "--link", "a::/opt/b")
    node.hooksd("remove", "--dir", node.hooks, "--all")
    assert node.run("runc", "true").rc == 0
    assert node.environments() == []
