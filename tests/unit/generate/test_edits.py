"""Nodes, mounts and groups in the words of CDI."""

from __future__ import annotations

from typing import Any

import pytest
from unit.generate.gentools import mount, node

from nvoci.cdi.model import ContainerEdits, DeviceNode, Hook, Mount
from nvoci.discover.model import READ_ONLY
from nvoci.generate.edits import edits
from nvoci.generate.parts import Share

NODES: dict[str, tuple[dict[str, Any], DeviceNode]] = {
    "the host's": ({}, DeviceNode("/dev/x", major=195, minor=7, file_mode=0o666, permissions="rwm")),
    "of another root": (
        {"host_path": "/drv/dev/x"},
        DeviceNode("/dev/x", "/drv/dev/x", major=195, minor=7, file_mode=0o666, permissions="rwm"),
    ),
    "of a group": (
        {"gid": 44, "mode": 0o660},
        DeviceNode("/dev/x", major=195, minor=7, file_mode=0o660, permissions="rwm", gid=44),
    ),
    "of a user": ({"uid": 5}, DeviceNode("/dev/x", major=195, minor=7, file_mode=0o666, permissions="rwm")),
    "unread": ({"type": "", "mode": 0}, DeviceNode("/dev/x")),
}


@pytest.mark.parametrize("case", NODES)
def test_a_node_is_told_by_its_numbers(case: str) -> None:
    more, expected = NODES[case]
    (made,) = edits(Share(nodes=(node("/dev/x", "gpu", minor=7, **more),)), [], True).device_nodes
    assert made == expected


@pytest.mark.parametrize("host_path", ["/dev/x", "/drv/dev/x"])
def test_a_node_may_be_told_by_its_paths_alone(host_path: str) -> None:
    share = Share(nodes=(node("/dev/x", "imex", host_path=host_path, gid=44, mode=0o660),), path_only=True)
    assert edits(share, [], True) == ContainerEdits(device_nodes=(DeviceNode("/dev/x", host_path),))


# gid and mode of nodes -> groups
GROUPS = {
    "everybody reads and writes": ([(44, 0o666), (44, 0o667), (44, 0o776)], ()),
    "others read only": ([(44, 0o664)], (44,)),
    "others write only": ([(44, 0o662)], (44,)),
    "closed": ([(104, 0o660), (44, 0o660), (104, 0o600)], (44, 104)),
    "root's": ([(0, 0o600)], ()),
}


@pytest.mark.parametrize("case", GROUPS)
def test_processes_join_the_groups_of_nodes_that_are_not_everybodys(case: str) -> None:
    nodes, gids = GROUPS[case]
    share = Share(nodes=tuple(node(f"/dev/x{n}", "drm", gid=gid, mode=mode) for n, (gid, mode) in enumerate(nodes)))
    assert edits(share, [], True).additional_gids == gids
    assert edits(share, [], False).additional_gids == ()


def test_the_rest_is_taken_as_it_is() -> None:
    hook = Hook("createContainer", "/x", ("x",), ("A=1",))
    made = edits(Share(("A=b",), mounts=(mount("/lib/a.so", host_path="/drv/lib/a.so"),)), [hook], True)
    assert made == ContainerEdits(env=("A=b",), hooks=(hook,), mounts=(Mount("/drv/lib/a.so", "/lib/a.so", READ_ONLY),))
