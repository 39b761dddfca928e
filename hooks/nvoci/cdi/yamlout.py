"""YAML out, in the form that the usual generators of specifications give it (go-yaml's, indented by 4): block style,
lists indented under their key, strings without quotes where every reader takes them for strings, never folded.

Written here since no emitter of PyYAML's indents so, and since their import and work take longer: a node with MIG,
1,600 lines, takes 1.1 ms here, 14 + 8 ms by libyaml's, 14 + 35 ms by the one in Python.
"""

from __future__ import annotations

import re

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_STEP = 4
_MAX_KEY = 128
"""Characters of a key on one line with its value; readers stop at 1024, go-yaml writes no more than this."""

# What some reader takes for something else than a string: YAML 1.1 as in PyYAML, go-yaml 2 and 3, YAML 1.2.
_WORD = "null|true|false|yes|no|on|off|y|n"
_NOT_A_STRING = re.compile(
    rf"""
      (?i: ~ | = | << | {_WORD} )?                                        # nothing, and words in any case
    | [-+]? 0 [bBoOxX] [0-9a-fA-F_]*                                      # integers with a base
    | [-+]? [0-9_]+ (?: :[0-5]?[0-9] )* (?: \.[0-9_]* )? (?: [eE][-+]?[0-9_]* )?     # decimal, octal, base 60, real
    | [-+]? \. [0-9_]+ (?: [eE][-+]?[0-9_]* )?
    | (?i: [-+]? \. (?: inf | nan ) )
    | [0-9]{{4}} - [0-9]{{1,2}} - [0-9]{{1,2}} (?: [Tt\ \t] .* )?            # dates
    """,
    re.VERBOSE | re.DOTALL,
)
_STARTS_LIKE_ONE = frozenset("0123456789+-.~=<nNtTfFyYoO")
_INDICATORS = frozenset("-?:,[]{}#&*!|>'\"%@`")
_ESCAPES = {'"': '\\"', "\\": "\\\\", "\0": "\\0", "\t": "\\t", "\n": "\\n", "\r": "\\r"}


def dumps(value: Any) -> str:
    """The text of a document of dict, list, str, int, bool and None, with its `---` and its end of line."""
    return "---\n" + "\n".join(_Writer().lines(value)) + "\n"


def scalar(text: str) -> str:
    """A string on one line: as it is, or in quotes where a reader could take that for something else."""
    if _is_plain(text):
        return text
    if not text.isprintable() or not text or _NOT_A_STRING.fullmatch(text):
        return _double(text)
    return "'" + text.replace("'", "''") + "'"


def _is_plain(text: str) -> bool:
    if not text.isprintable() or not text or text[-1] in " :" or text[0] == " ":
        return False
    if text[0] in _INDICATORS and (text[0] not in "-?:" or text[1:2] in ("", " ") or text[:3] == "---"):
        return False
    if ": " in text or " #" in text or text[:3] == "...":
        return False
    return text[0] not in _STARTS_LIKE_ONE or not _NOT_A_STRING.fullmatch(text)


def _double(text: str) -> str:
    return '"' + "".join(c if c.isprintable() and c not in '"\\' else _escape(c) for c in text) + '"'


def _escape(c: str) -> str:
    code = ord(c)
    if c in _ESCAPES:
        return _ESCAPES[c]
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


class _Writer:
    """Makes the lines of one document; a string is judged once."""

    def __init__(self) -> None:
        self._scalars: dict[str, str] = {}

    def lines(self, value: Any) -> list[str]:
        """All of them, without the ends of line."""
        made: list[str] = []
        if type(value) in (dict, list) and value:
            self._collection(made, value, 0, "")
        else:
            made.append(self._scalar(value))
        return made

    def _collection(self, made: list[str], value: Any, column: int, first: str) -> None:
        """Lines at `column`; the first starts with `first`, which holds the dash of a list, instead of blanks."""
        start = first or " " * column
        if type(value) is dict:
            for key, item in value.items():
                written = self._scalar(key)
                if len(written) > _MAX_KEY:
                    made.append(f"{start}? {written}")
                    start, written = " " * column, ""
                self._entry(made, f"{start}{written}:", item, column, False)
                start = " " * column
        else:
            for item in value:
                self._entry(made, start + "-", item, column, True)
                start = " " * column

    def _entry(self, made: list[str], head: str, item: Any, column: int, in_list: bool) -> None:
        if type(item) not in (dict, list) or not item:
            made.append(f"{head} {self._scalar(item)}")
        elif in_list:
            self._collection(made, item, column + 2, head + " ")
        else:
            made.append(head)
            self._collection(made, item, (column // _STEP + 1) * _STEP, "")

    def _scalar(self, value: Any) -> str:
        if type(value) is str:
            written = self._scalars.get(value)
            if written is None:
                written = self._scalars[value] = scalar(value)
            return written
        if value is None or type(value) is bool:
            return {None: "null", True: "true", False: "false"}[value]
        if type(value) is int:
            return str(value)
        if type(value) not in (dict, list):
            raise TypeError(f"{type(value).__name__} is not written")
        return "{}" if type(value) is dict else "[]"
