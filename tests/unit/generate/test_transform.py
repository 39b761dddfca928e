"""Root transforms: which paths of a specification move, and whether a specification is as right after it as before."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvoci.cdi import text, validate
from nvoci.cdi.model import ContainerEdits, Device, DeviceNode, Hook, Mount, Spec
from nvoci.errors import HookError
from nvoci.generate import transform

NODES = Path(__file__).resolve().parents[2] / "data/nodes"
LINK = ("nvidia-cdi-hook", "create-symlinks", "--link", "/old/a::/old/b")


def spec_of(edits: ContainerEdits, version: str = "0.7.0") -> Spec:
    return Spec(version, "nvidia.com/gpu", (Device("0", edits),), edits)


def moved(edits: ContainerEdits, relative_to: str = "host", old: str = "/old", new: str = "/new") -> ContainerEdits:
    """What becomes of edits, the common ones and a device's alike."""
    done = transform.root(spec_of(edits), old, new, relative_to)
    assert done.devices[0].container_edits == done.container_edits
    return done.container_edits


def host_path(path: str, old: str, new: str) -> str:
    """Where a mount's source is after a host transform."""
    (mount,) = moved(ContainerEdits(mounts=(Mount(path, "/x"),)), "host", old, new).mounts
    return mount.host_path


# old root, new root, path: the path afterwards
PATHS: dict[str, tuple[str, str, str, str]] = {
    "below": ("/run/driver", "/", "/run/driver/lib/a.so", "/lib/a.so"),
    "the root itself": ("/run/driver", "/host", "/run/driver", "/host"),
    "the root itself, to /": ("/run/driver", "/", "/run/driver", "/"),
    "elsewhere": ("/run/driver", "/host", "/usr/lib/a.so", "/usr/lib/a.so"),
    "the same beginning": ("/run/driver", "/host", "/run/driver-backup/a.so", "/run/driver-backup/a.so"),
    "the same beginning, last component": ("/run/driver", "/host", "/run/driverfoo", "/run/driverfoo"),
    "old with a slash": ("/run/driver/", "/host", "/run/driver/a.so", "/host/a.so"),
    "new with slashes": ("/run/driver", "//host//", "/run/driver/a.so", "/host/a.so"),
    "from /": ("/", "/host", "/usr/lib/a.so", "/host/usr/lib/a.so"),
    "/ itself": ("/", "/host", "/", "/host"),
    "from nothing": ("", "/host", "/usr/lib/a.so", "/host/usr/lib/a.so"),
    "to nothing": ("/driver", "", "/driver/lib/a.so", "/lib/a.so"),
    "to nothing, the root itself": ("/driver", "", "/driver", "/"),
    "path not normal": ("/driver", "/host", "//driver/./lib//a.so", "/host/lib/a.so"),
    "path that leads out": ("/driver", "/host", "/driver/../etc/a", "/driver/../etc/a"),
    "path that leads in": ("/driver", "/host", "/etc/../driver/a", "/host/a"),
    "relative path": ("/", "/host", "lib/a.so", "lib/a.so"),
    "into itself": ("/driver", "/driver/old", "/driver/a", "/driver/old/a"),
}


@pytest.mark.parametrize(("old", "new", "path", "expected"), PATHS.values(), ids=PATHS)
def test_a_path_moves_by_whole_components(old: str, new: str, path: str, expected: str) -> None:
    assert host_path(path, old, new) == expected


@pytest.mark.parametrize(("old", "new"), [("/a", "/a"), ("", ""), ("/", ""), ("/a/", "/a"), ("/a/../b", "/b")], ids=str)
def test_the_same_root_changes_nothing_at_all(old: str, new: str) -> None:
    spec = spec_of(ContainerEdits(device_nodes=(DeviceNode("/a//dev/x"),)), "0.3.0")
    assert transform.root(spec, old, new) is spec


@pytest.mark.parametrize(("old", "new"), [("a", "/b"), ("/a", "b"), (".", "/b")], ids=str)
def test_a_relative_root_is_refused(old: str, new: str) -> None:
    with pytest.raises(HookError, match="is not an absolute path"):
        transform.root(spec_of(ContainerEdits()), old, new)


# relative_to, node: the node afterwards
NODE = {
    "host, both paths": ("host", DeviceNode("/old/x", "/old/x"), DeviceNode("/old/x", "/new/x")),
    "host, no host path": ("host", DeviceNode("/old/x"), DeviceNode("/old/x", "/new/x")),
    "host, elsewhere, no host path": ("host", DeviceNode("/dev/x"), DeviceNode("/dev/x", "/dev/x")),
    "container, both paths": ("container", DeviceNode("/old/x", "/old/x"), DeviceNode("/new/x", "/old/x")),
    "container, no host path": ("container", DeviceNode("/old/x"), DeviceNode("/new/x", "/old/x")),
    "container, elsewhere, no host path": ("container", DeviceNode("/dev/x"), DeviceNode("/dev/x")),
}


@pytest.mark.parametrize(("relative_to", "before", "after"), NODE.values(), ids=NODE)
def test_a_device_node_stays_the_host_s_node(relative_to: str, before: DeviceNode, after: DeviceNode) -> None:
    before, after = (dataclasses.replace(node, major=195, gid=44, permissions="rw") for node in (before, after))
    assert moved(ContainerEdits(device_nodes=(before,)), relative_to).device_nodes == (after,)


def test_a_mount_moves_on_one_side() -> None:
    mounts = (Mount("/old/a", "/old/a", ("ro",), "bind"),)
    assert moved(ContainerEdits(mounts=mounts)).mounts == (Mount("/new/a", "/old/a", ("ro",), "bind"),)
    assert moved(ContainerEdits(mounts=mounts), "container").mounts == (Mount("/old/a", "/new/a", ("ro",), "bind"),)


# hook: whether a host transform moves its path, its arguments; whether a container transform does
HOOKS = {
    "prestart": (True, True, False, False),
    "createRuntime": (True, True, False, False),
    "createContainer": (True, False, False, True),
    "startContainer": (False, False, True, True),
    "poststart": (True, True, False, False),
    "poststop": (True, True, False, False),
}


@pytest.mark.parametrize("name", HOOKS)
@pytest.mark.parametrize("relative_to", ["host", "container"])
def test_the_program_and_the_arguments_of_a_hook(name: str, relative_to: str) -> None:
    path, args = HOOKS[name][:2] if relative_to == "host" else HOOKS[name][2:]
    before = Hook(name, "/old/bin/x", LINK, ("A=/old/a",), 3)
    program = "/new/bin/x" if path else before.path
    after = Hook(name, program, (*LINK[:3], "/new/a::/new/b") if args else LINK, before.env, before.timeout)
    assert moved(ContainerEdits(hooks=(before,)), relative_to).hooks == (after,)


ARGUMENTS = {
    "a path": ("/old/a", "/new/a"),
    "the root": ("/old", "/new"),
    "no path": ("old/a", "old/a"),
    "nothing": ("", ""),
    "a link to a name": ("a.so.1::/old/a.so", "a.so.1::/new/a.so"),
    "a link from elsewhere": ("../old/a::/x/a", "../old/a::/x/a"),
    "three parts": ("/old/a::/old/b::/old/c", "/new/a::/new/b::/old/c"),
    "in a flag": ("--folder=/old/a", "--folder=/old/a"),
    "with an equals sign": ("/old/a=b", "/new/a=b"),
}


@pytest.mark.parametrize(("before", "after"), ARGUMENTS.values(), ids=ARGUMENTS)
def test_what_moves_in_an_argument(before: str, after: str) -> None:
    edits = ContainerEdits(hooks=(Hook("createContainer", "/x", ("x", "--link", before)),))
    assert moved(edits, "container").hooks[0].args == ("x", "--link", after)


def test_the_node_of_a_conditional_link_moves_too() -> None:
    args = ("nvidia-cdi-hook", "run", "--", "create-symlinks", "--link-if", "/old/dev/x=../x::/old/dev/y/x", "-link-if",
            "/dev/x=/old/x::/y")  # fmt: skip
    after = (*args[:5], "/new/dev/x=../x::/new/dev/y/x", "-link-if", "/dev/x=/new/x::/y")
    assert moved(ContainerEdits(hooks=(Hook("createContainer", "/x", args),)), "container").hooks[0].args == after


def test_an_unknown_side_is_refused() -> None:
    with pytest.raises(HookError, match="`guest` has no root"):
        transform.root(spec_of(ContainerEdits()), "/a", "/b", "guest")


def test_the_version_stays_and_may_then_be_too_low() -> None:
    spec = Spec("0.3.0", "a.com/b", (Device("c", ContainerEdits(device_nodes=(DeviceNode("/dev/x"),))),))
    validate.validate(spec)
    after = transform.root(spec, "/a", "/b")
    assert after.cdi_version == "0.3.0"
    assert [each.why for each in validate.problems(after)] == ["the spec version must be at least v0.5.0"]


@pytest.mark.parametrize("name", ["a100", "a100-mig", "tegra"])
@pytest.mark.parametrize("relative_to", ["host", "container"])
def test_there_and_back_again(name: str, relative_to: str) -> None:
    spec = text.read(str(NODES / f"{name}.cdi.yaml"))
    there = transform.root(spec, "/", "/run/nvidia/driver", relative_to)
    assert there != spec
    validate.validate(there)
    again = transform.root(there, "/run/nvidia/driver", "/", relative_to)
    # A node of which nothing said where it is on the host says so now.
    assert without_host_paths(again) == without_host_paths(spec)


def without_host_paths(spec: Spec) -> Spec:
    """Without those that are the path."""

    def edits(each: ContainerEdits) -> ContainerEdits:
        nodes = [dataclasses.replace(n, host_path="") if n.host_path == n.path else n for n in each.device_nodes]
        return dataclasses.replace(each, device_nodes=tuple(nodes))

    devices = tuple(dataclasses.replace(d, container_edits=edits(d.container_edits)) for d in spec.devices)
    return dataclasses.replace(spec, devices=devices, container_edits=edits(spec.container_edits))


PATH = st.lists(st.sampled_from(["a", "b", "ab", "a.b"]), max_size=5).map(lambda parts: "/" + "/".join(parts))


@given(PATH, PATH, PATH)
def test_a_path_keeps_what_is_below_the_root(path: str, old: str, new: str) -> None:
    """The second witness is pathlib."""
    top, other, place = Path(old), Path(new), Path(path)
    expected = str(other / place.relative_to(top)) if place.is_relative_to(top) and top != other else path
    assert host_path(path, old, new) == expected
