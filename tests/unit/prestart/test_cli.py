"""nvidia-container-cli imports what a hook may import, and for each command what that needs."""

from __future__ import annotations

import pytest
from static.test_import_budget import HOOKS, imported, offenders

ENTRY = "import sys; sys.path.insert(0, sys.argv.pop(1)); from nvoci.prestart.cli import main; main()"
LOOK = {"nvoci.discover.look", "nvoci.discover.found", "nvoci.discover.nvml"}
PACKAGE = {"nvoci.discover"}  # whose hot modules are loaded
WORK = {"nvoci.hook.work", "nvoci.prestart.plan", "nvoci.prestart.cliconfigure"}


def loaded(*words: str) -> set[str]:
    return imported("-c", ENTRY, str(HOOKS), *words)


@pytest.mark.parametrize("words", [["--version"], ["--help"], ["info", "--usage"], ["configure"], ["-x"],
                                   ["list", "--imex-channel=x"], ["-r/nowhere", "info"]], ids=" ".join)  # fmt: skip
def test_what_does_not_come_to_the_node_loads_the_hot_list_only(words: list[str]) -> None:
    modules = loaded(*words)
    assert offenders(modules) <= PACKAGE
    assert modules & (LOOK | WORK) == set()
    assert ("nvoci.prestart.clihelp" in modules) is (words[0] not in ("list", "-r/nowhere"))


def test_configure_loads_all_it_needs_and_only_the_hot_list() -> None:
    """Before it is known that there is no such process."""
    modules = loaded("configure", "--pid=4000000", "/rootfs")
    assert offenders(modules) <= PACKAGE
    assert (modules & WORK, modules & LOOK) == (WORK, set())
