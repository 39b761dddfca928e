"""The path file of musl (/etc/ld-musl-ARCH.path), its only configuration: musl has no cache and no include.

ldso/dynlink.c: directories separated by newlines or colons, in order; no comments. Where the file is missing musl
searches its built-in path, so a new file has to name that.
"""

from __future__ import annotations

from nvoci.linux import abi

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

PATH = f"etc/ld-musl-{abi.MACHINE}.path".encode()
DEFAULT = b"/lib\n/usr/local/lib\n/usr/lib\n"
MAX_NOTED = 256  # a start adds a handful; what is forged is to cost no more
_NOTE = b"# added to /" + PATH + b": "


def merge(old: bytes, directories: Iterable[bytes], added: Iterable[bytes] = ()) -> tuple[bytes, list[bytes]]:
    """(`old` with each directory that it does not name behind its own entries, one a line; which those are).

    added: what an earlier call reported, which is taken out first, so that a rerun leaves what one run leaves, and
    another driver's directories do not pile up. A directory with a colon has no spelling there, and is left out.
    Entries of the image keep their place and spelling."""
    kept = old
    for directory in added:
        kept = _without(kept, directory)
    present = set(kept.replace(b":", b"\n").split(b"\n"))
    new = [d for d in dict.fromkeys(directories) if d not in present and b":" not in d]
    if not new:
        return kept, new
    separator = b"" if not kept or kept.endswith(b"\n") else b"\n"
    return kept + separator + b"".join(d + b"\n" for d in new), new


def _without(text: bytes, directory: bytes) -> bytes:
    """Without the last line that is exactly `directory`: ours stand at the end, each on a line of its own."""
    before, found, after = (b"\n" + text).rpartition(b"\n" + directory + b"\n")
    return (before + b"\n" + after)[1:] if found else text


def note(added: Iterable[bytes]) -> bytes:
    """What `merge` added, as comment lines for a drop-in of ld.so.conf.d, which is where it is remembered."""
    return b"".join(_NOTE + d + b"\n" for d in added)


def noted(drop_in: bytes) -> list[bytes]:
    """The directories of `note` in a drop-in."""
    return [line[len(_NOTE) :] for line in drop_in.split(b"\n") if line.startswith(_NOTE)][:MAX_NOTED]
