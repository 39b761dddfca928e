"""What --dry-run sees: the container as it is, overlaid with the operations planned so far."""

from __future__ import annotations

from errno import ENOENT, ENOTDIR

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nvoci.linux.rootfs import Rootfs


def normal(unsafe_path: bytes) -> bytes:
    """One spelling for the same lexical path: no leading, trailing or double slash, no `.`."""
    return b"/".join(c for c in unsafe_path.split(b"/") if c not in (b"", b"."))


class Preview:
    """Planned links (path -> target), files (path -> content; None: removed) and directories."""

    __slots__ = ("dirs", "files", "links", "rootfs")

    def __init__(self, rootfs: Rootfs) -> None:
        self.rootfs = rootfs
        self.links: dict[bytes, bytes] = {}
        self.files: dict[bytes, bytes | None] = {}
        self.dirs: set[bytes] = set()

    def plan_link(self, unsafe_path: bytes, target: bytes) -> None:
        """A link will be there."""
        self.links[normal(unsafe_path)] = target

    def plan_file(self, unsafe_path: bytes, data: bytes | None) -> None:
        """A file will be there, or will not (None)."""
        self.files[normal(unsafe_path)] = data

    def readlink(self, unsafe_path: bytes) -> bytes | None:
        """The target of a link, planned or real; None where there is none."""
        planned = self.links.get(normal(unsafe_path))
        if planned is not None:
            return planned
        try:
            return self.rootfs.readlink(unsafe_path)
        except OSError:
            return None

    def read_file(self, unsafe_path: bytes, limit: int) -> bytes | None:
        """The content of a file, planned or real; None where there is none."""
        key = normal(unsafe_path)
        if key in self.files:
            return self.files[key]
        try:
            return self.rootfs.read_file(unsafe_path, limit)
        except OSError:
            return None

    def has_dir(self, unsafe_path: bytes) -> bool:
        """Whether a directory is there, or will be."""
        if normal(unsafe_path) in self.dirs:
            return True
        try:
            self.rootfs.lookup(unsafe_path).close()
        except OSError as e:
            if e.errno in (ENOENT, ENOTDIR):
                return False
            raise
        return True
