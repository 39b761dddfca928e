"""Whether this way of injection is the one the node is set up for. The others (CDI, CSV files) are the runtime's to do,
before the container is made: a hook comes too late for them."""

from __future__ import annotations

from nvoci import log
from nvoci.errors import HookError, printable
from nvoci.prestart.config import AUTO, LEGACY
from nvoci.prestart.names import qualified

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nvoci.discover.model import Found
    from nvoci.prestart.config import Config
    from nvoci.prestart.request import Request

_SKIP = "nvidia-container-runtime-hook.skip-mode-detection in config.toml skips this check"


def check(config: Config, request: Request) -> None:
    """What can be told without a look at the node. Raises HookError."""
    if config.skip_mode_detection:
        return
    if config.mode != AUTO:
        log.info(f"Using requested mode '{printable(config.mode)}'")
        if config.mode != LEGACY:
            raise _error(config.mode, "nvidia-container-runtime.mode in config.toml says so")
    elif request.devices and all(qualified(name) for name in request.devices):
        raise _error("cdi", f"`{printable(request.devices[0][:200])}` is a CDI device")


def check_node(config: Config, found: Found) -> None:
    """The rest: a Tegra system, or a GPU that is a part of one, needs the lists of its CSV files. Raises HookError."""
    if config.skip_mode_detection or config.mode != AUTO:
        return
    for gpu in found.gpus:
        if gpu.integrated:
            raise _error("csv", f"GPU {gpu.index} is an integrated one: {printable(gpu.name)}")
    if any(node.kind == "tegra" for node in found.device_nodes):
        raise _error("csv", "this is a Tegra system")
    log.info(f"Auto-detected mode as '{LEGACY}'")


def _error(mode: str, why: str) -> HookError:
    return HookError(
        f"mode {printable(mode[:200])}: calling this hook directly (docker --gpus, hooks.d) is not supported",
        f"{why}; use CDI (--device nvidia.com/gpu=all) or the NVIDIA runtime; {_SKIP}",
    )
