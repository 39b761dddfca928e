"""Specifications written whole or not at all: names, modes, full disks, kills."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from lib import proc, session, strace

from nvoci.cdi import specdir, store, text
from nvoci.cdi.error import SpecError
from nvoci.cdi.model import ContainerEdits, Device, Mount, Spec
from nvoci.errors import HookError

SPEC = Spec("0.6.0", "a.org/gpu", (Device("0", ContainerEdits(env=("A=1",))),))
BIG = replace(SPEC, devices=tuple([Device(f"d{i}", ContainerEdits(env=("A=" + "x" * 100,))) for i in range(2000)]))
ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system")


@pytest.fixture(params=[0o022, 0o077, 0], ids=["022", "077", "000"])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode(path: str | Path) -> int:
    return os.stat(path).st_mode & 0o7777


# --- names ------------------------------------------------------------------------------------------------------------


def test_generated_names() -> None:
    assert store.spec_name("nvidia.com", "gpu") == "nvidia.com-gpu"
    assert store.transient_name("nvidia.com", "gpu", "pod/7/x") == "nvidia.com-gpu_pod_7_x"


@pytest.mark.parametrize("parts", [("", "gpu"), ("a.org", ""), ("../a", "gpu"), ("a.org", "g/u"), ("a.org", "-gpu")])
def test_no_name_for_what_is_no_kind(parts: tuple[str, str]) -> None:
    with pytest.raises(SpecError):
        store.spec_name(*parts)


@pytest.mark.parametrize("id", ["", "a\nb", "a\0b"])
def test_no_transient_name_for_what_no_file_is_called(id: str) -> None:
    with pytest.raises(SpecError):
        store.transient_name("a.org", "gpu", id)


FILES = {
    "suffix of YAML unless told": ("a", "", "a.yaml"),
    "suffix of the format": ("a", "json", "a.json"),
    "a dot in the name": ("nvidia.com-gpu", "yaml", "nvidia.com-gpu.yaml"),
    "its own suffix": ("a.json", "", "a.json"),
    "its own suffix, told as well": ("a.yaml", "yaml", "a.yaml"),
    "a dot in front, which engines do not mind": (".a", "", ".a.yaml"),
    "another suffix is a part of the name": ("a.yml", "", "a.yml.yaml"),
}


@pytest.mark.parametrize(("name", "format", "expected"), FILES.values(), ids=FILES.keys())
def test_file_names(name: str, format: str, expected: str) -> None:
    assert store.file_name(name, format) == expected


@pytest.mark.parametrize(
    ("name", "format"),
    [
        ("", ""),
        ("a/b", ""),
        ("/a", ""),
        ("..", ""),
        (".", ""),
        ("a\0", ""),
        ("a\n", ""),
        ("a.json", "yaml"),
        ("a", "toml"),
    ],
)
def test_what_is_no_file_name_is_refused(tmp_path: Path, name: str, format: str) -> None:
    for act in (lambda: store.write(SPEC, str(tmp_path), name or "/", format),
                lambda: store.remove(str(tmp_path), name, format)):  # fmt: skip
        with pytest.raises(SpecError):
            act()
    assert os.listdir(tmp_path) == []


# --- write ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["", "yaml", "json"])
def test_what_is_written_is_read_again(tmp_path: Path, format: str) -> None:
    path = store.write(SPEC, str(tmp_path), format=format)
    assert path == f"{tmp_path}/a.org-gpu.{format or 'yaml'}"
    assert text.read(path) == SPEC
    registry = specdir.Registry([str(tmp_path)])
    assert (registry.devices(), registry.errors) == (["a.org/gpu=0"], {})


def test_modes_are_those_that_everybody_can_read(tmp_path: Path, umask: int) -> None:
    path = store.write(SPEC, str(tmp_path / "a" / "b"))
    assert (mode(tmp_path / "a"), mode(tmp_path / "a" / "b"), mode(path)) == (0o755, 0o755, 0o644)


def test_a_new_directory_is_changed_by_handle_and_not_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever can write above it puts a link in its place as soon as it is made."""
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    real = os.mkdir

    def replaced(path: str, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        real(path, mode, dir_fd=dir_fd)
        os.rmdir(path, dir_fd=dir_fd)
        os.symlink(private, path, dir_fd=dir_fd)

    monkeypatch.setattr(os, "mkdir", replaced)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(SpecError, match=r"ENOTDIR|ELOOP"):
        store.write(SPEC, str(tmp_path / "a" / "b"))
    assert (mode(private), os.listdir(private)) == (0o700, [])
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_directory_that_somebody_else_makes_meanwhile_is_taken_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.mkdir

    def late(path: str, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        real(path, 0o711, dir_fd=dir_fd)
        real(path, mode, dir_fd=dir_fd)

    monkeypatch.setattr(os, "mkdir", late)
    assert text.read(store.write(SPEC, str(tmp_path / "a" / "b"))) == SPEC
    assert (mode(tmp_path / "a"), mode(tmp_path / "a" / "b")) == (0o711, 0o711)


def test_errors_of_files_are_errors_of_specifications(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").mkdir()
    for act in (lambda: store.write(SPEC, str(tmp_path), "a"), lambda: store.remove(str(tmp_path), "a")):
        with pytest.raises(SpecError) as caught:
            act()
        assert (caught.value.file, caught.value.why) == (f"{tmp_path}/a.yaml", "EISDIR")


def test_a_directory_that_is_there_keeps_its_mode(tmp_path: Path) -> None:
    tmp_path.chmod(0o711)
    store.write(SPEC, f"{tmp_path}/")
    assert mode(tmp_path) == 0o711


def test_a_file_that_is_there_is_replaced(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("kept")
    (tmp_path / "a.yaml").symlink_to(target)
    path = store.write(SPEC, str(tmp_path), "a")
    assert (os.path.islink(path), target.read_text()) == (False, "kept")
    os.chmod(path, 0o600)
    store.write(BIG, str(tmp_path), "a")
    assert (text.read(path), mode(path)) == (BIG, 0o644)
    assert sorted(os.listdir(tmp_path)) == ["a.yaml", "target"]


def test_the_least_version_is_declared_where_asked_for(tmp_path: Path) -> None:
    spec = replace(SPEC, cdi_version="1.0.0")
    assert text.read(store.write(spec, str(tmp_path))).cdi_version == "1.0.0"
    assert text.read(store.write(spec, str(tmp_path), least_version=True)).cdi_version == "0.5.0"


INVALID = {
    "version too low": replace(SPEC, cdi_version="0.3.0"),
    "no devices": replace(SPEC, devices=()),
    "mount without a path": replace(SPEC, container_edits=ContainerEdits(mounts=(Mount("", "/a"),))),
    "kind": replace(SPEC, kind="gpu"),
    "a string that no text can hold": replace(SPEC, container_edits=ContainerEdits(env=("A=\udcff",))),
}


@pytest.mark.parametrize("spec", INVALID.values(), ids=INVALID.keys())
def test_what_is_not_valid_is_not_written(tmp_path: Path, spec: Spec) -> None:
    path = store.write(SPEC, str(tmp_path), "a")
    with pytest.raises(SpecError):
        store.write(spec, str(tmp_path), "a")
    assert text.read(path) == SPEC
    with pytest.raises(SpecError):
        store.write(spec, str(tmp_path / "new"), "a")
    assert os.listdir(tmp_path) == ["a.yaml"]


def test_a_directory_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(HookError, match=r"^write CDI spec .*/file/a/a\.org-gpu\.yaml: ENOTDIR"):
        store.write(SPEC, str(tmp_path / "file" / "a"))
    with pytest.raises(HookError, match=r"^write CDI spec .*/file/a\.org-gpu\.yaml: ENOTDIR"):
        store.write(SPEC, str(tmp_path / "file"))
    (tmp_path / "a.org-gpu.yaml").mkdir()
    with pytest.raises(HookError, match="EISDIR"):
        store.write(SPEC, str(tmp_path))
    assert sorted(os.listdir(tmp_path)) == ["a.org-gpu.yaml", "file"]


def test_a_name_that_is_too_long_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(HookError, match="ENAMETOOLONG"):
        store.write(SPEC, str(tmp_path), "x" * 300)


# --- remove -----------------------------------------------------------------------------------------------------------


def test_remove_what_write_made(tmp_path: Path) -> None:
    store.write(SPEC, str(tmp_path), "a", "json")
    assert not store.remove(str(tmp_path), "a")
    assert store.remove(str(tmp_path), "a", "json")
    assert not store.remove(str(tmp_path), "a.json")
    assert not store.remove(str(tmp_path / "none"), "a")


def test_remove_no_directory(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").mkdir()
    with pytest.raises(HookError, match=r"^remove CDI spec .*/a\.yaml: EISDIR"):
        store.remove(str(tmp_path), "a")


# --- interruptions ----------------------------------------------------------------------------------------------------


@ROOT_ONLY
@pytest.mark.kernel
def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k,mode=755", "tmpfs", tmp_path], check=True)
    try:
        path = store.write(SPEC, str(tmp_path), "a")
        with pytest.raises(HookError, match=r"a\.yaml: ENOSPC \(the file system is full|ENOSPC"):
            store.write(BIG, str(tmp_path), "a")
        assert text.read(path) == SPEC
        assert os.listdir(tmp_path) == ["a.yaml"]
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_a_limit_of_file_size_leaves_the_old_file(tmp_path: Path) -> None:
    path = store.write(SPEC, str(tmp_path), "a")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(HookError, match="EFBIG"):
            store.write(BIG, str(tmp_path), "a")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert text.read(path) == SPEC
    assert os.listdir(tmp_path) == ["a.yaml"]


WRITER = """
import sys
sys.path.insert(0, {hooks!r})
import json
from nvoci.cdi import store, text
from nvoci.cdi.model import ContainerEdits, Device, Spec
devices = tuple([Device(f"d{{i}}", ContainerEdits(env=("A=" + "x" * 100,))) for i in range(2000)])
sys.stdin.read()
store.write(Spec("0.6.0", "a.org/gpu", devices), {directory!r}, "a", "json")
"""


def test_a_kill_at_any_step_leaves_the_old_file_or_the_new_one(tmp_path: Path) -> None:
    code = WRITER.format(hooks=str(session.HOOKS), directory=str(tmp_path))

    def run(wrapper: Sequence[str]) -> proc.Result:
        return proc.run([*wrapper, session.PYTHON, "-ISB", "-c", code], timeout=20)

    points = strace.points(run)
    first = next(i for i, (call, _) in enumerate(points) if call == "fchmod") - 2
    assert [call for call, _ in points[first:]].count("fsync") == 2
    names, replaced = set(), set()
    for call, n in [point for point in points[first:] if not point[0].startswith(("exit", "rt_", "mu", "brk"))]:
        store.write(SPEC, str(tmp_path), "a", "json")
        assert run(strace.inject_kill(call, n)).rc != 0
        found = text.read(f"{tmp_path}/a.json")
        assert found in (SPEC, BIG)
        replaced.add(found == BIG)
        assert specdir.Registry([str(tmp_path)]).errors == {}
        hidden = [path for path in tmp_path.iterdir() if path.name.startswith(".a.json.")]
        names.add(len(hidden))
        for path in hidden:
            path.unlink()
    assert names == {0, 1}
    assert replaced == {False, True}
    assert run([]).stderr == ""
    assert text.read(f"{tmp_path}/a.json") == BIG
    assert os.listdir(tmp_path) == ["a.json"]
