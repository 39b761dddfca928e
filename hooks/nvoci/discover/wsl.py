"""Windows Subsystem for Linux: one device for all GPUs, and libraries in Windows' store of drivers.

The reference asks libdxcore which directory of the store the adapter in use has. Here no library is loaded: of several
directories it is the one whose libcuda is the file that WSL shows in its own library directory.
"""

from __future__ import annotations

from nvoci.discover.libnames import CAPABILITIES, folders, stem_of
from nvoci.discover.model import Hook, Mount
from nvoci.discover.search import first, listed, look_at, matching, mount, regular

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nvoci.discover.node import Node
    from nvoci.discover.search import Search

DEVICE = "/dev/dxg"
DXCORE = "/usr/lib/wsl/lib/libdxcore.so"
_LIBCUDA = "libcuda.so.1.1"
_STORE = "/usr/lib/wsl/drivers"
_OWN = f"/usr/lib/wsl/lib/{_LIBCUDA}"
_REQUIRED = (
    _LIBCUDA, "libcuda_loader.so", "libnvidia-ptxjitcompiler.so.1", "libnvidia-ml.so.1", "libnvidia-ml_loader.so",
    "libnvdxgdmal.so.1", "nvcubins.bin", "nvidia-smi",
)  # fmt: skip
_HINT = "update the NVIDIA driver of Windows, then `wsl --shutdown`"


def driver_store(node: Node, search: Search) -> str:
    """The directory of the driver in use; "" where there is none."""
    lookup = search.begin("directory", "driver store")
    pattern = f"{_STORE}/*/{_LIBCUDA}"
    hits = [hit for path in matching(search, node.root, "driver store", pattern)
            if (hit := look_at(search, node.root, lookup, path, regular))]  # fmt: skip
    if not hits:
        lookup.tried(node.root.host(pattern), "not there")
        search.problem("find the driver store", node.root.host(_STORE), f"no directory with {_LIBCUDA}", _HINT)
        return ""
    chosen = hits[-1]
    if len(hits) > 1:
        own = first(search, node.root, "library", _OWN, [_OWN])
        same = [hit for hit in hits if own is not None and _content(hit.stat) == _content(own.stat)]
        chosen = same[-1] if same else chosen
        if len(same) != 1:
            words = f"{len(hits)} drivers, {chosen.path} is taken"
            search.problem("find the driver store", node.root.host(_STORE), words,
                           "remove the old ones: pnputil /delete-driver, in Windows")  # fmt: skip
    return chosen.path.rpartition("/")[0]


def _content(st: object) -> tuple[object, object]:
    return getattr(st, "st_size", None), getattr(st, "st_mtime", None)


def store_mounts(node: Node, search: Search, store: str) -> list[Mount]:
    """All of the driver store that Linux uses, and libdxcore."""
    found = []
    names = listed(search, node.root, store, "driver store")
    for name in [*_REQUIRED, *[each for each in names if each not in _REQUIRED and _is_wanted(each)]]:
        hit = first(search, node.root, "library", name, [f"{store}/{name}"])
        if hit is None:
            search.problem("find in the driver store", f"{node.root.host(store)}/{name}", "not there", _HINT)
            continue
        links = [(hit.path, "/usr/bin/nvidia-smi")] if name == "nvidia-smi" else []
        capabilities = ("utility",) if name == "nvidia-smi" else CAPABILITIES.get(stem_of(name), ())
        found.append(mount(node.root, hit, _kind(name), capabilities, links=links))
    dxcore = first(search, node.root, "library", "libdxcore.so", [DXCORE])
    return [*found, *([mount(node.root, dxcore, "library")] if dxcore else [])]


def _is_wanted(name: str) -> bool:
    return stem_of(name) != "" or name.endswith((".bin", ".dll"))


def _kind(name: str) -> str:
    if name == "nvidia-smi":
        return "binary"
    return "library" if stem_of(name) else "file"


def hooks(mounts: list[Mount]) -> list[Hook]:
    """For the library cache."""
    args = [word for each in folders([m.container_path for m in mounts]) for word in ("--folder", each)]
    return [Hook(name="update-ldcache", args=tuple(args))] if args else []
