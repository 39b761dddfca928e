"""nvoci.linux.acting: another user's ids for a moment, and everything as before afterwards."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import pytest

from nvoci.linux import abi, syscalls
from nvoci.linux.acting import Acting
from tests.kernel.devcgroups import drop_capabilities
from tests.kernel.namespaced import isolated

pytestmark = [pytest.mark.kernel, pytest.mark.skipif(os.geteuid() != 0, reason="changing ids needs root")]

PR_GET_DUMPABLE = 3
CAP_SETUID = 7


def state() -> tuple[int, int, int, int, str]:
    """Effective ids, death signal, dumpable, effective capabilities."""
    signal = ctypes.c_int()
    syscalls.prctl(abi.PR_GET_PDEATHSIG, ctypes.addressof(signal))
    lines = Path("/proc/self/status").read_text().splitlines()
    (capabilities,) = (line.split()[1] for line in lines if line.startswith("CapEff:"))
    return os.geteuid(), os.getegid(), signal.value, syscalls.prctl(PR_GET_DUMPABLE), capabilities


@pytest.mark.parametrize("signal", [0, 9])
def test_files_are_anothers_and_everything_is_as_before(tmp_path: Path, signal: int) -> None:
    def body() -> None:
        tmp_path.chmod(0o777)
        os.chdir(tmp_path)
        syscalls.prctl(abi.PR_SET_PDEATHSIG, signal)
        syscalls.prctl(abi.PR_SET_DUMPABLE, 0)
        before = state()
        with Acting(100_000, 100_001):
            assert state()[:2] == (100_000, 100_001)
            assert int(state()[4], 16) == 0
            os.close(os.open("x", os.O_CREAT | os.O_WRONLY))
        assert state() == before
        assert before[2:4] == (signal, 0)
        assert ((tmp_path / "x").stat().st_uid, (tmp_path / "x").stat().st_gid) == (100_000, 100_001)

    isolated(body)


def test_an_error_in_between_leaves_nothing_changed() -> None:
    def body() -> None:
        syscalls.prctl(abi.PR_SET_DUMPABLE, 0)
        before = state()
        with pytest.raises(KeyError), Acting(1, 1):
            raise KeyError
        assert state() == before

    isolated(body)


def test_ids_that_may_not_be_taken_leave_nothing_changed() -> None:
    def body() -> None:
        syscalls.prctl(abi.PR_SET_DUMPABLE, 0)
        drop_capabilities(CAP_SETUID)
        before = state()
        with pytest.raises(PermissionError), Acting(1, 1):
            pass
        assert state() == before

    isolated(body)
