"""What ld.so.cache has to say of a container's root: computed as ldconfig does it, or the image's own cache extended.

ldconfig's rules (glibc, elf/ldconfig.c): in one directory a soname stands for one file, a file rather than a link,
else the greater name; the cache has `DIRECTORY/SONAME`, which is a link to that file, except below glibc-hwcaps, where
it has the file itself. Directories rank as configured. A link counts under its own name if that is the soname of its
file, or if it is the `.so` link for ld(1).

Differences, all for the container's good: a soname that is no file name is refused; where something that is not the
library has the soname's place, the cache names the file itself; what the image's cache has of directories outside of
the configuration stays, at the end; in a directory that is mounted as a whole no link is made, the cache names the
file; the development links of injected libraries are made; the result is what ldconfig finds when it is run again (it
lists a link that led nowhere before it ran only then).
"""

from __future__ import annotations

import posix
from _stat import S_ISLNK, S_ISREG
from errno import ELOOP, ENAMETOOLONG, ENOENT, ENOTDIR

from nvoci.ldcache.cache import HWCAP_EXTENSION, NATIVE, Cache, Entry
from nvoci.ldcache.directory import MIN_SIZE, Directory, Opener, open_directories
from nvoci.ldcache.library import Library
from nvoci.ldcache.order import Order, libcmp_key
from nvoci.linux.canonical import canonical, link_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from nvoci.linux.rootfs import Rootfs

_ABSENT = (ENOENT, ENOTDIR, ELOOP, ENAMETOOLONG)
_MAX_UNRESOLVED = 1024  # links that lead to no library, to be looked at again once others are made
_MAX_OUTSIDE = 10_000  # lookups for cached entries of directories outside the configuration
_MAX_LEFT_OUT = 1000
_ROUNDS = 4
_NOT_IN_NAMES = bytes(range(0x20)) + b"\x7f/"
NOT_A_NAME = "its soname is no file name"


class Link:
    """A link to be made: `unsafe_path` (soname or development link) -> `unsafe_target`, a name in its directory."""

    __slots__ = ("unsafe_path", "unsafe_target")

    def __init__(self, unsafe_path: bytes, unsafe_target: bytes) -> None:
        self.unsafe_path = unsafe_path
        self.unsafe_target = unsafe_target

    def target_path(self) -> bytes:
        """The target from the root."""
        return self.unsafe_path.rpartition(b"/")[0] + b"/" + self.unsafe_target


class _Candidate:
    """A name that stands for a soname in its directory."""

    __slots__ = ("is_link", "library", "name")

    def __init__(self, name: bytes, is_link: bool, library: Library) -> None:
        self.name = name
        self.is_link = is_link
        self.library = library

    def key(self) -> tuple[bool, bytes, bytes]:
        """The greatest wins: a file before a link, then the greater name."""
        return not self.is_link, libcmp_key(self.name), self.name


class Result:
    """entries: in the cache's order. links: to be made for them. left_out: (path, why) of names that look like a
    library's and are none, of those that were opened. opened: how many were."""

    __slots__ = ("entries", "left_out", "links")

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.links: list[Link] = []
        self.left_out: list[tuple[bytes, str]] = []


def is_name(name: bytes) -> bool:
    """Whether `name` can be a library's in a directory, and stands on one line: not hidden, and not one of ld.so's or
    ldconfig's own files, whose place its link would take."""
    if not 0 < len(name) < 256 or name[0] == 0x2E or name.endswith(b".conf") or name == b"ld.so.cache":
        return False
    return len(name.translate(None, _NOT_IN_NAMES)) == len(name)


def compute(
    rootfs: Rootfs,
    paths: Iterable[bytes],
    cache: Cache | None = None,
    development: Mapping[bytes, bytes] | None = None,
    forget: Iterable[bytes] = (),
) -> Result:
    """paths: directories in their order, as configured; missing ones are passed over. cache: the image's, whose entries
    are taken over where they hold; None computes everything. development: link for ld(1) by the soname of an injected
    library, to be made if it is missing. forget: directories whose entries go unless they are in `paths`.

    Raises OSError: E2BIG beyond a limit, EIO and the like as they come."""
    return _Computation(rootfs, paths, development or {}).run(_usable(cache), frozenset(forget))


def _usable(cache: Cache | None) -> list[Entry]:
    """The entries to extend: none where the cache is not one that this machine's ldconfig writes."""
    return cache.entries if cache is not None and cache.known and cache.order == NATIVE else []


class _Computation:
    def __init__(self, rootfs: Rootfs, paths: Iterable[bytes], development: Mapping[bytes, bytes]) -> None:
        self.rootfs = rootfs
        self.development = development
        self.result = Result()
        self.opener = Opener(rootfs)
        self.directories = open_directories(rootfs, paths, self.result.left_out)
        self.new: list[Entry] = []
        self.listed: list[set[bytes]] = [set() for _ in self.directories]  # sonames, by rank
        self.unresolved: list[tuple[Directory, bytes]] = []
        self.planned: dict[tuple[int, bytes], Library] = {}  # soname links to be made, by rank and name

    def run(self, cached: Sequence[Entry], forget: frozenset[bytes]) -> Result:
        sorter = _Sorter(self.rootfs, self.directories, forget)
        groups, outside = sorter.group(cached)
        kept = set(outside)
        for d in self.directories:
            self._directory(d, groups.get(d.rank, []), kept)
        self._resolve_planned()
        old = [sorter.respelled(e) for e in cached if e in kept]
        self.result.entries = Order(sorter.rank).merge(old, self.new)
        return self.result

    def _directory(self, d: Directory, cached: Sequence[Entry], kept: set[Entry]) -> None:
        explained: dict[bytes, Entry] = {}
        names: set[bytes] = set()
        if d.hwcaps_name is None:
            explained, names = d.explained(cached)
        candidates: dict[bytes, list[_Candidate]] = {}
        for name, is_link in d.names.items():
            if name not in names:
                self._open(d, name, is_link, candidates)
        self._open_incumbents(d, explained, names, candidates)
        for soname, found in candidates.items():
            self._settle(d, soname, found)
        kept.update(explained.values())
        self.listed[d.rank].update(explained)

    def _open(self, d: Directory, name: bytes, is_link: bool, candidates: dict[bytes, list[_Candidate]]) -> None:
        if is_link and d.dangles(name):
            self._leave_out(d, name, is_link, "leads nowhere")
            return
        found = self.opener.examine(d.dir, name, is_link, d.hwcaps_name is not None)
        if isinstance(found, str):
            self._leave_out(d, name, is_link, found)
            return
        soname, counts_as_link = stands_for(name, is_link, found)
        if is_name(soname):
            candidates.setdefault(soname, []).append(_Candidate(name, counts_as_link, found))
        else:
            self._note(d, name, NOT_A_NAME)

    def _leave_out(self, d: Directory, name: bytes, is_link: bool, why: str) -> None:
        if is_link and len(self.unresolved) < _MAX_UNRESOLVED:
            self.unresolved.append((d, name))
        self._note(d, name, why)

    def _note(self, d: Directory, name: bytes, why: str) -> None:
        if len(self.result.left_out) < _MAX_LEFT_OUT:
            self.result.left_out.append((d.path + b"/" + name, why))

    def _open_incumbents(
        self, d: Directory, explained: dict[bytes, Entry], names: set[bytes], candidates: dict[bytes, list[_Candidate]]
    ) -> None:
        """Open what the cache had for a soname that a new file claims, too: it has to be looked at now, and may turn
        out to stand for yet another soname."""
        todo = list(candidates)
        while todo:
            soname = todo.pop()
            if explained.pop(soname, None) is None:
                continue
            for name in (soname, d.end_of(soname)):
                if name is not None and name in names and name in d.names:
                    names.discard(name)
                    before = len(candidates)
                    self._open(d, name, d.names[name], candidates)
                    if len(candidates) > before:
                        todo.append(next(reversed(candidates)))

    def _settle(self, d: Directory, soname: bytes, found: Sequence[_Candidate]) -> None:
        """Enter the one that wins, and plan its soname link."""
        winner = max(found, key=_Candidate.key)
        name, library = winner.name, winner.library
        self.listed[d.rank].add(soname)
        if d.hwcaps_name is not None:
            hwcap = HWCAP_EXTENSION | library.isa_level << 32
            self._enter(library, soname, d.path + b"/" + name, hwcap, d.hwcaps_name)
            return
        path = d.path + b"/" + soname
        if name != soname and not winner.is_link:
            place = self._place_of(d, soname, name)
            if place == "taken" and (name in d.mounted or all(c.name != soname for c in found)):
                path = d.path + b"/" + name
            elif place == "free" and d.is_mounted:
                path = d.path + b"/" + name  # nothing is written to what is somebody else's
            elif place == "free":
                self.result.links.append(Link(path, name))
                self.planned[d.rank, soname] = library
        self._enter(library, soname, path)
        link = self.development.get(soname)
        if link is not None and name in d.mounted and not self._is_there(d, link):
            self.listed[d.rank].add(link)
            if d.is_mounted:
                self._enter(library, link, d.path + b"/" + name)
            else:
                self.result.links.append(Link(d.path + b"/" + link, soname))
                self._enter(library, link, d.path + b"/" + link)

    def _enter(
        self, library: Library, soname: bytes, path: bytes, hwcap: int = 0, hwcaps_name: bytes | None = None
    ) -> None:
        self.new.append(Entry(library.flags, soname, path, 0, hwcap, hwcaps_name))

    def _is_there(self, d: Directory, name: bytes) -> bool:
        return self._mode(d, name) is not None

    def _mode(self, d: Directory, name: bytes) -> int | None:
        try:
            return posix.stat(name, dir_fd=d.dir.fileno(), follow_symlinks=False).st_mode
        except OSError as e:
            if e.errno not in _ABSENT:
                raise OSError(e.errno, e.strerror, d.path + b"/" + name) from None
            return None

    def _place_of(self, d: Directory, soname: bytes, name: bytes) -> str:
        """Of the soname's link to `name`: `right`, `free` (a link may be made, or another one replaced) or `taken`."""
        mode = self._mode(d, soname)
        if mode is None:
            return "free"
        if not S_ISLNK(mode):
            return "taken"
        if d.text(soname) == name:
            return "right"
        path = d.path + b"/"
        try:
            is_same = _identity(self.rootfs, path + soname) == _identity(self.rootfs, path + name)
        except OSError as e:
            if e.errno not in _ABSENT:
                raise
            return "free"
        return "right" if is_same else "free"

    def _resolve_planned(self) -> None:
        """Enter the links that lead to no library yet, but will once the planned ones are made."""
        planned: dict[bytes, bytes] = {}

        def link_of(path: bytes) -> bytes | None:
            text = planned.get(path)
            return link_text(self.rootfs, path) if text is None else text

        self._resolve_beside()
        count = -1
        for _ in range(_ROUNDS):
            if not self.unresolved or count == len(self.result.links):
                return
            count = len(self.result.links)
            for link in self.result.links:
                planned[canonical(link.unsafe_path, link_of, nofollow=True)] = link.unsafe_target
            todo, self.unresolved = self.unresolved, []
            for d, name in todo:
                try:
                    found = self.opener.at(canonical(d.path + b"/" + name, link_of), d.hwcaps_name is not None)
                except OSError as e:
                    if e.errno not in _ABSENT:
                        raise
                    continue
                if isinstance(found, str):
                    self.unresolved.append((d, name))
                    continue
                self._enter_resolved(d, name, found)

    def _resolve_beside(self) -> None:
        """Most of them: links to a planned one in the same directory, whose file is known. Measured: the 26 links of a
        CDI spec take 0.1 ms instead of 1.3, since no path has to be followed."""
        todo, self.unresolved = self.unresolved, []
        for d, name in todo:
            library = self.planned.get((d.rank, d.text(name)))
            if library is None or d.hwcaps_name is not None:
                self.unresolved.append((d, name))
            else:
                self._enter_resolved(d, name, library)

    def _enter_resolved(self, d: Directory, name: bytes, library: Library) -> None:
        soname, is_link = stands_for(name, True, library)
        if is_name(soname) and soname not in self.listed[d.rank]:
            self._settle(d, soname, [_Candidate(name, is_link, library)])


def stands_for(name: bytes, is_link: bool, library: Library) -> tuple[bytes, bool]:
    """(the soname under which a name is listed, whether it counts as a link): its file's, but its own for a link for
    ld(1) and for a file without one."""
    soname = name if library.unsafe_soname is None else library.unsafe_soname
    if is_link and (name == soname or (name.endswith(b".so") and soname.startswith(name))):
        return name, True
    return soname, False


def _identity(rootfs: Rootfs, path: bytes) -> tuple[int, int]:
    st = rootfs.stat(path)
    return st.st_dev, st.st_ino


class _Sorter:
    """Finds the directory of each cached entry, and the rank of every entry."""

    def __init__(self, rootfs: Rootfs, directories: Sequence[Directory], forget: frozenset[bytes]) -> None:
        self.rootfs = rootfs
        self.forget = forget
        self.ranks = {d.path: d.rank for d in directories}
        self.paths = [d.path for d in directories]
        self.by_identity = {d.dir.identity: d.rank for d in directories}
        self._left = _MAX_OUTSIDE
        self.other: dict[bytes, int | None] = {}  # spelling -> rank of the directory that it is, None for none of ours

    def group(self, cached: Sequence[Entry]) -> tuple[dict[int, list[Entry]], list[Entry]]:
        """(entries by the rank of their directory, those of directories outside whose file is still there)."""
        groups: dict[int, list[Entry]] = {}
        outside: list[Entry] = []
        for e in cached:
            parent = e.unsafe_path.rpartition(b"/")[0] or b"/"
            rank = self.ranks.get(parent)
            if rank is None:
                rank = self._other(parent)
            if not is_name(e.unsafe_soname):
                continue
            if rank is not None:
                groups.setdefault(rank, []).append(e)
            elif parent not in self.forget and self._is_there(e.unsafe_path):
                outside.append(e)
        return groups, outside

    def _is_there(self, path: bytes) -> bool:
        """Whether there is a file that may be a library."""
        self._left -= 1
        if self._left < 0 or not path.startswith(b"/"):
            return False
        try:
            st = self.rootfs.stat(path)
        except OSError as e:
            if e.errno not in _ABSENT:
                raise
            return False
        return S_ISREG(st.st_mode) and st.st_size >= MIN_SIZE

    def _other(self, parent: bytes) -> int | None:
        if parent not in self.other:
            self._left -= 1
            if self._left < 0:
                return None
            try:
                identity = _identity(self.rootfs, parent)
            except OSError as e:
                if e.errno not in _ABSENT:
                    raise
                self.other[parent] = None
            else:
                self.other[parent] = self.by_identity.get(identity)
        return self.other[parent]

    def respelled(self, e: Entry) -> Entry:
        """The entry with its directory as configured."""
        parent, _, name = e.unsafe_path.rpartition(b"/")
        rank = self.other.get(parent or b"/") if self.other else None
        if rank is None:
            return e
        return Entry(e.flags, e.unsafe_soname, self.paths[rank] + b"/" + name, e.osversion, e.hwcap, e.hwcaps_name)

    def rank(self, e: Entry) -> int:
        """0 for the first directory; those outside share the last."""
        return self.ranks.get(e.unsafe_path.rpartition(b"/")[0] or b"/", len(self.paths))
