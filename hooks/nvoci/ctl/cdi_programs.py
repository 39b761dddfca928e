"""What the hooks of a specification call: whether the program is there, is nobody else's, and knows what it is asked.

A program named as ours is asked for `--features`, if nobody but root could have put it there: a container start runs it
as root anyway. It gets no environment of ours, little time and little to say. One that does not answer, as that of the
reference toolkit, is taken to know what the reference knows: a hook that it does not know it leaves out, with a warning
that nobody sees; an option that it does not know ends the container's start.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import time
from dataclasses import dataclass
from stat import S_ISVTX
from typing import TYPE_CHECKING, Any

from nvoci.ctl import entries
from nvoci.errors import HookError, errno_name, hook_error, printable
from nvoci.generate import origin
from nvoci.generate.findings import Finding
from nvoci.hook import table
from nvoci.jsonfile import loads

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from nvoci.cdi.model import Hook, Spec

CTK = "nvidia-ctk"
SECONDS = 5.0
_MAX_ANSWER = 64 << 10
_ENV = {"NVOCI_HOOK": "features"}
_QUESTIONS = {entries.PROGRAM: ("--features",), CTK: ("--features", "hook")}
_OURS = "let the specification name our program: make it anew with --nvidia-cdi-hook-path"
_START = "no container with these devices would start: install it, or make the specification anew"
_SPEC = ("container-spec",)


@dataclass(frozen=True)
class Features:
    """What a program knows: options by subcommand; those of `run`, None where it has no such thing. is_told: whether it
    has said so itself."""

    hooks: Mapping[str, frozenset[str]]
    run: frozenset[str] | None
    is_told: bool = True


REFERENCE = Features(
    {
        "create-symlinks": frozenset(["link", *_SPEC]),
        "chmod": frozenset(["path", "mode", *_SPEC]),
        "enable-cuda-compat": frozenset(
            ["host-driver-version", "host-cuda-version", "cuda-compat-container-root", *_SPEC]
        ),
        "update-ldcache": frozenset(["folder", "ldconfig-path", *_SPEC]),
        "disable-device-node-modification": frozenset(_SPEC),
        "update-application-profile": frozenset(_SPEC),
        "noop": frozenset(),
    },
    None,
    False,
)


class Programs:
    """Looks at each program once."""

    def __init__(self) -> None:
        self._known: dict[str, Features | HookError | None] = {}

    def findings(self, spec: Spec) -> list[Finding]:
        """What is wrong with the programs that hooks call, and with what they ask of them; each once, where it stands
        first."""
        found: dict[tuple[str, str], Finding] = {}
        for where, _, edits in origin.places(spec):
            for i, hook in enumerate(edits.hooks):
                place = f"{where}.hooks[{i}]"
                features = self._of(hook.path)
                if isinstance(features, HookError):
                    why = features.message.removeprefix(f"use program {printable(hook.path)}: ")
                    wrong = [Finding(f"{place}.path", f"hook program {hook.path}", why, features.hint, False)]
                else:
                    wrong = list(_unknown(place, hook, features)) if features else []
                for each in wrong:
                    found.setdefault((each.what, each.why), each)
        return list(found.values())

    def _of(self, path: str) -> Features | HookError | None:
        """What it knows; an error where it cannot or must not be run; None for a program of another name than ours."""
        if path not in self._known:
            try:
                self._known[path] = _look(path)
            except HookError as e:
                self._known[path] = e
        return self._known[path]


def _look(path: str) -> Features | None:
    """Raises HookError."""
    if not path.startswith("/"):
        raise HookError("not an absolute path", _START)
    try:
        os.stat(path)
    except (OSError, ValueError) as e:
        raise HookError(errno_name(e.errno or 0) if isinstance(e, OSError) else "not a path", _START) from None
    entries.check_program(path)
    question = _QUESTIONS.get(path.rpartition("/")[2])
    if question is None:
        return None
    _check_directories(path)
    return _features(_answer([path, *question])) or REFERENCE


def _check_directories(path: str) -> None:
    """Raises HookError where somebody else could put another program in its place. In a sticky directory of root's,
    such as /tmp, nobody else can exchange what root has made there."""
    for each in dict.fromkeys([os.path.normpath(path), os.path.realpath(path)]):
        place, is_own = os.path.dirname(each), True
        while True:
            st = os.stat(place)
            is_safe = not st.st_mode & 0o022 or (st.st_mode & S_ISVTX and not is_own)
            if st.st_uid not in {0, os.geteuid()} or not is_safe:
                raise HookError(f"{printable(place)} has uid {st.st_uid}, mode {st.st_mode & 0o7777:04o}",
                                "others can change what would run at each start")  # fmt: skip
            if place == "/":
                break
            place, is_own = os.path.dirname(place), False


# -- asking -----------------------------------------------------------------------------------------------------------


def _answer(words: Sequence[str], seconds: float = SECONDS) -> bytes:
    """What a program prints until it ends; it and whatever it has started is killed at the deadline, or when it says
    too much. Raises HookError where it cannot be started."""
    try:
        child = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                                 env=_ENV, cwd="/", start_new_session=True)  # fmt: skip
    except OSError as e:
        raise hook_error("use program", words[0], e) from None
    assert child.stdout is not None
    with child.stdout as pipe:
        try:
            return _read(pipe.fileno(), time.monotonic() + seconds)
        finally:
            try:
                os.killpg(child.pid, signal.SIGKILL)
            except OSError:
                pass  # it has ended, and was alone
            try:
                child.wait(1)
            except subprocess.TimeoutExpired:
                pass  # it waits in the kernel


def _read(fd: int, deadline: float) -> bytes:
    """Everything up to the end of file; nothing where that does not come in time, or too late."""
    data = b""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    while poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
        chunk = os.read(fd, _MAX_ANSWER)
        if not chunk:
            return data
        data += chunk
        if len(data) > _MAX_ANSWER:
            break
    return b""


def _features(answer: bytes) -> Features | None:
    """None for an answer of another kind than ours."""
    try:
        document = loads(answer)
    except ValueError:
        return None
    if not isinstance(document, dict) or document.get("version") != 1:
        return None
    hooks, run = document.get("hooks"), document.get("run")
    if not isinstance(hooks, dict) or not all(map(_is_names, [run, *hooks.values()])):
        return None
    return Features({name: frozenset(options) for name, options in hooks.items()}, frozenset(run or ()))


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


# -- judging ----------------------------------------------------------------------------------------------------------


def _unknown(where: str, hook: Hook, features: Features) -> Iterator[Finding]:
    """What the program does not know of what it is asked."""
    words = list(hook.args[1:])
    subject = f"hook program {hook.path}"
    if hook.path.rpartition("/")[2] == CTK:
        if words[:1] != ["hook"]:
            yield Finding(f"{where}.args", subject, "its first argument is not `hook`", _OURS, False)
            return
        words = words[1:]
    while words and words[0].startswith("-"):
        words = words[1:]  # options of the program itself, of which both have the same
    if not features.is_told:
        subject += ", which does not know --features and is not ours"
    for group in _groups(words):
        options = features.run if group[0] == table.RUN.name else features.hooks.get(group[0])
        if options is None:
            yield Finding(f"{where}.args", subject, f"it would leave out `{group[0]}`, with a warning", _OURS, False)
            if group[0] == table.RUN.name:
                return  # and with it all that follows
            continue
        for option in _options(group):
            if option not in options:
                why = f"`{group[0]}` has no option `--{option}`: no container would start"
                yield Finding(f"{where}.args", subject, why, _OURS, False)


def _groups(words: Sequence[str]) -> Iterator[list[str]]:
    """Each subcommand with its words; `run` first, then those that it runs."""
    group: list[str] = []
    for word in words:
        if word == "--" and words[0] == table.RUN.name:
            if group:
                yield group
            group = []
        else:
            group.append(word)
    if group:
        yield group


def _options(group: Sequence[str]) -> Iterator[str]:
    """The names of the options in the words of one subcommand."""
    hook = table.RUN if group[0] == table.RUN.name else table.HOOKS.get(group[0])
    kinds = {each.name: each.kind for each in hook.options} if hook else {}
    words = iter(group[1:])
    for word in words:
        if word == "--":
            return
        if word.startswith("-") and word != "-":
            name, is_given, _ = word[2 if word.startswith("--") else 1 :].partition("=")
            yield name
            if not is_given and kinds.get(name, table.FLAG) != table.FLAG:
                next(words, None)
