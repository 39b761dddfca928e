"""Programs, firmware and sockets of the driver."""

from __future__ import annotations

from nvoci.discover.model import SOCKET, Mount
from nvoci.discover.node import MPS_DIRECTORY, PATH
from nvoci.discover.search import directory, every, executable, first, listening, look_at, mount, read_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nvoci.discover.node import Node, Options
    from nvoci.discover.search import Search

_BINARIES = (
    ("nvidia-smi", ("utility",)),
    ("nvidia-debugdump", ("utility",)),
    ("nvidia-persistenced", ("utility",)),
    ("nv-fabricmanager", ("utility",)),
    ("nvidia-cuda-mps-control", ("compute",)),
    ("nvidia-cuda-mps-server", ("compute",)),
    ("nvidia-imex", ("utility",)),
    ("nvidia-imex-ctl", ("utility",)),
    ("nvidia-xconfig", ("display",)),
)
SOCKETS = ("nvidia-persistenced/socket", "nvidia-fabricmanager/socket")
_FIRMWARE_PATH = "/module/firmware_class/parameters/path"


def binaries(node: Node, search: Search, options: Options) -> list[Mount]:
    """The first of each name in $PATH and then in the usual directories, all of the driver root; never a program of
    the host where the driver has a root of its own."""
    directories = [each.rstrip("/") for each in options.path if each.startswith("/")]
    directories = list(dict.fromkeys([*directories, *PATH]))
    found = []
    for name, capabilities in _BINARIES:
        hit = first(search, node.root, "binary", name, [f"{each}/{name}" for each in directories], executable)
        if hit is not None:
            found.append(mount(node.root, hit, "binary", capabilities))
    return found


def firmware(node: Node, search: Search, version: str) -> list[Mount]:
    """The images of the GPU system processor, in the first of the directories that the kernel searches to have any."""
    directories = [f"/lib/firmware/updates/{node.release}", "/lib/firmware/updates", f"/lib/firmware/{node.release}",
                   "/lib/firmware"]  # fmt: skip
    own = (read_text(search, node.sys, _FIRMWARE_PATH, "the kernel's firmware path", limit=4096) or "").strip()
    if own.startswith("/") and own.isprintable():
        # The kernel names it as the host does; a driver container sets it to a directory below its own root.
        prefix = node.root.name + "/"
        directories.insert(0, own[len(prefix) - 1 :] if node.root.name and own.startswith(prefix) else own)
    for each in directories:
        pattern = f"{each.rstrip('/')}/nvidia/{version}/gsp*.bin"
        hits = every(search, node.root, "firmware", "gsp*.bin", [pattern])
        if hits:
            return [mount(node.root, hit, "firmware") for hit in hits]
    return []


def sockets(node: Node, search: Search, options: Options) -> list[Mount]:
    """Where the driver's daemons listen, and the directory of the MPS daemon."""
    found = []
    for name in SOCKETS:
        hit = first(search, node.root, "socket", name, [f"{top}/{name}" for top in ("/run", "/var/run")], listening)
        if hit is not None:
            found.append(mount(node.root, hit, "socket", options=SOCKET))
    return found + _mps(node, search, options.mps_directory)


def _mps(node: Node, search: Search, path: str) -> list[Mount]:
    """In /tmp anybody may make a directory of that name, and every container would talk to who did. Where a directory
    is configured, whoever configured it knows whose it is."""
    lookup = search.begin("socket", "nvidia-mps")
    where = node.root.host(path)
    if path == MPS_DIRECTORY and node.root.is_link(path):
        lookup.tried(where, "a link, not a directory")
        search.problem("use directory", where, "a link, not a directory", "remove it, and start the MPS daemon as root")
        return []
    hit = look_at(search, node.root, lookup, path, directory)
    if hit is None:
        return []
    if path == MPS_DIRECTORY and hit.stat.st_uid != 0:
        words = f"owned by uid {hit.stat.st_uid}, not by root"
        lookup.steps[-1].outcome = words
        search.problem("use directory", where, words, "start the MPS daemon as root, or configure its directory")
        return []
    return [mount(node.root, hit, "directory", ("compute",), options=SOCKET)]
