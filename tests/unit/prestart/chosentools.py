"""A node as discovery tells of it, for the tests of what a container gets of it."""

from __future__ import annotations

from typing import Any

from unit.discover.nodetree import UUID, gpu, mig

from nvoci.discover.model import SOCKET, DeviceNode, Driver, Found, Mount, Problem
from nvoci.prestart.wanted import Wanted

VERSION = "550.163.01"
LIB = "/usr/lib/x86_64-linux-gnu"
MIG_UUID = "MIG-0000000{}-aaaa-5bbb-8ccc-00000001000{}"


def library(name: str, directory: str = LIB, version: str = VERSION, *capabilities: str) -> Mount:
    path = f"{directory}/{name}.so.{version}"
    return Mount(host_path=path, container_path=path, kind="library", capabilities=capabilities)


def file(kind: str, path: str, *capabilities: str) -> Mount:
    options = SOCKET if kind in ("socket", "directory") else ("ro",)
    return Mount(host_path=path, container_path=path, kind=kind, capabilities=capabilities, options=options)


def node(kind: str, name: str, major: int, minor: int, owner: str = "") -> DeviceNode:
    path = f"/dev/{name}"
    return DeviceNode(host_path=path, container_path=path, kind=kind, type="c", major=major, minor=minor, mode=0o666,
                      owner=owner)  # fmt: skip


def control(*names: str) -> list[DeviceNode]:
    numbers = {"nvidia-modeset": (195, 254), "nvidia-uvm-tools": (510, 1), "nvidia-uvm": (510, 0),
               "nvidiactl": (195, 255)}  # fmt: skip
    return [node("control", name, *numbers[name]) for name in names or numbers]


LIBRARIES = [
    *[library(name) for name in (
        "libcuda", "libnvidia-ml", "libnvidia-gpucomp", "libnvidia-encode", "libGLX_nvidia", "libnvidia-tls",
        "libnvidia-ngx", "libnvidia-nvvm", "libnvidia-nvvm70", "libnvidia-sandboxutils", "libnvidia-egl-gbm",
        "libnvidia-opticalflow",
    )],
    library("libvdpau_nvidia", f"{LIB}/vdpau"),
    library("libnvidia-nscq", version="2.0"),
    library("libcuda", "/opt/other"),
    library("libnvidia-tls", f"{LIB}/tls"),
    library("libcuda", "/usr/lib/i386-linux-gnu", VERSION, "compute", "compat32"),
    library("libGLX_nvidia", "/usr/lib/i386-linux-gnu", VERSION, "graphics", "compat32"),
]  # fmt: skip
FILES = [
    *[file("binary", f"/usr/bin/{name}") for name in (
        "nvidia-smi", "nvidia-debugdump", "nvidia-cuda-mps-control", "nvidia-imex", "nvidia-xconfig")],
    file("firmware", f"/lib/firmware/nvidia/{VERSION}/gsp_ga10x.bin"),
    file("socket", "/run/nvidia-persistenced/socket"),
    file("socket", "/run/nvidia-fabricmanager/socket"),
    file("directory", "/tmp/nvidia-mps", "compute"),
    file("directory", "/run/udev", "gds"),
    file("config", "/etc/OpenCL/vendors/nvidia.icd", "compute"),
    file("file", "/usr/lib/xorg/modules/drivers/nvidia_drv.so", "display"),
]  # fmt: skip


def a_node(gpus: int = 2, migs: int = 0, **more: Any) -> Found:
    """GPU 1 has the MIG devices, of GPU instances 1, 2, ..."""
    devices = [mig(1, i, uuid=MIG_UUID.format(1, i), gpu_instance=i + 1, compute_instance=0) for i in range(migs)]
    nodes = [*control(), *[node("gpu", f"nvidia{i}", 195, i, UUID.format(i)) for i in range(gpus)]]
    for each in devices:
        nodes += [node("mig", f"nvidia-caps/nvidia-cap{10 * each.gpu_instance + k}", 236, 10 * each.gpu_instance + k,
                       each.uuid) for k in range(2)]  # fmt: skip
    nodes += [node("mig-config", "nvidia-caps/nvidia-cap1", 236, 1), node("imex", "nvidia-caps-imex-channels/channel3",
                                                                          237, 3, "3")]  # fmt: skip
    fields: dict[str, Any] = {
        "driver": Driver(version=VERSION, module_version=VERSION, cuda_version=(12, 4), library_dirs=[LIB]),
        "gpus": [gpu(i, mig_enabled=bool(migs) and i == 1, mig_devices=devices if i == 1 else ()) for i in range(gpus)],
        "device_nodes": nodes,
        "mounts": [*LIBRARIES, *FILES],
    }
    return Found(**{**fields, **more})


def asked(*devices: str, capabilities: str = "compute,utility", **more: Any) -> Wanted:
    return Wanted(devices=devices, capabilities=tuple(capabilities.split(",")) if capabilities else (), **more)


def missing(path: str, error: str) -> Problem:
    return Problem(stage="use device", subject=path, error=error, hint="make it")


def without(path: str) -> Found:
    """`a_node` that lacks a device node."""
    found = a_node()
    return found.replace(device_nodes=[each for each in found.device_nodes if each.container_path != path])
