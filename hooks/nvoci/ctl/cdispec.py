"""The hooks of a CDI spec as hooks.d entries.

They run as root at every start that they are for, so the spec is read as an engine's own: it is nobody else's to write,
and all of it is right, not only its hooks.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from nvoci.cdi import document, specdir, text, validate
from nvoci.ctl import regex
from nvoci.errors import HookError, printable
from nvoci.oci import hooksd

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nvoci.cdi.model import ContainerEdits, Hook, Spec

ALL = "all"
_STAGE = "read CDI spec"
_NO_NAME = re.compile(r"[^A-Za-z0-9_.-]+")
_MAX_TITLE = 60


class Source(NamedTuple):
    """path: of the file that `spec` was read from."""

    path: str
    spec: Spec


def read(path: str) -> Source:
    """A valid spec from a JSON or YAML file that only root, or who runs this, can write. Raises SpecError."""
    spec = text.loads(specdir.read_trusted(path), path)
    validate.validate(spec, path)
    return Source(path, spec)


def choose(source: Source, names: Sequence[str]) -> list[ContainerEdits]:
    """The edits to take: the common ones, then those of `names`, or of `all` if none is named and it exists. Raises
    HookError for a device that is not there."""
    devices = {device.name: device.container_edits for device in source.spec.devices}
    wanted = names or [name for name in (ALL,) if name in devices]
    for name in wanted:
        if name not in devices:
            raise HookError(f"{_STAGE} {printable(source.path)}: no device `{printable(name)}`",
                            f"it has: {', '.join(devices)}")  # fmt: skip
    return [source.spec.container_edits, *(devices[name] for name in dict.fromkeys(wanted))]


def others(chosen: Sequence[ContainerEdits]) -> list[str]:
    """What they have beside hooks, by the names of the CDI specification."""
    return sorted({key for edits in chosen for key in document.edits_to_object(edits)} - {"hooks"})


def entries(source: Source, names: Sequence[str], when: hooksd.When) -> list[tuple[str, hooksd.Entry]]:
    """File names and entries in the order in which a CDI engine would add the hooks. Raises HookError."""
    kind = source.spec.kind
    made: list[tuple[str, hooksd.Entry]] = []
    for edits in choose(source, names):
        for hook in edits.hooks:
            entry = _entry(source, hook, when)
            made.append((f"50-nvoci-{kind.replace('/', '-')}-{len(made):03}-{_title(entry)}.json", entry))
    return made


def _entry(source: Source, hook: Hook, when: hooksd.When) -> hooksd.Entry:
    given = {
        "path": hook.path,
        "args": list(hook.args),
        "env": list(hook.env),
        "timeout": hook.timeout or None,  # 0 is "none" to CDI's authors, "over already" to runc
    }
    body = {key: value for key, value in given.items() if value not in (None, [])}
    doc = {"version": hooksd.VERSION, "hook": body, "when": when.document(), "stages": [hook.hook_name]}
    found = hooksd.parse(doc, source.path, regex.check, _STAGE)
    origin = f"cdi:{source.spec.kind}"
    return hooksd.ours(found.path, found.args, found.env, when, found.stages, found.timeout, origin)


def _title(entry: hooksd.Entry) -> str:
    """What a person calls the hook: its first word that is no option and no `hook`, else the program."""
    words = [word for word in entry.args[1:] if not word.startswith("-") and word != "hook"]
    plain = _NO_NAME.sub("-", words[0] if words else entry.path.rpartition("/")[2])
    return plain[:_MAX_TITLE].strip("-.") or "hook"
