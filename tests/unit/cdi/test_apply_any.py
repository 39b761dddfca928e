"""What holds for any edits applied to any OCI config."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from posixpath import normpath
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from unit.cdi import strategies

from nvoci.cdi import apply
from nvoci.cdi.error import SpecError
from nvoci.cdi.model import ContainerEdits, DeviceNode, Hook, IntelRdt, Mount, NetDevice

FAST = settings(max_examples=120, deadline=None)
Config = dict[str, Any]

_words = st.sampled_from("abc")
_paths = st.sampled_from(["/a", "/a/", "/a/b", "/b//c", "/a/./b", "/", "/c/d/e/f"])
_maybe = st.none() | st.integers(0, 3)
_env = st.builds("{}={}".format, _words, _words)
_nodes = st.builds(
    DeviceNode, _paths, st.just(""), st.sampled_from("cbup"), st.integers(1, 3), st.integers(0, 3), _maybe,
    st.sampled_from(["", "r", "rw", "none"]), _maybe, _maybe,
)  # fmt: skip
_mounts = st.builds(
    Mount, _paths, _paths, st.lists(st.sampled_from(["ro", "bind", "rbind", "idmap"]), max_size=2).map(tuple),
    st.sampled_from(["", "bind"]),
)  # fmt: skip
_hooks = st.builds(Hook, st.sampled_from(["prestart", "poststop"]), _paths, timeout=_maybe)


def _tuples(each: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.lists(each, max_size=4).map(tuple)


EDITS = st.builds(
    ContainerEdits,
    env=_tuples(_env),
    device_nodes=_tuples(_nodes),
    net_devices=st.dictionaries(_words, st.integers(0, 0), max_size=2).map(
        lambda found: tuple(NetDevice(name, f"in-{name}") for name in found)
    ),
    hooks=_tuples(_hooks),
    mounts=_tuples(_mounts),
    intel_rdt=st.none() | st.builds(IntelRdt, _words),
    additional_gids=_tuples(st.integers(0, 4)),
)
_objects = st.fixed_dictionaries({}, optional={"path": _paths, "destination": _paths, "type": st.sampled_from("cb")})
_lists = st.none() | st.lists(_objects, max_size=4)
CONFIGS = st.fixed_dictionaries(
    {},
    optional={
        "ociVersion": st.just("1.0.2"),
        "process": st.none() | st.fixed_dictionaries({}, optional={
            "env": st.none() | st.lists(_env | _words, max_size=4),
            "user": st.fixed_dictionaries({}, optional={"uid": st.integers(0, 2), "additionalGids": st.just([3])}),
        }),
        "linux": st.none() | st.fixed_dictionaries({}, optional={
            "devices": _lists,
            "resources": st.none() | st.fixed_dictionaries({}, optional={"devices": _lists}),
            "namespaces": st.lists(st.sampled_from([{"type": "user"}, {"type": "pid"}]), max_size=2),
            "netDevices": st.none() | st.just({"a": {}}),
            "intelRdt": st.none() | st.just({"closID": "x"}),
        }),
        "mounts": _lists,
        "hooks": st.none() | st.just({"prestart": [{"path": "/x"}], "poststop": None}),
    },
)  # fmt: skip


@FAST
@given(EDITS, CONFIGS)
def test_same_input_same_output_and_the_input_stays(edits: ContainerEdits, config: Config) -> None:
    kept = copy.deepcopy(config)
    first = apply.apply(edits, config)
    assert config == kept
    assert first == apply.apply(edits, config)
    assert json.loads(json.dumps(first)) == first


def _once(config: Config) -> Config:
    """Without what is appended each time."""
    out = copy.deepcopy(config)
    out.pop("hooks", None)
    ((out.get("linux") or {}).get("resources") or {}).pop("devices", None)
    return out


@FAST
@given(EDITS, CONFIGS)
def test_twice_is_as_once_but_for_hooks_and_rules(edits: ContainerEdits, config: Config) -> None:
    once = apply.apply(edits, config)
    twice = apply.apply(edits, once)
    assert _once(twice) == _once(once)
    hooks = {stage: [h for h in edits.hooks if h.hook_name == stage] for stage in ("prestart", "poststop")}
    for stage, added in hooks.items():
        count = len((once.get("hooks") or {}).get(stage) or [])
        assert len((twice.get("hooks") or {}).get(stage) or []) == count + len(added)


@FAST
@given(EDITS, CONFIGS)
def test_the_result_has_what_the_edits_ask_for(edits: ContainerEdits, config: Config) -> None:
    out = apply.apply(edits, config)
    for text in edits.env:
        same = [each for each in out["process"]["env"] if each.partition("=")[0] == text.partition("=")[0]]
        assert len(same) == 1
    for node in edits.device_nodes:
        assert sum(normpath(each.get("path", "")) == normpath(node.path) for each in out["linux"]["devices"]) == 1
    if edits.mounts:
        found = [normpath(each.get("destination", "")) for each in out["mounts"]]
        assert [each.count("/") for each in found] == sorted(each.count("/") for each in found)
        assert all(found.count(normpath(mount.container_path)) == 1 for mount in edits.mounts)
    if any(edits.additional_gids):
        gids = out["process"]["user"]["additionalGids"]
        assert set(edits.additional_gids) - {0} <= set(gids)
        assert len(set(gids)) == len(gids)


@FAST
@given(EDITS, EDITS, CONFIGS)
def test_devices_together_are_as_one_after_the_other(one: ContainerEdits, two: ContainerEdits, config: Config) -> None:
    two = replace(two, net_devices=())  # together, no interface may be in both
    assert apply.apply(apply.joined([one, two]), config) == apply.apply(two, apply.apply(one, config))


_keys = st.sampled_from(
    "process env user uid gid additionalGids linux devices path resources namespaces type netDevices intelRdt mounts "
    "destination hooks prestart".split()
)
_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_keys, inner, max_size=4),
    max_leaves=12,
)


@FAST
@given(EDITS | strategies.edits, st.dictionaries(_keys, _json, max_size=5) | _json)
def test_whatever_a_config_is_edits_are_made_or_refused(edits: ContainerEdits, config: Any) -> None:
    kept = copy.deepcopy(config)
    message = "CDI"
    try:
        apply.apply(edits, config)
    except SpecError as e:
        message = e.line()
    assert message.startswith(("OCI config: ", "CDI"))
    assert message.isprintable()
    assert config == kept
