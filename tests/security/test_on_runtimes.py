"""Every hostile shape on real runtimes: runc and crun, at each stage, with all of the kernel's interfaces and as on an
old kernel, under the oracle.

Shapes, runtimes, stages and profiles make the matrix. A normal run takes of each shape one stage per runtime and
profile, another for each shape; `--long` takes all.
"""

from __future__ import annotations

import platform
import shutil

import pytest
from lib import elfmaker, hookproc, rootfs, runtimes, session
from lib.oracle import Oracle
from lib.runtimes import Runtime, make_bundle, shell_hook
from security import arena as arenas
from security.arena import LIBDIR, NAIVE, Arena, escapes, settled
from security.shapes import SHAPES, Shape

STAGES = ("prestart", "createRuntime", "createContainer")
MATRIX = [
    pytest.param(shape, runtime, stage, kernel, id=f"{shape.id}-{runtime}-{stage}-{kernel}",
                 marks=[] if (number + r + 2 * k) % 3 == s and (r + k + number) % 2 else pytest.mark.long)
    for number, shape in enumerate(SHAPES)
    for r, runtime in enumerate(runtimes.NAMES)
    for s, stage in enumerate(STAGES)
    for k, kernel in enumerate(("new", "compat"))
]  # fmt: skip


def lay(shape: Shape) -> Arena:
    """The image, with a shell of its own, and the canary."""
    arena = arenas.make(session.new_dir("shape"))
    rootfs.tree(arena.root, "dir bin\ndir run")
    shutil.copy2(shutil.which("busybox") or "", arena.root / "bin/busybox")
    canary = str(arena.canary)[1:]
    spec = []
    for line in shape.spec.replace("{c}", canary).split("\n"):
        word, _, name = line.partition(" ")
        if word == "gone":
            target = arena.root / name
            if target.is_dir() and not target.is_symlink():
                shutil.rmtree(target)
            else:
                target.unlink(missing_ok=True)
        elif word == "elf":
            elfmaker.make_so(arena.root / LIBDIR / "libpath.so.1.0", name, machine=platform.machine())
        else:
            spec.append(line)
    rootfs.tree(arena.root, "\n".join(spec))
    return arena


def start(shape: Shape, runtime: str, stage: str, *, naive: bool = False) -> list[str]:
    """One container; what the oracle has against it."""
    arena = lay(shape)
    # Past what a flag could stop a naive hook with, the runtime's own limit does.
    entry = hookproc.hook_entry(shape.words, program=NAIVE if naive else None, timeout=3 if naive else 20)
    marker = arena.top / "reached"
    argv = ["/bin/busybox", "echo", "started"]
    bundle = make_bundle(session.new_dir("bundle"), arena.root, argv, {stage: [shell_hook(f"echo x >{marker}"), entry]})
    with Oracle(arena.canary, arena.root, shape.plan, max_wall=15) as oracle:
        result = Runtime(runtime).run(bundle, timeout=20)
        found = settled(arena, oracle.check(result, ok=shape.ok, lines=None))
    if (result.rc == 0) != (result.stdout == "started\n"):
        found.append(f"{result.rc}, but said {result.stdout!r}")
    if not marker.exists():
        found.append("the runtime has not come to the hook")
    if runtime == "runc" and result.rc:
        found += _told(result.stderr, shape.says)
    shutil.rmtree(arena.top)
    return found


def _told(stderr: str, says: tuple[str, ...]) -> list[str]:
    """runc shows what the hook said: one line of ours, with what is expected in it."""
    errors = stderr.count("level=error")
    missing = [word for word in says if word not in stderr]
    wrong = "Traceback" in stderr or "internal error" in stderr or missing
    return [f"said {stderr!r}"] if wrong or not errors else []


@pytest.mark.parametrize(("shape", "runtime", "stage", "kernel"), MATRIX)
def test_a_start_of_a_hostile_image_touches_nothing_else(
    shape: Shape, runtime: str, stage: str, kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not runtimes.available(runtime):
        pytest.skip(f"{runtime} is not installed")
    if kernel == "compat":
        monkeypatch.setenv(hookproc.COMPAT_SWITCH, "1")
    assert start(shape, runtime, stage) == []


BITES = ("A1-link-parent", "A2-link-parent", "A1-conf.d", "A2-conf.d", "A1-chmod-parent")


@pytest.mark.parametrize("name", BITES)
def test_naive_a_start_of_a_hostile_image_reaches_the_host(name: str) -> None:
    """At createRuntime, where a joined path of the host leads there."""
    shape = next(s for s in SHAPES if s.id == name)
    if shape.words[0] == "chmod":
        shape = Shape(shape.id, f"{shape.spec}", ["chmod", "--mode", "755", "--path", "/usr/share/nvidia/secret"], None)
    assert escapes(start(shape, "runc", "createRuntime", naive=True))
