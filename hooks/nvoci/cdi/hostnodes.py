"""What a specification leaves to the host: type, numbers and mode of device nodes. The one step of an injection that
looks at the node, so it stands alone, and comes before the pure ones."""

from __future__ import annotations

import os
from _stat import S_IFBLK, S_IFCHR, S_IFIFO, S_IFMT, S_IMODE
from dataclasses import replace

from nvoci.cdi import shape
from nvoci.cdi.error import SpecError
from nvoci.cdi.model import ContainerEdits
from nvoci.errors import errno_name, printable
from nvoci.jsonfile import path_from_json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from nvoci.cdi.model import DeviceNode

    Lstat = Callable[[str], os.stat_result]

_TYPES = {S_IFCHR: "c", S_IFBLK: "b", S_IFIFO: "p"}
_PERMISSIONS = 0o777
_HINT = "check that the driver is loaded and its device nodes are there, or generate the specification anew"


def fill_in(edits: ContainerEdits, lstat: Lstat = os.lstat) -> ContainerEdits:
    """The edits with what their device nodes leave out: type, numbers (where the major one is 0) and file mode are
    those of the host's node. One that has a type and numbers need not be there. Raises SpecError, told of
    `deviceNodes[i]`, for one that is missing, is no device node, or has another type than it should."""
    if not edits.device_nodes:
        return edits
    shape.check(edits, ContainerEdits)
    nodes = tuple([_filled(node, f"deviceNodes[{i}]", lstat) for i, node in enumerate(edits.device_nodes)])
    return edits if nodes == edits.device_nodes else replace(edits, device_nodes=nodes)


def _filled(node: DeviceNode, where: str, lstat: Lstat) -> DeviceNode:
    path = node.host_path or node.path
    whole = bool(node.type and (node.major or node.type == "p"))
    try:
        found = lstat(path_from_json(path))
    except (OSError, ValueError) as e:
        if whole:
            return node
        reason = errno_name(e.errno or 0) if isinstance(e, OSError) else "not a path"
        raise SpecError(f"stat device node {printable(path)}: {reason}", where, hint=_HINT) from None
    kind = _TYPES.get(S_IFMT(found.st_mode), "")
    mode = S_IMODE(found.st_mode) & _PERMISSIONS if kind and node.file_mode is None else node.file_mode
    if whole:
        return node if mode == node.file_mode else replace(node, file_mode=mode)
    if not kind:
        raise SpecError(f"stat device node {printable(path)}: not a device node", where, hint=_HINT)
    if node.type and kind != ("c" if node.type == "u" else node.type):
        why = f"stat device node {printable(path)}: its type is {kind}, not {printable(node.type)}"
        raise SpecError(why, where, hint=_HINT)
    given = bool(node.major) or kind == "p"
    return replace(
        node,
        type=node.type or kind,
        major=node.major if given else os.major(found.st_rdev),
        minor=node.minor if given else os.minor(found.st_rdev),
        file_mode=mode,
    )
