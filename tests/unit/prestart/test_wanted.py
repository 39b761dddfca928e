"""What a container's request and the configuration come to."""

from __future__ import annotations

from typing import Any

import pytest
from unit.prestart.prestarttools import container, settings

from nvoci.prestart import wanted
from nvoci.prestart.request import build
from nvoci.prestart.wanted import Wanted, of_request


def of(*env: str, config: str = "", privileged: bool = False) -> Wanted:
    spec, found = container("NVIDIA_VISIBLE_DEVICES=1,0", *env, privileged=privileged), settings(config)
    request = build(spec, found)
    assert request is not None
    return of_request(request, found)


CLI, FEATURES = "[nvidia-container-cli]\n", "[features]\n"
MODE = '[nvidia-container-runtime.modes.legacy]\ncuda-compat-mode = "{}"\n'
CASES: dict[str, tuple[Wanted, dict[str, Any]]] = {
    "the least": (of(), {
        "devices": ("1", "0"), "capabilities": ("compute", "utility"), "compat_mode": "ldconfig", "cgroups": True,
        "devbind": True, "driver_root": "/", "load_kmods": True, "create_imex": True, "mig_config": (), "engine": "",
        "imex_channels": (), "requirements": (), "mps_directory": "/tmp/nvidia-mps", "gsp_firmware": True,
        "persistenced": True, "fabricmanager": True, "user": "", "ldcache": "",
    }),
    "who asks NVML": (of(config=CLI + 'user = "root:video"\n'), {"user": "root:video"}),
    "a library cache": (of(config=CLI + 'ldcache = "/opt/d.cache"\n'), {"ldcache": "/opt/d.cache"}),
    "the usual library cache": (of(config=CLI + 'ldcache = "/etc/ld.so.cache"\n'), {"ldcache": ""}),
    "capabilities": (of("NVIDIA_DRIVER_CAPABILITIES=video,utility"), {"capabilities": ("utility", "video")}),
    "requirements": (of("NVIDIA_REQUIRE_CUDA=cuda>=12"), {"requirements": (("NVIDIA_REQUIRE_CUDA", "cuda>=12"),)}),
    "channels": (of("NVIDIA_IMEX_CHANNELS=3,1"), {"imex_channels": (3, 1)}),
    "management": (of("NVIDIA_MIG_CONFIG_DEVICES=all", "NVIDIA_MIG_MONITOR_DEVICES=all", privileged=True),
                   {"mig_config": ("all",), "mig_monitor": ("all",)}),
    "a driver container": (of(config=CLI + 'root = "/run/nvidia/driver"\n'), {"driver_root": "/run/nvidia/driver"}),
    "no cgroups, no modules": (of(config=CLI + "no-cgroups = true\nload-kmods = false\n"),
                               {"cgroups": False, "load_kmods": False}),
    "ldconfig": (of(config=CLI + 'ldconfig = "@/opt/ldconfig"\n'), {"ldconfig": "/opt/ldconfig"}),
    "ldconfig of the container": (
        of(config=CLI + 'ldconfig = "/sbin/ldconfig"\n' + FEATURES + "allow-ldconfig-from-container = true\n"),
        {"ldconfig": ""},
    ),
    "compat mount": (of(config=MODE.format("mount")), {"compat_mode": "mount"}),
    "compat hook": (of(config=MODE.format("hook")), {"compat_mode": "disabled"}),
    "no new channels": (of(config=FEATURES + "disable-imex-channel-creation = true\n"), {"create_imex": False}),
    "MPS directory": (of(config=CLI + 'environment = ["CUDA_MPS_PIPE_DIRECTORY=/run/mps", "X=1", "odd"]\n'),
                      {"mps_directory": "/run/mps"}),
    "MPS directory, relative": (of(config=CLI + 'environment = ["CUDA_MPS_PIPE_DIRECTORY=run/mps"]\n'),
                                {"mps_directory": wanted.MPS_DIRECTORY}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_request_and_its_terms(case: str) -> None:
    made, fields = CASES[case]
    assert {name: getattr(made, name) for name in fields} == fields


PARTS = {
    "": "", "utility": "utility", "compute,utility": "compute utility", "video": "compute video",
    "display": "display graphics", "graphics,ngx": "graphics ngx", "compat32": "compat32",
    "video,display": "compute display graphics video",
}  # fmt: skip


@pytest.mark.parametrize("capabilities", PARTS)
def test_capabilities_imply_others(capabilities: str) -> None:
    words = tuple(filter(None, capabilities.split(",")))
    assert sorted(Wanted(devices=(), capabilities=words).parts()) == PARTS[capabilities].split()


WRONG: list[dict[str, Any]] = [{"compat_mode": "x"}, {"driver_root": "here"}, {"cgroups": 1}, {"imex_channels": (-1,)}]


@pytest.mark.parametrize("field", WRONG, ids=lambda field: next(iter(field)))
def test_a_wrong_field_is_refused(field: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"Wanted.{next(iter(field))}"):
        Wanted(devices=(), **field)
