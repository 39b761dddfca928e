"""The parent of a worker where a call of its own fails: what the worker has done is not called a failure for that."""

from __future__ import annotations

import os
import posix
import select
import signal
import time
from collections.abc import Callable, Iterator
from errno import EBADF, EINTR, EIO, ENOMEM, EPERM

import pytest
from kernel.refusal import nth, refusing

from nvoci import log
from nvoci.errors import HookError
from nvoci.hook import watchdog, worker
from nvoci.hook.worker import Output

Patch = pytest.MonkeyPatch


@pytest.fixture(autouse=True)
def _quick(monkeypatch: Patch) -> None:
    monkeypatch.setattr(worker, "_END_SECONDS", 0.1)
    monkeypatch.setattr(watchdog, "GRACE", 0.1)
    monkeypatch.setattr(watchdog, "stop", lambda: None)  # it changes what signals do here


@pytest.fixture
def sink() -> Iterator[tuple[int, int]]:
    """(read end, write end) of a pipe in the place of the runtime's."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    os.set_blocking(read, False)
    yield read, write
    for fd in (read, write):
        try:
            os.close(fd)
        except OSError:
            pass


# -- what it says -----------------------------------------------------------------------------------------------------


def _said(output: Output, text: bytes) -> None:
    """By the worker."""
    os.write(output._sink, text)
    output.in_parent()


def test_what_is_left_is_passed_on_when_it_has_ended(sink: tuple[int, int]) -> None:
    output = Output(sink[1])
    _said(output, b"line\n" * 1000)
    output.finish()
    assert os.read(sink[0], 1 << 16) == b"line\n" * 1000
    assert output.waits_for() == ([], [])
    output.finish()


def test_a_pipe_that_cannot_be_read_ends_what_is_said(sink: tuple[int, int], monkeypatch: Patch) -> None:
    output = Output(sink[1])
    _said(output, b"line\n")
    monkeypatch.setattr(posix, "read", refusing(posix.read, EIO))
    output.move([output._source])
    assert output.waits_for() == ([], [])


def test_who_does_not_read_on_is_waited_for_no_longer_than_a_moment(sink: tuple[int, int]) -> None:
    os.write(sink[1], b"x" * (1 << 16))  # full
    output = Output(sink[1])
    _said(output, b"line\n")
    output.move([output._source])
    assert output.waits_for() == ([], [sink[1]])
    output.move([sink[1]])  # said to be writable, and is not
    assert output.waits_for() == ([], [sink[1]])
    start = time.monotonic()
    output.finish()
    assert time.monotonic() - start < 5
    assert output.waits_for() == ([], [])


def test_who_has_gone_is_not_written_to(sink: tuple[int, int], monkeypatch: Patch) -> None:
    os.close(sink[0])
    monkeypatch.setattr(posix, "write", refusing(posix.write, EPERM))
    output = Output(sink[1])
    _said(output, b"line\n")
    output.finish()
    assert output.waits_for() == ([], [])


def test_waiting_that_fails_ends_what_is_said(sink: tuple[int, int], monkeypatch: Patch) -> None:
    output = Output(sink[1])
    _said(output, b"line\n")
    monkeypatch.setattr(select, "select", refusing(select.select, ENOMEM))
    output.finish()
    assert output.waits_for() == ([], [])


# -- what it reports --------------------------------------------------------------------------------------------------


def _worker(report: bytes, *, ends: bool = True) -> tuple[int, int]:
    """(pid, report's pipe) of a process that reports; one that does not end waits for a signal."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.close(read)
        if not ends:
            signal.pause()
        os.write(write, report)
        os._exit(0)
    os.close(write)
    if ends:
        select.select([read], [], [])  # whatever is done to it from now on
    return pid, read


def _gone(pid: int) -> bool:
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return True
    return False


@pytest.mark.parametrize("failures", range(worker._FAILURES))
def test_a_report_of_success_is_heard_through_failing_calls(monkeypatch: Patch, failures: int) -> None:
    pid, report = _worker(b"0\0\0")
    later = nth(failures + 1)
    monkeypatch.setattr(select, "select", refusing(select.select, EINTR, lambda *args: not later()))
    assert worker.collect(pid, report, [], 5, None) == "0\0\0"
    assert _gone(pid)


def test_a_report_of_failure_is_the_failing_call(monkeypatch: Patch) -> None:
    """The worker was told to end because of it, and has undone what it did."""
    pid, report = _worker(b"1\0ended by signal 15\0")
    later = nth(2)
    monkeypatch.setattr(select, "select", refusing(select.select, ENOMEM, lambda *args: not later()))
    with pytest.raises(HookError) as caught:
        worker.collect(pid, report, [], 5, None)
    assert caught.value.line() == "hook: listen to the worker: ENOMEM (everything was undone; run again)"
    assert _gone(pid)


def test_calls_that_never_work_end_the_worker(monkeypatch: Patch) -> None:
    pid, report = _worker(b"", ends=False)
    real = select.select
    monkeypatch.setattr(select, "select", refusing(real, EBADF, lambda reading, *args: report in reading))
    with pytest.raises(HookError, match=r"^hook: listen to the worker: EBADF, and killed$"):
        worker.collect(pid, report, [], 5, None)
    assert _gone(pid)


def test_more_than_a_report_is_not_read(monkeypatch: Patch) -> None:
    monkeypatch.setattr(worker, "MESSAGE_MAX", 10)
    pid, report = _worker(b"0\0" + b"x" * 5000)
    assert len(worker.collect(pid, report, [], 5, None)) <= 5002


def test_what_is_no_report_is_taken_out(monkeypatch: Patch) -> None:
    pid, report = _worker(b"+question\n0\0\0")
    assert worker.collect(pid, report, [], 5, lambda data: data.removeprefix(b"+question\n")) == "0\0\0"


# -- that it ends -----------------------------------------------------------------------------------------------------


def _never(pid: int, flags: int) -> tuple[int, int]:
    return 0, 0


def test_one_that_is_stuck_has_done_its_work_all_the_same(monkeypatch: Patch) -> None:
    lines: list[str] = []
    monkeypatch.setattr(log, "_sinks", [(log.WARNING, lines.append)])
    pid, report = _worker(b"0\0\0")
    real = posix.waitpid
    monkeypatch.setattr(posix, "waitpid", _never)
    assert worker.collect(pid, report, [], 5, None) == "0\0\0"
    monkeypatch.undo()
    real(pid, 0)
    assert f"process {pid} has done its work, and is stuck in the kernel" in lines[0]


def test_one_that_is_late_and_stuck_is_named(monkeypatch: Patch) -> None:
    pid, report = _worker(b"", ends=False)
    real = posix.waitpid
    monkeypatch.setattr(posix, "waitpid", _never)
    with pytest.raises(HookError, match=f"not finished after -1 s, and killed; process {pid} is stuck in the kernel"):
        worker.collect(pid, report, [], -1, None)
    monkeypatch.undo()
    real(pid, 0)


REAPS: dict[str, tuple[Callable[[Patch], None], bool]] = {
    "waits that fail": (lambda m: m.setattr(select, "select", refusing(select.select, ENOMEM)), True),
    "who was waited for by another": (lambda m: m.setattr(posix, "waitpid", _no_child), True),
    "a wait that is refused": (lambda m: m.setattr(posix, "waitpid", refusing(posix.waitpid, EPERM)), False),
}


def _no_child(pid: int, flags: int) -> tuple[int, int]:
    raise ChildProcessError


@pytest.mark.parametrize("case", REAPS)
def test_who_has_ended_is_known_in_time(monkeypatch: Patch, case: str) -> None:
    setup, gone = REAPS[case]
    pid, report = _worker(b"", ends=False)
    with monkeypatch.context() as patch:
        setup(patch)
        os.kill(pid, signal.SIGKILL)
        start = time.monotonic()
        assert worker._reap(pid) is gone
        assert time.monotonic() - start < 5
    os.close(report)
    _gone(pid)


def test_a_signal_that_is_refused_is_no_error(monkeypatch: Patch) -> None:
    asked: list[tuple[int, int]] = []

    def refused(pid: int, number: int) -> None:
        asked.append((pid, number))
        raise PermissionError(EPERM, "refused")

    monkeypatch.setattr(posix, "kill", refused)
    worker._kill(os.getpid(), 0)
    assert asked == [(os.getpid(), 0)]
