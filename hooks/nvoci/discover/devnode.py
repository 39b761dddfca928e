"""One device node: looked at by handle, and used only if it is what the kernel's tables say it should be."""

from __future__ import annotations

import posix
from _stat import S_IMODE, S_ISCHR, S_ISLNK

from nvoci.discover.model import DeviceNode
from nvoci.discover.node import ABSENT, type_name
from nvoci.discover.search import NOT_THERE, USED, Search, errno_words, read_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from nvoci.discover.node import Node

_MAKE = "remove it, and make it again: nvidia-modprobe, or restart udev"
# register_chrdev names in /proc/devices, by what nodes they are for; the first that is there counts.
NVIDIA = ("nvidia", "nvidia-frontend", "nvidiactl")
NVIDIA_MAJOR = 195  # assigned: Documentation/admin-guide/devices.txt
DRM_MAJOR = 226


class Majors:
    """The character devices' part of /proc/devices."""

    __slots__ = ("_numbers",)

    def __init__(self, node: Node, search: Search) -> None:
        self._numbers: dict[str, int] = {}
        text = read_text(search, node.proc, "/devices", "device numbers") or ""
        for line in text.partition("Block devices:")[0].split("\n"):
            words = line.split()
            if len(words) == 2 and words[0].isascii() and words[0].isdigit() and len(words[0]) < 10:
                self._numbers.setdefault(words[1], int(words[0]))

    def of(self, *names: str, default: int | None = None) -> int | None:
        """The number of the first of these drivers; the default where none of them is there."""
        return next((self._numbers[name] for name in names if name in self._numbers), default)


class Wanted:
    """A node to be looked at, and what it must be. path: below the dev root; major, minor: None where nothing is known
    about them; needed: whether it is a problem if it is not there."""

    __slots__ = ("capabilities", "kind", "links", "major", "minor", "needed", "owner", "path")

    def __init__(
        self,
        path: str,
        kind: str,
        *,
        major: int | None = None,
        minor: int | None = None,
        owner: str = "",
        capabilities: Sequence[str] = (),
        links: Sequence[tuple[str, str]] = (),
        needed: str = "",
    ) -> None:
        """needed: what to do where it is missing; "" where it need not be there."""
        self.path = path
        self.kind = kind
        self.major = major
        self.minor = minor
        self.owner = owner
        self.capabilities = tuple(capabilities)
        self.links = tuple(links)
        self.needed = needed


def take(node: Node, search: Search, wanted: Wanted) -> DeviceNode | None:
    """The node, if it is there and right; else why not is told."""
    lookup = search.begin("device", wanted.path)
    where = node.dev.host(wanted.path)
    try:
        hit = node.dev.resolve(wanted.path, posix.O_NOFOLLOW)
    except OSError as e:
        absent = e.errno in ABSENT
        words = NOT_THERE if absent else errno_words(e)
        lookup.tried(where, words)
        if wanted.needed or not absent:
            search.problem("use device", where, "ENOENT" if absent else words, wanted.needed)
        return None
    st = hit.stat
    words = _wrong(st, wanted)
    lookup.tried(where, words or f"{USED}: {posix.major(st.st_rdev)}:{posix.minor(st.st_rdev)}")
    if words:
        search.problem("use device", where, words, _MAKE)
        return None
    return DeviceNode(
        host_path=node.dev.source(hit),
        container_path=wanted.path,
        kind=wanted.kind,
        type="c",
        major=posix.major(st.st_rdev),
        minor=posix.minor(st.st_rdev),
        mode=S_IMODE(st.st_mode) & 0o777,
        uid=st.st_uid,
        gid=st.st_gid,
        owner=wanted.owner,
        capabilities=wanted.capabilities,
        links=wanted.links,
    )


def _wrong(st: posix.stat_result, wanted: Wanted) -> str:
    """What is wrong with it; "" for nothing."""
    if not S_ISCHR(st.st_mode):
        kind = "a link" if S_ISLNK(st.st_mode) else type_name(st.st_mode)
        return f"{kind}, not a character device"
    number = (posix.major(st.st_rdev), posix.minor(st.st_rdev))
    major = number[0] if wanted.major is None else wanted.major
    minor = number[1] if wanted.minor is None else wanted.minor
    return "" if number == (major, minor) else f"is {number[0]}:{number[1]}, should be {major}:{minor}"


def numbered(name: str, prefix: str) -> int | None:
    """3 of `nvidia3`; None where what follows the prefix is no number as the kernel writes one."""
    digits = name[len(prefix) :]
    if not name.startswith(prefix) or not digits.isascii() or not digits.isdigit() or len(digits) > 7:
        return None
    return int(digits) if digits == str(int(digits)) else None
