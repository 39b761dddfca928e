"""`nvidia-ctk` in the tests' own process, and a generator that only says what it was asked for."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from lib import proc

from nvoci import log
from nvoci.cdi.model import ContainerEdits, Device, Spec
from nvoci.ctl import ctk as module
from nvoci.errors import HookError
from nvoci.generate import specs
from nvoci.generate.options import GenerateOptions

Ctk = Callable[..., proc.Result]

VARIABLES = ("NVIDIA_CTK_", "XDG_CONFIG_HOME", "CDI_SPEC_DIRS")
SPEC = Spec("0.5.0", "nvidia.com/gpu", (Device("0", ContainerEdits(env=("A=1",))),))
YAML = """\
---
cdiVersion: 0.5.0
kind: nvidia.com/gpu
devices:
    - name: "0"
      containerEdits:
        env:
            - A=1
"""
JSON = '{"cdiVersion":"0.5.0","kind":"nvidia.com/gpu","devices":[{"name":"0","containerEdits":{"env":["A=1"]}}]}'

FOUND = "info: Auto-detected mode as 'nvml'"
DONE = "info: Generated CDI spec with version 0.5.0"


def lines(text: str) -> list[str]:
    """`level: message` of each line of a log."""
    found = []
    for line in text.splitlines():
        match = re.fullmatch(r'time="\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ" level=(\w+) msg="(.*)"', line)
        assert match, line
        found.append(f"{match[1]}: " + match[2].replace('\\"', '"').replace("\\\\", "\\"))
    return found


@dataclass
class Generator:
    """In place of `generate`. asked: the options of each call. refusal: what it raises."""

    specs: list[specs.Named] = field(default_factory=lambda: [specs.Named("", SPEC)])
    warnings: tuple[str, ...] = ()
    mode: str = "nvml"
    refusal: HookError | None = None
    asked: list[GenerateOptions] = field(default_factory=list)

    def generate(self, options: GenerateOptions) -> specs.Generated:
        """The one that is called."""
        self.asked.append(options)
        if self.refusal:
            raise self.refusal
        return specs.Generated(tuple(self.specs), self.warnings, self.mode)

    @property
    def last(self) -> GenerateOptions:
        """What was asked for last."""
        return self.asked[-1]


@pytest.fixture
def generator(monkeypatch: pytest.MonkeyPatch) -> Generator:
    """One that has a specification of one device."""
    made = Generator()
    monkeypatch.setattr(specs, "generate", made.generate)
    return made


@pytest.fixture
def ctk(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: object) -> Ctk:
    """`nvidia-ctk WORDS…` with no variable set that it reads, and in a directory of its own."""
    import os

    for name in os.environ:
        if name.startswith(VARIABLES):
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CONFIG_HOME", "/nowhere")
    monkeypatch.chdir(str(tmp_path))
    monkeypatch.setattr(log, "_stderr_level", log.WARNING)

    def invoke(*words: object) -> proc.Result:
        capfd.readouterr()
        code = module.run([str(word) for word in words])
        out, err = capfd.readouterr()
        return proc.Result(code, out, err, 0.0)

    return invoke


def generate(ctk: Ctk, *words: object) -> proc.Result:
    """`nvidia-ctk cdi generate WORDS…`."""
    return ctk("cdi", "generate", *words)


@pytest.fixture
def only_a_hook(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """PATH has one program, our hook."""
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin/nvidia-cdi-hook"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.delenv("XDG_DATA_DIRS", raising=False)
