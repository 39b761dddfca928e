"""Where a driver's files lie on a node: patterns below a root, `*` and `?` within a name, `**` for all below."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Iterator

TOP = ("bin", "dev", "etc", "lib", "lib64", "opt", "proc", "run", "sbin", "sys", "tmp", "usr", "var")
USR = ("bin", "lib", "lib64", "sbin", "share", "src")
# Directories that are described where they are there, whatever is in them.
DIRECTORIES = (
    *(
        "dev/dri",
        "dev/dri/by-path",
        "dev/infiniband",
        "dev/nvidia-caps",
        "dev/nvgpu",
        "run/udev",
        "proc/driver",
        "var/run",
    ),
    *("sys/bus/pci/devices", "tmp/nvidia-mps"),
)
_LIBRARIES = (
    *("libnv*.so*", "libcuda*.so*", "libEGL*.so*", "libGL*.so*", "libOpenCL.so*", "libOpenGL.so*", "libdxcore.so*"),
    *("libv4l2*.so*", "libvdpau_nvidia.so*", "libglxserver_nvidia.so*", "nvidia_drv.so", "vdpau/*nvidia*", "gbm/*"),
    *("nvidia/**", "tegra/**", "xorg/modules/*/*nvidia*", "xorg/modules/updates/*/*nvidia*"),
)
_LIBRARY_DIRECTORIES = ("", "x86_64-linux-gnu", "aarch64-linux-gnu", "i386-linux-gnu", "nvidia/current")
_CONFIGURATION = (
    *(
        "OpenCL/vendors/*nvidia*",
        "vulkan/icd.d/*nvidia*",
        "vulkan/implicit_layer.d/*nvidia*",
        "X11/xorg.conf.d/*nvidia*",
    ),
    *("egl/egl_external_platform.d/*nvidia*", "glvnd/egl_vendor.d/*nvidia*", "nvidia/nvoptix.bin"),
)
FILES = (
    *(
        "dev/nvidia*",
        "dev/nvidia-caps/*",
        "dev/nvidia-caps-imex-channels/*",
        "dev/dri/*",
        "dev/dri/by-path/*",
        "dev/gdrdrv",
    ),
    *(
        "dev/infiniband/rdma_cm",
        "dev/infiniband/uverbs*",
        "dev/dxg",
        "dev/nvhost*",
        "dev/nvmap",
        "dev/nvgpu/**",
        "dev/v4l2-nv*",
    ),
    *("proc/driver/nvidia*/**", "proc/devices"),
    *("run/nvidia-persistenced/socket", "run/nvidia-fabricmanager/socket", "run/nvidia-imex/*", "run/nvidia/driver"),
    *("tmp/nvidia-mps/*",),
    *("sys/module/firmware_class/parameters/path", "sys/module/nvidia*/version", "sys/devices/soc0/family"),
    *("etc/ld.so.conf", "etc/ld.so.conf.d/*.conf", "etc/os-release", "usr/lib/os-release", "etc/cufile.json"),
    *("etc/nv_tegra_release", "etc/nvidia-container-runtime/host-files-for-container.d/*.csv"),
    *("usr/bin/nvidia-*", "usr/lib/wsl/**", "usr/src/jetson_multimedia_api/README"),
    *(f"{top}/{name}" for top in ("etc", "usr/share", "usr/local/share") for name in _CONFIGURATION),
    *(f"{top}/firmware/{name}" for top in ("lib", "usr/lib") for name in ("nvidia/*/*", "tegra*/**")),
    *(
        f"{top}/{directory}/{name}".replace("//", "/")
        for top in ("lib", "lib64", "usr/lib", "usr/lib64")
        for directory in _LIBRARY_DIRECTORIES
        for name in _LIBRARIES
    ),
)
_MOST = 100_000


def in_library_directory(directory: str) -> list[str]:
    """Patterns for one more directory with libraries, absolute."""
    return [f"{directory.strip('/')}/{name}" for name in _LIBRARIES]


def find(root: str, patterns: list[str]) -> set[str]:
    """Paths below `root` ("" for the machine's), absolute there, that match. No link is followed on the way: where it
    leads is a path of its own. What can not be listed is empty."""
    found: set[str] = set()
    for pattern in patterns:
        for path in _match(root, "", pattern.split("/")):
            found.add(path)
            if len(found) > _MOST:
                raise ValueError(f"more than {_MOST} files below `{root}` look like a driver's")
    return found


def _match(root: str, path: str, parts: list[str]) -> Iterator[str]:
    if parts == ["**"]:
        for name in _names(root, path):
            yield f"{path}/{name}"
            yield from _match(root, f"{path}/{name}", parts)
        return
    wanted = parts[0]
    if not any(c in wanted for c in "*?["):
        names = [wanted] if os.path.lexists(f"{root}{path}/{wanted}") else []
    else:
        names = [name for name in _names(root, path) if fnmatch.fnmatchcase(name, wanted)]
    for name in names:
        if len(parts) == 1:
            yield f"{path}/{name}"
        elif not os.path.islink(f"{root}{path}/{name}"):
            yield from _match(root, f"{path}/{name}", parts[1:])


def _names(root: str, path: str) -> list[str]:
    if path and os.path.islink(f"{root}{path}"):
        return []
    try:
        return sorted(os.listdir(f"{root}{path}" or "/"))
    except OSError:
        return []
