"""`--user`: names and numbers of users and groups, by passwd(5) and group(5) of the host."""

from __future__ import annotations

import posix
from errno import EFBIG, ENOENT

from nvoci.errors import HookError, printable
from nvoci.linux.fd import Fd, read_at_most

PASSWD, GROUP = "/etc/passwd", "/etc/group"
_LIMIT = 16 << 20
_ID_MAX = 0xFFFFFFFE  # (uid_t)-1 means "leave it" to setresuid(2)


def parse(text: str, passwd: str = PASSWD, group: str = GROUP) -> tuple[int, int]:
    """The ids of `UID[:GID]`, names or numbers; without a group the first one of the user. Raises HookError."""
    user, colon, rest = text.partition(":")
    uid = _number(user, user)
    gid = _number(rest, rest) if colon else None
    if uid is None or not colon:
        entry = _find(passwd, 2 if uid is not None else 0, str(uid) if uid is not None else user)
        if len(entry) < 4:
            raise _error(ENOENT, f"{passwd} has no user `{printable(user[:100])}`")
        if uid is None:
            uid = _number(entry[2], user)
        if not colon:
            gid = _number(entry[3], user)
    if gid is None:
        entry = _find(group, 0, rest)
        gid = _number(entry[2], rest) if len(entry) > 2 else None
    if uid is None or gid is None:
        raise _error(ENOENT, f"`{printable(text[:200])}`: see {passwd} and {group}")
    return uid, gid


def _error(number: int, hint: str) -> HookError:
    words = {ENOENT: "no such file or directory"}.get(number, "numerical result out of range")
    return HookError(f"input error: parse user/group failed: {words}", hint)


def _number(text: str, what: str) -> int | None:
    """None for what is no number. Raises HookError for one that is too large."""
    if not text.isascii() or not text.isdigit():
        return None
    digits = text.lstrip("0") or "0"
    if len(digits) > 10 or int(digits) > _ID_MAX:
        raise _error(EFBIG, f"`{printable(what[:100])}`")
    return int(digits)


def _find(path: str, field: int, value: str) -> list[str]:
    """The fields of the first line with this value in that field; [] without one."""
    try:
        with Fd(posix.open(path, posix.O_RDONLY | posix.O_NONBLOCK | posix.O_CLOEXEC)) as fd:
            text = read_at_most(fd.fileno(), _LIMIT).decode("utf-8", "surrogateescape")
    except OSError:
        return []
    for line in text.split("\n"):
        fields = line.split(":")
        if len(fields) > field and fields[field] == value:
            return fields
    return []
