"""What a specification must say: every rule, with what it accepts, what it refuses, and the place it names."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from unit.cdi import spectools
from unit.cdi.spectools import ENV, PLACES, at, one

from nvoci.cdi import validate, version
from nvoci.cdi.error import SpecError
from nvoci.cdi.model import ContainerEdits, Device, DeviceNode, Hook, IntelRdt, Mount, NetDevice, Spec

FAST = settings(max_examples=100, deadline=None)
NODE = DeviceNode("/dev/a")
HOOK = Hook("createContainer", "/h")
MOUNT = Mount("/a", "/b")
UINT32, INT64 = (1 << 32) - 1, (1 << 63) - 1


def env(*texts: str) -> ContainerEdits:
    return ContainerEdits(env=texts)


def node(**changes: Any) -> ContainerEdits:
    return replace(ENV, device_nodes=(NODE, replace(NODE, **changes)))


def hook(**changes: Any) -> ContainerEdits:
    return replace(ENV, hooks=(HOOK, replace(HOOK, **changes)))


def mount(**changes: Any) -> ContainerEdits:
    return replace(ENV, mounts=(MOUNT, replace(MOUNT, **changes)))


def net(*devices: tuple[str, str]) -> ContainerEdits:
    return replace(ENV, net_devices=tuple(NetDevice(*device) for device in devices))


def clos(text: str) -> ContainerEdits:
    return ContainerEdits(intel_rdt=IntelRdt(text))


ACCEPTED: dict[str, ContainerEdits] = {
    "variable": env("A=1"), "empty value": env("A="), "second =": env("A=b=c"), "== at the end": env("A=="),
    "odd name": env(" -=1"), "newline": env("A=\n"), "same twice": env("A=1", "A=1"),
    "every type": replace(ENV, device_nodes=tuple(replace(NODE, type=each) for each in ("", "b", "c", "u", "p"))),
    "relative node": node(path="a"), "same node twice": node(), "hostPath": node(host_path="/x"),
    "permissions rwm": node(permissions="rwm"), "permissions m": node(permissions="m"),
    "permissions mwr": node(permissions="mwr"), "permissions rr": node(permissions="rr"),
    "permissions none": node(permissions="none"), "permissions rwmrwm": node(permissions="rwmrwm"),
    "numbers": node(major=195, minor=255), "large numbers": node(major=INT64, minor=INT64),
    "mode": node(file_mode=0o666), "mode 0": node(file_mode=0), "large mode": node(file_mode=UINT32),
    "owner": node(uid=0, gid=UINT32),
    "every stage": replace(ENV, hooks=tuple(replace(HOOK, hook_name=each) for each in (
        "prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"))),
    "relative hook": hook(path="h"), "hook arguments": hook(args=("", "=")), "hook variables": hook(env=("A=1", "B=")),
    "timeout": hook(timeout=0), "negative timeout": hook(timeout=-1), "large timeout": hook(timeout=INT64),
    "options": mount(options=("", "any")), "type": mount(type="any"), "same mount twice": mount(),
    "relative mount": mount(host_path="a", container_path="b"),
    "root class": clos("/"), "no class": clos(""), "class": clos("a b"), "three dots": clos("..."), "dot": clos(".a"),
    "4095 bytes": clos("a" * 4095), "4094 bytes of UTF-8": clos("é" * 2047), "empty intelRdt": clos(""),
    "interfaces": net(("eth0", "a"), ("eth1", "b")), "swapped": net(("a", "b"), ("b", "a")), "same": net(("a", "a")),
    "groups": ContainerEdits(additional_gids=(0, 44, 44, UINT32)),
}  # fmt: skip
# Edits -> the place below them, words of the reason.
REFUSED: dict[str, tuple[ContainerEdits, str, str]] = {
    "no =": (env("A=1", "A"), "env[1]", 'invalid environment variable "A"'),
    "no variable": (env("=1"), "env[0]", 'invalid environment variable "=1"'),
    "empty variable": (env(""), "env[0]", 'invalid environment variable ""'),
    "== alone": (env("=="), "env[0]", "environment"),
    "no path": (node(path=""), "deviceNodes[1].path", "missing or empty"),
    "type": (node(type="f"), "deviceNodes[1].type", 'invalid type "f"'),
    "two types": (node(type="bc"), "deviceNodes[1].type", 'invalid type "bc"'),
    "type char": (node(type="C"), "deviceNodes[1].type", "invalid type"),
    "permissions": (node(permissions="rwx"), "deviceNodes[1].permissions", 'invalid permissions "rwx"'),
    "inner permission": (node(permissions="rxw"), "deviceNodes[1].permissions", "invalid permissions"),
    "capital permissions": (node(permissions="RW"), "deviceNodes[1].permissions", "invalid permissions"),
    "permissions None": (node(permissions="None"), "deviceNodes[1].permissions", "invalid permissions"),
    "permissions nonenone": (node(permissions="nonenone"), "deviceNodes[1].permissions", "invalid permissions"),
    "blank permissions": (node(permissions=" "), "deviceNodes[1].permissions", "invalid permissions"),
    "any major": (node(major=-1), "deviceNodes[1].major", "-1 is not within 0.."),
    "any minor": (node(minor=-1), "deviceNodes[1].minor", "-1 is not within 0.."),
    "major": (node(major=INT64 + 1), "deviceNodes[1].major", "is not within"),
    "negative mode": (node(file_mode=-1), "deviceNodes[1].fileMode", "is not within"),
    "mode": (node(file_mode=UINT32 + 1), "deviceNodes[1].fileMode", "is not within"),
    "owner": (node(uid=-1), "deviceNodes[1].uid", "is not within"),
    "group": (node(gid=UINT32 + 1), "deviceNodes[1].gid", "is not within"),
    "stage": (hook(hook_name="createcontainer"), "hooks[1].hookName", 'invalid hook name "createcontainer"'),
    "no stage": (hook(hook_name=""), "hooks[1].hookName", 'invalid hook name ""'),
    "extension stage": (hook(hook_name="precreate"), "hooks[1].hookName", "invalid hook name"),
    "no hook": (hook(path=""), "hooks[1].path", "missing or empty"),
    "hook variable": (hook(env=("A=1", "=")), "hooks[1].env[1]", 'invalid environment variable "="'),
    "timeout": (hook(timeout=INT64 + 1), "hooks[1].timeout", "is not within"),
    "no source": (mount(host_path=""), "mounts[1].hostPath", "missing or empty"),
    "no target": (mount(container_path=""), "mounts[1].containerPath", "missing or empty"),
    "class .": (clos("."), "intelRdt.closID", "invalid ClosID"),
    "class ..": (clos(".."), "intelRdt.closID", "invalid ClosID"),
    "class path": (clos("a/b"), "intelRdt.closID", "invalid ClosID"),
    "class //": (clos("//"), "intelRdt.closID", "invalid ClosID"),
    "class line": (clos("a\n"), "intelRdt.closID", "invalid ClosID"),
    "4096 bytes": (clos("a" * 4096), "intelRdt.closID", "invalid ClosID"),
    "4096 bytes of UTF-8": (clos("é" * 2048), "intelRdt.closID", "invalid ClosID"),
    "no interface": (net(("", "a")), "netDevices[0].hostInterfaceName", "missing or empty"),
    "no name": (net(("a", "")), "netDevices[0].name", "missing or empty"),
    "interface twice": (
        net(("a", "b"), ("a", "c")), "netDevices[1].hostInterfaceName", 'duplicate hostInterfaceName "a"'),
    "name twice": (net(("a", "b"), ("b", "b")), "netDevices[1].name", 'duplicate name "b"'),
    "negative group": (ContainerEdits(additional_gids=(1, -1)), "additionalGids[1]", "-1 is not within"),
    "large group": (ContainerEdits(additional_gids=(UINT32 + 1,)), "additionalGids[0]", "is not within"),
}  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("what", ACCEPTED)
def test_edits_are_accepted(what: str, place: str) -> None:
    spec = at(one(), place, ACCEPTED[what])
    assert validate.problems(spec) == []
    validate.validate(spec)
    assert validate.edits_problems(ACCEPTED[what]) == []


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("what", REFUSED)
def test_edits_are_refused_with_their_place(what: str, place: str) -> None:
    edits, where, words = REFUSED[what]
    (found,) = validate.problems(at(one(), place, edits))
    assert found.where == f"{place}.{where}"
    assert words in found.why
    (alone,) = validate.edits_problems(edits, place)
    assert str(alone) == str(found)
    with pytest.raises(SpecError) as caught:
        validate.validate(at(one(), place, edits), "/etc/cdi/a.yaml")
    assert (caught.value.where, caught.value.file) == (found.where, "/etc/cdi/a.yaml")


# Changes of a right specification -> the places that are wrong, words of the first reason.
SPECS: dict[str, tuple[dict[str, Any], list[str], str]] = {
    "as it is": ({}, [], ""),
    "v": ({"cdi_version": "v1.1.0"}, [], ""),
    "unknown version": ({"cdi_version": "1.1.1"}, ["cdiVersion"], 'invalid version "1.1.1"'),
    "no version": ({"cdi_version": ""}, ["cdiVersion"], 'invalid version ""'),
    "kind of one character": ({"kind": "a/b"}, [], ""),
    "kind": ({"kind": "nvidia.com"}, ["kind"], "VENDOR/CLASS"),
    "no kind": ({"kind": ""}, ["kind"], "VENDOR/CLASS"),
    "no vendor": ({"kind": "/gpu"}, ["kind"], "vendor is empty"),
    "class": ({"kind": "nvidia.com/0"}, ["kind"], "class `0`"),
    "qualified": ({"kind": "nvidia.com/gpu=0"}, ["kind"], "`=`"),
    "no devices": ({"devices": ()}, ["devices"], "invalid spec, no devices"),
    "no devices but edits": ({"devices": (), "container_edits": ENV}, ["devices"], "no devices"),
    "empty device": (
        {"devices": (Device("a"),)}, ["devices[0].containerEdits"], "invalid device, empty device edits"),
    "device of edits of all": (
        {"devices": (Device("a"),), "container_edits": ENV}, ["devices[0].containerEdits"], "empty device edits"),
    "names": ({"devices": (Device("0", ENV), Device("0:1", ENV), Device("a.b", ENV), Device("A-b_c", ENV))}, [], ""),
    "name": ({"devices": (Device("a", ENV), Device("a/b", ENV))}, ["devices[1].name"], "device `a/b` has `/`"),
    "no name": ({"devices": (Device("", ENV),)}, ["devices[0].name"], "name of the device is empty"),
    "name twice": (
        {"devices": (Device("a", ENV), Device("b", ENV), Device("a", ENV), Device("a", ENV))},
        ["devices[2].name", "devices[3].name"], 'multiple device "a": devices[0] too'),
    "several": (
        {"cdi_version": "x", "kind": "y", "devices": (Device("-", env("A")),), "container_edits": env("=")},
        ["cdiVersion", "kind", "containerEdits.env[0]", "devices[0].name", "devices[0].containerEdits.env[0]"], ""),
}  # fmt: skip


@pytest.mark.parametrize("what", SPECS)
def test_a_specification_is_accepted_or_every_problem_told(what: str) -> None:
    changes, places, words = SPECS[what]
    found = validate.problems(one(**changes))
    assert [problem.where for problem in found] == places
    assert all(words in problem.why for problem in found[:1])


@pytest.mark.parametrize("declared", version.VERSIONS)
@pytest.mark.parametrize("least", spectools.WRITABLE)
def test_a_version_that_is_too_old_is_told_in_the_known_words(least: str, declared: str) -> None:
    used = {
        "0.3.0": {},
        "0.4.0": {"edits": mount(type="bind")},
        "0.5.0": {"edits": node(host_path="/x")},
        "0.6.0": {"annotations": {"a": "b"}},
        "0.7.0": {"edits": ContainerEdits(additional_gids=(1,))},
        "1.1.0": {"edits": net(("a", "b"))},
    }
    spec = one(**used.get(least, {}))  # type: ignore[arg-type]
    least = version.minimum(spec)
    found = validate.problems(replace(spec, cdi_version=declared))
    if version.parse(declared) >= version.parse(least):
        assert found == []
        return
    assert [(each.where, each.why) for each in found] == [
        ("cdiVersion", f"the spec version must be at least v{least}")
    ]
    assert found[0].hint


def test_the_hint_names_what_takes_the_version() -> None:
    (found,) = validate.problems(one(node(host_path="/x"), cdi_version="0.4.0"))
    assert found.hint == "since 0.5.0: hostPath of a device node"


KEYS = {
    "a": True, "A": True, "0": True, "a.b_c-d": True, "example.com/a": True, "Example.COM/A": True, "a/b": True,
    "a-b.c-d/e": True, "x" * 63: True, f"{'x' * 253}/a": True, "0.0/0": True, "gpu.nvidia.com/coherent": True,
    "": False, "/": False, "/a": False, "a/": False, "a/b/c": False, "-a": False, "a-": False, "a b": False,
    "a:b": False, ".a": False, "x" * 64: False, f"{'x' * 254}/a": False, "a_b/c": False, "a..b/c": False,
    "-a/b": False, "a-/b": False, "a.-b/c": False, "a./b": False, "é": False, "é/a": False, "a\n": False,
    "a/b\n": False, "\u0661": False,
}  # fmt: skip


@pytest.mark.parametrize("key", KEYS, ids=lambda key: ascii(key[:20]))
@pytest.mark.parametrize("place", ["annotations", "devices[0].annotations"])
def test_an_annotation_has_a_key_as_kubernetes_has_it(place: str, key: str) -> None:
    found = {key: "any text\n"}
    spec = one(annotations=found) if place == "annotations" else one(devices=(Device("a", ENV, found),))
    places = [problem.where for problem in validate.problems(spec)]
    assert places == ([] if KEYS[key] else [SpecError("", f"{place}[{key}]").where])


@pytest.mark.parametrize(("text", "right"), [("x" * 262143, True), ("x" * 262144, False), ("é" * 131072, False)],
                         ids=["256 KiB", "one more", "bytes"])  # fmt: skip
def test_annotations_have_a_limit_together(text: str, right: bool) -> None:
    places = [problem.where for problem in validate.problems(one(devices=(Device("a", ENV, {"k": text}),)))]
    assert places == ([] if right else ["devices[0].annotations"])


@FAST
@given(spectools.SPEC)
def test_a_right_specification_has_no_problems(spec: Spec) -> None:
    assert validate.problems(spec) == []


def test_problems_are_bounded() -> None:
    spec = one(env(*("A" for _ in range(20_000))))
    assert len(validate.problems(spec)) == validate.MAX_PROBLEMS
    with pytest.raises(SpecError, match=r"env\[0\]"):
        validate.validate(spec)


def test_an_error_is_one_line_whatever_was_written() -> None:
    (found,) = validate.problems(one(env("A\n\x1b[2J\u202e")))
    assert found.line().isprintable()
