"""The prestart hook over everything a container may ask for, in every kind of image, on each engine and cgroup version:
rows that bring together what has little to do with each other, so that each value meets each engine."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from e2e import prestartimages
from e2e.gpunode import COMPAT_DIR, COMPAT_VERSION, Seen
from e2e.prestartnode import CAPS_MAJOR, REPORT, PrestartNode
from e2e.prestartview import (
    ALLOWED,
    COMPUTE,
    DENIED,
    FILE,
    MODESET,
    NODE,
    OTHERS,
    PROC,
    PROGRAMS,
    SOCKET,
    UTILITY,
    UVM,
    V,
    asks_nvml,
    clean,
    driver_mounts,
    gpu_mounts,
    gpu_nodes,
    mounts,
    part,
    refused,
)
from lib import session
from lib.bundle import CAPS

pytestmark = pytest.mark.e2e
FIRST = 100000
UUID = "GPU-12345678-1234-1234-1234-12345678000{}"
ALL = ("compat32", "compute", "display", "graphics", "ngx", "utility", "video")
VIDEO = ["libnvidia-encode", "libnvidia-opticalflow", "libnvcuvid"]
NGX = ["libnvidia-ngx"]
GRAPHICS = [name for name in OTHERS if name not in (*VIDEO, *NGX)]
PROFILES = "/etc/nvidia/nvidia-application-profiles-rc.d"
COMPAT32 = ["libcuda", "libnvidia-ptxjitcompiler"]  # of compute, where a node has 32-bit libraries
# Of the reference's tables: the libraries, programs and nodes of one capability alone.
LIBRARIES = {
    "utility": UTILITY, "compute": COMPUTE, "video": [*COMPUTE, *VIDEO], "graphics": GRAPHICS, "display": GRAPHICS,
    "ngx": NGX, "compat32": [],
}  # fmt: skip
PROGRAMS_OF = {"utility": PROGRAMS[:3], "compute": PROGRAMS[3:]}
NODES_OF = {"compute": UVM, "video": UVM, "display": MODESET}

CHANNELS = "/dev/nvidia-caps-imex-channels/channel{}"
IMEX_MAJOR = 234
CAPABILITIES = "/proc/driver/nvidia/capabilities"
UNHEARD = "accept-nvidia-visible-devices-envvar-when-unprivileged = false\n"
BY_MOUNT = "accept-nvidia-visible-devices-as-volume-mounts = true\n"
COMPAT = '[nvidia-container-runtime.modes.legacy]\ncuda-compat-mode = "{}"\n'


def asked_by_mount(*names: str) -> list[dict[str, Any]]:
    top = "/var/run/nvidia-container-devices"
    return [{"source": "/dev/null", "destination": f"{top}/{name}", "type": "bind", "options": ["bind"]}
            for name in names]  # fmt: skip


@dataclass(frozen=True)
class Row:
    """What the container is and asks for, then what it gets. cgroups: on runc; crun has the other. narrow: 32-bit
    libraries; migs: (GPU, GPU instance, compute instance)."""

    image: str
    cgroups: str
    devices: str | None
    capabilities: str | None
    # -- what it gets
    gpus: Sequence[int]
    parts: Sequence[str] = ()
    migs: Sequence[tuple[int, int, int]] = ()
    channels: Sequence[int] = ()
    narrow: Sequence[str] = ()
    compat: str = ""
    # -- what else it is
    node: str = "a100"
    env: Mapping[str, str] = field(default_factory=dict)
    config: str = ""
    by_mount: Sequence[str] = ()
    userns: bool = False
    readonly: bool = False
    privileged: bool = False


ROWS: dict[str, Row] = {
    "one GPU by index; compute": Row("debian", "v1", "0", "compute", [0], compat="ldconfig"),
    "two GPUs; everything; privileged": Row(
        "rhel", "v2", "0,1", "all", [0, 1], ALL, privileged=True, config=UNHEARD, compat="hook",
    ),
    "a UUID; compute; user namespace": Row(
        "distroless", "v1", UUID.format(5), "compute", [5], userns=True, compat="disabled",
    ),
    "all; video": Row("alpine", "v2", "all", "video", range(8)),
    "all of two; 32-bit libraries": Row("alpine", "v1", "all", "compat32,compute", [0, 1], node="i386",
                                        narrow=COMPAT32),
    "32-bit libraries alone": Row("debian", "v2", "1", "compat32", [1], node="i386"),
    "32-bit libraries beside 64-bit ones": Row("rhel", "v1", "1", "compute,compat32", [1], node="i386",
                                               narrow=COMPAT32, userns=True, compat="mount"),
    "a MIG device by its place; graphics; read-only": Row(
        "debian", "v1", "0:0", "graphics", [0], node="a100-mig", migs=[(0, 1, 0)], readonly=True,
    ),
    "a MIG device by UUID; display; user namespace": Row(
        "rhel", "v2", "MIG-00000004-aaaa-5bbb-8ccc-000100020001", "display", [1], node="a100-mig",
        migs=[(1, 2, 1)], userns=True,
    ),
    "a MIG device by its instances, and one in capitals; ngx": Row(
        "distroless", "v1", f"MIG-{UUID.format(4)}/8/0,mig-00000005-AAAA-5bbb-8ccc-000300070000", "ngx", [4, 3],
        node="a100-mig", migs=[(4, 8, 0), (3, 7, 0)],
    ),
    "none; the capabilities of the default": Row("alpine", "v1", "none", None, [], ("compute", "utility")),
    "a GPU in MIG mode alone; empty capabilities": Row("alpine", "v2", "1", "", [1], ("compute", "utility"),
                                                       node="a100-mig", readonly=True),
    "an old image": Row("distroless", "v2", None, None, range(8), ALL, env={"CUDA_VERSION": "12.2.0"}),
    "mounts, unprivileged; a channel": Row(
        "alpine", "v2", "7", "utility", [1, 0], node="imex", by_mount=["1", "0", "imex/2"], channels=[2],
        config=BY_MOUNT + UNHEARD, env={"NVIDIA_IMEX_CHANNELS": "1"},
    ),
    "mounts, and what mounts do not say": Row(
        "debian", "v2", "7", "ngx", [1], node="imex", by_mount=["1"], channels=[1, 2047], config=BY_MOUNT,
        env={"NVIDIA_IMEX_CHANNELS": "1,2047"}, userns=True,
    ),
    "a swarm's resource; read-only": Row(
        "rhel", "v1", "0", "compute,utility", [3, 6], readonly=True, compat="disabled",
        config='swarm-resource = "A, DOCKER_RESOURCE"\n',
        env={"DOCKER_RESOURCE": f"{UUID.format(3)},{UUID.format(6)}"},
    ),
    "all channels are none; one GPU many times": Row(
        "rhel", "v2", "1,0,1,,1", "graphics,utility", [1, 0], node="imex", env={"NVIDIA_IMEX_CHANNELS": "all"},
    ),
    "who asks NVML, and the library cache": Row(
        "debian", "v2", "0", "utility", [0], node="cache-only",
        config='[nvidia-container-cli]\nuser = "root:video"\nldcache = "/etc/../etc/ld.so.cache"\n',
    ),
}  # fmt: skip


def other(cgroups: str, runtime: str) -> str:
    return cgroups if runtime == "runc" else {"v1": "v2", "v2": "v1"}[cgroups]


def start(node: PrestartNode, runtime: str, row: Row) -> Seen:
    kind, root = prestartimages.KINDS[row.image], prestartimages.make(row.image)
    more = kind.more()
    more["mounts"] = [*more.get("mounts", ()), *asked_by_mount(*row.by_mount)]
    config = row.config + (COMPAT.format(row.compat) if row.compat else "")
    not_given = next(gpu for gpu in range(9) if gpu not in row.gpus)
    env = {**kind.env(), **row.env, "others": f"195:{not_given} 236:300 234:9"}
    asked: dict[str, Any] = {"env": env, "config": config, "cgroups": other(row.cgroups, runtime), "root": root}
    if row.readonly:  # mount points are the image's own: crun has made it read-only by now
        first = node.start(runtime, row.devices, row.capabilities, **asked, **more)
        assert first.result.rc == 0, first.result.stderr
    if row.userns:
        subprocess.run(["chown", "-hR", f"{FIRST}:{FIRST}", root], check=True)
    script = REPORT + f'say musl "$(tr "\\n" : 2>/dev/null </{prestartimages.MUSL})"\n'
    script += f'say libs32 "$(ls -d {kind.libs32} 2>/dev/null)"\n'
    return node.start(
        runtime, row.devices, row.capabilities, **asked, **more, script=script, readonly=row.readonly,
        userns=(FIRST, 65536) if row.userns else None, caps=[*CAPS, "CAP_SYS_ADMIN"] if row.privileged else CAPS,
    )  # fmt: skip


@pytest.mark.parametrize("name", ROWS)
@asks_nvml
def test_row(hook: Path, runtime: str, name: str) -> None:
    row = ROWS[name]
    node = PrestartNode(hook, row.node)
    seen = start(node, runtime, row)
    assert seen.result.rc == 0, seen.result.stderr
    nodes = wanted_nodes(row, node)
    assert mounts(seen) == {**wanted_mounts(row), **dict.fromkeys(nodes, NODE)}
    assert part(seen, "node") == {path: f"{number} {ALLOWED}" for path, number in nodes.items()}
    assert set(part(seen, "other").values()) == (set() if row.userns or row.readonly else {DENIED})
    assert (seen.said["params"], seen.said["write"]) == ("0", "Read-only file system")
    assert seen.said["uid"] == str(FIRST if row.userns else 0)
    check_profile(row, seen)
    check_loader(row, seen)
    clean(seen)


def parts_of(row: Row) -> tuple[str, ...]:
    return tuple(row.parts) or tuple((row.capabilities or "").split(","))


def wanted_mounts(row: Row) -> dict[str, str]:
    kind, parts = prestartimages.KINDS[row.image], parts_of(row)
    libraries = list(dict.fromkeys(name for each in parts for name in LIBRARIES[each]))
    programs = [name for each in parts for name in PROGRAMS_OF.get(each, ())]
    found = driver_mounts(libraries, programs, libs=kind.libs, sockets="utility" in parts, merged=kind.merged)
    if row.compat == "mount" and {"compute", "video"} & set(parts):
        found[f"{kind.libs}/libcuda.so.{COMPAT_VERSION}"] = FILE
    found.update({f"{kind.libs32}/{name}.so.{V}": FILE for name in row.narrow})
    if {"graphics", "display"} & set(parts):
        found[PROFILES] = SOCKET
    access = [f"{CAPABILITIES}/gpu{gpu}/mig/gi{gi}{end}/access" for gpu, gi, ci in row.migs for end in ("", f"/ci{ci}")]
    return {**found, **gpu_mounts(*row.gpus), **dict.fromkeys(access, PROC)}


def wanted_nodes(row: Row, node: PrestartNode) -> dict[str, str]:
    """The capabilities' numbers are those of the driver's own table."""
    found = gpu_nodes(*row.gpus)
    for each in parts_of(row):
        found.update(NODES_OF.get(each, {}))
    for gpu, gi, ci in row.migs:
        found.update(node.capability_nodes(f"gpu{gpu}/gi{gi}", f"gpu{gpu}/gi{gi}/ci{ci}"))
    found.update({CHANNELS.format(number): f"{IMEX_MAJOR}:{number}" for number in row.channels})
    return found


def check_profile(row: Row, seen: Seen) -> None:
    graphics = {"graphics", "display"} & set(parts_of(row))
    mask = f"{sum(1 << gpu for gpu in row.gpus):#x}"
    assert (f'"EGLVisibleDGPUDevices", {mask}]' in seen.said["profile"]) is bool(graphics)


def check_loader(row: Row, seen: Seen) -> None:
    """A program that needs libcuda starts where the container has one, whatever else is in the image."""
    kind, parts = prestartimages.KINDS[row.image], parts_of(row)
    has_cuda = "libcuda" in [name for each in parts for name in LIBRARIES[each]]
    if row.image == "alpine":
        assert kind.libs in seen.said["musl"].split(":")
    if has_cuda and kind.dynamic:
        assert seen.said["loads"] == "0"
    if "compat32" in parts:
        assert seen.said["libs32"] == kind.libs32
    if has_cuda and row.compat and row.image in ("debian", "rhel"):
        by_conf, link = f"{COMPAT_DIR}/libcuda.so.1", part(seen, "link")[f"{kind.libs}/libcuda.so.1"]
        assert (part(seen, "library")["libcuda.so.1"] == by_conf) is (row.compat == "ldconfig")
        assert link == f"libcuda.so.{COMPAT_VERSION if row.compat == 'mount' else V}"


@asks_nvml
def test_an_inventory_of_a_library_cache_of_ones_own_is_kept(hook: Path) -> None:
    """Until another is named: two starts with it, then one without."""
    node, config = PrestartNode(hook, "cache-only"), session.new_dir("etc") / "config.toml"
    config.write_text('[nvidia-container-cli]\nldcache = "/etc/../etc/ld.so.cache"\n')
    logs = [session.new_dir("out") / "log" for _ in range(3)]
    named = [["-config", str(config)]] * 2 + [[]]
    entries = [node.entry(*words, "-debug", "prestart", script=f'exec "$@" 2>{log}')
               for words, log in zip(named, logs)]  # fmt: skip
    seen = node.start("runc", "0", entries=entries)
    assert seen.result.rc == 0, [log.read_text() for log in logs]
    assert ["NVML asked" in log.read_text() for log in logs] == [True, False, True]


# --- MIG management, by whom it may be --------------------------------------------------------------------------------


@pytest.mark.parametrize(("what", "minor", "cgroups"), [("CONFIG", 1, "v1"), ("MONITOR", 2, "v2")])
@asks_nvml
def test_mig_management_in_a_privileged_container(
    hook: Path, runtime: str, what: str, minor: int, cgroups: str
) -> None:
    """Its variables are heard though those of others are not."""
    node = PrestartNode(hook, "a100-mig")
    others = {ALLOWED: [str(minor), node.minors["gpu1/gi9"]], DENIED: [str(3 - minor), node.minors["gpu2/gi1"]]}
    numbers = [f"{CAPS_MAJOR}:{number}" for each in others.values() for number in each]
    env = {f"NVIDIA_MIG_{what}_DEVICES": "all", "others": " ".join(numbers)}
    seen = node.start(runtime, "0,1", "utility", env=env, config=UNHEARD, cgroups=other(cgroups, runtime),
                      caps=[*CAPS, "CAP_SYS_ADMIN"])  # fmt: skip
    assert seen.result.rc == 0, seen.result.stderr
    assert (mounts(seen)[CAPABILITIES], mounts(seen)["/dev/nvidia-caps"]) == (PROC, "rw,nosuid,noexec")
    assert part(seen, "other") == {f"236:{number}": told for told, each in others.items() for number in each}
    clean(seen)


# --- nothing, and refusals --------------------------------------------------------------------------------------------

# So many of the following meet both engines. The others are decided before an engine matters: each meets one.
BOTH = 3


def share(table: Mapping[str, Any], runtime: str) -> list[str]:
    names = list(table)
    return [*names[:BOTH], *names[BOTH + (runtime == "crun") :: 2]]


NOTHING: dict[str, dict[str, Any]] = {
    "void": {"devices": "void"},
    "empty": {"devices": ""},
    "unprivileged and unheard": {"devices": "0", "config": UNHEARD},
    "void, and more": {"devices": "0,void"},
    "commas and blanks": {"devices": " , ,"},
    "an old image, unprivileged and unheard": {"devices": None, "env": {"CUDA_VERSION": "12.2"}, "config": UNHEARD},
    "an old image that says none": {"devices": "void", "env": {"CUDA_VERSION": "12.2"}},
    "a swarm's resource that is void": {"devices": "0", "env": {"R": "void"}, "config": 'swarm-resource = "R"\n'},
    "a newer image that says nothing": {"devices": None, "env": {"CUDA_VERSION": "12.2", "NVIDIA_REQUIRE_CUDA": "x"}},
}  # fmt: skip


def test_a_container_that_gets_nothing(hook: Path, runtime: str) -> None:
    """Nothing is mounted, and there is no node."""
    node = PrestartNode(hook)
    for name in share(NOTHING, runtime):
        seen = node.start(runtime, capabilities="all", **NOTHING[name])
        assert (seen.result.rc, mounts(seen), part(seen, "node")) == (0, {}, {}), (name, seen.result.stderr)


REFUSED: dict[str, tuple[dict[str, Any], list[str]]] = {
    "MIG management, unprivileged": (
        {"devices": "0", "env": {"NVIDIA_MIG_MONITOR_DEVICES": "all"}},
        ["cannot set MIG_MONITOR_DEVICES in non privileged container"],
    ),
    "MIG management of some": (
        {"devices": "0", "env": {"NVIDIA_MIG_CONFIG_DEVICES": "0"}, "caps": [*CAPS, "CAP_SYS_ADMIN"]},
        ["mig-config error: 0: only 'all' devices are currently supported"],
    ),
    "an image of a newer CUDA": (
        {"devices": None, "env": {"CUDA_VERSION": "99.1"}},
        ["requirement error: unsatisfied condition: cuda>=99.1, please update your driver"],
    ),
    "a capability that is not supported": (
        {"devices": "0", "capabilities": "utility,graphics", "config": 'supported-driver-capabilities = "utility"\n'},
        ["unsupported capabilities found in 'utility,graphics' (allowed 'utility')"],
    ),
    "a CDI device by a mount": (
        {"devices": "0", "config": BY_MOUNT, "mounts": asked_by_mount("cdi/nvidia.com/gpu/0")}, ["mode cdi: "],
    ),
    "a channel that is none": ({"devices": "0", "env": {"NVIDIA_IMEX_CHANNELS": "x"}}, ["error parsing IMEX info"]),
    "half a UUID": ({"devices": "GPU-12345678"}, ["device error: GPU-12345678: unknown device"]),
    "who asks NVML": (
        {"devices": "0", "config": '[nvidia-container-cli]\nuser = "nobody-here"\n'}, ["parse user/group failed"],
    ),
    "a library cache that is not there": (
        {"devices": "0", "config": '[nvidia-container-cli]\nldcache = "/nowhere"\n'}, ["open failed: /nowhere"],
    ),
}  # fmt: skip


def test_refused(hook: Path, runtime: str) -> None:
    """With one line, which crun drops."""
    node, log = PrestartNode(hook), session.new_dir("out") / "log"
    entry = node.entry(script=f'exec "$@" 2>{log}')
    for name in share(REFUSED, runtime):
        options, words = REFUSED[name]
        refused(node.start(runtime, entries=[entry], **options))
        said = [line for line in log.read_text().splitlines() if "level=error" in line]
        assert (len(said), [word for word in words if word not in said[0]]) == (1, []), (name, said)


def test_each_value_meets_each_engine_and_each_cgroup_version_each_engine() -> None:
    """Rows run on every engine; this is what they cover."""
    assert {row.image for row in ROWS.values()} == set(prestartimages.KINDS)
    assert {row.compat for row in ROWS.values()} - {""} == {"mount", "ldconfig", "hook", "disabled"}
    assert {*ALL, "all", "", None} <= {row.capabilities for row in ROWS.values()}
    flags = ("userns", "readonly", "privileged", "by_mount", "migs", "channels", "narrow")
    assert [name for name in flags if not any(getattr(row, name) for row in ROWS.values())] == []
    for image in prestartimages.KINDS:
        assert {row.cgroups for row in ROWS.values() if row.image == image} == {"v1", "v2"}
