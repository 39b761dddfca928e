"""One structured line per event, in structlog's call shape, for processes that cannot afford structlog (37 ms).

Lines go to stderr in the form the reference tools print (`time="…" level=error msg="…" key=value`), and, for what
stderr loses (crun gives hooks /dev/null), to the file or syslog named in the hook settings. Every value is made
printable first, so one event is one line whatever a container calls its files.
"""

from __future__ import annotations

import posix
import time

from nvoci.errors import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

DEBUG, INFO, WARNING, ERROR = 10, 20, 30, 40
_NAMES = {DEBUG: "debug", INFO: "info", WARNING: "warning", ERROR: "error"}

# A runtime buffers and prints all of it; a little more than HookError.line() gives.
_LONGEST = 4096

_stderr_level = WARNING
_sinks: list[tuple[int, Callable[[str], None]]] = []
_warnings_left = -1  # no limit


def set_level(level: int) -> None:
    """The least level that goes to stderr."""
    global _stderr_level
    _stderr_level = level


def limit_warnings(count: int) -> None:
    """Of this process, and of each that it forks from now on: one line more says that others are left out."""
    global _warnings_left
    _warnings_left = count


def add_sink(level: int, write: Callable[[str], None]) -> None:
    """Another place for lines of at least `level`: a function of one line without its newline."""
    _sinks.append((level, write))


def file_sink(fd: int) -> Callable[[str], None]:
    """A sink that appends to an open file, one write(2) a line."""

    def write(line: str) -> None:
        posix.write(fd, line.encode("utf-8", "backslashreplace") + b"\n")

    return write


def debug(event: str, **fields: object) -> None:
    """For finding out; off by default."""
    _emit(DEBUG, event, fields)


def info(event: str, **fields: object) -> None:
    """What was done; off by default, since nothing is logged on success."""
    _emit(INFO, event, fields)


def warning(event: str, **fields: object) -> None:
    """Something was left out, and the start goes on."""
    global _warnings_left
    if not _warnings_left:
        return
    _warnings_left -= 1
    _emit(WARNING, event, fields)
    if not _warnings_left:
        _emit(WARNING, "more warnings are left out", {})


def error(event: str, **fields: object) -> None:
    """The line that says why the container does not start."""
    _emit(ERROR, event, fields)


def plain(line: str) -> None:
    """A line on stderr as it is, for the few messages whose whole form the reference tools fix."""
    _try(file_sink(2), line)


def _emit(level: int, event: str, fields: dict[str, object]) -> None:
    to_stderr = level >= _stderr_level
    if not to_stderr and not any(level >= least for least, _ in _sinks):
        return
    line = format_line(level, event, fields)
    if to_stderr:
        _try(file_sink(2), line)
    for least, write in _sinks:
        if level >= least:
            _try(write, line)


def _try(write: Callable[[str], None], line: str) -> None:
    try:
        write(line)
    except OSError:
        pass  # a closed stderr or a full disk must not stop a container that is otherwise right


def format_line(level: int, event: str, fields: dict[str, object]) -> str:
    """`time="RFC 3339" level=… msg="…" key=value …`, printable, quotes escaped."""
    t = time.gmtime()
    stamp = f"{t.tm_year}-{t.tm_mon:02}-{t.tm_mday:02}T{t.tm_hour:02}:{t.tm_min:02}:{t.tm_sec:02}Z"
    rest = "".join(f" {key}={_quoted(value)}" for key, value in fields.items())
    return f'time="{stamp}" level={_NAMES[level]} msg={_quoted(event, always=True)}{rest}'


def _quoted(value: object, always: bool = False) -> str:
    text = printable(value)
    if len(text) > _LONGEST:
        text = text[:_LONGEST] + " [cut]"
    if always or not text or any(c in text for c in ' "=\\'):
        return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return text
