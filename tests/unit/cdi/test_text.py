"""Texts and files: which format it is, what is no specification, which files are read; second witness: json."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from unit.cdi import strategies

from nvoci.cdi import document, text
from nvoci.cdi.error import FileError, SpecError
from nvoci.cdi.model import ContainerEdits, Device, DeviceNode, Spec

FAST = settings(max_examples=60, deadline=None)
HOOKS = Path(text.__file__).parents[2]
SPEC = Spec("0.3.0", "a/b", (Device("c", ContainerEdits(env=("A=b",))),))
AS_JSON = b'{"cdiVersion":"0.3.0","kind":"a/b","devices":[{"name":"c","containerEdits":{"env":["A=b"]}}]}'
AS_YAML = b"""\
---
cdiVersion: 0.3.0
kind: a/b
devices:
    - name: c
      containerEdits:
        env:
            - A=b
"""


def refusal(data: bytes, file: str = "", format: str = "") -> SpecError:
    with pytest.raises(SpecError) as caught:
        text.loads(data, file, format)
    return caught.value


# --- formats --------------------------------------------------------------------------------------------------------


def test_both_formats_are_written_as_they_are_read() -> None:
    assert text.dumps(SPEC).encode() == AS_YAML
    assert text.dumps(SPEC, text.JSON).encode() == AS_JSON
    assert text.loads(AS_YAML) == text.loads(AS_JSON) == SPEC


@pytest.mark.parametrize(
    ("file", "data", "format"),
    [
        ("x.json", b"---\n", "json"), ("x.yaml", b"{", "yaml"), ("x.yml", b"{", "yaml"), ("x", b" \n{", "json"),
        ("", b"---\n{", "yaml"), ("", b"", "yaml"), ("json", b"a: b", "yaml"), ("x.JSON", b"a: b", "yaml"),
    ],
)  # fmt: skip
def test_the_format_is_that_of_the_suffix_or_else_of_the_content(file: str, data: bytes, format: str) -> None:
    assert text.format_of(file, data) == format


def test_a_format_that_is_asked_for_goes_before_the_suffix() -> None:
    assert text.loads(AS_YAML, "x.json", text.YAML) == SPEC
    assert text.loads(AS_JSON, "x.yaml", text.JSON) == SPEC
    assert text.loads(AS_JSON, "x.yaml") == SPEC  # in YAML, too, this is a specification


@pytest.mark.parametrize(
    "call",
    [
        lambda: text.loads(b"{}", format="toml"), lambda: text.loads_object(b"{}", format="toml"),
        lambda: text.loads_all(b"{}", format="toml"), lambda: text.dumps(SPEC, "toml"),
    ],
)  # fmt: skip
def test_another_format_is_an_error(call: Callable[[], object]) -> None:
    with pytest.raises(SpecError, match="no such format: toml"):
        call()


@FAST
@given(strategies.loose_specs())
def test_json_is_on_one_line_and_reads_back(spec: Spec) -> None:
    written = text.dumps(spec, text.JSON)
    assert written.splitlines() == [written] or not written.isascii()  # U+2028 and the like stand as they are
    assert "\n" not in written
    assert json.loads(written) == document.to_object(spec)
    assert text.loads(written.encode(), format=text.JSON) == spec


@FAST
@given(strategies.specs())
def test_either_format_says_the_same(spec: Spec) -> None:
    found = [text.loads(text.dumps(spec, form).encode(), format=form) for form in text.FORMATS]
    assert found == [spec, spec]
    objects = [text.loads_object(text.dumps(spec, form).encode(), format=form) for form in text.FORMATS]
    assert objects == [document.to_object(spec)] * 2


def test_json_is_indented_where_that_is_asked_for() -> None:
    written = text.dumps(SPEC, text.JSON, indent=2)
    assert written == json.dumps(json.loads(AS_JSON), indent=2)


@pytest.mark.parametrize("form", text.FORMATS)
@pytest.mark.parametrize("path", ["/dev/\udce9", "/dev/a\0"], ids=ascii)
def test_a_path_that_no_text_can_hold_is_not_written(form: str, path: str) -> None:
    nodes = (DeviceNode("/dev/a"), DeviceNode(path))
    with pytest.raises(SpecError) as caught:
        text.dumps(Spec("0.3.0", "a/b", (Device("c", ContainerEdits(device_nodes=nodes)),)), form)
    assert caught.value.where == "devices[0].containerEdits.deviceNodes[1].path"


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "not valid JSON: no value at character 0"),
        (b"{", "not valid JSON: "),
        (b'{"kind":"a/b",}', "not valid JSON: "),
        (b'{"kind":"a/b"} x', "not valid JSON: more text after the value, at character 14"),
        (b'{"kind":"a","kind":"b"}', "not valid JSON: key `kind` is given twice"),
        (b'{"devices":[{"name":"a","name":"a"}]}', "not valid JSON: key `name` is given twice"),
        (b'{"kind":NaN}', "not valid JSON: NaN is not JSON"),
        (b'{"kind":"\xff"}', "not valid JSON: not UTF-8"),
        (b"[" * 1_000_000, "not valid JSON: nested too deeply"),
        (b'{"a":' * 800_000, "not valid JSON: nested too deeply"),
        (b"[]", "a list, not an object"),
    ],
    ids=lambda value: value[:20] if isinstance(value, bytes) else "",
)
def test_what_is_no_json_is_refused(data: bytes, why: str) -> None:
    error = refusal(data, "x.json")
    assert error.why.startswith(why)
    assert error.file == "x.json"


@pytest.mark.parametrize("name", [b"0", b"true", b"1.5"])
def test_json_has_no_plain_scalars(name: bytes) -> None:
    assert refusal(b'{"devices":[{"name":%s}]}' % name).where == "devices[0].name"
    assert text.loads(b"devices: [{name: %s}]" % name).devices[0].name == name.decode()


@pytest.mark.parametrize("form", text.FORMATS)
def test_a_text_that_is_too_long_is_refused_unread(form: str) -> None:
    full = (AS_JSON if form == text.JSON else AS_YAML).ljust(text.MAX_SPEC)
    assert text.loads(full, format=form) == SPEC
    assert refusal(full + b" ", "x", form).message == f"CDI spec x: longer than {text.MAX_SPEC} bytes"


def test_several_documents_are_several_specifications() -> None:
    other = AS_YAML.replace(b"kind: a/b", b"kind: a/c")
    found = text.loads_all(AS_YAML + other, "x.yaml")
    assert [spec.kind for spec in found] == ["a/b", "a/c"]
    assert text.loads_all(AS_YAML) == text.loads_all(AS_JSON) == [SPEC]
    assert refusal(AS_YAML + other).why == "more than one document"


@pytest.mark.parametrize(
    ("data", "where"),
    [
        (AS_YAML + AS_YAML.replace(b"name: c", b"name: 0x1"), "document 2: devices[0].name"),
        (AS_YAML + b"---\n- a\n", "document 2"),
        (AS_YAML.replace(b"name: c", b"name: 0x1"), "devices[0].name"),
        (AS_YAML + b"--- [", "line 10"),
    ],
    ids=["a value", "no object", "the only one", "no YAML"],
)
def test_what_is_wrong_in_one_of_several_documents_has_its_number(data: bytes, where: str) -> None:
    with pytest.raises(SpecError) as caught:
        text.loads_all(data, "x.yaml")
    assert (caught.value.file, caught.value.where) == ("x.yaml", where)


def test_several_documents_together_are_no_longer_than_one() -> None:
    with pytest.raises(SpecError, match="longer than"):
        text.loads_all(AS_YAML * (text.MAX_SPEC // len(AS_YAML) + 1))


def test_a_byte_order_mark_is_passed_over() -> None:
    for data in (AS_JSON, AS_YAML):
        assert text.loads(b"\xef\xbb\xbf" + data, "x.json" if data == AS_JSON else "x.yaml") == SPEC


# --- files ----------------------------------------------------------------------------------------------------------


def test_a_file_is_read_also_through_links(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes(AS_YAML)
    (tmp_path / "b.yaml").symlink_to("a.yaml")
    (tmp_path / "c.json").symlink_to(tmp_path / "b.yaml")
    assert text.read(str(tmp_path / "a.yaml")) == text.read(str(tmp_path / "b.yaml")) == SPEC
    with pytest.raises(SpecError, match="not valid JSON"):  # the name that is asked for decides
        text.read(str(tmp_path / "c.json"))


def a_gigabyte(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 30)


def a_socket(path: Path) -> None:
    here = os.open(path.parent, os.O_PATH)
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(f"/proc/self/fd/{here}/{path.name}")
    os.close(here)


FILES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "1 GiB": (a_gigabyte, "EFBIG"),
    "a FIFO": (os.mkfifo, "EINVAL (not a regular file)"),
    "a directory": (Path.mkdir, "EINVAL (not a regular file)"),
    "a socket": (a_socket, "EINVAL (not a regular file)"),
    "a link to a device": (lambda path: path.symlink_to("/dev/zero"), "EINVAL (not a regular file)"),
    "a link to a FIFO": (
        lambda path: (os.mkfifo(path.with_name("f")), path.symlink_to("f")), "EINVAL (not a regular file)",
    ),
    "a link to nothing": (lambda path: path.symlink_to("nothing"), "ENOENT"),
    "a link to itself": (lambda path: path.symlink_to(path.name), "ELOOP"),
    "nothing": (lambda path: None, "ENOENT"),
}  # fmt: skip


@pytest.mark.parametrize("kind", FILES)
def test_what_is_no_file_of_a_spec_is_refused_at_once(tmp_path: Path, kind: str) -> None:
    make, why = FILES[kind]
    path = tmp_path / "x.yaml"
    make(path)
    with pytest.raises(FileError) as caught:
        text.read(str(path))
    assert caught.value.line().startswith(f"read CDI spec {path}: {why}")
    assert (caught.value.file, caught.value.where) == (str(path), "")
    assert why.startswith(caught.value.why)
    assert caught.value.with_file("y").message == f"read CDI spec y: {caught.value.why}"


def test_an_error_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("kind: a/b\ncdiVersion: 0.3.0\nkinds: c\n")
    with pytest.raises(SpecError) as caught:
        text.read(str(path))
    assert caught.value.message == f"CDI spec {path}: unknown field `kinds`"


# --- cost -----------------------------------------------------------------------------------------------------------


def test_json_is_read_without_the_packages_for_yaml_and_json() -> None:
    code = f"""import sys
sys.path.insert(0, {str(HOOKS)!r})
from nvoci.cdi import text
text.loads({AS_JSON!r})
print(sorted(set(sys.modules) & {{"json", "yaml", "subprocess", "pathlib"}}))"""
    done = subprocess.run([sys.executable, "-I", "-S", "-B", "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")
