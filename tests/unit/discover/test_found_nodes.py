"""What is found on nodes of all sorts, sound and broken, and how long it takes."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from lib import session
from lib.rootfs import tree
from unit.discover.looktools import (
    LIB,
    UUID,
    X86,
    V,
    answer,
    asked,
    built,
    by_name,
    copied,
    discovery,
    gpu,
    lines,
    needs_gcc,
    needs_mknod,
    paths,
)

from nvoci.discover.found import Discovery, discover, find, watch_paths
from nvoci.discover.model import Gpu
from nvoci.discover.node import Node, Options

pytestmark = [needs_gcc, needs_mknod]
OLD = "535.183.01"


# -- other nodes ------------------------------------------------------------------------------------------------------


def problems(name: str) -> list[str]:
    with discovery(name) as seen:
        return lines(seen, built(name).root)


WHOLE = ("rhel-lib64", "cache-only", "i386", "two-versions", "mig-empty", "gpus-16", "no-drm", "imex", "linked-root")
DIRECTORIES = {"rhel-lib64": "/usr/lib64", "cache-only": "/opt/nvidia/driver/lib"}


@pytest.mark.parametrize("name", WHOLE)
def test_a_sound_node_has_no_problems_and_all_libraries(name: str) -> None:
    with discovery("a100") as seen:
        stems = {m.container_path.rpartition("/")[2] for m in seen.found.mounts if m.kind == "library"}
    root = f"/run/nvidia/drivers/{V}" if name == "linked-root" else ""
    with discovery(name, root=root) as seen:
        assert lines(seen) == []
        found = seen.found
        own = [m for m in found.mounts if m.kind == "library" and "compat32" not in m.capabilities]
        assert {m.container_path.rpartition("/")[2] for m in own} == stems
        assert found.driver.library_dirs == (DIRECTORIES.get(name, LIB),)
        assert (found.driver.version, found.driver.module_version, found.driver.cuda_version) == (V, V, (12, 4))
        assert all(os.path.lexists(m.host_path) for m in found.mounts)


def test_32_bit_libraries_are_there_for_who_asks() -> None:
    with discovery("i386") as seen:
        mine = [m for m in seen.found.mounts if "compat32" in m.capabilities]
        assert {m.container_path.rpartition("/")[0] for m in mine} == {"/usr/lib/i386-linux-gnu"}
        assert len(mine) == 5
        (update,) = [hook for hook in seen.found.hooks if hook.name == "update-ldcache"]
        assert not any("i386" in word for word in update.args)


def test_of_two_versions_no_file_of_the_other_is_given() -> None:
    with discovery("two-versions") as seen:
        assert not [m.container_path for m in seen.found.mounts if OLD in m.container_path]
        assert any(V in m.container_path for m in seen.found.mounts if m.kind == "firmware")


def test_a_mismatch_is_told_with_both_versions() -> None:
    (told,) = problems("version-mismatch")
    assert told.startswith(
        f"match the driver's versions kernel module {V}, libraries {OLD}: the versions differ (reboot"
    )


def test_a_half_removed_driver_says_what_is_missing() -> None:
    missing, links, module = problems("half-removed")
    assert missing.startswith(f"find the driver libnvidia-ml.so.{V} in ")
    assert links.startswith(f"find the driver {LIB}: ")
    assert "libnvidia-ml.so.1" in links
    assert "links that lead nowhere" in links
    assert module.startswith("find the kernel module /proc/driver/nvidia/version: not loaded (modprobe nvidia)")


def test_a_driver_that_is_not_loaded_is_one_line() -> None:
    assert problems("driver-not-loaded") == [
        "find the kernel module /proc/driver/nvidia/version: not loaded (modprobe nvidia)"
    ]


def test_mig_without_instances_gives_gpus_without_devices() -> None:
    with discovery("mig-empty") as seen:
        assert [(each.mig_enabled, each.mig_devices) for each in seen.found.gpus] == [(True, ()), (True, ())]


def test_a_lost_gpu_blinds_no_other() -> None:
    with discovery("gpu-lost") as seen:
        assert [each.index for each in seen.found.gpus] == [0, 2]
        assert paths(seen.found.device_nodes, "gpu") == ["/dev/nvidia0", "/dev/nvidia2", "/dev/nvidia1"]
        assert paths(seen.found.device_nodes, "gpu", UUID.format(1)) == ["/dev/nvidia1"]
    (told,) = problems("gpu-lost")
    assert "NVML_ERROR_GPU_IS_LOST" in told


def test_sixteen_gpus_have_a_node_and_two_drm_nodes_each() -> None:
    with discovery("gpus-16") as seen:
        for index, each in enumerate(seen.found.gpus):
            own = [n for n in seen.found.device_nodes if n.owner == each.uuid]
            assert [(n.major, n.minor) for n in own] == [(195, index), (226, index + 1), (226, index + 128)]
            assert [len(n.links) for n in own] == [0, 1, 1]
        assert len(seen.found.gpus) == 16


def test_without_drm_there_are_no_such_nodes() -> None:
    with discovery("no-drm") as seen:
        assert paths(seen.found.device_nodes, "drm") == []
        assert "/dev/nvidia-modeset" not in paths(seen.found.device_nodes, "control")


def test_imex_channels_are_found() -> None:
    with discovery("imex") as seen:
        assert [n.owner for n in seen.found.device_nodes if n.kind == "imex"] == ["0", "1", "2", "3", "2047"]
        assert {"/usr/bin/nvidia-imex", "/usr/bin/nvidia-imex-ctl"} <= set(by_name(seen.found.mounts))


def test_thor_gives_each_gpu_its_own() -> None:
    with discovery("thor") as seen:
        integrated, discrete = seen.found.gpus
        theirs = paths(seen.found.device_nodes, owner=discrete.uuid)
        mine = paths(seen.found.device_nodes, owner=integrated.uuid)
        assert {"/dev/nvidia0", "/dev/nvidia2", "/dev/nvmap", "/dev/nvidiactl"} <= set(mine)
        assert {"/dev/nvidia1", "/dev/nvidia-uvm", "/dev/nvidiactl", "/dev/dri/renderD129", "/dev/nvmap"} <= set(theirs)
        assert "/dev/nvidia1" not in mine
        assert not {"/dev/nvidia0", "/dev/nvidia2"} & set(theirs)


def test_a_driver_root_may_be_a_link(tmp_path: Path) -> None:
    inner, driver_root = f"/run/nvidia/drivers/{V}", tmp_path / "driver"
    top = built("linked-root").root
    driver_root.symlink_to(f"{top}{inner}")
    with Node.open(str(driver_root), str(top), proc=f"{top}/proc", sys=f"{top}/sys", machine=X86) as node:
        found = find(node, asked("linked-root"), nvml_path="/x")
    cuda = by_name(found.mounts)[f"{LIB}/libcuda.so.{V}"]
    assert cuda.host_path == f"{driver_root}{LIB}/libcuda.so.{V}"
    assert by_name(found.mounts)[f"/lib/firmware/nvidia/{V}/gsp_ga10x.bin"].host_path.startswith(f"{driver_root}/")
    assert {n.host_path for n in found.device_nodes if n.kind == "gpu"} == {f"{top}/dev/nvidia0", f"{top}/dev/nvidia1"}
    assert (found.driver.root, found.driver.dev_root, found.driver.nvml_path) == (str(driver_root), str(top), "/x")


def test_wsl_has_one_device_for_all() -> None:
    with discovery("wsl") as seen:
        assert seen.platform.kind == "wsl"
        assert paths(seen.found.device_nodes) == ["/dev/dxg"]
        assert len(seen.found.gpus) == 1
        assert lines(seen) == []


def test_hostile_answers_leave_the_files(tmp_path: Path) -> None:
    with discovery("hostile") as seen:
        assert seen.found.gpus == ()
        assert f"{LIB}/libcuda.so.{V}" in by_name(seen.found.mounts)
        assert all(each.isprintable() for each in lines(seen))


def test_what_an_inventory_has_to_watch(tmp_path: Path) -> None:
    watched = watch_paths("/run/nvidia/driver", "/", Options(mps_directory="/run/mps"))
    assert "/run/nvidia/driver/run/nvidia-persistenced/socket" in watched
    assert "/run/nvidia/driver/run/mps" in watched
    assert "/dev/nvidia-caps" in watched
    assert all(each.startswith("/") and "//" not in each for each in watched)


# -- nothing stops it -------------------------------------------------------------------------------------------------


def look_at(root: Path, gpus: tuple[Gpu, ...] = (gpu(0), gpu(1))) -> Discovery:
    """As `discovery`, of a tree that was changed."""
    with Node.open(str(root), proc=f"{root}/proc", sys=f"{root}/sys", machine=X86) as node:
        return discover(node, answer(gpus))


EMPTY = {"empty": "dir usr", "a file as usr": "file usr x", "dev is a FIFO": "fifo dev", "etc loops": "symlink etc etc"}


@pytest.mark.parametrize("case", EMPTY)
def test_a_root_with_nothing_in_it_is_some_lines(tmp_path: Path, case: str) -> None:
    tree(tmp_path, EMPTY[case] + "\ndir proc\ndir sys")
    seen = look_at(tmp_path)
    assert seen.found.device_nodes == ()
    assert seen.found.mounts == ()
    assert any(each.startswith("find the driver ") for each in lines(seen))
    assert all(each.isprintable() and len(each) < 2000 for each in lines(seen))


def replace_by(kind: str) -> Callable[[Path], None]:
    def act(path: Path) -> None:
        path.unlink()
        tree(path.parent, f"{kind.format(name=path.name)}")

    return act


SWAPS: dict[str, Callable[[Path], None]] = {
    "gone": lambda path: path.unlink(),
    "a FIFO": replace_by("fifo {name}"),
    "a directory": replace_by("dir {name}"),
    "a socket": replace_by("socket {name}"),
    "a device": replace_by("char {name} 1 5"),
    "empty": replace_by("file {name} "),
    "endless": replace_by("sparse {name} 1T"),
    "garbage": replace_by("file {name} \\x7fELF\\xff\\xff\\xff\\x00\\n,/::\\x1b"),
    "a loop": replace_by("symlink {name} {name}"),
    "a magic link": replace_by("symlink {name} /proc/self/fd/0"),
    "out of the root": replace_by("symlink {name} ../../../../../../../../../../etc/passwd"),
}


@pytest.mark.parametrize("swap", SWAPS)
def test_whatever_stands_in_place_of_files_nothing_hangs_or_crashes(swap: str) -> None:
    """A tenth of all files of a node, each replaced by something else; a new choice for each kind."""
    root = copied("rhel-lib64", session.new_dir("swap"))
    chosen = random.Random(swap)
    files = [path for path in sorted(root.rglob("*")) if not path.is_dir() or path.is_symlink()]
    swapped = [path for path in files if chosen.random() < 0.1]
    for path in swapped:
        SWAPS[swap](path)
    began = time.monotonic()
    seen = look_at(root)
    assert time.monotonic() - began < 5
    assert all(each.isprintable() for each in lines(seen))
    gone = {str(path) for path in swapped}
    if swap not in ("empty", "garbage", "endless"):  # of configuration and firmware only the kind of file is looked at
        assert not gone & {m.host_path for m in seen.found.mounts if m.kind not in ("socket", "directory")}
    assert not gone & {n.host_path for n in seen.found.device_nodes if n.kind == "gpu"}
    assert not [m for m in seen.found.mounts if "passwd" in m.host_path]


def test_without_openat2_the_same_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    with discovery("a100-mig") as seen:
        monkeypatch.setattr("nvoci.linux.lookup._openat2_works", False)
        with discovery("a100-mig") as walked:
            assert walked.found == seen.found


# -- speed ------------------------------------------------------------------------------------------------------------


def test_eight_gpus_take_a_few_milliseconds() -> None:
    """7 ms on one machine; a loaded one gets ten times that."""
    top = built("a100").root
    said = asked("a100")
    best = 10.0
    for _ in range(5):
        with Node.open(str(top), proc=f"{top}/proc", sys=f"{top}/sys", machine=X86) as node:
            began = time.perf_counter()
            find(node, said)
            best = min(best, time.perf_counter() - began)
    assert best < 0.1
