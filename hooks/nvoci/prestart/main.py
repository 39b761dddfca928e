"""`nvidia-container-runtime-hook` (alias nvidia-container-toolkit): the prestart hook that gives containers GPUs.

    nvidia-container-runtime-hook [-config FILE] [-debug] [-dry-run] prestart|poststart|poststop

Performance contract: at every start of a container on the node, with GPU or without. Whether it asks for one is decided
from the state, its config.json and the look for one key in config.toml; nothing else is loaded before that, not even
ctypes: next to nothing beyond the start of the interpreter.
"""

from __future__ import annotations

import _signal
import gc
import posix
import sys

from nvoci import __version__, log
from nvoci.errors import FAILED, OK, HookError, hook_error, printable
from nvoci.jsonfile import load_object, path_from_json
from nvoci.oci import spec as oci_spec
from nvoci.oci import state as oci_state
from nvoci.prestart import ask, configfile
from nvoci.prestart.names import FALSE, TRUE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nvoci.oci.state import State

USAGE = 2
TITLE = "NVIDIA Container Runtime Hook"
PRESTART = "prestart"
# Seconds: for what every container pays for; for a look at the node, whose steps have limits that together are less.
# The work on the container then has the deadline of the settings.
_EARLY, _LOOK = 30.0, 90.0
_NOTHING = ("poststart", "poststop")  # hooks that this program may be called as, and that have nothing to do
_HINT = "the runtime writes the state to the hook's stdin"
_HELP = """\
Usage of {name}:
  -config FILE
    \tconfiguration file
  -debug
    \ttell everything on stderr
  -dry-run
    \tprint what would be done, and do nothing
  -version
    \tprint the version

Commands:
  prestart
        give a container its GPUs: as a prestart or createRuntime hook, with the state on stdin
  poststart
        no-op
  poststop
        no-op
"""


class Usage(Exception):
    """The command line is not understood; the message says why, "" where help was asked for."""


class Words:
    """The command line. config: "" where none is given."""

    __slots__ = ("command", "config", "debug", "dry_run", "version")

    def __init__(self) -> None:
        self.command = ""
        self.config = ""
        self.debug = False
        self.dry_run = False
        self.version = False


def main() -> None:
    """Entry point; does not return."""
    gc.disable()  # it is over before garbage counts
    code = FAILED
    _limit(_EARLY)
    try:
        code = _run(sys.argv[1:])
    except HookError as e:
        log.error(e.line())
    except Usage as e:
        code = _usage(str(e))
    except OSError as e:
        log.error(hook_error(PRESTART, e.filename or "", e).line())
    except MemoryError:
        log.error(f"{PRESTART}: out of memory (ENOMEM)")
    except ImportError as e:
        log.error(f"{PRESTART}: load {printable(e.name or '?')}: {printable(e)} (see that the installation is whole, "
                  "and the runtime's limits of memory and descriptors are not met)")  # fmt: skip
    except Exception as e:  # noqa: BLE001  # the last line of defence: one line instead of a traceback
        log.error(f"{PRESTART}: internal error: {type(e).__name__}: {printable(e)} at {_where(e)} (please report it)")
    posix._exit(code)


def _limit(seconds: float) -> None:
    """As `nvoci.hook.process.limit`, without what that module loads: 4 us."""
    _signal.signal(_signal.SIGALRM, _signal.SIG_DFL)
    _signal.pthread_sigmask(_signal.SIG_UNBLOCK, (_signal.SIGALRM,))
    _signal.setitimer(_signal.ITIMER_REAL, seconds)


def _where(error: BaseException) -> str:
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    return f"{traceback.tb_frame.f_code.co_filename.rpartition('/')[2]}:{traceback.tb_lineno}" if traceback else "?"


def _usage(why: str) -> int:
    name = sys.argv[0].rpartition("/")[2] if sys.argv else "nvidia-container-runtime-hook"
    text = (f"{printable(why[:200])}\n" if why else "") + _HELP.format(name=printable(name))
    log.plain(text.rstrip("\n"))
    return USAGE if why else OK


def parse(words: list[str]) -> Words:
    """Flags come first, with one dash or two, as Go's package flag reads them. Raises Usage."""
    found = Words()
    rest = list(words)
    while rest and rest[0].startswith("-") and rest[0] not in ("-", "--"):
        _flag(found, rest)
    if rest[:1] == ["--"]:
        rest.pop(0)
    found.command = rest.pop(0) if rest else ""
    # What stands behind the command is passed over, as in the reference; but who says `-dry-run` there means it.
    found.debug |= bool({"-debug", "--debug"} & {*rest})
    found.dry_run |= bool({"-dry-run", "--dry-run"} & {*rest})
    return found


def _flag(found: Words, rest: list[str]) -> None:
    """Take one flag, and its value, off `rest`."""
    word = rest.pop(0)
    name, there, value = word[2 if word.startswith("--") else 1 :].partition("=")
    if name in ("h", "help"):
        raise Usage("")
    if name == "config":
        if not there:
            if not rest:
                raise Usage("flag needs an argument: -config")
            value = rest.pop(0)
        found.config = value
        return
    if name not in ("debug", "dry-run", "version"):
        raise Usage(f"flag provided but not defined: -{name}")
    if there and value not in TRUE + FALSE:
        raise Usage(f'invalid boolean value "{value}" for -{name}')
    setattr(found, name.replace("-", "_"), not there or value in TRUE)


def _run(argv: list[str]) -> int:
    words = parse(argv)
    if words.version:
        posix.write(1, f"{TITLE} version {__version__}\n".encode())
        return OK
    if words.command in _NOTHING:
        return OK
    if words.command != PRESTART:
        raise Usage(f"unknown command: {words.command}" if words.command else "no command")
    if not sys.flags.isolated:
        raise HookError("start: the interpreter is not isolated", "start the program by its own file, which has -I")
    if words.debug:
        log.set_level(log.DEBUG)
    state = _state()
    place = configfile.find(posix.environ, words.config)
    spec = oci_spec.of_bundle(state.bundle)
    if not ask.may_ask(spec, place):
        log.debug("no GPU is asked for")
        return OK
    _limit(_LOOK)
    _load_bundle()
    from nvoci.prestart import start

    return start.prestart(state, spec, place, words)


def _load_bundle() -> None:
    """The modules that are needed now come in one file in an installed tree; where that is missing or damaged, as files
    of their own."""
    try:
        import nvoci_prestart  # type: ignore[import-not-found] # noqa: F401
    except Exception:  # noqa: BLE001
        pass


def _state() -> State:
    """From stdin. Raises HookError. Docker's engines before the OCI text was settled call the bundle `bundlePath`."""
    state = oci_state.read()
    if not state.bundle:
        doc = load_object(state.raw, "read state", "stdin")
        if type(doc.get("bundlePath")) is not str:
            raise HookError("read state: it names no bundle", _HINT)
        state.bundle = path_from_json(oci_state.text(doc, "bundlePath"))
    if not state.bundle.startswith("/"):
        raise HookError(f"read state: bundle `{printable(state.bundle[:200])}` is not an absolute path", _HINT)
    return state
