"""The worker and its parent: nothing of the runtime's is in the worker's hands, and it may end or not."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator

import pytest
from lib import proc, silentfuse
from unit.hook.hooktools import Container, Program, one_error

QUICK = "from nvoci.hook import watchdog; watchdog.GRACE = 0.3"


@pytest.fixture
def stuck(program: Program, container: Container) -> Iterator[str]:
    """A path in the container that nobody comes back from."""
    (container.inside / "stuck").mkdir()
    directory = program.root / "stuck"
    with silentfuse.mounted(directory, ("/usr/bin/nsenter", f"--mount=/proc/{container.pid}/ns/mnt", "--")):
        yield f"{directory}/x"


def _orphans(known: set[int]) -> list[int]:
    return [pid for pid in proc.children() if pid not in known]


def _states(pids: list[int]) -> list[str]:
    return [open(f"/proc/{pid}/stat").read().rpartition(") ")[2][0] for pid in pids]


def test_a_worker_stuck_in_the_kernel_is_left_behind(program: Program, container: Container, stuck: str) -> None:
    proc.become_subreaper()
    known = set(proc.children())
    start = time.monotonic()
    child = program.start("step:1", f"stat:{stuck}", words=["--timeout", "0.3"], extra=QUICK,
                          stdin=program.state(pid=container.pid))  # fmt: skip
    try:
        out, err = child.communicate(timeout=15)  # which waits until nobody holds its stdout or stderr
    finally:
        with contextlib.suppress(ProcessLookupError):
            child.kill()
    orphans = _orphans(known | {child.pid})
    assert _states(orphans) == ["D"]
    line = one_error(proc.Result(child.returncode, out.decode(), err.decode(), 0))
    assert f"hook: not finished after 0.3 s, and killed; process {orphans[0]} is stuck in the kernel" in line
    assert time.monotonic() - start < 10


def test_one_that_is_told_to_end_meanwhile_says_so(program: Program, container: Container, stuck: str) -> None:
    child = program.start(f"stat:{stuck}", extra=QUICK, stdin=program.state(pid=container.pid))
    program.wait_for(f"do stat {stuck}")
    child.terminate()
    err = child.communicate(timeout=15)[1].decode()
    assert child.returncode == 1
    assert "hook: ended by signal 15, and killed; process " in err


def test_a_worker_has_no_descriptor_of_the_runtime(program: Program, container: Container) -> None:
    assert program.do("fds:", stdin=program.state(pid=container.pid)).ok
    assert program.journal()[-1] == "fds /dev/null /dev/null pipe"


def test_its_lines_come_out_in_order_and_before_the_error(program: Program, container: Container) -> None:
    actions = [f"say:1:line {n}" for n in range(50)]
    result = program.do(*actions, "error:the end", stdin=program.state(pid=container.pid))
    lines = [line.partition(" msg=")[2] for line in result.stderr.splitlines()]
    assert (result.rc, result.stdout) == (1, "")
    assert lines[:50] == [f'"line {n}"' for n in range(50)]
    assert "the end" in lines[50]
    assert len(lines) == 51


def test_many_lines_are_passed_on_whole(program: Program, container: Container) -> None:
    result = program.do(f"say:2000:{'x' * 300}", stdin=program.state(pid=container.pid))
    assert (result.rc, result.stderr.count("x" * 300 + '"\n')) == (0, 2000)


def test_more_than_a_runtime_should_keep_is_cut(program: Program, container: Container) -> None:
    extra = "from nvoci.hook import worker; worker._SAID_MAX = 100_000"
    result = program.do(f"say:2000:{'x' * 300}", extra=extra, stdin=program.state(pid=container.pid))
    assert result.rc == 0
    assert 90_000 < len(result.stderr) < 101_000
    assert "more than 100000 bytes were written to descriptor 2: the rest is cut" in result.stderr


def test_nobody_reading_is_an_end_within_the_deadline(program: Program, container: Container) -> None:
    """The worker waits to be read, is late, and undoes; the parent does not wait for who does not read."""
    child = program.start("step:1", f"say:2000:{'x' * 300}", words=["--timeout", "0.3"], extra=QUICK,
                          stdin=program.state(pid=container.pid))  # fmt: skip
    start = time.monotonic()
    while os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        assert time.monotonic() - start < 15
        time.sleep(0.05)
    child.communicate(timeout=5)
    assert child.returncode != 0


def test_a_closed_stderr_does_not_matter(program: Program, container: Container) -> None:
    result = program.do("say:3:lost", "step:1", stdin=program.state(pid=container.pid), preexec=lambda: os.close(2))
    assert (result.rc, result.stderr) == (0, "")
    assert program.journal()[-1] == "do step 1"
