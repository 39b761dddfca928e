"""What a specification tells of itself, whoever made it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nvoci.cdi import text
from nvoci.cdi.model import ContainerEdits, Device, DeviceNode, Hook, Mount, Spec
from nvoci.generate import origin

SAMPLES = Path(__file__).resolve().parents[2] / "data/nodes"


def spec(kind: str = "nvidia.com/gpu", *, hooks: tuple[Hook, ...] = (), **edits: Any) -> Spec:
    """Of one device."""
    return Spec("0.6.0", kind, (Device("x", ContainerEdits(**edits)),), ContainerEdits(hooks=hooks))


def hook(*words: str, path: str = "/usr/bin/nvidia-cdi-hook") -> Hook:
    """With these arguments."""
    return Hook("createContainer", path, (path.rpartition("/")[2], *words), ("A=1",))


OURS = {
    "by vendor": (spec(env=("A=1",)), True),
    "by part of a vendor": (spec("management.nvidia.com/gpu", env=("A=1",)), True),
    "by the end of another": (spec("notnvidia.com/gpu", env=("A=1",)), False),
    "by a node": (spec("a.org/x", device_nodes=(DeviceNode("/dev/nvidia12"),)), True),
    "by a channel": (spec("a.org/x", device_nodes=(DeviceNode("/dev/nvidia-caps-imex-channels/channel3"),)), True),
    "by a node of another": (spec("a.org/x", device_nodes=(DeviceNode("/dev/nvidiafoo"),)), False),
    "by annotations": (replace(spec("a.org/x", env=("A=1",)), annotations={"nvoci.io/driver-version": "1.2"}), True),
}


@pytest.mark.parametrize("case", OURS)
def test_whose_devices_it_is_for(case: str) -> None:
    given, expected = OURS[case]
    assert origin.is_nvidia(given) is expected


MERGED = {
    "run": (hook("run", "--", "noop"), True),
    "run of nvidia-ctk": (hook("hook", "run", "--", "noop", path="/usr/bin/nvidia-ctk"), True),
    "a hook": (hook("create-symlinks", "--link", "run::/run"), False),
}


@pytest.mark.parametrize("case", MERGED)
def test_one_hook_for_all_is_of_our_making(case: str) -> None:
    given, expected = MERGED[case]
    assert origin.is_merged(spec(hooks=(given,), env=("A=1",))) is expected


ROOTS = {
    "none": ((), (), ("/", "/")),
    "/": ((Mount("/lib/libcuda.so.550.1", "/lib/libcuda.so.550.1"),), (DeviceNode("/dev/nvidiactl"),), ("/", "/")),
    "both": (
        (Mount("/r/lib/libcuda.so.550.1", "/lib/libcuda.so.550.1"),),
        (DeviceNode("/dev/nvidiactl", "/r/dev/nvidiactl"),), ("/r", "/r"),
    ),
    "one": (
        (Mount("/other", "/x"), Mount("/r/lib/libnvidia-ml.so.550.1", "/lib/libnvidia-ml.so.550.1")),
        (DeviceNode("/dev/nvidia0", "/dev/nvidia0"),), ("/r", "/"),
    ),
    "moved in the container": ((Mount("/r/lib/libcuda.so.550.1", "/x/libcuda.so.550.1"),), (), ("/", "/")),
}  # fmt: skip


@pytest.mark.parametrize("case", ROOTS)
def test_its_roots(case: str) -> None:
    mounts, nodes, expected = ROOTS[case]
    assert origin.roots(spec(mounts=mounts, device_nodes=nodes, env=("A=1",))) == expected


REMAKES = {
    "nvidia.com/gpu": [],
    "nvidia.com/gpu.coherent": [],
    "nvidia.com/gpu.noncoherent": [],
    "nvidia.com/imex-channel": ["--mode", "imex"],
    "nvidia.com/gds": ["--mode", "gds"],
    "management.nvidia.com/gpu": ["--mode", "management"],
    "k8s.device-plugin.nvidia.com/gpu": ["--vendor", "k8s.device-plugin.nvidia.com", "--class", "gpu"],
}


@pytest.mark.parametrize("kind", REMAKES)
def test_how_to_make_one_of_its_kind(kind: str) -> None:
    assert origin.remake(spec(kind, env=("A=1",))) == REMAKES[kind]


def test_how_to_make_one_of_its_form_and_roots() -> None:
    given = spec(hooks=(hook("noop"),), device_nodes=(DeviceNode("/dev/nvidia0", "/r d/dev/nvidia0"),))
    assert origin.remake(given) == ["--hooks", "reference", "--driver-root", "/", "--dev-root", "/r d"]
    assert origin.remake(spec(hooks=(hook("run", "--", "noop"),), env=("A=1",))) == []


MAJORS = {
    "a100": {"nvidia": 195, "nvidia-uvm": 510},
    "a100-mig": {"nvidia": 195, "nvidia-uvm": 510, "nvidia-caps": 236},
}


@pytest.mark.parametrize("name", MAJORS)
def test_of_the_references_samples(name: str) -> None:
    """Which have no annotation of ours."""
    given = text.read(str(SAMPLES / f"{name}.cdi.yaml"))
    version, where = origin.driver_version(given)
    assert (version, where[:21], where[-8:]) == ("550.163.01", "containerEdits.hooks[", ".args[2]")
    assert {each: number for each, (number, _) in origin.majors(given).items()} == MAJORS[name]
    assert (origin.is_nvidia(given), origin.is_annotated(given), origin.is_merged(given)) == (True, False, False)
    assert (origin.roots(given), origin.remake(given)) == (("/", "/"), ["--hooks", "reference"])
