"""Whether a container asks for a GPU at all: the first question, which most containers answer with no.

Performance contract: at every start of a container on the node, with GPU or without. Nothing is loaded for it but this,
`names` and `configfile`.
"""

from __future__ import annotations

from nvoci.prestart import configfile
from nvoci.prestart.names import VOID, items

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nvoci.oci.spec import Spec
    from nvoci.prestart.configfile import Place

VISIBLE_DEVICES = "NVIDIA_VISIBLE_DEVICES"
CUDA_VERSION, REQUIRE_CUDA = "CUDA_VERSION", "NVIDIA_REQUIRE_CUDA"
MOUNTS = "/var/run/nvidia-container-devices"
_MOUNTS_NAME = MOUNTS.rpartition("/")[2]  # also in a path that is still to be cleaned
MAX_VALUE = 1 << 16  # characters of a variable: a program could not be started with two such values anyway


def is_legacy(env: dict[str, str]) -> bool:
    """Whether the image is from before there were requirements: it tells its CUDA version, and no NVIDIA_REQUIRE_CUDA.
    Such an image asks for all GPUs by itself."""
    return bool(env.get(CUDA_VERSION)) and not env.get(REQUIRE_CUDA)


def may_ask(spec: Spec, place: Place) -> bool:
    """False: it asks for none, whatever the configuration says. True: `request.build` tells. Raises HookError for a
    config.json that the reference refuses too, such as one with a variable without `=`."""
    env = spec.environment()
    unsafe_value = env.get(VISIBLE_DEVICES)
    if unsafe_value is None:
        asks = is_legacy(env)
    else:
        names = items(unsafe_value[: MAX_VALUE + 1])
        asks = bool(names) and (VOID not in names or len(unsafe_value) > MAX_VALUE)
    if asks or any(_MOUNTS_NAME in destination for _, destination in spec.mounts()):
        return True
    return configfile.may_set(place, b"swarm-resource")
