"""Find out where a hook stands, and get into the container's mount namespace.

The state's pid is believed only after looking: it must be a process in another mount namespace than ours, and show
that it belongs to a container (an own pid namespace, or an own cgroup and one of our ancestors as parent), since a
pid may have been reused by a process of the host. All looks go through one handle of /proc/PID, which never comes
to mean another process.
"""

from __future__ import annotations

import posix
from errno import EACCES, EINVAL, ENOENT, ENOSYS, EPERM, ESRCH

from nvoci.errors import HookError, errno_name
from nvoci.hook.container import CALLER, HOST, INSIDE, OUTSIDE
from nvoci.linux import abi, procfs
from nvoci.linux.fd import Fd
from nvoci.linux.syscalls import pidfd_open, setns

_PF_KTHREAD = 0x00200000  # include/linux/sched.h
_MAX_ANCESTORS = 64


class Place:
    """Where we stand. `process` is a handle of /proc/PID of the container's process, `mnt` of its mount namespace where
    that is to be entered, and `pidfd` of the process itself, where the kernel has pidfd_open(2) (5.3). All three for
    OUTSIDE; the first and the last for CALLER too, where that process is in another cgroup than we. `named`: it was not
    a runtime that told us of the process."""

    __slots__ = ("mnt", "named", "pid", "pidfd", "process", "where")

    def __init__(self, where: str, pid: int = 0, process: Fd | None = None, mnt: Fd | None = None) -> None:
        self.where = where
        self.pid = pid
        self.process = process
        self.mnt = mnt
        self.pidfd: Fd | None = None
        self.named = False

    def enter(self) -> None:
        """setns(2) to the container's mount namespace; only in a single-threaded process. Raises HookError."""
        if self.mnt is None:
            return
        try:
            before = posix.stat(b"/")
            self._setns(self.mnt)
            posix.chdir(b"/")
            after = posix.stat(b"/")
        except OSError as e:
            hint = "CAP_SYS_ADMIN and CAP_SYS_CHROOT are needed"
            if e.errno == ESRCH:
                hint = "the container's process is gone"
            raise HookError(f"enter the mount namespace of pid {self.pid}: {errno_name(e.errno or 0)}", hint) from None
        if (before.st_dev, before.st_ino) != (after.st_dev, after.st_ino):
            # Past pivot_root(2) every path is the container's, the one to its root as well.
            raise HookError(f"enter the mount namespace of pid {self.pid}: its root is not the host's",
                            "the container runs already: call the hook as createRuntime or prestart")  # fmt: skip

    def _setns(self, mnt: Fd) -> None:
        """By the pidfd, which enters only a living process (ESRCH), and then see that it is the namespace that was
        judged; by the namespace's handle where setns(2) does not take a pidfd (before 5.8)."""
        if self.pidfd is not None:
            try:
                setns(self.pidfd.fileno(), abi.CLONE_NEWNS)
            except OSError as e:
                if e.errno != EINVAL:
                    raise
            else:
                st = mnt.stat()
                if procfs.ns_id(b"self/ns/mnt") != (st.st_dev, st.st_ino):
                    raise OSError(ESRCH, "another mount namespace")
                return
        setns(mnt.fileno(), abi.CLONE_NEWNS)

    def check_alive(self) -> None:
        """Raise HookError if the container's process is gone."""
        if self.process is not None:
            _stat(self.process.fileno(), self.pid)


def locate(pid: int | None) -> Place:
    """Judge the state's pid. Raises HookError."""
    own_host_pid = _own_pid()
    if own_host_pid != posix.getpid():
        pid = None  # we are in a pid namespace below the one of /proc: the runtime's init called us, and the pid is its
    if pid in (None, 0):
        return Place(INSIDE if _entered_mnt(procfs.ns_id(b"self/ns/mnt")) else HOST)
    if pid in (1, own_host_pid):
        raise HookError(f"read state: pid {pid} is {'the init of the host' if pid == 1 else 'the hook itself'}",
                        "the runtime must give the container's process")  # fmt: skip
    return _locate_process(pid or 0)


def _own_pid() -> int:
    try:
        return procfs.parse_pid(posix.readlink(b"self", dir_fd=procfs.handle()))
    except OSError as e:
        raise HookError(f"start: /proc/self: {errno_name(e.errno or 0)}",
                        "the procfs at /proc does not cover this process") from None  # fmt: skip


def _entered_mnt(mnt: tuple[int, int]) -> bool:
    """Whether our mount namespace is another than that of the processes we come from, the runtime among them. One
    we may not look at is another: we are then in a user namespace of a container."""
    if _is_host_mnt(mnt):
        return False
    for pid in _ancestors():
        try:
            if procfs.ns_id(b"%d/ns/mnt" % pid) != mnt:
                return True
        except FileNotFoundError:
            continue  # went away
        except OSError:
            return True
    return False


def runtime() -> Fd:
    """A handle of /proc/PID of the process that we come from and that is in another mount namespace, the nearest: for
    who is INSIDE, that is the runtime. Raises HookError where there is none to be seen."""
    ours = procfs.ns_id(b"self/ns/mnt")
    flags = posix.O_RDONLY | posix.O_DIRECTORY | posix.O_CLOEXEC
    pid = 0
    try:
        pid = _parse_stat(procfs.read(b"self/stat"))[0]
        for _ in range(_MAX_ANCESTORS):
            if not pid:
                break
            process = Fd(posix.open(b"%d" % pid, flags, dir_fd=procfs.handle()))
            if not _is_in(process, ours):
                return process
            with process:
                pid = _stat(process.fileno(), pid)[0]
    except OSError as e:
        raise HookError(f"find the runtime: pid {pid}: {errno_name(e.errno or 0)}",
                        "call the hook as createRuntime") from None  # fmt: skip
    raise HookError("find the runtime: no process is seen that called us from another mount namespace",
                    "call the hook as createRuntime")  # fmt: skip


def _is_in(process: Fd, mnt: tuple[int, int]) -> bool:
    return procfs.ns_id(b"ns/mnt", process.fileno()) == mnt


def _is_host_mnt(mnt: tuple[int, int]) -> bool:
    try:
        return mnt == procfs.ns_id(b"1/ns/mnt")
    except OSError:
        return False  # not ours to look at


def named(pid: int) -> Place:
    """The place of a process that somebody names who answers for it: one of another mount namespace, or who called us.
    Any other of ours is the host's, and another's cgroup is not to be told of devices for it. Raises HookError."""
    return _named(pid, called_us=False)


def _named(pid: int, *, called_us: bool) -> Place:
    process, _ = _open_process(pid)
    try:
        mnt = _open_mnt(process)
        if _identity(mnt) != procfs.ns_id(b"self/ns/mnt"):
            place = _held(Place(OUTSIDE, pid, process, mnt))
            place.named = True
            return place
        if procfs.read(b"cgroup", dirfd=process.fileno()) == procfs.read(b"self/cgroup"):
            return Place(CALLER, pid)  # it has nothing that we have not
        if not called_us and pid != _own_pid() and pid not in _ancestors():
            raise HookError(f"read state: pid {pid} is in this mount namespace, in another cgroup, and has not called",
                            "name a process of the container, or none to mean who calls")  # fmt: skip
    except OSError as e:
        raise _gone(pid, e) from None
    place = _held(Place(CALLER, pid, process))
    place.named = True
    return place


def parent() -> Place:
    """`named` of the process that called us. Raises HookError."""
    pid = _parse_stat(procfs.read(b"self/stat"))[0]
    try:
        if pid:
            procfs.ns_id(b"%d/ns/mnt" % pid)
    except OSError:
        pid = 0
    return _named(pid, called_us=True) if pid else Place(CALLER)


def _locate_process(pid: int) -> Place:
    process, parent = _open_process(pid)
    dirfd = process.fileno()
    try:
        mnt = _open_mnt(process)
        ours = procfs.ns_id(b"self/ns/mnt")
        if _identity(mnt) == ours:
            # createContainer of a container that shares the host's pid namespace: runc's init, whom the state
            # names, has started us. Anybody else in our mount namespace is a process of the host.
            if _is_host_mnt(ours) or pid not in _ancestors():
                raise HookError(f"read state: pid {pid} is in the host's mount namespace",
                                "the pid was reused, or the container has no mount namespace of its own")  # fmt: skip
            return Place(INSIDE)
        if not _belongs_to_container(dirfd, parent):
            raise HookError(f"read state: pid {pid} is a process of the host, not of a container",
                            "the container's process is gone and its pid was reused")  # fmt: skip
    except OSError as e:
        raise _gone(pid, e) from None
    return _held(Place(OUTSIDE, pid, process, mnt))


def _open_process(pid: int) -> tuple[Fd, int]:
    """(a handle of /proc/PID, its parent's pid)."""
    try:
        process = Fd(posix.open(b"%d" % pid, posix.O_RDONLY | posix.O_DIRECTORY | posix.O_CLOEXEC,
                                dir_fd=procfs.handle()))  # fmt: skip
    except OSError as e:
        raise _gone(pid, e) from None
    parent, flags = _stat(process.fileno(), pid)
    if flags & _PF_KTHREAD:
        raise HookError(f"read state: pid {pid} is a kernel thread", "the runtime must give the container's process")
    return process, parent


def _open_mnt(process: Fd) -> Fd:
    return Fd(posix.open(b"ns/mnt", posix.O_RDONLY | posix.O_CLOEXEC, dir_fd=process.fileno()))


def _identity(fd: Fd) -> tuple[int, int]:
    st = fd.stat()
    return st.st_dev, st.st_ino


def _held(place: Place) -> Place:
    """With the pidfd, unless our pid namespace is not that which procfs counts in. The pid was this process' before and
    is so after that, so the pidfd is this process' too."""
    assert place.process is not None
    try:
        if _own_pid() == posix.getpid():
            place.pidfd = Fd(pidfd_open(place.pid))
    except OSError as e:
        if e.errno not in (ENOSYS, EPERM):
            raise _gone(place.pid, e) from None
    _stat(place.process.fileno(), place.pid)
    return place


def _belongs_to_container(dirfd: int, parent: int) -> bool:
    if procfs.ns_id(b"ns/pid", dirfd) != procfs.ns_id(b"self/ns/pid"):
        return True
    return procfs.read(b"cgroup", dirfd=dirfd) != procfs.read(b"self/cgroup") and parent in _ancestors()


def _ancestors() -> set[int]:
    """Our parent, its parent and so on, without pid 1, which is everybody's; as our procfs counts them."""
    found: set[int] = set()
    pid = _parse_stat(procfs.read(b"self/stat"))[0]
    while pid > 1 and len(found) < _MAX_ANCESTORS:
        found.add(pid)
        try:
            pid = _parse_stat(procfs.read(b"%d/stat" % pid))[0]
        except (OSError, ValueError):
            break
    return found


def _stat(dirfd: int, pid: int) -> tuple[int, int]:
    try:
        return _parse_stat(procfs.read(b"stat", dirfd=dirfd))
    except (OSError, ValueError) as e:
        raise _gone(pid, e if isinstance(e, OSError) else OSError(ESRCH, "gone")) from None


def _parse_stat(text: bytes) -> tuple[int, int]:
    """(parent's pid, flags) of proc_pid_stat(5), fields 4 and 9, counted from behind the name. A zombie is gone."""
    fields = text[text.rindex(b")") + 2 :].split()
    if fields[0] in (b"Z", b"X"):
        raise OSError(ESRCH, "zombie")
    return int(fields[1]), int(fields[6])


def _gone(pid: int, error: OSError) -> HookError:
    number = ESRCH if error.errno == ENOENT else error.errno or 0
    hint = "the container's process is gone"
    if number in (EACCES, EPERM):
        hint = "CAP_SYS_PTRACE is needed to look at the namespaces of a process that may do more than the hook"
    return HookError(f"read state: pid {pid}: {errno_name(number)}", hint)
