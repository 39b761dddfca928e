"""How nvidia-container-cli ends: whatever happens, one line of a class on stderr, and 1."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from errno import EIO, EMFILE
from pathlib import Path
from typing import Any

import pytest
from lib import hookproc, proc
from unit.prestart.prestarttools import error, needs_root

from nvoci.hook import process
from nvoci.linux import procfs
from nvoci.prestart import cli, cliconfigure, clinode, node

PROGRAM = "nvidia-container-cli: "


def ended(*words: str) -> tuple[int, str]:
    """Status and line of the program in a process of its own, which it ends."""
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.dup2(write_end, 2)
        sys.argv = ["nvidia-container-cli", *words]
        process.start = dict  # that closes what is pytest's
        cli.main()
    os.close(write_end)
    with os.fdopen(read_end) as stream:
        said = stream.read()
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    (line,) = said.splitlines()
    assert line.startswith(PROGRAM)
    return status, line[len(PROGRAM) :]


def fails(error: BaseException) -> Callable[..., Any]:
    def function(*_: Any, **__: Any) -> None:
        raise error

    return function


# what goes wrong when words are read, and when the node is used -> line
ENDS: dict[str, tuple[BaseException, str]] = {
    "an errno": (OSError(EIO, "sick", "/x"), "initialization error: /x: input/output error (EIO; check the disk"),
    "an errno of nothing": (OSError(EMFILE, "many"), "initialization error: too many open files (EMFILE; "),
    "memory": (MemoryError(), "initialization error: out of memory (ENOMEM)"),
    "a bug": (KeyError("x\ny"), "initialization error: internal error: KeyError: 'x\\ny' (please report it)"),
}


@pytest.mark.parametrize("case", ENDS)
def test_the_last_line_of_defence(monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    raised, line = ENDS[case]
    monkeypatch.setattr(cli.clioptions, "parse", fails(raised))
    status, said = ended("info")
    assert (status, said[: len(line)]) == (1, line)


def test_an_errno_of_the_look_is_a_detection_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node, "load_modules", lambda wanted: None)
    monkeypatch.setattr(clinode, "use", fails(OSError(EIO, "sick", "/sys/x")))
    status, said = ended("info")
    assert (status, said.partition(";")[0]) == (1, "detection error: /sys/x: input/output error (EIO")


def test_who_calls_cannot_be_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(procfs, "read", fails(OSError(EMFILE, "many", "self/stat")))
    assert error(lambda: cliconfigure._place(0)).message == "look at /proc/self: EMFILE"


@needs_root
def test_a_working_directory_that_is_gone_is_no_error(tmp_path: Path) -> None:
    """Nothing depends on it, unless a name is relative to it."""
    program = hookproc.entry("main", "nvoci.prestart.cli", "nvidia-container-cli")
    (tmp_path / "gone").mkdir()
    for words, status in ((["--version"], 0), (["-r", "nowhere", "info"], 1)):
        script = ["/bin/sh", "-c", 'mkdir -p gone && cd gone && rmdir ../gone && exec "$@"', "sh"]
        result = proc.run([*script, *hookproc.command(words, program)], cwd=tmp_path)
        assert result.rc == status
    line = result.stderr.splitlines()[-1]
    assert line.startswith(f"{PROGRAM}initialization error: change root failed: /nowhere: no such file or directory")
