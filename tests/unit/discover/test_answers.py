"""What a library says is judged: only records with sense come out, and only ValueError."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from unit.discover.nodetree import UUID

from nvoci.discover import _answers, nvml
from nvoci.discover._answers import Lost
from nvoci.discover.model import Gpu
from nvoci.errors import HookError

BUS_IDS = {
    "00000000:0F:00.0": "0000:0f:00.0", "0000:0f:00.0": "0000:0f:00.0", "0:f:0": "0000:0f:00.0",
    "10000:01:1f.7": "10000:01:1f.0",
    "0f:00.0": "", "0000:100:00.0": "", "0000:0f:20.0": "", "x:0f:00.0": "", "": "", "::": "", "GPU-1": "",
}  # fmt: skip


@pytest.mark.parametrize("text", BUS_IDS)
def test_pci_addresses(text: str) -> None:
    assert _answers.kernel_bus_id(text) == BUS_IDS[text]


UUIDS = {
    UUID.format(0): True, UUID.format(0)[4:]: True, UUID.format(0).lower(): False, UUID.format(0) + "0": False,
    UUID.format(0)[:-1]: False, UUID.format("g"): False, "GPU-" + "-" * 36: False, "": False, "GPU-": False,
    UUID.format(0) + "\n": False, "GPU-\u0661\u0662345678-1234-1234-1234-123456780000": False,
}  # fmt: skip


@pytest.mark.parametrize("text", UUIDS)
def test_uuids(text: str) -> None:
    assert _answers.is_uuid(text, "GPU-", "") is UUIDS[text]


def _gpu(**more: Any) -> dict[str, Any]:
    return {"index": 0, "uuid": UUID.format(0), "pci": [0, 7, 0, 1, "00000000:07:00.0"], "memory": 40 << 30, "migs": [],
            "mig_mode": [1, 1], "max_mig_devices": 7, **more}  # fmt: skip


def _mig(**more: Any) -> dict[str, Any]:
    return {"index": 0, "gpu_instance": 1, "compute_instance": 0, "uuid": "MIG-00000000-aaaa-5bbb-8ccc-000000010000",
            "attributes": [42, 1, 0, 0, 0, 0, 3, 3, 19968], **more}  # fmt: skip


def _read(*docs: Any) -> _answers.Answers:
    return _answers.read([json.dumps(doc).encode() for doc in docs])


def _one(**more: Any) -> Gpu:
    found = _read({"gpu": _gpu(**more)})
    assert found.lost == []
    return found.gpus[0]


PROFILES: dict[str, dict[str, Any]] = {
    "3g.20gb": {},
    "1g.5gb": {"attributes": [14, 1, 0, 0, 0, 0, 1, 1, 4864]},
    "1c.3g.20gb": {"attributes": [14, 1, 0, 0, 0, 0, 3, 1, 19968]},
    "1g.5gb+me": {"attributes": [14, 1, 0, 0, 0, 0, 1, 1, 4864], "profile": 7},
    "1g.5gb+gfx": {"attributes": [14, 1, 0, 0, 0, 0, 1, 1, 4864], "profile": 10},
    "1g.5gb-me": {"attributes": [14, 1, 0, 0, 0, 0, 1, 1, 4864], "profile": 13},
    "7g.40gb": {"attributes": [98, 7, 0, 0, 0, 0, 7, 7, 40192]},
    "1g.10gb+me": {"name": "NVIDIA H100 80GB HBM3 MIG 1g.10gb+me"},
    "": {"attributes": None},
}


@pytest.mark.parametrize("profile", PROFILES)
def test_profile_names(profile: str) -> None:
    assert _one(migs=[_mig(**PROFILES[profile])]).mig_devices[0].profile == profile


def test_a_name_that_is_no_profile_is_not_taken() -> None:
    for name in ("x MIG ../../1g", "MIG", "x MIG 1g.5gb\n", "x MIG ", "x MIG $(id)"):
        assert _one(migs=[_mig(name=name)]).mig_devices[0].profile == "3g.20gb"


OLD_UUID = "MIG-GPU-12345678-1234-1234-1234-123456780000/1/0"


def test_uuids_of_mig_devices() -> None:
    assert _one(migs=[_mig(uuid=OLD_UUID)]).mig_devices[0].uuid == OLD_UUID
    for uuid in (OLD_UUID + "/0", OLD_UUID[:-1] + "x", "MIG-x", "MIG-GPU-../1/0", None, UUID.format(0)):
        found = _read({"gpu": _gpu(migs=[_mig(uuid=uuid)])})
        assert found.gpus[0].mig_devices == ()
        assert [lost.subject() for lost in found.lost] == ["MIG device 0:0"]


def test_a_mig_device_has_its_old_name_too() -> None:
    lost = [{"lost": {"gpu": {"index": index}, "mig": 1, "call": "c", "error": "e"}} for index in (0, 1)]
    found = _read({"system": SYSTEM}, {"gpu": _gpu(migs=[_mig()])}, *lost)
    assert len(nvml._judge("a", found, [OLD_UUID, OLD_UUID.lower()]).gpus) == 1
    with pytest.raises(HookError, match="MIG device 0:1: c: e"):
        nvml._judge("a", found, [OLD_UUID.replace("/1/0", "/2/0")])
    with pytest.raises(HookError, match="MIG device 1:1: c: e"):
        nvml._judge("a", found, [OLD_UUID.replace("0000/1/0", "0009/1/0")])


def test_two_mig_devices_are_not_one() -> None:
    other = "MIG-00000000-aaaa-5bbb-8ccc-000000010001"
    for second in (_mig(index=1, compute_instance=1), _mig(index=1, uuid=other)):
        found = _read({"gpu": _gpu(migs=[_mig(), second])})
        assert [mig.index for mig in found.gpus[0].mig_devices] == [0]
        assert found.lost[0].error == "the same UUID or instances as another"


def test_what_nvml_calls_no_node_is_none() -> None:
    assert _one(numa_node=-1).numa_node is None
    assert _one(numa_node=3).numa_node == 3
    assert [_one(addressing_mode=m).addressing_mode for m in (None, 0, 1, 2, 9)] == ["", "none", "hmm", "ats", ""]


def test_the_kernels_bus_id_follows_the_numbers() -> None:
    assert _one().pci_bus_id == "0000:07:00.0"
    assert _one(pci=[0, 7, 0, 1, "00000000:08:00.0"]).nvml_bus_id == "00000000:07:00.0"
    for pci in ([0, 256, 0, 1, ""], [0, 0, 32, 1, ""], [0, 0, 0, 1], ["0", 0, 0, 1, ""], "x", [-1, 0, 0, 1, ""]):
        assert "PCI address" in _read({"gpu": _gpu(pci=pci)}).lost[0].error


SYSTEM = {"driver_version": "550.163.01", "cuda_version": 12040, "nvml_version": "12.550.163.01", "count": 8}
CUDA = {12040: (12, 4), 13000: (13, 0), 11080: (11, 8), -1: None, None: None, "x": None}


@pytest.mark.parametrize("cuda", CUDA)
def test_the_cuda_version(cuda: Any) -> None:
    assert _read({"system": {**SYSTEM, "cuda_version": cuda}}).system["cuda_version"] == CUDA[cuda]


MAY_BE = {
    "3": (True, False), "2": (False, False), "3:1": (True, True), "3:2": (True, False), "2:1": (False, False),
    "0000:07:00.0": (True, False), "mig-00000000-aaaa-5bbb-8ccc-000000010000": (True, True),
    UUID.format(1).lower(): (True, False), UUID.format(1)[4:]: (True, False),
    f"mig-{UUID.format(1).lower()}/1/0": (True, True),
    **dict.fromkeys(["", "none", "void", "x", "-1", "mig-x", "gpu-x", "mig-", "::", "a:b:x", "3:x", "3:", ":", "\u00b2",
                     "\u0663", "9" * 5000, "3:" + "\u00b2", f"mig-{UUID.format(1).lower()}/1",
                     f"mig-{UUID.format(1).lower()}/1/\u00b2"], (False, False)),
}  # fmt: skip


@pytest.mark.parametrize("name", MAY_BE)
def test_what_a_lost_device_may_be(name: str) -> None:
    assert tuple(Lost(3, mig, "c", "e").may_be(name) for mig in (-1, 1)) == MAY_BE[name]


def test_what_is_known_of_a_lost_gpu_rules_names_out() -> None:
    lost = _read({"lost": {"gpu": _gpu(), "mig": -1, "call": "c", "error": "e"}}).lost[0]
    assert lost.may_be(UUID.format(0).lower())
    assert lost.may_be("00000000:07:00.0")
    assert lost.may_be(f"mig-{UUID.format(0).lower()}/1/0")
    assert not lost.may_be(f"mig-{UUID.format(1).lower()}/1/0")
    assert not lost.may_be(UUID.format(1).lower())
    assert not lost.may_be("0000:08:00.0")


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20)
    | st.sampled_from([UUID.format(0), "MIG-00000000-aaaa-5bbb-8ccc-000000010000", "550.1"]),
    lambda children: st.lists(children, max_size=10) | st.dictionaries(st.text(max_size=5), children, max_size=4),
    max_leaves=20,
)  # fmt: skip
GPU_KEYS = st.sampled_from([*_gpu(), "name", "brand", "compute_capability"])
MIG_KEYS = st.sampled_from([*_mig(), "name", "profile", "profile_id"])
gpus = st.dictionaries(GPU_KEYS, values).map(lambda more: {**_gpu(migs=[_mig(), _mig(index=1)]), **more})
migs = st.dictionaries(MIG_KEYS, values).map(lambda more: _gpu(migs=[{**_mig(), **more}]))
KEYS = st.sampled_from(["gpu", "lost", "system", "failed", "end", "x"])
docs = st.dictionaries(KEYS, values | gpus | migs, max_size=2)


@settings(max_examples=150, deadline=None)
@given(st.lists(docs | values, max_size=4))
def test_only_value_errors_and_good_records(said: list[Any]) -> None:
    try:
        found = _read(*said)
    except ValueError:
        return
    for gpu in found.gpus:
        assert Gpu.from_json(json.loads(json.dumps(gpu.to_json()))) == gpu
        assert gpu.name.isprintable()
        assert _answers.is_uuid(gpu.uuid, "GPU-", "")
        for mig in gpu.mig_devices:
            assert mig.uuid.startswith("MIG-")
            assert mig.profile.isprintable()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.binary(max_size=60), max_size=3))
def test_bytes_are_no_danger(lines: list[bytes]) -> None:
    try:
        assert _answers.read(lines).gpus == []
    except ValueError:
        pass
