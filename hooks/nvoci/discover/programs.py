"""Programs, firmware and sockets of the driver."""

from __future__ import annotations

from nvoci.discover.model import SOCKET, Mount
from nvoci.discover.node import ABSENT, MPS_DIRECTORY, PATH
from nvoci.discover.search import (
    NOT_THERE,
    USED,
    directory,
    errno_words,
    every,
    executable,
    first,
    listening,
    mount,
    read_text,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nvoci.discover.node import Hit, Node, Options
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
    """In /tmp anybody may make a directory of that name, and every container would talk to who did; or a link, and any
    directory of the host would be the container's. Where a directory is configured, whoever configured it knows whose
    it is, unless anybody may make one there. All is judged by one handle."""
    lookup = search.begin("socket", "nvidia-mps")
    where = node.root.host(path)
    own = path != MPS_DIRECTORY
    try:
        hit, stranger = node.root.guarded(path, follow=own)
    except OSError as e:
        absent = e.errno in ABSENT
        if absent and not node.root.is_link(path):
            lookup.tried(where, NOT_THERE)
            return []
        words, hint = "a link that leads nowhere" if absent else errno_words(e), "remove it, or name another directory"
    else:
        words, hint = _refusal(hit, stranger, own)
        if not words:
            lookup.tried(where, USED if hit.path == hit.resolved else f"{USED}: {node.root.host(hit.resolved)}")
            return [mount(node.root, hit, "directory", ("compute",), options=SOCKET)]
    lookup.tried(where, words)
    search.problem("use directory", where, words, hint)
    return []


def _refusal(hit: Hit, stranger: str, own: bool) -> tuple[str, str]:
    """Why it is not used, and what to do. own: somebody configured it."""
    uid = hit.stat.st_uid
    words = directory(hit)
    if words:
        return words, "remove it, and start the MPS daemon as root"
    if uid != 0 and not own:
        return f"owned by uid {uid}, not by root", "start the MPS daemon as root, or configure its directory"
    return stranger, "configure a directory that others cannot make"
