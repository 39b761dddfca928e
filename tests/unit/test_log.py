"""One event is one line, on stderr and in every sink, whatever is in it."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from nvoci import log

LEVELS = ("debug", "info", "warning", "error")
HOSTILE = ["a\nlevel=error", "\x1b[2J", "\u202e", "\udcff", 'a"b', "a\\", "=", "", " ", "\0", b"\xff\n", None, 3,
           "\u2028"]  # fmt: skip


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "_sinks", [])
    monkeypatch.setattr(log, "_stderr_level", log.WARNING)


Stderr = Callable[[], str]


@pytest.fixture
def stderr(capfd: pytest.CaptureFixture[str]) -> Stderr:
    """What has been written to descriptor 2 since the last call."""
    return lambda: capfd.readouterr().err


def test_a_line_has_time_level_message_and_fields() -> None:
    line = log.format_line(log.ERROR, "mount x: EBUSY", {"path": "/a", "name": "b c", "n": 3, "empty": ""})
    assert re.fullmatch(
        r'time="\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ" level=error msg="mount x: EBUSY" path=/a name="b c" n=3 empty=""', line
    )


@pytest.mark.parametrize("seconds", [0, 4291747199], ids=["1970", "2105"])
def test_the_time_is_utc_and_of_any_year(monkeypatch: pytest.MonkeyPatch, seconds: int) -> None:
    real = time.gmtime
    monkeypatch.setattr(time, "gmtime", lambda: real(seconds))
    line = log.format_line(log.INFO, "x", {})
    assert line.startswith({0: 'time="1970-01-01T00:00:00Z"', 4291747199: 'time="2105-12-31T23:59:59Z"'}[seconds])


@pytest.mark.parametrize("value", HOSTILE, ids=ascii)
def test_a_hostile_value_neither_breaks_the_line_nor_its_quotes(value: object) -> None:
    line = log.format_line(log.WARNING, str(value), {"key": value, "last": "end"})
    assert line.isprintable()
    assert re.fullmatch(
        r'time="[^"]*" level=warning msg="([^"\\]|\\.)*" key=("([^"\\]|\\.)*"|[^ "=\\]+) last=end', line
    )


@pytest.mark.parametrize("value", ["x" * 10_000_000, "\x1b" * 1_000_000, '"' * 1_000_000, b"\xff" * 1_000_000],
                         ids=["plain", "escape", "quote", "bytes"])  # fmt: skip
def test_a_long_value_is_cut(value: str | bytes) -> None:
    line = log.format_line(log.ERROR, "x", {"key": value})
    assert len(line) < 9000
    assert "[cut]" in line


@pytest.mark.parametrize("least", LEVELS)
def test_stderr_takes_its_level_and_above(stderr: Stderr, least: str) -> None:
    log.set_level(getattr(log, least.upper()))
    for name in LEVELS:
        getattr(log, name)(f"event {name}")
    seen = re.findall(r"level=(\w+)", stderr())
    assert seen == list(LEVELS[LEVELS.index(least) :])


def test_a_sink_takes_its_own_level_and_the_same_line(stderr: Stderr) -> None:
    lines: list[str] = []
    log.add_sink(log.DEBUG, lines.append)
    log.debug("quiet", n=1)
    log.error("loud")
    assert [re.search(r'msg="(\w+)"', line)[1] for line in lines] == ["quiet", "loud"]  # type: ignore[index]
    assert stderr() == lines[1] + "\n"


def test_a_file_sink_writes_one_line_at_a_time(tmp_path: Path, stderr: Stderr) -> None:
    fd = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    log.add_sink(log.WARNING, log.file_sink(fd))
    log.warning("a\nb")
    log.info("not here")
    os.close(fd)
    assert (tmp_path / "log").read_text() == stderr()
    assert (tmp_path / "log").read_text().count("\n") == 1


def test_a_sink_that_fails_neither_raises_nor_stops_the_others(stderr: Stderr) -> None:
    lines: list[str] = []

    def full(line: str) -> None:
        raise OSError(28, "full")

    log.add_sink(log.DEBUG, full)
    log.add_sink(log.DEBUG, lines.append)
    log.error("x")
    assert len(lines) == 1
    assert stderr() == lines[0] + "\n"


def test_a_closed_stderr_does_not_raise(capfd: pytest.CaptureFixture[str]) -> None:
    kept = os.dup(2)
    lines: list[str] = []
    log.add_sink(log.DEBUG, lines.append)
    os.close(2)
    try:
        log.error("x")
        log.plain("y")
    finally:
        os.dup2(kept, 2)
        os.close(kept)
    assert len(lines) == 1


def test_below_every_level_nothing_is_formatted(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    monkeypatch.setattr(log, "format_line", lambda level, event, fields: calls.append(level) or "")
    log.debug("x")
    log.info("x")
    assert calls == []


def test_plain_is_a_line_as_it_is(stderr: Stderr) -> None:
    log.plain("No help topic for 'foo'")
    assert stderr() == "No help topic for 'foo'\n"
