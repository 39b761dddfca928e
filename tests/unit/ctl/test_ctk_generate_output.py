"""`nvidia-ctk cdi generate`: where the output goes, in which form, and that it is written whole or not at all."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest
from unit.ctl.ctktools import (
    DONE,
    FOUND,
    JSON,
    SPEC,
    YAML,
    Ctk,
    Generator,
    ctk,
    generate,
    generator,
    lines,
    only_a_hook,
)

from nvoci.generate import specs

pytestmark = pytest.mark.usefixtures("only_a_hook")
__all__ = ["ctk", "generator", "only_a_hook"]

G = "NVIDIA_CTK_CDI_GENERATE_"
MISMATCH = 'warning: Requested output format "{}" does not match format implied by output file name: "{}"'
# words: the file, its content, what is told before the rest
FILES: dict[str, tuple[str, str, list[str]]] = {
    "rel": ("rel.yaml", YAML, []),
    "foo.yaml": ("foo.yaml", YAML, []),
    "foo.yml": ("foo.yml.yaml", YAML, []),
    "foo.json": ("foo.json", JSON, []),
    "foo.JSON": ("foo.JSON.json", JSON, []),
    "foo.txt": ("foo.txt.yaml", YAML, []),
    "a.d/foo": ("a.d/foo.yaml", YAML, []),
    "foo.d/b.c/x": ("foo.d/b.c/x.yaml", YAML, []),
    "rel --format json": ("rel.json", JSON, []),
    "rel --format JSON": ("rel.json", JSON, []),
    "foo.yaml --format Yaml": ("foo.yaml", YAML, []),
    "foo.yaml --format json": ("foo.yaml", YAML, [MISMATCH.format("json", "yaml")]),
    "foo.json --format yaml": ("foo.json", JSON, [MISMATCH.format("yaml", "json")]),
    "foo.yml --format json": ("foo.yml.json", JSON, [MISMATCH.format("json", "yaml")]),
}


@pytest.mark.parametrize("words", FILES)
def test_the_file_and_its_form(ctk: Ctk, generator: Generator, tmp_path: Path, words: str) -> None:
    name, content, told = FILES[words]
    before = set(tmp_path.rglob("*"))
    done = generate(ctk, "--output", *words.split())
    assert (done.rc, done.stdout, lines(done.stderr)) == (0, "", [*told, FOUND, DONE])
    assert (tmp_path / name).read_text() == content
    assert {path for path in set(tmp_path.rglob("*")) - before if path.is_file()} == {tmp_path / name}


def test_the_form_by_its_variable_is_as_good_as_a_word(
    ctk: Ctk, generator: Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"{G}OUTPUT_FORMAT", "JSON")
    monkeypatch.setenv("NVIDIA_CTK_CDI_OUTPUT_FILE_PATH", "x.yaml")
    assert lines(generate(ctk).stderr)[0] == MISMATCH.format("json", "yaml")
    assert (tmp_path / "x.yaml").read_text() == YAML
    assert generate(ctk, "--output=").stdout == JSON


def test_debug_says_what_the_name_implies(ctk: Ctk, generator: Generator) -> None:
    told = lines(ctk("--debug", "cdi", "generate", "--output", "x.json").stderr)
    assert told[0] == 'debug: Inferred output format as "json" from output file name'


def test_an_absolute_file_is_replaced_whole(ctk: Ctk, generator: Generator, tmp_path: Path) -> None:
    path = tmp_path / "deep/er/x.yaml"
    old = os.umask(0o077)
    try:
        assert generate(ctk, "--output", path).rc == 0
        inode = path.stat().st_ino
        path.chmod(0o600)
        assert generate(ctk, "--output", path).rc == 0
    finally:
        os.umask(old)
    assert path.stat().st_ino != inode
    assert oct(path.stat().st_mode) == oct(0o100644)
    assert [oct(each.stat().st_mode) for each in (path.parent, path.parent.parent)] == [oct(0o040755)] * 2
    assert [each.name for each in path.parent.iterdir()] == ["x.yaml"]


@pytest.mark.parametrize("words", [(), ("--format", "json")], ids=["YAML", "JSON"])
def test_split_specifications_follow_each_other_on_stdout(
    ctk: Ctk, generator: Generator, words: tuple[str, ...]
) -> None:
    generator.specs = coherent()
    done = generate(ctk, *words)
    parts = [(JSON if words else YAML).replace("nvidia.com/gpu", each.spec.kind) for each in generator.specs]
    parts[1:] = [part.replace("0.5.0", "0.6.0") for part in parts[1:]]
    assert done.stdout == "".join(parts)
    assert lines(done.stderr) == [FOUND, DONE, *[DONE.replace("0.5.0", "0.6.0")] * 2]


def coherent() -> list[specs.Named]:
    """Three, as the feature enable-coherent-annotations gives them."""
    parts = [dataclasses.replace(SPEC, kind=f"nvidia.com/gpu{suffix}", cdi_version="0.6.0")
             for suffix in (".coherent", ".noncoherent")]  # fmt: skip
    return [specs.Named("", SPEC), *[specs.Named(each.kind[len("nvidia.com/gpu") :], each) for each in parts]]


@pytest.mark.parametrize(
    ("output", "names"),
    [
        ("x.yaml", ["x.coherent.yaml", "x.noncoherent.yaml", "x.yaml"]),
        ("x.json", ["x.coherent.json", "x.json", "x.noncoherent.json"]),
        ("x", ["x.coherent.yaml", "x.noncoherent.yaml", "x.yaml"]),
        ("x.yml", ["x.coherent.yml.yaml", "x.noncoherent.yml.yaml", "x.yml.yaml"]),
    ],
)
def test_split_specifications_have_files_of_their_own(
    ctk: Ctk, generator: Generator, tmp_path: Path, output: str, names: list[str]
) -> None:
    generator.specs = coherent()
    assert generate(ctk, "--output", f"out/{output}").rc == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names


def test_none_of_them_is_written_if_one_is_not_valid(ctk: Ctk, generator: Generator, tmp_path: Path) -> None:
    generator.specs = coherent()
    bad = dataclasses.replace(generator.specs[2].spec, cdi_version="0.5.0")
    generator.specs[2] = specs.Named(".noncoherent", bad)
    for words in ((), ("--output", "out/x.yaml")):
        done = generate(ctk, *words)
        assert (done.rc, done.stdout) == (1, "")
        assert "the spec version must be at least v0.6.0" in done.stderr
    assert not (tmp_path / "out").exists()


def test_none_of_them_is_written_if_something_is_in_the_way_of_one(
    ctk: Ctk, generator: Generator, tmp_path: Path
) -> None:
    generator.specs = coherent()
    (tmp_path / "out/x.noncoherent.yaml").mkdir(parents=True)
    (tmp_path / "out").chmod(0o755)
    done = generate(ctk, "--output", "out/x.yaml")
    assert (done.rc, os.listdir(tmp_path / "out")) == (1, ["x.noncoherent.yaml"])
    assert "x.noncoherent.yaml: EISDIR" in done.stderr


def test_a_directory_that_others_can_write_is_told_of_and_written_to(
    ctk: Ctk, generator: Generator, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out").chmod(0o1777)
    done = generate(ctk, "--output", "out/x.yaml")
    told = lines(done.stderr)
    assert (done.rc, told[1:], (tmp_path / "out/x.yaml").read_text()) == (0, [FOUND, DONE], YAML)
    assert told[0].startswith(f"warning: write CDI spec {tmp_path}/out/x.yaml: directory {tmp_path}/out: uid ")
    assert "others can write it, so what is in it is not read" in told[0]
