"""Classes of errors, which scripts tell apart: `nvidia-container-cli: CLASS: DETAIL`."""

from __future__ import annotations

import errno
import posix

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


_FIND_CGROUP = "find device cgroup"  # of linux.cgroup
_RPC = {"no answer within": "timed out", "killed by": "failed to process request",
        "exit status": "failed to process request"}  # fmt: skip


def worded(error: HookError) -> HookError:
    """The error with its errno in words, as libnvidia-container has it; the name follows in the hint."""
    before, colon, name = error.message.rpartition(": ")
    number = getattr(errno, name, None) if colon and name.isupper() else None
    if type(number) is not int:
        return error
    hint = f"{name}; {error.hint}" if error.hint else name
    return HookError(f"{before}: {posix.strerror(number).lower()}", hint)


def mounted(error: HookError) -> HookError:
    """An error of the work in the container, with its class: where the container's cgroup is was to be known before."""
    message = error.message[len(MOUNT) + 2 :] if error.message.startswith(f"{MOUNT}: ") else error.message
    return classed(HookError(message, error.hint), CONTAINER if message.startswith(_FIND_CGROUP) else MOUNT)


def classed(error: HookError, name: str) -> HookError:
    """The error with the class `name`, unless it has one; what NVML says also in NVML's words, which people know."""
    message = error.message
    if not message.startswith(tuple([f"{each}:" for each in CLASSES])):
        message = f"{name}: {message}"
    before, there, after = message.partition("nvml error: ")
    for code, words in _NVML.items():
        if there and after.endswith(code) and not after.startswith(words):
            return HookError(f"{before}{there}{words}: {after}", error.hint)
    for sign, words in _RPC.items():
        if there and f" {sign} " in after:
            return HookError(f"{before}driver rpc error: {words}: {after}", error.hint)
    return HookError(message, error.hint)
