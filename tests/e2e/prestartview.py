"""What a container of a simulated node has to say of its driver, and what it has to have by the reference's tables.

There is no driver behind the nodes: to open one that is allowed is ENXIO, one that is not is EPERM.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from e2e.gpunode import LIBDIR, Seen, make_image
from e2e.prestartnode import PrestartNode
from lib import hookproc, runtimes, session

# NVML's process needs the newer system calls.
asks_nvml = pytest.mark.skipif(hookproc.COMPAT_SWITCH in os.environ, reason="--compat: NVML cannot be asked")
V = "550.163.01"
ALLOWED, DENIED = "No such device or address", "Operation not permitted"
FILE, SOCKET, NODE, PROC = "ro,nosuid,nodev", "rw,nosuid,nodev,noexec", "ro,nosuid,noexec", "ro,nosuid,nodev,noexec"
# What the reference's tables give for this node's files, by capability.
PROGRAMS = "nvidia-smi nvidia-debugdump nvidia-persistenced nvidia-cuda-mps-control nvidia-cuda-mps-server".split()
UTILITY = "libnvidia-ml libnvidia-cfg".split()
COMPUTE = (
    "libcuda libcudadebugger libnvidia-opencl libnvidia-gpucomp libnvidia-ptxjitcompiler libnvidia-allocator "
    "libnvidia-pkcs11 libnvidia-pkcs11-openssl3 libnvidia-nvvm"
).split()
OTHERS = (
    "libnvidia-ngx libnvidia-encode libnvidia-opticalflow libnvcuvid libnvidia-eglcore libnvidia-glcore libnvidia-glsi "
    "libnvidia-fbc libnvidia-rtcore libnvoptix libGLX_nvidia libEGL_nvidia libGLESv2_nvidia libGLESv1_CM_nvidia "
    "libnvidia-glvkspirv"
).split()
BUS = ["0000:07:00.0", "0000:0f:00.0", "0000:47:00.0", "0000:4e:00.0", "0000:87:00.0", "0000:90:00.0", "0000:b7:00.0",
       "0000:bd:00.0"]  # fmt: skip
UVM = {"/dev/nvidia-uvm": "510:0", "/dev/nvidia-uvm-tools": "510:1"}
MODESET = {"/dev/nvidia-modeset": "195:254"}
FIRMWARE = [f"/usr/lib/firmware/nvidia/{V}/gsp_{name}.bin" for name in ("ga10x", "tu10x")]
SOCKETS = ["/run/nvidia-persistenced/socket", "/run/nvidia-fabricmanager/socket"]


def driver_mounts(
    libraries: Iterable[str], programs: Iterable[str] = PROGRAMS, *, libs: str = LIBDIR, sockets: bool = True,
    merged: bool = True,
) -> dict[str, str]:  # fmt: skip
    """libs: where the container has its libraries; merged: whether its /lib is a link to /usr/lib."""
    found = {f"/usr/bin/{name}": FILE for name in programs}
    found.update({f"{libs}/{name}.so.{V}": FILE for name in libraries})
    found.update({path if merged else path.removeprefix("/usr"): FILE for path in FIRMWARE})
    found.update(dict.fromkeys(SOCKETS if sockets else [], SOCKET))
    return {**found, "/proc/driver/nvidia": PROC}


def gpu_mounts(*indices: int) -> dict[str, str]:
    return {f"/proc/driver/nvidia/gpus/{BUS[index]}": PROC for index in indices}


def gpu_nodes(*indices: int) -> dict[str, str]:
    return {"/dev/nvidiactl": "195:255", **{f"/dev/nvidia{index}": f"195:{index}" for index in indices}}


def part(seen: Seen, kind: str) -> dict[str, str]:
    """What the container said of mounts, nodes, ..., without its kind."""
    return {key[len(kind) + 1 :]: value for key, value in seen.said.items() if key.startswith(f"{kind} ")}


def mounts(seen: Seen) -> dict[str, str]:
    """Those of a driver: not the runtime's."""
    own = ("/proc/driver/nvidia", "/usr/", "/lib", "/run/", "/dev/nvidia", "/etc/", "/opt", "/tmp/nvidia")
    return {path: options for path, options in part(seen, "mount").items() if path.startswith(own)}


def check(seen: Seen, wanted: dict[str, str], nodes: dict[str, str]) -> None:
    """The container ran and has just these mounts and device nodes, each node mounted and allowed."""
    assert seen.result.rc == 0, seen.result.stderr
    assert mounts(seen) == {**wanted, **dict.fromkeys(nodes, NODE)}
    assert part(seen, "node") == {path: f"{number} {ALLOWED}" for path, number in nodes.items()}
    assert (seen.said["params"], seen.said["write"], seen.said["loads"]) == ("0", "Read-only file system", "0")
    clean(seen)


def clean(seen: Seen) -> None:
    left = (seen.result.survivors, seen.result.mounts_added, runtimes.leftovers())
    assert (left, "Traceback" in seen.result.stderr) == (([], [], []), False)


def refused(seen: Seen, *words: str) -> None:
    """The container did not start; the hook said why."""
    assert seen.said == {}, seen.said
    assert seen.result.rc != 0
    assert [word for word in words if word not in seen.result.stderr] == [], seen.result.stderr
    clean(seen)


def image() -> Path:
    return make_image(session.new_dir("image"))


def no_hook(root: Path | None = None) -> dict[str, Any]:
    """One that does nothing."""
    return runtimes.shell_hook("true")


def dry_run(node: PrestartNode, out: str = "/dev/null") -> dict[str, Any]:
    """The hook, which then changes nothing."""
    return node.entry("-dry-run", "prestart", script=f'exec "$@" >{out}')
