"""Where a generated or changed CDI specification goes: stdout, or a file named as the reference names it.

A file name's suffix decides the form of its content; only `.yaml` and `.json` are such suffixes, to any other name that
of the form is added, so that `foo.yml` becomes `foo.yml.yaml`. Nothing is written before all is known to be valid, and
no file takes its place before all of them are on the disk.
"""

from __future__ import annotations

import os
from contextlib import suppress
from errno import EISDIR
from typing import TYPE_CHECKING, NamedTuple

from nvoci.cdi import store, text, validate
from nvoci.ctl import trust
from nvoci.errors import HookError, hook_error, printable
from nvoci.linux.fd import Fd, fsync_directory, write_all

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nvoci.cdi.model import Spec

FORMATS = (text.JSON, text.YAML)
_WRITE = "write CDI spec"
_FORMATS_BY_SUFFIX = {".json": text.JSON, ".yaml": text.YAML, ".yml": text.YAML}


class Output(NamedTuple):
    """path: absolute and with its suffix, "" for stdout. spec: not yet validated."""

    path: str
    spec: Spec


def suffix(path: str) -> str:
    """From the last dot of the last component on, as `filepath.Ext` gives it: also of a name that starts with it."""
    name = path.rpartition("/")[2]
    dot = name.rfind(".")
    return name[dot:] if dot >= 0 else ""


def format_of(path: str) -> str:
    """What a file's name says of its form; "" for nothing."""
    return _FORMATS_BY_SUFFIX.get(suffix(path).lower(), "")


def infixed(path: str, infix: str) -> str:
    """/etc/cdi/a.yaml and `.coherent`: /etc/cdi/a.coherent.yaml."""
    end = suffix(path)
    return f"{path[: len(path) - len(end)]}{infix}{end}"


def place(path: str, form: str) -> str:
    """The absolute path of a file, with its suffix. A bare name is one in the working directory. Raises HookError."""
    if path.endswith("/") or "\0" in path:
        raise HookError(f"{_WRITE} {printable(path)}: not the name of a file", "name the file itself")
    found = os.path.join(os.getcwd(), path if suffix(path) in {".json", ".yaml"} else f"{path}.{form}")
    store.file_name(os.path.basename(found))
    return found


def check_directory(path: str) -> None:
    """Raises HookError where others can write the directory of a file: no reader of ours, and no careful one, takes a
    specification from there, since what it says is done as root. One that is not there yet is made so that they
    cannot."""
    directory = os.path.dirname(path)
    try:
        status = os.stat(directory)
    except OSError:
        return  # writing to it says why
    if trust.others_can_write(status):
        raise HookError(f"{_WRITE} {printable(path)}: directory {printable(directory)}: uid {status.st_uid}, "
                        f"mode {status.st_mode & 0o7777:04o}",
                        "others can write it, so what is in it is not read: choose another, or chmod go-w")  # fmt: skip


def emit(outputs: Sequence[Output], form: str) -> None:
    """Validate all, then write all. form: of what goes to stdout, one after the other. Raises HookError."""
    for path, spec in outputs:
        validate.validate(spec, path)
    write([each for each in outputs if each.path])
    _print("".join([text.dumps(spec, form) for path, spec in outputs if not path]))


# -- files ------------------------------------------------------------------------------------------------------------


def write(outputs: Sequence[Output]) -> None:
    """All files or none: they are written beside their places and renamed when the last is whole. Valid ones only;
    missing directories are made. Raises HookError; where a rename fails after others, it names those that are done."""
    staged: list[tuple[str, str]] = []
    done: list[str] = []
    try:
        for path, spec in outputs:
            staged.append((path, _staged(path, text.dumps(spec, text.format_of(path)).encode())))
        while staged:
            path, temporary = staged[0]
            os.rename(temporary, path)
            done.append(printable(path))
            del staged[0]
            fsync_directory(os.path.dirname(path))
    except OSError as e:
        hint = f"new already: {', '.join(done)}" if done else ""
        raise hook_error(_WRITE, path, e, hint) from None
    finally:
        for _, temporary in staged:
            _unlink_quietly(temporary)


def _staged(path: str, data: bytes) -> str:
    """Write a file under a name that no reader takes, and return that. Raises OSError."""
    directory, _, name = path.rpartition("/")
    store.make_directory(directory or "/")
    if os.path.isdir(path):
        raise IsADirectoryError(EISDIR, os.strerror(EISDIR), path)
    temporary = f"{directory}/.{name}.{os.urandom(6).hex()}"
    try:
        with Fd(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)) as fd:
            write_all(fd.fileno(), data)
            os.fchmod(fd.fileno(), store.FILE_MODE)
            os.fsync(fd.fileno())
    except BaseException:
        _unlink_quietly(temporary)
        raise
    return temporary


def _unlink_quietly(path: str) -> None:
    with suppress(OSError):
        os.unlink(path)


# -- stdout -----------------------------------------------------------------------------------------------------------


def _print(document: str) -> None:
    try:
        write_all(1, document.encode())
    except OSError as e:
        raise hook_error(_WRITE, "to stdout", e) from None
