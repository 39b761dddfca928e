"""GPUs, MIG devices and channels that only the node has, or only the specification."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from unit.discover.looktools import needs_mknod
from unit.generate.staletools import UUID, Host

from nvoci.cdi.model import Device, Spec
from nvoci.generate import stalegpus
from nvoci.generate.now import Now, Part

pytestmark = needs_mknod

NEW = "on this node, and not in the specification (refresh it)"
CAPS = ("nvidia-caps/nvidia-cap12", "nvidia-caps/nvidia-cap13")


@pytest.fixture
def host(tmp_path: Path) -> Host:
    """With the files of one."""
    return Host(tmp_path)


def mig(host: Host) -> Part:
    """A MIG device of GPU 0."""
    own = frozenset(map(host.path, ("nvidia0", *CAPS)))
    return Part("MIG device 0:0 (MIG-1)", ("0:0", "mig0:0", "MIG-1"), own, own)


def without(spec: Spec, *names: str) -> Spec:
    """Of fewer devices."""
    return Spec("0.6.0", spec.kind, tuple([d for d in spec.devices if d.name not in names]), spec.container_edits)


NODES, DEV, U0 = "devices[{}].containerEdits.deviceNodes", "HOST/dev", UUID.format(0)
OF_1 = ("1", UUID.format(1), "all")
GONE = "devices[{}].name: device{}: no GPU or MIG device of this node that answers"
# what the specification has, what the node has -> lines
CASES: dict[str, tuple[Callable[[Host], tuple[Spec, Now]], list[str]]] = {
    "the same": (lambda h: (h.spec(), h.now()), []),
    "a GPU more": (lambda h: (without(h.spec(), *OF_1), h.now()), [f"devices: GPU 1 ({UUID.format(1)}): {NEW}"]),
    "a GPU that is in `all`": (lambda h: (without(h.spec(), *OF_1[:2]), h.now()), []),
    "a GPU fewer": (
        lambda h: (h.spec(), h.now(parts=(h.part(0),))), [GONE.format(2, f"s 1, {UUID.format(1)}") + " (refresh it)"]
    ),
    "a GPU that does not answer": (
        lambda h: (h.spec(), h.now(parts=(h.part(0),), unanswered=("ask NVML about GPU 1: lost (reset it)",))),
        [GONE.format(2, f"s 1, {UUID.format(1)}") + "; ask NVML about GPU 1: lost (reset it) (refresh it)"],
    ),
    "a GPU without a node": (
        lambda h: (without(h.spec(), *OF_1), h.now(parts=(h.part(0), Part("GPU 1", ("1",))))), []
    ),
    "MIG mode is on": (
        lambda h: (h.spec(), h.now(parts=(h.part(1), mig(h)))),
        [f"devices: MIG device 0:0 (MIG-1): {NEW}", GONE.format(0, f"s 0, {UUID.format(0)}") + " (refresh it)"],
    ),
    "other indices": (
        lambda h: (h.spec(), h.now(parts=(
            Part("GPU 0", ("0", UUID.format(1)), *[frozenset([h.path("nvidia1")])] * 2),
            Part("GPU 1", ("1", UUID.format(0)), *[frozenset([h.path("nvidia0")])] * 2),
        ))),
        [
            f"{NODES.format(0)}: device 0, GPU 0: has {DEV}/nvidia0 of another GPU, lacks {DEV}/nvidia1 (refresh it)",
            f"{NODES.format(2)}: device 1, GPU 1: has {DEV}/nvidia1 of another GPU, lacks {DEV}/nvidia0 (refresh it)",
        ],
    ),
    "a DRM node more": (
        lambda h: (h.spec(), h.now(parts=(h.part(0, "dri/card0"), h.part(1)))),
        [f"{NODES.format(0)}: devices 0, {U0}, GPU 0 ({U0}): lacks {DEV}/dri/card0 (refresh it)"],
    ),
    "no module": (lambda h: (h.spec(), h.now(module="", parts=())), []),
    "WSL": (lambda h: (h.spec(), h.now(kind="wsl", parts=None)), []),
    "a Tegra system": (lambda h: (h.spec(), h.now(kind="csv", parts=(Part("GPU 0", ("0",)), Part("GPU 1", ("1",))))), [
        GONE.format(1, f"s {UUID.format(0)}, {UUID.format(1)}") + " (refresh it)"]),
    "a GPU more of a Tegra system": (
        lambda h: (without(h.spec(), *OF_1), h.now(kind="csv", parts=(
            Part("GPU 0", ("0", UUID.format(0))), Part("GPU 1", ("1",))))),
        [f"devices: GPU 1: {NEW}"],
    ),
    "a Tegra system without NVML": (lambda h: (h.spec(), h.silent(kind="csv")), []),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_with_nvml(host: Host, case: str) -> None:
    make, expected = CASES[case]
    assert host.lines(stalegpus.gpus(*make(host))) == expected


SILENT: dict[str, tuple[tuple[str, ...], dict[str, bool], list[str]]] = {
    "the same": ((), {"nvidia0": False, "nvidia1": False}, []),
    "a GPU more": (OF_1, {"nvidia0": False, "nvidia1": False}, [f"devices: GPU HOST/dev/nvidia1: {NEW}"]),
    "one in MIG mode more": (OF_1, {"nvidia0": False, "nvidia1": True}, []),
    "one without a node more": ((), {"nvidia0": False, "nvidia1": False, "nvidia7": False}, []),
    "a node left behind": (
        (), {"nvidia0": False},
        [f"{NODES.format(2)}: device node {DEV}/nvidia1: the driver has no such GPU (refresh it)"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", SILENT)
def test_without_nvml(host: Host, case: str) -> None:
    gone, minors, expected = SILENT[case]
    now = host.silent(minors={host.path(name): mig for name, mig in minors.items()})
    assert host.lines(stalegpus.gpus(without(host.spec(), *gone), now)) == expected


@pytest.mark.parametrize("asked", [True, False], ids=["with NVML", "without"])
def test_what_was_not_asked_for_is_not_missed(host: Host, asked: bool) -> None:
    spec = host.spec(annotations={"nvoci.io/device-ids": "0"}, devices=without(host.spec(), *OF_1).devices)
    assert stalegpus.gpus(spec, host.now() if asked else host.silent()) == []


def test_many_new_ones_are_one_line(host: Host) -> None:
    parts = tuple([Part(f"GPU {i}", (str(i),), frozenset([f"/dev/nvidia{i}"])) for i in range(2, 9)])
    (line,) = host.lines(stalegpus.gpus(host.spec(), host.now(parts=(host.part(0), host.part(1), *parts))))
    assert line == f"devices: 7 GPUs and MIG devices, GPU 2, GPU 3, GPU 4, GPU 5, …: {NEW}"


CHANNELS = tuple([f"/dev/nvidia-caps-imex-channels/channel{i}" for i in range(3)])
GROUPS: dict[str, tuple[tuple[int, ...], dict[str, Any], list[str]]] = {
    "all": ((0, 1, 2), {}, []),
    "one is missing": ((0, 2), {}, [f"devices: device node {CHANNELS[1]}: {NEW}"]),
    "none is asked for": ((), {}, []),
    "some were asked for": ((0,), {"annotations": {"nvoci.io/device-ids": "0"}}, []),
}


@pytest.mark.parametrize("case", GROUPS)
def test_channels(host: Host, case: str) -> None:
    has, changes, expected = GROUPS[case]
    devices = tuple([Device(str(i), host.edits(CHANNELS[i].removeprefix("/dev/"))) for i in has])
    spec = host.spec(**{"annotations": {}, "devices": devices or host.spec().devices, **changes})
    now = host.now(groups={"imex": tuple([str(host.top) + path for path in CHANNELS])})
    assert [line.replace("HOST", "") for line in host.lines(stalegpus.groups(spec, now))] == expected
    assert not stalegpus.has_gpus(spec) or not has
