"""`nvoci cdi generate`: the same flags, other defaults, and the manners of `nvoci`."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from lib import proc
from unit.ctl.conftest import Invoke
from unit.ctl.ctktools import JSON, SPEC, YAML, Generator, generator

from nvoci.ctl import cdi_generate, ctk_generate
from nvoci.discover import nvml
from nvoci.errors import HookError
from nvoci.generate import specs

__all__ = ["generator"]

HOOK = ("--nvidia-cdi-hook-path", "/bin/true")


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """None that a developer's shell has."""
    monkeypatch.setenv("XDG_CONFIG_HOME", "/nowhere")
    monkeypatch.chdir(tmp_path)


def test_the_flags_are_those_of_ctk_and_two_more() -> None:
    theirs = {param.name for param in ctk_generate.command.params}
    assert {param.name for param in cdi_generate.command.params} == theirs | {"config", "timeout"}


def test_hooks_are_merged_and_the_specification_is_annotated(nvoci: Invoke, generator: Generator) -> None:
    done = nvoci("cdi", "generate", *HOOK)
    assert (done.rc, done.stdout) == (0, YAML)
    assert done.stderr == "nvoci: Auto-detected mode as 'nvml'\nnvoci: Generated CDI spec with version 0.5.0\n"
    asked = generator.last
    assert (asked.hooks_form, asked.annotate, asked.hook_path) == ("merged", True, HOOK[1])
    assert (asked.vendor, asked.class_, asked.kind("imex")) == ("", "", "nvidia.com/imex-channel")
    assert asked.timeout == nvml.SECONDS


def test_flags_and_the_environment_count(
    nvoci: Invoke, generator: Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x.toml").write_text('[nvidia-container-cli]\nroot = "/r"\n')
    monkeypatch.setenv("NVIDIA_CTK_CDI_GENERATE_DEVICE_IDS", "0,1")
    generator.warnings = ("careful",)
    words = ["--hooks=reference", "--timeout", "2.5", "--config=x.toml", "-vendor", "a.com", "--output", "o.json"]
    done = nvoci("cdi", "generate", *HOOK, *words)
    assert (done.rc, done.stdout, (tmp_path / "o.json").read_text()) == (0, "", JSON)
    assert done.stderr.splitlines()[0] == "nvoci: warning: careful"
    asked = generator.last
    assert (asked.hooks_form, asked.timeout, asked.driver_root, asked.vendor) == ("reference", 2.5, "/r", "a.com")
    assert asked.device_ids == ("0", "1")


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "3601", "x", ""])
def test_a_timeout_that_is_none_is_refused(nvoci: Invoke, generator: Generator, text: str) -> None:
    done = nvoci("cdi", "generate", f"--timeout={text}")
    assert (done.rc, generator.asked) == (1, [])
    assert done.stderr.startswith(f"nvoci: `{text}` from --timeout is no number of seconds")


def test_errors_are_those_of_nvoci(nvoci: Invoke, generator: Generator) -> None:
    assert nvoci("cdi", "generate", "--mode", "x").stderr.startswith("nvoci: invalid discovery mode: x (one of ")
    generator.refusal = HookError("nothing here", "look elsewhere")
    assert nvoci("cdi", "generate", *HOOK).stderr == "nvoci: nothing here (look elsewhere)\n"
    done = nvoci("cdi", "generate", *HOOK, "stray")
    assert (done.rc, "unexpected extra argument" in done.stderr) == (2, True)


def test_a_directory_that_others_can_write_is_refused_before_the_node_is_looked_at(
    nvoci: Invoke, generator: Generator, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out").chmod(0o775)
    done = nvoci("cdi", "generate", *HOOK, "--output", "out/x.yaml")
    assert (done.rc, generator.asked, list((tmp_path / "out").iterdir())) == (1, [], [])
    assert done.stderr.startswith(f"nvoci: write CDI spec {tmp_path}/out/x.yaml: directory {tmp_path}/out: uid ")
    assert done.stderr.count("\n") == 1


VERSIONS = {"0.5.0": 0, "0.6.0": 1, "0.7.0": 1}


@pytest.mark.parametrize("version", VERSIONS)
def test_a_version_that_podman_4_passes_over_is_told_of_once(nvoci: Invoke, generator: Generator, version: str) -> None:
    spec = dataclasses.replace(SPEC, cdi_version=version)
    split = dataclasses.replace(SPEC, cdi_version="0.6.0", kind="nvidia.com/gpu.coherent")
    generator.specs = [specs.Named("", spec), specs.Named(".coherent", split)]
    done = nvoci("cdi", "generate", *HOOK)
    told = [line for line in done.stderr.splitlines() if "--max-cdi-version 0.5.0" in line]
    assert (done.rc, len(told)) == (0, VERSIONS[version])


def test_the_help_says_what_podman_4_needs(nvoci: Invoke) -> None:
    assert "--max-cdi-version 0.5.0" in nvoci("cdi", "generate", "--help").stdout


COMPLETED = {
    "a flag": ("nvoci cdi generate --dev", 3, {"--dev-root", "--device-name-strategy", "--device-id", "--device-ids",
                                               "--device", "--devices"}),
    "after a flag and its value": ("nvoci cdi generate --vendor a.com --cl", 5, {"--class"}),
    "after a flag that there is not": ("nvoci cdi generate --banana --cl", 4, {"--class"}),
    "a value": ("nvoci cdi generate --mode ", 4, set()),
}  # fmt: skip


@pytest.mark.parametrize(("line", "at", "expected"), COMPLETED.values(), ids=COMPLETED)
def test_the_shell_completes_flags(bin_dir: Path, line: str, at: int, expected: set[str]) -> None:
    env = {"_NVOCI_COMPLETE": "bash_complete", "COMP_WORDS": line, "COMP_CWORD": str(at), "PATH": "/usr/bin"}
    done = proc.run([bin_dir / "nvoci"], env=env)
    assert ({word.partition(",")[2] for word in done.stdout.split()}, done.stderr) == (expected, "")
