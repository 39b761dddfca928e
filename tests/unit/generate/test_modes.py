"""What GPUs, and who manages all of them, are given of what was found; and what is said where there is nothing."""

from __future__ import annotations

from typing import Any

import pytest
from unit.generate.gentools import (
    EMPTY,
    LIB,
    MIG_UUID,
    UUID,
    V,
    edits_of,
    found,
    gpu,
    made,
    mig,
    mount_paths,
    names,
    node_paths,
    spec_of,
    words,
)

from nvoci.discover.model import Driver, Found, Problem
from nvoci.discover.platform import Platform
from nvoci.errors import HookError
from nvoci.generate.options import GenerateOptions
from nvoci.generate.specs import from_found

CONTROL = ["/dev/nvidia-modeset", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools", "/dev/nvidiactl"]
SPLIT = gpu(0, mig_capable=True, mig_enabled=True, mig_devices=(mig(0, 0), mig(0, 1, profile="1g.5gb+gfx")))
NOT_LOADED = Problem(
    stage="use device", subject="/drv/dev/nvidia0", error="ENOENT", hint="make it: nvidia-modprobe -c 0"
)


# -- nvml -------------------------------------------------------------------------------------------------------------


def test_a_gpu_has_its_own_node_its_drm_nodes_and_their_links() -> None:
    spec = spec_of(found(gpu(0), gpu(1)))
    assert names(spec) == ["0", "1", UUID.format(0), UUID.format(1), "all"]
    one = edits_of(spec, "1")
    assert node_paths(one) == ["/dev/nvidia1", "/dev/dri/card2", "/dev/dri/renderD129"]
    by_path = "/dev/dri/by-path/pci-0000:08:00.0"
    link = f"create-symlinks --link ../card2::{by_path}-card --link ../renderD129::{by_path}-render"
    assert words(one.hooks) == [link]
    assert one.additional_gids == (44, 104)
    assert (one.env, one.mounts) == ((), ())
    assert edits_of(spec, UUID.format(1)) == one
    everything = edits_of(spec, "all")
    assert node_paths(everything) == [
        *("/dev/nvidia0", "/dev/nvidia1", "/dev/dri/card1", "/dev/dri/card2"),
        *("/dev/dri/renderD128", "/dev/dri/renderD129"),
    ]
    assert words(everything.hooks) == [*words(edits_of(spec, "0").hooks), link]


def test_a_mig_device_has_its_gpus_node_its_capabilities_and_drm_only_for_graphics() -> None:
    spec = spec_of(found(SPLIT, gpu(1)))
    assert names(spec) == ["0:0", "0:1", "1", UUID.format(1), MIG_UUID.format(0, 0), MIG_UUID.format(0, 1), "all"]
    plain, graphics = edits_of(spec, "0:0"), edits_of(spec, "0:1")
    assert node_paths(plain) == ["/dev/nvidia0", "/dev/nvidia-caps/nvidia-cap20", "/dev/nvidia-caps/nvidia-cap21"]
    assert (plain.hooks, plain.additional_gids) == ((), ())
    assert [each.file_mode for each in plain.device_nodes] == [0o666, 0o444, 0o444]
    assert node_paths(graphics) == [
        *("/dev/nvidia0", "/dev/dri/card1", "/dev/dri/renderD128"),
        *("/dev/nvidia-caps/nvidia-cap22", "/dev/nvidia-caps/nvidia-cap23"),
    ]
    assert [each.split()[0] for each in words(graphics.hooks)] == ["create-symlinks"]
    # by GPU, whatever of it there is
    assert [each.split()[2].partition("::")[0] for each in words(edits_of(spec, "all").hooks)] == [
        "../card1",
        "../card2",
    ]


def test_every_container_has_the_driver_and_what_all_applications_open() -> None:
    common = spec_of(found(gpu(0))).container_edits
    assert node_paths(common) == CONTROL
    assert common.env == (f"NVIDIA_CTK_LIBCUDA_DIR={LIB}", "NVIDIA_VISIBLE_DEVICES=void")
    assert mount_paths(common) == [
        "/tmp/nvidia-mps",
        "/run/nvidia-persistenced/socket",
        "/usr/bin/nvidia-smi",
        "/usr/bin/nvidia-xconfig",
        "/etc/vulkan/icd.d/nvidia_icd.json",
        f"{LIB}/libcuda.so.{V}",
        f"{LIB}/libnvidia-allocator.so.{V}",
        f"{LIB}/libnvidia-egl-wayland.so.1.1.13",
        f"{LIB}/libnvidia-egl-xcb.so.1.0.1",
        f"{LIB}/libnvidia-ml.so.{V}",
        f"{LIB}/libnvidia-nvvm70.so.4",
        "/usr/share/nvidia/nvoptix.bin",
        f"/lib/firmware/nvidia/{V}/gsp_ga10x.bin",
        f"{LIB}/vdpau/libvdpau_nvidia.so.{V}",
        f"/usr/lib/xorg/modules/extensions/libglxserver_nvidia.so.{V}",
    ]
    options = {each.container_path: each.options for each in common.mounts}
    assert options.pop("/tmp/nvidia-mps") == ("nosuid", "nodev", "rbind", "rprivate", "noexec")
    assert options.pop("/run/nvidia-persistenced/socket") == ("nosuid", "nodev", "rbind", "rprivate", "noexec")
    assert set(options.values()) == {("ro", "nosuid", "nodev", "rbind", "rprivate")}


def test_links_of_loaders_come_first_and_hooks_in_their_order() -> None:
    glx = f"libglxserver_nvidia.so.{V}::/usr/lib/xorg/modules/extensions/libglxserver_nvidia.so"
    own = (
        f"--link libcuda.so.{V}::{LIB}/libcuda.so.1 --link libcuda.so.1::{LIB}/libcuda.so "
        f"--link libnvidia-allocator.so.{V}::{LIB}/libnvidia-allocator.so.1 "
        f"--link libnvidia-ml.so.{V}::{LIB}/libnvidia-ml.so.1"
    )
    assert words(spec_of(found(gpu(0))).container_edits.hooks) == [
        f"create-symlinks --link ../libnvidia-allocator.so.1::{LIB}/gbm/nvidia-drm_gbm.so --link {glx}",
        f"create-symlinks {own}",
        f"enable-cuda-compat --host-driver-version={V}",
        f"update-ldcache --folder {LIB} --folder {LIB}/vdpau",
        "disable-device-node-modification",
        "update-application-profile",
    ]


def test_without_the_ipc_feature_there_are_no_sockets() -> None:
    common = spec_of(found(gpu(0)), feature_flags=("disable-ipc-discoverer",)).container_edits
    assert not {"/tmp/nvidia-mps", "/run/nvidia-persistenced/socket"} & set(mount_paths(common))
    assert len(common.mounts) == 13


def test_the_void_device_is_an_empty_one() -> None:
    spec = spec_of(found(gpu(0)), device_ids=("none", "0"))
    assert names(spec) == ["none"]
    assert edits_of(spec, "none").env == ("NVCT_EMPTY_DEVICE=",)
    assert node_paths(edits_of(spec, "none")) == []
    assert node_paths(spec.container_edits) == CONTROL


CHOSEN: dict[str, tuple[dict[str, Any], list[str]]] = {
    "by index": ({"device_ids": ("1",)}, ["1", UUID.format(1), "all"]),
    "by UUID": ({"device_ids": (UUID.format(1),)}, ["1", UUID.format(1), "all"]),
    "MIG": ({"device_ids": ("0:1",)}, ["0:1", MIG_UUID.format(0, 1), "all"]),
    "old MIG": ({"device_ids": (f"MIG-{UUID.format(0)}/1/0",)}, ["0:0", MIG_UUID.format(0, 0), "all"]),
    "twice": ({"device_ids": ("1", "1")}, ["1", UUID.format(1), "all"]),
    "one name": ({"device_ids": ("1",), "name_strategies": ("type-index",)}, ["all", "gpu1"]),
    "three names": (
        {"device_ids": ("1",), "name_strategies": ("type-index", "uuid", "index")},
        ["1", UUID.format(1), "all", "gpu1"],
    ),
    "a name twice": ({"device_ids": ("1",), "name_strategies": ("index", "index")}, ["1", "all"]),
    "without all": ({"device_ids": ("1", "all"), "name_strategies": ("index",), "no_all_device": True},
                    ["0:0", "0:1", "1"]),
    "all, and none later": ({"device_ids": ("all", "none"), "name_strategies": ("index",)}, ["0:0", "0:1", "1"]),
}  # fmt: skip


@pytest.mark.parametrize("case", CHOSEN)
def test_devices_are_chosen_and_named(case: str) -> None:
    settings, expected = CHOSEN[case]
    assert names(spec_of(found(SPLIT, gpu(1)), **settings)) == expected


def test_all_is_what_was_asked_for() -> None:
    spec = spec_of(found(gpu(0), gpu(1), gpu(2)), device_ids=("1",), name_strategies=("index",))
    assert edits_of(spec, "all") == edits_of(spec, "1")


# -- nodes that are not as they should be -----------------------------------------------------------------------------


def test_a_gpu_without_a_node_is_left_out_and_told() -> None:
    node = found(gpu(0), gpu(1), without=("/dev/nvidia0",), problems=(NOT_LOADED,))
    generated = made(node)
    assert names(generated.specs[0].spec) == ["1", UUID.format(1), "all"]
    device, left_out = generated.warnings
    assert device == NOT_LOADED.line()
    assert left_out == (
        f"GPU 0 ({UUID.format(0)}) is left out: it has no device node /dev/nvidia0 (make it: nvidia-modprobe -c 0)"
    )
    with pytest.raises(HookError, match=r"use GPU 0 \(.*\): it has no device node /dev/nvidia0") as e:
        made(node, device_ids=("0",))
    assert e.value.hint == NOT_LOADED.hint


def test_a_mig_device_without_its_capabilities_is_left_out_and_told() -> None:
    hint = "was the instance destroyed? list them: nvidia-smi mig -lci"
    problem = Problem(stage="look up MIG capability", subject="gpu0/gi2/access", error="not there", hint=hint)
    devices = (mig(0, 0), mig(0, 1, cap_nodes=["/dev/nvidia-caps/nvidia-cap22"]))
    node = found(gpu(0, mig_enabled=True, mig_devices=devices), problems=(problem,))
    generated = made(node)
    assert names(generated.specs[0].spec) == ["0:0", MIG_UUID.format(0, 0), "all"]
    (told,) = generated.warnings
    assert told.startswith("MIG device 0:1 (")
    assert told.endswith(f"it has not both of its capability nodes in /dev/nvidia-caps ({hint})")
    with pytest.raises(HookError, match="use MIG device 0:1"):
        made(node, device_ids=("0:1",))


def test_a_gpu_in_mig_mode_without_devices_is_told() -> None:
    generated = made(found(gpu(0, mig_enabled=True), gpu(1)))
    assert names(generated.specs[0].spec) == ["1", UUID.format(1), "all"]
    (told,) = generated.warnings
    assert told.startswith("GPU 0: MIG mode is on and there is no MIG device")
    assert "nvidia-smi mig -i 0 -cgi" in told
    assert made(found(gpu(0, mig_enabled=True), gpu(1)), device_ids=("1",)).warnings == ()


LOST = Problem(stage="ask NVML about", subject="GPU 0", error="NVML_ERROR_GPU_IS_LOST", hint="reset it")
MISMATCH = Problem(stage="match the driver's versions", subject="kernel module 1.2.3, libraries 4.5.6",
                   error="the versions differ", hint="reboot")  # fmt: skip
NO_DRIVER = Problem(stage="find the driver", subject="/", error="no libcuda.so.*.*", hint="install the NVIDIA driver")
DANGLING = Problem(
    stage="find the driver", subject=f"{LIB}: libx.so", error="links that lead nowhere", hint="reinstall"
)
# found, part of the message, of the hint
REFUSED: dict[str, tuple[Found, str, str]] = {
    "no GPU": (found(), f"no GPU: NVML /lib/nvml knows of none, and in /dev there is no nvidia0: {EMPTY}", "lspci"),
    "no GPU that answers": (found(problems=(LOST,)), f"GPU 0: NVML_ERROR_GPU_IS_LOST: {EMPTY}", "reset it"),
    "MIG mode on everywhere": (found(gpu(0, mig_enabled=True)), f"GPU 0: MIG mode is on {{}}: {EMPTY}", ""),
    "no nodes": (found(gpu(0), without=("/dev/nvidia0",)), f"it has no device node /dev/nvidia0 {{}}: {EMPTY}", ""),
    "other version": (found(gpu(0), problems=(MISMATCH,)), MISMATCH.subject, "reboot"),
    "no driver": (found(problems=(NO_DRIVER,)).replace(driver=Driver()), "find the driver /: no libcuda", "install"),
    "no driver, silently": (found().replace(driver=Driver()), "no driver in /", "install the NVIDIA driver"),
    "no libcuda": (found(gpu(0), without=(f"{LIB}/libcuda.so.{V}",)), f"libcuda.so.{V} in /: not there", "reinstall"),
    "no NVML": (found(gpu(0), without=(f"{LIB}/libnvidia-ml.so.{V}",)), f"libnvidia-ml.so.{V} in /: not there",
                "reinstall the driver"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_node_that_has_nothing_for_a_container_is_one_line(case: str) -> None:
    node, message, hint = REFUSED[case]
    with pytest.raises(HookError) as e:
        made(node)
    assert e.value.message.startswith("generate CDI spec: ")
    assert [part for part in message.split(" {}") if part not in e.value.message] == []
    assert hint in e.value.hint
    assert e.value.line().isprintable()


def test_a_device_that_is_there_though_nvml_does_not_know_it_is_told() -> None:
    node = found(gpu(0)).replace(gpus=())
    with pytest.raises(HookError, match="knows of none, and in /dev there is /dev/nvidia0"):
        made(node)


def test_links_that_lead_nowhere_are_a_warning() -> None:
    generated = made(found(gpu(0), problems=(DANGLING,)))
    assert generated.warnings == (DANGLING.line(),)


# -- management -------------------------------------------------------------------------------------------------------


def test_who_manages_the_node_has_all_of_the_drivers_nodes() -> None:
    spec = spec_of(found(SPLIT, gpu(1)), mode="management")
    assert (spec.kind, names(spec)) == ("management.nvidia.com/gpu", ["all"])
    assert node_paths(edits_of(spec, "all")) == [
        *("/dev/nvidia-modeset", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools", "/dev/nvidia-vgpu0"),
        *("/dev/nvidia0", "/dev/nvidia1", "/dev/nvidiactl"),
        *[f"/dev/nvidia-caps-imex-channels/channel{n}" for n in (0, 2, 2047)],
        *[f"/dev/nvidia-caps/nvidia-cap{n}" for n in (1, 2, 20, 21, 22, 23, 99)],
    ]
    assert edits_of(spec, "all").hooks == ()
    assert spec.container_edits.device_nodes == ()


def test_who_manages_the_node_needs_no_graphics() -> None:
    common = spec_of(found(gpu(0)), mode="management").container_edits
    assert mount_paths(common) == [
        "/tmp/nvidia-mps",
        "/run/nvidia-persistenced/socket",
        "/usr/bin/nvidia-smi",
        f"{LIB}/libcuda.so.{V}",
        f"{LIB}/libnvidia-allocator.so.{V}",
        f"{LIB}/libnvidia-ml.so.{V}",
        f"{LIB}/libnvidia-nvvm70.so.4",
        f"/lib/firmware/nvidia/{V}/gsp_ga10x.bin",
        f"{LIB}/vdpau/libvdpau_nvidia.so.{V}",
    ]
    assert [each.split()[0] for each in words(common.hooks)] == [
        "create-symlinks", "enable-cuda-compat", "update-ldcache"
    ]  # fmt: skip
    assert "gbm" not in words(common.hooks)[0]
    assert common.env == (f"NVIDIA_CTK_LIBCUDA_DIR={LIB}", "NVIDIA_VISIBLE_DEVICES=void")


def test_platform_libraries_that_are_asked_for_one_by_one_are_the_drivers() -> None:
    flags = ("enable-explicit-driver-libraries",)
    paths = mount_paths(spec_of(found(gpu(0)), mode="management", feature_flags=flags).container_edits)
    assert f"{LIB}/libnvidia-egl-xcb.so.1.0.1" in paths
    assert f"{LIB}/libnvidia-egl-wayland.so.1.1.13" not in paths


def test_hooks_that_are_off_for_who_manages_can_be_enabled() -> None:
    spec = spec_of(found(gpu(0)), mode="management", enabled_hooks=("disable-device-node-modification", "chmod"))
    assert words(spec.container_edits.hooks)[-1] == "disable-device-node-modification"
    assert words(edits_of(spec, "all").hooks) == ["chmod --mode 755 --path /dev/nvidia-caps"]


def test_a_node_without_nvml_or_gpus_can_be_managed() -> None:
    bare = found(without=(f"{LIB}/libnvidia-ml.so.{V}",))
    generated = from_found(bare, None, GenerateOptions(mode="management"), Platform("nvml", []))
    assert "/dev/nvidiactl" in node_paths(edits_of(generated.specs[0].spec, "all"))
    with pytest.raises(HookError, match="no NVIDIA device nodes found: none in /dev"):
        made(bare.replace(device_nodes=()), mode="management")
    with pytest.raises(HookError, match="the versions differ"):
        made(found(gpu(0), problems=(MISMATCH,)), mode="management")


def test_the_chmod_of_a_gpu_is_for_the_directory_of_its_nodes() -> None:
    spec = spec_of(found(gpu(0), SPLIT.replace(index=1, minor=1)), enabled_hooks=("chmod",))
    assert words(edits_of(spec, "0").hooks)[-1] == "chmod --mode 755 --path /dev/dri"
    assert "chmod" not in " ".join(words(edits_of(spec, "0:0").hooks))
