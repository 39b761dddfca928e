"""What each version of the CDI specification can say (SPEC.md, "Released versions"; the table is FEATURES), the least
version that says a given specification, and the specification that is left where an older one is all a consumer knows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from nvoci.cdi import names, shape
from nvoci.cdi.error import SpecError
from nvoci.errors import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from nvoci.cdi.model import ContainerEdits, Device, Mount, Spec

    Changed = tuple[ContainerEdits, list[str]]

VERSIONS = ("0.1.0", "0.2.0", "0.3.0", "0.4.0", "0.5.0", "0.6.0", "0.7.0", "0.8.0", "1.0.0", "1.1.0")
NEWEST = VERSIONS[-1]
OLDEST = "0.3.0"  # the least that a consumer takes: what came before has another form
_BIND = {"bind", "rbind"}
_KEEP_NODES = "declare 0.5.0 or later, or have the nodes at the same paths on the host"


@dataclass(frozen=True)
class Feature:
    """Something that can be said since `version`. used: whether a specification says it. without: the specification
    without it, and what was left out, in words; raises SpecError where nothing would be left."""

    version: str
    what: str
    used: Callable[[Spec], bool]
    without: Callable[[Spec], tuple[Spec, list[str]]]


def parse(text: str, where: str = "") -> tuple[int, ...]:
    """A known version as numbers, to be compared. Raises SpecError.

    >>> parse("v0.5.0") < parse("1.0.0")
    True
    """
    if not isinstance(text, str):
        raise SpecError(f"{type(text).__name__}, not a string", where)
    plain = text[1:] if text.startswith("v") else text
    if plain not in VERSIONS:
        raise SpecError(f'invalid version "{text}"', where, hint=f"known versions: {', '.join(VERSIONS)}")
    return tuple(int(part) for part in plain.split("."))


def minimum(spec: Spec) -> str:
    """The least version that can say what `spec` says, whatever version it declares. Raises SpecError for one with
    values of wrong types.

    >>> from nvoci.cdi.model import ContainerEdits, Device, Spec
    >>> minimum(Spec("", "nvidia.com/gpu", (Device("gpu0", ContainerEdits(env=("A=1",))),)))
    '0.3.0'
    >>> minimum(Spec("", "nvidia.com/gpu", (Device("gpu0", ContainerEdits(additional_gids=(44,))),)))
    '0.7.0'
    """
    shape.check(spec)
    newest = newest_used(spec)
    return newest.version if newest else OLDEST


def newest_used(spec: Spec) -> Feature | None:
    """What makes `minimum` what it is; None where every version can say it all."""
    return next((feature for feature in reversed(FEATURES) if feature.used(spec)), None)


def reduced(spec: Spec, version: str) -> tuple[Spec, tuple[str, ...]]:
    """A specification that `version` can say, which declares its own minimum, and one sentence for each thing that is
    left out; a device that would lose a device node, or of which nothing is left, is left out too. What only needs
    other words loses nothing: a hostPath that is the path, the type of a bind mount. Raises SpecError where there is no
    such specification, also where a node that every device has would be lost.

    >>> from nvoci.cdi.model import ContainerEdits, Device, Spec
    >>> edits = ContainerEdits(env=("A=1",), additional_gids=(44, 104))
    >>> old, left_out = reduced(Spec("0.7.0", "nvidia.com/gpu", (Device("0", edits),)), "0.5.0")
    >>> old.cdi_version, old.devices[0].container_edits.additional_gids, left_out
    ('0.5.0', (), ('additionalGids 44, 104 of device `0`: needs 0.7.0',))
    """
    wanted = parse(version)
    if wanted < parse(OLDEST):
        raise SpecError(f"version {version} is too old: {OLDEST} is the least that can be written", "cdiVersion")
    shape.check(spec)
    told: list[str] = []
    left = spec
    for feature in FEATURES:
        if parse(feature.version) > wanted and feature.used(left):
            left, words = feature.without(left)
            told += [f"{text}: needs {feature.version}" for text in words]
    devices = []
    before = {device.name: device for device in spec.devices}
    for device in left.devices:
        if device.container_edits or not before[device.name].container_edits:
            devices.append(device)
        else:
            told.append(f"{_device(device)}: nothing of it is left")
    if spec.devices and not devices:
        raise SpecError(f"version {version} can say nothing of its devices: {'; '.join(told[:3])}", "devices")
    left = replace(left, devices=tuple(devices))
    return replace(left, cdi_version=minimum(left)), tuple(told)


# --- what uses a feature -------------------------------------------------------------------------------------------


def _every_edits(spec: Spec) -> Iterator[ContainerEdits]:
    yield spec.container_edits
    for device in spec.devices:
        yield device.container_edits


def _any_edits(used: Callable[[ContainerEdits], bool]) -> Callable[[Spec], bool]:
    return lambda spec: any(used(edits) for edits in _every_edits(spec))


def _has_new_rdt(edits: ContainerEdits) -> bool:
    rdt = edits.intel_rdt
    return rdt is not None and (rdt.schemata is not None or rdt.enable_monitoring)


def _is_odd_name(device: Device) -> bool:
    return bool(device.name) and device.name[0] not in names.LETTERS


# --- leaving it out ------------------------------------------------------------------------------------------------


def _device(device: Device) -> str:
    return f"device `{printable(device.name)}`"


def _quoted(texts: tuple[str, ...] | list[str]) -> str:
    return ", ".join(f"`{printable(text)}`" for text in texts)


def _change_edits(change: Callable[[ContainerEdits], Changed]) -> Callable[[Spec], tuple[Spec, list[str]]]:
    """`change` gives the edits without something, and what that was; here it is done to all, and told of whom."""

    def without(spec: Spec) -> tuple[Spec, list[str]]:
        common, words = change(spec.container_edits)
        told = [f"{text} of every device" for text in words]
        devices = []
        for device in spec.devices:
            edits, words = change(device.container_edits)
            devices.append(replace(device, container_edits=edits))
            told += [f"{text} of {_device(device)}" for text in words]
        return replace(spec, container_edits=common, devices=tuple(devices)), told

    return without


def _no_net_devices(edits: ContainerEdits) -> Changed:
    words = [f"netDevices {_quoted([each.host_interface_name for each in edits.net_devices])}"]
    return replace(edits, net_devices=()), words if edits.net_devices else []


def _old_rdt(edits: ContainerEdits) -> Changed:
    """With what 0.7.0 knew of intelRdt. It goes whole where that is nothing: an empty one is a request too, for a
    class of service of the container's own."""
    rdt = edits.intel_rdt
    if rdt is None or not _has_new_rdt(edits):
        return edits, []
    parts = [*(["schemata"] if rdt.schemata is not None else []), *(["enableMonitoring"] * rdt.enable_monitoring)]
    plain = replace(rdt, schemata=None, enable_monitoring=False)
    left = plain if plain.clos_id or plain.l3_cache_schema or plain.mem_bw_schema else None
    return replace(edits, intel_rdt=left), [f"{' and '.join(parts)} in intelRdt"]


def _no_rdt(edits: ContainerEdits) -> Changed:
    return replace(edits, intel_rdt=None), ["intelRdt"] if edits.intel_rdt else []


def _no_gids(edits: ContainerEdits) -> Changed:
    words = [f"additionalGids {', '.join(map(str, edits.additional_gids))}"]
    return replace(edits, additional_gids=()), words if edits.additional_gids else []


def _no_annotations(spec: Spec) -> tuple[Spec, list[str]]:
    told = [f"annotations {_quoted(list(spec.annotations))} of the specification"] if spec.annotations else []
    told += [f"annotations {_quoted(list(each.annotations))} of {_device(each)}"
             for each in spec.devices if each.annotations]  # fmt: skip
    devices = tuple(replace(device, annotations={}) for device in spec.devices)
    return replace(spec, annotations={}, devices=devices), told


def _no_dotted_class(spec: Spec) -> tuple[Spec, list[str]]:
    raise SpecError(f"class `{spec.class_}` has a dot: needs 0.6.0", "kind", hint="choose another class")


def _no_odd_names(spec: Spec) -> tuple[Spec, list[str]]:
    told = [f"{_device(device)}, whose name starts with no letter" for device in spec.devices if _is_odd_name(device)]
    return replace(spec, devices=tuple(device for device in spec.devices if not _is_odd_name(device))), told


def _no_host_paths(spec: Spec) -> tuple[Spec, list[str]]:
    """A node that the host has elsewhere cannot be said. Another one in its place would be wrong, and a device without
    one of its nodes is none: a container would be started with what does not work."""
    lost = _nodes_elsewhere(spec.container_edits)
    if lost:
        raise SpecError(f"{lost} of every device: needs 0.5.0", "containerEdits.deviceNodes", hint=_KEEP_NODES)
    devices = []
    told = []
    for device in spec.devices:
        lost = _nodes_elsewhere(device.container_edits)
        if lost:
            told.append(f"{_device(device)}, which has {lost}")
        else:
            devices.append(replace(device, container_edits=_without_host_paths(device.container_edits)))
    return replace(spec, container_edits=_without_host_paths(spec.container_edits), devices=tuple(devices)), told


def _nodes_elsewhere(edits: ContainerEdits) -> str:
    """In words; "" where there is none."""
    found = [f"`{printable(node.path)}` from hostPath `{printable(node.host_path)}`"
             for node in edits.device_nodes if node.host_path not in {"", node.path}]  # fmt: skip
    return f"deviceNode {', '.join(found)}" if found else ""


def _without_host_paths(edits: ContainerEdits) -> ContainerEdits:
    return replace(edits, device_nodes=tuple([replace(node, host_path="") for node in edits.device_nodes]))


def _no_mount_types(edits: ContainerEdits) -> Changed:
    """The type of a bind mount is ignored where its options say bind, and can be said there. Any other mount would be
    another one without its type."""
    mounts: list[Mount] = []
    told = []
    for mount in edits.mounts:
        if not mount.type or _BIND & set(mount.options):
            mounts.append(replace(mount, type=""))
        elif mount.type == "bind":
            mounts.append(replace(mount, type="", options=(*mount.options, "bind")))
        else:
            told.append(f"mount `{printable(mount.container_path)}` of type `{printable(mount.type)}`")
    return replace(edits, mounts=tuple(mounts)), told


# Oldest first. 0.8.0 and 1.0.0 changed libraries, not documents.
FEATURES = (
    Feature("0.4.0", "the type of a mount",
            _any_edits(lambda edits: any(mount.type for mount in edits.mounts)), _change_edits(_no_mount_types)),
    Feature("0.5.0", "a device name that starts with no letter",
            lambda spec: any(_is_odd_name(device) for device in spec.devices), _no_odd_names),
    Feature("0.5.0", "hostPath of a device node",
            _any_edits(lambda edits: any(node.host_path for node in edits.device_nodes)),
            _no_host_paths),
    Feature("0.6.0", "annotations",
            lambda spec: bool(spec.annotations) or any(device.annotations for device in spec.devices),
            _no_annotations),
    Feature("0.6.0", "a dot in the class", lambda spec: bool(spec.vendor) and "." in spec.class_, _no_dotted_class),
    Feature("0.7.0", "intelRdt", _any_edits(lambda edits: edits.intel_rdt is not None), _change_edits(_no_rdt)),
    Feature("0.7.0", "additionalGids", _any_edits(lambda edits: bool(edits.additional_gids)),
            _change_edits(_no_gids)),
    Feature("1.1.0", "netDevices", _any_edits(lambda edits: bool(edits.net_devices)),
            _change_edits(_no_net_devices)),
    Feature("1.1.0", "schemata or enableMonitoring in intelRdt", _any_edits(_has_new_rdt), _change_edits(_old_rdt)),
)  # fmt: skip
