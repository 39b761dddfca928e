"""A hook on one image, killed or lied to at each of its system calls (`lib.callpoints`).

One container serves many points. What a run has changed is put back before the next: mounts that came are unmounted,
what was made is removed, what is missing or other is copied again. That this gave the first state is not believed but
seen: mountinfo to the mount's number, every name with its content, owner and mode; where it did not, image and
container are made anew. The hook's own process is always a new one.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lib import session
from lib.callpoints import Fault, Point, Ran, Zygote
from lib.hookproc import FakeContainer
from lib.oracle import TEMPORARY, Oracle, Snapshot, changes, content_only, snapshot
from security import arena as arenas
from security.arena import GPU_NODE, LIBDIR, STAGES, Arena

ERRORS = (errno.ENOSPC, errno.EIO, errno.EINTR, errno.ENOMEM, errno.EAGAIN, errno.EPERM)
# Links, one with an old text in its place, and a configuration that a run makes again.
IMAGE = f"symlink {LIBDIR}/libcuda.so old\nsymlink etc/ld.so.conf.d/zz-nvcr-nvoci.conf gone"
LATER = "the next run removes it"
MEMORY = ("mmap", "mremap")  # these have one error
# brk(2) of the kernel answers with the old end of the heap where there is no memory, never with an errno.
NEVER_FAIL = ("exit_group", "getpid", "gettid", "getppid", "getuid", "geteuid", "umask", "set_robust_list", "brk")
ENDED = 1.0  # seconds for whoever is left when another process of the hook was killed

Content = dict[str, tuple[object, ...]]


@dataclass
class State:
    """Of a container, exactly: files with inodes and times, mounts with numbers. tmpfs: by mount point. seen: what is
    at the other mount points, files and nodes. extra: of the scene."""

    tree: Snapshot
    mounts: list[str]
    tmpfs: dict[str, Snapshot]
    seen: dict[str, object]
    extra: object

    def view(self, root: Path, *, covered: bool = False) -> dict[str, object]:
        """What two runs must agree on. covered: of mounts on one place only the last, which is seen, counts."""
        mounts = [_mount(line, root) for line in self.mounts]
        if covered:
            mounts = list({m[0]: m for m in mounts}.values())
        inside = {f"{point} {name}": entry for point, found in self.tmpfs.items()
                  for name, entry in content_only(found).items()}  # fmt: skip
        counted = {f"mount {' '.join(m)}": mounts.count(m) for m in mounts}
        return {**content_only(self.tree), **inside, **counted, **self.seen, "extra": self.extra}


def _mount(line: str, root: Path) -> tuple[str, ...]:
    fields = line.split(" ")
    tail = fields[fields.index("-") + 1 :]
    return fields[4][len(str(root)) :], fields[3], fields[5].replace(",relatime", ""), *tail[:2]


def differences(wanted: dict[str, object], now: dict[str, object]) -> list[str]:
    names = sorted(name for name in {*wanted, *now} if wanted.get(name) != now.get(name))
    return [f"{name}: {wanted.get(name)} -> {now.get(name)}" for name in names]


@dataclass
class Scene:
    """Words of a hook at a stage. spec: of the image. setup: of the container. options: of FakeContainer. zygote: of
    Zygote. ignored: names that may differ after a success."""

    words: Sequence[str]
    stage: str = "outside"
    spec: str = IMAGE
    setup: str = GPU_NODE
    options: dict[str, Any] = field(default_factory=dict)
    zygote: dict[str, Any] = field(default_factory=dict)
    ignored: frozenset[str] = frozenset()
    quiet: bool = True  # a rerun says nothing
    covered: bool = False
    silent: bool = False  # what the next run removes is told to a log alone

    def __post_init__(self) -> None:
        top = session.new_dir("crash")
        self.arena = Arena(top, top / "rootfs", top / "canary")
        self.template = top / "template"
        self.renewed = 0
        self._stack = ExitStack()

    def __enter__(self) -> Scene:
        """With what an undisturbed run gives, and its calls."""
        arenas.make(self.arena.top, self.spec)
        subprocess.run(["cp", "-a", str(self.arena.root), str(self.template)], check=True)
        self.canary = snapshot(self.arena.canary)
        try:
            self.hook = Zygote(**self.zygote)
            self.renew()
            self.prepare()
            self.once = self.run(traced=True)
            assert self.once.rc == 0, self.once.stderr
            self.wanted = self.state().view(self.arena.root, covered=self.covered)
            self.reset(self.state())
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()
        if hasattr(self, "hook"):
            self.hook.close()

    def refused(self, ran: Ran) -> list[str]:
        """What is wrong with how an error was told."""
        said = [line for line in ran.stderr.splitlines() if "level=error" in line]
        one = len(said) == 1 and ran.rc == 1 and "Traceback" not in ran.stderr and "internal error" not in ran.stderr
        return [] if one else [f"{ran.rc} said {ran.stderr!r}"]

    def prepare(self) -> None:
        """Before the undisturbed run."""

    @contextmanager
    def made(self) -> Iterator[FakeContainer]:
        with FakeContainer(self.arena.root, setup=self.setup, **self.options) as container:
            yield container

    def extra(self) -> object:
        return None

    def run(self, **how: Any) -> Ran:
        c = self.container
        state = json.dumps(c.state(STAGES[self.stage])).encode()
        inside = self.stage == "inside"
        return self.hook.run(
            self.words, state, cwd=c.rootfs if inside else c.bundle, enter=c.pid if inside else 0, **how
        )

    def state(self) -> State:
        root = str(self.arena.root)
        lines = [line for line in self.container.mountinfo() if line.split(" ")[4].startswith(root)]
        tmpfs, seen = {}, {}
        for line in lines:
            point = line.split(" ")[4][len(root) :]
            path = self.container.path(point)
            if " - tmpfs " in line and path.is_dir():
                tmpfs[point] = snapshot(path)
            elif point:
                seen[f"at {point}"] = _looked_at(path)
        return State(snapshot(self.arena.root), lines, tmpfs, seen, self.extra())

    def renew(self) -> None:
        """Image and container, from the beginning."""
        self._stack.close()
        self._stack = ExitStack()
        shutil.rmtree(self.arena.root, ignore_errors=True)
        subprocess.run(["cp", "-a", str(self.template), str(self.arena.root)], check=True)
        self.container = self._stack.enter_context(self.made())
        self.before = self.state()
        self.renewed += 1

    def reset(self, now: State) -> None:
        """Back to the first state. now: as it is."""
        if now == self.before:
            return
        came = [line.split(" ")[4] for line in now.mounts if line not in self.before.mounts]
        if came:
            self.hook.unmount(self.container.pid, came[::-1])
        for point in self.before.tmpfs:
            _remove(self.container.path(point), set(now.tmpfs.get(point, {})) - set(self.before.tmpfs[point]))
        _restore(self.arena.root, self.template, now.tree, self.before.tree)
        found = self.state()
        same = found.mounts == self.before.mounts and found.view(self.arena.root) == self.before.view(self.arena.root)
        if not same:
            self.renew()
        self.before = found if same else self.before


def _looked_at(path: Path) -> object:
    """None: another mount hides it."""
    try:
        st = os.lstat(path)
    except FileNotFoundError:
        return None
    content = path.read_bytes() if stat.S_ISREG(st.st_mode) and st.st_size < 1 << 20 else b""
    return stat.S_IFMT(st.st_mode), st.st_rdev, content


def _remove(root: Path, names: Iterable[str]) -> None:
    for name in sorted(names, reverse=True):
        path = root / name
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()


def _restore(root: Path, template: Path, now: Snapshot, wanted: Snapshot) -> None:
    """What came goes; what is missing or other is as in the template. Directories that stay are the same ones: they
    may be mounted on."""
    _remove(root, set(now) - set(wanted))
    is_, to_be = content_only(now), content_only(wanted)
    for name in sorted(name for name in to_be if is_.get(name) != to_be[name]):
        path, source = root / name, template / name
        if name in now and now[name].kind != stat.S_IFDIR:
            path.unlink()
        st = os.lstat(source)
        if stat.S_ISDIR(st.st_mode):
            path.mkdir(exist_ok=True)
        elif stat.S_ISLNK(st.st_mode):
            path.symlink_to(os.readlink(source))
        elif stat.S_ISREG(st.st_mode):
            path.write_bytes(source.read_bytes())
        else:
            os.mknod(path, st.st_mode, st.st_rdev)
        os.lchown(path, st.st_uid, st.st_gid)
        if not stat.S_ISLNK(st.st_mode):
            path.chmod(stat.S_IMODE(st.st_mode))


# -- killed ---------------------------------------------------------------------------------------------------------


@dataclass
class Tally:
    """points: tried. reached: so far the hook came (how often a parent looks whether its worker has ended depends on
    time). changed: something was left there. failures: exit status other than 0. covered: see `_is_under_work`."""

    points: int = 0
    reached: int = 0
    changed: int = 0
    reruns: int = 0
    failures: int = 0
    covered: int = 0
    bad: list[str] = field(default_factory=list)

    def add(self, ran: Ran, *, changed: bool) -> None:
        self.points += 1
        self.reached += bool(ran.call)
        self.changed += changed
        self.failures += ran.rc != 0

    def properties(self) -> dict[str, int]:
        return {name: getattr(self, name) for name in ("points", "reached", "changed", "reruns", "failures", "covered")}


def killed(scene: Scene, points: Sequence[Point], *, always: bool, number: int = 0) -> Tally:
    """SIGKILL in place of each call, or signal `number` with it, then a rerun.

    A rerun is a new process, and can see only what the kill has left. So it is done for each such state once, and not
    where there is none; always: at every point."""
    tally = Tally()
    known: set[str] = set()
    with Oracle(scene.arena.canary) as oracle:
        for point in points:
            fault = Fault(point, signal=number)
            ran = scene.run(fault=fault)
            after = scene.state()
            found = _killed_once(scene, ran, after)
            changed = after != scene.before
            if scene.covered and _is_under_work(scene, after):
                tally.covered += 1
                scene.renew()
                continue
            left = repr(sorted(after.view(scene.arena.root).items())) if changed else ""
            if always or (changed and left not in known):
                known.add(left)
                tally.reruns += 1
                again = scene.run()
                after = scene.state()
                if again.rc or (scene.quiet and again.stderr):
                    found.append(f"the rerun said {again.rc} {again.stderr!r}")
                found += differences(scene.wanted, after.view(scene.arena.root, covered=scene.covered))
            scene.reset(after)
            tally.add(ran, changed=changed)
            tally.bad += [f"{fault} ({ran.call}): {v}" for v in found]
        tally.bad += _of_host(oracle, scene)
    return tally


def _is_under_work(scene: Scene, after: State) -> bool:
    """Before Linux 5.2 a generated file comes from a tmpfs that covers, for a moment, the directory it is mounted in.
    What a kill leaves then is in the namespace of a container that is never started, and a rerun there says so."""
    came = [_mount(line, scene.arena.root) for line in after.mounts if line not in scene.before.mounts]
    return any(m[1] == "/" and m[3:] == ("tmpfs", "nvoci") and f"mount {' '.join(m)}" not in scene.wanted for m in came)


def _of_host(oracle: Oracle, scene: Scene) -> list[str]:
    """Of the host, without the container that was made meanwhile."""
    found = oracle.check()
    return found if scene.renewed == 1 else [v for v in found if not v.startswith(("process left", "descriptor left"))]


def _killed_once(scene: Scene, ran: Ran, after: State) -> list[str]:
    """Row L3: the other processes end soon. Row L2: each file is the old one or the new one."""
    found = [f"survivor {s}" for s in ran.survivors]
    if ran.after > ENDED:
        found.append(f"the last process ended after {ran.after:.1f} s")
    if ran.call and ran.rc == 0 and "exit_group" not in ran.call:
        found.append("it was killed, and is a success")
    old, new = content_only(scene.before.tree), scene.wanted
    for name, entry in content_only(after.tree).items():
        if TEMPORARY not in name and entry not in (old.get(name), new.get(name)):
            found.append(f"half: {name}: {old.get(name)} -> {entry}")
    gone = [name for name in old if name in new and name not in after.tree]
    return found + [f"half: {name} is not there" for name in gone]


# -- lied to --------------------------------------------------------------------------------------------------------


def lies(scene: Scene, points: Sequence[Point], *, every: bool = False, shift: int = 0) -> list[Fault]:
    """One error for each point, in rotation, or each error."""
    faults = []
    for i, point in enumerate(points):
        call = scene.once.name(point)
        if call in NEVER_FAIL:
            continue
        if call in MEMORY:
            faults.append(Fault(point, errno.ENOMEM))
        else:
            faults += [Fault(point, e) for e in (ERRORS if every else [ERRORS[(i + shift) % len(ERRORS)]])]
    return faults


def lied_to(scene: Scene, faults: Sequence[Fault], *, accept: Callable[[Ran, str], bool] | None = None) -> Tally:
    """accept(ran, violation): what is known and may be."""
    tally = Tally()
    with Oracle(scene.arena.canary) as oracle:
        for fault in faults:
            ran = scene.run(fault=fault)
            after = scene.state()
            changed = after != scene.before
            found = [f"survivor {s}" for s in ran.survivors]
            if ran.rc == 0:
                if LATER in ran.stderr or scene.silent:
                    assert scene.run().rc == 0
                    after = scene.state()
                view = after.view(scene.arena.root, covered=scene.covered)
                ignored = tuple(f"{name}: " for name in scene.ignored)
                found += [f"success, but {v}" for v in differences(scene.wanted, view) if not v.startswith(ignored)]
            else:
                found += scene.refused(ran) + _left(scene, after)
            scene.reset(after)
            tally.add(ran, changed=changed)
            found = [v for v in found if accept is None or not accept(ran, v)]
            tally.bad += [f"{fault} ({ran.call}): {v}; {ran.stderr.strip()}" for v in found]
        tally.bad += _of_host(oracle, scene)
    return tally


def _left(scene: Scene, after: State) -> list[str]:
    """Of a hook that failed: anything but times of directories."""
    before = scene.before
    found = changes(before.tree, after.tree)
    for point in {*before.tmpfs, *after.tmpfs}:
        found += [f"{point}: {v}" for v in changes(before.tmpfs.get(point, {}), after.tmpfs.get(point, {}))]
    found = [v for v in found if "changed mtime" not in v]
    found += [f"mount: {line}" for line in {*before.mounts} ^ {*after.mounts}]
    return found + ([] if before.extra == after.extra else [f"{before.extra} -> {after.extra}"])
