"""The OCI state on stdin, and the few things that hooks read in a bundle's config.json."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fuzz.registry import Target, register
from fuzz.words import JSON_TOKENS, dump, one_line

from nvoci.errors import HookError
from nvoci.oci import config
from nvoci.oci.spec import Spec
from nvoci.oci.state import State, parse, rootfs_path

_STATE = {"ociVersion": "1.0.2", "id": "c1", "status": "creating", "pid": 4711, "bundle": "/run/b", "root": "/run/b/r"}
STATE_TOKENS = (
    *JSON_TOKENS, b'"pid":', b'"root":', b'"bundle":', b'"status":', b'"id":', b'"annotations":', b'"created"',
    b'"stopped"', b'"/.."', b'"//"', b'"."', b'"r"', b"4194304", b"4194305", b"true",
)  # fmt: skip


def _state_seeds() -> list[bytes]:
    return [
        dump(_STATE),
        dump({**_STATE, "annotations": {"a": "b", "cdi.k8s.io/x": "nvidia.com/gpu=0"}}),
        dump({**_STATE, "root": "rootfs", "pid": 0}),
        dump({"id": "x", "bundle": "/b", "root": None, "pid": None}),
        dump({**_STATE, "status": "", "root": "/./."}),
        dump({**_STATE, "bundle": "relative", "root": "\u00e9\u202e"}),
        b" {}\n", b"", b"[]", b"nul",
    ]  # fmt: skip


def _parse(data: bytes) -> tuple[State, str]:
    """Without looking at any file: a root that stands in config.json is another target."""
    state = parse(data)
    return state, rootfs_path(state) if state.root else ""


def _check_state(data: bytes, case: bytes, answer: tuple[State, str]) -> None:
    """The json package reads the same; a path is absolute and is not that of the host."""
    state, path = answer
    doc = json.loads(data)
    assert (state.id, state.pid) == (doc.get("id") or "", doc.get("pid"))
    assert [os.fsencode(text) for text in (state.bundle, state.root)] == [
        (doc.get(key) or "").encode() for key in ("bundle", "root")
    ]
    assert state.annotations == (doc.get("annotations") if isinstance(doc.get("annotations"), dict) else {})
    assert state.pid is None or (type(state.pid) is int and 0 <= state.pid <= 1 << 22)
    assert not any("\0" in text for text in (state.id, state.bundle, state.root))
    if path:
        assert path.startswith("/")
        assert path.strip("/.")
        assert path.endswith(state.root)


register(
    Target(
        "state", parse=_parse, errors=(HookError,), allowed=one_line, check=_check_state, seeds=_state_seeds,
        tokens=STATE_TOKENS, max_size=1 << 13, executions=2500,
    )
)  # fmt: skip


# -- config.json ----------------------------------------------------------------------------------------------------

_CONFIG: dict[str, Any] = {
    "ociVersion": "1.0.2",
    "root": {"path": "rootfs"},
    "process": {"env": ["PATH=/bin", "A=1", "A=2=3"], "capabilities": {"bounding": ["CAP_CHOWN", "CAP_SYS_ADMIN"]}},
    "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}, {"destination": "/x"}],
    "linux": {"namespaces": [{"type": "pid"}, {"type": "user"}], "mountLabel": "system_u:object_r:x:s0:c1,c2"},
}
CONFIG_TOKENS = (
    *JSON_TOKENS, b'"root":', b'"path":', b'"process":', b'"env":', b'"capabilities":', b'"bounding":', b'"mounts":',
    b'"linux":', b'"namespaces":', b'"type":', b'"user"', b'"CAP_SYS_ADMIN"', b'"mountLabel":', b'"ociVersion":',
    b'"1.0.0-rc2"', b'"1.0.0-rc5"', b'"A=b"', b'"A"', b'"="',
)  # fmt: skip


def _config_seeds() -> list[bytes]:
    flat = {**_CONFIG["process"], "capabilities": ["CAP_SYS_ADMIN"]}
    return [
        dump(_CONFIG),
        dump({**_CONFIG, "ociVersion": "1.0.0-rc4-dev", "process": flat}),
        dump({**_CONFIG, "linux": None, "mounts": None}),
        dump({**_CONFIG, "root": {"path": "/x\0"}}),
        dump({"root": {}, "process": {"env": []}}),
        b"{}",
    ]


@contextlib.contextmanager
def _bundle(data: bytes) -> Iterator[str]:
    """A directory of its own with the file, and nothing of an earlier one remembered."""
    folder = tempfile.mkdtemp()
    try:
        Path(folder, "config.json").write_bytes(data)
        yield folder
    finally:
        shutil.rmtree(folder)


def _views(bundle: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """(the document, each answer or the error in its place). Raises HookError where there is no document."""
    config._loaded.clear()
    doc = config.load(bundle)
    spec = Spec(doc, bundle)
    asks: dict[str, Callable[[], Any]] = {
        "root": lambda: config.root_path(bundle),
        "label": lambda: config.mount_label(doc),
        "environment": spec.environment,
        "mounts": spec.mounts,
        "bounding": lambda: spec.bounding("CAP_SYS_ADMIN"),
        "user": lambda: spec.has_namespace("user"),
        "privileged": spec.privileged,
    }
    found: dict[str, Any] = {}
    for name, ask in asks.items():
        try:
            found[name] = ask()
        except HookError as e:
            found[name] = e
    return doc, found


def _check_config(data: bytes, case: str, answer: tuple[dict[str, Any], dict[str, Any]]) -> None:
    """Each answer is what a plain reading of the document gives, or one line that says why there is none."""
    doc, found = answer
    assert doc == json.loads(data)
    assert all(one_line(value) for value in found.values() if isinstance(value, HookError))
    plain = _plain(doc)
    for name, value in found.items():
        if isinstance(value, HookError):
            assert name not in plain, f"{name} could be told: {value.line()}"
        else:
            assert name not in plain or value == plain[name], name
    if found["privileged"] is True:
        assert (found["bounding"], found["user"]) == (True, False)
    assert "\0" not in found["label"] or "\\u0000" in data.decode()


def _plain(doc: dict[str, Any]) -> dict[str, Any]:
    """What a config of the usual form says, read without a check; nothing of what has another form."""
    found: dict[str, Any] = {}
    with contextlib.suppress(Exception):
        path = doc["root"]["path"]
        if isinstance(path, str) and "\0" not in path and path.encode().decode():
            found["root"] = path
    with contextlib.suppress(Exception):
        pairs = [entry.split("=", 1) for entry in doc["process"]["env"]]
        if doc["ociVersion"] and doc["root"] != "" and doc["root"] is not None and type(doc["process"]["env"]) is list:
            found["environment"] = dict(pairs)
    with contextlib.suppress(Exception):
        if type(doc["mounts"]) is list and all(type(m) is dict for m in doc["mounts"]):
            pairs = [(m.get("source") or "", m.get("destination") or "") for m in doc["mounts"]]
            if all(type(text) is str for pair in pairs for text in pair):
                found["mounts"] = pairs
    with contextlib.suppress(Exception):
        kinds = [entry.get("type") for entry in doc["linux"]["namespaces"]]
        if type(doc["linux"]["namespaces"]) is list:
            found["user"] = "user" in kinds
    return found


register(
    Target(
        "config-view", parse=_views, prepare=_bundle, errors=(HookError,), allowed=one_line, check=_check_config,
        seeds=_config_seeds, tokens=CONFIG_TOKENS, max_size=1 << 13, executions=1500,
    )
)  # fmt: skip
