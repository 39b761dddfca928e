"""What happens to one root: containers start, the driver is mounted, the hook runs, containers stop; the verdict."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from diff import differences, judge
from diff.differences import Case
from diff.layouts import Layout
from lib import driver, hookproc, oracle, proc, rootfs, session

OURS = ("00-compat-nvoci.conf", "00-nvcr-nvoci.conf")
MUSL = f"etc/ld-musl-{rootfs.MACHINE}.path"
SYSTEM = "zz-nvcr-nvoci.conf"
Mounts = dict[str, list[Path]]
"""Folder in the container -> files of the host that are mounted there."""


def _timeless(messages: str) -> str:
    return re.sub(r'time="[^"]*"', "", messages)


class Layers:
    """An overlay: `lower` is never written, what a container changes is in `upper`. It lives on a tmpfs, since an
    upper layer may not lie within the lower one."""

    def __init__(self, lower: Path, upper: Path | None = None) -> None:
        self.lower = lower
        self.top = session.new_dir("layers")
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256m,mode=755", "layers", self.top], check=True)
        self.upper, self.path = self.top / "upper", self.top / "root"
        for path in (self.upper, self.path, self.top / "work"):
            path.mkdir()
        if upper is not None:
            subprocess.run(["cp", "-a", f"{upper}/.", self.upper], check=True)
        options = f"lowerdir={lower},upperdir={self.upper},workdir={self.top}/work"
        subprocess.run(["mount", "-t", "overlay", "-o", options, "overlay", self.path], check=True)

    def copy(self) -> Layers:
        return Layers(self.lower, self.upper)

    def close(self) -> None:
        subprocess.run(["umount", "-l", self.path, self.top], check=True)
        self.top.rmdir()

    def __enter__(self) -> Layers:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


@dataclass
class Chapter:
    """One container start. result: the hook's. lines: of the cache it left. expected: the judge's, differences applied.
    changed: what a second run of the hook changed. links: of the directories that the judge searched, by path.
    levels: as in a verdict. musl: its path file, None where there is none."""

    result: proc.Result
    lines: list[judge.Line]
    expected: list[judge.Line]
    changed: list[str]
    links: dict[str, str]
    levels: dict[str, int]
    verdict: judge.Verdict
    case: Case
    musl: str | None


def words(engine: str, folders: Sequence[str]) -> list[str]:
    """The hook's command line."""
    out = ["update-ldcache", "--engine", engine]
    for folder in folders:
        out += ["--folder", folder]
    return out


def mount_script(mounts: Mounts) -> str:
    """What a runtime does: an empty file for each target, then a bind mount."""
    lines = []
    for folder, files in mounts.items():
        lines.append(f'mkdir -p "$R"{shlex.quote(folder)}')
        for file in files:
            target = f'"$R"{shlex.quote(f"{folder}/{file.name}")}'
            lines.append(f"test -e {target} || : > {target}\nmount --bind {shlex.quote(str(file))} {target}")
            lines.append(f"mount -o remount,bind,ro,nosuid,nodev {target}" if file == files[0] else "")
    return "\n".join(lines)


def start(layers: Layers, engine: str, folders: Sequence[str], mounts: Mounts, without: str = "") -> Chapter:
    """Start a container, run the hook twice, stop it, and let the judge decide. without: a difference to leave out."""
    with hookproc.FakeContainer(layers.path, setup=mount_script(mounts)) as container, layers.copy() as copy:
        for folder, files in mounts.items():
            place = judge.inside(copy.path, folder)
            for file in files:
                shutil.copyfile(file, place / file.name)
        injected = {folder: {f.name: soname_of(f) for f in files} for folder, files in mounts.items()}
        case = Case(layers.path, copy.path, _cached(copy.path), injected)
        result = _run(engine, folders, container)
        found = _Found(layers)
        again = _run(engine, folders, container)
        changed = _changed(found.snapshot, oracle.snapshot(layers.upper))
        if (again.rc, _timeless(again.stderr)) != (result.rc, _timeless(result.stderr)):
            changed.append(f"the second run says: {again.rc} {again.stderr}")
        take_over(layers.path, copy.path)
        differences.prepare(case, engine, without)
        verdict = judge.judge(copy.path, judge.conf_for(copy.path, OURS, SYSTEM))
        expected = differences.expected(verdict, case, engine, without)
    links = judge.links(layers.path, verdict.searched)
    return Chapter(result, found.lines, expected, changed, links, found.levels, verdict, case, found.musl)


class _Found:
    """What one run has left."""

    def __init__(self, layers: Layers) -> None:
        self.snapshot = oracle.snapshot(layers.upper)
        self.lines = judge.listing(layers.path)
        self.levels = judge.levels(layers.path)
        path = layers.path / MUSL
        self.musl = path.read_text() if path.exists() else None


def _run(engine: str, folders: Sequence[str], container: hookproc.FakeContainer) -> proc.Result:
    result = hookproc.run_hook(words(engine, folders), container=container)
    assert result.rc == 0, result.stderr
    return result


def take_over(root: Path, copy: Path) -> None:
    """The judge reads the configuration that the hook has left."""
    (copy / "etc").mkdir(exist_ok=True)
    for name in (judge.CONF, judge.DROP_INS):
        subprocess.run(["rm", "-rf", copy / name], check=True)
        subprocess.run(["cp", "-a", root / name, copy / name], check=True)


def _cached(root: Path) -> list[judge.Line]:
    return judge.listing(root) if (root / judge.CACHE).is_file() else []


def _changed(before: oracle.Snapshot, after: oracle.Snapshot) -> list[str]:
    """Inode numbers and times included, except that a directory's time changes with the temporaries in it."""
    return [c for c in oracle.changes(before, after) if not ("changed mtime" in c and _is_dir(after, c))]


def _is_dir(found: oracle.Snapshot, change: str) -> bool:
    return any(change.startswith(f"{name!r} ") and e.kind == 0o040000 for name, e in found.items())


def soname_of(path: Path) -> str:
    return differences._soname(path) or path.name


@dataclass
class Node:
    """The base directory of each layout, and drivers of two versions; made once."""

    folder: Path
    bases: dict[str, Path] = field(default_factory=dict)
    drivers: dict[tuple[str, str], driver.Driver] = field(default_factory=dict)

    def base(self, layout: Layout) -> Path:
        if layout.fill is None:
            return Path("/")
        if layout.name not in self.bases:
            path = self.folder / f"base{len(self.bases)}"
            path.mkdir()
            layout.fill(path)
            self.bases[layout.name] = path
        return self.bases[layout.name]

    def driver(self, version: str, machine: str = rootfs.MACHINE) -> driver.Driver:
        if (version, machine) not in self.drivers:
            made = driver.make(self.folder / f"driver-{version}-{machine}", version=version, machine=machine)
            self.drivers[version, machine] = made
        return self.drivers[version, machine]

    def mounts(self, layout: Layout, version: str) -> Mounts:
        found = {layout.folder: self.driver(version).libraries}
        if layout.folder_i386:
            found[layout.folder_i386] = self.driver(version, "i386").libraries[:6]
        return found

    def close(self) -> None:
        for each in self.drivers.values():
            each.close()


@contextmanager
def node() -> Iterator[Node]:
    """On a tmpfs: ldconfig calls fsync() each time."""
    with rootfs.tmpfs(session.new_dir("diff"), "size=1g,mode=755") as folder:
        made = Node(folder)
        try:
            yield made
        finally:
            made.close()


OLD, NEW = "550.54.15", "550.90.07"


def tell(made: Node, layout: Layout, engine: str) -> dict[str, Chapter]:
    """A root's whole life: first start, restart with another driver, the driver removed, its traces removed."""
    folders = [f for f in (layout.folder, layout.folder_i386) if f]
    chapters = {}
    with Layers(made.base(layout)) as layers:
        for name in layout.without:
            (layers.path / name).unlink()
        chapters["injection"] = start(layers, engine, folders, made.mounts(layout, OLD))
        chapters["upgrade"] = start(layers, engine, folders, made.mounts(layout, NEW))
        chapters["removal"] = start(layers, engine, [], {})
        for version in (OLD, NEW):
            for folder, files in made.mounts(layout, version).items():
                for file in files:
                    (judge.inside(layers.path, folder) / file.name).unlink()
        chapters["dangling"] = start(layers, engine, [], {})
    return chapters
