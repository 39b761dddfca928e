"""Classes of errors, which scripts tell apart: `nvidia-container-cli: CLASS: DETAIL`."""

from __future__ import annotations

from nvoci.errors import HookError

INITIALIZATION, CONTAINER, DETECTION = "initialization error", "container error", "detection error"
COMPAT, MOUNT, LDCACHE = "updating compat library settings failed", "mount error", "ldcache error"
CLASSES = (
    "input error", "permission error", "error parsing IMEX info", INITIALIZATION, CONTAINER, DETECTION, COMPAT,
    "device error", "mig-config error", "mig-monitor error", "requirement error", MOUNT, LDCACHE,
)  # fmt: skip
# nvmlErrorString(), in small letters as libnvidia-container has it.
_NVML = {
    "NVML_ERROR_DRIVER_NOT_LOADED": "driver not loaded",
    "NVML_ERROR_LIB_RM_VERSION_MISMATCH": "driver/library version mismatch",
    "NVML_ERROR_NO_PERMISSION": "insufficient permissions",
    "NVML_ERROR_GPU_IS_LOST": "gpu is lost",
    "NVML_ERROR_RESET_REQUIRED": "gpu requires reset",
    "NVML_ERROR_MEMORY": "insufficient memory",
    "NVML_ERROR_UNKNOWN": "unknown error",
}


def classed(error: HookError, name: str) -> HookError:
    """The error with the class `name`, unless it has one; what NVML says also in NVML's words, which people know."""
    message = error.message
    if not message.startswith(tuple([f"{each}:" for each in CLASSES])):
        message = f"{name}: {message}"
    before, there, after = message.partition("nvml error: ")
    for code, words in _NVML.items():
        if there and after.endswith(code) and not after.startswith(words):
            return HookError(f"{before}{there}{words}: {after}", error.hint)
    return HookError(message, error.hint)
