"""--load-kmods: the nodes of MIG capabilities and of IMEX channels."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from lib import mignode
from unit.prestart.kmodhost import MAJORS, Host, expected, simulated

pytestmark = [pytest.mark.kernel, pytest.mark.skipif(os.geteuid() != 0, reason="device nodes need root")]


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    with simulated(tmp_path, monkeypatch) as found:
        yield found


def test_a_line_of_another_form_ends_the_table_and_nothing_else(host: Host) -> None:
    host.loaded()
    host.write("proc/driver/nvidia-caps/mig-minors", "config 1\nfabric 7\nmonitor 2\ngpu0/gi1 12\ngpu0/gi1/access 12\n")
    host.load(0)
    found = [name for name in host.nodes() if name.startswith("nvidia-caps")]
    assert sorted(found) == [
        "nvidia-caps", "nvidia-caps-imex-channels", "nvidia-caps-imex-channels/channel0", "nvidia-caps/nvidia-cap1",
        "nvidia-caps/nvidia-cap2",
    ]  # fmt: skip
    assert [line for line in host.said if "line `gpu0/gi1 12`" in line] != []


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
