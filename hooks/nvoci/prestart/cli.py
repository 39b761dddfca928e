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
from nvoci.errors import FAILED, OK, HookError, errno_name, hook_error, printable
from nvoci.hook import process
from nvoci.prestart import capabilities, choose, cliargs, clilog, clinode, clioptions, clitext, devices
from nvoci.prestart.clierror import DETECTION, INITIALIZATION, classed
from nvoci.prestart.clioptions import CONFIGURE, INFO, PROGRAM
from nvoci.prestart.names import items
from nvoci.prestart.wanted import MPS_DIRECTORY, Wanted

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nvoci.discover.model import Found
    from nvoci.prestart.clioptions import Words

FIND_STAGE = "find the driver"  # of discover.driver
_MPS = b"CUDA_MPS_PIPE_DIRECTORY"


def main() -> None:
    """Entry point; does not return."""
    gc.disable()  # it is over before garbage counts
    code = FAILED
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
        _fail(classed(e, INITIALIZATION).line())
    except OSError as e:
        _fail(hook_error(f"{INITIALIZATION}:", e.filename or "", e).line())
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
    """Raises HookError, unless it is only that nobody reads on."""
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
    log.plain(f"{PROGRAM}: {line}")


def _run(argv: list[str], env: dict[bytes, bytes], directory: str) -> int:
    log.set_level(log.ERROR)
    words = clioptions.parse(argv)
    words.root = _absolute(words.root, directory)
    debug = words.debug or env.get(clilog.VARIABLE, b"").decode("utf-8", "surrogateescape")
    if debug:
        clilog.start(_absolute(debug, directory))
        log.info(f"{' '.join([PROGRAM, *argv])}", root=words.root, uid=posix.geteuid())
    channels = devices.imex_channels(items(words.imex_channels or ""))
    _check_root(words.root)
    mps = env.get(_MPS, b"").decode("utf-8", "surrogateescape")
    wanted = _wanted(words, channels, mps if mps.startswith("/") else MPS_DIRECTORY)
    names = process.dangerous(env)
    if names:
        log.warning("started with a dangerous environment", variables=b" ".join(names))
    if words.command == CONFIGURE:
        return _configure(words, wanted, channels)
    _load_modules(wanted, channels)
    try:
        text = clinode.use(words, wanted, lambda found: _text(found, words, wanted, channels))
    except HookError as e:
        raise classed(e, DETECTION) from None
    except OSError as e:
        raise HookError(f"{DETECTION}: {printable(e.filename or '')}: {errno_name(e.errno or 0)}") from None
    return _print(text)


def _configure(words: Words, wanted: Wanted, channels: tuple[int, ...]) -> int:
    from nvoci.prestart import cliconfigure

    cliconfigure.check_capable()
    _load_modules(wanted, channels)
    return cliconfigure.run(words, wanted)


def _load_modules(wanted: Wanted, channels: tuple[int, ...]) -> None:
    """Also where the inventory holds, if somebody asks for it."""
    if not wanted.load_kmods:
        return
    from nvoci.prestart import kmods

    try:
        with kmods.Place.open(wanted.driver_root) as place:
            kmods.load(place, channels if wanted.create_imex else ())
    except OSError as e:
        log.info(hook_error("load kernel modules: open", e.filename or wanted.driver_root, e).line())


def _check_root(path: str) -> None:
    try:
        posix.stat(path)
    except (OSError, ValueError) as e:
        error = e if isinstance(e, OSError) else OSError(EINVAL, str(e))
        raise hook_error(f"{INITIALIZATION}: change root failed:", path, error, "see --root") from None


def _absolute(path: str, directory: str) -> str:
    return path if path.startswith("/") else f"{directory.rstrip('/')}/{path}"


def _wanted(words: Words, channels: tuple[int, ...], mps: str) -> Wanted:
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
        mps_directory=mps,
        load_kmods="load-kmods" in switches,
        create_imex="no-create-imex-channels" not in switches,
        persistenced="no-persistenced" not in switches,
        fabricmanager="no-fabricmanager" not in switches,
        gsp_firmware="no-gsp-firmware" not in switches,
    )


def _why_no_library(found: Found) -> str:
    if any(node.kind == "tegra" for node in found.device_nodes):
        return "a Tegra system without it: use CDI"
    told = [problem.line() for problem in found.problems if problem.stage == FIND_STAGE]
    return told[0] if told else "install the NVIDIA driver, or name its root"


def _text(found: Found, words: Words, wanted: Wanted, channels: tuple[int, ...]) -> str:
    """What `info` or `list` prints. Raises HookError where no GPU can be told of, and the driver should know some."""
    every = devices.select(found, ("all",))
    driver = found.driver
    if not every.gpus and not driver.nvml_version and not driver.cuda_version:
        raise HookError(f"{INITIALIZATION}: load library failed: libnvidia-ml.so.1: no such file or directory",
                        _why_no_library(found))  # fmt: skip
    for problem in found.problems:
        log.warning(problem.line())
    lost = inventory.unanswered(found)
    if lost:
        log.plain(f"{PROGRAM}: warning: {lost}")
    if words.command == INFO:
        return clitext.info(found, every.gpus, "csv" in words.switches)
    return clitext.files(choose.choose(clitext.with_assumed(found), wanted), words, wanted.driver_root, channels)
