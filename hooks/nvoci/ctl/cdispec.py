"""The hooks of a CDI spec as hooks.d entries. Only what that takes is read of the spec, and nothing else judged."""

from __future__ import annotations

import re
from typing import Any

from nvoci.cdi import text
from nvoci.ctl import regex
from nvoci.errors import HookError, printable
from nvoci.oci import hooksd

ALL = "all"
_STAGE = "read CDI spec"
_KIND = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*/[A-Za-z0-9][A-Za-z0-9_.-]*")


class Spec:
    """`kind`, the edits that all devices share, and those of each device, in the spec's order."""

    def __init__(self, path: str, doc: dict[str, Any]) -> None:
        self.path = path
        self.kind = str(doc.get("kind"))
        if not _KIND.fullmatch(self.kind):
            raise self.error("`kind` is not VENDOR/CLASS")
        self.common = self.edits(doc, "containerEdits")
        self.devices: dict[str, dict[str, Any]] = {}
        for device in _list_of_objects(self, doc, "devices"):
            name = device.get("name")
            if not isinstance(name, str) or not name or name in self.devices:
                raise self.error(f"device name `{printable(name)}` is missing or given twice")
            self.devices[name] = self.edits(device, f"devices.{name}.containerEdits")

    def error(self, what: str) -> HookError:
        return HookError(f"{_STAGE} {printable(self.path)}: {what}", "check it against the CDI specification")

    def edits(self, owner: dict[str, Any], where: str) -> dict[str, Any]:
        found = owner.get("containerEdits") or {}
        if not isinstance(found, dict):
            raise self.error(f"`{where}` is not an object")
        return found


def _list_of_objects(spec: Spec, owner: dict[str, Any], key: str) -> list[dict[str, Any]]:
    found = owner.get(key) or []
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        raise spec.error(f"`{key}` is not a list of objects")
    return found


def read(path: str) -> Spec:
    """A spec from a JSON or YAML file. Raises HookError."""
    doc = text.loads_object(text.read_bytes(path), path)
    if not isinstance(doc, dict):
        raise HookError(f"{_STAGE} {printable(path)}: not an object", "check it against the CDI specification")
    return Spec(path, doc)


def choose(spec: Spec, names: tuple[str, ...]) -> list[dict[str, Any]]:
    """The edits to take: the common ones, then those of `names`, or of `all` if none is named and it exists."""
    wanted = names or tuple(name for name in (ALL,) if name in spec.devices)
    for name in wanted:
        if name not in spec.devices:
            known = ", ".join(spec.devices) or "none"
            raise HookError(f"{_STAGE} {printable(spec.path)}: no device `{printable(name)}`", f"it has: {known}")
    return [spec.common, *(spec.devices[name] for name in dict.fromkeys(wanted))]


def entries(spec: Spec, names: tuple[str, ...], when: hooksd.When) -> list[tuple[str, hooksd.Entry]]:
    """File names and entries in the order in which a CDI engine would add the hooks. Raises HookError."""
    made: list[tuple[str, hooksd.Entry]] = []
    for edits in choose(spec, names):
        for hook in _list_of_objects(spec, edits, "hooks"):
            entry = _entry(spec, hook, when)
            made.append((f"50-nvoci-{spec.kind.replace('/', '-')}-{len(made):03}-{_title(entry)}.json", entry))
    return made


def _entry(spec: Spec, hook: dict[str, Any], when: hooksd.When) -> hooksd.Entry:
    body = {key: value for key, value in hook.items() if key in ("path", "args", "timeout") and value is not None}
    if body.get("timeout") == 0:
        del body["timeout"]  # "none" to CDI's authors, "over already" to runc
    doc = {"version": hooksd.VERSION, "hook": body, "when": when.document(), "stages": [hook.get("hookName")]}
    if hook.get("env"):
        body["env"] = hook["env"]
    if not body.get("args"):
        body.pop("args", None)
    found = hooksd.parse(doc, spec.path, regex.check, _STAGE)
    return hooksd.ours(found.path, found.args, found.env, when, found.stages, found.timeout, f"cdi:{spec.kind}")


def _title(entry: hooksd.Entry) -> str:
    """What a person calls the hook: its first word that is no option and no `hook`, else the program."""
    words = [word for word in entry.args[1:] if not word.startswith("-") and word != "hook"]
    return (
        re.sub(r"[^A-Za-z0-9_.-]+", "-", words[0] if words else entry.path.rpartition("/")[2])[:60].strip("-.")
        or "hook"
    )
