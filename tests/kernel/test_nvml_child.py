"""The process that loads NVML, with a library that hangs, crashes, prints, or lies."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest
from kernel.nvmlliar import NAME, alive, ask, error, library, marks, nothing_left
from unit.discover.nodetree import UUID

from nvoci.discover import nvml
from nvoci.errors import HookError

pytestmark = marks
__all__ = ["nothing_left"]


# -- hangs, crashes, ends ---------------------------------------------------------------------------------------------

HANGS = {
    "while it is loaded": ("ON_LOAD=for (;;) pause()", "dlopen "),
    "in init": ("ON_INIT=for (;;) pause()", "nvmlInit"),
    "in a call": ("ON_UUID=if (index == 1) for (;;) pause()", "nvmlDeviceGetUUID of GPU 1"),
    "busy": ("ON_INIT=for (;;) getpid()", "nvmlInit"),
    "deaf": ("ON_INIT=for (int i = 1; i < 32; i++) signal(i, SIG_IGN); for (;;) pause()", "nvmlInit"),
    "stopped": ("ON_INIT=raise(SIGSTOP)", "nvmlInit"),
    "with a closed pipe of results": ("ON_INIT=close(3); for (;;) pause()", ""),
    "printing": ('ON_INIT=for (;;) puts("0123456789")', "nvmlInit"),
}


@pytest.mark.parametrize("case", HANGS)
def test_a_library_that_hangs(case: str) -> None:
    define, stage = HANGS[case]
    line = error(define, seconds=1)
    if case == "with a closed pipe of results":
        assert "nvmlInit: killed by SIGKILL" in line
    else:
        assert f"ask NVML {library(define)}: {stage}" in line
        assert ": no answer within 1 s (the driver hangs" in line


ENDS = {
    "SIGSEGV while it is loaded": ("ON_LOAD=*(volatile int *)8 = 0", "dlopen ", "killed by SIGSEGV"),
    "SIGSEGV in init": ("ON_INIT=*(volatile int *)8 = 0", "nvmlInit", "killed by SIGSEGV"),
    "SIGSEGV in a call": ("ON_UUID=*(volatile int *)8 = 0", "nvmlDeviceGetUUID of GPU 0", "killed by SIGSEGV"),
    "abort": ("ON_INIT=abort()", "nvmlInit", "killed by SIGABRT"),
    "exit": ("ON_INIT=exit(7)", "nvmlInit", "exit status 7"),
    "exit with success": ("ON_INIT=exit(0)", "nvmlInit", "ended early"),
    "kills its group": ("ON_INIT=kill(0, SIGTERM)", "nvmlInit", "killed by SIGTERM"),
    "too much memory": ("ON_INIT=while (malloc(1 << 26)) continue; raise(SIGBUS)", "nvmlInit", "killed by SIGBUS"),
    "processor time": ("ON_INIT=raise(SIGXCPU)", "nvmlInit", "killed by SIGXCPU"),
}


@pytest.mark.parametrize("case", ENDS)
def test_a_library_that_ends_the_process(case: str) -> None:
    define, stage, how = ENDS[case]
    line = error(define)
    assert f"ask NVML {library(define)}: {stage}" in line
    assert f": {how} (" in line


def test_what_it_printed_before_is_told() -> None:
    line = error('ON_INIT=fputs("no\\nGPU\\033[2J here\\n", stderr); exit(3)')
    assert r"it printed: no GPU\x1b[2J here" in line


def test_what_it_prints_is_nowhere_else(capfd: pytest.CaptureFixture[str]) -> None:
    answer = ask('ON_INIT=for (int i = 0; i < 100000; i++) puts("NVML says hello"); fflush(stdout)')
    assert len(answer.gpus) == 2
    assert capfd.readouterr() == ("", "")


def test_who_it_leaves_behind_does_not_hold_us_up() -> None:
    start = time.monotonic()
    assert len(ask("ON_INIT=if (!fork()) for (;;) pause()").gpus) == 2
    assert time.monotonic() - start < 5


SYSTEM = r'{\"system\": {\"driver_version\": \"550.1\", \"count\": 0}}\n{\"end\": true}\n'
AFTER = {
    "hangs": "for (;;) pause()",
    "crashes": "*(volatile int *)8 = 0",
}


@pytest.mark.parametrize("case", AFTER)
def test_an_answer_that_is_complete_counts_whatever_follows(case: str) -> None:
    assert len(ask(f"ON_SHUTDOWN={AFTER[case]}").gpus) == 2
    said = f'ON_INIT=const char s[] = "{SYSTEM}"; if (write(3, s, sizeof s - 1) > 0) {AFTER[case]}'
    assert nvml.query(library(said), seconds=1).driver_version == "550.1"


def test_given_up_it_is_killed() -> None:
    with nvml.Question(library("ON_INIT=for (;;) pause()")) as question:
        pid = question._process._pid
        assert alive(pid)
    assert not alive(pid)


# -- errors -----------------------------------------------------------------------------------------------------------

INIT_ERRORS = {
    9: ("NVML_ERROR_DRIVER_NOT_LOADED", "modprobe nvidia"),
    18: ("NVML_ERROR_LIB_RM_VERSION_MISMATCH", "of another version than this library: reboot"),
    4: ("NVML_ERROR_NO_PERMISSION", "uid 65534 must be able to open /dev/nvidiactl"),
    999: ("NVML_ERROR_UNKNOWN", "see the kernel's log"),
    4242: ("NVML error 4242", "see the kernel's log"),
}


@pytest.mark.parametrize("code", INIT_ERRORS)
def test_errors_of_init(code: int) -> None:
    name, hint = INIT_ERRORS[code]
    line = error(f"ON_INIT=answer = {code}")
    assert f": nvmlInit: {name} (" in line
    assert hint in line


def test_a_lost_gpu_is_reported_and_left_out() -> None:
    answer = ask("COUNT=3", "ON_UUID=if (index == 1) answer = GPU_IS_LOST")
    assert [gpu.index for gpu in answer.gpus] == [0, 2]
    assert answer.count == 3
    hint = "it fell off the bus: see the kernel's log for Xid, then reset it or reboot"
    assert [p.line() for p in answer.problems] == [
        f"ask NVML about GPU 1: nvmlDeviceGetUUID of GPU 1: NVML_ERROR_GPU_IS_LOST ({hint})"
    ]


WANTED = {
    "all": False, "0": False, "2": False, UUID.format(0): False, UUID.format(2).lower(): False, "7": False,
    "1": True, UUID.format(1): True, "1:0": True, "0:0": False, "MIG-00000000-aaaa-5bbb-8ccc-000000010000": True,
    f"MIG-{UUID.format(0)}/1/0": False, f"MIG-{UUID.format(1)}/1/0": True, "\u00b2": False, "9" * 5000: False,
    "": False, "none": False, "void": False, "x": False, "-1": False, "GPU-x": False, "1:x": False, "::": False,
}  # fmt: skip


@pytest.mark.parametrize("name", WANTED)
def test_a_lost_gpu_that_is_wanted_is_an_error(name: str) -> None:
    defines = ("COUNT=3", "ON_UUID=if (index == 1) answer = GPU_IS_LOST")
    if WANTED[name]:
        line = error(*defines, wanted=[name])
        assert line.startswith(f"use GPU {name}: GPU 1: nvmlDeviceGetUUID of GPU 1: NVML_ERROR_GPU_IS_LOST (")
    else:
        assert len(ask(*defines, wanted=[name]).gpus) == 2


def test_a_gpu_that_cannot_tell_everything_is_a_gpu() -> None:
    gpu = ask("ON_UUID=").gpus[1]
    assert (gpu.name, gpu.minor, gpu.uuid) == ("Liar 1", 1, UUID.format(1))
    assert (gpu.memory, gpu.compute_capability, gpu.pci_bus_id, gpu.mig_capable) == (None, None, "", False)


# -- lies -------------------------------------------------------------------------------------------------------------

LIES = {
    "no UUID": (('UUID=""',), "UUID ''"),
    "path": (('UUID="GPU-../../../../etc/passwd"',), "UUID"),
    "line": (('UUID="GPU-12345678-1234-1234-1234-12345678000%u\\nx"',), "UUID"),
    "not hexadecimal": (('UUID="GPU-1234567g-1234-1234-1234-12345678000%u"',), "UUID"),
    "shell": (('UUID="$(id)"',), "UUID"),
    "minor": (("MINOR=1 << 20",), "minor 1048576"),
}  # fmt: skip


@pytest.mark.parametrize("case", LIES)
def test_a_gpu_that_makes_no_sense_is_left_out(case: str) -> None:
    defines, reason = LIES[case]
    answer = ask(*defines)
    assert answer.gpus == ()
    assert len(answer.problems) == 2
    assert reason in answer.problems[0].error
    assert "\n" not in answer.problems[0].line()


def test_two_gpus_are_not_one() -> None:
    same = ask('UUID="GPU-12345678-1234-1234-1234-123456780000"')
    assert [len(same.gpus), same.problems[0].error] == [
        1, "an answer that makes no sense: the same UUID or PCI address as GPU 0",
    ]  # fmt: skip
    assert "the same minor number as GPU 0" in ask("MINOR=0").problems[0].error


def test_text_that_is_none() -> None:
    assert "an answer that is not text" in ask('NAME="\\xff\\xfe"').problems[0].error
    assert ask('NAME="a\\033[2J\\nb"').gpus[0].name == r"a\x1b[2J\nb"


TOTAL_LIES = {
    "version is a path": ('VERSION="../../etc"', "it answers with driver version"),
    "no version": ('VERSION=""', "it answers with driver version"),
    "version with a wildcard": ('VERSION="550.*"', "it answers with driver version"),
    "endless GPUs": ("COUNT=0xffffffff", "it counts 4294967295 GPUs"),
    "its own result": (r'ON_INIT=if (write(3, "{\"system\": 1}\n", 14)) exit(0)', "`system` is not an object"),
    "half a result": (r'ON_INIT=if (write(3, "{\"end\": tr", 10)) exit(0)', "ended early"),
    "garbage as a result": (r'ON_INIT=if (write(3, "\xff\0\n\n[]\n", 7)) exit(0)', "it answers with"),
    "the end without anything": (r'ON_INIT=if (write(3, "{\"end\": true}\n", 14)) exit(0)', "ended early"),
    "a flood of results": (r'ON_INIT=char b[4096] = ""; while (write(3, b, 4096) > 0)', "more than 4194304 bytes"),
}


@pytest.mark.parametrize("case", TOTAL_LIES)
def test_a_library_that_makes_no_sense(case: str) -> None:
    define, reason = TOTAL_LIES[case]
    assert reason in error(define)


# -- the library itself -----------------------------------------------------------------------------------------------


def test_a_library_with_another_soname_is_not_mistaken() -> None:
    line = error(soname="libother.so.1")
    assert "dlopen: " in line
    assert NAME in line


def test_what_is_not_a_library(tmp_path: Path) -> None:
    (tmp_path / NAME).write_text("#!/bin/sh\n")
    with pytest.raises(HookError, match=r"ask NVML .*/libnvidia-ml.so.1: dlopen: .*(invalid ELF header|too short)"):
        nvml.query(str(tmp_path / NAME))
    for path, errno in ((tmp_path / "none", "ENOENT"), (tmp_path, "EISDIR"), (Path("/dev/null"), "EINVAL")):
        with pytest.raises(HookError, match=rf"open NVML {path} in /: {errno}"):
            nvml.query(str(path))


def test_a_driver_root_keeps_its_links_inside(tmp_path: Path) -> None:
    root = tmp_path / "driver"
    place = root / "usr/lib64"
    place.mkdir(parents=True)
    shutil.copy(library('VERSION="560.1"'), place / "libnvidia-ml.so.560.1")
    (place / NAME).symlink_to("/usr/lib64/libnvidia-ml.so.560.1")
    (tmp_path / "link").symlink_to("driver")
    with nvml.find_library(str(tmp_path / "link")) as found:
        assert found.path == f"{place}/libnvidia-ml.so.560.1"
        assert nvml.query(found).driver_version == "560.1"  # below a directory of root's alone (tmp_path is 0700)
    (place / NAME).unlink()
    (place / NAME).symlink_to("../../../../../../../../etc/passwd")
    with pytest.raises(HookError, match=r"find NVML: no libnvidia-ml.so.1 in /") as caught:
        nvml.find_library(str(root))
    assert "looked in /usr/lib64, " in caught.value.hint


def test_pynvml_is_looked_for_before_anything_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as without:
        without.setattr("importlib.util.find_spec", lambda name: None)
        with pytest.raises(HookError, match="the Python module pynvml is not there"):
            nvml.query(library())
    monkeypatch.setattr("nvoci.discover._nvml_process._interpreter", lambda: "/nonexistent/python")
    with pytest.raises(HookError, match="ask NVML: start /nonexistent/python: ENOENT"):
        nvml.query(library())
