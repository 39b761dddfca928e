"""What a container asks for: a list of device names against the devices of a node; and a whole config.json."""

from __future__ import annotations

from typing import Any

from fuzz.registry import Target, register

from nvoci.discover.model import Driver, Found, Gpu, MigDevice
from nvoci.errors import HookError
from nvoci.jsonfile import dumps, loads
from nvoci.oci.spec import Spec
from nvoci.prestart import ask
from nvoci.prestart.config import Config
from nvoci.prestart.configfile import Place
from nvoci.prestart.devices import Selection, select
from nvoci.prestart.names import items, narrowed
from nvoci.prestart.request import Request, build

UUID = "GPU-12345678-1234-1234-1234-12345678000{}"
MIG = "MIG-12345678-1234-1234-1234-1234567800{}{}"


def _gpu(index: int, migs: int) -> Gpu:
    devices = [
        MigDevice(uuid=MIG.format(index, m), parent=UUID.format(index), parent_index=index, index=m, gpu_instance=m + 7,
                  compute_instance=0)
        for m in range(migs)
    ]  # fmt: skip
    bus = f"0000:{index + 7:02x}:00.0"
    return Gpu(
        index=index, uuid=UUID.format(index), pci_bus_id=bus, nvml_bus_id="0000" + bus.upper(), mig_devices=devices
    )


NODE = Found(driver=Driver(), gpus=[_gpu(0, 0), _gpu(1, 3), _gpu(3, 1)])
NAMES = (
    "0", "3", "1:2", "all", "none", "void", UUID.format(1), MIG.format(1, 2), f"MIG-{UUID.format(3)}/7/0",
    "0000:08:00.0", "00000000:0A:00.0", "nvidia.com/gpu=0", "+1", " 03", "2", "1:3", "GPU-", "MIG-",
)  # fmt: skip
TOKENS = (*[name.encode() for name in NAMES], b",", b":", b".", b"0", b"/", b"-", b"\0", b"\n", b"\xff", b"ALL")


def _names_seeds() -> list[bytes]:
    return [b"", *[name.encode() for name in NAMES], ",".join(NAMES[:9]).encode(), b"1:0,1,0,1:0,3", b"0,,3 , all"]


def _select(data: bytes) -> tuple[list[str], Selection]:
    names = items(data.decode("utf-8", "surrogateescape"))
    return names, select(NODE, names)


def _one_line(error: Exception) -> bool:
    """And that is short, for it may go to a log."""
    return (
        isinstance(error, HookError) and error.line().isprintable() and len(error.line()) < 4000 and bool(error.message)
    )


def _check_selection(data: bytes, case: bytes, answer: tuple[list[str], Selection]) -> None:
    """Devices of the node, each once, each asked for by its own name, with the GPU of each MIG device."""
    names, chosen = answer
    assert set(chosen.gpus) <= set(NODE.gpus)
    assert set(chosen.mig_devices) <= set(NODE.mig_devices())
    assert len(set(chosen.gpus)) == len(chosen.gpus)
    assert len(set(chosen.mig_devices)) == len(chosen.mig_devices)
    assert {mig.parent for mig in chosen.mig_devices} <= {gpu.uuid for gpu in chosen.gpus}
    assert chosen.everything == any(name.lower() == "all" for name in names)
    if chosen.everything:
        assert (len(chosen.gpus), len(chosen.mig_devices)) == (len(NODE.gpus), len(NODE.mig_devices()))
        return
    alone = [select(NODE, [name]) for name in names]
    assert dict.fromkeys(chosen.gpus) == dict.fromkeys([gpu for one in alone for gpu in one.gpus])
    assert dict.fromkeys(chosen.mig_devices) == dict.fromkeys([mig for one in alone for mig in one.mig_devices])
    by_uuid = [*[gpu.uuid for gpu in chosen.gpus], *[mig.uuid for mig in chosen.mig_devices]]
    assert set(select(NODE, by_uuid).gpus) == set(chosen.gpus)


register(
    Target(
        "devices", parse=_select, errors=(HookError,), allowed=_one_line, check=_check_selection, seeds=_names_seeds,
        tokens=TOKENS, max_size=1 << 12,
    )
)  # fmt: skip


# -- a whole container ---------------------------------------------------------------------------------------------

CONFIGS = (
    Config(),
    Config(accept_volume_mounts=True, accept_env_when_unprivileged=False, swarm_resource="DOCKER_RESOURCE_GPU"),
    Config(supported_capabilities="compute,utility", ignore_imex_channel_requests=True),
)
NOWHERE = Place("/nonexistent")
ENV_TOKENS = (
    b'"NVIDIA_VISIBLE_DEVICES=', b'"NVIDIA_DRIVER_CAPABILITIES=', b'"NVIDIA_MIG_CONFIG_DEVICES=',
    b'"NVIDIA_REQUIRE_CUDA=', b'"NVIDIA_DISABLE_REQUIRE=', b'"NVIDIA_IMEX_CHANNELS=', b'"CUDA_VERSION=',
    b'"DOCKER_RESOURCE_GPU=', b'",', b"all", b"compute", b"12.4.1", b"\\u0000", b"\\ud800", b"null", b"[]", b"{}",
    b"1", b'"bounding":["CAP_SYS_ADMIN"]', b'{"source":"/dev/null","destination":"/var/run/nvidia-container-devices/',
    b"imex/", b"cdi/", b"../", b'"}',
)  # fmt: skip


def _container(*env: str, **more: Any) -> bytes:
    process = {"env": ["PATH=/bin", *env], "capabilities": {"bounding": ["CAP_SYS_ADMIN"]}}
    return dumps({"ociVersion": "1.0.2", "process": process, "root": {"path": "r"}, **more}).encode()


def _container_seeds() -> list[bytes]:
    top = "/var/run/nvidia-container-devices/"
    mounts = [{"source": "/dev/null", "destination": top + name} for name in ("0", "imex/3", "cdi/nvidia.com/gpu/0")]
    return [
        _container(),
        _container(
            "NVIDIA_VISIBLE_DEVICES=0,1:2,all", "NVIDIA_DRIVER_CAPABILITIES=compute,video", "NVIDIA_IMEX_CHANNELS=3,5"
        ),
        _container("NVIDIA_VISIBLE_DEVICES=none", "NVIDIA_MIG_CONFIG_DEVICES=all", "NVIDIA_MIG_MONITOR_DEVICES=all"),
        _container("CUDA_VERSION=9.0.176", "NVIDIA_DISABLE_REQUIRE=true"),
        _container("CUDA_VERSION=12.4.1-rc1+b", "NVIDIA_REQUIRE_CUDA=", "NVIDIA_REQUIRE_X=arch>=8"),
        _container("DOCKER_RESOURCE_GPU=0,0", mounts=mounts),
        b'{"ociVersion": "1.0.0-rc3", "process": {"env": ["A=b"], "capabilities": ["CAP_SYS_ADMIN"]}, "root": {}}',
        b'{"ociVersion": "1.0.2", "process": {"env": ["A"]}, "root": {}}',
    ]


def _build(data: bytes) -> list[tuple[bool, Request | None]]:
    """What each configuration makes of it; and whether a quick look told as much."""
    doc = loads(data)
    if type(doc) is not dict:
        return []
    spec = Spec(doc, "/b/config.json")
    return [(ask.may_ask(spec, NOWHERE), build(spec, config)) for config in CONFIGS if not config.swarm_resource] + [
        (True, build(spec, config)) for config in CONFIGS if config.swarm_resource
    ]


def _short(error: Exception) -> bool:
    return not isinstance(error, HookError) or _one_line(error)


def _check_requests(data: bytes, case: bytes, answer: list[tuple[bool, Request | None]]) -> None:
    """A quick no is right; a request is data, its lists are narrow, and only the privileged may manage MIG devices."""
    for may, request in answer:
        assert may or request is None
        if request is None:
            continue
        assert Request.from_json(loads(dumps(request.to_json()).encode())) == request
        assert narrowed(request.devices) == request.devices or request.devices == ("all",)
        assert "void" not in request.devices
        assert sorted(set(request.capabilities)) == list(request.capabilities)
        assert request.privileged or not (request.mig_config or request.mig_monitor)
        assert all(0 <= channel < 1 << 20 for channel in request.imex_channels)
        assert all(word.isprintable() for reason in request.reasons for word in reason)


register(
    Target(
        "request", parse=_build, errors=(HookError, ValueError), allowed=_short, check=_check_requests,
        seeds=_container_seeds, tokens=ENV_TOKENS, max_size=1 << 13,
    )
)  # fmt: skip
