"""Opening a log as root, at a path that an administrator named: loaded only where one is named.

The place may be one where others make files too, such as /tmp. What somebody else put there is not written to: neither
a file of theirs, nor what a link of theirs leads to, nor one more name of a file that is elsewhere.
"""

from __future__ import annotations

import posix
from _stat import S_ISREG
from errno import EACCES, ELOOP

from nvoci.linux import guarded, procfs
from nvoci.linux.fd import Fd
from nvoci.linux.rootfs import fsencode, split

_FLAGS = posix.O_WRONLY | posix.O_APPEND | posix.O_NOCTTY | posix.O_NONBLOCK | posix.O_CLOEXEC
_NEW = _FLAGS | posix.O_CREAT | posix.O_NOFOLLOW
_ROOT = posix.O_PATH | posix.O_DIRECTORY | posix.O_CLOEXEC
# What this process has open; where these lead is not for others to say.
_STANDARD = ("/dev/stdin", "/dev/stdout", "/dev/stderr")
_STANDARD_TOPS = ("/dev/fd/", "/proc/self/fd/")
_LINKED = "another name of a file, in a directory that others may write"


def open_log(path: str, mode: int) -> int:
    """A descriptor to append to, made with `mode` where nothing is there. A link is followed where only root could have
    put it. It never blocks: of a FIFO that nobody reads, ENXIO. Raises OSError, whose strerror says why where it is
    refused here; ValueError for a NUL; HookError where /proc is not the host's."""
    if path in _STANDARD or path.startswith(_STANDARD_TOPS):
        return posix.open(path, _FLAGS)
    above, name = split(fsencode(path))
    with Fd(posix.open("/", _ROOT)) as root, guarded.find(root.fileno(), above) as directory:
        try:
            fd = Fd(posix.open(name, _NEW, mode, dir_fd=directory.fd.fileno()))
        except OSError as e:
            if e.errno != ELOOP:
                raise
            with guarded.find(root.fileno(), fsencode(path)) as found:
                _check(found.fd, found.above, found.owners)
                return procfs.reopen(found.fd.fileno(), _FLAGS)
        with fd:
            _check(fd, directory.st, directory.owners)
            return fd.into_raw_fd()


def _check(fd: Fd, above: posix.stat_result, owners: tuple[int, ...]) -> None:
    """Raises OSError for another's file, or one more name of a file that is elsewhere."""
    st = fd.stat()
    why = guarded.stranger(st, above, owners)
    if not why and S_ISREG(st.st_mode) and st.st_nlink > 1 and guarded.others_may_write(above, owners):
        why = _LINKED
    if why:
        raise OSError(EACCES, why)
