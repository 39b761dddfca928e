"""The driver of a node: its version, where its libraries lie, and which files are its own.

The version is that of the user-space files. Where several lie side by side, the one of the loaded kernel module
counts, since the module refuses every other. What does not fit is told with both versions.
"""

from __future__ import annotations

from nvoci.discover.fingerprint import module_version
from nvoci.discover.libnames import CAPABILITIES, version_key, version_of
from nvoci.discover.libraries import Libraries, Library, so_links
from nvoci.discover.model import Driver, Mount
from nvoci.discover.search import NOT_THERE, USED, Search, read_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nvoci.discover.node import Node
    from nvoci.discover.nvml import NvmlAnswer

# Stages of problems that mean: this driver will not work.
MATCH_STAGE = "match the driver's versions"
FIND_STAGE = "find the driver"
VERSION_FILE = "/driver/nvidia/version"
# Without one of these nothing works; in the order in which they tell the version.
_NEEDED = ("libcuda", "libnvidia-ml")
_EXPLICIT = ("libEGL.so", "libGL.so", "libGLESv1_CM.so", "libGLESv2.so", "libGLX.so", "libGLdispatch.so",
             "libOpenCL.so", "libOpenGL.so", "libnvidia-api.so", "libnvidia-egl-xcb.so",
             "libnvidia-egl-xlib.so")  # fmt: skip
_MAX_TOLD = 8


class DriverFiles:
    """driver: the record; libraries: of its version, 32-bit ones too, and those that belong to them."""

    __slots__ = ("driver", "libraries")

    def __init__(self, driver: Driver, libraries: list[Library]) -> None:
        self.driver = driver
        self.libraries = libraries


def find_driver(
    node: Node, search: Search, libraries: Libraries, answer: NvmlAnswer | None, explicit: bool = False
) -> DriverFiles:
    """explicit: also the vendor-neutral libraries that the feature enable-explicit-driver-libraries asks for."""
    module = loaded_module(node, search)
    version = _version(node, search, libraries, answer.driver_version if answer else "", module)
    own = libraries.of_version(version) if version else []
    directories = _directories([each for each in own if not each.compat32])
    if version:
        _tell_missing(node, search, libraries, version, {each.name for each in own if not each.compat32})
        own += _others(libraries, {each.path for each in own}, explicit)
    for each in own:
        libraries.take(each)
    return DriverFiles(record(node, answer, version, module, directories), own)


def _directories(libraries: list[Library]) -> list[str]:
    """Of the libraries, in order. The VDPAU module has one of its own, where no application looks for a library."""
    found = list(dict.fromkeys([each.directory for each in libraries]))
    return [each for each in found if not (each.endswith("/vdpau") and each[: -len("/vdpau")] in found)]


def record(
    node: Node, answer: NvmlAnswer | None, version: str, module: str, directories: list[str] | tuple[str, ...] = ()
) -> Driver:
    """The driver's record; what NVML knows of it goes in."""
    return Driver(
        version=version,
        module_version=module,
        cuda_version=answer.cuda_version if answer else None,
        nvml_version=answer.nvml_version if answer else "",
        root=node.root.host("") or "/",
        dev_root=node.dev.host("") or "/",
        library_dirs=tuple(directories),
    )


def loaded_module(node: Node, search: Search) -> str:
    """Version of the kernel module; "" where none is loaded, or what it says of itself makes no sense."""
    hint = "load the kernel module: modprobe nvidia"
    text = read_text(search, node.proc, VERSION_FILE, "the module's version", hint)
    lookup = search.begin("module", "nvidia")
    where = node.proc.host(VERSION_FILE)
    version = module_version(text.partition("\n")[0][:1000]) if text else ""
    if version:
        lookup.tried(where, f"{USED}: {version}")
    elif text is None:
        lookup.tried(where, "not loaded, or not to be read")
    else:
        lookup.tried(where, "no version in its first line")
        search.problem("read the module's version", where, "no version in its first line", hint)
    return version


def _version(node: Node, search: Search, libraries: Libraries, asked: str, module: str) -> str:
    """The version of the files to use. asked: what NVML says."""
    wanted = asked or module
    lookup = search.begin("driver version", wanted or "of any driver")
    there: dict[str, list[Library]] = {}
    for stem in _NEEDED:
        for version, files in libraries.named(stem).items():
            there.setdefault(version, []).extend([each for each in files if not each.compat32])
    there = {version: files for version, files in there.items() if files}
    if not there:
        return _without_files(node, search, libraries, wanted)
    if wanted in there:
        version = wanted
    else:
        version = _linked(node, libraries, there) or max(there, key=version_key)
    for each, files in there.items():
        outcome = USED if each == version else f"of another version than {wanted or version}"
        lookup.tried(node.root.host(files[0].path), outcome)
    _compare(search, asked, module, version, list(there))
    return version


def _without_files(node: Node, search: Search, libraries: Libraries, wanted: str) -> str:
    """No libcuda and no NVML library: the wanted version if anything of it is left."""
    root = node.root.host("") or "/"
    left = wanted if wanted and libraries.of_version(wanted) else ""
    if not left:
        searched = ", ".join([each.path for each in libraries.directories[:_MAX_TOLD]])
        words = "no libcuda.so.*.* and no libnvidia-ml.so.*.*" + (f" of {wanted}" if wanted else "")
        search.problem(FIND_STAGE, root, words,
                       f"install the NVIDIA driver, or name its root; searched: {searched}")  # fmt: skip
    return left


def _linked(node: Node, libraries: Libraries, there: dict[str, list[Library]]) -> str:
    """The version that libcuda.so.1, as the dynamic linker finds it, leads to."""
    for each in libraries.directories:
        if "libcuda.so.1" in each.names:
            library = libraries.library(each.file("libcuda.so.1"))
            version = version_of(library.name) if library and not library.compat32 else ""
            if version in there:
                return version
    return ""


def _compare(search: Search, asked: str, module: str, version: str, there: list[str]) -> None:
    """Tell what does not fit."""
    if asked and module and asked != module:
        search.problem(
            MATCH_STAGE, f"NVML {asked}, kernel module {module}", "the versions differ",
            "reboot, or unload and load the nvidia modules, or name the root of the driver that is loaded",
        )  # fmt: skip
    elif module and version != module:
        search.problem(
            MATCH_STAGE, f"kernel module {module}, libraries {', '.join(there)}", "the versions differ",
            f"reboot, or unload and load the nvidia modules, or install the libraries of {module}",
        )  # fmt: skip
    elif asked and version != asked:
        search.problem(
            MATCH_STAGE, f"NVML {asked}, libraries {', '.join(there)}", "the versions differ",
            f"install all of the driver {asked}, or name the root of the driver that NVML belongs to",
        )  # fmt: skip
    elif len(there) > 1 and not module and not asked:
        search.problem(
            MATCH_STAGE, f"libraries {', '.join(there)}", f"several versions, {version} is taken",
            "load the kernel module, whose version decides, or remove the old driver",
        )  # fmt: skip


def _tell_missing(node: Node, search: Search, libraries: Libraries, version: str, names: set[str]) -> None:
    """A half-removed driver: what it needs most, and links to what is gone."""
    missing = [f"{stem}.so.{version}" for stem in _NEEDED if f"{stem}.so.{version}" not in names]
    if missing:
        stem = missing[0].partition(".")[0]
        hint = f"reinstall the driver {version}; `nvoci why {stem}` tells where it was looked for"
        search.problem(FIND_STAGE, f"{', '.join(missing)} in {node.root.host('') or '/'}", NOT_THERE, hint)
    for directory, links in libraries.dangling().items():
        told = ", ".join(links[:_MAX_TOLD]) + (", …" if len(links) > _MAX_TOLD else "")
        search.problem(FIND_STAGE, f"{node.root.host(directory)}: {told}", "links that lead nowhere",
                       "the driver is partly removed: reinstall it, or remove the rest")  # fmt: skip


def _others(libraries: Libraries, known: set[str], explicit: bool) -> list[Library]:
    """What belongs to the driver and has another version in its name."""
    found: dict[str, Library] = {}
    for pattern in ("libnvidia-nvvm70.so.*", *(_EXPLICIT if explicit else ())):
        for each in libraries.matching(pattern):
            if each.path not in known:
                found[each.path] = each
    return list(found.values())


def library_mount(node: Node, library: Library, more_links: list[tuple[str, str]] | None = None) -> Mount:
    """The record of a library."""
    return Mount(
        host_path=node.root.host(library.path),
        container_path=library.path,
        kind="library",
        capabilities=library.capabilities,
        soname=library.soname,
        links=(*so_links(node, library), *(more_links or [])),
    )


def known_stems() -> list[str]:
    """All that have a table entry, for `nvoci why`."""
    return sorted(CAPABILITIES)
