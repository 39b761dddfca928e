"""A FUSE file system whose one object, its root, exists, and on which everything else fails with one error number.

As a program it is the daemon: `python3 sickfuse.py PATH ERRNO` mounts it on PATH, a file or a directory, and goes to
the background. PATH then is a regular file of 4 KiB that opens and cannot be read, or a directory that cannot be
listed, searched or written to. It ends with its mount.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shlex
import stat
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

SIZE = 4096
# linux/fuse.h; see silentfuse.py for the form of these answers.
_HEADER = struct.Struct("=IIQQ")
_GETATTR, _OPEN, _STATFS, _RELEASE, _FLUSH, _INIT, _OPENDIR, _RELEASEDIR = 3, 14, 17, 18, 25, 26, 27, 29
_NO_ANSWER = (2, 36, 42)  # FORGET, INTERRUPT, BATCH_FORGET
_INIT_OUT = struct.pack("=4I2H2I2HI28x", 7, 31, 1 << 16, 0, 12, 9, 1 << 16, 1, 32, 0, 0)
_OPEN_OUT = struct.pack("=QII", 1, 0, 0)


def _command(path: str | Path, error: int) -> list[str]:
    return [os.path.realpath("/usr/bin/python3"), "-ISB", __file__, str(path), str(error)]


def setup(path: str | Path, error: int) -> str:
    """For the set-up of a container, with whose pid namespace it ends."""
    return shlex.join(_command(path, error)) + " </dev/null >/dev/null 2>&1\n"


@contextlib.contextmanager
def mounted(path: str | Path, error: int) -> Iterator[None]:
    """In this mount namespace."""
    subprocess.run(_command(path, error), check=True, stdin=subprocess.DEVNULL, cwd="/")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


def _attributes(mode: int) -> bytes:
    """struct fuse_attr_out."""
    return struct.pack("=QII6Q10I", 100, 0, 0, 1, SIZE, 8, 0, 0, 0, 0, 0, 0, mode, 2, 0, 0, 0, 4096, 0)


def _serve(path: str, error: int) -> None:
    mode = stat.S_IFMT(os.stat(path).st_mode) | 0o755
    fd = os.open("/dev/fuse", os.O_RDWR)
    libc = ctypes.CDLL(None, use_errno=True)
    data = f"fd={fd},rootmode={stat.S_IFMT(mode):o},user_id=0,group_id=0,allow_other".encode()
    if libc.mount(b"sick", os.fsencode(path), b"fuse", 0, data):
        raise OSError(ctypes.get_errno(), "mount", path)
    if os.fork():
        os._exit(0)
    os.setsid()
    answers = {_INIT: _INIT_OUT, _GETATTR: _attributes(mode), _STATFS: bytes(80), _OPEN: _OPEN_OUT,
               _OPENDIR: _OPEN_OUT, _RELEASE: b"", _RELEASEDIR: b"", _FLUSH: b""}  # fmt: skip
    while True:
        try:
            _, opcode, unique, _ = _HEADER.unpack_from(os.read(fd, 1 << 20))
            if opcode in _NO_ANSWER:
                continue
            answer = answers.get(opcode)
            number = -error if answer is None else 0
            os.write(fd, struct.pack("=IiQ", 16 + len(answer or b""), number, unique) + (answer or b""))
        except FileNotFoundError:
            continue  # the request was interrupted
        except OSError:
            os._exit(0)  # unmounted


if __name__ == "__main__":
    _serve(sys.argv[1], int(sys.argv[2]))
