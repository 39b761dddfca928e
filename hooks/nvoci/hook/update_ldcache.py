"""update-ldcache: let the container's loader find the injected libraries: drop-ins, soname links, /etc/ld.so.cache.

The host's ldconfig reads the container's libraries, confined on a read-only clone of the root, and writes into a
tmpfs of its own; its list of links and its cache are then published here, atomically and with undo. It is given one
flat list of directories instead of the image's ld.so.conf, so that it opens no file of the image but libraries: a
FIFO or a circle of includes cannot hold it.

On a read-only root the drop-ins cannot be written; the new cache is then mounted over the image's.
"""

from __future__ import annotations

import posix
from errno import ELOOP, ENOENT, ENOTDIR
from stat import S_IMODE, S_ISDIR

from nvoci import ldcache
from nvoci.elf import Elf, ElfError
from nvoci.errors import HookError, hook_error, printable
from nvoci.hook import dropins, ldconfig
from nvoci.hook.operations import RemoveFile, WriteFile
from nvoci.jsonfile import check_trusted, open_regular
from nvoci.linux import abi
from nvoci.linux.confine import Program
from nvoci.linux.fd import read_at_most
from nvoci.linux.rootfs import fsencode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from nvoci.hook.container import Container
    from nvoci.hook.operation import Operation
    from nvoci.hook.settings import Settings
    from nvoci.linux.rootfs import Rootfs

_STAGE = "update-ldcache: ldconfig"
_DEFAULT_CONF = b"include /etc/ld.so.conf.d/*.conf\n"
_MACHINE = {"x86_64": 62, "aarch64": 183}  # elf.h: EM_X86_64, EM_AARCH64
_ET_EXEC, _ET_DYN = 2, 3

_PLAIN = (b"/lib", b"/usr/lib")
_LIB64 = (b"/lib64", b"/usr/lib64")
# What ld.so searches without a cache, in order, by (machine, Debian-like); others have _PLAIN.
_SYSTEM_PATHS = {
    ("x86_64", True): (b"/lib/x86_64-linux-gnu", b"/usr/lib/x86_64-linux-gnu", *_PLAIN),
    ("aarch64", True): (b"/lib/aarch64-linux-gnu", b"/usr/lib/aarch64-linux-gnu", *_PLAIN),
    ("x86_64", False): (*_PLAIN, *_LIB64, b"/libx32", b"/usr/libx32"),
    ("aarch64", False): (*_PLAIN, *_LIB64),
}
# musl, ldso/dynlink.c: searched where there is no path file, so a new one has to name them.
_MUSL_DEFAULT = b"/lib\n/usr/local/lib\n/usr/lib\n"


class Prepared:
    """The host's ldconfig, and the folders to add."""

    __slots__ = ("folders", "program")

    def __init__(self, folders: list[bytes], program: Program) -> None:
        self.folders = folders
        self.program = program


def prepare(options: dict[str, Any], settings: Settings) -> Prepared:
    """Check the folders, and copy the host's ldconfig while the host's files are in reach."""
    folders = dict.fromkeys(fsencode(folder) for folder in options["folder"] if folder)
    for folder in folders:
        if any(c < 0x20 or c == 0x7F for c in folder):
            raise HookError(f"update-ldcache: folder `{printable(folder)}` has a control character",
                            "a line of ld.so.conf cannot hold it")  # fmt: skip
        if not folder.startswith(b"/") or b"#" in folder or b"=" in folder:
            raise HookError(f"update-ldcache: folder `{printable(folder)}` is not an absolute path without `#` and `=`",
                            "ld.so.conf gives these another meaning")  # fmt: skip
    return Prepared(list(folders), _load_ldconfig(options["ldconfig-path"]))


def _load_ldconfig(path: str) -> Program:
    if not path:
        raise HookError("update-ldcache: ldconfig-path must be specified")
    if not path.startswith("/"):
        raise HookError(f"{_STAGE} {printable(path)}: not an absolute path", "give --ldconfig-path from `/`")
    base = path[: -len(".real")] if path.endswith(".real") else path
    path = base + ".real" if _exists(base + ".real") else base
    with open_regular(path, _STAGE) as fd:
        check_trusted(fd, path, _STAGE)
        try:
            elf = Elf(fd.fileno())
        except ElfError as e:
            raise HookError(f"{_STAGE} {printable(path)}: {e}", "name the static program itself") from None
        if elf.interp or elf.type not in (_ET_EXEC, _ET_DYN) or elf.machine != _MACHINE[abi.MACHINE]:
            raise HookError(f"{_STAGE} {printable(path)}: not a static program of this machine",
                            "a dynamic one would load the container's libraries; name a static one")  # fmt: skip
        return Program.from_fd(fd.fileno(), path)


def _exists(path: str) -> bool:
    try:
        posix.stat(path)
    except (OSError, ValueError):
        return False
    return True


def plan(prepared: Prepared, container: Container) -> list[Operation]:
    """Configuration first, then one operation that runs ldconfig and publishes what it found."""
    rootfs = container.rootfs
    system = system_paths(_is_file(rootfs, b"etc/debian_version"))
    try:
        known = ldcache.conf_directories(rootfs, skip=(dropins.FOLDERS, dropins.SYSTEM))
    except OSError as e:
        raise hook_error("update-ldcache: read", e.filename or ldcache.CONF, e, ldconfig.CONF_HINT) from None
    folders = [f for f in prepared.folders if f not in system and (f.rstrip(b"/") or b"/") not in known]
    run = ldconfig.RunLdconfig(container, prepared.program, prepared.folders, system)
    if ldconfig.is_read_only(rootfs, b"etc"):
        return [run]
    operations: list[Operation] = []
    if not _is_there(rootfs, ldcache.CONF):
        operations.append(WriteFile(rootfs, ldcache.CONF, _DEFAULT_CONF, 0o644))
    operations.append(_drop_in(rootfs, dropins.FOLDER + dropins.FOLDERS, folders))
    operations.append(_drop_in(rootfs, dropins.FOLDER + dropins.SYSTEM, system))
    if _is_file(rootfs, b"etc/alpine-release"):
        operations.append(_musl_path(rootfs, [*folders, *system]))
    operations.append(run)
    return operations


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


def _drop_in(rootfs: Rootfs, path: bytes, directories: list[bytes] | tuple[bytes, ...]) -> Operation:
    if not directories:
        return RemoveFile(rootfs, path)
    return WriteFile(rootfs, path, b"".join(d + b"\n" for d in directories), 0o644)


def _musl_path(rootfs: Rootfs, directories: list[bytes]) -> Operation:
    """musl has no cache: its path file gets the directories, after the image's own (or musl's default) entries."""
    path = f"etc/ld-musl-{abi.MACHINE}.path".encode()
    try:
        with rootfs.open_file(path) as fd:
            # It becomes root's file: a setuid bit would be root's, too.
            old, mode = read_at_most(fd.fileno(), ldcache.MAX_CONF), S_IMODE(fd.stat().st_mode) & 0o666
    except OSError as e:
        if e.errno not in (ENOENT, ENOTDIR):
            raise hook_error("update-ldcache: read", path, e, "it must be a regular file of at most 1 MiB") from None
        old, mode = _MUSL_DEFAULT, 0o644
    return WriteFile(rootfs, path, merge_musl(old, directories), mode)


def merge_musl(old: bytes, directories: list[bytes]) -> bytes:
    """`old` as it is, then each directory that it does not name, one a line. musl separates by newline or colon."""
    present = set(old.replace(b":", b"\n").split(b"\n"))
    added = [d for d in dict.fromkeys(directories) if d not in present]
    if not added:
        return old
    return old + (b"" if not old or old.endswith(b"\n") else b"\n") + b"".join(d + b"\n" for d in added)
