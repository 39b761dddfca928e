"""A simulated NVIDIA driver: what an installation leaves on a host, as real files below one directory."""

from __future__ import annotations

import platform
import shutil
import socket
from dataclasses import dataclass, field
from pathlib import Path

from lib import elfmaker, rootfs

VERSION = "550.54.15"
SONAMES = {  # file stem -> soname; libraries of 64-bit driver packages
    "libcuda.so": "libcuda.so.1",
    "libcudadebugger.so": "libcudadebugger.so.1",
    "libnvidia-ml.so": "libnvidia-ml.so.1",
    "libnvidia-cfg.so": "libnvidia-cfg.so.1",
    "libnvidia-nvvm.so": "libnvidia-nvvm.so.4",
    "libnvidia-ptxjitcompiler.so": "libnvidia-ptxjitcompiler.so.1",
    "libnvidia-opencl.so": "libnvidia-opencl.so.1",
    "libnvidia-gpucomp.so": "libnvidia-gpucomp.so.{v}",
    "libnvidia-allocator.so": "libnvidia-allocator.so.1",
    "libnvidia-pkcs11-openssl3.so": "libnvidia-pkcs11-openssl3.so.{v}",
    "libnvidia-encode.so": "libnvidia-encode.so.1",
    "libnvidia-opticalflow.so": "libnvidia-opticalflow.so.1",
    "libnvcuvid.so": "libnvcuvid.so.1",
    "libnvidia-eglcore.so": "libnvidia-eglcore.so.{v}",
    "libnvidia-glcore.so": "libnvidia-glcore.so.{v}",
    "libnvidia-glsi.so": "libnvidia-glsi.so.{v}",
    "libnvidia-glvkspirv.so": "libnvidia-glvkspirv.so.{v}",
    "libnvidia-rtcore.so": "libnvidia-rtcore.so.{v}",
    "libnvidia-tls.so": "libnvidia-tls.so.{v}",
    "libGLX_nvidia.so": "libGLX_nvidia.so.0",
    "libEGL_nvidia.so": "libEGL_nvidia.so.0",
}
FIRMWARE = ("gsp_ga10x.bin", "gsp_tu10x.bin")
BINARIES = (
    "nvidia-smi",
    "nvidia-debugdump",
    "nvidia-persistenced",
    "nvidia-cuda-mps-control",
    "nvidia-cuda-mps-server",
)
PARAMS = """\
ResmanDebugLevel: 4294967295
RmLogonRC: 1
ModifyDeviceFiles: 1
DeviceFileUID: 0
DeviceFileGID: 0
DeviceFileMode: 438
InitializeSystemMemoryAllocations: 1
EnableMSI: 1
EnablePCIeGen3: 0
MemoryPoolSize: 0
DynamicPowerManagement: 3
RegistryDwords: ""
RegistryDwordsPerDevice: ""
RmMsg: ""
GpuBlacklist: ""
TemporaryFilePath: ""
ExcludedGpus: ""
"""
UVM_MAJOR, CAPS_MAJOR = 508, 234


@dataclass
class Driver:
    root: Path
    version: str
    gpus: int
    sockets: list[socket.socket] = field(default_factory=list)

    @property
    def libdir(self) -> Path:
        return self.root / "usr/lib" / rootfs.TRIPLET

    @property
    def libraries(self) -> list[Path]:
        return [self.libdir / f"{stem}.{self.version}" for stem in SONAMES]

    def library(self, stem: str) -> Path:
        """`library("libcuda")` is …/libcuda.so.550.54.15."""
        return self.libdir / f"{stem}.so.{self.version}"

    @property
    def nodes(self) -> list[Path]:
        return sorted(p for p in (self.root / "dev").rglob("*") if p.is_char_device() and not p.is_symlink())

    @property
    def firmware(self) -> list[Path]:
        return [self.root / f"lib/firmware/nvidia/{self.version}/{name}" for name in FIRMWARE]

    @property
    def proc(self) -> Path:
        """A directory for jail.driver_proc()."""
        return self.root / "proc/driver"

    @property
    def params(self) -> Path:
        return self.proc / "nvidia/params"

    @property
    def persistenced(self) -> Path:
        return self.root / "run/nvidia-persistenced/socket"

    def mounts(self, where: str | None = None) -> list[dict[str, object]]:
        """OCI mounts of every library, read-only, into the container's library directory."""
        options = ["ro", "nosuid", "nodev", "bind"]
        target = where or f"/usr/lib/{rootfs.TRIPLET}"
        return [
            {"destination": f"{target}/{p.name}", "type": "bind", "source": str(p), "options": options}
            for p in self.libraries
        ]

    def close(self) -> None:
        for each in self.sockets:
            each.close()
        shutil.rmtree(self.root, ignore_errors=True)

    def __enter__(self) -> Driver:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def make(root: str | Path, gpus: int = 1, version: str = VERSION, machine: str = platform.machine()) -> Driver:
    """Build a driver below `root`, never in the host's own directories."""
    driver = Driver(Path(root), version, gpus)
    _libraries(driver, machine)
    _files(driver)
    _nodes(driver)
    driver.sockets.append(_daemon(driver.persistenced))
    return driver


def compat_library(path: str | Path, version: str, notes: list[elfmaker.Note] | None = None) -> Path:
    """A libcuda of a cuda-compat package at `path` (a directory), with the notes that newer ones carry."""
    name = Path(path) / f"libcuda.so.{version}"
    return elfmaker.make_so(name, "libcuda.so.1", ["libc.so.6"], platform.machine(), notes=notes or [])


def _libraries(driver: Driver, machine: str) -> None:
    for stem, soname in SONAMES.items():
        path = driver.libdir / f"{stem}.{driver.version}"
        functions = {"cuInit": 0, "nvmlInit_v2": 0} if machine in elfmaker.EXIT_CODE else {}
        needed = ["libc.so.6"]
        elfmaker.make_so(path, soname.format(v=driver.version), needed, machine, functions=functions, mode=0o755)
        link = driver.libdir / soname.format(v=driver.version)
        if not link.exists():
            link.symlink_to(path.name)


def _files(driver: Driver) -> None:
    lines = [f"file lib/firmware/nvidia/{driver.version}/{name} firmware {name}\\n" for name in FIRMWARE]
    lines += [f"exec usr/bin/{name} #!/bin/sh\\necho {name}\\n" for name in BINARIES]
    lines += [
        f"file proc/driver/nvidia/gpus/0000:{i + 1:02x}:00.0/information Device Minor: \\t {i}\\n"
        for i in range(driver.gpus)
    ]
    lines += [
        f"file proc/driver/nvidia/version NVRM version: NVIDIA UNIX x86_64 Kernel Module  {driver.version}\\n",
        'file usr/share/vulkan/icd.d/nvidia_icd.json {"file_format_version": "1.0.0"}\\n',
        'file usr/share/glvnd/egl_vendor.d/10_nvidia.json {"file_format_version": "1.0.0"}\\n',
        "file etc/vulkan/icd.d/nvidia_layers.json {}\\n",
    ]
    rootfs.tree(driver.root, "\n".join(lines))
    driver.params.write_text(PARAMS)


def _nodes(driver: Driver) -> None:
    lines = [f"char dev/nvidia{i} 195 {i} 666" for i in range(driver.gpus)]
    lines += ["char dev/nvidiactl 195 255 666", "char dev/nvidia-modeset 195 254 666"]
    lines += [f"char dev/nvidia-uvm {UVM_MAJOR} 0 666", f"char dev/nvidia-uvm-tools {UVM_MAJOR} 1 666"]
    lines += [f"char dev/nvidia-caps/nvidia-cap{i} {CAPS_MAJOR} {i} 444" for i in (1, 2)]
    lines += [
        f"char dev/dri/card{i} 226 {i} 660\nchar dev/dri/renderD{128 + i} 226 {128 + i} 660" for i in range(driver.gpus)
    ]
    lines += [f"symlink dev/dri/by-path/pci-0000:{i + 1:02x}:00.0-card ../card{i}" for i in range(driver.gpus)]
    rootfs.tree(driver.root, "\n".join(lines))


def _daemon(path: Path) -> socket.socket:
    path.parent.mkdir(parents=True, exist_ok=True)
    return rootfs.listening(path)
