"""Where a generated or changed CDI specification goes: stdout, or a file named as the reference names it.

A file name's suffix decides the form of its content; only `.yaml` and `.json` are such suffixes, to any other name that
of the form is added, so that `foo.yml` becomes `foo.yml.yaml`. Nothing is written before all is known to be valid.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

from nvoci.cdi import store, text, validate
from nvoci.errors import HookError, hook_error, printable
from nvoci.linux.fd import write_all

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
    return os.path.join(os.getcwd(), path if suffix(path) in {".json", ".yaml"} else f"{path}.{form}")


def emit(outputs: Sequence[Output], form: str) -> None:
    """Validate all, then write all. form: of what goes to stdout, one after the other. Raises HookError."""
    for path, spec in outputs:
        validate.validate(spec, path)
    for path, spec in outputs:
        if path:
            store.write(spec, *os.path.split(path))
    _print("".join([text.dumps(spec, form) for path, spec in outputs if not path]))


def _print(document: str) -> None:
    try:
        write_all(1, document.encode())
    except OSError as e:
        raise hook_error(_WRITE, "to stdout", e) from None
