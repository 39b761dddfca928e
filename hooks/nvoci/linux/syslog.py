"""syslog(3) of the C library; loaded only where the hook settings ask for it."""

from __future__ import annotations

from nvoci.linux.libc import CInt, CVoidP, buffer, load

_LOG_NDELAY, _LOG_PID, _LOG_DAEMON = 0x08, 0x01, 3 << 3  # sys/syslog.h
_LOG_ERR, _LOG_WARNING = 3, 4

_openlog = load("openlog", CVoidP, CInt, CInt)
_syslog = load("syslog", CInt, CVoidP, CVoidP)
_ident = buffer(len(b"nvoci") + 1)  # openlog(3) keeps the pointer


def connect() -> None:
    """Connect now (LOG_NDELAY): later /dev/log may be the container's."""
    _ident[:5] = b"nvoci"  # type: ignore[call-overload]
    _openlog(_ident, _LOG_NDELAY | _LOG_PID, _LOG_DAEMON)


def write(line: str) -> None:
    """One line, never as a format string."""
    priority = _LOG_ERR if " level=error " in line else _LOG_WARNING
    _syslog(priority, b"%s", line.encode("utf-8", "backslashreplace").replace(b"\0", b""))
