"""The hooks of a device. Ours run in this process, as steps after the mounts; programs of others run on the host, where
that is their stage and we are there; the rest is left to be reported.

What is ours goes by its name, nvidia-cdi-hook or nvidia-ctk, wherever it lies: the arguments mean the same to either
program, so a specification that was made for the reference toolkit works on a host that has only this one.
"""

from __future__ import annotations

from nvoci.errors import HookError, printable
from nvoci.hook import main, options
from nvoci.hook.container import OUTSIDE
from nvoci.inject import program
from nvoci.jsonfile import path_from_json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from nvoci.cdi.model import Hook
    from nvoci.hook.container import Container
    from nvoci.hook.enter import Place
    from nvoci.hook.operation import Operation
    from nvoci.hook.settings import Settings
    from nvoci.hook.work import Step
    from nvoci.oci.state import State

NAME = "inject"
# Those that are over when a process of the container runs, in the order in which a runtime runs them.
STAGES = ("prestart", "createRuntime", "createContainer")
_ON_HOST = ("prestart", "createRuntime")
_CDI_HOOK, _CTK = "nvidia-cdi-hook", "nvidia-ctk"


def is_ours(hook: Hook) -> bool:
    """Whether it can run in this process."""
    return _words(hook) is not None


def _words(hook: Hook) -> list[str] | None:
    """The subcommand of our program and what follows it, none where it would only print something; None where it is
    another program."""
    name = hook.path.rpartition("/")[2]
    if name not in (_CDI_HOOK, _CTK):
        return None
    words = _behind_globals(hook.args[1:])
    if name == _CDI_HOOK:
        return words
    return _behind_globals(words[1:]) if words[:1] == ["hook"] else None


def _behind_globals(words: Sequence[str]) -> list[str]:
    try:
        found = options.parse_globals([_word(word) for word in words], {})
    except options.Help:
        return []
    return [] if found.version or found.features else found.words


def _word(text: str) -> str:
    """An argument as this process would have been given it."""
    try:
        return path_from_json(text)
    except ValueError as e:
        raise HookError(f"{NAME}: hook argument {printable(text)[:80]}: {e}", "mend the specification") from None


def is_run_on_host(hook: Hook, place: Place) -> bool:
    """Whether it is a program of somebody else's whose time and place is now and here."""
    return not is_ours(hook) and hook.hook_name in _ON_HOST and place.where == OUTSIDE


def why_not(hook: Hook, place: Place) -> str:
    """Why a hook does not run; "" for one that does."""
    if hook.hook_name not in STAGES:
        return "it is for the runtime to run, later"
    if is_ours(hook) or is_run_on_host(hook, place):
        return ""
    if hook.hook_name in _ON_HOST:
        return "a program is run from outside only: call inject as createRuntime"
    return "no program is run in the container's namespaces"


def steps(hooks: Sequence[Hook], state: State, place: Place, settings: Settings) -> list[Step]:
    """What `hooks` come to, stage by stage. To be called on the host. Raises HookError."""
    found: list[Step] = []
    namespace = None
    for stage in STAGES:
        for hook in hooks:
            if hook.hook_name != stage:
                continue
            if is_ours(hook):
                found += _own(hook, settings)
            elif is_run_on_host(hook, place):
                namespace = namespace or program.host_namespace()
                own = hook.timeout if hook.timeout and hook.timeout > 0 else settings.timeout
                run = program.RunProgram(hook.path, hook.args, hook.env, min(own, settings.timeout), state=state.raw,
                                         bundle=state.bundle, namespace=namespace)  # fmt: skip
                found.append((NAME, _as_it_is, run))
    return found


def _as_it_is(prepared: program.RunProgram, container: Container) -> list[Operation]:
    return [prepared]


def _own(hook: Hook, settings: Settings) -> list[Step]:
    """The steps that nvoci.hook.main would make of the same command line."""
    words = _words(hook)
    if not words:
        return []
    try:
        common, wanted = main.select(words)
    except options.Help:
        return []
    if any(each.name == NAME for each, _ in wanted):
        raise HookError(f"{NAME}: hook {printable(' '.join(hook.args))}: a device that asks for devices",
                        "take the hook out of the specification")  # fmt: skip
    if not wanted or common["dry-run"]:
        return []
    settings.strict = settings.strict or common["strict"]
    return main.prepare(wanted, settings)
