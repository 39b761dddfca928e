"""Shares of single devices, and what they are made of."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nvoci.generate.parts import CHMOD, CREATE_SYMLINKS, UPDATE_LDCACHE, Call, Link, Share

if TYPE_CHECKING:
    from collections.abc import Iterable

    from nvoci.discover.model import DeviceNode, Found

_CHMOD_DIRECTORIES = ("/dev/dri", "/dev/nvidia-caps")


def nodes_of(found: Found, owner: str, *kinds: str) -> list[DeviceNode]:
    """Of one owner, of some kinds."""
    return [each for each in found.device_nodes if each.owner == owner and each.kind in kinds]


def unique_nodes(nodes: Iterable[DeviceNode]) -> tuple[DeviceNode, ...]:
    """The first of each path in the container."""
    found: dict[str, DeviceNode] = {}
    for each in nodes:
        found.setdefault(each.container_path, each)
    return tuple(found.values())


def gpu_share(nodes: Iterable[DeviceNode], others: Iterable[DeviceNode] = ()) -> Share:
    """Of a whole GPU. others: nodes that it needs beside its own."""
    own = unique_nodes(nodes)
    return Share(nodes=unique_nodes((*own, *others)), calls=(by_path(own), chmod(own)))


def by_path(nodes: Iterable[DeviceNode]) -> Call:
    """The links that name DRM nodes by their PCI address, each only where its node is."""
    links = [Link(target, path, each.container_path) for each in nodes for target, path in each.links]
    return Call(CREATE_SYMLINKS, links=tuple(links))


def chmod(nodes: Iterable[DeviceNode]) -> Call:
    """For directories that a runtime makes for nodes, and closes to who is not root."""
    directories = dict.fromkeys([each.container_path.rpartition("/")[0] for each in nodes])
    return Call(CHMOD, tuple(each for each in directories if each in _CHMOD_DIRECTORIES))


def calls_of(found: Found) -> list[Call]:
    """Discovery's own hooks."""
    calls = []
    for hook in found.hooks:
        values = hook.args[1::2] if hook.name == UPDATE_LDCACHE else hook.args
        calls.append(Call(hook.name, tuple(values)))
    return calls
