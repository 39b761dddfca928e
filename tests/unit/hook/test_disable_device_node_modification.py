"""The hook's reading of params, and its one mount."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from nvoci.errors import HookError
from nvoci.hook import disable_device_node_modification as hook
from nvoci.hook.mounts import GeneratedMount
from nvoci.hook.settings import Settings
from nvoci.linux import procfs
from tests.kernel.namespaced import isolated, make_container, sh

ON, OFF = b"ModifyDeviceFiles: 1", b"ModifyDeviceFiles: 0"

TABLE: dict[str, tuple[bytes, bytes | None]] = {
    "on": (ON + b"\nA: 2\n", OFF + b"\nA: 2\n"),
    "last line without newline": (b"A: 2\n" + ON, b"A: 2\n" + OFF + b"\n"),
    "carriage returns": (b"A: 2\r\n" + ON + b"\r\n", b"A: 2\n" + OFF + b"\n"),
    "empty lines kept": (b"\n" + ON + b"\n\n\n", b"\n" + OFF + b"\n\n\n"),
    "twice on": (ON + b"\n" + ON + b"\n", OFF + b"\n" + OFF + b"\n"),
    "off": (OFF + b"\n", None),
    "off after on": (ON + b"\n" + OFF + b"\n", None),
    "another value": (b"ModifyDeviceFiles: 2\n", None),
    "longer number": (ON + b"0\n", None),
    "indented": (b" " + ON + b"\n", None),
    "trailing space": (ON + b" \n", None),
    "two spaces": (b"ModifyDeviceFiles:  1\n", None),
    "other case": (ON.lower() + b"\n", None),
    "key absent": (b"A: 2\n", None),
    "empty": (b"", None),
    "not text": (b"\xff\xfe\0\n" + ON + b"\n", b"\xff\xfe\0\n" + OFF + b"\n"),
}


@pytest.mark.parametrize(("params", "expected"), TABLE.values(), ids=TABLE)
def test_only_the_exact_line_is_changed(params: bytes, expected: bytes | None) -> None:
    assert hook.changed(params) == expected


def prepared(setup: str) -> Any:
    """prepare() in a process whose /proc/driver is what `setup` makes of an empty directory $D."""

    def body() -> Any:
        sh(f"mount -t tmpfs driver /proc/driver; D=/proc/driver; {setup}")
        procfs._handle = -1  # the parent's handle is of its own namespace
        try:
            return hook.prepare({}, Settings())
        except HookError as e:
            return e.line()

    return isolated(body)


@pytest.mark.kernel
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
@pytest.mark.parametrize(
    ("setup", "expected"),
    [
        ("true", None),
        ("mkdir $D/nvidia", None),
        ("touch $D/nvidia", None),
        ("mkdir $D/nvidia; echo 'ModifyDeviceFiles: 1' > $D/nvidia/params", OFF + b"\n"),
        ("mkdir $D/nvidia; echo 'ModifyDeviceFiles: 0' > $D/nvidia/params", None),
        ("mkdir -p $D/nvidia/params", "read /proc/driver/nvidia/params: EISDIR"),
        ("mkdir $D/nvidia; truncate -s 1T $D/nvidia/params", "read /proc/driver/nvidia/params: EFBIG"),
    ],
)
def test_params_are_the_hosts(setup: str, expected: Any) -> None:
    result = prepared(setup)
    assert result.startswith(expected) if isinstance(expected, str) else result == expected


def test_plan_is_one_mount_over_the_containers_params(tmp_path: Path) -> None:
    (tmp_path / "rootfs").mkdir()
    (operation,) = hook.plan(OFF + b"\n", make_container(tmp_path / "rootfs"))
    assert isinstance(operation, GeneratedMount)
    assert operation.describe() == "mount generated driver params on /proc/driver/nvidia/params (21 bytes, read-only)"
    assert (operation.data, operation.mode) == (OFF + b"\n", 0o444)
