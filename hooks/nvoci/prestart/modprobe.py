"""Load a kernel module with the host's modprobe: the program that the kernel itself would call.

It runs as root, so it must be root's and writable by nobody else; what is executed is the handle by which that was
seen. It gets a fixed environment, nothing on stdin, a session of its own, and ends with us or at its deadline.
"""

from __future__ import annotations

import posix
import select
import time
from _stat import S_IMODE, S_ISREG

from nvoci.errors import HookError, errno_name, hook_error, printable
from nvoci.linux import abi
from nvoci.linux.fd import Fd, read_at_most
from nvoci.linux.lookup import lookup
from nvoci.linux.syscalls import prctl

_SETTING = b"sys/kernel/modprobe"
_DEFAULT = b"/sbin/modprobe"
_ENVIRONMENT = {b"PATH": b"/sbin:/usr/sbin:/bin:/usr/bin"}
_STDERR_MAX = 1 << 12
_NO_EXEC = 127
_POLL = 0.05  # for a modprobe that has ended while something that it started holds its stderr
_SIGKILL = abi.SIGKILL


def program(proc: int) -> bytes:
    """Its path, by the procfs that `proc` has open; b"" where the administrator has turned the loading of modules off.
    Raises OSError."""
    try:
        with Fd(posix.open(_SETTING, posix.O_RDONLY | posix.O_CLOEXEC, dir_fd=proc)) as fd:
            return read_at_most(fd.fileno(), 4096).rstrip(b"\n\0")
    except FileNotFoundError:
        return _DEFAULT


def load(root: int, path: bytes, module: bytes, deadline: float) -> None:
    """Run `PATH MODULE` in the root directory that `root` has open. deadline: by time.monotonic(). Raises HookError."""
    with _open(root, path) as file:
        read_end, write_end = posix.pipe2(posix.O_CLOEXEC)
        pid = posix.fork()
        if pid == 0:
            _become(root, file.fileno(), [path, module], write_end)
        posix.close(write_end)
        with Fd(read_end):
            status, said = _wait(pid, read_end, deadline)
    if status is None:
        raise HookError(f"run {printable(path)} {printable(module)}: not finished in time, and killed",
                        "see the kernel's log")  # fmt: skip
    if status != 0:
        last = said.decode("utf-8", "replace").strip().rpartition("\n")[2]
        raise HookError(f"run {printable(path)} {printable(module)}: {_ended(status)}: {printable(last)[:500]}",
                        "see the kernel's log")  # fmt: skip


def _open(root: int, path: bytes) -> Fd:
    """The program, looked up in that root and found to be root's. It stays open across exec, for a script."""
    if not path.startswith(b"/"):
        raise HookError(f"run {printable(path)}: not an absolute path", "see /proc/sys/kernel/modprobe")
    try:
        file = Fd(lookup(root, path))
    except OSError as e:
        raise hook_error("run", path, e, "see /proc/sys/kernel/modprobe") from None
    st = file.stat()
    others = 0o022 if st.st_gid else 0o002
    if not S_ISREG(st.st_mode) or st.st_uid != 0 or st.st_mode & others or not st.st_mode & 0o111:
        file.close()
        raise HookError(f"run {printable(path)}: owned by uid {st.st_uid}, mode {S_IMODE(st.st_mode):04o}",
                        "it must be a program of root's that nobody else can write")  # fmt: skip
    return file


def _become(root: int, file: int, argv: list[bytes], stderr: int) -> None:
    """The child; never returns."""
    parent = posix.getppid()
    try:
        prctl(abi.PR_SET_PDEATHSIG, _SIGKILL)
        if posix.getppid() != parent:
            posix._exit(_NO_EXEC)
        posix.setsid()
        posix.umask(0o022)
        null = posix.open(b"/dev/null", posix.O_RDWR)
        for fd, source in ((0, null), (1, null), (2, stderr)):
            posix.dup2(source, fd)
        here, there = posix.stat(b"/"), posix.fstat(root)
        if (here.st_dev, here.st_ino) != (there.st_dev, there.st_ino):
            posix.fchdir(root)
            posix.chroot(b".")
        posix.chdir(b"/")
        posix.set_inheritable(file, True)
        posix.execve(file, argv, _ENVIRONMENT)
    except OSError as e:
        posix.write(stderr, errno_name(e.errno or 0).encode())
    finally:
        posix._exit(_NO_EXEC)


def _wait(pid: int, stderr: int, deadline: float) -> tuple[int | None, bytes]:
    """(wait status, or None at the deadline; the beginning of what it said). It is gone when this returns."""
    said, status, open_ = b"", None, True
    while status is None:
        left = deadline - time.monotonic()
        if left <= 0:
            break
        if open_ and select.select([stderr], [], [], min(left, _POLL))[0]:
            chunk = posix.read(stderr, _STDERR_MAX)
            said, open_ = (said + chunk)[:_STDERR_MAX], bool(chunk)
        elif not open_:
            time.sleep(min(left, 0.001))
        ended, code = posix.waitpid(pid, posix.WNOHANG)
        if ended:
            status = code
    if status is None:
        for each in (-pid, pid):  # its session, if it got so far as to have one
            try:
                posix.kill(each, _SIGKILL)
            except ProcessLookupError:
                pass
        posix.waitpid(pid, 0)
        return None, said
    while len(said) < _STDERR_MAX and open_ and select.select([stderr], [], [], 0)[0]:
        chunk = posix.read(stderr, _STDERR_MAX)
        said, open_ = said + chunk, bool(chunk)
    return status, said[:_STDERR_MAX]


def _ended(status: int) -> str:
    """waitpid(2)'s status in words."""
    return f"killed by signal {status & 0x7F}" if status & 0x7F else f"exit status {status >> 8}"
