"""--load-kmods: the nodes of MIG capabilities and of IMEX channels."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from lib import mignode
from unit.prestart.kmodhost import MAJORS, Host, expected, simulated

from nvoci.prestart import kmods

pytestmark = [pytest.mark.kernel, pytest.mark.skipif(os.geteuid() != 0, reason="device nodes need root")]


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    with simulated(tmp_path, monkeypatch) as found:
        yield found


LINES: dict[str, tuple[str, list[str]]] = {
    "known": (
        "config 1\nmonitor 2\ngpu0/gi1/access 12\ngpu0/gi1/ci0/access 13\n",
        ["mig/config", "mig/monitor", "gpu0/mig/gi1/access", "gpu0/mig/gi1/ci0/access"],
    ),
    "no newline at the end": ("gpu1/gi2/access 3", ["gpu1/mig/gi2/access"]),
    "of a GPU that is not there": ("gpu2/gi0/access 3\nconfig 1\n", ["mig/config"]),
    "an unknown word ends it": ("config 1\nfabric 7\nmonitor 2\n", ["mig/config"]),
    "no number ends it": ("config 1\nmonitor x\ngpu0/gi0/access 3\n", ["mig/config"]),
    "no minor ends it": ("config\nmonitor 2\n", []),
    "dots end it": ("gpu0/../access 3\nconfig 1\n", []),
    "one part more ends it": ("gpu0/gi0/ci0/x/access 3\nconfig 1\n", []),
    "one part less ends it": ("gpu0/access 3\nconfig 1\n", []),
    "another order ends it": ("gi0/gpu0/access 3\nconfig 1\n", []),
    "another file ends it": ("gpu0/gi0/other 3\nconfig 1\n", []),
    "a sign ends it": ("gpu-1/gi0/access 3\nconfig 1\n", []),
    "empty": ("", []),
}


@pytest.mark.parametrize(("table", "wanted"), LINES.values(), ids=LINES)
def test_the_table_of_minors_names_access_files(table: str, wanted: list[str]) -> None:
    found = [path.decode() for path in kmods.access_files(table.encode(), 2)]
    assert found == [f"driver/nvidia/capabilities/{path}" for path in wanted]


def test_instances_are_those_that_there_are_with_the_minors_of_their_files(host: Host) -> None:
    host.loaded()
    host.write(mignode.access("0:1"), "DeviceFileMinor: 999\nDeviceFileMode: 288\nDeviceFileModify: 1\n")
    host.write(mignode.access("0:1:0"), "nothing\n")
    host.load()
    found = host.nodes()
    assert found["nvidia-caps/nvidia-cap999"] == "c 236:999 440"
    assert not {"nvidia-caps/nvidia-cap12", "nvidia-caps/nvidia-cap13", "nvidia-caps/nvidia-cap3"} & set(found)
    assert any("without DeviceFileMinor" in line for line in host.said)


@pytest.mark.parametrize("change", ["devices", "driver/nvidia-caps/mig-minors"])
def test_a_driver_without_capabilities_has_the_other_nodes(host: Host, change: str) -> None:
    host.loaded()
    if change == "devices":
        host.write("proc/devices", MAJORS.replace("236 nvidia-caps\n", ""))
    else:
        (host.root / "proc" / change).unlink()
    host.load()
    assert {k: v for k, v in host.nodes().items() if not k.startswith("char")} == expected()


def test_imex_channels_are_those_that_are_asked_for(host: Host) -> None:
    host.loaded()
    host.load(0, 2047, -1, 1 << 20)
    found = {k: v for k, v in host.nodes().items() if k.startswith("nvidia-caps-imex-channels/")}
    assert found == {f"nvidia-caps-imex-channels/channel{n}": f"c 234:{n} 666" for n in (0, 2047)}
    assert len([line for line in host.said if "no such IMEX channel" in line]) == 2


def test_without_a_major_number_there_is_no_channel_and_no_uvm(host: Host) -> None:
    host.loaded()
    host.write("proc/devices", "Character devices:\n195 nvidia\n")
    host.load(0)
    found = host.nodes()
    assert not {"nvidia-uvm", "nvidia-caps-imex-channels"} & set(found)
    assert (found["nvidia-modeset"], any("no major number" in line for line in host.said)) == ("c 195:254 666", True)
