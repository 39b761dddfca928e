"""What the node has, for nvidia-container-cli: as for every container start, unless the command line says who is to ask
the driver's library, or names a library cache of its own. Then the node is looked at just so, and nothing is kept."""

from __future__ import annotations

import posix

from nvoci.discover import inventory
from nvoci.errors import HookError
from nvoci.linux import procfs
from nvoci.linux.fd import Fd
from nvoci.linux.rootfs import fsencode
from nvoci.prestart import cliuser, node
from nvoci.prestart.clierror import DETECTION

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    from nvoci.discover.model import Found
    from nvoci.prestart.clioptions import Words
    from nvoci.prestart.wanted import Wanted

    T = TypeVar("T")

_DIRECTORY = posix.O_PATH | posix.O_DIRECTORY | posix.O_CLOEXEC


def user(words: Words) -> str:
    """`UID:GID` of who is to ask; "" for the usual one. Raises HookError."""
    if words.user is None:
        return ""
    return "{}:{}".format(*cliuser.parse(words.user)) if words.user else _caller()


def _caller() -> str:
    return f"{posix.geteuid()}:{posix.getegid()}"


def resolved(path: str, root: str) -> str:
    """The same file by its name without links, both below the driver root as the host has it. Raises Stale where it is
    not there any more, HookError."""
    with inventory.open_source(path, root) as fd, Fd(posix.open(fsencode(root), _DIRECTORY)) as top:
        real, real_top = procfs.name_of(fd.fileno()), procfs.name_of(top.fileno()).rstrip(b"/")
    if not real.startswith(real_top + b"/"):
        return path
    return root.rstrip("/") + real[len(real_top) :].decode("utf-8", "surrogateescape")


def use(wanted: Wanted, action: Callable[[Found], T]) -> T:
    """action(found), as `node.use`, when kernel modules have been loaded. Raises HookError."""
    if wanted.user in ("", _caller()) and not wanted.ldcache:
        return node.use(wanted.replace(user=""), action, loaded=True)
    from nvoci.prestart import ownlook

    try:
        return action(ownlook.look(wanted))
    except inventory.Stale as e:
        raise HookError(f"{DETECTION}: {e}, though it was found a moment ago", "try again") from None
