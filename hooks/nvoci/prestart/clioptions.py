"""The options of nvidia-container-cli, and what a command line says.

    nvidia-container-cli [OPTION...] info|list|configure [OPTION...] [ROOTFS]

They and their order are those of libnvidia-container 1.20.0. What is wrong in itself (a pid that is no number) is told
where it is read, as `input error`; what depends on the node is not judged here.
"""

from __future__ import annotations

from nvoci.errors import HookError, printable
from nvoci.prestart import cliargs
from nvoci.prestart.cliargs import Command, Option
from nvoci.prestart.config import DISABLED, LDCONFIG, MOUNT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

PROGRAM = "nvidia-container-cli"
INFO, LIST, CONFIGURE = "info", "list", "configure"
MAX_REQUIREMENTS = 32
_PID_MAX = 0x7FFFFFFF  # pid_t
_BLANKS = " \t\n\v\f\r"
_IMEX = "--imex-channel="

MAIN = Command(
    PROGRAM,
    ("Give containers NVIDIA GPUs, and tell what there is to give.",),
    (
        Option("debug", "d", "Write a log to this file", "FILE"),
        Option("load-kmods", "k", "Load the kernel modules and make device nodes", ""),
        Option("no-pivot", "n", "Accepted; nothing here needs pivot_root", ""),
        Option("user", "u", "Who asks the driver's library (default: nobody)", "UID[:GID]", optional=True),
        Option("root", "r", "Directory that the driver is installed in", "PATH"),
        Option("ldcache", "l", "The library cache, in that directory", "FILE"),
        Option("no-create-imex-channels", "", "Make no device nodes of IMEX channels"),
    ),
    "COMMAND [ARG...]",
    (
        (INFO, "Tell the driver and the GPUs of this node"),
        (LIST, "List the files of the driver"),
        (CONFIGURE, "Give GPUs to a container"),
    ),
)
_WHEN = (
    "The container must exist and not run yet, so that the files of the host are in sight of its process. "
    "Without --pid it is the one that this command is called in."
)
_COMPAT = "What to do with the image's CUDA compatibility libraries: mount, ldconfig or disabled"
_SELECTION = (
    Option("mig-config", "", "GPUs whose MIG devices may be configured", "ID"),
    Option("mig-monitor", "", "GPUs whose MIG devices may be watched", "ID"),
    Option("imex-channel", "", "IMEX channels, by number", "CHANNEL"),
    Option("no-persistenced", "", "Leave out the socket of nvidia-persistenced"),
    Option("no-fabricmanager", "", "Leave out the socket of nvidia-fabricmanager"),
    Option("no-gsp-firmware", "", "Leave out the GPU system processor's firmware"),
)
COMMANDS = {
    INFO: Command(
        f"{PROGRAM} {INFO}",
        (MAIN.commands[0][1] + ".",),
        (Option("csv", "", "Comma-separated values"),),
    ),
    LIST: Command(
        f"{PROGRAM} {LIST}",
        (MAIN.commands[1][1] + ".", "Without options all of them, and all devices."),
        (
            Option("device", "d", "Devices: index, UUID, PCI address or all", "ID"),
            Option("libraries", "l", "Libraries"),
            Option("binaries", "b", "Programs"),
            Option("ipcs", "i", "Sockets, and the directory of the MPS daemon"),
            Option("firmwares", "f", "Firmware"),
            Option("compat32", "", "32-bit libraries too"),
            *_SELECTION,
        ),
    ),
    CONFIGURE: Command(
        f"{PROGRAM} {CONFIGURE}",
        (
            MAIN.commands[2][1] + ": devices, and what of the driver it is to use.",
            _WHEN,
        ),
        (
            Option("pid", "p", "A process of the container", "PID"),
            Option("device", "d", "Devices: index, UUID, PCI address or all", "ID"),
            Option("require", "r", "What the driver and the GPUs must be", "EXPR"),
            Option("ldconfig", "l", "The program that makes the library cache; @ before one of the host", "PATH"),
            Option("compute", "c", "For CUDA and OpenCL"),
            Option("utility", "u", "For nvidia-smi and NVML"),
            Option("video", "v", "For the Video Codec SDK"),
            Option("graphics", "g", "For OpenGL and Vulkan"),
            Option("display", "D", "For X11"),
            Option("ngx", "n", "For NGX"),
            Option("compat32", "", "Also for 32-bit programs"),
            *_SELECTION[:3],
            Option("no-cgroups", "", "Leave the device cgroup as it is"),
            Option("no-devbind", "", "Do not mount device nodes"),
            *_SELECTION[3:],
            Option("no-cntlibs", "", "Deprecated: --cuda-compat-mode=disabled"),
            Option("cuda-compat-mode", "", _COMPAT, "MODE"),
        ),
        "ROOTFS",
    ),
}


class Words:
    """A command line. command: one of COMMANDS. user: None if it was not given, "" without ids. pid: 0 for none.
    switches: names of options without argument. devices, mig_config and so on: None if not given, joined by commas if
    repeated."""

    __slots__ = ("command", "compat_modes", "debug", "devices", "imex_channels", "ldcache", "ldconfig",
                 "mig_config", "mig_monitor", "pid", "requirements", "root", "rootfs", "switches", "user")  # fmt: skip

    def __init__(self) -> None:
        self.command = ""
        self.debug = ""
        self.user: str | None = None
        self.root = "/"
        self.ldcache = ""
        self.switches: set[str] = set()
        self.devices: str | None = None
        self.mig_config: str | None = None
        self.mig_monitor: str | None = None
        self.imex_channels: str | None = None
        self.requirements: list[str] = []
        self.compat_modes: list[str] = []
        self.ldconfig = ""
        self.pid = 0
        self.rootfs = ""

    def take_main(self, name: str, value: str | None) -> None:
        """An option before the command. Raises HookError."""
        if name == "user":
            self.user = value or ""
        elif value is None:
            self.switches.add(name)
        elif name == "debug":
            self.debug = value
        elif not value:
            raise HookError("initialization error: invalid argument", f"--{name} is empty")
        else:
            setattr(self, name, value)

    def take(self, name: str, value: str | None) -> None:
        """An option of the command. Raises HookError."""
        if name == "no-cntlibs":
            self.compat_modes.append(DISABLED)
        elif value is None:
            self.switches.add(name)
        elif name == "pid":
            self.pid = max(0, _pid(value))
        elif name == "require":
            if len(self.requirements) == MAX_REQUIREMENTS:
                raise HookError("input error: too many requirements", f"at most {MAX_REQUIREMENTS}")
            self.requirements.append(value)
        elif name == "cuda-compat-mode":
            self.compat_modes.append(value)
        elif name == "ldconfig":
            self.ldconfig = value
        else:
            field = {"device": "devices", "imex-channel": "imex_channels"}.get(name, name.replace("-", "_"))
            before = getattr(self, field)
            setattr(self, field, value if before is None else f"{before},{value}")

    def compat_mode(self) -> str:
        """What becomes of the image's CUDA compatibility libraries. Raises HookError."""
        for mode in self.compat_modes:
            if mode not in (MOUNT, LDCONFIG, DISABLED):
                raise HookError(f"container error: invalid option: cuda-compat-mode={printable(mode[:100])}",
                                f"one of {MOUNT}, {LDCONFIG}, {DISABLED}")  # fmt: skip
        if DISABLED in self.compat_modes:
            return DISABLED
        if len(set(self.compat_modes)) > 1:
            raise HookError("container error: only one cuda-compat-mode can be specified at a time",
                            f"leave {MOUNT} or {LDCONFIG} out")  # fmt: skip
        return self.compat_modes[0] if self.compat_modes else MOUNT


def parse(words: Iterable[str]) -> Words:
    """A command line. Raises cliargs.Shown, cliargs.UsageError, HookError."""
    found = Words()
    rest = cliargs.read(MAIN, list(words), found.take_main)
    if not rest or rest[0] not in COMMANDS:
        raise cliargs.UsageError(MAIN)
    found.command, own = rest[0], rest[1:]
    command = COMMANDS[found.command]
    others = cliargs.read(command, own, found.take)
    if found.command == CONFIGURE:
        if others:
            found.rootfs = _rootfs(others[0])
        if len(others) != 1:
            raise cliargs.UsageError(command)
    elif others:
        raise cliargs.UsageError(command, cliargs.TOO_MANY)
    elif found.command == LIST and (not own or (len(own) == 1 and own[0].startswith(_IMEX))):
        found.devices = "all"
        found.switches |= {"compat32", "libraries", "binaries", "ipcs", "firmwares"}
    return found


def _pid(text: str) -> int:
    """As strtoimax(3) reads it. Raises HookError."""
    digits = text.lstrip(_BLANKS)
    sign, digits = (digits[0], digits[1:]) if digits[:1] in ("-", "+") else ("", digits)
    hint = f"`{printable(text[:100])}` is not a process id"
    if not digits.isascii() or not digits.isdigit():
        raise HookError("input error: parse pid failed: invalid argument", hint)
    digits = digits.lstrip("0") or "0"
    if len(digits) > len(str(_PID_MAX)) or int(digits) > _PID_MAX:
        raise HookError("input error: parse pid failed: numerical result out of range", hint)
    return -int(digits) if sign == "-" else int(digits)


def _rootfs(path: str) -> str:
    """Raises HookError."""
    if not path.startswith("/") or not path.strip("/."):
        raise HookError("input error: invalid rootfs directory",
                        f"`{printable(path[:200])}`: an absolute path other than / is wanted")  # fmt: skip
    return path
