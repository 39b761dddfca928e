"""The few fields of a bundle's config.json that hooks read (OCI runtime spec, "Configuration").

Other fields are not looked at, so a config that is odd elsewhere is no obstacle. One read, one handle: the file is
trusted for what it says because the runtime wrote it, so another owner, or a file others can write, is refused.
"""

from __future__ import annotations

import posix

from nvoci.errors import HookError, printable
from nvoci.jsonfile import load_object, path_from_json, read_file

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

MAX_CONFIG = 16 << 20
_loaded: dict[str, dict[str, Any]] = {}
_HINT = "check the bundle that the runtime made"


def load(bundle: str) -> dict[str, Any]:
    """`<bundle>/config.json` as an object, read once in a process. Raises HookError."""
    known = _loaded.get(bundle)
    if known is not None:
        return known
    path = f"{bundle}/config.json"
    owners = (0, posix.geteuid(), posix.stat(b"/").st_uid)  # a user namespace shows the host's root as another
    data = read_file(path, MAX_CONFIG, "read config", refuse_mode=0o002, owners=owners)
    _loaded[bundle] = load_object(data, "read config", path, _HINT)
    return _loaded[bundle]


def root_path(bundle: str) -> str:
    """`root.path`, or "" where there is none."""
    root = load(bundle).get("root")
    path = root.get("path", "") if isinstance(root, dict) else ""
    try:
        if isinstance(path, str):
            return path_from_json(path)
    except ValueError:
        pass
    raise HookError(f"read config {printable(bundle)}/config.json: `root.path` is not a path", _HINT)


def mount_label(config: dict[str, Any]) -> str:
    """`linux.mountLabel`: the SELinux context of the container's mounts, or ""."""
    linux = config.get("linux")
    label = linux.get("mountLabel", "") if isinstance(linux, dict) else ""
    return label if isinstance(label, str) else ""


def user_namespace(config: dict[str, Any]) -> tuple[str, list[tuple[int, int, int]]] | None:
    """The container's own user namespace, as `linux` says: the path of the one that it joins, "" for a new one, and the
    new one's uid map, sorted: the first inside, the first outside, how many. None where it has the runtime's."""
    linux = config.get("linux")
    linux = linux if isinstance(linux, dict) else {}
    for entry in _objects(linux.get("namespaces")):
        if entry.get("type") == "user":
            path = entry.get("path")
            table = [_id_mapping(each) for each in _objects(linux.get("uidMappings"))]
            return path if isinstance(path, str) else "", sorted(table)
    return None


def _id_mapping(entry: dict[str, Any]) -> tuple[int, int, int]:
    """What is no number is one that no map has."""
    inside, outside, count = [entry.get(key, 0) for key in ("containerID", "hostID", "size")]
    return (inside, outside, count) if type(inside) is type(outside) is type(count) is int else (-1, -1, -1)


def _objects(value: object) -> list[dict[str, Any]]:
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []
