"""What a specification of any generator tells of what it was made for: a driver, its roots, a mode.

One of ours has annotations; of others the arguments of hooks, the names of files and the device nodes tell.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from nvoci.discover.libnames import stem_of, version_of
from nvoci.generate import freshness
from nvoci.generate.options import MODES, GenerateOptions
from nvoci.generate.specs import COHERENT_SUFFIX, NONCOHERENT_SUFFIX

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nvoci.cdi.model import ContainerEdits, Mount, Spec

COMMON = "containerEdits"
_VERSION_FLAG = "--host-driver-version"
_TELLING = ("libcuda", "libnvidia-ml")
# Driver, as /proc/devices names it -> paths of its nodes.
NODES_OF = {
    "nvidia": re.compile(r".*/nvidia([0-9]+|ctl|-modeset)"),
    "nvidia-uvm": re.compile(r".*/nvidia-uvm(-tools)?"),
    "nvidia-caps": re.compile(r".*/nvidia-caps/nvidia-cap[0-9]+"),
    "nvidia-caps-imex-channels": re.compile(r".*/nvidia-caps-imex-channels/channel[0-9]+"),
    "nvidia-nvswitch": re.compile(r".*/nvidia-nvswitch(ctl|[0-9]+)"),
    "nvidia-fs": re.compile(r".*/nvidia-fs[0-9]+"),
    "gdrdrv": re.compile(r".*/gdrdrv"),
}


def places(spec: Spec) -> Iterator[tuple[str, list[str], ContainerEdits]]:
    """All edits: their place in the document, the name of the device that they are for, in a list ([]: any), and
    themselves."""
    yield COMMON, [], spec.container_edits
    for i, device in enumerate(spec.devices):
        yield f"devices[{i}].{COMMON}", [device.name], device.container_edits


def node_paths(edits: ContainerEdits) -> list[str]:
    """On the host."""
    return [node.host_path or node.path for node in edits.device_nodes]


def is_nvidia(spec: Spec) -> bool:
    """Whether it is for NVIDIA's devices, whoever made it and whatever it calls them."""
    if spec.vendor == "nvidia.com" or spec.vendor.endswith(".nvidia.com") or is_annotated(spec):
        return True
    paths = [node.path for _, _, edits in places(spec) for node in edits.device_nodes]
    return any(pattern.fullmatch(path) for path in paths for pattern in NODES_OF.values())


def is_annotated(spec: Spec) -> bool:
    """Whether it tells what it was made for."""
    return freshness.DRIVER_VERSION in spec.annotations or freshness.DEVICE_MAJORS in spec.annotations


def is_merged(spec: Spec) -> bool:
    """Whether it has one hook for the whole container, which only we make."""
    hooks = [hook for _, _, edits in places(spec) for hook in edits.hooks]
    return any(hook.args[1:2] == ("run",) or hook.args[1:3] == ("hook", "run") for hook in hooks)


def driver_version(spec: Spec) -> tuple[str, str]:
    """Of the driver that it was made for, and the place that tells it; "" for both where none does."""
    told = spec.annotations.get(freshness.DRIVER_VERSION, "")
    if told:
        return told, f"annotations[{freshness.DRIVER_VERSION}]"
    for where, _, edits in places(spec):
        for i, hook in enumerate(edits.hooks):
            for j, word in enumerate(hook.args):
                flag, _, value = word.partition("=")
                if flag == _VERSION_FLAG:
                    return value or "".join(hook.args[j + 1 : j + 2]), f"{where}.hooks[{i}].args[{j}]"
    for where, _, edits in places(spec):
        for i, mount in enumerate(edits.mounts):
            if is_library(mount):
                return version_of(_name(mount.host_path)), f"{where}.mounts[{i}].hostPath"
    return "", ""


def has_driver(spec: Spec) -> bool:
    """Whether it has libraries of the driver."""
    return any(stem_of(_name(each.host_path)) in _TELLING for _, _, edits in places(spec) for each in edits.mounts)


def is_library(mount: Mount) -> bool:
    """Whether it is one whose name has the driver's version."""
    name = _name(mount.host_path)
    return stem_of(name) in _TELLING and version_of(name) != ""


def _name(path: str) -> str:
    return path.rpartition("/")[2]


def majors(spec: Spec) -> dict[str, tuple[int, str]]:
    """Driver -> major number of its nodes, and the place that tells it."""
    where = f"annotations[{freshness.DEVICE_MAJORS}]"
    told = freshness.parse_majors(spec.annotations.get(freshness.DEVICE_MAJORS, ""))
    found = {name: (number, where) for name, number in told.items()}
    if found:
        return found
    for place, _, edits in places(spec):
        for i, node in enumerate(edits.device_nodes):
            for name, pattern in NODES_OF.items():
                if node.major and pattern.fullmatch(node.path):
                    found.setdefault(name, (node.major, f"{place}.deviceNodes[{i}].major"))
    return found


def roots(spec: Spec) -> tuple[str, str]:
    """The driver root and the dev root: what the host paths of the driver's libraries, and of device nodes, have before
    those of the container; / for nothing."""
    driver = dev = ""
    for _, _, edits in places(spec):
        for mount in edits.mounts:
            if stem_of(_name(mount.host_path)) in _TELLING:
                driver = driver or _before(mount.host_path, mount.container_path)
        for node in edits.device_nodes:
            dev = dev or _before(node.host_path or node.path, node.path)
    return driver or "/", dev or "/"


def _before(host_path: str, path: str) -> str:
    return host_path[: -len(path)] if host_path.endswith(path) else ""


def remake(spec: Spec) -> list[str]:
    """The words for `generate` that give one of this kind and form again."""
    vendor, class_ = spec.vendor, spec.class_
    for suffix in (NONCOHERENT_SUFFIX, COHERENT_SUFFIX):
        class_ = class_.removesuffix(suffix)
    plain = GenerateOptions()
    modes = [mode for mode in MODES if plain.kind(mode) == f"{vendor}/{class_}"]
    words = [] if modes else ["--vendor", vendor, "--class", class_]
    if modes and plain.kind("auto") != plain.kind(modes[0]):
        words += ["--mode", modes[0]]
    if not is_merged(spec) and any(edits.hooks for _, _, edits in places(spec)):
        words += ["--hooks", "reference"]
    driver, dev = roots(spec)
    return words + (["--driver-root", driver, "--dev-root", dev] if (driver, dev) != ("/", "/") else [])
