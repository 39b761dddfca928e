"""Fixtures of this folder: the arena, and the two kernels every case runs on."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from lib import hookproc, runtimes, session
from security import arena as arenas
from security.arena import Arena

NOT_ROOT = os.geteuid() != 0


# A normal run leaves these out: each of the values is seen with every other.
RARE = (
    {"engine": "ldconfig", "profile": "compat"},
    {"hook": "update-ldcache-ldconfig", "profile": "compat"},
    {"engine": "ldconfig", "row": "A2"},
    {"engine": "ldconfig", "where": "nowhere", "stage": "inside"},
    {"profile": "compat", "stage": "outside"},
    {"profile": "compat", "row": "A2"},
    {"profile": "compat", "where": "inside"},
    *({"profile": "compat", "link": link} for link in ("thread-self-root", "self-task-cwd", "self-fd", "dev-fd")),
    *({"profile": "compat", "kind": kind} for kind in ("C3-null", "C4-block", "C4-socket")),
    {"engine": "ldconfig", "text": "/proc/self/root{canary}"},
    {"engine": "ldconfig", "text": "{canary}", "runtime": "crun"},
)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here not in item.path.parents:
            continue
        item.add_marker(pytest.mark.security)
        params = item.callspec.params if hasattr(item, "callspec") else {}
        if any(all(params.get(k) == v for k, v in rare.items()) for rare in RARE) and not item.config.getoption(
            "--compat"
        ):
            item.add_marker(pytest.mark.long)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Each test that takes `profile` runs on the kernel as it is and on one without the newer calls; each that takes
    `engine`, and does not say which, with both engines of update-ldcache."""
    if "profile" in metafunc.fixturenames:
        profiles = ["compat"] if metafunc.config.getoption("--compat") else ["new", "compat"]
        metafunc.parametrize("profile", profiles, indirect=True)
    marks = metafunc.definition.iter_markers("parametrize")
    if "engine" in metafunc.fixturenames and not any("engine" in mark.args[0] for mark in marks):
        metafunc.parametrize("engine", arenas.ENGINES)


@pytest.fixture
def profile(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    name = str(request.param)
    if name == "compat":
        monkeypatch.setenv(hookproc.COMPAT_SWITCH, "1")
    return name


@pytest.fixture
def arena() -> Arena:
    """Below the session's directory, which mapped users may pass through."""
    return arenas.make(session.new_dir("arena"))


@pytest.fixture(params=runtimes.NAMES)
def runtime(request: pytest.FixtureRequest) -> str:
    name = str(request.param)
    if not runtimes.available(name):
        pytest.skip(f"{name} is not installed")
    return name


@pytest.fixture
def long(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--long"))


@pytest.fixture
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The stage; on an old kernel without the newer calls. See `arena.at_places`."""
    kernel, _, stage = str(request.param).partition("-")
    if kernel == "old":
        monkeypatch.setenv(hookproc.COMPAT_SWITCH, "1")
    return stage
