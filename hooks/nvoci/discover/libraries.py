"""The shared libraries of a driver root: where they may lie, which are for this machine, what each is for.

Directories come from the list of the reference tools, then those of other distributions, then the ones that
ld.so.cache leads to. Each is listed once. A library is opened only if its name is the driver's, and counts only if it
is an ELF file of this machine; one of the machine's 32-bit mode is marked compat32. Measured, 29 libraries: 2 ms.
"""

from __future__ import annotations

from nvoci.discover.libnames import CAPABILITIES, is_ours, stem_of, version_of
from nvoci.discover.node import ABSENT, Node, plain
from nvoci.discover.search import NOT_THERE, USED, Lookup, Search, errno_words
from nvoci.elf import Elf, ElfError
from nvoci.ldcache import cache
from nvoci.linux.pattern import literal_prefix, match
from nvoci.linux.rootfs import fsencode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

CACHE = "/etc/ld.so.cache"
_MAX_CACHE = 64 << 20
_MULTIARCH = ("x86_64-linux-gnu", "aarch64-linux-gnu")
# The order of the reference tools, then: 32-bit libraries, Arch, NixOS.
DIRECTORIES = (
    *("/", "/usr/lib64"),
    *(f"/usr/lib/{m}{below}" for below in ("", "/nvidia/current") for m in _MULTIARCH),
    "/lib64",
    *(f"/lib/{m}{below}" for below in ("", "/nvidia/current") for m in _MULTIARCH),
    *("/usr/lib/i386-linux-gnu", "/usr/lib/i386-linux-gnu/nvidia/current", "/usr/lib/arm-linux-gnueabihf"),
    *("/usr/lib32", "/usr/lib", "/lib", "/run/opengl-driver/lib", "/run/opengl-driver-32/lib"),
)
# (e_machine, bits) of the machine itself, and of its 32-bit mode (elf.h).
_MACHINES = {
    "x86_64": ((62, 64), (3, 32)),
    "aarch64": ((183, 64), (40, 32)),
    "ppc64le": ((21, 64), None),
    "riscv64": ((243, 64), None),
}


class Library:
    """A file. path: without links, below the root; compat32: for the machine's 32-bit mode; soname: "" for none."""

    __slots__ = ("compat32", "path", "soname")

    def __init__(self, path: str, soname: str, compat32: bool) -> None:
        self.path = path
        self.soname = soname
        self.compat32 = compat32

    @property
    def name(self) -> str:
        """File name."""
        return self.path.rpartition("/")[2]

    @property
    def directory(self) -> str:
        """Where it lies."""
        return self.path.rpartition("/")[0] or "/"

    @property
    def capabilities(self) -> tuple[str, ...]:
        """What it is for; with compat32, that is asked for in addition to one of the others."""
        own = CAPABILITIES.get(stem_of(self.name), ())
        return (*own, "compat32") if self.compat32 else own


class Directory:
    """path: as it is named; names: of all libraries in it, sorted. cached: whether only ld.so.cache leads there."""

    __slots__ = ("cached", "names", "path")

    def __init__(self, path: str, names: list[str], cached: bool) -> None:
        self.path = path
        self.names = names
        self.cached = cached

    def file(self, name: str) -> str:
        """Path of a name in it."""
        return f"{self.path.rstrip('/')}/{name}"


class Libraries:
    """All of one driver root."""

    __slots__ = ("_asked", "_by_path", "_fates", "_identities", "_machine", "_node", "directories", "search")

    def __init__(self, node: Node, search: Search, search_path: Sequence[str] = ()) -> None:
        """search_path: these directories and no others, also no cache."""
        self._node = node
        self.search = search
        self._machine = _MACHINES.get(node.machine, (None, None))
        self._by_path: dict[str, Library | None] = {}
        self._fates: dict[str, str] = {}
        self._identities: dict[tuple[int, int], str] = {}
        self._asked: list[tuple[str, Directory | None, str]] = []  # in order, with why there is no Directory
        self.directories: list[Directory] = []
        if search_path:
            for path in search_path:
                self.add(below(node, path), False)
            return
        for path in DIRECTORIES:
            self.add(path, False)
        for path in (*self._link_targets(), *self._cached()):
            self.add(path, True)

    def add(self, path: str, cached: bool) -> None:
        """List a directory, unless it is known under another name."""
        try:
            st = self._node.root.stat(fsencode(path))
            known = self._identities.setdefault((st.st_dev, st.st_ino), path)
            if known != path or any(each.path == path for each in self.directories):
                self._asked += [] if cached else [(path, None, f"the same directory as {known}")]
                return
            unsafe = [name for name in self._node.root.names(path) if b".so" in name]
        except OSError as e:
            self._asked.append((path, None, NOT_THERE if e.errno in ABSENT else errno_words(e)))
            if e.errno not in ABSENT:
                self.search.problem("list libraries", self._node.root.host(path), e)
            return
        names = [name for each in unsafe if (name := plain(each))]
        if len(names) != len(unsafe) and any(each.startswith((b"libnvidia-", b"libcuda")) for each in unsafe):
            bad = next(each for each in unsafe if not plain(each))
            where = self._node.root.host(path) + "/" + bad.decode("utf-8", "backslashreplace")
            hint = "no driver has such a file: remove it"
            self.search.problem("list libraries", where, "a name that is no plain text", hint)
        self.directories.append(Directory(path, names, cached))
        self._asked.append((path, self.directories[-1], ""))

    def _link_targets(self) -> list[str]:
        """Where libcuda and NVML are when their sonames are links (alternatives, a store of packages)."""
        names = ("libcuda.so.1", "libnvidia-ml.so.1")
        links = [each.file(name) for each in self.directories for name in names if name in each.names]
        return [path for each in links if (path := self._resolved_directory(each))]

    def _cached(self) -> list[str]:
        """The directories that ld.so.cache has the driver's libraries in: as it says, and where links lead."""
        where = self._node.root.host(CACHE)
        try:
            entries = cache.parse(self._node.root.read_file(fsencode(CACHE), _MAX_CACHE)).entries
        except OSError as e:
            if e.errno not in ABSENT:
                self.search.problem("read the library cache", where, e, "run ldconfig")
            return []
        except cache.CacheError as e:
            self.search.problem("read the library cache", where, str(e), "run ldconfig")
            return []
        found: dict[str, None] = {}
        for entry in entries:
            path = plain(entry.unsafe_path)
            if is_ours(plain(entry.unsafe_soname)) and path.startswith("/"):
                found[path.rpartition("/")[0] or "/"] = None
                found[self._resolved_directory(path)] = None
        return [path for path in found if path]

    def _resolved_directory(self, path: str) -> str:
        try:
            return self._node.root.resolve(path).resolved.rpartition("/")[0] or "/"
        except OSError:
            return ""

    # -- files --------------------------------------------------------------------------------------------------------

    def library(self, path: str) -> Library | None:
        """What a file is; None where it is none for this machine. A broken one is a problem."""
        try:
            fd, hit = self._node.root.open_resolved(path)
        except OSError as e:
            if e.errno in ABSENT:
                self._fates[path] = "a link that leads nowhere" if self._node.root.is_link(path) else NOT_THERE
            else:
                self._fail(path, errno_words(e))
            return None
        with fd:
            known = hit.resolved
            if known not in self._by_path:
                self._by_path[known] = self._examine(fd.fileno(), known)
        if path != known:
            self._fates.setdefault(path, f"a link to {known}")
        return self._by_path[known]

    def _examine(self, fd: int, path: str) -> Library | None:
        try:
            elf = Elf(fd)
        except ElfError as e:
            self._fail(path, f"no library: {e}")
            return None
        kind = (elf.machine, elf.bits) if elf.endian == "little" else None
        if kind is None or kind not in self._machine:
            machine = f"e_machine {elf.machine}, {elf.bits} bits"
            self._fates[path] = f"for another machine ({machine}), not {self._node.machine}"
            return None
        return Library(path, _soname(elf), kind != self._machine[0])

    def _fail(self, path: str, words: str) -> None:
        self._fates[path] = words
        self.search.problem("use library", self._node.root.host(path), words, "reinstall the driver, or remove it")

    def take(self, library: Library) -> None:
        """Remember that it is used."""
        self._fates[library.path] = USED

    def refuse(self, library: Library, why: str) -> None:
        """Remember why it is not used."""
        self._fates.setdefault(library.path, why)

    # -- looking for some ---------------------------------------------------------------------------------------------

    def matching(self, pattern: str) -> list[Library]:
        """Those whose name matches, of the search directories, or else of the ones that ld.so.cache leads to; each
        file once, with its links followed."""
        unsafe = fsencode(pattern)
        prefix = plain(literal_prefix(unsafe))
        for cached in (False, True):
            found: dict[str, Library] = {}
            for each in self.directories:
                if each.cached == cached:
                    for name in each.names:
                        matches = name.startswith(prefix) and match(unsafe, fsencode(name))
                        library = self.library(each.file(name)) if matches else None
                        if library is not None:
                            found[library.path] = library
            if found:
                return list(found.values())
        return []

    def named(self, stem: str) -> dict[str, list[Library]]:
        """`libcuda` -> version -> files, of what is usable."""
        found: dict[str, list[Library]] = {}
        for each in self.directories:
            for name in each.names:
                version = version_of(name) if name.startswith(stem + ".so.") else ""
                library = self.library(each.file(name)) if version else None
                if library is not None:
                    found.setdefault(version, []).append(library)
        return found

    def of_version(self, version: str) -> list[Library]:
        """All `lib*.so.VERSION`, links followed, then whatever else ends in `.so.VERSION` in their directories and in
        the `vdpau` below them; each file once."""
        suffix = f".so.{version}"
        found: dict[str, Library] = {}
        for each in list(self.directories):
            for name in each.names:
                if name.startswith("lib") and name.endswith(suffix):
                    library = self.library(each.file(name))
                    if library is not None:
                        found[library.path] = library
        known = {each.path: each for each in self.directories}
        for directory in dict.fromkeys([library.directory for library in found.values()]):
            for path in (directory, f"{directory.rstrip('/')}/vdpau"):
                names = known[path].names if path in known else self._names(path)
                for name in names:
                    if name.endswith(suffix) and (library := self.library(f"{path.rstrip('/')}/{name}")):
                        found[library.path] = library
        return list(found.values())

    def _names(self, path: str) -> list[str]:
        try:
            return [text for name in self._node.root.names(path) if (text := plain(name))]
        except OSError as e:
            self.search.problem("list libraries", self._node.root.host(path), e)
            return []

    def dangling(self) -> dict[str, list[str]]:
        """Links of the driver's names that lead nowhere, by directory."""
        found: dict[str, list[str]] = {}
        for each in self.directories:
            for name in each.names:
                if is_ours(name) and not self._leads(each.file(name)):
                    found.setdefault(each.path, []).append(name)
        return found

    def _leads(self, path: str) -> bool:
        if path in self._by_path:
            return True
        try:
            self._node.root.lookup(fsencode(path)).close()
        except OSError as e:
            self._fates.setdefault(path, "a link that leads nowhere" if e.errno in ABSENT else errno_words(e))
            return e.errno not in ABSENT
        return True

    # -- the story ----------------------------------------------------------------------------------------------------

    def story(self, stem: str) -> Lookup:
        """What became of every file with this stem, in every directory, in order."""
        lookup = Lookup("library", f"{stem}.so")
        host = self._node.root.host
        for asked, each, why in self._asked:
            if each is None:
                lookup.tried(host(asked), f"the directory: {why}")
                continue
            names = [name for name in each.names if stem_of(name) == stem]
            origin = " (by ld.so.cache or a link)" if each.cached else ""
            for name in names:
                path = each.file(name)
                lookup.tried(host(path) + origin, self._fate(path))
            if not names:
                lookup.tried(host(each.path) + origin, NOT_THERE)
        return lookup

    def _fate(self, path: str) -> str:
        fate = self._fates.get(path)
        if fate is None and self._node.root.is_link(path):
            try:
                fate = f"a link to {self._node.root.resolve(path).resolved}"
            except OSError as e:
                fate = "a link that leads nowhere" if e.errno in ABSENT else errno_words(e)
        if fate is None:
            resolved = self._by_path.get(path)
            version = version_of(path.rpartition("/")[2])
            fate = "of another version than the driver" if version and resolved else "not of the driver's version"
        return fate


def below(node: Node, path: str) -> str:
    """A directory that somebody named by its host path or by that in the driver root, as the latter."""
    prefix = node.root.name + "/"
    return path[len(prefix) - 1 :] if node.root.name and (path + "/").startswith(prefix) else path


def _soname(elf: Elf) -> str:
    """The soname, if it is one that may become a file name."""
    soname = plain(elf.unsafe_soname or b"")
    return "" if "/" in soname or soname in (".", "..") else soname


# -- links that an application needs ----------------------------------------------------------------------------------


def so_links(node: Node, library: Library) -> list[tuple[str, str]]:
    """(target, link) for a library in the container: its soname and its `.so` where the host has links of these names,
    and three that applications are known to open by another name."""
    directory, name = library.directory.rstrip("/"), library.name
    found = [(target or name, f"{directory}/{link}") for stem, target, link in _ALWAYS if _dotted(name, stem)]
    if name.count(".") >= 2:
        soname = library.soname or name
        if soname != name and node.root.is_link(f"{directory}/{soname}"):
            found.append((name, f"{directory}/{soname}"))
        base = stem_of(name) + ".so"
        if base not in (".so", soname) and node.root.is_link(f"{directory}/{base}"):
            found.append((soname, f"{directory}/{base}"))
    return list(dict.fromkeys(found))


_ALWAYS = (
    ("libcuda", "libcuda.so.1", "libcuda.so"),
    ("libGLX_nvidia", "", "libGLX_indirect.so.0"),
    ("libnvidia-opticalflow", "libnvidia-opticalflow.so.1", "libnvidia-opticalflow.so"),
)


def _dotted(name: str, stem: str) -> bool:
    """`STEM.so.*.*`."""
    return name.startswith(stem + ".so.") and "." in name[len(stem) + 4 :]
