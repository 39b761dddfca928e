"""What NVML tells on simulated nodes, held against their descriptions; and faults, each where it belongs."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from lib import session, simnode

from nvoci.discover import look, nvml
from nvoci.discover.model import Gpu, MigDevice
from nvoci.errors import HookError

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(os.geteuid() != 0, reason="dropping privileges and making device nodes need root"),
    pytest.mark.skipif(shutil.which("gcc") is None, reason="no gcc: apt-get install gcc libc6-dev"),
]
_built: dict[str, simnode.Built] = {}


def node(name: str) -> simnode.Built:
    """A node without faults; built once."""
    if name not in _built:
        _built[name] = simnode.build(simnode.load(simnode.sample(name)), session.new_dir("node") / name)
    _built[name].set_faults(None)
    return _built[name]


def query(name: str, faults: Any = None, **more: Any) -> nvml.NvmlAnswer:
    built = node(name)
    built.set_faults(faults)
    with nvml.find_library(str(built.root)) as library:
        return nvml.query(library, **more)


def line(name: str, faults: Any, **more: Any) -> str:
    start = time.monotonic()
    with pytest.raises(HookError) as caught:
        query(name, faults, **more)
    assert time.monotonic() - start < 5
    assert "\n" not in caught.value.line()
    assert caught.value.hint
    return caught.value.line()


def as_described(gpu: Gpu) -> dict[str, Any]:
    return {
        "index": gpu.index, "uuid": gpu.uuid, "minor": gpu.minor, "name": gpu.name, "brand": gpu.brand,
        "compute_capability": list(gpu.compute_capability or ()), "pci_bus_id": gpu.nvml_bus_id,
        "pci_device_id": gpu.pci_device_id, "memory": gpu.memory, "max_mig_devices": gpu.max_mig_devices,
    }  # fmt: skip


def mig_as_described(mig: MigDevice) -> dict[str, Any]:
    return {
        "index": mig.index, "uuid": mig.uuid, "gpu_instance_id": mig.gpu_instance,
        "compute_instance_id": mig.compute_instance,
        "attributes": {
            "gpu_instance_slices": mig.gpu_instance_slices, "compute_instance_slices": mig.compute_instance_slices,
            "memory_mib": mig.memory_mib,
        },
    }  # fmt: skip


@pytest.mark.parametrize("name", ["a100", "a100-mig"])
def test_answers_are_the_description(name: str) -> None:
    described = node(name).node.nvml
    assert described is not None
    answer = query(name)
    assert answer.driver_version == described["driver_version"]
    assert answer.cuda_version == (12, 4)
    assert answer.count == len(described["gpus"]) == len(answer.gpus)
    assert answer.problems == ()
    for gpu, wanted in zip(answer.gpus, described["gpus"]):
        seen = as_described(gpu)
        assert seen == {key: wanted[key] for key in seen}
        assert (gpu.mig_capable, gpu.mig_enabled) == (True, wanted["mig_mode"][0] == 1)
        assert gpu.pci_bus_id == f"{wanted['pci_domain']:04x}:{wanted['pci_bus']:02x}:{wanted['pci_device']:02x}.0"
        migs = wanted.get("mig_devices", [])
        assert [mig_as_described(mig) for mig in gpu.mig_devices] == [
            {key: mig[key] for key in mig_as_described(gpu.mig_devices[0])} for mig in migs
        ]
        assert [mig.name for mig in gpu.mig_devices] == [f"{gpu.index}:{mig['index']}" for mig in migs]
        assert {mig.parent for mig in gpu.mig_devices} <= {gpu.uuid}


def test_profiles_have_their_names() -> None:
    migs = [mig for gpu in query("a100-mig").gpus for mig in gpu.mig_devices]
    assert {mig.profile for mig in migs[:3]} == {"3g.20gb", "2g.10gb", "1g.5gb"}
    assert [m.profile_id for m in migs[:3]] == [9, 14, 19]
    shared = [mig for mig in migs if mig.compute_instance_slices != mig.gpu_instance_slices]
    assert all(mig.profile.startswith(f"{mig.compute_instance_slices}c.") for mig in shared)
    assert [mig.name for mig in migs if mig.graphics] == ["3:0"]
    assert [mig.profile for mig in migs if mig.graphics] == ["1g.5gb+gfx"]


def test_a_lost_gpu_does_not_blind_the_rest() -> None:
    answer = query("a100", {"lost": [2, 5]})
    assert [gpu.index for gpu in answer.gpus] == [0, 1, 3, 4, 6, 7]
    assert answer.count == 8
    assert [p.subject for p in answer.problems] == ["GPU 2", "GPU 5"]
    assert all("NVML_ERROR_GPU_IS_LOST" in p.error and "Xid" in p.hint for p in answer.problems)
    assert len(query("a100", {"lost": 2}, wanted=["0", "all"]).gpus) == 7
    told = line("a100", {"lost": 2}, wanted=["0", "2"])
    assert told.startswith("use GPU 2: GPU 2: ")
    assert "NVML_ERROR_GPU_IS_LOST (it fell off the bus" in told


def test_a_lost_gpu_of_mig_devices_is_lost_as_a_whole() -> None:
    whole = query("a100-mig")
    parent = next(gpu for gpu in whole.gpus if gpu.mig_devices)
    answer = query("a100-mig", {"error": f"nvmlDeviceGetMigDeviceHandleByIndex@{parent.index}:15"})
    assert parent.index not in [gpu.index for gpu in answer.gpus]
    assert len(answer.gpus) == len(whole.gpus) - 1
    assert line("a100-mig", {"lost": parent.index}, wanted=[parent.mig_devices[0].uuid]).startswith("use GPU MIG-")


def test_a_mig_device_with_an_error_is_left_out_alone() -> None:
    whole = query("a100-mig")
    parent = next(gpu for gpu in whole.gpus if gpu.mig_devices)
    answer = query("a100-mig", {"error": f"nvmlDeviceGetGpuInstanceId@{parent.index}:999"})
    assert len(answer.gpus) == len(whole.gpus)
    assert answer.gpus[parent.index].mig_devices == ()
    assert [p.subject for p in answer.problems] == [mig.name.join(["MIG device ", ""]) for mig in parent.mig_devices]
    assert "NVML_ERROR_UNKNOWN" in answer.problems[0].error


FAULTS: dict[str, tuple[Any, str]] = {
    "hangs while it is loaded": ({"hang": "load"}, ": dlopen "),
    "hangs in init": ({"hang": "init"}, ": nvmlInit: no answer within 1 s"),
    "hangs in a call": ({"hang": "nvmlDeviceGetMigMode@3"}, ": nvmlDeviceGetMigMode of GPU 3: no answer within 1 s"),
    "crashes while it is loaded": ({"crash": "load"}, ": killed by SIGSEGV"),
    "crashes in init": ({"crash": "init"}, ": nvmlInit: killed by SIGSEGV"),
    "crashes in a call": ({"crash": "nvmlDeviceGetName@7"}, ": nvmlDeviceGetName of GPU 7: killed by SIGSEGV"),
    "is of another version": ({"mismatch": True}, ": nvmlInit: NVML_ERROR_LIB_RM_VERSION_MISMATCH (the kernel module"),
    "finds no driver": ({"not-loaded": True}, ": nvmlInit: NVML_ERROR_DRIVER_NOT_LOADED (load the kernel module"),
    "has no count": ({"error": "nvmlDeviceGetCount:999"}, ": nvmlDeviceGetCount: NVML_ERROR_UNKNOWN"),
    "has no version": ({"version": "x"}, "it answers with driver version 'x'"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_faults_of_the_whole_are_one_line(case: str) -> None:
    faults, expected = FAULTS[case]
    told = line("a100", faults, seconds=1)
    assert told.startswith(f"ask NVML {node('a100').nvml}: ")
    assert expected in told


def test_what_it_prints_goes_nowhere(capfd: pytest.CaptureFixture[str]) -> None:
    assert len(query("a100", {"print": "any"}).gpus) == 8
    assert capfd.readouterr().out == ""


def test_what_a_gpu_has_no_answer_for_is_left_empty() -> None:
    calls = ("PciInfo", "MigMode", "MemoryInfo", "MinorNumber")
    answer = query("a100", {"error": [f"nvmlDeviceGet{call}@3:3" for call in calls]})
    assert answer.problems == ()
    gpu = answer.gpus[3]
    assert (gpu.pci_bus_id, gpu.mig_capable, gpu.memory, gpu.minor) == ("", False, None, None)


@pytest.fixture
def there(monkeypatch: pytest.MonkeyPatch) -> simnode.Built:
    """A node of its own, with its /proc and /sys."""
    built = simnode.build(simnode.load(simnode.sample("a100")), session.new_dir("node") / "own")
    monkeypatch.setattr(look, "PROC", str(built.root / "proc"))
    monkeypatch.setattr(look, "SYS", str(built.root / "sys"))
    return built


def test_a_look_that_wants_a_lost_gpu_is_refused(there: simnode.Built) -> None:
    there.set_faults({"lost": 2})
    place = look.Place(str(there.root))
    with look.look(place) as seen:
        assert (len(seen.found.gpus), seen.refusal) == (7, None)
    with look.look(place, wanted=["1", "2"]) as seen:
        assert seen.answer is None
        assert str(seen.refusal).startswith("use GPU 2: GPU 2: ")
        assert look.failure(seen) is seen.refusal


def test_a_device_node_that_is_missing_is_a_warning(there: simnode.Built) -> None:
    place = look.Place(str(there.root))
    with look.look(place) as seen:
        assert [each for each in look.warnings(seen) if each.stage == "use device"] == []
    for name in ("nvidiactl", "nvidia3"):
        (there.root / "dev" / name).unlink()
    with look.look(place) as seen:
        told = [each for each in look.warnings(seen) if each.stage == "use device"]
    assert sorted(each.subject for each in told) == [f"{there.root}/dev/nvidia3", f"{there.root}/dev/nvidiactl"]
    assert {each.error for each in told} == {"ENOENT"}
    assert all("nvidia-modprobe" in each.hint for each in told)


def test_a_node_without_a_driver(tmp_path: Path) -> None:
    (tmp_path / "usr").mkdir()
    with pytest.raises(HookError, match=r"find NVML: no libnvidia-ml.so.1 in /.*"):
        nvml.find_library(str(tmp_path))
