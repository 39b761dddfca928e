"""Names of shared libraries: which are a driver's, of which version, and what each is for."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

_MAX_VERSION_PARTS = 4
# By stem, the name up to `.so`. More than one capability: any of them asks for it. The tables of
# nvidia-container-cli, and behind them what only CDI mounts; libraries of the CUDA part that Vulkan and GBM load too
# are also marked graphics.
_BY_CAPABILITY = {
    "utility": "libnvidia-ml libnvidia-cfg libnvidia-nscq libnvidia-sandboxutils",
    "compute": "libcuda libcudadebugger libnvidia-opencl libnvidia-gpucomp libnvidia-ptxjitcompiler "
    "libnvidia-fatbinaryloader libnvidia-allocator libnvidia-compiler libnvidia-pkcs11 libnvidia-pkcs11-openssl3 "
    "libnvidia-nvvm libnvidia-nvvm70 libnvidia-tileiras libOpenCL",
    "ngx": "libnvidia-ngx",
    "video": "libvdpau_nvidia libnvidia-encode libnvidia-opticalflow libnvcuvid",
    "graphics": "libnvidia-gpucomp libnvidia-allocator libnvidia-eglcore libnvidia-glcore libnvidia-tls libnvidia-glsi "
    "libnvidia-fbc libnvidia-ifr libnvidia-rtcore libnvoptix libGLX_nvidia libEGL_nvidia libGLESv2_nvidia "
    "libGLESv1_CM_nvidia libnvidia-glvkspirv libnvidia-cbl libGL libEGL libGLESv1_CM libGLESv2 libGLX libGLdispatch "
    "libOpenGL libnvidia-api libnvidia-egl-gbm libnvidia-egl-wayland libnvidia-egl-wayland2 libnvidia-egl-xcb "
    "libnvidia-egl-xlib libnvidia-vulkan-producer libnvidia-vksc-core libnvidia-present",
    "display": "libnvidia-wayland-client libnvidia-gtk2 libnvidia-gtk3 libglxserver_nvidia",
}
CAPABILITIES: dict[str, tuple[str, ...]] = {}
for _capability, _stems in _BY_CAPABILITY.items():
    for _stem in _stems.split():
        CAPABILITIES[_stem] = (*CAPABILITIES.get(_stem, ()), _capability)
# Vendor-neutral libraries: no sign of a driver.
NEUTRAL = frozenset("libGL libEGL libGLESv1_CM libGLESv2 libGLX libGLdispatch libOpenGL libOpenCL".split())


def stem_of(name: str) -> str:
    """`libcuda` of `libcuda.so.550.54.15`; "" for what is no library."""
    stem, so, rest = name.partition(".so")
    return stem if so and (not rest or rest[0] == ".") else ""


def is_ours(name: str) -> bool:
    """Whether a library of this name is a driver's."""
    stem = stem_of(name)
    return stem not in NEUTRAL and (stem in CAPABILITIES or stem.startswith("libnvidia-"))


def version_of(name: str) -> str:
    """`550.54.15` of `libcuda.so.550.54.15`; "" where what follows is no version of a driver: the `1.1` of WSL's
    libcuda.so.1.1 is none."""
    version = name.partition(".so.")[2]
    parts = version.split(".")
    numbers = all(part.isascii() and part.isdigit() for part in parts)
    return version if 2 <= len(parts) <= _MAX_VERSION_PARTS and numbers and int(parts[0]) >= 10 else ""


def version_key(version: str) -> tuple[int, ...]:
    """For sorting."""
    return tuple([int(part) for part in version.split(".")])


def folders(paths: Iterable[str]) -> list[str]:
    """The directories of libraries, each once, in order: what ld.so.cache must be told of."""
    found: dict[str, None] = {}
    for path in paths:
        directory, _, name = path.rpartition("/")
        if name.startswith("lib") and len(stem_of_last(name)) > 3:
            found[directory or "/"] = None
    return list(found)


def stem_of_last(name: str) -> str:
    """The name up to its last `.so`, if that ends it or a dot follows."""
    stem, so, rest = name.rpartition(".so")
    return stem if so and (not rest or rest[0] == ".") else ""
