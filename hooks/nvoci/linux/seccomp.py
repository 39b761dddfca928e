"""The seccomp(2) filter of a confined program: an allow-list, everything else is ENOSYS.

ENOSYS and not a signal: a C library newer than this list then falls back to an older call. What is missing matters
more than what is there: no clone, fork, ptrace, kill, mount, socket, ioctl, bpf, symlink, link, mknod. A program is
executed once, through one descriptor whose number it can never get again (see `EXEC_FD`).
"""

from __future__ import annotations

from _struct import pack

from nvoci.linux import abi

# The descriptor of the program itself. It lies above the RLIMIT_NOFILE that the program gets, so that no file that
# the program opens can have this number, and execveat(2) works for nothing else.
EXEC_FD = 64

# asm/unistd_64.h
_X86_64 = {
    "read": 0, "write": 1, "open": 2, "close": 3, "stat": 4, "fstat": 5, "lstat": 6, "poll": 7, "lseek": 8, "mmap": 9,
    "mprotect": 10, "munmap": 11, "brk": 12, "rt_sigaction": 13, "rt_sigprocmask": 14, "rt_sigreturn": 15,
    "pread64": 17, "pwrite64": 18, "readv": 19, "writev": 20, "access": 21, "sched_yield": 24, "mremap": 25,
    "msync": 26, "madvise": 28, "dup": 32, "dup2": 33, "nanosleep": 35, "getpid": 39, "sendfile": 40, "exit": 60,
    "uname": 63, "fcntl": 72, "flock": 73, "fsync": 74, "fdatasync": 75, "ftruncate": 77, "getdents": 78,
    "getcwd": 79, "chdir": 80, "fchdir": 81, "rename": 82, "unlink": 87, "readlink": 89, "chmod": 90, "fchmod": 91,
    "umask": 95, "gettimeofday": 96, "getrlimit": 97, "getrusage": 98, "sysinfo": 99, "times": 100, "getuid": 102,
    "getgid": 104, "geteuid": 107, "getegid": 108, "getppid": 110, "sigaltstack": 131, "statfs": 137, "fstatfs": 138,
    "arch_prctl": 158, "gettid": 186, "time": 201, "futex": 202, "sched_getaffinity": 204, "getdents64": 217,
    "set_tid_address": 218, "fadvise64": 221, "clock_gettime": 228, "clock_getres": 229, "clock_nanosleep": 230,
    "exit_group": 231, "tgkill": 234, "openat": 257, "newfstatat": 262, "unlinkat": 263, "renameat": 264,
    "readlinkat": 267, "fchmodat": 268, "faccessat": 269, "ppoll": 271, "set_robust_list": 273, "fallocate": 285,
    "dup3": 292, "prlimit64": 302, "renameat2": 316, "getrandom": 318, "statx": 332, "rseq": 334,
}  # fmt: skip
# asm-generic/unistd.h
_AARCH64 = {
    "getcwd": 17, "dup": 23, "dup3": 24, "fcntl": 25, "flock": 32, "unlinkat": 35, "renameat": 38, "statfs": 43,
    "fstatfs": 44, "ftruncate": 46, "fallocate": 47, "faccessat": 48, "chdir": 49, "fchdir": 50, "fchmod": 52,
    "fchmodat": 53, "openat": 56, "close": 57, "getdents64": 61, "lseek": 62, "read": 63, "write": 64, "readv": 65,
    "writev": 66, "pread64": 67, "pwrite64": 68, "sendfile": 71, "ppoll": 73, "readlinkat": 78, "newfstatat": 79,
    "fstat": 80, "fsync": 82, "fdatasync": 83, "exit": 93, "exit_group": 94, "set_tid_address": 96, "futex": 98,
    "set_robust_list": 99, "nanosleep": 101, "clock_gettime": 113, "clock_getres": 114, "clock_nanosleep": 115,
    "sched_getaffinity": 123, "sched_yield": 124, "tgkill": 131, "sigaltstack": 132, "rt_sigaction": 134,
    "rt_sigprocmask": 135, "rt_sigreturn": 139, "times": 153, "uname": 160, "getrlimit": 163, "getrusage": 165,
    "umask": 166, "gettimeofday": 169, "getpid": 172, "getppid": 173, "getuid": 174, "geteuid": 175, "getgid": 176,
    "getegid": 177, "gettid": 178, "sysinfo": 179, "brk": 214, "munmap": 215, "mremap": 216, "mmap": 222,
    "fadvise64": 223, "mprotect": 226, "msync": 227, "madvise": 233, "prlimit64": 261, "renameat2": 276,
    "getrandom": 278, "statx": 291, "rseq": 293,
}  # fmt: skip
_FACCESSAT2 = 439  # the same on both
ALLOWED = {"x86_64": _X86_64, "aarch64": _AARCH64}

# linux/bpf_common.h, linux/filter.h: class | size | mode, class | operation | source
_LD_W_ABS = 0x00 | 0x00 | 0x20
_JMP_JEQ_K = 0x05 | 0x10 | 0x00
_RET_K = 0x06
# linux/seccomp.h: struct seccomp_data {int nr; u32 arch; u64 ip; u64 args[6]}, and the actions
_NR, _ARCH, _ARG0 = 0, 4, 16
_RET_ALLOW = 0x7FFF0000
_RET_ERRNO_ENOSYS = 0x00050000 | 38


def _insn(code: int, jt: int, jf: int, k: int) -> bytes:
    """struct sock_filter of linux/filter.h."""
    return pack("=HBBI", code, jt, jf, k)


def program(machine: str) -> bytes:
    """The filter for `machine`, as an array of struct sock_filter.

        A = arch; if A != ours: deny          (i386 calls on x86_64)
        A = nr
        if A == execveat: A = args[0]; if A == EXEC_FD: allow, else deny
        for each allowed: if A == it: allow   (x32 numbers have bit 30 set and match nothing)
        deny: return ENOSYS
        allow: return ALLOW
    """
    allowed = [*ALLOWED[machine].values(), _FACCESSAT2]
    execveat = abi.syscall_numbers(machine)["execveat"]
    count = len(allowed)  # below 250: a jump offset is one byte
    code = [
        _insn(_LD_W_ABS, 0, 0, _ARCH),
        _insn(_JMP_JEQ_K, 0, count + 4, abi.AUDIT_ARCH[machine]),
        _insn(_LD_W_ABS, 0, 0, _NR),
        _insn(_JMP_JEQ_K, 0, 2, execveat),
        _insn(_LD_W_ABS, 0, 0, _ARG0),  # the low word: both machines are little-endian, and a descriptor is an int
        _insn(_JMP_JEQ_K, count + 1, count, EXEC_FD),
    ]
    code += [_insn(_JMP_JEQ_K, count - i, 0, number) for i, number in enumerate(allowed)]
    code += [_insn(_RET_K, 0, 0, _RET_ERRNO_ENOSYS), _insn(_RET_K, 0, 0, _RET_ALLOW)]
    return b"".join(code)
