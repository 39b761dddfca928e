"""What is seen of a node, in the words of a comparison."""

from __future__ import annotations

from pathlib import Path

import pytest
from lib import simnode
from unit.ctl.nodetools import NEEDS, at, copied
from unit.discover.looktools import built

from nvoci.discover.look import Place
from nvoci.generate import now
from nvoci.generate.now import Now

pytestmark = NEEDS

V = "550.163.01"
UUID = "GPU-12345678-1234-1234-1234-1234567800{:02x}"


def seen(node: simnode.Built | Path, monkeypatch: pytest.MonkeyPatch, *, ask: bool = True) -> Now:
    """A look at it."""
    _, root = at(node, monkeypatch)
    return now.at(Place(str(root), seconds=5.0), ask)


def below(node: simnode.Built, paths: frozenset[str]) -> list[str]:
    """Without the node's directory."""
    return sorted(path.removeprefix(f"{node.root}/dev/") for path in paths)


def test_a_node_of_two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    node = built("no-drm")
    found = seen(node, monkeypatch)
    assert (found.kind, found.version, found.module, found.mismatch) == ("nvml", V, V, ("", ""))
    assert (found.root, found.dev_root) == (str(node.root), str(node.root))
    assert (found.major("nvidia"), found.major("nvidia-uvm"), found.major("nvidia-x")) == (195, 510, None)
    assert found.minors == {f"{node.root}/dev/nvidia0": False, f"{node.root}/dev/nvidia1": False}
    assert (found.silence, found.unanswered) == ("", ())
    first, second = found.parts or ()
    assert (first.words, first.names) == (f"GPU 0 ({UUID.format(0)})", ("0", "gpu0", UUID.format(0)))
    assert (below(node, second.needed), below(node, second.nodes)) == (["nvidia1"], ["nvidia1"])


def test_drm_nodes_are_wanted_and_not_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    node = built("rhel-lib64")
    (first, _) = seen(node, monkeypatch).parts or ()
    assert below(node, first.needed) == ["nvidia0"]
    assert below(node, first.nodes) == ["dri/card1", "dri/renderD128", "nvidia0"]


def test_mig_devices_have_their_capabilities(monkeypatch: pytest.MonkeyPatch) -> None:
    node = built("a100-mig")
    found = seen(node, monkeypatch)
    parts = {part.names[0]: part for part in found.parts or ()}
    assert list(parts)[:4] == ["0:0", "0:1", "0:2", "1:0"]
    assert {"5", "6", "7"} <= set(parts)
    assert not {"0", "1", "2"} & set(parts)
    assert below(node, parts["0:0"].needed) == ["nvidia-caps/nvidia-cap12", "nvidia-caps/nvidia-cap13", "nvidia0"]
    assert found.minors is not None
    assert [found.minors[f"{node.root}/dev/nvidia{i}"] for i in (0, 5)] == [True, False]


def test_without_nvml_the_kernel_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    node = copied("no-drm", {"hang": "load"})
    found = seen(node, monkeypatch, ask=False)
    assert (found.parts, found.silence) == (None, "NVML was not asked")
    assert (found.version, found.module, len(found.minors or ())) == (V, V, 2)


def test_where_no_module_is_loaded_nvml_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    node = copied("driver-not-loaded", {"hang": "load"})
    found = seen(node, monkeypatch)
    assert (found.parts, found.silence) == (None, "the kernel module is not loaded")
    assert (found.version, found.module, found.minors) == (V, "", {})


def test_nvmls_refusal_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    node = copied("no-drm", {"error": "init:3"})
    found = seen(node, monkeypatch)
    assert found.parts is None
    assert found.silence.startswith(f"ask NVML {node.root}/usr/lib/x86_64-linux-gnu/libnvidia-ml.so.{V}: nvmlInit: ")


def test_versions_that_differ_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    found = seen(built("version-mismatch"), monkeypatch)
    assert (found.version, found.module) == ("535.183.01", V)
    assert found.mismatch[0] == f"kernel module {V}, libraries 535.183.01: the versions differ"
    assert found.mismatch[1].startswith("reboot, or ")


def test_a_gpu_without_an_answer_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    found = seen(built("gpu-lost"), monkeypatch)
    assert [part.names[0] for part in found.parts or ()] == ["0", "2"]
    (line,) = found.unanswered
    assert line.startswith("ask NVML about GPU 1: nvmlDeviceGetHandleByIndex of GPU 1: NVML_ERROR_GPU_IS_LOST (")


def test_channels_are_a_group(monkeypatch: pytest.MonkeyPatch) -> None:
    found = seen(built("imex"), monkeypatch, ask=False)
    names = [path.rpartition("/")[2] for path in (found.groups or {})["imex"]]
    assert names == ["channel0", "channel1", "channel2", "channel3", "channel2047"]
    assert found.major("nvidia-caps-imex-channels") == 234


OTHERS = {"tegra": ("csv", None), "thor": ("csv", ["0", "1"]), "wsl": ("wsl", None)}


@pytest.mark.parametrize("name", OTHERS)
def test_other_kinds_of_node(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    kind, names = OTHERS[name]
    found = seen(built(name), monkeypatch)
    assert found.kind == kind
    assert found.parts is None if names is None else [part.names[0] for part in found.parts or ()] == names
    assert not any(part.nodes for part in found.parts or ())


def test_the_first_name_of_a_driver_counts() -> None:
    assert Now(majors={"nvidia-frontend": 195, "nvidiactl": 9}).major("nvidia") == 195
    assert Now(majors={"nvidia-uvm": 510}).major("nvidia-uvm") == 510
    assert Now().major("nvidia") is None
