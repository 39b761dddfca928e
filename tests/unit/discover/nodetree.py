"""A small made-up procfs and driver root, and what discovery might have found there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nvoci.discover.fingerprint import Sources
from nvoci.discover.model import DeviceNode, Driver, Found, Gpu, Hook, MigDevice, Mount, Problem, Variable

UUID = "GPU-12345678-1234-1234-1234-12345678000{}"
INFORMATION = """Model: \t\t NVIDIA A100-SXM4-40GB
IRQ:   \t\t {irq}
GPU UUID: \t {uuid}
Video BIOS: \t {bios}
Bus Type: \t PCIe
DMA Size: \t 47 bits
DMA Mask: \t 0x7fffffffffff
Bus Location: \t {bus}
Device Minor: \t {minor}
GPU Excluded:\t No
"""
DEVICES = """Character devices:
  1 mem
195 nvidia
195 nvidia-modeset
226 drm
236 nvidia-caps
510 nvidia-uvm

Block devices:
  7 loop
195 nvidia-as-a-block-device
"""
VERSION = """NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.163.01  Tue Apr  8 12:41:17 UTC 2025
GCC version:  gcc version 12.2.0 (Debian 12.2.0-14)
"""


class Node:
    """`proc` and `root` below one directory."""

    def __init__(self, place: Path, gpus: int = 2, instances: int = 0) -> None:
        self.proc = place / "proc"
        self.root = place / "root"
        self.write("sys/kernel/random/boot_id", "9d0f2c6e-0000-4000-8000-000000000001\n")
        self.write("devices", DEVICES)
        self.write("driver/nvidia/version", VERSION)
        for gpu in range(gpus):
            self.information(gpu)
            for instance in range(1, instances + 1):
                self.instance(gpu, instance)
        (self.root / "etc").mkdir(parents=True)
        (self.root / "etc/ld.so.cache").write_bytes(b"glibc-ld.so.cache1.1")

    def write(self, path: str, text: str) -> Path:
        """A file below proc."""
        out = self.proc / path
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text)
        return out

    def information(self, gpu: int, uuid: str | None = None, irq: int = 26, bios: str = "92.00.45.00.03") -> Path:
        """gpus/*/information of one GPU."""
        bus = f"0000:{gpu + 7:02x}:00.0"
        uuid = UUID.format(gpu) if uuid is None else uuid
        text = INFORMATION.format(uuid=uuid, irq=irq, bios=bios, bus=bus, minor=gpu)
        return self.write(f"driver/nvidia/gpus/{bus}/information", text)

    def instance(self, gpu: int, instance: int, compute: int = 0) -> Path:
        """The capability of a MIG device."""
        top = f"driver/nvidia/capabilities/gpu{gpu}/mig/gi{instance}"
        self.write(f"{top}/access", "DeviceFileMinor: 12\n")
        return self.write(f"{top}/ci{compute}/access", "DeviceFileMinor: 13\n")

    def sources(self, **more: Any) -> Sources:
        """Where to look."""
        return Sources(str(self.root), proc=str(self.proc), **more)


def found(gpus: int = 8, files: int = 200) -> Found:
    """As much as a node with 8 GPUs has."""
    lib = "/usr/lib/x86_64-linux-gnu"
    return Found(
        driver=Driver(version="550.163.01", module_version="550.163.01", cuda_version=(12, 4), library_dirs=[lib]),
        gpus=[gpu(i) for i in range(gpus)],
        device_nodes=[
            DeviceNode(host_path=f"/dev/nvidia{i}", container_path=f"/dev/nvidia{i}", kind="gpu", type="c", major=195,
                       minor=i, mode=0o666, owner=UUID.format(i))
            for i in range(gpus)
        ],
        mounts=[mount(f"{lib}/libnvidia-part{i}.so.550.163.01") for i in range(files)],
        variables=[Variable(name="NVIDIA_VISIBLE_DEVICES", value="void")],
        hooks=[Hook(name="update-ldcache", args=("--folder", lib))],
        problems=[Problem(stage="find library", subject="libnvidia-x.so", error="ENOENT", hint="it is not needed")],
    )  # fmt: skip


def gpu(index: int, **more: Any) -> Gpu:
    """A GPU with everything known."""
    fields: dict[str, Any] = {
        "index": index, "uuid": UUID.format(index), "minor": index, "pci_bus_id": f"0000:{index + 7:02x}:00.0",
        "nvml_bus_id": f"00000000:{index + 7:02X}:00.0", "pci_device_id": 548409566, "name": "NVIDIA A100-SXM4-40GB",
        "brand": 14, "compute_capability": (8, 0), "memory": 42949672960, "numa_node": 1, "mig_capable": True,
        "max_mig_devices": 7, "drm_nodes": (f"/dev/dri/card{index}", f"/dev/dri/renderD{index + 128}"),
    }  # fmt: skip
    return Gpu(**{**fields, **more})


def mig(parent: int = 0, index: int = 1, **more: Any) -> MigDevice:
    """A MIG device of such a GPU."""
    fields: dict[str, Any] = {
        "uuid": "MIG-00000000-aaaa-5bbb-8ccc-000000010000", "parent": UUID.format(parent), "parent_index": parent,
        "index": index, "gpu_instance": 2, "compute_instance": 0, "profile": "3g.20gb", "profile_id": 9,
    }  # fmt: skip
    return MigDevice(**{**fields, **more})


def mount(path: str, **more: Any) -> Mount:
    """A library."""
    soname = path.rpartition("/")[2].partition(".so.")[0] + ".so.1"
    link = (soname, f"{path.rpartition('/')[0]}/{soname}")
    return Mount(**{"host_path": path, "container_path": path, "kind": "library", "capabilities": ("compute",),
                    "soname": soname, "links": (link,), **more})  # fmt: skip
