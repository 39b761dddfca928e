"""Values of a JSON document together with their place in it, so that every complaint can name the place."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, NoReturn

MAX_BYTES = 64 << 20


class DescriptionError(ValueError):
    """A description that is not one: document, place in it, what is wrong; one line."""


class At:
    """One value and its place, as in `a100.json: files[3].mode`."""

    def __init__(self, value: Any, document: str, place: str = "") -> None:
        self.value, self.document, self.place = value, document, place

    def fail(self, why: str) -> NoReturn:
        """Say where and what."""
        where = f"{self.document}: {self.place}" if self.place else self.document
        raise DescriptionError(_one_line(f"{where}: {why}"))

    def object(self, required: Collection[str], optional: Collection[str] = ()) -> dict[str, At]:
        """Its members; a missing or an unknown key is an error."""
        if not isinstance(self.value, dict):
            self.fail(f"{_kind(self.value)}, not an object")
        for key in self.value:
            if key not in required and key not in optional:
                self.fail(f"unknown key `{key}`")
        for key in required:
            if key not in self.value:
                self.fail(f"`{key}` is missing")
        dot = "." if self.place else ""
        return {key: At(value, self.document, f"{self.place}{dot}{key}") for key, value in self.value.items()}

    def array(self, most: int = 1 << 20) -> list[At]:
        """Its elements."""
        if not isinstance(self.value, list):
            self.fail(f"{_kind(self.value)}, not an array")
        if len(self.value) > most:
            self.fail(f"{len(self.value)} elements, {most} at most")
        return [At(value, self.document, f"{self.place}[{i}]") for i, value in enumerate(self.value)]

    def text(self, most: int = MAX_BYTES, pattern: str = "") -> str:
        """A string of at most `most` bytes in UTF-8, without NUL; `pattern` must match all of it. U+DC80..U+DCFF stand
        for bytes that are no UTF-8, as in Python's names of files; other surrogates are an error."""
        if not isinstance(self.value, str):
            self.fail(f"{_kind(self.value)}, not a string")
        if "\0" in self.value:
            self.fail("holds a NUL character")
        try:
            size = len(self.value.encode("utf-8", "surrogateescape"))
        except UnicodeEncodeError as e:
            self.fail(f"holds a lone surrogate, U+{ord(self.value[e.start]):04X}, as character {e.start}")
        if size > most:
            self.fail(f"longer than {most} bytes")
        if pattern and not re.fullmatch(pattern, self.value):
            self.fail(f"`{self.value}` does not match {pattern}")
        return self.value

    def number(self, most: int = (1 << 32) - 1, least: int = 0) -> int:
        """An integer in least..most; true and false are none."""
        if not isinstance(self.value, int) or isinstance(self.value, bool):
            self.fail(f"{_kind(self.value)}, not an integer")
        if not least <= self.value <= most:
            self.fail(f"{self.value} is outside of {least}..{most}")
        return self.value

    def choice(self, allowed: Collection[Any]) -> Any:
        """One of a few values."""
        if isinstance(self.value, (dict, list)) or self.value not in allowed:
            self.fail(f"`{self.value}` is none of {', '.join(map(str, allowed))}")
        return self.value

    def hex(self) -> bytes:
        """Bytes written as hexadecimal digits."""
        text = self.text(pattern="([0-9a-fA-F]{2})*")
        return bytes.fromhex(text)

    def each(self, check: Callable[[At], Any], most: int = 1 << 20) -> list[Any]:
        """`check` of every element."""
        return [check(element) for element in self.array(most)]


def read(path: str | Path) -> At:
    """The JSON document in a file; duplicate keys are refused."""
    name = Path(path).name
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as e:
        raise DescriptionError(f"read `{path}`: {e.strerror}")
    if len(data) > MAX_BYTES:
        raise DescriptionError(f"{name}: larger than {MAX_BYTES >> 20} MiB")
    try:
        return At(json.loads(data, object_pairs_hook=_unique), name)
    except RecursionError:
        raise DescriptionError(f"{name}: nested too deeply")
    except ValueError as e:  # JSONDecodeError and UnicodeDecodeError are such
        raise DescriptionError(_one_line(f"{name}: not JSON: {e}"))


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"key `{twice}` stands twice in one object")
    return found


def _one_line(text: str) -> str:
    return "".join(_printable(text))


def _printable(text: str) -> Iterator[str]:
    for character in text:
        yield character if character.isprintable() else ascii(character)[1:-1]


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")
