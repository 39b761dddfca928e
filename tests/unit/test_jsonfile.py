"""Strict, bounded JSON: the private scanner against `json`, and host files read and replaced."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lib import session

from nvoci import jsonfile
from nvoci.errors import HookError

FAST = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

# Documents that both read, to the same value and the same types.
SAME: dict[str, bytes] = {
    name: text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    for name, text in {
        "object": '{"a": 1, "b": [true, false, null]}', "empty object": "{}", "empty list": "[]", "empty string": '""',
        "white space": ' \t\r\n{ "a" :\n[ 1 , 2 ] } \n', "number": "0", "negative": "-12", "minus zero": "-0",
        "float": "1.5", "exponent": "1e3", "small": "1E-400", "minus zero float": "-0.0", "64 digits": "9" * 64,
        "escapes": r'"\"\\\/\b\f\n\r\t\u00e9"', "pair": r'"\ud83d\ude00"', "lone surrogate": r'"\ud800"',
        "escaped NUL": r'"\u0000"', "DEL": '"\x7f"', "raw unicode": '"\u9a71\U0001f600\u2028\u202e"',
        "keys that differ in case": '{"a": 1, "A": 2}', "nested": "[" * 200 + "]" * 200, "empty key": '{"": {}}',
        "same key at two levels": '{"a": {"a": 1}}', "__proto__": '{"__class__": 1}',
        "long string": '"%s"' % ("x" * 99999),
    }.items()
}  # fmt: skip

# Documents that `json` refuses, or that only we do.
REFUSED: dict[str, bytes] = {
    name: text.encode() if isinstance(text, str) else text
    for name, text in {
        "nothing": "", "white space": " \n", "word": "nul", "capital": "True", "single quotes": "{'a': 1}",
        "trailing comma": "[1,]", "trailing comma in an object": '{"a": 1,}', "two commas": "[1,,2]",
        "no colon": '{"a" 1}',
        "no value": '{"a":}', "no key": "{1: 2}", "open list": "[1", "open object": '{"a": 1', "open string": '"a',
        "only a quote": '"', "bad escape": r'"\x"', "half an escape": r'"\u12"', "raw newline": '"a\nb"',
        "raw NUL": '"\0"', "leading zero": "01", "plus": "+1", "dot": ".5", "dot at the end": "1.",
        "hexadecimal": "0x1",
        "lone minus": "-", "exponent without digits": "1e", "comment": "{} // x", "two values": "{} {}", "bracket": "]",
        "form feed": "\x0c{}", "no-break space": "\u00a0{}", "byte order mark": b"\xef\xbb\xbf{}",
        "not UTF-8": b'"\xff"',
        "overlong": b'"\xc0\xaf"', "surrogate in UTF-8": b'"\xed\xa0\x80"', "UTF-16": "{}".encode("utf-16"),
        "NUL behind": "{}\0",
        # ours alone
        "key twice": '{"a": 1, "a": 1}', "key twice, deep": '[{"b": {"a": 1, "x": 2, "a": 3}}]',
        "key twice, escaped": r'{"a": 1, "\u0061": 2}', "NaN": "NaN", "Infinity": "[Infinity]",
        "-Infinity": '{"a": -Infinity}', "1e999": "1e999", "-1e999": "-1e999", "65 digits": "9" * 65,
        "a million digits": "9" * 1_000_000, "long float": "0." + "1" * 70, "deep lists": "[" * 200_000,
        "deep objects": '{"a":' * 200_000, "deep and closed": "[" * 200_000 + "]" * 200_000,
    }.items()
}  # fmt: skip
OURS_ALONE = {"key twice", "key twice, deep", "key twice, escaped", "NaN", "Infinity", "-Infinity", "1e999", "-1e999",
              "65 digits", "a million digits", "long float"}  # fmt: skip


def _fallback() -> Any:
    return json.JSONDecoder(object_pairs_hook=jsonfile._pairs, parse_int=jsonfile._int, parse_float=jsonfile._float,
                            parse_constant=jsonfile._constant).scan_once  # type: ignore[attr-defined]  # fmt: skip


@pytest.fixture(params=["_json", "json"])
def loads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], Any]:
    if request.param == "json":
        monkeypatch.setitem(sys.modules, "_json", None)
    return jsonfile.loads


def _typed(value: Any) -> Any:
    """Equal only for equal types and signs: 1 and 1.0, 0.0 and -0.0, True and 1 differ."""
    if isinstance(value, dict):
        return {key: _typed(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_typed(item) for item in value]
    return type(value).__name__, repr(value)


@pytest.mark.parametrize("data", SAME.values(), ids=SAME)
def test_a_document_is_read_as_json_reads_it(loads: Callable[[bytes], Any], data: bytes) -> None:
    assert _typed(loads(data)) == _typed(json.loads(data))


@pytest.mark.parametrize("data", REFUSED.values(), ids=REFUSED)
def test_a_document_is_refused_with_a_short_reason(loads: Callable[[bytes], Any], data: bytes) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011  # the reason differs with the interpreter
        loads(data)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    "name", sorted(set(REFUSED) - OURS_ALONE - {"byte order mark", "UTF-16", "surrogate in UTF-8"})
)
def test_what_is_refused_without_a_reason_of_ours_json_refuses_too(name: str) -> None:
    with pytest.raises((ValueError, RecursionError)):
        json.loads(REFUSED[name].decode("utf-8"))


def test_the_fallback_is_taken_where_the_private_scanner_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert type(jsonfile._make_scanner()).__module__ == type(_fallback()).__module__
    monkeypatch.setitem(sys.modules, "_json", None)
    assert jsonfile.loads(b'{"a": [1, 2.5]}') == {"a": [1, 2.5]}


VALUES = st.recursive(
    st.none() | st.booleans() | st.text() | st.integers(-(10**63) + 1, 10**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20)  # fmt: skip


@FAST
@given(VALUES, st.sampled_from([None, 2]), st.booleans())
def test_any_value_is_read_back_as_json_wrote_it(value: Any, indent: int | None, ascii_only: bool) -> None:
    data = json.dumps(value, indent=indent, ensure_ascii=ascii_only).encode()
    assert _typed(jsonfile.loads(data)) == _typed(value)


TOKENS = [
    "{",
    "}",
    "[",
    "]",
    ",",
    ":",
    '"a"',
    '"b"',
    "1",
    "-1.5",
    "true",
    "null",
    " ",
    "\n",
    "NaN",
    '"\\u00',
    "e",
    "-",
    "0",
]


@FAST
@given(st.lists(st.sampled_from(TOKENS), max_size=12).map("".join) | st.text(max_size=12))
def test_any_text_is_accepted_or_refused_as_json_does(text: str) -> None:
    if "\ud800" <= max(text, default="") <= "\udfff" or any("\ud800" <= c <= "\udfff" for c in text):
        return
    try:
        expected = json.loads(text, object_pairs_hook=jsonfile._pairs, parse_constant=jsonfile._constant)
    except ValueError:
        with pytest.raises(ValueError):  # noqa: PT011
            jsonfile.loads(text.encode())
    else:
        assert _typed(jsonfile.loads(text.encode())) == _typed(expected)


@FAST
@given(st.binary(max_size=40))
def test_any_bytes_are_a_value_or_a_value_error(data: bytes) -> None:
    try:
        value = jsonfile.loads(data)
    except ValueError:
        return
    assert not isinstance(value, float) or math.isfinite(value)


# -- other interpreters --------------------------------------------------------------------------------------------

_SCRIPT = """
import sys
sys.path.insert(0, sys.argv[1])
from nvoci import jsonfile
before = "json" in sys.modules
out = []
for line in sys.stdin:
    try:
        out.append(repr(jsonfile.loads(bytes.fromhex(line.strip()))))
    except ValueError as e:
        out.append("refused")
import json
print(json.dumps([before, out]))
"""


@pytest.mark.parametrize("version", ["3.9", "3.10", "3.11", "3.12", "3.13"])
def test_other_interpreters_agree(version: str) -> None:
    found = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python{version}"))
    if not found:
        pytest.skip(f"Python {version} is not below ~/.pyenv/versions")
    documents = [*SAME.values(), *REFUSED.values()]
    result = subprocess.run([found[0], "-ISBc", _SCRIPT, session.HOOKS], input="\n".join(d.hex() for d in documents),
                            capture_output=True, text=True, timeout=60)  # fmt: skip
    assert (result.returncode, result.stderr) == (0, "")
    json_was_loaded, out = json.loads(result.stdout)
    assert not json_was_loaded
    expected = [repr(json.loads(d)) for d in SAME.values()] + ["refused"] * len(REFUSED)
    assert dict(zip([*SAME, *REFUSED], out, strict=False)) == dict(zip([*SAME, *REFUSED], expected, strict=False))


# -- objects and files ---------------------------------------------------------------------------------------------

OBJECTS = {
    "list": (b"[]", "read x a\\nb: not a JSON object (look)"),
    "null": (b"null", "read x a\\nb: not a JSON object (look)"),
    "not UTF-8": (b"\xff", "read x a\\nb: not valid JSON: not UTF-8 (look)"),
    "a hostile key twice": (b'{"\\u001b": 1, "\\u001b": 2}', "not valid JSON: key `\\x1b` is given twice"),
}


@pytest.mark.parametrize(("data", "reason"), OBJECTS.values(), ids=OBJECTS)
def test_an_object_is_asked_for_and_the_refusal_names_stage_and_file(data: bytes, reason: str) -> None:
    with pytest.raises(HookError) as caught:
        jsonfile.load_object(data, "read x", "a\nb", "look")
    assert reason in caught.value.line()


def _fifo(path: Path) -> None:
    os.mkfifo(path)


FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda path: None, "ENOENT"),
    "FIFO": (_fifo, "EINVAL (not a regular file)"),
    "directory": (lambda path: path.mkdir(), "EINVAL (not a regular file)"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "EINVAL (not a regular file)"),
    "loop": (lambda path: path.symlink_to(path), "ELOOP"),
    "a byte too long": (lambda path: path.write_bytes(b"x" * 11), "EFBIG (at most 10 bytes are read)"),
    "1 TiB sparse": (lambda path: (path.touch(), os.truncate(path, 1 << 40)), "EFBIG (at most 10 bytes are read)"),
    "others can write": (lambda path: (path.touch(), path.chmod(0o602)), "mode 0602: others can write it"),
    "another owner": (lambda path: (path.touch(), os.chown(path, 1234, 0)), "owned by uid 1234"),
}  # fmt: skip


@pytest.mark.parametrize(("make", "reason"), FILES.values(), ids=FILES)
def test_a_file_that_is_not_to_be_read_is_refused(tmp_path: Path, make: Callable[[Path], object], reason: str) -> None:
    path = tmp_path / "x"
    make(path)
    with pytest.raises(HookError) as caught:
        jsonfile.read_file(str(path), 10, "read x", refuse_mode=0o002, owners=(0,))
    assert caught.value.line().startswith(f"read x {path}: ")
    assert reason in caught.value.line()


@pytest.mark.parametrize("name", ["a\0b", "x" * 300, "", "\ud800"], ids=ascii)
def test_a_name_that_no_file_can_have_is_an_error(name: str) -> None:
    with pytest.raises(HookError, match=r"^read x\b"):
        jsonfile.read_file(name, 10, "read x")


def test_a_file_of_exactly_the_limit_is_read_and_no_descriptor_is_left(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"x" * 10)
    before = len(os.listdir("/proc/self/fd"))
    assert jsonfile.read_file(str(tmp_path / "x"), 10, "read") == b"x" * 10
    for make, _ in FILES.values():
        path = tmp_path / session.unique("f")
        make(path)
        with pytest.raises(HookError):
            jsonfile.read_file(str(path), 9, "read", refuse_mode=0o002, owners=(0,))
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(("times", "is_read"), [(1, True), (5, True), (1000, False)])
def test_a_file_that_is_replaced_while_it_is_opened_is_looked_at_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int, is_read: bool
) -> None:
    path, left, real = tmp_path / "x", [times], os.open
    path.write_text("old")

    def replacing(name: str, flags: int) -> int:
        fd = real(name, flags)
        if flags & os.O_PATH and left[0]:
            left[0] -= 1
            (tmp_path / "new").write_text("new")
            (tmp_path / "new").rename(path)
        return fd

    monkeypatch.setattr(jsonfile.posix, "open", replacing)
    before = len(os.listdir("/proc/self/fd"))
    if is_read:
        assert jsonfile.read_file(str(path), 10, "read x") == b"new"
    else:
        with pytest.raises(HookError, match=r"^read x .*/x: replaced while it was opened, again and again$"):
            jsonfile.read_file(str(path), 10, "read x")
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("mode", [0o600, 0o644, 0o4755])
def test_a_file_is_replaced_with_exactly_its_mode_and_nothing_is_left(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "x"
    path.write_text("old")
    kept = path.open()
    previous = os.umask(0o777)
    try:
        jsonfile.write_atomic(str(path), b"new", mode)
    finally:
        os.umask(previous)
    with kept:
        assert kept.read() == "old"
    assert (path.read_text(), path.stat().st_mode & 0o7777, os.listdir(tmp_path)) == ("new", mode, ["x"])


def test_a_link_is_replaced_not_followed(tmp_path: Path) -> None:
    (tmp_path / "x").symlink_to("target")
    jsonfile.write_atomic(str(tmp_path / "x"), b"new")
    assert not (tmp_path / "target").exists()
    assert not (tmp_path / "x").is_symlink()


def test_a_failing_replacement_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    with pytest.raises(OSError, match="directory"):
        jsonfile.write_atomic(str(tmp_path / "x"), b"new")
    assert os.listdir(tmp_path) == ["x"]
    with pytest.raises(FileNotFoundError):
        jsonfile.write_atomic(str(tmp_path / "none" / "x"), b"new")


def test_a_relative_path_is_one_in_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its temporary too: it is not on another file system then, nor where only root may write."""
    (tmp_path / "d").mkdir()
    monkeypatch.chdir(tmp_path)
    opened, real = [], os.open

    def noting(name: str, flags: int, mode: int = 0o777) -> int:
        opened.append(os.path.dirname(name) if flags & os.O_CREAT else name)
        return real(name, flags, mode)

    monkeypatch.setattr(jsonfile.posix, "open", noting)
    for name in ("x", "d/x", "./x"):
        jsonfile.write_atomic(name, name.encode())
        assert (tmp_path / name).read_bytes() == name.encode()
    assert opened == [".", ".", "d", "d", ".", "."]
    assert sorted(os.listdir(tmp_path)) == ["d", "x"]


PATHS = {"plain": ("/a", "/a"), "unicode": ("/\u00e9", "/\u00e9"), "empty": ("", "")}


@pytest.mark.parametrize(("text", "path"), PATHS.values(), ids=PATHS)
def test_a_path_out_of_a_document_names_the_same_bytes(text: str, path: str) -> None:
    assert os.fsencode(jsonfile.path_from_json(text)) == path.encode()


def test_under_a_latin_1_locale_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "getfilesystemencoding", lambda: "latin-1")
    assert jsonfile.path_from_json("/\u00e9\u9a71").encode("latin-1") == "/\u00e9\u9a71".encode()


@pytest.mark.parametrize("text", ["/a\0b", "/\ud800", "\udcff"], ids=ascii)
def test_a_path_that_no_file_can_have_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        jsonfile.path_from_json(text)
