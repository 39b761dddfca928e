"""What parts of the machine beside its GPUs are given, and WSL."""

from __future__ import annotations

import pytest
from unit.generate.gentools import (
    EMPTY,
    edits_of,
    found,
    gpu,
    made,
    mount,
    mount_paths,
    names,
    node,
    node_paths,
    spec_of,
    words,
)

from nvoci.discover.model import Driver, Found, Hook, Problem
from nvoci.errors import HookError

# -- parts of the machine ---------------------------------------------------------------------------------------------

GATED = {
    "gds": (["/dev/nvidia-fs0"], ["/etc/cufile.json", "/run/udev"]),
    "mofed": (["/dev/infiniband/rdma_cm", "/dev/infiniband/uverbs0"], []),
    "gdrcopy": (["/dev/gdrdrv"], []),
    "nvswitch": (["/dev/nvidia-nvswitch0", "/dev/nvidia-nvswitchctl"], []),
}


@pytest.mark.parametrize("mode", GATED)
@pytest.mark.parametrize("kind", ["nvml", "csv", "wsl"])
def test_a_part_of_the_machine_is_one_device_on_any_platform(mode: str, kind: str) -> None:
    spec = spec_of(found(gpu(0)), kind, mode=mode, device_ids=("whatever",))
    nodes, mounts = GATED[mode]
    assert (spec.kind, names(spec), spec.cdi_version) == (f"nvidia.com/{mode}", ["all"], "0.3.0")
    assert (node_paths(edits_of(spec, "all")), mount_paths(edits_of(spec, "all"))) == (nodes, mounts)
    common = spec.container_edits
    assert (common.env, common.mounts, common.hooks) == (("NVIDIA_VISIBLE_DEVICES=void",), (), ())


@pytest.mark.parametrize("mode", [*GATED, "imex"])
def test_a_part_that_is_not_there_is_told_in_words_that_consumers_know(mode: str) -> None:
    with pytest.raises(HookError) as e:
        made(found(gpu(0)).replace(device_nodes=()), mode=mode)
    assert "/dev/" in e.value.message
    assert e.value.message.endswith(EMPTY)
    assert e.value.hint


WRONG = {
    "gds": "/dev/nvidia-fs9",
    "mofed": "/dev/infiniband/uverbs1",
    "gdrcopy": "/dev/gdrdrv",
    "nvswitch": "/dev/nvidia-nvswitch3",
    "imex": "/dev/nvidia-caps-imex-channels/channel1",
}


@pytest.mark.parametrize("mode", WRONG)
def test_a_node_of_a_part_that_cannot_be_used_is_told(mode: str) -> None:
    problem = Problem(stage="use device", subject=WRONG[mode], error="is 1:2, should be 3:4", hint="make it again")
    other = Problem(stage="use device", subject="/dev/nvidia0", error="ENOENT")
    assert made(found(problems=(problem, other)), mode=mode).warnings == (problem.line(),)
    with pytest.raises(HookError, match="is 1:2, should be 3:4"):
        made(found(problems=(problem, other)).replace(device_nodes=()), mode=mode)


def test_no_driver_is_needed_for_a_part() -> None:
    assert names(spec_of(found().replace(driver=Driver(), mounts=()), mode="gdrcopy")) == ["all"]


CHANNELS = {
    ("all",): ["0", "2", "2047", "all"],
    ("channelall",): ["0", "2", "2047", "all"],
    ("5", "all"): ["0", "2", "2047", "all"],
    ("2",): ["2", "all"],
    ("channel2047", "0"): ["0", "2047", "all"],
    ("2", "channel2", "02"): ["2", "all"],
}


@pytest.mark.parametrize("ids", CHANNELS, ids=" ".join)
def test_imex_channels_are_devices_by_their_number(ids: tuple[str, ...]) -> None:
    spec = spec_of(found(), mode="imex", device_ids=ids)
    assert (spec.kind, names(spec), spec.cdi_version) == ("nvidia.com/imex-channel", CHANNELS[ids], "0.5.0")
    for name in names(spec)[:-1]:
        (node,) = edits_of(spec, name).device_nodes
        path = f"/dev/nvidia-caps-imex-channels/channel{name}"
        assert (node.path, node.host_path, node.major, node.file_mode, node.permissions) == (path, path, 0, None, "")


BAD_CHANNELS = {
    "x": "invalid channel ID x: must be in the range [0, 1048575]",
    "channel": "invalid channel ID channel: must be in the range",
    "channel-1": "invalid channel ID channel-1: must be in the range",
    "none": "invalid channel ID none: must be in the range",
    "1048576": "invalid channel ID 1048576: must be in the range",
    "99999999999999999999": "invalid channel ID 99999999999999999999: must be",
    "1048575": "IMEX channel 1048575 not found at /dev/nvidia-caps-imex-channels/channel1048575",
}


@pytest.mark.parametrize("text", BAD_CHANNELS)
def test_a_channel_that_there_is_not_is_refused(text: str) -> None:
    with pytest.raises(HookError) as e:
        made(found(), mode="imex", device_ids=("0", text))
    assert e.value.message.startswith(BAD_CHANNELS[text])


# -- WSL --------------------------------------------------------------------------------------------------------------


def test_wsl_is_one_device_and_the_driver_store() -> None:
    store = "/usr/lib/wsl/drivers/nv_dispi"
    smi = mount(f"{store}/nvidia-smi", "binary", links=[(f"{store}/nvidia-smi", "/usr/bin/nvidia-smi")])
    wsl = Found(
        driver=Driver(version="560.94"),
        device_nodes=[node("/dev/dxg", "wsl", 10, 125)],
        mounts=[mount(f"{store}/libcuda.so.1.1"), smi, mount("/usr/lib/wsl/lib/libdxcore.so")],
        hooks=[Hook(name="update-ldcache", args=("--folder", store, "--folder", "/usr/lib/wsl/lib"))],
    )
    spec = spec_of(wsl, "wsl", ldconfig_path="/sbin/ldconfig")
    assert (spec.kind, names(spec), node_paths(edits_of(spec, "all"))) == ("nvidia.com/gpu", ["all"], ["/dev/dxg"])
    common = spec.container_edits
    assert mount_paths(common) == ["/usr/lib/wsl/lib/libdxcore.so", f"{store}/libcuda.so.1.1", f"{store}/nvidia-smi"]
    assert common.env == ("NVIDIA_VISIBLE_DEVICES=void",)
    assert words(common.hooks) == [
        f"create-symlinks --link {store}/nvidia-smi::/usr/bin/nvidia-smi",
        f"update-ldcache --ldconfig-path /sbin/ldconfig --folder {store} --folder /usr/lib/wsl/lib",
    ]
    with pytest.raises(HookError, match="no /dev/dxg"):
        made(wsl.replace(device_nodes=()), "wsl")
