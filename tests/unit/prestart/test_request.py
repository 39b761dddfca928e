"""What a container asks for, as the reference's hook reads it; hostile values are one line."""

from __future__ import annotations

import time
from typing import Any

import pytest
from unit.prestart.prestarttools import asked, container, error, settings

from nvoci import log
from nvoci.oci.spec import Spec
from nvoci.prestart.request import Request, build, major_minor

ALL_CAPABILITIES = ("compat32", "compute", "display", "graphics", "ngx", "utility", "video")
DEFAULT = ("compute", "utility")
NO_ENV = "accept-nvidia-visible-devices-envvar-when-unprivileged = false\n"
MOUNTS = "accept-nvidia-visible-devices-as-volume-mounts = true\n"
SWARM = 'swarm-resource = "DOCKER_RESOURCE_GPU, OTHER"\n'
ALL = "NVIDIA_VISIBLE_DEVICES=all"
USERNS = {"namespaces": [{"type": "mount"}, {"type": "user"}]}


def made(spec: Spec, text: str = "") -> Request:
    """The request of a container that makes one."""
    found = build(spec, settings(text))
    assert found is not None
    return found


def swarm(*env: str) -> Spec:
    return container("NVIDIA_VISIBLE_DEVICES=9", *env)


# container, configuration -> devices; None: no container with a GPU
DEVICES: dict[str, tuple[Spec, str, tuple[str, ...] | None]] = {
    "nothing": (container(), "", None),
    "one": (container("NVIDIA_VISIBLE_DEVICES=0"), "", ("0",)),
    "several": (container("NVIDIA_VISIBLE_DEVICES=1, 0,GPU-x,,0:1"), "", ("1", "0", "GPU-x", "0:1")),
    "each once": (container("NVIDIA_VISIBLE_DEVICES=1,0,1,2"), "", ("1", "0", "2")),
    "all": (container(ALL), "", ("all",)),
    "all, then none": (container("NVIDIA_VISIBLE_DEVICES=all,none"), "", ("all",)),
    "none, then all": (container("NVIDIA_VISIBLE_DEVICES=none,all"), "", ()),
    "one, then all": (container("NVIDIA_VISIBLE_DEVICES=0,all"), "", ("all",)),
    "none": (container("NVIDIA_VISIBLE_DEVICES=none"), "", ()),
    "void": (container("NVIDIA_VISIBLE_DEVICES=void"), "", None),
    "void among others": (container("NVIDIA_VISIBLE_DEVICES=0,void"), "", None),
    "void and all": (container("NVIDIA_VISIBLE_DEVICES=all,void"), "", None),
    "empty": (container("NVIDIA_VISIBLE_DEVICES="), "", None),
    "capitals are a name": (container("NVIDIA_VISIBLE_DEVICES=VOID,None"), "", ("VOID", "None")),
    "old image": (container("CUDA_VERSION=9.0.176"), "", ("all",)),
    "old image, one": (container("CUDA_VERSION=9.0.176", "NVIDIA_VISIBLE_DEVICES=1"), "", ("1",)),
    "old image, empty": (container("CUDA_VERSION=9.0.176", "NVIDIA_VISIBLE_DEVICES="), "", None),
    "image with requirements": (container("CUDA_VERSION=12.4.1", "NVIDIA_REQUIRE_CUDA=cuda>=12.4"), "", None),
    "environment not accepted": (container(ALL), NO_ENV, None),
    "environment not accepted, privileged": (container(ALL, privileged=True), NO_ENV, ("all",)),
    "environment not accepted, root of a user namespace": (container(ALL, privileged=True, linux=USERNS), NO_ENV, None),
    "old image not accepted": (container("CUDA_VERSION=9.0"), NO_ENV, None),
    "mounts not accepted": (container(mounts=asked("0")), "", None),
    "mounts": (container(mounts=asked("1", "0")), MOUNTS, ("1", "0")),
    "mounts before variables": (container("NVIDIA_VISIBLE_DEVICES=0", mounts=asked("1")), MOUNTS, ("1",)),
    "mounts, variables not accepted": (container(ALL, mounts=asked("1")), MOUNTS + NO_ENV, ("1",)),
    "no mounts, variables": (container(ALL), MOUNTS, ("all",)),
    "no mounts, variables not accepted": (container(ALL), MOUNTS + NO_ENV, None),
    "mount of all": (container(mounts=asked("0", "all")), MOUNTS, ("all",)),
    "mount of none": (container(mounts=asked("none")), MOUNTS, ()),
    "mount of void": (container(ALL, mounts=asked("0", "void")), MOUNTS, None),
    "mount of a CDI device": (container(mounts=asked("cdi/nvidia.com/gpu/0")), MOUNTS, ("nvidia.com/gpu=0",)),
    "mount of an IMEX channel alone": (container(mounts=asked("imex/0")), MOUNTS, None),
    "swarm": (swarm("DOCKER_RESOURCE_GPU=1,2"), SWARM, ("1", "2")),
    "swarm, both": (swarm("OTHER=3,1", "DOCKER_RESOURCE_GPU=1,2"), SWARM, ("1", "2", "3")),
    "swarm, not set": (swarm(), SWARM, ("9",)),
    "swarm, set and empty": (swarm("OTHER="), SWARM, None),
    "swarm, not configured": (swarm("DOCKER_RESOURCE_GPU=1"), "", ("9",)),
    "swarm, old image": (container("CUDA_VERSION=9.0", "OTHER=1"), SWARM, ("1",)),
    "swarm, not accepted": (swarm("OTHER=1"), SWARM + NO_ENV, None),
}


@pytest.mark.parametrize(("spec", "text", "devices"), DEVICES.values(), ids=DEVICES)
def test_devices(spec: Spec, text: str, devices: tuple[str, ...] | None) -> None:
    found = build(spec, settings(text))
    assert (None if found is None else found.devices) == devices


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is logged, warnings and above."""
    seen: list[str] = []
    monkeypatch.setattr(log, "_sinks", [(log.WARNING, seen.append)])
    return seen


IGNORED: dict[str, tuple[Spec, str]] = {
    "devices": (container("NVIDIA_VISIBLE_DEVICES=0,1"), "container: [0 1]"),
    "an old image": (container("CUDA_VERSION=9.0"), "container: [all]"),
    "hostile": (container("NVIDIA_VISIBLE_DEVICES=a\nb"), r"container: [a\\nb]"),
    "many": (container("NVIDIA_VISIBLE_DEVICES=" + "x" * 60_000), "container: [xxx"),
}


@pytest.mark.parametrize(("spec", "told"), IGNORED.values(), ids=IGNORED)
def test_variables_that_are_not_heard_are_told(spec: Spec, told: str, lines: list[str]) -> None:
    assert build(spec, settings(NO_ENV)) is None
    (line,) = lines
    assert "Ignoring devices requested by environment variable(s) in unprivileged container" in line
    assert told in line
    assert len(line) < 600


def test_a_container_that_does_not_ask_is_not_warned_about(lines: list[str]) -> None:
    build(container(), settings(NO_ENV))
    assert lines == []


CAPABILITIES: dict[str, tuple[tuple[str, ...], str, tuple[str, ...]]] = {
    "not set": ((ALL,), "", DEFAULT),
    "empty": ((ALL, "NVIDIA_DRIVER_CAPABILITIES="), "", DEFAULT),
    "all": ((ALL, "NVIDIA_DRIVER_CAPABILITIES=all"), "", ALL_CAPABILITIES),
    "some": ((ALL, "NVIDIA_DRIVER_CAPABILITIES=video, utility"), "", ("utility", "video")),
    "old image": (("CUDA_VERSION=9.0",), "", ALL_CAPABILITIES),
    "old image, set": (("CUDA_VERSION=9.0", "NVIDIA_DRIVER_CAPABILITIES=ngx"), "", ("ngx",)),
    "all, some supported": (
        (ALL, "NVIDIA_DRIVER_CAPABILITIES=all"), 'supported-driver-capabilities = "video,ngx"', ("ngx", "video")
    ),
    "not set, one supported": ((ALL,), 'supported-driver-capabilities = "utility"', ("utility",)),
    "supported: all": ((ALL, "NVIDIA_DRIVER_CAPABILITIES=ngx"), 'supported-driver-capabilities = "all"', ("ngx",)),
}  # fmt: skip


@pytest.mark.parametrize(("env", "text", "found"), CAPABILITIES.values(), ids=CAPABILITIES)
def test_capabilities(env: tuple[str, ...], text: str, found: tuple[str, ...]) -> None:
    assert made(container(*env), text).capabilities == found


def test_mig_management_of_a_privileged_container() -> None:
    env = (ALL, "NVIDIA_MIG_CONFIG_DEVICES=all", "NVIDIA_MIG_MONITOR_DEVICES=all, all,0")
    found = made(container(*env, privileged=True))
    assert (found.mig_config, found.mig_monitor, found.privileged) == (("all",), ("all", "0"), True)


def test_mig_management_that_is_set_and_empty_is_none() -> None:
    found = made(container(ALL, "NVIDIA_MIG_CONFIG_DEVICES=", "NVIDIA_MIG_MONITOR_DEVICES="))
    assert (found.mig_config, found.mig_monitor, found.privileged) == ((), (), False)


CHANNELS: dict[str, tuple[Spec, str, tuple[int, ...]]] = {
    "none": (container(ALL), "", ()),
    "two": (container(ALL, "NVIDIA_IMEX_CHANNELS=5, 0,,5"), "", (5, 0)),
    "all": (container(ALL, "NVIDIA_IMEX_CHANNELS=all"), "", ()),
    "none by name": (container(ALL, "NVIDIA_IMEX_CHANNELS=none"), "", ()),
    "void": (container(ALL, "NVIDIA_IMEX_CHANNELS=0,void"), "", ()),
    "empty": (container(ALL, "NVIDIA_IMEX_CHANNELS="), "", ()),
    "ignored": (container(ALL, "NVIDIA_IMEX_CHANNELS=x"), "[features]\nignore-imex-channel-requests = true", ()),
    "mounts": (container("NVIDIA_IMEX_CHANNELS=7", mounts=asked("0", "imex/3", "imex/1")), MOUNTS, (3, 1)),
    "mounts not accepted": (container(ALL, "NVIDIA_IMEX_CHANNELS=7", mounts=asked("imex/3")), "", (7,)),
    "mount of all": (container(ALL, mounts=asked("0", "imex/all")), MOUNTS, ()),
    "variable, unprivileged": (container("NVIDIA_IMEX_CHANNELS=7", mounts=asked("0")), MOUNTS + NO_ENV, ()),
    "variable, privileged": (container(ALL, "NVIDIA_IMEX_CHANNELS=7", privileged=True), NO_ENV, (7,)),
    "the largest": (container(ALL, "NVIDIA_IMEX_CHANNELS=1048575"), "", (1048575,)),
}


@pytest.mark.parametrize(("spec", "text", "found"), CHANNELS.values(), ids=CHANNELS)
def test_imex_channels(spec: Spec, text: str, found: tuple[int, ...]) -> None:
    assert made(spec, text).imex_channels == found


REQUIREMENTS: dict[str, tuple[tuple[str, ...], str, tuple[tuple[str, str], ...]]] = {
    "none": ((), "", ()),
    "one": (("NVIDIA_REQUIRE_CUDA=cuda>=12.4",), "", (("NVIDIA_REQUIRE_CUDA", "cuda>=12.4"),)),
    "any name": (
        ("NVIDIA_REQUIRE_X=a", "NVIDIA_REQUIRE_=b"), "", (("NVIDIA_REQUIRE_X", "a"), ("NVIDIA_REQUIRE_", "b"))
    ),
    "JetPack is for the runtime": (("NVIDIA_REQUIRE_JETPACK=csv-mounts=all", "NVIDIA_REQUIRE_JETPACK_X=y"), "", ()),
    "an empty one": (("NVIDIA_REQUIRE_X=",), "", (("NVIDIA_REQUIRE_X", ""),)),
    "old image": (("CUDA_VERSION=9.0.176",), "", (("CUDA_VERSION", "cuda>=9.0"),)),
    "old image with others": (
        ("CUDA_VERSION=v11", "NVIDIA_REQUIRE_CUDA=", "NVIDIA_REQUIRE_ARCH=arch>=7"), "",
        (("NVIDIA_REQUIRE_CUDA", ""), ("NVIDIA_REQUIRE_ARCH", "arch>=7"), ("CUDA_VERSION", "cuda>=11.0")),
    ),
    "new image": (
        ("CUDA_VERSION=12.4.1", "NVIDIA_REQUIRE_CUDA=cuda>=12.4"), "", (("NVIDIA_REQUIRE_CUDA", "cuda>=12.4"),)
    ),
    "disabled by the configuration": (("NVIDIA_REQUIRE_X=a",), "disable-require = true", ()),
    "disabled, old image of no version": (("CUDA_VERSION=x", "NVIDIA_DISABLE_REQUIRE=1"), "", ()),
    "not disabled by the container": (
        ("NVIDIA_REQUIRE_X=a", "NVIDIA_DISABLE_REQUIRE=0"), "disable-require = true", ()
    ),
    **{
        f"NVIDIA_DISABLE_REQUIRE={value}": (("NVIDIA_REQUIRE_X=a", f"NVIDIA_DISABLE_REQUIRE={value}"), "", ())
        for value in ("1", "t", "T", "TRUE", "true", "True")
    },
    **{
        f"NVIDIA_DISABLE_REQUIRE={value!r}": (
            ("NVIDIA_REQUIRE_X=a", f"NVIDIA_DISABLE_REQUIRE={value}"), "", (("NVIDIA_REQUIRE_X", "a"),)
        )
        for value in ("0", "f", "false", "", "yes", "tRUE", " true")
    },
}  # fmt: skip


@pytest.mark.parametrize(("env", "text", "found"), REQUIREMENTS.values(), ids=REQUIREMENTS)
def test_requirements(env: tuple[str, ...], text: str, found: tuple[tuple[str, str], ...]) -> None:
    assert made(container(ALL, *env), text).requirements == found


VERSIONS: dict[str, str] = {
    "12.4": "12.4", "12.4.1": "12.4", "12": "12.0", "v12.4": "12.4", "v9": "9.0", "0.0.0": "0.0", "9.0.176": "9.0",
    "12.4.1-rc1": "12.4", "12.4.1-rc.1-x": "12.4", "12.4.1+build.7": "12.4", "12.4.1-0+01": "12.4",
    "4294967295.1": "4294967295.1",
}  # fmt: skip


@pytest.mark.parametrize(("version", "found"), VERSIONS.items(), ids=VERSIONS)
def test_cuda_version(version: str, found: str) -> None:
    assert major_minor(version) == found


BAD_VERSIONS = ["", "v", "x", "vv12", "12.", ".4", "12..4", "12.4.1.2", "12.04", "012.4", "12.4-rc1", "12+x", "12.4 ",
                " 12.4", "12,4", "-1", "12.4.1-", "12.4.1-01", "12.4.1+", "12.4.1-a..b", "4294967296.1", "12.٤",
                "12.4.1-ä", "12.4\n", "1" * 60_000, "1." * 30_000]  # fmt: skip


@pytest.mark.parametrize("version", BAD_VERSIONS, ids=lambda v: ascii(v[:12]))
def test_what_is_no_version_is_refused(version: str) -> None:
    caught = error(lambda: major_minor(version))
    assert caught.message.startswith("invalid CUDA version: CUDA_VERSION=")
    assert len(caught.line()) < 600


MIB = "0," * (1 << 19)
REFUSED: dict[str, tuple[Spec, str, str]] = {
    "MIG configuration": (
        container(ALL, "NVIDIA_MIG_CONFIG_DEVICES=all"), "", "cannot set MIG_CONFIG_DEVICES in non privileged container"
    ),
    "MIG monitor": (
        container(ALL, "NVIDIA_MIG_MONITOR_DEVICES=,"), "", "cannot set MIG_MONITOR_DEVICES in non privileged container"
    ),
    "MIG configuration by root of a user namespace": (
        container(ALL, "NVIDIA_MIG_CONFIG_DEVICES=all", privileged=True, linux=USERNS), "",
        "cannot set MIG_CONFIG_DEVICES in non privileged container",
    ),
    "channels without end": (
        container(ALL, "NVIDIA_IMEX_CHANNELS=" + ",".join([str(number) for number in range(100000, 109362)])), "",
        "error parsing IMEX info: too many IMEX channels",
    ),
    "channels of mounts without end": (
        container(mounts=asked("0", *[f"imex/{number}" for number in range(2049)])), MOUNTS, "too many IMEX channels"
    ),
    "capability": (container(ALL, "NVIDIA_DRIVER_CAPABILITIES=x"), "", "unsupported capabilities found in 'x'"),
    "old image of no version": (container("CUDA_VERSION=x"), "", "invalid CUDA version: CUDA_VERSION=x"),
    "channel": (
        container(ALL, "NVIDIA_IMEX_CHANNELS=x"), "", "error parsing IMEX info: unsupported IMEX channel value: x"
    ),
    "channel too large": (container(ALL, "NVIDIA_IMEX_CHANNELS=0,1048576"), "", "IMEX channel value: 1048576"),
    "channel, negative": (container(ALL, "NVIDIA_IMEX_CHANNELS=-1"), "", "IMEX channel value: -1"),
    "channel, sign": (container(ALL, "NVIDIA_IMEX_CHANNELS=+1"), "", "IMEX channel value: +1"),
    "channel, hexadecimal": (container(ALL, "NVIDIA_IMEX_CHANNELS=0x1"), "", "IMEX channel value: 0x1"),
    "channel, other digits": (container(ALL, "NVIDIA_IMEX_CHANNELS=\u0661"), "", "IMEX channel value: \u0661"),
    "channel, hostile": (container(ALL, "NVIDIA_IMEX_CHANNELS=../\x00"), "", r"IMEX channel value: ../\x00"),
    "channel of a mount": (container(mounts=asked("0", "imex/../0", "imex/x")), MOUNTS, "IMEX channel value: x"),
    "capabilities of another shape": (
        Spec({"ociVersion": "1.0.2", "process": {"env": [ALL], "capabilities": [3]}, "root": {}}, "/b/config.json"), "",
        "read config /b/config.json: `process.capabilities` is not an object",
    ),
    **{
        f"1 MiB of {name}": (
            container(*([ALL] if name != "NVIDIA_VISIBLE_DEVICES" else []), f"{name}={MIB}", privileged=True), "",
            f"read environment: {name}: longer than 65536 characters",
        )
        for name in ("NVIDIA_VISIBLE_DEVICES", "NVIDIA_DRIVER_CAPABILITIES", "NVIDIA_MIG_CONFIG_DEVICES",
                     "NVIDIA_MIG_MONITOR_DEVICES", "NVIDIA_IMEX_CHANNELS", "NVIDIA_REQUIRE_CUDA", "NVIDIA_REQUIRE_X",
                     "CUDA_VERSION")
    },
    "1 MiB of a swarm resource": (swarm("OTHER=" + MIB), SWARM, "read environment: OTHER: longer than"),
}  # fmt: skip


@pytest.mark.parametrize(("spec", "text", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused(spec: Spec, text: str, message: str) -> None:
    config = settings(text)
    start = time.monotonic()
    caught = error(lambda: build(spec, config))
    assert time.monotonic() - start < 1
    assert message in caught.message
    assert len(caught.line()) < 1500


HOSTILE: dict[str, str] = {
    "NUL": "0\0", "path": "../../dev/sda", "newline": "0\n1", "escape": "\x1b[2J", "surrogate": "\ud800", "quote": '"',
    "shell": "$(id)", "option": "--help", "64 KiB of one": "x" * 65_536,
    "64 KiB of many": ",".join(map(str, range(11_000))),
}  # fmt: skip


@pytest.mark.parametrize("value", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_name_is_a_name_and_its_reason_one_line(value: str) -> None:
    found = made(container(f"NVIDIA_VISIBLE_DEVICES={value}"))
    assert found.devices == tuple(dict.fromkeys(value.split(",")))
    assert all(word.isprintable() for reason in found.reasons for word in reason)


def test_reasons_tell_what_was_decided_and_why() -> None:
    spec = container("NVIDIA_VISIBLE_DEVICES=1,0,1", "NVIDIA_DRIVER_CAPABILITIES=video", "NVIDIA_IMEX_CHANNELS=3",
                     "NVIDIA_MIG_CONFIG_DEVICES=all", "NVIDIA_REQUIRE_X=cuda>=1", privileged=True)  # fmt: skip
    assert made(spec).reasons == (
        ("devices: 1,0", "NVIDIA_VISIBLE_DEVICES"),
        ("capabilities: video", "NVIDIA_DRIVER_CAPABILITIES"),
        ("MIG config: all", "NVIDIA_MIG_CONFIG_DEVICES"),
        ("IMEX channels: 3", "NVIDIA_IMEX_CHANNELS"),
        ("requirement: cuda>=1", "NVIDIA_REQUIRE_X"),
    )
    assert made(container("CUDA_VERSION=9.0"), "disable-require = true").reasons == (
        ("devices: all", "CUDA_VERSION without NVIDIA_REQUIRE_CUDA: an old image"),
        ("capabilities: " + ",".join(ALL_CAPABILITIES), "CUDA_VERSION without NVIDIA_REQUIRE_CUDA: an old image"),
        ("requirements: not checked", "disable-require in config.toml"),
    )
    assert made(container(mounts=asked("none")), MOUNTS).reasons == (
        ("devices: none", "mounts below /var/run/nvidia-container-devices"),
        ("capabilities: compute,utility", "the default"),
    )


def test_a_request_is_data() -> None:
    found = made(container(ALL, "NVIDIA_IMEX_CHANNELS=3", "NVIDIA_REQUIRE_X=a"))
    doc: Any = found.to_json()
    assert Request.from_json(doc) == found
    assert set(Request.SCHEMA) == set(Request.__annotations__) - {"SCHEMA"}
