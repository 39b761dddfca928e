"""`Wanted`: what one container is to get, whoever asks: its environment (`of_request`), or a command line."""

from __future__ import annotations

from nvoci.discover.record import REQUIRED, Record, links, natural, one_of, path, texts, tuple_of
from nvoci.prestart import host
from nvoci.prestart.config import DISABLED, LDCONFIG, MOUNT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nvoci.prestart.config import Config
    from nvoci.prestart.request import Request

MPS_DIRECTORY = "/tmp/nvidia-mps"
LDCACHE = "/etc/ld.so.cache"
_MPS_VARIABLE = "CUDA_MPS_PIPE_DIRECTORY"


class Wanted(Record):
    """devices: names, ("all",), or () for the driver without a GPU. capabilities: of the driver, as in
    `capabilities.EVERY`. mig_config, mig_monitor: the MIG devices to be managed or watched. requirements: (where from,
    expression).

    compat_mode: mount, ldconfig or disabled, of the image's CUDA compatibility libraries. cgroups, devbind: whether
    device rules are given and device nodes mounted. ldconfig: the host's, "" for the usual one. engine: of the library
    cache, "" for the one in the settings. ldcache: the host's library cache, in the driver root, where it is not the
    usual one, else "". user: `UID[:GID]`, names or numbers, that NVML is asked as; "" for an unprivileged one in the
    groups that device nodes are for. mps_directory: of the MPS daemon. load_kmods, create_imex: whether kernel modules
    are loaded, and nodes of IMEX channels made, first. persistenced, fabricmanager, gsp_firmware: whether the container
    gets these."""

    SCHEMA = {
        "devices": (texts, REQUIRED),
        "capabilities": (texts, ()),
        "mig_config": (texts, ()),
        "mig_monitor": (texts, ()),
        "imex_channels": (tuple_of(natural), ()),
        "requirements": (links, ()),
        "compat_mode": (one_of(MOUNT, LDCONFIG, DISABLED), DISABLED),
        "cgroups": (bool, True),
        "devbind": (bool, True),
        "driver_root": (path, "/"),
        "ldconfig": (str, ""),
        "engine": (str, ""),
        "ldcache": (str, ""),
        "user": (str, ""),
        "mps_directory": (path, MPS_DIRECTORY),
        "load_kmods": (bool, False),
        "create_imex": (bool, True),
        "persistenced": (bool, True),
        "fabricmanager": (bool, True),
        "gsp_firmware": (bool, True),
    }
    __slots__ = tuple(SCHEMA)
    devices: tuple[str, ...]
    capabilities: tuple[str, ...]
    mig_config: tuple[str, ...]
    mig_monitor: tuple[str, ...]
    imex_channels: tuple[int, ...]
    requirements: tuple[tuple[str, str], ...]
    compat_mode: str
    cgroups: bool
    devbind: bool
    driver_root: str
    ldconfig: str
    engine: str
    ldcache: str
    user: str
    mps_directory: str
    load_kmods: bool
    create_imex: bool
    persistenced: bool
    fabricmanager: bool
    gsp_firmware: bool

    def parts(self) -> frozenset[str]:
        """The groups of libraries that the capabilities come to: video needs those of compute too, and display is
        graphics with a display."""
        found = set(self.capabilities)
        if "video" in found:
            found.add("compute")
        if "display" in found:
            found.add("graphics")
        return frozenset(found)


def of_request(request: Request, config: Config) -> Wanted:
    """What a container asks for, on the terms of the configuration."""
    return Wanted(
        devices=request.devices,
        capabilities=request.capabilities,
        mig_config=request.mig_config,
        mig_monitor=request.mig_monitor,
        imex_channels=request.imex_channels,
        requirements=request.requirements,
        compat_mode=config.compat_mode,
        cgroups=not config.no_cgroups,
        driver_root=config.driver_root,
        ldconfig=host.ldconfig(config),
        ldcache=own_ldcache(config.ldcache),
        user=config.user,
        mps_directory=_mps_directory(config),
        load_kmods=config.load_kmods,
        create_imex=not config.disable_imex_channel_creation,
    )


def own_ldcache(path: str) -> str:
    """Empty for the usual one."""
    return "" if path == LDCACHE else path


def _mps_directory(config: Config) -> str:
    """The variable that the daemon reads too, where the configuration sets it."""
    found = MPS_DIRECTORY
    for entry in config.environment:
        name, _, value = entry.partition("=")
        if name == _MPS_VARIABLE and value.startswith("/"):
            found = value
    return found
