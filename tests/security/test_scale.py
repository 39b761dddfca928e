"""Rows N1 and N6: many container starts at once: with several hooks in one process, and with the prestart hook.

The figures are those of `scripts/test --security --long -k n1 tests/security/test_scale.py`, one line for each runtime
and kind. Times are of a busy machine: 32 starts share its cores.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from e2e.gpunode import Program, make_image
from e2e.prestartnode import PrestartNode
from lib import compat, hookproc, rootfs, session
from lib.bundle import STANDARD_ENV, Json
from security import scalestarts
from security.arena import LIBDIR, NAIVE
from security.scalestarts import Phase, Record, Start, quantile, usual

MERGED = [
    "run", "--", "create-symlinks", "--link", f"libcuda.so.1::/{LIBDIR}/libcuda.so", "--link", "x::/opt/a/b/x",
    "--", "chmod", "--mode", "640", "--path", "/etc/hostname",
    "--", "update-application-profile", "--", "update-ldcache", "--folder", "/opt/a", "--engine",
]  # fmt: skip
LOOK = f"readlink /{LIBDIR}/libcuda.so; readlink /opt/a/b/x; stat -c %a /etc/hostname; ldconfig -p >/dev/null"
SEEN = "libcuda.so.1\nx\n640\n"
GPU_LOOK = """ls -d /dev/nvidia[0-9]*; ls /proc/driver/nvidia/gpus | wc -l
ldconfig -p | grep -q 'libcuda[.]so[.]1 ' && echo cuda
sed -n 's/^ModifyDeviceFiles: //p' /proc/driver/nvidia/params; true"""


class Kind:
    """What one slot of many starts."""

    setup = ""

    def image(self) -> Path:
        raise NotImplementedError

    def start(self, root: Path, number: int, record: Record | None, gate: Path | None = None) -> Start:
        """record: None for a container without the hook. number: below 0: it may look at the node."""
        raise NotImplementedError


class Merged(Kind):
    """Five hooks in one process, at each of the two stages."""

    def __init__(self, engine: str = "builtin", *, naive: bool = False) -> None:
        program = Program(scalestarts.installed() / "nvidia-cdi-hook")
        words = [*MERGED, engine]
        self.entry = hookproc.hook_entry(words, program=NAIVE) if naive else program.entry(*words)

    def image(self) -> Path:
        return rootfs.glibc_rootfs(session.new_dir("image"))

    def start(self, root: Path, number: int, record: Record | None, gate: Path | None = None) -> Start:
        if record is None:
            return Start(root, f"{LOOK}; true")
        stage = ("createRuntime", "createContainer")[number % 2]
        return Start(root, LOOK, {stage: [scalestarts.measured(self.entry, record.path, gate)]}, SEEN)


class Prestart(Kind):
    """Each slot wants other GPUs of one node."""

    def __init__(self) -> None:
        self.node = PrestartNode(scalestarts.installed() / "nvidia-container-runtime-hook")
        self.old, self.node.filtered = self.node.filtered, False
        self.setup = self.node.setup()

    def image(self) -> Path:
        return make_image(session.new_dir("image"))

    def start(self, root: Path, number: int, record: Record | None, gate: Path | None = None) -> Start:
        driver = self.node.driver_hook(root)
        if record is None:
            return Start(root, f"{GPU_LOOK} 2>/dev/null", {"prestart": [driver]})
        gpus = sorted({number % 8, (number + number // 8) % 8})  # one, or two
        hooks = [driver, scalestarts.measured(self.entry(old=number >= 0), record.path, gate)]
        wanted = [f"NVIDIA_VISIBLE_DEVICES={','.join(map(str, gpus))}", "NVIDIA_DRIVER_CAPABILITIES=compute,utility"]
        seen = "".join(f"/dev/nvidia{gpu}\n" for gpu in gpus) + f"{len(gpus)}\ncuda\n0\n"
        return Start(root, GPU_LOOK, {"prestart": hooks}, seen, env=[*STANDARD_ENV, *wanted])

    def entry(self, *, old: bool) -> Json:
        """old: in a compat run without the newer system calls, which the look at the node needs."""
        entry = self.node.entry()
        if not (old and self.old):
            return entry
        words = [*compat.prefix(), str(self.node.program), *entry["args"][1:]]
        return {**entry, "path": words[0], "args": words}


KINDS: dict[str, Callable[[], Kind]] = {
    "merged": Merged, "merged-ldconfig": lambda: Merged("ldconfig"), "prestart": Prestart,
}  # fmt: skip
Figures = dict[str, float]


def slots(kind: Kind, roots: Sequence[Path], count: int, record: Record | None) -> list[list[Start]]:
    """`count` starts over as many slots as there are roots."""
    found = []
    for number, root in enumerate(roots):
        start = kind.start(root, number, record)
        found.append([start] * (count // len(roots)))
    return found


def many(runtime: str, kind: Kind, count: int, parallel: int, alone: int) -> tuple[list[str], Figures]:
    """`count` starts, `parallel` at a time, half of them on one root that they share; before them some without the
    hook, and `alone` of each sort one after another on a root of their own, with which the others' must agree."""
    reference, shared = kind.image(), kind.image()
    roots = [kind.image() if n % 4 < 2 else shared for n in range(parallel)]
    quiet, busy = (Record(session.new_dir("record") / "hooks") for _ in range(2))
    phases = [
        Phase([[kind.start(reference, 0, None)] * alone]),
        Phase([[kind.start(reference, -8, quiet)] * alone]),
        Phase(slots(kind, roots, max(count // 4, parallel), None)),
        Phase(slots(kind, roots, count, busy)),
    ]
    ran = scalestarts.run(runtime, phases, kind.setup)
    bad = ran.bad + scalestarts.differing(sorted({*roots}), reference)
    if len(busy.rows()) != count or any(code for _, _, code in busy.rows()):
        bad.append(f"{len(busy.rows())} hooks ran, not {count}, or failed")
    for root in {reference, *roots}:
        shutil.rmtree(root)
    if not ran.phases:
        return bad, {}
    middle = [quantile(ran.walls(n), 0.5) for n in range(4)]
    return bad, {
        "starts": count, "parallel": parallel, "failures": sum(end["rc"] != 0 for end in ran.phases[3]["ends"]),
        "seconds": ran.phases[3]["seconds"], "memory_mib": max(busy.memory(), quiet.memory()) / 1024,
        "hook_p50_ms": busy.seconds(0.5) * 1e3, "hook_p99_ms": busy.seconds(0.99) * 1e3,
        "hook_max_ms": busy.seconds(1) * 1e3, "hook_alone_ms": quiet.seconds(0.5) * 1e3,
        "start_p50_ms": middle[3] * 1e3, "start_p99_ms": quantile(ran.walls(3), 0.99) * 1e3,
        "start_to_none": middle[3] / middle[2], "start_to_none_alone": middle[1] / middle[0],
    }  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_n1_every_start_succeeds_and_leaves_nothing(
    profile: str,
    runtime: str,
    kind: str,
    long: bool,
    record_property: Callable[[str, object], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """N6: with the memory that they may take."""
    usual(long, (profile == "new" or kind == "merged") and (kind != "merged-ldconfig" or runtime == "runc"))
    whole = long and profile == "new" and kind != "merged-ldconfig"
    count, parallel, alone = (1024, 32, 20) if whole else (32, 8, 3) if profile == "new" else (8, 8, 1)
    bad, figures = many(runtime, KINDS[kind](), count, parallel, alone)
    line = json.dumps({"runtime": runtime, "kind": kind, **{k: round(v, 2) for k, v in figures.items()}})
    record_property("figures", line)
    if whole:
        with capsys.disabled():
            print(f"\nn1: {line}")
    assert bad == []
    # Where a filter stands in for an old kernel, its own process is counted, and that which looks at the node before.
    assert profile == "compat" or figures["memory_mib"] * 1024 <= scalestarts.MOST_MEMORY


def test_naive_n1_starts_leave_files(runtime: str) -> None:
    found, _ = many(runtime, Merged(naive=True), 8, 8, 1)
    assert any("zz-nvcr-" in v for v in found), found


def test_n6_the_measure_is_not_deaf() -> None:
    """A program that takes 60 MiB is seen to, and so is its child's child."""
    record = Record(session.new_dir("record") / "hooks")
    code = "import os; p = os.fork(); x = b'x' * ((60 << 20) * (not p)); p and os.waitpid(p, 0); os._exit(3)"
    entry = scalestarts.measured({"path": session.PYTHON, "args": ["python", "-c", code]}, record.path)
    assert os.waitstatus_to_exitcode(os.spawnv(os.P_WAIT, entry["path"], entry["args"]) << 8) == 3
    ((took, memory, status),) = record.rows()
    assert (status, memory > 60 << 10, 0 < took < 30) == (3, True, True)
