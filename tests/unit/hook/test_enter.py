"""Where a hook stands, and whose pid it believes: by stage, by state, by what /proc says."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lib import jail, proc, session
from unit.hook.hooktools import Container, Program, one_error, running_container

pytestmark = pytest.mark.kernel
LINK = ["create-symlinks", "--link", "a::/b"]


def _where(program: Program) -> dict[str, str]:
    (line,) = [text for text in program.journal() if text.startswith("place ")]
    words = line.split()
    return dict(zip(words[::2], words[1::2], strict=True))


def _mnt(pid: int | str) -> str:
    return str(os.stat(f"/proc/{pid}/ns/mnt").st_ino)


# -- the three places ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fields", [{}, {"pid": 0}, {"pid": None}], ids=str)
def test_without_a_pid_on_the_host_the_hook_works_on_the_host(program: Program, fields: dict[str, Any]) -> None:
    """The jail is a host of its own: its pid 1, its shell and the hook share one mount namespace."""
    assert jail.run([program.entry(fake=True), *program.fake("where")], stdin=program.state(**fields)).ok
    assert _where(program)["place"] == "host"


def test_on_the_host_a_process_of_the_host_is_refused(program: Program) -> None:
    script = 'sleep 300 & printf \'{"root": "%s", "pid": %d}\' "$0" $! >state; "$@" <state; rc=$?; kill $!; exit $rc'
    argv = ["/bin/sh", "-c", script, program.root, program.entry(), *LINK]
    result = jail.run(argv, setup=f"cd {program.folder}", cwd=program.folder)
    assert "is in the host's mount namespace" in one_error(result)
    assert not any(program.root.iterdir())


def test_an_ancestor_in_the_same_mount_namespace_is_the_containers_init(program: Program) -> None:
    """createContainer in a container that shares the host's pid namespace: runc's init has started the hook."""
    assert program.do("where", stdin=program.state(pid=os.getpid())).ok
    assert (_where(program)["place"], _where(program)["mnt"]) == ("inside", _mnt("self"))


def test_with_a_containers_pid_a_worker_enters_its_mount_namespace(program: Program, container: Container) -> None:
    assert program.do("where", stdin=program.state(pid=container.pid)).ok
    found = _where(program)
    assert (found["place"], found["mnt"], found["cwd"]) == ("outside", _mnt(container.pid), "/")
    assert found["mnt"] != _mnt("self")


def test_what_the_worker_makes_is_in_the_containers_mount_and_not_below_it(
    program: Program, container: Container
) -> None:
    assert program.run(*LINK, stdin=program.state(pid=container.pid)).ok
    assert os.readlink(container.inside / "b") == "a"
    assert not any(program.root.iterdir())


@pytest.mark.parametrize("fields", [{"pid": 1}, {"pid": 0}, {}, {"pid": 4_000_000}, {"pid": 2}], ids=str)
def test_in_the_containers_pid_namespace_the_pid_is_not_looked_at(program: Program, fields: dict[str, Any]) -> None:
    """createContainer: runc gives 1, crun 0; /proc is still the host's."""
    (program.folder / "state").write_bytes(program.state(**fields))
    argv = [program.entry(fake=True), *program.fake("where")]
    script = f'exec "$@" <{program.folder / "state"}'
    result = proc.run(["/usr/bin/unshare", "-mpf", "--propagation", "private", "/bin/sh", "-c", script + " & wait $!",
                       "sh", *argv])  # fmt: skip
    assert (result.rc, result.stderr) == (0, "")
    assert _where(program)["place"] == "inside"
    assert _where(program)["mnt"] != _mnt("self")


def test_in_another_mount_namespace_and_the_hosts_pid_namespace_pid_0_is_inside(program: Program) -> None:
    (program.folder / "state").write_bytes(program.state(pid=0))
    argv = [program.entry(fake=True), *program.fake("where")]
    script = f'"$@" <{program.folder / "state"}; exit $?'
    result = proc.run(["/usr/bin/unshare", "-mf", "--propagation", "private", "/bin/sh", "-c", script, "sh", *argv])
    assert (result.rc, result.stderr) == (0, "")
    assert _where(program)["place"] == "inside"


@pytest.mark.security
def test_a_proc_of_another_kind_is_refused(program: Program) -> None:
    for setup in ("mount -t tmpfs tmpfs /proc", "mount --bind /proc/sys /proc"):
        result = proc.run([*jail.prefix(setup), program.entry(), *LINK], stdin=program.state())
        assert "start: /proc is not a procfs" in one_error(result)


# -- pids that are refused -----------------------------------------------------------------------------------------


def _kernel_thread() -> int:
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            flags = int((path / "stat").read_text().rpartition(") ")[2].split()[6])
            if flags & 0x00200000:
                return int(path.name)
    pytest.skip("no kernel thread is visible in this pid namespace")


@contextlib.contextmanager
def _host_process(*wrapper: str) -> Iterator[int]:
    child = subprocess.Popen([*wrapper, "sleep", "300"], env=dict(proc.PLAIN_ENV))
    try:
        deadline = time.monotonic() + 5
        while Path(f"/proc/{child.pid}/comm").read_text() != "sleep\n":
            assert time.monotonic() < deadline
            time.sleep(0.005)
        yield child.pid
    finally:
        child.kill()
        child.wait()


def _dead() -> int:
    child = subprocess.Popen(["/bin/true"])
    child.wait()
    return child.pid


BAD_PIDS: dict[str, tuple[Any, str]] = {
    "init of the host": (1, "is the init of the host"),
    "gone": (_dead, "ESRCH (the container's process is gone)"),
    "a kernel thread": (_kernel_thread, "is a kernel thread"),
    "-1": (-1, "`pid` is -1, not a process id"),
    "2^22 + 1": ((1 << 22) + 1, "not a process id"),
    "2^31": (1 << 31, "not a process id"),
    "2^64": (1 << 64, "not a process id"),
    "a float": (4711.0, "`pid` is 4711.0"),
    "true": (True, "`pid` is True"),
    "false": (False, "`pid` is False"),
    "a string": ("4711", "`pid` is 4711"),
    "an empty string": ("", "`pid` is "),
    "a list": ([1], "`pid` is [1]"),
    "a long object": ({"x": "y" * 10_000}, "`pid` is {'x'"),
}


@pytest.mark.parametrize(("pid", "reason"), BAD_PIDS.values(), ids=BAD_PIDS)
def test_a_pid_that_names_no_container_is_one_error_and_nothing_changes(
    program: Program, pid: Any, reason: str
) -> None:
    line = one_error(program.run(*LINK, stdin=program.state(pid=pid() if callable(pid) else pid)))
    assert reason in line
    assert len(line) < 500
    assert not any(program.root.iterdir())


def test_the_hooks_own_pid_is_refused(program: Program) -> None:
    state = program.folder / "state"
    doc = json.loads(program.state())
    script = 'printf \'{"root": "%s", "pid": %d}\' "$1" $$ >"$2"; shift 2; exec "$@" <"$0"'
    result = proc.run(["/bin/sh", "-c", script, str(state), doc["root"], state, program.entry(), *LINK])
    assert "is the hook itself" in one_error(result)
    assert not any(program.root.iterdir())


@pytest.mark.security
@pytest.mark.parametrize("wrapper", [(), ("unshare", "-m"), ("unshare", "-m", "--propagation", "private", "setsid")],
                         ids=["host's mount namespace", "own mount namespace", "own session, too"])  # fmt: skip
def test_a_pid_reused_by_a_process_of_the_host_is_refused(program: Program, wrapper: tuple[str, ...]) -> None:
    with _host_process(*wrapper) as pid:
        before = proc.mountinfo(pid)
        line = one_error(program.run(*LINK, stdin=program.state(pid=pid)))
        assert proc.mountinfo(pid) == before
    assert "pid was reused" in line
    assert not any(program.root.iterdir())


def test_a_zombie_is_gone(program: Program) -> None:
    child = subprocess.Popen(["/bin/true"])
    while "Z" not in Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2][:3]:
        time.sleep(0.005)
    try:
        assert "ESRCH" in one_error(program.run(*LINK, stdin=program.state(pid=child.pid)))
    finally:
        child.wait()


def test_a_container_that_dies_meanwhile_is_an_error_and_all_is_undone(program: Program) -> None:
    with running_container(program.root, mounted=False) as container:
        state = program.state(pid=container.pid)
        hook = program.start("step:1", "wait:1", stdin=state)
        program.wait_for("do wait 1")
        os.kill(container.pid, signal.SIGKILL)
        stderr = hook.communicate(timeout=10)[1].decode()
    assert (hook.returncode, stderr.count("\n")) == (1, 1)
    assert "ESRCH (the container's process is gone)" in stderr
    assert program.journal()[-2:] == ["undo wait 1", "undo step 1"]


# -- who is a container --------------------------------------------------------------------------------------------


def test_a_container_in_the_hosts_pid_namespace_is_known_by_cgroup_and_parent(program: Program) -> None:
    """The runtime, here this test, is the parent of both; the container has a cgroup of its own."""
    groups = [p for p in (Path("/sys/fs/cgroup/pids"), Path("/sys/fs/cgroup/unified"), Path("/sys/fs/cgroup"))
              if (p / "cgroup.procs").exists()]  # fmt: skip
    if not groups:
        pytest.skip("no cgroup hierarchy to make a group in")
    group = groups[0] / session.unique("enter")
    group.mkdir()
    try:
        with _host_process("unshare", "-m", "--propagation", "private") as pid:
            (group / "cgroup.procs").write_text(str(pid))
            assert program.do("where", stdin=program.state(pid=pid)).ok
            assert (_where(program)["place"], _where(program)["mnt"]) == ("outside", _mnt(pid))
    finally:
        deadline = time.monotonic() + 5
        while (group / "cgroup.procs").read_text() and time.monotonic() < deadline:
            time.sleep(0.01)
        group.rmdir()


def test_a_process_whose_name_looks_like_a_stat_line_is_read_right(program: Program) -> None:
    odd = program.folder / ") Z 1 (x"
    odd.symlink_to("/bin/sleep")
    with _host_process("unshare", "-m") as _:
        child = subprocess.Popen(["unshare", "-mpf", "--kill-child", odd, "300"], env=dict(proc.PLAIN_ENV))
        try:
            deadline = time.monotonic() + 5
            while not proc.children(child.pid):
                assert time.monotonic() < deadline
                time.sleep(0.005)
            (pid,) = proc.children(child.pid)
            assert program.do("where", stdin=program.state(pid=pid)).ok
            assert _where(program)["place"] == "outside"
        finally:
            for each in [*proc.descendants(child.pid), child.pid]:
                os.kill(each, signal.SIGKILL)
            child.wait()
