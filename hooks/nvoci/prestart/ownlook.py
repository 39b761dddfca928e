"""A look at the node on terms of its own: who asks the driver's library, and which library cache tells where it lies.

A library cache that is named stands for the usual directories: only what it has is found. Not hot: modules of
discovery, 20 ms.
"""

from __future__ import annotations

from nvoci.discover import nvml
from nvoci.discover.found import find
from nvoci.discover.libnames import is_ours
from nvoci.discover.libraries import Libraries
from nvoci.discover.look import nvml_path
from nvoci.discover.model import Problem
from nvoci.discover.node import Node, Options, plain
from nvoci.discover.search import Search
from nvoci.errors import HookError, hook_error, printable
from nvoci.ldcache import cache
from nvoci.linux.rootfs import fsencode
from nvoci.prestart import cliuser
from nvoci.prestart.clierror import DETECTION, INITIALIZATION

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from nvoci.discover.model import Found
    from nvoci.prestart.wanted import Wanted

_MAX_CACHE = 64 << 20


def look(wanted: Wanted) -> Found:
    """NVML is asked, for up to 10 s; where it refuses, that is among the problems. Raises HookError."""
    who = cliuser.parse(wanted.user) if wanted.user else None
    answer, refusal = None, None
    with Node.open(wanted.driver_root) as there:
        directories = _cached(there.root.read_file, wanted.ldcache) if wanted.ldcache else ()
        options = Options(mps_directory=wanted.mps_directory, library_search_path=directories)
        path = nvml_path(there, Libraries(there, Search(), directories))
        if path:
            try:
                with nvml.open_library(path, wanted.driver_root) as library:
                    path = library.path
                    answer = nvml.query(library, user=who)
            except HookError as e:
                refusal = e
        found = find(there, answer, options, path)
    if refusal is None:
        return found
    error = refusal.message.partition(f"{path}: ")[2] or refusal.message
    problem = Problem(stage="ask NVML", subject=path, error=error, hint=refusal.hint)
    return found.replace(problems=(problem, *found.problems))


def _cached(read_file: Callable[[bytes, int], bytes], path: str) -> tuple[str, ...]:
    """The directories that a library cache has the driver's libraries in. Raises HookError."""
    try:
        entries = cache.parse(read_file(fsencode(path), _MAX_CACHE)).entries
    except OSError as e:
        raise hook_error(f"{DETECTION}: open failed:", path, e, "see --ldcache, or ldcache in config.toml") from None
    except cache.CacheError as e:
        raise HookError(f"{DETECTION}: unsupported file format: {printable(path)}", str(e)) from None
    found: dict[str, None] = {}
    for entry in entries:
        directory = plain(entry.unsafe_path.rpartition(b"/")[0])
        if directory.startswith("/") and is_ours(plain(entry.unsafe_soname)):
            found[directory] = None
    if not found:
        raise HookError(f"{INITIALIZATION}: load library failed: {printable(path)} has no library of a driver",
                        "run ldconfig")  # fmt: skip
    return tuple(found)
