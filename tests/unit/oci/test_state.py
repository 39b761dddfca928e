"""The OCI state: what runtimes send is taken, anything else refused; the root comes from it or from config.json."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nvoci.errors import HookError
from nvoci.oci import config, state

# What the runtimes really send; (pid, bundle, root) that is read from it.
REAL: dict[str, tuple[dict[str, Any], tuple[int | None, str, str]]] = {
    "runc createRuntime": ({"ociVersion": "1.0.2-dev", "id": "c", "status": "creating", "pid": 4711, "bundle": "/b"},
                           (4711, "/b", "")),
    "runc createContainer": ({"ociVersion": "1.0.2-dev", "id": "c", "status": "creating", "pid": 1, "bundle": "/b"},
                             (1, "/b", "")),
    "runc poststop": ({"ociVersion": "1.0.2-dev", "id": "c", "status": "stopped", "bundle": "/b"}, (None, "/b", "")),
    "crun createContainer": ({"ociVersion": "1.0", "id": "c", "pid": 0, "root": "rootfs", "bundle": "/b",
                              "status": "created"}, (0, "/b", "rootfs")),
    "podman with crun": ({"ociVersion": "1.0", "id": "c", "pid": 9, "root": "/var/merged", "bundle": "/b",
                          "status": "created", "annotations": {"a": "b"}}, (9, "/b", "/var/merged")),
    "crun startContainer": ({"id": "c", "pid": 0, "root": "rootfs", "bundle": "/", "status": "starting"},
                            (0, "/", "rootfs")),
    "nothing known": ({"x": [1]}, (None, "", "")),
    "nulls": ({"id": None, "pid": None, "bundle": None, "root": None, "annotations": None}, (None, "", "")),
    "largest pid": ({"pid": 1 << 22}, (1 << 22, "", "")),
    "bundlePath is not known": ({"bundlePath": "/b"}, (None, "", "")),
}  # fmt: skip


@pytest.mark.parametrize(("doc", "expected"), REAL.values(), ids=REAL)
def test_what_runtimes_send_is_read(doc: dict[str, Any], expected: tuple[Any, ...]) -> None:
    found = state.parse(json.dumps(doc).encode())
    assert (found.pid, found.bundle, found.root) == expected
    assert isinstance(found.annotations, dict)


BAD_FIELDS: dict[str, tuple[str, Any, str]] = {
    "pid -1": ("pid", -1, "`pid` is -1"),
    "pid 2^22+1": ("pid", (1 << 22) + 1, "not a process id"),
    "pid float": ("pid", 1.0, "`pid` is 1.0"),
    "pid string": ("pid", "1", "`pid` is 1"),
    "pid true": ("pid", True, "`pid` is True"),
    "pid list": ("pid", [1], "`pid` is [1]"),
    "pid hostile": ("pid", "\n\x1b" * 1000, "not a process id"),
    "status unknown": ("status", "paused", "unknown status `paused`"),
    "status number": ("status", 3, "unknown status `3`"),
    "status list": ("status", [], "unknown status `[]`"),
    "status case": ("status", "Running", "unknown status"),
    **{f"{key} {name}": (key, value, reason) for key in ("id", "bundle", "root") for name, value, reason in (
        ("number", 1, "is not a string"), ("list", [], "is not a string"), ("false", False, "is not a string"),
        ("NUL", "/a\0", "holds a NUL"), ("surrogate", "/\ud800", "or a surrogate"),
        ("low surrogate", "/\udcff", "surrogate"),
        ("4097 characters", "/" + "x" * 4096, "longer than 4096"))},
}  # fmt: skip


@pytest.mark.parametrize(("key", "value", "reason"), BAD_FIELDS.values(), ids=BAD_FIELDS)
def test_a_field_of_another_kind_is_refused_by_name(key: str, value: Any, reason: str) -> None:
    with pytest.raises(HookError) as caught:
        state.parse(json.dumps({key: value}).encode())
    line = caught.value.line()
    assert line.startswith("read state")
    assert reason in line
    assert line.isprintable()
    assert len(line) < 500


# -- stdin ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def stdin() -> Iterator[int]:
    """The writing end of a pipe whose reading end is descriptor 0; the test closes it, or not."""
    kept = os.dup(0)
    read_end, write_end = os.pipe()
    os.dup2(read_end, 0)
    os.close(read_end)
    yield write_end
    os.dup2(kept, 0)
    os.close(kept)
    try:
        os.close(write_end)
    except OSError:
        return  # the test closed it


def test_stdin_is_read_to_its_end_in_however_many_pieces(stdin: int) -> None:
    def write() -> None:
        for piece in (b'{"id"', b': "c",', b' "pid": 3}'):
            os.write(stdin, piece)
            time.sleep(0.02)
        os.close(stdin)

    writer = threading.Thread(target=write)
    writer.start()
    found = state.read("")
    writer.join()
    assert (found.id, found.pid) == ("c", 3)


def test_a_pipe_that_stays_open_is_an_error_at_the_deadline(stdin: int) -> None:
    os.write(stdin, b"{}")
    start = time.monotonic()
    with pytest.raises(HookError, match=r"no end of file within 0\.2 s"):
        state.read_stdin(0.2)
    assert 0.2 <= time.monotonic() - start < 5


def test_a_writer_that_drips_does_not_move_the_deadline(stdin: int) -> None:
    stop = threading.Event()

    def drip() -> None:
        while not stop.wait(0.02):
            os.write(stdin, b" ")

    writer = threading.Thread(target=drip)
    writer.start()
    try:
        with pytest.raises(HookError, match="no end of file"):
            state.read_stdin(0.2)
    finally:
        stop.set()
        writer.join()


@pytest.mark.parametrize(("size", "fits"), [(state.MAX_STATE, True), (state.MAX_STATE + 1, False)])
def test_the_state_has_a_limit(tmp_path: Path, size: int, fits: bool) -> None:
    kept = os.dup(0)
    (tmp_path / "s").write_bytes(b" " * size)
    fd = os.open(tmp_path / "s", os.O_RDONLY)
    os.dup2(fd, 0)
    os.close(fd)
    try:
        if fits:
            assert len(state.read_stdin(5.0)) == size
        else:
            with pytest.raises(HookError, match=f"more than {state.MAX_STATE} bytes"):
                state.read_stdin(5.0)
    finally:
        os.dup2(kept, 0)
        os.close(kept)


def test_the_real_deadline_is_five_seconds() -> None:
    assert state.READ_SECONDS == 5.0


# -- --container-spec ----------------------------------------------------------------------------------------------


def test_a_file_is_read_instead_of_stdin(tmp_path: Path) -> None:
    (tmp_path / "s").write_text('{"id": "from a file"}')
    assert state.read(str(tmp_path / "s")).id == "from a file"


@pytest.mark.parametrize("spec", ["state.json", "./state.json", "../x", "--", " -"])
def test_a_relative_file_is_refused(spec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "state.json").write_text("{}")
    with pytest.raises(HookError, match="not an absolute path"):
        state.read(spec)


# -- the root ------------------------------------------------------------------------------------------------------

ROOTS: dict[str, tuple[dict[str, str], str]] = {
    "absolute": ({"root": "/r", "bundle": "/b"}, "/r"),
    "absolute without a bundle": ({"root": "/r"}, "/r"),
    "relative": ({"root": "rootfs", "bundle": "/b"}, "/b/rootfs"),
    "relative with dots": ({"root": "../r", "bundle": "/b"}, "/b/../r"),
    "bundle is /": ({"root": "rootfs", "bundle": "/"}, "//rootfs"),
}
NO_ROOTS: dict[str, tuple[dict[str, str], str]] = {
    "/": ({"root": "/"}, "is `/`"),
    "slashes": ({"root": "///"}, "is `///`"),
    "dots": ({"root": "/../."}, "the host's root is never touched"),
    "relative dots in /": ({"root": ".", "bundle": "/"}, "the host's root is never touched"),
    "nothing": ({}, "neither `root` nor `bundle`"),
    "relative and no bundle": ({"root": "rootfs"}, "there is no bundle"),
    "relative bundle": ({"root": "/r", "bundle": "b"}, "bundle `b` is not an absolute path"),
}


@pytest.mark.parametrize(("fields", "path"), ROOTS.values(), ids=ROOTS)
def test_root_of_the_state_wins_and_config_is_not_opened(
    fields: dict[str, str], path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config, "load", lambda bundle: pytest.fail("config.json was opened"))
    assert state.rootfs_path(state.parse(json.dumps(fields).encode())) == path


@pytest.mark.parametrize(("fields", "reason"), NO_ROOTS.values(), ids=NO_ROOTS)
def test_a_state_without_a_usable_root_is_refused(fields: dict[str, str], reason: str) -> None:
    with pytest.raises(HookError) as caught:
        state.rootfs_path(state.parse(json.dumps(fields).encode()))
    assert reason in caught.value.line()


@pytest.mark.parametrize("root", [None, ""], ids=["absent", "empty"])
@pytest.mark.parametrize(("given", "path"), [("rootfs", "{bundle}/rootfs"), ("/r", "/r"), ("./x/", "{bundle}/./x/")])
def test_without_root_it_is_that_of_config(tmp_path: Path, root: str | None, given: str, path: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"root": {"path": given}, "process": "odd"}))
    (tmp_path / "config.json").chmod(0o644)
    doc = {"bundle": str(tmp_path)} | ({} if root is None else {"root": root})
    assert state.rootfs_path(state.parse(json.dumps(doc).encode())) == path.format(bundle=tmp_path)
