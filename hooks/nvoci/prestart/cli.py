"""`nvidia-container-cli`: called by enroot, pyxis, LXC and others to give a container GPUs, and by scripts to learn of
them.

    info, list      for any user; from the inventory where that holds
    configure       the operations of the prestart hook, all or nothing, for a process or for whoever calls

Scripts read its output, its exit status, and the class of an error: `nvidia-container-cli: CLASS: DETAIL`. Those are
libnvidia-container's.

Performance contract: as for the prestart hook; the configuration of other tools (config.toml) is not read.
"""

from __future__ import annotations

import gc
import posix
import sys
from errno import EINVAL

from nvoci import log
from nvoci.discover import inventory
from nvoci.errors import FAILED, OK, HookError, hook_error, printable
from nvoci.hook import process
from nvoci.prestart import capabilities, choose, cliargs, clilog, clinode, clioptions, clitext, devices, node
from nvoci.prestart.clierror import DETECTION, INITIALIZATION, classed, worded
from nvoci.prestart.clioptions import CONFIGURE, INFO, PROGRAM
from nvoci.prestart.names import items
from nvoci.prestart.wanted import MPS_DIRECTORY, Wanted, own_ldcache

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nvoci.discover.model import Found
    from nvoci.prestart.clioptions import Words

_MPS = b"CUDA_MPS_PIPE_DIRECTORY"
_SECONDS = 90.0  # the limits of the steps of a look at the node together are less


def main() -> None:
    """Entry point; does not return."""
    gc.disable()  # it is over before garbage counts
    code = FAILED
    process.limit(_SECONDS)
    try:
        directory = _directory()
        env = process.start()
        try:
            code = _run(sys.argv[1:], env, directory)
        except cliargs.Shown as e:
            code = _show(e)
    except cliargs.UsageError as e:
        from nvoci.prestart import clihelp

        message = f"{e.command.name}: {e.message}\n" if e.message else ""
        log.plain(message + clihelp.hint(e.command, not e.message))
    except HookError as e:
        _fail(worded(classed(e, INITIALIZATION)).line())
    except OSError as e:
        _fail(worded(hook_error(f"{INITIALIZATION}:", e.filename or "", e)).line())
    except MemoryError:
        _fail(f"{INITIALIZATION}: out of memory (ENOMEM)")
    except Exception as e:  # noqa: BLE001  # the last line of defence: one line instead of a traceback
        _fail(f"{INITIALIZATION}: internal error: {type(e).__name__}: {printable(e)} (please report it)")
    process.finish(code)


def _directory() -> str:
    """The working directory, which names are relative to."""
    try:
        return posix.getcwd()
    except OSError:
        return "/"


def _show(asked: cliargs.Shown) -> int:
    from nvoci.prestart import clihelp

    if asked.what == cliargs.VERSION:
        return _print(clitext.version(sys.version.partition(" ")[0]))
    return _print((clihelp.page if asked.what == cliargs.HELP else clihelp.usage)(asked.command))


def _print(text: str) -> int:
    """Raises HookError, unless it is only that nobody reads on. A person may read slowly."""
    process.limit(0)
    try:
        process.output(text)
    except BrokenPipeError:
        return FAILED
    except OSError as e:
        raise hook_error(f"{INITIALIZATION}: write", "the output", e) from None
    return OK


def _fail(line: str) -> None:
    """To stderr as scripts expect it, and to the logs."""
    log.set_level(log.ERROR + 1)
    log.error(line)
    log.plain(f"{PROGRAM}: {printable(line)}")


def _run(argv: list[str], env: dict[bytes, bytes], directory: str) -> int:
    log.set_level(log.ERROR)
    words = clioptions.parse(argv)
    user = clinode.user(words)
    words.root = _absolute(words.root, directory)
    debug = words.debug or env.get(clilog.VARIABLE, b"").decode("utf-8", "surrogateescape")
    if debug:
        clilog.start(_absolute(debug, directory))
        log.info(f"{' '.join([PROGRAM, *argv])}", root=words.root, uid=posix.geteuid())
    channels = devices.imex_channels(items(words.imex_channels or ""))
    _check_root(words.root)
    mps = env.get(_MPS, b"").decode("utf-8", "surrogateescape")
    wanted = _wanted(words, channels).replace(user=user, mps_directory=mps if mps.startswith("/") else MPS_DIRECTORY)
    names = process.dangerous(env)
    if names:
        log.warning("started with a dangerous environment", variables=b" ".join(names))
    if words.command == CONFIGURE:
        return _configure(words, wanted)
    node.load_modules(wanted.replace(imex_channels=channels))  # also where the inventory holds, if somebody asks for it
    try:
        text = clinode.use(wanted, lambda found: _text(found, words, wanted, channels))
    except HookError as e:
        raise classed(e, DETECTION) from None
    except OSError as e:
        raise hook_error(f"{DETECTION}:", e.filename or "", e) from None
    return _print(text)


def _configure(words: Words, wanted: Wanted) -> int:
    from nvoci.prestart import cliconfigure

    cliconfigure.check_capable()
    node.load_modules(wanted)
    return cliconfigure.run(words, wanted)


def _check_root(path: str) -> None:
    try:
        posix.stat(path)
    except (OSError, ValueError) as e:
        error = e if isinstance(e, OSError) else OSError(EINVAL, str(e))
        raise hook_error(f"{INITIALIZATION}: change root failed:", path, error, "see --root") from None


def _absolute(path: str, directory: str) -> str:
    return path if path.startswith("/") else f"{directory.rstrip('/')}/{path}"


def _wanted(words: Words, channels: tuple[int, ...]) -> Wanted:
    """What the command line asks for. `list` looks for no channel, as libnvidia-container does not."""
    configure = words.command == CONFIGURE
    given = [each for each in capabilities.EVERY if each in words.switches or (not configure and each != "compat32")]
    switches = words.switches
    return Wanted(
        devices=tuple(items(words.devices or "")),
        capabilities=tuple(given),
        mig_config=tuple(items(words.mig_config or "")),
        mig_monitor=tuple(items(words.mig_monitor or "")),
        imex_channels=channels if configure else (),
        requirements=tuple([("--require", each) for each in words.requirements]),
        compat_mode=words.compat_mode(),
        cgroups="no-cgroups" not in switches,
        devbind="no-devbind" not in switches,
        driver_root=words.root,
        ldconfig=words.ldconfig[1:] if words.ldconfig.startswith("@") else "",
        ldcache=own_ldcache(words.ldcache),
        load_kmods="load-kmods" in switches,
        create_imex="no-create-imex-channels" not in switches,
        persistenced="no-persistenced" not in switches,
        fabricmanager="no-fabricmanager" not in switches,
        gsp_firmware="no-gsp-firmware" not in switches,
    )


def _text(found: Found, words: Words, wanted: Wanted, channels: tuple[int, ...]) -> str:
    """What `info` or `list` prints. Raises HookError where no GPU can be told of, and the driver should know some."""
    devices.check_answered(found)
    every = devices.select(found, ("all",))
    for problem in found.problems:
        log.warning(problem.line())
    lost = inventory.unanswered(found)
    if lost:
        log.plain(f"{PROGRAM}: warning: {printable(lost)}")
    if words.command == INFO:
        return clitext.info(found, every.gpus, "csv" in words.switches)
    chosen = choose.choose(clitext.with_assumed(found), wanted)
    if "libraries" in words.switches:
        _leave_out(chosen, wanted.driver_root)
    if "binaries" in words.switches and not chosen.wsl:
        chosen.programs = [
            each.replace(host_path=clinode.resolved(each.host_path, wanted.driver_root)) for each in chosen.programs
        ]
    return clitext.files(chosen, words, wanted.driver_root, channels)


def _leave_out(chosen: choose.Chosen, root: str) -> None:
    """The libraries that a container would not get, told on stderr."""
    from nvoci.prestart import tls

    chosen.libraries, others = tls.taken(chosen.libraries, root)
    chosen.compat32, others_32 = tls.taken(chosen.compat32, root)
    for line in (*others, *others_32):
        log.plain(f"{PROGRAM}: warning: {printable(line)}")
