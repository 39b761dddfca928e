"""The steps of a run where what is asked of the kernel, or of the bundle, is refused: in this process."""

from __future__ import annotations

import json
import os
import posix
import subprocess
from collections.abc import Callable, Iterator
from errno import EAGAIN, EIO, ENOENT, EPERM, EROFS
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from kernel.refusal import descriptors_closed, nth, refusing
from lib import proc

from nvoci import log
from nvoci.errors import FAILED, HookError
from nvoci.hook import enter, process, watchdog, work, worker
from nvoci.hook.hostmounts import HostMounts
from nvoci.hook.operation import AllowDevices, Operation, Transaction
from nvoci.hook.settings import Settings
from nvoci.linux import procfs, userns
from nvoci.linux.devicerule import DeviceRule
from nvoci.linux.fd import Fd
from nvoci.linux.rootfs import Rootfs

pytestmark = [pytest.mark.kernel, pytest.mark.skipif(os.geteuid() != 0, reason="user namespaces with a map of ours")]
Patch = pytest.MonkeyPatch


@pytest.fixture(autouse=True)
def _as_it_was(monkeypatch: Patch) -> Iterator[None]:
    """A hook's process ends: its timer and its handlers are not for this one."""
    for name in ("start", "stop"):
        monkeypatch.setattr(watchdog, name, lambda *args: None)
    monkeypatch.setattr(process, "seal_imports", lambda: None)
    procfs.handle()
    with descriptors_closed():
        yield


def _state(bundle: Path | str = "") -> Any:
    return SimpleNamespace(bundle=str(bundle), pid=None)


def _bundle(folder: Path, **linux: Any) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"root": {"path": "rootfs"}, "linux": linux}))
    (folder / "config.json").chmod(0o644)
    return folder


def _job(root: Path, steps: list[Any] | None = None) -> work._Job:
    root.mkdir(exist_ok=True)
    return work._Job(steps or [], _state(), str(root), enter.Place(enter.INSIDE), Settings(), False)


# -- user namespaces --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mapped() -> Iterator[int]:
    """A process of another user namespace, whose root is uid 1000 of ours."""
    argv = ["/usr/bin/unshare", "-U", "/bin/sh", "-c", "echo ready; exec sleep 300"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, env=dict(proc.PLAIN_ENV)) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        for name in ("uid_map", "gid_map"):
            Path(f"/proc/{child.pid}/{name}").write_text("0 1000 10\n")
        yield child.pid
        child.kill()


def _place(pid: int, *, named: bool = False) -> enter.Place:
    place = enter.Place(enter.OUTSIDE, pid, Fd(os.open(f"/proc/{pid}", os.O_RDONLY)))
    place.named = named
    return place


RIGHT = {"uidMappings": [{"containerID": 0, "hostID": 1000, "size": 10}], "namespaces": [{"type": "user"}]}
OTHER = {"uidMappings": [{"containerID": 0, "hostID": 2000, "size": 10}], "namespaces": [{"type": "user"}]}
CONFIGURED: dict[str, tuple[Callable[[int], dict[str, Any]], bool | None]] = {
    "as it is": (lambda pid: RIGHT, True),
    "another map": (lambda pid: OTHER, None),
    "none": (lambda pid: {"namespaces": []}, None),
    "by its path": (lambda pid: {"namespaces": [{"type": "user", "path": f"/proc/{pid}/ns/user"}]}, True),
    "another's path": (lambda pid: {"namespaces": [{"type": "user", "path": "/proc/self/ns/user"}]}, None),
    "a path that is gone": (lambda pid: {"namespaces": [{"type": "user", "path": "/proc/0/ns/user"}]}, False),
}


@pytest.mark.parametrize("case", CONFIGURED)
def test_the_user_namespace_is_that_of_the_configuration(tmp_path: Path, mapped: int, case: str) -> None:
    """True: it is; False: that cannot be told; None: it is another, and the pid was reused."""
    linux, wanted = CONFIGURED[case]
    bundle, place = _bundle(tmp_path / "b", **linux(mapped)), _place(mapped)
    assert place.process is not None
    if wanted is None:
        with pytest.raises(HookError, match=r"is in another user namespace than config.json says"):
            work._guard(place, str(bundle))
        return
    assert work._is_as_configured(place, place.process, str(bundle)) is wanted
    assert isinstance(work._guard(place, str(bundle)), HostMounts)


def test_without_a_configuration_that_cannot_be_told(tmp_path: Path, mapped: int) -> None:
    place = _place(mapped)
    assert place.process is not None
    for bundle in ("", str(tmp_path / "none")):
        assert work._is_as_configured(place, place.process, bundle) is False


def test_a_process_that_somebody_names_is_not_asked_of_the_configuration(tmp_path: Path, mapped: int) -> None:
    assert isinstance(work._guard(_place(mapped, named=True), str(_bundle(tmp_path / "b", **OTHER))), HostMounts)


def test_maps_are_read_as_the_kernel_writes_them(mapped: int) -> None:
    with Fd(os.open(f"/proc/{mapped}", os.O_RDONLY)) as found:
        assert userns.uid_map(found.fileno()) == [(0, 1000, 10)]
        assert userns.root_of(found.fileno()) == (1000, 1000)
    with Fd(os.open("/proc/self", os.O_RDONLY)) as ours:
        assert userns.root_of(ours.fileno()) is None
    assert userns._of_zero(b"         1       1000         10\n") == userns.NOBODY


def test_a_user_namespace_that_cannot_be_looked_at_is_one_line(monkeypatch: Patch, mapped: int) -> None:
    place = _place(mapped)
    monkeypatch.setattr(procfs, "ns_id", refusing(procfs.ns_id, EPERM))
    with pytest.raises(HookError, match=f"^hook: look at the user namespace of pid {mapped}: EPERM"):
        work._guard(place, "")


# -- SELinux ----------------------------------------------------------------------------------------------------------


def test_the_mount_label_is_that_of_the_configuration(tmp_path: Path, monkeypatch: Patch) -> None:
    bundle = _bundle(tmp_path / "b", mountLabel="system_u:object_r:container_file_t:s0:c1,c2")
    real = posix.stat
    assert os.path.exists("/sys/fs/selinux/enforce") or work._mount_label(str(bundle)) == ""
    here = lambda path, **named: real("/" if path == "/sys/fs/selinux/enforce" else path, **named)
    monkeypatch.setattr(posix, "stat", here)
    assert work._mount_label(str(bundle)) == "system_u:object_r:container_file_t:s0:c1,c2"
    assert work._mount_label("") == ""
    assert work._mount_label(str(tmp_path / "none")) == ""


# -- the root, and the plan -------------------------------------------------------------------------------------------


def test_a_root_that_cannot_be_looked_at_is_one_line(tmp_path: Path, monkeypatch: Patch) -> None:
    job = _job(tmp_path / "root")
    monkeypatch.setattr(HostMounts, "protect", refusing(HostMounts.protect, EIO))
    with pytest.raises(HookError, match=f"^hook: look at the container's root {tmp_path}/root: EIO"):
        job.run()


def _plan_with(error: Exception) -> Callable[..., list[Operation]]:
    def plan(prepared: object, container: object) -> list[Operation]:
        raise error

    return plan


@pytest.mark.parametrize(
    ("error", "wanted"),
    [
        (OSError(EIO, "x", b"/f"), "fake: plan /f: EIO"),
        (OSError(EIO, "x"), "fake: plan: EIO"),
        (HookError("oh"), "fake: oh"),
        (HookError("fake: oh"), "fake: oh"),
    ],
    ids=repr,
)
def test_a_plan_that_fails_names_its_hook_once(tmp_path: Path, error: Exception, wanted: str) -> None:
    job = _job(tmp_path / "root", [("fake", _plan_with(error), None)])
    with pytest.raises(HookError) as caught:
        job.run()
    assert caught.value.message == wanted


def test_rules_that_no_hook_of_the_run_may_ask_for_are_an_error(tmp_path: Path) -> None:
    rules = [AllowDevices([DeviceRule("c", 195, 0)])]
    job = _job(tmp_path / "root", [("fake", lambda prepared, container: rules, None)])
    with pytest.raises(HookError, match=r"^device rules: internal error: no hook of this run"):
        job.run()


def test_whether_a_root_may_wait_is_not_known_of_one_that_is_none(monkeypatch: Patch) -> None:
    assert work._may_wait("/a\0b") is False
    monkeypatch.setattr(work.mountinfo, "may_wait", refusing(lambda path: True, ENOENT))
    assert work._may_wait("/x") is False


def test_steps_that_a_prepared_object_has_take_its_place() -> None:
    more = SimpleNamespace(steps=lambda state, place: [("one", None, None), ("two", None, None)])
    none = SimpleNamespace(steps=lambda state, place: [])
    plain: Any = ("plain", None, None)
    found = work._settled([plain, ("x", None, more), ("y", None, none)], _state(), enter.Place(enter.HOST))  # type: ignore[list-item]
    assert [name for name, _, _ in found] == ["plain", "one", "two"]
    assert work.work_on([("y", None, none)], _state(), "/x", enter.Place(enter.HOST), Settings()) == 0  # type: ignore[list-item]


# -- the worker -------------------------------------------------------------------------------------------------------


def test_no_process_for_a_worker_is_one_line(tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.setattr(posix, "fork", refusing(posix.fork, EAGAIN))
    with pytest.raises(HookError, match=r"^hook: start a worker: EAGAIN"):
        work._in_worker(_job(tmp_path / "root"), False)


@pytest.mark.parametrize(
    ("report", "wanted"),
    [("", "the worker in the container's mount namespace died"), ("x", "died"), ("1\0oh\0", "^oh$"), ("0\0\0", "")],
)
def test_what_a_report_says(monkeypatch: Patch, report: str, wanted: str) -> None:
    monkeypatch.setattr(watchdog, "stop", refusing(lambda: None, EPERM))
    if not wanted:
        assert work._end(report) == 0
        return
    with pytest.raises(HookError, match=wanted):
        work._end(report)


def _reported(monkeypatch: Patch, job: Any, parent: int | None = None) -> tuple[int, str]:
    """(exit status, report) of a worker process with this job."""
    read, write = os.pipe()
    us, pid = os.getpid(), os.fork()
    if pid == 0:
        monkeypatch.setattr(process, "finish", os._exit)
        monkeypatch.setattr(worker, "detach", lambda outputs: None)
        try:
            work._worker(job, [], write, us if parent is None else parent, None)
        finally:
            os._exit(99)
    os.close(write)
    with os.fdopen(read, "rb") as stream:
        said = stream.read().decode()
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), said


class _Runs:
    """A job that ends in one way."""

    def __init__(self, how: BaseException | int) -> None:
        self.how = how
        self.settings = Settings()
        self.place = enter.Place(enter.INSIDE)

    def run(self) -> int:
        if isinstance(self.how, int):
            return self.how
        raise self.how


@pytest.mark.parametrize(
    ("how", "wanted"),
    [
        (0, "0\0\0"),
        (HookError("oh", "hint"), f"{FAILED}\0oh\0hint"),
        (OSError(EROFS, "x", b"/f"), f"{FAILED}\0hook /f: EROFS\0the file system is mounted read-only"),
        (MemoryError(), f"{FAILED}\0hook: ENOMEM\0out of memory"),
        (KeyboardInterrupt("x"), f"{FAILED}\0hook: internal error: KeyboardInterrupt: x\0please report it"),
    ],
    ids=repr,
)
def test_whatever_becomes_of_a_worker_is_reported(monkeypatch: Patch, how: Any, wanted: str) -> None:
    status, said = _reported(monkeypatch, _Runs(how))
    assert status == 0
    assert said.startswith(wanted)


def test_a_worker_whose_parent_is_gone_does_nothing(monkeypatch: Patch) -> None:
    assert _reported(monkeypatch, _Runs(0), parent=1)[0] == FAILED


@pytest.mark.parametrize(("failures", "said"), [(0, b"x"), (2, b"x"), (3, b"")])
def test_a_report_is_tried_more_than_once(monkeypatch: Patch, failures: int, said: bytes) -> None:
    read, write = os.pipe()
    later = nth(failures + 1)
    monkeypatch.setattr(posix, "write", refusing(posix.write, EAGAIN, lambda *args: not later()))
    work._report(write, b"x")
    monkeypatch.undo()
    os.close(write)
    assert os.read(read, 10) == said


# -- operations -------------------------------------------------------------------------------------------------------


def test_an_operation_says_what_it_does() -> None:
    bare = Operation()
    for call in (bare.describe, lambda: bare.execute(Transaction())):
        with pytest.raises(NotImplementedError):
            call()
    assert bare.preview(None)  # type: ignore[arg-type]
    bare.undo()
    many = AllowDevices([DeviceRule("c", 195, n) for n in range(20)])
    assert many.describe().startswith("allow c 195:0 rw, ")
    assert many.describe().endswith(" more")


def test_a_directory_that_must_not_be_changed_is_passed_by(tmp_path: Path, monkeypatch: Patch) -> None:
    def check(self: object) -> None:
        raise HookError("the host's")

    directory = Rootfs.open(str(tmp_path)).dir(b"")
    monkeypatch.setattr(type(directory), "check", check)
    transaction = Transaction()
    transaction.pass_by(directory)
    with pytest.raises(HookError, match="the host's"):
        transaction.visit(directory)


def test_a_staging_directory_that_stays_is_a_warning(tmp_path: Path, monkeypatch: Patch) -> None:
    lines: list[str] = []
    monkeypatch.setattr(log, "_sinks", [(log.WARNING, lines.append)])
    transaction = Transaction()
    staging = transaction.staging(Rootfs.open(str(tmp_path)).dir(b""))
    monkeypatch.setattr(type(staging), "close", lambda self, undone=False: _read_only())
    transaction.commit()
    assert "remove the staging directory in " in lines[0]
    assert "EROFS; the next run removes it" in lines[0]


def _read_only() -> None:
    raise OSError(EROFS, os.strerror(EROFS))
