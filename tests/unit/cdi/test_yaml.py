"""YAML in: one answer by libyaml's parser and by the one in Python, and a limit on everything that can grow."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import settings

from nvoci.cdi import text, yamlout, yamltext
from nvoci.cdi.error import SpecError
from nvoci.cdi.yamlscalar import Plain

FAST = settings(max_examples=80, deadline=None)
NODES = sorted((Path(__file__).parents[2] / "data" / "nodes").glob("*.cdi.yaml"))
LOADERS = [yaml.SafeLoader, *([yaml.CSafeLoader] if hasattr(yaml, "CSafeLoader") else [])]
each_loader = pytest.mark.parametrize("loader", LOADERS, ids=lambda loader: loader.__name__)


def typed(value: Any) -> Any:
    """With the types told, since Plain("1") == "1"."""
    if isinstance(value, dict):
        return {key: (type(key).__name__, typed(item)) for key, item in value.items()}
    return [typed(item) for item in value] if isinstance(value, list) else (type(value).__name__, value)


def refusal(data: bytes, loader: Any = None) -> SpecError:
    with pytest.raises(SpecError) as caught:
        yamltext.loads(data, "x.yaml", loader)
    return caught.value


# --- in: what is read -----------------------------------------------------------------------------------------------

p = Plain
READ: dict[str, Any] = {
    "a: b": {"a": p("b")},
    "---\na: b\n...\n": {"a": p("b")},
    "%YAML 1.2\n---\na: b\n": {"a": p("b")},
    "\ufeffa: b": {"a": p("b")},
    "# c\na: b # d\n": {"a": p("b")},
    "a: b\r\nc: d\r\n": {"a": p("b"), "c": p("d")},
    "a: b\n  c\n\n  d": {"a": p("b c\nd")},
    "a:\n- b\n- c": {"a": [p("b"), p("c")]},
    "a:\n  - b: c\n    d: e\n  -\n    f: g": {"a": [{"b": p("c"), "d": p("e")}, {"f": p("g")}]},
    "- - a\n  - b\n- - c": [[p("a"), p("b")], [p("c")]],
    "{a: [b, {c: d}], e: {}, f: []}": {"a": [p("b"), {"c": p("d")}], "e": {}, "f": []},
    '{"a":"b","c":[1,true,null]}': {"a": "b", "c": [p("1"), p("true"), None]},
    "? a\n: b\n? c\n": {"a": p("b"), "c": None},
    "a: |\n  b\n   c\n": {"a": "b\n c\n"},
    "a: >-\n  b\n  c\n": {"a": "b c"},
    "a: |+\n  b\n\n": {"a": "b\n\n"},
    "a: 'it''s'\nb: \"\\x41\\u00e9\\U0001f600\\n\"": {"a": "it's", "b": "Aé\U0001f600\n"},
    "a: 'b\n  c'": {"a": "b c"},
    "a: é 漢字 🙂": {"a": p("é 漢字 🙂")},
    "a: /dev/nvidia0\nb: a:b:c\nc: a#b\nd: -x": {"a": p("/dev/nvidia0"), "b": p("a:b:c"), "c": p("a#b"), "d": p("-x")},
    "[~, null, Null, NULL, nULL, '~', 'null', '', , x]": None,  # an entry of nothing: no YAML
    "[~, null, Null, NULL, nULL, '~', 'null', '']": [None, None, None, None, p("nULL"), "~", "null", ""],
    "a:\nb: \nc: ''": {"a": None, "b": None, "c": ""},
    "[0, 0x1F, 0666, 1e3, .inf, 190:20:30, true, yes, y, on]": list(
        map(p, ("0", "0x1F", "0666", "1e3", ".inf", "190:20:30", "true", "yes", "y", "on"))
    ),
    "[2001-01-01, 2001-12-14t21:59:43.10-05:00, =, <<]": [
        p("2001-01-01"), p("2001-12-14t21:59:43.10-05:00"), p("="), p("<<")
    ],
    "0: a\ntrue: b\n1.5: c": {"0": p("a"), "true": p("b"), "1.5": p("c")},
    "'<<': a\n\"\": b": {"<<": p("a"), "": p("b")},
    "!!str 0": "0",
    "[!!str 0, ! 1, !!str null, !!str ~, !!int 5, !!int '5', !!bool yes, !!float 1.5, !!null ~, !!null '']": [
        "0", "1", "null", "~", p("5"), p("5"), p("yes"), p("1.5"), None, None
    ],
    "!!map {a: !!seq [b]}": {"a": [p("b")]},
    "! {a: ! [b]}": {"a": [p("b")]},
    "&a b": p("b"),
    "a: &x [b, c]\nd: *x\ne: [*x, *x]": {
        "a": [p("b"), p("c")], "d": [p("b"), p("c")], "e": [[p("b"), p("c")], [p("b"), p("c")]]
    },
    "a: &x 1\nb: &x 2\nc: *x": {"a": p("1"), "b": p("2"), "c": p("2")},
    "a: &x\nb: *x": {"a": None, "b": None},
    "text": p("text"),
    "": ...,
}  # fmt: skip
READ = {source: wanted for source, wanted in READ.items() if wanted is not None and wanted is not ...}


@each_loader
@pytest.mark.parametrize("source", READ, ids=ascii)
def test_a_document_is_read(source: str, loader: Any) -> None:
    assert typed(yamltext.loads(source.encode(), "", loader)) == typed(READ[source])


REFUSED: dict[str, tuple[str, int]] = {
    "": ("no document", 0),
    "\n# only a comment\n": ("no document", 0),
    "a: b\n---\nc: d": ("more than one document", 2),
    "---\n---\n": ("more than one document", 2),
    "a: 1\nb: 2\na: 3": ("key `a` is given twice", 3),
    "a:\n  - {b: 1, 'b': 2}": ("key `b` is given twice", 2),
    "0: 1\n'0': 2": ("key `0` is given twice", 2),
    "a: b\n? [c]\n: d": ("a key that is no string", 2),
    "{a: b}: c": ("a key that is no string", 1),
    "a: &x b\n*x : c": ("a key that is no string", 2),
    "a: 1\n0x10: 2": ("write key `0x10` in quotes: engines read it as `16`", 2),
    "a: {n: 2}": ("write key `n` in quotes: engines read it as `false`", 1),
    "a: 1\n~: 2": ("a key that is null", 2),
    "? \n: a": ("a key that is null", 1),
    ": a": ("not valid YAML: ", 1),
    "a: &x {b: c}\nd:\n  <<: *x": ("a merge key (`<<`) is not taken: write out what it stands for", 3),
    "a: !!binary aGk=": ("tag `tag:yaml.org,2002:binary` is not taken", 1),
    "a: !!timestamp 2001-01-01": ("tag `tag:yaml.org,2002:timestamp` is not taken", 1),
    "a: !!set {b}": ("tag `tag:yaml.org,2002:set` is not taken", 1),
    "a: !!python/object/apply:os.system [id]": ("tag `tag:yaml.org,2002:python/object/apply:os.system` is", 1),
    "a: !x b": ("tag `!x` is not taken", 1),
    "a: !!map [b]": ("tag `tag:yaml.org,2002:map` is not taken", 1),
    "a: !!seq b": ("tag `tag:yaml.org,2002:seq` is not taken", 1),
    "a: !!null b": ("tag `tag:yaml.org,2002:null` is not taken", 1),
    "%TAG ! tag:x,1:\n---\na: b": ("of directives only %YAML 1.1 or 1.2, as the first line, is taken", 1),
    "%YAML 1.2\n%foo bar\n---\na: b": ("of directives only ", 2),
    "%YAML 3.0\n---\na: b": ("of directives only ", 1),
    "# c\n%YAML 1.1\n---\na: b": ("of directives only ", 2),
    "a: *x": ("alias `x` stands for nothing before it", 1),
    "a: b\nc: &x [d, *x]": ("alias `x` stands for nothing before it", 2),
    "&x {a: *x}": ("alias `x` stands for nothing before it", 1),
    "a: b\nc: \ufeffd": ("a byte order mark within the text", 2),
    "a: [b": ("not valid YAML: ", 0),
    "a: b: c": ("not valid YAML: mapping values are not allowed", 1),
    "a: 'b": ("not valid YAML: found unexpected end of stream", 1),
    "a: @b": ("not valid YAML: found character ", 1),
    "a: b\n- c": ("not valid YAML: ", 2),
    'a: "\\x"': ("not valid YAML: ", 1),
    'a: "\\q"': ("not valid YAML: ", 1),
    'a: "\\UFFFFFFFF"': ("not valid YAML", -1),
    'a: "\\U00110000"': ("not valid YAML", -1),
    'a: "\\ud83d\\ude00"': ("", 1),
    "a: b\nc: \x01": ("not valid YAML: ", 2),
    "a: \x7f": ("not valid YAML: ", 1),
    "a: \0b": ("not valid YAML: ", 1),
    "a: b\n" + "c" * 2000 + ": d\n": ("not valid YAML: ", -1),
}  # fmt: skip
"""Why, how it begins; the line, 0 where none is named or the two parsers name another, -1 where only one names it."""


@each_loader
@pytest.mark.parametrize("source", REFUSED, ids=lambda source: ascii(source[:60]))
def test_what_cannot_be_json_is_refused_by_line(source: str, loader: Any) -> None:
    error = refusal(source.encode(), loader)
    why, line = REFUSED[source]
    assert error.why.startswith(why)
    assert error.file == "x.yaml"
    if line > 0:
        assert error.where == f"line {line}"


@each_loader
def test_several_documents_are_read_where_that_is_asked_for(loader: Any) -> None:
    found = yamltext.loads_all(b"a: &x b\n---\na: &x c\nd: *x\n---\n", "", loader)
    assert typed(found) == typed([{"a": p("b")}, {"a": p("c"), "d": p("c")}, None])
    for data, why in ((b"# c", "no document"), (b"a: &x b\n---\nc: *x", "alias `x` stands for nothing before it")):
        with pytest.raises(SpecError, match=why):
            yamltext.loads_all(data, "", loader)


@each_loader
def test_limits_count_for_all_documents_together(loader: Any) -> None:
    most = yamltext.MAX_DOCUMENTS
    assert len(yamltext.loads_all(b"--- a\n" * most, "", loader)) == most
    with pytest.raises(SpecError, match=f"line {most + 1}: more than {most} documents"):
        yamltext.loads_all(b"--- a\n" * (most + 1), "", loader)
    part = b"---\na: &x [" + b"b," * 100 + b"]\nc: [" + b"*x," * 30 + b"]\n"  # 3,000 values
    with pytest.raises(SpecError, match=f"more than {yamltext.MAX_NODES} values"):
        yamltext.loads_all(part * 100, "", loader)


@each_loader
def test_what_is_not_utf_8_is_refused(loader: Any) -> None:
    for data in (b"a: b\nc: \xff", b"a: b\nc: \xed\xa0\x80"):
        error = refusal(data, loader)
        assert (error.why, error.where) == ("not UTF-8", "line 2")
    for encoding in ("utf-16", "utf-16-le", "utf-32"):
        refusal("a: b".encode(encoding), loader)


@pytest.mark.parametrize("source", ["a: b\t# c", "a:\tb", "a: |\n  b\tc", "a: 'b\tc'", "# a\tb\na: b"], ids=ascii)
def test_a_tab_is_left_to_libyaml(source: str) -> None:
    """The parser in Python takes other ones than that for the ends of words, so it is given none."""
    assert refusal(source.encode(), yaml.SafeLoader).why == "a tab, which is only taken where PyYAML has libyaml"
    if len(LOADERS) > 1:
        assert set(yamltext.loads(source.encode(), "", LOADERS[1])) == {"a"}


def test_python_s_parser_answers_as_libyaml_s_on_every_sample() -> None:
    for path in NODES:
        found = [typed(yamltext.loads(path.read_bytes(), "", loader)) for loader in LOADERS]
        assert all(each == found[0] for each in found)


def test_a_generic_reading_has_numbers_and_booleans() -> None:
    source = "[0, -5, 0x1F, 0666, 1.5, 1e3, true, False, yes, no, null, ~, '0', name, 08, 1.2.3, .inf, 1_0, 2001-01-01]"
    wanted = [0, -5, 31, 438, 1.5, 1000.0, True, False, "yes", "no", None, None, "0", "name", 8.0, "1.2.3", ".inf", 10]
    found = yamltext.generic(yamltext.loads(b"{a: %s}" % source.encode()))["a"]
    assert typed(found) == typed([*wanted, "2001-01-01"])


def test_without_pyyaml_the_error_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(SpecError) as caught:
        yamltext.loads(b"a: b", "x.yaml")
    assert (caught.value.file, caught.value.why) == ("x.yaml", "PyYAML is not installed")
    assert caught.value.line() == (
        "read CDI spec x.yaml: PyYAML is not installed (give the spec as JSON, or install PyYAML)"
    )


# --- in: limits -----------------------------------------------------------------------------------------------------

DEEP = {
    "brackets": b"[" * 1_000_000,
    "braces": b"{a: " * 1_000_000,
    "dashes": b"- " * 1_000_000,
    "question marks": b"? " * 1_000_000,
    "brackets on lines of their own": b"[\n" * 1_000_000,
    "a map in a map": b"".join(b" " * depth + b"a:\n" for depth in range(2000)),
}


@each_loader
@pytest.mark.parametrize("shape", DEEP)
def test_nesting_without_end_is_refused_early(shape: str, loader: Any) -> None:
    """By a limit, and not by what the stack holds: a million levels take no longer than the text's decoding."""
    start = time.process_time()
    error = refusal(DEEP[shape], loader)
    assert error.why in {"nested deeper than 64", "a key that is no string"}
    assert time.process_time() - start < 2


@each_loader
def test_depth_is_counted_where_it_stands(loader: Any) -> None:
    right = b"[" * yamltext.MAX_DEPTH + b"]" * yamltext.MAX_DEPTH
    assert yamltext.loads(right, "", loader)
    assert yamltext.loads(b"a: " + right[1:-1] + b"\nb: " + right[1:-1], "", loader)
    assert refusal(b"[" + right + b"]", loader).where == "line 1"


DEEP_EVENTS = """
import resource, sys, threading, yaml
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
sys.setrecursionlimit(200)
threading.stack_size(1 << 18)
def run():
    try:
        for event in yaml.parse("[" * {depth}, Loader=yaml.{loader}):
            pass
    except yaml.YAMLError:
        print("the end")
thread = threading.Thread(target=run)
thread.start()
thread.join()
"""


@each_loader
def test_the_parser_does_not_recurse(loader: Any) -> None:
    """On a stack of 256 KiB, with 200 Python frames, it comes to the end of brackets that our limit would not let by;
    of PyYAML's composers neither would."""
    depth = 800 if loader is yaml.SafeLoader else 20_000  # what takes some tenths of a second
    code = DEEP_EVENTS.format(depth=depth, loader=loader.__name__)
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "the end\n"), done.stderr


def bomb(levels: int, width: int) -> bytes:
    """width to the power of levels."""
    lines = [b"a0: &a0 [" + b",".join([b"x"] * width) + b"]"]
    lines += [b"a%d: &a%d [%s]" % (i, i, b",".join([b"*a%d" % (i - 1)] * width)) for i in range(1, levels)]
    return b"\n".join(lines)


@each_loader
@pytest.mark.parametrize("size", [(9, 10), (40, 2), (18, 4)], ids=str)
def test_aliases_count_as_what_they_stand_for(size: tuple[int, int], loader: Any) -> None:
    start = time.process_time()
    assert refusal(bomb(*size), loader).why.startswith(f"more than {yamltext.MAX_NODES} values, aliases counted as")
    assert time.process_time() - start < 1


@each_loader
def test_aliases_that_stand_for_little_are_taken(loader: Any) -> None:
    assert yamltext.loads(bomb(4, 10), "", loader)["a3"][9][9][9][9] == "x"


@each_loader
def test_values_are_counted(loader: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(yamltext, "MAX_NODES", 8)
    right = b"a: &x [b]\nc: *x\n"  # the whole, two keys, the list and what it holds, these again
    assert yamltext.loads(right, "", loader)
    assert refusal(right + b"d: e\n", loader).where == "line 3"
    assert refusal(b"[[], {}, a, 'b', null, 1, 2, 3]", loader).why.startswith("more than 8 values")


def test_a_text_as_long_as_may_be_has_an_end() -> None:
    for data in (b"[" + b"a," * (text.MAX_SPEC // 2 - 1), b"[" + b"[]," * (text.MAX_SPEC // 3 - 1)):
        assert refusal(data).why.startswith("more than 262144 values")


@each_loader
def test_anchors_are_counted(loader: Any) -> None:
    def anchors(count: int) -> bytes:
        return b"".join(b"- &a%d x\n" % i for i in range(count))

    assert len(yamltext.loads(anchors(yamltext.MAX_ANCHORS), "", loader)) == yamltext.MAX_ANCHORS
    assert refusal(anchors(yamltext.MAX_ANCHORS + 1), loader).why == "more than 1000 anchors"


def test_many_devices_are_read_in_a_moment() -> None:
    """200 devices of 25 lines: 14 ms, and 130 ms without libyaml; 2 ms as JSON."""
    node = {"path": "/dev/nvidia0", "major": 195, "fileMode": 438, "permissions": "rwm"}
    edits = {
        "deviceNodes": [node, {**node, "gid": 44}, node],
        "additionalGids": [44, 104, 105],
        "env": ["A=b", "C=d"],
    }
    devices = [{"name": str(i), "annotations": {"a": "b"}, "containerEdits": edits} for i in range(200)]
    doc = {"cdiVersion": "0.7.0", "kind": "nvidia.com/gpu", "devices": devices}
    written = yamlout.dumps(doc).encode()
    assert written.count(b"\n") > 200 * 24
    start = time.process_time()
    spec = text.loads(written)
    assert time.process_time() - start < 1
    assert len(spec.devices) == 200
    assert text.loads(text.dumps(spec, text.JSON).encode(), "x.json") == spec
