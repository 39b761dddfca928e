"""`nvoci explain` as a person calls it on a node: whole processes, the real /dev and /proc, nothing left behind."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from e2e.prestartview import (
    BUS,
    COMPUTE,
    FILE,
    FIRMWARE,
    NODE,
    OTHERS,
    PROC,
    PROGRAMS,
    SOCKET,
    SOCKETS,
    UTILITY,
    UVM,
    V,
)
from lib import proc, rootfs, session, simnode
from lib.bundle import CAPS, STANDARD_ENV, make_bundle
from simnode.nodes import built, fresh, needs_x86, nvoci

pytestmark = needs_x86

SIMNODE = session.CHECKOUT / "scripts/simnode"
LIBDIR = f"/usr/lib/{rootfs.TRIPLET}"
Json = dict[str, Any]


@functools.cache
def image() -> Path:
    """The least that a root of Debian's has."""
    root = session.new_dir("image")
    rootfs.tree(root, "file etc/debian_version 12\ndir usr/bin\ndir proc/driver/nvidia")
    return root


def bundle(root: Path | None = None, config: str = "", caps: list[str] = CAPS, **env: str) -> Path:
    """With a config.toml beside config.json."""
    folder = session.new_dir("bundle")
    words = [*STANDARD_ENV, *(f"NVIDIA_{name}={value}" for name, value in env.items())]
    make_bundle(folder, root or image(), ["/bin/true"], env=words, caps=caps)
    (folder / "config.toml").write_text(config)
    (folder / "config.toml").chmod(0o644)
    return folder


def run(node: simnode.Built, *bundles: Path, before: str = "", installed: bool = True) -> list[Json]:
    """The documents of several calls in one run; nothing is kept that was not kept before."""
    call = f"{nvoci()} explain --json"
    script = [f"{call} --bundle {each} --config {each}/config.toml; echo ///" for each in bundles]
    script = [before, "ls -lR --full-time /run/nvoci /dev >$0/a 2>&1", *script,
              "ls -lR --full-time /run/nvoci /dev >$0/b 2>&1"]  # fmt: skip
    out = session.new_dir("out")
    options = ("--installed",) if installed else ()
    command = [SIMNODE, "run", *options, node.root, "--", "/bin/sh", "-c", "\n".join(script), out]
    result = proc.run(command, timeout=60)
    assert (result.stderr, result.survivors, result.mounts_added) == ("", [], [])
    assert (out / "a").read_text() == (out / "b").read_text()
    return [json.loads(text) for text in result.stdout.split("///\n")[:-1]]


def places(document: Json, *kinds: str) -> dict[str, str]:
    """Where mounts go, with their options."""
    return {each["container_path"]: ",".join(each["options"]) for each in document["mounts"] if each["kind"] in kinds}


def rules(document: Json) -> dict[str, str]:
    return {each["container_path"]: each["rule"] for each in document["device_nodes"]}


def missing(document: Json, kind: str) -> dict[str, list[str]]:
    """What was looked for, and where."""
    return {each["name"]: [step["where"] for step in each["looked"]]
            for each in document["not_found"] if each["kind"] == kind}  # fmt: skip


def libraries(*names: str) -> dict[str, str]:
    return {f"{LIBDIR}/{name}.so.{V}": FILE for name in names}


def test_eight_gpus() -> None:
    some = bundle(VISIBLE_DEVICES="GPU-12345678-1234-1234-1234-123456780003,0", REQUIRE_CUDA="cuda>=12.0")
    every = bundle(VISIBLE_DEVICES="all", DRIVER_CAPABILITIES="all")
    first, last = run(built("a100"), some, every)
    assert (first["result"], first["mode"]["because"], first["requirements"]["result"]) == (
        "injects",
        "detected",
        "hold",
    )
    assert [(row["word"][-4:], [gpu["index"] for gpu in row["gpus"]]) for row in first["selected"]] == [
        ("0003", [3]), ("0", [0]),
    ]  # fmt: skip
    assert first["request"]["reasons"][0]["because"] == "NVIDIA_VISIBLE_DEVICES"
    numbers = {"/dev/nvidiactl": "195:255", "/dev/nvidia0": "195:0", "/dev/nvidia3": "195:3", **UVM}
    assert rules(first) == {path: f"c {number} rw" for path, number in numbers.items()}
    assert {",".join(each["options"]) for each in first["device_nodes"]} == {NODE}
    assert sorted(first["device_rules"]) == sorted(rules(first).values())
    assert places(first, "library") == libraries(*UTILITY, *COMPUTE)
    assert places(first, "program") == {f"/usr/bin/{name}": FILE for name in PROGRAMS}
    assert places(first, "socket") == dict.fromkeys(SOCKETS, SOCKET)
    assert places(first, "procfs") == {f"/proc/driver/nvidia/gpus/{BUS[n]}": PROC for n in (3, 0)}
    assert [each["container_path"] for each in first["generated"]] == ["/proc/driver/nvidia"]
    purposes = {each["container_path"]: each["for"] for each in first["mounts"]}
    assert purposes[f"{LIBDIR}/libcuda.so.{V}"] == ["compute"]
    assert purposes["/usr/bin/nvidia-smi"] == ["utility"]
    assert first["library_cache"] == {"engine": "builtin", "directories": [LIBDIR]}
    assert places(last, "library") == libraries(*UTILITY, *COMPUTE, *OTHERS)
    assert len(last["device_nodes"]) == 12
    assert {"libnvidia-nscq.so", "libnvidia-compiler.so"} <= missing(last, "library").keys()
    assert {each["path"] for each in last["library_directories"]} >= {LIBDIR, "/usr/lib64"}
    assert "/usr/sbin/nv-fabricmanager" in missing(last, "program")["nv-fabricmanager"]
    [note] = last["notes"]
    assert f"libnvidia-tls.so.{V}" in note["text"]


def test_mig_devices_and_their_management() -> None:
    one = bundle(VISIBLE_DEVICES="4:0,MIG-00000006-aaaa-5bbb-8ccc-000400070000")
    manager = bundle(VISIBLE_DEVICES="all", MIG_CONFIG_DEVICES="all", caps=[*CAPS, "CAP_SYS_ADMIN"])
    first, last = run(built("a100-mig"), one, manager)
    assert first["node"]["source"] == "look"
    assert first["node"]["reason"] == "a MIG device is asked for by name"
    assert [[mig["name"] for mig in row["mig_devices"]] for row in first["selected"]] == [["4:0"], ["4:0"]]
    caps = {path: rule for path, rule in rules(first).items() if "caps" in path}
    assert caps == {f"/dev/nvidia-caps/nvidia-cap{n}": f"c 236:{n} rw" for n in (606, 607)}
    top = "/proc/driver/nvidia/capabilities/gpu4/mig/gi7"
    assert {f"{top}/access", f"{top}/ci0/access"} < places(first, "procfs").keys()
    assert last["request"]["privileged"] is True
    assert "c 236:1 rw" in last["device_rules"]
    assert len(last["device_rules"]) > len(last["device_nodes"]) + 100
    assert "/dev/nvidia-caps" in places(last, "directory")


def test_wsl() -> None:
    [document] = run(built("wsl"), bundle(VISIBLE_DEVICES="all"))
    assert rules(document) == {"/dev/dxg": "c 10:125 rw"}
    assert all(each["container_path"] == each["host_path"] for each in document["mounts"])
    assert [each["path"] for each in document["links"]] == ["/usr/bin/nvidia-smi"]
    assert document["generated"] == []


def test_imex_channels() -> None:
    there, absent = bundle(VISIBLE_DEVICES="0", IMEX_CHANNELS="2047,1"), bundle(VISIBLE_DEVICES="0", IMEX_CHANNELS="7")
    first, last = run(built("imex"), there, absent)
    top = "/dev/nvidia-caps-imex-channels/channel"
    assert [path for path in rules(first) if path.startswith(top)] == [f"{top}2047", f"{top}1"]
    assert last["error"]["message"] == f"mount error: stat failed: {top}7: ENOENT"
    [note] = last["notes"]
    assert "load-kmods" in note["text"]


def test_a_driver_root_of_its_own_and_an_image_that_is_not_there() -> None:
    node = built("no-drm")
    config = f'[nvidia-container-cli]\nroot = "{node.root}"\nno-cgroups = true\n'
    made = {"VISIBLE_DEVICES": "1", "DRIVER_CAPABILITIES": "utility"}
    whole, bare = bundle(config=config, **made), bundle(Path("/nowhere/at/all"), config, **made)
    first, last = run(node, whole, bare, installed=False)
    [library] = [each for each in first["mounts"] if each["host_path"].endswith(f"libnvidia-ml.so.{V}")]
    assert (library["container_path"], library["options"]) == (f"{LIBDIR}/libnvidia-ml.so.{V}", FILE.split(","))
    assert library["host_path"] == f"{node.root}{LIBDIR}/libnvidia-ml.so.{V}"
    for document in (first, last):
        assert document["device_rules"] == []
        assert set(rules(document).values()) == {None}
        changed = {row["key"] for row in document["config"]["settings"] if not row["default"]}
        assert changed == {"nvidia-container-cli.root", "nvidia-container-cli.no-cgroups"}
    assert last["rootfs"] == {"path": "/nowhere/at/all", "there": False}
    assert {each["container_path"] for each in last["mounts"] if each["kind"] == "library"} == {None}
    assert places(last, "program").keys() == {f"/usr/bin/{name}" for name in PROGRAMS[:3]}
    assert (last["library_cache"]["directories"], last["cuda_compat"]["used"]) == (None, False)


def test_an_inventory_is_used_and_32_bit_libraries_are_told_apart() -> None:
    asks = bundle(VISIBLE_DEVICES="0", DRIVER_CAPABILITIES="compute,compat32")
    [document] = run(built("i386"), asks, before=f"{nvoci()} inventory refresh >/dev/null")
    assert (document["node"]["source"], document["node"]["reason"]) == ("inventory", "")
    old = "/usr/lib/i386-linux-gnu"
    assert f"{old}/libcuda.so.{V}" in places(document, "library32")
    assert "libcuda.so" not in missing(document, "library32")
    assert "libnvidia-opencl.so" in missing(document, "library32")
    assert document["library_cache"]["directories"] == [LIBDIR, old]


def test_what_is_missing_is_told_with_the_places() -> None:
    node = fresh("no-drm")
    shutil.rmtree(node.root / "usr/lib/firmware")
    (node.root / f"{LIBDIR[1:]}/libnvidia-opencl.so.{V}").write_bytes(b"no ELF file")
    (node.root / "usr/bin/nvidia-smi").chmod(0o644)
    [document] = run(node, bundle(VISIBLE_DEVICES="0", DRIVER_CAPABILITIES="compute,utility,display"))
    looked = {each["name"]: each["looked"] for each in document["not_found"]}
    assert [step["where"] for step in looked["/dev/nvidia-modeset"]] == ["/dev/nvidia-modeset"]
    assert {"where": "/usr/bin/nvidia-smi", "outcome": "not executable"} in looked["nvidia-smi"]
    assert any(step["outcome"].startswith("no library: ") for step in looked["libnvidia-opencl.so"])
    assert any(V in step["where"] for step in looked["gsp*.bin"])
    assert FIRMWARE[0] not in places(document, "firmware")
    assert "missing device /dev/nvidia-modeset: left out" in [note["text"] for note in document["notes"]]


# sample, environment, faults -> in the message
FAILS: Mapping[str, tuple[str, dict[str, str], dict[str, Any] | None, str]] = {
    "no such GPU": ("no-drm", {"VISIBLE_DEVICES": "7"}, None, "device error: 7: unknown device"),
    "requirement": ("no-drm", {"VISIBLE_DEVICES": "0", "REQUIRE_CUDA": "cuda>=99"}, None,
                    "requirement error: unsatisfied condition: cuda>=99"),
    "no driver": ("driver-not-loaded", {"VISIBLE_DEVICES": "all"}, None, "NVML_ERROR_DRIVER_NOT_LOADED"),
    "Tegra": ("thor", {"VISIBLE_DEVICES": "all"}, None, "mode csv: "),
    "crash": ("no-drm", {"VISIBLE_DEVICES": "all"}, {"crash": "init"}, "killed by SIGSEGV"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAILS)
def test_what_fails_on_this_node_fails_here(name: str) -> None:
    sample, env, faults, message = FAILS[name]
    node = fresh(sample, faults) if faults else built(sample)
    config = f'[nvidia-container-cli]\nroot = "{node.root}"\nload-kmods = false\n'
    [document] = run(node, bundle(config=config, **env), installed=False)
    assert (document["result"], message in document["error"]["message"]) == ("fails", True), document["error"]


def test_the_text_has_no_line_of_more_than_100_columns_and_needs_no_root() -> None:
    asks = bundle(VISIBLE_DEVICES="all", DRIVER_CAPABILITIES="all")
    drop = ["/usr/bin/setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    command = [nvoci(), "explain", "--bundle", asks]
    if proc.run([*drop, session.PYTHON, "-ISc", f"open({str(session.HOOKS / 'nvoci/__init__.py')!r})"]).rc:
        drop = []
    results = [proc.run([SIMNODE, "run", "--installed", built("a100").root, "--", *own, *command], timeout=30)
               for own in ([], drop)]  # fmt: skip
    assert [(each.rc, each.stderr) for each in results] == [(0, "")] * 2
    lines = results[0].stdout.splitlines()
    assert max(map(len, lines)) <= 100
    assert lines[0] == f"bundle         {asks}"
    assert results[1].stdout.startswith(results[0].stdout)  # then what only root can read
