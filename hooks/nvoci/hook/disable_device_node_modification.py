"""disable-device-node-modification: the container reads `ModifyDeviceFiles: 0` in /proc/driver/nvidia/params.

With 1 the driver's user space makes and changes device nodes; in a container that is the runtime's matter. A file
with the changed text is mounted over the container's params. The mount is read-only (the reference's is not, so that
container root can write the old value back).
"""

from __future__ import annotations

from nvoci.errors import hook_error
from nvoci.hook.mounts import GeneratedMount
from nvoci.linux import procfs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from nvoci.hook.container import Container
    from nvoci.hook.operation import Operation
    from nvoci.hook.settings import Settings

PARAMS = b"driver/nvidia/params"
_LIMIT = 1 << 20
_ON, _OFF = b"ModifyDeviceFiles: 1", b"ModifyDeviceFiles: 0"


def prepare(options: dict[str, Any], settings: Settings) -> bytes | None:
    """The changed params; None where the host has none, or they need no change. Raises HookError."""
    try:
        params = procfs.read(PARAMS, _LIMIT)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as e:
        raise hook_error("read", b"/proc/" + PARAMS, e) from None
    return changed(params)


def changed(params: bytes) -> bytes | None:
    """The text with modification turned off, each line ended by a newline; None where it is off already, or where
    nothing says that it is on. A value other than 0 and 1 counts as neither."""
    lines = params.split(b"\n")
    if not lines[-1]:
        lines.pop()
    lines = [line[:-1] if line.endswith(b"\r") else line for line in lines]
    if _OFF in lines or _ON not in lines:
        return None
    return b"".join((_OFF if line == _ON else line) + b"\n" for line in lines)


def plan(prepared: bytes, container: Container) -> list[Operation]:
    """One mount. The container's procfs is the host's driver's too, so a missing target there is an error."""
    path = b"proc/" + PARAMS
    return [GeneratedMount(container, path, prepared, 0o444, "generated driver params", in_proc=True)]
