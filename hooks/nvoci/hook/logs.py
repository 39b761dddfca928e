"""Where log lines go beside stderr, which some runtimes drop: what hook.json and config.toml name.

Performance contract: at most starts nothing is named, and then nothing is loaded.
"""

from __future__ import annotations

import posix
from errno import EACCES, EINVAL, ENOENT

from nvoci import log
from nvoci.errors import HookError, hook_error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nvoci.hook.settings import Settings

_MODE = 0o640  # what containers are called is not for everybody
_HINTS = {
    ENOENT: "its directory must be there",
    # protected_regular and protected_symlinks of proc_sys_fs(5) see to it in directories such as /tmp.
    EACCES: "it is another's, or the security module forbids it: name another place",
}


def open_logs(settings: Settings) -> None:
    """Those of the settings; one that cannot be opened is a warning."""
    level = getattr(log, settings.log_level.upper())
    if settings.log_file:
        add_file(settings.log_file, level)
    if settings.log_syslog:
        from nvoci.linux import syslog

        syslog.connect()
        log.add_sink(level, syslog.write)


def add_file(path: str, level: int) -> None:
    """Lines of at least `level` go to this file as well."""
    from nvoci.linux import logfile

    try:
        log.add_sink(level, log.file_sink(logfile.open_log(path, _MODE)))
    except HookError as e:
        log.warning(e.line())
    except (OSError, ValueError) as e:
        error = e if isinstance(e, OSError) else OSError(EINVAL, str(e))
        log.warning(hook_error("open log", path, error, _hint(error)).line())


def _hint(error: OSError) -> str:
    """Why it is refused, where that was not for the kernel to say."""
    number = error.errno or 0
    if error.strerror in ("", None, posix.strerror(number)):
        return _HINTS.get(number, "")
    return f"{error.strerror}: name another place"
