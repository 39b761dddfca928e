"""config.json of a bundle: only `root.path` and the mount label are looked at, once, on one handle."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nvoci.errors import HookError
from nvoci.oci import config


@pytest.fixture(autouse=True)
def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "_loaded", {})


def bundle(tmp_path: Path, doc: Any) -> str:
    path = tmp_path / "config.json"
    path.write_bytes(doc if isinstance(doc, bytes) else json.dumps(doc).encode())
    path.chmod(0o644)
    return str(tmp_path)


PATHS: dict[str, tuple[Any, str]] = {
    "relative": ({"root": {"path": "rootfs"}}, "rootfs"),
    "absolute": ({"root": {"path": "/r"}}, "/r"),
    "unicode": ({"root": {"path": "\u9a71"}}, "\u9a71"),
    "absent": ({}, ""),
    "root without path": ({"root": {"readonly": True}}, ""),
    "root is a string": ({"root": "/r"}, ""),
    "root is null": ({"root": None}, ""),
    "other fields odd": ({"root": {"path": "r"}, "hooks": 3, "ociVersion": {}, "mounts": None}, "r"),
}
BAD: dict[str, tuple[Any, str]] = {
    "number": ({"root": {"path": 3}}, "`root.path` is not a path"),
    "null": ({"root": {"path": None}}, "`root.path` is not a path"),
    "list": ({"root": {"path": ["/"]}}, "`root.path` is not a path"),
    "NUL": ({"root": {"path": "/a\0"}}, "`root.path` is not a path"),
    "surrogate": ({"root": {"path": "/\ud800"}}, "`root.path` is not a path"),
    "low surrogate": ({"root": {"path": "/\udcff"}}, "`root.path` is not a path"),
    "not an object": ([], "not a JSON object"),
    "garbage": (b"{", "not valid JSON"),
    "empty": (b"", "not valid JSON"),
    "root twice": (b'{"root": {"path": "/a"}, "root": {"path": "/b"}}', "key `root` is given twice"),
    "two documents": (b'{"root": {"path": "/a"}}{}', "more text after the value"),
}


@pytest.mark.parametrize(("doc", "path"), PATHS.values(), ids=PATHS)
def test_root_path(tmp_path: Path, doc: Any, path: str) -> None:
    assert config.root_path(bundle(tmp_path, doc)) == path


@pytest.mark.parametrize(("doc", "reason"), BAD.values(), ids=BAD)
def test_a_config_that_gives_no_path_is_refused_by_name(tmp_path: Path, doc: Any, reason: str) -> None:
    with pytest.raises(HookError) as caught:
        config.root_path(bundle(tmp_path, doc))
    assert caught.value.line().startswith(f"read config {tmp_path}/config.json: ")
    assert reason in caught.value.line()


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda path: path.unlink(), "ENOENT"),
    "FIFO": (lambda path: (path.unlink(), os.mkfifo(path)), "not a regular file"),
    "directory": (lambda path: (path.unlink(), path.mkdir()), "not a regular file"),
    "1 GiB": (lambda path: os.truncate(path, 1 << 30), "EFBIG"),
    "a byte more than 16 MiB": (lambda path: os.truncate(path, (16 << 20) + 1), "EFBIG"),
    "others can write": (lambda path: path.chmod(0o666), "mode 0666: others can write it"),
    "another owner": (lambda path: os.chown(path, 1000, 1000), "owned by uid 1000"),
}


@pytest.mark.parametrize(("damage", "reason"), DAMAGE.values(), ids=DAMAGE)
def test_a_file_that_the_runtime_did_not_make_is_refused(
    tmp_path: Path, damage: Callable[[Path], object], reason: str
) -> None:
    folder = bundle(tmp_path, {"root": {"path": "r"}})
    damage(tmp_path / "config.json")
    with pytest.raises(HookError) as caught:
        config.load(folder)
    assert reason in caught.value.line()


@pytest.mark.parametrize("mode", [0o400, 0o644, 0o664])
def test_modes_that_runtimes_leave_are_taken(tmp_path: Path, mode: int) -> None:
    folder = bundle(tmp_path, {"root": {"path": "r"}})
    (tmp_path / "config.json").chmod(mode)
    assert config.root_path(folder) == "r"


def test_it_is_read_once(tmp_path: Path) -> None:
    folder = bundle(tmp_path, {"root": {"path": "first"}})
    assert config.root_path(folder) == "first"
    bundle(tmp_path, {"root": {"path": "second"}})
    assert config.root_path(folder) == "first"


LABELS: dict[str, tuple[Any, str]] = {
    "given": ({"linux": {"mountLabel": "system_u:object_r:container_file_t:s0:c1,c2"}},
              "system_u:object_r:container_file_t:s0:c1,c2"),
    "absent": ({}, ""), "no linux": ({"linux": None}, ""), "linux is a list": ({"linux": []}, ""),
    "a number": ({"linux": {"mountLabel": 3}}, ""), "null": ({"linux": {"mountLabel": None}}, ""),
}  # fmt: skip


@pytest.mark.parametrize(("doc", "label"), LABELS.values(), ids=LABELS)
def test_mount_label(doc: Any, label: str) -> None:
    assert config.mount_label(doc) == label
