"""A Tegra system as one device, and with a discrete GPU."""

from __future__ import annotations

from typing import Any

import pytest
from unit.generate.gentools import (
    EMPTY,
    UUID,
    answer,
    control_nodes,
    edits_of,
    gpu,
    gpu_nodes,
    made,
    mount,
    names,
    node,
    node_paths,
    spec_of,
    words,
)

from nvoci.discover.model import Driver, Found, Hook, Problem
from nvoci.discover.platform import Platform
from nvoci.errors import HookError
from nvoci.generate.options import GenerateOptions
from nvoci.generate.specs import from_found

TEGRA = "/usr/lib/aarch64-linux-gnu/tegra"
THOR = gpu(0, name="NVIDIA Thor", pci_bus_id="")
DISCRETE = gpu(1, name="NVIDIA RTX 6000 Ada Generation", addressing_mode="ats")
LISTS = (
    [("libcuda.so.1", f"{TEGRA}/libcuda.so"), ("libcuda.so.1.1", f"{TEGRA}/libcuda.so.1")],
    [("libcuda.so.1.1", f"{TEGRA}/libcuda.so"), ("libx.so.1", f"{TEGRA}/libx.so")],
)


def listed(owner: str = "") -> list[Any]:
    return [node("/dev/nvhost-gpu", "tegra", 500, 1, mode=0o660, gid=44, owner=owner),
            node("/dev/nvidia0", "tegra", owner=owner), node("/dev/nvmap", "tegra", 500, 3, owner=owner)]  # fmt: skip


def system(*gpus: Any, nodes: list[Any] | None = None, problems: tuple[Problem, ...] = ()) -> Found:
    links = [(text, link) for text, link in {link: (text, link) for each in LISTS for text, link in each}.values()]
    hooks = [Hook(name="update-ldcache", args=("--folder", TEGRA))]
    if gpus:
        hooks.insert(0, Hook(name="enable-cuda-compat", args=("--host-cuda-version=13.0",)))
    return Found(
        driver=Driver(),
        gpus=gpus,
        device_nodes=listed() if nodes is None else nodes,
        mounts=[mount(f"{TEGRA}/libcuda.so.1.1", links=links), mount("/etc/x.json", "config", capabilities=["gds"])],
        hooks=hooks,
        problems=problems,
    )  # fmt: skip


def mixed() -> Found:
    own = gpu_nodes(DISCRETE)
    nodes = [*own, *control_nodes(DISCRETE.uuid), *listed(THOR.uuid), node("/dev/nvidia2", "tegra", owner=THOR.uuid),
             *[each for each in listed(DISCRETE.uuid) if each.container_path != "/dev/nvidia0"]]  # fmt: skip
    return system(THOR, DISCRETE, nodes=nodes)


def test_all_of_it_is_device_0() -> None:
    spec = spec_of(system(), "csv")
    assert (spec.kind, names(spec), spec.cdi_version) == ("nvidia.com/gpu", ["0", "all"], "0.7.0")
    assert node_paths(edits_of(spec, "0")) == ["/dev/nvhost-gpu", "/dev/nvidia0", "/dev/nvmap"]
    assert edits_of(spec, "0").additional_gids == (44,)
    common = spec.container_edits
    assert (common.device_nodes, common.env) == ((), ("NVIDIA_VISIBLE_DEVICES=void",))
    assert [each.host_path for each in common.mounts] == [f"{TEGRA}/libcuda.so.1.1"]


def test_the_only_gpu_of_nvml_is_device_0_too() -> None:
    orin = gpu(0, name="Orin (nvgpu)", pci_bus_id="")
    spec = spec_of(system(orin, nodes=listed(orin.uuid)), "csv", device_ids=("0",), name_strategies=("type-index",))
    assert names(spec) == ["all", "gpu0"]
    assert words(spec.container_edits.hooks)[-2:] == [
        "enable-cuda-compat --host-cuda-version=13.0",
        f"update-ldcache --folder {TEGRA}",
    ]


def test_links_are_made_as_the_reference_makes_them_or_once() -> None:
    def of(form: str, lists: Any) -> list[str]:
        options = GenerateOptions(hooks_form=form)
        (named,) = from_found(system(), None, options, Platform("csv", []), lists).specs
        return words(named.spec.container_edits.hooks)

    first, second, _ = of("reference", LISTS)
    assert (
        first == f"create-symlinks --link libcuda.so.1::{TEGRA}/libcuda.so --link libcuda.so.1.1::{TEGRA}/libcuda.so.1"
    )
    assert second == f"create-symlinks --link libcuda.so.1.1::{TEGRA}/libcuda.so --link libx.so.1::{TEGRA}/libx.so"
    once = (
        f"--link libcuda.so.1.1::{TEGRA}/libcuda.so --link libcuda.so.1.1::{TEGRA}/libcuda.so.1 "
        f"--link libx.so.1::{TEGRA}/libx.so"
    )
    assert of("merged", LISTS) == [f"run -- create-symlinks {once} -- update-ldcache --folder {TEGRA}"]
    assert of("reference", ()) == [f"create-symlinks {once}", f"update-ldcache --folder {TEGRA}"]


def test_each_gpu_has_its_own_where_there_are_two_sorts() -> None:
    spec = spec_of(mixed(), "csv")
    assert names(spec) == ["0", "1", UUID.format(0), UUID.format(1), "all"]
    assert node_paths(edits_of(spec, "0")) == ["/dev/nvhost-gpu", "/dev/nvidia0", "/dev/nvidia2", "/dev/nvmap"]
    discrete = edits_of(spec, "1")
    assert node_paths(discrete) == [
        *("/dev/nvhost-gpu", "/dev/nvidia-modeset", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools", "/dev/nvidia1"),
        *("/dev/nvidiactl", "/dev/nvmap", "/dev/dri/card2", "/dev/dri/renderD129"),
    ]
    assert edits_of(spec, "0").hooks == ()
    assert [each.split()[0] for each in words(discrete.hooks)] == ["create-symlinks"]
    assert spec.container_edits.device_nodes == ()


CHOSEN = {
    ("1",): ["1", UUID.format(1), "all"],
    (UUID.format(0),): ["0", UUID.format(0), "all"],
    ("0", UUID.format(0)): ["0", UUID.format(0), "all"],
    ("0", "all"): ["0", "1", UUID.format(0), UUID.format(1), "all"],
}


@pytest.mark.parametrize("ids", CHOSEN, ids=" ".join)
def test_gpus_are_chosen(ids: tuple[str, ...]) -> None:
    assert names(spec_of(mixed(), "csv", device_ids=ids)) == CHOSEN[ids]


def test_only_the_discrete_gpu_is_coherent_or_not() -> None:
    options = GenerateOptions(feature_flags=("enable-coherent-annotations",))
    generated = from_found(mixed(), answer((THOR, DISCRETE)), options, Platform("csv", []))
    assert [(each.suffix, names(each.spec)) for each in generated.specs] == [
        ("", ["0", "1", UUID.format(0), UUID.format(1), "all"]),
        (".coherent", ["1", UUID.format(1), "all"]),
    ]


TOLD = Problem(stage="tell GPUs apart", subject="a, b", error="not one integrated GPU and others without MIG")
REFUSED: dict[str, tuple[Found, dict[str, Any], str]] = {
    "no nodes": (system(nodes=[]), {}, f"the CSV files name none that is there: {EMPTY}"),
    "no name": (system(), {"name_strategies": ("uuid",)}, f"name the device: {EMPTY}"),
    "index 1": (system(), {"device_ids": ("1",)}, "unsupported device id: 1"),
    "none": (system(), {"device_ids": ("none",)}, "unsupported device id: none"),
    "UUID": (system(), {"device_ids": ("all", UUID.format(0))}, f"unsupported device id: {UUID.format(0)}"),
    "mixed, index 2": (mixed(), {"device_ids": ("2",)}, "use GPU 2: no such device"),
    "mixed, MIG": (mixed(), {"device_ids": ("0:1",)}, 'spec for MIG id "0:1" is not supported in CSV mode'),
    "mixed, MIG UUID": (mixed(), {"device_ids": ("MIG-x",)}, 'for MIG id "MIG-x" is not supported'),
    "mixed, nonsense": (mixed(), {"device_ids": ("x",)}, 'identifier is not a valid UUID or index: "x"'),
    "mixed, bare UUID": (mixed(), {"device_ids": (UUID.format(9)[4:],)}, "no such device"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_there_is_not_is_refused(case: str) -> None:
    node_, settings, message = REFUSED[case]
    with pytest.raises(HookError) as e:
        made(node_, "csv", **settings)
    assert message in e.value.message
    assert e.value.hint


def test_gpus_that_can_not_be_told_apart_are_one_device_and_a_warning() -> None:
    generated = made(system(DISCRETE, gpu(2), problems=(TOLD,)), "csv")
    assert names(generated.specs[0].spec) == ["0", "all"]
    assert generated.warnings == (TOLD.line(),)
