"""Edits applied to an OCI config: each kind, odd configs, and what holds for any edits and any config."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest

from nvoci.cdi import apply
from nvoci.cdi.error import SpecError
from nvoci.cdi.model import ContainerEdits, Device, DeviceNode, Hook, IntelRdt, Mount, NetDevice, Spec
from nvoci.cdi.specdir import Entry

Config = dict[str, Any]

USER_NAMESPACE = {"namespaces": [{"type": "mount"}, {"type": "user"}]}
NODE = DeviceNode("/dev/a", type="c", major=1, minor=2)
RULE = {"allow": True, "type": "c", "major": 1, "minor": 2, "access": "rwm"}


def nodes(*found: DeviceNode) -> ContainerEdits:
    return ContainerEdits(device_nodes=found)


def mounts(*found: Mount) -> ContainerEdits:
    return ContainerEdits(mounts=found)


def at(*destinations: str, **more: Any) -> list[dict[str, Any]]:
    return [{"destination": each, "source": "old", **more} for each in destinations]


# name: (edits, config before, config after)
CASES: dict[str, tuple[ContainerEdits, Config, Config]] = {
    "no edits make nothing": (ContainerEdits(), {"a": None}, {"a": None}),
    "variable, no process": (ContainerEdits(env=("A=1",)), {}, {"process": {"env": ["A=1"]}}),
    "variable, null list": (ContainerEdits(env=("A=1",)), {"process": {"env": None}}, {"process": {"env": ["A=1"]}}),
    "variable, null process": (ContainerEdits(env=("A=1",)), {"process": None}, {"process": {"env": ["A=1"]}}),
    "variable in place": (
        ContainerEdits(env=("B=2", "C=3", "A=")),
        {"process": {"env": ["A=1", "B", "D=4=5"]}},
        {"process": {"env": ["A=", "B=2", "D=4=5", "C=3"]}},
    ),
    "the last of a name, where the first stands": (
        ContainerEdits(env=("A=1", "B=1", "A=2")), {}, {"process": {"env": ["A=2", "B=1"]}},
    ),
    "a variable that is there twice": (
        ContainerEdits(env=("A=3",)), {"process": {"env": ["A=1", "B=1", "A=2"]}}, {"process": {"env": ["A=3", "B=1"]}},
    ),
    "a name that starts like another": (
        ContainerEdits(env=("A=3",)), {"process": {"env": ["AB=1"]}}, {"process": {"env": ["AB=1", "A=3"]}},
    ),
    "node": (
        nodes(NODE), {},
        {"linux": {"devices": [{"path": "/dev/a", "type": "c", "major": 1, "minor": 2}],
                   "resources": {"devices": [RULE]}}},
    ),
    "node of the same path is replaced, at the end": (
        nodes(NODE),
        {"linux": {"devices": [{"path": "/dev//a", "type": "b"}, {"path": "/dev/b"}], "resources": None}},
        {"linux": {"devices": [{"path": "/dev/b"}, {"path": "/dev/a", "type": "c", "major": 1, "minor": 2}],
                   "resources": {"devices": [RULE]}}},
    ),
    "rules are appended": (
        nodes(NODE),
        {"linux": {"devices": [], "resources": {"devices": [RULE], "memory": {}}}},
        {"linux": {"devices": [{"path": "/dev/a", "type": "c", "major": 1, "minor": 2}],
                   "resources": {"devices": [RULE, RULE], "memory": {}}}},
    ),
    "owner of the process, unless root": (
        nodes(NODE, replace(NODE, path="/dev/b", uid=0, gid=5)),
        {"process": {"user": {"uid": 7, "gid": 0}}},
        {"process": {"user": {"uid": 7, "gid": 0}},
         "linux": {"devices": [{"path": "/dev/a", "type": "c", "major": 1, "minor": 2, "uid": 7},
                               {"path": "/dev/b", "type": "c", "major": 1, "minor": 2, "uid": 0, "gid": 5}],
                   "resources": {"devices": [RULE, RULE]}}},
    ),
    "mode and permissions": (
        nodes(replace(NODE, file_mode=0o600, permissions="r")), {},
        {"linux": {"devices": [{"path": "/dev/a", "type": "c", "major": 1, "minor": 2, "fileMode": 0o600}],
                   "resources": {"devices": [{**RULE, "access": "r"}]}}},
    ),
    "no access, no rule": (
        nodes(replace(NODE, type="b", permissions="none")), {},
        {"linux": {"devices": [{"path": "/dev/a", "type": "b", "major": 1, "minor": 2}]}},
    ),
    "an unbuffered character device": (
        nodes(replace(NODE, type="u")), {},
        {"linux": {"devices": [{"path": "/dev/a", "type": "u", "major": 1, "minor": 2}],
                   "resources": {"devices": [RULE]}}},
    ),
    "a FIFO has neither numbers nor a rule": (
        nodes(DeviceNode("/f", type="p")), {"linux": None}, {"linux": {"devices": [{"path": "/f", "type": "p"}]}},
    ),
    "network device": (
        ContainerEdits(net_devices=(NetDevice("eth1", "net0"), NetDevice("eth2", "net1"))),
        {"linux": {"netDevices": {"eth1": {"name": "x"}, "eth3": {}}}},
        {"linux": {"netDevices": {"eth1": {"name": "net0"}, "eth3": {}, "eth2": {"name": "net1"}}}},
    ),
    "mount": (
        mounts(Mount("/h", "/c", ("ro", "rbind")), Mount("t", "/t", (), "tmpfs")), {},
        {"mounts": [{"destination": "/c", "source": "/h", "options": ["ro", "rbind"]},
                    {"destination": "/t", "source": "t", "type": "tmpfs"}]},
    ),
    "mounts of the same destination are replaced": (
        mounts(Mount("/h", "/c")), {"mounts": at("/c", "/d", "/c/", "/x/../c")},
        {"mounts": [*at("/d"), {"destination": "/c", "source": "/h"}]},
    ),
    "mounts are sorted by depth, otherwise as they were": (
        mounts(Mount("/h", "/b")), {"mounts": at("/x/y/z", "/z", "/", "/q//", "/x/y", "/a")},
        {"mounts": [*at("/z", "/", "/q//", "/a"), {"destination": "/b", "source": "/h"}, *at("/x/y", "/x/y/z")]},
    ),
    "no mounts, no sorting": (
        ContainerEdits(env=("A=1",)), {"mounts": at("/a/b", "/a")}, {"mounts": at("/a/b", "/a"),
                                                                     "process": {"env": ["A=1"]}},
    ),
    "bind mounts in a user namespace": (
        mounts(Mount("/h", "/1", ("rbind", "ro")), Mount("/h", "/2", ("bind",)), Mount("/h", "/3", (), "bind"),
               Mount("/h", "/4", ("ridmap", "bind")), Mount("/h", "/5", ("rbind", "idmap")), Mount("/h", "/6", ("ro",)),
               Mount("t", "/7", (), "tmpfs")),
        {"linux": USER_NAMESPACE},
        {"linux": USER_NAMESPACE,
         "mounts": [{"destination": "/1", "source": "/h", "options": ["rbind", "ro", "ridmap"]},
                    {"destination": "/2", "source": "/h", "options": ["bind", "idmap"]},
                    {"destination": "/3", "source": "/h", "type": "bind", "options": ["idmap"]},
                    {"destination": "/4", "source": "/h", "options": ["ridmap", "bind"]},
                    {"destination": "/5", "source": "/h", "options": ["rbind", "idmap"]},
                    {"destination": "/6", "source": "/h", "options": ["ro"]},
                    {"destination": "/7", "source": "t", "type": "tmpfs"}]},
    ),
    "hooks are appended to their stage": (
        ContainerEdits(hooks=(Hook("prestart", "/p"), Hook("poststop", "/q", ("q", "r"), ("A=1",), 5))),
        {"hooks": {"prestart": [{"path": "/old"}], "poststop": None}},
        {"hooks": {"prestart": [{"path": "/old"}, {"path": "/p"}],
                   "poststop": [{"path": "/q", "args": ["q", "r"], "env": ["A=1"], "timeout": 5}]}},
    ),
    "no timeout at all for none": (
        ContainerEdits(hooks=(Hook("createContainer", "/p", timeout=0), Hook("createContainer", "/q", timeout=-1))),
        {}, {"hooks": {"createContainer": [{"path": "/p"}, {"path": "/q"}]}},
    ),
    "resource director": (
        ContainerEdits(intel_rdt=IntelRdt("guaranteed", schemata=("L3:0=ff",), enable_monitoring=True)),
        {"linux": {"intelRdt": {"closID": "old", "memBwSchema": "MB:0=1"}}},
        {"linux": {"intelRdt": {"closID": "guaranteed", "schemata": ["L3:0=ff"], "enableMonitoring": True}}},
    ),
    "resource director, older": (
        ContainerEdits(intel_rdt=IntelRdt(l3_cache_schema="L3:0=f", mem_bw_schema="MB:0=1", schemata=())), {},
        {"linux": {"intelRdt": {"l3CacheSchema": "L3:0=f", "memBwSchema": "MB:0=1"}}},
    ),
    "groups": (
        ContainerEdits(additional_gids=(44, 0, 109, 44, 5)),
        {"process": {"user": {"additionalGids": [5, 5]}}}, {"process": {"user": {"additionalGids": [5, 5, 44, 109]}}},
    ),
    "group 0 alone makes nothing": (ContainerEdits(additional_gids=(0,)), {}, {}),
}  # fmt: skip


@pytest.mark.parametrize(("edits", "before", "after"), CASES.values(), ids=CASES.keys())
def test_edits_are_made(edits: ContainerEdits, before: Config, after: Config) -> None:
    kept = copy.deepcopy(before)
    assert apply.apply(edits, before) == after
    assert before == kept


ALL = ContainerEdits(
    env=("A=1",),
    device_nodes=(NODE,),
    net_devices=(NetDevice("a", "b"),),
    hooks=(Hook("prestart", "/p"),),
    mounts=(Mount("/h", "/c"),),
    intel_rdt=IntelRdt("a"),
    additional_gids=(1,),
)

# config: the place that the error names, and why
ODD: dict[str, tuple[Any, str]] = {
    "list": ([], "not an object"),
    "process": ({"process": []}, "process: not an object"),
    "env": ({"process": {"env": "A=1"}}, "process.env: not a list"),
    "variable": ({"process": {"env": ["A=1", 2]}}, "process.env[1]: not a string"),
    "null variable": ({"process": {"env": [None]}}, "process.env[0]: not a string"),
    "user": ({"process": {"user": "root"}}, "process.user: not an object"),
    "uid": ({"process": {"user": {"uid": "0"}}}, "process.user.uid: not a number"),
    "gid": ({"process": {"user": {"gid": True}}}, "process.user.gid: not a number"),
    "groups": ({"process": {"user": {"additionalGids": {}}}}, "process.user.additionalGids: not a list"),
    "group": ({"process": {"user": {"additionalGids": [1, "a"]}}}, "process.user.additionalGids[1]: not a number"),
    "null group": ({"process": {"user": {"additionalGids": [None]}}}, "process.user.additionalGids[0]: null"),
    "linux": ({"linux": 1}, "linux: not an object"),
    "devices": ({"linux": {"devices": {}}}, "linux.devices: not a list"),
    "device": ({"linux": {"devices": [{"path": "/a"}, "b"]}}, "linux.devices[1]: not an object"),
    "null device": ({"linux": {"devices": [None]}}, "linux.devices[0]: null"),
    "path of a device": ({"linux": {"devices": [{"path": 1}]}}, "linux.devices[0].path: not a string"),
    "resources": ({"linux": {"resources": []}}, "linux.resources: not an object"),
    "rules": ({"linux": {"resources": {"devices": {}}}}, "linux.resources.devices: not a list"),
    "network devices": ({"linux": {"netDevices": []}}, "linux.netDevices: not an object"),
    "namespaces": ({"linux": {"namespaces": "user"}}, "linux.namespaces: not a list"),
    "namespace": ({"linux": {"namespaces": ["user"]}}, "linux.namespaces[0]: not an object"),
    "mounts": ({"mounts": {}}, "mounts: not a list"),
    "mount": ({"mounts": [1]}, "mounts[0]: not an object"),
    "destination": ({"mounts": [{"destination": ["/"]}]}, "mounts[0].destination: not a string"),
    "hooks": ({"hooks": []}, "hooks: not an object"),
    "stage": ({"hooks": {"prestart": {}}}, "hooks.prestart: not a list"),
}


@pytest.mark.parametrize(("config", "message"), ODD.values(), ids=ODD.keys())
def test_an_odd_config_is_an_error_that_names_the_place(config: Any, message: str) -> None:
    kept = copy.deepcopy(config)
    with pytest.raises(apply.ConfigError) as e:
        apply.apply(ALL, config)
    assert e.value.message == str(e.value) == f"OCI config: {message}"
    assert e.value.with_file("/b/config.json").message == f"OCI config /b/config.json: {message}"
    assert config == kept


def test_what_edits_do_not_touch_may_be_odd() -> None:
    config: Config = {"linux": 1, "mounts": "x", "hooks": [], "process": {"user": 7, "env": ["A=0"]}}
    assert apply.apply(ContainerEdits(env=("A=1",)), config) == {**config, "process": {"user": 7, "env": ["A=1"]}}


BAD_EDITS = {
    "variable": (ContainerEdits(env=("A",)), "containerEdits.env[0]"),
    "stage": (ContainerEdits(hooks=(Hook("sometime", "/p"),)), "containerEdits.hooks[0].hookName"),
    "type": (nodes(replace(NODE, type="x")), "containerEdits.deviceNodes[0].type"),
    "type not looked up": (nodes(DeviceNode("/dev/a\n", major=1)), "device node /dev/a\\n: its type is not known"),
    "two devices, one interface": (
        apply.joined([ContainerEdits(net_devices=(NetDevice("eth0", name),)) for name in ("a", "b")]), "netDevices[1]",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("edits", "part"), BAD_EDITS.values(), ids=BAD_EDITS.keys())
def test_edits_that_are_not_right_are_an_error(edits: ContainerEdits, part: str) -> None:
    with pytest.raises(SpecError) as e:
        apply.apply(edits, {})
    assert part in e.value.message


# --- several devices --------------------------------------------------------------------------------------------------


def entry(name: str, own: ContainerEdits, common: ContainerEdits, path: str) -> Entry:
    device = Device(name, own)
    spec = Spec("1.1.0", "a.b/c", (Device("other"), device), common)
    return Entry(f"a.b/c={name}", device, spec, path, 0)


def env(*words: str) -> ContainerEdits:
    return ContainerEdits(env=tuple(f"{word}=1" for word in words))


def test_common_edits_come_once_before_the_first_device_of_their_file() -> None:
    entries = [entry("a", env("A"), env("X"), "/1"), entry("b", env("B"), env("Y"), "/2"),
               entry("c", env("C"), env("X"), "/1"), entry("b", env("B"), env("Y"), "/2")]  # fmt: skip
    assert apply.combined(entries) == env("X", "A", "Y", "B", "C")
    assert apply.combined([]) == ContainerEdits()


def test_of_several_resource_directors_the_last_counts() -> None:
    parts = [ContainerEdits(intel_rdt=IntelRdt(name)) for name in ("a", "b")]
    assert apply.joined([*parts, env("A")]).intel_rdt == IntelRdt("b")


class Registry:
    """Devices by name, as `specdir.Registry` has them."""

    def __init__(self, *entries: Entry) -> None:
        self._entries = {each.name: each for each in entries}

    def resolve(self, names: Iterable[str]) -> list[Entry]:
        return [self._entries[name] for name in names]


def refusing(edits: ContainerEdits) -> ContainerEdits:
    if edits.device_nodes:
        raise SpecError("not there", "deviceNodes[0]")
    return edits


@pytest.mark.parametrize(
    ("own", "common", "where"),
    [(nodes(NODE), env("A"), "devices[1].containerEdits"), (env("A"), nodes(NODE), "containerEdits")],
    ids=["own", "common"],
)
def test_a_node_that_is_not_found_is_told_of_its_file(own: ContainerEdits, common: ContainerEdits, where: str) -> None:
    registry: Any = Registry(entry("a", own, common, "/etc/cdi/x.json"))
    with pytest.raises(SpecError) as e:
        apply.inject(registry, {}, ["a.b/c=a"], refusing)
    assert e.value.message == f"CDI spec /etc/cdi/x.json: {where}.deviceNodes[0]: not there"
