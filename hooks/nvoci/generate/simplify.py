"""The least specification that says the same, in the order in which the reference tools write it."""

from __future__ import annotations

import posixpath
from dataclasses import replace
from typing import TYPE_CHECKING

from nvoci.cdi.model import ContainerEdits, Device

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import TypeVar

    from nvoci.cdi.model import Spec

    T = TypeVar("T")


def deduplicated(edits: ContainerEdits) -> ContainerEdits:
    """The first of each; groups by number."""
    return replace(
        edits,
        env=_unique(edits.env),
        device_nodes=_unique(edits.device_nodes),
        hooks=_unique(edits.hooks),
        mounts=_unique(edits.mounts),
        additional_gids=tuple(sorted(set(edits.additional_gids))),
    )


def _unique(things: Iterable[T]) -> tuple[T, ...]:
    return tuple(dict.fromkeys(things))


def _without(things: Iterable[T], known: set[T]) -> tuple[T, ...]:
    return tuple(each for each in things if each not in known)


def simplified(spec: Spec) -> Spec:
    """Without what is said twice, and what devices say that all of them have; but a device has to say something."""
    common = deduplicated(spec.container_edits)
    env, nodes, hooks = set(common.env), set(common.device_nodes), set(common.hooks)
    mounts, devices = set(common.mounts), []
    for device in spec.devices:
        edits = deduplicated(device.container_edits)
        rest = replace(
            edits,
            env=_without(edits.env, env),
            device_nodes=_without(edits.device_nodes, nodes),
            hooks=_without(edits.hooks, hooks),
            mounts=_without(edits.mounts, mounts),
        )
        devices.append(replace(device, container_edits=rest or edits))
    return replace(spec, container_edits=common, devices=tuple(devices))


def with_all(spec: Spec, name: str) -> Spec:
    """And a device that is all others, unless there is one of that name."""
    if any(device.name == name for device in spec.devices):
        return spec
    merged = ContainerEdits(
        env=_joined(spec, "env"),
        device_nodes=_joined(spec, "device_nodes"),
        hooks=_joined(spec, "hooks"),
        mounts=_joined(spec, "mounts"),
        additional_gids=_joined(spec, "additional_gids"),
    )
    return replace(spec, devices=(*spec.devices, Device(name, deduplicated(merged))))


def _joined(spec: Spec, part: str) -> tuple[T, ...]:
    return tuple(each for device in spec.devices for each in getattr(device.container_edits, part))


def in_order(spec: Spec) -> Spec:
    """Devices by name, nodes and mounts with what lies higher first; env and hooks as they are."""
    devices = [replace(device, container_edits=_sorted(device.container_edits)) for device in spec.devices]
    devices.sort(key=lambda device: device.name)
    return replace(spec, container_edits=_sorted(spec.container_edits), devices=tuple(devices))


def _sorted(edits: ContainerEdits) -> ContainerEdits:
    return replace(
        edits,
        device_nodes=tuple(sorted(edits.device_nodes, key=lambda node: _place(node.path))),
        mounts=tuple(sorted(edits.mounts, key=lambda mount: _place(mount.container_path))),
    )


def _place(path: str) -> tuple[int, str]:
    return posixpath.normpath(path).count("/"), path
