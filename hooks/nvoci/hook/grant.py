"""Give the device rules that the operations of a run asked for: last of all, and as one more operation of the run.

A worker in the container's mount namespace cannot do it, since the host's cgroups are seen by its parent only: it sends
the rules over the pipe of its report and waits for an answer. The parent adds them, and takes them away again unless
the worker then reports that all is done; so neither can hold what the other has undone. If one of them dies, the other
sees the end of its pipe, and both have their deadlines.

Loaded only where a hook's module says `DEVICES = True`; what finds and changes cgroups is loaded by who does that: the
parent loads it, and looks for the container's cgroup, while the worker works.
"""

from __future__ import annotations

import posix
import sys

from nvoci import log
from nvoci.errors import HookError, errno_name
from nvoci.hook import enter, process, watchdog
from nvoci.hook.container import HOST, INSIDE
from nvoci.hook.operation import Operation, Transaction
from nvoci.linux.devicerule import DeviceRule
from nvoci.linux.fd import Fd, read_at_most, write_all

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from nvoci.linux.cgroup import DeviceCgroup

_CGROUP = "nvoci.linux.cgroup"
# A request is REQUEST, the rules separated by commas, END; a report begins with a digit.
_REQUEST, _END = b"+", b"\n"
_REQUEST_MAX = 60_000  # 3,000 devices and more; a report is read up to 65,536 bytes
# The answer is GIVEN, or the error's message and hint; nothing at all from a parent that died.
_GIVEN = b"+"
_ANSWER_MAX = 1 << 16
_SHOWN = 6


class _Give(Operation):
    """What both ways have in common."""

    __slots__ = ("rules",)

    def __init__(self, rules: Sequence[DeviceRule]) -> None:
        self.rules = rules

    def describe(self) -> str:
        more = f" and {len(self.rules) - _SHOWN} more" if len(self.rules) > _SHOWN else ""
        return f"allow {', '.join(map(str, self.rules[:_SHOWN]))}{more}"


def load() -> None:
    """The modules that find and change cgroups; before imports are sealed."""
    __import__("nvoci.linux.cgroup")


def _cgroup_of(process: int | None = None, runtime: int | None = None, *, certain: bool = True) -> DeviceCgroup:
    found: DeviceCgroup = sys.modules[_CGROUP].DeviceCgroup.of(process, runtime, certain=certain)
    return found


class GiveHere(_Give):
    """By this process, which is in the container's cgroup itself. Inside a container that is not the caller's own, it
    must not be the runtime's cgroup as well."""

    __slots__ = ("_cgroup", "_place")

    def __init__(self, rules: Sequence[DeviceRule], place: str) -> None:
        super().__init__(rules)
        self._cgroup: DeviceCgroup | None = None
        self._place = place
        if place == HOST:
            raise HookError(f"{self.describe()}: there is no container to allow it to",
                            "call the hook with the state of a created container")  # fmt: skip

    def execute(self, transaction: Transaction) -> None:
        if self._place != INSIDE:
            self._cgroup = _cgroup_of()
            self._cgroup.allow(self.rules)
            return
        try:
            runtime = enter.runtime()
        except HookError as e:
            self._allow_nothing_new(e)
            return
        with runtime:
            self._cgroup = _cgroup_of(runtime=runtime.fileno())
        self._cgroup.allow(self.rules)

    def _allow_nothing_new(self, unseen: HookError) -> None:
        """Where the runtime is not seen, in a user namespace say, only what is allowed already is no error."""
        self._cgroup = _cgroup_of(certain=False)
        try:
            self._cgroup.allow(self.rules)
        except HookError:
            raise HookError(f"{self.describe()}: whether the container has a cgroup of its own is not seen from here: "
                            f"{unseen.message}", "call the hook as createRuntime or prestart") from None  # fmt: skip

    def undo(self) -> None:
        if self._cgroup is not None:
            self._cgroup.undo()


class _Ask(_Give):
    """By the parent. It also undoes it, when this process reports anything but success."""

    __slots__ = ("_answer", "_report")

    def __init__(self, rules: Sequence[DeviceRule], report: int, answer: Fd) -> None:
        super().__init__(rules)
        self._report = report
        self._answer = answer

    def execute(self, transaction: Transaction) -> None:
        text = ",".join(map(str, self.rules))
        if len(text) > _REQUEST_MAX:
            raise HookError(f"{self.describe()}: too many devices for one container", "give it fewer")
        try:
            write_all(self._report, _REQUEST + text.encode() + _END)
            # All that has been changed is on record, so the wait may be broken off.
            watchdog.may_raise(True)
            answer = read_at_most(self._answer.fileno(), _ANSWER_MAX)
        except OSError as e:
            raise HookError(f"{self.describe()}: ask the parent: {errno_name(e.errno or 0)}", "run again") from None
        finally:
            watchdog.may_raise(False)
        if answer == _GIVEN:
            return
        message, _, hint = answer.decode("utf-8", "replace").partition("\0")
        raise HookError(message or f"{self.describe()}: the parent is gone", hint)


class Giver:
    """The parent's side. Made before the fork; the worker uses `in_worker()` and `ask()`, the parent the rest."""

    __slots__ = ("_answer", "_cgroup", "_failure", "_process", "_question", "_report")

    def __init__(self, process: int, report: int) -> None:
        """process: /proc/PID of the container's process; report: the end of the report's pipe that is written to."""
        answer, question = posix.pipe2(posix.O_CLOEXEC)
        self._process = process
        self._report = report
        self._answer = Fd(answer)  # the worker reads here
        self._question = Fd(question)  # and the parent writes
        self._cgroup: DeviceCgroup | None = None
        self._failure: HookError | None = None

    def in_worker(self) -> None:
        """After the fork, in the child."""
        self._question.close()

    def ask(self, rules: Sequence[DeviceRule]) -> Operation:
        """The operation that has the parent do it."""
        return _Ask(rules, self._report, self._answer)

    def in_parent(self) -> None:
        """After the fork, in the parent: load what is needed, seal imports, and find the cgroup. An error waits until
        a rule is asked for: the worker has begun, and must be heard."""
        try:
            self._answer.close()
            load()
            process.seal_imports()  # the cgroup's files are the kernel's, but the container chose its name
            self._cgroup = _cgroup_of(self._process)
        except HookError as e:
            self._failure = e
        except Exception as e:  # noqa: BLE001
            self._failure = HookError(f"device rules: load {_CGROUP}: {type(e).__name__}: {e}", "reinstall nvoci")
        finally:
            process.seal_imports()

    def feed(self, data: bytes) -> bytes:
        """What was read from the pipe so far; a whole request in it is answered. Returns what belongs to the report."""
        if not data.startswith(_REQUEST) or _END not in data:
            return data
        request, _, rest = data[1:].partition(_END)
        try:
            rules = [DeviceRule.parse(text) for text in request.decode("ascii", "replace").split(",")]
            if self._cgroup is None:
                raise self._failure or HookError("device rules: internal error: asked for twice", "please report it")
            self._cgroup.allow(rules)
            watchdog.check()
            answer = _GIVEN
        except HookError as e:
            self.undo()
            answer = f"{e.message}\0{e.hint}".encode("utf-8", "backslashreplace")
        try:
            write_all(self._question.fileno(), answer)
        except OSError:
            pass  # the worker is gone; the end of the report says so, and then it is undone
        self._question.close()
        return rest

    def undo(self) -> None:
        """Take the rules away; what cannot be taken away is logged."""
        cgroup, self._cgroup = self._cgroup, None
        if cgroup is not None:
            try:
                cgroup.undo()
            except HookError as e:
                log.error(f"undo device rules: {e.line()}")
