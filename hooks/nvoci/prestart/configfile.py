"""config.toml as a file: where it is, whether it can be trusted, and whether it names a key at all.

Performance contract: for a container that asks for no GPU this is all that is done about the configuration (40 us); it
is not parsed, nor is its compiled form read.
"""

from __future__ import annotations

import posix
import sys
from errno import ENOENT

from nvoci import log
from nvoci.errors import HookError, errno_name, hook_error, printable
from nvoci.jsonfile import open_regular
from nvoci.linux.fd import Fd, read_at_most

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

STAGE = "read configuration"
LIMIT = 1 << 16
OPTION = "-config"
_VARIABLE, _HOME = b"NVIDIA_CTK_CONFIG_FILE_PATH", b"XDG_CONFIG_HOME"
_NAME = "nvidia-container-runtime/config.toml"


class Place:
    """Where the file is, absolute. named_by: the option or variable that says so, with which it must be there; "" where
    it may be absent, and the defaults hold."""

    __slots__ = ("named_by", "path")

    def __init__(self, path: str, named_by: str = "") -> None:
        self.path = path
        self.named_by = named_by


def find(env: Mapping[bytes, bytes], given: str = "") -> Place:
    """given: the value of the option, "" for none. env: of this process, not of the container. Raises HookError."""
    named_by, path = OPTION, given
    if not path:
        named_by, path = _VARIABLE.decode(), _text(env.get(_VARIABLE, b""))
    if path:
        if not path.startswith("/"):
            raise HookError(f"{STAGE} {printable(path)}: not an absolute path", f"see {named_by}")
        return Place(path, named_by)
    home = _text(env.get(_HOME, b""))
    # A relative one counts as none, as the XDG base directory specification says.
    return Place(f"{home.rstrip('/')}/{_NAME}" if home.startswith("/") else f"/etc/{_NAME}")


def _text(path: bytes) -> str:
    return path.decode(sys.getfilesystemencoding(), sys.getfilesystemencodeerrors())


def open_file(place: Place) -> Fd | None:
    """The file, open for reading, trusted or not; None where there is none and need not be. Raises HookError."""
    try:
        posix.stat(place.path)
    except OSError as e:
        if e.errno == ENOENT and not place.named_by:
            return None
        hint = f"named by {place.named_by}: it must be there" if place.named_by else ""
        raise hook_error(STAGE, place.path, e, hint) from None
    return open_regular(place.path, STAGE)


def check_trusted(fd: Fd, path: str) -> None:
    """Refuse a file that anybody but root, or who runs this, can write: it decides what a root process does. Raises
    HookError. (In a user namespace the host's root may show as another, who then owns `/` too.)"""
    st = fd.stat()
    if st.st_uid not in (0, posix.geteuid(), posix.stat("/").st_uid) or st.st_mode & 0o022:
        raise HookError(f"{STAGE} {printable(path)}: owned by uid {st.st_uid}, mode {st.st_mode & 0o7777:04o}",
                        "it must belong to root and be writable by nobody else")  # fmt: skip


def read(fd: Fd, path: str) -> bytes:
    """All of it. Raises HookError."""
    try:
        return read_at_most(fd.fileno(), LIMIT)
    except OSError as e:
        raise hook_error(STAGE, path, e, f"at most {LIMIT} bytes are read") from None


def may_set(place: Place, key: bytes) -> bool:
    """Whether the file may give `key` a value: False is certain, True is for the parser to tell. A key can be written
    with escapes, so a backslash is a maybe; and so is a file that cannot be read, unless it is not there."""
    try:
        fd = open_file(place)
        if fd is None:
            return False
        with fd:
            data = read(fd, place.path)
    except HookError as e:
        log.debug("configuration not read", reason=e.line())
        return not e.message.endswith(errno_name(ENOENT))
    if b"\\" in data:
        return True
    return any(key in line and not line.lstrip().startswith(b"#") for line in data.split(b"\n"))
