"""A FUSE file system whose daemon takes every request and answers none: who looks something up in it waits in the
kernel, uninterruptibly, until the daemon ends.

As a program it is the daemon: `python3 silentfuse.py DIRECTORY [deaf] [background]` mounts it there and says `ready`.
deaf: once it is mounted the daemon reads no request either. Then SIGKILL ends the wait, as with a server of NFS that is
gone; a signal with a handler does not.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shlex
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

# linux/fuse.h: struct fuse_in_header begins {u32 len, opcode; u64 unique, nodeid}.
_HEADER = struct.Struct("=IIQQ")
_INIT, _GETATTR, _STATFS = 26, 3, 17
# struct fuse_init_out: {u32 major, minor, max_readahead, flags; u16 max_background, congestion_threshold;
# u32 max_write, time_gran; u16 max_pages, map_alignment; u32 flags2, unused[7]}.
_INIT_OUT = struct.pack("=4I2H2I2HI28x", 7, 31, 1 << 16, 0, 12, 9, 1 << 16, 1, 32, 0, 0)
# struct fuse_attr_out: {u64 attr_valid; u32 attr_valid_nsec, dummy}, struct fuse_attr of the root directory.
_ATTR_OUT = struct.pack("=QII6Q10I", 100, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0o40755, 2, 0, 0, 0, 4096, 0)
_STATFS_OUT = bytes(80)


@contextlib.contextmanager
def mounted(directory: str | Path, prefix: Sequence[str] = ()) -> Iterator[None]:
    """prefix: a command that runs the daemon in another mount namespace, which is to end with the test."""
    argv = [*prefix, os.path.realpath("/usr/bin/python3"), "-ISB", __file__, str(directory)]
    daemon = subprocess.Popen(argv, stdout=subprocess.PIPE, cwd="/")
    assert daemon.stdout is not None
    try:
        assert daemon.stdout.readline() == b"ready\n"
        yield
    finally:
        daemon.kill()  # the connection is aborted with it, and whoever waits is let go
        daemon.wait()
        daemon.stdout.close()


def setup(directory: str | Path, *words: str) -> str:
    """For lib.jail: the daemon in the background, with whose pid namespace it ends."""
    words = (os.path.realpath("/usr/bin/python3"), "-ISB", __file__, str(directory), "background", *words)
    return shlex.join(words) + " </dev/null >/dev/null\n"


def _serve(directory: str, *words: str) -> None:
    fd = os.open("/dev/fuse", os.O_RDWR)
    libc = ctypes.CDLL(None, use_errno=True)
    data = f"fd={fd},rootmode=40000,user_id=0,group_id=0,allow_other".encode()
    if libc.mount(b"silent", os.fsencode(directory), b"fuse", 0, data):
        raise OSError(ctypes.get_errno(), "mount", directory)
    os.write(1, b"ready\n")
    if "background" in words and os.fork():
        os._exit(0)
    while True:
        _, opcode, unique, _ = _HEADER.unpack_from(os.read(fd, 1 << 17))
        answer = {_INIT: _INIT_OUT, _GETATTR: _ATTR_OUT, _STATFS: _STATFS_OUT}.get(opcode)
        if answer is not None:
            os.write(fd, struct.pack("=IiQ", 16 + len(answer), 0, unique) + answer)
        while opcode == _INIT and "deaf" in words:
            signal.pause()


if __name__ == "__main__":
    _serve(*sys.argv[1:])
