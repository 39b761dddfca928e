"""A specification for other roots: it was made where the driver is in one directory, and is used where that is another.

Pure. A path moves if it is the old root or below it, by whole components of its normal form; others, and whatever is
no absolute path, stay as they are. `relative_to` says whose paths move, the host's or the container's.

The arguments of a createContainer or startContainer hook are paths of the container, those of other hooks the host's.
An argument is a path, two of them (`TARGET::LINK`) or, after `--link-if`, three; `--flag=PATH` stays as it is.
"""

from __future__ import annotations

import posixpath
from dataclasses import replace
from typing import TYPE_CHECKING

from nvoci.errors import HookError, printable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from nvoci.cdi.model import ContainerEdits, DeviceNode, Hook, Mount, Spec

    Move = Callable[[str], str]

HOST, CONTAINER = "host", "container"
_IN_CONTAINER = ("createContainer", "startContainer")  # their arguments; of the latter the program too
_STAGE = "transform root"


def root(spec: Spec, old: str, new: str, relative_to: str = HOST) -> Spec:
    """`spec` with what is below `old` moved below `new`; "" is /. Its version stays, though a host transform that does
    anything gives every device node a host path, which takes 0.5.0. Raises HookError for a root that is not absolute.
    """
    old, new = _clean(old), _clean(new)
    if old == new:
        return spec
    return _transformed(spec, old, new, relative_to)


def _clean(given: str) -> str:
    if given and not given.startswith("/"):
        raise HookError(f"{_STAGE}: `{printable(given)}` is not an absolute path", "give it from / on")
    return _normal(given)


def _normal(path: str) -> str:
    """Without `.`, `..` and repeated slashes, as `filepath.Clean` makes it (POSIX would keep two leading slashes)."""
    return posixpath.normpath("/" + path.lstrip("/"))


def _join(top: str, rest: str) -> str:
    """`rest` is "" or starts with a slash."""
    return (top.rstrip("/") + rest) or "/"


def _moved(path: str, old: str, new: str) -> str:
    if not path.startswith("/"):
        return path
    clean = _normal(path)
    if clean != old and not clean.startswith(old.rstrip("/") + "/"):
        return path
    return _join(new, "/" + clean[len(old) :].strip("/") if clean != old else "")


def _transformed(spec: Spec, old: str, new: str, relative_to: str) -> Spec:
    if relative_to not in {HOST, CONTAINER}:
        raise HookError(f"{_STAGE}: `{printable(relative_to)}` has no root", f"it is {HOST} or {CONTAINER}")

    def move(path: str) -> str:
        return _moved(path, old, new)

    edit = _host_edits if relative_to == HOST else _container_edits
    devices = tuple([replace(each, container_edits=edit(each.container_edits, move)) for each in spec.devices])
    return replace(spec, devices=devices, container_edits=edit(spec.container_edits, move))


def _host_edits(edits: ContainerEdits, move: Move) -> ContainerEdits:
    def node(each: DeviceNode) -> DeviceNode:
        return replace(each, host_path=move(each.host_path or each.path))

    def hook(each: Hook) -> Hook:
        if each.hook_name not in _IN_CONTAINER:
            each = replace(each, args=_arguments(each.args, move))
        return each if each.hook_name == "startContainer" else replace(each, path=move(each.path))

    def mount(each: Mount) -> Mount:
        return replace(each, host_path=move(each.host_path))

    return _edited(edits, node, hook, mount)


def _container_edits(edits: ContainerEdits, move: Move) -> ContainerEdits:
    def node(each: DeviceNode) -> DeviceNode:
        path = move(each.path)
        # Where no host path is given it is the path's: the node on the host must not move with it.
        return each if path == each.path else replace(each, path=path, host_path=each.host_path or each.path)

    def hook(each: Hook) -> Hook:
        if each.hook_name in _IN_CONTAINER:
            each = replace(each, args=_arguments(each.args, move))
        return replace(each, path=move(each.path)) if each.hook_name == "startContainer" else each

    def mount(each: Mount) -> Mount:
        return replace(each, container_path=move(each.container_path))

    return _edited(edits, node, hook, mount)


def _edited(edits: ContainerEdits, node: Callable[[DeviceNode], DeviceNode], hook: Callable[[Hook], Hook],
            mount: Callable[[Mount], Mount]) -> ContainerEdits:  # fmt: skip
    return replace(edits, device_nodes=tuple(map(node, edits.device_nodes)), hooks=tuple(map(hook, edits.hooks)),
                   mounts=tuple(map(mount, edits.mounts)))  # fmt: skip


def _arguments(args: Sequence[str], move: Move) -> tuple[str, ...]:
    moved = []
    for before, arg in zip(("", *args), args):
        node, is_conditional, link = arg.partition("=") if before.lstrip("-") == "link-if" else ("", "", arg)
        target, two, path = link.partition("::")
        moved.append(f"{move(node)}{is_conditional}{move(target)}{two}{move(path)}")
    return tuple(moved)
