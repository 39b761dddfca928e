"""A CDI specification in YAML, as `cdi-json`; and any YAML document, by libyaml's parser and by the one in Python."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import yaml
from fuzz.registry import Target, register
from fuzz.target_cdi_json import FULL, check_written_and_read_again, names_what_is_wrong

from nvoci.cdi import text, yamlout, yamltext
from nvoci.cdi.error import SpecError
from nvoci.cdi.model import Spec

_LIBYAML = yamltext.best_loader(yaml)

TOKENS = (
    b"- ", b"-", b"? ", b": ", b":", b"\n", b"\n  ", b"\n    ", b"  ", b"{", b"}", b"[", b"]", b", ", b"&a ", b"*a",
    b"!", b"!!str ", b"!!int ", b"!!null ", b"!!binary ", b"!!map ", b"!<a> ", b'"', b"'", b"|\n", b"|-\n", b">2\n",
    b" # c", b"%YAML 1.1\n", b"%YAML 1.2", b"%TAG ! t:a\n", b"%", b"---\n", b"\n---\n", b"\n...\n", b"\t", b"~",
    b"null", b"0", b"017", b"0x1F", b"1_0", b"1:30", b"yes", b"<<: *a\n", b"=", b"\\", b"\\x41", b"\\ud800",
    b"\\U00110000", b"\\\n", b"\r\n", b"\r", b"\xc2\x85", b"\xe2\x80\xa8", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\xff",
    b"\0", b"\x07", b"key: ", b"a" * 130,
)  # fmt: skip


def _seeds() -> list[bytes]:
    return [yamlout.dumps(FULL).encode(), yaml.safe_dump(FULL).encode(), yaml.safe_dump(FULL, sort_keys=False).encode()]


def _parse(data: bytes) -> Spec:
    return text.loads(data, "x.yaml")


register(
    Target(
        "cdi-yaml", parse=_parse, errors=(SpecError,), allowed=names_what_is_wrong, check=check_written_and_read_again,
        seeds=_seeds, tokens=TOKENS, max_size=1 << 13, executions=4000,
    )
)  # fmt: skip


def _document_seeds() -> list[bytes]:
    """Those of every style are in a file."""
    return [
        b"%YAML 1.2\n--- # a\n- - b\n  - c\n- d: e\n  f:\n  - g\n...\n",
        b"- &a [b, c]\n- *a\n- {d: *a, e: [*a, *a]}\n",
        b"[!!str 0, ! 1, !!int '5', !!null ~, !!bool yes, !!seq [], !!map {}]",
    ]


def _in_python(data: bytes) -> Any:
    return yamltext.loads(data, "x.yaml", yaml.SafeLoader)


def _same_by_libyaml(data: bytes, case: bytes, answer: Any) -> None:
    """What the parser in Python answers, libyaml's answers too; and as strings it is read as it was written."""
    try:
        theirs = yamltext.loads(data, "x.yaml", _LIBYAML)
    except SpecError:
        assert re.search(rb":[][{},]", data), "libyaml refuses `{a:[b]}`, and no other"
        return
    assert _mapped(theirs, _typed) == _mapped(answer, _typed)
    if b"*" not in data:  # aliases can make a long text
        strings = _mapped(answer, str)
        assert yamltext.loads(yamlout.dumps(strings).encode()) == strings


def _mapped(value: Any, scalar: Callable[[Any], Any]) -> Any:
    if isinstance(value, dict):
        return {key: _mapped(item, scalar) for key, item in value.items()}
    return [_mapped(item, scalar) for item in value] if isinstance(value, list) else scalar(value)


def _typed(value: Any) -> tuple[str, Any]:
    """Plain("1") == "1": told apart by their types."""
    return type(value).__name__, value


register(
    Target(  # the parser in Python takes 1 ms for 1 KiB, and 50 ms where it looks 1,024 brackets ahead
        "yaml", parse=_in_python, errors=(SpecError,), allowed=names_what_is_wrong, check=_same_by_libyaml,
        seeds=_document_seeds, tokens=TOKENS, max_size=1 << 12, seconds=0.250, executions=2500,
    )
)  # fmt: skip
