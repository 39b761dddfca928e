"""The real ldconfig as judge: what it makes of a copy of a root, run until it has nothing more to change."""

from __future__ import annotations

import os
import re
import struct
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lib import proc

LDCONFIG = "/sbin/ldconfig"
CACHE, CONF = "etc/ld.so.cache", "etc/ld.so.conf"
DROP_INS = "etc/ld.so.conf.d"
SECONDS = 20.0
_ROUNDS = 5
_ALONE = ("/usr/bin/unshare", "--mount", "--pid", "--fork", "--kill-child")
_LINE = re.compile(r"\t(.*) \((.*)\) => (.*)")


@dataclass(frozen=True)
class Line:
    """One library in `ldconfig -p`: soname, what stands in brackets (`libc6,x86-64`), path."""

    soname: str
    kind: str
    path: str

    def __str__(self) -> str:
        return f"{self.soname} ({self.kind}) => {self.path}"

    @property
    def directory(self) -> str:
        return self.path.rpartition("/")[0]


@dataclass(frozen=True)
class Said:
    """ldconfig's own words."""

    out: str
    err: str

    def searched(self) -> list[str]:
        """The directories it looked into, in order."""
        return [line.partition(": (")[0] for line in self.out.splitlines() if line.startswith("/")]

    def taken(self) -> list[tuple[str, str, str]]:
        """(directory, soname, file) where something that is no link has the soname's place."""
        paths = set(re.findall(r"^\S+: (.*) is not a symbolic link$", self.err, re.MULTILINE))
        found, directory = [], ""
        for line in self.out.splitlines():
            if line.startswith("/"):
                directory = line.partition(": (")[0]
                continue
            soname, _, name = line[1:].partition(" -> ")
            if f"{directory}/{soname}" in paths:
                found.append((directory, soname, name))
        return found


@dataclass
class Verdict:
    """lines: of `-p`, in order. levels: the bits of the cache that `-p` does not show. searched: the directories, in
    order, subdirectories for hardware included. links: what each symbolic link in them says. first: the lines that a
    single run gives. gone: links that led nowhere when it began, which it deletes."""

    lines: list[Line]
    levels: dict[str, int]
    searched: list[str]
    links: dict[str, str]
    first: list[Line]
    said: Said
    gone: set[str]


def ldconfig(root: Path, conf: str = f"/{CONF}", directories: Sequence[str] = (), *, dry: bool = False) -> Said:
    """Run it in a chroot, with all rights there and in namespaces of its own: it makes links, and writes the cache.

    directories: named on its command line. dry: it changes nothing, and says what it would do.
    """
    argv = [*_ALONE, LDCONFIG, "-r", str(root), "-v", "-i", "-f", conf]
    argv += ["-N", "-X"] if dry else ["-C", f"/{CACHE}"]
    result = proc.run([*argv, *directories], env=proc.PLAIN_ENV, timeout=SECONDS)
    assert result.ok, result.stderr
    return Said(result.stdout, result.stderr)


def listing(root: Path, cache: str = CACHE) -> list[Line]:
    """What `ldconfig -p` prints of a cache, in its order; the line of its generator is left out."""
    argv = [LDCONFIG, "-p", "-C", str(root / cache)]
    done = subprocess.run(argv, capture_output=True, env={}, timeout=SECONDS)
    assert done.returncode == 0, done.stderr
    text = done.stdout.decode("utf-8", "surrogateescape")
    found = _LINE.findall(text)
    counted = re.match(r"(\d+) libs found", text)
    assert counted, text
    assert int(counted[1]) == len(found), "a name with a line break in it"
    return [Line(*each) for each in found]


def levels(root: Path, cache: str = CACHE) -> dict[str, int]:
    """The upper half of each entry's hwcap by path, glibc's dl-cache.h: extension bit and ISA level."""
    data = (root / cache).read_bytes()
    assert data.startswith(b"glibc-ld.so.cache1.1")
    found = {}
    for i in range(struct.unpack_from("<I", data, 20)[0]):
        _, _, value, _, hwcap = struct.unpack_from("<iIIIQ", data, 48 + 24 * i)
        path = data[value : data.index(b"\0", value)]
        found[path.decode("utf-8", "surrogateescape")] = hwcap >> 32
    return found


def judge(copy: Path, conf: str = f"/{CONF}") -> Verdict:
    """Run ldconfig in `copy` until its cache no longer changes. `copy` is the judge's to change."""
    known: list[list[Line]] = []
    gone: set[str] = set()
    for _ in range(_ROUNDS):
        said = ldconfig(copy, conf)
        gone |= set(re.findall(r"Cannot stat (.*): ", said.err))
        known.append(listing(copy))
        if len(known) > 1 and known[-1] == known[-2]:
            searched = said.searched()
            return Verdict(known[-1], levels(copy), searched, links(copy, searched), known[0], said, gone)
    raise AssertionError(f"ldconfig changes its cache in each of {_ROUNDS} runs")


def links(root: Path, directories: Sequence[str]) -> dict[str, str]:
    """Every symbolic link with a library's name in these directories, and its text."""
    found = {}
    for directory in directories:
        real = inside(root, directory)
        try:
            names = os.listdir(real)
        except OSError:
            continue
        for name in names:
            if os.path.islink(real / name):
                found[f"{directory}/{name}"] = os.readlink(real / name)
    return found


def inside(root: Path, path: str) -> Path:
    """The file that `path` leads to in the root, its last component not followed if it is missing."""
    current, left, turns = root, [p for p in path.split("/") if p], 0
    while left:
        name = left.pop(0)
        if name == ".":
            continue
        if name == "..":
            current = current.parent if current != root else root
            continue
        target = current / name
        if not target.is_symlink():
            current = target
            continue
        turns += 1
        if turns > 40:
            return target  # a circle, as the kernel says after 40
        text = os.readlink(target)
        current = root if text.startswith("/") else current
        left = [p for p in text.split("/") if p] + left
    return current


def conf_for(copy: Path, drop_ins: Sequence[str], last: str) -> str:
    """The configuration to judge by: /etc/ld.so.conf, with those of our drop-ins in front (and `last` behind) whose
    directories it does not reach. Asked of ldconfig itself."""
    said = ldconfig(copy, dry=True)
    reached = set(re.findall(r"^(/.*): \(from (?!<builtin>)", said.out, re.MULTILINE))
    reached |= set(re.findall(r"Path `(.*)' given more than once\n\(from (?!<builtin>)", said.err))
    first = [d for name in drop_ins for d in _directories(copy / DROP_INS / name) if d not in reached]
    behind = [d for d in _directories(copy / DROP_INS / last) if d not in reached]
    if not first and not behind:
        return f"/{CONF}"
    (copy / "etc/judge.conf").write_text("\n".join([*first, f"include /{CONF}", *behind, ""]))
    return "/etc/judge.conf"


def _directories(path: Path) -> list[str]:
    try:
        text = path.read_text("utf-8", "surrogateescape")
    except FileNotFoundError:
        return []
    return [line for line in text.splitlines() if line.startswith("/")]
