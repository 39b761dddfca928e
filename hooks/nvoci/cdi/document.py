"""A specification as a document, which is what JSON and YAML say, and as the model: one table of fields for both ways.

Strict: a field that the specification does not have, at any level, and a value of another type are errors that name
the place. What values mean is not looked at; `nvoci.cdi.validate` does that, and so a required field that is missing
is read as an empty one. null for a field is as if it was not given.
"""

from __future__ import annotations

from nvoci.cdi import shape, yamlscalar
from nvoci.cdi.error import SpecError
from nvoci.cdi.model import ContainerEdits, Device, DeviceNode, Hook, IntelRdt, Mount, NetDevice, Spec
from nvoci.cdi.yamlscalar import Plain

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Read = Callable[[Any], Any]
    Write = Callable[[Any], Any]

_SHOWN = 60
"""Characters of a wrong value or name that an error repeats."""


class _Bad(Exception):
    """A value that is not what its field holds; `place` is its path in the document, innermost part first."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why
        self.place: list[str] = []


# --- values ---------------------------------------------------------------------------------------------------------


def _string(value: Any) -> str:
    """Any text that can be a name or a path."""
    if type(value) is Plain:
        told = yamlscalar.as_string(value)
        if told != value:
            raise _Bad(f"write `{_shown(value)}` in quotes: engines read it as `{told}`")
        value = str(value)
    if type(value) is not str:
        raise _Bad(f"{_kind(value)}, not a string")
    if "\0" in value:
        raise _Bad("the string holds a NUL")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise _Bad("the string holds half of a surrogate pair: it has no UTF-8 form") from None
    return value


def _integer(low: int, high: int) -> Read:
    def read(value: Any) -> int:
        number = yamlscalar.integer(value) if type(value) is Plain else value
        if type(number) is not int:
            raise _Bad(f"{_kind(value)}, not an integer")
        if not low <= number <= high:
            raise _Bad(f"{_shown(str(number))} is not within {low}..{high}")
        return number

    return read


def _boolean(value: Any) -> bool:
    found = yamlscalar.boolean(value) if type(value) is Plain else value
    if type(found) is not bool:
        raise _Bad(f"{_kind(value)}, not a boolean")
    return found


def _list_of(read: Read) -> Read:
    def read_list(value: Any) -> tuple[Any, ...]:
        if type(value) is not list:
            raise _Bad(f"{_kind(value)}, not a list")
        done: list[Any] = []
        try:
            for item in value:
                done.append(read(item))  # noqa: PERF401  (its length is the index of the wrong one)
        except _Bad as e:
            e.place.append(f"[{len(done)}]")
            raise
        return tuple(done)

    return read_list


def _texts(value: Any) -> dict[str, str]:
    """A map of strings to strings. null for one of them is "", as other readers have it."""
    if type(value) is not dict:
        raise _Bad(f"{_kind(value)}, not an object")
    read = {}
    for key, item in value.items():
        try:
            read[_string(key)] = _string("" if item is None else item)
        except _Bad as e:
            e.place.append(f"[{_shown(str(key))}]")
            raise
    return read


def _kind(value: Any) -> str:
    if isinstance(value, Plain):
        return f"`{_shown(value)}`"
    if value is None:
        return "null"
    for kinds, name in ((bool, "a boolean"), ((int, float), "a number"), (str, "a string"), (list, "a list")):
        if isinstance(value, kinds):
            return name
    return "an object" if isinstance(value, dict) else type(value).__name__


def _shown(text: str) -> str:
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."


# --- records --------------------------------------------------------------------------------------------------------


class _Field:
    """A field of the model: how it is read and written; `absent`: its value where it is not given, and which is left
    out in writing unless it is `required`."""

    __slots__ = ("absent", "attribute", "read", "required", "write")

    def __init__(
        self, attribute: str, read: Read, absent: Any = "", write: Write | None = None, required: bool = False
    ) -> None:
        self.attribute = attribute
        self.read = read
        self.absent = absent
        self.write = write
        self.required = required


class _Record:
    """A class of the model and its fields, by their names in the document, in the order in which they are written."""

    def __init__(self, model: type[Any], fields: dict[str, _Field]) -> None:
        self.model = model
        self.fields = fields
        self.required = {field.attribute: field.absent for field in fields.values() if field.required}

    def read(self, value: Any) -> Any:
        """The model of an object."""
        if type(value) is not dict:
            raise _Bad(f"{_kind(value)}, not an object")
        fields, given = self.fields, self.required.copy()
        for key, item in value.items():
            field = fields.get(key)
            if field is None:
                raise _Bad(f"unknown field `{_shown(str(key))}`")
            if item is not None:
                try:
                    given[field.attribute] = field.read(item)
                except _Bad as e:
                    e.place.append(f".{key}")
                    raise
        return self.model(**given)

    def read_list(self) -> Read:
        """What reads a list of them."""
        return _list_of(self.read)

    def write(self, model: Any) -> dict[str, Any]:
        """The object of a model."""
        made = {}
        for key, field in self.fields.items():
            value = getattr(model, field.attribute)
            if field.required or value != field.absent:
                made[key] = field.write(value) if field.write else value
        return made

    def write_list(self, models: tuple[Any, ...]) -> list[dict[str, Any]]:
        """The list of several."""
        return [self.write(model) for model in models]


def _needed(attribute: str) -> _Field:
    return _Field(attribute, _string, required=True)


def _number(attribute: str, bits: int, absent: int | None = None) -> _Field:
    """Unsigned for 32 bits, signed for 64, as the CDI project's types have it."""
    low, high = (0, (1 << 32) - 1) if bits == 32 else (-(1 << 63), (1 << 63) - 1)
    return _Field(attribute, _integer(low, high), absent)


def _strings(attribute: str, absent: Any = ()) -> _Field:
    return _Field(attribute, _list_of(_string), absent, list)


def _records(attribute: str, record: _Record, required: bool = False) -> _Field:
    return _Field(attribute, record.read_list(), (), record.write_list, required)


_NODE = _Record(
    DeviceNode,
    {
        "path": _needed("path"),
        "hostPath": _Field("host_path", _string),
        "type": _Field("type", _string),
        "major": _number("major", 64, 0),
        "minor": _number("minor", 64, 0),
        "fileMode": _number("file_mode", 32),
        "permissions": _Field("permissions", _string),
        "uid": _number("uid", 32),
        "gid": _number("gid", 32),
    },
)
_NET_DEVICE = _Record(NetDevice, {"hostInterfaceName": _needed("host_interface_name"), "name": _needed("name")})
_HOOK = _Record(
    Hook,
    {
        "hookName": _needed("hook_name"),
        "path": _needed("path"),
        "args": _strings("args"),
        "env": _strings("env"),
        "timeout": _number("timeout", 64),
    },
)
_MOUNT = _Record(
    Mount,
    {
        "hostPath": _needed("host_path"),
        "containerPath": _needed("container_path"),
        "options": _strings("options"),
        "type": _Field("type", _string),
    },
)
_INTEL_RDT = _Record(
    IntelRdt,
    {
        "closID": _Field("clos_id", _string),
        "l3CacheSchema": _Field("l3_cache_schema", _string),
        "memBwSchema": _Field("mem_bw_schema", _string),
        "schemata": _strings("schemata", None),
        "enableMonitoring": _Field("enable_monitoring", _boolean, False),
    },
)
_EDITS = _Record(
    ContainerEdits,
    {
        "env": _strings("env"),
        "deviceNodes": _records("device_nodes", _NODE),
        "netDevices": _records("net_devices", _NET_DEVICE),
        "hooks": _records("hooks", _HOOK),
        "mounts": _records("mounts", _MOUNT),
        "intelRdt": _Field("intel_rdt", _INTEL_RDT.read, None, _INTEL_RDT.write),
        "additionalGids": _Field("additional_gids", _list_of(_integer(0, (1 << 32) - 1)), (), list),
    },
)
_NO_EDITS = ContainerEdits()
_DEVICE = _Record(
    Device,
    {
        "name": _needed("name"),
        "annotations": _Field("annotations", _texts, {}, dict),
        "containerEdits": _Field("container_edits", _EDITS.read, _NO_EDITS, _EDITS.write, required=True),
    },
)
_SPEC = _Record(
    Spec,
    {
        "cdiVersion": _needed("cdi_version"),
        "kind": _needed("kind"),
        "annotations": _Field("annotations", _texts, {}, dict),
        "devices": _records("devices", _DEVICE, required=True),
        "containerEdits": _Field("container_edits", _EDITS.read, _NO_EDITS, _EDITS.write),
    },
)


# --- both ways ------------------------------------------------------------------------------------------------------


def from_object(doc: object, file: str = "") -> Spec:
    """The model of a document: dict, list, str, int, bool, None, and `Plain` for what stands in YAML without quotes.
    Raises SpecError, which names `file`, the place, and an unknown field."""
    return _read(_SPEC, doc, file)  # type: ignore[no-any-return]


def edits_from_object(doc: object, where: str = "containerEdits") -> ContainerEdits:
    """The model of container edits alone; `where` is what errors call them. Raises SpecError."""
    return _read(_EDITS, doc, "", where)  # type: ignore[no-any-return]


def to_object(spec: Spec) -> dict[str, Any]:
    """The document of a specification: fields in the usual order, those that are not given left out. Raises SpecError
    for values of wrong types."""
    shape.check(spec)
    return _SPEC.write(spec)


def edits_to_object(edits: ContainerEdits) -> dict[str, Any]:
    """The document of container edits alone. Raises SpecError for values of wrong types."""
    shape.check(edits, ContainerEdits)
    return _EDITS.write(edits)


def _read(record: _Record, doc: object, file: str, where: str = "") -> Any:
    try:
        return record.read(doc)
    except _Bad as e:
        place = where + "".join(reversed(e.place))
        raise SpecError(e.why, place.lstrip("."), file) from None
