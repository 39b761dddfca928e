"""A program that tries to get out of its confinement, on the kernel as it is and on older ones."""

from __future__ import annotations

import os
import shutil
import signal
import struct
import subprocess
import time
from pathlib import Path

import pytest
from lib import elfmaker, session
from lib.rootfs import tree

from nvoci.errors import HookError
from nvoci.hook.container import Container
from nvoci.linux import abi, cell, confine, seccomp, syscalls
from nvoci.linux.confine import Program, Result
from nvoci.linux.fd import Fd
from nvoci.linux.rootfs import Rootfs
from tests.kernel.namespaced import KERNELS, MOUNT_API, Kernel, container, in_container, isolated, mountinfo

pytestmark = [pytest.mark.kernel, pytest.mark.skipif(os.geteuid() != 0, reason="namespaces need root")]

OLD = Kernel("before-3.17", ("openat2", "close_range", "memfd_create", "pidfd_open", *MOUNT_API))
NO_FILTER = Kernel("no-seccomp", ("seccomp",))
ROOT = """
dir proc
dir sys
dir tmp 1777
dir etc
file etc/secret text
mode etc/secret 0
owner etc/secret 1234 1234
file etc/plain text
char null 1 3
fifo pipe
"""
# What must not work, and how it fails. Where the filter is there, it answers first.
DENIED = {
    "write:/x": "EROFS", "write:/etc/plain": "EROFS", "unlink:/etc/plain": "EROFS", "chmod:/etc/plain": "EROFS",
    "read:/proc/1/root": "ENOENT", "read:/proc/self/exe": "ENOENT", "read:/sys/kernel": "ENOENT",
    "read:/null": "EACCES", "exec:/busybox": "ENOSYS", "mknod": "ENOSYS", "mount": "ENOSYS", "remount": "ENOSYS",
    "umount": "ENOSYS", "chroot": "ENOSYS", "unshare": "ENOSYS", "setns": "ENOSYS", "socket": "ENOSYS",
    "ptrace": "ENOSYS", "kill": "ENOSYS", "bpf": "ENOSYS", "ioctl": "ENOSYS", "symlink": "ENOSYS", "handle": "ENOSYS",
    "fork": "ENOSYS", "execveat": "ENOSYS", "again": "EBADF", "dup": "EBADF", "nofile": "EPERM", "nproc": "EPERM",
    "memory": "ENOMEM",
}  # fmt: skip
# Without a filter the program has no capability at all.
DENIED_UNFILTERED = {
    "write:/x": "EROFS", "read:/proc/1/root": "ENOENT", "read:/etc/secret": "EACCES", "exec:/busybox": "EACCES",
    "mknod": "EPERM", "mount": "EPERM", "remount": "EPERM", "umount": "EPERM", "chroot": "EPERM", "setns": "EINVAL",
    "again": "EBADF", "dup": "EBADF", "nofile": "EPERM",
}  # fmt: skip
ALLOWED = {
    "read:/etc/plain": "ok 3", "read:/etc/secret": "ok 4", "write:/proc/out": "ok 5", "pid": "ok 2", "ppid": "ok 1",
    "env": "ok 0", "stdin": "ok 0",
}  # fmt: skip


@pytest.fixture(scope="session")
def escape() -> Path:
    if shutil.which("gcc") is None:
        pytest.skip("no gcc to build the program with")
    out = session.tmp() / "escape"
    if not out.exists():
        source = Path(__file__).with_name("escape.c")
        subprocess.run(["gcc", "-static", "-O1", "-w", "-o", out, source], check=True)
    return out


@pytest.fixture
def root(tmp_path: Path) -> Path:
    path = tree(tmp_path / "rootfs", ROOT)
    shutil.copy("/bin/busybox", path / "busybox")
    return path


@pytest.fixture(params=[*KERNELS, OLD], ids=lambda k: k.name)
def kernel(request: pytest.FixtureRequest) -> Kernel:
    value: Kernel = request.param
    return value


def run(
    program: Path, root: Path | Rootfs, *words: str, name: str = "escape", seconds: float = 10, **how: object
) -> Result:
    with Fd(os.open(program, os.O_RDONLY)) as fd:
        made = Program.from_fd(fd.fileno(), str(program))
    rootfs = root if isinstance(root, Rootfs) else Rootfs.open(str(root))
    place = confine.writable_place(rootfs)
    argv = [name.encode(), *(w.encode() for w in words)]
    with made.fd:
        return confine.run(made, rootfs.fileno(), argv, place=place, seconds=seconds, **how)  # type: ignore[arg-type]


def answers(result: Result) -> dict[str, str]:
    assert result.status == 7, (result.status, result.stdout, result.stderr)
    return dict(line.split(" ", 1) for line in result.stdout.decode().splitlines())


def named(token: str) -> list[str]:
    """Processes of this machine whose first argument is `token`."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if path.read_bytes().split(b"\0")[0] == token.encode():
                found.append(path.parent.name)
        except OSError:
            continue
    return found


def test_every_attempt_fails_and_reading_works(escape: Path, root: Path, kernel: Kernel) -> None:
    def body() -> Result:
        kernel.start()
        return run(escape, root, *ALLOWED, *DENIED)

    before = mountinfo()
    result = isolated(body)
    assert answers(result) == {**ALLOWED, **DENIED}
    assert result.filtered
    assert mountinfo() == before
    assert sorted(p.name for p in root.iterdir()) == ["busybox", "etc", "null", "pipe", "proc", "sys", "tmp"]
    assert list((root / "proc").iterdir()) == []


def test_without_seccomp_no_capability_is_left(escape: Path, root: Path) -> None:
    def body() -> Result:
        NO_FILTER.start()
        return run(escape, root, *DENIED_UNFILTERED)

    result = isolated(body)
    assert answers(result) == DENIED_UNFILTERED
    assert not result.filtered


def test_container_mounts_are_read_only_and_its_procfs_is_gone(escape: Path, root: Path, kernel: Kernel) -> None:
    canary = root.parent / "canary"
    tree(canary, "file inner text")
    setup = f"mount -t sysfs sysfs {root}/sys; mkdir {root}/etc/vol {root}/etc/p; mount --bind {canary} {root}/etc/vol;"
    setup += f"mount -t proc proc {root}/etc/p; mount -t tmpfs tmpfs {root}/tmp; mount -t proc proc {root}/proc"
    tries = {
        "write:/etc/vol/inner": "EROFS", "write:/tmp/x": "EROFS", "write:/x": "EROFS", "read:/etc/p/1/root": "ENOENT",
        "read:/proc/1/root": "ENOENT", "read:/sys/kernel": "ENOENT", "read:/etc/vol/inner": "ok 3",
    }  # fmt: skip

    def body(c: Container) -> dict[str, str]:
        assert list((root / "etc/p").iterdir()), "the container has its procfs"
        return answers(run(escape, c.rootfs, *tries))

    with container(root, setup) as pid:
        before = mountinfo(pid)
        assert in_container(pid, root, kernel, body) == tries
        assert mountinfo(pid) == before
    assert (canary / "inner").read_text() == "text"


def test_container_of_another_user_namespace(escape: Path, root: Path) -> None:
    """A mount namespace copied into another user namespace has locked mounts, which cannot be taken away."""
    script = (
        "mount --make-rprivate /; mount --bind $0 $0; mount -t proc proc $0/proc; echo ready; exec sleep 100"
    )
    argv = ["unshare", "-Urmpf", "--kill-child", "sh", "-ec", script, str(root)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as outer:
        try:
            assert outer.stdout is not None
            assert outer.stdout.readline() == b"ready\n"
            (pid,) = (int(p) for p in Path(f"/proc/{outer.pid}/task/{outer.pid}/children").read_text().split())
            tries = ("read:/proc/1/root", "write:/x", "write:/etc/plain", "read:/proc/self", "read:/etc/plain")
            for kernel in (KERNELS[0], OLD):
                found = in_container(pid, root, kernel, lambda c: answers(run(escape, c.rootfs, *tries)))
                assert list(found.values()) == ["ENOENT", "EROFS", "EROFS", "ENOENT", "ok 3"]
        finally:
            outer.kill()


def test_only_the_standard_descriptors_are_open(escape: Path, root: Path) -> None:
    leak = os.open("/etc", os.O_RDONLY)
    os.set_inheritable(leak, True)
    high = os.dup2(leak, 300, inheritable=True)
    try:
        assert answers(run(escape, root, "fds")) == {"fds": "ok 3"}
    finally:
        os.close(leak)
        os.close(high)


@pytest.mark.parametrize("what", ["sleep", "spin", "bomb"])
def test_the_deadline_ends_it_and_nothing_is_left(escape: Path, root: Path, what: str) -> None:
    token = session.unique("late")
    start = time.monotonic()
    result = run(escape, root, what, name=token, seconds=0.5)
    assert result.timed_out
    assert time.monotonic() - start < 8
    assert named(token) == []


@pytest.mark.parametrize("last", ["pid", "sleep"])
def test_a_daemon_does_not_outlive_the_call_even_without_seccomp(escape: Path, root: Path, last: str) -> None:
    token = session.unique("daemon")

    def body() -> Result:
        NO_FILTER.start()
        return run(escape, root, "daemon", last, name=token, seconds=1)

    result = isolated(body)
    assert result.stdout.startswith(b"daemon ok ")
    assert result.timed_out == (last == "sleep")
    assert named(token) == []


def test_it_dies_with_its_caller(escape: Path, root: Path) -> None:
    token = session.unique("orphan")
    pid = os.fork()
    if pid == 0:
        try:
            run(escape, root, "sleep", name=token, seconds=60)
        finally:
            os._exit(0)
    try:
        deadline = time.monotonic() + 5
        while not named(token) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert named(token)
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
    while named(token) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert named(token) == []


def test_an_exception_in_the_caller_ends_it(escape: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    token = session.unique("raised")

    def interrupted(*args: object) -> Result:
        raise KeyboardInterrupt

    monkeypatch.setattr(confine, "_collect", interrupted)
    before = sorted(os.listdir("/proc/self/fd"))
    with pytest.raises(KeyboardInterrupt):
        run(escape, root, "sleep", name=token)
    assert named(token) == []
    assert len(os.listdir("/proc/self/fd")) <= len(before) + 1  # the Rootfs of run()


def test_output_is_bounded(escape: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(confine, "STDOUT_MAX", 1 << 16)
    result = run(escape, root, "flood", seconds=0.5)
    assert (len(result.stdout), result.truncated, result.timed_out) == (1 << 16, True, True)


def test_a_file_that_is_too_large_ends_it(escape: Path, root: Path) -> None:
    result = run(escape, root, "fill:/proc/o", outputs=(b"o",))
    assert result.status == -signal.SIGXFSZ
    assert len(result.outputs[b"o"]) == cell.OUTPUT_MAX


def test_signals_and_statuses_are_told(escape: Path, root: Path) -> None:
    assert run(escape, root, "crash").status == -6
    assert run(escape, root, "nonsense").status == 99


def test_files_go_in_and_come_out(root: Path) -> None:
    script = "read x < /proc/in; echo $x; echo out > /proc/o; echo err >&2"
    files = {b"in": b"hello\n"}
    busybox = Path("/bin/busybox")
    result = run(busybox, root, "sh", "-c", script, name="busybox", files=files, outputs=(b"o", b"none"))
    assert (result.status, result.stdout, result.stderr) == (0, b"hello\n", b"err\n")
    assert result.outputs == {b"o": b"out\n"}


def test_next_child_of_the_caller_is_in_its_own_pid_namespace(escape: Path, root: Path) -> None:
    run(escape, root, "pid")
    assert os.readlink("/proc/self/ns/pid_for_children") == os.readlink("/proc/self/ns/pid")


def test_dynamic_program_is_not_executed(root: Path) -> None:
    """The image's ld.so would run in the cell; the kernel refuses it on a noexec mount."""
    interp = elfmaker.make_probe(root / "lib64/ld.so", [], "/none")
    program = elfmaker.make_probe(session.new_dir() / "dynamic", ["libc.so.6"], "/lib64/ld.so")
    assert interp.exists()
    with pytest.raises(HookError, match="execute: EACCES") as e:
        run(program, root)
    assert "static" in e.value.hint


def test_script_is_not_executed(root: Path, tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("#!/busybox sh\n")
    with pytest.raises(HookError, match="execute: E"):
        run(script, root)


def test_program_is_sealed(escape: Path) -> None:
    with Fd(os.open(escape, os.O_RDONLY)) as source, Program.from_fd(source.fileno(), "x").fd as fd:
        with pytest.raises(PermissionError):
            os.write(fd.fileno(), b"x")
        with pytest.raises(PermissionError):
            os.ftruncate(fd.fileno(), 0)
        assert os.pread(fd.fileno(), 1 << 24, 0) == escape.read_bytes()


@pytest.mark.parametrize(
    ("names", "place"),
    [(["proc", "tmp"], b"proc"), (["tmp", "run"], b"tmp"), (["run"], b"run")],
)
def test_the_first_real_directory_is_the_writable_place(tmp_path: Path, names: list[str], place: bytes) -> None:
    for name in names:
        (tmp_path / name).mkdir()
    if "proc" not in names:
        (tmp_path / "proc").symlink_to("/etc")
    assert confine.writable_place(Rootfs.open(str(tmp_path))) == place


def test_root_without_a_directory_to_write_to_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "proc").symlink_to("tmp")
    with pytest.raises(HookError, match="none of the directories"):
        confine.writable_place(Rootfs.open(str(tmp_path)))


def test_root_that_changes_under_it_is_an_error(escape: Path, root: Path) -> None:
    (root / "proc").rmdir()
    (root / "proc").symlink_to("/etc")
    with Fd(os.open(escape, os.O_RDONLY)) as fd, Rootfs.open(str(root))._fd as rootfs:
        program = Program.from_fd(fd.fileno(), "escape")
        with pytest.raises(HookError, match=r"mount a tmpfs on /proc: (ENOTDIR|ELOOP)"):
            confine.run(program, rootfs.fileno(), [b"x"], place=b"proc", seconds=5)


def test_only_one_capability_is_left() -> None:
    def body() -> list[str]:
        cell.drop_capabilities(1 << abi.CAP_DAC_READ_SEARCH)
        syscalls.prctl(abi.PR_SET_NO_NEW_PRIVS, 1)
        text = subprocess.run(["/bin/cat", "/proc/self/status"], check=True, capture_output=True, text=True).stdout
        return [line.split()[1] for line in text.splitlines() if line.startswith("Cap")]

    assert isolated(body) == ["0" * 16, "0" * 15 + "4", "0" * 15 + "4", "0" * 15 + "4", "0" * 16]


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_filter_is_well_formed(machine: str) -> None:
    """Every jump lands inside; the last two instructions are `ENOSYS` and `ALLOW`."""
    code = seccomp.program(machine)
    count = len(code) // 8
    for i in range(count - 2):
        assert i + 1 + max(code[8 * i + 2 : 8 * i + 4]) < count
    assert struct.unpack("=HHI", code[-16:-8])[2] == 0x50026
    assert struct.unpack("=HHI", code[-8:])[2] == 0x7FFF0000


def test_numbers_of_the_filter_are_those_of_the_kernel_headers() -> None:
    header = Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h")
    if not header.exists():
        pytest.skip("no kernel headers for x86_64 here")
    words = (line.split() for line in header.read_text().splitlines() if line.startswith("#define __NR_"))
    known = {w[1][len("__NR_") :]: int(w[2]) for w in words}
    assert {name: known[name] for name in seccomp.ALLOWED["x86_64"]} == seccomp.ALLOWED["x86_64"]
