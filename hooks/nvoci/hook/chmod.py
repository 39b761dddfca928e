"""chmod: set the mode of paths, resolved in the container's root.

The reference follows links of the image to the host here; and it drops setuid, setgid and sticky bits and reports
only the last path's error. Here a path is resolved in the root, all twelve bits count, and the first error stops.
"""

from __future__ import annotations

import posix

from nvoci.errors import HookError, printable
from nvoci.hook.operations import Chmod
from nvoci.linux.rootfs import fsencode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from nvoci.hook.container import Container
    from nvoci.hook.operation import Operation
    from nvoci.hook.settings import Settings


class Modes:
    """The paths and the mode they get. `host_dev` is st_dev of the host's /dev."""

    __slots__ = ("host_dev", "mode", "paths")

    def __init__(self, paths: list[bytes], mode: int, host_dev: int) -> None:
        self.paths = paths
        self.mode = mode
        self.host_dev = host_dev


def prepare(options: dict[str, Any], settings: Settings) -> Modes:
    """Check the mode and the paths."""
    text = options["mode"].strip()
    if not text:
        raise HookError("chmod: a non-empty mode must be specified", "give --mode OCTAL")
    if any(c not in "01234567" for c in text) or int(text, 8) > 0o7777:
        raise HookError(f"chmod: failed to parse mode `{printable(text)}` as octal", "0 to 7777")
    paths = options["path"]
    if not all(paths):
        raise HookError("chmod: paths must not be empty", "give --path PATH")
    return Modes([fsencode(p) for p in paths], int(text, 8), posix.stat("/dev").st_dev)


def plan(prepared: Modes, container: Container) -> list[Operation]:
    """One operation for each path."""
    return [Chmod(container.rootfs, path, prepared.mode, prepared.host_dev) for path in prepared.paths]
