"""What an outsider did to a start's time: a file system that takes a request and never answers, leases on files,
links that lead through thousands of names, warnings by the ten thousand."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from errno import EFBIG
from pathlib import Path

import pytest
from lib import elfmaker, hookproc, session, silentfuse, strace
from lib.hookproc import FakeContainer, run_hook
from lib.oracle import Oracle
from security.arena import COMPAT, LDCACHE, LIBDIR, Arena, attempt, settled

from nvoci import log
from nvoci.errors import HookError, hook_error
from nvoci.ldcache.cache import parse
from nvoci.linux import canonical as links
from nvoci.linux import mountinfo, procfs
from nvoci.linux.rootfs import Rootfs

LIMIT = 20.0
UPDATE = LDCACHE["builtin"]
INTO_VOLUME = ["create-symlinks", "--timeout", "0.5", "--link", "x::/vol/a/link"]
ENTRY = f"""
import sys
sys.path.insert(0, {str(session.HOOKS)!r})
{{}}
from nvoci.hook.main import cdi_hook
cdi_hook()
"""


def entry(lines: str) -> Path:
    path = session.new_dir("entry") / "nvidia-cdi-hook"
    path.write_text(ENTRY.format(lines))
    return path


# -- a file system whose daemon took a request and never answers ------------------------------------------------------


@contextmanager
def started(arena: Arena, program: Path | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """The hook at createContainer, which is led into that file system. SIGKILL does not end who waits there; its daemon
    ends with the block, and with it every wait."""
    (arena.root / "vol").mkdir()
    with FakeContainer(arena.root) as c:
        enter = ["/usr/bin/nsenter", f"--mount=/proc/{c.pid}/ns/mnt", "--"]
        argv = hookproc.inside(c, hookproc.command(INTO_VOLUME, program))
        with silentfuse.mounted(arena.root / "vol", enter):
            hook = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            assert hook.stdin is not None
            hook.stdin.write(json.dumps(c.state("createContainer")).encode())
            hook.stdin.close()
            hook.stdin = None
            yield hook
        hook.wait()


def test_a_daemon_that_never_answers_holds_no_hook_inside(arena: Arena, profile: str) -> None:
    with started(arena) as hook:
        _, told = hook.communicate(timeout=LIMIT)  # which waits until nobody holds its stderr
        assert hook.returncode == 1
        assert b"not finished after 0.5 s, and killed; process " in told
        assert b"is stuck in the kernel (" in told


def test_naive_without_a_process_of_its_own_for_the_work_it_hangs(arena: Arena) -> None:
    lines = "from nvoci.hook import watchdog, work; watchdog.KILL_AFTER = 0.5; work._may_wait = lambda path: False"
    with started(arena, entry(lines)) as hook, pytest.raises(subprocess.TimeoutExpired):
        hook.wait(timeout=4)


@pytest.mark.parametrize("kind", ["tmpfs", "fuse"])
def test_only_where_others_answer_the_work_has_a_process_of_its_own(arena: Arena, kind: str) -> None:
    (arena.root / "vol").mkdir()
    mount = 'mount -t tmpfs tmpfs "$R/vol"\n' if kind == "tmpfs" else silentfuse.setup(arena.root / "vol")
    words = ["create-symlinks", "--link", "x::/opt/link"]
    with FakeContainer(arena.root, setup=mount) as c:
        counts = strace.count_syscalls(
            lambda prefix: run_hook(words, container=c, stage="createContainer", prefix=prefix, timeout=LIMIT)
        )
        assert c.path("opt/link").is_symlink()
    forks = sum(counts.get(call, 0) for call in ("fork", "vfork", "clone", "clone3"))
    assert forks == (0 if kind == "tmpfs" else 1)


LINE = b"%d 1 0:%d / %s rw,relatime shared:1 - %s source rw\n"
# (file system, where) of the mounts beside the usual ones, and whether work in /c/root may have to wait for others.
TABLES = {
    "none": ([], False),
    "fuse in it": ([(b"fuse.sshfs", b"/c/root/vol")], True),
    "nfs in it": ([(b"nfs4", b"/c/root/a/b")], True),
    "one that nobody knows": ([(b"newfs", b"/c/root/vol")], True),
    "the root itself": ([(b"fuse.fuse-overlayfs", b"/c/root")], True),
    "the way to the root": ([(b"9p", b"/c")], True),
    "beside it": ([(b"fuse", b"/c/rootless"), (b"nfs", b"/home"), (b"autofs", b"/proc/sys/fs/binfmt_misc")], False),
    "the host's root": ([(b"virtiofs", b"/")], False),
    "the kernel's own": ([(b"fusectl", b"/c/root/sys/fs/fuse/connections"), (b"tmpfs", b"/c/root/dev")], False),
}


@pytest.mark.parametrize(("mounts", "expected"), TABLES.values(), ids=TABLES)
def test_whose_answers_the_work_may_wait_for(
    monkeypatch: pytest.MonkeyPatch, mounts: Sequence[tuple[bytes, bytes]], expected: bool
) -> None:
    usual = [(b"ext4", b"/"), (b"overlay", b"/c/root"), (b"proc", b"/c/root/proc")]
    table = b"".join(LINE % (n, n, where, kind) for n, (kind, where) in enumerate((*usual, *mounts), 20))
    monkeypatch.setattr(procfs, "read", lambda *_: table)
    monkeypatch.setattr(mountinfo, "_resolved", lambda path: path)
    assert mountinfo.may_wait(b"/c/root") is expected


def test_a_table_too_long_to_look_through_counts_as_such_a_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(*_: object) -> bytes:
        raise OSError(EFBIG, "larger")

    monkeypatch.setattr(procfs, "read", read)
    assert mountinfo.may_wait(b"/c/root")


# -- leases -----------------------------------------------------------------------------------------------------------

HOLDER = """
import fcntl, os, signal, sys, time
gives = sys.argv[2] == "gives"
fd = os.open(sys.argv[1], os.O_RDWR)
def asked(*_):
    if gives:
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
signal.signal(signal.SIGIO, asked)
fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
os.write(1, b"ready")
while True:
    time.sleep(60)
"""


@contextmanager
def leased(path: Path, word: str = "keeps") -> Iterator[int]:
    """A user who owns nothing but that file has a write lease on it. Yields the pid."""
    os.chown(path, 1000, 1000)
    user = ["/usr/bin/setpriv", "--reuid=1000", "--regid=1000", "--clear-groups"]
    argv = [*user, session.PYTHON, "-ISc", HOLDER, str(path), word]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.read(5) == b"ready"
            yield holder.pid
        finally:
            holder.kill()


def library(arena: Arena) -> Path:
    """One that the image has beside its others, in a directory of its ld.so.conf."""
    path = arena.root / "opt/shared/libmine.so.1"
    path.parent.mkdir(parents=True)
    elfmaker.make_so(path, "libmine.so.1")
    (arena.root / "etc/ld.so.conf").write_text("/opt/shared\n")
    return path


def names(arena: Arena) -> set[bytes]:
    return {one.unsafe_soname for one in parse((arena.root / "etc/ld.so.cache").read_bytes()).entries}


@pytest.mark.parametrize("stage", ["outside", "inside"])
def test_a_library_under_a_lease_is_left_out_with_a_warning(arena: Arena, stage: str) -> None:
    with leased(library(arena)):
        parts = ["left out: another process has a lease on it", "count=1 first=/opt/shared/libmine.so.1"]
        found = attempt(arena, [*UPDATE, "--timeout", "4"], stage, ok=True, parts=parts, still=False)
    assert found == []
    assert b"libfoo.so.1" in names(arena)
    assert b"libmine.so.1" not in names(arena)


NEEDED = {
    "ld.so.conf": (UPDATE, "etc/ld.so.conf", "read /etc/ld.so.conf: EAGAIN ("),
    "a file that it includes": (UPDATE, "etc/ld.so.conf.d/libc.conf", "read /etc/ld.so.conf.d/libc.conf: EAGAIN ("),
    "the cache": (UPDATE, "etc/ld.so.cache", "read etc/ld.so.cache: EAGAIN ("),
    "our drop-in": (UPDATE, "etc/ld.so.conf.d/00-nvcr-nvoci.conf", "00-nvcr-nvoci.conf: EAGAIN ("),
    "a compat library": (
        ["enable-cuda-compat", "--host-driver-version", "550.54.15"], f"{COMPAT}/libcuda.so.600.1.2",
        f"{COMPAT}/libcuda.so.600.1.2: EAGAIN (",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("words", "name", "told"), NEEDED.values(), ids=NEEDED)
def test_of_what_is_needed_one_error_says_whose_lease_it_is(
    arena: Arena, words: Sequence[str], name: str, told: str
) -> None:
    (arena.root / name).touch()
    with leased(arena.root / name) as pid:
        parts = [told, f"a lease of process {pid} is on it", "/proc/sys/fs/lease-break-time"]
        assert attempt(arena, [*words, "--timeout", "2"], ok=False, parts=parts, still=False) == []


def test_a_lease_that_is_given_up_when_asked_costs_a_moment(arena: Arena) -> None:
    """As a file server does it."""
    with leased(library(arena), "gives"), FakeContainer(arena.root) as c:
        result = run_hook([*UPDATE, "--timeout", "20"], container=c)
    assert (result.rc, result.stderr) == (0, "")
    assert b"libmine.so.1" in names(arena)


def test_whatever_the_caller_thinks_is_amiss_a_lease_is_told() -> None:
    error = OSError(11, "a lease of process 7 is on it: wait")
    assert hook_error("read", "/x", error, "make it a regular file").line() == f"read /x: EAGAIN ({error.strerror})"
    assert isinstance(hook_error("read", "/x", OSError(11, None)), HookError)


# -- links that lead through thousands of names -----------------------------------------------------------------------


def chain(root: Path, end: str, count: int = 38) -> None:
    """/l0 leads to /l1 and so on, each through 1,560 names; the last to `end`."""
    (root / "d").mkdir()
    for n in range(count):
        (root / f"l{n}").symlink_to("d/../" * 780 + (f"l{n + 1}" if n + 1 < count else end))


@pytest.mark.parametrize("stage", ["outside", "inside"])
def test_six_kilobytes_of_configuration_are_not_worth_half_a_minute(arena: Arena, stage: str) -> None:
    chain(arena.root, "d")
    (arena.root / "etc/ld.so.conf").write_text("include /l0/00-nvcr-nvoci.conf\n" * 200)
    parts = ["read /l0: E2BIG (links of the image lead through too many names"]
    assert settled(arena, attempt(arena, UPDATE, stage, ok=False, parts=parts, max_wall=LIMIT)) == []


def test_the_processor_s_time_has_a_limit(arena: Arena) -> None:
    """Where the kernel follows links, names are not counted: 1,000 libraries through the chain. A second here."""
    elfmaker.make_so(arena.root / LIBDIR / "libbar.so.1.0", "libbar.so.1")
    chain(arena.root, f"{LIBDIR}/libbar.so.1.0")
    for n in range(1000):
        (arena.root / LIBDIR / f"libq{n}.so").symlink_to("/l0")
    program = entry("from nvoci.hook import watchdog; watchdog._CPU_PART, watchdog._CPU_LEAST = 0, 1")
    parts = ["ended by signal 24, it used too much processor time"]
    found = attempt(arena, UPDATE, ok=False, parts=parts, program=program, max_wall=LIMIT)
    assert settled(arena, found) == []


def test_an_ordinary_image_is_far_from_the_limit_of_names(arena: Arena) -> None:
    """1,000 links that lead nowhere yet, each by three others; ten roots like it would pass."""
    for n in range(1000):
        (arena.root / LIBDIR / f"libq{n}.so").symlink_to(f"/lib/../usr/lib/./libq{n}.so.1")
    with FakeContainer(arena.root) as c:
        assert run_hook(UPDATE, container=c).rc == 0
    root = Rootfs.open(str(arena.root))
    for n in range(1000):
        links.canonical(b"%s/libq%d.so" % (LIBDIR.encode(), n), lambda path: links.link_text(root, path))
    root.close()
    assert 0 < root.followed < links.MAX_FOLLOWED / 10


def test_a_path_without_links_is_counted_too(arena: Arena) -> None:
    root = Rootfs.open(str(arena.root))
    root.followed = links.MAX_FOLLOWED - 100
    with pytest.raises(OSError, match="links of the image") as caught:
        links.canonical(b"usr/share/nvidia/" * 10, lambda path: links.link_text(root, path))
    root.close()
    assert caught.value.filename == b"usr/share/nvidia/" * 10


# -- warnings by the ten thousand -------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["createRuntime", "createContainer"])
def test_devices_that_count_for_nothing_are_one_warning(arena: Arena, stage: hookproc.Stage) -> None:
    for n in range(1, 3000):
        os.mknod(arena.root / f"dev/nvidia{n:06}", 0o20666, os.makedev(1, 64 + n))
    with FakeContainer(arena.root, dev=False) as c, Oracle(arena.canary) as oracle:
        result = run_hook(["update-application-profile"], container=c, stage=stage)
        assert oracle.check(result, ok=True, parts=["dropping invalid minor number 65", "count=2999"]) == []


def test_one_process_gives_fifty_warnings(arena: Arena) -> None:
    """Unknown hooks are one each."""
    words = ["run", *[word for n in range(200) for word in ("--", f"unknown-{n}")]]
    with FakeContainer(arena.root) as c:
        result = run_hook(words, container=c)
    lines = result.stderr.splitlines()
    assert (result.rc, len(lines)) == (0, 51)
    assert 'msg="more warnings are left out"' in lines[-1]


def test_errors_are_told_whatever_came_before() -> None:
    lines: list[str] = []
    log.add_sink(log.WARNING, lines.append)
    log.limit_warnings(2)
    try:
        for n in range(5):
            log.warning(f"number {n}")
        log.error("the end")
    finally:
        log.limit_warnings(-1)
        log._sinks.pop()
    told = [line.partition("msg=")[2] for line in lines]
    assert told == ['"number 0"', '"number 1"', '"more warnings are left out"', '"the end"']
