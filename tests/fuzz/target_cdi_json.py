"""A CDI specification in JSON: read, written in both formats, and read again."""

from __future__ import annotations

import json

from fuzz.registry import Target, register

from nvoci.cdi import document, text
from nvoci.cdi.error import SpecError
from nvoci.cdi.model import Spec

_EDITS = {
    "env": ["A=b"],
    "deviceNodes": [{"path": "/dev/a", "hostPath": "/dev/b", "type": "c", "major": 195, "minor": 7, "fileMode": 438,
                     "permissions": "rwm", "uid": 1, "gid": 44}],
    "netDevices": [{"hostInterfaceName": "eth0", "name": "eth1"}],
    "hooks": [{"hookName": "prestart", "path": "/h", "args": ["h", "-x"], "env": ["B=c"], "timeout": 5}],
    "mounts": [{"hostPath": "/a", "containerPath": "/b", "options": ["ro"], "type": "tmpfs"}],
    "intelRdt": {"closID": "a", "l3CacheSchema": "L3:0=f", "memBwSchema": "MB:0=9", "schemata": [],
                 "enableMonitoring": True},
    "additionalGids": [44, 104],
}  # fmt: skip
FULL = {
    "cdiVersion": "1.1.0",
    "kind": "nvidia.com/gpu",
    "annotations": {"a/b": "c"},
    "devices": [{"name": "0", "annotations": {"d/e": "f"}, "containerEdits": _EDITS}],
    "containerEdits": _EDITS,
}
"""Every field there is."""

TOKENS = (
    b'"name":', b'"path":', b'"devices":', b'"containerEdits":', b'"deviceNodes":[', b'"hooks":[', b'"intelRdt":',
    b'"env":[', b'"annotations":', b'"major":', b'"fileMode":', b'"schemata":', b"null", b"true", b"{}", b"[]", b'""',
    b"{", b"}", b"[", b"]", b",", b":", b'"', b"\\u0000", b"\\ud800", b"\\udc00", b"\\", b"-1", b"1e9", b"0.5",
    b"4294967296", b"9" * 40, b"NaN", b"\xef\xbb\xbf", b"\xff", b"\0",
)  # fmt: skip


def _seeds() -> list[bytes]:
    least = {"cdiVersion": "0.3.0", "kind": "a/b", "devices": [{"name": "c", "containerEdits": {"env": ["A=b"]}}]}
    return [json.dumps(least).encode(), json.dumps(FULL).encode(), json.dumps(FULL, indent=1).encode()]


def _parse(data: bytes) -> Spec:
    return text.loads(data, "x.json")


def names_what_is_wrong(error: Exception) -> bool:
    """One printable line of no more than some hundred characters, whatever the input holds."""
    line = error.line() if isinstance(error, SpecError) else ""
    return bool(line) and line.isprintable() and len(line) < 1000


def check_written_and_read_again(data: bytes, case: bytes, spec: Spec) -> None:
    """In both formats; and the document is one."""
    assert document.from_object(document.to_object(spec)) == spec
    for form in text.FORMATS:
        assert text.loads(text.dumps(spec, form).encode(), format=form) == spec


def _check(data: bytes, case: bytes, spec: Spec) -> None:
    """The json package reads the same; what it reads and we wrote not was null or empty."""
    check_written_and_read_again(data, case, spec)
    _same_but_for_nothing(json.loads(data.removeprefix(b"\xef\xbb\xbf")), document.to_object(spec))


def _same_but_for_nothing(theirs: object, ours: object) -> None:
    if isinstance(theirs, dict) and isinstance(ours, dict):
        for key in theirs.keys() | ours.keys():
            if key in theirs and theirs[key] and key in ours:
                _same_but_for_nothing(theirs[key], ours[key])
            else:
                assert not theirs.get(key)
                assert not ours.get(key)
    elif isinstance(theirs, list) and isinstance(ours, list):
        assert len(theirs) == len(ours)
        for their, our in zip(theirs, ours):
            _same_but_for_nothing(their, our)
    else:
        assert theirs == ours


register(
    Target(
        "cdi-json", parse=_parse, errors=(SpecError,), allowed=names_what_is_wrong, check=_check, seeds=_seeds,
        tokens=TOKENS, max_size=1 << 13,
    )
)  # fmt: skip
