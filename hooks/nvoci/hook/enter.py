"""Find out where a hook stands, and get into the container's mount namespace.

The state's pid is believed only after looking: it must be a process in another mount namespace than ours, and show
that it belongs to a container (an own pid namespace, or an own cgroup and one of our ancestors as parent), since a
pid may have been reused by a process of the host. All looks go through one handle of /proc/PID, which never comes
to mean another process.
"""

from __future__ import annotations

import posix
from errno import EINVAL, ENOENT, ENOSYS, EPERM, ESRCH

from nvoci.errors import HookError, errno_name
from nvoci.hook.container import HOST, INSIDE, OUTSIDE
from nvoci.linux import abi, procfs
from nvoci.linux.fd import Fd
from nvoci.linux.syscalls import pidfd_open, setns

_PF_KTHREAD = 0x00200000  # include/linux/sched.h
_MAX_ANCESTORS = 64


class Place:
    """Where we stand. For OUTSIDE only: `process` is a handle of /proc/PID, `mnt` of its mount namespace, and `pidfd`
    of the process itself, where the kernel has pidfd_open(2) (5.3)."""

    __slots__ = ("mnt", "pid", "pidfd", "process", "where")

    def __init__(self, where: str, pid: int = 0, process: Fd | None = None, mnt: Fd | None = None) -> None:
        self.where = where
        self.pid = pid
        self.process = process
        self.mnt = mnt
        self.pidfd: Fd | None = None

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
            raise HookError(f"enter the mount namespace of pid {self.pid}: {errno_name(e.errno or 0)}",
                            "CAP_SYS_ADMIN and CAP_SYS_CHROOT are needed") from None  # fmt: skip
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


def _is_host_mnt(mnt: tuple[int, int]) -> bool:
    try:
        return mnt == procfs.ns_id(b"1/ns/mnt")
    except OSError:
        return False  # not ours to look at


def _locate_process(pid: int) -> Place:
    try:
        process = Fd(posix.open(b"%d" % pid, posix.O_RDONLY | posix.O_DIRECTORY | posix.O_CLOEXEC,
                                dir_fd=procfs.handle()))  # fmt: skip
    except OSError as e:
        raise _gone(pid, e) from None
    dirfd = process.fileno()
    parent, flags = _stat(dirfd, pid)
    if flags & _PF_KTHREAD:
        raise HookError(f"read state: pid {pid} is a kernel thread", "the runtime must give the container's process")
    try:
        mnt = Fd(posix.open(b"ns/mnt", posix.O_RDONLY | posix.O_CLOEXEC, dir_fd=dirfd))
        theirs, ours = mnt.stat(), procfs.ns_id(b"self/ns/mnt")
        if (theirs.st_dev, theirs.st_ino) == ours:
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
    place = Place(OUTSIDE, pid, process, mnt)
    try:
        place.pidfd = Fd(pidfd_open(pid))
    except OSError as e:
        if e.errno not in (ENOSYS, EPERM):
            raise _gone(pid, e) from None
    # The pid was this process' before and is now, so the pidfd is this process' too.
    _stat(dirfd, pid)
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
    return HookError(f"read state: pid {pid}: {errno_name(number)}", "the container's process is gone")
