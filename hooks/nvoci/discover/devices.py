"""The device nodes of a node: of its GPUs and MIG devices, those that all need, and those of other parts.

Each is looked at on its own: one that is missing or wrong is left out, and told.
"""

from __future__ import annotations

from nvoci.discover import mig
from nvoci.discover._answers import is_uuid, kernel_bus_id
from nvoci.discover.devnode import DRM_MAJOR, NVIDIA, NVIDIA_MAJOR, Majors, Wanted, numbered, take
from nvoci.discover.node import joined
from nvoci.discover.search import USED, directory, first, listed, mount, read_text, regular

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from nvoci.discover.model import DeviceNode, Gpu, MigDevice, Mount
    from nvoci.discover.node import Node
    from nvoci.discover.search import Search

_GPUS = "/driver/nvidia/gpus"
_PCI = "/bus/pci/devices"
_BY_PATH = "/dev/dri/by-path"
IMEX_DEVICES = "/dev/nvidia-caps-imex-channels"
MAX_IMEX = (1 << 20) - 1
_MAX_GPUS = 256
_RELOAD = "reload the driver's kernel module"
_DRM_CAPABILITIES = ("graphics", "display")


class Devices:
    """Looks at all of them; `nodes` in the order of looking, one for each node and owner."""

    __slots__ = ("_claimed", "_minors", "_node", "_search", "majors", "nodes")

    def __init__(self, node: Node, search: Search) -> None:
        self._node = node
        self._search = search
        self._minors = mig.CapabilityMinors(node, search)
        self._claimed: set[str] = set()
        self.majors = Majors(node, search)
        self.nodes: list[DeviceNode] = []

    def take(self, wanted: Wanted) -> DeviceNode | None:
        """Look at one, and keep it if it is right."""
        found = take(self._node, self._search, wanted)
        self._claimed.add(wanted.path)
        if found is not None:
            self.nodes.append(found)
        return found

    def take_all(self, wanted: Iterable[Wanted]) -> list[DeviceNode]:
        """Those of them that are right."""
        return [found for each in wanted if (found := self.take(each))]

    def control(self, loaded: bool, owner: str = "") -> list[DeviceNode]:
        """What every application opens. loaded: whether the driver is, and they ought to be there."""
        nvidia, uvm = self._nvidia(), self.majors.of("nvidia-uvm")
        make = "make it: nvidia-modprobe; is /dev the host's?" if loaded else ""
        make_uvm = "make it: nvidia-modprobe -u -c 0; CUDA does not work without" if loaded else ""
        return self.take_all((
            # Vulkan's window system parts open it, also without a display.
            Wanted("/dev/nvidia-modeset", "control", major=nvidia, minor=254, owner=owner,
                   capabilities=("display", "graphics")),
            Wanted("/dev/nvidia-uvm-tools", "control", major=uvm, minor=1, owner=owner, capabilities=("compute",)),
            Wanted("/dev/nvidia-uvm", "control", major=uvm, minor=0, owner=owner, capabilities=("compute",),
                   needed=make_uvm),
            Wanted("/dev/nvidiactl", "control", major=nvidia, minor=255, owner=owner, needed=make),
        ))  # fmt: skip

    def _nvidia(self) -> int | None:
        return self.majors.of(*NVIDIA, default=NVIDIA_MAJOR)

    # -- GPUs ---------------------------------------------------------------------------------------------------------

    def gpus(self, gpus: Sequence[Gpu]) -> list[Gpu]:
        """The GPUs with their DRM nodes, and MIG devices with their capability nodes."""
        told = self._told()
        return [self._gpu(gpu, told) for gpu in gpus]

    def _gpu(self, gpu: Gpu, told: dict[str, tuple[int, str]]) -> Gpu:
        self._gpu_node(gpu, told)
        drm = self._drm(gpu)
        migs = gpu.mig_devices
        if gpu.minor is not None:
            migs = tuple([self._mig(each, gpu.minor) for each in migs])
        return gpu.replace(drm_nodes=tuple([each.container_path for each in drm]), mig_devices=migs)

    def _gpu_node(self, gpu: Gpu, told: dict[str, tuple[int, str]]) -> None:
        if gpu.minor is None:
            self._search.problem("use GPU", gpu.uuid, "no minor number", "NVML does not tell it: update the driver")
            return
        minor = told.get(gpu.pci_bus_id, (gpu.minor, ""))[0]
        if minor != gpu.minor:
            self._search.problem(
                "use GPU", gpu.uuid, f"minor {gpu.minor} by NVML, {minor} by procfs", _RELOAD
            )
            return
        make = f"make it: nvidia-modprobe -c {gpu.minor}"
        self.take(Wanted(f"/dev/nvidia{minor}", "gpu", major=self._nvidia(), minor=minor, owner=gpu.uuid, needed=make))

    def silent_gpus(self, gpus: Sequence[Gpu]) -> None:
        """Nodes of GPUs that procfs knows and NVML does not answer for; nobody gets them who does not ask for them."""
        known = {gpu.minor for gpu in gpus}
        for minor, uuid in self._told().values():
            if minor not in known and is_uuid(uuid, "GPU-"):
                self.take(Wanted(f"/dev/nvidia{minor}", "gpu", major=self._nvidia(), minor=minor, owner=uuid))

    def _told(self) -> dict[str, tuple[int, str]]:
        """PCI address -> (minor, UUID), of procfs."""
        found = {}
        for name in listed(self._search, self._node.proc, _GPUS, "GPUs")[:_MAX_GPUS]:
            path = f"{_GPUS}/{name}/information"
            text = read_text(self._search, self._node.proc, path, "GPU", _RELOAD, 1 << 16)
            lines = [line.partition(":") for line in (text or "").split("\n")]
            fields = {key.strip(): value.strip() for key, _, value in lines}
            minor = numbered(fields.get("Device Minor", ""), "")
            if minor is not None:
                found[kernel_bus_id(fields.get("Bus Location", name)) or name] = (minor, fields.get("GPU UUID", ""))
            elif text is not None:
                self._search.problem("read GPU", self._node.proc.host(path), "no Device Minor", _RELOAD)
        return found

    def _drm(self, gpu: Gpu) -> list[DeviceNode]:
        """Nodes of the direct rendering manager, with the links that name them by PCI address."""
        if not gpu.pci_bus_id:
            return []
        top = f"{_PCI}/{gpu.pci_bus_id}/drm"
        make = "restart udev" if self._node.dev.exists(b"/dev/dri") else ""  # a dev root may be without graphics
        wanted = []
        for name in listed(self._search, self._node.sys, top, "DRM nodes"):
            if numbered(name, "card") is None and numbered(name, "renderD") is None:
                continue
            major, minor = self._sysfs_number(f"{top}/{name}/dev")
            wanted.append(Wanted(f"/dev/dri/{name}", "drm", major=major, minor=minor, owner=gpu.uuid,
                                 capabilities=_DRM_CAPABILITIES, needed=make))  # fmt: skip
        links = self._by_path(gpu.pci_bus_id, {each.path for each in wanted})
        for each in wanted:
            each.links = tuple([(text, link) for text, link, node in links if node == each.path])
        return self.take_all(wanted)

    def _sysfs_number(self, path: str) -> tuple[int, int | None]:
        """`226:1` of a file `dev`; without one the major alone."""
        text = (read_text(self._search, self._node.sys, path, "DRM node", limit=4096) or "").strip()
        major, _, minor = text.partition(":")
        numbers = numbered(major, ""), numbered(minor, "")
        return (DRM_MAJOR, None) if numbers[0] is None or numbers[1] is None else (numbers[0], numbers[1])

    def _by_path(self, bus_id: str, nodes: set[str]) -> list[tuple[str, str, str]]:
        """(text, link, the node it leads to) of the links for one GPU, as they stand below the dev root."""
        found = []
        for kind in ("card", "render"):
            link = f"{_BY_PATH}/pci-{bus_id}-{kind}"
            lookup = self._search.begin("device link", link)
            try:
                text = self._node.dev.link(link)
            except OSError:
                text = None
            node = joined(_BY_PATH, text) if text else ""
            if text and node in nodes:
                found.append((text, link, node))
            words = f"leads to {text}, no node of this GPU" if text else "no link"
            if node in nodes:
                words = f"{USED}: leads to {node}"
            lookup.tried(self._node.dev.host(link), words)
        return found

    # -- MIG ----------------------------------------------------------------------------------------------------------

    def _mig(self, device: MigDevice, gpu_minor: int) -> MigDevice:
        minors = self._minors.of(device, gpu_minor)
        make = f"make it: nvidia-modprobe -f /proc{mig.CAPABILITIES}/gpu{gpu_minor}/mig/…/access"
        nodes = self.take_all([self._capability(minor, "mig", device.uuid, make) for minor in minors])
        return device.replace(cap_nodes=tuple([each.container_path for each in nodes]))

    def _capability(self, minor: int, kind: str, owner: str = "", needed: str = "") -> Wanted:
        path = f"{mig.DEVICES}/nvidia-cap{minor}"
        return Wanted(path, kind, major=self.majors.of("nvidia-caps"), minor=minor, owner=owner, needed=needed)

    def mig_management(self) -> None:
        """The nodes that allow to configure and to monitor MIG, then all other capability nodes, which only who
        manages the whole node wants."""
        for kind in ("config", "monitor"):
            minor = self._minors.minor(kind, f"mig/{kind}")
            if minor is not None:
                self.take(self._capability(minor, f"mig-{kind}"))
        for name in listed(self._search, self._node.dev, mig.DEVICES, "MIG capability nodes"):
            minor = numbered(name, "nvidia-cap")
            if minor is not None and f"{mig.DEVICES}/{name}" not in self._claimed:
                self.take(self._capability(minor, "mig"))

    # -- other parts --------------------------------------------------------------------------------------------------

    def imex(self) -> None:
        """Channels, each with its number as owner."""
        major = self.majors.of("nvidia-caps-imex-channels")
        names = listed(self._search, self._node.dev, IMEX_DEVICES, "IMEX channels")
        numbers = [number for name in names if (number := numbered(name, "channel")) is not None]
        for number in sorted(numbers):
            if number <= MAX_IMEX:
                path = f"{IMEX_DEVICES}/channel{number}"
                self.take(Wanted(path, "imex", major=major, minor=number, owner=str(number)))

    def others(self) -> None:
        """NVSwitch, NVLink, GPUDirect Storage, GPUDirect RDMA by MOFED, GDRCopy."""
        names = listed(self._search, self._node.dev, "/dev", "devices")
        verbs = listed(self._search, self._node.dev, "/dev/infiniband", "devices")
        switch, storage = self.majors.of("nvidia-nvswitch"), self.majors.of("nvidia-fs")
        if "nvidia-nvswitchctl" in names:
            self.take(Wanted("/dev/nvidia-nvswitchctl", "nvswitch", major=switch, minor=255))
        for name in names:
            if (number := numbered(name, "nvidia-nvswitch")) is not None:
                self.take(Wanted(f"/dev/{name}", "nvswitch", major=switch, minor=number))
            elif name == "nvidia-nvlink":
                self.take(Wanted(f"/dev/{name}", "nvlink", major=self.majors.of("nvidia-nvlink")))
            elif name.startswith("nvidia-fs"):
                self.take(Wanted(f"/dev/{name}", "gds", major=storage, capabilities=("gds",)))
            elif name == "gdrdrv":
                self.take(Wanted(f"/dev/{name}", "gdrcopy", major=self.majors.of("gdrdrv")))
        for name in verbs:
            if name.startswith("uverbs"):
                self.take(Wanted(f"/dev/infiniband/{name}", "mofed", major=self.majors.of("infiniband_verbs")))
            elif name == "rdma_cm":
                self.take(Wanted(f"/dev/infiniband/{name}", "mofed"))

    def rest(self) -> None:
        """Whatever else the driver has in /dev, such as nodes of vGPU, or of a GPU that nobody knows any more; who
        manages the whole node wants it."""
        for name in listed(self._search, self._node.dev, "/dev", "devices"):
            path = f"/dev/{name}"
            if name.startswith("nvidia") and path not in self._claimed and self._node.dev.is_device(path):
                self.take(Wanted(path, "other"))

    def storage_mounts(self) -> list[Mount]:
        """What GPUDirect Storage reads, where there is any."""
        if not any(each.kind == "gds" for each in self.nodes):
            return []
        root, found = self._node.root, []
        for path, kind, check in (("/run/udev", "directory", directory), ("/etc/cufile.json", "config", regular)):
            hit = first(self._search, root, kind, path, [path], check)
            if hit is not None:
                found.append(mount(root, hit, kind, ("gds",)))
        return found

