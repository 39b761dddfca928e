"""Whether a specification says what the consumers of CDI accept (SPEC.md, "CDI JSON Specification"; what SPEC.md leaves
open is decided as the CDI project's own validators decide it).

Nothing is asked of the node: a path may lead nowhere, a name be in use. Where other tools look for a text in a message,
that text is kept: `the spec version must be at least`, `invalid device, empty device edits`.
"""

from __future__ import annotations

from itertools import islice

from nvoci.cdi import names, shape, version
from nvoci.cdi.error import SpecError
from nvoci.cdi.model import ContainerEdits
from nvoci.oci.hooksd import STAGES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from nvoci.cdi.model import Device, DeviceNode, IntelRdt, NetDevice, Spec

MAX_PROBLEMS = 1000  # a document of MAX_SPEC bytes can have a million of them
MAX_ANNOTATIONS = 256 << 10  # bytes of all keys and values together
NODE_TYPES = ("", "b", "c", "u", "p")
NO_PERMISSIONS = "none"
_MAX_CLOS_ID = 4095
_MAX_KEY_PREFIX = 253
_MAX_KEY_NAME = 63
_UINT32 = (1 << 32) - 1
_INT64 = (1 << 63) - 1


def validate(spec: Spec, file: str = "") -> None:
    """Raises the first of `problems`, told of `file`.

    >>> from nvoci.cdi.model import ContainerEdits, Device, DeviceNode, Spec
    >>> node = DeviceNode("/dev/nvidia0", host_path="/dev/nvidia0")
    >>> validate(Spec("0.3.0", "nvidia.com/gpu", (Device("gpu0", ContainerEdits(device_nodes=(node,))),)))
    Traceback (most recent call last):
    nvoci.cdi.error.SpecError: CDI: cdiVersion: the spec version must be at least v0.5.0
    """
    first = next(_problems(spec), None)
    if first is not None:
        raise first.with_file(file)


def problems(spec: Spec) -> list[SpecError]:
    """Everything that is wrong with it, but no more than MAX_PROBLEMS; each with its place in the document. Where
    something is of a wrong type, that is all that is told.

    >>> from nvoci.cdi.model import ContainerEdits, Device, Spec
    >>> spec = Spec("0.3.0", "nvidia.com/gpu", (Device("a", ContainerEdits(env=("A",))), Device("b-")))
    >>> [problem.where for problem in problems(spec)]
    ['devices[0].containerEdits.env[0]', 'devices[1].name', 'devices[1].containerEdits']
    """
    return list(islice(_problems(spec), MAX_PROBLEMS))


def edits_problems(edits: ContainerEdits, where: str = "containerEdits") -> list[SpecError]:
    """What is wrong with edits that belong to no specification, but no more than MAX_PROBLEMS."""
    wrong = shape.problems(edits, ContainerEdits, where)
    return wrong[:MAX_PROBLEMS] or list(islice(_edits(edits, where), MAX_PROBLEMS))


def _problems(spec: Spec) -> Iterator[SpecError]:
    wrong = shape.problems(spec)
    if wrong:
        yield from wrong
        return
    yield from _version(spec)
    yield from _raised(names.parse_kind, spec.kind, "kind")
    yield from _annotations(spec.annotations, "annotations")
    yield from _edits(spec.container_edits, "containerEdits")
    if not spec.devices:
        yield SpecError("invalid spec, no devices", "devices")
    first: dict[str, int] = {}
    for index, device in enumerate(spec.devices):
        where = f"devices[{index}]"
        before = first.setdefault(device.name, index)
        if before != index:
            yield SpecError(f'invalid spec, multiple device "{device.name}": devices[{before}] too', f"{where}.name")
        yield from _device(device, where)


def _raised(check: Callable[[str, str], object], text: str, where: str) -> Iterator[SpecError]:
    """The error that a function of `names` raises, as a value."""
    try:
        check(text, where)
    except SpecError as error:
        yield error


def _version(spec: Spec) -> Iterator[SpecError]:
    try:
        declared = version.parse(spec.cdi_version, "cdiVersion")
    except SpecError as error:
        yield error
        return
    feature = version.newest_used(spec)
    least = feature.version if feature else version.OLDEST
    if declared < version.parse(least):
        hint = f"since {least}: {feature.what}" if feature else "older ones have another form"
        yield SpecError(f"the spec version must be at least v{least}", "cdiVersion", hint=hint)


def _device(device: Device, where: str) -> Iterator[SpecError]:
    yield from _raised(names.check_device, device.name, f"{where}.name")
    yield from _annotations(device.annotations, f"{where}.annotations")
    if not device.container_edits:
        yield SpecError("invalid device, empty device edits", f"{where}.containerEdits")
    yield from _edits(device.container_edits, f"{where}.containerEdits")


# --- edits ---------------------------------------------------------------------------------------------------------


def _edits(edits: ContainerEdits, where: str) -> Iterator[SpecError]:
    yield from _env(edits.env, f"{where}.env")
    for index, node in enumerate(edits.device_nodes):
        yield from _node(node, f"{where}.deviceNodes[{index}]")
    yield from _net_devices(edits.net_devices, f"{where}.netDevices")
    for index, hook in enumerate(edits.hooks):
        place = f"{where}.hooks[{index}]"
        if hook.hook_name not in STAGES:
            yield SpecError(f'invalid hook name "{hook.hook_name}"', f"{place}.hookName",
                            hint=f"one of {', '.join(STAGES)}")  # fmt: skip
        yield from _given(hook.path, f"{place}.path")
        yield from _env(hook.env, f"{place}.env")
        yield from _within(hook.timeout, -_INT64 - 1, _INT64, f"{place}.timeout")
    for index, mount in enumerate(edits.mounts):
        yield from _given(mount.host_path, f"{where}.mounts[{index}].hostPath")
        yield from _given(mount.container_path, f"{where}.mounts[{index}].containerPath")
    if edits.intel_rdt is not None:
        yield from _intel_rdt(edits.intel_rdt, f"{where}.intelRdt")
    for index, gid in enumerate(edits.additional_gids):
        yield from _within(gid, 0, _UINT32, f"{where}.additionalGids[{index}]")


def _env(env: tuple[str, ...], where: str) -> Iterator[SpecError]:
    for index, text in enumerate(env):
        if text.find("=") < 1:
            yield SpecError(f'invalid environment variable "{text}"', f"{where}[{index}]", hint="write NAME=VALUE")


def _given(text: str, where: str) -> Iterator[SpecError]:
    if not text:
        yield SpecError("it is missing or empty", where)


def _within(number: int | None, low: int, high: int, where: str) -> Iterator[SpecError]:
    """The range of the type that consumers read it into."""
    if number is not None and not low <= number <= high:
        yield SpecError(f"{number} is not within {low}..{high}", where)


def _node(node: DeviceNode, where: str) -> Iterator[SpecError]:
    yield from _given(node.path, f"{where}.path")
    if node.type not in NODE_TYPES:
        yield SpecError(f'invalid type "{node.type}"', f"{where}.type", hint="one of b c u p, or none at all")
    # -1 would be a wildcard in the rule for the device cgroup.
    yield from _within(node.major, 0, _INT64, f"{where}.major")
    yield from _within(node.minor, 0, _INT64, f"{where}.minor")
    yield from _within(node.file_mode, 0, _UINT32, f"{where}.fileMode")
    if node.permissions != NO_PERMISSIONS and set(node.permissions) - set("rwm"):
        hint = f"letters of rwm, or {NO_PERMISSIONS}"
        yield SpecError(f'invalid permissions "{node.permissions}"', f"{where}.permissions", hint=hint)
    yield from _within(node.uid, 0, _UINT32, f"{where}.uid")
    yield from _within(node.gid, 0, _UINT32, f"{where}.gid")


def _net_devices(devices: tuple[NetDevice, ...], where: str) -> Iterator[SpecError]:
    hosts: dict[str, int] = {}
    inside: dict[str, int] = {}
    for index, device in enumerate(devices):
        for text, field, seen in ((device.host_interface_name, "hostInterfaceName", hosts),
                                  (device.name, "name", inside)):  # fmt: skip
            place = f"{where}[{index}].{field}"
            yield from _given(text, place)
            before = seen.setdefault(text, index)
            if text and before != index:
                yield SpecError(f'duplicate {field} "{text}": {where}[{before}] has it too', place)


def _intel_rdt(rdt: IntelRdt, where: str) -> Iterator[SpecError]:
    """closID is the name of a directory, or the root class."""
    text = rdt.clos_id
    wrong = text in {".", ".."} or "/" in text or "\n" in text or len(text.encode("utf-8", "replace")) > _MAX_CLOS_ID
    if wrong and text != "/":
        yield SpecError("invalid ClosID", f"{where}.closID", hint="a name without a slash, or / alone")


# --- annotations ---------------------------------------------------------------------------------------------------


def _annotations(annotations: Mapping[str, str], where: str) -> Iterator[SpecError]:
    """Kubernetes' rules (Annotations, "Syntax and character set")."""
    size = 0
    for key, text in annotations.items():
        size += len(key.encode("utf-8", "replace")) + len(text.encode("utf-8", "replace"))
        why = _wrong_key(key)
        if why:
            yield SpecError(why, f"{where}[{key}]", hint="[DNS-SUBDOMAIN/]NAME")
    if size > MAX_ANNOTATIONS:
        yield SpecError(f"keys and values have {size} bytes: at most {MAX_ANNOTATIONS} may be", where)


def _wrong_key(key: str) -> str:
    prefix, slash, name = key.rpartition("/")
    if slash and not _is_subdomain(prefix):
        return f"invalid key: `{prefix[:_MAX_KEY_PREFIX]}` is no DNS subdomain"
    if not _is_name(name, _MAX_KEY_NAME, "-_."):
        return "invalid key: its name is not 1 to 63 letters, digits and - _ . with a letter or digit at each end"
    return ""


def _is_subdomain(text: str) -> bool:
    """RFC 1123, of any case."""
    return len(text) <= _MAX_KEY_PREFIX and all(_is_name(label, _MAX_KEY_PREFIX, "-") for label in text.split("."))


def _is_name(text: str, longest: int, others: str) -> bool:
    """ASCII letters and digits, and in the middle also `others`."""
    plain = text.translate(dict.fromkeys(map(ord, others), "x"))
    ends = text[:1] + text[-1:]
    return 0 < len(text) <= longest and plain.isascii() and plain.isalnum() and ends.isalnum()
