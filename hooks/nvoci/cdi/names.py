"""What things of CDI may be called: VENDOR/CLASS=DEVICE (SPEC.md, "Kind" and "CDI JSON Specification").

Letters and digits are those of ASCII. Names may be of one character and of any length: the lengths that SPEC.md speaks
of are kept by no consumer.
"""

from __future__ import annotations

from nvoci.cdi.error import SpecError

LETTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
DIGITS = frozenset("0123456789")
_ENDS = LETTERS | DIGITS
_KIND_MIDDLE = _ENDS | frozenset("_-.")
_DEVICE_MIDDLE = _ENDS | frozenset("_-.:")
_HINT = "a device is named VENDOR/CLASS=DEVICE, such as nvidia.com/gpu=0"


def check_vendor(text: str, where: str = "") -> None:
    """Raises SpecError unless a vendor may be called this, such as `nvidia.com`."""
    _check("vendor", text, LETTERS, "a letter", _KIND_MIDDLE, "_ - .", where)


def check_class(text: str, where: str = "") -> None:
    """Raises SpecError unless a class may be called this, such as `gpu` (one with a dot: since 0.6.0)."""
    _check("class", text, LETTERS, "a letter", _KIND_MIDDLE, "_ - .", where)


def check_device(text: str, where: str = "") -> None:
    """Raises SpecError unless a device may be called this, such as `0:1` (one with a digit first: since 0.5.0)."""
    _check("device", text, _ENDS, "a letter or digit", _DEVICE_MIDDLE, "_ - . :", where)


def _check(what: str, text: str, first: frozenset[str], first_words: str, middle: frozenset[str], others: str,
           where: str) -> None:  # fmt: skip
    _text(text, where)
    if not text:
        raise SpecError(f"the name of the {what} is empty", where, hint=_HINT)
    rules = ((text[:1], first, f"starts with {first_words}"),
             (text[1:-1], middle, f"holds letters, digits and {others}"),
             (text[-1:], _ENDS, "ends with a letter or digit"))  # fmt: skip
    for part, allowed, rule in rules:
        wrong = next((c for c in part if c not in allowed), "")
        if wrong:
            raise SpecError(f"{what} `{text}` has `{wrong}` where it must not: its name {rule}", where, hint=_HINT)


def _text(given: object, where: str) -> None:
    if not isinstance(given, str):
        raise SpecError(f"{type(given).__name__}, not a string", where, hint=_HINT)


def parse_kind(kind: str, where: str = "") -> tuple[str, str]:
    """The vendor and the class of a kind. Raises SpecError.

    >>> parse_kind("nvidia.com/gpu")
    ('nvidia.com', 'gpu')
    """
    _text(kind, where)
    vendor, slash, class_ = kind.partition("/")
    if not slash:
        raise SpecError(f"kind `{kind}` is not VENDOR/CLASS", where, hint=_HINT)
    check_vendor(vendor, where)
    check_class(class_, where)
    return vendor, class_


def parse_qualified(text: str, where: str = "") -> tuple[str, str, str]:
    """The vendor, the class and the device of a qualified name. Raises SpecError.

    >>> parse_qualified("nvidia.com/gpu=0:1")
    ('nvidia.com', 'gpu', '0:1')
    """
    _text(text, where)
    kind, _, device = text.partition("=")
    vendor, _, class_ = kind.partition("/")
    missing = next((w for w, part in (("vendor", vendor), ("class", class_), ("device", device)) if not part), "")
    if missing:  # a path, which is what else a request may be, starts with a slash and so has no vendor
        raise SpecError(f"`{text}` is no qualified name: it has no {missing}", where, hint=_HINT)
    check_vendor(vendor, where)
    check_class(class_, where)
    check_device(device, where)
    return vendor, class_, device


def is_qualified(text: str) -> bool:
    """Whether `parse_qualified` takes it.

    >>> is_qualified("nvidia.com/gpu=all"), is_qualified("/dev/nvidia0"), is_qualified("0")
    (True, False, False)
    """
    try:
        parse_qualified(text)
    except SpecError:
        return False
    return True


def qualified(vendor: str, class_: str, device: str) -> str:
    """The qualified name; its parts are not checked.

    >>> qualified("nvidia.com", "gpu", "all")
    'nvidia.com/gpu=all'
    """
    return f"{vendor}/{class_}={device}"
