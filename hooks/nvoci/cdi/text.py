"""A specification as text: JSON or YAML, from bytes or a host file, and back.

A file is read whole, at most MAX_SPEC bytes of it, and only a regular one. YAML is `nvoci.cdi.yamltext`, loaded with
PyYAML when the first YAML comes.
"""

from __future__ import annotations

from nvoci import jsonfile
from nvoci.cdi import document
from nvoci.cdi.error import SpecError
from nvoci.errors import HookError, printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from nvoci.cdi.model import Spec

MAX_SPEC = 4 << 20
"""Bytes: 200 devices take 200 KiB."""
JSON = "json"
YAML = "yaml"
FORMATS = (YAML, JSON)
_STAGE = "read CDI spec"
_BOM = b"\xef\xbb\xbf"


def format_of(file: str, data: bytes = b"") -> str:
    """JSON or YAML: by the suffix of a file's name, or else by what its content starts with."""
    if file.endswith(".json"):
        return JSON
    if file.endswith((".yaml", ".yml")):
        return YAML
    return JSON if data.lstrip()[:1] == b"{" else YAML


def loads(data: bytes, file: str = "", format: str = "") -> Spec:
    """The model of a text. format: JSON, YAML, or "" for what `format_of` says. Raises SpecError."""
    return document.from_object(_parsed(data, file, format), file)


def loads_object(data: bytes, file: str = "", format: str = "") -> Any:
    """The document as it stands, unchecked; of plain JSON types, also where it is YAML. Raises SpecError."""
    doc = _parsed(data, file, format)
    if (format or format_of(file, data)) == YAML:
        from nvoci.cdi import yamltext

        return yamltext.generic(doc)
    return doc


def read(path: str) -> Spec:
    """The model of a host file: a regular one, maybe through symbolic links; never blocks on a FIFO or a device. Raises
    SpecError for what it says, HookError for what it is."""
    return loads(read_bytes(path), path)


def read_bytes(path: str) -> bytes:
    """The content of a host file that `read` would read. Raises HookError."""
    return jsonfile.read_file(path, MAX_SPEC, _STAGE)


def dumps(spec: Spec, format: str = YAML, indent: int | None = None) -> str:
    """The text of a specification: YAML in the form that the usual generators give it, or JSON, on one line without an
    end of line unless `indent` is given. Reading it again gives the same model. Raises SpecError for a string that no
    text can hold (a host path that is not UTF-8)."""
    doc = document.to_object(spec)
    text = dumps_object(doc, format, indent)
    if not text.isascii() or "\\" in text:  # only such a text can hold what may not be: about 1 ms for a big one
        document.from_object(doc)
    return text


def dumps_object(doc: Any, format: str = YAML, indent: int | None = None) -> str:
    """The text of any document of dict, list, str, int and bool."""
    if format == JSON:
        import json

        separators = (",", ": ") if indent else (",", ":")
        return json.dumps(doc, ensure_ascii=False, indent=indent, separators=separators)
    if format != YAML:
        raise HookError(f"write CDI spec: no such format: {printable(format)}", "use " + " or ".join(FORMATS))
    from nvoci.cdi import yamlout

    return yamlout.dumps(doc)


def _parsed(data: bytes, file: str, format: str) -> Any:
    if len(data) > MAX_SPEC:
        raise SpecError(f"longer than {MAX_SPEC} bytes", file=file)
    form = format or format_of(file, data)
    if form == YAML:
        from nvoci.cdi import yamltext

        return yamltext.loads(data, file)
    if form != JSON:
        raise HookError(f"{_STAGE} {printable(file)}: no such format: {printable(form)}", "use " + " or ".join(FORMATS))
    try:
        return jsonfile.loads(data.removeprefix(_BOM))
    except ValueError as e:
        reason = "not UTF-8" if isinstance(e, UnicodeDecodeError) else str(e)
        raise SpecError(f"not valid JSON: {reason}", file=file) from None
