"""Every system call of a hook as a point at which it can be killed, or be told an error, quickly and exactly.

A seccomp filter hands each call of the hook, of all processes that it starts and of the programs these execute, to a
listener here before it is done (SECCOMP_RET_USER_NOTIF, Linux 5.5). Calls are counted for each process by itself, from
the first read of the state on. The hook is no new interpreter but a fork of one that has loaded it (`_zygote.py`), so
that a point costs milliseconds. What is no call of its own, memory given back and the return from a signal handler, is
not handed over: being killed there is being killed at the next one.

The roles of the processes are numbers, in the order of their first calls: 0 is the hook, 1 the worker, or, where there
is none, what runs ldconfig, and so on.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import functools
import json
import os
import platform
import select
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lib import compat, proc, session

# (x86_64, aarch64), of asm/unistd.h; those that compat.py has come later. 0 on aarch64: there is none.
NUMBERS = {
    "read": (0, 63), "write": (1, 64), "open": (2, -1), "close": (3, 57), "stat": (4, -1), "fstat": (5, 80),
    "lstat": (6, -1), "lseek": (8, 62), "mmap": (9, 222), "mprotect": (10, 226), "munmap": (11, 215),
    "brk": (12, 214), "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139),
    "ioctl": (16, 29), "pread64": (17, 67), "access": (21, -1), "pipe": (22, -1), "select": (23, -1),
    "mremap": (25, 216), "madvise": (28, 233), "dup": (32, 23), "dup2": (33, -1), "setitimer": (38, 103),
    "getpid": (39, 172), "socket": (41, 198), "connect": (42, 203), "sendto": (44, 206), "clone": (56, 220),
    "fork": (57, -1), "vfork": (58, -1), "execve": (59, 221), "exit": (60, 93), "wait4": (61, 260),
    "kill": (62, 129), "uname": (63, 160), "fcntl": (72, 25), "flock": (73, 32), "fsync": (74, 82),
    "ftruncate": (77, 46), "getcwd": (79, 17), "chdir": (80, 49), "fchdir": (81, 50), "fchmod": (91, 52),
    "fchown": (93, 55), "umask": (95, 166), "getuid": (102, 174), "geteuid": (107, 175), "getppid": (110, 173),
    "capget": (125, 90), "capset": (126, 91), "statfs": (137, 43), "fstatfs": (138, 44), "pivot_root": (155, 41),
    "prctl": (157, 167), "arch_prctl": (158, -1), "mount": (165, 40), "umount2": (166, 39),
    "sethostname": (170, 161), "gettid": (186, 178), "getxattr": (191, 8), "fgetxattr": (193, 10),
    "time": (201, -1), "futex": (202, 98), "sched_getaffinity": (204, 123), "getdents64": (217, 61),
    "set_tid_address": (218, 96), "restart_syscall": (219, 128), "timer_create": (222, 107),
    "timer_settime": (223, 110), "clock_gettime": (228, 113), "exit_group": (231, 94), "openat": (257, 56),
    "mkdirat": (258, 34), "mknodat": (259, 33), "fchownat": (260, 54), "newfstatat": (262, 79),
    "unlinkat": (263, 35), "renameat": (264, 38), "linkat": (265, 37), "symlinkat": (266, 36),
    "readlinkat": (267, 78), "fchmodat": (268, 53), "faccessat": (269, 48), "pselect6": (270, 72),
    "ppoll": (271, 73), "unshare": (272, 97), "set_robust_list": (273, 99), "splice": (275, 76),
    "utimensat": (280, 88), "dup3": (292, 24), "pipe2": (293, 59), "prlimit64": (302, 261), "setns": (308, 268),
    "seccomp": (317, 277), "getrandom": (318, 278), "bpf": (321, 280), "execveat": (322, 281), "rseq": (334, 293),
    "pidfd_send_signal": (424, 424), "clone3": (435, 435), "pidfd_getfd": (438, 438), "faccessat2": (439, 439),
    "waitid": (247, 95), "poll": (7, -1), "readlink": (89, -1), "rename": (82, -1), "mkdir": (83, -1),
    "unlink": (87, -1), "symlink": (88, -1), "chmod": (90, -1), "getdents": (78, -1), "rmdir": (84, -1),
    **compat.NUMBERS,
}  # fmt: skip
_MACHINE = platform.machine()
_COLUMN = int(_MACHINE == "aarch64")
NAMES = {numbers[_COLUMN]: name for name, numbers in NUMBERS.items()}
NEVER = ("munmap", "mprotect", "madvise", "rt_sigreturn", "restart_syscall", "exit")
_READ, _CLOSE = NUMBERS["read"][_COLUMN], NUMBERS["close"][_COLUMN]

# linux/seccomp.h: struct seccomp_notif {u64 id; u32 pid, flags; int nr; u32 arch; u64 ip, args[6]}, the answer
# {u64 id; s64 val; s32 error; u32 flags}, and _IOWR('!', 0, 80), _IOWR('!', 1, 24), _IOW('!', 4, u64).
_NOTIF = struct.Struct("=QIIiIQ6Q")
_ANSWER = struct.Struct("=QqiI")
_RECV, _SEND, _SET_FLAGS = 0xC0502100, 0xC0182101, 0x40082104
_CONTINUE, _SYNC_WAKE_UP = 1, 1
_RET_USER_NOTIF = 0x7FC00000
_PIDFD_GETFD = 438
_LIMIT = 20.0  # seconds for one run
_IDLE = 50  # milliseconds

Point = tuple[int, int]  # (role, n): the n-th call of that process, from 1 on


@dataclass(frozen=True)
class Fault:
    """What happens at one point instead of the call: an error, or SIGKILL; another signal comes with it."""

    point: Point
    error: int = 0
    signal: int = 0

    def __str__(self) -> str:
        what = errno.errorcode[self.error] if self.error else signal.Signals(self.signal or signal.SIGKILL).name
        return f"{what} at call {self.point[1]} of process {self.point[0]}"


@dataclass
class Ran:
    """One run. `rc` as in subprocess, or 128 + signal where the hook was in a pid namespace of its own. calls: the
    numbers of each process's calls, by role. call: the one that had the fault, "" where it was not reached. after:
    seconds from the fault to the end of the last process."""

    rc: int = 0
    stdout: str = ""
    stderr: str = ""
    calls: list[list[int]] = field(default_factory=list)
    call: str = ""
    after: float = 0.0
    survivors: list[str] = field(default_factory=list)

    def points(self) -> list[Point]:
        return [(role, n + 1) for role, calls in enumerate(self.calls) for n in range(len(calls))]

    def name(self, point: Point) -> str:
        number = self.calls[point[0]][point[1] - 1]
        return NAMES.get(number, str(number))


def filter_code(blocked: Iterable[str] = (), *, listen: bool = True) -> bytes:
    """blocked: calls that this kernel has not. struct sock_filter, as in compat.py."""
    code = [(compat.LD_W_ABS, 0, 0, compat.ARCH_OFFSET), (compat.JEQ_K, 1, 0, compat.AUDIT_ARCH[_MACHINE]),
            (compat.RET_K, 0, 0, compat.RET_ALLOW), (compat.LD_W_ABS, 0, 0, compat.NR_OFFSET)]  # fmt: skip
    answers = [(name, compat.RET_ERRNO | errno.ENOSYS) for name in blocked]
    for name, answer in [*answers, *((name, compat.RET_ALLOW) for name in NEVER)]:
        code += [(compat.JEQ_K, 0, 1, NUMBERS[name][_COLUMN]), (compat.RET_K, 0, 0, answer)]
    code.append((compat.RET_K, 0, 0, _RET_USER_NOTIF if listen else compat.RET_ALLOW))
    return b"".join(struct.pack("HBBI", *instruction) for instruction in code)


class Zygote:
    """Use it as a context manager, or close() it."""

    def __init__(
        self,
        rooms: Sequence[str] = ("hook", "linux", "oci", "ldcache"),
        *,
        module: str = "nvoci.hook.main",
        function: str = "cdi_hook",
        name: str = "/nvidia-cdi-hook",
        program: str | Path = "",
        blocked: Iterable[str] = (),
        prefix: Sequence[str] = (),
        folders: Sequence[str | Path] = (),
        whole: bool = False,
    ) -> None:
        """module, function: the hook's entry; or program: a file. blocked: calls that the kernel has not. prefix: a
        wrapper around the process (jail.prefix). folders: more for sys.path. whole: every call counts, of a program
        that reads nothing."""
        self.entry = {"module": module, "function": function, "program": str(program), "name": name}
        self.blocked = tuple(blocked)
        self.whole = whole
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            argv = [session.PYTHON, "-ISB", str(Path(__file__).with_name("_zygote.py")), str(session.HOOKS),
                    str(theirs.fileno()), ",".join(rooms), *map(str, folders)]  # fmt: skip
            self.process = subprocess.Popen(
                [*prefix, *argv], stdin=subprocess.DEVNULL, env=dict(proc.PLAIN_ENV), cwd="/",
                pass_fds=[theirs.fileno()],
            )  # fmt: skip
        self.control.settimeout(_LIMIT)
        assert self.control.recv(16) == b"{}", "the process that loads the hook did not get ready"

    def run(
        self, words: Sequence[str], stdin: bytes, *, cwd: str | Path = "/", enter: int = 0, traced: bool = False,
        fault: Fault | None = None, fds: Sequence[int] = (),
    ) -> Ran:  # fmt: skip
        """The hook once. enter: the container's process whose namespaces it is in. traced: its calls are counted.
        fds: for 1 and 2, instead of pipes."""
        listen = traced or fault is not None
        code = filter_code(self.blocked, listen=listen).hex() if listen or self.blocked else ""
        entry = {k: v for k, v in self.entry.items() if k != "name"}
        request = {**entry, "words": [self.entry["name"], *words], "cwd": str(cwd), "enter": enter, "filter": code,
                   "listen": listen}  # fmt: skip
        given, out, err = _prefilled(stdin), _Pipe(), _Pipe()
        try:
            socket.send_fds(self.control, [json.dumps(request).encode()], [given, *(fds or (out.sink, err.sink))])
            out.close_sink()
            err.close_sink()
            ran = Ran()
            if listen:
                self._supervise(ran, fault)
            self._finish(ran)
            ran.stdout, ran.stderr = out.text(), err.text()
            return ran
        finally:
            os.close(given)
            out.close()
            err.close()

    def unmount(self, pid: int, paths: Sequence[str]) -> None:
        """In the mount namespace of `pid`."""
        self.control.send(json.dumps({"enter": pid, "paths": list(paths)}).encode())
        self.control.recv(1 << 12)

    def _supervise(self, ran: Ran, fault: Fault | None) -> None:
        told = json.loads(self.control.recv(1 << 12))
        assert "listener" in told, f"the hook's process was not made: {told}"
        listener = _take(told["pid"], told["listener"])
        try:
            _Supervisor(listener, ran, fault, whole=self.whole).work()
        finally:
            os.close(listener)  # from here on each further call fails with ENOSYS

    def _finish(self, ran: Ran) -> None:
        try:
            answer = json.loads(self.control.recv(1 << 12))
        except TimeoutError:
            ran.survivors += [f"{pid} {proc.command_line(pid)}" for pid in proc.descendants(self.process.pid)]
            for pid in list(proc.descendants(self.process.pid)):
                os.kill(pid, signal.SIGKILL)
            answer = json.loads(self.control.recv(1 << 12))
        ran.rc = os.waitstatus_to_exitcode(answer["status"])
        if answer["lingered"] > 1.0:
            ran.survivors.append(f"a process, {answer['lingered']:.1f} s after the hook")

    def close(self) -> None:
        self.control.close()
        try:
            self.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def __enter__(self) -> Zygote:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class _Supervisor:
    """Answers for the kernel until every process with the filter has ended."""

    def __init__(self, listener: int, ran: Ran, fault: Fault | None, *, whole: bool = False) -> None:
        self.listener = listener
        self.whole = whole
        self.ran = ran
        self.fault = fault
        self.target = fault.point if fault is not None else (-1, 0)
        self.roles: dict[int, int] = {}
        self.happened = 0.0
        self.deadline = time.monotonic() + _LIMIT

    def work(self) -> None:
        try:
            fcntl.ioctl(self.listener, _SET_FLAGS, _SYNC_WAKE_UP)  # Linux 6.6: quicker
        except OSError:
            pass
        poll = select.poll()
        poll.register(self.listener, select.POLLIN)
        while True:
            events = poll.poll(_IDLE)
            if not events:
                if self._all_ended() or self._late():
                    break
            elif events[0][1] & select.POLLIN:
                self._one()
            else:
                break  # nobody has the filter any more
        if self.happened:
            self.ran.after = time.monotonic() - self.happened

    def _one(self) -> None:
        buffer = bytearray(_NOTIF.size)
        try:
            fcntl.ioctl(self.listener, _RECV, buffer)
        except OSError:
            return  # it was killed meanwhile
        ident, pid, _, number, _, _, first, *_ = _NOTIF.unpack(buffer)
        error, flags = 0, _CONTINUE
        here = self._count(pid, number, first) == self.target
        if here and self.fault is not None and not (self.fault.error and number == _CLOSE and _is_pipe(pid, first)):
            self.ran.call = NAMES.get(number, str(number))
            self.happened = time.monotonic()
            if self.fault.error:
                error, flags = -self.fault.error, 0
            else:
                os.kill(pid, self.fault.signal or signal.SIGKILL)
                if not self.fault.signal:
                    return
        try:
            fcntl.ioctl(self.listener, _SEND, _ANSWER.pack(ident, 0, error, flags))
        except OSError as e:
            if e.errno != errno.ENOENT:  # it was killed meanwhile
                raise

    def _count(self, pid: int, number: int, first: int) -> Point:
        """(role, n) of this call; (0, 0) for one before the state is read."""
        role = self.roles.get(pid)
        if role is None:
            if not self.whole and not self.roles and (number != _READ or first != 0):
                return 0, 0
            role = self.roles[pid] = len(self.roles)
            self.ran.calls.append([])
        calls = self.ran.calls[role]
        calls.append(number)
        return role, len(calls)

    def _all_ended(self) -> bool:
        """Before Linux 6.11 a zombie has the filter still."""
        return bool(self.roles) and all(_state(pid) in "ZX" for pid in self.roles)

    def _late(self) -> bool:
        if time.monotonic() < self.deadline:
            return False
        self.ran.survivors += [f"{pid} {proc.command_line(pid)}" for pid in self.roles if _state(pid) not in "ZX"]
        for pid in self.roles:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        return True


class _Pipe:
    def __init__(self) -> None:
        self.source, self.sink = os.pipe2(os.O_CLOEXEC)

    def close_sink(self) -> None:
        os.close(self.sink)
        self.sink = -1

    def text(self) -> str:
        """What is in it, without a wait."""
        os.set_blocking(self.source, False)
        data = b""
        try:
            while chunk := os.read(self.source, 1 << 16):
                data += chunk
        except BlockingIOError:
            pass
        return data.decode("utf-8", "surrogateescape")

    def close(self) -> None:
        for fd in (self.source, self.sink):
            if fd >= 0:
                os.close(fd)


def _prefilled(data: bytes) -> int:
    source, sink = os.pipe2(os.O_CLOEXEC)
    os.write(sink, data)
    os.close(sink)
    return source


def _is_pipe(pid: int, fd: int) -> bool:
    """To close(2) it is no error on Linux; and a call that is not done would leave it open, which no kernel does."""
    try:
        return os.readlink(f"/proc/{pid}/fd/{fd}").startswith("pipe:")
    except OSError:
        return False


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]
    except OSError:
        return "X"


@functools.cache
def _libc() -> Any:
    return ctypes.CDLL(None, use_errno=True)


def _take(pid: int, number: int) -> int:
    """The listener, as soon as it is there: nothing else can get its number. pidfd_getfd(2), Linux 5.6."""
    pidfd = os.pidfd_open(pid)
    deadline = time.monotonic() + 5
    try:
        while True:
            fd = int(_libc().syscall(_PIDFD_GETFD, pidfd, number, 0))
            if fd >= 0:
                return fd
            if ctypes.get_errno() != errno.EBADF or time.monotonic() > deadline:
                raise OSError(ctypes.get_errno(), "pidfd_getfd")
            time.sleep(0.00005)
    finally:
        os.close(pidfd)


@functools.cache
def missing() -> str:
    """Why it cannot be done here; "" where it can. Asked for real: a process that makes one call is told an error."""
    try:
        with Zygote(("errors",), program=_probe()) as zygote:
            ran = zygote.run([], b"x", fault=Fault((0, 2), errno.ENOSPC))
    except (OSError, AssertionError) as e:
        return f"no listener for a seccomp filter: {e}"
    return "" if ran.rc == errno.ENOSPC else f"no answer reaches a process: {ran}"


def _probe() -> Path:
    path = session.new_dir("probe") / "probe.py"
    path.write_text("import os\nos.read(0, 1)\ntry:\n    os.mkdir('/proc/x')\n"
                    "except OSError as e:\n    os._exit(e.errno)\n")  # fmt: skip
    return path
