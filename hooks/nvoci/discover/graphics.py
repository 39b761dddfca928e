"""What graphics needs beside the driver's libraries: platform libraries of EGL, X.Org modules, configuration files.

Configuration lies in other directories on each distribution, and goes to one place in the container: what the loaders
of Vulkan, EGL and OpenCL search whatever the image is. X.Org modules go to where they lie on the host.
"""

from __future__ import annotations

from nvoci.discover.driver import library_mount
from nvoci.discover.libnames import stem_of
from nvoci.discover.libraries import Libraries, Library, below
from nvoci.discover.model import Mount
from nvoci.discover.search import Search, first, mount

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from nvoci.discover.driver import DriverFiles
    from nvoci.discover.node import Node, Options

_PLATFORM_LIBRARIES = (
    "libnvidia-egl-gbm.so.*.*",
    "libnvidia-egl-wayland.so.*.*",
    "libnvidia-egl-wayland2.so.*.*",
    "libnvidia-egl-xcb.so.*.*",
    "libnvidia-egl-xlib.so.*.*",
)
_GRAPHICS, _DISPLAY, _COMPUTE = ("graphics", "display"), ("display",), ("compute",)
_GRAPHICS_32 = ("graphics", "compat32")
# (path below the directories, capabilities): to /usr/share in the container.
_SHARED = (
    ("glvnd/egl_vendor.d/10_nvidia.json", _GRAPHICS),
    ("egl/egl_external_platform.d/15_nvidia_gbm.json", _GRAPHICS),
    ("egl/egl_external_platform.d/10_nvidia_wayland.json", _GRAPHICS),
    ("egl/egl_external_platform.d/09_nvidia_wayland2.json", _GRAPHICS),
    ("egl/egl_external_platform.d/20_nvidia_xcb.json", _GRAPHICS),
    ("egl/egl_external_platform.d/20_nvidia_xlib.json", _GRAPHICS),
    ("nvidia/nvoptix.bin", ("graphics",)),
    ("X11/xorg.conf.d/10-nvidia.conf", _DISPLAY),
    ("X11/xorg.conf.d/nvidia-drm-outputclass.conf", _DISPLAY),
)
# To /etc in the container.
_OPENCL = (("OpenCL/vendors/nvidia.icd", _COMPUTE),)
# To /etc too; packages put these at the top of a driver root as well.
_VULKAN = (
    ("vulkan/icd.d/nvidia_icd.json", _GRAPHICS),
    ("vulkan/icd.d/nvidia_layers.json", _GRAPHICS),
    ("vulkan/implicit_layer.d/nvidia_layers.json", _GRAPHICS),
)
# Fedora has one for each architecture.
_VULKAN_BY_MACHINE = {
    "x86_64": (("vulkan/icd.d/nvidia_icd.x86_64.json", _GRAPHICS), ("vulkan/icd.d/nvidia_icd.i686.json", _GRAPHICS_32)),
    "aarch64": (("vulkan/icd.d/nvidia_icd.aarch64.json", _GRAPHICS),),
}
_NIXOS = "/run/opengl-driver/share"
_XORG_BELOW = ("/drivers", "/extensions", "/updates/drivers", "/updates/extensions")
_XORG_DIRECTORIES = ("/usr/lib/xorg/modules", "/usr/lib64/xorg/modules", "/usr/X11R6/lib/modules",
                     "/usr/X11R6/lib64/modules")  # fmt: skip


def graphics(node: Node, search: Search, libraries: Libraries, files: DriverFiles, options: Options) -> list[Mount]:
    """Platform libraries, X.Org modules, configuration files."""
    known = {library.path for library in files.libraries}
    found = [library_mount_plain(node, each) for each in platform_libraries(libraries) if each.path not in known]
    found += xorg_modules(node, search, files)
    found += configuration(node, search, options)
    return found


def platform_libraries(libraries: Libraries) -> list[Library]:
    """External platforms of EGL: their versions are not the driver's."""
    found: dict[str, Library] = {}
    for pattern in _PLATFORM_LIBRARIES:
        for each in libraries.matching(pattern):
            found[each.path] = each
            libraries.take(each)
    return list(found.values())


def library_mount_plain(node: Node, library: Library) -> Mount:
    """Without links: ldconfig, or the hook that stands for it, makes the one of the soname."""
    return library_mount(node, library).replace(links=())


def driver_links(library: Library) -> list[tuple[str, str]]:
    """Links from where other libraries load this one."""
    directory = library.directory.rstrip("/")
    stem = stem_of(library.name)
    if stem == "libnvidia-allocator":  # as the GBM loader of Mesa names a backend
        return [("../libnvidia-allocator.so.1", f"{directory}/gbm/nvidia-drm_gbm.so")]
    if stem == "libnvidia-vulkan-producer":
        return [(library.name, f"{directory}/{stem}.so")]
    return []


def xorg_modules(node: Node, search: Search, files: DriverFiles) -> list[Mount]:
    """The driver module of the X server and its GLX extension."""
    directories = []
    for each in files.driver.library_dirs:
        top = each.rstrip("/")
        directories += [f"{top}/nvidia/xorg", *[f"{top}/xorg/modules{below_it}" for below_it in _XORG_BELOW]]
    directories += [f"{top}{below_it}" for top in _XORG_DIRECTORIES for below_it in _XORG_BELOW]
    directories = list(dict.fromkeys(directories))
    found = []
    for name in ("nvidia_drv.so", f"libglxserver_nvidia.so.{files.driver.version}"):
        hit = first(search, node.root, "X.Org module", name, [f"{each}/{name}" for each in directories])
        if hit is not None:
            directory = hit.path.rpartition("/")[0]
            link = [(name, f"{directory}/libglxserver_nvidia.so")] if name.startswith("libglx") else []
            found.append(mount(node.root, hit, "file", _DISPLAY, links=link))
    return found


def configuration(node: Node, search: Search, options: Options) -> list[Mount]:
    """Files that tell loaders of the driver."""
    if options.config_search_path:
        directories = tuple([below(node, path) for path in options.config_search_path])
    else:
        directories = ("/etc", *options.data_dirs, _NIXOS)
    vulkan = (*_VULKAN, *_VULKAN_BY_MACHINE.get(node.machine, ()))
    return [
        *_first_of_each(node, search, _SHARED, directories, "/usr/share"),
        *_first_of_each(node, search, _OPENCL, directories, "/etc"),
        *_first_of_each(node, search, vulkan, (*directories, ""), "/etc"),
    ]


def _first_of_each(
    node: Node, search: Search, names: Iterable[tuple[str, tuple[str, ...]]], directories: Sequence[str], target: str
) -> list[Mount]:
    """Where two names lead to one file the first is mounted."""
    found, seen = [], set()
    for name, capabilities in names:
        hit = first(search, node.root, "config", name, [f"{each.rstrip('/')}/{name}" for each in directories])
        if hit is not None and hit.resolved not in seen:
            seen.add(hit.resolved)
            found.append(mount(node.root, hit, "config", capabilities, container_path=f"{target}/{name}"))
    return found
