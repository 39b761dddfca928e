"""The engine of update-ldcache that starts no process: the image's ld.so.cache, extended by nvoci.ldcache."""

from __future__ import annotations

from errno import E2BIG, EIO, ELOOP, ENOENT, ENOTDIR

from nvoci import __version__, log
from nvoci.errors import HookError, hook_error, printable
from nvoci.hook.cachefile import CACHE, FEWER, is_read_only, publish
from nvoci.hook.hostmounts import HostMounts
from nvoci.hook.operations import MakeLink, shown
from nvoci.ldcache.cache import MAX_SIZE, Cache, CacheError, Entry, encode, parse
from nvoci.ldcache.compute import NOT_A_NAME, Link, Result, compute
from nvoci.ldcache.directory import LEASED
from nvoci.linux.fd import read_at_most

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from nvoci.hook.container import Container
    from nvoci.hook.operation import Operation
    from nvoci.linux.rootfs import Rootfs

GENERATOR = b"nvoci " + __version__.encode()
# Programs dlopen these by a name that no soname gives them; drivers ship the links, the container gets the files alone.
DEVELOPMENT = {b"libcuda.so.1": b"libcuda.so", b"libnvidia-opticalflow.so.1": b"libnvidia-opticalflow.so"}


def operations(container: Container, directories: Sequence[bytes], earlier: Sequence[bytes] = ()) -> list[Operation]:
    """Soname links, then the cache. Everything is computed here, before anything is changed. Raises HookError.

    earlier: directories of an earlier start, which the cache is to forget unless they still count."""
    rootfs = container.rootfs
    try:
        found = compute(rootfs, directories, _image_cache(rootfs), DEVELOPMENT, earlier)
        links, missing = _links(container, found.links)
    except OSError as e:
        hint = "a library directory of the image cannot be read, or is too large" if e.errno in (E2BIG, EIO) else ""
        raise hook_error("read", e.filename or rootfs.name, e, hint) from None
    _log(found)
    if missing:
        found.entries = [_redirected(e, missing) for e in found.entries]
    try:
        data = encode(found.entries, GENERATOR)
    except CacheError as e:
        raise HookError(f"write {shown(CACHE)}: {e}", FEWER) from None
    return [*links, *publish(container, data)]


def _image_cache(rootfs: Rootfs) -> Cache | None:
    """None where there is none that may be copied, or it is not what ldconfig writes: then everything is computed
    anew."""
    try:
        with rootfs.open_file(CACHE) as fd:
            HostMounts.of(rootfs).check_copy(CACHE, fd.fileno())
            if fd.stat().st_size > MAX_SIZE:
                raise CacheError(f"larger than {MAX_SIZE >> 20} MiB")
            return parse(read_at_most(fd.fileno(), MAX_SIZE))
    except HookError as e:
        log.warning(f"update-ldcache: {e.message}; computed anew")
    except CacheError as e:
        log.debug(f"update-ldcache: {shown(CACHE)}: {e}; computed anew")
    except OSError as e:
        if e.errno not in (ENOENT, ENOTDIR, ELOOP):
            raise hook_error("read", CACHE, e, "it must be a regular file") from None
    return None


def _links(container: Container, links: Sequence[Link]) -> tuple[list[MakeLink], dict[bytes, bytes]]:
    """(links to make, path -> its target's path for those on a read-only file system)."""
    rootfs = container.rootfs
    read_only: dict[bytes, bool] = {}
    made: list[MakeLink] = []
    missing: dict[bytes, bytes] = {}
    for link in links:
        directory = link.unsafe_path.rpartition(b"/")[0]
        if directory not in read_only:
            read_only[directory] = not container.settings.strict and is_read_only(rootfs, directory)
        if read_only[directory]:
            missing[link.unsafe_path] = link.target_path()
            log.info("update-ldcache: read-only file system, the cache names the file itself",
                     link=shown(link.unsafe_path), target=printable(link.unsafe_target))  # fmt: skip
        else:
            made.append(MakeLink(rootfs, link.unsafe_target, link.unsafe_path))
    return made, missing


def _redirected(e: Entry, missing: dict[bytes, bytes]) -> Entry:
    """The entry with the file in the place of a link that could not be made; of a link to such a link, too."""
    path = e.unsafe_path
    for _ in range(2):
        path = missing.get(path, path)
    return e if path == e.unsafe_path else Entry(e.flags, e.unsafe_soname, path, e.osversion, e.hwcap, e.hwcaps_name)


def _log(found: Result) -> None:
    refused = 0
    leased: list[bytes] = []
    for path, why in found.left_out:
        log.debug("update-ldcache: left out", path=printable(path), why=why)
        refused += why == NOT_A_NAME
        if why == LEASED:
            leased.append(path)
    if leased:
        log.warning(f"update-ldcache: left out: {LEASED}", count=len(leased), first=shown(leased[0]))
    if refused:
        log.warning("update-ldcache: soname is not a file name, left out", count=refused)
