"""A node made up of every sort of thing that discovery finds, and short ways to look into specifications."""

from __future__ import annotations

from typing import Any

from nvoci.cdi.model import ContainerEdits, Hook, Spec
from nvoci.discover.model import SOCKET, DeviceNode, Driver, Found, Gpu, MigDevice, Mount, Problem
from nvoci.discover.nvml import NvmlAnswer
from nvoci.discover.platform import Platform
from nvoci.generate.options import GenerateOptions
from nvoci.generate.specs import Generated, from_found

V = "550.163.01"
LIB = "/usr/lib/x86_64-linux-gnu"
UUID = "GPU-12345678-1234-1234-1234-12345678{:04x}"
MIG_UUID = "MIG-00000000-aaaa-5bbb-8ccc-00000000{:02x}{:02x}"
EMPTY = "invalid device, empty device edits"


def node(path: str, kind: str, major: int = 195, minor: int = 0, **more: Any) -> DeviceNode:
    """Of the host's own /dev, unless `host_path` says."""
    fields = {"host_path": path, "type": "c", "mode": 0o666, **more}
    return DeviceNode(container_path=path, kind=kind, major=major, minor=minor, **fields)


def gpu(index: int = 0, **more: Any) -> Gpu:
    """One that answers."""
    known = {"minor": index, "pci_bus_id": f"0000:{index + 7:02x}:00.0", "name": "NVIDIA A100-SXM4-40GB", **more}
    return Gpu(index=index, uuid=UUID.format(index), **known)


def mig(parent: int = 0, index: int = 0, **more: Any) -> MigDevice:
    """Of `gpu(parent)`, with two capability nodes."""
    caps = [f"/dev/nvidia-caps/nvidia-cap{10 * parent + 2 * index + 20 + n}" for n in (0, 1)]
    fields: dict[str, Any] = {
        "uuid": MIG_UUID.format(parent, index), "parent": UUID.format(parent), "parent_index": parent, "index": index,
        "gpu_instance": index + 1, "compute_instance": 0, "profile": "3g.20gb", "cap_nodes": caps,
    }  # fmt: skip
    return MigDevice(**{**fields, **more})


def gpu_nodes(each: Gpu) -> list[DeviceNode]:
    """Its own node, its two DRM nodes with links, the capability nodes of its MIG devices."""
    minor, owner = each.minor or 0, each.uuid
    found = [node(f"/dev/nvidia{minor}", "gpu", minor=minor, owner=owner)]
    for name, number, gid in ((f"card{minor + 1}", minor + 1, 44), (f"renderD{minor + 128}", minor + 128, 104)):
        link = f"/dev/dri/by-path/pci-{each.pci_bus_id}-{'card' if number < 128 else 'render'}"
        found.append(node(f"/dev/dri/{name}", "drm", 226, number, mode=0o660, gid=gid, owner=owner,
                          links=[(f"../{name}", link)]))  # fmt: skip
    for device in each.mig_devices:
        found += [node(path, "mig", 236, int(path.rpartition("cap")[2]), mode=0o444, owner=device.uuid)
                  for path in device.cap_nodes]  # fmt: skip
    return found


def control_nodes(owner: str = "") -> list[DeviceNode]:
    """Those that every application opens."""
    return [
        node("/dev/nvidia-modeset", "control", minor=254, owner=owner),
        node("/dev/nvidia-uvm-tools", "control", 510, 1, owner=owner),
        node("/dev/nvidia-uvm", "control", 510, owner=owner),
        node("/dev/nvidiactl", "control", minor=255, owner=owner),
    ]


def other_nodes() -> list[DeviceNode]:
    """Of other parts of the machine, and for who manages it."""
    return [
        node("/dev/nvidia-caps/nvidia-cap1", "mig-config", 236, 1, mode=0o400),
        node("/dev/nvidia-caps/nvidia-cap2", "mig-monitor", 236, 2, mode=0o444),
        node("/dev/nvidia-caps/nvidia-cap99", "mig", 236, 99, mode=0o444),
        *[node(f"/dev/nvidia-caps-imex-channels/channel{n}", "imex", 234, n, owner=str(n)) for n in (0, 2, 2047)],
        node("/dev/nvidia-nvswitchctl", "nvswitch", 237, 255), node("/dev/nvidia-nvswitch0", "nvswitch", 237),
        node("/dev/nvidia-nvlink", "nvlink", 238), node("/dev/nvidia-fs0", "gds", 239, capabilities=["gds"]),
        node("/dev/infiniband/uverbs0", "mofed", 231, 192), node("/dev/infiniband/rdma_cm", "mofed", 10, 58),
        node("/dev/gdrdrv", "gdrcopy", 240), node("/dev/nvidia-vgpu0", "other", 241),
    ]  # fmt: skip


def mount(path: str, kind: str = "library", **more: Any) -> Mount:
    """Where it lies on the host."""
    return Mount(**{"host_path": path, "container_path": path, "kind": kind, **more})


def library(name: str, soname: str = "", *links: tuple[str, str], **more: Any) -> Mount:
    """In LIB, with the link of its soname, and more."""
    own = [(name, f"{LIB}/{soname}")] if soname else []
    return mount(f"{LIB}/{name}", soname=soname, links=[*own, *links], **more)


def mounts() -> list[Mount]:
    """Some of every kind."""
    gbm = ("../libnvidia-allocator.so.1", f"{LIB}/gbm/nvidia-drm_gbm.so")
    glx = f"libglxserver_nvidia.so.{V}"
    return [
        library(f"libcuda.so.{V}", "libcuda.so.1", ("libcuda.so.1", f"{LIB}/libcuda.so"), capabilities=["compute"]),
        library(f"libnvidia-allocator.so.{V}", "libnvidia-allocator.so.1", gbm),
        library(f"libnvidia-ml.so.{V}", "libnvidia-ml.so.1"),
        library("libnvidia-nvvm70.so.4"),
        mount(f"{LIB}/vdpau/libvdpau_nvidia.so.{V}"),
        mount(f"/usr/lib/i386-linux-gnu/libcuda.so.{V}", capabilities=["compute", "compat32"]),
        library("libnvidia-egl-wayland.so.1.1.13", capabilities=["graphics"]),
        library("libnvidia-egl-xcb.so.1.0.1", capabilities=["graphics"]),
        mount(f"/usr/lib/xorg/modules/extensions/{glx}", "file",
              links=[(glx, "/usr/lib/xorg/modules/extensions/libglxserver_nvidia.so")]),
        mount("/usr/share/nvidia/nvoptix.bin", "config"),
        mount("/usr/share/vulkan/icd.d/nvidia_icd.json", "config", container_path="/etc/vulkan/icd.d/nvidia_icd.json"),
        mount(f"/lib/firmware/nvidia/{V}/gsp_ga10x.bin", "firmware"),
        mount("/run/nvidia-persistenced/socket", "socket", options=SOCKET),
        mount("/tmp/nvidia-mps", "directory", options=SOCKET),
        *[mount(f"/usr/bin/{name}", "binary") for name in ("nvidia-smi", "nv-fabricmanager", "nvidia-xconfig")],
        mount("/run/udev", "directory", capabilities=["gds"]),
        mount("/etc/cufile.json", "config", capabilities=["gds"]),
    ]  # fmt: skip


def found(*gpus: Gpu, problems: tuple[Problem, ...] = (), without: tuple[str, ...] = ()) -> Found:
    """A node with these GPUs. without: container paths of what is not there."""
    nodes = [*control_nodes(), *[each for one in gpus for each in gpu_nodes(one)], *other_nodes()]
    return Found(
        driver=Driver(version=V, module_version=V, cuda_version=(12, 4), library_dirs=[LIB], nvml_path="/lib/nvml"),
        gpus=gpus,
        device_nodes=[each for each in nodes if each.container_path not in without],
        mounts=[each for each in mounts() if each.container_path not in without],
        problems=problems,
    )


def answer(gpus: tuple[Gpu, ...] = ()) -> NvmlAnswer:
    """What NVML might have said."""
    return NvmlAnswer(driver_version=V, cuda_version=(12, 4), count=len(gpus), gpus=gpus)


def made(of: Found, kind: str = "nvml", **options: Any) -> Generated:
    """On a node of a kind."""
    return from_found(of, answer(of.gpus), GenerateOptions(**options), Platform(kind, []))


def spec_of(of: Found, kind: str = "nvml", **options: Any) -> Spec:
    """The one specification."""
    (named,) = made(of, kind, **options).specs
    return named.spec


def names(spec: Spec) -> list[str]:
    """Of its devices, in order."""
    return [device.name for device in spec.devices]


def edits_of(spec: Spec, name: str) -> ContainerEdits:
    """What a device changes."""
    (device,) = [each for each in spec.devices if each.name == name]
    return device.container_edits


def node_paths(edits: ContainerEdits) -> list[str]:
    """In order."""
    return [each.path for each in edits.device_nodes]


def mount_paths(edits: ContainerEdits) -> list[str]:
    """In the container, in order."""
    return [each.container_path for each in edits.mounts]


def words(hooks: tuple[Hook, ...]) -> list[str]:
    """Arguments of each, without the program's name."""
    return [" ".join(each.args[1:]) for each in hooks]


def without_hooks(spec: Spec) -> Any:
    """All else, to be compared."""

    def plain(edits: ContainerEdits) -> Any:
        return edits.env, edits.device_nodes, edits.mounts, edits.additional_gids

    return plain(spec.container_edits), {each.name: plain(each.container_edits) for each in spec.devices}
