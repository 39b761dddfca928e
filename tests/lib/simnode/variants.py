"""Descriptions of nodes by name: the samples of tests/data/nodes, and nodes made from them by a few changes.

Most have two GPUs, so that they are quick to build.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

Document = dict[str, Any]

DATA = Path(__file__).resolve().parents[2] / "data/nodes"
SAMPLES = ("a100", "a100-mig", "tegra")
VERSION, OLD_VERSION = "550.163.01", "535.183.01"
DEBIAN = "/usr/lib/x86_64-linux-gnu"
IMEX_MAJOR = 234
_COMPAT32 = ("libcuda.so", "libnvidia-ml.so", "libnvidia-ptxjitcompiler.so", "libGLX_nvidia.so", "libnvidia-glcore.so")


def sample(name: str) -> Document:
    """A fresh copy of the description called `name`; KeyError if there is none."""
    if name in SAMPLES:
        return _read(name)
    return _VARIANTS[name]()


def variants() -> list[str]:
    """The names of all, the samples first."""
    return [*SAMPLES, *_VARIANTS]


def _read(name: str) -> Document:
    document: Document = json.loads((DATA / f"{name}.node.json").read_text())
    return document


class _Tree:
    """The files of a description by path, to be changed."""

    def __init__(self, document: Document) -> None:
        self.nvml: Any = document.get("nvml")
        self.files: dict[str, dict[str, Any]] = {entry["path"]: entry for entry in document["files"]}

    def document(self) -> Document:
        """In the order of paths."""
        out: Document = {"files": [{**self.files[path], "path": path} for path in sorted(self.files)]}
        return out if self.nvml is None else {**out, "nvml": self.nvml}

    def below(self, path: str) -> list[str]:
        """`path` and what lies below it."""
        return [each for each in self.files if each == path or each.startswith(f"{path}/")]

    def remove(self, pattern: str) -> None:
        """Every path that the pattern matches whole, and what lies below."""
        for path in [each for each in self.files if re.fullmatch(pattern, each)]:
            for each in self.below(path):
                del self.files[each]

    def move(self, old: str, new: str) -> None:
        """A directory with all that is in it; one that is there already is added to."""
        for path in self.below(old):
            entry = self.files.pop(path)
            self.files.setdefault(new + path[len(old) :], entry)
        self.parents(new)

    def parents(self, path: str) -> None:
        """The directories on the way to `path`."""
        while (path := path.rpartition("/")[0]) and path not in self.files:
            self.files[path] = {"type": "dir", "mode": "755"}

    def add(self, path: str, kind: str, mode: str = "644", **more: Any) -> None:
        """One entry, with its directories."""
        self.parents(path)
        entry = {"type": kind, **more} if kind == "symlink" else {"type": kind, "mode": mode, **more}
        self.files[path] = entry

    def text(self, path: str, text: str, mode: str = "644") -> None:
        """A file of text."""
        self.add(path, "file", mode, text=text)

    def library(self, path: str, soname: str, *links: str, bits: int = 64, machine: str = "EM_X86_64") -> None:
        """A shared object, and links to it in its directory."""
        self.add(path, "file", "755", elf={"class": bits, "machine": machine, "soname": soname, "needed": []})
        for link in links:
            self.add(f"{path.rpartition('/')[0]}/{link}", "symlink", target=path.rpartition("/")[2])


def _gpus(count: int = 2, name: str = "a100") -> _Tree:
    """A node with `count` GPUs of the sample."""
    tree = _Tree(_read(name))
    for gpu in tree.nvml["gpus"][count:]:
        address = gpu["pci_bus_id"][4:].lower()
        tree.remove(f"/dev/nvidia{gpu['minor']}")
        tree.remove(
            f"/dev/dri/(card{gpu['minor'] + 1}|renderD{gpu['minor'] + 128}|by-path/pci-{address}-(card|render))"
        )
        tree.remove(f"/(proc/driver/nvidia/gpus|sys/bus/pci/devices)/{address}")
        tree.remove(f"/proc/driver/nvidia/capabilities/gpu{gpu['minor']}")
    tree.nvml["gpus"] = tree.nvml["gpus"][:count]
    return tree


def _rhel_lib64() -> Document:
    """Libraries in /usr/lib64, as on RHEL; no multiarch directory."""
    tree = _gpus()
    tree.move("/usr/lib/xorg", "/usr/lib64/xorg")
    tree.move(DEBIAN, "/usr/lib64")
    tree.text("/etc/os-release", 'ID="rhel"\nVERSION_ID="9.4"\n')
    return tree.document()


def _cache_only() -> Document:
    """Libraries where only ld.so.conf, and so ld.so.cache, leads."""
    tree = _gpus()
    tree.move(DEBIAN, "/opt/nvidia/driver/lib")
    tree.text("/etc/ld.so.conf", "include /etc/ld.so.conf.d/*.conf\n")
    tree.text("/etc/ld.so.conf.d/nvidia.conf", "/opt/nvidia/driver/lib\n")
    return tree.document()


def _i386() -> Document:
    """32-bit libraries beside the others (compat32), in Debian's directory and in the cache."""
    tree = _gpus()
    for stem in _COMPAT32:
        soname = tree.files[f"{DEBIAN}/{stem}.{VERSION}"]["elf"]["soname"]
        links = [soname] if soname != f"{stem}.{VERSION}" else []
        tree.library(f"/usr/lib/i386-linux-gnu/{stem}.{VERSION}", soname, *links, bits=32, machine="EM_386")
    return tree.document()


def _add_old_driver(tree: _Tree) -> None:
    """A second version of most libraries, and its firmware."""
    for path in [p for p in tree.files if p.startswith(DEBIAN) and p.endswith(f".so.{VERSION}")]:
        entry = copy.deepcopy(tree.files[path])
        old = entry["elf"]["soname"]
        entry["elf"]["soname"] = old and old.replace(VERSION, OLD_VERSION)
        tree.files[path.replace(VERSION, OLD_VERSION)] = entry
    for path in tree.below(f"/usr/lib/firmware/nvidia/{VERSION}"):
        tree.files[path.replace(VERSION, OLD_VERSION)] = copy.deepcopy(tree.files[path])


def _two_versions() -> Document:
    """Libraries of two drivers; links and the loaded module are the newer one's."""
    tree = _gpus()
    _add_old_driver(tree)
    return tree.document()


def _version_mismatch() -> Document:
    """The libraries were downgraded and the module of the newer driver is still loaded: nvmlInit refuses."""
    tree = _gpus()
    _add_old_driver(tree)
    tree.remove(rf"{DEBIAN}/.*\.so\.{re.escape(VERSION)}")
    tree.remove(f"/usr/lib/firmware/nvidia/{re.escape(VERSION)}")
    for entry in tree.files.values():
        if entry["type"] == "symlink":
            entry["target"] = entry["target"].replace(VERSION, OLD_VERSION)
    tree.nvml = {"error": 18}
    return tree.document()


def _half_removed() -> Document:
    """The package is gone but for a few libraries, links to nowhere and device nodes; no NVML, no module."""
    tree = _gpus()
    tree.remove(rf"{DEBIAN}/lib(nvidia-(ml|cfg|ptxjitcompiler|opencl)|nvcuvid)\.so\.{re.escape(VERSION)}")
    tree.remove("/usr/bin/nvidia-(smi|debugdump)")
    tree.remove("/proc/driver/nvidia(-caps)?")
    tree.nvml = None
    return tree.document()


def _driver_not_loaded() -> Document:
    """Everything is installed and no module is loaded: no nodes, no procfs, nvmlInit refuses."""
    tree = _gpus()
    tree.remove("/dev/(nvidia.*|dri)")
    tree.remove("/proc/driver/nvidia(-caps)?")
    tree.remove("/sys/bus/pci/devices/.*/drm")
    tree.nvml = {"error": 9}
    return tree.document()


def _mig_empty() -> Document:
    """MIG mode is on for both GPUs, and nobody has made an instance."""
    tree = _gpus()
    for gpu in tree.nvml["gpus"]:
        gpu["mig_mode"] = [1, 1]
        tree.add(f"/proc/driver/nvidia/capabilities/gpu{gpu['minor']}/mig", "dir", "755")
    return tree.document()


def _gpu_lost() -> Document:
    """GPU 1 of 3 has fallen off the bus: procfs still has it, its handle can not be had."""
    tree = _gpus(3)
    tree.nvml["gpus"][1] = {"index": 1, "error": 15}
    return tree.document()


def _gpus_16() -> Document:
    """Sixteen GPUs: minors of two digits, buses in another order than minors."""
    tree = _Tree(_read("a100"))
    for index in range(8, 16):
        _add_gpu(tree, index, bus=0xC0 + (23 - index))
    return tree.document()


def _add_gpu(tree: _Tree, index: int, bus: int) -> None:
    """One more GPU like the first: node, DRM nodes, procfs, sysfs, NVML."""
    first = tree.nvml["gpus"][0]
    uuid = f"{first['uuid'][:-2]}{index:02x}"
    address, old = f"0000:{bus:02x}:00.0", first["pci_bus_id"][4:].lower()
    tree.nvml["gpus"].append(
        {**first, "index": index, "minor": index, "uuid": uuid, "pci_bus": bus, "pci_bus_id": f"0000{address.upper()}"}
    )
    tree.files[f"/dev/nvidia{index}"] = {**tree.files["/dev/nvidia0"], "minor": index}
    for first_name, number in (("card1", index + 1), ("renderD128", index + 128)):
        name = first_name.rstrip("0123456789") + str(number)
        tree.files[f"/dev/dri/{name}"] = {**tree.files[f"/dev/dri/{first_name}"], "minor": number}
        link = f"/dev/dri/by-path/pci-{address}-{'card' if number < 128 else 'render'}"
        tree.add(link, "symlink", target=f"../{name}")
        tree.add(f"/sys/bus/pci/devices/{address}/drm/{name}", "dir", "755")
    information = tree.files[f"/proc/driver/nvidia/gpus/{old}/information"]["text"]
    information = information.replace(first["uuid"], uuid).replace(old, address)
    information = information.replace("Device Minor: \t 0", f"Device Minor: \t {index}")
    tree.text(f"/proc/driver/nvidia/gpus/{address}/information", information, "444")


def _no_drm() -> Document:
    """A compute-only driver: no /dev/dri, no DRM in sysfs, no graphics libraries' X.Org modules."""
    tree = _gpus()
    tree.remove("/dev/dri")
    tree.remove("/sys/bus/pci/devices/.*/drm")
    tree.remove("/dev/nvidia-modeset")
    tree.remove("/usr/lib/xorg")
    return tree.document()


def _imex() -> Document:
    """IMEX channels 0 to 3 and 2047."""
    tree = _gpus()
    for channel in (0, 1, 2, 3, 2047):
        path = f"/dev/nvidia-caps-imex-channels/channel{channel}"
        tree.add(path, "char", "666", major=IMEX_MAJOR, minor=channel)
    for name in ("nvidia-imex", "nvidia-imex-ctl"):
        tree.files[f"/usr/bin/{name}"] = copy.deepcopy(tree.files["/usr/bin/nvidia-smi"])
    return tree.document()


def _thor() -> Document:
    """An integrated GPU, which has no PCI address, beside one on the bus; Tegra's CSV files and NVML both."""
    tree, other = _Tree(_read("tegra")), _gpus(1)
    tegra = "/usr/lib/aarch64-linux-gnu/tegra"
    tree.library(f"{tegra}/libnvidia-ml.so.580.00", "libnvidia-ml.so.1", "libnvidia-ml.so.1")
    tree.add("/usr/lib/aarch64-linux-gnu/libnvidia-ml.so.1", "symlink", target="tegra/libnvidia-ml.so.1")
    for minor in (1, 2):
        tree.files[f"/dev/nvidia{minor}"] = {**tree.files["/dev/nvidia0"], "minor": minor}
    for name, minor in (("nvidia-uvm", 0), ("nvidia-uvm-tools", 1)):
        tree.add(f"/dev/{name}", "char", "666", major=510, minor=minor)
    gpu = {**other.nvml["gpus"][0], "index": 1, "minor": 1, "name": "NVIDIA RTX 6000 Ada Generation"}
    gpu |= {"compute_capability": [8, 9], "brand": 13, "mig_mode": {"error": 3}, "max_mig_devices": {"error": 3}}
    address = "0000:07:00.0"
    for name in ("card1", "renderD129"):
        tree.add(f"/sys/bus/pci/devices/{address}/drm/{name}", "dir", "755")
    tree.add("/dev/dri/renderD129", "char", "660", uid=0, gid=104, major=226, minor=129)
    integrated: Document = {key: {"error": 3} for key in ("pci_bus_id", "mig_mode", "max_mig_devices")}
    integrated |= {"index": 0, "uuid": "GPU-5b8b3d2c-0000-5000-8000-000000000001", "minor": 0, "name": "NVIDIA Thor"}
    integrated |= {"brand": 14, "compute_capability": [11, 0], "memory": 128 << 30, "mig_devices": []}
    tree.nvml = {"driver_version": "580.00", "cuda_driver_version": 13000, "gpus": [integrated, gpu]}
    return tree.document()


def _linked_root() -> Document:
    """A host whose driver comes from a container: /run/nvidia/driver is an absolute link to the driver's root."""
    driver = _gpus()
    host = _Tree({"files": []})
    inner = f"/run/nvidia/drivers/{VERSION}"
    for path, entry in driver.files.items():
        shared = re.match("/(dev|proc|sys|run)(/|$)", path)
        host.files[path if shared else inner + path] = entry
    host.add("/run/nvidia/driver", "symlink", target=inner)
    for name in ("/etc", "/usr/bin", "/usr/lib", "/usr/sbin"):
        host.add(name, "dir", "755")
    host.add("/lib", "symlink", target="usr/lib")
    for name in ("dev", "proc", "sys"):
        host.add(f"{inner}/{name}", "dir", "755")
    host.parents(f"{inner}/usr")
    host.nvml = driver.nvml
    return host.document()


def _wsl() -> Document:
    """Windows Subsystem for Linux: one device, libraries in the driver store of Windows."""
    tree = _Tree({"files": []})
    for path in ("/etc", "/proc/driver", "/run", "/sys/bus/pci/devices", "/usr/bin", "/tmp"):
        tree.add(path, "dir", "755")
    tree.add("/lib", "symlink", target="usr/lib")
    tree.add("/dev/dxg", "char", "666", major=10, minor=125)
    tree.library("/usr/lib/wsl/lib/libdxcore.so", "libdxcore.so")
    tree.library("/usr/lib/wsl/lib/libcuda.so.1.1", "libcuda.so.1", "libcuda.so.1", "libcuda.so")
    store = "/usr/lib/wsl/drivers/nv_dispi.inf_amd64_1f0c3d8b7a6e5f42"
    sonames = {"libcuda.so.1.1": "libcuda.so.1", "libcuda_loader.so": "libcuda_loader.so"}
    sonames |= {"libnvidia-ml_loader.so": "libnvidia-ml_loader.so"}
    sonames |= {
        n: n for n in ("libnvidia-ptxjitcompiler.so.1", "libnvidia-ml.so.1", "libnvdxgdmal.so.1", "libnvwgf2umx.so")
    }
    for name, soname in sonames.items():
        tree.library(f"{store}/{name}", soname)
    tree.add(
        f"{store}/nvidia-smi",
        "file",
        "755",
        elf={"class": 64, "machine": "EM_X86_64", "soname": None, "needed": ["libc.so.6"]},
    )
    for name in ("nvcubins.bin", "nvlddmkm.sys", "nv-vk64.json"):
        tree.text(f"{store}/{name}", f"{name}\n", "555")
    gpu = _gpus(1).nvml["gpus"][0]
    gpu |= {"name": "NVIDIA GeForce RTX 4090", "brand": 5, "compute_capability": [8, 9], "minor": {"error": 3}}
    gpu |= {"mig_mode": {"error": 3}, "max_mig_devices": {"error": 3}, "memory": 24 << 30}
    tree.nvml = {"driver_version": "560.94", "cuda_driver_version": 12060, "gpus": [gpu]}
    return tree.document()


def _hostile() -> Document:
    """Names and UUIDs that no driver gives: control characters, an escape sequence, YAML, a path, a very long one."""
    tree = _gpus(4)
    bad = ("GPU-\n  - path: /dev/sda", "GPU-\x1b[2J\x1b]0;x\x07", "../../../etc/passwd", "GPU-" + "9" * 91)
    for gpu, text in zip(tree.nvml["gpus"], bad):
        gpu["uuid"], gpu["name"] = text, f"{text[4:60]}\r\n\t\\\"'`$(id)"
    return tree.document()


_VARIANTS: dict[str, Callable[[], Document]] = {
    "rhel-lib64": _rhel_lib64,
    "cache-only": _cache_only,
    "i386": _i386,
    "two-versions": _two_versions,
    "version-mismatch": _version_mismatch,
    "half-removed": _half_removed,
    "driver-not-loaded": _driver_not_loaded,
    "mig-empty": _mig_empty,
    "gpu-lost": _gpu_lost,
    "gpus-16": _gpus_16,
    "no-drm": _no_drm,
    "imex": _imex,
    "thor": _thor,
    "linked-root": _linked_root,
    "wsl": _wsl,
    "hostile": _hostile,
}
