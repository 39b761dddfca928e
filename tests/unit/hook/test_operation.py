"""The undo stack: order, what fails while undoing, read-only file systems."""

from __future__ import annotations

from errno import EIO, EROFS

import pytest

from nvoci import log
from nvoci.errors import HookError
from nvoci.hook import watchdog
from nvoci.hook.operation import Operation, Transaction


class Told(Operation):
    def __init__(self, name: str, journal: list[str], fails: Exception | None = None,
                 undo_fails: Exception | None = None) -> None:  # fmt: skip
        self.name, self.journal, self.fails, self.undo_fails = name, journal, fails, undo_fails

    def describe(self) -> str:
        return f"do {self.name}"

    def execute(self, transaction: Transaction) -> None:
        self.journal.append(f"do {self.name}")
        if self.fails:
            raise self.fails

    def undo(self) -> None:
        self.journal.append(f"undo {self.name}")
        if self.undo_fails:
            raise self.undo_fails


@pytest.fixture
def journal() -> list[str]:
    return []


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    found: list[str] = []
    monkeypatch.setattr(log, "_sinks", [(log.DEBUG, found.append)])
    monkeypatch.setattr(log, "_stderr_level", 100)
    return found


def test_undo_is_in_reverse_and_only_once(journal: list[str]) -> None:
    transaction = Transaction()
    for name in "abc":
        transaction.perform("h", Told(name, journal))
    transaction.undo()
    transaction.undo()
    assert journal == ["do a", "do b", "do c", "undo c", "undo b", "undo a"]


def test_after_commit_nothing_is_undone(journal: list[str]) -> None:
    transaction = Transaction()
    transaction.perform("h", Told("a", journal))
    transaction.commit()
    transaction.undo()
    assert journal == ["do a"]


FAILURES: dict[str, tuple[Exception, str]] = {
    "errno": (OSError(EIO, "x", "/p"), "h: do a: EIO (check the disk and the kernel's log)"),
    "message": (HookError("bad `x`", "do y"), "h: bad `x` (do y)"),
    "errno of strict read-only": (OSError(EROFS, "x"), "h: do a: EROFS (the file system is mounted read-only)"),
}


@pytest.mark.parametrize(("failure", "line"), FAILURES.values(), ids=FAILURES)
def test_a_failure_names_hook_operation_and_errno_and_is_undone_too(
    journal: list[str], failure: Exception, line: str
) -> None:
    transaction = Transaction(strict=True)
    with pytest.raises(HookError) as caught:
        transaction.perform("h", Told("a", journal, failure))
    assert caught.value.line() == line
    transaction.undo()
    assert journal == ["do a", "undo a"]


def test_read_only_is_a_warning_that_names_what_is_left_out(journal: list[str], lines: list[str]) -> None:
    transaction = Transaction()
    transaction.perform("h", Told("a", journal, OSError(EROFS, "x")))
    transaction.perform("h", Told("b", journal))
    assert journal == ["do a", "undo a", "do b"]
    (line,) = lines
    assert line.endswith('level=warning msg="h: do a: left out, read-only file system (EROFS)"')


@pytest.mark.parametrize("failure", [OSError(EIO, "x"), HookError("x")], ids=["errno", "message"])
def test_an_undo_that_fails_is_logged_and_the_rest_is_undone(
    journal: list[str], lines: list[str], failure: Exception
) -> None:
    transaction = Transaction()
    transaction.perform("h", Told("a", journal))
    transaction.perform("h", Told("b", journal, undo_fails=failure))
    transaction.perform("h", Told("c", journal))
    transaction.undo()
    assert journal[-3:] == ["undo c", "undo b", "undo a"]
    (line,) = lines
    assert "level=error" in line
    assert "h: undo do b: " in line


def test_when_time_is_up_no_operation_begins(journal: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    transaction = Transaction()
    transaction.perform("h", Told("a", journal))
    monkeypatch.setattr(watchdog, "_expired", "ended by signal 15")
    with pytest.raises(HookError, match="ended by signal 15"):
        transaction.perform("h", Told("b", journal))
    transaction.undo()
    assert journal == ["do a", "undo a"]
