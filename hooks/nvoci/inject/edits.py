"""From the edits of CDI devices to operations, and what cannot be done to a container that exists already."""

from __future__ import annotations

import posix

from nvoci import log
from nvoci.cdi import apply, hostnodes
from nvoci.cdi.error import SpecError
from nvoci.errors import HookError, errno_name, printable
from nvoci.inject import hooks, mountopts, mounts, nodes, program, sources, targets
from nvoci.linux.rootfs import fsencode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from nvoci.cdi.model import ContainerEdits, Mount
    from nvoci.hook.container import Container
    from nvoci.hook.enter import Place
    from nvoci.hook.operation import Operation
    from nvoci.inject.mountopts import MountOptions
    from nvoci.inject.sources import HostSource

_TMPFS = "tmpfs"


def looked_up(edits: ContainerEdits, place: Place) -> ContainerEdits:
    """The edits of one part of a specification, with what they leave to the host. Raises SpecError, told of its place
    in the document, for what the host does not have."""
    for i, mount in enumerate(edits.mounts):
        targets.check_path(mount.container_path, f"mounts[{i}].containerPath")
        if mountopts.is_bind(mount.type, mount.options):
            _check_source(mount.host_path, f"mounts[{i}].hostPath")
    for i, node in enumerate(edits.device_nodes):
        targets.check_path(node.path, f"deviceNodes[{i}].path")
        nodes.check(node, f"deviceNodes[{i}]")
    for i, hook in enumerate(edits.hooks):
        if hooks.is_run_on_host(hook, place):
            try:
                program.check(hook.path)
            except HookError as e:
                raise SpecError(e.message, f"hooks[{i}].path", hint=e.hint) from None
    return hostnodes.fill_in(edits)


def _check_source(path: str, where: str) -> None:
    try:
        posix.stat(sources.host_path(path))
    except OSError as e:
        raise SpecError(f"{printable(path)}: {errno_name(e.errno or 0)}", where, hint=sources.MISSING) from None
    except HookError as e:
        raise SpecError(e.message, where, hint=e.hint) from None


class _Wanted:
    """One mount: where, with which options, and of what (None: a tmpfs)."""

    __slots__ = ("options", "path", "source")

    def __init__(self, path: bytes, options: MountOptions, source: HostSource | None) -> None:
        self.path = path
        self.options = options
        self.source = source


class Prepared:
    """The edits with everything that is needed of the host. To be made on the host; says what comes too late, in one
    line, and one for each hook that is not run. Raises HookError."""

    __slots__ = ("_mounts", "_nodes")

    def __init__(self, edits: ContainerEdits, place: Place) -> None:
        count = len(edits.mounts), len(edits.device_nodes)
        if count[0] + nodes.DESCRIPTORS * count[1] > sources.MAX_SOURCES:
            raise HookError(f"inject: {count[0]} mounts and {count[1]} device nodes: too many",
                            f"at most {sources.MAX_SOURCES}, a node counting for {nodes.DESCRIPTORS}")  # fmt: skip
        late = _too_late(edits)
        self._mounts = _prepare_mounts(edits.mounts, late)
        self._nodes = nodes.prepare(edits.device_nodes, late)
        if late:
            said = "; ".join(f"{kind} {', '.join(map(printable, things))}" for kind, things in late.items())
            log.warning(f"inject: too late for a container that exists already, left out: {said}")
        for hook in edits.hooks:
            reason = hooks.why_not(hook, place)
            if reason:
                log.warning(f"inject: {hook.hook_name} hook {printable(hook.path)}: left out: {reason}")

    def operations(self, container: Container) -> list[Operation]:
        """Mounts, then device nodes, as a runtime makes them."""
        place = targets.Place(container.rootfs)
        found: list[Operation] = []
        for each in self._mounts:
            if each.source is None:
                found.append(mounts.Tmpfs(container, place, each.options, each.path))
            else:
                found.append(mounts.Bind(container, place, each.source, each.path))
        return found + nodes.operations(self._nodes, container, place)


def _too_late(edits: ContainerEdits) -> dict[str, list[str]]:
    """What belongs to the container's configuration and is not looked at any more; kind -> names."""
    rdt = edits.intel_rdt
    found = {
        "environment": list(dict.fromkeys(text.partition("=")[0] for text in edits.env)),
        "additional group ids": [str(gid) for gid in dict.fromkeys(edits.additional_gids) if gid],
        "network devices": [each.host_interface_name for each in edits.net_devices],
        "Intel RDT": [rdt.clos_id or "settings"] if rdt else [],
    }
    return {kind: names for kind, names in found.items() if names}


def _prepare_mounts(wanted: Iterable[Mount], late: dict[str, list[str]]) -> list[_Wanted]:
    """In the order in which they are made: of several with one destination the last, and parents first."""
    last: dict[str, Mount] = {}
    for mount in wanted:
        path = apply.clean(f"/{mount.container_path}")
        last.pop(path, None)
        last[path] = mount
    found = []
    for path, mount in sorted(last.items(), key=lambda item: item[0].count("/")):
        bind = mountopts.is_bind(mount.type, mount.options)
        if not bind and mount.type != _TMPFS:
            late.setdefault("mounts", []).append(f"{mount.container_path} (type {mount.type})")
            continue
        options = mountopts.parse(mount.options, tmpfs=not bind)
        late_options = [f"{option} of {mount.container_path}" for option in options.left_out]
        if late_options:
            late.setdefault("mount options", []).extend(late_options)
        source = sources.open_source(sources.host_path(mount.host_path), options) if bind else None
        found.append(_Wanted(fsencode(sources.container_path(path)), options, source))
    return found
