"""The data of a CDI specification (CNCF CDI SPEC.md, "CDI JSON Specification"), up to version 1.1.0.

Frozen, comparable, nothing checked: `nvoci.cdi.validate` does that. Of what is given as several things a tuple is made;
one text, or none at all, in its place is a TypeError. An optional field that is not given is "", (), {} or 0 where that
means the same to every consumer, and None where given-but-zero means something else. Annotations count for equality,
not for the hash.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from nvoci.cdi.error import several

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping


def _as_tuples(model: object, *fields: str) -> None:
    """Instances are made by the thousand, nearly all with tuples."""
    for name in fields:
        value = getattr(model, name)
        if type(value) is not tuple:
            object.__setattr__(model, name, several(value, f"{type(model).__name__}.{name}"))


@dataclass(frozen=True)
class DeviceNode:
    """A device node for the container. path: in the container; host_path: on the host, "" where that is the same.
    type: c, u, b, p or ""; major, minor: 0 and a type of "" where the consumer is to look them up. file_mode:
    permission bits. permissions: for the device cgroup, some of rwm ("" means all of them), or none."""

    path: str
    host_path: str = ""
    type: str = ""
    major: int = 0
    minor: int = 0
    file_mode: int | None = None
    permissions: str = ""
    uid: int | None = None
    gid: int | None = None


@dataclass(frozen=True)
class NetDevice:
    """A network interface of the host, moved into the container under another name (since 1.1.0)."""

    host_interface_name: str
    name: str


@dataclass(frozen=True)
class Hook:
    """An OCI hook. hook_name: the stage. args: with args[0], the program's name. timeout: seconds."""

    hook_name: str
    path: str
    args: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    timeout: int | None = None

    def __post_init__(self) -> None:
        _as_tuples(self, "args", "env")


@dataclass(frozen=True)
class Mount:
    """A file or directory of the host and its place in the container. type: of the mount, "" for a bind mount."""

    host_path: str
    container_path: str
    options: tuple[str, ...] = ()
    type: str = ""

    def __post_init__(self) -> None:
        _as_tuples(self, "options")


@dataclass(frozen=True)
class IntelRdt:
    """Resource Director Technology, as in the OCI runtime specification. schemata (since 1.1.0): () is given and
    empty, None is not given."""

    clos_id: str = ""
    l3_cache_schema: str = ""
    mem_bw_schema: str = ""
    schemata: tuple[str, ...] | None = None
    enable_monitoring: bool = False

    def __post_init__(self) -> None:
        if self.schemata is not None:
            _as_tuples(self, "schemata")


@dataclass(frozen=True)
class ContainerEdits:
    """What a device changes in a container. env: `NAME=value`. additional_gids: of its process."""

    env: tuple[str, ...] = ()
    device_nodes: tuple[DeviceNode, ...] = ()
    net_devices: tuple[NetDevice, ...] = ()
    hooks: tuple[Hook, ...] = ()
    mounts: tuple[Mount, ...] = ()
    intel_rdt: IntelRdt | None = None
    additional_gids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        _as_tuples(self, "env", "device_nodes", "net_devices", "hooks", "mounts", "additional_gids")

    def __bool__(self) -> bool:
        """Whether it changes anything."""
        lists = self.env or self.device_nodes or self.net_devices or self.hooks or self.mounts or self.additional_gids
        return bool(lists) or self.intel_rdt is not None


_NOTHING = ContainerEdits()


@dataclass(frozen=True)
class Device:
    """A device by name, within the kind of its specification."""

    name: str
    container_edits: ContainerEdits = _NOTHING
    annotations: Mapping[str, str] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class Spec:
    """A specification. kind: VENDOR/CLASS. container_edits: made once for a container that gets any of the devices."""

    cdi_version: str
    kind: str
    devices: tuple[Device, ...] = ()
    container_edits: ContainerEdits = _NOTHING
    annotations: Mapping[str, str] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        _as_tuples(self, "devices")

    @property
    def vendor(self) -> str:
        """The part of `kind` before the slash."""
        return self.kind.partition("/")[0]

    @property
    def class_(self) -> str:
        """The part of `kind` after the slash."""
        return self.kind.partition("/")[2]
