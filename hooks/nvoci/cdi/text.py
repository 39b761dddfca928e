"""A specification as text: JSON or YAML, from bytes or a host file, and back.

A file is read whole, at most MAX_SPEC bytes of it, and only a regular one. YAML is `nvoci.cdi.yamltext`, loaded with
PyYAML when the first YAML comes.
"""

from __future__ import annotations

from nvoci import jsonfile
from nvoci.cdi import document
from nvoci.cdi.error import FileError, SpecError, file_error
from nvoci.errors import HookError

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
_FORMATS_HINT = "use " + " or ".join(FORMATS)
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


def loads_all(data: bytes, file: str = "", format: str = "") -> list[Spec]:
    """The models of a text that may hold several YAML documents, one after the other; never none. Engines read the
    first one alone. The limits count for all of them together. Raises SpecError; where there are several, its place
    starts with the number of the document, as in `document 2: devices[0].name`."""
    if _format(data, file, format) != YAML:
        return [loads(data, file, format)]
    from nvoci.cdi import yamltext

    found: list[Spec] = []
    docs = yamltext.loads_all(_bounded(data, file), file)
    for number, doc in enumerate(docs, 1):
        try:
            found.append(document.from_object(doc, file))
        except SpecError as e:
            if len(docs) == 1:
                raise
            place = f"document {number}" + (f": {e.where}" if e.where else "")
            raise SpecError(e.why, place, file, e.hint) from None
    return found


def loads_object(data: bytes, file: str = "", format: str = "") -> Any:
    """The document as it stands, unchecked; of plain JSON types, also where it is YAML. Raises SpecError."""
    doc = _parsed(data, file, format)
    if _format(data, file, format) == YAML:
        from nvoci.cdi import yamltext

        return yamltext.generic(doc)
    return doc


def read(path: str) -> Spec:
    """The model of a host file: a regular one, maybe through symbolic links; never blocks on a FIFO or a device. Raises
    SpecError; FileError, which is one, for what the file is."""
    return loads(read_bytes(path), path)


def read_bytes(path: str) -> bytes:
    """The content of a host file that `read` would read. Raises FileError."""
    try:
        return jsonfile.read_file(path, MAX_SPEC, _STAGE)
    except HookError as e:
        raise file_error(_STAGE, path, e) from None


def dumps(spec: Spec, format: str = YAML, indent: int | None = None) -> str:
    """The text of a specification: YAML in the form that the usual generators give it, or JSON, on one line without an
    end of line unless `indent` is given. Reading it again gives the same model. Raises SpecError for a string that no
    text can hold (a host path that is not UTF-8), and for values of wrong types."""
    doc = document.to_object(spec)
    text = dumps_object(doc, format, indent)
    if not text.isascii() or "\\" in text:  # only such a text can hold what may not be: about 1 ms for a big one
        document.from_object(doc)
    return text


def dumps_object(doc: Any, format: str = YAML, indent: int | None = None) -> str:
    """The text of any document of dict, list, str, int and bool. Raises SpecError for another format."""
    if format == JSON:
        import json

        separators = (",", ": ") if indent else (",", ":")
        return json.dumps(doc, ensure_ascii=False, indent=indent, separators=separators)
    if format != YAML:
        raise FileError("write CDI spec", f"no such format: {format}", hint=_FORMATS_HINT)
    from nvoci.cdi import yamlout

    return yamlout.dumps(doc)


def _parsed(data: bytes, file: str, format: str) -> Any:
    form = _format(data, file, format)
    _bounded(data, file)
    if form == YAML:
        from nvoci.cdi import yamltext

        return yamltext.loads(data, file)
    try:
        return jsonfile.loads(data.removeprefix(_BOM))
    except ValueError as e:
        reason = "not UTF-8" if isinstance(e, UnicodeDecodeError) else str(e)
        raise SpecError(f"not valid JSON: {reason}", file=file) from None


def _format(data: bytes, file: str, format: str) -> str:
    """The one that is asked for, or the one it looks like."""
    if format not in ("", *FORMATS):
        raise FileError(_STAGE, f"no such format: {format}", file, _FORMATS_HINT)
    return format or format_of(file, data)


def _bounded(data: bytes, file: str) -> bytes:
    if len(data) > MAX_SPEC:
        raise SpecError(f"longer than {MAX_SPEC} bytes", file=file)
    return data
