"""`nvoci cdi refresh` where there is no driver, or not yet."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from unit.ctl.ctktools import SPEC, Generator, generator
from unit.ctl.refreshtools import OURS, TOLD, Refresh, refresh
from unit.discover.looktools import needs_mknod

from nvoci.cdi import text
from nvoci.cdi.model import ContainerEdits, Hook, Spec
from nvoci.errors import HookError

__all__ = ["generator", "refresh"]

pytestmark = needs_mknod

NO_MODULE = "no driver: the kernel module nvidia is not loaded (modprobe nvidia)"
GONE = "FILE: removed: it is for devices that are not there"
LEFT = "FILE: left as it is"


@pytest.fixture
def gone(refresh: Refresh, generator: Generator) -> Refresh:
    """One whose driver was there, and its specification is."""
    refresh.run()
    refresh.unload()
    generator.refusal = HookError("find NVML: none", "")
    return refresh


def test_none_is_a_state_and_its_specification_goes(gone: Refresh) -> None:
    assert gone.told(gone.run()) == [NO_MODULE, GONE]
    assert not gone.path.exists()
    assert gone.told(gone.run()) == [NO_MODULE]
    gone.load()


def test_it_may_be_kept(gone: Refresh) -> None:
    before = gone.identity()
    assert gone.told(gone.run("--when-gone", "keep")) == [
        NO_MODULE, f"{LEFT}, though it is for devices that are not there"
    ]  # fmt: skip
    assert gone.identity() == before


def _write(spec: Spec) -> Callable[[Path], object]:
    return lambda path: path.write_text(text.dumps(spec))


FOREIGN: dict[str, Callable[[Path], object]] = {
    "without annotations": _write(SPEC),
    "of another kind": _write(replace(OURS, kind="nvidia.com/x")),
    "no specification": lambda path: path.write_text("{"),
    "that others can write": lambda path: path.chmod(0o666),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_one_that_is_not_ours_is_left(gone: Refresh, case: str) -> None:
    FOREIGN[case](gone.path)
    before = gone.path.read_bytes()
    assert gone.told(gone.run()) == [NO_MODULE, f"{LEFT}: it is not one of ours for nvidia.com/gpu"]
    assert gone.path.read_bytes() == before


def test_one_without_annotations_is_ours_by_its_hook(gone: Refresh, generator: Generator) -> None:
    """As for engines that know no annotations."""
    hook = Hook("createContainer", "/opt/nvidia-cdi-hook", ("nvidia-cdi-hook", "run", "--", "noop"), ("A=1",))
    _write(replace(SPEC, container_edits=ContainerEdits(hooks=(hook,))))(gone.path)
    assert gone.told(gone.run()) == [NO_MODULE, GONE]


def test_without_a_gpu_on_the_bus_it_does_not_wait(gone: Refresh) -> None:
    (gone.sys / "bus/pci/devices/0000:07:00.0/vendor").write_text("0x8086\n")
    assert gone.told(gone.run("--wait", "20")) == [NO_MODULE, GONE]
    assert gone.naps == []


def test_it_waits_no_longer_than_asked(gone: Refresh, generator: Generator) -> None:
    generator.asked.clear()
    done = gone.run("--wait", "2")
    assert gone.told(done) == [NO_MODULE, GONE]
    assert (gone.naps, len(generator.asked)) == ([0.25, 0.5, 1.0, 0.25], 1)
    assert done.stderr == "nvoci: waiting up to 2 s for the driver: the kernel module nvidia is not loaded\n"


def test_a_driver_that_comes_is_used(gone: Refresh, generator: Generator) -> None:
    generator.refusal = None
    gone.after[2] = gone.load
    before = gone.identity()
    assert gone.told(gone.run("--wait", "20")) == [f"FILE: unchanged: {TOLD}"]
    assert (gone.identity(), len(gone.naps)) == (before, 2)


def test_a_driver_that_comes_in_parts_is_waited_for(refresh: Refresh, generator: Generator) -> None:
    node = refresh.node.root / "dev/nvidia0"
    node.rename(refresh.node.root / "away")
    refresh.after[3] = lambda: (refresh.node.root / "away").rename(node)
    done = refresh.run("--wait", "20")
    assert refresh.told(done) == [f"FILE: made: {TOLD}"]
    assert f"waiting up to 20 s for the driver: {node} not there yet" in done.stderr
    assert (len(refresh.naps), len(generator.asked)) == (3, 1)


def test_what_there_is_of_it_is_used_in_the_end(refresh: Refresh) -> None:
    (refresh.node.root / "dev/nvidia-uvm").unlink()
    assert refresh.told(refresh.run("--wait", "1")) == [f"FILE: made: {TOLD}"]
    assert sum(refresh.naps) == 1


def test_a_part_of_the_machine_that_is_not_there_is_a_state_too(refresh: Refresh, generator: Generator) -> None:
    generator.refusal = HookError("generate CDI spec: no IMEX channel: invalid device, empty device edits", "make one")
    done = refresh.run("--mode", "imex")
    assert refresh.told(done) == [f"no driver: {generator.refusal.line()}"]
    generator.refusal = HookError("IMEX channel 7 not found", "")
    assert refresh.run("--mode", "imex", "--device-id", "7").rc == 1
