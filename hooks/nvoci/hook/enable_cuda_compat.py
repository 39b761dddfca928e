"""enable-cuda-compat: let the loader find the image's CUDA forward compatibility libraries where they apply.

A newer libcuda than the host's driver works with some drivers only. The library says with which, in an ELF note; an
older one without a note is judged by its version. The result is one drop-in for ld.so.conf, which the update-ldcache
that follows reads, and which is removed when it no longer applies.
"""

from __future__ import annotations

import posix
from errno import ELOOP, ENOENT, ENOTDIR, ESTALE
from stat import S_ISREG

from nvoci import jsonfile, log
from nvoci.elf import Elf, ElfError
from nvoci.hook import dropins
from nvoci.hook.operations import RemoveFile, WriteFile, shown
from nvoci.linux.canonical import canonical as canonical_name
from nvoci.linux.canonical import link_text
from nvoci.linux.rootfs import fsencode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Optional

    from nvoci.hook.container import Container
    from nvoci.hook.operation import Operation
    from nvoci.hook.settings import Settings
    from nvoci.linux.rootfs import Rootfs

    Version = Optional[tuple[int, int, int]]

DROP_IN = dropins.FOLDER + dropins.COMPAT
_SECTION, _OWNER = b".note.cuda.fwd_compatibility", b"NVIDIA Corporation"
_LIBRARY = b"libcuda.so."
_MAX_NAMES = 10_000


class Host:
    """What the host's driver is; None for a version that is not given or not understood. `cuda_given` counts even
    where the value is not understood."""

    __slots__ = ("cuda", "cuda_given", "directory", "driver")

    def __init__(self, driver: Version, cuda: Version, cuda_given: bool, directory: bytes) -> None:
        self.driver = driver
        self.cuda = cuda
        self.cuda_given = cuda_given
        self.directory = directory


class CompatNote:
    """What the library says of itself: its CUDA version, and the driver branches it works on."""

    __slots__ = ("cuda", "drivers")

    def __init__(self, cuda: Version, drivers: list[int]) -> None:
        self.cuda = cuda
        self.drivers = drivers


def prepare(options: dict[str, Any], settings: Settings) -> Host | None:
    """Nothing to do where the host's versions are not given."""
    driver, cuda = options["host-driver-version"], options["host-cuda-version"]
    if not driver and not cuda:
        return None
    directory = fsencode(options["cuda-compat-container-root"])
    return Host(_version("host-driver-version", driver), _version("host-cuda-version", cuda), bool(cuda), directory)


def _version(name: str, text: str) -> Version:
    version = parse_version(text)
    if text and version is None:
        log.warning(f"enable-cuda-compat: {name} is not a version, ignored", value=text)
    return version


def parse_version(text: str) -> Version:
    """`575.57.08` as (575, 57, 8). Missing parts are 0; a leading `v` and leading zeros are allowed."""
    parts = text[text.startswith("v") :].split(".")
    if len(parts) > 3 or not all(p.isascii() and p.isdigit() and len(p) < 10 for p in parts):
        return None
    major, minor, patch = (*map(int, parts), 0, 0)[:3]
    return major, minor, patch


def applies(note: CompatNote | None, compat: Version, host: Host) -> bool:
    """Whether a library of driver version `compat` is to be used on this host."""
    if note is not None:
        if compat is not None and host.driver is not None:
            return host.driver[0] in note.drivers and compat > host.driver
        return note.cuda is not None and host.cuda is not None and note.cuda > host.cuda
    if host.cuda_given or compat is None or host.driver is None:
        return False
    return host.driver[0] < compat[0]


def plan(prepared: Host, container: Container) -> list[Operation]:
    """The drop-in, or its removal."""
    rootfs = container.rootfs
    directory = _applicable(prepared, rootfs)
    if directory is None:
        return [RemoveFile(rootfs, DROP_IN)]
    return [WriteFile(rootfs, DROP_IN, directory + b"\n", 0o644)]


def _applicable(host: Host, rootfs: Rootfs) -> bytes | None:
    """The resolved directory to be searched first; None where the image has no such library, or it does not apply."""
    try:
        directory = canonical(rootfs, host.directory)
        names = [n for n in rootfs.list(directory, _MAX_NAMES) if _is_library(rootfs, directory, n)]
    except OSError as e:
        if e.errno in (ENOENT, ENOTDIR, ELOOP):
            return None
        raise
    if len(names) != 1:
        if names:
            log.warning("enable-cuda-compat: more than one libcuda, none is used", directory=shown(directory))
        return None
    path = directory + b"/" + names[0]
    compat = _version("the library's version", names[0][len(_LIBRARY) :].decode("utf-8", "replace"))
    if not applies(_read_note(rootfs, path), compat, host):
        return None
    if any(c < 0x20 or c == 0x7F for c in directory):
        log.warning("enable-cuda-compat: ld.so.conf cannot hold this directory's name", directory=shown(directory))
        return None
    return directory


def _is_library(rootfs: Rootfs, directory: bytes, name: bytes) -> bool:
    """`libcuda.so.*.*`, a regular file."""
    if not name.startswith(_LIBRARY) or b"." not in name[len(_LIBRARY) :]:
        return False
    return S_ISREG(rootfs.lstat(directory + b"/" + name).st_mode)


def canonical(rootfs: Rootfs, unsafe_path: bytes) -> bytes:
    """The path of a directory as a process in the container would write it, compared with what the handle says:
    another inode is ESTALE."""
    found = b"/" + canonical_name(unsafe_path, lambda path: link_text(rootfs, path))
    _check_same(rootfs, unsafe_path, found)
    return found


def _check_same(rootfs: Rootfs, unsafe_path: bytes, found: bytes) -> None:
    with rootfs.lookup(unsafe_path, posix.O_DIRECTORY) as a, rootfs.lookup(found, posix.O_DIRECTORY) as b:
        wanted, got = a.stat(), b.stat()
        if (wanted.st_dev, wanted.st_ino) != (got.st_dev, got.st_ino):
            raise OSError(ESTALE, "changed while it was resolved", unsafe_path)


def _read_note(rootfs: Rootfs, path: bytes) -> CompatNote | None:
    try:
        with rootfs.open_file(path, posix.O_NOFOLLOW) as fd:
            notes = Elf(fd.fileno()).section_notes(_SECTION)
        return parse_note(notes[0].name, notes[0].desc) if notes else None
    except ValueError as e:  # ElfError is one
        kind = "not a usable ELF file" if isinstance(e, ElfError) else "its compatibility note is malformed"
        log.warning(f"enable-cuda-compat: {kind}, judged by its version", library=shown(path), reason=str(e))
        return None
    except OSError as e:
        raise OSError(e.errno, e.strerror, path) from None


def parse_note(owner: bytes, desc: bytes) -> CompatNote:
    """The note's descriptor is a JSON object; libraries differ in how they write its keys. Raises ValueError."""
    if owner != _OWNER:
        raise ValueError("of another owner")
    doc = jsonfile.loads(desc.rstrip(b"\0"))
    if not isinstance(doc, dict):
        raise ValueError("not a JSON object")  # noqa: TRY004  # one exception type for a malformed note
    keys = {key.lower(): value for key, value in doc.items()}
    cuda, drivers = keys.get("cuda version"), keys.get("driver", [])
    if not isinstance(drivers, list) or not all(type(d) is int for d in drivers):
        raise ValueError("`driver` is not a list of numbers")
    return CompatNote(parse_version(cuda) if isinstance(cuda, str) else None, drivers)
