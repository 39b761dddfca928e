"""The hook programs: `nvidia-cdi-hook`, `nvidia-ctk hook`.

Performance contract: this file and what it imports is loaded at every container start; a hook's own module is
loaded only when it is named. The order of `_run` is the safety of the whole: descriptors, arguments and settings;
host files; the state; imports sealed; only then the container.
"""

from __future__ import annotations

import gc
import sys

from nvoci import __version__, log
from nvoci.errors import FAILED, OK, HookError, hook_error, printable
from nvoci.hook import options, process, settings, table

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from nvoci.hook.settings import Settings
    from nvoci.hook.work import Step

_TITLE = "NVIDIA CDI Hook"
_EARLY = 30.0  # seconds for what comes before the work, which has the deadline of the settings


def cdi_hook() -> None:
    """Entry point of `nvidia-cdi-hook`; does not return."""
    _guarded("nvidia-cdi-hook", sys.argv[1:], False)


def ctk() -> None:
    """Entry point of `nvidia-ctk`. Does not return if the words are for `hook`; else it does nothing, and the entry
    file goes on with the commands for people."""
    words = _hook_words(sys.argv[1:])
    if words:
        _guarded("nvidia-ctk", words, True)


def _hook_words(words: list[str]) -> list[str]:
    """Those of `nvidia-ctk` with `hook` as the first that is no flag, without --config, which hooks do not read; [] for
    another command."""
    kept: list[str] = []
    at = 0
    while at < len(words):
        word = words[at]
        if word == "hook":
            return kept + words[at:]
        if not word.startswith("-") or word in ("-", "--"):
            return []
        name, separator, _ = word.lstrip("-").partition("=")
        at += 1 if separator or name != "config" else 2
        if name != "config":
            kept.append(word)
    return []


def _guarded(name: str, words: list[str], needs_hook_word: bool) -> None:
    """Run, and turn every way to fail into one line and an exit status."""
    gc.disable()  # a hook is over before garbage counts, and a large image makes many objects
    code = FAILED
    process.limit(_EARLY)
    try:
        env = process.start()
        code = _program(name, words, needs_hook_word, env)
    except HookError as e:
        log.error(e.line())
    except options.Help as e:
        code = _print_help(name, e.hook)
    except OSError as e:
        log.error(hook_error("hook", e.filename or "", e).line())
    except MemoryError:
        log.error("hook: out of memory (ENOMEM)")
    except Exception as e:  # noqa: BLE001  # the last line of defence: one line instead of a traceback
        log.error(f"hook: internal error: {type(e).__name__}: {printable(e)} at {_where(e)} (please report it)")
    process.finish(code)


def _where(error: BaseException) -> str:
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    if traceback is None:
        return "?"
    return f"{traceback.tb_frame.f_code.co_filename.rpartition('/')[2]}:{traceback.tb_lineno}"


def _print_help(name: str, hook: table.Hook | None) -> int:
    from nvoci.hook import help

    program = f"{name} hook" if name == "nvidia-ctk" else name
    process.output(help.program(program, _TITLE) if hook is None else help.hook(program, hook))
    return OK


def _program(name: str, words: list[str], needs_hook_word: bool, env: dict[bytes, bytes]) -> int:
    found = options.parse_globals(words, env)
    log.set_level(log.ERROR if found.quiet else log.DEBUG if found.debug else log.WARNING)
    if found.version:
        process.output(f"{_TITLE} version {__version__}\n")
        return OK
    if found.features:
        from nvoci.jsonfile import dumps

        process.output(dumps(table.features()) + "\n")
        return OK
    rest = found.words
    if needs_hook_word:
        if not rest:
            raise options.Help(None)
        rest = options.parse_globals(rest[1:], {}).words
    if not rest:
        log.warning("No CDI hook specified")
        return OK
    return _run(rest, env)


def _run(words: list[str], env: dict[bytes, bytes]) -> int:
    current = settings.load()
    if current.log_file or current.log_syslog:  # first: some runtimes drop stderr, and a wrong flag must be found
        from nvoci.hook import logs

        logs.open_logs(current)
    common, wanted = select(words)
    if not wanted:
        return OK
    _apply_common(current, common)
    names = process.dangerous(env)
    if names:
        log.warning("the hook was started with a dangerous environment: give its entry a non-empty `env`",
                    variables=b" ".join(names))  # fmt: skip
    steps = prepare(wanted, current)
    if not steps:
        return OK
    from nvoci.hook.work import work

    return work(steps, common.get("container-spec", ""), current, common["dry-run"])


def select(words: list[str]) -> tuple[dict[str, Any], list[tuple[table.Hook, dict[str, Any]]]]:
    """The options all hooks share, and the known hooks with their own. An unknown hook is left out with a warning."""
    if words[0] != table.RUN.name:
        hook = _known(words[0])
        if hook is None:
            return {}, []
        own = options.parse_hook(hook, words[1:])
        return own, [(hook, own)]
    own_words, groups = options.split_run(words[1:])
    common = options.parse_hook(table.RUN, own_words)
    wanted = []
    for group in groups:
        hook = _known(group[0])
        if hook is not None:
            parsed = options.parse_hook(hook, group[1:])
            for name in ("dry-run", "strict", "timeout", "container-spec"):
                common[name] = common[name] or parsed[name]
            wanted.append((hook, parsed))
    if not groups:
        log.warning("No CDI hook specified")
    return common, wanted


def _known(name: str) -> table.Hook | None:
    hook = table.HOOKS.get(name)
    if hook is None:
        log.warning(f"Unsupported CDI hook: {printable(name)}")
    return hook


def _apply_common(current: Settings, common: dict[str, Any]) -> None:
    current.strict = current.strict or common["strict"]
    current.timeout = common["timeout"] or current.timeout


def prepare(wanted: list[tuple[table.Hook, dict[str, Any]]], current: Settings) -> list[Step]:
    """Load each hook's module and let it check its options and open its host files. A hook with nothing to do is
    left out. Returns (name, plan, prepared) of the others."""
    steps: list[Step] = []
    for hook, own in wanted:
        __import__(hook.module)
        module = sys.modules[hook.module]
        prepared = module.prepare(own, current)
        if prepared is not None:
            steps.append((hook.name, module.plan, prepared))
    return steps
