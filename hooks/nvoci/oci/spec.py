"""What the legacy injector asks of a bundle's config.json: variables, mounts, the bounding set of capabilities.

Beside `config`, since no other hook needs it.
"""

from __future__ import annotations

from nvoci.errors import HookError, printable
from nvoci.oci.config import load

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_HINT = "check the bundle that the runtime made"
_SYS_ADMIN, _USER = "CAP_SYS_ADMIN", "user"
# From the first to before the second, `process.capabilities` was one list. Compared as text: rc4-dev lies between.
_FLAT_FROM, _FLAT_BEFORE = "1.0.0-rc1", "1.0.0-rc5"


class Spec:
    """Each answer is looked for, and checked, when it is asked for. Every method raises HookError, which names the file
    and the key."""

    __slots__ = ("_doc", "_environment", "_path")

    def __init__(self, doc: dict[str, Any], path: str) -> None:
        self._doc = doc
        self._path = path
        self._environment: dict[str, str] | None = None

    def environment(self) -> dict[str, str]:
        """The variables of `process.env`, all of it unsafe; of one that is given twice the last counts, as for runc.

        A config without `ociVersion`, `process` or `root` is refused, and so is a variable without `=`.
        """
        if self._environment is None:
            for key, name in (("ociVersion", "Version"), ("process", "Process"), ("root", "Root")):
                if self._doc.get(key) in (None, ""):
                    raise self._error(f"{name} is empty in OCI spec")
            self._environment = self._variables(self._object(self._doc, "process", "").get("env"))
        return self._environment

    def _variables(self, unsafe_env: Any) -> dict[str, str]:
        if unsafe_env is None:
            return {}
        found = {}
        for entry in self._list(unsafe_env, "process.env"):
            if type(entry) is not str:
                raise self._error("`process.env` is not a list of strings")
            name, there, value = entry.partition("=")
            if not there:
                raise self._error(f"invalid environment variable: {printable(name[:200])}")
            found[name] = value
        return found

    def mounts(self) -> list[tuple[str, str]]:
        """(source, destination) of each entry of `mounts`, "" where one is absent."""
        found: list[tuple[str, str]] = []
        for entry in self._list(self._doc.get("mounts") or [], "mounts"):
            if type(entry) is not dict:
                raise self._error("`mounts` is not a list of objects")
            source, destination = entry.get("source") or "", entry.get("destination") or ""
            if type(source) is not str or type(destination) is not str:
                raise self._error("`mounts` has a source or destination that is not a string")
            found.append((source, destination))
        return found

    def bounding(self, capability: str) -> bool:
        """Whether a capability (`CAP_SYS_ADMIN`) is in the bounding set of `process.capabilities`."""
        capabilities = self._object(self._doc, "process", "").get("capabilities")
        if not capabilities:
            return False
        version = self._doc.get("ociVersion")
        if type(version) is str and _FLAT_FROM <= version < _FLAT_BEFORE:
            return capability in self._list(capabilities, "process.capabilities")
        bounding = self._object(self._doc["process"], "capabilities", "process.").get("bounding") or []
        return capability in self._list(bounding, "process.capabilities.bounding")

    def has_namespace(self, kind: str) -> bool:
        """Whether the container has a namespace of this kind (`user`) that is not the runtime's: `linux.namespaces`."""
        linux = self._doc.get("linux")
        entries = self._object(self._doc, "linux", "").get("namespaces") if linux is not None else None
        for entry in self._list(entries or [], "linux.namespaces"):
            if type(entry) is not dict:
                raise self._error("`linux.namespaces` is not a list of objects")
            if entry.get("type") == kind:
                return True
        return False

    def privileged(self) -> bool:
        """Whether the container may administer the node: CAP_SYS_ADMIN over a user namespace of its own does not."""
        return self.bounding(_SYS_ADMIN) and not self.has_namespace(_USER)

    def _object(self, doc: dict[str, Any], key: str, prefix: str) -> dict[str, Any]:
        value = doc.get(key)
        if type(value) is not dict:
            raise self._error(f"`{prefix}{key}` is not an object")
        return value

    def _list(self, value: Any, key: str) -> list[Any]:
        if type(value) is not list:
            raise self._error(f"`{key}` is not a list")
        return value

    def _error(self, what: str) -> HookError:
        return HookError(f"read config {printable(self._path)}: {what}", _HINT)


def of_bundle(bundle: str) -> Spec:
    """Of `<bundle>/config.json`. Raises HookError."""
    return Spec(load(bundle), f"{bundle}/config.json")
