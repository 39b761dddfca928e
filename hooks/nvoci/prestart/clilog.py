"""The log that `--debug` and NVC_DEBUG_FILE ask for, in the form of libnvidia-container's:

    I0111 08:38:13.580372 12345 cli.py:76] text          letter of the level, UTC, thread, who says it

Whatever is logged anywhere goes into it, from `debug` on. A file that cannot be opened means no log, and no word of it.
So does one that somebody else may have put where it is, in /tmp (`nvoci.linux.logfile`).
"""

from __future__ import annotations

import posix
import sys
import time

from nvoci import log
from nvoci.linux import logfile
from nvoci.linux.fd import write_all

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

VARIABLE = b"NVC_DEBUG_FILE"
_BANNER = "\n-- WARNING, the following logs are for debugging purposes only --\n\n"
_LETTERS = {"debug": "I", "info": "I", "warning": "W", "error": "E"}
_MODE = 0o644
_OWN = ("/log.py", "/clilog.py")


def start(path: str) -> None:
    """Log to a file from now on. It may be a terminal, or a link to one, such as /dev/stderr."""
    try:
        fd = logfile.open_log(path, _MODE)
        write_all(fd, _BANNER.encode())
    except (OSError, ValueError):
        return
    log.add_sink(log.DEBUG, _writer(fd))


def _writer(fd: int) -> Callable[[str], None]:
    def write(line: str) -> None:
        write_all(fd, _form(line).encode("utf-8", "backslashreplace"))

    return write


def _form(line: str) -> str:
    """A line of nvoci.log in the other form."""
    level, _, rest = line.partition(" level=")[2].partition(" ")
    now = time.time()
    t = time.gmtime(now)
    stamp = f"{t.tm_mon:02}{t.tm_mday:02} {t.tm_hour:02}:{t.tm_min:02}:{t.tm_sec:02}.{int(now % 1 * 1_000_000):06}"
    return f"{_LETTERS[level]}{stamp} {posix.getpid()} {_caller()}] {_text(rest)}\n"


def _text(rest: str) -> str:
    """`event key=value` of `msg="event" key=value`."""
    quoted = rest[len('msg="') :]
    at = 0
    while quoted[at] != '"':
        at += 2 if quoted[at] == "\\" else 1
    return quoted[:at].replace('\\"', '"').replace("\\\\", "\\") + quoted[at + 1 :]


def _caller() -> str:
    """`file.py:LINE` of who called nvoci.log."""
    frame = sys._getframe(1)  # noqa: SLF001  # nothing on the hot list tells it
    while frame.f_back is not None and frame.f_code.co_filename.endswith(_OWN):
        frame = frame.f_back
    return f"{frame.f_code.co_filename.rpartition('/')[2]}:{frame.f_lineno}"
