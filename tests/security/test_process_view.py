"""Rows H4, H6 and H7: a process of another user's namespace in place of the container's, and what processes in the
container's pid namespace can do to a hook."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from lib import hookproc, proc, rootfs, session
from lib.hookproc import FakeContainer
from lib.oracle import Oracle
from security.arena import LIBDIR, NAIVE, TREE, Arena, escapes, settled
from security.pausing import IN_WORKER, Pause
from security.test_process import WORDS

LINK = ["create-symlinks", "--link", f"libcuda.so.1::/{LIBDIR}/libcuda.so"]
USER = 1000

# -- H4 -------------------------------------------------------------------------------------------------------------


@contextmanager
def stranger(arena: Arena, source: Path) -> Iterator[int]:
    """The pid of a process of an unprivileged user with a user, mount and pid namespace of its own, in which `source`
    lies where the container's root should be."""
    argv = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", "--inh-caps=-all"]
    argv += ["unshare", "--user", "--map-root-user", "--mount", "--pid", "--fork", "--kill-child"]
    script = f"mount --bind {source} {arena.root} && echo ready && exec cat"
    with subprocess.Popen([*argv, "sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as user:
        assert user.stdout is not None
        if user.stdout.readline() != b"ready\n":
            pytest.skip("this kernel lets an ordinary user make no user namespace")
        yield proc.children(user.pid)[0]
        assert user.stdin is not None
        user.stdin.close()


def mapping(inside: int, outside: int, count: int) -> dict[str, Any]:
    line = {"containerID": inside, "hostID": outside, "size": count}
    return {"namespaces": [{"type": "pid"}, {"type": "user"}], "uidMappings": [line], "gidMappings": [line]}


# what config.json says of the container -> what the hook says of the process; "" where it can work
EXPECTED: dict[str, tuple[dict[str, Any] | None, str]] = {
    "no-user-namespace": ({"namespaces": [{"type": "pid"}]}, "is in another user namespace than config.json says"),
    "no-linux": ({}, "is in another user namespace than config.json says"),
    "another-map": (mapping(0, 100000, 65536), "is in another user namespace than config.json says"),
    "another-size": (mapping(0, USER, 2), "is in another user namespace than config.json says"),
    "a-map-of-no-numbers": (mapping("0", USER, 1), "is in another"),  # type: ignore[arg-type]
    "one-that-it-joins": ({"namespaces": [{"type": "user", "path": "/proc/self/ns/user"}]}, "is in another user name"),
    "one-that-is-not-there": ({"namespaces": [{"type": "user", "path": "/none"}]}, "is not root of the container"),
    "no-map": ({"namespaces": [{"type": "user"}]}, "is not root of the container"),
    "config-missing": (None, "is not root of the container"),
}


def at_stranger(arena: Arena, linux: Mapping[str, Any] | None, source: Path, **how: Any) -> tuple[proc.Result, int]:
    """The hook, whose state names the stranger."""
    bundle = session.new_dir("bundle")
    with stranger(arena, source) as pid:
        if linux is not None:
            text = json.dumps({"root": {"path": str(arena.root)}, "linux": linux}).replace("PID", str(pid))
            (bundle / "config.json").write_text(text)
            (bundle / "config.json").chmod(0o644)
        state = {"ociVersion": "1.0.2", "id": "x", "bundle": str(bundle), "pid": pid, "root": str(arena.root)}
        return hookproc.run_hook(LINK, state, cwd=bundle, **how), pid


@pytest.fixture
def host(arena: Arena) -> Path:
    """A directory of root's, which the user shows the hook as the container's root."""
    rootfs.tree(arena.canary, TREE)
    return arena.canary


@pytest.mark.parametrize("case", EXPECTED)
def test_h4_a_process_of_another_user_namespace_is_no_way_to_the_host(
    arena: Arena, host: Path, profile: str, case: str
) -> None:
    linux, words = EXPECTED[case]
    with Oracle(host, arena.root) as oracle:
        result, _ = at_stranger(arena, linux, host)
        assert oracle.check(result, ok=False, rc=1, parts=[words]) == []


@pytest.mark.parametrize("how", ["map", "path"])
def test_h4_the_user_namespace_that_config_says_is_worked_in(arena: Arena, profile: str, how: str) -> None:
    """Here the user's own: what is changed is the user's."""
    own = session.new_dir("own")
    rootfs.tree(own, TREE)
    for path in (own, *own.rglob("*")):
        os.lchown(path, USER, USER)
    with Oracle(arena.canary, arena.root) as oracle:
        joined = {"namespaces": [{"type": "user", "path": "/proc/PID/ns/user"}]}
        result, _ = at_stranger(arena, mapping(0, USER, 1) if how == "map" else joined, own)
        assert oracle.check(result, ok=True, lines=0) == []
    assert os.readlink(own / LIBDIR / "libcuda.so") == "libcuda.so.1"


def test_naive_h4_it_is_a_way_to_the_host(arena: Arena, host: Path) -> None:
    with Oracle(host, arena.root) as oracle, stranger(arena, host) as pid:
        words = ["nsenter", "-t", str(pid), "-m", session.PYTHON, str(NAIVE), *LINK]
        state = {"bundle": str(arena.top), "pid": pid, "root": str(arena.root)}
        result = proc.run(words, stdin=json.dumps(state).encode())
        found = oracle.check(result)
    assert escapes(found)


# -- H6, H7 ---------------------------------------------------------------------------------------------------------

# Root of a container as engines make it: all capabilities that are given by default.
ROOT = "-all,+chown,+dac_override,+fowner,+fsetid,+kill,+setgid,+setuid,+setpcap,+net_bind_service,+sys_chroot,+mknod"
# What the pid namespace shows, and what can be done to the process PID in it (0: to each that is not its own).
_SPY = """
import ctypes, errno, json, os, sys
proc, pid = sys.argv[1], int(sys.argv[2])
os.chdir(proc)
libc = ctypes.CDLL(None, use_errno=True)
def tried(call):
    try:
        return repr(call())
    except OSError as e:
        return errno.errorcode[e.errno]
def raw(*words):
    got = libc.syscall(*words) if isinstance(words[0], int) else libc.ptrace(*words[1:])
    if got < 0:
        raise OSError(ctypes.get_errno(), "")
    return got
class Vec(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("size", ctypes.c_size_t)]
def peek():
    here = ctypes.create_string_buffer(8)
    local, remote = Vec(ctypes.addressof(here), 8), Vec(0x400000, 8)
    if libc.process_vm_readv(pid, ctypes.byref(local), 1, ctypes.byref(remote), 1, 0) < 0:
        raise OSError(ctypes.get_errno(), "")
names = {n: open(n + "/comm").read().strip() for n in os.listdir(".") if n.isdigit()}
seen = {"names": names}
if pid:
    for flags, name in ((os.O_RDONLY, "mem"), (os.O_RDWR, "mem"), (os.O_RDONLY, "environ"), (os.O_RDONLY, "maps")):
        seen[f"{name} {flags}"] = tried(lambda: os.open(f"{pid}/{name}", flags))
    for name in ("root", "exe", "cwd", "fd/0", "fd/1", "fd/2", "fd/3", "fd/4", "ns/mnt"):
        seen[name] = tried(lambda: os.readlink(f"{pid}/{name}"))
        seen[name + " open"] = tried(lambda: os.open(f"{pid}/{name}", os.O_RDONLY | os.O_NONBLOCK))
    seen["root listed"] = tried(lambda: os.listdir(f"{pid}/root/"))
    seen["peek"] = tried(peek)
    libc.ptrace.restype = ctypes.c_long
    for request in (16, 0x4206):  # PTRACE_ATTACH, PTRACE_SEIZE
        seen[f"ptrace {request}"] = tried(lambda: raw("ptrace", request, pid, 0, 0))
print(json.dumps(seen))
"""


def spy(c: FakeContainer, pid: int) -> dict[str, Any]:
    """What root of the container finds. pid: in its pid namespace, 0 for none."""
    enter = ["nsenter", "--target", str(c.pid), "--mount", "--pid", "--", "setpriv", f"--bounding-set={ROOT}"]
    argv = [*enter, "--inh-caps=-all", session.PYTHON, "-ISc", _SPY, f"{c.rootfs}/proc", str(pid)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=15, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def numbers(pid: int) -> list[int]:
    """Its pid in each pid namespace, ours first."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return [int(n) for n in next(line for line in lines if line.startswith("NSpid:")).split()[1:]]


@pytest.mark.parametrize("point", ["entered", "performed"])
def test_h6_h7_from_inside_the_container_the_worker_is_not_there(arena: Arena, point: str) -> None:
    """It enters no pid namespace, so there is no number for ptrace, kill or /proc; and it holds nothing but the root,
    procfs, the namespace and its pipes."""
    seen: dict[str, Any] = {}
    with FakeContainer(arena.root) as c:

        def look(pid: int) -> None:
            seen.update(spy(c, 0), pids=numbers(pid), root=os.readlink(f"/proc/{pid}/root"))
            seen["fds"] = [os.readlink(f"/proc/{pid}/fd/{n}") for n in os.listdir(f"/proc/{pid}/fd")]

        pause = Pause(point, look)
        result = pause.hook(WORDS, c)
        assert (result.rc, result.stderr, pause.problem) == (0, "", "")
    assert len(seen["pids"]) == 1
    assert sorted(seen["names"].values()) == ["cat", Path(session.PYTHON).name]  # the container's, and the spy itself
    allowed = ("/dev/null", "pipe:", "anon_inode:", "mnt:", "/proc", str(arena.root))
    assert [fd for fd in seen["fds"] if not fd.startswith(allowed)] == []


@pytest.mark.parametrize("point", ["planned", "performed"])
def test_h6_a_hook_in_the_container_s_pid_namespace_cannot_be_looked_into(arena: Arena, point: str) -> None:
    """At createContainer: root of the container may send it signals, and no more."""
    seen: dict[str, Any] = {}
    with FakeContainer(arena.root) as c, Oracle(arena.canary) as oracle:
        pause = Pause(point, lambda pid: None)
        pause.act = lambda inner: seen.update(spy(c, inner))
        result = pause.hook(WORDS, c, stage="createContainer")
        assert oracle.check(result, ok=True, lines=0) == []
        assert pause.problem == ""
    names = seen.pop("names")
    assert len(names) == 3
    assert {k: v for k, v in seen.items() if v not in ("EPERM", "EACCES")} == {}
    assert len(seen) == 26


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGXCPU, signal.SIGUSR1])
def test_h7_a_signal_to_a_hook_inside_is_one_error_and_nothing_is_left(arena: Arena, number: int) -> None:
    with FakeContainer(arena.root) as c, Oracle(arena.canary, arena.root) as oracle:

        def send(inner: int) -> None:
            enter = ["nsenter", "--target", str(c.pid), "--pid", "--", "sh", "-c"]
            subprocess.run([*enter, f"kill -{int(number)} {inner}"], check=True)

        pause = Pause("performed", send)
        result = pause.hook(WORDS, c, stage="createContainer")
        if number == signal.SIGUSR1:  # ends it, as SIGKILL does: a rerun completes it
            assert [v for v in oracle.check(result, ok=False, lines=None) if not v.startswith("rootfs: ")] == []
            assert hookproc.run_hook(WORDS, container=c).rc == 0
            return
        found = settled(arena, oracle.check(result, ok=False, rc=1, parts=[f"ended by signal {int(number)}"]))
        assert (found, pause.problem) == ([], "")


@pytest.mark.parametrize("point", ["entered", "last"])
def test_h6_a_tracer_that_attaches_to_the_worker_changes_nothing(arena: Arena, point: str) -> None:
    assert point in IN_WORKER
    tracers: list[subprocess.Popen[bytes]] = []
    with FakeContainer(arena.root) as c, Oracle(arena.canary) as oracle:
        log = session.tmp() / session.unique("trace")
        strace = subprocess.Popen(["sh", "-c", 'read pid; exec strace -qqq -o "$1" -p $pid', "sh", log],
                                  stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)  # fmt: skip
        tracers.append(strace)

        def attach(pid: int) -> None:
            assert strace.stdin is not None
            strace.stdin.write(b"%d\n" % pid)
            strace.stdin.flush()
            while f"TracerPid:\t{strace.pid}\n" not in Path(f"/proc/{pid}/status").read_text():
                pass

        pause = Pause(point, attach)
        result = pause.hook(WORDS, c)
        strace.communicate(timeout=10)
        assert oracle.check(result, ok=True, lines=0) == []
        assert pause.problem == ""
    assert log.stat().st_size
