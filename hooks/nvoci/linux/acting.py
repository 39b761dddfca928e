"""Make files as another user for a moment.

A file system that was mounted in a user namespace (the /dev of a container, a tmpfs) takes no file of an owner that the
namespace does not map, host's root among them: EOVERFLOW.
"""

from __future__ import annotations

import posix
from _struct import unpack_from
from errno import EINVAL, ESRCH

from nvoci.linux import abi, procfs
from nvoci.linux.libc import address, buffer
from nvoci.linux.syscalls import prctl

_UNMAPPED = 65534  # how a group is shown that our user namespace does not map: DEFAULT_OVERFLOWGID, linux/highuid.h


class Acting:
    """For a `with`: effective ids are `uid` and `gid`, there are no supplementary groups, and the capabilities that are
    in force are none. Only in a process with one thread. When the ids change the kernel sets the dumpable flag anew, by
    fs.suid_dumpable, and forgets the signal that the process gets when its parent dies (commit_creds()); all of these
    are as before afterwards, but for groups that our user namespace does not map, which cannot be had again. Raises
    OSError.
    """

    __slots__ = ("_before", "_death_signal", "_groups", "_parent", "gid", "uid")

    def __init__(self, uid: int, gid: int) -> None:
        self.uid = uid
        self.gid = gid
        self._before = posix.geteuid(), posix.getegid()
        self._groups: list[int] | None = None  # those that were given up
        self._parent = posix.getppid()
        signal = buffer(4)
        prctl(abi.PR_GET_PDEATHSIG, address(signal))
        self._death_signal: int = unpack_from("=i", bytes(signal))[0]

    def __enter__(self) -> None:
        try:
            self._leave_groups()
            posix.setegid(self.gid)
            posix.seteuid(self.uid)
        except BaseException:
            self._return()
            raise

    def __exit__(self, *exc: object) -> None:
        self._return()

    def _leave_groups(self) -> None:
        """Where a user namespace forbids that (user_namespaces(7)), those in the container have them too."""
        groups = posix.getgroups()
        if not groups:
            return
        try:
            posix.setgroups([])
        except PermissionError:
            if procfs.read(b"self/setgroups").strip() != b"deny":
                raise
            return
        self._groups = groups

    def _rejoin_groups(self) -> None:
        groups, self._groups = self._groups, None
        if groups is None:
            return
        try:
            posix.setgroups(groups)
        except OSError as e:
            if e.errno != EINVAL:
                raise
            posix.setgroups([group for group in groups if group != _UNMAPPED])

    def _return(self) -> None:
        try:
            posix.seteuid(self._before[0])  # with it the capabilities that the rest needs
        finally:
            try:
                posix.setegid(self._before[1])
            finally:
                try:
                    self._rejoin_groups()
                finally:
                    self._forget()

    def _forget(self) -> None:
        """What the kernel did besides."""
        prctl(abi.PR_SET_DUMPABLE, 0)
        if self._death_signal:
            prctl(abi.PR_SET_PDEATHSIG, self._death_signal)
            if posix.getppid() != self._parent:
                raise OSError(ESRCH, "the parent is gone")
