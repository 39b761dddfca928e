"""How the prestart hook ends where nothing is left to it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

import pytest
from unit.prestart.prestarttools import error

from nvoci.prestart import main


def fails(raised: BaseException) -> Callable[[], Any]:
    def function() -> None:
        raise raised

    return function


ENDS: dict[str, tuple[BaseException, str]] = {
    "memory": (MemoryError(), "prestart: out of memory (ENOMEM)"),
    "an errno": (OSError(5, "sick", "/x"), "prestart /x: EIO"),
    "a module": (ImportError("cannot open", name="_ctypes"), "prestart: load _ctypes: cannot open (see that the insta"),
}


@pytest.mark.parametrize("case", ENDS)
def test_an_end_is_one_line(capfd: Any, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    """In a process of its own, since the program ends it."""
    raised, line = ENDS[case]
    pid = os.fork()
    if pid == 0:
        monkeypatch.setattr(main, "_state", fails(raised))
        monkeypatch.setattr(sys, "argv", ["nvidia-container-runtime-hook", "prestart"])
        monkeypatch.setattr(main.sys, "flags", type("Flags", (), {"isolated": 1}))
        main.main()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1
    said = capfd.readouterr().err
    assert (said.count("\n"), line in said) == (1, True), said


def test_an_interpreter_that_is_not_isolated_does_nothing() -> None:
    """As that of pytest."""
    assert error(lambda: main._run(["prestart"])).message == "start: the interpreter is not isolated"
