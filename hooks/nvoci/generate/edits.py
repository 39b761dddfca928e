"""Shares in the words of CDI."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nvoci.cdi.model import ContainerEdits, DeviceNode, Mount

if TYPE_CHECKING:
    from collections.abc import Iterable

    from nvoci.cdi.model import Hook
    from nvoci.discover import model
    from nvoci.generate.parts import Share

_PERMISSIONS = "rwm"
_ALL_READ_AND_WRITE = 0o006


def edits(share: Share, hooks: Iterable[Hook], gids: bool) -> ContainerEdits:
    """gids: whether processes are to be in the groups that the nodes are for."""
    path_only = share.path_only
    return ContainerEdits(
        env=share.env,
        device_nodes=tuple(_node(each, path_only) for each in share.nodes),
        hooks=tuple(hooks),
        mounts=tuple(Mount(each.host_path, each.container_path, each.options) for each in share.mounts),
        additional_gids=() if path_only or not gids else _groups(share.nodes),
    )


def _node(node: model.DeviceNode, path_only: bool) -> DeviceNode:
    """Numbers and mode are written, since a consumer is not to look at the host's node; the type is not, nor is the
    owner: nodes are root's."""
    host_path = "" if node.host_path == node.container_path else node.host_path
    if path_only:
        return DeviceNode(node.container_path, node.host_path)
    if not node.type:
        return DeviceNode(node.container_path, host_path)
    return DeviceNode(
        path=node.container_path,
        host_path=host_path,
        major=node.major,
        minor=node.minor,
        file_mode=node.mode,
        permissions=_PERMISSIONS,
        gid=node.gid or None,
    )


def _groups(nodes: Iterable[model.DeviceNode]) -> tuple[int, ...]:
    """Of nodes that not everybody may read and write."""
    closed = [each for each in nodes if each.mode & _ALL_READ_AND_WRITE != _ALL_READ_AND_WRITE]
    return tuple(sorted({each.gid for each in closed if each.type and each.gid}))
