"""Resolve a path below a root handle: one function, two implementations behind it.

`lookup()` uses openat2(2) with RESOLVE_IN_ROOT|RESOLVE_NO_MAGICLINKS and falls back on a verified walk where the
kernel has no openat2, or a seccomp profile forbids it. Either way absolute links and `..` stay inside the root, a
/proc magic link is ELOOP, and the result is an O_PATH descriptor that the caller uses from then on.

Measured: openat2 3.6 us a lookup, the walk 13 us. openat2 answers EAGAIN for paths with `..` whenever anything on
the host is renamed or mounted meanwhile (up to 16 times in a row on an idle machine): it is retried, then walked.
"""

from __future__ import annotations

import posix
from _stat import S_ISDIR, S_ISLNK
from errno import E2BIG, EAGAIN, EINVAL, ELOOP, ENAMETOOLONG, ENOENT, ENOSYS, ENOTDIR, EPERM

from nvoci.linux import abi, procfs
from nvoci.linux.syscalls import openat2

EAGAIN_RETRIES = 128
MAX_LINKS = 40  # include/linux/namei.h: MAXSYMLINKS
PATH_MAX = 4096
_RESOLVE = abi.RESOLVE_IN_ROOT | abi.RESOLVE_NO_MAGICLINKS
# How a kernel without openat2, or a seccomp profile that blocks it, answers a lookup with O_PATH.
_NOT_AVAILABLE = (ENOSYS, EPERM, E2BIG)

_openat2_works = True


def lookup(root: int, unsafe_path: bytes, flags: int = 0) -> int:
    """An O_PATH descriptor of `unsafe_path` resolved inside `root`.

    flags: O_DIRECTORY (ENOTDIR otherwise), O_NOFOLLOW (a link as the last component is returned itself).
    Raises OSError with `unsafe_path` as its filename.
    """
    global _openat2_works
    flags |= posix.O_PATH | posix.O_CLOEXEC
    if b"\0" in unsafe_path:
        raise OSError(EINVAL, "NUL in path", unsafe_path)
    if _openat2_works:
        for _ in range(EAGAIN_RETRIES):
            try:
                return openat2(root, unsafe_path or b".", flags, _RESOLVE)
            except OSError as e:
                if e.errno == EAGAIN:
                    continue
                if e.errno not in _NOT_AVAILABLE:
                    raise
                _openat2_works = False
                break
    return walk(root, unsafe_path, flags)


def walk(root: int, unsafe_path: bytes, flags: int) -> int:
    """`lookup()` without openat2: every component opened O_PATH|O_NOFOLLOW, links and `..` expanded here."""
    if len(unsafe_path) >= PATH_MAX:
        raise OSError(ENAMETOOLONG, "path too long", unsafe_path)
    for _ in range(EAGAIN_RETRIES):
        stack: list[int] = []
        try:
            found = _Walk(root, stack, bool(flags & posix.O_NOFOLLOW)).run(unsafe_path)
            if flags & posix.O_DIRECTORY and not S_ISDIR(posix.fstat(found).st_mode):
                raise OSError(ENOTDIR, "not a directory", unsafe_path)
            if _is_below(root, found):
                return posix.dup(found) if found == root else stack.pop()
        except OSError as e:
            raise OSError(e.errno, e.strerror, unsafe_path) from None
        finally:
            for fd in stack:
                posix.close(fd)
    raise OSError(EAGAIN, "the path keeps changing", unsafe_path)


class _Walk:
    """One attempt. `stack` holds the directories between the root and here, so `..` never asks the kernel."""

    __slots__ = ("links", "nofollow", "root", "stack", "todo")

    def __init__(self, root: int, stack: list[int], nofollow: bool) -> None:
        self.root = root
        self.stack = stack
        self.nofollow = nofollow
        self.links = 0
        self.todo: list[bytes] = []

    def here(self) -> int:
        return self.stack[-1] if self.stack else self.root

    def run(self, path: bytes) -> int:
        self.todo = path.split(b"/")[::-1]
        while self.todo:
            name = self.todo.pop()
            if name in (b"", b"."):
                continue
            if name == b"..":
                if self.stack:
                    posix.close(self.stack.pop())
                continue
            self._step(name)
        return self.here()

    def _step(self, name: bytes) -> None:
        fd = posix.open(name, posix.O_PATH | posix.O_NOFOLLOW | posix.O_CLOEXEC, dir_fd=self.here())
        self.stack.append(fd)
        mode = posix.fstat(fd).st_mode
        if S_ISLNK(mode) and (self.todo or not self.nofollow):
            self._follow(fd)
        elif self.todo and not S_ISDIR(mode):
            raise OSError(ENOTDIR, "not a directory")

    def _follow(self, fd: int) -> None:
        self.links += 1
        if self.links > MAX_LINKS:
            raise OSError(ELOOP, "too many links")
        parent = self.stack[-2] if len(self.stack) > 1 else self.root
        # The only ordinary links of a procfs (self, thread-self, mounts, net) lie in its root directory.
        if procfs.is_procfs(fd) and posix.fstat(parent).st_ino != abi.PROC_ROOT_INO:
            raise OSError(ELOOP, "magic link")
        target = posix.readlink(b"", dir_fd=fd)
        if not target:
            raise OSError(ENOENT, "empty link")
        posix.close(self.stack.pop())
        if target.startswith(b"/"):
            while self.stack:
                posix.close(self.stack.pop())
        self.todo.extend(target.split(b"/")[::-1])


def _is_below(root: int, fd: int) -> bool:
    """Whether the kernel still places `fd` below `root`: a directory may be moved out while we stand in it."""
    if fd == root:
        return True
    top = procfs.name_of(root).rstrip(b"/") + b"/"
    return procfs.name_of(fd).startswith(top)
