"""What the name of an output file says."""

from __future__ import annotations

from pathlib import Path

import pytest

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
