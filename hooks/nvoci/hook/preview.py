"""What --dry-run sees: the container as it is, overlaid with the operations planned so far.

`Preview` is a `Rootfs`, so a hook's plan() reads through it without knowing: a link that an earlier hook will make is
followed, a file that it will write is read. What cannot be foreseen is what an operation finds out only by doing it:
the links and the cache that update-ldcache gets from ldconfig.
"""

from __future__ import annotations

import posix
from errno import EEXIST, EISDIR, ENOENT
from stat import S_ISDIR, S_ISLNK, S_ISREG

from nvoci.linux.canonical import canonical, link_text
from nvoci.linux.fd import Fd, write_all
from nvoci.linux.rootfs import Rootfs
from nvoci.linux.syscalls import memfd_create


class Preview(Rootfs):
    """Planned links (path -> text) and files (path -> content; None: removed), by their paths without links."""

    __slots__ = ("_files", "_links")

    def __init__(self, rootfs: Rootfs) -> None:
        super().__init__(Fd(posix.dup(rootfs.fileno())), rootfs.name)
        self._links: dict[bytes, bytes] = {}
        self._files: dict[bytes, bytes | None] = {}

    def plan_link(self, unsafe_path: bytes, text: bytes) -> None:
        """A link will be there. Raises OSError where its operation would not replace what is there."""
        self._check_replaceable(unsafe_path)
        self._links[self._key(unsafe_path)] = text

    def plan_file(self, unsafe_path: bytes, data: bytes | None) -> None:
        """A file will be there, or will not (None). Raises OSError as `plan_link`."""
        self._check_replaceable(unsafe_path)
        self._links.pop(self._key(unsafe_path), None)
        self._files[self._key(unsafe_path)] = data

    def _check_replaceable(self, unsafe_path: bytes) -> None:
        if self._key(unsafe_path) in self._links or self._key(unsafe_path) in self._files:
            return
        try:
            mode = self.lstat(unsafe_path).st_mode
        except FileNotFoundError:
            return
        if not (S_ISLNK(mode) or S_ISREG(mode)):
            raise OSError(EISDIR if S_ISDIR(mode) else EEXIST, "in the way", unsafe_path)

    def _link_of(self, path: bytes) -> bytes | None:
        planned = self._links.get(path)
        return link_text(self, path) if planned is None else planned

    def _key(self, unsafe_path: bytes, nofollow: bool = True) -> bytes:
        return canonical(unsafe_path, self._link_of, nofollow)

    def lookup(self, unsafe_path: bytes, flags: int = 0) -> Fd:
        """As if the planned links were there."""
        if self._links:
            unsafe_path = self._key(unsafe_path, bool(flags & posix.O_NOFOLLOW))
        return super().lookup(unsafe_path, flags)

    def readlink(self, unsafe_path: bytes) -> bytes:
        """A planned link's text, or a real one's."""
        planned = self._links.get(self._key(unsafe_path))
        return super().readlink(unsafe_path) if planned is None else planned

    def open_file(self, unsafe_path: bytes, flags: int = 0) -> Fd:
        """A planned file's content, or a real one's."""
        key = self._key(unsafe_path, bool(flags & posix.O_NOFOLLOW))
        if key not in self._files:
            return super().open_file(unsafe_path, flags)
        data = self._files[key]
        if data is None:
            raise OSError(ENOENT, posix.strerror(ENOENT), unsafe_path)
        fd = Fd(memfd_create(b"planned", 0))
        write_all(fd.fileno(), data)
        posix.lseek(fd.fileno(), 0, 0)
        return fd

    def content(self, unsafe_path: bytes, limit: int) -> bytes | None:
        """The content of a file of at most `limit` bytes, planned or real; None where there is none."""
        try:
            return self.read_file(unsafe_path, limit)
        except OSError:
            return None
