"""What scripts/bench measures: the cases, what each must have done, and the root file system they work on.

Standard library only, Python >= 3.9.
"""

from __future__ import annotations

import importlib
import json
import os
import stat
from pathlib import Path
from typing import Callable, NamedTuple

HOST_DRIVER, HOST_CUDA = "550.54.14", "12.4"
COMPAT = "usr/local/cuda-12.9/compat"
COMPAT_NOTE = {"format": 1, "CUDA version": "12.9", "driver": [535, 550, 560, 565, 570, 575], "device": []}
PARAMS = "proc/driver/nvidia/params"
PARAMS_TEXT = "ResmanDebugLevel: 4294967295\nModifyDeviceFiles: 1\nDeviceFileUID: 0\nDeviceFileMode: 438\n"
PROFILE = "etc/nvidia/nvidia-application-profiles-rc.d/10-container.conf"
LIBRARIES = f"usr/lib/{os.uname().machine}-linux-gnu"
MAX_RSS_MIB = 20.0


class Case(NamedTuple):
    """Arguments of nvidia-cdi-hook, the proof that it did its work, and the ratio to reach (0: for information)."""

    name: str
    what: str
    words: tuple[str, ...]
    done: Callable[[Path], bool]
    target: float


def _links(count: int) -> list[str]:
    """`--link` options of the kind a driver needs: most beside the libraries, some where plugins and DRM look."""
    folders = (LIBRARIES,) * 5 + (f"{LIBRARIES}/gbm", f"{LIBRARIES}/vdpau", "dev/dri/by-path")
    words = []
    for number in range(count):
        words += ["--link", f"libnvidia-{number}.so.1::/{folders[number % len(folders)]}/libnvidia-{number}.so"]
    return words


def _are_links(count: int) -> Callable[[Path], bool]:
    last = _links(count)[-1].split("::")
    return lambda root: os.path.lexists(root / last[1][1:]) and os.readlink(root / last[1][1:]) == last[0]


def _mode_set(root: Path) -> bool:
    return stat.S_IMODE((root / "dev/dri").stat().st_mode) == 0o755


def _profile(root: Path) -> bool:
    path = root / PROFILE
    return path.exists() and "0x3" in path.read_text()


def _compat(root: Path) -> bool:
    found = list((root / "etc/ld.so.conf.d").glob("00-compat-*.conf"))
    return [path.read_text() for path in found] == [f"/{COMPAT}\n"]


def _params(root: Path) -> bool:
    return "ModifyDeviceFiles: 0\n" in (root / PARAMS).read_text()


def _everything(root: Path) -> bool:
    return _are_links(32)(root) and all(proof(root) for proof in (_mode_set, _profile, _compat, _params))


def _cached(root: Path) -> bool:
    return b"libbench.so.1\0" in (root / "etc/ld.so.cache").read_bytes()


_CHMOD = ("chmod", "--mode", "755", "--path", "/dev/dri")
_COMPAT = ("enable-cuda-compat", "--host-driver-version", HOST_DRIVER, "--host-cuda-version", HOST_CUDA)
_RUN = (
    *("run", "--", "create-symlinks", *_links(32), "--", *_CHMOD, "--", *_COMPAT),
    *("--", "disable-device-node-modification", "--", "update-application-profile"),
)

CASES = (
    Case("noop", "noop", ("noop",), lambda root: True, 1.6),
    Case("link", "create-symlinks, one link", ("create-symlinks", *_links(1)), _are_links(1), 1.6),
    Case("chmod", "chmod, one path", _CHMOD, _mode_set, 1.6),
    Case("profile", "update-application-profile", ("update-application-profile",), _profile, 1.6),
    Case("compat", "enable-cuda-compat, it applies", _COMPAT, _compat, 1.6),
    Case("run", "`run`, five hooks, 32 links", _RUN, _everything, 1.9),
    Case("links", "create-symlinks, 1,000 links", ("create-symlinks", *_links(1000)), _are_links(1000), 6.0),
    Case("ldcache", "update-ldcache, one folder", ("update-ldcache", "--folder", "/opt/bench/lib"), _cached, 0.0),
)


def make_lower(place: Path) -> Path:
    """The root file system below every overlay: glibc, two GPUs' nodes, a CUDA compat library, a params file."""
    elfmaker = importlib.import_module("lib.elfmaker")
    rootfs = importlib.import_module("lib.rootfs")
    root: Path = rootfs.glibc_rootfs(place)
    lines = (
        *("char dev/nvidia0 195 0", "char dev/nvidia1 195 1", "char dev/nvidiactl 195 255", "dir dev/dri 700"),
        *("dir dev/dri/by-path", f"dir {LIBRARIES}/gbm", f"dir {LIBRARIES}/vdpau"),
        f"symlink usr/local/cuda /{COMPAT.rpartition('/')[0]}",
    )
    rootfs.tree(root, "\n".join(lines))
    (root / PARAMS).parent.mkdir(parents=True)
    (root / PARAMS).write_text(PARAMS_TEXT)
    machine = os.uname().machine
    note = (".note.cuda.fwd_compatibility", "NVIDIA Corporation", 1, json.dumps(COMPAT_NOTE).encode())
    compat = elfmaker.make_so(root / COMPAT / "libcuda.so.575.57.08", "libcuda.so.1", machine=machine, notes=[note])
    (compat.parent / "libcuda.so.1").symlink_to(compat.name)
    elfmaker.make_so(root / "opt/bench/lib/libbench.so.1.0", "libbench.so.1", machine=machine)
    return root
