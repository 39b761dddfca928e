"""update-ldcache: let the container's loader find the injected libraries: drop-ins, soname links, /etc/ld.so.cache.

The drop-ins are for an ldconfig that somebody runs in the container later; the cache is made here and now, by one of
two engines. `builtin` computes it in this process. `ldconfig` runs the host's, confined on a read-only clone of the
root. Which one is decided by the caller and the node's settings, never by what the image holds, and one never stands
in for the other.

On a read-only root the drop-ins cannot be written; the new cache is then mounted over the image's.
"""

from __future__ import annotations

from _stat import S_IMODE, S_ISDIR
from errno import EFBIG, EINVAL, EISDIR, ELOOP, ENOENT, ENOTDIR

from nvoci.errors import HookError, hook_error, printable
from nvoci.hook import dropins
from nvoci.hook.cachefile import MUSL, is_read_only, put, search_path
from nvoci.hook.hostmounts import HostMounts
from nvoci.hook.operations import RemoveFile, WriteFile
from nvoci.hook.settings import ENGINES, LDCONFIG
from nvoci.ldcache import conf, musl
from nvoci.linux import abi
from nvoci.linux.fd import read_at_most
from nvoci.linux.rootfs import fsencode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from nvoci.hook.container import Container
    from nvoci.hook.operation import Operation
    from nvoci.hook.settings import Settings
    from nvoci.linux.confine import Program
    from nvoci.linux.rootfs import Rootfs

_PLAIN = (b"/lib", b"/usr/lib")
_LIB64 = (b"/lib64", b"/usr/lib64")
# What ld.so searches without a cache, in order, by (machine, Debian-like); others have _PLAIN.
_SYSTEM_PATHS = {
    ("x86_64", True): (b"/lib/x86_64-linux-gnu", b"/usr/lib/x86_64-linux-gnu", *_PLAIN),
    ("aarch64", True): (b"/lib/aarch64-linux-gnu", b"/usr/lib/aarch64-linux-gnu", *_PLAIN),
    ("x86_64", False): (*_PLAIN, *_LIB64, b"/libx32", b"/usr/libx32"),
    ("aarch64", False): (*_PLAIN, *_LIB64),
}


class Prepared:
    """The folders to add, and the host's ldconfig where it is the engine."""

    __slots__ = ("folders", "program")

    def __init__(self, folders: list[bytes], program: Program | None) -> None:
        self.folders = folders
        self.program = program


def prepare(options: dict[str, Any], settings: Settings) -> Prepared:
    """Check the folders, and copy the host's ldconfig, if it is the engine, while the host's files are in reach."""
    folders = dict.fromkeys(fsencode(folder).rstrip(b"/") for folder in options["folder"] if folder.strip("/"))
    for folder in folders:
        if any(c < 0x20 or c == 0x7F for c in folder):
            raise HookError(f"update-ldcache: folder `{printable(folder)}` has a control character",
                            "a line of ld.so.conf cannot hold it")  # fmt: skip
        if not folder.startswith(b"/") or b"#" in folder or b"=" in folder:
            raise HookError(f"update-ldcache: folder `{printable(folder)}` is not an absolute path without `#` and `=`",
                            "ld.so.conf gives these another meaning")  # fmt: skip
    engine = options["engine"] or settings.ldcache_engine
    if engine not in ENGINES:
        raise HookError(f"update-ldcache: engine `{printable(engine)}` is not known", "one of " + ", ".join(ENGINES))
    if not options["ldconfig-path"]:
        raise HookError("update-ldcache: ldconfig-path must be specified", "name the host's with --ldconfig-path")
    program = None
    if engine == LDCONFIG:
        from nvoci.hook import ldconfig  # the modules that start a process are not loaded where none is started

        program = ldconfig.load_program(options["ldconfig-path"])
    else:
        from nvoci.hook import ldbuiltin  # noqa: F401 - before imports are sealed
    return Prepared(list(folders), program)


def plan(prepared: Prepared, container: Container) -> list[Operation]:
    """Configuration first, then soname links and the cache."""
    rootfs = container.rootfs
    system = system_paths(_is_file(rootfs, b"etc/debian_version"))
    try:
        directories, folders = search_path(rootfs, prepared.folders, system)
    except OSError as e:
        hint = "ld.so.conf and what it includes must be regular files, no more than 1024 and 1 MiB in all"
        raise hook_error("update-ldcache: read", e.filename or conf.CONF, e, hint) from None
    musl_like = _is_file(rootfs, MUSL)
    before = _earlier_drop_in(rootfs)
    earlier = [line for line in before.split(b"\n") if line.startswith(b"/")]
    operations: list[Operation] = []
    note = b""
    if musl_like:
        operations, note = _musl_path(container, [*folders, *system], before)
    engine = _engine(container, prepared.program, directories, earlier)
    if is_read_only(rootfs, b"etc"):
        return [*operations, *engine]
    if not _is_there(rootfs, conf.CONF):
        operations.append(WriteFile(rootfs, conf.CONF, conf.DEFAULT, 0o644))
    operations.append(_drop_in(rootfs, dropins.FOLDER + dropins.FOLDERS, folders, note))
    operations.append(_drop_in(rootfs, dropins.FOLDER + dropins.SYSTEM, system))
    return [*operations, *engine]


def _engine(
    container: Container, program: Program | None, directories: list[bytes], earlier: list[bytes]
) -> list[Operation]:
    """earlier: folders of an earlier start, whose libraries are not there any more unless they are in `directories`."""
    if program is None:
        from nvoci.hook import ldbuiltin

        return ldbuiltin.operations(container, directories, earlier)
    from nvoci.hook.ldconfig import RunLdconfig

    return [RunLdconfig(container, program, directories)]


def system_paths(debian_like: bool, machine: str = abi.MACHINE) -> tuple[bytes, ...]:
    """Where the container's loader looks by itself."""
    return _SYSTEM_PATHS.get((machine, debian_like), _PLAIN)


def _is_file(rootfs: Rootfs, path: bytes) -> bool:
    """Whether anything but a directory is there."""
    try:
        return not S_ISDIR(rootfs.stat(path).st_mode)
    except OSError as e:
        if e.errno not in (ENOENT, ENOTDIR, ELOOP):
            raise  # EIO, EMFILE: not an answer
        return False


def _is_there(rootfs: Rootfs, path: bytes) -> bool:
    """Whether anything is there, be it a dangling link."""
    try:
        rootfs.lstat(path)
    except OSError as e:
        if e.errno in (ENOENT, ENOTDIR):
            return False
        raise
    return True


def _drop_in(rootfs: Rootfs, path: bytes, directories: Sequence[bytes], note: bytes = b"") -> Operation:
    if not directories and not note:
        return RemoveFile(rootfs, path)
    return WriteFile(rootfs, path, note + b"".join(d + b"\n" for d in directories), 0o644)


def _musl_path(container: Container, directories: list[bytes], drop_in: bytes) -> tuple[list[Operation], bytes]:
    """musl's new path file, and what the drop-in has to remember of it."""
    old, mode = musl.DEFAULT, 0o644
    try:
        with container.rootfs.open_file(musl.PATH) as fd:
            HostMounts.of(container.rootfs).check_copy(musl.PATH, fd.fileno())
            # It becomes root's file: a setuid bit would be root's, too.
            old, mode = read_at_most(fd.fileno(), conf.MAX_CONF), S_IMODE(fd.stat().st_mode) & 0o666
    except OSError as e:
        if e.errno not in (ENOENT, ENOTDIR):
            hint = "it must be a regular file of at most 1 MiB"
            raise hook_error("update-ldcache: read", musl.PATH, e, hint) from None
    new, added = musl.merge(old, directories, musl.noted(drop_in))
    return put(container, musl.PATH, new, mode, "a new path file of musl"), musl.note(added)


def _earlier_drop_in(rootfs: Rootfs) -> bytes:
    """What an earlier start wrote; nothing where something else has its place, which is replaced or refused later."""
    try:
        return rootfs.read_file(dropins.FOLDER + dropins.FOLDERS, conf.MAX_CONF)
    except OSError as e:
        if e.errno not in (ENOENT, ENOTDIR, ELOOP, EINVAL, EISDIR, EFBIG):
            raise
        return b""
