"""NVIDIA_DRIVER_CAPABILITIES: what of the driver a container is to get."""

from __future__ import annotations

from nvoci.errors import HookError, printable
from nvoci.prestart.names import ALL, items

VARIABLE = "NVIDIA_DRIVER_CAPABILITIES"
KEY = "supported-driver-capabilities"
EVERY = ("compat32", "compute", "display", "graphics", "ngx", "utility", "video")
DEFAULT = ("compute", "utility")


def supported(text: str) -> tuple[str, ...]:
    """What the configuration allows, sorted; `all` is everything. Raises ValueError naming those that do not exist."""
    names = items(text)
    if ALL in names:
        return EVERY
    unknown = [name for name in names if name not in EVERY]
    if unknown:
        raise ValueError(f"{', '.join(unknown)}: not among {', '.join(EVERY)}")
    return tuple(sorted(set(names)))


def wanted(unsafe_value: str | None, allowed: tuple[str, ...], legacy: bool) -> tuple[str, ...]:
    """What a container gets, sorted. unsafe_value: of the variable, None where it is not set; legacy: of an image from
    before there were requirements, which gets everything. Raises HookError for what is not allowed."""
    if unsafe_value is None and legacy:
        return allowed
    if not unsafe_value:
        return tuple([name for name in DEFAULT if name in allowed])
    names = items(unsafe_value)
    if ALL in names:
        return allowed
    kept = tuple([name for name in allowed if name in names])
    if len(kept) < len(set(names)):
        raise HookError(
            f"unsupported capabilities found in '{printable(unsafe_value[:500])}' (allowed '{','.join(kept)}')",
            f"see {VARIABLE} of the container, {KEY} of config.toml",
        )
    return kept
