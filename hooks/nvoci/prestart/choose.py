"""What of a node a container gets: the files and device nodes that nvidia-container-cli would take for the same words.

The tables are those of libnvidia-container 1.20.0. Each file is taken once. A library that the dynamic linker of the
host does not find by itself (the VDPAU module in a directory of its own) is not taken.
"""

from __future__ import annotations

from nvoci import log
from nvoci.errors import HookError, printable
from nvoci.prestart import devices

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from nvoci.discover.model import DeviceNode, Found, Gpu, MigDevice, Mount
    from nvoci.prestart.wanted import Wanted

_PROGRAMS = {
    "nvidia-smi": "utility",
    "nvidia-debugdump": "utility",
    "nvidia-persistenced": "utility",
    "nv-fabricmanager": "utility",
    "nvidia-cuda-mps-control": "compute",
    "nvidia-cuda-mps-server": "compute",
}
_LIBRARIES = {
    "utility": "libnvidia-ml libnvidia-cfg libnvidia-nscq",
    "compute": "libcuda libcudadebugger libnvidia-opencl libnvidia-gpucomp libnvidia-ptxjitcompiler "
    "libnvidia-fatbinaryloader libnvidia-allocator libnvidia-compiler libnvidia-pkcs11 libnvidia-pkcs11-openssl3 "
    "libnvidia-nvvm libnvidia-tileiras",
    "ngx": "libnvidia-ngx",
    "video": "libvdpau_nvidia libnvidia-encode libnvidia-opticalflow libnvcuvid",
    "graphics": "libnvidia-eglcore libnvidia-glcore libnvidia-tls libnvidia-glsi libnvidia-fbc libnvidia-ifr "
    "libnvidia-rtcore libnvoptix libGLX_nvidia libEGL_nvidia libGLESv2_nvidia libGLESv1_CM_nvidia "
    "libnvidia-glvkspirv libnvidia-cbl",
}
TLS = "libnvidia-tls"
_MAKE_NODE = "load the driver and make its nodes: nvidia-modprobe"
# Control nodes by name, with the group of libraries or the capability without which a container does not get one.
_CONTROL = {"nvidiactl": "", "nvidia-uvm": "compute", "nvidia-uvm-tools": "compute", "nvidia-modeset": "display"}
_NEEDED = "nvidiactl"


class MissingNode(HookError):
    """A device node is not there; loading the driver's modules may make it."""


class Chosen:
    """Records of `Found`, in the order in which they are mounted.

    gpu_nodes: (GPU, its node). mig_nodes: (MIG device, its GPU, its nodes: of the GPU instance, then of the compute
    instance; fewer where the node has fewer).
    mig_config, mig_monitor: the GPUs whose MIG devices may be managed or watched; the container then has all of the
    MIG capabilities and `mig_nodes` is empty. wsl: a node of the Windows Subsystem for Linux, where all GPUs are behind
    one device node."""

    __slots__ = ("channels", "compat32", "control", "firmware", "found", "gpu_nodes", "libraries", "mig_config",
                 "mig_monitor", "mig_nodes", "programs", "selection", "sockets", "wsl")  # fmt: skip

    def __init__(self, found: Found, wanted: Wanted) -> None:
        """Devices first, then what is demanded of them, then the rest. Raises HookError for what the container is to
        get and the node does not have."""
        self.found = found
        selection = self.selection = devices.select(found, wanted.devices)
        self.mig_config = devices.management(found, selection, wanted.mig_config, "mig-config")
        self.mig_monitor = devices.management(found, selection, wanted.mig_monitor, "mig-monitor")
        if wanted.requirements:
            from nvoci.prestart import requirements

            requirements.check(wanted.requirements, found.driver, selection.gpus)
        self.wsl = any(node.kind == "wsl" for node in found.device_nodes)
        parts = wanted.parts()
        self.programs = [m for m in found.mounts if m.kind == "binary" and _program(m) in wanted.capabilities]
        self.libraries = _libraries(found, parts, compat32=False)
        self.compat32 = _libraries(found, parts, compat32=True) if "compat32" in parts else []
        self.firmware = [m for m in found.mounts if m.kind == "firmware" and wanted.gsp_firmware]
        self.sockets = [m for m in found.mounts if _is_socket(m, wanted, parts)]
        if self.wsl:
            self._choose_wsl()
        self.control = self._control(wanted, parts)
        self.gpu_nodes = [] if self.wsl else [(gpu, self._gpu_node(gpu)) for gpu in selection.gpus]
        self.mig_nodes: list[tuple[MigDevice, Gpu, list[DeviceNode]]] = []
        if not self.mig_config and not self.mig_monitor:
            self.mig_nodes = self._migs()
        self.channels = [self._channel(number) for number in wanted.imex_channels]

    def _choose_wsl(self) -> None:
        """All of the driver store."""
        mounts = self.found.mounts
        self.libraries = [m for m in mounts if m.kind in ("library", "file")]
        self.programs = [m for m in mounts if m.kind == "binary"]
        self.firmware = []

    def _control(self, wanted: Wanted, parts: frozenset[str]) -> list[DeviceNode]:
        if self.wsl:
            return [node for node in self.found.device_nodes if node.kind == "wsl"]
        there = {node.container_path: node for node in self.found.device_nodes if node.kind == "control"}
        chosen = []
        for name, needs in _CONTROL.items():
            if not needs or needs in (wanted.capabilities if needs == "display" else parts):
                node = there.get(f"/dev/{name}")
                if node is not None:
                    chosen.append(node)
                elif name == _NEEDED:
                    raise self._missing(f"/dev/{name}")
                else:
                    log.warning(f"missing device /dev/{name}: left out")
        return chosen

    def _gpu_node(self, gpu: Gpu) -> DeviceNode:
        node = self._of("gpu", gpu.uuid)
        if not node:
            raise self._missing("/dev/nvidia" + ("N" if gpu.minor is None else str(gpu.minor)))
        return node[0]

    def _of(self, kind: str, owner: str) -> list[DeviceNode]:
        return [node for node in self.found.device_nodes if node.kind == kind and node.owner == owner]

    def _migs(self) -> list[tuple[MigDevice, Gpu, list[DeviceNode]]]:
        gpus = {gpu.uuid: gpu for gpu in self.found.gpus}
        return [(mig, gpus[mig.parent], self._of("mig", mig.uuid)) for mig in self.selection.mig_devices]

    def _channel(self, number: int) -> DeviceNode:
        nodes = self._of("imex", str(number))
        if not nodes:
            raise self._missing(f"/dev/nvidia-caps-imex-channels/channel{number}", "make it: nvidia-modprobe -i")
        return nodes[0]

    def _missing(self, path: str, hint: str = _MAKE_NODE) -> MissingNode:
        """The look at the node may have told why."""
        where = printable(self.found.driver.dev_root.rstrip("/") + path)
        for problem in self.found.problems:
            if problem.subject == where:
                return MissingNode(f"mount error: stat failed: {where}: {problem.error}", problem.hint or hint)
        return MissingNode(f"mount error: stat failed: {where}: ENOENT", hint)


def choose(found: Found, wanted: Wanted) -> Chosen:
    """What a container gets, if the driver's library has answered. Raises HookError."""
    devices.check_answered(found)
    return Chosen(found, wanted)


def library_names(parts: Iterable[str]) -> frozenset[str]:
    """The names, up to `.so`, of the libraries of these groups."""
    return frozenset([name for part in parts for name in _LIBRARIES.get(part, "").split()])


def all_library_names() -> list[str]:
    """Of every group, in the order in which libnvidia-container lists them."""
    return " ".join(_LIBRARIES.values()).split()


def stem(path: str) -> str:
    """`libcuda` of `/usr/lib/libcuda.so.550.54.15`."""
    return path.rpartition("/")[2].partition(".so")[0]


def _program(mount: Mount) -> str:
    return _PROGRAMS.get(mount.container_path.rpartition("/")[2], "")


def _libraries(found: Found, parts: frozenset[str], *, compat32: bool) -> list[Mount]:
    """Of the driver's very version; of several that would go to one place the first, libnvidia-tls excepted: there are
    two kinds of it, and only a look into the file tells them apart."""
    wanted, ending = library_names(parts), "." + found.driver.version
    chosen: dict[str, Mount] = {}
    for mount in found.mounts:
        path = mount.host_path
        if mount.kind != "library" or ("compat32" in mount.capabilities) is not compat32 or stem(path) not in wanted:
            continue
        directory, _, name = path.rpartition("/")
        if name.endswith(ending) and not directory.endswith("/vdpau"):
            chosen.setdefault(path if stem(path) == TLS else name, mount)
    return list(chosen.values())


def _is_socket(mount: Mount, wanted: Wanted, parts: frozenset[str]) -> bool:
    if mount.kind == "directory":
        return mount.container_path == wanted.mps_directory and "compute" in parts
    if mount.kind != "socket" or "utility" not in parts:
        return False
    if mount.container_path.endswith("/nvidia-persistenced/socket"):
        return wanted.persistenced
    return wanted.fabricmanager
