"""What every hook process does to itself first, whatever it was started with, and what it does last.

The order matters: descriptors before anything is opened, the environment before anything could read it, imports
sealed before anything of the container is looked at.
"""

from __future__ import annotations

import _signal
import fcntl
import posix
import sys
from _stat import S_IMODE, S_ISDIR, S_ISVTX

from nvoci import log
from nvoci.errors import HookError
from nvoci.linux import abi
from nvoci.linux.fd import write_all
from nvoci.linux.syscalls import close_range, prctl, prlimit

_MAX_FD = 0xFFFFFFFF
_ROOMS = ("hook", "linux", "oci", "ldcache", "prestart", "discover")
_MAX_WARNINGS = 50  # an image may have tens of thousands of what is worth one
_MAX_DATA = 1 << 30  # no image may make a hook take the host's memory; an ordinary one takes 12 MiB
# Variables that make a loader, a C library or an interpreter run or read something. By the time we see them they
# have had their effect on this process; the log says so, since only the hook entry's `env` prevents it. Python 3.11 and
# later look for their own library where PYTHONEXECUTABLE leads, even with -I.
_DANGEROUS = (b"LD_", b"GLIBC_TUNABLES", b"GCONV_PATH", b"LOCPATH", b"MALLOC_", b"BASH_ENV",
              b"PYTHONPATH", b"PYTHONHOME", b"PYTHONSTARTUP", b"PYTHONEXECUTABLE")  # fmt: skip


def start() -> dict[bytes, bytes]:
    """Close foreign descriptors, become undumpable, clear umask, environment and working directory. Returns the
    environment as it was. Raises HookError."""
    if not sys.flags.isolated:
        raise HookError("start: the interpreter is not isolated", "start the program by its own file, which has -I")
    _check_own_files()
    _standard_fds()
    _close_foreign()
    _standard_signals()
    prctl(abi.PR_SET_DUMPABLE, 0)
    prlimit(abi.RLIMIT_CORE, 0, 0)
    try:
        prlimit(abi.RLIMIT_DATA, _MAX_DATA, _MAX_DATA)
    except OSError:
        pass  # the hard limit is lower already
    posix.umask(0)
    env = dict(posix.environ)
    for name in env:
        posix.unsetenv(name)
    posix.environ.clear()
    posix.chdir(b"/")
    log.limit_warnings(_MAX_WARNINGS)
    return env


def limit(seconds: float) -> None:
    """The first thing of all: SIGALRM ends this process then, until the watchdog takes the timer over; 0 for never.

    By its default action, for what may hang so early is a file system, and only a signal without a handler ends that
    wait. Whoever started us says `alarm clock`.
    """
    _signal.signal(_signal.SIGALRM, _signal.SIG_DFL)
    _signal.pthread_sigmask(_signal.SIG_UNBLOCK, (_signal.SIGALRM,))
    _signal.setitimer(_signal.ITIMER_REAL, seconds)


def _check_own_files() -> None:
    """Refuse to run from where anybody but root can change files (33 us). The working directory is another then.

    Of the package that is every directory a hook loads from, whose every file scripts/install --check looks at: here it
    would be 75 us more, for what has been executed by the time it is looked at.
    In a user namespace that does not map the host's root its files look like anybody's (overflow uid), and so does
    `/`: whoever owns that can change everything anyway.
    """
    roots = (0, posix.stat("/").st_uid)
    package = __file__.rpartition("/hook/")[0]
    own = [f"{package}/{room}{inner}" for room in _ROOMS for inner in ("", "/__pycache__")]
    own += [f"{package}/__pycache__", f"{package}/hook/main.py"]
    # Of an installed tree: all that is needed of the package, in one file beside it.
    own += [f"{package}_{name}.pyc" for name in ("hot", "ask", "prestart", "cli") if f"nvoci_{name}" in sys.modules]
    posix.chdir(package)
    for top in {package, posix.getcwd()}:  # both of its paths, where one leads through links
        above = top
        while above:
            own.append(above)
            above = above.rpartition("/")[0]
    for path in own:
        try:
            st = posix.stat(path)
        except FileNotFoundError:
            continue  # and nobody else can make it
        others = 0o022 if st.st_gid else 0o002
        sticky = S_ISDIR(st.st_mode) and st.st_mode & S_ISVTX
        if st.st_uid not in roots or (st.st_mode & others and not sticky):
            raise HookError(f"start: {path}: owned by uid {st.st_uid}, mode {S_IMODE(st.st_mode):04o}",
                            "what a hook runs from must belong to root and be writable by nobody else")  # fmt: skip


def dangerous(env: dict[bytes, bytes]) -> list[bytes]:
    """The names in `env` that could have made this process run somebody else's code."""
    return sorted(name for name in env if name.startswith(_DANGEROUS))


def _standard_fds() -> None:
    """Descriptors 0 to 2 that are closed become /dev/null, so that nothing else can be opened as one of them."""
    for fd in (0, 1, 2):
        try:
            fcntl.fcntl(fd, fcntl.F_GETFD)
        except OSError:
            # The lowest free number is `fd` itself, since those before it are open.
            posix.open(b"/dev/null", posix.O_RDWR)


def _standard_signals() -> None:
    """A blocked SIGALRM would disarm the watchdog, an ignored SIGCHLD would take the worker's exit away from us, and
    Python's own SIGINT handler would print a traceback."""
    _signal.pthread_sigmask(_signal.SIG_SETMASK, ())
    _signal.signal(_signal.SIGCHLD, _signal.SIG_DFL)
    _signal.signal(_signal.SIGINT, _signal.SIG_DFL)


def _close_foreign() -> None:
    try:
        close_range(3, _MAX_FD)
        return
    except OSError:
        pass  # before Linux 5.9, or forbidden
    fd = posix.open(b"/proc/self/fd", posix.O_RDONLY | posix.O_DIRECTORY | posix.O_CLOEXEC)
    for name in posix.listdir(fd):
        number = int(name)
        if number > 2 and number != fd:
            try:
                posix.close(number)
            except OSError:
                continue
    posix.close(fd)


def seal_imports() -> None:
    """From here on no import can succeed: what an import would read could be the container's."""
    sys.path.clear()
    sys.meta_path.clear()
    sys.path_hooks.clear()
    sys.path_importer_cache.clear()


def output(text: str) -> None:
    """What a person asked to see, on stdout; `sys.stdout` is None where descriptor 1 was closed, and cannot write
    every name in a locale that is not UTF-8. Raises OSError."""
    write_all(1, text.encode("utf-8", "backslashreplace"))


def finish(code: int) -> None:
    """Flush and end without the interpreter's clean-up (1.2 ms)."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):
            pass
    posix._exit(code)
