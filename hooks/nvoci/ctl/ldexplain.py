"""Why ld.so finds a library or does not, as facts: a document of JSON values, and lines made from it.

What ldconfig would list comes from nvoci.ldcache.compute, and what ld.so picks of a list from nvoci.ctl.ldso; here the
files around the answer are gathered. LD_LIBRARY_PATH and the RUNPATH of programs are not looked at: they are no part
of the root.
"""

from __future__ import annotations

from errno import ELOOP, ENOENT, ENOTDIR
from typing import TYPE_CHECKING, Any

from nvoci.ctl import ldroot, ldso, ldtext
from nvoci.ctl.ldtext import raw, text
from nvoci.ldcache.cache import NATIVE
from nvoci.ldcache.compute import NOT_A_NAME, compute, is_name, stands_for
from nvoci.ldcache.directory import Opener, open_directories
from nvoci.ldcache.library import Library
from nvoci.linux.canonical import canonical, link_text

if TYPE_CHECKING:
    from collections.abc import Iterable

    from nvoci.ldcache.cache import Cache, Entry
    from nvoci.ldcache.directory import Directory
    from nvoci.linux.rootfs import Rootfs

_ABSENT = (ENOENT, ENOTDIR, ELOOP)
_MAX_SHOWN = 200  # files, and entries of the cache: a real library has a few


class File:
    """A name in a library directory. found: the library, or why there is none."""

    def __init__(self, directory: Directory | None, path: bytes, is_link: bool, found: Library | str) -> None:
        self.directory = directory
        self.path = path
        self.name = path.rpartition(b"/")[2]
        self.is_link = is_link
        self.found = found
        self.soname = stands_for(self.name, is_link, found)[0] if isinstance(found, Library) else None


class Explainer:
    """One question about one root. Raises OSError and HookError."""

    def __init__(self, rootfs: Rootfs, search: ldroot.Search, cache: Cache | None, programs: ldso.Abi) -> None:
        self.rootfs = rootfs
        self.search = search
        self.cache = cache
        self.programs = programs
        self.cpu_level = ldroot.cpu_level()
        self.hwcaps = ldso.usable(programs, self.cpu_level)
        self.opener = Opener(rootfs)
        self.directories = open_directories(rootfs, search.paths, [])
        self.fresh = compute(rootfs, search.paths)
        self.rivals: list[Entry] = []  # what a new cache has for the soname
        self.planned = {link.unsafe_path: link.target_path() for link in self.fresh.links}

    def explain(self, name: bytes) -> dict[str, Any]:
        """`found` is None where ld.so does not find it, or finds another file than the one asked for."""
        files = [self._file(d, n, is_link) for d in self.directories for n, is_link in d.names.items()]
        soname, asked = self._question(name, files)
        doc: dict[str, Any] = {"name": text(name), "soname": text(soname), "loader": "glibc"}
        doc["programs"] = self.programs.name
        doc["loader_file"] = {"path": text(self.programs.loader), "there": self.rootfs.exists(self.programs.loader)}
        doc["directories"] = self._directories()
        shown = self._relevant(soname, asked, files)
        self.rivals = [e for e in self.fresh.entries if e.unsafe_soname == soname]
        doc["files"] = [self._file_document(f, soname) for f in shown[:_MAX_SHOWN]]
        doc["more_files"] = len(shown) - len(doc["files"])
        wins = self._choose(self.fresh.entries, soname)
        used = self._choose(self.cache.entries, soname) if self.cache and self.cache.order == NATIVE else None
        doc["wins"] = self._winner(wins)
        doc["cache"] = self._cache_document(used, wins, soname)
        doc["found"], doc["because"] = self._verdict(used, wins, soname)
        wanted = {self._identity(f.path) for f in asked}
        if wanted and doc["found"] and self._identity(raw(doc["found"]["path"])) not in wanted:
            doc["because"] = f"ld.so takes {doc['found']['file']} for {text(soname)} instead"
            doc["found"] = None
        return doc

    # -- the question -------------------------------------------------------------------------------------------

    def _file(self, directory: Directory, name: bytes, is_link: bool) -> File:
        found = self.opener.examine(directory.dir, name, is_link, directory.hwcaps_name is not None)
        return File(directory, directory.path + b"/" + name, is_link, found)

    def _question(self, name: bytes, files: Iterable[File]) -> tuple[bytes, list[File]]:
        """(the soname that programs would ask for, the files that were asked for: none if it was the soname)."""
        if b"/" in name:
            one = self._at(b"/" + name.strip(b"/"))
            return one.soname or one.name, [one]
        cached = self.cache.entries if self.cache else []
        if any(f.soname == name for f in files) or any(e.unsafe_soname == name for e in cached):
            return name, []
        same = [f for f in files if f.name == name]
        soname = next((f.soname for f in same if f.soname is not None), None)
        return (soname, same) if soname is not None else (name, [])

    def _at(self, path: bytes) -> File:
        """A file given by its path, in a library directory or not."""
        parent = path.rpartition(b"/")[0]
        try:
            st = self.rootfs.stat(parent or b"/")
            is_link = link_text(self.rootfs, path) is not None
        except OSError as e:
            if e.errno not in _ABSENT:
                raise
            return File(None, path, False, "no such file")
        directory = next((d for d in self.directories if d.dir.identity == (st.st_dev, st.st_ino)), None)
        if directory is not None:
            path = directory.path + path[len(parent) :]
        found = self.opener.at(path, directory is not None and directory.hwcaps_name is not None)
        if not is_link and found == "leads nowhere":
            found = "no such file"
        return File(directory, path, is_link, found)

    # -- facts --------------------------------------------------------------------------------------------------

    def _directories(self) -> list[dict[str, Any]]:
        """In the order of the search; `rank` is None for what is not searched."""
        by_path = {d.path: d for d in self.directories}
        by_identity = {d.dir.identity: d for d in self.directories}
        found: list[dict[str, Any]] = []
        for path in self.search.paths:
            own = path.rstrip(b"/")
            d = by_path.get(own)
            found.append(self._directory(own or b"/", d, self.search.origins[path], by_identity))
            if d is None or not d.has_hwcaps:
                continue
            for sub in self.directories:
                if sub.hwcaps_name is not None and sub.path.rpartition(b"/")[0] == own + b"/glibc-hwcaps":
                    found.append(self._directory(sub.path, sub, f"below {text(own)}", by_identity))
                    found[-1]["hwcaps"] = text(sub.hwcaps_name)
                    found[-1]["applies"] = sub.hwcaps_name in self.hwcaps
        return found

    def _directory(
        self, path: bytes, d: Directory | None, origin: str, by_identity: dict[tuple[int, int], Directory]
    ) -> dict[str, Any]:
        state = "searched"
        if path == b"/":
            state = "the root itself is never searched"
        elif d is None:
            try:
                st = self.rootfs.stat(path)
            except OSError as e:
                if e.errno not in _ABSENT:
                    raise
                state = "no such directory"
            else:
                other = by_identity.get((st.st_dev, st.st_ino))
                state = f"the same directory as {text(other.path)}" if other else "not a directory"
        return {"rank": None if d is None else d.rank + 1, "path": text(path), "from": origin, "state": state}

    def _relevant(self, soname: bytes, asked: list[File], files: Iterable[File]) -> list[File]:
        """Those that stand for the soname, or look as if: by the name alone, also what is no library at all."""
        known = {f.path: f for f in asked}
        for f in files:
            near = f.name == soname or (f.soname is None and f.name.startswith(soname + b"."))
            if f.soname == soname or near:
                known.setdefault(f.path, f)
        for d in self.directories:  # a FIFO or the like is not among a directory's names
            path = d.path + b"/" + soname
            if path not in known and soname not in d.names and is_name(soname) and self._is_there(path):
                known[path] = File(d, path, False, "not a regular file")
        order = {d.path: d.rank for d in self.directories}
        return sorted(known.values(), key=lambda f: (order.get(f.path.rpartition(b"/")[0], len(order)), f.path))

    def _is_there(self, path: bytes) -> bool:
        try:
            self.rootfs.lstat(path)
        except OSError as e:
            if e.errno not in _ABSENT:
                raise
            return False
        return True

    def _file_document(self, f: File, soname: bytes) -> dict[str, Any]:
        found = f.found
        header = ldso.header(self.rootfs, f.path)
        doc: dict[str, Any] = {"path": text(f.path), "link": None}
        doc["elf"] = header.text() if header.elf else None
        if f.is_link:
            doc["link"] = text(link_text(self.rootfs, f.path) or b"")
        doc["soname"] = text(header.elf.unsafe_soname) if header.elf and header.elf.unsafe_soname is not None else None
        doc["hwcaps"] = text(f.directory.hwcaps_name) if f.directory and f.directory.hwcaps_name else None
        doc["why_not"] = found if isinstance(found, str) else self._why_not(f, found, soname)
        return doc

    def _why_not(self, f: File, library: Library, soname: bytes) -> str | None:
        """Why a library is not the one that ld.so takes for the soname, in these programs; None if it may be."""
        if f.directory is None:
            return "its directory is not searched"
        if f.soname is None or not is_name(f.soname):
            return NOT_A_NAME
        if f.soname != soname:
            return f"it is listed as {text(f.soname)}, its soname"
        if library.flags not in self.programs.flags:
            return f"for other programs ({ldtext.kind(library.flags)})"
        name = f.directory.hwcaps_name
        if name is not None and name not in self.hwcaps:
            return f"glibc-hwcaps/{text(name)} is not for this CPU, or no name that ld.so knows"
        if name is not None and library.isa_level > self.cpu_level:
            return f"it needs x86-64-v{library.isa_level + 1}, which this CPU is not"
        return self._beaten(f)

    def _beaten(self, f: File) -> str | None:
        """By another file for this soname in the same directory."""
        here = f.path.rpartition(b"/")[0]
        for e in self.rivals:
            if e.unsafe_path.rpartition(b"/")[0] != here:
                continue
            chosen = self._target(e)
            if self._identity(chosen) == self._identity(f.path):
                return None
            name = self._real(chosen).rpartition("/")[2]
            why = "a file goes before a link" if f.is_link else "the greater name of two counts"
            return f"{name} stands for it in this directory: {why}"
        return None

    # -- what a new cache would say -------------------------------------------------------------------------------

    def _choose(self, entries: list[Entry], soname: bytes) -> Entry | None:
        return ldso.choose(entries, soname, self.programs, self.hwcaps, self.cpu_level)

    def _target(self, e: Entry) -> bytes:
        """The file of an entry, also where its link is still to be made."""
        return self.planned.get(e.unsafe_path, e.unsafe_path)

    def _identity(self, path: bytes) -> tuple[int, int] | None:
        try:
            st = self.rootfs.stat(path)
        except OSError as e:
            if e.errno not in _ABSENT:
                raise
            return None
        return st.st_dev, st.st_ino

    def _real(self, path: bytes) -> str:
        """The path without links."""
        return text(b"/" + canonical(path, lambda p: link_text(self.rootfs, p)))

    def _winner(self, wins: Entry | None) -> dict[str, Any] | None:
        if wins is None:
            return None
        rivals = [e for e in self.rivals if e.flags in self.programs.flags]
        if wins.hwcaps_name is not None:
            why = f"this CPU is an {text(wins.hwcaps_name)}, and such a file goes before those of all directories"
        elif len(rivals) == 1:
            why = "the only one"
        elif any(e.hwcaps_name is None and e is not wins for e in rivals):
            why = "its directory is the first that has it"
        else:
            why = "none below glibc-hwcaps is for this CPU"
        link = self.planned.get(wins.unsafe_path)
        doc = {"path": text(wins.unsafe_path), "file": self._real(self._target(wins)), "why": why, "missing_link": None}
        if link is not None:
            doc["missing_link"] = text(link.rpartition(b"/")[2])
        return doc

    # -- what the cache says ------------------------------------------------------------------------------------

    def _cache_document(self, used: Entry | None, wins: Entry | None, soname: bytes) -> dict[str, Any]:
        """Its entries for the soname, each with what is wrong with it. `stale`: what a new cache would change."""
        if self.cache is None:
            return {"state": "there is none", "entries": [], "more": 0, "stale": None}
        entries = [e for e in self.cache.entries if e.unsafe_soname == soname]
        rows = [
            {**ldtext.document(e), "line": ldtext.line(e), "wrong": self._wrong(e), "used": e is used}
            for e in entries[:_MAX_SHOWN]
        ]
        doc: dict[str, Any] = {"state": "read", "entries": rows, "more": len(entries) - len(rows), "stale": None}
        if self.cache.order != NATIVE:
            doc["state"] = "of the other byte order: ld.so passes over it"
        else:
            doc["stale"] = self._stale(entries, used, wins)
        return doc

    def _stale(self, entries: list[Entry], used: Entry | None, wins: Entry | None) -> str | None:
        if wins is None:
            return "a new cache would not have it" if used is not None else None
        new = f"a new cache would have {text(wins.unsafe_path)}"
        if used is None:
            plain = any(e.flags in self.programs.flags and e.hwcaps_name is None and e.hwcap == 0 for e in entries)
            return "out of order: ld.so searches it by halves, and misses the entry" if plain else new
        if self._identity(used.unsafe_path) != self._identity(self._target(wins)):
            same = used.unsafe_path == wins.unsafe_path
            return "its link is not the one that ldconfig would make" if same else f"{new} first"
        return None

    def _wrong(self, e: Entry) -> str | None:
        """What of an entry no longer holds."""
        parent = self._identity(e.unsafe_path.rpartition(b"/")[0] or b"/")
        found = self.opener.at(e.unsafe_path, e.hwcaps_name is not None)
        if found == "leads nowhere":
            return "no such file"
        if isinstance(found, str):
            return found
        if found.flags != e.flags:
            return f"the file is {ldtext.kind(found.flags)}"
        name = e.unsafe_path.rpartition(b"/")[2]
        if e.unsafe_soname not in (found.unsafe_soname, name):
            return f"the file's soname is {text(found.unsafe_soname or name)}"
        if all(d.dir.identity != parent for d in self.directories):
            return "its directory is not searched any more: ldconfig would drop it"
        return None

    # -- the answer ---------------------------------------------------------------------------------------------

    def _verdict(self, used: Entry | None, wins: Entry | None, soname: bytes) -> tuple[dict[str, Any] | None, str]:
        """(where ld.so finds it now, why, or why not): first the cache's file, then its default directories."""
        tries = [(used.unsafe_path, "the cache")] if used is not None else []
        tries += [(path, "a default directory of ld.so") for path in self._defaults(soname)]
        for path, how in tries:
            header = ldso.header(self.rootfs, path)
            if header.loads(self.programs):
                why = "the cache names it" if how == "the cache" else f"not by the cache, but it lies in {how}"
                return {"path": text(path), "file": self._real(path), "how": how}, why
            if header.stops(self.programs):
                return None, f"ld.so stops at {text(path)}: {header.text()}"
        return None, self._because(wins)

    def _defaults(self, soname: bytes) -> Iterable[bytes]:
        """Where ld.so looks without the cache, by file name."""
        if not is_name(soname):
            return
        for d in ldso.default_directories(self.programs, self.search.debian):
            for name in sorted(self.hwcaps, key=self.hwcaps.__getitem__):
                yield d + b"/glibc-hwcaps/" + name + b"/" + soname
            yield d + b"/" + soname

    def _because(self, wins: Entry | None) -> str:
        """Why nothing is found."""
        if wins is not None:
            return f"the cache does not lead to it; update-ldcache or ldconfig would enter {text(wins.unsafe_path)}"
        others = {ldtext.kind(e.flags) for e in self.rivals}
        if others:
            return f"it is there only for other programs ({', '.join(sorted(others))})"
        return "no directory that is searched has it"
