"""What the commands for people need of config.toml: the driver root.

The file is the first of --config, NVIDIA_CTK_CONFIG_FILE_PATH, $XDG_CONFIG_HOME/nvidia-container-runtime/config.toml
and /etc/nvidia-container-runtime/config.toml that is named; where there is none the defaults hold.
It says where root finds the driver, so one that others can write is refused.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from nvoci.ctl import trust
from nvoci.errors import HookError, printable
from nvoci.jsonfile import read_file

if TYPE_CHECKING:
    from collections.abc import Mapping

VARIABLE = "NVIDIA_CTK_CONFIG_FILE_PATH"
LOOKUP = "$NVIDIA_CTK_CONFIG_FILE_PATH, or nvidia-container-runtime/config.toml in $XDG_CONFIG_HOME or /etc"
MAX_CONFIG = 64 << 10
_MAX_DOTS = 100  # a key `a.a.a…` of 200 KB takes both parsers all memory there is
_TOP = "/etc"
_NAME = "nvidia-container-runtime/config.toml"
_STAGE = "read config"
_PARSER = "tomllib" if sys.version_info >= (3, 11) else "tomlkit"  # 9 and 60 ms


def find(given: str = "", environ: Mapping[str, str] = os.environ) -> str:
    """The path of the file, whether there is one or not. given: by --config, "" if it was not."""
    return given or environ.get(VARIABLE) or os.path.join(environ.get("XDG_CONFIG_HOME") or _TOP, _NAME)


def driver_root(path: str) -> str:
    """The key nvidia-container-cli.root; "" where it or the file is not there. Raises HookError."""
    return text(path, "nvidia-container-cli", "root")


def text(path: str, table: str, key: str) -> str:
    """A string of the file, "" where it is not there. Raises HookError for a file that cannot be read, that others
    can write, or that is no TOML, and for a value that is no string."""
    if not os.path.lexists(path):
        return ""
    found = _load(path).get(table, {})
    value = found.get(key, "") if isinstance(found, dict) else None
    if not isinstance(value, str) or "\0" in value:
        raise HookError(f"{_STAGE} {printable(path)}: `{table}.{key}` is not a string", "correct it, or leave it out")
    return str(value)


def _load(path: str) -> dict[str, Any]:
    data = read_file(path, MAX_CONFIG, _STAGE, refuse_mode=trust.OTHERS, owners=trust.owners())
    if any(line.count(b".") > _MAX_DOTS for line in data.splitlines()):
        raise HookError(f"{_STAGE} {printable(path)}: a line has more than {_MAX_DOTS} dots", "correct it")
    try:
        loaded: dict[str, Any] = import_module(_PARSER).loads(data.decode())
    except ImportError:
        raise HookError(f"{_STAGE} {printable(path)}: no {_PARSER} to read it", f"install {_PARSER}") from None
    except RecursionError:
        raise HookError(f"{_STAGE} {printable(path)}: nested too deeply", "correct it") from None
    except ValueError as e:  # what both parsers raise, and UnicodeDecodeError
        raise HookError(f"{_STAGE} {printable(path)}: not valid TOML: {printable(e)}", "correct it") from None
    return loaded
