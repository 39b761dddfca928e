"""What the name of an output file says, where one may be, and that several are written together or not at all."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest
from unit.ctl.ctktools import SPEC, YAML

from nvoci.ctl import specout
from nvoci.errors import HookError

# name: suffix, form, name with .x
NAMES = {
    "a.yaml": (".yaml", "yaml", "a.x.yaml"),
    "a.yml": (".yml", "yaml", "a.x.yml"),
    "a.JSON": (".JSON", "json", "a.x.JSON"),
    "a": ("", "", "a.x"),
    "a.": (".", "", "a.x."),
    "a.b.json": (".json", "json", "a.b.x.json"),
    "a.d/b": ("", "", "a.d/b.x"),
    "/a.d/.yaml": (".yaml", "yaml", "/a.d/.x.yaml"),
    "": ("", "", ".x"),
}


@pytest.mark.parametrize("name", NAMES)
def test_a_name_has_a_suffix_and_may_have_a_form(name: str) -> None:
    assert (specout.suffix(name), specout.format_of(name), specout.infixed(name, ".x")) == NAMES[name]


def test_a_bare_name_is_one_in_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert specout.place("a", "json") == f"{tmp_path}/a.json"
    assert specout.place("/x/a.yaml", "json") == "/x/a.yaml"


@pytest.mark.parametrize("name", ["a/", "/", "a\0b"])
def test_a_name_of_no_file_is_refused(name: str) -> None:
    with pytest.raises(HookError, match="not the name of a file"):
        specout.place(name, "yaml")


@pytest.mark.parametrize("name", ["a\n.yaml", "x/\x1b", "\x7f.json"], ids=ascii)
def test_a_name_that_no_specification_has_is_refused_as_early(name: str) -> None:
    with pytest.raises(HookError, match="is no name for a specification"):
        specout.place(name, "yaml")


# -- directories ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [0o775, 0o757, 0o1777], ids=oct)
def test_a_directory_that_others_can_write_is_no_place(tmp_path: Path, mode: int) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d").chmod(mode)
    with pytest.raises(HookError, match=f"directory {tmp_path}/d: uid .*, mode {mode:04o}"):
        specout.check_directory(f"{tmp_path}/d/a.yaml")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_a_directory_of_somebody_else_is_no_place(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir(mode=0o755)
    os.chown(tmp_path / "d", 12345, -1)
    with pytest.raises(HookError, match="uid 12345"):
        specout.check_directory(f"{tmp_path}/d/a.yaml")


def test_a_directory_of_ours_or_one_to_be_made_is_a_place(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir(mode=0o755)
    for name in ("d", "gone", "gone/deeper"):
        specout.check_directory(f"{tmp_path}/{name}/a.yaml")


# -- several files ----------------------------------------------------------------------------------------------------

OLD = "as it was"


def outputs(top: Path, *names: str) -> list[specout.Output]:
    return [specout.Output(f"{top}/{name}", SPEC) for name in names]


def test_several_files_are_written_and_nothing_else_is_left(tmp_path: Path) -> None:
    specout.write(outputs(tmp_path / "d/e", "a.yaml", "b.yaml"))
    assert {path.name: path.read_text() for path in (tmp_path / "d/e").iterdir()} == {"a.yaml": YAML, "b.yaml": YAML}
    assert [oct((tmp_path / name).stat().st_mode & 0o777) for name in ("d", "d/e", "d/e/a.yaml")] == [
        "0o755", "0o755", "0o644"]  # fmt: skip


def test_a_directory_in_the_way_of_one_keeps_all_as_they_were(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(OLD)
    (tmp_path / "c.yaml").mkdir()
    with pytest.raises(HookError, match=rf"write CDI spec {tmp_path}/c\.yaml: EISDIR"):
        specout.write(outputs(tmp_path, "a.yaml", "b.yaml", "c.yaml"))
    assert sorted(os.listdir(tmp_path)) == ["a.yaml", "c.yaml"]
    assert (tmp_path / "a.yaml").read_text() == OLD


def test_a_specification_that_no_text_can_hold_keeps_all_as_they_were(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(OLD)
    odd = dataclasses.replace(SPEC.devices[0], annotations={"a": "\udcff"})
    bad = specout.Output(f"{tmp_path}/b.yaml", dataclasses.replace(SPEC, cdi_version="0.6.0", devices=(odd,)))
    with pytest.raises(HookError):
        specout.write([*outputs(tmp_path, "a.yaml"), bad])
    assert os.listdir(tmp_path) == ["a.yaml"]
    assert (tmp_path / "a.yaml").read_text() == OLD


def test_a_rename_that_fails_after_another_names_what_is_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.rename

    def rename(old: str, new: str) -> None:
        if new.endswith("/b.yaml"):
            raise PermissionError(1, "not permitted")
        real(old, new)

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(HookError) as e:
        specout.write(outputs(tmp_path, "a.yaml", "b.yaml", "c.yaml"))
    assert e.value.line() == f"write CDI spec {tmp_path}/b.yaml: EPERM (new already: {tmp_path}/a.yaml)"
    assert os.listdir(tmp_path) == ["a.yaml"]
