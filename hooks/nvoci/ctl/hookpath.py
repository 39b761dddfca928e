"""Which program the hooks of a generated specification call."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from nvoci.ctl import entries
from nvoci.discover.node import PATH
from nvoci.errors import HookError, printable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

CTK, CDI_HOOK = "nvidia-ctk", "nvidia-cdi-hook"
_DEFAULT = "/usr/bin"


def resolve(given: str, warn: Callable[[str], None], environ: Mapping[str, str] = os.environ) -> str:
    """As the reference does it: an absolute path as it is; a name, `nvidia-cdi-hook` if none is given, in $PATH and the
    usual directories. Where it is not found, told by `warn`, the path where packages have it."""
    if given.startswith("/"):
        return given
    name = given or CDI_HOOK
    path = _found(name, environ)
    if path:
        return path
    default = f"{_DEFAULT}/{CTK if os.path.basename(name) == CTK else CDI_HOOK}"
    warn(f"Failed to locate {printable(name)}: no such program in PATH; the hooks will call {default}")
    return default


def own(given: str, warn: Callable[[str], None]) -> str:
    """For hooks that only our program knows: `given` as in `resolve`, or the program that was installed with this one.
    Raises HookError."""
    if given:
        return resolve(given, warn)
    try:
        return entries.find_program("")
    except HookError as e:
        raise HookError(e.message, "name the program with --nvidia-cdi-hook-path") from None


def _found(name: str, environ: Mapping[str, str]) -> str:
    if "/" in name:
        return os.path.abspath(name) if _is_program(name) else ""
    directories = [each for each in environ.get("PATH", "").split(":") if each.startswith("/")]
    for each in dict.fromkeys([*directories, *PATH]):
        path = os.path.join(each, name)
        if _is_program(path):
            return path
    return ""


def _is_program(path: str) -> bool:
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return False
    return stat.S_ISREG(mode) and mode & 0o111 != 0
