"""Settings of all hooks: /etc/nvoci/hook.json, then flags.

    {"log": {"file": "/var/log/nvoci.log", "syslog": true, "level": "warning"},
     "ldcache-engine": "builtin", "device-nodes": "bind", "strict": false, "timeout": 30}

The file must belong to root and be writable by nobody else, otherwise it is refused: it decides what a root process
does. An unknown key or a wrong type is an error, since a misspelt setting that is ignored is worse.
"""

from __future__ import annotations

import posix

from nvoci.errors import HookError, hook_error, printable
from nvoci.jsonfile import check_trusted, load_object, open_regular
from nvoci.linux.fd import read_at_most

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

PATH = "/etc/nvoci/hook.json"
_STAGE = "read settings"
_LIMIT = 1 << 16
_MAX_TIMEOUT = 600
LEVELS = ("debug", "info", "warning", "error")
BUILTIN, LDCONFIG = ENGINES = ("builtin", "ldconfig")
BIND, MKNOD = NODES = ("bind", "mknod")


class Settings:
    """`timeout` is in seconds. `log_file` is "" where none is configured."""

    __slots__ = ("device_nodes", "ldcache_engine", "log_file", "log_level", "log_syslog", "strict", "timeout")

    def __init__(self) -> None:
        self.log_file = ""
        self.log_syslog = False
        self.log_level = "warning"
        self.ldcache_engine = BUILTIN
        self.device_nodes = BIND
        self.strict = False
        self.timeout = 30.0


def load(path: str = PATH) -> Settings:
    """The settings file, or the defaults where there is none. Raises HookError."""
    settings = Settings()
    try:
        posix.stat(path)
    except FileNotFoundError:
        return settings
    except OSError as e:
        raise hook_error(_STAGE, path, e) from None
    with open_regular(path, _STAGE) as fd:
        check_trusted(fd, path, _STAGE)
        try:
            data = read_at_most(fd.fileno(), _LIMIT)
        except OSError as e:
            raise hook_error(_STAGE, path, e) from None
    apply(settings, load_object(data, _STAGE, path))
    return settings


def apply(settings: Settings, doc: dict[str, Any]) -> None:
    """Check and take over every key of the document. Raises HookError naming the key."""
    log = doc.get("log", {})
    _keys(doc, ("log", "ldcache-engine", "device-nodes", "strict", "timeout"), "")
    _check(isinstance(log, dict), "log", "an object")
    _keys(log, ("file", "syslog", "level"), "log.")
    settings.log_file = log.get("file", "")
    _check(settings.log_file == "" or _absolute(settings.log_file), "log.file", "an absolute path")
    settings.log_syslog = log.get("syslog", False)
    _check(type(settings.log_syslog) is bool, "log.syslog", "true or false")
    settings.log_level = log.get("level", "warning")
    _check(settings.log_level in LEVELS, "log.level", "one of " + ", ".join(LEVELS))
    settings.ldcache_engine = doc.get("ldcache-engine", BUILTIN)
    _check(settings.ldcache_engine in ENGINES, "ldcache-engine", "one of " + ", ".join(ENGINES))
    settings.device_nodes = doc.get("device-nodes", BIND)
    _check(settings.device_nodes in NODES, "device-nodes", "one of " + ", ".join(NODES))
    settings.strict = doc.get("strict", False)
    _check(type(settings.strict) is bool, "strict", "true or false")
    settings.timeout = doc.get("timeout", 30.0)
    _check(type(settings.timeout) in (int, float), "timeout", "a number of seconds")
    _check(0 < settings.timeout <= _MAX_TIMEOUT, "timeout", f"more than 0 and at most {_MAX_TIMEOUT} seconds")


def _absolute(value: object) -> bool:
    return isinstance(value, str) and value.startswith("/") and "\0" not in value


def _keys(doc: dict[str, Any], known: tuple[str, ...], prefix: str) -> None:
    for key in doc:
        if key not in known:
            raise HookError(f"{_STAGE} {PATH}: unknown key `{prefix}{printable(key)}`", "known: " + ", ".join(known))


def _check(good: bool, key: str, what: str) -> None:
    if not good:
        raise HookError(f"{_STAGE} {PATH}: `{key}` is not {what}")
