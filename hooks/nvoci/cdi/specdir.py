"""The specifications of a host, by directory: which devices there are, which file has the say, and what is wrong.

A later directory has the higher priority: its devices replace those of the same name in earlier ones. The same device
in two files of one priority is in neither of them, and both files get an error. A file with an error is left out, and
the others are loaded. A file that others than root or ourselves can write is refused, and so is a directory, since
what is injected runs as root; a symbolic link is judged by the file that it leads to. Directories that do not exist
are none.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from errno import ENOENT, ENOTDIR

from nvoci.cdi import names as _names
from nvoci.cdi import text, validate
from nvoci.cdi.error import FileError, SpecError, several
from nvoci.errors import HookError, errno_name, printable
from nvoci.jsonfile import read_file

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from nvoci.cdi.model import Device, Spec

DEFAULT_DIRS = ("/etc/cdi", "/var/run/cdi")
VARIABLE = "CDI_SPEC_DIRS"
SUFFIXES = (".json", ".yaml")
OTHERS = 0o022
_STAGE = "read"
_TRUST = "what is injected runs as root: give it to root, writable by nobody else"


def directories(environ: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """The directories to look in, lowest priority first: those of CDI_SPEC_DIRS, separated by colons, or the usual
    ones."""
    return tuple([path for path in environ.get(VARIABLE, "").split(":") if path]) or DEFAULT_DIRS


@dataclass(frozen=True)
class Loaded:
    """A file that was read and is right. priority: the index of its directory."""

    path: str
    priority: int
    spec: Spec


@dataclass(frozen=True)
class Entry:
    """A device that can be injected. name: the qualified one."""

    name: str
    device: Device
    spec: Spec
    path: str
    priority: int


@dataclass(frozen=True)
class Change:
    """What another look at the directories brought: qualified names, and the files whose errors are not as they were,
    with those that they have now."""

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    errors: Mapping[str, tuple[SpecError, ...]] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.changed or self.errors)


class Registry:
    """The specifications in `dirs`, or where none is named in `directories()`. They are read when they are first asked
    for, and again by `refresh`."""

    def __init__(self, dirs: Iterable[str] = ()) -> None:
        # One that is given twice stands where it has the higher priority.
        given = [path for path in several(dirs, "dirs") if path] or directories()
        paths = [os.path.normpath(path) for path in given]
        self.dirs = tuple(reversed(dict.fromkeys(reversed(paths))))
        self._state: _State | None = None

    def refresh(self) -> None:
        """Read all of it anew. What is wrong is in `errors`; nothing is raised."""
        state = _State()
        for priority, directory in enumerate(self.dirs):
            state.read(directory, priority)
        state.settle()
        self._state = state

    @property
    def _now(self) -> _State:
        if self._state is None:
            self.refresh()
            assert self._state is not None
        return self._state

    @property
    def errors(self) -> dict[str, list[SpecError]]:
        """By path of a file or a directory."""
        return self._now.errors

    def paths(self) -> list[str]:
        """Of all files that were looked at, right or not, by priority and name."""
        return self._now.paths

    def specs(self) -> list[Loaded]:
        """The files that are right, by priority and name. Not every device in them has to be one of `devices`."""
        return self._now.specs

    def vendors(self) -> list[str]:
        """Of all specifications."""
        return sorted({each.spec.vendor for each in self.specs()})

    def classes(self, vendor: str = "") -> list[str]:
        """Of the specifications of `vendor`, or of all."""
        return sorted({each.spec.class_ for each in self.specs() if vendor in ("", each.spec.vendor)})

    def devices(self) -> list[str]:
        """The qualified names that can be injected."""
        return sorted(self._now.devices)

    def find(self, name: str) -> Entry | None:
        """By qualified name."""
        return self._now.devices.get(name)

    def resolve(self, names: Iterable[str]) -> list[Entry]:
        """One for each name. Raises SpecError with all the names that are not known."""
        wanted = several(names, "names")
        found = [self.find(name) for name in wanted]
        unknown = [name for name, entry in zip(wanted, found) if entry is None]
        if unknown:
            hint = "`nvoci cdi devices` lists those that there are"
            raise SpecError(f"unresolvable CDI devices {', '.join(dict.fromkeys(unknown))}", hint=hint)
        return [entry for entry in found if entry is not None]


def watch(registry: Registry, events: Iterable[object]) -> Iterator[Change]:
    """What changes, for each of `events` that changes something: the caller's, one whenever a directory or a file in
    it may have changed, and who has begun to look for them before this is called. The registry is refreshed."""
    before = registry._now  # noqa: SLF001  (its own module)
    for _ in events:
        registry.refresh()
        now = registry._now  # noqa: SLF001
        change = _difference(before, now)
        before = now
        if change:
            yield change


class _State:
    """One look at the directories."""

    def __init__(self) -> None:
        self.paths: list[str] = []
        self.specs: list[Loaded] = []
        self.devices: dict[str, Entry] = {}
        self.errors: dict[str, list[SpecError]] = {}
        self._conflicts: dict[str, int] = {}  # priority of those that exclude each other, by name

    def read(self, directory: str, priority: int) -> None:
        """The files of one directory."""
        try:
            found = _listing(directory)
        except SpecError as e:
            self.errors.setdefault(directory, []).append(e)
            return
        for name in found:
            path = os.path.join(directory, name)
            try:
                spec = text.loads(read_trusted(path), path)
                problems = validate.problems(spec)
            except HookError as e:
                if not os.path.lexists(path):
                    continue  # removed since it was listed
                problems = [_of_file(e, path)]
            self.paths.append(path)
            if problems:
                self.errors.setdefault(path, []).extend([each.with_file(path) for each in problems])
                continue
            self.specs.append(Loaded(path, priority, spec))
            self._add(spec, path, priority)

    def _add(self, spec: Spec, path: str, priority: int) -> None:
        for i, device in enumerate(spec.devices):
            name = _names.qualified(spec.vendor, spec.class_, device.name)
            entry = Entry(name, device, spec, path, priority)
            other = self.devices.setdefault(name, entry)
            if other.priority < priority:
                self.devices[name] = entry
            elif other is not entry:
                self._conflicts[name] = priority
                self._conflict(entry, i, other)
                self._conflict(other, other.spec.devices.index(other.device), entry)

    def _conflict(self, entry: Entry, index: int, other: Entry) -> None:
        why = f"conflicting device {entry.name}: also in {printable(other.path)}"
        error = SpecError(why, f"devices[{index}]", entry.path, "of the same priority: remove one of them")
        self.errors.setdefault(entry.path, []).append(error)

    def settle(self) -> None:
        """Leave out what two files of one priority have, unless one of a higher priority has it as well."""
        for name, priority in self._conflicts.items():
            if self.devices[name].priority == priority:
                del self.devices[name]


def _owners() -> tuple[int, ...]:
    """Who may write what we use: root (a user namespace shows the host's as another) and ourselves."""
    return 0, os.geteuid(), os.stat("/").st_uid


def _listing(directory: str) -> list[str]:
    """The names of specifications, in order; none where there is no directory. Raises SpecError."""
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, ValueError) as e:
        number = e.errno or 0 if isinstance(e, OSError) else 0
        if number == ENOENT:
            return []
        hint = "it is no directory" if number == ENOTDIR else ""
        raise SpecError(errno_name(number) if number else "not a path", file=directory, hint=hint) from None
    try:
        st = os.fstat(fd)
        if st.st_uid not in _owners() or st.st_mode & OTHERS:
            why = f"owned by uid {st.st_uid}, mode {st.st_mode & 0o7777:04o}: others can write it"
            raise SpecError(why, file=directory, hint=_TRUST)
        with os.scandir(fd) as entries:
            return sorted(each.name for each in entries if each.name.endswith(SUFFIXES) and not _is_directory(each))
    except OSError as e:
        raise SpecError(errno_name(e.errno or 0), file=directory, hint="") from None
    finally:
        os.close(fd)


def _is_directory(entry: os.DirEntry[str]) -> bool:
    return entry.is_dir(follow_symlinks=False)


def read_trusted(path: str) -> bytes:
    """The content of a host file that nobody else can write. Raises SpecError."""
    try:
        return read_file(path, text.MAX_SPEC, _STAGE, refuse_mode=OTHERS, owners=_owners())
    except HookError as e:
        raise _of_file(e, path) from None


def _of_file(error: HookError, path: str) -> SpecError:
    """The same as an error of the specification in that file."""
    if isinstance(error, FileError):
        return SpecError(error.why, file=path, hint=error.hint)
    if isinstance(error, SpecError):
        return error
    why = error.message.rpartition(f"{printable(path)}: ")[2]
    untrusted = why.startswith(("owned by", "mode"))
    return SpecError(why, file=path, hint=_TRUST if untrusted else error.hint)


def _difference(before: _State, now: _State) -> Change:
    old, new = before.devices, now.devices
    return Change(
        added=tuple(sorted(new.keys() - old.keys())),
        removed=tuple(sorted(old.keys() - new.keys())),
        changed=tuple(sorted(name for name in old.keys() & new.keys() if not _same(old[name], new[name]))),
        errors={
            path: tuple(now.errors.get(path, ()))
            for path in sorted(before.errors.keys() | now.errors.keys())
            if _lines(before, path) != _lines(now, path)
        },
    )


def _same(old: Entry, new: Entry) -> bool:
    """Whether a container would be given the same, from the same place."""
    return (
        (old.path, old.priority) == (new.path, new.priority)
        and old.device == new.device
        and old.spec.container_edits == new.spec.container_edits
    )


def _lines(state: _State, path: str) -> list[str]:
    return [error.line() for error in state.errors.get(path, ())]
