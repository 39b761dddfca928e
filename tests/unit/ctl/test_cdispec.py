"""CDI specs in JSON and YAML: read as an engine's own, and made into entries."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from nvoci.cdi.error import SpecError
from nvoci.cdi.text import MAX_SPEC
from nvoci.ctl import cdispec
from nvoci.errors import HookError
from nvoci.oci import hooksd

YAML = """---
cdiVersion: 0.6.0
kind: nvidia.com/gpu
devices:
    - name: "0"
      containerEdits:
        deviceNodes:
            - path: /dev/nvidia0
    - name: all
      containerEdits:
        env:
            - A=1
containerEdits:
    hooks:
        - hookName: createContainer
          path: /usr/bin/nvidia-ctk
          args: [nvidia-ctk, hook, update-ldcache, --folder, /usr/lib]
          env:
            - NVIDIA_CTK_DEBUG=false
"""


def write(path: Path, text: str) -> str:
    path.write_text(text)
    path.chmod(0o644)
    return str(path)


def document(*hooks: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Of a valid spec with these hooks for all."""
    devices = [{"name": "d", "containerEdits": {"env": ["A=1"]}}]
    return {"cdiVersion": "0.5.0", "kind": "a.org/b", "devices": devices, "containerEdits": {"hooks": hooks}, **more}


def test_yaml_and_json_give_the_same_entries(tmp_path: Path) -> None:
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
    as_yaml = cdispec.read(write(tmp_path / "s.yaml", YAML))
    as_json = cdispec.read(write(tmp_path / "s.json", json.dumps(yaml.safe_load(YAML))))
    made = [cdispec.entries(spec, (), hooksd.When(always=True)) for spec in (as_yaml, as_json)]
    assert [(name, e.document()) for name, e in made[0]] == [(name, e.document()) for name, e in made[1]]
    assert [name for name, _ in made[0]] == ["50-nvoci-nvidia.com-gpu-000-update-ldcache.json"]


def test_json_under_another_name_needs_no_yaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "yaml", None)
    assert cdispec.read(write(tmp_path / "s.spec", f" {json.dumps(document())}")).spec.kind == "a.org/b"


def test_yaml_without_pyyaml_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(HookError) as e:
        cdispec.read(write(tmp_path / "s.yaml", YAML))
    assert e.value.line().endswith("PyYAML is not installed (give the spec as JSON, or install PyYAML)")


@pytest.mark.parametrize(
    "text",
    ["a: [", "- a", "!!python/object/apply:os.system ['true']", "a: " + "[" * 1_000_000, "\x00", ""],
    ids=lambda text: ascii(text[:40]),
)
def test_bad_yaml_is_one_line(tmp_path: Path, text: str) -> None:
    pytest.importorskip("yaml", reason="PyYAML is not installed")
    with pytest.raises(HookError) as e:
        cdispec.read(write(tmp_path / "s.yaml", text))
    assert f"CDI spec {tmp_path}/s.yaml: " in e.value.line()
    assert "\n" not in e.value.line()


def test_a_spec_larger_than_the_limit_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    with path.open("wb") as file:
        file.truncate(MAX_SPEC + 1)
    with pytest.raises(HookError, match="EFBIG"):
        cdispec.read(str(path))


HOOK = {"hookName": "createContainer", "path": "/bin/true"}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a version that there is not": (document(HOOK, cdiVersion="9.0.0"), 'cdiVersion: invalid version "9.0.0"'),
    "a version too low": (document(HOOK, annotations={"a": "b"}), "the spec version must be at least v0.6.0"),
    "a kind that is none": (document(HOOK, kind="a.org/b-"), "kind: class `b-`"),
    "an unknown field": (document(HOOK, hooks=[]), "hooks"),
    "an unknown field of a hook": (document({**HOOK, "arg": []}), "arg"),
    "no devices": (document(HOOK, devices=[]), "devices: invalid spec, no devices"),
    "what is no hook's": (document(HOOK, devices=[{"name": "d"}]), "invalid device, empty device edits"),
}


@pytest.mark.parametrize(("doc", "why"), REFUSED.values(), ids=REFUSED)
def test_a_spec_that_no_engine_would_read_is_refused_whole(tmp_path: Path, doc: dict[str, Any], why: str) -> None:
    path = write(tmp_path / "s.json", json.dumps(doc))
    with pytest.raises(SpecError, match=re.escape(why)) as e:
        cdispec.read(path)
    assert e.value.line().startswith(f"CDI spec {path}: ")


@pytest.mark.parametrize("mode", [0o664, 0o646], ids=oct)
def test_a_spec_that_others_can_write_is_refused(tmp_path: Path, mode: int) -> None:
    path = write(tmp_path / "s.json", json.dumps(document(HOOK)))
    Path(path).chmod(mode)
    with pytest.raises(SpecError, match="others can write it"):
        cdispec.read(path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_spec_of_somebody_else_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "s.json", json.dumps(document(HOOK)))
    os.chown(path, 12345, -1)
    with pytest.raises(SpecError, match="owned by uid 12345"):
        cdispec.read(path)


def test_what_is_no_hook_is_called_what_the_specification_calls_it(tmp_path: Path) -> None:
    edits = {"deviceNodes": [{"path": "/dev/x"}], "additionalGids": [], "hooks": [HOOK]}
    doc = document(HOOK, devices=[{"name": "d", "containerEdits": edits}])
    source = cdispec.read(write(tmp_path / "s.json", json.dumps(doc)))
    assert cdispec.others(cdispec.choose(source, ())) == []
    assert cdispec.others(cdispec.choose(source, ["d"])) == ["deviceNodes"]


def test_a_title_is_a_plain_name(tmp_path: Path) -> None:
    hooks = [
        {"hookName": "poststop", "path": "/a/b c", "args": args}
        for args in ([], ["x", "../e/f"], ["x", "hook", "-v", "g"])
    ]
    source = cdispec.read(write(tmp_path / "s.json", json.dumps(document(*hooks))))
    made = cdispec.entries(source, (), hooksd.When(always=True))
    assert [name for name, _ in made] == [f"50-nvoci-a.org-b-00{n}.json" for n in ("0-b-c", "1-e-f", "2-g")]
    assert all(hooksd.file_name(name) == name for name, _ in made)
