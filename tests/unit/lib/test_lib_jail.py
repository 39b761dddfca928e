"""lib.proc and lib.jail: deadlines, survivors, mounts, and a faked host."""

from __future__ import annotations

import time
from pathlib import Path

from lib import driver, jail, proc, session


def test_a_process_that_outlives_its_parent_is_named_and_killed() -> None:
    result = proc.run(["sh", "-c", "setsid sleep 30 >/dev/null 2>&1 & exit 4"])
    assert result.rc == 4
    assert len(result.survivors) == 1
    assert not Path(f"/proc/{result.survivors[0].split()[0]}").exists()


def test_the_deadline_holds_even_with_an_orphan_on_the_pipe() -> None:
    start = time.monotonic()
    result = proc.run(["sh", "-c", "setsid sleep 30 & exit 4"], timeout=0.5)
    assert result.timed_out
    assert time.monotonic() - start < 5


def test_peak_memory_is_that_of_the_command() -> None:
    small = proc.run([session.PYTHON, "-ISc", "1"], measure_rss=True)
    large = proc.run([session.PYTHON, "-ISc", "bytearray(64 << 20)"], measure_rss=True)
    assert 4 << 10 < small.maxrss < 20 << 10
    assert large.maxrss > 64 << 10


def test_closed_stdin_is_closed() -> None:
    assert proc.run(["/bin/busybox", "sh", "-c", "ls /proc/self/fd"], stdin=None).stdout.split()[0] != "stdin"
    assert proc.run([session.PYTHON, "-ISc", "import os\nos.fstat(0)"], stdin=None).rc == 1


def test_a_jail_reports_mounts_and_survivors_and_keeps_the_host_clean() -> None:
    before = proc.mountinfo()
    result = jail.run(["sh", "-c", "mount -t tmpfs x /mnt; (sleep 30 >/dev/null 2>&1 &); exit 3"], grace=0.1)
    assert result.rc == 3
    assert [m.split()[4] for m in result.mounts_added] == ["/mnt"]
    assert "sleep 30" in result.survivors[0]
    assert proc.mountinfo() == before


def test_a_jail_ends_at_its_deadline() -> None:
    result = jail.run(["sh", "-c", "trap '' TERM; setsid sleep 30 & wait"], timeout=0.5)
    assert result.timed_out
    assert result.wall < 5


def test_driver_proc_is_seen_below_a_real_procfs(tmp_path: Path) -> None:
    with driver.make(tmp_path / "d") as d:
        argv = ["sh", "-c", "stat -f -c %t /proc; cat /proc/driver/nvidia/params"]
        for result in (
            jail.run(argv, setup=jail.driver_proc(d.proc)),
            proc.run([*jail.prefix(jail.driver_proc(d.proc)), *argv]),
        ):
            assert result.stdout == "9fa0\n" + driver.PARAMS


def test_host_files_are_seen_and_the_host_is_not_written() -> None:
    name = "/etc/nvoci-test/hook.json"
    result = jail.run(["cat", name, "/etc/debian_version"], setup=jail.host_files({name: "{}\n"}))
    assert result.stdout.startswith("{}\n")
    assert result.ok
    assert not Path(name).parent.exists()
