"""The prestart hook on a simulated node, in containers with a device cgroup of their own: once, killed, or lied to.

Everything happens in a process whose mount namespace shows the node (`on_node`), so that what the hook takes for the
host is nobody else's. strace is attached to one of the hook's two processes when that begins its work, and so counts
its calls alone: `parent` from the reading of the state on, `worker` from before it enters the container's namespace.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pynvml
from kernel import devcgroups, namespaced
from lib import devprogs, hookproc, proc, session
from lib.devprogs import Rule
from lib.hookproc import FakeContainer
from lib.oracle import content_only, snapshot
from lib.simnode import run as simnode_run
from security import arena as arenas
from security.arena import Arena
from simnode.nodes import built

from nvoci.linux import bpf

PARENT, WORKER = "parent", "worker"
PROCESSES = (PARENT, WORKER)
KINDS = ("devices", "unified")  # of the device cgroup: v1, v2
SAMPLE = "a100"
ENV = ("NVIDIA_VISIBLE_DEVICES=0,1", "NVIDIA_DRIVER_CAPABILITIES=compute,utility,graphics")
RUN = "/run/nvoci"
Point = tuple[str, int]
# What is left out: calls of the interpreter's memory, and how a process ends.
SKIPPED = ("brk", "mmap", "munmap", "mprotect", "madvise", "mremap", "exit_group", "kill", "restart_syscall")
_FROM_PIPE = re.compile(r"read\(.*, 4096\) *=")
# The first line stops the process; strace is attached to what is stopped for certain, and then lets it go on.
_TRACED = """
import posix, sys

def field(pid, name):
    with open(f"/proc/{pid}/status", "rb") as file:
        return next(line.split()[1] for line in file if line.startswith(name))

def traced(words):
    me = posix.getpid()
    if posix.fork():
        posix.kill(me, 19)
        return
    while field(me, b"State:") != b"T":
        pass
    if not posix.fork():
        posix.execv(words[0], [*words, "-p", str(me)])
    while field(me, b"TracerPid:") == b"0":
        pass
    posix.kill(me, 18)
    posix._exit(0)
"""
_HOOK = """
sys.path[:0] = [{hooks!r}]
sys.path.append({vendor!r})
from nvoci.hook import enter, grant, ldbuiltin, work
from nvoci.oci import spec
from nvoci.prestart import main, start
of_bundle, inside = spec.of_bundle, enter.Place.enter

def read(bundle):
    if WHO == "parent":
        traced(WORDS)
    return of_bundle(bundle)

def entered(place):
    if WHO == "worker":
        traced(WORDS)
    inside(place)

spec.of_bundle, enter.Place.enter = read, entered
{extra}
main.main()
"""
_NAIVE = """
sys.path[:0] = [{folder!r}]
import naive_prestart
if WHO:
    traced(WORDS)
naive_prestart.main()
"""


def entry(words: Sequence[str] = (), who: str = "", *, extra: str = "", naive: bool = False) -> Path:
    """An entry file. words: strace's, which is attached to process `who`. extra: lines that run before the hook."""
    if words:
        words = [shutil.which(words[0]) or words[0], *words[1:]]
    text = f"WORDS, WHO = {list(words)!r}, {who!r}\n{_TRACED}"
    if naive:
        text += _NAIVE.format(folder=str(Path(__file__).parent))
    else:
        vendor = str(Path(pynvml.__file__).parent)
        text += _HOOK.format(hooks=str(session.HOOKS), vendor=vendor, extra=extra)
    path = session.new_dir("entry") / "nvidia-container-runtime-hook"
    path.write_text(text)
    return path


def on_node(body: Callable[[], Any], sample: str = SAMPLE, limit: int = 300) -> Any:
    """body() where the machine is the node; its result."""

    def shown() -> Any:
        simnode_run.show(built(sample).root, installed=True)
        return body()

    return namespaced.isolated(shown, limit=limit)


@dataclass
class View:
    """What a container has. mounts: (where, what of which file system, flags) of each mount below its root, the older
    first."""

    mounts: list[tuple[str, ...]]
    files: dict[str, bytes]
    tree: dict[str, tuple[object, ...]]
    rules: list[object]

    def differences(self, other: View, *, covered: bool = False) -> list[str]:
        """Of `other` from this. covered: of mounts on one place only the last, which is seen, counts."""
        mine, theirs = self.mounts, other.mounts
        if covered:
            mine, theirs = (list({m[0]: m for m in mounts}.values()) for mounts in (mine, theirs))
        out = [f"mount {m} x{theirs.count(m)} instead of x{mine.count(m)}" for m in {*mine, *theirs}
               if mine.count(m) != theirs.count(m)]  # fmt: skip
        for kind, ours, now in (("file", self.files, other.files), ("tree", self.tree, other.tree)):
            names = {name for name in {*ours, *now} if ours.get(name) != now.get(name)}
            out += [f"{kind} {name}: {ours.get(name)} -> {now.get(name)}" for name in sorted(names)]
        return out + ([f"rules {self.rules} -> {other.rules}"] if self.rules != other.rules else [])


def proc_driver() -> Path:
    """What is seen at /proc/driver."""
    return built(SAMPLE).root / "proc/driver"


def _arena() -> Arena:
    top = session.new_dir("prestart")
    return Arena(top, top / "rootfs", top / "canary")


@dataclass
class Scene:
    """One container's request, on a fresh image each time. spec: more of the image. setup: as of FakeContainer."""

    kind: str = "devices"
    env: Sequence[str] = ENV
    spec: str = ""
    setup: str = ""
    naive: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    arena: Arena = field(default_factory=_arena)

    def config(self) -> dict[str, Any]:
        process = {"env": list(self.env), "capabilities": {}}
        return {"ociVersion": "1.0.2", "process": process, "root": {"path": str(self.arena.root)}}

    @contextmanager
    def container(self) -> Iterator[Site]:
        """On a fresh image, before its hooks. As a driver's module does it, its procfs has the driver's files."""
        shutil.rmtree(self.arena.root, ignore_errors=True)
        shutil.rmtree(self.arena.canary, ignore_errors=True)
        arenas.make(self.arena.top, self.spec)
        setup = f'mount -t tmpfs -o mode=555 driver "$R/proc/driver"\ncp -a {proc_driver()}/. "$R/proc/driver/"\n'
        options = {"config": self.config(), **self.options}
        with devcgroups.cgroup(self.kind) as cgroup:
            with FakeContainer(self.arena.root, setup=setup + self.setup, **options) as c:
                (cgroup / "cgroup.procs").write_text(str(c.pid))
                restrict(self.kind, cgroup)
                yield Site(self, c, cgroup)
            deadline = time.monotonic() + 5
            while (cgroup / "cgroup.procs").read_text() and time.monotonic() < deadline:
                time.sleep(0.002)


def restrict(kind: str, cgroup: Path) -> None:
    """As a runtime does: nothing but /dev/null."""
    if kind == "unified":
        devcgroups.attach(cgroup, devprogs.runc([Rule(True, "c", 1, 3)]))
    else:
        (cgroup / "devices.deny").write_text("a")
        (cgroup / "devices.allow").write_text("c 1:3 rwm")


def rules(kind: str, cgroup: Path) -> list[object]:
    """In force: lines of devices.list, or programs."""
    if kind == "devices":
        return sorted((cgroup / "devices.list").read_text().splitlines())
    directory = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return [_xlated(number) for number in bpf.prog_query(directory)[0]]
    finally:
        os.close(directory)


@functools.cache
def _xlated(number: int) -> str:
    """A program's number is never given to another one, nor its code changed."""
    return devcgroups.xlated(number).hex()


@dataclass
class Site:
    """One container of a scene, and what it has."""

    scene: Scene
    container: FakeContainer
    cgroup: Path

    def hook(self, tracer: Sequence[str] = (), who: str = "", *, extra: str = "", **how: Any) -> proc.Result:
        """The hook once. tracer: strace's words, for its process `who`."""
        program = entry(tracer, who, extra=extra, naive=self.scene.naive)
        return hookproc.run_hook(how.pop("words", ["prestart"]), container=self.container, program=program,
                                 timeout=how.pop("timeout", 20), **how)  # fmt: skip

    def rules(self) -> list[object]:
        """In force."""
        return rules(self.scene.kind, self.cgroup)

    def view(self) -> View:
        """Now, with the image itself as it is on the host."""
        root = str(self.container.rootfs)
        mounts = []
        for line in self.container.mountinfo():
            fields = line.split(" ")
            if fields[4].startswith(f"{root}/"):
                tail = fields[fields.index("-") + 1 :]
                mounts.append((fields[4][len(root) :], fields[3], fields[5].replace(",relatime", ""), *tail[:2]))
        files = {}
        for name in ("proc/driver/nvidia/params", arenas.PROFILE):
            path = self.container.path(name)
            files[name] = path.read_bytes() if path.is_file() else b""
        return View(mounts, files, content_only(snapshot(root)), self.rules())

    def points(self, who: str) -> list[Point]:
        """(call, n) for every call that process `who` makes, but for the parent's reading of the worker's pipe."""
        log = session.tmp() / session.unique("trace")
        done = self.hook(["strace", "-qqq", "-o", str(log)], who)
        assert done.rc == 0, done.stderr
        seen: dict[str, int] = {}
        found: list[Point] = []
        for line in log.read_text(errors="replace").splitlines():
            match = re.match(r"([a-z_0-9]+)\(", line)
            if match:
                seen[match[1]] = seen.get(match[1], 0) + 1
                if match[1] not in SKIPPED and not ("clone" in seen and _FROM_PIPE.match(line)):
                    found.append((match[1], seen[match[1]]))
        log.unlink()
        return found


def sampled(points: Sequence[Point], each: int, shift: int = 0) -> list[Point]:
    """At most `each` of every call, evenly over its uses; shift: which ones."""
    by_call: dict[str, list[Point]] = {}
    for point in points:
        by_call.setdefault(point[0], []).append(point)
    found = []
    for group in by_call.values():
        count = min(each, len(group))
        found += [group[(i * len(group) // count + shift * len(group) // (count * 3)) % len(group)]
                  for i in range(count)]  # fmt: skip
    return found


def ready(scene: Scene) -> View:
    """What an undisturbed run gives, on a node that was looked at before, with all that this kernel has: NVML's process
    needs it."""
    profile = os.environ.pop(hookproc.COMPAT_SWITCH, None)
    with scene.container() as site:
        first = site.hook()
        assert first.rc == 0, first.stderr
    if profile is not None:
        os.environ[hookproc.COMPAT_SWITCH] = profile
    with scene.container() as site:
        again = site.hook()
        assert again.rc == 0, again.stderr
        return site.view()


def left_in() -> list[str]:
    """What a hook may have forgotten where it keeps what it found."""
    known = ("inventory", "inventory.lock", "config,")
    there = sorted(os.listdir(RUN)) if os.path.isdir(RUN) else []
    return [f"{RUN}/{name}" for name in there if not name.startswith(known)]
