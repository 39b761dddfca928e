"""A process that exchanges two names as fast as it can: the other side of every race."""

from __future__ import annotations

import mmap
import os
import struct
import subprocess
import time
from pathlib import Path

from lib import session

# A file of 16 bytes is shared: rounds, then the request to stop. One round is one exchange.
_LOOP = """
import ctypes, mmap, os, struct, sys
a, b = (os.fsencode(p) for p in sys.argv[1:3])
shared = mmap.mmap(os.open(sys.argv[3], os.O_RDWR), 16)
words = memoryview(shared).cast("Q")
call = ctypes.CDLL(None, use_errno=True).renameat2
call.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint]
AT_FDCWD, RENAME_EXCHANGE = -100, 2
rounds = 0
parent = os.getppid()
while not words[1] or rounds % 2:
    if call(AT_FDCWD, a, AT_FDCWD, b, RENAME_EXCHANGE):
        words[1] = 1 << 32 | ctypes.get_errno()
        break
    rounds += 1
    words[0] = rounds
    if not rounds % 4096 and os.getppid() != parent:
        break
"""


class Flipper:
    """`with Flipper(a, b) as f:` exchanges `a` and `b` until the end, an even number of times. One file system only."""

    def __init__(self, a: str | Path, b: str | Path) -> None:
        self.names = (str(a), str(b))
        self._last = 0
        self._file = session.tmp() / session.unique("flip")

    def __enter__(self) -> Flipper:
        self._file.write_bytes(bytes(16))
        fd = os.open(self._file, os.O_RDWR)
        self._shared = mmap.mmap(fd, 16)
        os.close(fd)
        self._proc = subprocess.Popen([session.PYTHON, "-ISc", _LOOP, *self.names, str(self._file)])
        deadline = time.monotonic() + 10
        while not self.rounds and self._proc.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        if not self.rounds:
            self.stop()
            raise RuntimeError(f"exchange of {self.names} does not start")
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    @property
    def rounds(self) -> int:
        if self._shared.closed:
            return self._last
        count: int = struct.unpack_from("Q", self._shared)[0]
        return count

    def wait(self, rounds: int, timeout: float = 30.0) -> None:
        """Until `rounds` more exchanges are done."""
        goal, deadline = self.rounds + rounds, time.monotonic() + timeout
        while self.rounds < goal:
            if time.monotonic() > deadline or self._proc.poll() is not None:
                raise TimeoutError(f"{self.rounds} exchanges, {goal} wanted")
            time.sleep(0.001)

    def stop(self) -> int:
        """End after an even number of rounds: the names are as they were. The number of rounds."""
        if self._shared.closed:
            return self._last
        if self._proc.poll() is None:
            struct.pack_into("Q", self._shared, 8, 1)
            try:
                self._proc.wait(timeout=5)
            except subprocess.TimeoutExpired:
                self._proc.kill()
                self._proc.wait()
        self._last = self.rounds
        self._shared.close()
        self._file.unlink(missing_ok=True)
        return self._last
