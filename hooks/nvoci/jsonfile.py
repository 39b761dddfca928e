"""Strict, bounded JSON reading, and atomic writing of host files.

Performance contract: the C scanner of `_json` is used without the `json` package (0.1 ms instead of 5 ms, which is
a hook's whole start). The scanner is private, so this is its only user, the result is compared with `json` by a
test, and `json` is the fallback. Refused, beside what JSON refuses: a key given twice, NaN and Infinity, numbers of
more than 64 digits, anything but white space after the value, more than `limit` bytes, text that is not UTF-8.
"""

from __future__ import annotations

import posix
import sys
from _stat import S_ISREG
from errno import EINVAL

from nvoci.errors import HookError, hook_error, printable
from nvoci.linux.fd import Fd, fsync_directory, read_at_most, write_all

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_SPACE = " \t\n\r"
MAX_DIGITS = 64
_MAX_LOOKS = 100


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        seen: set[str] = set()
        twice = next(k for k, _ in pairs if k in seen or seen.add(k))  # type: ignore[func-returns-value]
        raise ValueError(f"key `{printable(twice)}` is given twice")
    return value


def _int(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise ValueError("a number has too many digits")
    return int(text)


def _float(text: str) -> float:
    if len(text) > MAX_DIGITS:
        raise ValueError("a number has too many digits")
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ValueError("a number is too large")
    return value


def _constant(text: str) -> Any:
    raise ValueError(f"{text} is not JSON")


class _Context:
    """What `_json.make_scanner` reads its settings from (json.decoder.JSONDecoder has the same attributes)."""

    strict = True
    object_hook = None
    object_pairs_hook = staticmethod(_pairs)
    parse_float = staticmethod(_float)
    parse_int = staticmethod(_int)
    parse_constant = staticmethod(_constant)
    memo: dict[str, str] = {}  # the scanner looks for the attribute; nobody writes to it


def _make_scanner() -> Any:
    try:
        from _json import make_scanner

        return make_scanner(_Context())  # type: ignore[arg-type]
    except (ImportError, TypeError, AttributeError):
        import json

        return json.JSONDecoder(
            object_pairs_hook=_pairs, parse_int=_int, parse_float=_float, parse_constant=_constant
        ).scan_once  # type: ignore[attr-defined]


def loads(data: bytes) -> Any:
    """The value of a JSON document. Raises ValueError with a short reason."""
    text = data.decode("utf-8")  # UnicodeDecodeError is a ValueError
    start = 0
    while text[start : start + 1] in _SPACE and start < len(text):
        start += 1
    try:
        value, end = _make_scanner()(text, start)
    except StopIteration as e:
        raise ValueError(f"no value at character {e.value}") from None
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except (SystemError, ImportError):
        # The scanner wants to raise json.decoder.JSONDecodeError: on 3.10 and 3.11 it only looks for the module, which
        # is not there; others import it, which cannot be where imports are sealed.
        raise ValueError("malformed") from None
    if text[end:].strip(_SPACE):
        raise ValueError(f"more text after the value, at character {end}")
    return value


def load_object(data: bytes, stage: str, name: str, hint: str = "") -> dict[str, Any]:
    """`loads`, where the document must be an object. Raises HookError naming `stage` and the file `name`."""
    try:
        value = loads(data)
    except ValueError as e:
        reason = "not UTF-8" if isinstance(e, UnicodeDecodeError) else printable(e)
        raise HookError(f"{stage} {printable(name)}: not valid JSON: {reason}", hint) from None
    if not isinstance(value, dict):
        raise HookError(f"{stage} {printable(name)}: not a JSON object", hint)
    return value


def path_from_json(text: str) -> str:
    """A path out of a JSON document, which is UTF-8, as the `str` that stands for the same bytes: Python's file system
    encoding follows the locale, and under a latin-1 one the plain text would name another file. Raises ValueError for
    what no file can be called."""
    if "\0" in text:
        raise ValueError("holds a NUL")
    return text.encode("utf-8").decode(sys.getfilesystemencoding(), sys.getfilesystemencodeerrors())


def open_regular(path: str | bytes, stage: str) -> Fd:
    """A host file open for reading; never blocks on a FIFO, never touches a device. Raises HookError."""
    flags = posix.O_RDONLY | posix.O_NONBLOCK | posix.O_NOCTTY | posix.O_CLOEXEC
    for _ in range(_MAX_LOOKS):
        try:
            with Fd(posix.open(path, posix.O_PATH | posix.O_CLOEXEC)) as handle:
                before = handle.stat()
                if not S_ISREG(before.st_mode):
                    raise OSError(EINVAL, "not a regular file")
                fd = Fd(posix.open(path, flags))
        except (OSError, ValueError) as e:
            error = e if isinstance(e, OSError) else OSError(EINVAL, str(e))
            hint = "not a regular file" if error.errno == EINVAL else ""
            raise hook_error(stage, path, error, hint) from None
        if fd.stat()[1:3] == before[1:3]:
            return fd
        fd.close()  # a writer has just put a new file in its place
    raise HookError(f"{stage} {printable(path)}: replaced while it was opened, again and again",
                    "find out who writes it so often")  # fmt: skip


def read_file(path: str | bytes, limit: int, stage: str, refuse_mode: int = 0, owners: tuple[int, ...] = ()) -> bytes:
    """A host file of at most `limit` bytes, unless its mode has a bit of `refuse_mode`, or `owners` are given and its
    own is none of them. Raises HookError."""
    with open_regular(path, stage) as fd:
        st = fd.stat()
        mode = st.st_mode & 0o7777
        if owners and st.st_uid not in owners:
            raise HookError(f"{stage} {printable(path)}: owned by uid {st.st_uid}", "check who made it")
        if mode & refuse_mode:
            raise HookError(f"{stage} {printable(path)}: mode {mode:04o}: others can write it", "check who made it")
        try:
            return read_at_most(fd.fileno(), limit)
        except OSError as e:
            raise hook_error(stage, path, e, f"at most {limit} bytes are read") from None


def check_trusted(fd: Fd, path: str, stage: str) -> None:
    """Refuse a file of the host that anybody but root can write. Raises HookError.

    In a user namespace that does not map the host's root it shows another owner, the same as for `/`.
    """
    st = fd.stat()
    if st.st_uid not in (0, posix.stat("/").st_uid) or st.st_mode & 0o022:
        raise HookError(f"{stage} {printable(path)}: owned by uid {st.st_uid}, mode {st.st_mode & 0o7777:04o}",
                        "it must belong to root and be writable by nobody else")  # fmt: skip


def write_atomic(path: str, data: bytes, mode: int = 0o644) -> None:
    """Replace a host file: temporary, fsync, rename, fsync of the directory. Raises OSError."""
    directory, slash, name = path.rpartition("/")
    directory = directory or slash or "."
    # Not by pid: in a container pids repeat, and what a killed run left would be in the way.
    temporary = f"{directory}/.{name}.{posix.urandom(6).hex()}"
    flags = posix.O_WRONLY | posix.O_CREAT | posix.O_EXCL | posix.O_NOFOLLOW | posix.O_CLOEXEC
    created = Fd(posix.open(temporary, flags, 0o600))
    try:
        with created as fd:
            write_all(fd.fileno(), data)
            posix.fchmod(fd.fileno(), mode)
            posix.fsync(fd.fileno())
        posix.rename(temporary, path)
    except BaseException:
        _unlink_quietly(temporary)
        raise
    fsync_directory(directory)


def _unlink_quietly(path: str) -> None:
    try:
        posix.unlink(path)
    except OSError:
        pass


def dumps(value: Any, indent: int | None = None) -> str:
    """JSON text, for what people and generators ask for; loads `json`, so never on a container's start."""
    import json

    return json.dumps(value, indent=indent)
