"""--load-kmods: which modules and nodes, on a host that is a directory; its modprobe is a script of the test's."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from errno import EEXIST
from pathlib import Path
from typing import Any

import pytest
from lib import mignode
from lib.rootfs import tree
from unit.prestart.kmodhost import INSTANCES, Host, expected, simulated

from nvoci.errors import HookError
from nvoci.prestart import kmods, makenodes

pytestmark = [pytest.mark.kernel, pytest.mark.skipif(os.geteuid() != 0, reason="device nodes need root")]


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    with simulated(tmp_path, monkeypatch) as found:
        yield found


def links(nodes: dict[str, str]) -> dict[str, str]:
    return {f"char/{text.split()[1]}": f"../{name}" for name, text in nodes.items() if text.startswith("c ")}


def test_all_modules_are_loaded_and_all_nodes_made(host: Host) -> None:
    assert host.load() is True
    assert host.calls() == ["nvidia", "nvidia-uvm", "nvidia-modeset"]
    found = host.nodes()
    caps = {name: text for name, text in found.items() if name.startswith("nvidia-caps/")}
    assert {int(name.rpartition("cap")[2]) for name in caps} >= {1, 2, 12, 13, 156, 157, 158, 661}
    assert (len(caps), set(caps.values())) == (
        INSTANCES + 2, {f"c 236:{name.rpartition('cap')[2]} 444" for name in caps}
    )  # fmt: skip
    wanted = {**expected(), **caps}
    assert found == {**wanted, **links(wanted), "char": "dir 755", "nvidia-caps": "dir 755"}


def test_a_second_run_changes_nothing(host: Host) -> None:
    assert host.load(1)
    before, inodes = host.nodes(), [p.lstat().st_ino for p in sorted((host.root / "dev").rglob("*"))]
    assert host.load(1) is False
    assert (host.nodes(), len(host.calls())) == (before, 3)
    assert [p.lstat().st_ino for p in sorted((host.root / "dev").rglob("*"))] == inodes


def test_a_module_that_is_there_is_not_loaded_again(host: Host) -> None:
    host.loaded("nvidia", "nvidia_modeset")
    assert host.load()
    assert host.calls() == ["nvidia-uvm"]
    assert set(expected()) <= set(host.nodes())


def test_modprobe_gets_nothing_of_ours(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_PRELOAD", "")
    monkeypatch.setenv("BASH_ENV", "/etc/passwd")
    host.load()
    assert (host.root / "log").read_text().splitlines()[0] == (
        "nvidia in / umask 0022 env PATH=/sbin:/usr/sbin:/bin:/usr/bin stdin []"
    )


# -- when nothing is done ---------------------------------------------------------------------------------------------

SKIPPED: dict[str, tuple[str, str, str]] = {
    "uid map": ("proc/self/uid_map", "0 100000 65536\n", "in a user namespace"),
    "gid map": ("proc/self/gid_map", "0 0 4294967294\n", "in a user namespace"),
    "empty map": ("proc/self/uid_map", "", "in a user namespace"),
    "a map of two lines": ("proc/self/uid_map", "0 0 1\n1 1 4294967294\n", "in a user namespace"),
    "setgroups": ("proc/self/setgroups", "deny\n", "in a user namespace"),
    "WSL": ("dev/dxg", "", "Windows (WSL)"),
}


@pytest.mark.parametrize(("name", "text", "reason"), SKIPPED.values(), ids=SKIPPED)
def test_it_is_passed_over(host: Host, name: str, text: str, reason: str) -> None:
    host.write(name, text)
    assert host.load() is False
    assert ([name for name in host.nodes() if name != "dxg"], host.calls()) == (["char"], [])
    assert reason in host.said[0]


def test_without_a_gpu_on_the_bus_nothing_is_done(host: Host) -> None:
    for path in (host.root / "sys/bus/pci/devices").glob("*/class"):
        path.write_text("0x068000\n")
    assert host.load() is False
    os.rename(host.root / "sys/bus/pci", host.root / "sys/bus/x")
    assert host.load() is False
    assert (list(host.nodes()), host.calls()) == (["char"], [])
    assert all("no NVIDIA GPU on the PCI bus" in line for line in host.said)


def test_who_is_not_root_does_nothing(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nvoci.prestart.kmods.posix.geteuid", lambda: 1000)
    assert host.load() is False
    assert "not root" in host.said[0]


def test_a_host_without_these_files_raises_nothing(host: Host) -> None:
    for name in ("self/uid_map", "self/setgroups", "devices"):
        (host.root / "proc" / name).unlink()
        assert host.load() in (True, False)
    assert host.nodes() == {"char": "dir 755"}
    assert any("self/uid_map: ENOENT" in line for line in host.said)


# -- rules ------------------------------------------------------------------------------------------------------------


def test_owner_and_mode_are_the_drivers(host: Host) -> None:
    host.loaded()
    host.params(DeviceFileUID=33, DeviceFileGID=44, DeviceFileMode=0o660)
    host.load()
    found = host.nodes()
    assert {found[name] for name in ("nvidia0", "nvidiactl", "nvidia-modeset")} == {
        "c 195:0 660 33:44", "c 195:255 660 33:44", "c 195:254 660 33:44"}  # fmt: skip
    assert (found["nvidia-uvm"], found["nvidia-caps/nvidia-cap12"]) == ("c 508:0 660 33:44", "c 236:12 444")


DEFAULTS = {
    "no params": None,
    "empty": "",
    "no numbers": "DeviceFileUID: -1\nDeviceFileGID: x\nDeviceFileMode: 0666\n",
    "not text": "\udcff\n",
}


@pytest.mark.parametrize("text", DEFAULTS.values(), ids=DEFAULTS)
def test_without_a_word_of_the_driver_they_are_roots_and_everybodys(host: Host, text: str | None) -> None:
    host.loaded()
    path = host.root / "proc/driver/nvidia/params"
    path.unlink()
    if text is not None:
        path.write_bytes(text.encode("utf-8", "surrogateescape"))
    host.load()
    assert host.nodes()["nvidia0"] == "c 195:0 666"


def test_where_the_driver_forbids_it_nothing_is_made(host: Host) -> None:
    host.loaded()
    host.params(ModifyDeviceFiles=0)
    host.write(mignode.access("0:1"), "DeviceFileMinor: 12\nDeviceFileMode: 256\nDeviceFileModify: 0\n")
    host.load()
    found = host.nodes()
    assert [name for name in found if not name.startswith(("nvidia-caps", "char"))] == []
    assert ("nvidia-caps/nvidia-cap12" in found, "nvidia-caps/nvidia-cap13" in found) == (False, True)


WRONG = {
    "a file": "file dev/{} text",
    "another number": "char dev/{} 1 5 666",
    "a block device": "block dev/{} 195 0",
    "a FIFO": "fifo dev/{}",
    "a link": "symlink dev/{} /etc/passwd",
    "a link to itself": "symlink dev/{} {}",
    "another mode": "char dev/{} 195 0 600",
    "another owner": "char dev/{} 195 0 666\nowner dev/{} 5 6",
}


@pytest.mark.parametrize("spec", WRONG.values(), ids=WRONG)
def test_what_is_not_the_node_becomes_it(host: Host, spec: str) -> None:
    host.loaded()
    tree(host.root, spec.replace("{}", "nvidia0"))
    passwd = Path("/etc/passwd").stat()
    assert host.load() is True
    found = host.nodes()
    assert (found["nvidia0"], found["char/195:0"]) == ("c 195:0 666", "../nvidia0")
    assert [name for name in found if ".nvoci" in name] == []
    assert Path("/etc/passwd").stat() == passwd


def test_what_cannot_be_replaced_is_told_and_the_others_are_made(host: Host) -> None:
    host.loaded()
    tree(host.root, "dir dev/nvidia0\nfile dev/nvidia0/x text\nfile dev/char/195:1 text\nfile dev/nvidia-caps text")
    host.load()
    found = host.nodes()
    assert (found["nvidia0"], found["nvidia1"], found["nvidia7"]) == ("dir 755", "c 195:1 666", "c 195:7 666")
    assert (host.root / "dev/char/195:1").read_text() == "text"
    assert [name for name in found if ".nvoci" in name] == []
    assert any("make device node /dev/nvidia0: EISDIR" in line for line in host.said)
    assert any("nvidia1: EINVAL" in line for line in host.said)
    assert any("nvidia-caps/nvidia-cap1: ENOTDIR" in line for line in host.said)


@pytest.mark.parametrize("text", ["../nvidia1", "/dev/nvidia0", "nowhere"])
def test_a_link_by_number_that_leads_elsewhere_is_replaced(host: Host, text: str) -> None:
    host.loaded()
    tree(host.root, f"symlink dev/char/195:0 {text}")
    host.load()
    assert host.nodes()["char/195:0"] == "../nvidia0"


def test_directories_on_the_way_are_made(host: Host) -> None:
    host.loaded()
    (host.root / "dev/char").rmdir()
    host.load(0)
    found = host.nodes()
    assert {found[name] for name in ("char", "nvidia-caps", "nvidia-caps-imex-channels")} == {"dir 755"}


def test_several_at_once_leave_what_one_leaves(host: Host) -> None:
    host.loaded()
    children = []
    for _ in range(6):
        pid = os.fork()
        if pid == 0:
            try:
                host.load(0, 1, 2)
            finally:
                os._exit(0)
        children.append(pid)
    for pid in children:
        os.waitpid(pid, 0)
    found = host.nodes()
    assert host.load(0, 1, 2) is False
    assert {k: v for k, v in found.items() if k in expected()} == expected()
    assert [name for name in found if ".nvoci" in name] == []


def test_of_the_real_host_the_handles_are_its_own() -> None:
    with kmods.Place.open("/") as place:
        assert os.fstat(place.dev.fileno()).st_ino == os.stat("/dev").st_ino
        assert os.fstat(place.proc.fileno()).st_ino == 1


def test_a_root_that_is_not_there_is_told(host: Host) -> None:
    assert kmods.load_on_host(f"{host.root}/nowhere") is False
    assert "nowhere: ENOENT" in host.said[0]


# -- what a driver, or somebody beside us, may do ---------------------------------------------------------------------


def test_a_kernel_without_setgroups_is_one(host: Host) -> None:
    """Before Linux 3.19."""
    (host.root / "proc/self/setgroups").unlink()
    assert host.load() is True
    assert host.nodes()["nvidia0"] == "c 195:0 666"


def test_without_a_table_of_devices_no_node_is_made(host: Host) -> None:
    (host.root / "proc/devices").unlink()
    assert host.load() is True  # modules were loaded
    assert (host.calls(), host.nodes()) == (["nvidia", "nvidia-uvm", "nvidia-modeset"], {"char": "dir 755"})
    assert len([line for line in host.said if "read devices: ENOENT" in line]) == 3


def test_where_the_loading_of_modules_is_turned_off_none_is_loaded(host: Host) -> None:
    """What is there has its nodes."""
    host.loaded("nvidia")
    host.write("proc/sys/kernel/modprobe", "\n")
    assert host.load() is True
    found = host.nodes()
    assert ("nvidia0" in found, "nvidia-uvm" in found, host.calls()) == (True, False, [])
    turned_off = "not loaded, and loading modules is turned off (see /proc/sys/kernel/modprobe)"
    assert len([line for line in host.said if turned_off in line]) == 2


def test_a_file_where_a_directory_should_be_is_nothing(host: Host) -> None:
    host.loaded()
    shutil.rmtree(host.root / "proc/driver")
    host.write("proc/driver", "text")
    assert host.load() is True
    assert {k: v for k, v in host.nodes().items() if not k.startswith("char")} == expected()


def test_a_node_that_is_never_there_when_looked_at_is_given_up(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody makes and removes it all the time."""
    host.loaded()
    made = makenodes.devnode.make
    tries: list[bytes] = []

    def beaten(directory: int, name: bytes, *args: Any) -> Any:
        if name == b"nvidia0":
            tries.append(name)
            raise FileExistsError(EEXIST, "there already", name)
        return made(directory, name, *args)

    monkeypatch.setattr(makenodes.devnode, "make", beaten)
    host.load()
    assert (len(tries), "nvidia0" in host.nodes(), "nvidia1" in host.nodes()) == (8, False, True)
    assert [line for line in host.said if "make device node /dev/nvidia0: EEXIST" in line]


def test_a_node_that_is_another_when_it_is_made_is_told(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    host.loaded()

    def refused(dev: int, name: bytes, *args: Any) -> bool:
        raise HookError("made another\n", "try again")

    monkeypatch.setattr(kmods, "ensure", refused)
    assert host.load() is False
    assert any("make device node /dev/nvidia0: made another" in line for line in host.said)
    assert all(line.isprintable() for line in host.said)
