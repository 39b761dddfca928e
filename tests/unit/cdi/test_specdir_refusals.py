"""Files and directories of specifications that are left out, and why."""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lib import session
from unit.cdi.specfiles import put, text

from nvoci.cdi import specdir
from nvoci.cdi.specdir import Registry

ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="gives files to others")


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


CONTENT = {
    "empty": ("a.yaml", b"", "no document"),
    "no JSON": ("a.json", b"{", "not valid JSON"),
    "no YAML": ("a.yaml", b"a: [", "not valid YAML"),
    "unknown field": ("a.yaml", text("a.org/gpu", "0").encode() + b"extra: 1\n", "unknown field `extra`"),
    "unknown version": ("a.yaml", text("a.org/gpu", "0").replace("0.6.0", "9.9.9").encode(), "cdiVersion"),
    "version too low": ("a.yaml", text("a.org/gpu", "0").replace("0.6.0", "0.3.0").encode(), "must be at least v0.5.0"),
    "same device twice": ("a.yaml", text("a.org/gpu", "0", "0").encode(), "devices[1].name"),
    "no devices": ("a.yaml", text("a.org/gpu").encode(), "devices"),
    "variable without =": ("a.yaml", text("a.org/gpu", "0").replace("COMMON=", "x").encode(), "containerEdits.env[0]"),
    "not UTF-8": ("a.yaml", b"\xff\xfe\xfa", "not UTF-8"),
}


@pytest.mark.parametrize(("name", "content", "part"), CONTENT.values(), ids=CONTENT.keys())
def test_a_bad_file_is_an_error_and_the_others_are_loaded(
    registry: Registry, low: Path, name: str, content: bytes, part: str
) -> None:
    (low / name).write_bytes(content)
    put(low / "good.yaml", "b.org/nic", "0")
    assert registry.devices() == ["b.org/nic=0"]
    assert list(registry.errors) == [f"{low}/{name}"]
    assert registry.paths() == [f"{low}/{name}", f"{low}/good.yaml"]
    for error in registry.errors[f"{low}/{name}"]:
        assert error.message.startswith(f"CDI spec {low}/{name}: ")
    assert part in registry.errors[f"{low}/{name}"][0].message


def test_all_that_is_wrong_with_a_file_is_told(registry: Registry, low: Path) -> None:
    put(low / "a.yaml", "a.org/gpu-", "0", "0", mark="1")
    assert len(registry.errors[f"{low}/a.yaml"]) == 2


def make_fifo(path: Path) -> None:
    os.mkfifo(path, 0o644)


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as found:
        here = os.getcwd()
        os.chdir(path.parent)
        found.bind(path.name)
        os.chdir(here)
    path.chmod(0o644)


def make_device(path: Path) -> None:
    os.mknod(path, 0o020644, os.makedev(1, 5))  # /dev/zero never ends


def make_huge(path: Path) -> None:
    path.write_bytes(b"")
    path.chmod(0o644)
    os.truncate(path, 1 << 30)


def make_link_to_directory(path: Path) -> None:
    path.symlink_to("/etc")


def make_link_to_fifo(path: Path) -> None:
    make_fifo(path.parent / "fifo")
    path.symlink_to("fifo")


def make_loop(path: Path) -> None:
    path.symlink_to(path.name)


def make_dangling(path: Path) -> None:
    path.symlink_to("nowhere")


def make_writable(path: Path) -> None:
    put(path, "a.org/gpu", "0").chmod(0o646)


def make_group_writable(path: Path) -> None:
    put(path, "a.org/gpu", "0").chmod(0o664)


def make_foreign(path: Path) -> None:
    os.chown(put(path, "a.org/gpu", "0"), 1234, 0)


def make_link_to_foreign(path: Path) -> None:
    make_foreign(path.parent / "target")
    path.symlink_to("target")


def make_link_to_writable(path: Path) -> None:
    make_writable(path.parent / "target")
    path.symlink_to("target")


OBJECTS: dict[str, tuple[Any, str]] = {
    "FIFO": (make_fifo, "EINVAL"),
    "socket": (make_socket, "EINVAL"),
    "device": (make_device, "EINVAL"),
    "1 GiB": (make_huge, "EFBIG"),
    "link to a directory": (make_link_to_directory, "EINVAL"),
    "link to a FIFO": (make_link_to_fifo, "EINVAL"),
    "link to itself": (make_loop, "ELOOP"),
    "link to nothing": (make_dangling, "ENOENT"),
    "others can write": (make_writable, "mode 0646: others can write it"),
    "the group can write": (make_group_writable, "mode 0664: others can write it"),
    "owned by another": (make_foreign, "owned by uid 1234"),
    "link to one that is owned by another": (make_link_to_foreign, "owned by uid 1234"),
    "link to one that others can write": (make_link_to_writable, "mode 0646: others can write it"),
}


@ROOT_ONLY
@pytest.mark.parametrize(("make", "why"), OBJECTS.values(), ids=OBJECTS.keys())
def test_what_is_no_file_of_ours_is_refused_at_once(registry: Registry, low: Path, make: Any, why: str) -> None:
    make(low / "a.yaml")
    put(low / "good.yaml", "b.org/nic", "0")
    start = time.monotonic()
    assert registry.devices() == ["b.org/nic=0"]
    assert time.monotonic() - start < 5
    [error] = registry.errors[f"{low}/a.yaml"]
    assert (error.file, error.why) == (f"{low}/a.yaml", why)


def test_a_link_to_a_file_elsewhere_is_as_good_as_that(registry: Registry, low: Path, tmp_path: Path) -> None:
    target = put(tmp_path / "elsewhere" / "spec", "a.org/gpu", "0")
    (low / "a.yaml").symlink_to(target)
    entry = registry.find("a.org/gpu=0")
    assert entry is not None
    assert entry.path == f"{low}/a.yaml"


# --- bad directories --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o775], ids=["others", "sticky", "group"])
def test_a_directory_that_others_can_write_is_refused(registry: Registry, low: Path, high: Path, mode: int) -> None:
    put(low / "a.yaml", "a.org/gpu", "0")
    put(high / "b.yaml", "b.org/nic", "0")
    low.chmod(mode)
    assert registry.devices() == ["b.org/nic=0"]
    [error] = registry.errors[str(low)]
    assert (error.file, error.why) == (str(low), f"owned by uid {os.geteuid()}, mode {mode:04o}: others can write it")


@ROOT_ONLY
def test_a_directory_of_another_is_refused(registry: Registry, low: Path) -> None:
    put(low / "a.yaml", "a.org/gpu", "0")
    os.chown(low, 1234, 1234)
    assert registry.devices() == []
    assert "owned by uid 1234" in registry.errors[str(low)][0].why


def test_a_file_in_place_of_a_directory_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("")
    registry = Registry([str(tmp_path / "a"), "/dev/zero"])
    assert registry.devices() == []
    assert [error.message for errors in registry.errors.values() for error in errors] == [
        f"CDI spec {tmp_path}/a: ENOTDIR", "CDI spec /dev/zero: ENOTDIR",
    ]  # fmt: skip


@ROOT_ONLY
def test_a_directory_that_cannot_be_listed_is_an_error() -> None:
    top = session.new_dir("cdi")  # anybody may pass through
    low, high = top / "low", top / "high"
    low.mkdir()
    put(high / "b.yaml", "b.org/nic", "0")
    low.chmod(0)
    registry = Registry([str(low), str(high)])
    os.seteuid(1234)
    try:
        registry.refresh()
    finally:
        os.seteuid(0)
    assert registry.devices() == ["b.org/nic=0"]
    assert [error.message for error in registry.errors[str(low)]] == [f"CDI spec {low}: EACCES"]


def test_without_a_reader_of_yaml_json_is_read(
    registry: Registry, low: Path, high: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(low / "a.yaml", "a.org/gpu", "0")
    (high / "b.json").write_text(
        '{"cdiVersion": "0.5.0", "kind": "b.org/nic", "devices": [{"name": "0", "containerEdits": {"env": ["A=1"]}}]}'
    )
    monkeypatch.setitem(sys.modules, "yaml", None)
    assert registry.devices() == ["b.org/nic=0"]
    assert [error.message for error in registry.errors[f"{low}/a.yaml"]] == [
        f"CDI spec {low}/a.yaml: PyYAML is not installed"
    ]


def test_a_file_that_goes_meanwhile_is_none(registry: Registry, low: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(specdir, "_listing", lambda directory: ["gone.yaml"])
    assert (registry.devices(), registry.errors, registry.paths()) == ([], {}, [])
