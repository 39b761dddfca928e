"""A confined program where the kernel refuses a step: one line that names the step, nothing mounted, nobody left."""

from __future__ import annotations

import os
import posix
import resource
import signal
import subprocess
from collections.abc import Callable
from errno import EACCES, EAGAIN, EBADF, EBUSY, EINVAL, EMFILE, ENOMEM, ENOSPC, ENOSYS, EPERM
from pathlib import Path
from typing import Any

import pytest
from lib.rootfs import tree

from nvoci.errors import HookError
from nvoci.linux import abi, cell, confine, seccomp
from nvoci.linux.cell import Cell
from nvoci.linux.confine import Program, Result
from nvoci.linux.fd import Fd
from tests.kernel.namespaced import MOUNT_API, Kernel, isolated, mountinfo, sh
from tests.kernel.refusal import nth, refuse

pytestmark = [pytest.mark.kernel, pytest.mark.skipif(os.geteuid() != 0, reason="namespaces need root")]
NEW = Kernel("new")
OLD = Kernel("old", ("openat2", "close_range", "memfd_create", "pidfd_open", *MOUNT_API))
SHELL = Path("/bin/busybox")
LOOK = """
echo there > /proc/x; read a < /proc/x; read b < /etc/plain; echo $a $b
[ -e /proc/1 ] && echo reached
echo changed > /etc/plain
"""
SEEN = b"there text\n"
ROOT = "dir proc\ndir etc\nfile etc/plain text\\n\n"

Setup = Callable[[], None]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tree(tmp_path / "rootfs", ROOT)


def program() -> Program:
    with Fd(os.open(SHELL, os.O_RDONLY)) as fd:
        return Program.from_fd(fd.fileno(), "shell")


def run(root: Path, script: str = LOOK, **how: Any) -> Result:
    with program().fd as copy, Fd(os.open(root, os.O_PATH | os.O_DIRECTORY)) as fd:
        argv = [b"busybox", b"sh", b"-c", script.encode()]
        return confine.run(Program(copy, "shell"), fd.fileno(), argv, place=b"proc", seconds=20, **how)


def line_of(root: Path, setup: Setup, kernel: Kernel = NEW) -> str:
    """The one line of a run after setup(), in a process where nothing is mounted and no child is left after it."""

    def body() -> str:
        kernel.start()
        sh(f"mount --bind {root} {root}; mount -t proc proc {root}/proc")
        procs = mountinfo()
        setup()
        with pytest.raises(HookError) as caught:
            run(root)
        assert mountinfo() == procs
        with pytest.raises(ChildProcessError):
            os.waitpid(-1, os.WNOHANG)
        return caught.value.line()

    line: str = isolated(body)
    assert "\n" not in line
    return line


def _without(name: str, when: Callable[..., bool]) -> Setup:
    """A call that says it did something, and did nothing."""

    def setup() -> None:
        real = getattr(cell, name)
        setattr(cell, name, lambda *args: None if when(*args) else real(*args))

    return setup


def _refused(name: str, number: int, when: Callable[..., bool] = lambda *args: True) -> Setup:
    return lambda: refuse(cell, name, number, when)


def _bomb(module: Any, name: str) -> Setup:
    def explode(*args: Any) -> Any:
        raise RuntimeError("a mistake")

    return lambda: setattr(module, name, explode)


def is_remount(*args: Any) -> bool:
    return bool(args[3] & abi.MS_REMOUNT)


STEPS: dict[str, tuple[Setup, str, Kernel]] = {
    "open_tree": (_refused("open_tree", ENOMEM), "clone the root: ENOMEM", NEW),
    "mount_setattr": (_refused("mount_setattr", EINVAL), "clone the root: EINVAL", NEW),
    "unshare": (_refused("unshare", ENOSPC), "make namespaces: ENOSPC (a limit below /proc/sys/user is reached)", NEW),
    "move_mount": (_refused("move_mount", EBUSY), "attach the clone: EBUSY", NEW),
    "bind": (_without("mount", lambda *a: a[3] == abi.MS_BIND | abi.MS_REC), "attach the clone: EINVAL", OLD),
    "pivot_root": (_refused("pivot_root", EBUSY), "pivot_root: EBUSY", NEW),
    "umount": (_refused("umount2", EBUSY, lambda path, _: path != b"."), "take procfs away: EBUSY", NEW),
    "umount for nothing": (_without("umount2", lambda path, _: path != b"."), "take procfs away: EINVAL", NEW),
    "remount": (_refused("mount", EACCES, is_remount), "make the clone read-only: EACCES", OLD),
    "remount for nothing": (_without("mount", is_remount), "make the clone read-only: EINVAL", OLD),
    "tmpfs": (_without("mount", lambda *a: a[2] == b"tmpfs"), "mount a tmpfs on /proc: EINVAL", NEW),
    "bounding set": (_refused("prctl", EPERM, lambda o, *a: o == abi.PR_CAPBSET_DROP), "drop capabilities: EPERM", NEW),
    "ambient set": (_refused("prctl", EPERM, lambda o, *a: o == abi.PR_CAP_AMBIENT), "drop capabilities: EPERM", NEW),
    "no_new_privs": (_refused("prctl", EINVAL, lambda o, *a: o == abi.PR_SET_NO_NEW_PRIVS),
                     "drop capabilities: EINVAL", NEW),
    "limit": (_refused("prlimit", EINVAL), "set up the program: EINVAL", NEW),
    "filter": (_refused("seccomp_load", EINVAL), "load the seccomp filter: EINVAL", NEW),
    "mistake of the init": (_bomb(cell, "_make_place"), "take procfs away: errno 0", NEW),
    "mistake of the child": (_bomb(seccomp, "program"), "load the seccomp filter: errno 0", NEW),
    "kill": (lambda: refuse(posix, "kill", EPERM, lambda pid, _: pid == -1), "fork: EPERM", NEW),
    "pid namespace": (lambda: refuse(confine, "unshare", EPERM),
                      "make a pid namespace: EPERM (CAP_SYS_ADMIN, and a kernel with mount, pid, net", NEW),
    "first fork": (lambda: refuse(posix, "fork", EAGAIN), "make a pid namespace: EAGAIN (two more processes", NEW),
    "second fork": (lambda: refuse(posix, "fork", EAGAIN, nth(2)), "fork: EAGAIN (two more processes", NEW),
}  # fmt: skip


@pytest.mark.parametrize("step", STEPS)
def test_a_step_that_is_refused_is_named(root: Path, step: str) -> None:
    setup, wanted, kernel = STEPS[step]
    line = line_of(root, setup, kernel)
    assert line.startswith(f"run shell confined: {wanted}"), line
    assert (root / "etc/plain").read_text() == "text\n"


def _few_descriptors() -> None:
    """RLIMIT_NOFILE is no more than the number that the program is to have."""
    refuse(posix, "dup2", EBADF, lambda fd, number, *args: number == seccomp.EXEC_FD)


def _no_more_descriptors() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 4, 4096))


@pytest.mark.parametrize(
    ("setup", "stage"), [(_few_descriptors, "set up the program"), (_no_more_descriptors, "make pipes")]
)
def test_too_few_descriptors(root: Path, setup: Setup, stage: str) -> None:
    """Those that were opened in vain are closed: what is taken back then needs some."""

    def body() -> tuple[str, int]:
        with program().fd as copy, Fd(os.open(root, os.O_PATH | os.O_DIRECTORY)) as fd:
            cell_root = fd.fileno()
            confine.procfs.handle()
            setup()
            before = len(os.listdir("/proc/self/fd"))
            with pytest.raises(HookError) as caught:
                confine.run(Program(copy, "shell"), cell_root, [b"sh"], place=b"proc", seconds=20)
            return caught.value.line(), len(os.listdir("/proc/self/fd")) - before

    line, left = isolated(body)
    assert line == f"run shell confined: {stage}: EMFILE (raise RLIMIT_NOFILE of the runtime above {seccomp.EXEC_FD})"
    assert left == 0


# -- steps that a kernel does not have, and that are done in another way ----------------------------------------------


def _covered() -> None:
    """A procfs that no path leads to, since another mount lies over the directory that it is in."""
    sh("mkdir etc/p; mount -t proc proc etc/p; mount -t tmpfs tmpfs etc; echo text > etc/plain")


def _taken_by_another() -> None:
    real = cell.umount2

    def umount2(path: bytes, flags: int) -> None:
        real(path, flags)
        if path != b".":
            raise OSError(EINVAL, "not a mount point any more", path)

    cell.umount2 = umount2


def _every_capability_known() -> None:
    """As on a kernel that has all 64."""
    real = cell.prctl

    def prctl(option: int, number: int = 0, third: int = 0) -> int:
        try:
            return real(option, number, third)
        except OSError:
            if option != abi.PR_CAPBSET_DROP:
                raise
            return 0

    cell.prctl = prctl


def _at_the_programs_number() -> None:
    """The report's pipe gets the number that the program is to have."""
    real = confine._pipes

    def pipes(count: int, name: str) -> list[tuple[int, int]]:
        ends = real(count, name)
        read, write = ends[3]
        os.dup2(write, seccomp.EXEC_FD, inheritable=False)
        os.close(write)
        ends[3] = (read, seccomp.EXEC_FD)
        return ends

    confine._pipes = pipes


WAYS: dict[str, tuple[Setup, Kernel]] = {
    "as it is": (lambda: None, NEW),
    "an initramfs, which pivot_root does not move": (_refused("pivot_root", EINVAL), NEW),
    "an initramfs, on an old kernel": (_refused("pivot_root", EINVAL), OLD),
    "a procfs that another takes away": (_taken_by_another, NEW),
    "locked mounts": (_refused("umount2", EINVAL, lambda path, _: path != b"."), NEW),
    "a procfs below another mount": (_covered, NEW),
    "a procfs below another mount, on an old kernel": (_covered, OLD),
    "no ambient capabilities": (_refused("prctl", EINVAL, lambda option, *a: option == abi.PR_CAP_AMBIENT), NEW),
    "every capability": (_every_capability_known, NEW),
    "limits that are lower": (lambda: resource.setrlimit(resource.RLIMIT_DATA, (64 << 20, 64 << 20)), NEW),
    "the number of the program in use": (_at_the_programs_number, NEW),
    "no close_range": (_refused("close_range", ENOSYS), NEW),
}


@pytest.mark.parametrize("way", WAYS)
def test_another_way_leads_to_the_same_confinement(root: Path, way: str) -> None:
    setup, kernel = WAYS[way]

    def body() -> tuple[int, bytes, bytes]:
        kernel.start()
        sh(f"mount --bind {root} {root}; mount -t proc proc {root}/proc; mount -t proc proc {root}/proc")
        os.chdir(root)
        setup()
        result = run(root)
        return result.status, result.stdout, result.stderr

    status, out, err = isolated(body)
    assert out == SEEN
    assert b"/etc/plain: Read-only file system" in err
    assert status == 1
    assert (root / "etc/plain").read_text() == "text\n"


def test_only_a_regular_file_is_returned(root: Path) -> None:
    (root / "etc/link").symlink_to("plain")
    os.mkfifo(root / "etc/pipe")
    with Fd(os.open(root, os.O_RDONLY)) as top, Fd(os.open(root / "etc", os.O_RDONLY)) as fd:
        assert cell._output(fd.fileno(), b"plain") == b"text\n"
        assert [cell._output(fd.fileno(), name) for name in (b"pipe", b"none")] == [None, None]
        assert cell._output(top.fileno(), b"etc") is None
        with pytest.raises(OSError, match="link"):
            cell._output(fd.fileno(), b"link")


# -- the init and the child alone -------------------------------------------------------------------------------------


def _forked(body: Callable[[], object]) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            body()
        finally:
            os._exit(77)  # it must not return
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _job(life: int = -1) -> Cell:
    job = Cell(-1, -1, [b"x"], b"proc", 1)
    job.life = life
    return job


def test_an_init_whose_caller_is_gone_does_nothing() -> None:
    read, write = os.pipe()
    os.close(write)
    assert _forked(lambda: cell.run_init(_job(read))) == 1
    os.close(read)


@pytest.mark.parametrize("start", [cell.run_init, cell.run_program])
def test_who_cannot_even_report_ends(start: Callable[[Cell], None]) -> None:
    """Nothing of the caller's program may run on in there."""
    assert _forked(lambda: start(_job())) == 1


def test_a_report_that_breaks_off_is_an_error(root: Path) -> None:
    """The init is killed before it has said anything: by the kernel, say, for want of memory."""

    def killed(*args: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)
        os._exit(3)

    line = line_of(root, lambda: setattr(cell, "write_all", killed))
    assert line == "run shell confined: its namespace was killed (see the kernel's log: out of memory?)"


def test_a_process_that_cannot_be_killed_is_an_error(root: Path) -> None:
    """One that waits for a file system that does not answer."""

    def body() -> str:
        confine._KILL_SECONDS = 0.05
        posix.waitpid = lambda pid, flags: (0, 0)
        with pytest.raises(HookError) as caught:
            confine._kill(subprocess.Popen(["/bin/sleep", "100"]).pid)
        return caught.value.line()

    assert isolated(body) == ("confine: a process cannot be killed (a file system of the container does not answer)")


# -- the copy of the program ------------------------------------------------------------------------------------------


def _copied(*setups: Setup) -> bytes:
    """The copy's bytes, made after the setups; it is executable, and nobody can write to it."""

    def body() -> bytes:
        for setup in setups:
            setup()
        with program().fd as fd:
            assert fd.stat().st_mode & 0o7777 == 0o500
            with pytest.raises(OSError, match=r"(?i)operation not permitted|bad file descriptor"):
                os.write(fd.fileno(), b"x")
            return os.pread(fd.fileno(), 1 << 24, 0)

    data: bytes = isolated(body)
    return data


def _no_memfd() -> None:
    refuse(confine, "memfd_create", ENOSYS)


def _noexec() -> None:
    for place in ("/run", "/tmp"):
        sh(f"mount -t tmpfs -o noexec tmpfs {place}")


def _no_directory() -> None:
    confine._TEMPORARY = (b"/none", str(SHELL).encode(), b"/tmp", b"/")  # type: ignore[assignment]


COPIES: dict[str, tuple[Setup, ...]] = {
    "before 6.3": (lambda: refuse(confine, "memfd_create", EINVAL, lambda _, flags: flags & abi.MFD_EXEC),
                   lambda: refuse(confine.fcntl, "fcntl", EINVAL, lambda *a: a[2] & abi.F_SEAL_EXEC)),
    "no memfd": (_no_memfd,),
    "places mounted noexec": (_no_memfd, _noexec),
    "places that are not there": (_no_memfd, lambda: setattr(confine, "_TEMPORARY", (b"/none", b"/tmp"))),
}  # fmt: skip


@pytest.mark.parametrize("how", COPIES)
def test_a_copy_has_every_byte(how: str) -> None:
    assert _copied(*COPIES[how]) == SHELL.read_bytes()


BAD_COPIES: dict[str, tuple[tuple[Setup, ...], str]] = {
    "memfd": ((lambda: refuse(confine, "memfd_create", ENOMEM),), "ENOMEM"),
    "memfd of an old kernel": (
        (lambda: refuse(confine, "memfd_create", EINVAL),), "EINVAL"),
    "seal": ((lambda: refuse(confine.fcntl, "fcntl", EPERM),), "EPERM"),
    "temporary": ((_no_memfd, lambda: refuse(posix, "open", EMFILE, lambda path, *a: path == b"/run")), "EMFILE"),
    "nowhere": ((_no_memfd, lambda: setattr(confine, "_TEMPORARY", (b"/none",))), "EACCES"),
}  # fmt: skip


@pytest.mark.parametrize("how", BAD_COPIES)
def test_a_copy_that_cannot_be_made_is_one_line(how: str) -> None:
    setups, wanted = BAD_COPIES[how]

    def body() -> str:
        with Fd(os.open(SHELL, os.O_RDONLY)) as fd:
            for setup in setups:
                setup()
            with pytest.raises(HookError) as caught:
                Program.from_fd(fd.fileno(), "/x/program")
        return caught.value.message

    assert isolated(body) == f"copy /x/program: {wanted}"


def test_a_source_that_cannot_be_read_is_one_line() -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(HookError, match=r"^copy /x/program: EBADF"):
        Program.from_fd(-1, "/x/program")
    assert len(os.listdir("/proc/self/fd")) == before
