"""Start the confined process that loads NVML, collect what it says, and end it: at the deadline, on any error, always.

Nothing of it can hold up the caller: its output goes to pipes that are drained and bounded, its process group is
killed, and where even that does not end it, since it waits in the kernel's driver, it is left behind. As root it has a
pid namespace of its own, with an init that we forked: when that dies, whatever the library has started dies with it.
"""

from __future__ import annotations

import _signal
import fcntl
import posix
import select
import time
from errno import ECHILD, EPERM, ESRCH

import nvoci
from nvoci.discover._nvml_child import STAGE_SIZE
from nvoci.errors import HookError, hook_error, printable
from nvoci.linux import abi, procfs
from nvoci.linux.abi import SIGKILL
from nvoci.linux.fd import Fd
from nvoci.linux.syscalls import close_range, memfd_create, pidfd_open, prctl, setns, unshare

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

_RESULT_MAX = 4 << 20
_OUTPUT_MAX = 1 << 12
_CHUNK = 1 << 16
_KILL_SECONDS = 1.0
_SECONDS_MAX = 86400
_ENV = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
# The standard library comes first: the directory of pynvml may be one with many packages.
_BOOT = "import sys; sys.path += sys.argv[1:3]; from nvoci.discover._nvml_child import main; main(sys.argv[3:])"
_DEFAULTS = (_signal.SIGPIPE, _signal.SIGINT, _signal.SIGTERM, _signal.SIGALRM)
# Backwards, so that SIGABRT comes after SIGIOT and has the number.
_SIGNALS = {getattr(_signal, n): n for n in reversed(dir(_signal)) if n.startswith("SIG") and n[3] != "_"}


class Outcome:
    """What is left of the process. lines: of its result, whole ones. last: what it was about to call. how: of its end,
    in words, "" where it ended as it should. timed_out: the deadline came first. stuck: it could not even be killed.
    output: the beginning of what it printed, on one line."""

    __slots__ = ("how", "last", "lines", "output", "stuck", "timed_out")

    def __init__(self) -> None:
        self.lines: list[bytes] = []
        self.last = "start"
        self.how = ""
        self.output = ""
        self.timed_out = False
        self.stuck = False


def python_path() -> tuple[str, str]:
    """(the directory that has nvoci, the one that has pynvml): beside it in an installed tree, else as import finds it.
    Raises HookError."""
    hooks = _absolute(nvoci.__path__[0]).rpartition("/")[0]
    vendor = f"{hooks}/vendor"
    try:
        posix.stat(f"{vendor}/pynvml.py")
        return hooks, vendor
    except OSError:
        from importlib.util import find_spec

        spec = find_spec("pynvml")
    if spec is None or not spec.origin:
        raise HookError("ask NVML: the Python module pynvml is not there", "install nvidia-ml-py")
    return hooks, _absolute(spec.origin).rpartition("/")[0]


def _absolute(path: str) -> str:
    return path if path.startswith("/") else f"{posix.getcwd()}/{path}"


class Process:
    """The running child; `outcome()` waits for it, `close()` kills it."""

    __slots__ = ("_deadline", "_init", "_output", "_pid", "_result", "_stage", "_status")

    def __init__(self, library: Fd, path: str, seconds: float, user: tuple[int, int], groups: Sequence[int]) -> None:
        """library: the file at `path`, open. user: (uid, gid), uid -1 to stay. Raises HookError."""
        if not 0 <= seconds <= _SECONDS_MAX:  # NaN is neither
            raise HookError(f"ask NVML: a time limit of {seconds} s", f"name one of 0 to {_SECONDS_MAX} seconds")
        words = (*user, ",".join([str(g) for g in groups]), path)
        interpreter = _interpreter()
        argv = [interpreter, "-I", "-S", "-B", "-c", _BOOT, *python_path(), str(int(seconds) + 1)]
        self._deadline = time.monotonic() + seconds
        self._status: int | None = None
        self._output = self._result = self._stage = Fd(-1)
        self._init = _Init()
        try:
            self._stage = _stage()
            self._output, output = _pipe()
            with output:
                self._result, result = _pipe()
                with result, Fd(posix.open("/dev/null", posix.O_RDONLY | posix.O_CLOEXEC)) as null:
                    fds = (null, output, output, result, library, self._stage)
                    with self._init as parent:
                        self._pid = _spawn([*argv, str(parent), *[str(w) for w in words]], fds)
        except OSError as e:
            self._init.end()
            self._close_pipes()
            raise hook_error("ask NVML: start", interpreter, e) from None

    def close(self) -> None:
        """Kill it, wherever it is."""
        self._kill()
        self._close_pipes()

    def _close_pipes(self) -> None:
        for fd in (self._output, self._result, self._stage):
            fd.close()

    def outcome(self) -> Outcome:
        """Wait for its end or the deadline, and end it. Raises HookError where it says too much."""
        found = Outcome()
        data, printed = self._collect(found)
        found.stuck = not self._kill()
        found.output = printable(b" ".join(printed.split()))
        found.lines = data.split(b"\n")[:-1]
        found.last = printable(posix.pread(self._stage.fileno(), STAGE_SIZE, 0).rstrip(b"\0")) or found.last
        if self._status:
            code = posix.waitstatus_to_exitcode(self._status)
            found.how = f"killed by {_SIGNALS.get(-code, f'signal {-code}')}" if code < 0 else f"exit status {code}"
        return found

    def _collect(self, found: Outcome) -> tuple[bytes, bytes]:
        """Read both pipes until the child has ended; whom it left behind may hold them open longer."""
        result, output = _Drain(self._result, _RESULT_MAX), _Drain(self._output, _OUTPUT_MAX)
        poll = select.poll()
        for pipe in (result, output):
            poll.register(pipe.fd, select.POLLIN)
        with _pidfd(self._pid) as end:
            if not end.closed:
                poll.register(end.fileno(), select.POLLIN)
            ended = False
            while not ended and not result.closed and not result.full:
                ready = [fd for fd, _ in poll.poll(max(0.0, self._deadline - time.monotonic()) * 1000)]
                ended = not end.closed and end.fileno() in ready
                for pipe in (result, output):
                    if pipe.fd in ready and not pipe.read():
                        poll.unregister(pipe.fd)
                if time.monotonic() >= self._deadline:
                    found.timed_out = True
                    break
        for pipe in (result, output):
            while ended and not pipe.full and pipe.read():
                pass
        if result.full:
            raise HookError(f"ask NVML: it answers with more than {_RESULT_MAX} bytes", "is this NVIDIA's library?")
        return b"".join(result.chunks), b"".join(output.chunks)

    def _kill(self) -> bool:
        """The child, its process group and its pid namespace. False where it still is there: it waits in the kernel, or
        we may not kill it."""
        if self._status is None:
            try:
                posix.killpg(self._pid, SIGKILL)
            except OSError as e:
                if e.errno not in (ESRCH, EPERM):
                    raise
            self._init.kill()
            self._status = _reap(self._pid)
        # The init ends last: the kernel holds it until we have reaped the child.
        return self._status is not None and self._init.end()


class _Init:
    """The first process of a pid namespace, there while the library is; `with` it, what we start is in there. Where we
    may not have one, there is none."""

    __slots__ = ("_home", "_life", "_pid")

    def __init__(self) -> None:
        self._pid = 0
        self._home = self._life = Fd(-1)

    def __enter__(self) -> int:
        """What getppid(2) says in a child. Raises OSError."""
        try:
            self._home = Fd(posix.open(b"self/ns/pid", posix.O_RDONLY | posix.O_CLOEXEC, dir_fd=procfs.handle()))
            setns(self._home.fileno(), abi.CLONE_NEWPID)  # changes nothing, and tells whether there is a way back
            unshare(abi.CLONE_NEWPID)
        except OSError:
            self._home.close()
            return posix.getpid()
        try:
            ours, theirs = posix.pipe2(posix.O_CLOEXEC)
            self._life = Fd(theirs)
            with Fd(ours):
                self._pid = posix.fork()
                if self._pid == 0:
                    _be_init(ours)
        except BaseException:
            self.__exit__()
            raise
        return 0

    def __exit__(self, *exc: object) -> None:
        if not self._home.closed:
            with self._home:
                setns(self._home.fileno(), abi.CLONE_NEWPID)

    def kill(self) -> None:
        """It, and so everything in there. Never waits."""
        if self._life.closed:
            return
        self._life.close()
        if not self._pid:
            return
        try:
            posix.kill(self._pid, SIGKILL)
        except OSError:
            pass  # it has ended, or does now: it has read the end of the file

    def end(self) -> bool:
        """`kill`, and wait. False where something in there cannot be killed."""
        if self._pid:
            self.kill()
            if _reap(self._pid) is None:
                return False
            self._pid = 0
        return True


def _be_init(life: int) -> None:
    """Do nothing until the parent ends, and hold nothing open. Whom the library leaves behind is reaped by the kernel.
    Never returns."""
    try:
        prctl(abi.PR_SET_PDEATHSIG, SIGKILL)
        _signal.pthread_sigmask(_signal.SIG_BLOCK, _signal.valid_signals())
        _signal.signal(_signal.SIGCHLD, _signal.SIG_IGN)
        posix.setsid()
        posix.chdir("/")
        posix.dup2(life, 0)
        try:
            close_range(1, 0xFFFFFFFF)
        except OSError:
            posix.closerange(1, 4096)  # before Linux 5.9
        posix.read(0, 1)  # end of file when the parent is gone, or lets go of it
    finally:
        posix._exit(0)


def _reap(pid: int) -> int | None:
    """Its status, once it has ended; None where it does not."""
    deadline = time.monotonic() + _KILL_SECONDS
    while time.monotonic() < deadline:
        try:
            found, status = posix.waitpid(pid, posix.WNOHANG)
        except OSError as e:
            if e.errno != ECHILD:  # where SIGCHLD is ignored nobody is told how it ended
                raise
            return 0
        if found:
            return status
        time.sleep(0.001)
    return None


class _Drain:
    """The read end of a pipe, never waited for. What is over the limit is read and dropped, and makes it `full`."""

    __slots__ = ("chunks", "closed", "fd", "full", "left")

    def __init__(self, fd: Fd, limit: int) -> None:
        self.fd = fd.fileno()
        self.chunks: list[bytes] = []
        self.left = limit
        self.closed = False
        self.full = False

    def read(self) -> bool:
        """Take what is there. False at the end, and where nothing is there."""
        try:
            chunk = posix.read(self.fd, _CHUNK)
        except BlockingIOError:
            return False
        self.closed = not chunk
        self.chunks.append(chunk[: self.left])
        self.full = len(chunk) > self.left
        self.left -= len(self.chunks[-1])
        return bool(chunk)


def _stage() -> Fd:
    """The file for what the child is about to call. Nobody can make it larger."""
    fd = Fd(memfd_create(b"nvoci", abi.MFD_CLOEXEC | abi.MFD_ALLOW_SEALING))
    try:
        posix.ftruncate(fd.fileno(), STAGE_SIZE)
        fcntl.fcntl(fd.fileno(), abi.F_ADD_SEALS, abi.F_SEAL_GROW | abi.F_SEAL_SHRINK | abi.F_SEAL_SEAL)
    except OSError:
        fd.close()
        raise
    return fd


def _pipe() -> tuple[Fd, Fd]:
    ours, theirs = posix.pipe2(posix.O_CLOEXEC)
    posix.set_blocking(ours, False)
    return Fd(ours), Fd(theirs)


def _pidfd(pid: int) -> Fd:
    """Becomes readable when the child has ended; closed where the kernel (before 5.3) has none: then the pipe tells."""
    try:
        return Fd(pidfd_open(pid))
    except OSError:
        return Fd(-1)


def _interpreter() -> str:
    """The path of the program that this process runs. Not sys.executable: from Python 3.11 on that is whatever
    PYTHONEXECUTABLE says, in isolated mode too. Raises HookError."""
    try:
        return posix.readlink("self/exe", dir_fd=procfs.handle())
    except OSError as e:
        raise hook_error("ask NVML: find the interpreter", "/proc/self/exe", e) from None


def _spawn(argv: list[str], fds: Sequence[Fd]) -> int:
    """Start `argv` in a session of its own with `fds` as its 0, 1, 2, …"""
    high = [Fd(fcntl.fcntl(fd.fileno(), fcntl.F_DUPFD_CLOEXEC, 16)) for fd in fds]
    try:
        actions = [(posix.POSIX_SPAWN_DUP2, fd.fileno(), number) for number, fd in enumerate(high)]
        return posix.posix_spawn(argv[0], argv, _ENV, file_actions=actions, setsid=True, setsigmask=(),
                                 setsigdef=_DEFAULTS)  # fmt: skip
    finally:
        for fd in high:
            fd.close()
