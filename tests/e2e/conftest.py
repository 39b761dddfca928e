"""Fixtures of this folder: the installed program, a node, the runtimes."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from e2e.gpunode import Node, Program
from lib import hookproc, runtimes, session


@pytest.fixture(scope="session")
def installed() -> Path:
    """`nvidia-cdi-hook` of a tree that scripts/install laid down from this checkout."""
    prefix = session.tmp() / "installed"
    command: list[str | Path] = [
        session.PYTHON,
        session.CHECKOUT / "scripts/install",
        "--prefix",
        prefix,
        "--python",
        session.PYTHON,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return prefix / "bin/nvidia-cdi-hook"


@pytest.fixture(scope="session")
def hook(installed: Path) -> Path:
    """`nvidia-container-runtime-hook` of the same tree."""
    return installed.with_name("nvidia-container-runtime-hook")


@pytest.fixture
def program(installed: Path) -> Program:
    """The hook with whatever system calls this kernel has (with --compat: without the newer ones)."""
    return Program(installed)


@pytest.fixture(params=["all interfaces", "compat"])
def each_program(installed: Path, request: pytest.FixtureRequest) -> Program:
    """The hook with and without the newer system calls."""
    if request.param == "compat" and os.environ.get(hookproc.COMPAT_SWITCH):
        pytest.skip("--compat: this one runs without the newer system calls already")
    return Program(installed, compat=request.param == "compat")


@pytest.fixture
def node(program: Program) -> Iterator[Node]:
    """A node in a directory that everybody may pass through; pytest's own are root's alone."""
    found = Node(session.new_dir("node"), program)
    yield found
    found.close()
    shutil.rmtree(found.folder)


@pytest.fixture(params=runtimes.NAMES)
def runtime(request: pytest.FixtureRequest) -> str:
    if not runtimes.available(request.param):
        pytest.skip(f"{request.param} is not installed")
    return str(request.param)
