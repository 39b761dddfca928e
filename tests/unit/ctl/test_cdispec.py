"""CDI specs in JSON and YAML."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

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
    hooks:
        - hookName: createContainer
          path: /usr/bin/nvidia-ctk
          args: [nvidia-ctk, hook, update-ldcache, --folder, /usr/lib]
          env:
            - NVIDIA_CTK_DEBUG=false
"""


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def test_yaml_and_json_give_the_same_entries(tmp_path: Path) -> None:
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
    as_yaml = cdispec.read(write(tmp_path / "s.yaml", YAML))
    as_json = cdispec.read(write(tmp_path / "s.json", json.dumps(yaml.safe_load(YAML))))
    made = [cdispec.entries(spec, (), hooksd.When(always=True)) for spec in (as_yaml, as_json)]
    assert [(name, e.document()) for name, e in made[0]] == [(name, e.document()) for name, e in made[1]]
    assert [name for name, _ in made[0]] == ["50-nvoci-nvidia.com-gpu-000-update-ldcache.json"]


def test_json_under_another_name_needs_no_yaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "yaml", None)
    assert cdispec.read(write(tmp_path / "s.spec", ' {"kind": "v/c"}')).kind == "v/c"


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


def test_a_title_is_a_plain_name(tmp_path: Path) -> None:
    hooks = [
        {"hookName": "poststop", "path": "/a/b c", "args": args}
        for args in ([], ["x", "../e/f"], ["x", "hook", "-v", "g"])
    ]
    spec = cdispec.read(write(tmp_path / "s.json", json.dumps({"kind": "v/c", "containerEdits": {"hooks": hooks}})))
    made = cdispec.entries(spec, (), hooksd.When(always=True))
    assert [name for name, _ in made] == [f"50-nvoci-v-c-00{n}.json" for n in ("0-b-c", "1-e-f", "2-g")]
    assert all(hooksd.file_name(name) == name for name, _ in made)
