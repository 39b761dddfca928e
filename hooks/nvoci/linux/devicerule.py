"""A rule of the device cgroup, as everybody writes it who asks for one; linux/cgroup.py adds it."""

from __future__ import annotations

from nvoci.errors import HookError, printable

_MAX_MAJOR, _MAX_MINOR = (1 << 12) - 1, (1 << 20) - 1  # include/linux/kdev_t.h


class DeviceRule:
    """Leave to open one device: exact numbers, reading and writing only. str() is a line of devices.allow."""

    __slots__ = ("access", "major", "minor", "type")

    def __init__(self, type: str, major: int, minor: int, access: str = "rw") -> None:
        """type: `c` or `b`; access: `r`, `w` or `rw`, never `m`. Raises HookError for anything else."""
        if type not in ("c", "b") or access not in ("r", "w", "rw"):
            raise HookError(f"device rule `{printable(type)} {major}:{minor} {printable(access)}`: refused",
                            "a rule is for one device, and gives reading and writing only")  # fmt: skip
        if not (0 <= major <= _MAX_MAJOR and 0 <= minor <= _MAX_MINOR):
            raise HookError(f"device rule `{type} {major}:{minor}`: no such number", "major: 12 bits; minor: 20 bits")
        self.type = type
        self.major = major
        self.minor = minor
        self.access = access

    @classmethod
    def parse(cls, text: str) -> DeviceRule:
        """The rule that str() wrote. Raises HookError."""
        words = text.replace(":", " ").split(" ")
        if len(words) != 4 or len(text) > 32 or not text.isascii() or not (words[1].isdigit() and words[2].isdigit()):
            raise HookError(f"device rule `{printable(text)}`: refused", "please report it")
        return cls(words[0], int(words[1]), int(words[2]), words[3])

    def __str__(self) -> str:
        return f"{self.type} {self.major}:{self.minor} {self.access}"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, DeviceRule) and str(self) == str(other)

    def __hash__(self) -> int:
        return hash(str(self))
