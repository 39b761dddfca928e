"""The universal oracle: what a hook must leave alone, looked at before and after.

with Oracle(canary=dir, rootfs=root, planned=["etc/ld.so.cache", "usr/lib/**"]) as o:
    result = run_hook(...)
assert o.check(result, ok=False, parts=["etc/x", "ELOOP"]) == []
"""

from __future__ import annotations

import fnmatch
import hashlib
import os
import stat
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lib import proc, runtimes

TEMPORARY = ".nvoci-"
HASH_LIMIT = 32 << 20
SKIPPED_DEV = ("pts", "shm", "fd", "mqueue")


@dataclass(frozen=True)
class Entry:
    """One file as a witness remembers it. `links` and times of a directory change with its children: see changes()."""

    kind: int
    mode: int
    owner: tuple[int, int]
    inode: int
    rdev: int
    mtime: int
    content: str
    xattrs: tuple[tuple[str, bytes], ...]


Snapshot = dict[str, Entry]


def snapshot(root: str | Path) -> Snapshot:
    """Every file below `root` and `root` itself (as "."), by relative path; other file systems are not entered."""
    base = os.fsencode(root)
    device = os.lstat(base).st_dev
    found: Snapshot = {}
    pending = [b"."]
    while pending:
        name = pending.pop()
        path = os.path.join(base, name)
        try:
            st = os.lstat(path)
        except FileNotFoundError:
            continue
        found[os.fsdecode(name)] = _entry(path, st)
        if stat.S_ISDIR(st.st_mode) and st.st_dev == device:
            pending += [e if name == b"." else name + b"/" + e for e in os.listdir(path)]
    return found


def _entry(path: bytes, st: os.stat_result) -> Entry:
    content = ""
    if stat.S_ISREG(st.st_mode):
        content = _digest(path, st.st_size)
    elif stat.S_ISLNK(st.st_mode):
        content = os.fsdecode(os.readlink(path))
    try:
        xattrs = tuple(
            (n, os.getxattr(path, n, follow_symlinks=False)) for n in sorted(os.listxattr(path, follow_symlinks=False))
        )
    except OSError:
        xattrs = ()
    kind = stat.S_IFMT(st.st_mode)
    mode = stat.S_IMODE(st.st_mode)
    return Entry(kind, mode, (st.st_uid, st.st_gid), st.st_ino, st.st_rdev, st.st_mtime_ns, content, xattrs)


def _digest(path: bytes, size: int) -> str:
    """Whole for files of a sane size; a sparse giant is known by its ends."""
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOATIME), "rb") as f:
        if size <= HASH_LIMIT:
            return f"{size} {hashlib.sha256(f.read()).hexdigest()}"
        head = f.read(4096)
        f.seek(-4096, os.SEEK_END)
        return f"{size} {hashlib.sha256(head + f.read()).hexdigest()}"


def changes(before: Snapshot, after: Snapshot, planned: Iterable[str] = ()) -> list[str]:
    """Differences outside `planned` (globs; "a/**": a and all below). A planned name's parent may change its mtime."""
    plan = [p.strip("/") for p in planned]
    touched = {_parent(n) for n in {*before, *after} if _allowed(n, plan) and before.get(n) != after.get(n)}
    out = []
    for name in sorted({*before, *after}):
        if _allowed(name, plan) or before.get(name) == after.get(name):
            continue
        old, new = before.get(name), after.get(name)
        if old is None or new is None:
            out.append(f"{name!r} {'appeared' if old is None else 'disappeared'}")
            continue
        fields = [f for f in Entry.__dataclass_fields__ if getattr(old, f) != getattr(new, f)]
        if fields == ["mtime"] and name in touched:
            continue
        out += [f"{name!r} changed {f}: {getattr(old, f)!r} -> {getattr(new, f)!r}" for f in fields]
    return out


def content_only(found: Snapshot) -> dict[str, tuple[object, ...]]:
    """What two runs must agree on: kind, mode, owner, device, content and xattrs; neither inode nor time."""
    return {n: (e.kind, e.mode, e.owner, e.rdev, e.content, e.xattrs) for n, e in found.items()}


def _parent(name: str) -> str:
    return name.rpartition("/")[0] or "."


def _allowed(name: str, plan: Sequence[str]) -> bool:
    for pattern in plan:
        if pattern.endswith("/**") and (name == pattern[:-3] or name.startswith(pattern[:-2])):
            return True
        if fnmatch.fnmatchcase(name, pattern):
            return True
    return False


def _listing(root: str, skip: Sequence[str] = ()) -> dict[str, tuple[int, ...]]:
    """Names with mode, owner, device number, size and (for files) mtime: a cheap witness of host directories."""
    found: dict[str, tuple[int, ...]] = {}
    for folder, names, files in os.walk(root):
        if folder == root:
            names[:] = [n for n in names if n not in skip]
        for name in (*names, *files):
            path = os.path.join(folder, name)
            try:
                st = os.lstat(path)
            except OSError:
                continue
            dated = (st.st_size, st.st_mtime_ns) if stat.S_ISREG(st.st_mode) else ()
            found[path] = (st.st_mode, st.st_uid, st.st_gid, st.st_rdev, *dated)
    return found


@dataclass
class _Host:
    mounts: list[str]
    listing: dict[str, tuple[int, ...]]
    children: set[int]
    fds: set[str]
    leftovers: list[str]


def _host() -> _Host:
    listing = {**_listing("/etc"), **_listing("/dev", SKIPPED_DEV)}
    fds = {f"{n} {t}" for n in os.listdir("/proc/self/fd") for t in [_target(n)] if t and "/fd" not in t}
    return _Host(proc.mountinfo(), listing, set(proc.children()), fds, runtimes.leftovers())


def _target(fd: str) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    except OSError:
        return ""


class Oracle:
    """Snapshots on entry; check() compares. `planned` are paths of the rootfs (globs) that the case may change."""

    def __init__(
        self,
        canary: str | Path | None = None,
        rootfs: str | Path | None = None,
        planned: Iterable[str] = (),
        max_wall: float = 10.0,
    ) -> None:
        self.trees = {"canary": canary, "rootfs": rootfs}
        self.planned = list(planned)
        self.max_wall = max_wall
        self.before: dict[str, Snapshot] = {}

    def __enter__(self) -> Oracle:
        self.before = {name: snapshot(path) for name, path in self.trees.items() if path is not None}
        self.host = _host()
        return self

    def __exit__(self, *exc: object) -> None:
        """Nothing to release: what a test made belongs to the test."""

    def check(
        self,
        result: proc.Result | None = None,
        *,
        ok: bool | None = None,
        rc: int | None = None,
        parts: Sequence[str] = (),
        lines: int | None = 1,
        added_mounts: Sequence[str] = (),
    ) -> list[str]:
        """Violations, empty is good.

        ok: expected success or failure. rc: the exact exit status. parts: words the one line of stderr has. lines: the
        most lines of stderr (None: not looked at, e.g. for a whole runtime); a success may always be silent, a failure
        with ok=False may not. added_mounts: substrings of host mountinfo lines that are expected.
        """
        out = self._trees() + self._host_changes()
        if result is not None:
            out += self._outcome(result, ok, rc) + _message(result, ok, parts, lines)
            out += [f"survivor: {s}" for s in result.survivors]
            added = [m for m in result.mounts_added if not any(a in m for a in added_mounts)]
            out += [f"mount added: {m}" for m in added] + [f"mount removed: {m}" for m in result.mounts_removed]
        return out

    def _trees(self) -> list[str]:
        out = []
        for name, path in self.trees.items():
            if path is None:
                continue
            now = snapshot(path)
            plan = self.planned if name == "rootfs" else []
            out += [f"{name}: {c}" for c in changes(self.before[name], now, plan)]
            fresh = [n for n in now if TEMPORARY in n and n not in self.before[name]]
            out += [f"{name}: temporary left: {n!r}" for n in fresh]
        return out

    def _host_changes(self) -> list[str]:
        then, now = self.host, self._settled()
        out = [f"host mount added: {m}" for m in now.mounts if m not in then.mounts]
        out += [f"host mount removed: {m}" for m in then.mounts if m not in now.mounts]
        for path in sorted({*then.listing, *now.listing}):
            if then.listing.get(path) != now.listing.get(path):
                out.append(f"host file {path}: {then.listing.get(path)} -> {now.listing.get(path)}")
        out += [f"process left: {pid} {proc.command_line(pid)}" for pid in now.children - then.children]
        out += [f"descriptor left: {fd}" for fd in now.fds - then.fds]
        return out + [f"left over: {x}" for x in now.leftovers if x not in then.leftovers]

    def _settled(self) -> _Host:
        """The host now; given half a second, since a dying process unmounts when it is reaped."""
        deadline = time.monotonic() + 0.5
        while (now := _host()) != self.host and time.monotonic() < deadline:
            if now.children <= self.host.children and now.mounts == self.host.mounts:
                break
            time.sleep(0.05)
        return now

    def _outcome(self, result: proc.Result, ok: bool | None, rc: int | None) -> list[str]:
        out = []
        if result.timed_out:
            out.append(f"deadline passed after {result.wall:.1f} s")
        elif result.wall > self.max_wall:
            out.append(f"took {result.wall:.1f} s, limit {self.max_wall:.1f} s")
        if ok is not None and (result.rc == 0) != ok:
            out.append(
                f"exit status {result.rc}, expected {'success' if ok else 'failure'}: {result.stderr.strip()[:500]}"
            )
        if rc is not None and result.rc != rc:
            out.append(f"exit status {result.rc}, expected {rc}: {result.stderr.strip()[:500]}")
        return out


def _message(result: proc.Result, ok: bool | None, parts: Sequence[str], lines: int | None) -> list[str]:
    said = [line for line in result.stderr.split("\n") if line]
    out = []
    if lines is not None and len(said) > lines:
        out.append(f"{len(said)} lines on stderr, at most {lines}: {said!r}")
    if ok is False and not said and lines:
        out.append("failed without a message")
    out += [f"message has no {part!r}: {result.stderr.strip()[:500]!r}" for part in parts if part not in result.stderr]
    if "Traceback" in result.stderr:
        out.append("traceback on stderr")
    return out
