"""The systemd units: what stands in them, and what they do when a driver comes, changes and goes."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import pytest
from lib import proc
from simnode.cditools import hook_program, run
from simnode.nodes import built, needs_x86, nvoci
from simnode.systemdtools import SHIPPED, UNITS, boot, entries, laid

SERVICE, REFRESH = "nvoci-cdi-refresh.service", "nvoci-cdi-refresh.path"
DRIVER, TARGET = "nvoci-cdi-driver.path", "nvoci-cdi-driver.target"


def test_these_are_all() -> None:
    assert sorted(path.name for path in UNITS.iterdir()) == sorted([SERVICE, REFRESH, DRIVER, TARGET])


# -- what stands in them ----------------------------------------------------------------------------------------------


def test_the_service_runs_once_and_its_directories_stay() -> None:
    found = entries(SERVICE)
    assert found["Service.Type"] == ["oneshot"]
    assert found["Service.RuntimeDirectory"] == ["cdi nvoci"]  # /run/cdi, /run/nvoci
    assert found["Service.RuntimeDirectoryPreserve"] == ["yes"]  # or systemd would remove what was made
    assert found["Install.WantedBy"] == ["multi-user.target"]
    assert found["Install.Also"] == [f"{REFRESH} {DRIVER}"]


def test_it_never_fails_for_being_started_too_often() -> None:
    """A path unit whose service meets its limit fails for good; each run takes a tenth of a second or more."""
    found = entries(SERVICE)
    assert (found["Unit.StartLimitIntervalSec"], found["Unit.StartLimitBurst"]) == (["10min"], ["60"])
    assert "Service.Restart" not in found  # of a oneshot service systemd before 244 refuses it, and so the unit


def test_its_deadline_is_behind_that_of_waiting() -> None:
    found = entries(SERVICE)
    words = shlex.split(found["Service.ExecStart"][0])
    assert words[:3] == [SHIPPED, "cdi", "refresh"]
    assert float(words[words.index("--wait") + 1]) < 60
    assert found["Service.TimeoutStartSec"] == ["3min"]


# What would hide the driver from the service: its devices, what it tells in procfs, sockets in /tmp.
HIDING = ("PrivateDevices", "DevicePolicy", "DeviceAllow", "ProtectClock", "ProcSubset", "PrivateTmp", "PrivateUsers",
          "RootDirectory", "DynamicUser", "User")  # fmt: skip


@pytest.mark.parametrize("name", HIDING)
def test_it_is_not_confined_by(name: str) -> None:
    assert f"Service.{name}" not in entries(SERVICE)


CONFINED = {
    "ProtectSystem": "strict", "ReadWritePaths": "-/etc/cdi", "NoNewPrivileges": "yes", "PrivateNetwork": "yes",
    "RestrictNamespaces": "yes", "CapabilityBoundingSet": "CAP_SETUID CAP_SETGID CAP_KILL",
}  # fmt: skip


@pytest.mark.parametrize("name", CONFINED)
def test_it_is_confined_by(name: str) -> None:
    assert entries(SERVICE)[f"Service.{name}"] == [CONFINED[name]]


def test_device_nodes_are_not_watched_for_changes() -> None:
    """Each program that closes one would be a change."""
    for path in entries(REFRESH)["Path.PathChanged"]:
        assert not path.startswith("/dev/") or path in {"/dev/dri/by-path", "/dev/nvidia-caps"}
    assert entries(DRIVER)["Path.PathExists"] == ["/dev/nvidiactl"]
    # What is started for a path that exists has to stay active, or it is started again and again.
    assert entries(DRIVER)["Path.Unit"] == [TARGET]
    assert entries(TARGET)["Unit.Wants"] == entries(TARGET)["Unit.After"] == [SERVICE]
    assert [entries(name)["Install.WantedBy"] for name in (REFRESH, DRIVER)] == [["multi-user.target"]] * 2


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd to ask")
def test_systemd_finds_nothing_wrong(tmp_path: Path) -> None:
    done = proc.run(["systemd-analyze", "verify", *laid(tmp_path / "units", "/bin/true")], timeout=30)
    assert (done.rc, done.stdout, done.stderr) == (0, "", "")


# -- what they do -----------------------------------------------------------------------------------------------------


@needs_x86
def test_the_services_command_makes_the_specification() -> None:
    words = shlex.split(entries(SERVICE)["Service.ExecStart"][0])
    command = shlex.join([str(nvoci()), *words[1:]])
    hook_program()
    done = run(built("no-drm"), command, "NVOCI check")
    assert (done.rc, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == "/var/run/cdi/nvidia.yaml: fresh"
    done = run(built("driver-not-loaded"), command)
    assert (done.rc, done.stdout) == (0, "no driver: the kernel module nvidia is not loaded (modprobe nvidia)\n")


# The driver is hidden at first: its nodes, and what it tells in procfs.
HIDE = "mkdir /run/hidden; mv /dev/nvidia* /run/hidden; mount -t tmpfs none /proc/driver"
BOOT = """\
state() { systemctl show -P Result -P ActiveState "$@" | grep -v '^$' | paste -sd ' '; }
lines() { cat /run/out 2>/dev/null | wc -l; }
after() { for i in $(seq 150); do [ "$(lines)" -ge "$1" ] && break; sleep .1; done; sleep .3; echo "$2: $(lines)"; }
after 1 booted
state nvoci-cdi-refresh.service; ls /run/cdi | wc -l
umount /proc/driver; mv /run/hidden/* /dev
after 3 arrived
stat -c '%n %a %U' /run/cdi/nvidia.yaml /run/nvoci/inventory
for i in 1 2 3 4 5 6 7 8; do (true >/dev/nvidiactl; true >/dev/nvidia0) 2>/dev/null; done; sleep 1
after 3 used
cp /etc/ld.so.cache /etc/ld.so.cache~; mv /etc/ld.so.cache~ /etc/ld.so.cache
after 5 libraries
mknod /dev/nvidia-caps/nvidia-cap999 c 236 999
after 7 capability
mount -t tmpfs none /proc/driver; rm -r /dev/nvidia*
after 9 gone
ls /run/cdi | wc -l
for unit in refresh.service refresh.path driver.path driver.target; do echo $unit $(state nvoci-cdi-$unit); done
cat /run/out
"""
NONE = "no driver: the kernel module nvidia is not loaded (modprobe nvidia)"
FILE, INVENTORY = "/var/run/cdi/nvidia.yaml: ", "/run/nvoci/inventory: made"
OF = "nvidia.com/gpu, 5 devices, driver 550.163.01"


@needs_x86
def test_a_driver_comes_changes_and_goes() -> None:
    """Under a real systemd, with the confinement of the unit. After the fourth line eight programs have used a GPU."""
    hook_program()
    assert boot(built("no-drm"), nvoci(), BOOT, HIDE) == [
        "booted: 1", "success inactive", "0",
        "arrived: 3", "/run/cdi/nvidia.yaml 644 root", "/run/nvoci/inventory 644 root",
        "used: 3",
        "libraries: 5",
        "capability: 7",
        "gone: 9", "0",
        "refresh.service success inactive", "refresh.path success active", "driver.path success active",
        "driver.target active",
        NONE, f"{FILE}made: {OF}", INVENTORY, *[f"{FILE}unchanged: {OF}", INVENTORY] * 2,
        NONE, f"{FILE}removed: it is for devices that are not there",
    ]  # fmt: skip
