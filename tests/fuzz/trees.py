"""A whole file tree in one input, so that what reads several files can be fuzzed.

Text in front of the first `@` line is the content of the first file; then follow, each to the next `@` line,

    @file PATH      a file with the lines below
    @link PATH TARGET
    @dir PATH | @fifo PATH | @device PATH | @lib PATH SONAME

What cannot be made is passed over: nothing here raises, and nothing is made outside of the tree.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from lib import elfmaker

from nvoci.linux.rootfs import Rootfs

MAX_OBJECTS = 64
_MAX_PARTS = 8


class _Builder:
    """Makes objects below a directory. Only directories it made itself are ever passed through."""

    def __init__(self, root: Path) -> None:
        self._root = os.fsencode(root)
        self._taken: dict[tuple[bytes, ...], bool] = {(): True}
        self._kinds: dict[bytes, Callable[[bytes, bytes, bytes], None]] = {
            b"file": self._file,
            b"link": lambda path, argument, body: os.symlink(argument, path),
            b"dir": lambda path, argument, body: os.mkdir(path),
            b"fifo": lambda path, argument, body: os.mkfifo(path),
            b"device": lambda path, argument, body: os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 5)),
            b"lib": lambda path, argument, body: self._file(path, argument, library(argument)),
        }

    def add(self, kind: bytes, name: bytes, argument: bytes, body: bytes) -> None:
        make = self._kinds.get(kind)
        parts = tuple(part for part in name.split(b"/") if part not in (b"", b".", b".."))
        if make is None or not parts or len(parts) > _MAX_PARTS or len(self._taken) > MAX_OBJECTS:
            return
        with contextlib.suppress(OSError, ValueError):  # an empty link, a NUL, a name too long
            for end in range(1, len(parts)):
                self._directory(parts[:end])
            if parts not in self._taken:
                make(self._path(parts), argument, body)
                self._taken[parts] = kind == b"dir"

    def _directory(self, parts: tuple[bytes, ...]) -> None:
        if parts not in self._taken:
            os.mkdir(self._path(parts))
            self._taken[parts] = True
        if not self._taken[parts]:
            raise NotADirectoryError

    def _path(self, parts: tuple[bytes, ...]) -> bytes:
        return b"/".join((self._root, *parts))

    @staticmethod
    def _file(path: bytes, argument: bytes, body: bytes) -> None:
        with open(path, "xb") as file:
            file.write(body)


@functools.lru_cache(64)
def library(soname: bytes) -> bytes:
    """A shared object of this machine; without a name where none is given."""
    with tempfile.TemporaryDirectory() as folder:
        text = soname.decode("latin-1").encode("ascii", "replace").decode()
        return elfmaker.make_so(Path(folder) / "x", text or None, machine=os.uname().machine).read_bytes()


def build(root: Path, data: bytes, first: bytes) -> None:
    """Make the tree. first: where the text in front of the first `@` line goes."""
    builder = _Builder(root)
    head, *blocks = (b"\n" + data).split(b"\n@")
    builder.add(b"file", first, b"", head[1:])
    for block in blocks:
        line, _, body = block.partition(b"\n")
        kind, _, rest = line.partition(b" ")
        name, _, argument = rest.partition(b" ")
        builder.add(kind, name, argument, body)


def rooted(first: bytes) -> Callable[[bytes], contextlib.AbstractContextManager[Rootfs]]:
    """`prepare` of a target: the tree of an input as a `Rootfs`, and gone behind it."""

    @contextlib.contextmanager
    def prepare(data: bytes) -> Iterator[Rootfs]:
        root = Path(tempfile.mkdtemp())
        try:
            build(root, data, first)
            rootfs = Rootfs.open(str(root))
            try:
                yield rootfs
            finally:
                rootfs.close()
        finally:
            shutil.rmtree(root)

    return prepare
