"""The OCI state that a runtime writes to a hook's stdin (OCI runtime spec, "State"; `root` is crun's extension).

What runtimes really send differs from the text: pid is 1 (runc) or 0 (crun) in createContainer, `root` is absent
(runc), relative (crun) or absolute (podman with crun). So nothing here judges `pid`; that needs the stage.
"""

from __future__ import annotations

import posix
import select
import time
from errno import EAGAIN

from nvoci.errors import HookError, hook_error, printable
from nvoci.jsonfile import load_object, path_from_json, read_file

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

MAX_STATE = 1 << 20
READ_SECONDS = 5.0
_MAX_PID = 1 << 22  # include/linux/threads.h: PID_MAX_LIMIT
_STATUS = ("creating", "created", "starting", "running", "stopped", "")
_HINT = "the runtime writes the OCI state JSON to the hook's stdin"


class State:
    """`pid` is None where it is absent; `root` and `bundle` are "" where absent; all are checked for type. `raw` is the
    document as it was read."""

    __slots__ = ("annotations", "bundle", "id", "pid", "raw", "root")

    def __init__(
        self, ident: str, pid: int | None, bundle: str, root: str, annotations: dict[str, Any], raw: bytes = b""
    ) -> None:
        self.id = ident
        self.pid = pid
        self.bundle = bundle
        self.root = root
        self.annotations = annotations
        self.raw = raw


def read(container_spec: str = "") -> State:
    """The state from stdin, or from the file `container_spec` (`-` and "" mean stdin). Raises HookError."""
    if container_spec in ("", "-"):
        return parse(read_stdin(READ_SECONDS))
    if not container_spec.startswith("/"):
        # Under runc the working directory of a createContainer hook is the container's root.
        raise HookError(f"read state {printable(container_spec)}: not an absolute path", "name the file from / on")
    return parse(read_file(container_spec, MAX_STATE, "read state"))


def read_stdin(seconds: float) -> bytes:
    """At most MAX_STATE bytes, until end of file or, `seconds` after the start, an error. Raises HookError."""
    deadline = time.monotonic() + seconds
    data = b""
    while True:
        left = deadline - time.monotonic()
        try:
            if left <= 0 or not select.select([0], [], [], left)[0]:
                raise HookError(f"read state stdin: no end of file within {seconds:g} s", _HINT)
            chunk = posix.read(0, 1 << 16)
        except OSError as e:
            if e.errno == EAGAIN:
                continue
            raise hook_error("read state", "stdin", e, _HINT) from None
        if not chunk:
            return data
        data += chunk
        if len(data) > MAX_STATE:
            raise HookError(f"read state stdin: more than {MAX_STATE} bytes", _HINT)


def parse(data: bytes) -> State:
    """Check and take apart a state document. Raises HookError."""
    if not data.strip():
        raise HookError("read state stdin: empty", _HINT)
    doc = load_object(data, "read state", "stdin", _HINT)
    if doc.get("status", "") not in _STATUS:
        raise HookError(f"read state: unknown status `{printable(doc['status'])}`", "one of " + ", ".join(_STATUS[:-1]))
    annotations = doc.get("annotations")
    if not isinstance(annotations, dict):
        annotations = {}
    bundle, root = path_from_json(text(doc, "bundle")), path_from_json(text(doc, "root"))
    return State(text(doc, "id"), _pid(doc), bundle, root, annotations, data)


def text(doc: dict[str, Any], key: str) -> str:
    """A string of the state that may be part of a path, "" where there is none. Raises HookError."""
    value = doc.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise HookError(f"read state: `{key}` is not a string", _HINT)
    if "\0" in value or len(value) > 4096 or any(0xD800 <= ord(c) <= 0xDFFF for c in value):
        raise HookError(f"read state: `{key}` holds a NUL or a surrogate, or is longer than 4096 characters", _HINT)
    return value


def _pid(doc: dict[str, Any]) -> int | None:
    pid = doc.get("pid")
    if pid is None:
        return None
    if type(pid) is not int or not 0 <= pid <= _MAX_PID:
        raise HookError(f"read state: `pid` is {printable(pid)[:40]}, not a process id", _HINT)
    return pid


def rootfs_path(state: State) -> str:
    """The absolute host path of the container's root: `root` of the state if it is there (config.json is then never
    opened: it may be unreadable in a user namespace), else `root.path` of config.json. "" and "/" are refused."""
    if state.bundle and not state.bundle.startswith("/"):
        raise HookError(f"read state: bundle `{printable(state.bundle)}` is not an absolute path", _HINT)
    root = state.root or _config_root(state.bundle)
    if not root:
        raise HookError("read state: the container's root is empty", "set `root.path` in config.json")
    path = root if root.startswith("/") else _join(state.bundle, root)
    if not path.strip("/."):
        raise HookError(f"read state: the container's root is `{printable(path)}`", "the host's root is never touched")
    return path


def _join(bundle: str, root: str) -> str:
    if not bundle:
        raise HookError(f"read state: root `{printable(root)}` is relative and there is no bundle", _HINT)
    return f"{bundle}/{root}"


def _config_root(bundle: str) -> str:
    from nvoci.oci.config import root_path

    if not bundle:
        raise HookError("read state: neither `root` nor `bundle` is given", _HINT)
    return root_path(bundle)
