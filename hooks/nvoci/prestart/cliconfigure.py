"""`nvidia-container-cli configure`: the plan of the prestart hook, for a process that the command line names, or for
whoever calls.

    --pid=N   a process of a container that exists: its mount namespace is entered, its cgroup is told of the devices
    none      (enroot, LXC, scripts) whatever calls has made its own namespaces, and has ROOTFS in them; the process
              that calls stands for the container. Also inside of a user namespace, where root is root of that only.

Steps carry the classes of errors as their names, so that an operation which fails says `mount error: …`.
"""

from __future__ import annotations

import posix

from nvoci import log
from nvoci.errors import HookError, hook_error, printable
from nvoci.hook import enter, logs, settings, work
from nvoci.linux import procfs
from nvoci.oci.state import State
from nvoci.prestart import clinode, plan
from nvoci.prestart.clierror import COMPAT, CONTAINER, DETECTION, LDCACHE, MOUNT, classed, mounted

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from nvoci.hook.container import Container
    from nvoci.hook.enter import Place
    from nvoci.hook.operation import Operation
    from nvoci.hook.work import Step
    from nvoci.prestart.clioptions import Words
    from nvoci.prestart.plan import Prepared
    from nvoci.prestart.wanted import Wanted

DEVICES = True  # the operations may ask for device rules
_CLASSES = {"update-ldcache": LDCACHE, "enable-cuda-compat": COMPAT}
_SYS_ADMIN = 1 << 21  # linux/capability.h


def run(words: Words, wanted: Wanted) -> int:
    """Returns the exit status; raises HookError, with a class."""
    try:
        current = settings.load()
        logs.open_logs(current)
        place = _place(words.pid)
    except HookError as e:
        raise HookError(f"{CONTAINER}: {e.message.replace('read state: ', '', 1)}", e.hint) from None
    state = State("", place.pid, "", words.rootfs, {})
    try:
        prepared = clinode.use(wanted, lambda found: plan.prepare(found, wanted, current))
    except HookError as e:
        raise classed(e, DETECTION) from None
    try:
        return work.work_on([(MOUNT, _plan, _Steps(prepared))], state, words.rootfs, place, current)
    except HookError as e:
        raise mounted(e) from None


def check_capable() -> None:
    """To be called first. Raises HookError for who may not mount."""
    for line in procfs.read(b"self/status").split(b"\n"):
        if line.startswith(b"CapEff:") and not int(line.split()[1], 16) & _SYS_ADMIN:
            raise HookError("permission error: capability change failed: operation not permitted",
                            f"uid {posix.geteuid()} without CAP_SYS_ADMIN: run it as root, of a user namespace at "
                            "least")  # fmt: skip


def _place(pid: int) -> Place:
    """Raises HookError."""
    try:
        return enter.named(pid) if pid else enter.parent()
    except OSError as e:
        raise hook_error("look at", "/proc/self", e) from None


class _Steps:
    """Those of the plan, each under the class that its errors have."""

    __slots__ = ("_prepared",)

    def __init__(self, prepared: Prepared) -> None:
        self._prepared = prepared

    def steps(self, state: State, place: Place) -> list[Step]:
        """For `nvoci.hook.work`."""
        made = self._prepared.steps(state, place)
        return [(_CLASSES.get(name, MOUNT), _plan, (function, own)) for name, function, own in made]


def _plan(prepared: Any, container: Container) -> list[Operation]:
    """The step's own plan, told to the log."""
    function, own = prepared
    operations: list[Operation] = function(own, container)
    for operation in operations:
        log.info(printable(operation.describe()))
    return operations
