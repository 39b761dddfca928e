"""Who may import whom, and what a hook process may import at all."""

from __future__ import annotations

from pathlib import Path

import pytest
from static.layering import ROOMS, module_name, violations

HOOKS = Path(__file__).resolve().parents[2] / "hooks"
SOURCES = sorted((HOOKS / "nvoci").rglob("*.py"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(HOOKS)))
def test_a_module_imports_what_its_room_may(path: Path) -> None:
    found = violations(path.read_text(), module_name(path, HOOKS), path.name == "__init__.py")
    assert not found, "\n".join(found)


def test_the_walk_finds_the_sources() -> None:
    assert {"nvoci", "nvoci.errors"} <= {module_name(path, HOOKS) for path in SOURCES}


NAIVE = {
    "a room above": ("nvoci.linux.fd", "from nvoci.hook import table"),
    "a room above, by its name in the package": ("nvoci.linux.fd", "from nvoci import hook"),
    "relative": ("nvoci.linux.fd", "from ..hook import table"),
    "in a function": ("nvoci.elf", "def f():\n    import nvoci.oci.state"),
    "in a try": ("nvoci.elf", "try:\n    import json\nexcept ImportError:\n    pass"),
    "for the type checker only": ("nvoci.cdi.model", "if TYPE_CHECKING:\n    from nvoci.discover import model"),
    "else of the type checker": ("nvoci.hook.main", "if TYPE_CHECKING:\n    pass\nelse:\n    import typing"),
    "by call": ("nvoci.hook.chmod", "__import__('re')"),
    "by importlib": ("nvoci.hook.work", "importlib.import_module(name)"),
    "standard library off the hot list": ("nvoci.hook.main", "import os"),
    "a submodule of it": ("nvoci.hook.main", "import os.path"),
    "ctypes outside linux": ("nvoci.hook.main", "import _ctypes"),
    "an exception at the top of the module": ("nvoci.jsonfile", "import json"),
    "click below ctl": ("nvoci.generate.main", "import click"),
    "the inventory is hot": ("nvoci.discover.inventory", "import dataclasses"),
    "people's commands from a hook": ("nvoci.hook.main", "import nvoci.ctl.main"),
    "an unknown room": ("nvoci.attic.x", "import sys"),
}


@pytest.mark.parametrize("case", NAIVE)
def test_a_naive_import_is_found(case: str) -> None:
    module, source = NAIVE[case]
    assert len(violations(source, module)) == 1


GOOD = {
    "for the type checker": ("nvoci.hook.main", "if TYPE_CHECKING:\n    from typing import Any"),
    "the version": ("nvoci.linux.fd", "from nvoci import __version__"),
    "everybody's": ("nvoci.linux.fd", "from nvoci import errors, log"),
    "_ctypes in linux": ("nvoci.linux.libc", "import _ctypes"),
    "an exception in a function": ("nvoci.jsonfile", "def f():\n    import json"),
    "click in ctl": ("nvoci.ctl.main", "import click, re"),
    "NVML in discover": ("nvoci.discover.nvml", "import pynvml"),
}


@pytest.mark.parametrize("case", GOOD)
def test_a_good_import_passes(case: str) -> None:
    module, source = GOOD[case]
    assert violations(source, module) == []


def test_nobody_may_import_ctl() -> None:
    assert not any("ctl" in allowed for allowed in ROOMS.values())
