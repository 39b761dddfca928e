"""`Fd`: a file descriptor with one owner, and the bounded reads that go with it."""

from __future__ import annotations

import posix
from errno import EFBIG, EMFILE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TypeVar

    T = TypeVar("T")

# As many as a step of an undo opens at once.
_RESERVED = 2
_reserve: list[int] = []


class Fd:
    """An owned descriptor: closed by `close()`, by leaving its `with`, or given up by `into_raw_fd()`."""

    __slots__ = ("_fd",)

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def fileno(self) -> int:
        """The number, still owned by this object. Raises ValueError once closed."""
        if self._fd < 0:
            raise ValueError("descriptor is closed")
        return self._fd

    def into_raw_fd(self) -> int:
        """Give the descriptor up to the caller."""
        fd, self._fd = self.fileno(), -1
        return fd

    def close(self) -> None:
        """Close once; later calls do nothing. Of a file that was written, see `close_written`."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            close_quietly(fd)

    def close_written(self) -> None:
        """Close what data was written to. Raises OSError where a file system says only now that it did not arrive."""
        posix.close(self.into_raw_fd())

    @property
    def closed(self) -> bool:
        """Whether the descriptor is gone."""
        return self._fd < 0

    def stat(self) -> posix.stat_result:
        """fstat(2) of what is open here."""
        return posix.fstat(self.fileno())

    def __enter__(self) -> Fd:
        return self

    def __exit__(self, *exc: Any) -> None:
        self.close()


def close_quietly(fd: int) -> None:
    """close(2) of what nothing was written to, or nothing that must arrive: the number is free whatever it answers
    (man 2 close), and what is done must not be called a failure for it."""
    try:
        posix.close(fd)
    except OSError:
        pass


def hold_reserve(fd: int) -> None:
    """Keep some descriptors by, copies of `fd`: taking back what was done must not fail for want of one. Raises
    OSError."""
    while len(_reserve) < _RESERVED:
        _reserve.append(posix.dup(fd))


def free_reserve() -> bool:
    """Make them free for use. Returns whether there were any."""
    held = bool(_reserve)
    while _reserve:
        close_quietly(_reserve.pop())
    return held


def with_reserve(call: Callable[[], T]) -> T:
    """call(), and once more with the reserve freed where RLIMIT_NOFILE was in its way. Raises OSError."""
    try:
        return call()
    except OSError as e:
        if e.errno != EMFILE or not free_reserve():
            raise
        return call()


def read_at_most(fd: int, limit: int) -> bytes:
    """Everything from the current position to the end. Raises OSError(EFBIG) once it is more than `limit` bytes."""
    chunks: list[bytes] = []
    left = limit + 1
    while left > 0:
        chunk = posix.read(fd, min(left, 1 << 16))
        if not chunk:
            return b"".join(chunks)
        chunks.append(chunk)
        left -= len(chunk)
    raise OSError(EFBIG, f"larger than {limit} bytes")


def write_all(fd: int, data: bytes) -> None:
    """write(2) until everything is written."""
    view = memoryview(data)
    while view:
        view = view[posix.write(fd, view) :]


def fsync_directory(path: str) -> None:
    """fsync(2) a host directory, so that a rename in it is on disk."""
    with Fd(posix.open(path, posix.O_RDONLY | posix.O_DIRECTORY | posix.O_CLOEXEC)) as fd:
        posix.fsync(fd.fileno())
