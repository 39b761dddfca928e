"""Words out of a container's environment: lists of names, and names that are CDI's."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

ALL, NONE, VOID = "all", "none", "void"
# What Go's strconv.ParseBool takes, for the command line and for variables.
TRUE, FALSE = ("1", "t", "T", "TRUE", "true", "True"), ("0", "f", "F", "FALSE", "false", "False")
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_ENDS = _LETTERS + "0123456789"


def items(unsafe_text: str) -> list[str]:
    """The parts between commas, without the blanks around them; empty ones are dropped."""
    return [name for name in [part.strip() for part in unsafe_text.split(",")] if name]


def narrowed(names: Iterable[str]) -> tuple[str, ...]:
    """Each name once, at its first place. The first word of `all` and `none` decides for the whole list: ("all",) or
    ()."""
    each = tuple(dict.fromkeys(names))
    for name in each:
        if name in (ALL, NONE):
            return (ALL,) if name == ALL else ()
    return each


def qualified(name: str) -> bool:
    """Whether it is a fully qualified CDI device name, `vendor/class=device` (CDI's SPEC.md)."""
    kind, _, device = name.partition("=")
    vendor, _, class_ = kind.partition("/")
    return _word(vendor, _LETTERS, "_-.") and _word(class_, _LETTERS, "_-.") and _word(device, _ENDS, "_-.:")


def _word(text: str, first: str, middle: str) -> bool:
    if not text or text[0] not in first or text[-1] not in _ENDS:
        return False
    return not text.strip(_ENDS + middle)
