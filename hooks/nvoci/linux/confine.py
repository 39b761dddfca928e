"""Run a program of the host on a container's root so that it can read the root, and do nothing else.

`Program` is a sealed copy of a static executable, made on the host. `run()` puts it into namespaces of its own on a
read-only clone of the root (`nvoci.linux.cell`), with one small tmpfs to write to, and returns its status, output and
the files asked for. Nothing of it outlives the call: it is killed with its pid namespace at the deadline, when the
caller fails, and, by PR_SET_PDEATHSIG, when the caller dies.

Cost on the machine it was written on: 6 ms beside the program's own time, most of it two forks of the interpreter.
"""

from __future__ import annotations

import fcntl
import posix
import select
import time
from errno import EACCES, EAGAIN, EINVAL, EISDIR, EMFILE, ENOENT, ENOSPC, ENOSYS, EOPNOTSUPP, EPERM, EROFS

from nvoci.errors import HookError, errno_name, hook_error
from nvoci.linux import abi, cell, procfs
from nvoci.linux.fd import Fd, write_all
from nvoci.linux.seccomp import EXEC_FD
from nvoci.linux.syscalls import memfd_create, setns, unshare

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from nvoci.linux.rootfs import Rootfs

STDOUT_MAX = 32 << 20
STDERR_MAX = 1 << 18
_REPORT_MAX = 2 * cell.OUTPUT_MAX
_SEALS = abi.F_SEAL_SEAL | abi.F_SEAL_SHRINK | abi.F_SEAL_GROW | abi.F_SEAL_WRITE
# Where a temporary copy can lie when memfd_create(2) is not there; skipped where mounted noexec.
_TEMPORARY = (b"/run", b"/var/lib", b"/tmp", b"/")
# Directories every runtime makes; the program's tmpfs covers the first that is one.
_PLACES = (b"proc", b"dev", b"sys", b"tmp", b"run")
_CHUNK = 1 << 16
_KILL_SECONDS = 5.0


class Program:
    """A static executable nobody can change any more. `name` is for messages."""

    __slots__ = ("fd", "name")

    def __init__(self, fd: Fd, name: str) -> None:
        self.fd = fd
        self.name = name

    @classmethod
    def from_fd(cls, source: int, name: str) -> Program:
        """Copy an open file. Called on the host, before a container is entered. Raises HookError."""
        try:
            return cls(_sealed_copy(source), name)
        except OSError as e:
            raise hook_error("copy", name, e) from None


class Result:
    """`status` is the exit status, or minus the signal. A file asked for that is not there is not in `outputs`.
    `filtered` is whether the kernel took the seccomp filter; `truncated` whether stdout was longer than allowed."""

    __slots__ = ("filtered", "outputs", "status", "stderr", "stdout", "timed_out", "truncated")

    def __init__(self) -> None:
        self.status = -abi.SIGKILL
        self.timed_out = False
        self.truncated = False
        self.filtered = True
        self.stdout = b""
        self.stderr = b""
        self.outputs: dict[bytes, bytes] = {}


def writable_place(rootfs: Rootfs) -> bytes:
    """The directory of the root (a name directly below it) that the program's tmpfs will cover. Raises HookError."""
    for name in _PLACES:
        try:
            rootfs.lookup(name, posix.O_NOFOLLOW | posix.O_DIRECTORY).close()
        except OSError:
            continue
        return name
    raise HookError("confine: the container's root has none of the directories /proc, /dev, /sys, /tmp, /run",
                    "make one of them in the image")  # fmt: skip


def run(
    program: Program,
    root: int,
    argv: Sequence[bytes],
    *,
    place: bytes,
    seconds: float,
    files: dict[bytes, bytes] | None = None,
    outputs: Sequence[bytes] = (),
) -> Result:
    """Run `program` on the root open as `root`, environment empty, working directory `/`.

    files: what the tmpfs at `/PLACE` holds at first, by name; outputs: names in it to be returned (64 MiB each).
    Raises HookError where the program could not be started or its output not be read; what the program itself did
    is in the result.
    """
    job = cell.Cell(program.fd.fileno(), root, argv, place, seconds)
    job.files, job.outputs = files or {}, outputs
    reading: list[int] = []
    pid = -1
    procfs.handle()
    try:
        pid = _start(job, reading, program.name)
        return _collect(pid, reading, seconds, program.name)
    finally:
        for fd in (*reading, job.life):
            if fd >= 0:
                posix.close(fd)
        if pid > 0:
            _kill(pid)


def _start(job: cell.Cell, reading: list[int], name: str) -> int:
    """Fork the init of a new pid namespace. Fills `reading` with the read ends of stdout, stderr, report, life."""
    ends = _pipes(5, name)
    job.stdin = ends[0][0]
    job.stdout, job.stderr, job.report = (ends[i][1] for i in (1, 2, 3))
    job.life = ends[4][0]
    reading += [ends[1][0], ends[2][0], ends[3][0], ends[4][1]]
    posix.close(ends[0][1])  # so that reading stdin is end of file: no /dev/null has to be found
    try:
        return _fork_into_pid_namespace(job, reading)
    except OSError as e:
        raise _failed(name, e.errno or 0, "make a pid namespace") from None
    finally:
        for fd in (job.stdin, job.stdout, job.stderr, job.report):
            posix.close(fd)


def _pipes(count: int, name: str) -> list[tuple[int, int]]:
    ends: list[tuple[int, int]] = []
    try:
        while len(ends) < count:
            ends.append(posix.pipe2(posix.O_CLOEXEC))
    except OSError as e:
        for pair in ends:
            posix.close(pair[0])
            posix.close(pair[1])
        raise _failed(name, e.errno or 0, "make pipes") from None
    return ends


def _fork_into_pid_namespace(job: cell.Cell, reading: list[int]) -> int:
    """unshare(CLONE_NEWPID) is for the next child only; setns(2) to our own makes it so for that child alone."""
    with Fd(posix.open(b"self/ns/pid", posix.O_RDONLY | posix.O_CLOEXEC, dir_fd=procfs.handle())) as own:
        unshare(abi.CLONE_NEWPID)
        try:
            pid = posix.fork()
            if pid == 0:
                for fd in reading:
                    posix.close(fd)
                cell.run_init(job)
        finally:
            setns(own.fileno(), abi.CLONE_NEWPID)
    return pid


def _collect(pid: int, reading: list[int], seconds: float, name: str) -> Result:
    result = Result()
    limits = {reading[0]: STDOUT_MAX, reading[1]: STDERR_MAX, reading[2]: _REPORT_MAX}
    data: dict[int, list[bytes]] = {fd: [] for fd in limits}
    left = dict(limits)
    waiting = list(limits)
    deadline = time.monotonic() + seconds
    while waiting:
        ready = select.select(waiting, [], [], max(0.0, deadline - time.monotonic()))[0]
        if not ready:
            result.timed_out = True
            posix.kill(pid, abi.SIGKILL)
            break
        for fd in ready:
            chunk = posix.read(fd, _CHUNK)
            if not chunk:
                waiting.remove(fd)
            data[fd].append(chunk[: left[fd]])
            left[fd] -= len(data[fd][-1])
            result.truncated |= fd == reading[0] and left[fd] == 0
    result.stdout, result.stderr, report = (b"".join(data[fd]) for fd in limits)
    if not _parse_report(report, result, name) and not result.timed_out:
        raise HookError(f"run {name} confined: its namespace was killed", "see the kernel's log: out of memory?")
    return result


def _parse_report(report: bytes, result: Result, name: str) -> bool:
    """Records of the init: `E ERRNO STAGE`, `S STATUS FILTERED`, `F LENGTH NAME` with the content, `.` at the end."""
    while report:
        line, _, report = report.partition(b"\n")
        kind, _, rest = line.partition(b" ")
        first, _, second = rest.partition(b" ")
        if kind == b"E":
            raise _failed(name, int(first), second.decode("utf-8", "replace"))
        if kind == b"S":
            result.status, result.filtered = int(first), second == b"1"
        elif kind == b"F":
            result.outputs[second], report = report[: int(first)], report[int(first) :]
        elif kind == b".":
            return True
    return False


def _failed(name: str, number: int, stage: str) -> HookError:
    if number == EMFILE:
        return HookError(f"run {name} confined: {stage}: EMFILE", f"raise RLIMIT_NOFILE of the runtime above {EXEC_FD}")
    hint = "CAP_SYS_ADMIN, and a kernel with mount, pid, net, ipc and uts namespaces, are needed"
    if stage == "execute":
        hint = "it must be static: nothing of the container is executed"
    elif number == EAGAIN:
        hint = "two more processes are needed: raise the container's pids limit, or call the hook as createRuntime"
    elif number == ENOSPC:
        hint = "a limit below /proc/sys/user is reached"
    return HookError(f"run {name} confined: {stage}: {errno_name(number)}", hint)


def _kill(pid: int) -> None:
    """The init is dead and reaped when this returns, and with it everything in its namespace."""
    posix.kill(pid, abi.SIGKILL)
    deadline = time.monotonic() + _KILL_SECONDS
    pause = 0.0002
    while posix.waitpid(pid, posix.WNOHANG)[0] == 0:
        if time.monotonic() > deadline:
            raise HookError("confine: a process cannot be killed", "a file system of the container does not answer")
        select.select([], [], [], pause)
        pause = min(0.05, pause * 1.5)


# -- the copy ---------------------------------------------------------------------------------------------------


def _sealed_copy(source: int) -> Fd:
    try:
        fd = Fd(_memfd())
    except OSError as e:
        if e.errno not in (ENOSYS, EPERM, EACCES):
            raise
        return _temporary_copy(source)
    try:
        _copy(source, fd.fileno())
        posix.fchmod(fd.fileno(), 0o500)
        _seal(fd.fileno())
    except OSError:
        fd.close()
        raise
    return fd


def _seal(fd: int) -> None:
    try:
        fcntl.fcntl(fd, abi.F_ADD_SEALS, _SEALS | abi.F_SEAL_EXEC)
    except OSError as e:
        if e.errno != EINVAL:
            raise
        fcntl.fcntl(fd, abi.F_ADD_SEALS, _SEALS)


def _memfd() -> int:
    flags = abi.MFD_CLOEXEC | abi.MFD_ALLOW_SEALING
    try:
        return memfd_create(b"nvoci", flags | abi.MFD_EXEC)
    except OSError as e:
        if e.errno != EINVAL:  # before Linux 6.3
            raise
        return memfd_create(b"nvoci", flags)


def _copy(source: int, target: int) -> None:
    offset = 0
    while True:
        chunk = posix.pread(source, 1 << 20, offset)
        if not chunk:
            return
        write_all(target, chunk)
        offset += len(chunk)


def _temporary_copy(source: int) -> Fd:
    """A file without a name, open for reading only (one open for writing is not executed: ETXTBSY)."""
    for directory in _TEMPORARY:
        try:
            writer = Fd(posix.open(directory, posix.O_TMPFILE | posix.O_RDWR | posix.O_CLOEXEC, 0o500))
        except OSError as e:
            if e.errno in (ENOENT, EROFS, EACCES, EPERM, EISDIR, EOPNOTSUPP):
                continue
            raise
        with writer:
            if posix.fstatvfs(writer.fileno()).f_flag & abi.ST_NOEXEC:
                continue
            _copy(source, writer.fileno())
            return Fd(procfs.reopen(writer.fileno(), posix.O_RDONLY))
    raise OSError(EACCES, "no place for a temporary copy")
