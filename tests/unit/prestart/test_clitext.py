"""What scripts read: `info`, `list` and the lines of the debug log, of records that no node has."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest

from nvoci import log
from nvoci.discover.model import DeviceNode, Driver, Found, Gpu
from nvoci.errors import HookError
from nvoci.hook import migcaps
from nvoci.prestart import choose, clierror, clilog, clitext

GPU = Gpu(index=0, uuid="GPU-1", minor=3, pci_bus_id="0000:0F:00.0", name="A, B", brand=2, compute_capability=(9, 0))
DRIVER = Driver(version="550.1", cuda_version=(12, 4))
LABELS = ("Device Index:", "Device Minor:", "Model:", "Brand:", "GPU UUID:", "Bus Location:", "Architecture:")


def info(*gpus: Gpu, driver: Driver = DRIVER, csv: bool = False) -> list[str]:
    return clitext.info(Found(driver=driver), gpus, csv).split("\n")


def test_labels_take_fifteen_columns() -> None:
    values = ("0", "3", "A, B", "Tesla", "GPU-1", "00000000:0f:00.0", "9.0")
    rows = [f"{label:15} {value}" for label, value in zip(LABELS, values)]
    assert info(GPU) == ["NVRM version:   550.1", "CUDA version:   12.4", "", *rows, ""]


def test_values_of_a_csv_are_not_quoted() -> None:
    assert info(GPU, csv=True)[4:] == ["0,3,A, B,Tesla,GPU-1,00000000:0f:00.0,9.0", ""]


def test_a_node_without_gpus() -> None:
    assert info() == ["NVRM version:   550.1", "CUDA version:   12.4", ""]
    header = "Device Index,Device Minor,Model,Brand,GPU UUID,Bus Location,Architecture"
    assert info(csv=True) == ["NVRM version,CUDA version", "550.1,12.4", "", header, ""]


def test_what_nvml_does_not_tell_is_empty() -> None:
    text = info(Gpu(index=7, uuid="GPU-2"), driver=Driver(module_version="535.1"))
    assert text[:2] == ["NVRM version:   535.1", "CUDA version:   "]
    assert [line[16:] for line in text[3:-1]] == ["7", "", "", "Unknown", "GPU-2", "", ""]


def test_a_value_is_printable_and_one_line_whatever_it_is() -> None:
    text = info(GPU.replace(name="a\nb\x1b[2J\u202e", uuid="GPU-\r"), csv=True)
    assert text[4] == r"0,3,a\nb\x1b[2J\u202e,Tesla,GPU-\r,00000000:0f:00.0,9.0"


@pytest.mark.parametrize("address", ["0000:0f:00.0", "00000000:0F:00.0", "0:0f:00.0"])
def test_a_bus_location_has_a_domain_of_eight_digits(address: str) -> None:
    assert "Bus Location:   00000000:0f:00.0" in info(GPU.replace(pci_bus_id=address))


def node(path: str, kind: str, owner: str = "") -> DeviceNode:
    return DeviceNode(host_path=path, container_path=path, kind=kind, type="c", major=1, minor=2, owner=owner)


def test_nodes_that_are_listed_unseen() -> None:
    found = Found(driver=Driver(dev_root="/r"), gpus=(GPU,), device_nodes=(node("/dev/nvidia3", "gpu", "GPU-1"),))
    more = clitext.with_assumed(found).device_nodes
    assert [(each.host_path, each.major, each.minor) for each in more] == [
        ("/dev/nvidia3", 1, 2), ("/r/dev/nvidiactl", 195, 255), ("/r/dev/nvidia-modeset", 195, 254),
    ]  # fmt: skip
    assert clitext.with_assumed(found.replace(device_nodes=more)).device_nodes == more
    wsl = found.replace(device_nodes=(node("/dev/dxg", "wsl"),))
    assert clitext.with_assumed(wsl) == wsl


CLASSED = {
    "a class of its own": ("device error: 9: unknown device", "device error: 9: unknown device"),
    "none": ("open /x: ENOENT", "detection error: open /x: ENOENT"),
    "a word that only begins like one": ("mount errors: x", "detection error: mount errors: x"),
    "NVML's": ("initialization error: nvml error: /l: nvmlInit: NVML_ERROR_GPU_IS_LOST",
               "initialization error: nvml error: gpu is lost: /l: nvmlInit: NVML_ERROR_GPU_IS_LOST"),
    "NVML's that does not answer": (
        "initialization error: nvml error: /l: nvmlInit: no answer within 10 s",
        "initialization error: driver rpc error: timed out: /l: nvmlInit: no answer within 10 s",
    ),
    "NVML's that crashes": (
        "initialization error: nvml error: /l: nvmlInit: killed by SIGSEGV",
        "initialization error: driver rpc error: failed to process request: /l: nvmlInit: killed by SIGSEGV",
    ),
    "NVML's, of another kind": ("initialization error: nvml error: /l: NVML_ERROR_9", None),
    "NVML's, without a class": ("ask NVML /l: nvmlInit: NVML_ERROR_UNKNOWN",
                                "detection error: ask NVML /l: nvmlInit: NVML_ERROR_UNKNOWN"),
}  # fmt: skip


@pytest.mark.parametrize("name", CLASSED)
def test_every_error_has_a_class(name: str) -> None:
    message, wanted = CLASSED[name]
    found = clierror.classed(HookError(message, "do"), "detection error")
    assert (found.message, found.hint) == (wanted or message, "do")
    assert clierror.classed(found, "mount error").message == found.message


OF_THE_WORK = {
    "x: ENOENT": "mount error: x: ENOENT",
    "mount error: x: ENOENT": "mount error: x: ENOENT",
    "ldcache error: x": "ldcache error: x",
    "find device cgroup /a: ESRCH": "container error: find device cgroup /a: ESRCH",
    "mount error: find device cgroup: mount /a: EPERM": "container error: find device cgroup: mount /a: EPERM",
}


@pytest.mark.parametrize("message", OF_THE_WORK)
def test_the_class_of_an_error_of_the_work(message: str) -> None:
    found = clierror.mounted(HookError(message, "do"))
    assert (found.message, found.hint) == (OF_THE_WORK[message], "do")


WORDED = {
    "an errno": ("x: stat failed: /dev/x: ENOENT", "x: stat failed: /dev/x: no such file or directory", "ENOENT; do"),
    "a longer one": ("x: /y: ENAMETOOLONG", "x: /y: file name too long", "ENAMETOOLONG; do"),
    "in the middle": ("x: ENOENT: /y", "x: ENOENT: /y", "do"),
    "NVML's": ("x: NVML_ERROR_MEMORY", "x: NVML_ERROR_MEMORY", "do"),
    "capitals": ("device error: EVERY: unknown device", "device error: EVERY: unknown device", "do"),
    "a name that only looks like one": ("mount error: EX", "mount error: EX", "do"),
    "no colon": ("ENOENT", "ENOENT", "do"),
}  # fmt: skip


@pytest.mark.parametrize("name", WORDED)
def test_an_errno_is_told_in_words(name: str) -> None:
    message, wanted, hint = WORDED[name]
    found = clierror.worded(HookError(message, "do"))
    assert (found.message, found.hint) == (wanted, hint)
    assert clierror.worded(HookError("x: EPERM")).line() == "x: operation not permitted (EPERM)"


def test_a_line_of_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "_sinks", [])
    monkeypatch.setattr(log, "_stderr_level", log.ERROR + 1)
    path = tmp_path / "log"
    clilog.start(str(path))
    log.info('a "quoted\\" text', key="two words", other=1)
    log.warning("w")
    log.error("e\nx")
    log.debug("")
    lines = path.read_text().splitlines()
    assert path.stat().st_mode & 0o777 == 0o644
    here = rf"\d{{4}} \d\d:\d\d:\d\d\.\d{{6}} {os.getpid()} test_clitext\.py:\d+\] "
    wanted = [r'I.a "quoted\\" text key="two words" other=1', "W.w", r"E.e\\nx", "I."]
    assert len(lines) == 3 + len(wanted)
    for line, text in zip(lines[3:], wanted):
        assert re.fullmatch(text[0] + here + text[2:], line), line


def test_a_program_that_is_in_no_file_has_no_date(monkeypatch: pytest.MonkeyPatch) -> None:
    assert re.search(r"^build date: \d{4}-\d\d-\d\dT\d\d:\d\d\+00:00$", clitext.version("3"), re.MULTILINE)
    monkeypatch.setattr(clitext, "__file__", "/nowhere/clitext.py")
    assert "build date: unknown\n" in clitext.version("3")


@pytest.mark.parametrize("has_nodes", [True, False])
def test_the_management_of_a_driver_without_nodes_is_directories(
    monkeypatch: pytest.MonkeyPatch, has_nodes: bool
) -> None:
    monkeypatch.setattr(migcaps, "has_nodes", lambda: has_nodes)
    monkeypatch.setattr(migcaps, "instance_minors", lambda minors: [10 * each + 1 for each in minors])
    chosen: Any = object.__new__(choose.Chosen)
    nodes = [node("/dev/nvidia-caps/nvidia-cap1", "mig-config")] if has_nodes else []
    chosen.found = Found(driver=DRIVER, device_nodes=nodes)
    top, caps = "/proc/driver/nvidia/capabilities", "/dev/nvidia-caps"
    assert clitext._managing(chosen, "config", [GPU, GPU.replace(minor=None)]) == [
        f"{top}/mig/config", *([f"{caps}/nvidia-cap1"] if has_nodes else []), f"{top}/gpu3", caps,
        *([f"{caps}/nvidia-cap31"] if has_nodes else []), f"{top}/gpuNone", caps,
    ]  # fmt: skip
