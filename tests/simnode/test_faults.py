"""Each fault of the simulated NVML library, seen from a process that uses it."""

from __future__ import annotations

import json
import shutil
import signal
import time
from typing import Any

import pytest
from lib import session, simnode
from simnode.nodes import answers, built, fresh, needs_x86, run

pytestmark = needs_x86

INIT = 'answers["init"] = ask("nvmlInit")\n'
NAMES = """
answers["init"] = ask("nvmlInit")
handles = [ask_handle(i) for i in range(n.nvmlDeviceGetCount())] if answers["init"] is None else []
answers["names"] = [h if isinstance(h, int) else ask("nvmlDeviceGetName", h) for h in handles]
"""
HANDLE = """
def ask_handle(index):
    try:
        return n.nvmlDeviceGetHandleByIndex(index)
    except n.NVMLError as e:
        return e.value
"""
NAME = "NVIDIA A100-SXM4-40GB"


def names(faults: Any) -> dict[str, Any]:
    return answers(built("no-drm"), HANDLE + NAMES, faults)


def test_without_faults_everything_answers() -> None:
    assert names(None) == {"init": None, "names": [NAME, NAME]}


def test_a_lost_gpu_is_lost_by_every_name_and_alone() -> None:
    gpus = simnode.sample("a100-mig")["nvml"]["gpus"]
    program = f"""
n.nvmlInit()
answers["count"] = n.nvmlDeviceGetCount()
for key, call, value in (("index", "Index", 1), ("uuid", "UUID", {gpus[1]["uuid"]!r}), ("pci", "PciBusId", "0f:00.0"),
                         ("mig", "UUID", {gpus[1]["mig_devices"][0]["uuid"]!r})):
    answers[key] = ask("nvmlDeviceGetHandleBy" + call, value)
answers["other"] = ask("nvmlDeviceGetName", n.nvmlDeviceGetHandleByIndex(0))
"""
    lost = {"error": 15}
    expected = {"count": 8, "index": lost, "uuid": lost, "pci": lost, "mig": lost, "other": NAME}
    assert answers(built("a100-mig"), program, {"lost": 1}) == expected


def test_a_gpu_can_be_lost_after_its_handle_was_had() -> None:
    node = fresh("no-drm")
    program = f"""
import pathlib
n.nvmlInit()
gpu = n.nvmlDeviceGetHandleByIndex(0)
answers["before"] = ask("nvmlDeviceGetName", gpu)
place = pathlib.Path({str(node.root)!r}, ".simnode")
place.mkdir()
(place / "faults").write_text("lost=0")
n.nvmlInit()
answers["after"] = ask("nvmlDeviceGetName", gpu)
"""
    assert answers(node, program) == {"before": NAME, "after": {"error": 15}}


CODES = {
    "mismatch": ({"mismatch": True}, 18),
    "not loaded": ({"not_loaded": True}, 9),
    "another": ({"error": "init:4"}, 4),
    "by function": ({"error": "nvmlInit_v2:999"}, 999),
}


@pytest.mark.parametrize("what", CODES)
def test_init_answers_with_the_code(what: str) -> None:
    faults, code = CODES[what]
    assert names(faults) == {"init": {"error": code}, "names": []}


def test_one_call_of_one_gpu_fails() -> None:
    assert names({"error": "nvmlDeviceGetName@1:999"}) == {"init": None, "names": [NAME, {"error": 999}]}


@pytest.mark.parametrize("call", ["init", "nvmlDeviceGetCount", "load"])
def test_a_hanging_call_never_returns(call: str) -> None:
    done = run(built("no-drm"), HANDLE + NAMES, {"hang": call}, timeout=1)
    assert done.timed_out
    assert done.stdout == ""


@pytest.mark.parametrize("call", ["init", "nvmlDeviceGetName@1", "load"])
def test_a_crashing_call_is_a_segmentation_fault(call: str) -> None:
    done = run(built("no-drm"), HANDLE + NAMES, {"crash": call})
    assert done.rc == -signal.SIGSEGV
    assert done.stdout == ""


def test_a_slow_call_answers_late() -> None:
    begin = time.monotonic()
    assert names({"slow": "nvmlDeviceGetCount:700"})["names"] == [NAME, NAME]
    assert time.monotonic() - begin > 0.7


def test_a_talkative_library_writes_to_stdout() -> None:
    done = run(built("no-drm"), INIT, {"stdout": True, "print": "nvmlDeviceGetCount"})
    assert done.stdout == 'nvmlInitWithFlags: a message of the driver library\n{"init": null}\n'


def test_the_driver_version_can_be_another_than_the_library_s() -> None:
    program = 'n.nvmlInit()\nanswers["version"] = ask("nvmlSystemGetDriverVersion")'
    assert answers(built("no-drm"), program, {"version": "535.1"}) == {"version": "535.1"}


def test_a_file_in_the_node_brings_faults_to_every_process() -> None:
    node = fresh("no-drm", {"not_loaded": True})
    assert answers(node, INIT) == {"init": {"error": 9}}
    node.set_faults({"error": "init:17"})
    assert answers(node, INIT) == {"init": {"error": 17}}
    assert answers(node, INIT, "") == {"init": None}  # the environment comes first
    node.set_faults(None)
    assert answers(node, INIT) == {"init": None}
    assert not (node.root / ".simnode").exists()


def test_a_library_taken_out_of_its_node_knows_no_file() -> None:
    node = fresh("no-drm", {"not_loaded": True})
    assert node.nvml is not None
    place = session.new_dir("lib") / "libnvidia-ml.so.1"
    shutil.copy(node.nvml, place)
    load = f"import ctypes\nctypes.CDLL({str(place)!r}, ctypes.RTLD_GLOBAL)"
    program = f'{load}\nn.nvmlInit()\nanswers["n"] = ask("nvmlDeviceGetCount")'
    assert answers(node, program) == {"n": 2}


def test_words_that_mean_nothing_do_no_harm() -> None:
    node = built("no-drm")
    words = "=;x= lost= hang= error=:: " + "stdo=" * 50 + " " + "y" * 5000
    done = run(_With(node, words), INIT)
    assert json.loads(done.stdout) == {"init": None}


class _With:
    """A node whose environment holds words that simnode itself would refuse."""

    def __init__(self, node: simnode.Built, words: str) -> None:
        self.node, self.words = node, words

    def environ(self, faults: Any) -> dict[str, str]:
        return {**self.node.environ(), "NVOCI_SIMNODE_FAULTS": self.words}
