"""Whether a tmpfs that is mounted has the options that one is asked for (tmpfs(5))."""

from __future__ import annotations

import posix

from nvoci.linux import procfs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

_SUFFIXES = {"k": 10, "m": 20, "g": 30, "t": 40, "p": 50, "e": 60}
# What mountinfo leaves out (mm/shmem.c, shmem_show_options).
_DEFAULTS = {"mode": "1777", "uid": "0", "gid": "0", "huge": "never"}
_CAPACITIES = ("size", "nr_inodes")


def has(super_options: bytes, st: posix.statvfs_result, wanted: Sequence[str]) -> bool:
    """super_options: of its line of mountinfo; st: statvfs(3) of it; wanted: NAME=VALUE each, later ones win. A value
    that cannot be told is not had. Raises OSError."""
    seen = dict(_pair(word) for word in super_options.decode("ascii", "replace").split(","))
    asked = {"size" if name == "nr_blocks" else name: (name, value) for name, value in map(_pair, wanted)}
    for name, default in _DEFAULTS.items():
        if _plain(name, asked.get(name, (name, default))[1]) != _plain(name, seen.get(name, default)):
            return False
    try:
        return all(_fits(*asked[name], st) if name in asked else name not in seen for name in _CAPACITIES)
    except ValueError:
        return False


def _pair(word: str) -> tuple[str, str]:
    name, _, value = word.partition("=")
    return name, value


def _plain(name: str, value: str) -> str:
    return value.lstrip("0") if name == "mode" else value


def _fits(name: str, value: str, st: posix.statvfs_result) -> bool:
    """Whether statvfs(3) says the same of size (in pages, rounded up), nr_blocks or nr_inodes. Raises ValueError."""
    if name == "nr_inodes":
        return st.f_files == _number(value)
    if name == "nr_blocks":
        return st.f_blocks == _number(value)
    size = _memory() * int(value[:-1]) // 100 if value.endswith("%") else _number(value)
    return st.f_blocks == -(-size // st.f_bsize)


def _number(text: str) -> int:
    """As the kernel's memparse() reads it: decimal, 0x or 0 for octal, and a suffix. Raises ValueError."""
    digits, shift = text.lower(), 0
    if digits[-1:] in _SUFFIXES and not (digits.startswith("0x") and digits.endswith("e")):
        digits, shift = digits[:-1], _SUFFIXES[digits[-1]]
    base = 16 if digits.startswith("0x") else 8 if digits.startswith("0") and digits != "0" else 10
    return int(digits, base) << shift


def _memory() -> int:
    """MemTotal of proc_meminfo(5), in bytes. Raises ValueError, OSError."""
    for line in procfs.read(b"meminfo").split(b"\n"):
        if line.startswith(b"MemTotal:"):
            return int(line.split()[1]) << 10
    raise ValueError("no MemTotal")
