"""Names of devices: each spelling, the order, and the errors of the reference."""

from __future__ import annotations

import time

import pytest
from unit.discover.nodetree import UUID, gpu, mig
from unit.prestart.prestarttools import error

from nvoci.discover.model import DeviceNode, Driver, Found, Gpu, Problem
from nvoci.prestart.devices import imex_channels, management, select


def mig_uuid(parent: int, index: int) -> str:
    return f"MIG-0000000{parent}-aaaa-5bbb-8ccc-00000001000{index}"


def with_mig(index: int, count: int) -> Gpu:
    """A GPU with GPU instances 7, 8, ... of one compute instance."""
    devices = [mig(index, m, uuid=mig_uuid(index, m), gpu_instance=7 + m, compute_instance=0) for m in range(count)]
    return gpu(index, mig_enabled=True, mig_devices=devices)


NODE = Found(driver=Driver(), gpus=[gpu(0), with_mig(1, 3), gpu(2, mig_capable=False), with_mig(3, 1)])


def names(found: Found, *wanted: str) -> tuple[list[int], list[str]]:
    """Indices of the GPUs and names of the MIG devices that are selected."""
    chosen = select(found, wanted)
    return [each.index for each in chosen.gpus], [each.name for each in chosen.mig_devices]


EVERYTHING = ([0, 1, 2, 3], ["1:0", "1:1", "1:2", "3:0"])
# GPU n is at 0000:07+n:00.0.
SELECTED: dict[str, tuple[tuple[str, ...], tuple[list[int], list[str]]]] = {
    "nothing": ((), ([], [])),
    "all": (("all",), EVERYTHING),
    "all, capitals": (("ALL",), EVERYTHING),
    "all, and what is behind it": (("all", "bogus"), EVERYTHING),
    "one, then all": (("2", "all"), ([2, 0, 1, 3], EVERYTHING[1])),
    "index": (("0",), ([0], [])),
    "in order": (("2", "0"), ([2, 0], [])),
    "each once": (("2", "0", "2"), ([2, 0], [])),
    "index with zeros": (("002",), ([2], [])),
    "index with a sign": (("+2",), ([2], [])),
    "index with blanks before it": ((" \t2",), ([2], [])),
    "a GPU with MIG devices is that alone": (("1",), ([1], [])),
    "UUID": ((UUID.format(2),), ([2], [])),
    "UUID, capitals": ((UUID.format(2).upper(),), ([2], [])),
    "UUID and index": ((UUID.format(2), "2"), ([2], [])),
    "PCI": (("0000:09:00.0",), ([2], [])),
    "PCI of NVML": (("00000000:09:00.0",), ([2], [])),
    "PCI, capitals": (("0000:0A:00.0",), ([3], [])),
    "PCI, short": (("0:9:0",), ([2], [])),
    "PCI without a function": (("0000:09:00",), ([2], [])),
    "PCI, another function": (("0:09:00.7",), ([2], [])),
    "MIG UUID": ((mig_uuid(1, 2),), ([1], ["1:2"])),
    "MIG UUID, lower case": ((mig_uuid(1, 2).lower(),), ([1], ["1:2"])),
    "G:M": (("1:2",), ([1], ["1:2"])),
    "G:M, zeros": (("01:02",), ([1], ["1:2"])),
    "MIG by its instances": ((f"MIG-{UUID.format(1)}/9/0",), ([1], ["1:2"])),
    "MIG by its instances, lower case": ((f"MIG-{UUID.format(1)}/9/0".lower(),), ([1], ["1:2"])),
    "MIG devices in order, each once": (("1:2", "3:0", mig_uuid(1, 2), "1:0"), ([1, 3], ["1:2", "3:0", "1:0"])),
    "MIG device, then its GPU": (("1:0", "1"), ([1], ["1:0"])),
    "MIG device behind another GPU": (("0", "1:1"), ([0, 1], ["1:1"])),
}


@pytest.mark.parametrize(("wanted", "found"), SELECTED.values(), ids=SELECTED)
def test_selection(wanted: tuple[str, ...], found: tuple[list[int], list[str]]) -> None:
    assert names(NODE, *wanted) == found


def test_only_all_is_everything() -> None:
    assert select(NODE, ["All"]).everything
    assert not select(NODE, ["0", "1", "2", "3"]).everything


UNKNOWN = [
    "", " ", "4", "99", "99999999999999999999", "-1", "--1", "+-1", "+", "2 ", "2x", "0x1", "1.0", "\u0662", "none",
    "void", "GPU-", "GPU-12345678", UUID.format(2)[:-1], UUID.format(2) + "0", UUID.format(2)[4:], UUID.format(9),
    "gpu0", "GPU0",
    "09:00.0", "0000:99:00.0", "0001:09:00.0", "0000:09:01.0", "0000:09:00.0junk", "0000:09:00.", "0000:009:00.0",
    "0000:09:000.0", "g000:09:00.0", "0000:09:00.g", "0000 :09:00.0", "000000000:09:00.0", "0000:09:00:0", "::",
    ":09:00.0", "0:0", "1:3", "1:", ":1", ":", "1:1x", "1:-1", "1:1:1", "4:0", "1: 9", "1:99999999999999999999",
    "MIG-", mig_uuid(1, 9), mig_uuid(1, 1)[4:], f"MIG-{UUID.format(1)}/9/1", f"MIG-{UUID.format(1)}/3/0",
    f"MIG-{UUID.format(1)}/9", f"MIG-{UUID.format(1)}", f"MIG-{UUID.format(2)}/9/0", f"MIG-{UUID.format(1)}/09/0",
    "nvidia.com/gpu=0", "../../dev/sda", "/dev/nvidia0", "nvidia0", "0\0", "\ud800", "0\n1", "all ", "allx", "0,1",
]  # fmt: skip


@pytest.mark.parametrize("name", UNKNOWN, ids=lambda n: ascii(n)[1:-1])
def test_a_name_that_no_device_has(name: str) -> None:
    caught = error(lambda: select(NODE, [name]))
    assert caught.message.startswith("device error: ")
    assert caught.message.endswith(": unknown device")
    assert caught.hint == "this node has GPU 0 to 3, and MIG devices: see `nvoci info`"


def test_the_message_names_the_device() -> None:
    assert error(lambda: select(NODE, ["0", "x\ny", "z"])).message == r"device error: x\ny: unknown device"
    assert len(error(lambda: select(NODE, ["x" * 65_536])).line()) < 400
    assert error(lambda: select(NODE, ["bogus", "all"])).message == "device error: bogus: unknown device"


HINTS = {
    "this node has no GPU: see `nvoci info`": Found(driver=Driver()),
    "this node has GPU 0: see `nvoci info`": Found(driver=Driver(), gpus=[gpu(0)]),
    "this node has GPU 0 to 1: see `nvoci info`": Found(driver=Driver(), gpus=[gpu(0), gpu(1)]),
}


@pytest.mark.parametrize(("hint", "node"), HINTS.items(), ids=HINTS)
def test_hint(hint: str, node: Found) -> None:
    assert error(lambda: select(node, ["7"])).hint == hint


LOST = Problem(
    stage="ask NVML about", subject="GPU 1", error="nvmlDeviceGetUUID: NVML_ERROR_GPU_IS_LOST", hint="reset it"
)


def test_a_gpu_that_does_not_answer_leaves_a_hole() -> None:
    node = Found(driver=Driver(), gpus=[gpu(0), gpu(2)], problems=[LOST])
    assert names(node, "2", "0") == ([2, 0], [])
    assert names(node, "all") == ([0, 2], [])
    caught = error(lambda: select(node, ["1"]))
    assert caught.message == "device error: 1: unknown device"
    assert "GPU 0 to 2; GPU 1: nvmlDeviceGetUUID: NVML_ERROR_GPU_IS_LOST" in caught.hint


REFUSALS: dict[str, tuple[Problem, str]] = {
    "no driver": (
        Problem(stage="ask NVML", subject="/l/libnvidia-ml.so.1", error="nvmlInit_v2: NVML_ERROR_DRIVER_NOT_LOADED"),
        "initialization error: nvml error: /l/libnvidia-ml.so.1: nvmlInit_v2: NVML_ERROR_DRIVER_NOT_LOADED",
    ),
    "no library": (
        Problem(stage="open NVML", subject="/l/libnvidia-ml.so.1 in /", error="EACCES"),
        "initialization error: load library failed: /l/libnvidia-ml.so.1 in /: EACCES",
    ),
    "the only GPU is lost": (LOST, f"detection error: nvml error: GPU 1: {LOST.error}"),
}


@pytest.mark.parametrize("name", ["all", "0"])
@pytest.mark.parametrize(("problem", "message"), REFUSALS.values(), ids=REFUSALS)
def test_a_node_where_nothing_answers(name: str, problem: Problem, message: str) -> None:
    other = Problem(stage="find library", subject="libx.so", error="ENOENT")
    node = Found(driver=Driver(), problems=[other, problem])
    assert error(lambda: select(node, [name])).message == message
    assert names(node) == ([], [])  # the driver alone


def test_a_node_without_a_gpu_gives_all_of_none() -> None:
    assert names(Found(driver=Driver()), "all") == ([], [])


def test_wsl_has_one_node_for_all_and_perhaps_no_nvml() -> None:
    dxg = DeviceNode(host_path="/dev/dxg", container_path="/dev/dxg", kind="wsl")
    refused = Problem(stage="ask NVML", subject="/l", error="NVML_ERROR_UNKNOWN")
    node = Found(driver=Driver(), device_nodes=[dxg], problems=[refused])
    assert names(node, "0", "GPU-x") == names(node, "all") == ([], [])
    assert select(node, ["all"]).everything
    assert error(lambda: select(node.replace(gpus=(gpu(0),)), ["1"])).message == "device error: 1: unknown device"


def test_old_uuids_of_mig_devices_are_found_too() -> None:
    old = f"MIG-{UUID.format(0)}/7/0"
    node = Found(driver=Driver(), gpus=[gpu(0, mig_devices=[mig(0, 0, uuid=old, gpu_instance=7, compute_instance=0)])])
    assert names(node, old) == names(node, "0:0") == ([0], ["0:0"])


def test_a_gpu_without_pci_address_or_minor_is_found_by_index_and_uuid() -> None:
    bare = Gpu(index=0, uuid="GPU-x")
    node = Found(driver=Driver(), gpus=[bare])
    assert names(node, "gpu-X") == names(node, "0") == ([0], [])
    assert error(lambda: select(node, ["0:0:0"])).message == "device error: 0:0:0: unknown device"


def test_thousands_of_names_take_milliseconds() -> None:
    many = ["+" * (i % 2) + "0" * (i // 2) + "3" for i in range(300)] + [UUID.format(0)] * 5000
    start = time.thread_time()
    assert names(NODE, *many) == ([3, 0], [])
    assert time.thread_time() - start < 0.5


# -- MIG management and IMEX ---------------------------------------------------------------------------------------


def managed(wanted: list[str], selected: list[str], what: str = "mig-config") -> list[int]:
    return [each.index for each in management(NODE, select(NODE, selected), wanted, what)]


MANAGED: dict[str, tuple[list[str], list[str], list[int]]] = {
    "not asked for": ([], ["all"], []),
    "all of all": (["all"], ["all"], [0, 1, 3]),
    "capitals": (["ALL"], ["all"], [0, 1, 3]),
    "twice": (["all", "all"], ["all"], [0, 1, 3]),
    "of some": (["all"], ["3", "2", "0"], [3, 0]),
    "of one that cannot": (["all"], ["2"], []),
    "of none": (["all"], [], []),
    "not asked for, with a MIG device": ([], ["1:0"], []),
}


@pytest.mark.parametrize(("wanted", "selected", "found"), MANAGED.values(), ids=MANAGED)
def test_management(wanted: list[str], selected: list[str], found: list[int]) -> None:
    assert managed(wanted, selected) == found


@pytest.mark.parametrize("what", ["mig-config", "mig-monitor"])
def test_management_is_refused(what: str) -> None:
    message = error(lambda: managed(["all", "1"], ["all"], what)).message
    assert message == f"{what} error: 1: only 'all' devices are currently supported"
    message = error(lambda: managed(["all"], ["0", "1:0"], what)).message
    assert message == f"{what} error: cannot enable {what} with specific MIG devices selected"


def test_imex_channels() -> None:
    assert imex_channels([]) == ()
    assert imex_channels(["5", "0", "05", "1048575"]) == (5, 0, 1048575)


def test_imex_channels_have_an_end() -> None:
    most = [str(number) for number in range(2048)]
    assert len(imex_channels([*most, "0", "02047"])) == 2048
    caught = error(lambda: imex_channels([*most, "2048"]))
    assert caught.line() == "error parsing IMEX info: too many IMEX channels (at most 2048)"


@pytest.mark.parametrize(
    "name", ["1048576", "-1", "+1", " 1", "1 ", "x", "", "1x", "0x1", "1.0", "\u0661", "\u00b2", "9" * 60_000]
)
def test_what_is_no_imex_channel(name: str) -> None:
    caught = error(lambda: imex_channels([name]))
    assert caught.message.startswith("error parsing IMEX info: unsupported IMEX channel value: ")
    assert len(caught.line()) < 400
