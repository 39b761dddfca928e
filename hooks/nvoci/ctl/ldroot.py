"""A root directory for `nvoci ldcache`: opened, its cache read, its library directories found. All errors are
HookError, bounded in time and size; nothing of the root is run."""

from __future__ import annotations

import os
import re
import stat
from contextlib import contextmanager
from errno import ENOENT, ENOTDIR
from struct import unpack_from
from typing import TYPE_CHECKING

from nvoci.errors import HookError, errno_name, hook_error, printable
from nvoci.hook import update_ldcache
from nvoci.hook.cachefile import CACHE, search_path
from nvoci.hook.settings import BUILTIN, Settings
from nvoci.ldcache import conf
from nvoci.ldcache.cache import MAX_ENTRIES, MAX_SIZE, MAX_STRING, NEW_MAGIC, Cache, CacheError, parse
from nvoci.linux import procfs
from nvoci.linux.fd import Fd, read_at_most
from nvoci.linux.rootfs import Rootfs, is_pseudo

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_CONF_HINT = "ld.so.conf and what it includes must be regular files of at most 1 MiB, and no more than 1024"
_FILE_HINT = f"it must be a regular file of at most {MAX_SIZE >> 20} MiB"
_HEADER, _ENTRY = 48, 24  # of glibc's dl-cache.h, as in nvoci.ldcache.cache
_REPAIR = "ldconfig, run in the container, writes it anew; so does the hook update-ldcache"


@contextmanager
def opened(path: str) -> Iterator[Rootfs]:
    """Any directory, the host's own root too. Raises HookError.

    `Rootfs.open` refuses `/`, where a hook would write in the host; here everything is only read."""
    try:
        fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as e:
        raise hook_error("open root", path, e, "ROOT is the directory that a container has as /") from None
    rootfs = Rootfs(Fd(fd), path)
    try:
        yield rootfs
    finally:
        rootfs.close()


def cache_of(rootfs: Rootfs) -> Cache | None:
    """The root's cache; None where there is none. Raises HookError."""
    name = rootfs.name.rstrip("/") + "/" + CACHE.decode()
    try:
        data = rootfs.read_file(CACHE, MAX_SIZE)
    except OSError as e:
        if e.errno in (ENOENT, ENOTDIR):
            return None
        raise hook_error("read cache", name, e, _FILE_HINT) from None
    return _parsed(data, name)


def cache_file(path: str) -> Cache:
    """The cache in a file of the host's. Raises HookError."""
    try:
        with Fd(os.open(path, os.O_PATH | os.O_CLOEXEC)) as handle:
            if not stat.S_ISREG(handle.stat().st_mode) or is_pseudo(handle.fileno()):
                raise HookError(f"read cache {printable(path)}: not a regular file", _FILE_HINT)
            with Fd(procfs.reopen(handle.fileno(), os.O_RDONLY | os.O_NONBLOCK)) as fd:
                data = read_at_most(fd.fileno(), MAX_SIZE)
    except OSError as e:
        raise hook_error("read cache", path, e, "" if e.errno in (ENOENT, ENOTDIR) else _FILE_HINT) from None
    return _parsed(data, path)


def _parsed(data: bytes, name: str) -> Cache:
    try:
        return parse(data)
    except CacheError as e:
        what = f"read cache {printable(name)}: malformed: {e}{_place(data)}"
        raise HookError(what, f"ld.so passes over it; {_REPAIR}") from None


def _place(data: bytes) -> str:
    """`, entry 7 of 9 at byte 192` for the first entry whose strings are not there; else nothing."""
    start = data.find(NEW_MAGIC)
    if start < 0 or len(data) < start + _HEADER:
        return f" ({len(data)} bytes)"
    order = ">" if data[start + 28] & 3 == 3 else "<"
    count = unpack_from(order + "I", data, start + 20)[0]
    if count > MAX_ENTRIES or start + _HEADER + count * _ENTRY > len(data):
        return f" ({count} entries in {len(data)} bytes)"
    for i in range(count):
        at = start + _HEADER + i * _ENTRY
        for place in unpack_from(order + "II", data, at + 4):
            if data.find(b"\0", start + place, start + place + MAX_STRING + 1) < 0:
                return f", entry {i + 1} of {count} at byte {at}"
    return ""


# --- where libraries are searched -----------------------------------------------------------------------------------


class Search:
    """paths: what ldconfig is to search, in order, as for update-ldcache. origins: where each one is named. system:
    the distribution's paths among them."""

    def __init__(self, paths: list[bytes], origins: dict[bytes, str], system: Sequence[bytes], debian: bool) -> None:
        self.paths = paths
        self.origins = origins
        self.system = system
        self.debian = debian


def folders(given: Sequence[str]) -> list[bytes]:
    """The --folder options as update-ldcache takes them. Raises HookError for what it refuses."""
    options = {"folder": given, "engine": BUILTIN, "ldconfig-path": "ldconfig"}
    return update_ldcache.prepare(options, Settings()).folders


def search(rootfs: Rootfs, given: Sequence[bytes] = ()) -> Search:
    """What ldconfig would search now; with folders, after `update-ldcache --folder ...`. Raises HookError."""
    debian = is_file(rootfs, b"etc/debian_version")
    system = update_ldcache.system_paths(debian)
    try:
        named = conf.conf_origins(rootfs)
        paths = search_path(rootfs, given, system)[0] if given else list(dict.fromkeys((*named, *system)))
    except OSError as e:
        raise read_error(e, conf.CONF, _CONF_HINT) from None
    origins = {}
    for path in paths:
        if path in named:
            file, line = named[path]
            origins[path] = f"{printable(file)}:{line}"
        else:
            origins[path] = "system path" if path in system else "--folder"
    return Search(paths, origins, system, debian)


def read_error(e: OSError, unsafe_object: object, hint: str) -> HookError:
    """`hook_error`, with what is wrong where that is more than the errno says."""
    number, why = e.errno or 0, e.strerror or ""
    more = f": {printable(why)}" if why != os.strerror(number) else ""
    return HookError(f"read {printable(e.filename or unsafe_object)}: {errno_name(number)}{more}", hint)


def is_file(rootfs: Rootfs, path: bytes) -> bool:
    """Whether anything but a directory is there."""
    return rootfs.exists(path) and not stat.S_ISDIR(rootfs.stat(path).st_mode)


def cpu_level() -> int:
    """Of this machine: 0 for x86-64-v1, to 3 for v4 (x86-64 psABI); -1 where there are no such levels."""
    match = re.search(rb"^flags\s*:(.*)$", procfs.read(b"cpuinfo", 64 << 20), re.MULTILINE)
    has = set(match[1].split()) if match else set()
    if b"lm" not in has:
        return -1
    level = 0
    for needed in _LEVELS:
        if not has.issuperset(needed):
            break
        level += 1
    return level


# What /proc/cpuinfo calls the features of x86-64-v2, v3, v4.
_LEVELS = (
    b"cx16 lahf_lm popcnt pni sse4_1 sse4_2 ssse3".split(),
    b"abm avx avx2 bmi1 bmi2 f16c fma movbe xsave".split(),
    b"avx512f avx512bw avx512cd avx512dq avx512vl".split(),
)
