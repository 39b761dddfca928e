"""`nvoci info`, `why` and `inventory` as a person calls them on a node: whole processes, the real /dev and /proc."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from lib import proc, session, simnode
from simnode.nodes import built, fresh, needs_x86, nvoci

pytestmark = needs_x86

SIMNODE = session.CHECKOUT / "scripts/simnode"
V = "550.163.01"
LIB = "usr/lib/x86_64-linux-gnu"
LINKED = ("--driver-root", "/run/nvidia/driver", "--dev-root", "/")


def run(node: simnode.Built, *words: str | Path, installed: bool = False) -> proc.Result:
    """A command on a node."""
    options = ("--installed",) if installed else ()
    return proc.run([SIMNODE, "run", *options, node.root, "--", *words], timeout=30)


class Case(NamedTuple):
    """root: options that say where the driver is; None for the node's directory, () for `/` with the driver installed
    there. gpus: their indices; shown: in the output; told: on stderr, in order."""

    name: str
    rc: int
    gpus: list[int]
    shown: list[str]
    told: list[str]
    root: tuple[str, ...] | None = None
    faults: dict[str, Any] | None = None


CASES = {
    "a100": Case("a100", 0, list(range(8)), ["driver root  ROOT", f"kernel module  {V}"], []),
    "a100, installed": Case("a100", 0, list(range(8)), ["driver root  /\n"], [], ()),
    "a100-mig": Case("a100-mig", 0, list(range(8)), ["\n4:6  13/0  1g.5gb ", "nvidia-cap660"], []),
    "gpu-lost": Case("gpu-lost", 0, [0, 2], ["1 of 3 GPUs do not answer", "NVML_ERROR_GPU_IS_LOST"],
                     ["nvoci: warning: ask NVML about GPU 1: "]),
    "mig-empty": Case("mig-empty", 0, [0, 1], ["no MIG devices on GPU 0, 1, though MIG mode is on"], []),
    "hang": Case("no-drm", 1, [], ["no GPUs: NVML does not answer", "driver  " + V],
                 [f"nvoci: ask NVML ROOT/{LIB}/libnvidia-ml.so.{V}: nvmlInit: no answer within 1 s ("],
                 faults={"hang": "init"}),
    "crash": Case("no-drm", 1, [], ["no GPUs: NVML does not answer"],
                  [f"nvoci: ask NVML ROOT/{LIB}/libnvidia-ml.so.{V}: nvmlInit: killed by SIGSEGV ("],
                  faults={"crash": "init"}),
    "driver-not-loaded": Case("driver-not-loaded", 1, [], ["kernel module  -\n", "not loaded (modprobe nvidia)"],
                              [f"nvoci: ask NVML ROOT/{LIB}/libnvidia-ml.so.{V}: nvmlInit: NVML_ERROR_DRIVER_"]),
    "version-mismatch": Case("version-mismatch", 1, [], [f"kernel module  {V}\n", "driver  535.183.01\n"],
                             ["nvoci: warning: match the driver's versions kernel module ", "nvoci: ask NVML ROOT/"]),
    "thor": Case("thor", 0, [0, 1], ["platform  csv (", "NVIDIA Thor", "NVIDIA RTX 6000 Ada Generation"], []),
    "tegra": Case("tegra", 0, [], ["csv (/etc/nv_tegra_release is there, ", "no GPUs: there is no NVML to tell"], []),
    "wsl": Case("wsl", 0, [0], ["platform  wsl (", "NVIDIA GeForce RTX 4090"], []),
    "linked-root": Case("linked-root", 0, [0, 1], ["driver root  /run/nvidia/driver\n", "dev root  /\n",
                                                   f"/run/nvidia/drivers/{V}/{LIB}/libnvidia-ml.so.{V}\n"], [], LINKED),
    "linked-root, not named": Case("linked-root", 1, [], ["driver  -\n"], ["nvoci: find the driver ROOT: "]),
    "rhel-lib64, installed": Case("rhel-lib64", 0, [0, 1], ["libraries in  /usr/lib64\n"], [], ()),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_info(name: str) -> None:
    case = CASES[name]
    node = fresh(case.name, case.faults) if case.faults else built(case.name)
    root = ("--driver-root", node.root) if case.root is None else case.root
    words = (nvoci(), "info", *root, "--timeout", "1" if case.faults else "10")
    result = run(node, *words, installed=case.root == ())
    stdout, stderr = (text.replace(str(node.root), "ROOT") for text in (result.stdout, result.stderr))
    assert (result.rc, result.survivors) == (case.rc, []), stderr
    assert [each for each in case.shown if each not in re.sub("  +", "  ", stdout)] == []
    lines = stderr.splitlines()
    assert len(lines) == len(case.told), stderr
    assert [line[: len(told)] for line, told in zip(lines, case.told)] == case.told
    result = run(node, *words, "--json", installed=case.root == ())
    document = json.loads(result.stdout)
    assert (result.rc, [gpu["index"] for gpu in document["gpus"]]) == (case.rc, case.gpus)
    described = {g["index"]: g for g in (simnode.sample(case.name).get("nvml") or {}).get("gpus", [])}
    for gpu in document["gpus"]:
        own = described[gpu["index"]]
        for key in ("uuid", "name", "memory", "brand", "compute_capability"):
            assert gpu[key] == own[key]
        assert [mig["uuid"] for mig in gpu["mig_devices"]] == [mig["uuid"] for mig in own.get("mig_devices", [])]


# node, NAME, options -> exit status, a line
WHY = {
    "library": ("a100", "libcuda.so.1", None, 0, f"ROOT/{LIB}/libcuda.so.{V}: used"),
    "device": ("a100", "/dev/nvidia7", None, 0, "containers get gpu /dev/nvidia7, from ROOT/dev/nvidia7, with GPU-"),
    "MIG capability": ("a100-mig", "nvidia-cap12", None, 0, "device /dev/nvidia-caps/nvidia-cap12: found"),
    "lost GPU": ("gpu-lost", "nvidia1", None, 0, "containers get gpu /dev/nvidia1, from ROOT/dev/nvidia1, with GPU-"),
    "not loaded": ("driver-not-loaded", "/dev/nvidia0", None, 1, "/dev/nvidia0: not used"),
    "other version": ("version-mismatch", f"libcuda.so.{V}", None, 1, f"ROOT/{LIB}/libcuda.so.535.183.01: used"),
    "linked version": ("version-mismatch", "libcuda.so.1", None, 0, f"ROOT/{LIB}/libcuda.so.535.183.01: used"),
    "other version's path": ("version-mismatch", f"/{LIB}/libcuda.so.{V}", None, 1, f"/{LIB}/libcuda.so.{V}: not used"),
    "linked root": ("linked-root", "nvidia-smi", LINKED, 0, "/run/nvidia/driver/usr/bin/nvidia-smi: used"),
    "dev root": ("linked-root", "nvidiactl", LINKED, 0, "/dev/nvidiactl: used: 195:255"),
    "tegra": ("tegra", "/dev/fb0", None, 1, "ROOT/dev/fb0: not there"),
    "wsl": ("wsl", "/dev/dxg", None, 0, "ROOT/dev/dxg: used: 10:125"),
}


@pytest.mark.parametrize("name", WHY)
def test_why(name: str) -> None:
    described, asked, options, rc, line = WHY[name]
    node = built(described)
    result = run(node, nvoci(), "why", asked, *(options or ("--driver-root", node.root)))
    assert result.rc == rc, result.stderr
    assert line in result.stdout.replace(str(node.root), "ROOT")


def test_an_inventory_is_made_holds_and_is_of_no_use_on_another_node() -> None:
    hosts_own = Path("/run/nvoci/inventory").exists()
    node, place = built("a100-mig"), session.new_dir("inventory")
    command = f"{nvoci()} inventory"
    steps = (
        f"{command} check; {command} refresh",
        f"{command} check",
        f"{command} show --json > {place}/shown",
        "stat -c '%a %u' /run/nvoci /run/nvoci/inventory",
        f"cp /run/nvoci/inventory {place}",
    )
    result = run(node, "sh", "-c", " && ".join(steps), installed=True)
    assert result.rc == 0, result.stderr
    assert result.stderr.startswith("nvoci: read inventory /run/nvoci/inventory: ENOENT (the first container start")
    assert result.stdout.startswith("/run/nvoci/inventory: made; there was none\ndriver: version 550.163.01, ")
    assert result.stdout.endswith("\n/run/nvoci/inventory: holds\n755 0\n644 0\n")
    shown = json.loads((place / "shown").read_text())
    assert (shown["holds"], len(shown["found"]["gpus"])) == (True, 8)
    assert Path("/run/nvoci/inventory").exists() is hosts_own
    result = run(built("no-drm"), nvoci(), "inventory", "check", "--path", place / "inventory", installed=True)
    assert (result.rc, "does not hold: " in result.stdout) == (1, True)


def test_it_needs_no_root() -> None:
    node = built("no-drm")
    drop = ["/usr/bin/setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    if run(node, *drop, session.PYTHON, "-ISc", f"open({str(session.HOOKS / 'nvoci/__init__.py')!r})").rc:
        pytest.skip("uid 65534 can not read this checkout")
    result = run(node, *drop, nvoci(), "info", "--driver-root", node.root, "--json")
    assert result.rc == 0, result.stderr
    assert len(json.loads(result.stdout)["gpus"]) == 2
    result = run(node, *drop, nvoci(), "inventory", "refresh", "--driver-root", node.root)
    assert (result.rc, result.stdout) == (1, "")
    assert result.stderr == "nvoci: store inventory /run/nvoci/inventory: EACCES (run it as root)\n"
