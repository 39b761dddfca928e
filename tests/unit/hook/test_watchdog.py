"""Bounded time: deadline, signals, and the SIGKILL behind both; everything done is undone before the process ends."""

from __future__ import annotations

import os
import signal
import subprocess
import time

import pytest
from lib import proc
from unit.hook.hooktools import Container, Program, one_error

from nvoci.errors import HookError
from nvoci.hook import watchdog

SIGNALS = {"SIGTERM": signal.SIGTERM, "SIGHUP": signal.SIGHUP, "SIGINT": signal.SIGINT, "SIGXCPU": signal.SIGXCPU}
DONE = ["plan", "do step 1", "do wait 30"]
QUICK = "from nvoci.hook import watchdog; watchdog.GRACE = 0.3"
UNDONE = ["undo wait 30", "undo step 1"]


@pytest.fixture(params=["here", "outside"])
def state(request: pytest.FixtureRequest, program: Program) -> bytes:
    if request.param == "here":
        return program.state()
    container: Container = request.getfixturevalue("container")
    return program.state(pid=container.pid)


def _end(child: subprocess.Popen[bytes]) -> tuple[int, str]:
    try:
        stderr = child.communicate(timeout=15)[1].decode()
    finally:
        child.kill()
    return child.returncode, stderr


@pytest.mark.parametrize("number", SIGNALS.values(), ids=SIGNALS)
def test_a_signal_while_waiting_undoes_everything(program: Program, state: bytes, number: int) -> None:
    child = program.start("step:1", "wait:30", stdin=state, extra=QUICK)
    program.wait_for(DONE[-1])
    workers = list(proc.descendants(child.pid))
    child.send_signal(number)
    rc, stderr = _end(child)
    assert (rc, stderr.count("\n")) == (1, 1), stderr
    told = number if not workers else signal.SIGTERM  # whatever ends the parent, the worker is told by SIGTERM
    assert f"ended by signal {told:d}" in stderr
    assert program.journal() == DONE + UNDONE
    assert not any(os.path.exists(f"/proc/{pid}") for pid in workers)


def test_a_second_signal_does_not_interrupt_the_undo(program: Program, state: bytes) -> None:
    child = program.start("step:1", *["wait:0.1"] * 100, stdin=state, extra=QUICK)
    program.wait_for("do wait 0.1")
    for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT, signal.SIGHUP) * 5:
        child.send_signal(number)
        time.sleep(0.01)
    rc, stderr = _end(child)
    assert (rc, stderr.count("\n")) == (1, 1), stderr
    journal = program.journal()
    assert journal[-1] == "undo step 1"
    assert sum(line.startswith("do ") for line in journal) == sum(line.startswith("undo ") for line in journal)


def test_a_signal_to_the_whole_process_group_is_one_error(program: Program, state: bytes) -> None:
    child = program.start("step:1", "wait:30", stdin=state, extra=QUICK)
    program.wait_for(DONE[-1])
    os.killpg(child.pid, signal.SIGTERM)
    rc, stderr = _end(child)
    assert (rc, stderr.count("\n")) == (1, 1), stderr
    assert "ended by signal 15" in stderr
    assert program.journal() == DONE + UNDONE


def test_the_deadline_undoes_everything(program: Program, state: bytes) -> None:
    line = one_error(program.do("step:1", "wait:30", words=["--timeout", "0.2"], stdin=state, extra=QUICK))
    assert "not finished after 0.2 s" in line
    assert program.journal() == DONE + UNDONE


def test_the_deadline_is_looked_at_between_operations(program: Program, state: bytes) -> None:
    line = one_error(program.do("step:1", *["wait:0.3"] * 20, words=["--timeout", "0.4"], stdin=state, extra=QUICK))
    assert "not finished after 0.4 s" in line
    assert program.journal().count("do wait 0.3") < 5
    assert program.journal()[-1] == "undo step 1"


def test_a_wait_that_no_handler_ends_is_ended_by_sigkill(program: Program) -> None:
    extra = "from nvoci.hook import watchdog; watchdog.KILL_AFTER = 0.3"
    result = program.do("deaf:30", words=["--timeout", "0.2"], extra=extra)
    assert result.rc == -signal.SIGKILL
    assert result.wall < 8


def test_a_worker_that_no_handler_ends_is_killed_and_reported(program: Program, container: Container) -> None:
    extra = "from nvoci.hook import watchdog; watchdog.KILL_AFTER = watchdog.GRACE = 0.3"
    result = program.do("deaf:30", words=["--timeout", "0.2"], extra=extra, stdin=program.state(pid=container.pid))
    assert "died" in one_error(result) or "killed" in one_error(result)
    assert result.wall < 8


def test_a_worker_dies_with_its_parent(program: Program, container: Container) -> None:
    child = program.start("wait:30", stdin=program.state(pid=container.pid))
    program.wait_for("do wait 30")
    (worker,) = proc.descendants(child.pid)
    proc.become_subreaper()
    child.kill()
    child.communicate(timeout=10)
    assert os.waitpid(worker, 0)[1] == signal.SIGKILL


def test_check_is_silent_until_time_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog, "_expired", "")
    watchdog.check()
    monkeypatch.setattr(watchdog, "_expired", "not finished after 3 s")
    with pytest.raises(HookError, match="hook: not finished after 3 s"):
        watchdog.check()


def test_the_deadline_never_comes_between_a_system_call_and_its_record(program: Program, state: bytes) -> None:
    line = one_error(program.do("step:1", "busy:1.5", "step:2", words=["--timeout", "0.2"], stdin=state, extra=QUICK))
    assert "not finished after 0.2 s" in line
    assert "recorded" in program.journal()
    assert "do step 2" not in program.journal()
    assert program.journal()[-2:] == ["undo busy 1.5", "undo step 1"]
