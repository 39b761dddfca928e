"""Specifications written to a directory of theirs, and removed from it.

What is written is valid, and is seen whole or not at all: after a full disk, or a kill half-way, the old file is there.
A kill leaves a hidden temporary beside it, which nobody takes for a specification.
"""

from __future__ import annotations

import os
from dataclasses import replace
from errno import ENOENT

from nvoci.cdi import names, shape, text, validate, version
from nvoci.cdi.error import SpecError, file_error
from nvoci.errors import printable
from nvoci.jsonfile import write_atomic

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nvoci.cdi.model import Spec

DIRECTORY_MODE = 0o755
FILE_MODE = 0o644
_WRITE = "write CDI spec"
_REMOVE = "remove CDI spec"
_NAME_HINT = "a plain file name, such as nvidia.com-gpu"


def spec_name(vendor: str, class_: str) -> str:
    """The usual file name, without suffix, of the only specification of a kind. Raises SpecError.

    >>> spec_name("nvidia.com", "gpu")
    'nvidia.com-gpu'
    """
    names.check_vendor(vendor)
    names.check_class(class_)
    return f"{vendor}-{class_}"


def transient_name(vendor: str, class_: str, id: str) -> str:
    """The file name, without suffix, of a specification that lives as long as something else does, such as the
    container that `id` names. Raises SpecError.

    >>> transient_name("nvidia.com", "gpu", "pod/7")
    'nvidia.com-gpu_pod_7'
    """
    if not id:
        raise SpecError("no id for the name of a transient specification", hint="such as that of the container")
    name = f"{spec_name(vendor, class_)}_{id.replace('/', '_')}"
    file_name(name)
    return name


def file_name(name: str, format: str = "") -> str:
    """`name` with a suffix: its own, or that of `format` (YAML unless given). Raises SpecError for a name that is none,
    or has the suffix of another format. One that starts with a dot is read as any other."""
    if name in {"", ".", ".."} or "/" in name or not name.isprintable():
        raise SpecError(f"`{printable(name)}` is no name for a specification", hint=_NAME_HINT)
    if format not in ("", *text.FORMATS):
        raise SpecError(f"no such format: {format}", hint="use " + " or ".join(text.FORMATS))
    for each in text.FORMATS:
        if name.endswith(f".{each}"):
            if format not in ("", each):
                raise SpecError(f"`{name}` is no name for a specification in {format}", hint="leave out its suffix")
            return name
    return f"{name}.{format or text.YAML}"


def write(spec: Spec, directory: str, name: str = "", format: str = "", *, least_version: bool = False) -> str:
    """Write a specification and return its path. Raises SpecError: for one that is not valid, and for a directory that
    cannot be written.

    name: of the file, with or without suffix; `spec_name` if not given. The directory is made where there is none.
    least_version: declare the lowest version of CDI that has all the specification says, in place of its own.
    """
    shape.check(spec)
    if least_version:
        spec = replace(spec, cdi_version=version.minimum(spec))
    path = os.path.join(directory, file_name(name or spec_name(spec.vendor, spec.class_), format))
    validate.validate(spec, path)
    data = text.dumps(spec, text.format_of(path)).encode()
    try:
        make_directory(directory)
        write_atomic(path, data, FILE_MODE)
    except OSError as e:
        raise file_error(_WRITE, path, e) from None
    return path


def make_directory(path: str) -> None:
    """With the directories above it that are missing; theirs is the mode that everybody can read, whatever the
    umask. Raises OSError."""
    above = os.path.abspath(path)
    missing: list[str] = []
    while not os.path.isdir(above):
        above, name = os.path.split(above)
        missing.append(name)
    if not missing:
        return
    at = os.open(above, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for name in reversed(missing):
            below = _directory_in(at, name)
            os.close(at)
            at = below
    finally:
        os.close(at)


def _directory_in(parent: int, name: str) -> int:
    """A descriptor of the one that is made there, or is there since somebody else was quicker, and keeps its mode.
    Others may write to `parent`, and what stands there now need not be what was made: no link is followed, and nobody
    else's directory is changed. Raises OSError."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    try:
        os.mkdir(name, DIRECTORY_MODE, dir_fd=parent)
    except FileExistsError:
        return os.open(name, flags, dir_fd=parent)
    made = os.open(name, flags | os.O_NOFOLLOW, dir_fd=parent)
    try:
        if os.fstat(made).st_uid == os.geteuid():
            os.fchmod(made, DIRECTORY_MODE)
    except OSError:
        os.close(made)
        raise
    return made


def remove(directory: str, name: str, format: str = "") -> bool:
    """Remove the file that `write` makes of these; False where there is none. Raises SpecError."""
    path = os.path.join(directory, file_name(name, format))
    try:
        os.unlink(path)
    except OSError as e:
        if e.errno == ENOENT:
            return False
        raise file_error(_REMOVE, path, e) from None
    return True
