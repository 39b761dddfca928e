"""`Found`: what a node has for containers. Four nouns (device nodes, mounts, variables, hooks), the GPUs and the driver
they belong to, and the problems met on the way.

Data only: immutable, comparable, and JSON both ways (`nvoci.discover.record`). It is shaped by what a CDI
specification needs; who wants less narrows it. Hot module: the inventory is read into it at every container start.
"""

from __future__ import annotations

from nvoci.discover.record import (
    REQUIRED,
    Record,
    links,
    natural,
    one_of,
    optional,
    path,
    record,
    texts,
    tuple_of,
)
from nvoci.errors import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# What NVIDIA_DRIVER_CAPABILITIES selects; `gds` is for what belongs to GPUDirect Storage alone.
CAPABILITIES = ("compute", "utility", "video", "graphics", "display", "ngx", "compat32", "gds")
NODE_KINDS = (
    "gpu", "control", "mig", "mig-config", "mig-monitor", "drm", "imex", "nvswitch", "nvlink", "gds", "mofed",
    "gdrcopy", "tegra", "wsl", "other",
)  # fmt: skip
MOUNT_KINDS = ("library", "binary", "firmware", "socket", "config", "directory", "file")
READ_ONLY = ("ro", "nosuid", "nodev", "rbind", "rprivate")
SOCKET = ("nosuid", "nodev", "rbind", "rprivate", "noexec")
# nvmlBrandType_t of nvml.h, as `nvidia-container-cli info` and NVIDIA_REQUIRE_* spell them.
BRANDS = (
    "Unknown", "Quadro", "Tesla", "NVS", "GRID", "GeForce", "TITAN", "VApps", "VPC", "VCS", "VWS", "CloudGaming",
    "QuadroRTX", "NvidiaRTX", "Nvidia", "GeForceRTX", "TitanRTX",
)  # fmt: skip
ADDRESSING_MODES = ("", "none", "hmm", "ats")


class DeviceNode(Record):
    """A device node, or a place for one: without a type it is told by its paths alone.

    type: c or b. mode: permission bits. owner: the UUID of the GPU or MIG device, or the number of the channel, that it
    belongs to; "" where it is everybody's. links: (target, link) in the container, such as those of /dev/dri/by-path.
    """

    SCHEMA = {
        "host_path": (path, REQUIRED),
        "container_path": (path, REQUIRED),
        "kind": (one_of(*NODE_KINDS), REQUIRED),
        "type": (one_of("", "c", "b"), ""),
        "major": (natural, 0),
        "minor": (natural, 0),
        "mode": (natural, 0),
        "uid": (natural, 0),
        "gid": (natural, 0),
        "owner": (str, ""),
        "capabilities": (tuple_of(one_of(*CAPABILITIES)), ()),
        "links": (links, ()),
    }
    __slots__ = tuple(SCHEMA)
    host_path: str
    container_path: str
    kind: str
    type: str
    major: int
    minor: int
    mode: int
    uid: int
    gid: int
    owner: str
    capabilities: tuple[str, ...]
    links: tuple[tuple[str, str], ...]


class Mount(Record):
    """A file (or directory) of the host and where it goes.

    soname: of a library, "" where it has none. links: (target, link) to be made for it in the container, in order:
    `("libcuda.so.1", "/usr/lib64/libcuda.so")`. capabilities: () where it belongs to the driver as such.
    """

    SCHEMA = {
        "host_path": (path, REQUIRED),
        "container_path": (path, REQUIRED),
        "kind": (one_of(*MOUNT_KINDS), REQUIRED),
        "options": (texts, READ_ONLY),
        "capabilities": (tuple_of(one_of(*CAPABILITIES)), ()),
        "soname": (str, ""),
        "links": (links, ()),
    }
    __slots__ = tuple(SCHEMA)
    host_path: str
    container_path: str
    kind: str
    options: tuple[str, ...]
    capabilities: tuple[str, ...]
    soname: str
    links: tuple[tuple[str, str], ...]


class Variable(Record):
    """An environment variable of the container. owner: as for a device node."""

    SCHEMA = {"name": (str, REQUIRED), "value": (str, REQUIRED), "owner": (str, "")}
    __slots__ = tuple(SCHEMA)
    name: str
    value: str
    owner: str


class Hook(Record):
    """A subcommand of nvidia-cdi-hook and its arguments. owner: as for a device node."""

    SCHEMA = {"name": (str, REQUIRED), "args": (texts, ()), "owner": (str, "")}
    __slots__ = tuple(SCHEMA)
    name: str
    args: tuple[str, ...]
    owner: str


class MigDevice(Record):
    """A compute instance of a GPU in MIG mode, as NVML lists it.

    parent, parent_index: UUID and NVML index of its GPU. index: its place in NVML's list, the M of `G:M`.
    gpu_instance, compute_instance: the ids in /proc/driver/nvidia/capabilities. profile: `1c.3g.20gb+me`, "" where
    NVML does not tell enough. profile_id: of the GPU instance; None where NVML keeps it from unprivileged users.
    Counts and memory (MiB) are nvmlDeviceAttributes_t, 0 where unknown. cap_nodes: its /dev/nvidia-caps nodes.
    """

    SCHEMA = {
        "uuid": (str, REQUIRED),
        "parent": (str, REQUIRED),
        "parent_index": (natural, REQUIRED),
        "index": (natural, REQUIRED),
        "gpu_instance": (natural, REQUIRED),
        "compute_instance": (natural, REQUIRED),
        "profile": (str, ""),
        "profile_id": (optional(natural), None),
        "gpu_instance_slices": (natural, 0),
        "compute_instance_slices": (natural, 0),
        "memory_mib": (natural, 0),
        "multiprocessors": (natural, 0),
        "copy_engines": (natural, 0),
        "decoders": (natural, 0),
        "encoders": (natural, 0),
        "jpeg_engines": (natural, 0),
        "ofa_engines": (natural, 0),
        "cap_nodes": (tuple_of(path), ()),
    }
    __slots__ = tuple(SCHEMA)
    uuid: str
    parent: str
    parent_index: int
    index: int
    gpu_instance: int
    compute_instance: int
    profile: str
    profile_id: int | None
    gpu_instance_slices: int
    compute_instance_slices: int
    memory_mib: int
    multiprocessors: int
    copy_engines: int
    decoders: int
    encoders: int
    jpeg_engines: int
    ofa_engines: int
    cap_nodes: tuple[str, ...]

    @property
    def name(self) -> str:
        """`G:M`: GPU index and place in its list."""
        return f"{self.parent_index}:{self.index}"

    @property
    def graphics(self) -> bool:
        """Whether its profile has the attribute `gfx`, which is what gives it DRM nodes."""
        return "+gfx" in self.profile


class Gpu(Record):
    """A GPU that answers. What NVML does not offer for it is None or "".

    index: NVML's. minor: of /dev/nvidiaN. pci_bus_id: as the kernel spells it (0000:07:00.0), nvml_bus_id as NVML does
    (00000000:07:00.0). brand: nvmlBrandType_t. memory: bytes. drm_nodes: paths below the dev root.
    """

    SCHEMA = {
        "index": (natural, REQUIRED),
        "uuid": (str, REQUIRED),
        "minor": (optional(natural), None),
        "pci_bus_id": (str, ""),
        "nvml_bus_id": (str, ""),
        "pci_device_id": (optional(natural), None),
        "name": (str, ""),
        "brand": (natural, 0),
        "compute_capability": (optional(tuple_of(natural, 2)), None),
        "memory": (optional(natural), None),
        "numa_node": (optional(natural), None),
        "addressing_mode": (one_of(*ADDRESSING_MODES), ""),
        "mig_capable": (bool, False),
        "mig_enabled": (bool, False),
        "max_mig_devices": (natural, 0),
        "mig_devices": (tuple_of(record(MigDevice)), ()),
        "drm_nodes": (tuple_of(path), ()),
    }
    __slots__ = tuple(SCHEMA)
    index: int
    uuid: str
    minor: int | None
    pci_bus_id: str
    nvml_bus_id: str
    pci_device_id: int | None
    name: str
    brand: int
    compute_capability: tuple[int, int] | None
    memory: int | None
    numa_node: int | None
    addressing_mode: str
    mig_capable: bool
    mig_enabled: bool
    max_mig_devices: int
    mig_devices: tuple[MigDevice, ...]
    drm_nodes: tuple[str, ...]

    @property
    def brand_name(self) -> str:
        """In the spelling of `nvidia-container-cli info`."""
        return BRANDS[self.brand] if self.brand < len(BRANDS) else BRANDS[0]

    @property
    def architecture(self) -> str:
        """The compute capability as `8.0`; "" where it is unknown."""
        return "{}.{}".format(*self.compute_capability) if self.compute_capability else ""

    @property
    def integrated(self) -> bool:
        """Whether it is the GPU of a Tegra system, told by its name as the reference tools do."""
        return "(nvgpu)" in self.name or "NVIDIA Thor" in self.name

    @property
    def coherent(self) -> bool:
        """Whether it shares page tables with the CPU (address translation services), as on Grace Hopper."""
        return self.addressing_mode == "ats"


class Driver(Record):
    """The driver. version: of the user-space files in use; module_version: of the kernel module, "" where it is not
    loaded. cuda_version: the newest CUDA that it runs, (major, minor). root, dev_root: where it and its device nodes
    lie on the host. library_dirs: the directories that hold libraries of its version, root stripped."""

    SCHEMA = {
        "version": (str, ""),
        "module_version": (str, ""),
        "cuda_version": (optional(tuple_of(natural, 2)), None),
        "root": (path, "/"),
        "dev_root": (path, "/"),
        "library_dirs": (tuple_of(path), ()),
        "nvml_path": (str, ""),
        "nvml_version": (str, ""),
    }
    __slots__ = tuple(SCHEMA)
    version: str
    module_version: str
    cuda_version: tuple[int, int] | None
    root: str
    dev_root: str
    library_dirs: tuple[str, ...]
    nvml_path: str
    nvml_version: str


class Problem(Record):
    """Something that could not be had, and was left out. stage: what was done; subject: with what; error: the name of
    an errno or NVML error, or a few words; hint: what to do."""

    SCHEMA = {"stage": (str, REQUIRED), "subject": (str, REQUIRED), "error": (str, REQUIRED), "hint": (str, "")}
    __slots__ = tuple(SCHEMA)
    stage: str
    subject: str
    error: str
    hint: str

    def line(self) -> str:
        """One line, in the form of HookError."""
        message = printable(f"{self.stage} {self.subject}: {self.error}")
        return f"{message} ({printable(self.hint)})" if self.hint else message


class Found(Record):
    """All of it. A consumer narrows it to a request; nobody changes it."""

    SCHEMA: dict[str, tuple[Any, Any]] = {
        "driver": (record(Driver), REQUIRED),
        "gpus": (tuple_of(record(Gpu)), ()),
        "device_nodes": (tuple_of(record(DeviceNode)), ()),
        "mounts": (tuple_of(record(Mount)), ()),
        "variables": (tuple_of(record(Variable)), ()),
        "hooks": (tuple_of(record(Hook)), ()),
        "problems": (tuple_of(record(Problem)), ()),
    }
    __slots__ = tuple(SCHEMA)
    driver: Driver
    gpus: tuple[Gpu, ...]
    device_nodes: tuple[DeviceNode, ...]
    mounts: tuple[Mount, ...]
    variables: tuple[Variable, ...]
    hooks: tuple[Hook, ...]
    problems: tuple[Problem, ...]

    def mig_devices(self) -> tuple[MigDevice, ...]:
        """Of all GPUs, in order."""
        return tuple([mig for gpu in self.gpus for mig in gpu.mig_devices])
