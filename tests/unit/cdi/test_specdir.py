"""Directories of specifications: who has the say, what is refused, and what changes."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lib import session
from unit.cdi.specfiles import put

from nvoci.cdi import apply, specdir
from nvoci.cdi.error import SpecError
from nvoci.cdi.model import ContainerEdits
from nvoci.cdi.specdir import Change, Registry


def messages(registry: Registry) -> dict[str, list[str]]:
    return {path: [error.message for error in errors] for path, errors in registry.errors.items()}


@pytest.fixture(autouse=True)
def _plain_umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.fixture
def low(tmp_path: Path) -> Path:
    return tmp_path / "low"


@pytest.fixture
def high(tmp_path: Path) -> Path:
    return tmp_path / "high"


@pytest.fixture
def registry(low: Path, high: Path) -> Registry:
    low.mkdir()
    high.mkdir()
    return Registry([str(low), str(high)])


# --- which directories ------------------------------------------------------------------------------------------------

VARIABLES = {
    "not set": ({}, specdir.DEFAULT_DIRS),
    "empty": ({"CDI_SPEC_DIRS": ""}, specdir.DEFAULT_DIRS),
    "one": ({"CDI_SPEC_DIRS": "/a"}, ("/a",)),
    "several": ({"CDI_SPEC_DIRS": "/a:/b"}, ("/a", "/b")),
    "empty ones": ({"CDI_SPEC_DIRS": ":/a::"}, ("/a",)),
}


@pytest.mark.parametrize(("environ", "expected"), VARIABLES.values(), ids=VARIABLES.keys())
def test_directories_are_those_of_the_variable(environ: dict[str, str], expected: tuple[str, ...]) -> None:
    assert specdir.directories(environ) == expected


def test_a_registry_has_the_usual_directories_unless_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CDI_SPEC_DIRS", "/x:/y")
    assert Registry().dirs == ("/x", "/y")
    assert Registry(["/b/", "/a", "/b//./", "/c"]).dirs == ("/a", "/b", "/c")


# --- what is found ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [[""], ["", ""], ("",), iter([""])], ids=str)
def test_empty_names_of_directories_are_none(given: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CDI_SPEC_DIRS", "/x:/y")
    assert Registry(given).dirs == ("/x", "/y")
    assert Registry(["/a", "", "/b/"]).dirs == ("/a", "/b")


def test_one_text_in_place_of_several_is_a_mistake_of_the_caller(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"^dirs: a list or tuple is wanted, not str '/etc/cdi'$"):
        Registry("/etc/cdi")
    with pytest.raises(TypeError, match=r"^names: a list or tuple is wanted, not str 'a/b=c'$"):
        apply.inject(Registry([str(tmp_path)]), {}, "a/b=c")


def test_devices_of_all_files_by_qualified_name(registry: Registry, low: Path, high: Path) -> None:
    put(low / "b.yaml", "b.org/nic", "0", "1")
    put(high / "a.json", "a.org/gpu", "all").write_text(
        '{"cdiVersion": "0.6.0", "kind": "a.org/gpu", "devices": [{"name": "all", "containerEdits": {"env": ["A=1"]}}]}'
    )
    put(high / "b.yaml", "b.org/fpga", "x")
    assert registry.devices() == ["a.org/gpu=all", "b.org/fpga=x", "b.org/nic=0", "b.org/nic=1"]
    assert registry.vendors() == ["a.org", "b.org"]
    assert registry.classes("b.org") == ["fpga", "nic"]
    assert registry.classes() == ["fpga", "gpu", "nic"]
    assert [(each.path, each.priority) for each in registry.specs()] == [
        (f"{low}/b.yaml", 0), (f"{high}/a.json", 1), (f"{high}/b.yaml", 1),
    ]  # fmt: skip
    assert registry.paths() == [each.path for each in registry.specs()]
    assert registry.errors == {}
    found = registry.find("b.org/nic=1")
    assert found is not None
    assert (found.name, found.device.name, found.path, found.priority) == ("b.org/nic=1", "1", f"{low}/b.yaml", 0)
    assert found.spec.container_edits == ContainerEdits(env=("COMMON=1",))
    assert registry.find("b.org/nic=2") is None


def test_directories_that_are_not_there_are_none(tmp_path: Path) -> None:
    registry = Registry([str(tmp_path / "a"), str(tmp_path / "b")])
    assert (registry.devices(), registry.specs(), registry.errors) == ([], [], {})


def test_other_names_and_directories_are_passed_over(registry: Registry, low: Path) -> None:
    put(low / "a.yaml", "a.org/gpu", "0")
    for name in ("b.yml", "c.YAML", "d.json.bak", ".e.yaml.123", "yaml", "f"):
        (low / name).write_text("{")
    put(low / "sub" / "g.yaml", "a.org/gpu", "1")
    (low / "h.yaml").mkdir()
    assert registry.devices() == ["a.org/gpu=0"]
    assert registry.errors == {}


def test_a_hidden_file_is_one_too(registry: Registry, low: Path) -> None:
    put(low / ".a.yaml", "a.org/gpu", "0")
    assert registry.devices() == ["a.org/gpu=0"]


def test_names_are_resolved_in_their_order_or_all_refused(registry: Registry, low: Path) -> None:
    put(low / "a.yaml", "a.org/gpu", "0", "1")
    names = ["a.org/gpu=1", "a.org/gpu=0", "a.org/gpu=1"]
    assert [entry.name for entry in registry.resolve(names)] == names
    with pytest.raises(SpecError) as e:
        registry.resolve(["a.org/gpu=0", "a.org/gpu=7", "0", "a.org/gpu=7"])
    assert e.value.why == "unresolvable CDI devices a.org/gpu=7, 0"
    config: dict[str, Any] = {"process": {"env": []}}
    with pytest.raises(SpecError):
        apply.inject(registry, config, ["a.org/gpu=0", "a.org/gpu=7"])
    assert config == {"process": {"env": []}}
    assert apply.inject(registry, config, ["a.org/gpu=0"]) == {"process": {"env": ["COMMON=1", "DEVICE=1"]}}


# --- priorities and conflicts -----------------------------------------------------------------------------------------


def test_the_later_directory_has_the_say(registry: Registry, low: Path, high: Path) -> None:
    put(low / "a.yaml", "a.org/gpu", "0", "1", mark="low")
    put(high / "z.yaml", "a.org/gpu", "1", mark="high")
    marks = [entry.device.container_edits.env for entry in registry.resolve(["a.org/gpu=0", "a.org/gpu=1"])]
    assert marks == [("DEVICE=low",), ("DEVICE=high",)]
    assert registry.errors == {}
    config = apply.inject(registry, {}, ["a.org/gpu=0", "a.org/gpu=1"])
    assert config["process"]["env"] == ["COMMON=high", "DEVICE=high"]


def test_a_device_in_two_files_of_one_priority_is_in_neither(registry: Registry, low: Path) -> None:
    one, two = put(low / "a.yaml", "a.org/gpu", "0", "1"), put(low / "b.yaml", "a.org/gpu", "2", "1")
    assert registry.devices() == ["a.org/gpu=0", "a.org/gpu=2"]
    assert messages(registry) == {
        str(one): [f"CDI spec {one}: devices[1]: conflicting device a.org/gpu=1: also in {two}"],
        str(two): [f"CDI spec {two}: devices[1]: conflicting device a.org/gpu=1: also in {one}"],
    }
    assert len(registry.specs()) == 2


def test_three_files_that_exclude_each_other(registry: Registry, low: Path) -> None:
    paths = [str(put(low / name, "a.org/gpu", "0")) for name in ("a.yaml", "b.yaml", "c.yaml")]
    assert registry.devices() == []
    assert sorted(registry.errors) == paths


def test_a_higher_priority_settles_a_conflict_below(registry: Registry, low: Path, high: Path) -> None:
    for name in ("a.yaml", "b.yaml"):
        put(low / name, "a.org/gpu", "0", mark="low")
    put(high / "a.yaml", "a.org/gpu", "0", mark="high")
    assert registry.resolve(["a.org/gpu=0"])[0].priority == 1
    assert sorted(registry.errors) == [f"{low}/a.yaml", f"{low}/b.yaml"]


def test_a_conflict_above_hides_what_is_below(registry: Registry, low: Path, high: Path) -> None:
    put(low / "a.yaml", "a.org/gpu", "0")
    for name in ("a.yaml", "b.yaml"):
        put(high / name, "a.org/gpu", "0")
    assert registry.devices() == []


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2), st.sets(st.integers(0, 3), min_size=1)), max_size=7))
def test_each_device_is_that_of_the_only_file_of_the_highest_priority(
    files: list[tuple[int, int, set[int]]],
) -> None:
    top = session.new_dir("cdi")
    dirs = [top / str(priority) for priority in range(3)]
    holders: dict[str, list[tuple[int, str]]] = {}
    for i, (priority, kind, names) in enumerate(files):
        path = put(dirs[priority] / f"{i}.yaml", f"a.org/k{kind}", *map(str, sorted(names)))
        for name in names:
            holders.setdefault(f"a.org/k{kind}={name}", []).append((priority, str(path)))
    expected = {}
    for device, found in holders.items():
        best = [path for priority, path in found if priority == max(found)[0]]
        if len(best) == 1:
            expected[device] = best[0]
    registry = Registry(map(str, dirs))
    assert {entry.name: entry.path for entry in registry.resolve(registry.devices())} == expected
    conflicting = {path for found in holders.values() for p, path in found if [q for q, _ in found].count(p) > 1}
    assert set(registry.errors) == conflicting


# --- looking again ----------------------------------------------------------------------------------------------------


def test_another_look_is_taken_when_asked_for(registry: Registry, low: Path) -> None:
    assert registry.devices() == []
    put(low / "a.yaml", "a.org/gpu", "0")
    assert registry.devices() == []
    registry.refresh()
    assert registry.devices() == ["a.org/gpu=0"]


def test_watching_tells_what_each_event_changed(registry: Registry, low: Path, high: Path) -> None:
    put(low / "a.yaml", "a.org/gpu", "0", "1")

    def events() -> Iterator[str]:
        yield "nothing"
        put(low / "a.yaml", "a.org/gpu", "1", "2", mark="2")
        yield str(low)
        (low / "a.yaml").write_text("{")
        yield str(low)
        yield "still wrong"
        put(low / "a.yaml", "a.org/gpu", "1", "2", mark="2")
        yield str(low)
        put(high / "a.yaml", "a.org/gpu", "1", mark="2")
        yield "the same from another file, but for the edits that are common"
        (high / "a.yaml").unlink()
        high.rmdir()
        low.rename(low.parent / "away")
        yield str(low)

    changes = list(specdir.watch(registry, events()))
    wrong = changes[1].errors[f"{low}/a.yaml"]
    assert "not valid YAML" in wrong[0].message
    assert changes == [
        Change(added=("a.org/gpu=2",), removed=("a.org/gpu=0",), changed=("a.org/gpu=1",)),
        Change(removed=("a.org/gpu=1", "a.org/gpu=2"), errors={f"{low}/a.yaml": wrong}),
        Change(added=("a.org/gpu=1", "a.org/gpu=2"), errors={f"{low}/a.yaml": ()}),
        Change(changed=("a.org/gpu=1",)),
        Change(removed=("a.org/gpu=1", "a.org/gpu=2")),
    ]


def test_the_common_edits_are_a_part_of_a_device(registry: Registry, low: Path) -> None:
    path = put(low / "a.yaml", "a.org/gpu", "0")

    def events() -> Iterator[None]:
        path.write_text(path.read_text().replace("COMMON=1", "COMMON=2"))
        yield

    assert list(specdir.watch(registry, events())) == [Change(changed=("a.org/gpu=0",))]


# --- speed ------------------------------------------------------------------------------------------------------------


def _took(directory: Path, devices: int, files: int) -> float:
    """CPU seconds to load so many devices in so many files, and to inject 8 of them."""
    directory.mkdir()
    for i in range(files):
        names = [str(n) for n in range(i * devices // files, (i + 1) * devices // files)]
        put(directory / f"{i:03}.yaml", f"a.org/gpu{i}", *names)
    best = 10.0
    for _ in range(3):
        start = time.process_time()
        registry = Registry([str(directory)])
        names = registry.devices()
        apply.inject(registry, {}, names[:8])
        best = min(best, time.process_time() - start)
        assert len(names) == devices
    return best


@pytest.mark.parametrize("per_file", [1, 20])
def test_ten_times_the_devices_take_ten_times_as_long(tmp_path: Path, per_file: int) -> None:
    few, many = _took(tmp_path / "few", 20, 20 // per_file), _took(tmp_path / "many", 200, 200 // per_file)
    assert many < 30 * few


def test_one_file_of_ten_times_the_devices_takes_ten_times_as_long(tmp_path: Path) -> None:
    assert _took(tmp_path / "many", 200, 1) < 30 * _took(tmp_path / "few", 20, 1)
