"""Row N5: a node with 64 GPUs and 200 libraries, against one with a single GPU: what containers get of it, in which
time and with which memory."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from e2e.gpunode import make_image
from e2e.prestartnode import PrestartNode
from lib import jail, session, simnode
from lib.bundle import STANDARD_ENV
from lib.simnode.variants import DEBIAN, VERSION, _add_gpu, _gpus
from security import scalestarts
from security.scalestarts import MOST_MEMORY, Phase, Record, Start, usual
from simnode.nodes import needs_x86

pytestmark = needs_x86
GPUS, LIBRARIES = 64, 200
# Buses that no GPU of the sample has.
BUSES = [bus for bus in range(0x10, 0xFF) if bus not in {0x47, 0x4E, 0x87, 0x90, 0xB7, 0xBD}]
EXTRA = "libnvidia-extra"
LOOK = """ls -d /dev/nvidia[0-9]* | wc -l; ls /proc/driver/nvidia/gpus | wc -l
awk '$5 ~ "[.]so[.]550" { n++ } END { print n }' /proc/self/mountinfo
grep -o '0x[0-9a-f]*' /etc/nvidia/nvidia-application-profiles-rc.d/10-container.conf; ldconfig -p | grep -c extra
for f in /usr/lib/*/libnvidia-extra*.so.1 /dev/null; do head -c 4 "$f"; done | wc -c"""


def document(gpus: int, libraries: int, *, drm: bool) -> dict[str, Any]:
    """That many GPUs, and libraries with the driver's version in all. drm: each GPU has two more nodes in /dev/dri."""
    tree = _gpus(min(gpus, 8))
    for index in range(8, gpus):
        _add_gpu(tree, index, BUSES[index])
    have = sum(1 for path in tree.files if path.endswith(f".so.{VERSION}"))
    for number in range(libraries - have):
        name = f"{EXTRA}{number}.so"
        tree.library(f"{DEBIAN}/{name}.{VERSION}", f"{name}.1", f"{name}.1")
    if not drm:
        tree.remove("/dev/dri")
        tree.remove("/sys/bus/pci/devices/.*/drm")
    return tree.document()


@functools.cache
def node(gpus: int, libraries: int, *, drm: bool = True) -> Path:
    return simnode.build(simnode.load(document(gpus, libraries, drm=drm)), session.new_dir("wide")).root


def libraries_of(root: Path) -> list[str]:
    return sorted(path.name for path in root.glob(f"usr/lib/*/*.so.{VERSION}"))


class Wide:
    """A node, an image, and what a hook took there."""

    def __init__(self, root: Path) -> None:
        self.node = PrestartNode(scalestarts.installed() / "nvidia-container-runtime-hook")
        self.node.root = root
        self.image = make_image(session.new_dir("image"))
        self.record = Record(session.new_dir("record") / "hooks")

    def started(
        self, runtime: str, stage: str, entry: dict[str, Any], env: Sequence[str] = (), *, ok: bool = True
    ) -> dict[str, Any]:
        """A container, twice, after one that may have to look at the node; the end of the last."""
        driver = self.node.driver_hook(self.image)
        hooks = {"prestart": [driver]}
        hooks.setdefault(stage, []).append(scalestarts.measured(entry, self.record.path))
        start = Start(self.image, LOOK, hooks, ok=ok, env=[*STANDARD_ENV, *env])
        ran = scalestarts.run(runtime, [Phase([[start] * 3])], self.node.setup())
        assert ran.bad == []
        end: dict[str, Any] = ran.phases[0]["ends"][-1]
        return end

    def close(self) -> None:
        shutil.rmtree(self.image)


def prestart(runtime: str, gpus: int, libraries: int) -> tuple[list[str], Record]:
    env = ["NVIDIA_VISIBLE_DEVICES=all", "NVIDIA_DRIVER_CAPABILITIES=all"]
    wide = Wide(node(gpus, libraries))
    said = wide.started(runtime, "prestart", wide.node.entry(), env)["stdout"].split()
    wide.close()
    return said, wide.record


def tell(record_property: Callable[[str, object], None], name: str, wide: Record, narrow: Record) -> float:
    """As a property; the ratio of the least times, of those that did not look at the node."""
    least = [min(took for took, _, _ in each.rows()[1:]) for each in (wide, narrow)]
    first = [each.rows()[0][0] for each in (wide, narrow)]
    figures = {
        "wide_ms": least[0] * 1e3, "narrow_ms": least[1] * 1e3, "first_wide_ms": first[0] * 1e3,
        "first_narrow_ms": first[1] * 1e3, "memory_mib": wide.memory() / 1024,
    }  # fmt: skip
    line = json.dumps({k: round(v, 2) for k, v in figures.items()})
    record_property(name, line)
    print(f"n5: {name}: {line}")
    return least[0] / least[1]


def test_n5_prestart_on_a_wide_node(long: bool, runtime: str, record_property: Callable[[str, object], None]) -> None:
    """The table of libraries is a fixed one: those that it does not name are not mounted, however many there are."""
    usual(long, runtime == "runc")
    said, wide = prestart(runtime, GPUS, LIBRARIES)
    narrow_said, narrow = prestart(runtime, 1, 0)
    assert said[:2] == ["64", "64"]
    assert narrow_said[:2] == ["1", "1"]
    assert said[2] == narrow_said[2]  # the libraries
    assert (said[3], narrow_said[3]) == (f"0x{(1 << 64) - 1:x}", "0x1")
    ratio = tell(record_property, f"prestart on {runtime}", wide, narrow)
    assert ratio < 20
    assert wide.memory() <= MOST_MEMORY


def generated(wide: Wide, specs: Path) -> tuple[dict[str, Any], Record]:
    """A specification by `nvoci cdi generate`, and what that took."""
    record = Record(session.new_dir("record") / "generate")
    program = scalestarts.installed() / "nvoci"
    words = ["nvoci", "cdi", "generate", "--output", str(specs / "nvidia.json")]
    entry = scalestarts.measured({"path": str(program), "args": words}, record.path)
    done = jail.run(entry["args"], setup=wide.node.setup(), timeout=120)
    assert done.rc == 0, done.stderr
    found: dict[str, Any] = json.loads((specs / "nvidia.json").read_text())
    return found, record


def injected(wide: Wide, runtime: str, specs: Path, *, ok: bool = True) -> dict[str, Any]:
    program = scalestarts.installed() / "nvidia-cdi-hook"
    words = ["nvidia-cdi-hook", "inject", "--device", "nvidia.com/gpu=all", "--spec-dir", str(specs)]
    return wide.started(runtime, "createRuntime", {"path": str(program), "args": words, "env": ["A=b"]}, ok=ok)


def test_n5_generate_and_inject_of_a_wide_node(
    long: bool, runtime: str, record_property: Callable[[str, object], None]
) -> None:
    usual(long, runtime == "runc")
    records, takes, said = {}, {}, {}
    roots = {GPUS: node(GPUS, LIBRARIES, drm=False), 1: node(1, 0, drm=False)}
    for gpus, root in roots.items():
        wide, specs = Wide(root), session.new_dir("cdi")
        spec, takes[gpus] = generated(wide, specs)
        assert {str(number) for number in range(gpus)} <= {device["name"] for device in spec["devices"]}
        mounts = {Path(mount["hostPath"]).name for mount in spec["containerEdits"]["mounts"]}
        assert [name for name in libraries_of(root) if name not in mounts] == []
        said[gpus] = injected(wide, runtime, specs)["stdout"].split()
        records[gpus] = wide.record
        wide.close()
    extra = sum(1 for name in libraries_of(roots[GPUS]) if name.startswith(EXTRA))
    assert (said[GPUS][0], int(said[GPUS][2])) == ("64", LIBRARIES)
    assert int(said[GPUS][-1]) == 4 * extra  # each can be read by its soname
    assert tell(record_property, f"inject on {runtime}", records[GPUS], records[1]) < 40
    assert records[GPUS].memory() <= MOST_MEMORY
    ratio = takes[GPUS].seconds(1) / takes[1].seconds(1)
    record_property("generate", f"{takes[GPUS].seconds(1):.2f} s, {ratio:.1f} times that of one GPU")
    assert ratio < 20


def test_n5_more_than_inject_can_hold_is_refused_at_once(long: bool, runtime: str) -> None:
    """With three nodes for each GPU there are more than descriptors for them: an error, and nothing is done."""
    usual(long, runtime == "runc")
    wide, specs = Wide(node(GPUS, LIBRARIES)), session.new_dir("cdi")
    generated(wide, specs)
    before = scalestarts.state_of(wide.image)
    end = injected(wide, runtime, specs, ok=False)
    assert runtime == "crun" or "device nodes: too many (at most " in end["stderr"]
    now = scalestarts.state_of(wide.image)
    folders = ("dev", "proc", "sys")  # the runtime's own
    assert {name: now.get(name) for name in {*before, *now} if before.get(name) != now.get(name)
            and not name.startswith(folders)} == {}  # fmt: skip
    assert [code for _, _, code in wide.record.rows()] == [1] * 3
    wide.close()
