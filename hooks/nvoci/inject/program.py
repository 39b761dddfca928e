"""A hook program of somebody else's, run on the host as a runtime would run it at createRuntime.

The state on stdin, exactly the environment and the arguments that the specification gives, the bundle as working
directory, a deadline. By then this process is in the container's mount namespace, so its child goes back into the
host's before it executes anything. What a program does cannot be undone here.
"""

from __future__ import annotations

import _signal
import posix
import select
import time
from stat import S_ISREG, S_ISVTX

from nvoci import log
from nvoci.errors import HookError, errno_name, hook_error, printable
from nvoci.hook import watchdog
from nvoci.hook.operation import Operation
from nvoci.linux import abi, procfs
from nvoci.linux.fd import Fd
from nvoci.linux.syscalls import close_range, prctl, setns

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from nvoci.hook.operation import Transaction
    from nvoci.hook.preview import Preview

_OUTPUT_MAX = 1 << 16
_READS = 64  # at one go: between them the deadline is looked at
_PAUSE = 0.01
_NOT_STARTED = 127
_MAX_FD = 0xFFFFFFFF


def host_namespace() -> Fd:
    """A handle of the mount namespace we are in: to be taken on the host. Raises OSError."""
    return Fd(posix.open(b"self/ns/mnt", posix.O_RDONLY | posix.O_CLOEXEC, dir_fd=procfs.handle()))


def to_bytes(text: str) -> bytes:
    """Text out of a specification, which is UTF-8, as a program is given it. Raises HookError for what none can be
    given."""
    try:
        if "\0" not in text:
            return text.encode()
    except UnicodeEncodeError:
        pass
    raise HookError(f"run a hook: {printable(text)[:80]}: a NUL, or not UTF-8", "mend the specification")


def check(path: str) -> None:
    """Refuse a program that is none, or that others can change. To be called on the host. Raises HookError."""
    if not path.startswith("/"):
        raise HookError(f"run {printable(path)}: not an absolute path", "mend the specification")
    name = to_bytes(path)
    try:
        with Fd(posix.open(name, posix.O_PATH | posix.O_CLOEXEC)) as handle:
            st = handle.stat()
            real = posix.readlink(b"self/fd/%d" % handle.fileno(), dir_fd=procfs.handle())
        directories = [(each, posix.stat(each)) for each in sorted(_directories(name) | _directories(real))]
    except OSError as e:
        raise hook_error("run", path, e, "the specification names a hook that the host does not have") from None
    if not S_ISREG(st.st_mode) or not st.st_mode & 0o111:
        raise HookError(f"run {printable(path)}: not an executable file", "mend the specification")
    owners = (0, posix.geteuid(), posix.stat("/").st_uid)
    if st.st_uid not in owners or st.st_mode & 0o022:
        raise HookError(f"run {printable(path)}: owned by uid {st.st_uid}, mode {st.st_mode & 0o7777:04o}",
                        "it must belong to root and be writable by nobody else")  # fmt: skip
    for each, st in directories:
        if st.st_uid not in owners or (st.st_mode & 0o022 and not st.st_mode & S_ISVTX):
            raise HookError(
                f"run {printable(path)}: {printable(each)}: owned by uid {st.st_uid}, mode {st.st_mode & 0o7777:04o}",
                "a directory on the way to it must belong to root and be writable by nobody else",
            )


def _directories(path: bytes) -> set[bytes]:
    """All on the way to it, without `/`."""
    parts = path.split(b"/")[1:]
    return {b"/" + b"/".join(parts[:n]) for n in range(1, len(parts))}


class RunProgram(Operation):
    """seconds: the deadline. namespace: where it runs. bundle: its working directory."""

    __slots__ = ("args", "bundle", "env", "namespace", "path", "seconds", "state")

    def __init__(
        self, path: str, args: Sequence[str], env: Sequence[str], seconds: float, *,
        state: bytes, bundle: str, namespace: Fd,
    ) -> None:  # fmt: skip
        self.path = to_bytes(path)
        self.args = [to_bytes(arg) for arg in args] or [self.path]
        self.env = dict(to_bytes(pair).partition(b"=")[::2] for pair in env)
        self.seconds = seconds
        self.state = state
        self.bundle = bundle
        self.namespace = namespace

    def describe(self) -> str:
        return f"run {printable(self.path)}" + "".join(f" {printable(arg)}" for arg in self.args[1:])

    def preview(self, view: Preview) -> bool:
        return True

    def execute(self, transaction: Transaction) -> None:
        stdin_read, stdin_write = posix.pipe2(posix.O_CLOEXEC)
        output_read, output_write = posix.pipe2(posix.O_CLOEXEC)
        with Fd(stdin_write) as stdin, Fd(output_read) as output:
            with Fd(stdin_read), Fd(output_write):
                pid = posix.fork()
                if pid == 0:
                    self._child(stdin_read, output_write)
            posix.set_blocking(stdin_write, False)
            posix.set_blocking(output_read, False)
            status, said = self._attend(pid, stdin, output)
        if status:
            how = f"exit status {status}" if status > 0 else f"signal {-status}"
            raise HookError(f"{self.describe()}: {how}" + (f": {said}" if said else ""),
                            "the container does not start without it; see what the program needs")  # fmt: skip
        log.info("hook program run", path=self.path)

    def undo(self) -> None:
        """What it did is its own."""

    def _child(self, stdin: int, output: int) -> None:
        """The forked child; never returns. What goes wrong is said as the program's own output."""
        try:
            prctl(abi.PR_SET_PDEATHSIG, abi.SIGKILL)
            for number, fd in enumerate((stdin, output, output)):
                posix.dup2(fd, number)
            posix.setsid()
            setns(self.namespace.fileno(), abi.CLONE_NEWNS)
            try:
                posix.chdir(self.bundle or "/")
            except OSError:
                posix.chdir("/")
            posix.umask(0o022)
            try:
                close_range(3, _MAX_FD)
            except OSError:
                pass  # before Linux 5.9; those of ours are close-on-exec
            for number in (_signal.SIGPIPE, _signal.SIGXFSZ):  # the interpreter ignores them, and exec would keep that
                _signal.signal(number, _signal.SIG_DFL)
            posix.execve(self.path, self.args, self.env)
        except OSError as e:
            posix.write(1, f"cannot be executed: {errno_name(e.errno or 0)}".encode())
        finally:
            posix._exit(_NOT_STARTED)

    def _attend(self, pid: int, stdin: Fd, output: Fd) -> tuple[int, str]:
        """Feed it the state and listen until it ends, not until its pipes are closed: what it leaves running in the
        background may hold them. Returns its status (minus the signal) and the last line it said."""
        left = memoryview(self.state)
        said, more = b"", True
        deadline = time.monotonic() + self.seconds
        try:
            while True:
                ended, status = posix.waitpid(pid, posix.WNOHANG)
                if more:
                    said, more = _drain(output, said)
                if ended:
                    pid = 0
                    return posix.waitstatus_to_exitcode(status), _last_line(said)
                watchdog.check()
                if time.monotonic() > deadline:
                    raise HookError(f"{self.describe()}: not finished after {self.seconds:g} s, and killed",
                                    "see what it waits for")  # fmt: skip
                left = _feed(stdin, left)
                select.select([output] if more else [], [], [], _PAUSE)
        finally:
            if pid:
                _kill(pid)


def _feed(stdin: Fd, left: memoryview) -> memoryview:
    """Write what the pipe takes; close it when all is written, or nobody reads it any more."""
    if not stdin.closed:
        try:
            left = left[posix.write(stdin.fileno(), left) :]
        except BlockingIOError:
            return left
        except BrokenPipeError:
            left = left[len(left) :]
        if not left:
            stdin.close()
    return left


def _drain(output: Fd, said: bytes) -> tuple[bytes, bool]:
    """`said` with what is there to be read, only the end of it kept; and whether there may be more."""
    for _ in range(_READS):
        try:
            chunk = posix.read(output.fileno(), _OUTPUT_MAX)
        except BlockingIOError:
            return said, True
        if not chunk:
            return said, False
        said = (said + chunk)[-_OUTPUT_MAX:]
    return said, True


def _last_line(said: bytes) -> str:
    lines = [line.strip() for line in said.split(b"\n") if line.strip()]
    return printable(lines[-1])[:300] if lines else ""


def _kill(pid: int) -> None:
    """The program and its process group; reaped when this returns."""
    for kill in (posix.killpg, posix.kill):  # it may not have become the leader of one yet
        try:
            kill(pid, abi.SIGKILL)
        except OSError:
            continue
    posix.waitpid(pid, 0)
