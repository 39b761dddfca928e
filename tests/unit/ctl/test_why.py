"""`nvoci why` on simulated nodes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from lib import simnode
from unit.ctl.nodetools import NEEDS, Invoke, at, copied
from unit.discover.looktools import built

pytestmark = NEEDS

V, OLD = "550.163.01", "535.183.01"
LIB = "/usr/lib/x86_64-linux-gnu"
GSP = f"/lib/firmware/nvidia/{V}/gsp_ga10x.bin"

# node, NAME -> whether it is used, lines that are told (ROOT is the driver root)
ASKED: dict[str, tuple[str, str, bool, list[str]]] = {
    "stem": ("no-drm", "libcuda", True, ["library libcuda.so: found", f"ROOT{LIB}/libcuda.so.{V}: used"]),
    "soname": ("no-drm", "libcuda.so.1", True, [f"ROOT{LIB}/libcuda.so.1: a link to {LIB}/libcuda.so.{V}"]),
    "file": ("no-drm", f"libcuda.so.{V}", True, [f"ROOT{LIB}/libcuda.so.{V}: used"]),
    "path": ("no-drm", f"{LIB}/libcuda.so.{V}", True, [f"ROOT{LIB}/libcuda.so.{V}: used"]),
    "path of a link": ("no-drm", f"{LIB}/libcuda.so", True, [f"{LIB}/libcuda.so: used"]),
    "path of the host": ("no-drm", f"ROOT{LIB}/libcuda.so.1", True, [f"ROOT{LIB}/libcuda.so.1: used"]),
    "file of the old driver": ("two-versions", f"libcuda.so.{OLD}", False,
                               [f"ROOT{LIB}/libcuda.so.{OLD}: of another version than the driver"]),
    "path of the old driver": ("two-versions", f"{LIB}/libcuda.so.{OLD}", False,
                               [f"ROOT{LIB}/libcuda.so.{OLD}: of another version than the driver",
                                f"ROOT{LIB}/libcuda.so.{V}: used"]),
    "only in ld.so.cache": ("cache-only", "libcuda.so.1", True,
                            [f"ROOT/opt/nvidia/driver/lib/libcuda.so.{V} (by ld.so.cache or a link): used"]),
    "path only in ld.so.cache": ("cache-only", f"/opt/nvidia/driver/lib/libcuda.so.{V}", True, []),
    "vendor-neutral": ("no-drm", "libGL.so.1", False, ["library libGL.so: not found"]),
    "library that is nowhere": ("no-drm", "libnothing.so.1", False, ["library libnothing.so: not found",
                                                                     "ROOT/usr/lib64: not there"]),
    "program": ("no-drm", "nvidia-smi", True, ["ROOT/usr/sbin/nvidia-smi: not there", "ROOT/usr/bin/nvidia-smi: used"]),
    "path of a program": ("no-drm", "/usr/bin/nvidia-smi", True, ["ROOT/usr/bin/nvidia-smi: used"]),
    "path of no program": ("no-drm", "/usr/sbin/nvidia-smi", False, ["ROOT/usr/sbin/nvidia-smi: not there"]),
    "program that is gone": ("half-removed", "nvidia-smi", False, ["binary nvidia-smi: not found"]),
    "device": ("no-drm", "nvidia0", True, ["ROOT/dev/nvidia0: used: 195:0"]),
    "path of a device": ("no-drm", "/dev/nvidiactl", True, ["ROOT/dev/nvidiactl: used: 195:255"]),
    "device that is not there": ("no-drm", "/dev/nvidia7", False, ["/dev/nvidia7: not used"]),
    "configuration": ("no-drm", "10_nvidia.json", True, ["ROOT/usr/share/glvnd/egl_vendor.d/10_nvidia.json: used"]),
    "firmware": ("no-drm", "gsp_ga10x.bin", True, [f"ROOT{GSP}: used: ROOT/usr{GSP}"]),
    "what containers get": ("no-drm", "libcuda.so", True, [
        f"containers get library {LIB}/libcuda.so.{V}, from ROOT{LIB}/libcuda.so.{V}, for compute"]),
    "device that containers get": ("no-drm", "nvidia1", True, [
        "containers get gpu /dev/nvidia1, from ROOT/dev/nvidia1, with GPU-12345678-1234-1234-1234-123456780001"]),
    "file of a Tegra list": ("tegra", "/usr/lib/aarch64-linux-gnu/tegra/libmissing.so", False,
                             ["ROOT/usr/lib/aarch64-linux-gnu/tegra/libmissing.so: not there"]),
    "something else that is there": ("no-drm", "/etc/ld.so.cache", False, ["/etc/ld.so.cache: not used"]),
    "a name like no other": ("no-drm", "nonsense", False, ["nonsense: not used"]),
}  # fmt: skip


@pytest.mark.parametrize("case", ASKED)
def test_where_it_was_looked_for_and_whether_it_is_used(
    nvoci: Invoke, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    name, asked, used, expected = ASKED[case]
    node = built(name)
    options = at(node, monkeypatch)
    asked = asked.replace("ROOT", str(node.root))
    result = nvoci("why", asked, *options)
    lines = [line.strip().partition(". ")[2] or line for line in result.stdout.splitlines()]
    lines = [line.replace(str(node.root), "ROOT") for line in [*lines, *result.stdout.splitlines()]]
    assert result.rc == (0 if used else 1)
    assert result.stdout.endswith(f"\n{asked}: {'used' if used else 'not used'}\n")
    assert [line for line in expected if line not in lines] == []


def test_json_has_the_same(nvoci: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    options = at(built("no-drm"), monkeypatch)
    result = nvoci("why", "nvidia-smi", *options, "--json")
    assert (result.rc, result.stderr) == (0, "")
    root = str(options[1])
    outcomes = [(f"{root}/usr/{each}/nvidia-smi", "not there") for each in ("local/sbin", "local/bin", "sbin")]
    document = json.loads(result.stdout)
    [mount] = document.pop("containers_get")
    assert (mount["container_path"], mount["capabilities"]) == ("/usr/bin/nvidia-smi", ["utility"])
    assert document == {
        "name": "nvidia-smi",
        "used": True,
        "lookups": [
            {
                "kind": "binary",
                "name": "nvidia-smi",
                "found": True,
                "note": "",
                "steps": [
                    {"where": where, "outcome": outcome}
                    for where, outcome in [*outcomes, (f"{root}/usr/bin/nvidia-smi", "used")]
                ],
            }
        ],
    }


def test_a_wrong_device_is_told_with_its_numbers(nvoci: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    node = copied("no-drm")
    (node.root / "dev/nvidia0").unlink()
    os.mknod(node.root / "dev/nvidia0", 0o020666, os.makedev(1, 3))
    (node.root / "dev/nvidia1").unlink()
    (node.root / "dev/nvidia1").write_text("")
    options = at(node, monkeypatch)
    assert "/dev/nvidia0: is 1:3, should be 195:0\n" in nvoci("why", "nvidia0", *options).stdout
    told = nvoci("why", "nvidia1", *options)
    assert (told.rc, "/dev/nvidia1: a regular file, not a character device\n" in told.stdout) == (1, True)


def test_a_link_in_a_device_s_place_is_not_the_device_it_leads_to(
    nvoci: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = copied("no-drm")
    (node.root / "dev/nvidia1").unlink()
    (node.root / "dev/nvidia1").symlink_to("nvidia0")
    options = at(node, monkeypatch)
    for name in ("/dev/nvidia1", f"{node.root}/dev/nvidia1"):
        told = nvoci("why", name, *options)
        assert (told.rc, told.stdout.splitlines()[-1]) == (1, f"{name}: not used")
        assert "containers get" not in told.stdout
    assert "/dev/nvidia1: a link, not a character device\n" in nvoci("why", "/dev/nvidia1", *options).stdout
    told = nvoci("why", "/dev/nvidia0", *options)
    assert (told.rc, "containers get gpu /dev/nvidia0, " in told.stdout) == (0, True)


def test_a_device_below_a_linked_directory_is_the_device(nvoci: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    node = copied("no-drm")
    (node.root / "dev").rename(node.root / "devices")
    (node.root / "dev").symlink_to("/devices")
    told = nvoci("why", "/dev/nvidia0", *at(node, monkeypatch))
    assert (told.rc, "containers get gpu /dev/nvidia0, from " in told.stdout) == (0, True)


def test_a_broken_library_is_told(nvoci: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    node = copied("no-drm")
    (node.root / f"{LIB[1:]}/libnvcuvid.so.{V}").write_bytes(b"no ELF file")
    result = nvoci("why", "libnvcuvid", *at(node, monkeypatch))
    assert result.rc == 1
    assert f"/libnvcuvid.so.{V}: no library: " in result.stdout


def test_without_a_working_driver_that_is_told_too(nvoci: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    options = at(built("driver-not-loaded"), monkeypatch)
    result = nvoci("why", "nvidia0", *options)
    assert result.rc == 1
    assert result.stderr.startswith("nvoci: warning: ask NVML ")
    assert "NVML_ERROR_DRIVER_NOT_LOADED (load the kernel module" in result.stderr
    assert nvoci("why", "libcuda", *options).stderr == ""


@pytest.mark.parametrize("name", ["", "\x1b[2J", "a\nb", "/" * 5000, "lib" + "x" * 5000 + ".so", "*", "[", "%s"])
def test_any_name_is_answered_without_control_characters(
    nvoci: Invoke, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    options = at(built("no-drm"), monkeypatch)
    result = nvoci("why", name, *options)
    assert result.rc in (0, 1)
    assert all(c.isprintable() or c == "\n" for c in result.stdout + result.stderr)
    found = json.loads(nvoci("why", name, *options, "--json").stdout)
    assert found["used"] == (result.rc == 0)


def test_the_whole_of_a_hostile_node_is_printable(nvoci: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    options = at(built("hostile"), monkeypatch)
    result = nvoci("why", "nvidia*", *options)
    assert result.stdout.count("\n") > 10
    assert all(c.isprintable() or c == "\n" for c in result.stdout + result.stderr)


def test_every_library_of_the_driver_is_used(nvoci: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second witness: the names that the description says the driver has."""
    node = built("no-drm")
    options = at(node, monkeypatch)
    names = [e["path"] for e in simnode.sample("no-drm")["files"] if e["path"].endswith(f".so.{V}") and "elf" in e]
    assert len(names) > 20
    for path in names[::4]:
        assert nvoci("why", path, *options).rc == 0, path
    assert Path(f"{node.root}{names[0]}").exists()
