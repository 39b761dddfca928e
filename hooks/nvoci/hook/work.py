"""Carry out the prepared hooks on one container: enter it, plan and execute each in order, commit or undo."""

from __future__ import annotations

import posix
import sys

from nvoci import log
from nvoci.errors import FAILED, OK, HookError, hook_error, printable
from nvoci.hook import enter, process, watchdog, worker
from nvoci.hook.container import Container
from nvoci.hook.hostmounts import HostMounts
from nvoci.hook.operation import Transaction
from nvoci.linux import abi, mountinfo, procfs, userns
from nvoci.linux.fd import Fd, close_quietly, free_reserve, hold_reserve
from nvoci.linux.rootfs import Rootfs, fsencode
from nvoci.linux.syscalls import prctl
from nvoci.oci import state as oci_state

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from nvoci.hook.grant import Giver
    from nvoci.hook.operation import Operation
    from nvoci.hook.settings import Settings
    from nvoci.linux.devicerule import DeviceRule
    from nvoci.oci.state import State

    # One hook that has something to do: its name, its module's plan(), what its prepare() returned.
    Step = tuple[str, Callable[[Any, Container], list[Operation]], object]
    Give = Callable[[list[DeviceRule]], Operation]

_SIGKILL = 9
_REPORTS = 3  # tries
_OUT_OF_MEMORY = f"{FAILED}\0hook: ENOMEM\0out of memory: the image is too large, or the limit too small"


def work(steps: list[Step], container_spec: str, settings: Settings, dry_run: bool) -> int:
    """Read the state, then do it. Returns the exit status; raises HookError."""
    state = oci_state.read(container_spec)
    path = oci_state.rootfs_path(state)
    procfs.handle()
    return work_on(steps, state, path, enter.locate(state.pid), settings, dry_run)


def work_on(
    steps: list[Step], state: State, path: str, place: enter.Place, settings: Settings, dry_run: bool = False
) -> int:
    """Do it, for who knows the container already. path: of its root, on the host. As `work`."""
    if dry_run:
        __import__("nvoci.hook.preview")  # before imports are sealed; 0.1 ms that a start does not need
    apart = place.process is not None or _may_wait(path)
    # Before the fork, so that a signal finds a handler at any time. A worker's own deadline comes first; this one is
    # for a worker that cannot even be interrupted, and for what is looked up here.
    watchdog.start(settings.timeout + watchdog.GRACE + 1 if apart else settings.timeout)
    procfs.set_patience(settings.timeout / 4)
    steps = _settled(steps, state, place)
    if not steps:
        watchdog.stop()
        return OK
    job = _Job(steps, state, path, place, settings, dry_run)
    devices = any(getattr(sys.modules[plan.__module__], "DEVICES", None) is True for _, plan, _ in steps)
    if devices:
        __import__("nvoci.hook.grant")
    if place.process is None:
        if devices:
            sys.modules["nvoci.hook.grant"].load()
            job.give = lambda rules: sys.modules["nvoci.hook.grant"].GiveHere(rules, place.where)
        process.seal_imports()  # else by each of the two processes, after the fork
    try:
        hold_reserve(procfs.handle())
        return _in_worker(job, devices) if apart else job.run()
    finally:
        free_reserve()


def _may_wait(path: str) -> bool:
    """Whether the work has to be a process of its own even here: what waits for a file system whose daemon or server
    does not answer may not be ended at all, and who called us would wait as long."""
    try:
        return mountinfo.may_wait(fsencode(path))
    except (OSError, ValueError):
        return False  # what is wrong with it is said where it is opened


def _settled(steps: list[Step], state: State, place: enter.Place) -> list[Step]:
    """A prepared object that has a method `steps` is replaced by what that returns, now that the container is known
    and the host's files are still in reach."""
    found: list[Step] = []
    try:
        watchdog.may_raise(True)
        for step in steps:
            more = getattr(step[2], "steps", None)
            found += [step] if more is None else more(state, place)
    finally:
        watchdog.may_raise(False)
    return found


class _Job:
    """What has to be done in the container's mount namespace."""

    __slots__ = ("dry_run", "give", "guard", "mount_label", "path", "place", "settings", "state", "steps")

    def __init__(
        self, steps: list[Step], state: State, path: str, place: enter.Place, settings: Settings, dry_run: bool
    ) -> None:
        self.steps = steps
        self.state = state
        self.path = path
        self.place = place
        self.settings = settings
        self.dry_run = dry_run
        self.guard = _guard(place, state.bundle)
        self.mount_label = _mount_label(state.bundle)
        self.give: Give | None = None  # makes the operation that gives device rules, where a hook may ask for them

    def run(self) -> int:
        """In the right namespace: the root is opened here, after entering, so that it can be mounted on."""
        rootfs = Rootfs.open(self.path)
        try:
            self.guard.protect(rootfs)
        except OSError as e:
            raise hook_error("hook: look at the container's root", e.filename or self.path, e) from None
        container = Container(rootfs, self.place.where, self.state, self.settings, self.mount_label)
        if self.dry_run:
            return self._preview(container)
        transaction = Transaction(self.settings.strict)
        try:
            for step in self.steps:
                for operation in self._plan(step, container):
                    transaction.perform(step[0], operation)
            if transaction.rules:
                self._give(transaction)
            watchdog.check()
            self.place.check_alive()
            watchdog.stop()  # in here, since until it is done the handler may raise
        except BaseException:
            watchdog.stop()
            free_reserve()
            transaction.undo()
            raise
        free_reserve()
        transaction.commit()
        return OK

    def _give(self, transaction: Transaction) -> None:
        if self.give is None:
            raise HookError("device rules: internal error: no hook of this run may ask for them", "please report it")
        transaction.perform("device rules", self.give(list(transaction.rules)))

    def _plan(self, step: Step, container: Container) -> list[Operation]:
        name, plan, prepared = step
        try:
            watchdog.may_raise(True)
            return plan(prepared, container)
        except OSError as e:
            raise hook_error(f"{name}: plan", e.filename or "", e) from None
        except HookError as e:
            if e.message.startswith(name):
                raise
            raise HookError(f"{name}: {e.message}", e.hint) from None
        finally:
            watchdog.may_raise(False)

    def _preview(self, container: Container) -> int:
        view = container.rootfs = sys.modules["nvoci.hook.preview"].Preview(container.rootfs)
        for step in self.steps:
            for operation in self._plan(step, container):
                try:
                    needed = operation.preview(view)
                except OSError as e:
                    raise hook_error(f"{step[0]}:", operation.describe(), e) from None
                if needed:
                    process.output(f"{step[0]}: {operation.describe()}\n")
        return OK


def _guard(place: enter.Place, bundle: str) -> HostMounts:
    """Somebody who names a process may have made its user namespace, and mounted in it what they like. So may whoever
    has by now the pid that a runtime named: its namespace must be the one that config.json says. Raises HookError."""
    if place.process is None:
        return HostMounts()
    try:
        owner = userns.root_of(place.process.fileno())
        known = owner is None or (not place.named and _is_as_configured(place, place.process, bundle))
    except OSError as e:
        raise hook_error("hook: look at the user namespace of", f"pid {place.pid}", e) from None
    return HostMounts(owner, own_root=known)


def _is_as_configured(place: enter.Place, process: Fd, bundle: str) -> bool:
    """Whether its user namespace, which is not ours, is that of config.json. False where that cannot be told. Raises
    OSError, HookError."""
    from nvoci.oci import config

    try:
        expected = config.user_namespace(config.load(bundle)) if bundle else ("", [])
        joined = posix.stat(expected[0]) if expected and expected[0] else None
    except (HookError, OSError) as e:
        log.info("the container's user namespace is not known", reason=printable(e))
        return False
    if expected == ("", []):
        return False
    if expected is None:
        same = False
    elif joined is not None:
        same = (joined.st_dev, joined.st_ino) == procfs.ns_id(b"ns/user", process.fileno())
    else:
        same = expected[1] == userns.uid_map(process.fileno())
    if not same:
        raise HookError(f"read state: pid {place.pid} is in another user namespace than config.json says",
                        "the container's process is gone and its pid was reused")  # fmt: skip
    return True


def _mount_label(bundle: str) -> str:
    """The SELinux context for what is mounted into the container; "" where SELinux is off or none is configured."""
    try:
        posix.stat("/sys/fs/selinux/enforce")
    except OSError:
        return ""
    from nvoci.oci import config

    try:
        return config.mount_label(config.load(bundle)) if bundle else ""
    except HookError as e:
        log.info("no mount label", reason=e.line())
        return ""


def _in_worker(job: _Job, devices: bool) -> int:
    """Fork, let the child enter the namespace and work, and report what it says. The parent never enters."""
    read_end, write_end = posix.pipe2(posix.O_CLOEXEC)
    outputs = [worker.Output(fd) for fd in ((1, 2) if job.dry_run else (2,))]
    parent = posix.getpid()
    giver: Giver | None = None
    if devices and job.place.process is not None:
        giver = sys.modules["nvoci.hook.grant"].Giver(job.place.process.fileno(), write_end)
    try:
        pid = posix.fork()
    except OSError as e:
        hint = "raise the limit of processes: of the container's cgroup, or of the runtime's user"
        raise hook_error("hook: start a worker", "", e, hint) from None
    if pid == 0:
        process.seal_imports()
        close_quietly(read_end)
        _worker(job, outputs, write_end, parent, giver)
    close_quietly(write_end)
    for output in outputs:
        output.in_parent()
    seconds = job.settings.timeout
    if giver is None:
        process.seal_imports()
        return _end(worker.collect(pid, read_end, outputs, seconds, None))
    try:
        giver.in_parent()
        return _end(worker.collect(pid, read_end, outputs, seconds, giver.feed))
    except BaseException:
        giver.undo()
        raise


def _end(report: str) -> int:
    """The exit status that the worker reported. Raises the HookError that it reported instead."""
    try:
        watchdog.stop()
    except OSError:
        pass  # there is nothing left to interrupt
    code, _, rest = report.partition("\0")
    message, _, hint = rest.partition("\0")
    if not code.isdigit():
        raise HookError("hook: the worker in the container's mount namespace died", "see the kernel's log; run again")
    if message:
        raise HookError(message, hint)
    return int(code)


def _worker(job: _Job, outputs: list[worker.Output], write_end: int, parent: int, giver: Giver | None) -> None:
    """The forked child: dies with its parent, reports in one write, never returns."""
    report = f"{FAILED}\0hook: internal error\0please report it"
    try:
        prctl(abi.PR_SET_PDEATHSIG, _SIGKILL)
        if posix.getppid() != parent:
            posix._exit(FAILED)
        worker.detach(outputs)
        if giver is not None:
            giver.in_worker()
            job.give = giver.ask
        watchdog.check()  # told to end since the fork
        watchdog.start(job.settings.timeout)
        job.place.enter()
        report = f"{job.run()}\0\0"
    except HookError as e:
        report = f"{FAILED}\0{e.message}\0{e.hint}"
    except OSError as e:
        error = hook_error("hook", e.filename or "", e)
        report = f"{FAILED}\0{error.message}\0{error.hint}"
    except MemoryError:
        report = _OUT_OF_MEMORY
    except BaseException as e:  # noqa: BLE001  # whatever it was, the parent must hear of it
        report = f"{FAILED}\0hook: internal error: {type(e).__name__}: {e}\0please report it"
    finally:
        _report(write_end, report.encode("utf-8", "backslashreplace")[: worker.MESSAGE_MAX])
        process.finish(OK)


def _report(fd: int, report: bytes) -> None:
    """More than once if need be: what is done would be called a failure. A parent that is gone takes us with it."""
    for _ in range(_REPORTS):
        try:
            posix.write(fd, report)
        except OSError:
            continue
        return
