"""What the node has, for nvidia-container-cli: as for every container start, unless the command line says who is to ask
the driver's library, or names a library cache of its own. Then the node is looked at just so, and nothing is kept."""

from __future__ import annotations

import posix

from nvoci.discover import inventory
from nvoci.errors import HookError, hook_error
from nvoci.linux.rootfs import fsencode
from nvoci.prestart import cliuser, node
from nvoci.prestart.clierror import DETECTION, INITIALIZATION

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    from nvoci.discover.model import Found
    from nvoci.prestart.clioptions import Words
    from nvoci.prestart.wanted import Wanted

    T = TypeVar("T")

LDCACHE = "/etc/ld.so.cache"
_MAX_CACHE = 64 << 20


def user(words: Words) -> tuple[int, int] | None:
    """uid and gid of who is to ask; None for the usual one. Raises HookError."""
    if words.user is None:
        return None
    return cliuser.parse(words.user) if words.user else (posix.geteuid(), posix.getegid())


def use(words: Words, wanted: Wanted, action: Callable[[Found], T]) -> T:
    """action(found), as `node.use`. Raises HookError."""
    who = user(words)
    own_cache = words.ldcache not in ("", LDCACHE)
    if not own_cache and who in (None, (posix.geteuid(), posix.getegid())):
        return node.use(wanted, action)
    try:
        return action(_look(wanted, words.ldcache if own_cache else "", who))
    except inventory.Stale as e:
        raise HookError(f"{DETECTION}: {e}, though it was found a moment ago", "try again") from None


def _look(wanted: Wanted, cache: str, who: tuple[int, int] | None) -> Found:
    """cache: below the driver root, "" for the usual directories. Raises HookError."""
    from nvoci.discover import nvml
    from nvoci.discover.found import find
    from nvoci.discover.libraries import Libraries
    from nvoci.discover.look import nvml_path
    from nvoci.discover.node import Node, Options
    from nvoci.discover.search import Search

    with Node.open(wanted.driver_root) as there:
        directories = _cached(there.root.read_file, cache) if cache else ()
        options = Options(mps_directory=wanted.mps_directory, library_search_path=directories)
        path = nvml_path(there, Libraries(there, Search(), directories))
        if not path:
            raise HookError(f"{INITIALIZATION}: load library failed: no {nvml.SONAME} in {wanted.driver_root}",
                            "install the NVIDIA driver, or name its root")  # fmt: skip
        try:
            with nvml.open_library(path, wanted.driver_root) as library:
                answer = nvml.query(library, user=who)
        except HookError as e:
            raise HookError(f"{INITIALIZATION}: nvml error: {e.message}", e.hint) from None
        return find(there, answer, options, library.path)


def _cached(read_file: Callable[[bytes, int], bytes], path: str) -> tuple[str, ...]:
    """The directories that a library cache has the driver's libraries in. Raises HookError."""
    from nvoci.discover.libnames import is_ours
    from nvoci.discover.node import plain
    from nvoci.ldcache import cache

    try:
        entries = cache.parse(read_file(fsencode(path), _MAX_CACHE)).entries
    except OSError as e:
        raise hook_error(f"{DETECTION}: open failed:", path, e, "see --ldcache") from None
    except cache.CacheError as e:
        raise HookError(f"{DETECTION}: unsupported file format: {path}", str(e)) from None
    found: dict[str, None] = {}
    for entry in entries:
        directory = plain(entry.unsafe_path.rpartition(b"/")[0])
        if directory.startswith("/") and is_ours(plain(entry.unsafe_soname)):
            found[directory] = None
    if not found:
        raise HookError(f"{INITIALIZATION}: load library failed: {path} has no library of a driver", "run ldconfig")
    return tuple(found)
