"""`Record`: an immutable value with named, checked fields, to and from JSON. What dataclasses would be for, at 9 ms.

A subclass has SCHEMA (name -> (kind, default)), `__slots__ = tuple(SCHEMA)`, and annotations for mypy. A kind is `str`,
`int` or `bool`, taken as they are, or a function that returns the value to keep and raises ValueError. REQUIRED as a
default means there is none.

Performance contract: an inventory of a large node is 300 records, and is read at every container start; 2 us each.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from typing_extensions import Self

    Kind = Callable[[Any], Any]

REQUIRED: Any = object()
_PLAIN = (str, int, bool)


class Record:
    """See the module. Built with keywords only; equal where class and fields are equal; hashable."""

    __slots__ = ()
    SCHEMA: dict[str, tuple[Kind, Any]] = {}
    _fields: tuple[tuple[str, Kind, Any, Callable[[Any, Any], None]], ...] = ()
    _names: frozenset[str] = frozenset()

    def __init_subclass__(cls) -> None:
        # A slot's own setter is how a record is filled in: __setattr__ refuses.
        cls._fields = tuple((n, k, d, getattr(cls, n).__set__) for n, (k, d) in cls.SCHEMA.items())
        cls._names = frozenset(cls.SCHEMA)

    def __init__(self, **fields: Any) -> None:
        """Raises ValueError for an unknown, missing or wrong field."""
        self._fill(fields)

    def _fill(self, fields: dict[str, Any]) -> None:
        if not fields.keys() <= self._names:
            raise ValueError(f"{type(self).__name__}: unknown field {min(fields.keys() - self._names)!r}")
        get = fields.get
        for name, kind, default, put in self._fields:
            value = get(name, default)
            if value is default:
                if value is REQUIRED:
                    raise ValueError(f"{type(self).__name__}: no field {name!r}")
            elif type(value) is not kind:
                value = self._checked(name, kind, value)
            put(self, value)

    def _checked(self, name: str, kind: Kind, value: Any) -> Any:
        try:
            if kind in _PLAIN:
                raise ValueError(f"not {kind.__name__}")
            return kind(value)
        except ValueError as e:
            raise ValueError(f"{type(self).__name__}.{name}: {e}") from None

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{type(self).__name__} is immutable")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"{type(self).__name__} is immutable")

    def _values(self) -> tuple[Any, ...]:
        return tuple(getattr(self, name) for name in self.SCHEMA)

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self._values() == other._values()

    def __hash__(self) -> int:
        return hash((type(self), self._values()))

    def __repr__(self) -> str:
        told = (f"{n}={v!r}" for n, (_, d), v in zip(self.SCHEMA, self.SCHEMA.values(), self._values()) if v != d)
        return f"{type(self).__name__}({', '.join(told)})"

    def replace(self, **changes: Any) -> Self:
        """Another one, with these fields changed."""
        return type(self)(**{**dict(zip(self.SCHEMA, self._values())), **changes})

    def to_json(self, sparse: bool = False) -> dict[str, Any]:
        """A dict of JSON values. sparse: without the fields that have their default."""
        out = {}
        for name, (_, default) in self.SCHEMA.items():
            value = getattr(self, name)
            if not sparse or value != default:
                out[name] = _plain(value, sparse)
        return out

    @classmethod
    def from_json(cls, doc: Any) -> Self:
        """What to_json gave, sparse or not. Raises ValueError naming the field."""
        if type(doc) is not dict:
            raise ValueError(f"{cls.__name__}: not an object")
        made = cls.__new__(cls)
        made._fill(doc)  # noqa: SLF001  # of this class
        return made


def _plain(value: Any, sparse: bool) -> Any:
    if isinstance(value, Record):
        return value.to_json(sparse)
    return [_plain(v, sparse) for v in value] if type(value) is tuple else value


# -- kinds ------------------------------------------------------------------------------------------------------------


def natural(value: Any) -> int:
    """An int of 0 or more."""
    if type(value) is not int or value < 0:
        raise ValueError("not a whole number of 0 or more")
    return value


def path(value: Any) -> str:
    """An absolute path."""
    if type(value) is not str or value[:1] != "/" or "\0" in value:
        raise ValueError("not an absolute path")
    return value


def one_of(*allowed: str) -> Kind:
    """One of a few words."""

    def check(value: Any) -> str:
        if value not in allowed:
            raise ValueError("not one of " + ", ".join(repr(a) for a in allowed))
        return str(value)

    return check


def optional(kind: Kind) -> Kind:
    """None, or what `kind` takes."""

    def check(value: Any) -> Any:
        return None if value is None else kind(value)

    return check


def tuple_of(kind: Kind, count: int = -1) -> Kind:
    """A tuple, of `count` where that is given; a list, as JSON has it, becomes one."""

    def check(value: Any) -> tuple[Any, ...]:
        if type(value) is not list and type(value) is not tuple:
            raise ValueError("not a list")
        if count >= 0 and len(value) != count:
            raise ValueError(f"not a list of {count}")
        return tuple([kind(v) for v in value])  # faster than of a generator

    return check


def texts(value: Any) -> tuple[str, ...]:
    """A tuple of str: what `tuple_of` would do, in half the time."""
    if type(value) is not list and type(value) is not tuple:
        raise ValueError("not a list")
    for one in value:
        if type(one) is not str:
            raise ValueError("not a list of strings")
    return tuple(value)


def links(value: Any) -> tuple[tuple[str, ...], ...]:
    """A tuple of (target, link)."""
    if type(value) is not list and type(value) is not tuple:
        raise ValueError("not a list")
    pairs = tuple([texts(one) for one in value])
    for one in pairs:
        if len(one) != 2:
            raise ValueError("not a list of (target, link)")
    return pairs


def record(cls: type[Record]) -> Kind:
    """A record of `cls`, or its JSON."""

    def check(value: Any) -> Record:
        return value if type(value) is cls else cls.from_json(value)

    return check
