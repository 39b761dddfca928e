"""Which nodes and requests this way of injection is for."""

from __future__ import annotations

import pytest
from unit.discover.nodetree import found, gpu
from unit.prestart.prestarttools import error, settings

from nvoci.discover.model import DeviceNode, Driver, Found
from nvoci.prestart import mode
from nvoci.prestart.request import Request

SKIP = "[nvidia-container-runtime-hook]\nskip-mode-detection = true\n"


def of(name: str) -> str:
    return f'[nvidia-container-runtime]\nmode = "{name}"\n'


GOOD: dict[str, tuple[str, tuple[str, ...]]] = {
    "auto": ("", ("all",)),
    "no device": ("", ()),
    "legacy": (of("legacy"), ("nvidia.com/gpu=0",)),
    "one CDI device among others": ("", ("nvidia.com/gpu=0", "0")),
    "skipped": (SKIP + of("cdi"), ("all",)),
    "skipped, CDI devices": (SKIP, ("nvidia.com/gpu=0",)),
}
BAD: dict[str, tuple[str, tuple[str, ...], str, str]] = {
    "cdi": (of("cdi"), ("all",), "mode cdi: ", "nvidia-container-runtime.mode in config.toml"),
    "jit-cdi": (of("jit-cdi"), (), "mode jit-cdi: ", "nvidia-container-runtime.mode in config.toml"),
    "csv": (of("csv"), ("all",), "mode csv: ", "nvidia-container-runtime.mode in config.toml"),
    "unknown": (of("x\\ny"), ("all",), r"mode x\ny: ", "nvidia-container-runtime.mode in config.toml"),
    "CDI devices": ("", ("nvidia.com/gpu=0", "a/b=c"), "mode cdi: ", "`nvidia.com/gpu=0` is a CDI device"),
}


@pytest.mark.parametrize(("text", "devices"), GOOD.values(), ids=GOOD)
def test_what_is_done_here(text: str, devices: tuple[str, ...]) -> None:
    mode.check(settings(text), Request(devices=devices))


@pytest.mark.parametrize(("text", "devices", "message", "why"), BAD.values(), ids=BAD)
def test_what_is_the_runtimes_to_do(text: str, devices: tuple[str, ...], message: str, why: str) -> None:
    caught = error(lambda: mode.check(settings(text), Request(devices=devices)))
    assert caught.message.startswith(message)
    assert "calling this hook directly (docker --gpus, hooks.d) is not supported" in caught.message
    assert why in caught.hint


NODES: dict[str, tuple[Found, str]] = {
    "GPUs": (found(), ""),
    "no GPU": (Found(driver=Driver()), ""),
    "an integrated GPU": (Found(driver=Driver(), gpus=[gpu(0, name="Orin (nvgpu)")]), "GPU 0 is an integrated one"),
    "Thor beside another": (
        Found(driver=Driver(), gpus=[gpu(0), gpu(1, name="NVIDIA Thor")]), "GPU 1 is an integrated one: NVIDIA Thor"
    ),
    "Tegra without NVML": (
        Found(driver=Driver(), device_nodes=[DeviceNode(host_path="/dev/a", container_path="/dev/a", kind="tegra")]),
        "this is a Tegra system",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("node", "why"), NODES.values(), ids=NODES)
def test_a_tegra_system_needs_its_csv_files(node: Found, why: str) -> None:
    for text in (SKIP, of("legacy")):
        mode.check_node(settings(text), node)
    if not why:
        mode.check_node(settings(), node)
        return
    caught = error(lambda: mode.check_node(settings(), node))
    assert caught.message.startswith("mode csv: ")
    assert why in caught.hint
