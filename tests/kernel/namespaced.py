"""Run a test's body in a forked process with a mount namespace of its own, on the kernel as it is or as an older one.

What the body mounts goes with it. An older kernel is a seccomp filter that answers ENOSYS or EPERM for the calls it
would not have, loaded in that process only; so nvoci's own probing is tested too.
"""

from __future__ import annotations

import os
import pickle
import signal
import struct
import subprocess
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from errno import ENOSYS, EPERM
from pathlib import Path
from typing import Any

import pytest

from nvoci.hook.container import HOST, OUTSIDE, Container
from nvoci.hook.settings import Settings
from nvoci.linux import abi, generated, lookup, mount, syscalls
from nvoci.linux.fd import Fd
from nvoci.linux.rootfs import Rootfs

MOUNT_API = ("fsopen", "fsmount", "fsconfig", "open_tree", "move_mount", "mount_setattr")


@dataclass(frozen=True)
class Kernel:
    """A kernel without `blocked`; `error` is what those calls answer."""

    name: str
    blocked: tuple[str, ...] = ()
    error: int = ENOSYS
    clone_unattached: bool = True

    def start(self) -> None:
        """Be on this kernel from now on, in this process and its children."""
        lookup._openat2_works = True
        mount.missing.clear()
        generated.clone_unattached = self.clone_unattached
        if self.blocked:
            block(self.blocked, self.error)


KERNELS = (
    Kernel("all"),
    Kernel("before-6.15", clone_unattached=False),
    Kernel("before-5.12", ("mount_setattr",), clone_unattached=False),
    Kernel("before-5.2", ("openat2", *MOUNT_API)),
    Kernel("seccomp-eperm", ("openat2", *MOUNT_API), EPERM),
    Kernel("no-fsopen", ("fsopen",)),
    Kernel("no-open_tree", ("open_tree",)),
    Kernel("no-move_mount", ("move_mount",)),
)


def block(names: tuple[str, ...], error: int) -> None:
    """Load a filter that answers `error` for these calls (linux/filter.h: {u16 code, u8 jt, u8 jf, u32 k})."""
    program = struct.pack("=HBBI", 0x20, 0, 0, 0)  # BPF_LD|BPF_W|BPF_ABS: seccomp_data.nr
    for name in names:
        program += struct.pack("=HBBI", 0x15, 0, 1, abi.NR[name])  # BPF_JMP|BPF_JEQ|BPF_K, skip the next if unequal
        program += struct.pack("=HBBI", 0x06, 0, 0, 0x00050000 | error)  # SECCOMP_RET_ERRNO
    syscalls.seccomp_load(program + struct.pack("=HBBI", 0x06, 0, 0, 0x7FFF0000))  # SECCOMP_RET_ALLOW


def isolated(body: Callable[..., Any], *args: Any, limit: int = 60) -> Any:
    """body(*args) in a forked process with private mounts; its result, or its traceback as an AssertionError."""
    receive, send = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.setpgid(0, 0)
            signal.alarm(limit)
            syscalls.unshare(abi.CLONE_NEWNS)
            syscalls.mount(None, b"/", None, abi.MS_REC | abi.MS_PRIVATE)
            answer: tuple[bool, Any] = (True, body(*args))
            status = 0
        except BaseException:  # noqa: BLE001  # pytest's own outcomes are no Exception
            answer = (False, traceback.format_exc())
        finally:
            with os.fdopen(send, "wb") as out:
                out.write(pickle.dumps(answer))
            os._exit(status)
    os.close(send)
    with os.fdopen(receive, "rb") as stream:
        data = stream.read()
    _, status = os.waitpid(pid, 0)
    assert data, f"the isolated process ended with status {status} and no answer"
    good, value = pickle.loads(data)  # noqa: S301  # our own child's
    if not good:
        raise AssertionError(value)
    return value


def sh(script: str) -> str:
    return subprocess.run(["/bin/sh", "-euc", script], check=True, capture_output=True, text=True).stdout


def mountinfo(pid: int | str = "self") -> list[str]:
    return Path(f"/proc/{pid}/mountinfo").read_text(errors="surrogateescape").splitlines()


@contextmanager
def container(root: Path, setup: str = "") -> Iterator[int]:
    """A process with a mount namespace of its own in which `root` is a mount with a /proc; `setup` is shell, run there.
    Yields its pid."""
    receive, send = os.pipe()
    hold, release = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(release)
            syscalls.unshare(abi.CLONE_NEWNS)
            sh(f"mount --make-rprivate /; mount --bind {root} {root}; mkdir -p {root}/proc")
            sh(f"mount -t proc proc {root}/proc; {setup}")
            os.write(send, b"!")
            os.read(hold, 1)
        finally:
            os._exit(0)
    os.close(send)
    os.close(hold)
    try:
        assert os.read(receive, 1) == b"!", "the container's set-up failed"
        yield pid
    finally:
        os.close(release)
        os.close(receive)
        os.waitpid(pid, 0)


def in_container(pid: int, root: Path, kernel: Kernel, body: Callable[[Container], Any], place: str = OUTSIDE) -> Any:
    """body(Container) in a worker that has entered the namespace of `pid`, as a createRuntime hook does."""

    def work() -> Any:
        kernel.start()
        with Fd(os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY)) as ns:
            syscalls.setns(ns.fileno(), abi.CLONE_NEWNS)
        return body(make_container(root, place))

    return isolated(work)


def make_container(root: Path, place: str = HOST) -> Container:
    state: Any = None
    return Container(Rootfs.open(str(root)), place, state, Settings())


def run_inside(pid: int, root: Path, script: str) -> subprocess.CompletedProcess[str]:
    """A shell in the container: its mount namespace and its root."""
    argv = [
        "/usr/bin/nsenter",
        f"--mount=/proc/{pid}/ns/mnt",
        "/usr/sbin/chroot",
        str(root),
        "/bin/busybox",
        "sh",
        "-c",
    ]
    return subprocess.run([*argv, script], check=False, capture_output=True, text=True)


@contextmanager
def forked(body: Callable[[], object]) -> Iterator[int]:
    """A process that runs body() again and again until the block ends."""
    pid = os.fork()
    if pid == 0:
        end = time.monotonic() + 60
        try:
            while time.monotonic() < end:
                body()
        finally:
            os._exit(0)
    try:
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def os_error() -> Any:
    """pytest.raises(OSError), where the test looks at the errno itself."""
    return pytest.raises(OSError)  # noqa: PT011
