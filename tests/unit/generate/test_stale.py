"""What of a specification is not so any more: driver, device nodes, files."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from unit.discover.looktools import needs_mknod
from unit.generate.staletools import Host, V

from nvoci.cdi.model import ContainerEdits, Device, DeviceNode, Hook, Mount, Spec
from nvoci.generate import stale
from nvoci.generate.now import Now

pytestmark = needs_mknod

VERSION = "annotations[nvoci.io/driver-version]: driver version: "
MAJORS = "annotations[nvoci.io/device-majors]: driver "
INSTALL = "install the driver, or name its root with --driver-root"


@pytest.fixture
def host(tmp_path: Path) -> Host:
    """With the files of one."""
    return Host(tmp_path)


@pytest.mark.parametrize("asked", [True, False], ids=["with NVML", "without"])
def test_one_that_is_as_the_node_has_nothing(host: Host, asked: bool) -> None:
    assert stale.findings(host.spec(), host.now() if asked else host.silent()) == []


# -- the driver -------------------------------------------------------------------------------------------------------

DRIVERS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "another version": (
        {"version": "560.1", "module": "560.1"},
        [f"{VERSION}{V} in the specification, 560.1 on this node (refresh it)"],
    ),
    "no module": ({"module": ""}, [f"{VERSION}the kernel module is not loaded (load it: modprobe nvidia)"]),
    "another module": (
        {"module": "560.1", "mismatch": ("kernel module 560.1, libraries 550", "reboot")},
        [f"{VERSION}kernel module 560.1, libraries 550 (reboot)"],
    ),
    "no driver": (
        {"version": "", "module": ""},
        [f"{VERSION}{V} in the specification, and there is no driver in HOST ({INSTALL})"],
    ),
    "another number": (
        {"majors": {"nvidia": 195, "nvidia-uvm": 511}},
        [f"{MAJORS}nvidia-uvm: major number 510 in the specification, 511 on this node (refresh it)"],
    ),
    "the old name": ({"majors": {"nvidia-frontend": 195, "nvidia-uvm": 510}}, []),
    "no number": (
        {"majors": {"nvidia": 195}},
        [f"{MAJORS}nvidia-uvm: it is not in /proc/devices (load its kernel module: modprobe nvidia-uvm)"],
    ),
    "no module, no numbers": (
        {"module": "", "majors": {}}, [f"{VERSION}the kernel module is not loaded (load it: modprobe nvidia)"]
    ),
    "WSL": ({"kind": "wsl", "module": "", "parts": None}, []),
}  # fmt: skip


def test_channels_alone_depend_on_no_version(host: Host) -> None:
    spec = host.spec(container_edits=ContainerEdits(env=("A=1",)))
    assert stale.version(spec, host.now(version="560.1", module="560.1")) == []
    now = host.now(version="", module="", majors={})
    assert [each.finding.why for each in stale.majors(spec, now)] == ["it is not in /proc/devices"] * 2


@pytest.mark.parametrize("case", DRIVERS)
def test_the_driver(host: Host, case: str) -> None:
    changes, expected = DRIVERS[case]
    assert host.lines(stale.findings(host.spec(), host.now(**changes))) == expected


def test_without_annotations_arguments_and_names_tell_the_version(host: Host) -> None:
    now = host.now(version="560.1", module="560.1")
    plain = host.spec(annotations={})
    told = f"driver version: {V} in the specification, 560.1 on this node (refresh it)"
    assert host.lines(stale.version(plain, now)) == [f"containerEdits.mounts[0].hostPath: {told}"]
    for words in ([f"--host-driver-version={V}"], ["--host-driver-version", V]):
        hook = Hook("createContainer", "/x", ("x", "enable-cuda-compat", *words), ("A=1",))
        with_hook = replace(plain, container_edits=replace(plain.container_edits, hooks=(hook,)))
        assert host.lines(stale.version(with_hook, now)) == [f"containerEdits.hooks[0].args[2]: {told}"]


def test_without_annotations_nodes_tell_the_numbers(host: Host) -> None:
    now = host.now(majors={"nvidia": 195, "nvidia-uvm": 511})
    line = "driver nvidia-uvm: major number 510 in the specification, 511 on this node (refresh it)"
    found = [each.finding for each in stale.majors(host.spec(annotations={}), now)]
    assert host.lines(found) == [f"containerEdits.deviceNodes[1].major: {line}"]


def test_a_renumbered_driver_is_told_once(host: Host) -> None:
    """Not again for each of its nodes; but for one with another minor number as well."""
    now = host.now(majors={"nvidia": 195, "nvidia-uvm": 511})
    host.node("nvidia-uvm", 511, 0)
    assert len(stale.findings(host.spec(), now)) == 1
    host.node("nvidia-uvm", 511, 1)
    line = "device node HOST/dev/nvidia-uvm: 510:0 in the specification, 511:1 on this node (refresh it)"
    assert host.lines(stale.findings(host.spec(), now))[1] == f"containerEdits.deviceNodes[1]: {line}"


# -- device nodes and files -------------------------------------------------------------------------------------------


def _unlink(*names: str) -> Callable[[Host], None]:
    return lambda host: [os.unlink(host.top / name) for name in names] and None


def _instead(name: str, make: Callable[[Path], Any]) -> Callable[[Host], None]:
    def change(host: Host) -> None:
        (host.top / name).unlink()
        make(host.top / name)

    return change


def _file_for_directory(host: Host) -> None:
    (host.top / "run/socket").unlink()
    (host.top / "run").rmdir()
    (host.top / "run").touch()


NODE1 = "devices[2].containerEdits.deviceNodes[0]: device node HOST/dev/nvidia1 of devices 1, "
NODE1 += "GPU-12345678-1234-1234-1234-123456780001, all: "
FILE = "containerEdits.mounts[1]: file HOST/bin/nvidia-smi: "
HOSTS: dict[str, tuple[Callable[[Host], None], list[str]]] = {
    "a node is gone": (_unlink("dev/nvidia1"), [f"{NODE1}not there (refresh it)"]),
    "a node is another": (
        lambda host: host.node("nvidia1", 195, 7),
        [f"{NODE1}195:1 in the specification, 195:7 on this node (refresh it)"],
    ),
    "a node is a file": (_instead("dev/nvidia1", Path.touch), [f"{NODE1}it is a regular file (refresh it)"]),
    "a node is a link": (
        _instead("dev/nvidia1", lambda path: path.symlink_to("nvidia0")), [f"{NODE1}it is a link (refresh it)"]
    ),
    "a node has another mode": (
        lambda host: (host.top / "dev/nvidia1").chmod(0o660),
        [f"{NODE1}mode 0666 and group 0 in the specification, 0660 and 0 on this node (refresh it)"],
    ),
    "a node has another group": (
        lambda host: os.chown(host.top / "dev/nvidia1", 0, 44),
        [f"{NODE1}mode 0666 and group 0 in the specification, 0666 and 44 on this node (refresh it)"],
    ),
    "a file is gone": (_unlink("bin/nvidia-smi"), [f"{FILE}not there (refresh it)"]),
    "a file is a directory": (_instead("bin/nvidia-smi", Path.mkdir), []),
    "a link leads nowhere": (
        _instead("bin/nvidia-smi", lambda path: path.symlink_to("nowhere")), [f"{FILE}not there (refresh it)"]
    ),
    "a link loops": (_instead("bin/nvidia-smi", lambda path: path.symlink_to(path)), [f"{FILE}ELOOP (refresh it)"]),
    "a parent is a file": (
        _file_for_directory, ["containerEdits.mounts[2]: file HOST/run/socket: not there (refresh it)"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTS)
def test_nodes_and_files(host: Host, case: str) -> None:
    change, expected = HOSTS[case]
    change(host)
    assert host.lines(stale.findings(host.spec(), host.now())) == expected


NUMBERLESS = {
    "nothing": (DeviceNode("/dev/nvidia1"), ""),
    "the type": (DeviceNode("/dev/nvidia1", type="u"), ""),
    "another type": (DeviceNode("/dev/nvidia1", type="b"), "it is a character device"),
    "numbers": (DeviceNode("/dev/nvidia1", major=195, minor=2), "195:2 in the specification, 195:1 on this node"),
    "a mode": (DeviceNode("/dev/nvidia1", file_mode=0o644), "mode 0644 and group 0 in the specification, 0666 and 0 "),
}


@pytest.mark.parametrize("case", NUMBERLESS)
def test_only_what_a_node_says_is_compared(host: Host, case: str) -> None:
    node, expected = NUMBERLESS[case]
    node = replace(node, host_path=host.path("nvidia1"))
    spec = Spec("0.6.0", "a.org/x", (Device("x", ContainerEdits(device_nodes=(node,))),))
    found = host.lines(stale.nodes(spec))
    assert len(found) == bool(expected)
    assert expected in "".join(found)


def test_many_that_are_gone_are_one_line(host: Host) -> None:
    mounts = tuple([Mount(f"{host.top}/lib/lib{i}.so", f"/lib{i}.so", ("bind",)) for i in range(9)])
    spec = Spec("0.6.0", "a.org/x", (Device("x", ContainerEdits(mounts=mounts)),))
    names = ", ".join([f"HOST/lib/lib{i}.so" for i in range(4)])
    assert host.lines(stale.mounts(spec)) == [
        f"devices[0].containerEdits.mounts[0]: 9 files, {names}, …: not there (refresh it)"
    ]


def test_a_mount_of_no_file_is_not_looked_for(host: Host) -> None:
    mounts = (Mount("tmpfs", "/x", ("size=1k",), "tmpfs"), Mount("nowhere", "/y", ("rbind",), "none"))
    spec = Spec("0.6.0", "a.org/x", (Device("x", ContainerEdits(mounts=mounts)),))
    assert [each.what for each in stale.mounts(spec)] == ["file nowhere of device x"]


def test_what_is_no_path_is_told(host: Host) -> None:
    edits = ContainerEdits(device_nodes=(DeviceNode("/a\0b"),), mounts=(Mount("/c\0\x1b", "/x", ("rbind",)),))
    spec = Spec("0.6.0", "a.org/x", (Device("x", edits),))
    assert host.lines([*stale.nodes(spec), *stale.mounts(spec)]) == [
        "devices[0].containerEdits.deviceNodes[0]: device node /a\\x00b of device x: not a path (refresh it)",
        "devices[0].containerEdits.mounts[0]: file /c\\x00\\x1b of device x: not a path (refresh it)",
    ]


# -- what is not compared ---------------------------------------------------------------------------------------------


def test_what_could_not_be_compared_is_told(host: Host) -> None:
    now = host.silent(silence="ask NVML /x: hangs")
    assert stale.not_compared(host.spec(), now) == ["which GPUs and MIG devices there are: ask NVML /x: hangs"]
    assert stale.not_compared(host.spec(), host.now()) == []
    assert stale.not_compared(host.spec(devices=(Device("x", ContainerEdits(env=("A=1",))),)), now) == []


VERSIONLESS = {
    "no library": ((), "nvml", []),
    "a name without": (("libcuda.so.1",), "nvml",
                       ["the driver's version: nothing in the specification tells which it was made for"]),
    "a name without, on a Tegra system": (("libcuda.so.1.1",), "csv", []),
    "a name": ((f"libcuda.so.{V}",), "nvml", []),
}  # fmt: skip


@pytest.mark.parametrize("case", VERSIONLESS)
def test_a_version_that_nothing_tells_is_not_compared(host: Host, case: str) -> None:
    names, kind, expected = VERSIONLESS[case]
    mounts = tuple([Mount(f"/lib/{name}", f"/lib/{name}", ("rbind",)) for name in names])
    spec = Spec("0.6.0", "nvidia.com/gpu", (Device("x", ContainerEdits(mounts=mounts)),))
    assert stale.not_compared(spec, host.now(kind=kind)) == expected
    assert bool(stale.version(spec, Now())) == (case == "a name")
