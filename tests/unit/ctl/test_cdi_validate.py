"""`nvoci cdi validate`: each problem once, and what is right and yet not for every engine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from unit.ctl.conftest import Invoke
from unit.ctl.ctktools import JSON

NO_OBJECTS = ["[]", "7", "null", '"a"', "- a", "a"]


@pytest.mark.parametrize("text", NO_OBJECTS)
@pytest.mark.parametrize("where", ["a file", "a directory"])
def test_a_document_that_is_no_object_is_told_of_once(nvoci: Invoke, tmp_path: Path, text: str, where: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(text)
    path.chmod(0o644)
    result = nvoci("cdi", "validate", *([path] if where == "a file" else ["--spec-dir", tmp_path]))
    (line,) = [line for line in result.stderr.splitlines() if str(path) in line]
    assert (result.rc, line.startswith(f"CDI spec {path}: ")) == (1, True)


# kind: what is said of it
SHORT = {
    "a/gpu": "vendor `a` is of one character",
    "a.org/b": "class `b` is of one character",
    "a/b": "vendor `a` and class `b` are each of one character",
}


@pytest.mark.parametrize("kind", SHORT)
@pytest.mark.parametrize("where", ["a file", "a directory"])
def test_a_name_that_ends_old_engines_is_a_warning_and_valid(
    nvoci: Invoke, tmp_path: Path, kind: str, where: str
) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps({**json.loads(JSON), "kind": kind}))
    path.chmod(0o644)
    result = nvoci("cdi", "validate", *([path] if where == "a file" else ["--spec-dir", tmp_path]))
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"nvoci: warning: CDI spec {path}: {SHORT[kind]}: ")
    assert (result.rc, f"{path}: valid" in result.stdout) == (0, True)
