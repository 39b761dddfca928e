"""Make files as another user for a moment.

A file system that was mounted in a user namespace (the /dev of a container, a tmpfs) takes no file of an owner that the
namespace does not map, host's root among them: EOVERFLOW.
"""

from __future__ import annotations

import posix
from _struct import unpack_from
from errno import ESRCH

from nvoci.linux import abi
from nvoci.linux.libc import address, buffer
from nvoci.linux.syscalls import prctl


class Acting:
    """For a `with`: effective ids are `uid` and `gid`, and the capabilities that are in force none. Only in a process
    with one thread. When the ids change the kernel sets the dumpable flag anew, by fs.suid_dumpable, and forgets the
    signal that the process gets when its parent dies (commit_creds()); both are as before afterwards. Raises OSError.
    """

    __slots__ = ("_before", "_death_signal", "_parent", "gid", "uid")

    def __init__(self, uid: int, gid: int) -> None:
        self.uid = uid
        self.gid = gid
        self._before = posix.geteuid(), posix.getegid()
        self._parent = posix.getppid()
        signal = buffer(4)
        prctl(abi.PR_GET_PDEATHSIG, address(signal))
        self._death_signal: int = unpack_from("=i", bytes(signal))[0]

    def __enter__(self) -> None:
        try:
            posix.setegid(self.gid)
            posix.seteuid(self.uid)
        except OSError:
            self._return()
            raise

    def __exit__(self, *exc: object) -> None:
        self._return()

    def _return(self) -> None:
        posix.seteuid(self._before[0])
        posix.setegid(self._before[1])
        prctl(abi.PR_SET_DUMPABLE, 0)
        if self._death_signal:
            prctl(abi.PR_SET_PDEATHSIG, self._death_signal)
            if posix.getppid() != self._parent:
                raise OSError(ESRCH, "the parent is gone")
