"""The process that loads NVML, with a library that looks around: who it is, what it may do, what it can leave."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from kernel.nvmlliar import alive, ask, library, marks, nothing_left
from lib import proc

from nvoci.discover import _nvml_process, nvml
from nvoci.errors import HookError

pytestmark = marks
__all__ = ["nothing_left"]


def test_the_library_is_nobody_and_may_nothing() -> None:
    told = ask("NAME=who()").gpus[0].name.split()
    assert told[:2] == ["u65534,65534,65534", "g65534,65534,65534"]
    assert told[2:] == ["n0", "p1", "s9", "d0", "c0", "f5", "t1"]  # groups, no_new_privs, SIGKILL, dumpable, core, fds


def test_a_configured_user_is_used() -> None:
    told = nvml.query(library("NAME=who()"), user=(1234, 4321)).gpus[0].name
    assert told.startswith("u1234,1234,1234 g4321,4321,4321 n0 p1 s9")


def test_root_as_the_configured_user_has_no_capability() -> None:
    tries = 'ON_INIT=answer = !setuid(1) || !chroot("/") ? 999 : 0'
    told = nvml.query(library(tries, "NAME=who()"), user=(0, 0)).gpus[0].name
    assert told.startswith("u0,0,0 g0,0,0 n0 p1 s9")


OTHERS = {
    "another user": (["setpriv", "--reuid=1234", "--clear-groups"], "u1234,1234,1234 g0,0,0 n0 p1 s9"),
    "a user namespace that maps root alone": (["unshare", "--user", "--map-root-user"], "u0,0,0 g0,0,0 n0 p1 s9"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_who_cannot_become_nobody_asks_as_who_they_are(case: str) -> None:
    prefix, told = OTHERS[case]
    places = [Path(sys.executable), *(Path(p) for p in _nvml_process.python_path())]
    if not all(parent.stat().st_mode & 0o001 for place in places for parent in place.parents):
        pytest.skip("other users cannot read this checkout")
    done = _run(prefix, "print(nvml.query(sys.argv[3]).gpus[0].name)", library("NAME=who()"))
    if "unshare failed" in done.stderr:
        pytest.skip(f"no user namespaces here: {done.stderr.strip()}")
    assert done.stdout.startswith(told), done.stderr


def _run(prefix: Sequence[str], script: str, path: str) -> subprocess.CompletedProcess[str]:
    """A process that is confined by `prefix`; its sys.argv[3] is the library."""
    script = f"import sys; sys.path[:0] = sys.argv[1:3]; from nvoci.discover import nvml\n{script}\n"
    argv = [*prefix, sys.executable, "-BISc", script, *_nvml_process.python_path(), path]
    return subprocess.run(argv, capture_output=True, text=True, timeout=30)


def _without(*capabilities: str) -> list[str]:
    if shutil.which("setpriv") is None:
        pytest.skip("no setpriv: apt-get install util-linux")
    return ["setpriv", "--bounding-set=" + ",".join(f"-{each}" for each in capabilities)]


TELL = (
    "try: nvml.query(sys.argv[3], seconds=1)\n"
    "except nvml.HookError as e: print(e.line())\n"
)  # fmt: skip


@pytest.mark.parametrize("missing", [("setuid",), ("setgid",), ("setuid", "setgid", "sys_admin")])
def test_root_that_cannot_become_nobody_loads_nothing(missing: tuple[str, ...]) -> None:
    done = _run(_without(*missing), TELL, library('ON_LOAD=puts("loaded")'))
    assert ": become uid 65534: EPERM (root needs CAP_SETUID and CAP_SETGID" in done.stdout, done.stderr
    assert done.stderr == ""


def test_who_may_not_kill_it_kills_its_namespace() -> None:
    done = _run(_without("kill"), TELL, library("ON_INIT=for (;;) pause()"))
    assert "nvmlInit: no answer within 1 s (" in done.stdout, done.stderr
    assert "cannot be killed" not in done.stdout


def test_who_may_not_kill_it_at_all_says_so_and_it_ends_by_itself() -> None:
    proc.become_subreaper()
    known = set(proc.children())
    alone = "import os; keep = os.fork()\nif keep: os.waitpid(keep, 0); time.sleep(2); os._exit(0)\n"
    done = _run(_without("kill", "sys_admin"), f"import time\n{alone}{TELL}import time; time.sleep(2)",
                library("ON_INIT=prctl(PR_SET_PDEATHSIG, 0); for (;;) pause()"))  # fmt: skip
    assert "nvmlInit: no answer within 1 s (" in done.stdout, done.stderr
    assert "the process cannot be killed: it waits in the kernel, or CAP_KILL is missing" in done.stdout
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline and any(alive(pid) for pid in set(proc.children()) - known):
        time.sleep(0.01)
    assert set(proc.children()) - known == set()


@pytest.mark.parametrize("seconds", [float("nan"), float("inf"), -1.0])
def test_a_time_limit_that_is_none(seconds: float) -> None:
    with pytest.raises(HookError, match=rf"ask NVML: a time limit of {seconds} s$") as caught:
        nvml.query(library(), seconds=seconds)
    assert caught.value.hint == "name one of 0 to 86400 seconds"


def test_the_groups_of_device_nodes_are_kept(tmp_path: Path) -> None:
    for name, mode, gid in (("nvidiactl", 0o660, 44), ("nvidia0", 0o666, 45), ("nvidia1", 0o640, 46),
                            ("nvidia-uvm", 0o660, 47), ("nvidia2", 0o660, 44)):  # fmt: skip
        os.mknod(tmp_path / name, 0o020000)
        os.chown(tmp_path / name, 0, gid)
        os.chmod(tmp_path / name, mode)
    (tmp_path / "nvidia3").touch()
    os.chown(tmp_path / "nvidia3", 0, 48)
    assert nvml.node_groups(str(tmp_path)) == [44]
    assert nvml.node_groups(str(tmp_path / "none")) == []


def test_those_groups_reach_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvml, "node_groups", lambda: [44, 45])
    assert " n2 p1 " in ask("NAME=who()").gpus[0].name


def test_nothing_of_ours_is_inherited() -> None:
    leaked = os.open("/dev/null", os.O_RDONLY)
    os.set_inheritable(leaked, True)
    high = os.dup2(leaked, 900, inheritable=True)
    try:
        assert ask("NAME=who()").gpus[0].name.split()[-2] == "f5"
        environ = 'ON_INIT=answer = getenv("HOME") || getenv("LD_LIBRARY_PATH") || getenv("PYTHONPATH") ? 999 : 0'
        assert ask(environ).count == 2
    finally:
        os.close(leaked)
        os.close(high)


def test_it_dies_with_its_parent() -> None:
    path = library("ON_INIT=for (;;) pause()")
    script = (
        "import sys, os, time; sys.path[:0] = sys.argv[1:3]\n"
        "from nvoci.discover import nvml\n"
        "q = nvml.Question(sys.argv[3], seconds=60)\n"
        "time.sleep(0.5); print(q._process._pid, flush=True); os.kill(os.getpid(), 9)\n"
    )
    hooks, vendor = _nvml_process.python_path()
    argv = [sys.executable, "-c", script, hooks, vendor, path]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30)
    assert done.returncode == -9
    pid = int(done.stdout)
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline and alive(pid):
        time.sleep(0.01)
    assert not alive(pid)


def test_who_it_leaves_behind_in_another_session_dies_too() -> None:
    name = f"nvoci-left-{os.getpid() % 10000}"[:15]
    assert len(ask(f'ON_INIT=daemon_of_its_own("{name}")').gpus) == 2
    left = [pid for pid in os.listdir("/proc") if pid.isdigit() and _name(pid) == name]
    assert left == []


def _name(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def test_our_next_child_is_in_our_pid_namespace() -> None:
    ask()
    done = subprocess.run(["readlink", "/proc/self/ns/pid"], capture_output=True, text=True, timeout=30)
    assert done.stdout.strip() == os.readlink("/proc/self/ns/pid")


def test_what_it_writes_is_bounded() -> None:
    assert ask("ON_INIT=answer = can_write(5, 4096) ? 999 : 0").count == 2
    made = 'int fd = memfd_create("x", 0)'
    assert ask(f"ON_INIT={made}; answer = can_write(fd, 1 << 15) ? 0 : 999").count == 2
    assert ask(f"ON_INIT={made}; answer = can_write(fd, 1 << 16) ? 999 : 0").count == 2
