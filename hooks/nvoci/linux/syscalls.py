"""One small function for each system call that `posix` does not have: encode, call, raise OSError with the path.

No policy here. File descriptors are plain ints; paths are bytes. Structures are packed by hand, with the header
named. Each docstring gives the man page section 2 call of the same name unless it says otherwise.
"""

from __future__ import annotations

import posix
from _struct import pack, unpack_from
from errno import EFAULT

from nvoci.linux import abi
from nvoci.linux.libc import address, buffer, syscall

TYPE_CHECKING = False
if TYPE_CHECKING:
    import _ctypes
    from collections.abc import Sequence

    from nvoci.linux.libc import CChar

_NR = abi.NR


def _named(error: OSError, path: bytes) -> OSError:
    return OSError(error.errno, error.strerror, path)


def openat2(dirfd: int, path: bytes, flags: int, resolve: int, mode: int = 0) -> int:
    """openat2(2); struct open_how of linux/openat2.h is {u64 flags, mode, resolve}."""
    try:
        return syscall(_NR["openat2"], dirfd, path, pack("=QQQ", flags | posix.O_CLOEXEC, mode, resolve), 24)
    except OSError as e:
        raise _named(e, path) from None


def renameat2(olddirfd: int, old: bytes, newdirfd: int, new: bytes, flags: int) -> None:
    """renameat2(2)."""
    try:
        syscall(_NR["renameat2"], olddirfd, old, newdirfd, new, flags)
    except OSError as e:
        raise _named(e, new) from None


def open_tree(dirfd: int, path: bytes, flags: int) -> int:
    """open_tree(2), linux/mount.h."""
    try:
        return syscall(_NR["open_tree"], dirfd, path, flags | abi.OPEN_TREE_CLOEXEC)
    except OSError as e:
        raise _named(e, path) from None


def move_mount(from_fd: int, to_fd: int) -> None:
    """move_mount(2) of a detached mount onto a handle, both by descriptor."""
    flags = abi.MOVE_MOUNT_F_EMPTY_PATH | abi.MOVE_MOUNT_T_EMPTY_PATH
    syscall(_NR["move_mount"], from_fd, b"", to_fd, b"", flags)


def mount_setattr(fd: int, attr_set: int, propagation: int = 0, flags: int = 0) -> None:
    """mount_setattr(2) on the mount `fd` refers to; struct mount_attr is {u64 set, clr, propagation, userns_fd}."""
    attr = pack("=QQQQ", attr_set, 0, propagation, 0)
    syscall(_NR["mount_setattr"], fd, b"", flags | abi.AT_EMPTY_PATH, attr, len(attr))


def fsopen(fstype: bytes) -> int:
    """fsopen(2)."""
    return syscall(_NR["fsopen"], fstype, abi.FSOPEN_CLOEXEC)


def fsconfig_set_string(fd: int, key: bytes, value: bytes) -> None:
    """fsconfig(2), FSCONFIG_SET_STRING."""
    try:
        syscall(_NR["fsconfig"], fd, abi.FSCONFIG_SET_STRING, key, value, 0)
    except OSError as e:
        raise _named(e, key + b"=" + value) from None


def fsconfig_set_flag(fd: int, key: bytes) -> None:
    """fsconfig(2), FSCONFIG_SET_FLAG."""
    try:
        syscall(_NR["fsconfig"], fd, abi.FSCONFIG_SET_FLAG, key, None, 0)
    except OSError as e:
        raise _named(e, key) from None


def fsconfig_create(fd: int) -> None:
    """fsconfig(2), FSCONFIG_CMD_CREATE."""
    syscall(_NR["fsconfig"], fd, abi.FSCONFIG_CMD_CREATE, None, None, 0)


def fsmount(fd: int, attributes: int) -> int:
    """fsmount(2): a detached mount with MOUNT_ATTR_* attributes."""
    return syscall(_NR["fsmount"], fd, abi.FSMOUNT_CLOEXEC, attributes)


def mount(source: bytes | None, target: bytes, fstype: bytes | None, flags: int, data: bytes | None = None) -> None:
    """mount(2)."""
    try:
        syscall(_NR["mount"], source, target, fstype, flags, data)
    except OSError as e:
        raise _named(e, target) from None


def umount2(target: bytes, flags: int) -> None:
    """umount2(2)."""
    try:
        syscall(_NR["umount2"], target, flags)
    except OSError as e:
        raise _named(e, target) from None


def pivot_root(new_root: bytes, put_old: bytes) -> None:
    """pivot_root(2)."""
    try:
        syscall(_NR["pivot_root"], new_root, put_old)
    except OSError as e:
        raise _named(e, new_root) from None


def setns(fd: int, nstype: int) -> None:
    """setns(2)."""
    syscall(_NR["setns"], fd, nstype)


def unshare(flags: int) -> None:
    """unshare(2)."""
    syscall(_NR["unshare"], flags)


def pidfd_open(pid: int) -> int:
    """pidfd_open(2); the descriptor is close-on-exec by itself."""
    return syscall(_NR["pidfd_open"], pid, 0)


def memfd_create(name: bytes, flags: int) -> int:
    """memfd_create(2)."""
    return syscall(_NR["memfd_create"], name, flags)


def execveat(fd: int, path: bytes, argv: Sequence[bytes], envp: Sequence[bytes], flags: int) -> None:
    """execveat(2). Returns only by raising."""
    strings = [_c_string(s) for s in (*argv, *envp)]
    words = [address(s) for s in strings]
    argv_words = pack(f"={len(argv) + 1}Q", *words[: len(argv)], 0)
    envp_words = pack(f"={len(envp) + 1}Q", *words[len(argv) :], 0)
    syscall(_NR["execveat"], fd, path, argv_words, envp_words, flags)


def _c_string(text: bytes) -> _ctypes.Array[CChar]:
    array = buffer(len(text) + 1)
    array[: len(text)] = text  # type: ignore[call-overload]
    return array


def close_range(first: int, last: int) -> None:
    """close_range(2)."""
    syscall(_NR["close_range"], first, last, 0)


def prctl(option: int, arg2: int = 0, arg3: int = 0) -> int:
    """prctl(2)."""
    return syscall(_NR["prctl"], option, arg2, arg3)


def capset(effective: int, permitted: int, inheritable: int) -> None:
    """capset(2), this thread; 64-bit masks, split as struct __user_cap_data_struct[2] of linux/capability.h wants."""
    header = pack("=Ii", abi.LINUX_CAPABILITY_VERSION_3, 0)
    low, high = 0xFFFFFFFF, 32
    data = pack("=6I", effective & low, permitted & low, inheritable & low,
                effective >> high, permitted >> high, inheritable >> high)  # fmt: skip
    syscall(_NR["capset"], header, data)


def seccomp_load(program: bytes) -> None:
    """seccomp(2), SECCOMP_SET_MODE_FILTER; `program` is an array of struct sock_filter (8 bytes each)."""
    code = _c_string(program)
    # struct sock_fprog of linux/filter.h: {u16 len, (padding), pointer}
    syscall(_NR["seccomp"], abi.SECCOMP_SET_MODE_FILTER, 0, pack("=HxxxxxxQ", len(program) // 8, address(code)))


def seccomp_available() -> bool:
    """Whether seccomp(2) takes filters from us: a NULL program is EFAULT then, another errno otherwise."""
    try:
        syscall(_NR["seccomp"], abi.SECCOMP_SET_MODE_FILTER, 0, None)
    except OSError as e:
        return bool(e.errno == EFAULT)
    return False


def prlimit(resource: int, soft: int, hard: int) -> None:
    """prlimit(2) on this process."""
    syscall(_NR["prlimit64"], 0, resource, pack("=QQ", soft, hard), None)


def inotify_init1(flags: int) -> int:
    """inotify_init1(2)."""
    return syscall(_NR["inotify_init1"], flags)


def inotify_add_watch(fd: int, path: bytes, mask: int) -> int:
    """inotify_add_watch(2): the watch descriptor."""
    try:
        return syscall(_NR["inotify_add_watch"], fd, path, mask)
    except OSError as e:
        raise _named(e, path) from None


def statx_mount(fd: int, path: bytes = b"") -> tuple[int, bool]:
    """statx(2): (mount id, whether it is the root of a mount) of `fd`, or of `path` below it, links not followed.

    Offsets of struct statx, linux/stat.h: stx_mask at 0, stx_attributes at 8, stx_attributes_mask at 56,
    stx_mnt_id at 144. Raises OSError(ENOSYS) where the kernel (before 5.8) fills in neither.
    """
    out = buffer(256)
    syscall(_NR["statx"], fd, path, abi.AT_EMPTY_PATH | abi.AT_SYMLINK_NOFOLLOW, abi.STATX_MNT_ID, out)
    raw = bytes(out)
    mask, attributes, known = unpack_from("=I", raw, 0)[0], unpack_from("=Q", raw, 8)[0], unpack_from("=Q", raw, 56)[0]
    if not mask & abi.STATX_MNT_ID or not known & abi.STATX_ATTR_MOUNT_ROOT:
        raise OSError(38, "statx does not report mounts", path)
    return unpack_from("=Q", raw, 144)[0], bool(attributes & abi.STATX_ATTR_MOUNT_ROOT)


def fstatfs_type(fd: int) -> int:
    """fstatfs(2): f_type, the first word of struct statfs on both architectures (`long`)."""
    out = buffer(120)
    syscall(_NR["fstatfs"], fd, out)
    kind: int = unpack_from("=q", bytes(out))[0]
    return kind


def kill_self_at(seconds: float) -> None:
    """timer_create(2): SIGKILL for this process after `seconds`, whatever it waits in; it dies with the process.

    struct sigevent of asm-generic/siginfo.h: {sigval (8 bytes), int signo, int notify, padding to 64}.
    """
    timer = buffer(4)
    syscall(_NR["timer_create"], abi.CLOCK_MONOTONIC, pack("=Qii48x", 0, abi.SIGKILL, abi.SIGEV_SIGNAL), timer)
    timer_id = unpack_from("=i", bytes(timer))[0]
    whole = int(seconds)
    spec = pack("=qqqq", 0, 0, whole, int((seconds - whole) * 1_000_000_000))
    syscall(_NR["timer_settime"], timer_id, 0, spec, None)


