"""User namespaces of other processes (user_namespaces(7)): whom their root is on the host."""

from __future__ import annotations

from nvoci.linux import procfs

NOBODY = 0xFFFFFFFF  # (uid_t) -1: owns nothing


def root_of(process: int) -> tuple[int, int] | None:
    """(uid, gid) that 0 of the user namespace of a process stands for in ours; NOBODY where it is not mapped; None
    where that namespace is ours. process: /proc/PID, open. Raises OSError."""
    if procfs.ns_id(b"ns/user", process) == procfs.ns_id(b"self/ns/user"):
        return None
    uid, gid = (_of_zero(procfs.read(name, dirfd=process)) for name in (b"uid_map", b"gid_map"))
    return uid, gid


def uid_map(process: int) -> list[tuple[int, int, int]]:
    """The map of its user namespace, sorted: the first inside, the first in ours, how many. Raises OSError."""
    lines = [line.split() for line in procfs.read(b"uid_map", dirfd=process).split(b"\n")]
    return sorted((int(line[0]), int(line[1]), int(line[2])) for line in lines if len(line) == 3)


def _of_zero(table: bytes) -> int:
    """Lines of three numbers: the first inside, the first outside, how many."""
    for line in table.split(b"\n"):
        fields = line.split()
        if len(fields) == 3 and fields[0] == b"0":
            return int(fields[1])
    return NOBODY
