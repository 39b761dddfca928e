"""The deliberate differences between what update-ldcache makes and what ldconfig makes: the whole list.

Each is applied to the judge's side, and only for the engines it belongs to. Everything else must be equal, in order.
"""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from diff.judge import Line, Verdict, inside
from elftools.common.exceptions import ELFError
from elftools.elf.dynamic import DynamicSection
from elftools.elf.elffile import ELFFile

BUILTIN, LDCONFIG = "builtin", "ldconfig"
DEVELOPMENT = {"libcuda.so.1": "libcuda.so", "libnvidia-opticalflow.so.1": "libnvidia-opticalflow.so"}
_FLAGS = {"ELF": 1, "libc6": 3, "libc6,x86-64": 0x303, "libc6,x32": 0x803}
_SMALLEST = 52  # bytes of an ELF header


@dataclass
class Case:
    """One run of the hook. root: after it. copy: the judge's root. before: what the image's own cache listed. injected:
    folder -> {file: soname} of what was mounted."""

    root: Path
    copy: Path
    before: Sequence[Line] = ()
    injected: dict[str, dict[str, str]] = field(default_factory=dict)

    def exists(self, path: str) -> bool:
        return inside(self.root, path).exists()


@dataclass(frozen=True)
class Difference:
    """prepare: changes the judge's copy of the root before ldconfig sees it. apply: changes its list."""

    name: str
    why: str
    engines: tuple[str, ...] = (BUILTIN,)
    prepare: Callable[[Case], None] = lambda case: None
    apply: Callable[[list[Line], Verdict, Case], list[Line]] = lambda lines, verdict, case: lines


def prepare(case: Case, engine: str, without: str = "") -> None:
    for difference in TABLE:
        if engine in difference.engines and difference.name != without:
            difference.prepare(case)


def expected(verdict: Verdict, case: Case, engine: str, without: str = "") -> list[Line]:
    """The judge's list with every difference of `engine` applied, in the table's order."""
    lines = verdict.first if without == FIXED_POINT else verdict.lines
    for difference in TABLE:
        if engine in difference.engines and difference.name != without:
            lines = difference.apply(lines, verdict, case)
    return lines


def links(found: dict[str, str], verdict: Verdict) -> tuple[dict[str, str], dict[str, str]]:
    """(the links that we left, those that the judge left) without the deliberate differences: ldconfig deletes links
    that lead nowhere, ours stay, since they are the image's; and it makes links in legacy subdirectories."""
    ours, theirs = (
        {p: text for p, text in all_.items() if p not in verdict.gone and not _is_legacy(p.rpartition("/")[0])}
        for all_ in (found, verdict.links)
    )
    return ours, theirs


# -- the order of a cache ---------------------------------------------------------------------------------------


def libcmp(a: str, b: str) -> int:
    """glibc's _dl_cache_libcmp(): runs of digits are numbers, and above every other character."""
    x, y = a.encode("utf-8", "surrogateescape") + b"\0", b.encode("utf-8", "surrogateescape") + b"\0"
    i = j = 0
    while x[i]:
        if x[i : i + 1].isdigit() and y[j : j + 1].isdigit():
            m, n = i, j
            while x[m : m + 1].isdigit():
                m += 1
            while y[n : n + 1].isdigit():
                n += 1
            if int(x[i:m]) != int(y[j:n]):
                return int(x[i:m]) - int(y[j:n])
            i, j = m, n
        elif x[i : i + 1].isdigit() or y[j : j + 1].isdigit():
            return 1 if x[i : i + 1].isdigit() else -1
        elif x[i] != y[j]:
            return _signed(x[i]) - _signed(y[j])
        else:
            i, j = i + 1, j + 1
    return _signed(x[i]) - _signed(y[j])


def _signed(c: int) -> int:
    return c - 256 if c > 127 else c


def compare(a: Line, b: Line) -> int:
    """ldconfig's compare(): what stands first in the cache is smaller. Equals stay in the order of directories."""
    names = libcmp(b.soname, a.soname)
    return names or (_rest(a) > _rest(b)) - (_rest(a) < _rest(b))


def _rest(line: Line) -> tuple[int, bool, str, int, int]:
    kind, _, hwcap = line.kind.partition(", hwcap: ")
    legacy = int(hwcap, 16) if hwcap.startswith("0x") else 0
    return -_FLAGS[kind], not hwcap.startswith('"'), hwcap if not legacy else "", -bin(legacy).count("1"), -legacy


def is_ordered(lines: Sequence[Line]) -> bool:
    return all(compare(a, b) <= 0 for a, b in itertools.pairwise(lines))


def _insert(lines: list[Line], more: Sequence[Line]) -> list[Line]:
    """`more` behind their equals."""
    if not more:
        return lines
    assert is_ordered(lines), "the judge's list is not in the order that this table knows"
    return sorted([*lines, *more], key=functools.cmp_to_key(compare))


# -- each of them -----------------------------------------------------------------------------------------------


def _keep_outside(lines: list[Line], verdict: Verdict, case: Case) -> list[Line]:
    searched = {_identity(case.root, d) for d in verdict.searched if not _is_legacy(d)}
    kept = [e for e in case.before if _identity(case.root, e.directory) not in searched and _may_be_elf(case, e.path)]
    return _insert(lines, kept)


def _may_be_elf(case: Case, path: str) -> bool:
    """Whether there is a file that is no empty mount target of an earlier start."""
    return case.exists(path) and inside(case.root, path).stat().st_size >= 52


def _identity(root: Path, directory: str) -> tuple[int, int] | str:
    try:
        st = inside(root, directory).stat()
    except OSError:
        return directory
    return st.st_dev, st.st_ino


def _development_links(case: Case) -> None:
    for folder, files in case.injected.items():
        real = inside(case.copy, folder)
        for soname in files.values():
            link = real / DEVELOPMENT.get(soname, "")
            if soname in DEVELOPMENT and not os.path.lexists(link):
                link.symlink_to(soname)


def is_name(soname: str) -> bool:
    return soname not in {"", ".", ".."} and not any(c in "/\x7f" or c < " " for c in soname)


def _only_names(lines: list[Line], verdict: Verdict, case: Case) -> list[Line]:
    return [line for line in lines if is_name(line.soname)]


LEGACY = ("tls", "haswell", "xeon_phi", "avx512_1", "sse2", "x86_64", "i586", "i686")


def _is_legacy(directory: str) -> bool:
    return directory.rpartition("/")[2] in LEGACY


def _no_legacy(lines: list[Line], verdict: Verdict, case: Case) -> list[Line]:
    return [line for line in lines if "hwcap: 0x" not in line.kind]


def _not_read_again(lines: list[Line], verdict: Verdict, case: Case) -> list[Line]:
    """An entry whose file is still there keeps its soname, whatever the file says now."""
    searched = {_identity(case.root, d): d for d in verdict.searched}
    listed = {line.path for line in lines}
    back = []
    for entry in case.before:
        directory = searched.get(_identity(case.root, entry.directory))
        file = inside(case.root, entry.path)
        path = f"{directory}/{entry.path.rpartition('/')[2]}"
        if directory is None or path in listed or not file.is_file() or file.stat().st_size < _SMALLEST:
            continue
        if file.name in case.injected.get(directory, {}) or "hwcap: 0x" in entry.kind:
            continue
        lines = [x for x in lines if x.directory != directory or inside(case.copy, x.path) != inside(case.copy, path)]
        back.append(replace(entry, path=path))
    return _insert(lines, back)


def _file_itself(lines: list[Line], verdict: Verdict, case: Case) -> list[Line]:
    """ldconfig lists DIRECTORY/SONAME although that is something else, which the loader would then refuse."""
    other = {}
    for directory, soname, name in verdict.said.taken():
        mounted = name in case.injected.get(directory, {})
        if mounted or _soname(inside(case.root, f"{directory}/{soname}")) != soname:
            other[f"{directory}/{soname}"] = f"{directory}/{name}"
    return [replace(line, path=other.get(line.path, line.path)) for line in lines]


def _soname(path: Path) -> str | None:
    """As pyelftools has it: what is no ELF file has none."""
    try:
        with path.open("rb") as f:
            found = ELFFile(f).get_section_by_name(".dynamic")
            tags = list(found.iter_tags("DT_SONAME")) if isinstance(found, DynamicSection) else []
            return tags[0].soname if tags else path.name
    except (ELFError, OSError):
        return None


FIXED_POINT = "run again until nothing changes"
BOTH = (BUILTIN, LDCONFIG)
TABLE = (
    Difference(
        "development links",
        "programs dlopen libcuda.so by that name; a driver package has the link, a container gets the files alone",
        prepare=_development_links,
    ),
    Difference(
        FIXED_POINT,
        "one run makes soname links, and only the next sees what led nowhere before them",
        BOTH,
    ),
    Difference("sonames are file names", "a library must not name another directory's file", apply=_only_names),
    Difference(
        "no legacy subdirectories",
        "tls, haswell and the like: no loader has looked into them since glibc 2.33, nor ldconfig since 2.37",
        apply=_no_legacy,
    ),
    Difference(
        "files are not read again",
        "what the image's cache says of a file was true when the image was made; only what is new is opened",
        apply=_not_read_again,
    ),
    Difference(
        "the file itself where its soname is taken",
        "something that is not the library has the name of its soname link; the entry would lead there",
        apply=_file_itself,
    ),
    Difference(
        "entries outside of the configuration stay",
        "a cache made with other directories than ld.so.conf now names is all that some images have",
        apply=_keep_outside,
    ),
)
BY_NAME = {difference.name: difference for difference in TABLE}
