"""Inside the namespaces of a confined program: its init, which builds the cell, and the child that becomes it.

Everything here runs in forked processes that never return. Order of the init (pid 1 of its namespace):

    clone the root with all mounts, read-only nosuid nodev noexec     (open_tree, mount_setattr; or bind and remount)
    own mount, net, ipc and uts namespaces, everything private
    pivot_root into the clone, the old root detached: no string of the host is resolved, only "/" and "."
    every procfs and sysfs taken away: /proc/1/root of a container being made is the host
    one small tmpfs, the only writable place
    capabilities, then fork; when the child has ended: kill(-1), report, end, which ends the namespace

noexec has a purpose of its own: the one program that runs comes from a memfd, and the kernel refuses to load an
interpreter (PT_INTERP) from a noexec mount, so no code of the container can take part.
"""

from __future__ import annotations

import _signal
import fcntl
import posix
import select
from errno import EINVAL, EMFILE, ENOENT, ENOSYS, ENOTDIR, EPERM, ESRCH
from stat import S_ISREG

from nvoci.linux import abi, seccomp
from nvoci.linux.fd import Fd, read_at_most, write_all
from nvoci.linux.mountinfo import own_mounts
from nvoci.linux.syscalls import (
    capset,
    close_range,
    execveat,
    fstatfs_type,
    mount,
    mount_setattr,
    move_mount,
    open_tree,
    pivot_root,
    prctl,
    prlimit,
    seccomp_available,
    seccomp_load,
    umount2,
    unshare,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from nvoci.linux.mountinfo import Mount

OUTPUT_MAX = 64 << 20
_NAMESPACES = abi.CLONE_NEWNS | abi.CLONE_NEWNET | abi.CLONE_NEWIPC | abi.CLONE_NEWUTS
_ATTRIBUTES = abi.MOUNT_ATTR_RDONLY | abi.MOUNT_ATTR_NOSUID | abi.MOUNT_ATTR_NODEV | abi.MOUNT_ATTR_NOEXEC
_FLAGS = abi.MS_RDONLY | abi.MS_NOSUID | abi.MS_NODEV | abi.MS_NOEXEC
_DIRECTORY = posix.O_DIRECTORY | posix.O_CLOEXEC
# A kernel without the new mount calls, or a seccomp profile that does not know them.
_NOT_AVAILABLE = (ENOSYS, EPERM)
_REVEALING = (b"proc", b"sysfs")
_NOFILE = seccomp.EXEC_FD
# Address space is no memory: a program that maps a library of 4 GiB to look at its headers is fine. What it writes is
# counted by RLIMIT_DATA.
_AS, _DATA, _FSIZE = 64 << 30, 512 << 20, OUTPUT_MAX


class Cell:
    """What the child processes need; filled before the first fork. `stage` is what an error will be about."""

    __slots__ = (
        "argv", "files", "filtered", "life", "outputs", "place", "program", "report", "root", "seconds", "size",
        "stage", "stderr", "stdin", "stdout",
    )  # fmt: skip

    def __init__(self, program: int, root: int, argv: Sequence[bytes], place: bytes, seconds: float) -> None:
        self.program = program
        self.root = root
        self.argv = argv
        self.place = place
        self.seconds = seconds
        self.files: dict[bytes, bytes] = {}
        self.outputs: Sequence[bytes] = ()
        self.size = OUTPUT_MAX
        self.stage = "start"
        self.filtered = True
        self.stdin = self.stdout = self.stderr = self.report = self.life = -1

    def fail(self, error: OSError) -> None:
        """Tell the parent, and end."""
        write_all(self.report, f"E {error.errno or 0} {self.stage}\n".encode("utf-8", "backslashreplace"))
        posix._exit(1)


def run_init(cell: Cell) -> None:
    """Pid 1 of the namespace; never returns."""
    try:
        _init(cell)
    except OSError as e:
        cell.fail(e)
    except BaseException:  # noqa: BLE001  # whatever it was, nothing of the parent's may run on in here
        cell.fail(OSError(0, "internal error"))
    finally:
        posix._exit(1)


def _init(cell: Cell) -> None:
    prctl(abi.PR_SET_PDEATHSIG, abi.SIGKILL)
    for number in (_signal.SIGALRM, _signal.SIGTERM, _signal.SIGHUP, _signal.SIGINT, _signal.SIGXCPU,
                   _signal.SIGPIPE, _signal.SIGXFSZ):  # fmt: skip
        _signal.signal(number, _signal.SIG_DFL)
    if select.select([cell.life], [], [], 0)[0]:
        posix._exit(1)  # the parent was gone before it could be our death signal
    _enter_clone(cell)
    workdir = _make_place(cell)
    cell.stage = "drop capabilities"
    cell.filtered = seccomp_available()
    # CAP_DAC_READ_SEARCH also opens files by handle, across all of a file system; the filter forbids that call, so
    # without a filter the capability goes too.
    drop_capabilities(1 << abi.CAP_DAC_READ_SEARCH if cell.filtered else 0)
    prctl(abi.PR_SET_NO_NEW_PRIVS, 1)
    cell.stage = "fork"
    pid = posix.fork()
    if pid == 0:
        run_program(cell)
    status = _wait(pid)
    cell.stage = "read the output"
    write_all(cell.report, b"S %d %d\n" % (status, cell.filtered))
    for name in cell.outputs:
        data = _output(workdir, name)
        if data is not None:
            write_all(cell.report, b"F %d %s\n" % (len(data), name))
            write_all(cell.report, data)
    write_all(cell.report, b".\n")
    posix._exit(0)


def _wait(pid: int) -> int:
    """The exit status of `pid`; nothing else lives in the namespace afterwards."""
    while True:
        ended, status = posix.waitpid(-1, 0)
        if ended == pid:
            break
    try:
        posix.kill(-1, abi.SIGKILL)
    except OSError as e:
        if e.errno != ESRCH:
            raise
    return posix.waitstatus_to_exitcode(status)


def _output(workdir: int, name: bytes) -> bytes | None:
    flags = posix.O_RDONLY | posix.O_NOFOLLOW | posix.O_NONBLOCK | posix.O_CLOEXEC
    try:
        fd = Fd(posix.open(name, flags, dir_fd=workdir))
    except FileNotFoundError:
        return None
    with fd:
        return read_at_most(fd.fileno(), OUTPUT_MAX) if S_ISREG(fd.stat().st_mode) else None


# -- the root ---------------------------------------------------------------------------------------------------


def _enter_clone(cell: Cell) -> None:
    cell.stage = "clone the root"
    tree, read_only = _clone(cell.root)
    # unshare(2) takes the working directory along into the new namespace: there `.` is the root, found by no name.
    posix.fchdir(cell.root)
    cell.stage = "make namespaces"
    unshare(_NAMESPACES)
    mount(None, b"/", None, abi.MS_REC | abi.MS_PRIVATE)
    cell.stage = "attach the clone"
    if tree < 0 or not _attach(tree):
        tree, read_only = _bind(cell.root), False
    posix.fchdir(tree)
    cell.stage = "pivot_root"
    _pivot()
    mount(None, b"/", None, abi.MS_REC | abi.MS_PRIVATE)
    cell.stage = "take procfs away"
    _hide_revealing()
    if not read_only:
        cell.stage = "make the clone read-only"
        _remount_read_only()


def _clone(root: int) -> tuple[int, bool]:
    """(a detached copy of the root with all mounts below, whether it is read-only already); -1: not available."""
    try:
        tree = open_tree(root, b"", abi.OPEN_TREE_CLONE | abi.AT_RECURSIVE | abi.AT_EMPTY_PATH)
    except OSError as e:
        if e.errno not in _NOT_AVAILABLE:
            raise
        return -1, False
    try:
        mount_setattr(tree, _ATTRIBUTES, abi.MS_PRIVATE, abi.AT_RECURSIVE)
    except OSError as e:
        if e.errno not in _NOT_AVAILABLE:
            raise
        return tree, False
    return tree, True


def _attach(tree: int) -> bool:
    """Stack the clone on top of `/`; pivot_root(2) wants it to be a mount in our namespace."""
    top = posix.open(b"/", posix.O_PATH | _DIRECTORY)
    try:
        move_mount(tree, top)
    except OSError as e:
        if e.errno not in _NOT_AVAILABLE:
            raise
        return False
    return True


def _bind(root: int) -> int:
    """`_clone` and `_attach` with mount(2) alone. `/..` is how a path names what is stacked on top of `/`."""
    mount(b".", b"/", None, abi.MS_BIND | abi.MS_REC)
    tree = posix.open(b"/..", posix.O_PATH | _DIRECTORY)
    there, wanted = posix.fstat(tree), posix.fstat(root)
    if (there.st_dev, there.st_ino) != (wanted.st_dev, wanted.st_ino):
        raise OSError(EINVAL, "the bind mount is not on top")
    return tree


def _pivot() -> None:
    try:
        pivot_root(b".", b".")
    except OSError as e:
        if e.errno != EINVAL:
            raise
        # The old root is the initramfs, which cannot be moved. It stays below, out of reach: no descriptor leads
        # there, and CAP_SYS_CHROOT is dropped.
        posix.chroot(b".")
    else:
        umount2(b".", abi.MNT_DETACH)  # the old root, now stacked on the new one
    posix.chdir(b"/")


def _revealing(path: bytes) -> bool:
    try:
        fd = posix.open(path, posix.O_PATH | posix.O_NOFOLLOW | posix.O_CLOEXEC)
    except OSError:
        return False  # below another one that is gone, or hidden
    try:
        return fstatfs_type(fd) in (abi.PROC_SUPER_MAGIC, abi.SYSFS_MAGIC)
    finally:
        posix.close(fd)


def _hide_revealing() -> None:
    """Unmount every procfs and sysfs; cover those that a user namespace keeps locked. Several may be stacked."""
    for _ in range(16):
        found = [m.target for m in own_mounts() if m.fstype in _REVEALING and _revealing(m.target)]
        if not found:
            return
        for path in reversed(found):
            try:
                umount2(path, abi.MNT_DETACH | abi.UMOUNT_NOFOLLOW)
            except OSError as e:
                if e.errno not in (EINVAL, EPERM):
                    raise
                if _revealing(path):
                    mount(b"tmpfs", path, b"tmpfs", _FLAGS, b"size=4k,nr_inodes=2")
    raise OSError(EINVAL, "a procfs cannot be taken away")


def _remount_read_only() -> None:
    """What mount_setattr(2) does at once, mount by mount, and read back. What is covered by another mount stays as it
    is: nobody in here can take the cover away."""
    for one in own_mounts():
        try:
            mount(None, one.target, None, abi.MS_REMOUNT | abi.MS_BIND | _FLAGS)
        except OSError as e:
            if e.errno not in (EINVAL, ENOENT, ENOTDIR):
                raise
    for one in own_mounts():
        if not _is_sealed(one):
            raise OSError(EINVAL, "still writable", one.target)


def _is_sealed(one: Mount) -> bool:
    try:
        fd = Fd(posix.open(one.target, posix.O_PATH | posix.O_NOFOLLOW | posix.O_CLOEXEC))
    except OSError:
        return True  # covered: not to be reached by this or any other path
    with fd:
        flags = posix.fstatvfs(fd.fileno()).f_flag
        return flags & _FLAGS == _FLAGS  # ST_* of statvfs(3) are the MS_* of these four


def _make_place(cell: Cell) -> int:
    """Mount the tmpfs on the chosen directory and put the input files in. Returns its descriptor."""
    cell.stage = f"mount a tmpfs on /{cell.place.decode()}"
    path = b"/" + cell.place
    under = posix.open(path, posix.O_PATH | posix.O_NOFOLLOW | _DIRECTORY)
    posix.fchdir(under)
    options = b"size=%d,nr_inodes=64,mode=0700" % cell.size
    mount(b"tmpfs", b".", b"tmpfs", abi.MS_NOSUID | abi.MS_NODEV | abi.MS_NOEXEC, options)
    posix.chdir(b"/")
    workdir = posix.open(path, posix.O_RDONLY | posix.O_NOFOLLOW | _DIRECTORY)
    if posix.fstat(workdir).st_dev == posix.fstat(under).st_dev or fstatfs_type(workdir) != abi.TMPFS_MAGIC:
        raise OSError(EINVAL, "the tmpfs is not there")
    for name, data in cell.files.items():
        flags = posix.O_WRONLY | posix.O_CREAT | posix.O_EXCL | posix.O_CLOEXEC
        with Fd(posix.open(name, flags, 0o644, dir_fd=workdir)) as fd:
            write_all(fd.fileno(), data)
    return workdir


# -- the program ------------------------------------------------------------------------------------------------


def drop_capabilities(keep: int) -> None:
    """Only `keep` (a bit mask) stays permitted, effective and in the bounding set; nothing inheritable or ambient."""
    for capability in range(abi.CAP_LAST_CAP_MAX + 1):
        if not keep >> capability & 1:
            try:
                prctl(abi.PR_CAPBSET_DROP, capability)
            except OSError as e:
                if e.errno != EINVAL:
                    raise
                break  # the kernel knows no higher one
    try:
        prctl(abi.PR_CAP_AMBIENT, abi.PR_CAP_AMBIENT_CLEAR_ALL)
    except OSError as e:
        if e.errno != EINVAL:  # before Linux 4.3
            raise
    capset(keep, keep, 0)


def run_program(cell: Cell) -> None:
    """The child of the init: turns into the program, or reports why not; never returns."""
    try:
        _become(cell)
    except OSError as e:
        cell.fail(e)
    except BaseException:  # noqa: BLE001  # as in run_init
        cell.fail(OSError(0, "internal error"))
    finally:
        posix._exit(1)


def _become(cell: Cell) -> None:
    cell.stage = "set up the program"
    prctl(abi.PR_SET_PDEATHSIG, abi.SIGKILL)
    posix.setsid()
    posix.umask(0o077)
    if cell.report == seccomp.EXEC_FD:
        cell.report = fcntl.fcntl(cell.report, fcntl.F_DUPFD_CLOEXEC, seccomp.EXEC_FD + 1)
    for number, fd in enumerate((cell.stdin, cell.stdout, cell.stderr)):
        posix.dup2(fd, number)
    try:
        posix.dup2(cell.program, seccomp.EXEC_FD, inheritable=False)
    except OSError:
        raise OSError(EMFILE, f"RLIMIT_NOFILE is {seccomp.EXEC_FD} or less") from None
    _close_others(cell.report)
    _limit(cell.seconds)
    cell.stage = "load the seccomp filter"
    if cell.filtered:
        seccomp_load(seccomp.program(abi.MACHINE))
    cell.stage = "execute"
    execveat(seccomp.EXEC_FD, b"", cell.argv, (), abi.AT_EMPTY_PATH)


def _close_others(report: int) -> None:
    """All but 0 to 2, the program and the report pipe, which close by themselves when the program starts."""
    low, high = min(report, seccomp.EXEC_FD), max(report, seccomp.EXEC_FD)
    for first, last in ((3, low - 1), (low + 1, high - 1), (high + 1, 0xFFFFFFFF)):
        if first > last:
            continue
        try:
            close_range(first, last)
        except OSError:
            posix.closerange(first, min(last, 4095) + 1)  # before Linux 5.9: the process began by closing foreign ones


def _limit(seconds: float) -> None:
    cpu = int(seconds) + 1
    for resource, value in (
        (abi.RLIMIT_AS, _AS), (abi.RLIMIT_DATA, _DATA), (abi.RLIMIT_FSIZE, _FSIZE), (abi.RLIMIT_CPU, cpu),
        (abi.RLIMIT_NOFILE, _NOFILE), (abi.RLIMIT_CORE, 0), (abi.RLIMIT_NPROC, 1), (abi.RLIMIT_MEMLOCK, 0),
    ):  # fmt: skip
        _lower(resource, value)


def _lower(resource: int, value: int) -> None:
    try:
        prlimit(resource, value, value)
    except OSError as e:
        if e.errno != EPERM:  # the hard limit is lower already
            raise
