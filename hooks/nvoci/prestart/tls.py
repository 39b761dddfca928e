"""libnvidia-tls: drivers have had two of the same name, and the ABI note in the file tells which one is for a loader
with thread-local storage. The other is left out, and so is one that says nothing."""

from __future__ import annotations

import posix

from nvoci.discover.inventory import open_source
from nvoci.elf import Elf, ElfError
from nvoci.errors import errno_name
from nvoci.linux import procfs
from nvoci.linux.fd import Fd
from nvoci.prestart.choose import TLS, stem

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from nvoci.discover.model import Mount

# Of .note.ABI-tag: GNU/Linux 2.3.99, four words of 32 bits (elf.h, NT_GNU_ABI_TAG).
_SECTION, _TAG = b".note.ABI-tag", b"".join([number.to_bytes(4, "little") for number in (0, 2, 3, 99)])
# Why one is left out with nothing wrong about it.
OTHER, TAKEN = "its ABI note is that of another loader", "another one is taken"
_READ = posix.O_RDONLY | posix.O_NONBLOCK | posix.O_NOCTTY


def taken(mounts: Iterable[Mount], root: str) -> tuple[list[Mount], list[str]]:
    """For who only lists libraries: those that a container would get, and for each other one why it would not. root:
    the driver root. Raises Stale for a file that is not there any more, HookError."""
    found: list[Mount] = []
    left_out: list[str] = []
    has_tls = False
    for mount in mounts:
        if stem(mount.host_path) == TLS:
            reason = TAKEN if has_tls else _refusal_of(mount.host_path, root)
            if reason:
                left_out.append(f"{mount.host_path}: left out: {reason}")
                continue
            has_tls = True
        found.append(mount)
    return found, left_out


def _refusal_of(path: str, root: str) -> str:
    with open_source(path, root) as fd:
        try:
            return refusal(fd.fileno())
        except OSError as e:
            return errno_name(e.errno or 0)


def refusal(handle: int) -> str:
    """Why the library that `handle` has open (O_PATH will do) is not taken; "" where it is. Raises OSError."""
    try:
        with Fd(procfs.reopen(handle, _READ)) as fd:
            notes = Elf(fd.fileno()).section_notes(_SECTION)
    except ElfError as e:
        return f"not a usable ELF file: {e}"
    if not notes:
        return "it has no ABI note"
    return "" if any(note.desc[: len(_TAG)] == _TAG for note in notes) else OTHER
