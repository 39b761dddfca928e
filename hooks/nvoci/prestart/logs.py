"""Where log lines go beside stderr, which some runtimes drop: what the settings and config.toml name."""

from __future__ import annotations

import posix

from nvoci import log
from nvoci.errors import hook_error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nvoci.hook.settings import Settings

_FLAGS = posix.O_WRONLY | posix.O_APPEND | posix.O_CREAT | posix.O_NOFOLLOW | posix.O_NONBLOCK | posix.O_CLOEXEC


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
    try:
        log.add_sink(level, log.file_sink(posix.open(path, _FLAGS, 0o640)))
    except OSError as e:
        log.warning(hook_error("open log", path, e).line())
