"""YAML in, bounded: documents of maps with string keys, lists and scalars, as JSON could say it.

The document is built here from the events of PyYAML's parser, which is a state machine; its composers recurse, and
libyaml's ends the process with SIGSEGV at some ten thousand brackets. libyaml's parser is taken where it is there (a
specification of 200 devices, 5,000 lines: 11 ms, and 3 ms for the model; by the one in Python: 130 ms; their import:
14 ms). What the one in Python answers libyaml's answers too; it takes no tabs, and seldom met forms less.

Limits: MAX_DEPTH, MAX_NODES for all documents together and with aliases counted as what they stand for, MAX_ANCHORS,
MAX_DOCUMENTS. Refused, beside what is no YAML: a key given twice, or that is no scalar, or null, or that engines read
as another text; a second document where one is asked for, or none; a tag that is not one of JSON's types; a merge key;
directives, but for %YAML; a byte order mark within; what is not UTF-8.

A scalar without quotes is `Plain`, its text: what it stands for is decided by the field (`nvoci.cdi.yamlscalar`).
"""

from __future__ import annotations

from importlib import import_module

from nvoci.cdi import yamlscalar
from nvoci.cdi.error import FileError, SpecError
from nvoci.cdi.yamlscalar import NULLS, Plain

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

MAX_DEPTH = 64
MAX_NODES = 1 << 18
MAX_ANCHORS = 1000
MAX_DOCUMENTS = 1000
_TAG = "tag:yaml.org,2002:"
_BREAKS = "\n\r\x85\u2028\u2029"
_SHOWN = 60


class _Bad(Exception):
    """What is wrong, and the line, the first is 0; -1 where there is none to name."""

    def __init__(self, why: str, line: int = -1) -> None:
        super().__init__(why)
        self.why = why
        self.line = line


def loads(data: bytes, file: str = "", loader: Any = None) -> Any:
    """The only document: dict, list, str, Plain, None. loader: a class of PyYAML's to take instead of the best there
    is. Raises SpecError, which names `file` and the line, also where PyYAML is not installed."""
    return _documents(data, file, loader, 1)[0]


def loads_all(data: bytes, file: str = "", loader: Any = None) -> list[Any]:
    """All documents, one at least. Otherwise as `loads`."""
    return _documents(data, file, loader, MAX_DOCUMENTS)


def _documents(data: bytes, file: str, loader: Any, most: int) -> list[Any]:
    yaml: Any
    try:
        yaml = import_module("yaml")
    except ImportError:
        why, hint = "PyYAML is not installed", "give the spec as JSON, or install PyYAML"
        raise FileError("read CDI spec", why, file, hint) from None
    try:
        text = data.decode("utf-8-sig")
        loader = loader or best_loader(yaml)
        _check_characters(text, in_python=issubclass(loader, yaml.scanner.Scanner))
        return _Builder(yaml, loader(text)).documents(most)
    except _Bad as e:
        why, line = e.why, e.line
    except UnicodeDecodeError as e:
        why, line = "not UTF-8", data.count(b"\n", 0, e.start)
    except yaml.YAMLError as e:
        mark = getattr(e, "problem_mark", None)
        why, line = "not valid YAML: " + _problem(e), mark.line if mark else _line_of_control(text)
    except (ValueError, OverflowError):  # the one in Python: an escape that is no character, an endless number
        why, line = "not valid YAML", -1
    raise SpecError(why, f"line {line + 1}" if line >= 0 else "", file)


def best_loader(yaml: Any) -> Any:
    """libyaml's where PyYAML was built with it."""
    return getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def generic(value: Any) -> Any:
    """The document without `Plain`: numbers and booleans where a scalar without quotes is one."""
    if type(value) is dict:
        return {key: generic(item) for key, item in value.items()}
    if type(value) is list:
        return [generic(item) for item in value]
    return yamlscalar.generic(value) if type(value) is Plain else value


def _check_characters(text: str, in_python: bool) -> None:
    """What the two parsers take differently. Raises _Bad."""
    percent = "of directives only %YAML 1.1 or 1.2, as the first line, is taken"
    if text.startswith("%") and not (text.startswith(("%YAML 1.1", "%YAML 1.2")) and text[9:10] in ("\n", "\r")):
        raise _Bad(percent, 0)
    refused = {"\ufeff": "a byte order mark within the text", **{f"{end}%": percent for end in _BREAKS}}
    if in_python:
        refused["\t"] = "a tab, which is only taken where PyYAML has libyaml"
    for characters, why in refused.items():
        at = text.find(characters)
        if at >= 0:
            raise _Bad(why, text.count("\n", 0, at + len(characters)))


def _problem(error: Any) -> str:
    """PyYAML's own words, without the marks."""
    words = getattr(error, "problem", None) or getattr(error, "reason", None) or type(error).__name__
    return _shown(" ".join(str(words).split()), 200)


def _line_of_control(text: str) -> int:
    """Where the first control character is, the only thing that both parsers refuse without naming the line."""
    at = next((i for i, c in enumerate(text) if (c < " " or "\x7f" <= c < "\xa0") and c not in "\t\n\r\x85"), -1)
    return text.count("\n", 0, at) if at >= 0 else -1


def _shown(text: str, length: int = _SHOWN) -> str:
    return text if len(text) <= length else text[:length] + "..."


class _Builder:
    """Makes the documents of the events that a loader gives."""

    def __init__(self, yaml: Any, loader: Any) -> None:
        self._yaml = yaml
        self._next = loader.get_event
        self._nodes = 0
        self._depth = 0
        self._anchors: dict[str, tuple[Any, int]] = {}

    def documents(self, most: int) -> list[Any]:
        """All of them, one at least."""
        found: list[Any] = []
        self._next()  # the start of the stream
        while type(event := self._next()) is not self._yaml.StreamEndEvent:
            if len(found) == most:
                raise _Bad(f"more than {most if most > 1 else 'one'} document{'s' * (most > 1)}", event.start_mark.line)
            found.append(self._value(self._next()))
            self._anchors.clear()  # each document has its own
            self._next()  # the end of the document
        if not found:
            raise _Bad("no document")
        return found

    def _value(self, event: Any) -> Any:
        kind = type(event)
        if kind is self._yaml.AliasEvent:
            return self._alias(event)
        before = self._nodes
        self._count(event, 1)
        if event.anchor is not None and len(self._anchors) >= MAX_ANCHORS:
            raise _Bad(f"more than {MAX_ANCHORS} anchors", event.start_mark.line)
        value = self._scalar(event) if kind is self._yaml.ScalarEvent else self._collection(event, kind)
        if event.anchor is not None:
            self._anchors[event.anchor] = (value, self._nodes - before)
        return value

    def _count(self, event: Any, nodes: int) -> None:
        self._nodes += nodes
        if self._nodes > MAX_NODES:
            raise _Bad(f"more than {MAX_NODES} values, aliases counted as what they stand for", event.start_mark.line)

    def _alias(self, event: Any) -> Any:
        if event.anchor not in self._anchors:  # nor is there one for what is not finished: nothing holds itself
            raise _Bad(f"alias `{_shown(event.anchor)}` stands for nothing before it", event.start_mark.line)
        value, nodes = self._anchors[event.anchor]
        self._count(event, nodes)
        return value

    def _collection(self, event: Any, kind: type[Any]) -> Any:
        is_map = kind is self._yaml.MappingStartEvent
        if event.tag is not None and event.tag not in ("!", _TAG + ("map" if is_map else "seq")):
            raise _Bad(f"tag `{_shown(event.tag)}` is not taken", event.start_mark.line)
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise _Bad(f"nested deeper than {MAX_DEPTH}", event.start_mark.line)
        made = self._map() if is_map else self._list()
        self._depth -= 1
        return made

    def _list(self) -> list[Any]:
        end = self._yaml.SequenceEndEvent
        made = []
        while type(event := self._next()) is not end:
            made.append(self._value(event))
        return made

    def _map(self) -> dict[str, Any]:
        end = self._yaml.MappingEndEvent
        made: dict[str, Any] = {}
        while type(event := self._next()) is not end:
            key = self._key(event)
            if key in made:
                raise _Bad(f"key `{_shown(key)}` is given twice", event.start_mark.line)
            made[key] = self._value(self._next())
        return made

    def _key(self, event: Any) -> str:
        """Its text: what a map is asked for is always a string."""
        if type(event) is not self._yaml.ScalarEvent:
            raise _Bad("a key that is no string", event.start_mark.line)
        key = self._value(event)
        if key is None:
            raise _Bad("a key that is null", event.start_mark.line)
        if type(key) is Plain:
            if key == "<<":
                raise _Bad("a merge key (`<<`) is not taken: write out what it stands for", event.start_mark.line)
            told = yamlscalar.as_string(key)
            if told != key:
                why = f"write key `{_shown(key)}` in quotes: engines read it as `{told}`"
                raise _Bad(why, event.start_mark.line)
            return str(key)
        return key  # type: ignore[no-any-return]

    def _scalar(self, event: Any) -> Any:
        text = event.value
        if not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text):  # by an escape; libyaml takes none
            raise _Bad("an escape that is half of a surrogate pair", event.start_mark.line)
        if event.tag is None:
            if event.style:  # quotes, or a block
                return text
            return None if text in NULLS else Plain(text)
        kind = event.tag.removeprefix(_TAG)
        if kind in ("str", "!"):
            return text
        if kind in ("int", "float", "bool"):
            return Plain(text)
        if kind == "null" and text in NULLS:
            return None
        raise _Bad(f"tag `{_shown(event.tag)}` is not taken", event.start_mark.line)
