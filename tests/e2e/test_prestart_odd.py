"""The prestart hook with hostile images, what does not hold, other calls before it; and beside its main way."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from e2e.gpunode import COMPAT_DIR, LIBDIR
from e2e.prestartnode import PrestartNode
from e2e.prestartview import (
    COMPUTE,
    DENIED,
    SOCKET,
    UTILITY,
    UVM,
    V,
    asks_nvml,
    check,
    clean,
    driver_mounts,
    dry_run,
    gpu_mounts,
    gpu_nodes,
    image,
    mounts,
    no_hook,
    part,
    refused,
)
from lib import jail, oracle, rootfs, runtimes, session, strace
from static.layering import HOT_IMPORTS

pytestmark = pytest.mark.e2e


@pytest.fixture
def node(hook: Path) -> PrestartNode:
    """Eight GPUs."""
    return PrestartNode(hook)


# --- hostile images --------------------------------------------------------------------------------------------------


def test_links_and_odd_files_in_the_place_of_mount_points(node: PrestartNode) -> None:
    """Links are followed in the image, wherever they lead; nothing of the image is changed, nothing of the host's."""
    root = image()
    canary = session.new_dir("canary")
    lib = LIBDIR[1:]
    rootfs.tree(
        root,
        f"""
        symlink {lib}/libcuda.so.{V} /etc/hosts
        symlink {lib}/libnvidia-ml.so.{V} ../../../../../../../..{canary}/ml
        symlink {lib}/libnvidia-cfg.so.{V} /nowhere/yet
        fifo {lib}/libnvidia-nvvm.so.{V}
        socket {lib}/libnvidia-opencl.so.{V}
        symlink usr/bin/nvidia-smi nvidia-smi-2
        symlink run/nvidia-persistenced /var/lib/deep/er
        file etc/hosts the image's own\\n
        symlink {lib}/libcuda.so keep-me
        """.replace("        ", ""),
    )
    seen = node.start("runc", "0", root=root)
    assert seen.result.rc == 0, seen.result.stderr
    there = {"/etc/hosts", f"{canary}/ml", "/nowhere/yet", f"{LIBDIR}/libnvidia-nvvm.so.{V}",
             f"{LIBDIR}/libnvidia-opencl.so.{V}", "/usr/bin/nvidia-smi-2", "/var/lib/deep/er/socket"}  # fmt: skip
    assert there <= part(seen, "mount").keys()
    assert (root / "etc/hosts").read_text() == "the image's own\n"
    assert part(seen, "link")[f"{LIBDIR}/libcuda.so"] == "keep-me"
    assert list(canary.iterdir()) == []
    clean(seen)


REFUSALS = {
    "directory": (f"dir {LIBDIR[1:]}/libcuda.so.{V}", f"mount on {LIBDIR}/libcuda.so.{V}: EISDIR"),
    "link to procfs": (f"symlink {LIBDIR[1:]}/libcuda.so.{V} /proc/self/attr/exec", "libcuda"),
    "directories in procfs": ("symlink usr/lib/firmware /proc/self", "firmware"),
    "loop": (f"symlink {LIBDIR[1:]}/libcuda.so.{V} libcuda.so.{V}", "ELOOP"),
    "a file above": ("file run/nvidia-persistenced x", "ENOTDIR"),
    "a file as the profiles": ("file etc/nvidia/nvidia-application-profiles-rc.d x", "ENOTDIR"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_cannot_be_mounted_on_stops_the_start_and_leaves_nothing(node: PrestartNode, case: str) -> None:
    root = image()
    assert node.start("runc", None, root=root).result.rc == 0
    rootfs.tree(root, REFUSALS[case][0])
    before = oracle.content_only(oracle.snapshot(root))
    table = session.new_dir("out") / "mountinfo"
    seen = node.start("runc", "0", "compute,utility,graphics", root=root, entries=[watched(node, table)])
    refused(seen, "prestart: ", REFUSALS[case][1])
    assert oracle.content_only(oracle.snapshot(root)) == before
    assert [line for line in table.read_text().splitlines() if line.split()[4].startswith(f"{root}/usr")] == []
    assert f"{root}/proc/driver/nvidia " not in table.read_text()


def watched(node: PrestartNode, table: Path) -> dict[str, Any]:
    """The hook, and then the mounts of the container into a file."""
    pid = """$(tr -d '\\n' <"$0.state" | sed 's/.*"pid": *\\([0-9]*\\).*/\\1/')"""
    script = f'cat >"$0.state"; "$@" <"$0.state"; code=$?; cat /proc/{pid}/mountinfo >"$0"; exit $code'
    entry = node.entry()
    argv = [entry["path"], *entry["args"][1:]] if entry["path"] == str(node.program) else entry["args"]
    return {"path": "/bin/sh", "args": ["sh", "-c", script, str(table), *argv], "env": entry["env"]}


# --- what does not hold ----------------------------------------------------------------------------------------------

UNMET: dict[str, tuple[dict[str, Any], list[str]]] = {
    "no such GPU": ({"devices": "0,9"}, ["device error: 9: unknown device"]),
    "requirement": (
        {"devices": "0", "env": {"NVIDIA_REQUIRE_CUDA": "cuda>=99.0"}},
        ["requirement error: unsatisfied condition: cuda>=99.0, please update your driver"],
    ),
    "mode": ({"devices": "0", "config": '[nvidia-container-runtime]\nmode = "cdi"\n'}, ["mode cdi"]),
    "broken configuration": ({"devices": "0", "config": "x = = 1\n"}, ["not valid TOML"]),
    "MIG management, unprivileged": (
        {"devices": "0", "env": {"NVIDIA_MIG_CONFIG_DEVICES": "all"}},
        ["cannot set MIG_CONFIG_DEVICES in non privileged container"],
    ),
    "no procfs of a driver": (
        {"devices": "0", "entries": None}, ["/proc/driver/nvidia: ENOENT", "the driver is not loaded"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", UNMET)
def test_one_line_says_why_a_container_does_not_start(
    node: PrestartNode, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options, words = dict(UNMET[case][0]), UNMET[case][1]
    if "entries" in options:
        del options["entries"]
        monkeypatch.setattr(node, "driver_hook", no_hook)
    refused(node.start("runc", **options), *words)


# --- again -----------------------------------------------------------------------------------------------------------


def test_two_calls_leave_what_one_leaves(node: PrestartNode, runtime: str) -> None:
    one, two = image(), image()
    first = node.start(runtime, "0,3", "all", root=one)
    second = node.start(runtime, "0,3", "all", root=two, entries=[node.entry(), node.entry()])
    assert second.result.rc == 0, second.result.stderr
    assert sorted(second.said.items()) == sorted(first.said.items())
    assert oracle.content_only(oracle.snapshot(one)) == oracle.content_only(oracle.snapshot(two))
    third = node.start(runtime, "0,3", "all", root=two)
    assert sorted(third.said.items()) == sorted(first.said.items())
    assert oracle.content_only(oracle.snapshot(one)) == oracle.content_only(oracle.snapshot(two))


# Where the hook is killed: before the n-th of these calls.
KILLED = [("move_mount", 2), ("move_mount", 12), ("symlinkat", 2), ("renameat2", 1)]


@pytest.mark.parametrize(("call", "when"), KILLED, ids=str)
def test_a_run_after_a_killed_one_completes(node: PrestartNode, call: str, when: int) -> None:
    one, two = image(), image()
    entry = node.entry()
    killed = strace.inject_kill(call, when)
    argv = [*killed, str(node.program), *entry["args"][1:]]
    mark = session.new_dir("out") / "killed"
    shell = {"path": "/bin/sh", "args": ["sh", "-c", '"$@" || touch "$0"', str(mark), *argv], "env": entry["env"]}
    first = node.start("runc", "0", "compute,graphics", root=one)
    second = node.start("runc", "0", "compute,graphics", root=two, entries=[shell, entry])
    assert (second.result.rc, mark.exists()) == (0, True), second.result.stderr
    assert sorted(second.said.items()) == sorted(first.said.items())
    assert oracle.content_only(oracle.snapshot(one)) == oracle.content_only(oracle.snapshot(two))


@asks_nvml
def test_the_inventory_makes_nvml_needless_until_it_proves_wrong(node: PrestartNode) -> None:
    """Three calls: the first looks at the node, the second has no NVML to ask, the third finds a library gone."""
    logs = [session.new_dir("out") / "log" for _ in range(3)]
    calls = [node.entry("-debug", "prestart", script=f'exec "$@" 2>{log}') for log in logs]
    hang = runtimes.shell_hook("echo hang=nvmlInit_v2 >/run/.simnode-faults")
    gone = f"{LIBDIR}/libnvidia-opencl.so.{V}"
    remove = runtimes.shell_hook(f"rm {gone} /run/.simnode-faults")
    seen = node.start("runc", "0", entries=[calls[0], hang, calls[1], remove, calls[2]])
    first, second, third = [log.read_text() for log in logs]
    assert seen.result.rc == 0, (first, second, third)
    assert ("reason=ENOENT" in first, "NVML asked" in first) == (True, True)
    assert ("inventory not used" in second, "NVML asked" in second) == (False, False)
    assert (f'reason="open {gone}: ENOENT"' in third, "NVML asked" in third) == (True, True)


@asks_nvml
def test_with_an_inventory_it_imports_the_hot_list_only(node: PrestartNode) -> None:
    log = session.new_dir("out") / "log"
    timed = node.entry(script=f'exec {session.PYTHON} -ISB -X importtime "$@" 2>{log}')
    assert node.start("runc", "0", entries=[node.entry(), timed]).result.rc == 0, log.read_text()
    told = subprocess.run([session.PYTHON, "-ISB", "-X", "importtime", "-c", "pass"], capture_output=True, text=True)
    loaded, floor = (
        {line.rpartition("| ")[2].strip() for line in text.splitlines()} for text in (log.read_text(), told.stderr)
    )
    assert {"nvoci_ask", "nvoci_prestart", "_ctypes"} <= loaded
    late = {"nvoci.linux.cgroup"}  # in the bundle too; by the parent, while the worker works
    assert loaded - floor - HOT_IMPORTS - {"nvoci_ask", "nvoci_prestart", "_ctypes"} == late


# --- CUDA compatibility libraries ------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["ldconfig", "mount", "hook"])
def test_compatibility_libraries_of_the_image(node: PrestartNode, mode: str) -> None:
    config = f'[nvidia-container-runtime.modes.legacy]\ncuda-compat-mode = "{mode}"\n'
    seen = node.start("runc", "0", config=config)
    assert seen.result.rc == 0, seen.result.stderr
    mounted = f"{LIBDIR}/libcuda.so.575.57.08"
    assert (mounted in mounts(seen)) is (mode == "mount")
    cached = part(seen, "library")["libcuda.so.1"]
    assert (cached == f"{COMPAT_DIR}/libcuda.so.1") is (mode == "ldconfig"), cached
    leads = "libcuda.so.575.57.08" if mode == "mount" else f"libcuda.so.{V}"
    assert part(seen, "link")[f"{LIBDIR}/libcuda.so.1"] == leads


def test_a_compatibility_library_that_leads_out_of_the_image_is_the_image_s_affair(node: PrestartNode) -> None:
    """CVE-2024-0132: a path of the image, resolved on the host."""
    root = image()
    compat = root / COMPAT_DIR[1:]
    canary = session.new_dir("canary") / "libcuda.so.580.1"
    canary.write_text("host")
    (compat / "libcuda.so.580.1").symlink_to(f"../../../../../../../..{canary}")
    (compat / "libcuda.so.581.1").symlink_to("/proc/1/root/etc/hostname")
    (compat / "libcuda.so.582.1").mkdir()
    config = '[nvidia-container-runtime.modes.legacy]\ncuda-compat-mode = "mount"\n'
    seen = node.start("runc", "0", root=root, config=config)
    assert seen.result.rc == 0, seen.result.stderr
    assert [path for path in mounts(seen) if "libcuda.so.58" in path] == []


# --- the program -----------------------------------------------------------------------------------------------------


def test_a_dry_run_prints_what_would_be_done_and_does_nothing(node: PrestartNode) -> None:
    root = image()
    out = session.new_dir("out") / "plan"
    assert node.start("runc", None, root=root).result.rc == 0
    before = oracle.content_only(oracle.snapshot(root))
    seen = node.start("runc", "0", root=root, entries=[dry_run(node, str(out))])
    assert (seen.result.rc, mounts(seen)) == (0, {}), seen.result.stderr
    said = out.read_text().splitlines()
    assert "prestart: mount /dev/nvidia0 (ro,nosuid,noexec) on /dev/nvidia0, and allow c 195:0 rw" in said
    assert any(line.startswith("update-ldcache: ") for line in said)
    assert oracle.content_only(oracle.snapshot(root)) == before


def test_as_a_hook_at_createruntime(node: PrestartNode, runtime: str) -> None:
    seen = node.start(runtime, "0", stage="createRuntime")
    check(seen, {**driver_mounts(UTILITY + COMPUTE), **gpu_mounts(0)}, {**gpu_nodes(0), **UVM})


def test_a_driver_with_a_root_of_its_own(node: PrestartNode) -> None:
    """As a driver container has it: its files go to the same places, and so does the directory of its MPS daemon."""
    seen = node.start("runc", "0", config=f'[nvidia-container-cli]\nroot = "{node.root}"\n')
    wanted = {**driver_mounts(UTILITY + COMPUTE), **gpu_mounts(0), "/tmp/nvidia-mps": SOCKET}
    check(seen, wanted, {**gpu_nodes(0), **UVM})
    assert part(seen, "root")["/tmp/nvidia-mps"] == f"{node.root}/tmp/nvidia-mps"


@pytest.mark.parametrize("link", ["etc", "etc/ld.so.conf.d", "etc/nvidia"])
def test_a_link_into_the_mps_directory_changes_nothing_of_the_host(node: PrestartNode, link: str) -> None:
    """It is the host's, mounted writable; what the library cache and others write comes after it."""
    root = image()
    own = root / "tmp/nvidia-mps"
    own.parent.mkdir(exist_ok=True)
    (root / link).mkdir(exist_ok=True)
    (root / link).rename(own)
    (root / link).symlink_to("/tmp/nvidia-mps")
    hosts = node.root / "tmp/nvidia-mps"
    kept = hosts.rename(hosts.with_name("kept"))
    shutil.copytree(own, hosts)
    config = f'[nvidia-container-cli]\nroot = "{node.root}"\n'
    try:
        before = oracle.snapshot(hosts)
        seen = node.start("runc", "0", root=root, config=config, env={"NVIDIA_DRIVER_CAPABILITIES": "all"})
        assert oracle.snapshot(hosts) == before
    finally:
        shutil.rmtree(hosts)
        kept.rename(hosts)
    assert seen.result.rc == 0, seen.result.stderr


def test_nodes_of_the_container_s_own(node: PrestartNode, runtime: str) -> None:
    """As hook.json wants it: made, not mounted; the rules are the same."""
    setup = jail.host_files({"/etc/nvoci/hook.json": '{"device-nodes": "mknod"}'})
    seen = node.start(runtime, "0", setup=setup)
    wanted = {path: flags for path, flags in driver_mounts(UTILITY + COMPUTE).items() if not path.startswith("/dev/")}
    nodes = {**gpu_nodes(0), **UVM}
    assert seen.result.rc == 0, seen.result.stderr
    assert [path for path in mounts(seen) if path.startswith("/dev/nvidia")] == []
    assert {path for path in wanted if path not in mounts(seen)} == set()
    answers = {path: answer.split(" ", 1) for path, answer in part(seen, "node").items()}
    assert {path: number for path, (number, _) in answers.items()} == nodes
    assert DENIED not in {words for _, words in answers.values()}
    assert part(seen, "other")["195:1"] == DENIED


def test_no_cgroups_gives_nodes_and_no_rules(node: PrestartNode) -> None:
    seen = node.start("runc", "0", config="[nvidia-container-cli]\nno-cgroups = true\n")
    assert seen.result.rc == 0, seen.result.stderr
    assert part(seen, "node")["/dev/nvidia0"] == f"195:0 {DENIED}"
