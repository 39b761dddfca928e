"""Tegra systems: what containers get stands in CSV files, `type, path`, that come with the system.

With NVML and a discrete GPU beside the integrated one (Thor) both are told apart; otherwise all of it is one device.
The lists are made for all boards of a kind, so most systems lack some of it: that is one problem for each list.
"""

from __future__ import annotations

from nvoci.discover.devnode import Wanted, numbered, take
from nvoci.discover.libnames import folders
from nvoci.discover.libraries import Library, below, so_links
from nvoci.discover.model import Hook, Mount
from nvoci.discover.node import ABSENT, Hit, joined, plain
from nvoci.discover.search import NOT_THERE, Lookup, Search, directory, look_at, mount, regular
from nvoci.elf import Elf, ElfError
from nvoci.linux.lookup import MAX_LINKS
from nvoci.linux.pattern import is_pattern, match
from nvoci.linux.rootfs import fsencode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from nvoci.discover.model import DeviceNode, Gpu
    from nvoci.discover.node import Node, Options, Root
    from nvoci.discover.nvml import NvmlAnswer

RELEASE = "/etc/nv_tegra_release"
_CSV = "/etc/nvidia-container-runtime/host-files-for-container.d"
CSV_FILES = (f"{_CSV}/devices.csv", f"{_CSV}/drivers.csv", f"{_CSV}/l4t.csv")
COMPAT_ROOT = "/usr/local/cuda/compat_orin"
CONTROL = ("/dev/nvidiactl", "/dev/nvidia-modeset", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools")
TELL_STAGE = "tell GPUs apart"
_TYPES = ("dev", "dir", "lib", "sym")
_MAX_CSV = 4 << 20
_MAX_ENTRIES = 20_000
_MAX_TOLD = 3
_REINSTALL = "is this a Tegra system? reinstall nvidia-l4t-init"
_CORRECT = "correct the CSV file"


class Tegra:
    """devices: without owner, each once; mounts; `mounts` have their links."""

    __slots__ = ("_libraries", "_mounts", "_node", "_options", "_ruled", "_search", "_symlinks", "devices")

    def __init__(self, node: Node, search: Search, options: Options) -> None:
        self._node = node
        self._search = search
        self._options = options
        self._libraries: dict[str, Library] = {}
        self._mounts: dict[str, Mount] = {}
        self._symlinks: dict[str, tuple[str, str]] = {}  # link -> (text, the file at its end)
        self._ruled: dict[str, None] = {}  # the files of `lib` entries
        self.devices: dict[str, DeviceNode] = {}
        for path in options.csv_files or CSV_FILES:
            self._read(below(node, path))
        self._file(RELEASE, "file")

    # -- the lists ----------------------------------------------------------------------------------------------------

    def _read(self, path: str) -> None:
        where = self._node.root.host(path)
        try:
            entries = parse(self._node.root.text(path, _MAX_CSV))
        except OSError as e:
            self._search.problem("read CSV file", where, e, _REINSTALL)
            return
        if not entries:
            self._search.problem("read CSV file", where, "no entries", _REINSTALL)
        missing = [name for kind, name in entries[:_MAX_ENTRIES] if not self._entry(kind, name)]
        if missing:
            told = ", ".join(missing[:_MAX_TOLD]) + (", …" if len(missing) > _MAX_TOLD else "")
            words = f"{len(missing)} of {len(entries)} entries are not there: {told}"
            self._search.problem("use CSV file", where, words,
                                 "usual, since the list is for all boards; `nvoci why PATH` tells of one")  # fmt: skip

    def _entry(self, kind: str, path: str) -> bool:
        """Whether there was anything, good or bad."""
        if not path.startswith("/") or not plain(path) or ".." in path.split("/"):
            self._search.problem("use CSV entry", f"{kind}, {path}", "not a plain absolute path", _CORRECT)
            return True
        if kind == "sym" and any(_ignored(pattern, path) for pattern in self._options.csv_ignore):
            self._search.begin(f"csv {kind}", path, "ignored by pattern")
            return True
        take_one = {"dev": self._device, "dir": self._directory, "lib": self._library, "sym": self._symlink}[kind]
        root = self._node.dev if kind == "dev" or path.startswith("/dev/") else self._node.root
        found = [take_one(each, root) for each in self._paths(root, kind, path)]
        return any(found)

    def _paths(self, root: Root, kind: str, pattern: str) -> list[str]:
        """What a pattern matches; below the library search path first."""
        if not is_pattern(fsencode(pattern)):
            return [pattern]
        lookup = self._search.begin(f"csv {kind}", pattern)
        try:
            paths = root.glob(pattern)
        except OSError as e:
            self._search.problem("use CSV entry", pattern, e)
            return []
        lookup.tried(root.host(pattern), f"used: {len(paths)} match" if paths else NOT_THERE)
        return paths

    # -- entries ------------------------------------------------------------------------------------------------------

    def _device(self, path: str, root: Root) -> bool:
        if path not in self.devices:
            found = take(self._node, self._search, Wanted(path, "tegra"))
            if found is None:
                return _was_there(self._search.lookups[-1])
            self.devices[path] = found
        return True

    def _directory(self, path: str, root: Root) -> bool:
        lookup = self._search.begin("csv dir", path)
        hit = look_at(self._search, root, lookup, path, directory)
        if hit is not None:
            self._mounts.setdefault(hit.path, mount(root, hit, "directory"))
        return _was_there(lookup)

    def _file(self, path: str, kind: str) -> None:
        hit = look_at(self._search, self._node.root, self._search.begin(kind, path), path, regular)
        if hit is not None:
            self._mounts.setdefault(hit.path, mount(self._node.root, hit, kind))

    def _library(self, path: str, root: Root) -> bool:
        """The file itself, with what applications call it by."""
        lookup = self._search.begin("csv lib", path)
        tops = [below(self._node, each).rstrip("/") for each in self._options.library_search_path]
        for each in (*[f"{top}{path}" for top in tops], path):
            hit = look_at(self._search, root, lookup, each, regular)
            if hit is not None:
                self._take_library(hit, root)
                self._ruled[hit.resolved] = None
                break
        return _was_there(lookup)

    def _take_library(self, hit: Hit, root: Root) -> None:
        path = hit.resolved
        if path in self._mounts:
            return
        soname = self._soname(path, root)
        kind = "file"
        if soname is not None:
            self._libraries[path] = Library(path, soname, False)
            kind = "library"
        record = mount(root, Hit(path, path, hit.stat), kind)
        self._mounts[path] = record.replace(soname=soname or "")

    def _soname(self, path: str, root: Root) -> str | None:
        """None for what is no shared object: the lists have all sorts of files as libraries."""
        try:
            fd, _ = root.open_resolved(path)
            with fd:
                soname = plain(Elf(fd.fileno()).unsafe_soname or b"")
        except (OSError, ElfError):
            return None
        return "" if "/" in soname else soname

    def _symlink(self, path: str, root: Root) -> bool:
        """The file at the end, and every link on the way, as they stand below the root."""
        lookup = self._search.begin("csv sym", path)
        hit = look_at(self._search, root, lookup, path, lambda _: "")
        if hit is None:
            return _was_there(lookup)
        chain = self._chain(path, root, lookup)
        if regular(hit):
            if directory(hit):
                self._search.problem("use CSV entry", path, regular(hit), _CORRECT)
                return True
            self._mounts.setdefault(hit.resolved, mount(root, Hit(hit.resolved, hit.resolved, hit.stat), "directory"))
        else:
            self._take_library(hit, root)
        for text, link in chain:
            self._symlinks[link] = (text, hit.resolved)
        return True

    def _chain(self, path: str, root: Root, lookup: Lookup) -> list[tuple[str, str]]:
        """(text, link) of each link from `path` on; those of directories on the way do not count."""
        found = []
        for _ in range(MAX_LINKS):
            try:
                text = root.link(path)
            except OSError as e:
                if e.errno not in ABSENT:
                    self._search.problem("use CSV entry", root.host(path), e)
                break
            if text is None:
                break
            found.append((text, path))
            lookup.tried(root.host(path), f"used: a link to {text}")
            path = joined(path.rpartition("/")[0], text)
        return found

    # -- together -----------------------------------------------------------------------------------------------------

    def mounts(self) -> list[Mount]:
        """With links. Where a list names a link that a rule for libraries makes too, the host's own counts."""
        found = []
        for path, each in self._mounts.items():
            library = self._libraries.get(path)
            links = {link: text for text, link in so_links(self._node, library)} if library else {}
            links = {link: text for link, text in links.items() if link not in self._symlinks}
            links.update({link: text for link, (text, end) in self._symlinks.items() if end == path})
            found.append(each.replace(links=tuple([(text, link) for link, text in links.items()])))
        return found

    def link_lists(self) -> list[list[tuple[str, str]]]:
        """The links that rules for libraries give, then those of the lists; each in the order of the entries."""
        libraries = [self._libraries[path] for path in self._ruled if path in self._libraries]
        rules = dict.fromkeys([pair for each in libraries for pair in so_links(self._node, each)])
        lists = [list(rules), [(text, link) for link, (text, _) in self._symlinks.items()]]
        return lists if any(lists) else []

    def hooks(self, answer: NvmlAnswer | None) -> list[Hook]:
        """For the CUDA compat libraries, where NVML knows the version, and for the library cache."""
        found = []
        if answer and answer.cuda_version:
            args = ["--host-cuda-version={}.{}".format(*answer.cuda_version)]
            if any("Orin (nvgpu)" in gpu.name for gpu in answer.gpus):
                args.append(f"--cuda-compat-container-root={self._options.compat_root or COMPAT_ROOT}")
            found.append(Hook(name="enable-cuda-compat", args=tuple(args)))
        args = [word for each in folders(self._mounts) for word in ("--folder", each)]
        return [*found, Hook(name="update-ldcache", args=tuple(args))] if args else found


def _was_there(lookup: Lookup) -> bool:
    """Whether any step found something; if that is wrong it is a problem of its own."""
    return any(step.outcome != NOT_THERE for step in lookup.steps)


def parse(text: str) -> list[tuple[str, str]]:
    """(type, path) of each line that is an entry; others, such as comments, are passed over."""
    found = []
    for line in text.split("\n"):
        kind, comma, path = line.partition(",")
        if comma and kind.strip() in _TYPES and path.strip():
            found.append((kind.strip(), path.strip()))
    return found


def split_gpus(search: Search, gpus: Sequence[Gpu]) -> tuple[list[Gpu], list[Gpu]]:
    """(integrated, discrete); both empty where they can not be told apart, or there is nothing to tell."""
    integrated = [gpu for gpu in gpus if gpu.integrated]
    discrete = [gpu for gpu in gpus if not gpu.integrated]
    if integrated and discrete and not any(gpu.mig_enabled for gpu in gpus):
        return integrated, discrete
    if len(gpus) > 1:
        names = ", ".join([gpu.name for gpu in gpus])
        words = "not one integrated GPU and others without MIG"
        search.problem(TELL_STAGE, names, words, "all of them are given as one device")
    return [], []


def owned(
    devices: dict[str, DeviceNode], integrated: list[Gpu], discrete: list[Gpu], extra: DeviceNode | None
) -> list[DeviceNode]:
    """The nodes of the lists, for each GPU those that it needs, and none that the kernel says is another's. extra: a
    node that only the integrated GPU has."""
    found = []
    theirs = {path for gpu in discrete for path in (f"/dev/nvidia{gpu.minor}", *gpu.drm_nodes)}
    for gpu in integrated:
        mine = {path: each for path, each in devices.items() if path not in theirs}
        if extra is not None:
            mine.setdefault(extra.container_path, extra)
        found += [each.replace(owner=gpu.uuid) for each in mine.values()]
    for gpu in discrete:
        known = {*CONTROL, *gpu.drm_nodes}
        found += [
            each.replace(owner=gpu.uuid)
            for path, each in devices.items()
            if path not in known and numbered(path, "/dev/nvidia") is None
        ]
    return found


def _ignored(pattern: str, path: str) -> bool:
    """`**/x` matches a file name, anything else a path."""
    if pattern.startswith("**/"):
        return match(fsencode(pattern[3:]), fsencode(path.rpartition("/")[2]))
    ours, theirs = pattern.split("/"), path.split("/")
    return len(ours) == len(theirs) and all(match(fsencode(a), fsencode(b)) for a, b in zip(ours, theirs))

