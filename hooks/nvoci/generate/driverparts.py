"""What belongs to the driver as such: its files, and the hooks they need."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nvoci.discover.driver import FIND_STAGE, MATCH_STAGE
from nvoci.discover.graphics import driver_links
from nvoci.discover.libnames import folders, stem_of
from nvoci.discover.libraries import Library
from nvoci.discover.model import SOCKET
from nvoci.errors import HookError
from nvoci.generate.options import EXPLICIT_LIBRARIES, NO_IPC
from nvoci.generate.parts import (
    CREATE_SYMLINKS,
    CUDA_COMPAT,
    NO_NODE_CHANGES,
    STAGE,
    UPDATE_LDCACHE,
    VOID,
    Call,
    Link,
    Share,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from nvoci.discover.model import DeviceNode, Found, Mount
    from nvoci.generate.options import GenerateOptions

_LIBCUDA_DIR = "NVIDIA_CTK_LIBCUDA_DIR"
_APPLICATION_PROFILE = "update-application-profile"
_NEEDED = ("libcuda", "libnvidia-ml")
# Found for others than CDI, which has never given it.
_NOT_MOUNTED = ("nv-fabricmanager",)
_GRAPHICS_PROGRAMS = ("nvidia-xconfig",)
_NOT_COMMON = ("compat32", "gds")
# External platforms of EGL: graphics finds them, and so does the search for libraries that are named one by one.
_PLATFORM = "libnvidia-egl-"
_EXPLICIT_PLATFORM = ("libnvidia-egl-xcb", "libnvidia-egl-xlib")


def check(found: Found, whole: bool = True) -> None:
    """Raises HookError unless there is a driver of one version: a specification of any other would be believed, and its
    containers fail one by one. whole: it also has to have what nothing works without."""
    driver = found.driver
    for stage in (MATCH_STAGE, FIND_STAGE):
        problem = next((each for each in found.problems if each.stage == stage), None)
        if problem is not None and (stage == MATCH_STAGE or not driver.version):
            raise HookError(f"{STAGE}: {problem.stage} {problem.subject}: {problem.error}", problem.hint)
    if not driver.version:
        raise HookError(f"{STAGE}: no driver in {driver.root}", "install the NVIDIA driver, or name its root")
    if not whole:
        return
    there = {_name(each) for each in found.mounts if each.kind == "library" and "compat32" not in each.capabilities}
    missing = [name for stem in _NEEDED if (name := f"{stem}.so.{driver.version}") not in there]
    if missing:
        raise HookError(f"{STAGE}: {', '.join(missing)} in {driver.root}: not there",
                        f"reinstall the driver {driver.version}")  # fmt: skip


def share(found: Found, options: GenerateOptions, nodes: Iterable[DeviceNode] = (), graphics: bool = True) -> Share:
    """For every container. graphics: also what X.Org, Vulkan and EGL need beside the driver's libraries."""
    mounts = [each for each in found.mounts if _is_wanted(each, found, options, graphics)]
    calls: list[Call] = []
    libraries = [each for each in mounts if each.kind == "library"]
    if graphics:
        calls.append(Call(CREATE_SYMLINKS, links=tuple(link for each in mounts for link in _graphics_links(each))))
    calls.append(Call(CREATE_SYMLINKS, links=tuple(link for each in libraries for link in _library_links(each))))
    calls.append(Call(CUDA_COMPAT, (f"--host-driver-version={found.driver.version}",)))
    calls.append(Call(UPDATE_LDCACHE, tuple(folders(each.container_path for each in libraries))))
    calls.append(Call(NO_NODE_CHANGES))
    if graphics:
        calls.append(Call(_APPLICATION_PROFILE))
    directories = found.driver.library_dirs
    env = [f"{_LIBCUDA_DIR}={':'.join(directories)}"] if directories else []
    return Share((*env, VOID), tuple(nodes), tuple(mounts), tuple(calls))


def _name(mount: Mount) -> str:
    return mount.container_path.rpartition("/")[2]


def _is_wanted(mount: Mount, found: Found, options: GenerateOptions, graphics: bool) -> bool:
    if set(_NOT_COMMON) & set(mount.capabilities) or _name(mount) in _NOT_MOUNTED:
        return False
    if mount.kind in {"socket", "directory"} and mount.options == SOCKET:
        return not options.has(NO_IPC)
    return graphics or not _is_of_graphics(mount, found.driver.version, options.has(EXPLICIT_LIBRARIES))


def _is_of_graphics(mount: Mount, version: str, explicit: bool) -> bool:
    """Whether it is there for graphics alone, which a container that manages the node has no use for."""
    name = _name(mount)
    if mount.kind == "library" and not name.endswith(f".so.{version}"):
        return name.startswith(_PLATFORM) and not (explicit and stem_of(name) in _EXPLICIT_PLATFORM)
    return mount.kind in {"config", "file"} or name in _GRAPHICS_PROGRAMS


def _loader_links(mount: Mount) -> int:
    """How many of the links of a library, at their end, are for what loads it by another name."""
    return len(driver_links(Library(mount.container_path, mount.soname, False))) if mount.kind == "library" else 0


def _graphics_links(mount: Mount) -> list[Link]:
    """Of GBM and Vulkan, and of an X.Org module."""
    links = mount.links if mount.kind == "file" else mount.links[len(mount.links) - _loader_links(mount) :]
    return [Link(target, path) for target, path in links]


def _library_links(mount: Mount) -> list[Link]:
    return [Link(target, path) for target, path in mount.links[: len(mount.links) - _loader_links(mount)]]
