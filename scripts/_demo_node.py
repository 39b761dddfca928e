"""The driver that scripts/demo gives to a container: this machine's, or a simulated one made of real files.

Everything here is what a container engine mounts and creates without any hook.
"""

from __future__ import annotations

import atexit
import importlib
import os
import re
import shutil
import stat
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

MACHINE = os.uname().machine
LIBDIR = f"/usr/lib/{MACHINE}-linux-gnu"
SOCKET = "/run/nvidia-persistenced/socket"
_PLACES = ("/usr/local/nvidia/lib64", "/usr/local/nvidia/lib")
NODES = re.compile(r"nvidia(\d+|ctl|-modeset|-uvm|-uvm-tools)")


class Node(NamedTuple):
    """Host files by where they go in the container; `proc` is what /proc/driver must be made of, if it is not there."""

    real: bool
    version: str
    libraries: list[Path]
    firmware: list[Path]
    nodes: list[Path]
    socket: Path | None
    smi: Path | None
    proc: Path | None
    params: Path

    def mounts(self) -> list[dict[str, Any]]:
        """OCI mounts of libraries, firmware, socket and nvidia-smi."""
        wanted = [(path, f"{LIBDIR}/{path.name}") for path in self.libraries]
        wanted += [(path, self.firmware_path(path)) for path in self.firmware]
        wanted += [(self.socket, SOCKET)] if self.socket else []
        wanted += [(self.smi, "/usr/bin/nvidia-smi")] if self.smi else []
        options = ["bind", "ro", "nosuid", "nodev"]
        return [
            {"destination": there, "type": "bind", "source": str(path), "options": options} for path, there in wanted
        ]

    def firmware_path(self, path: Path) -> str:
        """Where the driver looks for a firmware file."""
        return f"/lib/firmware/nvidia/{self.version}/{path.name}"

    def devices(self) -> list[tuple[str, int, int]]:
        """(path in the container, major, minor) of each device node."""
        numbers = [(f"/dev/{path.name}", path.stat().st_rdev) for path in self.nodes]
        return sorted((name, os.major(number), os.minor(number)) for name, number in numbers)

    def first_devices(self, count: int) -> list[tuple[str, int, int]]:
        """The best known ones: nvidia0, nvidia1 … and nvidiactl."""
        return [device for device in self.devices() if "-" not in device[0]][:count]

    def modifies(self) -> str:
        """`ModifyDeviceFiles` of the driver's params."""
        found = re.search(r"^ModifyDeviceFiles: (\d+)$", self.params.read_text(), re.MULTILINE)
        return found[1] if found else ""

    def gpus(self) -> list[int]:
        """The minors of the GPUs, which are what the application profile's mask is made of."""
        return [minor for name, _, minor in self.devices() if re.fullmatch(r"/dev/nvidia\d+", name)]


def find(place: Path) -> Node:
    """This machine's driver if it has one, else a simulated one below `place`."""
    return _real() or _simulated(place)


def _real() -> Node | None:
    nodes = sorted(path for path in Path("/dev").iterdir() if NODES.fullmatch(path.name) and path.is_char_device())
    params, cuda = Path("/proc/driver/nvidia/params"), _libcuda()
    names = [path.name for path in nodes]
    if "nvidiactl" not in names or not any(name[6:].isdigit() for name in names) or not cuda or not params.exists():
        return None
    version = cuda.name.partition(".so.")[2]
    firmware = Path("/lib/firmware/nvidia", version)
    smi = shutil.which("nvidia-smi", path="/usr/bin:/usr/local/nvidia/bin:/bin")
    return Node(
        real=True,
        version=version,
        libraries=sorted(path for path in cuda.parent.glob(f"lib*.so.{version}") if not path.is_symlink()),
        firmware=sorted(firmware.glob("gsp_*.bin")),
        nodes=nodes,
        socket=Path(SOCKET) if Path(SOCKET).is_socket() else None,
        smi=Path(smi) if smi else None,
        proc=None,
        params=params,
    )


def _libcuda() -> Path | None:
    """The file of libcuda.so.1, by ldconfig's cache or in the places of driver containers."""
    cache = subprocess.run(["/sbin/ldconfig", "-p"], capture_output=True, text=True, check=False).stdout
    found = [line.rpartition("=> ")[2] for line in cache.splitlines() if line.strip().startswith("libcuda.so.1 ")]
    for name in (*found, *(f"{place}/libcuda.so.1" for place in _PLACES)):
        path = Path(os.path.realpath(name))
        # 32-bit libraries can stand in the cache as well; e_machine is at 18 in elf.h's Elf64_Ehdr.
        if re.fullmatch(r"libcuda\.so\.\d+\.\d+[.\d]*", path.name) and path.read_bytes()[4:5] == b"\x02":
            return path
    return None


def _simulated(place: Path) -> Node:
    driver = importlib.import_module("lib.driver").make(place, gpus=2)
    atexit.register(driver.close)
    return Node(
        real=False,
        version=driver.version,
        libraries=driver.libraries,
        firmware=driver.firmware,
        nodes=[path for path in driver.nodes if NODES.fullmatch(path.name) and stat.S_ISCHR(path.stat().st_mode)],
        socket=driver.persistenced,
        smi=None,
        proc=driver.proc,
        params=driver.params,
    )
