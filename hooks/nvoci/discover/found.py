"""`find`: everything that a node has for containers, from its files and from what NVML said.

Joins GPUs with device nodes and the driver with its files. Nothing is loaded, executed or changed, and nothing that is
missing or broken stops it: that is left out, and is one problem. Measured, 8 GPUs: 7 ms.
"""

from __future__ import annotations

from nvoci.discover import wsl
from nvoci.discover.devices import IMEX_DEVICES, Devices
from nvoci.discover.devnode import NVIDIA, NVIDIA_MAJOR, Wanted, take
from nvoci.discover.driver import VERSION_FILE, find_driver, library_mount, loaded_module, record
from nvoci.discover.graphics import driver_links, graphics
from nvoci.discover.libnames import folders
from nvoci.discover.libraries import Libraries
from nvoci.discover.mig import DEVICES
from nvoci.discover.model import Found, Hook, Variable
from nvoci.discover.node import Options
from nvoci.discover.platform import CSV, WSL, Platform, platform
from nvoci.discover.programs import SOCKETS, binaries, firmware, sockets
from nvoci.discover.search import Search
from nvoci.discover.tegra import Tegra, owned, split_gpus

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from nvoci.discover.model import DeviceNode, Driver, Gpu, Mount
    from nvoci.discover.node import Node
    from nvoci.discover.nvml import NvmlAnswer

    Links = Sequence[tuple[str, str]]

# Device nodes, and directories of them, that an inventory watches; those of the GPUs are known by their numbers.
_WATCHED = ("/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools", "/dev/nvidia-modeset", "/dev/dri",
            "/dev/infiniband", DEVICES, IMEX_DEVICES)  # fmt: skip
VOID = Variable(name="NVIDIA_VISIBLE_DEVICES", value="void")


class Discovery:
    """What one look at a node gave. found: the result; search, libraries: how it came about, for `nvoci why`;
    platform: the kind of node. link_lists: of a Tegra system, what the reference tools make in two steps, (target,
    link) of the rules for libraries, then of the CSV files, which replace some of the former; `links` of the mounts in
    `found` is what remains."""

    __slots__ = ("found", "libraries", "link_lists", "platform", "search")

    def __init__(
        self, found: Found, search: Search, libraries: Libraries, kind: Platform, link_lists: Sequence[Links] = ()
    ) -> None:
        self.found = found
        self.search = search
        self.libraries = libraries
        self.platform = kind
        self.link_lists = tuple(link_lists)


def find(node: Node, answer: NvmlAnswer | None, options: Options | None = None, nvml_path: str = "") -> Found:
    """answer: of NVML, None where it gave none. nvml_path: the library that was asked. OSError and HookError are for
    what keeps us from looking at all (no procfs, no descriptors left); anything about the node is in `problems`."""
    return discover(node, answer, options, nvml_path).found


def _silent(phase: str) -> None:
    pass


def discover(
    node: Node, answer: NvmlAnswer | None, options: Options | None = None, nvml_path: str = "", *,
    libraries: Libraries | None = None, done: Callable[[str], None] = _silent,
) -> Discovery:  # fmt: skip
    """`find`, with the trace of it. libraries: of this node and these options, where NVML was looked for in them. done:
    told the name of each phase at its end."""
    options = options or Options()
    libraries = libraries or Libraries(node, Search(), options.library_search_path)
    search = libraries.search
    kind = platform(node, search, libraries, answer, options)
    done("platform")
    link_lists: Sequence[Links] = ()
    if kind.kind == CSV:
        found, link_lists = _csv(node, search, answer, options, done)
    else:
        look = _wsl if kind.kind == WSL else _nvml
        found = look(node, search, libraries, answer, options, done)
    if nvml_path:
        found = found.replace(driver=found.driver.replace(nvml_path=nvml_path))
    problems = (*(answer.problems if answer else ()), *search.problems)
    return Discovery(found.replace(problems=problems), search, libraries, kind, link_lists)


def _nvml(
    node: Node, search: Search, libraries: Libraries, answer: NvmlAnswer | None, options: Options,
    done: Callable[[str], None],
) -> Found:  # fmt: skip
    """A node with a driver of its own."""
    files = find_driver(node, search, libraries, answer, options.explicit_libraries)
    done("libraries")
    driver, devices = files.driver, Devices(node, search)
    if not driver.module_version and answer is None:
        search.problem("find the kernel module", node.proc.host(VERSION_FILE), "not loaded", "modprobe nvidia")
    devices.control(bool(driver.module_version or answer))
    gpus = devices.gpus(answer.gpus if answer else ())
    devices.silent_gpus(gpus)
    devices.mig_management()
    devices.imex()
    devices.others()
    devices.rest()
    done("devices")
    mounts = [library_mount(node, each, driver_links(each)) for each in files.libraries]
    hooks: list[Hook] = []
    variables = [VOID]
    if driver.version:
        mounts += graphics(node, search, libraries, files, options)
        mounts += firmware(node, search, driver.version)
        hooks = _hooks(driver, mounts)
        variables = [Variable(name="NVIDIA_CTK_LIBCUDA_DIR", value=":".join(driver.library_dirs)), VOID]
    mounts += [*sockets(node, search, options), *binaries(node, search, options), *devices.storage_mounts()]
    done("other files")
    return _found(driver, gpus, devices.nodes, mounts, variables, hooks)


def _hooks(driver: Driver, mounts: list[Mount]) -> list[Hook]:
    own = [m.container_path for m in mounts if m.kind == "library" and "compat32" not in m.capabilities]
    args = [word for each in folders(own) for word in ("--folder", each)]
    return [
        Hook(name="enable-cuda-compat", args=(f"--host-driver-version={driver.version}",)),
        *([Hook(name="update-ldcache", args=tuple(args))] if args else []),
        Hook(name="disable-device-node-modification"),
        Hook(name="update-application-profile"),
    ]


def _csv(
    node: Node, search: Search, answer: NvmlAnswer | None, options: Options, done: Callable[[str], None]
) -> tuple[Found, Sequence[Links]]:
    """A Tegra system, and its links as two lists. Nodes are those of the CSV files, of one device or of each GPU."""
    tegra, devices = Tegra(node, search, options), Devices(node, search)
    done("CSV files")
    gpus: list[Gpu] = list(answer.gpus) if answer else []
    integrated, discrete = split_gpus(search, [] if options.single_device else gpus)
    if discrete:
        discrete = devices.gpus(discrete)
        for gpu in discrete:
            devices.control(True, gpu.uuid)
        devices.nodes += owned(tegra.devices, integrated, discrete, _second_node(node, search, devices))
        gpus = sorted([*integrated, *discrete], key=lambda gpu: gpu.index)
    else:
        owner = gpus[0].uuid if len(gpus) == 1 else ""
        devices.nodes += [each.replace(owner=owner) for each in tegra.devices.values()]
    devices.imex()
    devices.others()
    done("devices")
    mounts = [*tegra.mounts(), *devices.storage_mounts()]
    driver = record(node, answer, answer.driver_version if answer else "", loaded_module(node, search))
    return _found(driver, gpus, devices.nodes, mounts, [VOID], tegra.hooks(answer)), tegra.link_lists()


def watch_paths(root: str = "/", dev_root: str = "", options: Options | None = None) -> tuple[str, ...]:
    """Host paths that come and go without anything else changing: what an inventory has to watch."""
    top, dev = root.rstrip("/"), (dev_root or root).rstrip("/")
    files = [f"{each}/{name}" for name in SOCKETS for each in ("/run", "/var/run")]
    files.append((options or Options()).mps_directory)
    return (*[top + each for each in files], *[dev + each for each in _WATCHED])


def configuration(options: Options) -> str:
    """All that is set, as one line: what an inventory was made with."""
    return "; ".join([f"{name}={_setting(getattr(options, name))}" for name in Options.__slots__])


def _setting(value: object) -> str:
    """Words are quoted, so that two lists of words never read the same."""
    return " ".join([repr(each) for each in value]) if isinstance(value, tuple) else repr(value)


def _second_node(node: Node, search: Search, devices: Devices) -> DeviceNode | None:
    """The integrated GPU of a Thor has a node of its own beside those in the lists."""
    major = devices.majors.of(*NVIDIA, default=NVIDIA_MAJOR)
    return take(node, search, Wanted("/dev/nvidia2", "tegra", major=major, minor=2))


def _wsl(
    node: Node, search: Search, libraries: Libraries, answer: NvmlAnswer | None, options: Options,
    done: Callable[[str], None],
) -> Found:  # fmt: skip
    """One device, which is everybody's."""
    update = "is the NVIDIA driver of Windows installed? then `wsl --shutdown`"
    dxg = take(node, search, Wanted(wsl.DEVICE, "wsl", needed=update))
    store = wsl.driver_store(node, search)
    mounts = wsl.store_mounts(node, search, store) if store else []
    done("driver store")
    driver = record(node, answer, answer.driver_version if answer else "", "", [store] if store else [])
    return _found(driver, answer.gpus if answer else (), [dxg] if dxg else [], mounts, [VOID], wsl.hooks(mounts))


def _found(
    driver: Driver, gpus: list[Gpu] | tuple[Gpu, ...], nodes: list[DeviceNode], mounts: list[Mount],
    variables: list[Variable], hooks: list[Hook],
) -> Found:  # fmt: skip
    """One node for each path and owner, one mount for each place in the container."""
    by_owner = {(each.container_path, each.owner): each for each in reversed(nodes)}
    by_place = {each.container_path: each for each in reversed(mounts)}
    return Found(
        driver=driver,
        gpus=tuple(gpus),
        device_nodes=tuple(reversed(by_owner.values())),
        mounts=tuple(reversed(by_place.values())),
        variables=tuple(variables),
        hooks=tuple(hooks),
    )
