"""`nvoci info` on simulated nodes."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lib import session, simnode
from unit.ctl.nodetools import NEEDS, Invoke, at, copied
from unit.discover.looktools import built

from nvoci import log
from nvoci.ctl import info
from nvoci.discover import look

pytestmark = NEEDS

UUID = "GPU-12345678-1234-1234-1234-1234567800{:02x}"
FALL_OFF = "ask NVML about GPU 1: nvmlDeviceGetHandleByIndex of GPU 1: NVML_ERROR_GPU_IS_LOST"
NVML = "usr/lib/x86_64-linux-gnu/libnvidia-ml.so"


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """--debug is for one process; here all tests share one."""
    yield
    log.set_level(log.WARNING)


def cells(stdout: str, head: str) -> list[list[str]]:
    """The rows of the table whose first column has this head, columns parted by two blanks or more."""
    lines = stdout.splitlines()
    start = next(n for n, line in enumerate(lines) if re.match(head + r"  ", line))
    end = next((n for n in range(start, len(lines)) if not lines[n]), len(lines))
    columns = [m.start() for m in re.finditer(r"\S+", lines[start])]
    return [
        [line[a:b].strip() for a, b in zip(columns, [*columns[1:], None])]
        for line in lines[start + 1 : end]
        if re.match(r"\d+(:\d+)?  ", line)
    ]


def document(nvoci: Invoke, *options: str | Path, rc: int = 0) -> dict[str, Any]:
    result = nvoci("info", *options, "--json")
    assert result.rc == rc, result.stderr
    out: dict[str, Any] = json.loads(result.stdout)
    return out


def test_the_table_has_what_the_description_says(nvoci: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    options = at(built("a100"), monkeypatch)
    result = nvoci("info", *options)
    assert (result.rc, result.stderr) == (0, "")
    described = simnode.sample("a100")["nvml"]["gpus"]
    assert cells(result.stdout, "GPU") == [
        [str(gpu["index"]), gpu["name"], gpu["uuid"], gpu["pci_bus_id"][4:].lower(), str(gpu["minor"]),
         f"{gpu['memory'] >> 20} MiB", "{}.{}".format(*gpu["compute_capability"]), "Nvidia", "off"]
        for gpu in described
    ]  # fmt: skip
    assert len(described) == 8
    facts = dict(re.split(r"  +", line, maxsplit=1) for line in result.stdout.split("\n\n")[0].splitlines())
    assert facts["driver"] == facts["kernel module"] == "550.163.01"
    assert (facts["CUDA"], facts["platform"]) == ("12.4", "nvml (NVML answers)")
    found = document(nvoci, *options)
    nodes = {each["container_path"] for each in found["device_nodes"]}
    libraries = [each for each in found["mounts"] if each["kind"] == "library"]
    assert facts["for containers"].startswith(f"{len(nodes)} device nodes, {len(libraries)} libraries, 6 programs, ")
    assert "problems" not in result.stdout


def test_the_document_has_the_same_and_the_whole_of_found(nvoci: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    options = at(built("a100-mig"), monkeypatch)
    found = document(nvoci, *options)
    assert list(found) == [
        *("nvoci-info", "platform", "gpu_count", "driver", "gpus", "device_nodes", "mounts", "variables", "hooks"),
        "problems",
    ]
    assert (found["nvoci-info"], found["gpu_count"], found["problems"]) == (info.FORMAT, 8, [])
    with look.look(look.Place(str(options[1]))) as seen:
        plain = seen.found.to_json()
    for gpu in found["gpus"]:
        assert gpu.pop("brand_name") == "Nvidia"
        names = [mig.pop("name") for mig in gpu["mig_devices"]]
        assert names == [f"{gpu['index']}:{mig['index']}" for mig in gpu["mig_devices"]]
    assert {key: found[key] for key in plain} == plain


def test_mig_devices_are_told_with_their_nodes(nvoci: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    result = nvoci("info", *at(built("a100-mig"), monkeypatch))
    rows = cells(result.stdout, "MIG")
    described = [mig for gpu in simnode.sample("a100-mig")["nvml"]["gpus"] for mig in gpu.get("mig_devices", [])]
    assert [row[3] for row in rows] == [mig["uuid"] for mig in described]
    assert [row[1] for row in rows] == [f"{m['gpu_instance_id']}/{m['compute_instance_id']}" for m in described]
    assert rows[0][::2] == ["0:0", "3g.20gb", "/dev/nvidia-caps/nvidia-cap12, /dev/nvidia-caps/nvidia-cap13"]
    assert [row[8] for row in cells(result.stdout, "GPU")] == ["on"] * 5 + ["off"] * 3


def test_one_lost_gpu_does_not_hide_the_others(nvoci: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    options = at(built("gpu-lost"), monkeypatch)
    result = nvoci("info", *options)
    assert result.rc == 0
    assert [row[0] for row in cells(result.stdout, "GPU")] == ["0", "2"]
    assert "\n1 of 3 GPUs do not answer\n" in result.stdout
    assert f"\nproblems:\n  {FALL_OFF} (" in result.stdout
    assert result.stderr.startswith(f"nvoci: warning: {FALL_OFF} (")
    assert result.stderr.count("\n") == 1
    found = document(nvoci, *options)
    assert (found["gpu_count"], len(found["gpus"]), len(found["problems"])) == (3, 2, 1)


def test_if_all_gpus_are_lost_that_is_a_failure(nvoci: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    node = copied("no-drm", {"lost": [0, 1]})
    result = nvoci("info", *at(node, monkeypatch))
    assert (result.rc, "no GPUs: none of them answers" in result.stdout) == (1, True)
    lines = result.stderr.splitlines()
    assert [line.split("GPU ")[0] for line in lines] == ["nvoci: warning: ask NVML about ", "nvoci: ask NVML about "]


def test_mig_mode_without_instances_is_told(nvoci: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    result = nvoci("info", *at(built("mig-empty"), monkeypatch))
    assert (result.rc, result.stderr) == (0, "")
    assert "no MIG devices on GPU 0, 1, though MIG mode is on" in result.stdout
    assert [row[8] for row in cells(result.stdout, "GPU")] == ["on", "on"]


def test_a_gpu_that_names_itself_badly_writes_no_control_character(
    nvoci: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = at(built("hostile"), monkeypatch)
    result = nvoci("info", *options)
    assert all(c.isprintable() or c == "\n" for c in result.stdout + result.stderr)
    assert "/dev/sda" not in {line.strip() for line in result.stdout.splitlines()}
    words = nvoci("info", *options, "--json")
    assert all(c.isprintable() or c == "\n" for c in words.stdout + words.stderr)
    json.loads(words.stdout)


# node -> faults, stdout has, the last line of stderr, how many lines of stderr
FAILURES: dict[str, tuple[str, dict[str, Any] | None, str, str]] = {
    "not loaded": ("driver-not-loaded", None, "NVML_ERROR_DRIVER_NOT_LOADED (load the kernel module: modprobe nvidia",
                   "find the kernel module"),
    "mismatch": ("version-mismatch", None, "NVML_ERROR_LIB_RM_VERSION_MISMATCH (the kernel module in use is",
                 "kernel module 550.163.01, libraries 535.183.01: the versions differ"),
    "hang": ("no-drm", {"hang": "init"}, "nvmlInit: no answer within 0.7 s (the driver hang", "NVML does not answer"),
    "hang later": ("no-drm", {"hang": "nvmlDeviceGetName@1"}, "no answer within 0.7 s", "NVML does not answer"),
    "crash": ("no-drm", {"crash": "init"}, "nvmlInit: killed by SIGSEGV (is it whole", "NVML does not answer"),
    "half removed": ("half-removed", None, "libnvidia-ml.so.550.163.01 in ROOT: not there (reinstall the driver",
                     "no GPUs: there is no NVML to tell of them"),
}  # fmt: skip


@pytest.mark.parametrize("case", FAILURES)
def test_a_driver_that_does_not_work_is_exit_status_1_and_a_line_that_says_what_to_do(
    nvoci: Invoke, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    name, faults, words, shown = FAILURES[case]
    node = copied(name, faults)
    begin = time.monotonic()
    options = (*at(node, monkeypatch), "--timeout", "0.7")
    result = nvoci("info", *options)
    assert time.monotonic() - begin < 5
    assert result.rc == 1
    *others, last = result.stderr.replace(str(node.root), "ROOT").splitlines()
    assert last.startswith("nvoci: ")
    assert words in last
    assert last.endswith(")")
    assert all(line.startswith("nvoci: warning: ") for line in others)
    assert shown in result.stdout
    found = document(nvoci, *options, rc=1)
    assert found["gpus"] == []
    line = look.Problem(**found["problems"][0]).line().replace(str(node.root), "ROOT")
    assert line == last.removeprefix("nvoci: ")


def test_without_a_driver_there_is_one_line_and_no_table(
    nvoci: Invoke, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    options = at(tmp_path, monkeypatch)
    result = nvoci("info", *options)
    assert (result.rc, result.stdout) == (1, "")
    start = f"nvoci: find the driver {tmp_path}: no libcuda.so.*.* and no libnvidia-ml.so.*.* (install the"
    assert result.stderr.startswith(start)
    assert result.stderr.count("\n") == 1
    assert document(nvoci, *options, rc=1)["driver"]["version"] == ""


def test_a_tegra_system_needs_no_nvml(nvoci: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    result = nvoci("info", *at(built("tegra"), monkeypatch))
    assert (result.rc, result.stderr) == (0, "")
    assert "no GPUs: there is no NVML to tell of them" in result.stdout
    assert re.search(r"^for containers +13 device nodes, ", result.stdout, re.MULTILINE)


def test_thor_has_an_integrated_gpu_without_address_and_another(
    nvoci: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = nvoci("info", *at(built("thor"), monkeypatch))
    assert result.rc == 0
    integrated, discrete = cells(result.stdout, "GPU")
    assert integrated[:2] + integrated[3:] == ["0", "NVIDIA Thor", "-", "0", "131072 MiB", "11.0", "Nvidia", "-"]
    assert discrete[3] == "0000:07:00.0"
    assert re.search(r"^platform +csv \(", result.stdout, re.MULTILINE)


def test_wsl_has_its_nvml_in_the_driver_store(nvoci: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    options = at(built("wsl"), monkeypatch)
    result = nvoci("info", *options)
    assert (result.rc, result.stderr) == (0, "")
    assert [row[1] for row in cells(result.stdout, "GPU")] == ["NVIDIA GeForce RTX 4090"]
    assert document(nvoci, *options)["driver"]["nvml_path"].startswith(f"{options[1]}/usr/lib/wsl/drivers/nv_dispi.inf")


@pytest.mark.parametrize("how", ["no link", "32-bit first", "no library"])
def test_nvml_is_found_as_it_lies(nvoci: Invoke, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    node = copied("i386")
    top = node.root / "usr/lib"
    if how == "no link":
        (top / "x86_64-linux-gnu/libnvidia-ml.so.1").unlink()
        (top / "i386-linux-gnu/libnvidia-ml.so.1").unlink()
    elif how == "32-bit first":
        (top / "x86_64-linux-gnu").rename(top / "here")
        (node.root / "usr/lib32").symlink_to("lib/here")
    else:
        for path in top.glob("x86_64-linux-gnu/libnvidia-ml.so*"):
            path.unlink()
    found = document(nvoci, *at(node, monkeypatch), rc=int(how == "no library"))
    expected = {"no link": "x86_64-linux-gnu", "32-bit first": "here"}.get(how, "")
    path = f"{top}/{expected}/libnvidia-ml.so.550.163.01" if expected else ""
    assert (found["driver"]["nvml_path"], len(found["gpus"])) == (path, 2 if expected else 0)


def test_the_phases_are_told_with_their_times(nvoci: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    result = nvoci("info", *at(built("no-drm"), monkeypatch), "--debug")
    told = re.findall(r"^nvoci: +([\d.]+) ms  (.+)$", result.stderr, re.MULTILINE)
    assert [phase for _, phase in told][:3] == ["load modules", "find NVML", "start NVML, load modules"]
    assert [phase for _, phase in told][-2:] == ["print", "all phases"]
    *parts, whole = (float(ms) for ms, _ in told)
    assert whole == pytest.approx(sum(parts), abs=0.1 * len(parts))
    assert 'msg="NVML asked"' in result.stderr
    assert cells(result.stdout, "GPU")[1][2] == UUID.format(1)


def test_a_driver_root_may_be_relative_and_must_be_there(
    nvoci: Invoke, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    node = built("no-drm")
    at(node, monkeypatch)
    monkeypatch.chdir(node.root.parent)
    assert document(nvoci, "--driver-root", node.root.name)["driver"]["root"] == str(node.root)
    result = nvoci("info", "--driver-root", tmp_path / "none")
    assert (result.rc, result.stdout) == (1, "")
    assert result.stderr.startswith(f"nvoci: open directory {tmp_path}/none: ENOENT (check the driver root")


def test_a_dev_root_of_its_own_is_where_nodes_are(nvoci: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    node = copied("no-drm")
    place = session.new_dir("devices")
    (node.root / "dev").rename(place / "dev")
    options = (*at(node, monkeypatch), "--dev-root", place)
    assert f"dev root        {place}\n" in nvoci("info", *options).stdout
    found = document(nvoci, *options)
    assert found["problems"] == []
    assert {each["host_path"] for each in found["device_nodes"]} >= {f"{place}/dev/nvidia{n}" for n in (0, 1)}


WRONG = {
    "timeout zero": ("--timeout", "0"),
    "timeout": ("--timeout", "x"),
    "empty root": ("--driver-root", ""),
    "root with an escape": ("--driver-root", "/\x1b[2J"),
    "argument": ("all",),
}


@pytest.mark.parametrize("words", WRONG.values(), ids=WRONG.keys())
def test_wrong_options_are_usage_errors(nvoci: Invoke, words: tuple[str, ...]) -> None:
    result = nvoci("info", *words)
    assert (result.rc, result.stdout) == (2, "")
    assert "\x1b" not in result.stderr
