"""`nvoci cdi check` and `refresh` as systemd or a person calls them: whole processes, the real /dev, /proc and /run."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import NamedTuple

import click
import pytest
from lib import proc, session, strace
from simnode.cditools import hook_program, run
from simnode.nodes import built, fresh, needs_x86

from nvoci.linux import abi
from nvoci.linux.syscalls import mount

pytestmark = needs_x86

V = "550.163.01"
FILE = "/var/run/cdi/nvidia.yaml"


@pytest.fixture
def place() -> Path:
    """For specifications that outlive a node."""
    return session.new_dir("cdi")


# -- check ------------------------------------------------------------------------------------------------------------


class Case(NamedTuple):
    """made, checked: the nodes. told: in the lines, in order; verdict: how the last begins."""

    made: str
    checked: str
    told: list[str]
    verdict: str
    form: str = "merged"


CASES = {
    "the same": Case("no-drm", "no-drm", [], "fresh"),
    "MIG devices, reference": Case("a100-mig", "a100-mig", [], "fresh", "reference"),
    "an old driver": Case("no-drm", "version-mismatch", [
        f"driver version: {V} in the specification, 535.183.01 on this node (refresh it)",
        f"driver version: kernel module {V}, libraries 535.183.01: the versions differ (reboot, ",
        "files, /usr/lib/x86_64-linux-gnu/lib",
        "not compared: which GPUs and MIG devices there are: ask NVML "], "stale; "),
    "a driver that is not loaded": Case("no-drm", "driver-not-loaded", [
        "].args[2]: driver version: the kernel module is not loaded (load it: modprobe nvidia)", "device nodes, ",
        "not compared: which GPUs and MIG devices there are: the kernel module is not loaded"],
        "stale; refresh it: nvoci cdi refresh --output SPEC --hooks reference", "reference"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_specification_of_one_node_on_another(place: Path, name: str) -> None:
    case = CASES[name]
    spec = place / "nvidia.yaml"
    done = run(built(case.made), f"NVOCI generate --hooks {case.form} --nvidia-cdi-hook-path {hook_program()} "
                                 f"--output {spec}")  # fmt: skip
    assert done.rc == 0, done.stderr
    done = run(built(case.checked), f"NVOCI check {spec}")
    assert (done.rc, done.stderr, done.survivors) == (case.verdict != "fresh", "", [])
    lines = [line[len(f"{spec}: ") :].replace(str(spec), "SPEC") for line in done.stdout.splitlines()]
    assert lines[-1].startswith(case.verdict), lines
    assert len(lines) == len(case.told) + 1, lines
    assert [each for each, line in zip(case.told, lines) if each not in line] == [], lines


def test_a_driver_in_a_container_is_found_by_the_specification(place: Path) -> None:
    node, spec = built("linked-root"), place / "nvidia.yaml"
    roots = "--driver-root /run/nvidia/driver --dev-root /"
    make = f"NVOCI generate {roots} --nvidia-cdi-hook-path {hook_program()} --output {spec}"
    done = run(node, make, f"NVOCI check {spec}", f"NVOCI check --driver-root / {spec}", installed=False)
    assert done.rc == 1, done.stderr
    first, told, *_ = done.stdout.splitlines()
    assert first == f"{spec}: fresh"
    assert told.endswith("there is no driver in / (install the driver, or name its root with --driver-root)")


# -- refresh ----------------------------------------------------------------------------------------------------------

STAT = f"stat -c '%i %y %a %U' {FILE} >> PLACE/stat"


def test_boot_to_driver_to_none(place: Path) -> None:
    """The usual place, in /run of the node; twice, so that the second changes nothing."""
    steps = ["NVOCI refresh", STAT, "NVOCI refresh", STAT, "NVOCI check", "ls -A /run/cdi /run/nvoci"]
    done = run(built("no-drm"), *[each.replace("PLACE", str(place)) for each in steps])
    assert (done.rc, done.stderr) == (0, "")
    told = f"nvidia.com/gpu, 5 devices, driver {V}"
    assert done.stdout.splitlines() == [
        f"{FILE}: made: {told}", "/run/nvoci/inventory: made", f"{FILE}: unchanged: {told}", f"{FILE}: fresh",
        "/run/cdi:", "nvidia.yaml", "", "/run/nvoci:", "inventory", "inventory.lock",
    ]  # fmt: skip
    first, second = (place / "stat").read_text().splitlines()
    assert first == second
    assert first.endswith(" 644 root")


def test_a_specification_follows_the_node(place: Path) -> None:
    output, first = f"--output {place}", _old(place)
    done = run(built("no-drm"), f"NVOCI refresh {output}", f"NVOCI check {place}/nvidia.yaml")
    assert (done.rc, done.stdout.splitlines()[-1]) == (0, f"{place}/nvidia.yaml: fresh")
    assert (place / "nvidia.yaml").read_bytes() != first
    done = run(built("driver-not-loaded"), f"NVOCI refresh {output} --when-gone keep", f"NVOCI refresh {output}")
    state = "no driver: the kernel module nvidia is not loaded (modprobe nvidia)"
    assert (done.rc, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        state, f"{place}/nvidia.yaml: left as it is, though it is for devices that are not there",
        state, f"{place}/nvidia.yaml: removed: it is for devices that are not there",
    ]  # fmt: skip
    assert list(place.iterdir()) == []


FAILING = {
    "a mismatch": ("version-mismatch", None, "NVML_ERROR_LIB_RM_VERSION_MISMATCH"),
    "a hang": ("no-drm", {"hang": "init"}, "nvmlInit: no answer within 1 s"),
    "a crash": ("no-drm", {"crash": "init"}, "killed by SIGSEGV"),
}


@pytest.mark.parametrize("case", FAILING)
def test_a_driver_that_does_not_work_is_a_failure(place: Path, case: str) -> None:
    name, faults, told = FAILING[case]
    (place / "nvidia.yaml").write_text("the old one")
    before = (place / "nvidia.yaml").stat()
    node = fresh(name, faults) if faults else built(name)
    done = run(node, f"NVOCI refresh --output {place} --timeout 1")
    assert (done.rc, done.stdout, told in done.stderr, done.survivors) == (1, "", True, [])
    assert (place / "nvidia.yaml").stat() == before


def test_it_needs_no_root(place: Path) -> None:
    drop = "/usr/bin/setpriv --reuid=65534 --regid=65534 --clear-groups"
    place.chmod(0o777)
    (place / "own").mkdir()
    os.chown(place / "own", 65534, 65534)
    code = f"open({str(session.HOOKS / 'nvoci/__init__.py')!r}); import sys; open({click.__file__!r})"
    if run(built("no-drm"), f'{drop} {session.PYTHON} -ISc "{code}"').rc:
        pytest.skip("uid 65534 can not read this checkout")
    steps = (f"NVOCI refresh --output {place}/own", f"NVOCI check {place}/own/nvidia.yaml")
    done = run(built("no-drm"), *steps, wrapper=drop)
    assert (done.rc, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        f"{place}/own/nvidia.yaml: made: nvidia.com/gpu, 5 devices, driver {V}", f"{place}/own/nvidia.yaml: fresh"
    ]  # fmt: skip


# -- output that fails ------------------------------------------------------------------------------------------------


def _old(place: Path) -> bytes:
    """A specification that would be replaced."""
    run(built("no-drm"), f"NVOCI refresh --output {place} --device-name-strategy type-index")
    return (place / "nvidia.yaml").read_bytes()


def test_a_full_disk_leaves_the_old_one(place: Path) -> None:
    mount(b"nvoci-test", os.fsencode(place), b"tmpfs", 0, b"size=64k,mode=755")
    try:
        before = _old(place)
        with pytest.raises(OSError, match="No space"):
            (place / "ballast").write_bytes(bytes(64 << 10))
        done = run(built("no-drm"), f"NVOCI refresh --output {place}")
        assert done.rc == 1
        assert done.stderr == (
            f"nvoci: write CDI spec {place}/nvidia.yaml: ENOSPC (the file system is full, or out of inodes)\n"
        )
        assert (place / "nvidia.yaml").read_bytes() == before
        assert sorted(path.name for path in place.iterdir()) == ["ballast", "nvidia.yaml"]
    finally:
        proc.run(["umount", place])


def test_a_read_only_directory_is_told(place: Path) -> None:
    before = _old(place)
    mount(os.fsencode(place), os.fsencode(place), None, abi.MS_BIND)
    try:
        mount(None, os.fsencode(place), None, abi.MS_BIND | abi.MS_REMOUNT | abi.MS_RDONLY)
        done = run(built("no-drm"), f"NVOCI refresh --output {place}")
        assert done.stderr == (
            f"nvoci: write CDI spec {place}/nvidia.yaml: EROFS (the file system is mounted read-only)\n"
        )
        gone = run(built("driver-not-loaded"), f"NVOCI refresh --output {place}")
        assert gone.stderr == (
            f"nvoci: remove CDI spec {place}/nvidia.yaml: EROFS (the file system is mounted read-only)\n"
        )
        assert (done.rc, gone.rc, (place / "nvidia.yaml").read_bytes()) == (1, 1, before)
    finally:
        proc.run(["umount", place])


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace kills it at the right moment")
@pytest.mark.parametrize("call", ["fsync", "rename"])
def test_one_that_is_killed_half_way_leaves_the_old_one(place: Path, call: str) -> None:
    before = _old(place)
    done = run(built("no-drm"), f"NVOCI refresh --output {place}", wrapper=" ".join(strace.inject_kill(call, 1)))
    assert done.rc != 0
    assert (place / "nvidia.yaml").read_bytes() == before
    left = [path.name for path in place.iterdir() if path.name != "nvidia.yaml"]
    assert all(name.startswith(".nvidia.yaml.") for name in left)  # which is no specification to any reader
    done = run(built("no-drm"), f"NVOCI refresh --output {place}", f"NVOCI check --spec-dir {place}")
    assert (done.rc, done.stdout.splitlines()[-1]) == (0, f"{place}/nvidia.yaml: fresh")
