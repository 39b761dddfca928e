"""What the configuration leaves to the host it is read on: its ldconfig, and who NVML is to run as."""

from __future__ import annotations

import posix

from nvoci.linux.fd import Fd, read_at_most

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nvoci.prestart.config import Config

OS_RELEASE = "/etc/os-release"
_LDCONFIG, _REAL = "/sbin/ldconfig", ".real"
_SUSE, _SUSE_USER = ("suse", "opensuse"), "root:video"
_LIMIT = 1 << 16


def ldconfig(config: Config, default: str = _LDCONFIG) -> str:
    """The host's ldconfig; "" where the configuration names one of the container, which is never executed here. Debian
    has a script in its place and the program beside it, with another ending: that is preferred."""
    if config.ldconfig and not config.ldconfig.startswith("@"):
        return ""
    path = config.ldconfig[1:] or default
    real = path if path.endswith(_REAL) else path + _REAL
    return real if _exists(real) else real[: -len(_REAL)]


def user(config: Config, os_release: str = OS_RELEASE) -> str:
    """`UID[:GID]`, names or numbers, that NVML is asked as; "" for the usual unprivileged one. SUSE gives its device
    nodes to the group video."""
    return config.user or (_SUSE_USER if _is_suse(os_release) else "")


def _exists(path: str) -> bool:
    try:
        posix.stat(path)
    except OSError:
        return False
    return True


def _is_suse(os_release: str) -> bool:
    """Whether ID_LIKE of os-release(5) has one of its names."""
    try:
        with Fd(posix.open(os_release, posix.O_RDONLY | posix.O_NONBLOCK | posix.O_CLOEXEC)) as fd:
            text = read_at_most(fd.fileno(), _LIMIT).decode("utf-8", "replace")
    except OSError:
        return False
    for line in text.split("\n"):
        key, _, value = line.strip().partition("=")
        if key == "ID_LIKE":
            return any(name in _SUSE for name in value.strip("\"'").split())
    return False
