"""A hook for tests that gives devices: `nvidia-cdi-hook devices --bind /dev/fuse --make /x=/y --allow "c 1:11 rw"`.

As a library: `entry()` writes an entry file with it in the hooks' table. As a module of the hook's process it is loaded
like any other hook's, and imports what a hook may import.
"""

from __future__ import annotations

import posix
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

    from nvoci.hook.container import Container
    from nvoci.hook.operation import Operation
    from nvoci.hook.settings import Settings

DEVICES = True
NAME = "devices"
_ENTRY = """#!{python} -ISB
import sys
sys.path[:0] = [{hooks!r}, {lib!r}]
import devicehook
devicehook.register()
{extra}
from nvoci.hook.main import cdi_hook
cdi_hook()
"""


def register() -> None:
    """Put the hook into the table."""
    from nvoci.hook.table import COMMON, FLAG, HOOKS, LIST, SPEC, Hook, Option

    options = [Option(name, LIST, name) for name in ("bind", "make", "allow")]
    HOOKS[NAME] = Hook(NAME, "devicehook", "Give devices", (*options, Option("no-cgroups", FLAG, ""), SPEC, *COMMON))


def entry(folder: Path, extra: str = "", copied: bool = False) -> Path:
    """An entry file; extra: lines that run before the hook does, to make something fail. copied: from a copy of the
    sources that a user of a user namespace can read."""
    import shutil

    from lib import session

    hooks, lib = str(session.HOOKS), str(session.LIB)
    if copied:
        base = session.new_dir("sources")
        hooks, lib = str(base / "hooks"), str(base / "lib")
        shutil.copytree(session.HOOKS, hooks, ignore=shutil.ignore_patterns("__pycache__"))
        (base / "lib").mkdir()
        shutil.copy(__file__, base / "lib/devicehook.py")
    path = folder / session.unique("device-hook")
    path.write_text(_ENTRY.format(python=session.ENTRY_PYTHON, hooks=hooks, lib=lib, extra=extra))
    path.chmod(0o755)
    return path


def prepare(options: dict[str, Any], settings: Settings) -> dict[str, Any]:
    from nvoci.hook.devices import Source

    root = posix.open("/", posix.O_PATH | posix.O_DIRECTORY)
    for name in ("bind", "make"):
        pairs = [text.encode().partition(b"=") for text in options[name]]
        options[name] = [(Source.open(root, path), target or path) for path, _, target in pairs]
    return options


def plan(prepared: dict[str, Any], container: Container) -> list[Operation]:
    devices, operation = sys.modules["nvoci.hook.devices"], sys.modules["nvoci.hook.operation"]
    rule = sys.modules["nvoci.linux.devicerule"].DeviceRule
    allow = not prepared["no-cgroups"]
    return [
        *(devices.BindNode(container, node, path, allow=allow) for node, path in prepared["bind"]),
        *(devices.MakeNode(container, node, path, allow=allow) for node, path in prepared["make"]),
        *(operation.AllowDevices([rule.parse(text)]) for text in prepared["allow"]),
    ]
