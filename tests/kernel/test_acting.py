"""nvoci.linux.acting: another user's ids for a moment, and everything as before afterwards."""

from __future__ import annotations

import ctypes
import os
import posix
import subprocess
from collections.abc import Callable
from errno import EPERM
from pathlib import Path

import pytest

from nvoci.linux import abi, procfs, syscalls
from nvoci.linux.acting import Acting
from tests.kernel.devcgroups import drop_capabilities
from tests.kernel.namespaced import isolated

pytestmark = [pytest.mark.kernel, pytest.mark.skipif(os.geteuid() != 0, reason="changing ids needs root")]

PR_GET_DUMPABLE = 3
CAP_SETGID, CAP_SETUID = 6, 7
CLONE_NEWUSER = 0x10000000


def state() -> tuple[int, int, int, int, str, list[int]]:
    """Effective ids, death signal, dumpable, effective capabilities, supplementary groups."""
    signal = ctypes.c_int()
    syscalls.prctl(abi.PR_GET_PDEATHSIG, ctypes.addressof(signal))
    lines = Path("/proc/self/status").read_text().splitlines()
    (capabilities,) = (line.split()[1] for line in lines if line.startswith("CapEff:"))
    dumpable = syscalls.prctl(PR_GET_DUMPABLE)
    return os.geteuid(), os.getegid(), signal.value, dumpable, capabilities, os.getgroups()


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


# --- supplementary groups --------------------------------------------------------------------------------------------


@pytest.mark.security
@pytest.mark.parametrize("groups", [[], [0], [0, 1, 65534, 4000000000]], ids=["none", "root", "some"])
def test_root_s_groups_open_nothing_and_are_there_again(tmp_path: Path, groups: list[int]) -> None:
    def body() -> None:
        tmp_path.chmod(0o770)
        os.setgroups(groups)
        os.chdir(tmp_path)
        syscalls.prctl(abi.PR_SET_DUMPABLE, 0)
        before = state()
        with Acting(100_000, 100_001):
            assert os.getgroups() == []
            with pytest.raises(PermissionError):
                os.open("x", os.O_CREAT | os.O_WRONLY)
        assert state() == before
        with pytest.raises(OverflowError), Acting(1 << 32, 1):  # found out when the groups are gone
            pass
        assert state() == before

    isolated(body)


@pytest.mark.parametrize("failing", ["setegid", "seteuid"])
def test_an_error_at_any_step_brings_the_groups_back(monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    def body() -> None:
        os.setgroups([7])
        syscalls.prctl(abi.PR_SET_DUMPABLE, 0)
        before, real = state(), getattr(posix, failing)

        def refuse(number: int) -> None:
            if number == 1:
                raise PermissionError(EPERM, "refused")
            real(number)

        monkeypatch.setattr(posix, failing, refuse)
        with pytest.raises(PermissionError), Acting(1, 1):
            pass
        assert state() == before

    isolated(body)


def test_groups_that_must_not_be_left_and_are_not_denied_are_an_error() -> None:
    """Without CAP_SETGID."""

    def body() -> None:
        os.setgroups([7])
        syscalls.prctl(abi.PR_SET_DUMPABLE, 0)
        drop_capabilities(CAP_SETGID)
        before = state()
        with pytest.raises(PermissionError), Acting(0, 0):
            pass
        assert state() == before

    isolated(body)


def test_groups_that_cannot_be_had_again_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def body() -> None:
        os.setgroups([7])
        real = posix.setgroups
        monkeypatch.setattr(posix, "setgroups", lambda groups: real(groups) if not groups else _refused())
        with pytest.raises(PermissionError), Acting(1, 1):
            pass
        assert (os.geteuid(), os.getegid()) == (0, 0)

    isolated(body)


def _refused() -> None:
    raise PermissionError(EPERM, "refused")


def test_a_parent_that_is_gone_meanwhile_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its death signal was forgotten for a moment, so it is looked for."""

    def body() -> None:
        syscalls.prctl(abi.PR_SET_PDEATHSIG, 9)
        acting = Acting(1, 1)
        monkeypatch.setattr(posix, "getppid", lambda: 1)
        with pytest.raises(ProcessLookupError), acting:
            pass

    isolated(body)


def in_user_namespace(maps: str, *, deny: bool, body: Callable[[], None]) -> None:
    """body() as root of a user namespace, with the group 5000 of the outer one."""

    script = f"""read line
    {"echo deny >/proc/$1/setgroups" if deny else ":"}
    echo {maps} >/proc/$1/uid_map && echo {maps} >/proc/$1/gid_map
    """

    def inside() -> None:
        os.setgroups([5000])
        with subprocess.Popen(["sh", "-ec", script, "sh", str(os.getpid())], stdin=subprocess.PIPE) as writer:
            syscalls.unshare(CLONE_NEWUSER)
            writer.communicate(b"go\n", timeout=10)
        assert writer.returncode == 0
        assert os.getgroups() == [65534]  # not mapped
        procfs.handle()
        body()

    isolated(inside)


@pytest.mark.parametrize(("maps", "deny", "during"), [("0 0 1000", False, []), ("0 0 1000", True, [65534])])
def test_in_a_user_namespace(maps: str, deny: bool, during: list[int]) -> None:
    """What is not mapped cannot be had again; what may not be given up, nobody there can."""

    def body() -> None:
        with Acting(5, 6):
            assert (os.geteuid(), os.getegid(), os.getgroups()) == (5, 6, during)
        assert (os.geteuid(), os.getegid(), os.getgroups()) == (0, 0, during)

    in_user_namespace(maps, deny=deny, body=body)
