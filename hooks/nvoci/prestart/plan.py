"""From what was chosen to steps for `nvoci.hook.work`: everything is opened on the host, then done in the container.

    prestart             the /proc/driver/nvidia overlay, profiles, programs, libraries, links, firmware, sockets, nodes
    enable-cuda-compat   where it is configured, and applies
    update-ldcache       the loader's cache, by the engine of the hook
    prestart             directories of the host that can be written to: last, so that nothing of ours goes into them

Then `nvoci.hook.work` gives the device rules.
"""

from __future__ import annotations

from nvoci import log
from nvoci.discover.inventory import Stale
from nvoci.errors import HookError, hook_error, printable
from nvoci.hook import enable_cuda_compat, update_ldcache
from nvoci.hook.container import CALLER
from nvoci.hook.operation import AllowDevices
from nvoci.hook.operations import RemoveFile
from nvoci.hook.settings import MKNOD
from nvoci.linux import abi, userns
from nvoci.linux.rootfs import fsencode
from nvoci.prestart import hostfiles, overlay, tls
from nvoci.prestart.binds import Bind, KeepLink, MakeDirectory
from nvoci.prestart.choose import TLS, Chosen, MissingNode, choose, stem
from nvoci.prestart.config import LDCONFIG, MOUNT
from nvoci.prestart.hostfiles import Host, Source
from nvoci.prestart.points import Points

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from nvoci.discover.model import DeviceNode, Found, Gpu, Mount
    from nvoci.hook.container import Container
    from nvoci.hook.devices import Source as Node
    from nvoci.hook.enter import Place
    from nvoci.hook.operation import Operation
    from nvoci.hook.settings import Settings
    from nvoci.hook.work import Step
    from nvoci.linux.devicerule import DeviceRule
    from nvoci.linux.rootfs import Rootfs
    from nvoci.oci.state import State
    from nvoci.prestart.wanted import Wanted

    # What is mounted, and where in the container.
    Placed = tuple[Source, bytes]

DEVICES = True
NAME = "prestart"
PROGRAMS = b"/usr/bin"
_COMPAT, _CACHE = "enable-cuda-compat", "update-ldcache"
COMPAT_LIBRARIES = b"/usr/local/cuda/compat"
_DEBIAN = b"etc/debian_version"
_TRIPLET = f"{abi.MACHINE}-linux-gnu".encode()
_LIBRARIES_32 = {"x86_64": b"/usr/lib/i386-linux-gnu"}
_SONAMES = {b"libcuda": b"libcuda.so.1", b"libnvidia-opticalflow": b"libnvidia-opticalflow.so.1"}
_LDCONFIG = "/sbin/ldconfig"


class Prepared:
    """Everything of the host that one container gets, open. `steps` makes the work of it."""

    __slots__ = ("_cache", "_make_nodes", "_points", "chosen", "compat32", "directories", "driver", "files",
                 "libraries", "made", "nodes", "procs", "profiles", "programs", "rules", "wanted")  # fmt: skip

    def __init__(
        self, chosen: Chosen, wanted: Wanted, cache: update_ldcache.Prepared, host: Host, *, make_nodes: bool = False
    ) -> None:
        """make_nodes: instead of mounting the host's."""
        self.made: list[tuple[Node, bytes]] = []
        self._make_nodes = make_nodes
        self.chosen = chosen
        self.wanted = wanted
        self._cache = cache
        self._points: Points | None = None
        self.programs = [host.file(m.host_path, resolve=True) for m in chosen.programs]
        self.libraries = _libraries(chosen.libraries, host)
        self.compat32 = _libraries(chosen.compat32, host)
        self.files = [_placed(host.file(m.host_path), m.container_path) for m in chosen.firmware]
        self.files += [_placed(host.socket(m.host_path), m.container_path)
                       for m in chosen.sockets if m.kind == "socket"]  # fmt: skip
        self.directories = [_placed(host.directory(m.host_path, hostfiles.SOCKET), m.container_path)
                            for m in chosen.sockets if m.kind == "directory"]  # fmt: skip
        self.nodes: list[Placed] = []
        self.procs: list[Placed] = []
        self.rules: list[DeviceRule] = []
        self.driver: overlay.Tree | None = None
        self.profiles: overlay.Tree | None = None
        self._take_nodes(host, chosen.control)
        if not chosen.wsl:
            self.driver = overlay.driver_tree()
            if "graphics" in wanted.parts():
                minors = [gpu.minor for gpu, _ in chosen.gpu_nodes if gpu.minor is not None]
                self.profiles = overlay.profile_tree(minors)
            self._take_gpus(host, self.driver)
            try:
                self._take_migs(host, self.driver)
                self._take_management(host, self.driver)
            except HookError as e:
                raise MissingNode(e.message, e.hint) from None
        self._take_nodes(host, chosen.channels)
        if wanted.compat_mode == MOUNT:
            from nvoci.prestart import compatlibs  # noqa: F401 - before imports are sealed

    # -- on the host --------------------------------------------------------------------------------------------------

    def _take_nodes(self, host: Host, nodes: Iterable[DeviceNode]) -> None:
        for node in nodes:
            if self._make_nodes:
                self.made.append((host.template(node), fsencode(node.container_path)))
            else:
                self.nodes.append(_placed(host.node(node), node.container_path))

    def _take_proc(self, host: Host, tree: overlay.Tree, path: str) -> None:
        """path: below /proc."""
        source = host.proc(path)
        below = path[len("driver/nvidia/") :]
        if source.is_directory:
            tree.add_directory(below, 0o555)
        else:
            tree.add_file(below, b"", 0o444)
        self.procs.append(_placed(source, f"/proc/{path}"))

    def _take_gpus(self, host: Host, tree: overlay.Tree) -> None:
        for gpu, node in self.chosen.gpu_nodes:
            self._take_nodes(host, [node])
            self._take_information(host, tree, gpu)

    def _take_information(self, host: Host, tree: overlay.Tree, gpu: Gpu) -> None:
        """Of one GPU: its directory in procfs, by the kernel's name or by NVML's, which has a longer domain."""
        names = list(dict.fromkeys([name.lower() for name in (gpu.pci_bus_id, gpu.nvml_bus_id) if name]))
        for name in names[:-1]:
            try:
                return self._take_proc(host, tree, f"driver/nvidia/gpus/{name}")
            except Stale:
                continue
        return self._take_proc(host, tree, f"driver/nvidia/gpus/{names[-1] if names else gpu.uuid}")

    def _take_migs(self, host: Host, tree: overlay.Tree) -> None:
        if not self.chosen.mig_nodes:
            return
        from nvoci.hook import migcaps

        taken: set[bytes] = set()
        with migcaps.Host(self.chosen.found.driver.dev_root) as capabilities:
            for mig, gpu, nodes in self.chosen.mig_nodes:
                there = {(node.type, node.major, node.minor): node for node in nodes}
                for path in migcaps.access_paths(gpu.minor, mig.gpu_instance, mig.compute_instance):
                    if path in taken:
                        continue
                    taken.add(path)
                    self._take_proc(host, tree, path.decode())
                    number = capabilities.check(path)
                    if number is None:
                        continue
                    if number not in there:
                        raise Stale(f"use MIG device {printable(mig.uuid)}: a node of it was not there")
                    self._take_nodes(host, [there[number]])

    def _take_management(self, host: Host, tree: overlay.Tree) -> None:
        """All capabilities, and the rules that let MIG devices of the GPUs be made and used."""
        chosen = self.chosen
        if not chosen.mig_config and not chosen.mig_monitor:
            return
        from nvoci.hook import migcaps

        self._take_proc(host, tree, migcaps.CAPABILITIES.decode())
        root = chosen.found.driver.dev_root
        with migcaps.Host(root) as capabilities:
            if capabilities.major is None:
                return
            for kind, gpus in ((migcaps.CONFIG, chosen.mig_config), (migcaps.MONITOR, chosen.mig_monitor)):
                if gpus:
                    minors = [gpu.minor for gpu in gpus if gpu.minor is not None]
                    self.rules += capabilities.rules([kind], minors)
        nodes = "/" + migcaps.DEVICES.decode()
        self.directories.append(_placed(host.directory(root.rstrip("/") + nodes, hostfiles.NODES), nodes))

    # -- in the container ---------------------------------------------------------------------------------------------

    def steps(self, state: State, place: Place) -> list[Step]:
        """What is done, now that the container's process is known. Raises HookError."""
        owner = None
        if place.process is not None:
            try:
                owner = userns.root_of(place.process.fileno())
            except OSError as e:
                raise hook_error("read state: pid", place.pid, e) from None
        return [
            (NAME, plan, _Here(self, owner, place.named or place.where == CALLER)),
            (_COMPAT, plan_compat, self),
            (_CACHE, plan_cache, self),
            (NAME, plan_directories, self),
        ]

    def points(self, container: Container, here: _Here | None = None) -> Points:
        """One for all steps: the first says whose what is made will be."""
        if self._points is None:
            self._points = Points(container, here.owner if here else None, named=here is not None and here.named)
        return self._points

    def operations(self, container: Container, points: Points) -> list[Operation]:
        """Of the first step."""
        libs, libs32 = library_directories(container.rootfs)
        found: list[Operation] = []
        if self.driver is not None:
            found.append(overlay.Generated(points, overlay.DRIVER, self.driver, "the driver's files in procfs"))
        if self.profiles is not None:
            what = "application profiles"
            found.append(overlay.Generated(points, overlay.PROFILES, self.profiles, what, 0o555))
        groups = [(PROGRAMS, self.programs), (libs, self.libraries)]
        if "compat32" in self.wanted.capabilities:
            groups.append((libs32, self.compat32))
        if self.chosen.wsl:
            found += [Bind(points, source, fsencode(source.path)) for _, group in groups for source in group]
            pairs = [pair for mount in self.chosen.programs for pair in mount.links]
            found += [KeepLink(points, fsencode(target), fsencode(link)) for target, link in pairs]
        else:
            for directory, group in groups:
                found.append(MakeDirectory(points, directory))
                found += [Bind(points, source, directory + b"/" + source.name) for source in group]
            found += [link for directory, group in groups[1:] for link in _links(points, directory, group)]
            found += self._compat(container, points, libs)
        found += [Bind(points, source, path) for source, path in (*self.files, *self.procs)]
        return found + self._devices(points)

    def _compat(self, container: Container, points: Points, libs: bytes) -> list[Operation]:
        parts = self.wanted.parts()
        if self.wanted.compat_mode != MOUNT or "compute" not in parts:
            return []
        from nvoci.prestart import compatlibs

        version = self.chosen.found.driver.version
        sources = compatlibs.sources(container.rootfs, COMPAT_LIBRARIES, parts, version)
        return [Bind(points, source, libs + b"/" + source.name) for source in sources]

    def _devices(self, points: Points) -> list[Operation]:
        allow, rules = self.wanted.cgroups, list(self.rules)
        found: list[Operation] = []
        if not self.wanted.devbind:
            nodes = [source.rule for source, _ in self.nodes if source.rule is not None]
            rules = [*nodes, *(node.rule() for node, _ in self.made), *rules]
        elif self.made:
            from nvoci.hook.devices import MakeNode  # loaded by Host.template

            found += [MakeNode(points.container, node, path, allow=allow, owner=points.owner)
                      for node, path in self.made]  # fmt: skip
        else:
            found += [Bind(points, source, path, allow=allow) for source, path in self.nodes]
        return [*found, AllowDevices(rules)] if allow and rules else found

    def cache(self, rootfs: Rootfs) -> update_ldcache.Prepared:
        """For the engine of update-ldcache: where libraries went."""
        folders = list(library_directories(rootfs)[: 2 if "compat32" in self.wanted.capabilities else 1])
        if self.chosen.wsl:
            placed = [fsencode(source.path).rpartition(b"/")[0] for source in self.libraries]
            folders = list(dict.fromkeys(placed))
        self._cache.folders = folders
        return self._cache


class _Here:
    """`Prepared`, and what the first step needs to know: owner, the container's root as `userns.root_of` has it; named,
    whether somebody else than a runtime says that this is a container."""

    __slots__ = ("named", "owner", "prepared")

    def __init__(self, prepared: Prepared, owner: tuple[int, int] | None, named: bool) -> None:
        self.prepared = prepared
        self.owner = owner
        self.named = named


def prepare(found: Found, wanted: Wanted, settings: Settings) -> Prepared:
    """Choose, and open everything; nothing is changed. Raises Stale where the node is not as found, HookError."""
    chosen = choose(found, wanted)
    ldconfig = wanted.ldconfig or _LDCONFIG
    options = {"folder": [], "engine": wanted.engine, "ldconfig-path": ldconfig}
    cache = update_ldcache.prepare(options, settings)
    with Host(wanted.driver_root) as host:
        return Prepared(chosen, wanted, cache, host, make_nodes=settings.device_nodes == MKNOD)


def work_steps(prepared: Prepared) -> list[Step]:
    """For `nvoci.hook.work`, which has them made when the container is known."""
    return [(NAME, plan, prepared)]


def plan(prepared: _Here, container: Container) -> list[Operation]:
    """The driver and its devices."""
    points = prepared.prepared.points(container, prepared)
    return prepared.prepared.operations(container, points)


def plan_compat(prepared: Prepared, container: Container) -> list[Operation]:
    """The drop-in that puts compatibility libraries of the image first; what an earlier start wrote is removed where
    they are not to be used."""
    driver = prepared.chosen.found.driver
    if prepared.wanted.compat_mode == LDCONFIG and "compute" in prepared.wanted.parts():
        cuda = driver.cuda_version
        host = enable_cuda_compat.Host(
            enable_cuda_compat.parse_version(driver.version), (*cuda, 0) if cuda else None, False, COMPAT_LIBRARIES
        )
        return enable_cuda_compat.plan(host, container)
    if container.rootfs.exists(enable_cuda_compat.DROP_IN):
        return [RemoveFile(container.rootfs, enable_cuda_compat.DROP_IN)]
    return []


def plan_cache(prepared: Prepared, container: Container) -> list[Operation]:
    """As the hook does."""
    return update_ldcache.plan(prepared.cache(container.rootfs), container)


def plan_directories(prepared: Prepared, container: Container) -> list[Operation]:
    """Those that can be written to."""
    points = prepared.points(container)
    return [Bind(points, source, path) for source, path in prepared.directories]


def library_directories(rootfs: Rootfs) -> tuple[bytes, bytes]:
    """Where the container's loader looks for libraries: those of its machine, and 32-bit ones. Raises OSError."""
    if rootfs.exists(_DEBIAN):
        return b"/usr/lib/" + _TRIPLET, _LIBRARIES_32.get(abi.MACHINE, b"/var/empty")
    libs = b"/usr/lib64"
    if not rootfs.exists(b"/usr/lib32") and rootfs.exists(b"/usr/lib") and not _are_one(rootfs, b"/usr/lib", libs):
        return libs, b"/usr/lib"
    return libs, b"/usr/lib32"


def _are_one(rootfs: Rootfs, one: bytes, other: bytes) -> bool:
    if not rootfs.exists(other):
        return False
    a, b = rootfs.stat(one), rootfs.stat(other)
    return (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino)


def _placed(source: Source, path: str) -> Placed:
    return source, fsencode(path)


def _libraries(mounts: Iterable[Mount], host: Host) -> list[Source]:
    """Of libnvidia-tls only the one that is for a loader with thread-local storage."""
    found, has_tls = [], False
    for mount in mounts:
        source = host.file(mount.host_path)
        if stem(mount.host_path) == TLS:
            reason = tls.TAKEN if has_tls else _tls_refusal(source)
            if reason:
                log.info("library left out", library=source.path, reason=reason)
                continue
            has_tls = True
        found.append(source)
    return found


def _tls_refusal(source: Source) -> str:
    try:
        return tls.refusal(source.object.fileno())
    except OSError as e:
        raise hook_error("read", source.path, e) from None


def _links(points: Points, directory: bytes, group: Iterable[Source]) -> list[Operation]:
    """By which programs load some of them."""
    found: list[Operation] = []
    for source in group:
        own = source.name.partition(b".so")[0]
        if own in _SONAMES:
            found.append(KeepLink(points, _SONAMES[own], directory + b"/" + own + b".so"))
        elif own == b"libGLX_nvidia":
            found.append(KeepLink(points, source.name, directory + b"/libGLX_indirect.so.0"))
    return found
