"""Device nodes: the host's, mounted, and the device rule for each.

What a specification says of a node's mode and owner is the host's business here, since a mounted node is the host's
own; where it is something else, that is told. A rule never lets the container make nodes, whatever is asked for.
"""

from __future__ import annotations

import posix
from stat import S_IMODE

from nvoci import log
from nvoci.cdi import apply
from nvoci.cdi.error import SpecError
from nvoci.errors import HookError, errno_name, printable
from nvoci.hook import devices
from nvoci.hook.operation import AllowDevices
from nvoci.inject import sources, targets
from nvoci.linux.devicerule import DeviceRule
from nvoci.linux.fd import Fd
from nvoci.linux.rootfs import fsencode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from nvoci.cdi.model import DeviceNode
    from nvoci.hook.container import Container
    from nvoci.hook.operation import Operation, Transaction
    from nvoci.linux.mount import Mounted, Target

DESCRIPTORS = 3  # at most, of each
_FIFO = "p"
_ALL, _NONE = "rwm", "none"


class Wanted:
    """A node of the host, where it goes, and the access to allow: `rw`, `r`, `w`, or "" for none."""

    __slots__ = ("access", "path", "source")

    def __init__(self, path: bytes, source: devices.Source, access: str) -> None:
        self.path = path
        self.source = source
        self.access = access


def check(node: DeviceNode, where: str) -> None:
    """That the host has the node. Raises SpecError, told of `where`."""
    path = node.host_path or node.path
    if node.type == _FIFO:
        return
    try:
        posix.lstat(sources.host_path(path))
    except OSError as e:
        raise SpecError(f"device node {printable(path)}: {errno_name(e.errno or 0)}", where,
                        hint="check that its driver is loaded") from None  # fmt: skip
    except HookError as e:
        raise SpecError(e.message, where, hint=e.hint) from None


def prepare(wanted: Iterable[DeviceNode], late: dict[str, list[str]]) -> list[Wanted]:
    """Take each node of the host, of several for one path the last. To be called on the host; what cannot be done is
    added to `late`. Raises HookError."""
    last: dict[str, DeviceNode] = {}
    for node in wanted:
        path = apply.clean(f"/{node.path}")
        last.pop(path, None)
        last[path] = node
    found = []
    with Fd(posix.open(b"/", posix.O_PATH | posix.O_DIRECTORY | posix.O_CLOEXEC)) as root:
        for path, node in last.items():
            if node.type == _FIFO:
                late.setdefault("device nodes", []).append(f"{node.path} (a FIFO)")
                continue
            found.append(_take(node, path, root.fileno()))
            differing = _differing(node)
            if differing:
                late.setdefault("owners and modes of device nodes", []).append(differing)
    made = [printable(node.path) for node in last.values() if "m" in (node.permissions or _ALL)]
    if made:
        log.debug("inject: the container is not allowed to make device nodes", asked_for=", ".join(made))
    return found


def _take(node: DeviceNode, container_path: str, root: int) -> Wanted:
    path = fsencode(sources.host_path(node.host_path or node.path))
    number = ("b" if node.type == "b" else "c", node.major, node.minor)
    asked = "" if node.permissions == _NONE else node.permissions or _ALL
    access = "".join(letter for letter in "rw" if letter in asked)
    try:
        source = devices.Source.open(root, path, number)
    except OSError as e:
        raise HookError(f"use device {printable(path)}: {errno_name(e.errno or 0)}", "it cannot be mounted") from None
    return Wanted(fsencode(sources.container_path(container_path)), source, access)


def _differing(node: DeviceNode) -> str:
    """Where the specification asks for another owner or mode than the host's node has: that, in words."""
    st = posix.lstat(sources.host_path(node.host_path or node.path))
    said = []
    if node.file_mode is not None and node.file_mode & 0o777 != S_IMODE(st.st_mode) & 0o777:
        said.append(f"mode {node.file_mode & 0o777:04o}")
    for name, asked, given in (("uid", node.uid, st.st_uid), ("gid", node.gid, st.st_gid)):
        if asked is not None and asked != given:
            said.append(f"{name} {asked}")
    return f"{' '.join(said)} of {node.path}" if said else ""


def operations(wanted: Iterable[Wanted], container: Container, place: targets.Place) -> list[Operation]:
    """Mount each node and ask for its rule."""
    found: list[Operation] = []
    for each in wanted:
        found.append(Node(container, place, each.source, each.path))
        if each.access:
            found.append(AllowDevices([DeviceRule(*each.source.number, each.access)]))
    return found


class Node(devices.BindNode):
    """Mount a node, on a mount point that is found or made as for any mount."""

    __slots__ = ("_point", "place")

    def __init__(self, container: Container, place: targets.Place, source: devices.Source, path: bytes) -> None:
        super().__init__(container, source, path, allow=False)
        self.place = place
        self._point: targets.MountPoint | None = None

    def _find(self, transaction: Transaction) -> Target:
        self._point = targets.MountPoint(transaction.made())
        return targets.find(self.place, self.path, directory=False, point=self._point)

    def _remember(self, fd: int) -> None:
        self.place.add(fd)

    def _mount(self, target: Target) -> Mounted:
        targets.check(target, self.path, directory=False)
        return super()._mount(target)

    def undo(self) -> None:
        try:
            super().undo()
        finally:
            if self._point is not None:
                self._point.undo()
