"""Mount options as CDI specifications write them: those of an OCI configuration (config.md, "Mounts")."""

from __future__ import annotations

from nvoci.linux import abi

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

_SET = {"ro": abi.MS_RDONLY, "nosuid": abi.MS_NOSUID, "nodev": abi.MS_NODEV, "noexec": abi.MS_NOEXEC}
_CLEAR = {"rw": abi.MS_RDONLY, "suid": abi.MS_NOSUID, "dev": abi.MS_NODEV, "exec": abi.MS_NOEXEC}
_PROPAGATION = {"private": abi.MS_PRIVATE, "slave": abi.MS_SLAVE}
_BINDS = ("bind", "rbind")
# What every mount of ours is, or has.
_NOTHING = ("defaults", "async", "relatime", "norelatime", "nomand", "nostrictatime", "atime", "diratime", "loud")
# Of a tmpfs, tmpfs(5): what is handed on to it, with the characters its value may have.
_TMPFS = ("size", "nr_blocks", "nr_inodes", "mode", "uid", "gid", "huge")
_TMPFS_VALUE = frozenset("0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ%_")


class MountOptions:
    """flags, all_flags: MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC of the mount, and of every mount in the tree.
    recursive: with what is mounted below. propagation: MS_PRIVATE or MS_SLAVE, of the whole tree.
    data: NAME=VALUE for a tmpfs. left_out: the options that are none of these, as written."""

    __slots__ = ("all_flags", "data", "flags", "left_out", "propagation", "recursive")

    def __init__(
        self, flags: int, all_flags: int, recursive: bool, propagation: int, data: list[str], left_out: list[str]
    ) -> None:
        self.flags = flags
        self.all_flags = all_flags
        self.recursive = recursive
        self.propagation = propagation
        self.data = data
        self.left_out = left_out

    def words(self) -> str:
        """For a message: `ro,nosuid,nodev`, or `rw,nodev`."""
        flags = self.flags | self.all_flags
        names = [name for name, bit in _SET.items() if flags & bit]
        return ",".join(names if flags & abi.MS_RDONLY else ["rw", *names])


def is_bind(kind: str, options: Sequence[str]) -> bool:
    """Whether a mount of type `kind` with these options shows a file or directory of the host."""
    return kind in ("", "none", "bind", "rbind") or any(word in _BINDS for word in options)


def parse(options: Sequence[str], *, tmpfs: bool = False) -> MountOptions:
    """Later options win. What a mount that is made late cannot be given, or nobody knows, is in `left_out`."""
    flags = {"": 0, "r": 0}
    recursive, propagation = False, abi.MS_PRIVATE
    data: list[str] = []
    left_out: list[str] = []
    for option in options:
        name, _, value = option.partition("=")
        prefix, plain = ("r", option[1:]) if option.startswith("r") and option[1:] in _TREE_WORDS else ("", option)
        if plain in _SET:
            flags[prefix] |= _SET[plain]
        elif plain in _CLEAR:
            flags[prefix] &= ~_CLEAR[plain]
        elif plain in _PROPAGATION:
            propagation = _PROPAGATION[plain]
        elif plain == "bind":
            recursive = prefix == "r"
        elif tmpfs and name in _TMPFS and value and _TMPFS_VALUE.issuperset(value):
            data.append(option)
        elif option not in _NOTHING:
            left_out.append(option)
    return MountOptions(flags[""], flags["r"], recursive, propagation, data, left_out)


_TREE_WORDS = frozenset((*_SET, *_CLEAR, *_PROPAGATION, "bind"))
