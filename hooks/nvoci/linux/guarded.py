"""Paths of the host where others than root may make and rename things: in /tmp, or in a daemon's own directory.

A name there may be anybody's, and mean something else a moment later: a link to /root where a directory was looked at.
Here every component is opened once, and what is judged is what was opened. A link is followed only where none but root
could have put it.
"""

from __future__ import annotations

import posix
from _stat import S_ISLNK
from errno import EINVAL, ELOOP, ENAMETOOLONG

from nvoci.linux.fd import Fd
from nvoci.linux.lookup import MAX_LINKS, PATH_MAX

_PATH = posix.O_PATH | posix.O_NOFOLLOW | posix.O_CLOEXEC
_ROOT = 0
LINK = "a link in a directory that others may write"


class Found:
    """An object, open with O_PATH. st: of it; above: of the directory that it was found in; owners: who is trusted."""

    __slots__ = ("above", "fd", "owners", "st")

    def __init__(self, fd: Fd, above: posix.stat_result, owners: tuple[int, ...]) -> None:
        """Takes the descriptor over."""
        self.fd = fd
        self.st = fd.stat()
        self.above = above
        self.owners = owners

    def stranger(self) -> str:
        """Why somebody could have put it there whom nobody trusts; "" where none could. Root may, and in a directory of
        its own whoever owns the object: who named that directory knows whose it is."""
        return stranger(self.st, self.above, self.owners)

    def __enter__(self) -> Found:
        return self

    def __exit__(self, *exc: object) -> None:
        self.fd.close()


def stranger(st: posix.stat_result, above: posix.stat_result, owners: tuple[int, ...]) -> str:
    """`Found.stranger` of what `st` is of, in the directory that `above` is of."""
    owner = st.st_uid
    if owner in owners or not others_may_write(above, (*owners, owner)):
        return ""
    return f"owned by uid {owner}, in a directory that others may write"


def others_may_write(directory: posix.stat_result, owners: tuple[int, ...]) -> bool:
    """Whether somebody beside `owners` may make and rename things in a directory."""
    mode = directory.st_mode
    return directory.st_uid not in owners or bool(mode & 0o002 or (mode & 0o020 and directory.st_gid != 0))


def find(root: int, path: bytes, *, follow: bool = True) -> Found:
    """What is at `path` below the directory that `root` has open, out of which no link leads. follow: also a link that
    is the last component. Trusted are root, we, and the owner of `root`, who is root as a user namespace shows it.
    Raises OSError; ELOOP with LINK for a link that is not followed."""
    if b"\0" in path:
        raise OSError(EINVAL, "NUL in path", path)
    if len(path) >= PATH_MAX:
        raise OSError(ENAMETOOLONG, "path too long", path)
    owners = (_ROOT, posix.geteuid(), posix.fstat(root).st_uid)
    stack: list[int] = []
    try:
        _walk(root, stack, path, owners, follow)
        above = posix.fstat(stack[-2] if len(stack) > 1 else root)
        return Found(Fd(stack.pop() if stack else posix.dup(root)), above, owners)
    except OSError as e:
        raise OSError(e.errno, e.strerror, path) from None
    finally:
        for fd in stack:
            posix.close(fd)


def _walk(root: int, stack: list[int], path: bytes, owners: tuple[int, ...], follow: bool) -> None:
    """Until the object is on top of `stack`, which has all directories from `root` to it."""
    todo, links = path.split(b"/")[::-1], 0
    while todo:
        name = todo.pop()
        if name == b"..":
            if stack:
                posix.close(stack.pop())
        elif name not in (b"", b"."):
            here = stack[-1] if stack else root
            stack.append(posix.open(name, _PATH, dir_fd=here))
            if not S_ISLNK(posix.fstat(stack[-1]).st_mode) or not (todo or follow):
                continue
            links += 1
            if links > MAX_LINKS:
                raise OSError(ELOOP, "too many links")
            if others_may_write(posix.fstat(here), owners):
                raise OSError(ELOOP, LINK)
            text = posix.readlink(b"", dir_fd=stack[-1])
            posix.close(stack.pop())
            while stack and text.startswith(b"/"):
                posix.close(stack.pop())
            todo += text.split(b"/")[::-1]
