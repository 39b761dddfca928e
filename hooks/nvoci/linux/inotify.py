"""Waiting for file system events: inotify(7) with a deadline."""

from __future__ import annotations

import posix
import select
from struct import calcsize, unpack_from

from nvoci.linux import abi
from nvoci.linux.fd import Fd
from nvoci.linux.syscalls import inotify_add_watch, inotify_init1

# struct inotify_event of linux/inotify.h: {s32 wd, u32 mask, u32 cookie, u32 len, char name[len]}
_HEADER = "=iIII"
_HEADER_SIZE = calcsize(_HEADER)
_BUFFER = 64 << 10


class Event:
    """`watch` is -1 for IN_Q_OVERFLOW: events were lost. `name` is "" for the watched object itself."""

    __slots__ = ("cookie", "mask", "name", "watch")

    def __init__(self, watch: int, mask: int, cookie: int, name: bytes) -> None:
        self.watch = watch
        self.mask = mask
        self.cookie = cookie
        self.name = name


class Inotify:
    """One inotify instance; close it, or use it with `with`."""

    __slots__ = ("_fd",)

    def __init__(self) -> None:
        self._fd = Fd(inotify_init1(abi.IN_CLOEXEC | abi.IN_NONBLOCK))

    def fileno(self) -> int:
        """For poll(2)."""
        return self._fd.fileno()

    def add(self, path: bytes, mask: int) -> int:
        """Watch a path of the host, and return the number that its events carry. Raises OSError."""
        return inotify_add_watch(self._fd.fileno(), path, mask)

    def read(self, timeout: float | None) -> list[Event]:
        """The events that are there, waiting at most `timeout` seconds for the first one (None: for ever)."""
        poll = select.poll()
        poll.register(self._fd.fileno(), select.POLLIN)
        if not poll.poll(None if timeout is None else max(0, int(timeout * 1000))):
            return []
        try:
            return parse(posix.read(self._fd.fileno(), _BUFFER))
        except BlockingIOError:
            return []

    def close(self) -> None:
        """Close the instance and its watches."""
        self._fd.close()

    def __enter__(self) -> Inotify:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def parse(data: bytes) -> list[Event]:
    """What read(2) on an inotify descriptor returned; a cut-off event at the end is left out."""
    events: list[Event] = []
    at = 0
    while at + _HEADER_SIZE <= len(data):
        watch, mask, cookie, length = unpack_from(_HEADER, data, at)
        at += _HEADER_SIZE
        if at + length > len(data):
            break
        events.append(Event(watch, mask, cookie, data[at : at + length].partition(b"\0")[0]))
        at += length
    return events
