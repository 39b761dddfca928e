"""nvoci.linux.syscalls, libc, abi and inotify against the kernel and its headers."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import signal
import stat
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nvoci.errors import HookError
from nvoci.linux import abi, libc, syscalls
from nvoci.linux.inotify import Inotify, parse
from tests.kernel.namespaced import block, isolated, os_error, sh

pytestmark = pytest.mark.kernel
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
INCLUDE = Path("/usr/include")
HEADERS = (
    "linux/mount.h", "linux/openat2.h", "linux/inotify.h", "linux/prctl.h", "linux/magic.h", "linux/memfd.h",
    "linux/sched.h", "linux/fs.h", "linux/fcntl.h", "linux/stat.h", "linux/seccomp.h", "linux/capability.h",
    "asm-generic/resource.h",
)  # fmt: skip


def status_of(body: Callable[[], object], limit: int = 20) -> int:
    """Exit code of a forked process that runs body(); negative for a signal."""
    pid = os.fork()
    if pid == 0:
        signal.alarm(limit)
        try:
            body()
        except BaseException:  # noqa: BLE001  # the status is all that counts
            os._exit(99)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


# -- numbers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("machine", "header"),
    [("x86_64", "x86_64-linux-gnu/asm/unistd_64.h"), ("aarch64", "asm-generic/unistd.h")],
)
def test_call_numbers_are_those_of_the_kernels_headers(machine: str, header: str) -> None:
    file = INCLUDE / header
    if not file.exists():
        pytest.skip(f"{file} is not here (linux-libc-dev)")
    listed = dict(re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", file.read_text()))
    for name, number in abi.syscall_numbers(machine).items():
        if name in listed:  # fstatfs and statx have other spellings in some headers
            assert int(listed[name]) == number, name
    assert len(set(listed) & set(abi.syscall_numbers(machine))) > 20


def test_constants_are_those_of_the_kernels_headers() -> None:
    defined: dict[str, int] = {}
    line = re.compile(
        r"^\s*#\s*define\s+([A-Z_0-9]+)\s+\(?(0x[0-9a-fA-F]+|\d+)[UL]*(?:\s*<<\s*(\d+))?\)?\s*(?:/\*|$)", re.M
    )
    for header in HEADERS:
        file = INCLUDE / header
        if not file.exists():
            pytest.skip(f"{file} is not here (linux-libc-dev)")
        for name, text, shift in line.findall(file.read_text()):
            octal = text.startswith("0") and text.isdigit()
            defined[name] = int(text, 8 if octal else 0) << int(shift or 0)
    checked = 0
    for name, number in vars(abi).items():
        if name in defined:
            assert number == defined[name], name
            checked += 1
    assert checked > 40


@pytest.mark.parametrize("machine", ["riscv64", "i686", "", "armv7l"])
def test_unknown_machine_is_an_error_and_never_a_wrong_number(machine: str) -> None:
    with pytest.raises(HookError, match="not supported"):
        abi.syscall_numbers(machine)


# -- calls ----------------------------------------------------------------------------------------------------------


def test_failed_call_raises_errno_and_path() -> None:
    calls: list[tuple[Callable[[], object], int, bytes | None]] = [
        (lambda: syscalls.openat2(abi.AT_FDCWD, b"/none", os.O_PATH, 0), errno.ENOENT, b"/none"),
        (lambda: syscalls.openat2(abi.AT_FDCWD, b"/", os.O_PATH, 1 << 60), errno.EINVAL, b"/"),
        (lambda: syscalls.renameat2(abi.AT_FDCWD, b"/none", abi.AT_FDCWD, b"/other", 0), errno.ENOENT, b"/other"),
        (lambda: syscalls.open_tree(-1, b"x", 0), errno.EBADF, b"x"),
        (lambda: syscalls.pidfd_open(-1), errno.EINVAL, None),
        (lambda: syscalls.setns(-1, 0), errno.EBADF, None),
        (lambda: syscalls.execveat(-1, b"", [b"x"], [], abi.AT_EMPTY_PATH), errno.EBADF, None),
        (lambda: syscalls.inotify_add_watch(-1, b"/", abi.IN_CREATE), errno.EBADF, b"/"),
        (lambda: syscalls.fsconfig_set_string(-1, b"size", b"1"), errno.EINVAL, b"size=1"),
        (lambda: syscalls.fsconfig_set_flag(-1, b"devices"), errno.EINVAL, b"devices"),
        (lambda: syscalls.mount(b"x", b"/none", b"none", 0), errno.ENOENT, b"/none"),
        (lambda: syscalls.umount2(b"/none", 0), errno.ENOENT, b"/none"),
        (lambda: syscalls.pivot_root(b"/none", b"/none"), errno.ENOENT, b"/none"),
        (lambda: libc.syscall(99999), errno.ENOSYS, None),
    ]
    for call, number, path in calls:
        with os_error() as e:
            call()
        assert (e.value.errno, e.value.filename) == (number, path)


def test_descriptors_are_close_on_exec() -> None:
    fds = [
        syscalls.openat2(abi.AT_FDCWD, b"/", os.O_PATH, 0),
        syscalls.open_tree(abi.AT_FDCWD, b"/", 0),
        syscalls.pidfd_open(os.getpid()),
        syscalls.memfd_create(b"x", abi.MFD_CLOEXEC),
        syscalls.inotify_init1(abi.IN_CLOEXEC),
    ]
    assert [os.get_inheritable(fd) for fd in fds] == [False] * len(fds)
    syscalls.close_range(min(fds), min(fds))
    with os_error():
        os.fstat(min(fds))
    for fd in sorted(fds)[1:]:
        os.close(fd)


def test_close_range_closes_all_of_the_range() -> None:
    def body() -> None:
        for _ in range(20):
            os.dup(0)
        syscalls.close_range(3, 0xFFFFFFFF)
        assert sorted(os.listdir("/proc/self/fd")) == ["0", "1", "2", "3"]  # 3: the listing itself

    assert status_of(body) == 0


def test_memfd_that_is_sealed_cannot_be_written() -> None:
    fd = syscalls.memfd_create(b"x", abi.MFD_CLOEXEC | abi.MFD_ALLOW_SEALING)
    os.write(fd, b"data")
    seals = abi.F_SEAL_WRITE | abi.F_SEAL_GROW | abi.F_SEAL_SHRINK | abi.F_SEAL_SEAL
    fcntl.fcntl(fd, abi.F_ADD_SEALS, seals)
    assert fcntl.fcntl(fd, abi.F_GET_SEALS) == seals
    with pytest.raises(PermissionError):
        os.write(fd, b"more")
    os.close(fd)


def test_execveat_runs_a_descriptor_with_exactly_these_strings() -> None:
    receive, send = os.pipe()

    def body() -> None:
        os.dup2(send, 1)
        fd = os.open("/bin/busybox", os.O_PATH)
        syscalls.execveat(
            fd, b"", [b"sh", b"-c", b'echo "$0|$1|$A"; env', b"zero", b"\xff one"], [b"A=b c"], abi.AT_EMPTY_PATH
        )

    assert status_of(body) == 0
    os.close(send)
    with os.fdopen(receive, "rb") as out:
        lines = out.read().splitlines()
    assert lines[0] == b"zero|\xff one|b c"
    assert b"A=b c" in lines
    assert not any(line.startswith(b"PATH=/") and b"venv" in line for line in lines)


@needs_root
def test_capset_and_prctl_change_what_proc_status_shows() -> None:
    def body() -> dict[str, str]:
        syscalls.prctl(abi.PR_SET_NO_NEW_PRIVS, 1)
        syscalls.prctl(abi.PR_CAPBSET_DROP, abi.CAP_DAC_READ_SEARCH)
        mask = 1 << 21 | 1 << 38  # CAP_SYS_ADMIN and, in the upper word, CAP_PERFMON
        syscalls.capset(mask, mask, 0)
        text = Path("/proc/self/status").read_text()
        return dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)

    status = isolated(body)
    assert status["NoNewPrivs"] == "1"
    assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == 1 << 21 | 1 << 38
    assert int(status["CapInh"], 16) == 0
    assert not int(status["CapBnd"], 16) & 1 << abi.CAP_DAC_READ_SEARCH


@needs_root
@pytest.mark.parametrize("error", [errno.ENOSYS, errno.EPERM])
def test_seccomp_filter_answers_for_a_call(error: int) -> None:
    def body() -> None:
        block(("pidfd_open",), error)
        with os_error() as e:
            syscalls.pidfd_open(os.getpid())
        assert e.value.errno == error
        os.close(syscalls.memfd_create(b"x", 0))

    isolated(body)


def test_prlimit_sets_both_limits() -> None:
    def body() -> None:
        syscalls.prlimit(abi.RLIMIT_NOFILE, 64, 128)
        import resource

        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (64, 128)

    assert status_of(body) == 0


def test_timer_kills_a_process_that_ignores_everything() -> None:
    def body() -> None:
        signal.signal(signal.SIGALRM, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        syscalls.kill_self_at(0.2)
        time.sleep(15)

    start = time.monotonic()
    assert status_of(body) == -signal.SIGKILL
    assert time.monotonic() - start < 10


def test_renameat2_exchanges_and_refuses(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a")
    (tmp_path / "b").symlink_to("x")
    fd = os.open(tmp_path, os.O_PATH)
    syscalls.renameat2(fd, b"a", fd, b"b", abi.RENAME_EXCHANGE)
    assert (tmp_path / "b").read_text() == "a"
    assert os.readlink(tmp_path / "a") == "x"
    with pytest.raises(FileExistsError):
        syscalls.renameat2(fd, b"a", fd, b"b", abi.RENAME_NOREPLACE)
    os.close(fd)


def test_openat2_creates_with_mode(tmp_path: Path) -> None:
    old = os.umask(0)
    fd = syscalls.openat2(abi.AT_FDCWD, os.fsencode(tmp_path / "f"), os.O_CREAT | os.O_WRONLY, 0, 0o640)
    os.umask(old)
    assert stat.S_IMODE(os.fstat(fd).st_mode) == 0o640
    os.close(fd)


def test_fstatfs_type_tells_procfs_from_others() -> None:
    for path, proc in (("/proc", True), ("/proc/self/fd", True), ("/", False), ("/dev", False)):
        fd = os.open(path, os.O_PATH)
        assert (syscalls.fstatfs_type(fd) == abi.PROC_SUPER_MAGIC) == proc
        os.close(fd)


def test_statx_tells_mount_points(tmp_path: Path) -> None:
    fd = os.open("/proc", os.O_PATH)
    number, is_root = syscalls.statx_mount(fd)
    assert is_root
    assert not syscalls.statx_mount(fd, b"sys")[1]
    assert any(line.startswith(f"{number} ") for line in Path("/proc/self/mountinfo").read_text().splitlines())
    os.close(fd)


@needs_root
def test_statx_of_an_older_kernel_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before Linux 5.8 the call succeeds and fills in neither field."""
    monkeypatch.setattr(syscalls, "syscall", lambda *args: 0)
    with os_error() as e:
        syscalls.statx_mount(0)
    assert e.value.errno == errno.ENOSYS


def test_namespace_entered_by_descriptor_is_the_other_one(tmp_path: Path) -> None:
    def body() -> Any:
        home = os.open("/proc/self/ns/mnt", os.O_RDONLY)
        syscalls.unshare(abi.CLONE_NEWNS)
        sh(f"mount -t tmpfs none {tmp_path}; touch {tmp_path}/there")
        inside = os.listdir(tmp_path)
        syscalls.setns(home, abi.CLONE_NEWNS)
        return inside, os.listdir(tmp_path)

    assert isolated(body) == (["there"], [])


@needs_root
def test_pivot_root_changes_the_root(tmp_path: Path) -> None:
    def body() -> list[str]:
        sh(f"mount -t tmpfs none {tmp_path}; mkdir {tmp_path}/old {tmp_path}/here")
        os.chdir(tmp_path)
        syscalls.pivot_root(b".", b"old")
        os.chdir("/")
        syscalls.umount2(b"/old", abi.MNT_DETACH)
        return sorted(os.listdir("/"))

    assert isolated(body) == ["here", "old"]


# -- inotify --------------------------------------------------------------------------------------------------------


def test_inotify_tells_what_happened_in_order(tmp_path: Path) -> None:
    with Inotify() as watcher:
        watch = watcher.add(os.fsencode(tmp_path), abi.IN_CREATE | abi.IN_MOVED_FROM | abi.IN_MOVED_TO | abi.IN_DELETE)
        assert watcher.read(0) == []
        (tmp_path / "a").touch()
        (tmp_path / "a").rename(tmp_path / "b\n\u00e9")
        (tmp_path / "d").mkdir()
        events = watcher.read(5)
        assert [(e.watch, e.mask & 0xFFF, e.name) for e in events] == [
            (watch, abi.IN_CREATE, b"a"),
            (watch, abi.IN_MOVED_FROM, b"a"),
            (watch, abi.IN_MOVED_TO, "b\n\u00e9".encode()),
            (watch, abi.IN_CREATE, b"d"),
        ]
        assert events[1].cookie == events[2].cookie != 0
        assert events[3].mask & abi.IN_ISDIR
        assert watcher.read(0) == []


def test_inotify_waits_no_longer_than_asked(tmp_path: Path) -> None:
    with Inotify() as watcher:
        watcher.add(os.fsencode(tmp_path), abi.IN_CREATE)
        start = time.monotonic()
        assert watcher.read(0.2) == []
        assert 0.15 < time.monotonic() - start < 10
    with pytest.raises(ValueError, match="closed"):
        watcher.fileno()


def test_inotify_overflow_is_told(tmp_path: Path) -> None:
    limit = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    if limit > 100_000:
        pytest.skip(f"fs.inotify.max_queued_events is {limit}")
    with Inotify() as watcher:
        watcher.add(os.fsencode(tmp_path), abi.IN_CREATE | abi.IN_DELETE)
        for _ in range(limit // 2 + 10):
            (tmp_path / "x").touch()
            (tmp_path / "x").unlink()
        masks, left = set(), watcher.read(0)
        while left:
            masks |= {(e.watch, e.mask) for e in left}
            left = watcher.read(0)
    assert (-1, abi.IN_Q_OVERFLOW) in masks


def test_inotify_parser_survives_cut_off_and_lying_events() -> None:
    event = struct.pack("=iIII16s", 1, abi.IN_CREATE, 0, 16, b"name")
    assert [e.name for e in parse(event * 2)] == [b"name", b"name"]
    for cut in range(len(event)):
        assert parse(event[:cut]) == []
        assert len(parse(event + event[:cut])) == 1
    assert parse(struct.pack("=iIII", 1, 1, 0, 0xFFFFFFFF)) == []
    assert parse(struct.pack("=iIII", 1, 1, 0, 0))[0].name == b""


def test_no_module_beyond_the_hot_list_is_loaded() -> None:
    """All of this room in a fresh interpreter."""
    modules = "abi,libc,syscalls,fd,procfs,lookup,rootfs,staging,mountinfo,mount,generated,inotify".split(",")
    hooks = Path(syscalls.__file__).parents[2]
    code = f"import sys;sys.path.insert(0,{str(hooks)!r});" + "".join(f"import nvoci.linux.{m};" for m in modules)
    code += "print(*sorted(m for m in sys.modules))"
    base = os.path.realpath("/usr/bin/python3") if Path("/usr/bin/python3").exists() else sys.executable
    loaded = set(sh(f"{base} -ISB -c {shell_quote(code)}").split())
    plain = set(sh(f"{base} -ISB -c 'import sys; print(*sys.modules)'").split())
    allowed = {
        "__future__",
        "sys",
        "posix",
        "errno",
        "stat",
        "_stat",
        "struct",
        "_struct",
        "fcntl",
        "select",
        "_ctypes",
    }
    assert {m for m in loaded - plain if not m.startswith("nvoci")} <= allowed


def shell_quote(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"
