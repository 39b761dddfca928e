"""A kernel without the newer system calls: a seccomp filter that answers ENOSYS, then exec of the hook.

As a library: `prefix()` is the wrapper command. As a program: compat.py NAME[,NAME…] -- COMMAND…
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import sys
from collections.abc import Iterable
from pathlib import Path

# asm-generic/unistd.h and arch/x86/entry/syscalls/syscall_64.tbl: calls since 5.1 have one number everywhere.
NUMBERS = {
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "pidfd_open": (434, 434),
    "close_range": (436, 436),
    "openat2": (437, 437),
    "mount_setattr": (442, 442),
    "statx": (332, 291),
    "memfd_create": (319, 279),
    "renameat2": (316, 276),
    "execveat": (322, 281),
}
NEW_CALLS = (
    "openat2", "open_tree", "move_mount", "mount_setattr", "fsopen", "fsconfig", "fsmount", "pidfd_open", "close_range",
    "memfd_create",
)  # fmt: skip
AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}  # linux/audit.h

# linux/bpf_common.h
LD_W_ABS, JEQ_K, RET_K = 0x20, 0x15, 0x06
NR_OFFSET, ARCH_OFFSET = 0, 4  # struct seccomp_data: int nr; __u32 arch; …
RET_ALLOW, RET_ERRNO = 0x7FFF0000, 0x00050000
PR_SET_SECCOMP, SECCOMP_MODE_FILTER, PR_SET_NO_NEW_PRIVS = 22, 2, 38


def prefix(blocked: Iterable[str] = NEW_CALLS) -> list[str]:
    """The command to put in front of a hook's. In a user namespace the hook may not be able to read this checkout, so
    it is given a copy of this file that everybody can read."""
    from lib import session  # not where this runs as a program

    copy = session.tmp() / "compat.py"
    if not copy.exists():
        copy.write_bytes(Path(__file__).read_bytes())
        copy.chmod(0o644)
    return [os.path.realpath("/usr/bin/python3"), "-ISB", str(copy), ",".join(blocked), "--"]


def program(blocked: Iterable[str], machine: str, error: int = errno.ENOSYS) -> bytes:
    """The filter: struct sock_filter {__u16 code; __u8 jt, jf; __u32 k}[]."""
    numbers = [NUMBERS[name][machine == "aarch64"] for name in blocked]
    code = [
        (LD_W_ABS, 0, 0, ARCH_OFFSET),  # A = seccomp_data.arch
        (JEQ_K, 1, 0, AUDIT_ARCH[machine]),  # our machine: over the next one
        (RET_K, 0, 0, RET_ALLOW),  # another ABI (i386): left alone
        (LD_W_ABS, 0, 0, NR_OFFSET),  # A = seccomp_data.nr
    ]
    for left, number in zip(range(len(numbers), 0, -1), numbers):
        code.append((JEQ_K, left, 0, number))  # equal: over the remaining tests and the allow
    code += [(RET_K, 0, 0, RET_ALLOW), (RET_K, 0, 0, RET_ERRNO | error)]
    return b"".join(struct.pack("HBBI", *instruction) for instruction in code)


def install(blocked: Iterable[str]) -> None:
    """Load the filter into this process. Root needs no no_new_privs for it, and a hook should not get one from us."""
    code = program(blocked, platform.machine())
    buffer = ctypes.create_string_buffer(code, len(code))
    fprog = struct.pack("HxxxxxxP", len(code) // 8, ctypes.addressof(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_ulong]
    if libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, fprog, 0, 0) == 0:
        return
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, None, 0, 0)
    if libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, fprog, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl PR_SET_SECCOMP")


if __name__ == "__main__":
    install(filter(None, sys.argv[1].split(",")))
    os.execvp(sys.argv[3], sys.argv[3:])
