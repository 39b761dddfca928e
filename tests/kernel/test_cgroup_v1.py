"""Device lists of the v1 hierarchy: what is added, what undo leaves, and what is refused."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from nvoci.errors import HookError
from nvoci.linux.devicelist import DeviceList, Lines
from nvoci.linux.devicerule import DeviceRule
from nvoci.linux.fd import Fd
from tests.kernel import devcgroups
from tests.kernel.devcgroups import DISK, GPU, NULL, OTHER
from tests.kernel.namespaced import isolated, sh

pytestmark = pytest.mark.kernel
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="cgroups need root")

OURS = [DeviceRule("c", 195, 0)]
ALL, NONE = "r w rw", ""


def listed(path: Path) -> list[str]:
    return (path / "devices.list").read_text().splitlines()


def restrict(path: Path, *lines: str) -> None:
    """As a runtime does it: everything denied, then its list."""
    (path / "devices.deny").write_text("a")
    for line in lines:
        (path / "devices.allow").write_text(line)


def devices(path: Path, shared: bool = False) -> DeviceList:
    return DeviceList(Fd(os.open(path, os.O_RDONLY | os.O_DIRECTORY)), b"/test", shared)


# -- reading a list -------------------------------------------------------------------------------------------------

LISTS = {
    "everything": (["a *:* rwm"], "c", True, ""),
    "nothing": ([], "c", False, "rw"),
    "exactly": (["c 195:0 rw"], "c", True, ""),
    "more access": (["c 195:0 rwm"], "c", True, ""),
    "any minor": (["c 195:* rwm"], "c", True, "rw"),
    "any number": (["c *:* rw"], "c", True, "rw"),
    "mknod of all": (["c *:* m", "b *:* m"], "c", False, "rw"),
    "reading only": (["c 195:0 r"], "c", False, "w"),
    "in two lines": (["c 195:0 r", "c 195:* w"], "c", False, "w"),
    "mknod and writing": (["c 195:0 wm"], "c", False, "r"),
    "another type": (["b 195:0 rw"], "c", False, "rw"),
    "another number": (["c 195:1 rw", "c 19:0 rw", "c 1950:0 rw"], "c", False, "rw"),
    "a disk": (["b 195:0 rw"], "b", True, ""),
}


@pytest.mark.parametrize("name", LISTS)
def test_list_says_whether_a_rule_is_in_force_and_what_is_missing(name: str) -> None:
    lines, kind, allowed, missing = LISTS[name]
    parsed = Lines("".join(f"{line}\n" for line in lines).encode())
    rule = DeviceRule(kind, 195, 0)
    assert parsed.allow(rule) is allowed
    if name != "everything":
        assert parsed.missing(rule) == missing


@pytest.mark.parametrize("text", [b"c 195:0\n", b"c 195 rw\n", b"c 195:0 rw extra\n", b"\xff\n"])
def test_another_form_is_an_error(text: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        Lines(text)


# -- on the kernel --------------------------------------------------------------------------------------------------


@needs_root
def test_an_unrestricted_cgroup_is_left_alone() -> None:
    with devcgroups.cgroup("devices") as path:
        before = listed(path)
        devices(path).allow(OURS)
        assert listed(path) == before == ["a *:* rwm"]


@needs_root
def test_the_listed_device_opens_and_no_other(tmp_path: Path) -> None:
    nodes = [GPU, OTHER, DISK, NULL]
    with devcgroups.cgroup("devices") as path:
        restrict(path, "c 1:3 rwm", "b *:* m")
        before, was = devcgroups.answers(tmp_path, path, wanted=nodes), listed(path)
        assert before == [NONE, NONE, "m", ALL + " m"]
        made = devices(path)
        made.allow([*OURS, DeviceRule("b", 195, 0, "r")])
        assert devcgroups.answers(tmp_path, path, wanted=nodes) == [ALL, NONE, "r m", ALL + " m"]
        assert listed(path) == [*was, "c 195:0 rw", "b 195:0 r"]
        made.undo()
        assert listed(path) == was
        assert devcgroups.answers(tmp_path, path, wanted=nodes) == before


@needs_root
@pytest.mark.parametrize("line", ["c 195:0 r", "c 195:0 rm", "c 195:0 w", "c 195:0 m", "c 195:0 rwm", "c 195:* rwm"])
def test_undo_takes_away_what_was_added_and_no_more(line: str) -> None:
    with devcgroups.cgroup("devices") as path:
        restrict(path, line, "c 1:3 rwm")
        was = listed(path)
        made = devices(path)
        made.allow(OURS)
        assert Lines((path / "devices.list").read_bytes()).allow(OURS[0])
        made.undo()
        assert listed(path) == was


@needs_root
def test_a_second_run_adds_nothing() -> None:
    with devcgroups.cgroup("devices") as path:
        restrict(path, "c 1:3 rwm")
        devices(path).allow(OURS)
        was = listed(path)
        again = devices(path)
        again.allow(OURS)
        again.undo()
        assert listed(path) == was


@needs_root
def test_what_the_cgroup_above_forbids_is_an_error_that_names_it() -> None:
    with devcgroups.cgroup("devices", "below", setup=lambda top: restrict(top, "c 1:3 rwm", "c 195:0 rw")) as path:
        (path / "devices.deny").write_text("c 195:0 rw")
        was = listed(path)
        with pytest.raises(HookError) as caught:
            devices(path).allow([*OURS, DeviceRule("c", 195, 1)])
        assert caught.value.line() == (
            "device cgroup /test: allow c 195:1 rw: EPERM "
            "(a cgroup above does not allow this device, or the hook lacks CAP_SYS_ADMIN)"
        )
        assert listed(path) == was == ["c 1:3 rwm"]


@needs_root
def test_a_read_only_mount_is_an_error_that_says_where_to_call() -> None:
    with devcgroups.cgroup("devices") as path:
        restrict(path, "c 1:3 rwm")

        def body() -> str:
            sh(f"mount --bind {path} {path}; mount -o remount,ro,bind {path}")
            with pytest.raises(HookError) as caught:
                devices(path).allow(OURS)
            return caught.value.line()

        assert "EROFS (the cgroup file system is mounted read-only here: call the hook as createRuntime" in isolated(
            body
        )


@needs_root
def test_a_cgroup_that_is_the_runtimes_too_is_not_changed() -> None:
    with devcgroups.cgroup("devices") as path:
        devices(path, shared=True).allow(OURS)  # everything is allowed: nothing to do
        restrict(path, "c 1:3 rwm")
        with pytest.raises(HookError, match="is the runtime's own, too"):
            devices(path, shared=True).allow(OURS)
        assert listed(path) == ["c 1:3 rwm"]


@needs_root
def test_a_cgroup_that_has_gone_is_an_error() -> None:
    with devcgroups.cgroup("devices") as path:
        made = devices(path)
    with pytest.raises(HookError, match=rf"read devices.list: {errno.errorcode[errno.ENODEV]}|ENOENT"):
        made.allow(OURS)
