"""Places that are entered, and processes that are looked at, where the kernel answers otherwise: in this process."""

from __future__ import annotations

import os
import posix
import select
import signal
import subprocess
from collections.abc import Callable, Iterator
from errno import EACCES, EINVAL, EIO, EMFILE, ENOENT, ENOSYS, EPERM, ESRCH
from pathlib import Path
from typing import Any

import pytest
from kernel.namespaced import isolated
from kernel.refusal import descriptors_closed, refuse, refusing
from lib import proc
from unit.hook.hooktools import Container, running_container

from nvoci.errors import HookError
from nvoci.hook import enter
from nvoci.hook.container import CALLER, HOST, INSIDE, OUTSIDE
from nvoci.hook.enter import Place
from nvoci.linux import procfs
from nvoci.linux.fd import Fd
from nvoci.linux.syscalls import pidfd_open

pytestmark = [pytest.mark.kernel, pytest.mark.skipif(os.geteuid() != 0, reason="namespaces need root")]
Patch = pytest.MonkeyPatch


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    procfs.handle()  # which stays open
    with descriptors_closed():
        yield


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Container]:
    (tmp_path / "root").mkdir()
    with running_container(tmp_path / "root") as found:
        yield found


def _mnt(pid: int | str = "self") -> tuple[int, int]:
    st = os.stat(f"/proc/{pid}/ns/mnt")
    return st.st_dev, st.st_ino


# -- entering ---------------------------------------------------------------------------------------------------------


def test_a_place_without_a_namespace_is_where_we_are() -> None:
    before = _mnt()
    Place(HOST).enter()
    Place(INSIDE).check_alive()
    assert _mnt() == before


def _no_pidfd(place: Place) -> None:
    place.pidfd = None


def _old_setns(place: Place) -> None:
    """Before Linux 5.8 it takes no pidfd."""
    pidfd = place.pidfd.fileno() if place.pidfd else -1
    refuse(enter, "setns", EINVAL, lambda fd, _: fd == pidfd)


@pytest.mark.parametrize("how", [lambda place: None, _no_pidfd, _old_setns], ids=["pidfd", "none", "old"])
def test_each_way_leads_into_the_namespace(other: Container, how: Callable[[Place], None]) -> None:
    wanted = _mnt(other.pid)

    def body() -> tuple[int, int]:
        place = enter.locate(other.pid)
        assert place.where == OUTSIDE
        how(place)
        place.enter()
        place.check_alive()
        return _mnt()

    assert isolated(body) == wanted


@pytest.mark.parametrize(
    ("number", "hint"), [(EPERM, "CAP_SYS_ADMIN and CAP_SYS_CHROOT are needed"), (ESRCH, "process is gone")]
)
def test_a_namespace_that_is_not_to_be_entered_is_one_line(other: Container, number: int, hint: str) -> None:
    def body() -> str:
        place = enter.locate(other.pid)
        refuse(enter, "setns", number)
        with pytest.raises(HookError) as caught:
            place.enter()
        return caught.value.line()

    line = isolated(body)
    assert line.startswith(f"enter the mount namespace of pid {other.pid}: ")
    assert hint in line


def test_a_process_that_has_changed_its_namespace_since_is_not_entered(other: Container) -> None:
    """Its pidfd leads elsewhere than the handle that was judged."""

    def body() -> str:
        place = enter.locate(other.pid)
        place.pidfd = Fd(pidfd_open(os.getppid()))
        with pytest.raises(HookError) as caught:
            place.enter()
        return caught.value.line()

    assert "ESRCH (the container's process is gone)" in isolated(body)


def test_a_container_that_has_its_own_root_already_is_not_entered(other: Container) -> None:
    def body() -> str:
        place = enter.locate(other.pid)
        real = posix.stat
        calls: list[Any] = []

        def stat(path: Any, **named: Any) -> os.stat_result:
            if path == b"/":
                calls.append(path)
            return real(b"/proc" if path == b"/" and len(calls) == 2 else path, **named)

        posix.stat = stat
        with pytest.raises(HookError) as caught:
            place.enter()
        return caught.value.line()

    assert "its root is not the host's (the container runs already" in isolated(body)


# -- looking ----------------------------------------------------------------------------------------------------------


def test_a_procfs_without_us_is_one_line(monkeypatch: Patch) -> None:
    procfs.handle()
    monkeypatch.setattr(posix, "readlink", refusing(posix.readlink, ENOENT))
    with pytest.raises(HookError, match=r"^start: /proc/self: ENOENT"):
        enter.locate(None)


@pytest.mark.parametrize(("number", "entered"), [(ENOENT, False), (EACCES, True)])
def test_ancestors_that_went_away_or_may_not_be_looked_at(monkeypatch: Patch, number: int, entered: bool) -> None:
    monkeypatch.setattr(enter, "_is_host_mnt", lambda mnt: False)
    monkeypatch.setattr(procfs, "ns_id", refusing(procfs.ns_id, number, lambda path, *args: path[:1].isdigit()))
    assert enter._entered_mnt(_mnt()) is entered


def test_ancestors_of_the_same_namespace_have_not_entered(monkeypatch: Patch) -> None:
    monkeypatch.setattr(enter, "_is_host_mnt", lambda mnt: False)
    monkeypatch.setattr(enter, "_ancestors", lambda: {os.getpid()})
    assert not enter._entered_mnt(_mnt())


def test_the_first_process_may_not_be_ours_to_look_at(monkeypatch: Patch) -> None:
    monkeypatch.setattr(procfs, "ns_id", refusing(procfs.ns_id, EACCES))
    assert not enter._is_host_mnt(_mnt())


def test_the_runtime_is_the_nearest_of_another_namespace() -> None:
    def body() -> int:
        with enter.runtime() as found:
            return int(os.readlink("self", dir_fd=procfs.handle()) != os.path.basename(procfs.name_of(found.fileno())))

    assert isolated(body) == 1


@pytest.mark.parametrize("case", ["none", "gone"])
def test_a_runtime_that_is_not_seen_is_one_line(monkeypatch: Patch, case: str) -> None:
    if case == "none":
        monkeypatch.setattr(enter, "_is_in", lambda process, mnt: True)
        wanted = "find the runtime: no process is seen that called us"
    else:
        monkeypatch.setattr(posix, "open", refusing(posix.open, ENOENT, lambda path, *args: path[:1].isdigit()))
        wanted = f"find the runtime: pid {os.getppid()}: ENOENT"
    with pytest.raises(HookError, match=wanted):
        enter.runtime()


# -- processes that are named -----------------------------------------------------------------------------------------


def test_a_named_process_of_another_namespace_is_outside(other: Container) -> None:
    place = enter.named(other.pid)
    assert (place.where, place.pid, place.named) == (OUTSIDE, other.pid, True)
    assert place.mnt is not None
    assert enter._identity(place.mnt) == _mnt(other.pid)
    place.check_alive()
    os.kill(other.pid, signal.SIGKILL)
    assert place.pidfd is not None
    select.select([place.pidfd.fileno()], [], [], 10)  # readable when it has ended
    with pytest.raises(HookError, match="ESRCH"):
        place.check_alive()


@pytest.fixture
def child() -> Iterator[int]:
    with subprocess.Popen(["/bin/sleep", "60"], env=dict(proc.PLAIN_ENV)) as started:
        yield started.pid
        started.kill()


def test_a_named_process_of_our_own_cgroup_has_what_we_have(child: int) -> None:
    place = enter.named(child)
    assert (place.where, place.pid, place.process) == (CALLER, child, None)


def _elsewhere(monkeypatch: Patch) -> None:
    """Any other process is in another cgroup."""
    real = procfs.read

    def read(path: bytes, *args: Any, **named: Any) -> bytes:
        return b"0::/elsewhere\n" if path == b"cgroup" else real(path, *args, **named)

    monkeypatch.setattr(procfs, "read", read)


def test_one_of_another_cgroup_must_have_called(monkeypatch: Patch, child: int) -> None:
    _elsewhere(monkeypatch)
    with pytest.raises(HookError, match="in another cgroup, and has not called"):
        enter.named(child)
    caller, pid = os.getpid(), os.fork()
    if pid == 0:
        status = 1
        try:
            place = enter.named(caller)
            status = 0 if (place.where, place.named, place.process is None) == (CALLER, True, False) else 2
        finally:
            os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0


def test_the_parent_is_who_called(monkeypatch: Patch) -> None:
    assert enter.parent().pid == os.getppid()
    _elsewhere(monkeypatch)
    assert enter.parent().process is not None
    monkeypatch.setattr(procfs, "ns_id", refusing(procfs.ns_id, EACCES, lambda path, *args: path[:1].isdigit()))
    place = enter.parent()
    assert (place.where, place.pid, place.process) == (CALLER, 0, None)


@pytest.mark.parametrize(("number", "hint"), [(EACCES, "CAP_SYS_PTRACE is needed"), (ENOENT, "process is gone")])
@pytest.mark.parametrize("look", [enter.named, enter.locate], ids=["named", "located"])
def test_a_process_that_cannot_be_looked_at_is_one_line(
    other: Container, monkeypatch: Patch, look: Callable[[int], Place], number: int, hint: str
) -> None:
    monkeypatch.setattr(posix, "open", refusing(posix.open, number, lambda path, *args: path == b"ns/mnt"))
    with pytest.raises(HookError, match=f"^read state: pid {other.pid}: ") as caught:
        look(other.pid)
    assert hint in caught.value.hint


@pytest.mark.parametrize(("number", "works"), [(ENOSYS, True), (EPERM, True), (EMFILE, False), (EIO, False)])
def test_a_kernel_without_pidfds_gives_none(other: Container, monkeypatch: Patch, number: int, works: bool) -> None:
    monkeypatch.setattr(enter, "pidfd_open", refusing(enter.pidfd_open, number))
    if works:
        assert enter.locate(other.pid).pidfd is None
        return
    with pytest.raises(HookError, match=f"^read state: pid {other.pid}: E"):
        enter.locate(other.pid)


def test_where_procfs_counts_otherwise_there_is_no_pidfd(other: Container, monkeypatch: Patch) -> None:
    """A pid of our namespace would be another process there."""
    with Fd(os.open(f"/proc/{other.pid}", os.O_RDONLY)) as process:
        monkeypatch.setattr(enter, "_own_pid", lambda: 1)
        assert enter._held(Place(OUTSIDE, other.pid, process)).pidfd is None


def test_the_line_of_ancestors_ends_where_one_is_gone(monkeypatch: Patch) -> None:
    real = procfs.read
    monkeypatch.setattr(procfs, "read", refusing(real, ENOENT, lambda path, *args: path == b"%d/stat" % os.getppid()))
    assert enter._ancestors() == {os.getppid()}
