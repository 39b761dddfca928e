"""Specifications for tests: a small one to change, and hypothesis strategies for right ones of every kind."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import strategies as st

from nvoci.cdi.model import ContainerEdits, Device, DeviceNode, Hook, IntelRdt, Mount, NetDevice, Spec
from nvoci.cdi.version import NEWEST, VERSIONS
from nvoci.oci.hooksd import STAGES

ENV = ContainerEdits(env=("A=1",))
WRITABLE = VERSIONS[2:]  # from 0.3.0


def one(edits: ContainerEdits = ENV, **changes: Any) -> Spec:
    """A specification of NEWEST with the device `gpu0`, which makes `edits`."""
    return replace(Spec(NEWEST, "nvidia.com/gpu", (Device("gpu0", edits),)), **changes)


def at(spec: Spec, place: str, edits: ContainerEdits) -> Spec:
    """With `edits` at `place`: `containerEdits` (of all) or `devices[0].containerEdits`."""
    if place == "containerEdits":
        return replace(spec, container_edits=edits)
    return replace(spec, devices=(replace(spec.devices[0], container_edits=edits), *spec.devices[1:]))


PLACES = ("containerEdits", "devices[0].containerEdits")

LETTER = st.sampled_from("abzABZ")
END = st.sampled_from("abzABZ059")
PATH = st.sampled_from(["/", "/dev/nvidia0", "/dev/nvidia1", "relative", "/ü", "/a b"])
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)
UINT32 = st.integers(0, (1 << 32) - 1)
INT63 = st.integers(0, (1 << 63) - 1)


def _name(first: st.SearchStrategy[str], others: str) -> st.SearchStrategy[str]:
    middle = st.text(st.sampled_from(f"abzAZ09{others}"), max_size=6)
    return first | st.builds(lambda a, b, c: a + b + c, first, middle, END)


VENDOR = _name(LETTER, "_-.")
KIND = st.builds(lambda vendor, class_: f"{vendor}/{class_}", VENDOR, VENDOR)
DEVICE_NAME = _name(END, "_-.:")
VARIABLE = st.builds(lambda name, text: f"{name}={text}", st.text("AZaz_09 ", min_size=1, max_size=4), TEXT)


def some(of: st.SearchStrategy[Any], most: int = 2) -> st.SearchStrategy[tuple[Any, ...]]:
    """A tuple of few, or none."""
    return st.lists(of, max_size=most).map(tuple)


NODE = st.builds(
    DeviceNode,
    path=PATH,
    host_path=st.just("") | PATH,
    type=st.sampled_from(["", "b", "c", "u", "p"]),
    major=INT63,
    minor=INT63,
    file_mode=st.none() | UINT32,
    permissions=st.sampled_from(["", "r", "rw", "rwm", "mwr", "rr", "none"]),
    uid=st.none() | UINT32,
    gid=st.none() | UINT32,
)
HOOK = st.builds(
    Hook,
    hook_name=st.sampled_from(STAGES),
    path=PATH,
    args=some(TEXT),
    env=some(VARIABLE),
    timeout=st.none() | UINT32,
)
MOUNT = st.builds(
    Mount,
    host_path=PATH,
    container_path=PATH,
    options=some(st.sampled_from(["ro", "bind", "rbind", "nosuid"])),
    type=st.sampled_from(["", "bind", "tmpfs", "none"]),
)
RDT = st.builds(
    IntelRdt,
    clos_id=st.sampled_from(["", "/", "guaranteed"]),
    l3_cache_schema=TEXT,
    mem_bw_schema=TEXT,
    schemata=st.none() | some(TEXT),
    enable_monitoring=st.booleans(),
)
NET_DEVICES = st.lists(
    st.builds(NetDevice, st.sampled_from(["eth0", "eth1", "ib0"]), st.sampled_from(["a", "b", "c"])),
    max_size=2,
    unique_by=(lambda device: device.host_interface_name, lambda device: device.name),
).map(tuple)
EDITS = st.builds(
    ContainerEdits,
    env=some(VARIABLE),
    device_nodes=some(NODE),
    net_devices=st.just(()) | NET_DEVICES,
    hooks=some(HOOK, 1),
    mounts=some(MOUNT),
    intel_rdt=st.none() | RDT,
    additional_gids=some(UINT32),
)
ANNOTATIONS = st.dictionaries(st.sampled_from(["a", "example.com/a.b", "A-Z/x_y"]), TEXT, max_size=2)
DEVICE = st.builds(Device, name=DEVICE_NAME, container_edits=EDITS.filter(bool), annotations=st.just({}) | ANNOTATIONS)
SPEC = st.builds(
    Spec,
    cdi_version=st.just(NEWEST),
    kind=KIND,
    devices=st.lists(DEVICE, min_size=1, max_size=3, unique_by=lambda device: device.name).map(tuple),
    container_edits=st.just(ContainerEdits()) | EDITS,
    annotations=st.just({}) | ANNOTATIONS,
)
