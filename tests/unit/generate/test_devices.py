"""Which devices are asked for, and what they are called."""

from __future__ import annotations

import pytest
from unit.generate.gentools import MIG_UUID, UUID, found, gpu, mig

from nvoci.errors import HookError
from nvoci.generate import devices

WHOLE = gpu(0)
SPLIT = gpu(1, mig_capable=True, mig_enabled=True, mig_devices=(mig(1, 0), mig(1, 1)))
EMPTY_MIG = gpu(2, mig_capable=True, mig_enabled=True)
NODE = found(WHOLE, SPLIT, EMPTY_MIG, gpu(10, minor=3))

IDENTIFIERS = {
    "0": True,
    "007": True,
    "0:1": True,
    UUID.format(0): True,
    UUID.format(0).upper().replace("GPU", "GPU"): True,
    MIG_UUID.format(0, 0): True,
    f"MIG-{UUID.format(0)}/3/0": True,
    "": False,
    "foo": False,
    "-1": False,
    "1.5": False,
    "0:": False,
    ":0": False,
    "0:1:2": False,
    "²": False,
    "9" * 40: False,
    "GPU-": False,
    "GPU-12345678": False,
    "GPU-1234567g-1234-1234-1234-123456780000": False,
    "12345678-1234-1234-1234-123456780000": False,
    f"MIG-{UUID.format(0)}": False,
    f"MIG-{UUID.format(0)}/3": False,
    f"MIG-{UUID.format(0)}/3/x": False,
    f"MIG-{UUID.format(0)}/3/0/1": False,
    "MIG-GPU-x/3/0": False,
}


@pytest.mark.parametrize("text", IDENTIFIERS)
def test_an_identifier_is_an_index_or_a_uuid(text: str) -> None:
    assert devices.is_identifier(text) is IDENTIFIERS[text]


FOUND = {
    "0": UUID.format(0),
    "010": UUID.format(10),
    UUID.format(10): UUID.format(10),
    UUID.format(10).lower().replace("gpu", "GPU"): UUID.format(10),
    "1:1": MIG_UUID.format(1, 1),
    MIG_UUID.format(1, 0): MIG_UUID.format(1, 0),
    f"MIG-{UUID.format(1)}/2/0": MIG_UUID.format(1, 1),
}


@pytest.mark.parametrize("text", FOUND)
def test_a_device_is_found_by_each_of_its_identifiers(text: str) -> None:
    (chosen,) = devices.by_id(NODE, [text])
    assert (chosen.mig.uuid if chosen.mig else chosen.gpu.uuid) == FOUND[text]
    assert chosen.named


REFUSED = {
    "foo": ('identifier is not a valid UUID or index: "foo"', "such as 0"),
    "": ('identifier is not a valid UUID or index: ""', "such as 0"),
    "\x1b[2J": ('identifier is not a valid UUID or index: "\\x1b[2J"', "such as 0"),
    "9": ("use GPU 9: no such device", "this node has 0, 1:0, 1:1, no MIG device on GPU 2, 10"),
    "1:2": ("use GPU 1:2: no such device", "this node has 0"),
    "0:0": ("use GPU 0:0: no such device", "this node has 0"),
    UUID.format(7): (f"use GPU {UUID.format(7)}: no such device", "this node has"),
    f"MIG-{UUID.format(1)}/9/0": (f"use GPU MIG-{UUID.format(1)}/9/0: no such device", "this node has"),
    "1": ("use GPU 1: MIG mode is on, so it has MIG devices alone", "ask for one of 1:0, 1:1"),
    "2": ("use GPU 2: MIG mode is on, so it has MIG devices alone", "make MIG devices: nvidia-smi mig -i 2 "),
}


@pytest.mark.parametrize("text", REFUSED)
def test_what_is_nobodys_is_refused_with_what_there_is(text: str) -> None:
    with pytest.raises(HookError) as e:
        devices.by_id(NODE, ["0", text])
    assert (e.value.message, e.value.hint[: len(REFUSED[text][1])]) == REFUSED[text]


def test_a_device_that_is_asked_for_twice_is_one() -> None:
    chosen = devices.by_id(NODE, ["1:0", "0", MIG_UUID.format(1, 0), UUID.format(0)])
    assert [each.words for each in chosen] == [f"MIG device 1:0 ({MIG_UUID.format(1, 0)})", f"GPU 0 ({UUID.format(0)})"]


def test_everything_is_in_the_order_of_nvml_and_no_gpu_with_mig_mode_on() -> None:
    names = [devices.names(["index"], each) for each in devices.everything(NODE)]
    assert names == [("0",), ("1:0",), ("1:1",), ("10",)]


ALL_OR_NONE = {"0 all none": "all", "none all": "none", "0 1": "", "": ""}


@pytest.mark.parametrize("ids", ALL_OR_NONE)
def test_of_all_and_none_the_first_counts(ids: str) -> None:
    assert devices.first_of_all_or_none(ids.split()) == ALL_OR_NONE[ids]


NAMES = {
    ("index",): ("10", "1:1"),
    ("uuid",): (UUID.format(10), MIG_UUID.format(1, 1)),
    ("type-index",): ("gpu10", "mig1:1"),
    ("uuid", "index", "uuid"): ((UUID.format(10), "10"), (MIG_UUID.format(1, 1), "1:1")),
}


@pytest.mark.parametrize("strategies", NAMES, ids=" ".join)
def test_each_strategy_gives_a_name(strategies: tuple[str, ...]) -> None:
    of_gpu, of_mig = NAMES[strategies]
    (whole,), (part,) = devices.by_id(NODE, ["10"]), devices.by_id(NODE, ["1:1"])
    assert devices.names(strategies, whole) == (of_gpu if isinstance(of_gpu, tuple) else (of_gpu,))
    assert devices.names(strategies, part) == (of_mig if isinstance(of_mig, tuple) else (of_mig,))


def test_without_a_uuid_that_strategy_names_nothing() -> None:
    assert devices.gpu_names(["uuid", "index"], 0, "") == ("0",)
    assert devices.gpu_names(["uuid"], 0, "") == ()
