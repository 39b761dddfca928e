"""What `nvidia-container-cli info` and `list` print, which scripts read."""

from __future__ import annotations

import posix
import time

from nvoci import __version__
from nvoci.discover.model import DeviceNode
from nvoci.errors import printable
from nvoci.linux import abi
from nvoci.prestart import choose

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from nvoci.discover.model import Driver, Found, Gpu, Mount
    from nvoci.prestart.choose import Chosen
    from nvoci.prestart.clioptions import Words

COMPATIBLE = "1.20.0"  # of libnvidia-container: what a script may rely on
_DRIVER = ("NVRM version", "CUDA version")
_GPU = ("Device Index", "Device Minor", "Model", "Brand", "GPU UUID", "Bus Location", "Architecture")
_CHANNELS = "/dev/nvidia-caps-imex-channels/channel"


def version(python: str) -> str:
    """Seven lines."""
    lines = {
        "cli-version": COMPATIBLE,
        "lib-version": COMPATIBLE,
        "build date": _date(),
        "build revision": f"nvoci {__version__}",
        "build compiler": f"python {python}",
        "build platform": abi.MACHINE,
        "build flags": "none",
    }
    return "".join([f"{key}: {value}\n" for key, value in lines.items()])


def _date() -> str:
    """When this program was laid down."""
    try:
        t = time.gmtime(posix.stat(__file__).st_mtime)
    except OSError:
        return "unknown"
    return f"{t.tm_year}-{t.tm_mon:02}-{t.tm_mday:02}T{t.tm_hour:02}:{t.tm_min:02}+00:00"


def info(found: Found, gpus: Iterable[Gpu], csv: bool) -> str:
    """The driver and the GPUs."""
    driver = _driver(found.driver)
    rows = [_gpu(gpu) for gpu in gpus]
    if csv:
        tables = [[_DRIVER, driver], [_GPU, *rows]]
        return "\n".join(["".join([",".join(row) + "\n" for row in table]) for table in tables])
    pairs = [zip(_DRIVER, driver), *[zip(_GPU, row) for row in rows]]
    return "\n".join(["".join([f"{key + ':':15} {value}\n" for key, value in each]) for each in pairs])


def _driver(driver: Driver) -> tuple[str, ...]:
    cuda = "{}.{}".format(*driver.cuda_version) if driver.cuda_version else ""
    return printable(driver.version or driver.module_version), cuda


def _gpu(gpu: Gpu) -> tuple[str, ...]:
    minor = "" if gpu.minor is None else str(gpu.minor)
    cells = (str(gpu.index), minor, gpu.name, gpu.brand_name, gpu.uuid, _bus(gpu), gpu.architecture)
    return tuple([printable(cell) for cell in cells])


def _bus(gpu: Gpu) -> str:
    """`00000000:07:00.0`."""
    domain, colon, rest = gpu.pci_bus_id.lower().partition(":")
    return f"{domain:0>8}:{rest}" if colon else ""


def with_assumed(found: Found) -> Found:
    """With the nodes that libnvidia-container lists whether they are there or not: nvidiactl, nvidia-modeset, the
    GPUs'."""
    if any(node.kind == "wsl" for node in found.device_nodes):
        return found
    wanted = [("/dev/nvidiactl", "control", 255, ""), ("/dev/nvidia-modeset", "control", 254, "")]
    wanted += [(f"/dev/nvidia{gpu.minor}", "gpu", gpu.minor, gpu.uuid) for gpu in found.gpus if gpu.minor is not None]
    there = {(node.container_path, node.kind, node.owner) for node in found.device_nodes}
    top = found.driver.dev_root.rstrip("/")
    missing = [
        DeviceNode(host_path=top + path, container_path=path, kind=kind, type="c", major=195, minor=minor, owner=owner)
        for path, kind, minor, owner in wanted
        if (path, kind, owner) not in there
    ]
    return found.replace(device_nodes=(*found.device_nodes, *missing))


def files(chosen: Chosen, words: Words, root: str, channels: Iterable[int]) -> str:
    """The paths that `list` is asked for, as they are below the driver root, one a line."""
    paths: list[str] = []
    if words.devices is not None:
        paths += [node.host_path for node in chosen.control]
        paths += [node.host_path for _, node in chosen.gpu_nodes]
        paths += _migs(chosen)
    paths += [f"{_CHANNELS}{number}" for number in channels]
    for what, gpus in (("config", chosen.mig_config), ("monitor", chosen.mig_monitor)):
        if gpus:
            paths += _managing(chosen, what, gpus)
    groups = {
        "binaries": chosen.programs,
        "libraries": [*_in_order(chosen.libraries), *_in_order(chosen.compat32)],
        "ipcs": chosen.sockets,
        "firmwares": chosen.firmware,
    }
    for name, mounts in groups.items():
        paths += [mount.host_path for mount in mounts if name in words.switches]
    top = root.rstrip("/")
    return "".join([printable(path[len(top) :] if path.startswith(f"{top}/") else path) + "\n" for path in paths])


def _in_order(mounts: list[Mount]) -> list[Mount]:
    """Libraries as libnvidia-container lists them."""
    places = {name: place for place, name in enumerate(choose.all_library_names())}
    return sorted(mounts, key=lambda mount: places.get(choose.stem(mount.host_path), len(places)))


def _migs(chosen: Chosen) -> list[str]:
    """Of each MIG device its access files and its nodes."""
    from nvoci.hook import migcaps

    paths: list[str] = []
    for mig, gpu, nodes in chosen.mig_nodes:
        files = migcaps.access_paths(gpu.minor, mig.gpu_instance, mig.compute_instance)
        paths += [f"/proc/{path.decode()}" for path in files]
        paths += [node.host_path for node in nodes]
    return paths


def _managing(chosen: Chosen, what: str, gpus: Iterable[Gpu]) -> list[str]:
    """What it takes to configure or to monitor the MIG devices of these GPUs."""
    from nvoci.hook import migcaps

    top, nodes = f"/proc/{migcaps.CAPABILITIES.decode()}", f"/{migcaps.DEVICES.decode()}"
    paths = [f"{top}/mig/{what}"]
    paths += [node.host_path for node in chosen.found.device_nodes if node.kind == f"mig-{what}"]
    has_nodes = migcaps.has_nodes()
    for gpu in gpus:
        paths += [f"{top}/gpu{gpu.minor}", nodes]
        if has_nodes and gpu.minor is not None:
            paths += [f"{nodes}/nvidia-cap{minor}" for minor in migcaps.instance_minors([gpu.minor])]
    return paths
