"""nvoci.linux.procfs and libc: the handle that is believed, and an interpreter without ctypes."""

from __future__ import annotations

import importlib.util
import os
import sys
from errno import EINVAL
from pathlib import Path

import pytest

from nvoci.errors import HookError
from nvoci.linux import libc, procfs
from tests.kernel.namespaced import isolated, os_error, sh

pytestmark = pytest.mark.kernel
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")

PROCS = {
    "another file system": ("mount -t tmpfs tmpfs /proc", "start: /proc is not a procfs (the hook runs with"),
    "a part of one": ("mount --bind /proc/sys /proc", "start: /proc is not a procfs (the hook runs with"),
    "none": ("", "start: open /proc: ENOENT (the host's procfs must be mounted)"),
}


@needs_root
@pytest.mark.parametrize("case", PROCS)
def test_only_the_root_of_a_procfs_is_taken(case: str, tmp_path: Path) -> None:
    script, wanted = PROCS[case]

    def body() -> str:
        sh(script or "true")
        procfs._handle = -1
        if not script:
            os.chroot(tmp_path)
        with pytest.raises(HookError) as caught:
            procfs.handle()
        return caught.value.line()

    assert isolated(body).startswith(wanted)


def test_names_of_a_descriptor() -> None:
    with open("/etc/passwd") as file:
        fd = file.fileno()
        assert procfs.name_of(fd) == b"/etc/passwd"
        assert os.path.samestat(os.stat(procfs.fd_path(fd), dir_fd=procfs.handle()), os.fstat(fd))


@pytest.mark.parametrize("text", [b"", b"self", b"-1", b"12345678901", b"1 ", "\u0661".encode()])
def test_what_is_no_pid(text: bytes) -> None:
    with os_error() as caught:
        procfs.parse_pid(text)
    assert caught.value.errno == EINVAL


def test_a_python_without_ctypes_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "_ctypes", None)
    assert libc.__file__ is not None
    spec = importlib.util.spec_from_file_location("libc_without_ctypes", libc.__file__)
    assert spec is not None
    assert spec.loader is not None
    with pytest.raises(SystemExit, match=r"^start: import _ctypes: .*\(this Python has no ctypes"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
