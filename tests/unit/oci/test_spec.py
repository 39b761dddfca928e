"""What an injector asks of config.json: variables, mounts, the bounding set; each strict, and only when asked for."""

from __future__ import annotations

from typing import Any

import pytest

from nvoci.errors import HookError
from nvoci.oci.spec import Spec

PATH = "/b/config.json"


def spec(process: Any = None, **more: Any) -> Spec:
    doc = {"ociVersion": "1.0.2", "process": {} if process is None else process, "root": {"path": "r"}, **more}
    return Spec({key: value for key, value in doc.items() if value != "absent"}, PATH)


def refused(call: Any) -> str:
    """The message, less what every one begins with."""
    with pytest.raises(HookError) as caught:
        call()
    assert caught.value.message.startswith(f"read config {PATH}: ")
    assert "\n" not in caught.value.line()
    return caught.value.message.partition(f"{PATH}: ")[2]


VARIABLES: dict[str, tuple[Any, dict[str, str]]] = {
    "none": ([], {}),
    "null": (None, {}),
    "one": (["A=b"], {"A": "b"}),
    "a value with =": (["A=b=c"], {"A": "b=c"}),
    "an empty value": (["A="], {"A": ""}),
    "an empty name": (["=b"], {"": "b"}),
    "the last of two": (["A=1", "B=2", "A=3"], {"A": "3", "B": "2"}),
    "NUL and surrogate": (["A=\0", "B=\ud800"], {"A": "\0", "B": "\ud800"}),
}


@pytest.mark.parametrize(("env", "found"), VARIABLES.values(), ids=VARIABLES)
def test_variables(env: Any, found: dict[str, str]) -> None:
    assert spec({"env": env}).environment() == found


BAD_VARIABLES: dict[str, tuple[Spec, str]] = {
    "no =": (spec({"env": ["A=b", "BAD"]}), "invalid environment variable: BAD"),
    "no =, hostile": (spec({"env": ["a\nb\x1b"]}), "invalid environment variable: a\\nb\\x1b"),
    "no =, 1 MiB": (spec({"env": ["x" * (1 << 20)]}), "invalid environment variable: " + "x" * 200),
    "empty": (spec({"env": [""]}), "invalid environment variable: "),
    "a number": (spec({"env": [3]}), "`process.env` is not a list of strings"),
    "an object": (spec({"env": {"A": "b"}}), "`process.env` is not a list"),
    "a string": (spec({"env": "A=b"}), "`process.env` is not a list"),
    "no version": (spec(ociVersion="absent"), "Version is empty in OCI spec"),
    "empty version": (spec(ociVersion=""), "Version is empty in OCI spec"),
    "no process": (spec(process="absent"), "Process is empty in OCI spec"),
    "null process": (Spec({"ociVersion": "1.0.2", "process": None, "root": {}}, PATH), "Process is empty in OCI spec"),
    "no root": (spec(root="absent"), "Root is empty in OCI spec"),
    "process is a list": (spec([]), "`process` is not an object"),
}


@pytest.mark.parametrize(("given", "reason"), BAD_VARIABLES.values(), ids=BAD_VARIABLES)
def test_a_config_without_sound_variables_is_refused(given: Spec, reason: str) -> None:
    assert refused(given.environment) == reason


MOUNTS: dict[str, tuple[Any, list[tuple[str, str]]]] = {
    "none": ([], []),
    "null": (None, []),
    "one": ([{"source": "/a", "destination": "/b", "type": "bind"}], [("/a", "/b")]),
    "no source": ([{"destination": "/proc"}], [("", "/proc")]),
    "null source": ([{"source": None, "destination": "/proc"}], [("", "/proc")]),
}


@pytest.mark.parametrize(("mounts", "found"), MOUNTS.values(), ids=MOUNTS)
def test_mounts(mounts: Any, found: list[tuple[str, str]]) -> None:
    assert spec(mounts=mounts).mounts() == found


def test_mounts_may_be_absent() -> None:
    assert spec().mounts() == []


BAD_MOUNTS: dict[str, tuple[Any, str]] = {
    "an object": ({"a": 1}, "`mounts` is not a list"),
    "a list of strings": (["/a"], "`mounts` is not a list of objects"),
    "a number": ([{"source": 3, "destination": "/b"}], "`mounts` has a source or destination that is not a string"),
    "a list": ([{"destination": ["/b"]}], "`mounts` has a source or destination that is not a string"),
}


@pytest.mark.parametrize(("mounts", "reason"), BAD_MOUNTS.values(), ids=BAD_MOUNTS)
def test_mounts_of_another_shape_are_refused(mounts: Any, reason: str) -> None:
    assert refused(spec(mounts=mounts).mounts) == reason


ADMIN = "CAP_SYS_ADMIN"
CAPABILITIES: dict[str, tuple[str, Any, bool]] = {
    "bounding": ("1.0.2", {"bounding": ["CAP_CHOWN", ADMIN]}, True),
    "only effective": ("1.0.2", {"bounding": ["CAP_CHOWN"], "effective": [ADMIN], "permitted": [ADMIN]}, False),
    "no bounding": ("1.0.2", {"effective": [ADMIN]}, False),
    "null bounding": ("1.0.2", {"bounding": None}, False),
    "empty": ("1.0.2", {}, False),
    "null": ("1.0.2", None, False),
    "another case": ("1.0.2", {"bounding": ["cap_sys_admin"]}, False),
    "rc1: a list": ("1.0.0-rc1", [ADMIN], True),
    "rc2: a list": ("1.0.0-rc2", ["CAP_CHOWN"], False),
    "rc4-dev: a list": ("1.0.0-rc4-dev", [ADMIN], True),
    "rc5: an object": ("1.0.0-rc5", {"bounding": [ADMIN]}, True),
    "rc5-dev: an object": ("1.0.0-rc5-dev", {"bounding": [ADMIN]}, True),
    "1.0.0: an object": ("1.0.0", {"bounding": [ADMIN]}, True),
    "1.2.1: an object": ("1.2.1", {"bounding": [ADMIN]}, True),
}


@pytest.mark.parametrize(("version", "capabilities", "has"), CAPABILITIES.values(), ids=CAPABILITIES)
def test_bounding_set(version: str, capabilities: Any, has: bool) -> None:
    assert spec({"capabilities": capabilities}, ociVersion=version).bounding(ADMIN) is has


BAD_CAPABILITIES: dict[str, tuple[str, Any, str]] = {
    "a list": ("1.0.2", [ADMIN], "`process.capabilities` is not an object"),
    "a string": ("1.0.2", ADMIN, "`process.capabilities` is not an object"),
    "an object of old": ("1.0.0-rc1", {"bounding": [ADMIN]}, "`process.capabilities` is not a list"),
    "bounding is a string": ("1.0.2", {"bounding": ADMIN}, "`process.capabilities.bounding` is not a list"),
}


@pytest.mark.parametrize(("version", "capabilities", "reason"), BAD_CAPABILITIES.values(), ids=BAD_CAPABILITIES)
def test_capabilities_of_another_shape_are_refused(version: str, capabilities: Any, reason: str) -> None:
    given = spec({"capabilities": capabilities}, ociVersion=version)
    assert refused(lambda: given.bounding(ADMIN)) == reason
    assert given.environment() == {}  # who does not ask for them does not care


NAMESPACES: dict[str, tuple[Any, bool]] = {
    "no linux": ("absent", False),
    "null": (None, False),
    "none": ({}, False),
    "null for a list": ({"namespaces": None}, False),
    "others": ({"namespaces": [{"type": "mount"}, {"type": "pid", "path": "/proc/1/ns/pid"}, {}]}, False),
    "its own": ({"namespaces": [{"type": "mount"}, {"type": "user"}]}, True),
    "another container's": ({"namespaces": [{"type": "user", "path": "/proc/7/ns/user"}]}, True),
}


@pytest.mark.security
@pytest.mark.parametrize(("linux", "has"), NAMESPACES.values(), ids=NAMESPACES)
def test_who_is_root_of_a_user_namespace_does_not_administer_the_node(linux: Any, has: bool) -> None:
    given = spec({"capabilities": {"bounding": [ADMIN]}}, linux=linux)
    assert (given.has_namespace("user"), given.privileged()) == (has, not has)
    assert spec({"capabilities": {"bounding": ["CAP_CHOWN"]}}, linux=linux).privileged() is False


BAD_NAMESPACES: dict[str, tuple[Any, str]] = {
    "linux is a list": ([], "`linux` is not an object"),
    "an object": ({"namespaces": {"type": "user"}}, "`linux.namespaces` is not a list"),
    "names": ({"namespaces": ["user"]}, "`linux.namespaces` is not a list of objects"),
}


@pytest.mark.parametrize(("linux", "reason"), BAD_NAMESPACES.values(), ids=BAD_NAMESPACES)
def test_namespaces_of_another_shape_are_refused(linux: Any, reason: str) -> None:
    assert refused(spec({"capabilities": {"bounding": [ADMIN]}}, linux=linux).privileged) == reason
