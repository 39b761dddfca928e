"""YAML out: a text that every reader takes for the same, in the form of other generators; second witness: PyYAML's
loaders, and specifications that another generator wrote."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from unit.cdi import strategies
from unit.cdi.test_yaml import LOADERS, NODES, typed

from nvoci.cdi import document, text, yamlout, yamltext
from nvoci.cdi.model import Spec

FAST = settings(max_examples=80, deadline=None)


@pytest.mark.parametrize("path", NODES, ids=lambda path: path.name)
def test_a_specification_of_another_generator_is_written_as_it_was(path: Path) -> None:
    assert text.dumps(text.read(str(path))).encode() == path.read_bytes()


PLAIN = (
    *("/dev/nvidia0", "nvidia.com/gpu", "0.7.0", "GPU-8f2a", "--link", "-x", "a:b", "0000:4e:00.0", "rwm", "a#b"),
    *("NVIDIA_VISIBLE_DEVICES=void", "../card4::/dev/dri/by-path/pci-0000:4e:00.0-card", "a'b", 'a"b', "a,b", "a[b]"),
    *("a&b", "a*b", "a!b", "a|b", "a%b", "a\\b", "1.2.3", "1-2", "GPU0", "all", "nulls", "yes1", "~a", "=a", ".a"),
    *("a:b:c", "<<a", "..a", "+a", "-.a", "08x"),
    *("2001-01-01x", "\u0663", "é", "漢字", "🙂", "::a", ":a", "?a", "a b", "a  b", "a :b"),
)  # fmt: skip
DOUBLE = (
    *("", "0", "0:1", "00", "-1", "+1", "1_0", "0x1f", "0o17", "017", "08", "1.5", ".5", "1.", "1e3", "1:20.5"),
    *("true", "False", "TRUE", "yes", "No", "ON", "off", "y", "N", "null", "Null", "~", ".inf", "-.Inf", ".NaN", "="),
    *("1.5e+3", "<<", "2001-01-01", "2001-1-1 10:00:00"),
    *("a\nb", "a\tb", "\x01", "\x7f", "\xa0", "\x85", "\u2028", "\ufeff"),
)  # fmt: skip
SINGLE = (
    *("- a", "? a", ": a", "-", "a: b", "a:", "# a", "a #b", "[a]", "{a}", "&a", "*a", "!a", "|", ">", "'a'", '"a"'),
    *("%a", "@a", "`a", ",a", " a", "a ", " ", "---", "--- a", "---a", "...", "... a", "...a", "é: ü"),
)  # fmt: skip


@pytest.mark.parametrize(
    ("style", "value"),
    [("plain", v) for v in PLAIN] + [('"', v) for v in DOUBLE] + [("'", v) for v in SINGLE],
    ids=ascii,
)
def test_quotes_stand_where_a_reader_needs_them(style: str, value: str) -> None:
    written = yamlout.scalar(value)
    assert (written if style == "plain" else written[0]) == (value if style == "plain" else style)
    assert written.isprintable()


@pytest.mark.parametrize("value", [*strategies.TRICKY, *PLAIN, *DOUBLE, *SINGLE], ids=lambda value: ascii(value[:30]))
def test_every_reader_reads_a_string_back(value: str) -> None:
    doc = {value: value, "list": [value, {"a": value, value + "b": [value, [value]]}], "map": {value: {"a": value}}}
    written = yamlout.dumps(doc)
    for loader in LOADERS:
        assert yaml.load(written, loader) == doc  # noqa: S506  (both are safe ones)
        assert yamltext.generic(yamltext.loads(written.encode(), "", loader)) == doc
        assert not any(line != line.rstrip(" ") for line in written.splitlines() if not line.endswith(('"', "'")))


plain_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), 1 << 63) | strategies.texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(strategies.texts, inner, max_size=4),
    max_leaves=12,
)


@FAST
@given(plain_values)
def test_every_reader_reads_a_document_back(doc: Any) -> None:
    written = yamlout.dumps(doc)
    assert written.startswith("---\n")
    for loader in LOADERS:
        assert yaml.load(written, loader) == doc  # noqa: S506  (both are safe ones)
        assert typed(yamltext.generic(yamltext.loads(written.encode(), "", loader))) == typed(doc)


@FAST
@given(strategies.specs())
def test_a_spec_is_read_back_by_us_and_by_pyyaml(spec: Spec) -> None:
    written = text.dumps(spec)
    assert yaml.load(written, LOADERS[-1]) == document.to_object(spec)  # noqa: S506  (a safe one)
    assert text.loads(written.encode()) == spec


@FAST
@given(strategies.loose_specs())
def test_a_spec_that_is_not_valid_is_read_back_too(spec: Spec) -> None:
    written = text.dumps(spec)
    assert yaml.safe_load(written) == document.to_object(spec)
    assert text.loads(written.encode()) == spec


def test_indentation_is_that_of_go_yaml() -> None:
    doc = {
        "a": {"b": {"c": "d"}},
        "list": ["x", ["y", "z"], {"k": "v", "l": ["m", {"n": ["o"]}], "map": {"p": "q"}}, [], {}, [[["r"]]]],
        "none": [],
        "k" * 200: {"a": "b"},
    }
    wanted = """\
---
a:
    b:
        c: d
list:
    - x
    - - "y"
      - z
    - k: v
      l:
        - m
        - "n":
            - o
      map:
        p: q
    - []
    - {}
    - - - - r
none: []
? KEY
:
    a: b
"""
    assert yamlout.dumps(doc) == wanted.replace("KEY", "k" * 200)


@pytest.mark.parametrize("value", [1.5, b"a", (1,), object()], ids=repr)
def test_what_is_no_document_is_not_written(value: object) -> None:
    with pytest.raises(TypeError, match=f"{type(value).__name__} is not written"):
        yamlout.dumps({"a": [value]})


def test_our_writer_takes_a_fraction_of_pyyaml_s_time() -> None:
    """The reason why it is there. 35 ms by PyYAML's in Python, 1.1 ms by ours; measured on a quiet machine."""
    spec = text.read(str(next(path for path in NODES if path.name == "a100-mig.cdi.yaml")))
    doc = document.to_object(spec)

    def seconds(call: Any) -> float:
        start = time.process_time()
        call()
        return time.process_time() - start

    ours = min(seconds(lambda: text.dumps(spec)) for _ in range(5))
    theirs = min(seconds(lambda: yaml.safe_dump(doc)) for _ in range(3))
    assert ours * 4 < theirs
