"""What the configuration leaves to the host it is read on: its ldconfig."""

from __future__ import annotations

import posix

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nvoci.prestart.config import Config

_LDCONFIG, _REAL = "/sbin/ldconfig", ".real"


def ldconfig(config: Config, default: str = _LDCONFIG) -> str:
    """The host's ldconfig; "" where the configuration names one of the container, which is never executed here. Debian
    has a script in its place and the program beside it, with another ending: that is preferred."""
    if config.ldconfig and not config.ldconfig.startswith("@"):
        return ""
    path = config.ldconfig[1:] or default
    real = path if path.endswith(_REAL) else path + _REAL
    return real if _exists(real) else real[: -len(_REAL)]


def _exists(path: str) -> bool:
    try:
        posix.stat(path)
    except OSError:
        return False
    return True
