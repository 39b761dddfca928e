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
_MISSING = "as long as it is not there no container with these devices starts"
_NAME_IT = "name the program with --nvidia-cdi-hook-path"


def resolve(given: str, warn: Callable[[str], None], environ: Mapping[str, str] = os.environ) -> str:
    """As the reference does it: an absolute path as it is; a name, `nvidia-cdi-hook` if none is given, in $PATH and the
    usual directories; where it is not found, the path where packages have it. What would keep it from running, or let
    others say what runs, is told by `warn` and changes nothing: it may be the path of another root."""
    path = given if given.startswith("/") else _found(given or CDI_HOOK, environ)
    if path:
        try:
            entries.check_program(path, _MISSING)
        except HookError as e:
            warn(e.line())
        return path
    name = given or CDI_HOOK
    default = f"{_DEFAULT}/{CTK if os.path.basename(name) == CTK else CDI_HOOK}"
    warn(f"Failed to locate {printable(name)}: no such program in PATH; the hooks will call {default}")
    return default


def own(given: str, environ: Mapping[str, str] = os.environ) -> str:
    """For hooks that only our program knows: the path or name that is given, looked for as `resolve` does, or the
    program that was installed with this one. Raises HookError where it is not there, or others can change it."""
    if not given:
        try:
            return entries.find_program("")
        except HookError as e:
            raise HookError(e.message, _NAME_IT) from None
    path = given if given.startswith("/") else _found(given, environ)
    if not path:
        raise HookError(f"find {printable(given)}: no such program in PATH", _NAME_IT)
    entries.check_program(path, _NAME_IT)
    return path


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
