"""What a node has, as a whole. Second witness: the specifications that the reference tools made for the samples."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from unit.discover.looktools import (
    built,
    by_name,
    discovery,
    lines,
    needs_gcc,
    needs_mknod,
)

from nvoci.discover.model import DeviceNode, Found, Gpu, MigDevice

pytestmark = [needs_gcc, needs_mknod]
DATA = Path(__file__).resolve().parents[2] / "data/nodes"
MPS = "/tmp/nvidia-mps"
OLD = "535.183.01"
IN_NVML_MODE = ("control", "gpu", "drm", "mig")


# -- the samples ------------------------------------------------------------------------------------------------------


def reference(name: str) -> dict[str, Any]:
    """What `nvidia-ctk cdi generate` wrote on that node."""
    document: dict[str, Any] = yaml.safe_load((DATA / f"{name}.cdi.yaml").read_text())
    return document


def node_facts(node: DeviceNode) -> dict[str, Any]:
    """As a specification has it: what is 0 is left out."""
    fields = {
        "path": node.container_path,
        "major": node.major,
        "minor": node.minor,
        "fileMode": node.mode,
        "gid": node.gid,
    }
    return {**{k: v for k, v in fields.items() if v}, "permissions": "rwm"}


def links_of(edits: dict[str, Any]) -> dict[str, str]:
    """link -> target, after all create-symlinks hooks have run in order."""
    hooks = [hook["args"] for hook in edits.get("hooks", ()) if hook["args"][1] == "create-symlinks"]
    pairs = [each.split("::") for args in hooks for each in args[3::2]]
    return {link: target for target, link in pairs}


def hooks_of(edits: dict[str, Any]) -> list[tuple[str, ...]]:
    return [tuple(hook["args"][1:]) for hook in edits["hooks"] if hook["args"][1] != "create-symlinks"]


def by_path(nodes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(nodes, key=lambda node: str(node["path"]))


def in_nvml_mode(found: Found) -> Found:
    """Without what other modes and capabilities are about: GPUDirect Storage, 32-bit libraries, MPS."""
    mounts = [m for m in found.mounts if not {"gds", "compat32"} & set(m.capabilities) and m.container_path != MPS]
    nodes = [n for n in found.device_nodes if n.kind in IN_NVML_MODE]
    return found.replace(mounts=tuple(mounts), device_nodes=tuple(nodes))


def nodes_for(found: Found, device: Gpu | MigDevice) -> list[DeviceNode]:
    """What a specification gives one device: a MIG device has its GPU's, DRM nodes only for graphics."""
    if isinstance(device, Gpu):
        return [n for n in found.device_nodes if n.owner == device.uuid]
    of_gpu = [n for n in found.device_nodes if n.owner == device.parent and (n.kind == "gpu" or device.graphics)]
    return of_gpu + [n for n in found.device_nodes if n.owner == device.uuid]


def devices_of(found: Found) -> dict[str, Gpu | MigDevice]:
    """By the names that the reference gives them."""
    named: dict[str, Gpu | MigDevice] = {}
    for each in found.gpus:
        if not each.mig_enabled:
            named |= {str(each.index): each, each.uuid: each}
    for mig in found.mig_devices():
        named |= {mig.name: mig, mig.uuid: mig}
    return named


@pytest.fixture(scope="module", params=["a100", "a100-mig"])
def sample(request: pytest.FixtureRequest) -> Iterator[tuple[Found, dict[str, Any], str]]:
    """What is found on a sample, what the reference wrote, the node's root."""
    with discovery(request.param) as seen:
        assert (seen.platform.kind, seen.found.problems) == ("nvml", ())
        yield in_nvml_mode(seen.found), reference(request.param), str(built(request.param).root)


def test_mounts_are_those_of_the_reference(sample: tuple[Found, dict[str, Any], str]) -> None:
    found, document, root = sample
    mine = {(m.host_path.removeprefix(root), m.container_path, m.options) for m in found.mounts}
    theirs = {(m["hostPath"], m["containerPath"], tuple(m["options"])) for m in document["containerEdits"]["mounts"]}
    assert mine == theirs
    assert len(mine) == len(found.mounts)


def test_common_device_nodes_are_those_of_the_reference(sample: tuple[Found, dict[str, Any], str]) -> None:
    found, document, _ = sample
    mine = [node_facts(n) for n in found.device_nodes if n.owner == "" and n.kind == "control"]
    assert by_path(mine) == by_path(document["containerEdits"]["deviceNodes"])


def test_links_are_those_of_the_reference(sample: tuple[Found, dict[str, Any], str]) -> None:
    found, document, _ = sample
    mine = [pair for mount in found.mounts for pair in mount.links]
    assert {link: target for target, link in mine} == links_of(document["containerEdits"])
    assert len({link for _, link in mine}) == len(mine)


def test_variables_and_hooks_are_those_of_the_reference(sample: tuple[Found, dict[str, Any], str]) -> None:
    found, document, _ = sample
    assert [f"{v.name}={v.value}" for v in found.variables] == document["containerEdits"]["env"]
    assert [(hook.name, *hook.args) for hook in found.hooks] == hooks_of(document["containerEdits"])


def test_each_device_has_the_nodes_and_links_of_the_reference(sample: tuple[Found, dict[str, Any], str]) -> None:
    found, document, _ = sample
    mine = devices_of(found)
    theirs = {device["name"]: device["containerEdits"] for device in document["devices"] if device["name"] != "all"}
    assert set(mine) == set(theirs)
    for name, edits in theirs.items():
        nodes = nodes_for(found, mine[name])
        assert by_path([node_facts(n) for n in nodes]) == by_path(edits["deviceNodes"]), name
        assert {link: target for n in nodes for target, link in n.links} == links_of(edits), name


def test_tegra_has_what_the_reference_gives(tmp_path: Path) -> None:
    document, root = reference("tegra"), str(built("tegra").root)
    with discovery("tegra") as seen:
        found = seen.found
    edits, (device, _) = document["containerEdits"], document["devices"]
    assert seen.platform.kind == "csv"
    mine = {(m.host_path.removeprefix(root), m.container_path, m.options) for m in found.mounts}
    assert mine == {(m["hostPath"], m["containerPath"], tuple(m["options"])) for m in edits["mounts"]}
    assert {link: target for m in found.mounts for target, link in m.links} == links_of(edits)
    assert by_path([node_facts(n) for n in found.device_nodes]) == by_path(device["containerEdits"]["deviceNodes"])
    assert {(n.kind, n.owner) for n in found.device_nodes} == {("tegra", "")}
    assert [f"{v.name}={v.value}" for v in found.variables] == edits["env"]
    assert [(hook.name, *hook.args) for hook in found.hooks] == hooks_of(edits)
    missing = [each for each in lines(seen) if "entries are not there" in each]
    assert len(missing) == 3


def test_what_the_reference_misses_is_found() -> None:
    with discovery("a100") as seen:
        assert by_name(seen.found.mounts)[MPS].kind == "directory"
        assert {n.kind for n in seen.found.device_nodes} == {
            "control",
            "gpu",
            "drm",
            "mig-config",
            "mig-monitor",
            "nvswitch",
            "nvlink",
            "gds",
            "mofed",
            "gdrcopy",
        }


def test_what_is_found_survives_json() -> None:
    for name in ("a100-mig", "tegra", "thor"):
        with discovery(name) as seen:
            assert Found.from_json(seen.found.to_json(sparse=True)) == seen.found
