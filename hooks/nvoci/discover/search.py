"""Looking for files, with a trace: what was looked for, where, in which order, what was found and why it is not used.

Everything that discovery looks for by name is a `Lookup`; `nvoci why NAME` prints it. What is there and cannot be used
is a `Problem` as well; what is simply not there is none, unless the caller says so.
"""

from __future__ import annotations

from _stat import S_ISDIR, S_ISREG, S_ISSOCK
from errno import ELOOP

from nvoci.discover.model import READ_ONLY, Mount, Problem
from nvoci.discover.node import ABSENT, Hit, Root, plain, type_name
from nvoci.errors import errno_name, printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    Check = Callable[[Hit], str]

USED, NOT_THERE = "used", "not there"
_MAX_PROBLEMS = 200
_HINTS = {ELOOP: "a link loops, or leads through a magic link of /proc: remove it, or reinstall the driver"}


class Step:
    """One place. where: a path of the host; outcome: USED, NOT_THERE, or why it is not used."""

    __slots__ = ("outcome", "where")

    def __init__(self, where: str, outcome: str) -> None:
        self.where = where
        self.outcome = outcome


class Lookup:
    """kind: library, binary, config, firmware, socket, device, procfs, … name: what was looked for. steps: in order.
    note: something that explains all of it; "" where nothing does."""

    __slots__ = ("kind", "name", "note", "steps")

    def __init__(self, kind: str, name: str, note: str = "") -> None:
        self.kind = kind
        self.name = name
        self.note = note
        self.steps: list[Step] = []

    def tried(self, where: str, outcome: str) -> None:
        """Add a step."""
        self.steps.append(Step(where, outcome))

    @property
    def used(self) -> list[str]:
        """What came of it."""
        return [step.where for step in self.steps if step.outcome.startswith(USED)]

    def lines(self) -> list[str]:
        """For people: a heading, and a line for each step."""
        head = f"{self.kind} {self.name}: {'found' if self.used else 'not found'}"
        steps = [f"  {n}. {step.where}: {step.outcome}" for n, step in enumerate(self.steps, 1)]
        return [printable(line) for line in (head, *([f"  {self.note}"] if self.note else []), *steps)]


class Search:
    """All lookups of one discovery, and its problems."""

    __slots__ = ("lookups", "problems")

    def __init__(self) -> None:
        self.lookups: list[Lookup] = []
        self.problems: list[Problem] = []

    def begin(self, kind: str, name: str, note: str = "") -> Lookup:
        """A new lookup."""
        lookup = Lookup(kind, name, note)
        self.lookups.append(lookup)
        return lookup

    def problem(self, stage: str, subject: str, error: OSError | str, hint: str = "") -> None:
        """Add one; the same one only once, and not without end."""
        if isinstance(error, OSError):
            hint = hint or _HINTS.get(error.errno or 0, "")
            error = errno_words(error)
        problem = Problem(stage=stage, subject=printable(subject), error=printable(error), hint=printable(hint))
        if problem not in self.problems and len(self.problems) < _MAX_PROBLEMS:
            self.problems.append(problem)


def errno_words(error: OSError) -> str:
    """`EINVAL: a FIFO, not a regular file`; the errno alone where the kernel said it."""
    name = errno_name(error.errno or 0)
    own = error.strerror and not error.strerror[0].isupper()  # the kernel's words begin with a capital
    return f"{name}: {error.strerror}" if own else name


# -- what a file must be ----------------------------------------------------------------------------------------------


def regular(hit: Hit) -> str:
    """"" for a regular file."""
    mode = hit.stat.st_mode
    return "" if S_ISREG(mode) else f"{type_name(mode)}, not a regular file"


def executable(hit: Hit) -> str:
    """"" for a regular file that somebody may execute."""
    return regular(hit) or ("" if hit.stat.st_mode & 0o111 else "not executable")


def directory(hit: Hit) -> str:
    """"" for a directory."""
    mode = hit.stat.st_mode
    return "" if S_ISDIR(mode) else f"{type_name(mode)}, not a directory"


def listening(hit: Hit) -> str:
    """"" for a socket."""
    mode = hit.stat.st_mode
    return "" if S_ISSOCK(mode) else f"{type_name(mode)}, not a socket"


# -- locators ---------------------------------------------------------------------------------------------------------


def look_at(search: Search, root: Root, lookup: Lookup, path: str, check: Check) -> Hit | None:
    """The file at one place, if it is what it must be; the step and any problem are told."""
    where = root.host(path)
    try:
        hit = root.resolve(path)
    except OSError as e:
        if e.errno in ABSENT and not root.is_link(path):
            lookup.tried(where, NOT_THERE)
            return None
        words = "a link that leads nowhere" if e.errno in ABSENT else errno_words(e)
        lookup.tried(where, words)
        hint = "reinstall the driver, or remove the link" if e.errno in ABSENT else _HINTS.get(e.errno or 0, "")
        search.problem(f"use {lookup.kind}", where, words, hint)
        return None
    words = check(hit)
    if words:
        lookup.tried(where, words)
        search.problem(f"use {lookup.kind}", where, words, "remove it, or reinstall the driver")
        return None
    lookup.tried(where, USED if hit.path == hit.resolved else f"{USED}: {root.host(hit.resolved)}")
    return hit


def first(search: Search, root: Root, kind: str, name: str, paths: Iterable[str], check: Check = regular) -> Hit | None:
    """The first of `paths` that is there and right."""
    lookup = search.begin(kind, name)
    for path in paths:
        hit = look_at(search, root, lookup, path, check)
        if hit is not None:
            return hit
    return None


def every(
    search: Search, root: Root, kind: str, name: str, patterns: Iterable[str], check: Check = regular
) -> list[Hit]:
    """All that match and are right."""
    lookup = search.begin(kind, name)
    found = []
    for pattern in patterns:
        paths = matching(search, root, kind, pattern)
        if not paths:
            lookup.tried(root.host(pattern), NOT_THERE)
        found += [hit for path in paths if (hit := look_at(search, root, lookup, path, check))]
    return found


def matching(search: Search, root: Root, kind: str, pattern: str) -> list[str]:
    """The paths that match a pattern; what keeps it from being listed is a problem."""
    try:
        return root.glob(pattern)
    except OSError as e:
        search.problem(f"list {kind}", root.host(pattern), e)
        return []


def mount(
    root: Root,
    hit: Hit,
    kind: str,
    capabilities: Sequence[str] = (),
    *,
    container_path: str = "",
    options: Sequence[str] = READ_ONLY,
    links: Sequence[tuple[str, str]] = (),
) -> Mount:
    """The record of a file that was found; it goes to where it lies in its root, unless `container_path` says."""
    return Mount(
        host_path=root.source(hit),
        container_path=container_path or hit.path,
        kind=kind,
        options=tuple(options),
        capabilities=tuple(capabilities),
        links=tuple(links),
    )


def read_text(search: Search, root: Root, path: str, what: str, hint: str = "", limit: int = 1 << 20) -> str | None:
    """A small file's text; None where it is not there, or cannot be read, which is a problem."""
    try:
        return root.text(path, limit)
    except OSError as e:
        if e.errno not in ABSENT:
            search.problem(f"read {what}", root.host(path), e, hint)
        return None


def listed(search: Search, root: Root, path: str, what: str) -> list[str]:
    """The names in a directory, sorted, without those that are no plain text; what keeps it from being read is a
    problem."""
    try:
        return [text for name in root.names(path) if (text := plain(name))]
    except OSError as e:
        search.problem(f"list {what}", root.host(path), e)
        return []
