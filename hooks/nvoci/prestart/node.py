"""What this node has, for one container: from the inventory if that holds, else by a look at the node.

The inventory is shared with the commands for people, and is found to hold only where both depend on the same things: so
`sources` says what `discover.look.Place.sources` does, without loading what a look takes (20 ms).
"""

from __future__ import annotations

from nvoci.discover import inventory
from nvoci.discover.fingerprint import Sources
from nvoci.prestart.choose import MissingNode
from nvoci.prestart.wanted import LDCACHE, MPS_DIRECTORY

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    from nvoci.discover.model import Found
    from nvoci.prestart.wanted import Wanted

    T = TypeVar("T")

# discover.found.configuration of discover.node.Options as they are by themselves, in two parts.
_BEFORE = (
    "compat_root=''; config_search_path=; csv_files=; csv_ignore=; data_dirs='/usr/local/share' '/usr/share'; "
    "explicit_libraries=False; library_search_path=; mode='auto'; mps_directory="
)
_BEHIND = "; path='/usr/local/sbin' '/usr/local/bin' '/usr/sbin' '/usr/bin' '/sbin' '/bin'; single_device=False"
_FILES = ("/run/nvidia-persistenced/socket", "/var/run/nvidia-persistenced/socket",
          "/run/nvidia-fabricmanager/socket", "/var/run/nvidia-fabricmanager/socket")  # fmt: skip
_NODES = ("/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools", "/dev/nvidia-modeset", "/dev/dri",
          "/dev/infiniband", "/dev/nvidia-caps", "/dev/nvidia-caps-imex-channels")  # fmt: skip


def sources(wanted: Wanted) -> Sources:
    """What the inventory depends on."""
    top = wanted.driver_root.rstrip("/")
    watch = [top + path for path in (*_FILES, wanted.mps_directory, *_NODES)]
    configuration = f"{_BEFORE}{wanted.mps_directory!r}{_BEHIND}"
    if wanted.ldcache:
        configuration += f"; ldcache={wanted.ldcache!r}"
    cache = wanted.ldcache or LDCACHE
    return Sources(wanted.driver_root, configuration=configuration, watch=watch, ldcache=cache)


def look(wanted: Wanted) -> Found:
    """See for yourself. NVML is asked, for up to 10 s. Raises HookError."""
    if wanted.user or wanted.ldcache:
        from nvoci.prestart import ownlook

        return ownlook.look(wanted)
    from nvoci.discover.look import Place
    from nvoci.discover.look import look as look_at

    options = None
    if wanted.mps_directory != MPS_DIRECTORY:
        from nvoci.discover.node import Options

        options = Options(mps_directory=wanted.mps_directory)
    with look_at(Place(wanted.driver_root, options=options)) as seen:
        return seen.found


def load_modules(wanted: Wanted) -> None:
    """Kernel modules, and device nodes: for who looks at the node then. Raises nothing."""
    if wanted.load_kmods:
        from nvoci.prestart import kmods

        kmods.load_on_host(wanted.driver_root, wanted.imex_channels if wanted.create_imex else ())


def use(wanted: Wanted, action: Callable[[Found], T], path: str = inventory.PATH, *, loaded: bool = False) -> T:
    """action(found), which changes nothing and raises `inventory.Stale` for what is not as it was found: then the node
    is looked at, and it is called once more. So it is where a node is missing that could be made. Kernel modules are
    loaded before a look, if that is wanted; loaded: that has been done. Raises HookError."""
    may_make = wanted.load_kmods

    def tried(found: Found) -> T:
        nonlocal may_make
        again, may_make = may_make, False
        if again and not found.gpus and not any(node.kind == "wsl" for node in found.device_nodes):
            raise inventory.Stale("look for a GPU: there was none")
        try:
            return action(found)
        except MissingNode as e:
            if again:
                raise inventory.Stale(e.message) from None
            raise

    def build() -> Found:
        nonlocal may_make
        may_make = False
        if not loaded:
            load_modules(wanted)
        return look(wanted)

    return inventory.use(sources(wanted), build, tried, names=wanted.devices, path=path)
