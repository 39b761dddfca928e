"""Entries of an oci-hooks directory: hooks.d schema 1.0.0, as Podman and CRI-O read it (oci-hooks(5)).

Stricter than the engines on purpose. Unknown keys and missing conditions they pass over, and leave the hook out
without a word; and one entry that they refuse (a stage, a pattern, a version) stops every container of the node. So
what is read here and what is written passes the same checks.

Every entry written carries a non-empty environment with MARK in it. It says that the entry is ours; and runc before
1.3 gives a createContainer hook without one the *container's* environment, LD_PRELOAD included. An empty list would
not do, as JSON libraries drop it.
"""

from __future__ import annotations

import posix

from nvoci.errors import HookError, hook_error, printable
from nvoci.jsonfile import dumps, load_object, read_file, write_atomic

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    RegexCheck = Callable[[str], object]  # raises ValueError for what the engines would not compile

VERSION = "1.0.0"
SUFFIX = ".json"
STAGES = ("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop")
EXTENSION_STAGES = ("precreate",)  # the engine's own stage, run before the runtime is called
CONDITIONS = ("always", "annotations", "commands", "hasBindMounts")
# Nothing reads it: a name that no loader, library or interpreter knows. Its value says where the entry came from.
MARK = "NVOCI_HOOK"
ORIGIN = "hooksd"
MAX_ENTRY = 1 << 20
_MAX_NAME = 255
_STAGE = "read entry"


class When:
    """The conditions; all that are given must hold. None: not given."""

    __slots__ = ("always", "annotations", "commands", "has_bind_mounts")

    def __init__(
        self,
        *,
        always: bool | None = None,
        annotations: dict[str, str] | None = None,
        commands: list[str] | None = None,
        has_bind_mounts: bool | None = None,
    ) -> None:
        self.always = always
        self.annotations = annotations
        self.commands = commands
        self.has_bind_mounts = has_bind_mounts

    def document(self) -> dict[str, Any]:
        """As it stands in the file."""
        values = (self.always, self.annotations, self.commands, self.has_bind_mounts)
        return {key: value for key, value in zip(CONDITIONS, values) if value is not None}


class Entry:
    """One file: the program, when, and at which stages. `args` starts with the program's name; an empty `args` or
    `env` is one that is not given; `timeout` is in seconds, None where there is none."""

    __slots__ = ("args", "env", "path", "stages", "timeout", "when")

    def __init__(
        self, path: str, args: list[str], env: list[str], when: When, stages: list[str], timeout: int | None = None
    ) -> None:
        self.path = path
        self.args = args
        self.env = env
        self.when = when
        self.stages = stages
        self.timeout = timeout

    def origin(self) -> str:
        """The value of MARK, "" where the entry is not ours."""
        for pair in self.env:
            name, _, value = pair.partition("=")
            if name == MARK:
                return value
        return ""

    def document(self) -> dict[str, Any]:
        """As it stands in the file."""
        hook: dict[str, Any] = {"path": self.path, "args": self.args, "env": self.env, "timeout": self.timeout}
        hook = {key: value for key, value in hook.items() if value not in (None, [])}
        return {"version": VERSION, "hook": hook, "when": self.when.document(), "stages": self.stages}


class Found:
    """What a directory holds under one name: an entry, or the reason why it is none."""

    __slots__ = ("entry", "error", "name")

    def __init__(self, name: str, entry: Entry | None, error: HookError | None) -> None:
        self.name = name
        self.entry = entry
        self.error = error


def ours(
    path: str, args: list[str], env: Iterable[str], when: When, stages: list[str], timeout: int | None = None,
    origin: str = ORIGIN,
) -> Entry:  # fmt: skip
    """An entry of ours: MARK comes before `env`, of which it replaces an earlier one."""
    rest = [pair for pair in env if pair.partition("=")[0] != MARK]
    return Entry(path, args, [f"{MARK}={origin}", *rest], when, stages, timeout)


# --- checks ---------------------------------------------------------------------------------------------------------


class _Bad(Exception):
    """A rule that does not hold: which value, and what it should be."""


def parse(doc: dict[str, Any], name: str, check_regex: RegexCheck, stage: str = _STAGE) -> Entry:
    """Check a document against every rule of the schema and ours. Raises HookError naming the file and the key."""
    try:
        return _entry(doc, check_regex)
    except _Bad as e:
        raise HookError(f"{stage} {printable(name)}: {e}", "see oci-hooks(5)") from None


def _entry(doc: dict[str, Any], check_regex: RegexCheck) -> Entry:
    if doc.get("version") != VERSION:
        raise _Bad(f"`version` is not {VERSION}")
    _keys(doc, "", required=("version", "hook", "when", "stages"))
    hook, when = _object(doc, "hook"), _object(doc, "when")
    _keys(hook, "hook.", required=("path",), others=("args", "env", "timeout"))
    path = _text(hook["path"], "hook.path")
    if not path.startswith("/") or path.endswith("/"):
        raise _Bad(f"`hook.path` {_show(path)} is not the absolute path of a program")
    args = _texts(hook["args"], "hook.args") if "args" in hook else []
    if args and (not args[0] or args[0].startswith("-")):
        raise _Bad("`hook.args` does not start with the program's name")
    env = _texts(hook["env"], "hook.env") if "env" in hook else []
    for pair in env:
        if not pair.partition("=")[0] or "=" not in pair:
            raise _Bad(f"`hook.env` holds {_show(pair)}, which is not NAME=value")
    stages = _texts(doc["stages"], "stages")
    return Entry(path, args, env, _when(when, check_regex), _stages(stages), _timeout(hook))


def _stages(stages: list[str]) -> list[str]:
    for stage in stages:
        if stage not in STAGES and stage not in EXTENSION_STAGES:
            raise _Bad(f"`stages` holds {_show(stage)}, not one of " + ", ".join(STAGES))
        if stages.count(stage) > 1:
            raise _Bad(f"`stages` holds {_show(stage)} twice")
    return stages


def _timeout(hook: dict[str, Any]) -> int | None:
    if "timeout" not in hook:
        return None
    timeout = hook["timeout"]
    if type(timeout) is not int or not 0 < timeout < 1 << 31:
        # runc takes 0 for a deadline that has passed, and no container starts; crun ignores it.
        raise _Bad("`hook.timeout` is not a number of seconds greater than 0: leave it out for none")
    return timeout


def _when(doc: dict[str, Any], check_regex: RegexCheck) -> When:
    _keys(doc, "when.", others=CONDITIONS)
    if not doc:
        raise _Bad("`when` holds no condition, so the hook never runs")
    for key in ("always", "hasBindMounts"):
        if key in doc and type(doc[key]) is not bool:
            raise _Bad(f"`when.{key}` is not true or false")
    commands = _texts(doc["commands"], "when.commands") if "commands" in doc else None
    annotations = _annotations(doc["annotations"]) if "annotations" in doc else None
    patterns = [("commands", command) for command in commands or ()]
    patterns += [("annotations", pattern) for pair in (annotations or {}).items() for pattern in pair]
    for key, pattern in patterns:
        try:
            check_regex(pattern)
        except ValueError as e:
            raise _Bad(f"`when.{key}` holds {_show(pattern)}, which is no regular expression: {printable(e)}") from None
    always, has_bind_mounts = doc.get("always"), doc.get("hasBindMounts")
    return When(always=always, annotations=annotations, commands=commands, has_bind_mounts=has_bind_mounts)


def _annotations(value: object) -> dict[str, str]:
    if not isinstance(value, dict) or not value:
        raise _Bad("`when.annotations` is not an object with at least one pair of patterns")
    return {_text(key, "when.annotations"): _text(text, "when.annotations") for key, text in value.items()}


def _keys(doc: dict[str, Any], prefix: str, required: tuple[str, ...] = (), others: tuple[str, ...] = ()) -> None:
    for key in required:
        if key not in doc:
            raise _Bad(f"`{prefix}{key}` is missing")
    for key in doc:
        if key not in required and key not in others:
            raise _Bad(f"unknown key `{prefix}{printable(key)}`; known: " + ", ".join(required + others))


def _object(doc: dict[str, Any], key: str) -> dict[str, Any]:
    value = doc[key]
    if not isinstance(value, dict):
        raise _Bad(f"`{key}` is not an object")
    return value


def _texts(value: object, key: str) -> list[str]:
    if not isinstance(value, list) or not value:
        raise _Bad(f"`{key}` is not a list with at least one string")
    return [_text(item, key) for item in value]


def _text(value: object, key: str) -> str:
    if not isinstance(value, str):
        raise _Bad(f"`{key}` holds {_show(value)}, which is not a string")
    if "\0" in value or any(0xD800 <= ord(c) <= 0xDFFF for c in value):
        raise _Bad(f"`{key}` holds {_show(value)}, with a NUL or what is not UTF-8")
    return value


def _show(value: object) -> str:
    return f"`{printable(value)[:80]}`"


# --- reading and writing --------------------------------------------------------------------------------------------


def read(path: str, check_regex: RegexCheck) -> Entry:
    """An entry from its file. Raises HookError."""
    return parse(load_object(read_file(path, MAX_ENTRY, _STAGE), _STAGE, path), path, check_regex)


def render(entry: Entry) -> bytes:
    """The file's content, indented for people."""
    return dumps(entry.document(), indent=2).encode() + b"\n"


def file_name(name: str) -> str:
    """`NAME.json`. Raises HookError unless it is a plain name that engines read (they sort by it and skip others)."""
    full = name if name.endswith(SUFFIX) else name + SUFFIX
    plain = full.isascii() and full.isprintable() and not any(c in full for c in "/ \\'\"*?[]$`&|;<>()")
    if not plain or full.startswith((".", "-")) or full == SUFFIX or len(full) > _MAX_NAME - len(".." + "4194304"):
        raise HookError(f"name entry {printable(name)[:80]}: not a plain file name",
                        "use letters, digits, `-`, `_`, `.`")  # fmt: skip
    return full


def write(directory: str, name: str, entry: Entry, check_regex: RegexCheck) -> str:
    """Write an entry atomically and return its path. An entry under this name that is not of the same origin is not
    replaced. Raises HookError."""
    path = f"{directory}/{file_name(name)}"
    parse(entry.document(), path, check_regex, "write entry")
    if not entry.env:
        raise HookError(f"write entry {printable(path)}: `hook.env` is empty",
                        "runc before 1.3 then gives the hook the container's environment")  # fmt: skip
    check_free(path, entry.origin(), check_regex)
    try:
        write_atomic(path, render(entry))
    except OSError as e:
        raise hook_error("write entry", path, e) from None
    return path


def check_free(path: str, origin: str, check_regex: RegexCheck) -> None:
    """Raises HookError if `path` holds what an entry of `origin` may not replace."""
    try:
        posix.lstat(path)
    except FileNotFoundError:
        return
    except OSError as e:
        raise hook_error("write entry", path, e) from None
    try:
        same = read(path, check_regex).origin() == origin
    except HookError:
        same = False
    if not origin or not same:
        raise HookError(f"write entry {printable(path)}: EEXIST", "this command did not make it: choose another name")


def listing(directory: str, check_regex: RegexCheck) -> list[Found]:
    """Every `*.json` of a directory in the order in which engines inject them. Raises HookError for the directory."""
    try:
        names = [name for name in posix.listdir(directory) if name.endswith(SUFFIX)]
    except OSError as e:
        raise hook_error("list entries", directory, e) from None
    found = []
    for name in sorted(names, key=lambda n: (n.lower(), n)):
        try:
            found.append(Found(name, read(f"{directory}/{name}", check_regex), None))
        except HookError as e:
            found.append(Found(name, None, e))
    return found


def remove(directory: str, name: str, check_regex: RegexCheck) -> str:
    """Remove an entry of ours and return its path. Raises HookError; anybody else's, or a damaged one, stays."""
    path = f"{directory}/{file_name(name)}"
    if not read(path, check_regex).origin():
        raise HookError(f"remove entry {printable(path)}: no {MARK} in its env", "it is not ours: remove it by hand")
    try:
        posix.unlink(path)
    except OSError as e:
        raise hook_error("remove entry", path, e) from None
    return path
