"""Rows G2, G4, G6, G7 and H2: what the state on stdin says, and whom it names."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from lib import driver, proc, rootfs, session
from lib.hookproc import FakeContainer, entry, run_hook
from lib.oracle import Oracle
from security.arena import LIBDIR, NAIVE, NAIVE_LIMIT, Arena, attempt, escapes

LINK = ["create-symlinks", "--link", f"libcuda.so.1::/{LIBDIR}/libcuda.so"]
MOUNT = ["disable-device-node-modification"]
MADE = [f"{LIBDIR}/libcuda.so"]
NO_PROC = {"proc_mount": False}


@pytest.fixture
def host_params(arena: Arena) -> Iterator[None]:
    """/proc/driver of a driver, on this host; and a container's own to mount on."""
    rootfs.tree(arena.root, "file proc/driver/nvidia/params ModifyDeviceFiles: 1\\n")
    with driver.make(session.new_dir("driver")) as d:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=555", "driver", "/proc/driver"], check=True)
        try:
            subprocess.run(["cp", "-a", f"{d.proc}/.", "/proc/driver/"], check=True)
            yield
        finally:
            subprocess.run(["umount", "-l", "/proc/driver"], check=True)


# -- G2 -------------------------------------------------------------------------------------------------------------


@contextmanager
def stdin(kind: str) -> Iterator[dict[str, Any]]:
    with ExitStack() as stack:
        if kind == "huge":
            yield {"state": b'{"a": "' + b"x" * (100 << 20)}
        elif kind == "deep":
            yield {"state": b"[" * 500_000}
        elif kind == "endless":
            fd = os.open("/dev/zero", os.O_RDONLY)
            stack.callback(os.close, fd)
            yield {"stdin": fd}
        elif kind == "never-closed":
            read, write = os.pipe()
            stack.callback(os.close, read)
            stack.callback(os.close, write)
            os.write(write, b'{"id": "x"')
            yield {"stdin": read}
        elif kind == "closed":
            yield {"stdin": None}
        else:
            yield {"state": b""}


@pytest.mark.parametrize("stage", ["outside", "inside"])
@pytest.mark.parametrize("kind", ["huge", "deep", "endless", "closed", "empty"])
def test_g2_a_stdin_without_a_state_is_one_error(arena: Arena, profile: str, kind: str, stage: str) -> None:
    with stdin(kind) as how:
        assert attempt(arena, LINK, stage, ok=False, max_wall=3.0, **how) == []


def test_g2_a_stdin_that_is_never_closed_is_given_up(arena: Arena) -> None:
    with stdin("never-closed") as how:
        assert attempt(arena, LINK, ok=False, max_wall=8.0, **how) == []


@pytest.mark.parametrize("kind", ["huge", "deep", "endless", "never-closed", "closed", "empty"])
def test_naive_g2_a_stdin_without_a_state_is_waited_for_or_falls_through(arena: Arena, kind: str) -> None:
    with stdin(kind) as how:
        found = attempt(arena, LINK, naive=True, ok=False, **how)
    assert any("deadline" in v or "traceback" in v for v in found)


# -- G4 -------------------------------------------------------------------------------------------------------------


def kernel_thread() -> int | None:
    """A process without a command line whose parent is kthreadd."""
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) > 1:
            fields = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()
            if int(fields[6]) & 0x00200000:  # include/linux/sched.h: PF_KTHREAD
                return int(name)
    return None


BAD_PIDS: dict[str, Any] = {
    "missing": None, "zero": 0, "one": 1, "negative": -1, "huge": 2**31, "beyond": 1 << 22, "string": "12",
    "float": 1.5, "true": True, "list": [1],
}  # fmt: skip


NO_PID = ("missing", "zero")


@pytest.mark.parametrize("pid", [p for p in BAD_PIDS if p not in NO_PID])
@pytest.mark.usefixtures("host_params")
def test_g4_a_pid_that_is_none_is_refused_outside(arena: Arena, profile: str, pid: str) -> None:
    assert attempt(arena, MOUNT, ok=False, change={"pid": BAD_PIDS[pid]}, container=NO_PROC) == []


@pytest.mark.parametrize("pid", NO_PID)
def test_g4_without_a_pid_files_are_worked_on_in_the_root(arena: Arena, profile: str, pid: str) -> None:
    """Whether something could be mounted is not asked here: the tests have a mount namespace of their own, which the
    hook takes for a container's, since the test's parent is in another."""
    assert attempt(arena, LINK, ok=True, planned=MADE, change={"pid": BAD_PIDS[pid]}) == []


@pytest.mark.usefixtures("host_params")
def test_g4_a_kernel_thread_is_refused(arena: Arena, profile: str) -> None:
    pid = kernel_thread()
    if pid is None:
        pytest.skip("no kernel thread is seen in this pid namespace")
    assert attempt(arena, MOUNT, ok=False, change={"pid": pid}, container=NO_PROC) == []


@pytest.mark.usefixtures("host_params")
def test_g4_a_pid_that_is_gone_is_refused(arena: Arena, profile: str) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    assert attempt(arena, MOUNT, ok=False, parts=["ESRCH"], change={"pid": gone.pid}, container=NO_PROC) == []


@pytest.mark.parametrize("pid", [None, 0, 1, 2, 4_000_000])
def test_g4_inside_the_pid_is_never_used(arena: Arena, profile: str, pid: int | None) -> None:
    assert attempt(arena, LINK, "inside", ok=True, planned=MADE, change={"pid": pid}) == []


@pytest.mark.parametrize("pid", ["missing", "zero", "negative", "string", "list"])
@pytest.mark.usefixtures("host_params")
def test_naive_g4_a_pid_that_is_none_is_used(arena: Arena, pid: str) -> None:
    try:
        found = attempt(arena, MOUNT, naive=True, ok=False, change={"pid": BAD_PIDS[pid]}, container=NO_PROC)
    finally:
        subprocess.run(["umount", "-l", arena.root / "proc/driver/nvidia/params"], stderr=subprocess.DEVNULL)
    assert escapes(found) or any("traceback" in v for v in found)


# -- G6 -------------------------------------------------------------------------------------------------------------

DAMAGED = {
    "intact": None,
    "missing": "",
    "fifo": "fifo config.json",
    "sparse": "sparse config.json 1G",
    "link": "symlink config.json /etc/passwd",
}


def with_config(arena: Arena, stage: str, damage: str, root: str, **how: Any) -> list[str]:
    """The state's root is `root` ("": not given), config.json is damaged; the bundle is the arena's top."""
    (arena.top / "config.json").write_text('{"root": {"path": "rootfs"}}')
    if DAMAGED[damage] is not None:
        (arena.top / "config.json").unlink()
        rootfs.tree(arena.top, DAMAGED[damage] or "")
    change = {"bundle": str(arena.top), "root": root or None}
    return attempt(arena, LINK, stage, change=change, planned=MADE, max_wall=3.0, max_rss=64 << 10, **how)


@pytest.mark.parametrize("stage", ["outside", "inside"])
@pytest.mark.parametrize("root", ["{root}", "rootfs", "./rootfs/"])
@pytest.mark.parametrize("damage", DAMAGED)
def test_g6_the_states_root_wins_and_config_is_not_opened(
    arena: Arena, profile: str, damage: str, root: str, stage: str
) -> None:
    assert with_config(arena, stage, damage, root.format(root=arena.root), ok=True) == []
    assert os.readlink(arena.root / MADE[0]) == "libcuda.so.1"


@pytest.mark.parametrize("stage", ["outside", "inside"])
@pytest.mark.parametrize("damage", DAMAGED)
def test_g6_without_a_root_config_is_read_once_and_carefully(
    arena: Arena, profile: str, damage: str, stage: str
) -> None:
    ok = damage == "intact"
    assert with_config(arena, stage, damage, "", ok=ok, parts=[] if ok else ["config.json"]) == []


@pytest.mark.parametrize("root", ["/", "//", "/.", "/..", "../../../../../../../../../../.."])
def test_g6_the_hosts_root_is_refused(arena: Arena, profile: str, root: str) -> None:
    words = ["create-symlinks", "--link", f"x::{arena.canary}/link"]
    assert attempt(arena, words, ok=False, change={"bundle": str(arena.top), "root": root}) == []


@pytest.mark.parametrize("damage", ["fifo", "missing", "sparse"])
def test_naive_g6_config_holds_the_hook(arena: Arena, damage: str) -> None:
    assert with_config(arena, "outside", damage, "", ok=False, naive=True)


@pytest.mark.parametrize("root", ["/", "/.", "../../../../../../../../../../.."])
def test_naive_g6_the_hosts_root_is_written_to(arena: Arena, root: str) -> None:
    words = ["create-symlinks", "--link", f"x::{arena.canary}/link"]
    assert escapes(attempt(arena, words, naive=True, ok=False, change={"bundle": str(arena.top), "root": root}))


# -- H2 -------------------------------------------------------------------------------------------------------------

HOST_PROCESSES = {
    "same-mounts": ["sleep", "60"],
    "own-mounts": ["unshare", "--mount", "--propagation", "private", "sleep", "60"],
    "own-mounts-and-more": ["unshare", "--mount", "--ipc", "--uts", "--net", "--propagation", "private", "sleep", "60"],
}


def reused(arena: Arena, kind: str, words: list[str], *, naive: bool = False) -> list[str]:
    """The state's pid has become one of the host's own processes."""
    (arena.top / "config.json").write_text('{"root": {"path": "rootfs"}}')
    victim = subprocess.Popen(HOST_PROCESSES[kind], stdout=subprocess.DEVNULL)
    try:
        while Path(f"/proc/{victim.pid}/comm").read_text() != "sleep\n":
            pass
        with Oracle(arena.canary, arena.root) as oracle:
            before = proc.mountinfo(victim.pid)
            state = {
                "ociVersion": "1.0.2",
                "id": "x",
                "bundle": str(arena.top),
                "pid": victim.pid,
                "status": "creating",
            }
            how: dict[str, Any] = {"program": NAIVE, "timeout": NAIVE_LIMIT} if naive else {}
            result = run_hook(words, state, cwd=arena.top, **how)
            out = oracle.check(result, ok=False, parts=[] if naive else [f"pid {victim.pid}"])
            out += [f"mount outside the root: {m}" for m in proc.mountinfo(victim.pid) if m not in before]
    finally:
        victim.kill()
        victim.wait()
        if naive:
            subprocess.run(["umount", "-l", arena.root / "proc/driver/nvidia/params"], stderr=subprocess.DEVNULL)
    return out


@pytest.mark.parametrize("words", [MOUNT, LINK, ["run", "--", *LINK, "--", *MOUNT]], ids=["mount", "link", "run"])
@pytest.mark.parametrize("kind", HOST_PROCESSES)
@pytest.mark.usefixtures("host_params")
def test_h2_a_pid_that_was_reused_is_found_out(arena: Arena, profile: str, kind: str, words: list[str]) -> None:
    assert reused(arena, kind, words) == []


@pytest.mark.parametrize("kind", HOST_PROCESSES)
@pytest.mark.usefixtures("host_params")
def test_naive_h2_a_pid_that_was_reused_is_entered(arena: Arena, kind: str) -> None:
    assert escapes(reused(arena, kind, MOUNT, naive=True))


# -- G7 -------------------------------------------------------------------------------------------------------------

CONFIGS: dict[str, tuple[str, str]] = {
    "missing": ("rm config.json", "ENOENT"),
    "FIFO": ("rm config.json; mkfifo config.json", "not a regular file"),
    "directory": ("rm config.json; mkdir config.json", "not a regular file"),
    "endless-device": ("ln -sf /dev/zero config.json", "not a regular file"),
    "link-to-itself": ("rm config.json; ln -s config.json config.json", "ELOOP"),
    "link-to-a-file-of-another-kind": ("ln -sf /etc/passwd config.json", "not valid JSON"),
    "1-GiB": ("truncate -s 1G config.json", "EFBIG"),
    "another-s": ("chown 1000 config.json", "owned by uid 1000"),
    "writable-by-others": ("chmod 646 config.json", "mode 0646: others can write it"),
    "empty": (": >config.json", "not valid JSON"),
    "a-list": ("echo '[]' >config.json", "not a JSON object"),
    "root-twice": ("""echo '{"root": {"path": "/a"}, "root": {"path": "/b"}}' >config.json""", "`root` is given twice"),
}


@pytest.mark.parametrize("who", ["hook", "prestart"])
@pytest.mark.parametrize("case", CONFIGS)
def test_g7_config_json_is_refused_by_both_programs(arena: Arena, case: str, who: str) -> None:
    """runc says no root, so it is needed by the one; the other always reads it."""
    script, words = CONFIGS[case]
    how: dict[str, Any] = {"words": LINK}
    if who == "prestart":
        program = entry("main", "nvoci.prestart.main", "nvidia-container-runtime-hook")
        how = {"words": ["prestart"], "program": program}

    def damage(c: FakeContainer) -> None:
        (c.bundle / "config.json").chmod(0o644)
        subprocess.run(["sh", "-ec", script], cwd=c.bundle, check=True)

    parts = ["read config ", "/config.json: ", words]
    found = attempt(
        arena, how.pop("words"), ok=False, during=damage, parts=parts, max_wall=3.0, max_rss=64 << 10, **how
    )
    assert found == []


@pytest.mark.parametrize("who", ["nobody", "root-of-another-user-namespace"])
def test_g7_a_config_json_that_cannot_be_read_is_named(arena: Arena, who: str) -> None:
    """As with a user namespace that does not map its owner; the hook is host uid 1000, with no capability there."""
    wrapper = ["setpriv", "--reuid=1000", "--regid=1000", "--clear-groups", "--inh-caps=-all"]
    wrapper += [] if who == "nobody" else ["unshare", "--user", "--map-root-user"]

    def hide(c: FakeContainer) -> None:
        (c.bundle / "config.json").chmod(0o600)

    state = {"pid": None}
    found = attempt(arena, LINK, ok=False, during=hide, parts=["/config.json: EACCES"], prefix=wrapper, change=state)
    assert found == []
