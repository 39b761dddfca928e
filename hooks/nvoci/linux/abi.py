"""Numbers of the kernel ABI, in kernel spelling, with the header each comes from.

Only plain assignments: this is read at every container start. System call numbers are kept for the two
architectures nvoci runs on; another one is a clear error, never a wrong number.
"""

from __future__ import annotations

import posix

from nvoci.errors import HookError

# asm/unistd_64.h (x86_64) and asm-generic/unistd.h (aarch64); from 424 on the numbers are common to both.
_SYSCALLS_X86_64 = {
    "capget": 125, "capset": 126, "pivot_root": 155, "prctl": 157, "mount": 165, "umount2": 166, "timer_create": 222,
    "timer_settime": 223, "inotify_add_watch": 254, "unshare": 272, "inotify_init1": 294, "prlimit64": 302,
    "fstatfs": 138, "setns": 308, "renameat2": 316, "seccomp": 317, "memfd_create": 319, "bpf": 321, "execveat": 322,
    "statx": 332,
}  # fmt: skip
_SYSCALLS_AARCH64 = {
    "capget": 90, "capset": 91, "pivot_root": 41, "prctl": 167, "mount": 40, "umount2": 39, "timer_create": 107,
    "timer_settime": 110, "inotify_add_watch": 27, "unshare": 97, "inotify_init1": 26, "prlimit64": 261,
    "fstatfs": 44, "setns": 268, "renameat2": 276, "seccomp": 277, "memfd_create": 279, "bpf": 280, "execveat": 281,
    "statx": 291,
}  # fmt: skip
_SYSCALLS_COMMON = {
    "open_tree": 428, "move_mount": 429, "fsopen": 430, "fsconfig": 431, "fsmount": 432, "pidfd_open": 434,
    "close_range": 436, "openat2": 437, "mount_setattr": 442,
}  # fmt: skip

_BY_MACHINE = {"x86_64": _SYSCALLS_X86_64, "aarch64": _SYSCALLS_AARCH64}


def syscall_numbers(machine: str) -> dict[str, int]:
    """System call numbers of `machine` (as uname(2) names it). Raises HookError for an unknown one."""
    own = _BY_MACHINE.get(machine)
    if own is None:
        raise HookError(f"start: machine `{machine}` is not supported", "nvoci runs on x86_64 and aarch64")
    return {**own, **_SYSCALLS_COMMON}


MACHINE = posix.uname().machine
NR = syscall_numbers(MACHINE)

# linux/audit.h: what seccomp_data.arch holds.
AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

# linux/fcntl.h, asm-generic/fcntl.h
AT_FDCWD = -100
AT_SYMLINK_NOFOLLOW = 0x100
AT_RECURSIVE = 0x8000
AT_EMPTY_PATH = 0x1000
# asm-generic/fcntl.h; aarch64 swaps O_DIRECTORY and O_NOFOLLOW with others, so those two come from posix.
O_PATH = 0o10000000

# linux/openat2.h
RESOLVE_NO_XDEV = 0x01
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_IN_ROOT = 0x10

# linux/fs.h
RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2

# linux/magic.h
PROC_SUPER_MAGIC = 0x9FA0
SYSFS_MAGIC = 0x62656572
TMPFS_MAGIC = 0x01021994
CGROUP_SUPER_MAGIC = 0x27E0EB
CGROUP2_SUPER_MAGIC = 0x63677270
# fs/proc/root.c: the root directory of a procfs has inode 1.
PROC_ROOT_INO = 1
# include/linux/proc_ns.h: the cgroup namespace that the kernel starts with.
PROC_CGROUP_INIT_INO = 0xEFFFFFFB

# linux/sched.h
CLONE_NEWNS = 0x00020000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

# linux/mount.h
MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_REMOUNT = 32
MS_BIND = 4096
MS_MOVE = 8192
MS_REC = 16384
MS_SILENT = 32768
MS_PRIVATE = 1 << 18
MS_SLAVE = 1 << 19
MNT_DETACH = 2
UMOUNT_NOFOLLOW = 8
OPEN_TREE_CLONE = 1
OPEN_TREE_CLOEXEC = posix.O_CLOEXEC
MOVE_MOUNT_F_EMPTY_PATH = 0x04
MOVE_MOUNT_T_EMPTY_PATH = 0x40
FSOPEN_CLOEXEC = 1
FSMOUNT_CLOEXEC = 1
FSCONFIG_SET_FLAG = 0
FSCONFIG_SET_STRING = 1
FSCONFIG_CMD_CREATE = 6
MOUNT_ATTR_RDONLY = 0x01
MOUNT_ATTR_NOSUID = 0x02
MOUNT_ATTR_NODEV = 0x04
MOUNT_ATTR_NOEXEC = 0x08

# sys/statvfs.h: f_flag
ST_RDONLY = 1
ST_NOSUID = 2
ST_NODEV = 4
ST_NOEXEC = 8

# linux/prctl.h
PR_SET_PDEATHSIG = 1
PR_GET_PDEATHSIG = 2
PR_SET_DUMPABLE = 4
PR_CAPBSET_DROP = 24
PR_SET_SECUREBITS = 28
PR_SET_NO_NEW_PRIVS = 38
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_CLEAR_ALL = 4

# linux/capability.h
LINUX_CAPABILITY_VERSION_3 = 0x20080522
CAP_DAC_READ_SEARCH = 2
CAP_LAST_CAP_MAX = 63

# linux/memfd.h, linux/fcntl.h
MFD_CLOEXEC = 1
MFD_ALLOW_SEALING = 2
MFD_EXEC = 0x10
F_ADD_SEALS = 1033
F_GET_SEALS = 1034
F_SEAL_SEAL = 1
F_SEAL_SHRINK = 2
F_SEAL_GROW = 4
F_SEAL_WRITE = 8
F_SEAL_EXEC = 0x20

# linux/seccomp.h
SECCOMP_SET_MODE_FILTER = 1

# asm-generic/resource.h (the same on x86_64 and aarch64)
RLIMIT_CPU = 0
RLIMIT_FSIZE = 1
RLIMIT_DATA = 2
RLIMIT_CORE = 4
RLIMIT_NPROC = 6
RLIMIT_NOFILE = 7
RLIMIT_AS = 9
RLIMIT_MEMLOCK = 8

# linux/inotify.h
IN_MODIFY = 0x2
IN_CLOSE_WRITE = 0x8
IN_MOVED_FROM = 0x40
IN_MOVED_TO = 0x80
IN_CREATE = 0x100
IN_DELETE = 0x200
IN_DELETE_SELF = 0x400
IN_MOVE_SELF = 0x800
IN_Q_OVERFLOW = 0x4000
IN_IGNORED = 0x8000
IN_ONLYDIR = 0x01000000
IN_ISDIR = 0x40000000
IN_CLOEXEC = posix.O_CLOEXEC
IN_NONBLOCK = posix.O_NONBLOCK

# linux/stat.h: statx
STATX_MNT_ID = 0x1000
STATX_ATTR_MOUNT_ROOT = 0x2000

# time.h, asm-generic/siginfo.h
CLOCK_MONOTONIC = 1
SIGEV_SIGNAL = 0
SIGKILL = 9

# statfs(2), f_type of file systems that hold no files of an image: reading one of them acts on, or tells of, the host.
PSEUDO_FS = frozenset((
    PROC_SUPER_MAGIC, 0x62656572, 0x64626720, 0x74726163, 0x73636673, 0x27E0EB, 0x63677270, 0x62656570, 0xDE5E81E4,
    0x6165676C, 0xCAFE4A11, 0xF97CFF8C, 0x7655821, 0x42494E4D, 0x6E736673, 0x19800202, 0x1CD1, 0x50494446,
))  # proc, sysfs, debugfs, tracefs, securityfs, cgroup, cgroup2, configfs, efivarfs, pstore, bpf, selinux, resctrl,
# binfmt_misc, nsfs, mqueue, devpts, pidfs
