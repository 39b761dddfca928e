"""Mount tables: /proc/self/mountinfo (proc(5)) read through our own procfs handle, and mount ids of descriptors."""

from __future__ import annotations

import posix
from errno import EFBIG, EINVAL

from nvoci.linux import procfs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

# 100,000 mounts (fs.mount-max) of 600 bytes.
_LIMIT = 64 << 20
_OCTAL = frozenset(b"01234567")
_LOOK_MAX = 1 << 16  # some 500 mounts, 1 ms: more are not looked through
# What the kernel answers for by itself, from memory or a disk. What is not here may be a daemon's, or a network's.
_LOCAL = frozenset(
    b"overlay aufs tmpfs ramfs devtmpfs ext2 ext3 ext4 xfs btrfs zfs bcachefs f2fs jfs reiserfs erofs squashfs cramfs "
    b"iso9660 udf vfat exfat msdos ntfs3 rootfs nullfs proc sysfs cgroup cgroup2 cpuset devpts mqueue securityfs "
    b"debugfs tracefs configfs efivarfs pstore bpf hugetlbfs binfmt_misc fusectl nsfs selinuxfs smackfs rpc_pipefs "
    b"resctrl".split()
)


class Mount:
    """One line of mountinfo. `root` is what of the file system is mounted, `target` where; both unescaped."""

    __slots__ = (
        "device", "fstype", "id", "options", "parent", "propagation", "root", "source", "super_options", "target",
    )  # fmt: skip

    def __init__(self, line: bytes) -> None:
        """Raises ValueError for a line that is not of mountinfo's form."""
        before, separator, after = line.partition(b" - ")
        fields, rest = before.split(b" "), after.split(b" ")
        if not separator or len(fields) < 6 or len(rest) < 3:
            raise ValueError("not a line of mountinfo")
        self.id = int(fields[0])
        self.parent = int(fields[1])
        self.device = fields[2]
        self.root = unescape(fields[3])
        self.target = unescape(fields[4])
        self.options = fields[5].split(b",")
        self.propagation = fields[6:]
        self.fstype = unescape(rest[0])
        self.source = unescape(rest[1])
        self.super_options = rest[2]


def unescape(text: bytes) -> bytes:
    """Undo the kernel's octal escapes (`\\040` for a space); a backslash without three digits stays."""
    if b"\\" not in text:
        return text
    first, *parts = text.split(b"\\")
    out = [first]
    for part in parts:
        digits = part[:3]
        if len(digits) == 3 and _OCTAL.issuperset(digits) and int(digits, 8) < 256:
            out.append(bytes((int(digits, 8),)) + part[3:])
        else:
            out.append(b"\\" + part)
    return b"".join(out)


def parse(table: bytes) -> Iterator[Mount]:
    """Every mount, in the kernel's order. Raises ValueError."""
    for line in table.split(b"\n"):
        if line:
            yield Mount(line)


def own_mounts() -> list[Mount]:
    """The mounts of the namespace that this process is in. Raises OSError."""
    try:
        return list(parse(own_table()))
    except ValueError as e:
        raise OSError(EINVAL, str(e), b"self/mountinfo") from None


def own_table() -> bytes:
    """mountinfo of the namespace that this process is in, as the kernel writes it: of thousands of mounts, splitting
    all lines takes ten times as long as reading them. Raises OSError."""
    return procfs.read(b"self/mountinfo", _LIMIT)


def find(number: int, table: bytes | None = None) -> Mount | None:
    """The mount with this id, from `table` or a fresh `own_table()`; no other line is split. Raises OSError."""
    line = _line(own_table() if table is None else table, number)
    try:
        return Mount(line) if line else None
    except ValueError as e:
        raise OSError(EINVAL, str(e), b"self/mountinfo") from None


def _line(table: bytes, number: int) -> bytes:
    key = b"%d " % number
    start = 0 if table.startswith(key) else table.find(b"\n" + key) + 1
    if not start and not table.startswith(key):
        return b""
    end = table.find(b"\n", start)
    return table[start:] if end < 0 else table[start:end]


def lineage(number: int, table: bytes | None = None) -> list[int]:
    """A mount's id, that of the mount it lies on, and so on, as far as `table` (`own_table()`) has them. Raises
    OSError."""
    if table is None:
        table = own_table()
    found = [number]
    while True:
        fields = _line(table, found[-1]).split(b" ", 2)
        if len(fields) < 3 or int(fields[1]) in found:
            return found
        found.append(int(fields[1]))


def ids(table: bytes) -> dict[int, int]:
    """The id of each mount in `table`, and that of the mount it lies on."""
    lines = [line.split(b" ", 2) for line in table.split(b"\n") if line]
    return {int(fields[0]): int(fields[1]) for fields in lines}


def tree_of(number: int, table: bytes) -> list[int]:
    """A mount's id, and those of all below it in `table`, each after what it lies on. A table is read in pieces while
    ids are given anew, so it may have a circle: what is in it is told once."""
    below: dict[int, list[int]] = {}
    for one, parent in ids(table).items():
        if one not in (parent, number):
            below.setdefault(parent, []).append(one)
    found = [number]
    for one in found:
        found += below.pop(one, [])
    return found


def mount_id(fd: int) -> int:
    """The id of the mount that `fd` was opened on, from /proc/self/fdinfo (Linux 3.15; statx has it from 5.8 only)."""
    for line in procfs.read(b"self/fdinfo/%d" % fd).split(b"\n"):
        key, _, value = line.partition(b":")
        if key == b"mnt_id":
            return int(value)
    raise OSError(EINVAL, "fdinfo has no mnt_id")


def may_wait(path: bytes) -> bool:
    """Whether who works below the directory `path` may have to wait for others than the kernel: it, or what is mounted
    in it, is no file system that the kernel answers for alone. True where there are too many mounts to say. Of the
    directory nothing but its mount's root is touched. Raises OSError. 25 mounts take 0.1 ms, and a fork 1."""
    try:
        table = procfs.read(b"self/mountinfo", _LOOK_MAX)
    except OSError as e:
        if e.errno != EFBIG:
            raise
        return True
    others = []
    for line in table.split(b"\n"):
        before, _, after = line.partition(b" - ")
        if after and after.partition(b" ")[0] not in _LOCAL:
            others.append(unescape(before.split(b" ", 5)[4]))
    others = [target for target in others if target != b"/"]  # the host's root: all would wait
    if not others or any(_is_in(path, target) for target in others):
        return bool(others)  # what leads through one of them is not asked for where it ends
    top = _resolved(path)
    return any(_is_in(target, top) for target in others)


def _is_in(path: bytes, directory: bytes) -> bool:
    return path == directory or path.startswith(directory + b"/")


def _resolved(path: bytes) -> bytes:
    fd = posix.open(path, posix.O_PATH | posix.O_NOFOLLOW | posix.O_CLOEXEC)
    try:
        return procfs.name_of(fd)
    finally:
        posix.close(fd)


def own_targets() -> list[bytes]:
    """Where the mounts of our namespace lie, unescaped; no more is read of each line. Raises OSError."""
    targets = []
    for line in procfs.read(b"self/mountinfo", _LIMIT).split(b"\n"):
        fields = line.split(b" ", 5)
        if len(fields) == 6:
            targets.append(unescape(fields[4]))
    return targets
