"""--load-kmods: load the driver's kernel modules and make the device nodes of the host, as nvidia-modprobe does.

Nothing here stops a container: what cannot be done is logged, and what is missing afterwards is told when it is used.
All is read and made by handle, of the root of the driver, a procfs and a sysfs.

Performance contract: with everything in place it takes 5 ms on a node with 8 GPUs, MIG and 200 functions on the PCI
bus. So a start whose inventory holds, and who has seen all nodes by that, does not come here.
"""

from __future__ import annotations

import posix
import time
from errno import ENOENT

from nvoci import log
from nvoci.errors import HookError, hook_error, printable
from nvoci.hook import migcaps
from nvoci.linux import procfs
from nvoci.linux.fd import Fd, read_at_most
from nvoci.linux.rootfs import fsencode
from nvoci.prestart import modprobe
from nvoci.prestart.makenodes import Rules, ensure

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from nvoci.linux.devnode import Number

    # Name below `dev`, what it must be, and whose.
    Node = tuple[bytes, Number, Rules]

# What nvidia-modprobe takes for granted: Documentation/admin-guide/devices.txt, and the driver's nv.h.
_NVIDIA_MAJOR, _CONTROL, _MODESET = 195, 255, 254
_UVM, _IMEX = b"nvidia-uvm", b"nvidia-caps-imex-channels"
_PARAMS = b"driver/nvidia/params"
_IDENTITY = [b"0", b"0", b"4294967295"]
_VENDOR, _DISPLAY = b"0x10de", b"0x03"  # PCI: NVIDIA; class of display controllers
_MAX_IMEX = (1 << 20) - 1
_LIMIT, _MINORS_LIMIT = 1 << 16, 4 << 20
_DIRECTORY = posix.O_PATH | posix.O_DIRECTORY | posix.O_CLOEXEC
SECONDS = 20.0


class Place:
    """Handles of the driver's root, its `dev`, a procfs and a sysfs."""

    __slots__ = ("dev", "proc", "root", "sys")

    def __init__(self, root: Fd, dev: Fd, proc: Fd, sys: Fd) -> None:
        self.root = root
        self.dev = dev
        self.proc = proc
        self.sys = sys

    @classmethod
    def open(cls, root: str = "/") -> Place:
        """Of this host: our procfs, /sys. Raises OSError."""
        top = Fd(posix.open(fsencode(root), _DIRECTORY))
        dev = Fd(posix.open(b"dev", _DIRECTORY, dir_fd=top.fileno()))
        return cls(top, dev, Fd(posix.dup(procfs.handle())), Fd(posix.open(b"/sys", _DIRECTORY)))

    def close(self) -> None:
        """Close all of them."""
        for fd in (self.root, self.dev, self.proc, self.sys):
            fd.close()

    def __enter__(self) -> Place:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def load_on_host(root: str = "/", imex_channels: Sequence[int] = (), seconds: float = SECONDS) -> bool:
    """`load` of this host, whose driver is below `root`."""
    try:
        place = Place.open(root)
    except OSError as e:
        log.info(hook_error("load kernel modules: open", e.filename or root, e).line())
        return False
    with place:
        return load(place, imex_channels, seconds)


def load(place: Place, imex_channels: Sequence[int] = (), seconds: float = SECONDS) -> bool:
    """Load nvidia, nvidia-uvm and nvidia-modeset, and make the nodes of each. imex_channels: those to be made.
    seconds: for all modules together. Returns whether anything was changed; raises nothing."""
    try:
        reason = _why_not(place)
        gpus = 0 if reason else _count_gpus(place.sys.fileno())
    except OSError as e:
        reason = hook_error("read", e.filename or "", e).line()
    if not reason and not gpus:
        reason = "no NVIDIA GPU on the PCI bus"
    if reason:
        log.info("kernel modules are not loaded", reason=reason)
        return False
    return _Loader(place, gpus, imex_channels, time.monotonic() + seconds).run()


# -- whether -----------------------------------------------------------------------------------------------------------


def _why_not(place: Place) -> str:
    """Why there is nothing to do for us; "" where there is."""
    if posix.geteuid() != 0:
        return "not root"
    proc = place.proc.fileno()
    maps = [_read(proc, b"self/" + name).split() for name in (b"uid_map", b"gid_map")]
    try:
        setgroups = _read(proc, b"self/setgroups")
    except FileNotFoundError:
        setgroups = b""  # before Linux 3.19
    if maps != [_IDENTITY, _IDENTITY] or setgroups.startswith(b"deny"):
        return "in a user namespace"
    try:
        posix.stat(b"dxg", dir_fd=place.dev.fileno())
    except FileNotFoundError:
        return ""
    return "the driver is that of Windows (WSL)"


def _count_gpus(sys: int) -> int:
    """Functions of NVIDIA's on the PCI bus that are display controllers."""
    try:
        top = posix.open(b"bus/pci/devices", posix.O_RDONLY | posix.O_DIRECTORY | posix.O_CLOEXEC, dir_fd=sys)
    except FileNotFoundError:
        return 0
    with Fd(top) as devices:
        names = [fsencode(name) for name in posix.listdir(top)]
        return len([name for name in names if _is_gpu(devices.fileno(), name)])


def _is_gpu(devices: int, name: bytes) -> bool:
    try:
        if _read(devices, name + b"/vendor").strip() != _VENDOR:
            return False
        return _read(devices, name + b"/class").startswith(_DISPLAY)
    except OSError:
        return False  # gone meanwhile


# -- what --------------------------------------------------------------------------------------------------------------


class _Loader:
    """One run. `changed`: whether it has loaded or made anything."""

    __slots__ = ("_deadline", "_drivers", "_gpus", "_imex", "_place", "_program", "_rules", "changed")

    def __init__(self, place: Place, gpus: int, imex: Sequence[int], deadline: float) -> None:
        self._place = place
        self._gpus = gpus
        self._imex = imex
        self._deadline = deadline
        self._program: bytes | None = None
        self._drivers = b""
        self._rules = Rules()
        self.changed = False

    def run(self) -> bool:
        """Module by module: each has what is its own, and none depends on the next."""
        steps: tuple[tuple[bytes, Callable[[], Iterator[Node]]], ...] = (
            (b"nvidia", self._of_nvidia),
            (_UVM, self._of_uvm),
            (b"nvidia-modeset", self._of_modeset),
        )
        for module, nodes in steps:
            try:
                self._load(module)
                self._look()
                for name, wanted, rules in nodes():
                    self._make(name, wanted, rules)
            except HookError as e:
                log.info(f"load kernel module {printable(module)}: {e.line()}")
            except OSError as e:
                log.info(hook_error(f"load kernel module {printable(module)}: read", e.filename or "", e).line())
        return self.changed

    def _load(self, module: bytes) -> None:
        if _is_loaded(self._place.sys.fileno(), module):
            return
        if self._program is None:
            self._program = modprobe.program(self._place.proc.fileno())
        if not self._program:
            raise HookError("not loaded, and loading modules is turned off", "see /proc/sys/kernel/modprobe")
        modprobe.load(self._place.root.fileno(), self._program, module, self._deadline)
        self.changed = True

    def _look(self) -> None:
        """The driver's tables, which are there when its module is."""
        proc = self._place.proc.fileno()
        self._drivers = _read(proc, b"devices")
        try:
            self._rules = Rules(_read(proc, _PARAMS))
        except FileNotFoundError:
            self._rules = Rules()

    def _make(self, name: bytes, wanted: Number, rules: Rules) -> None:
        try:
            if ensure(self._place.dev.fileno(), name, wanted, rules):
                self.changed = True
                log.info("device node made", path=b"/dev/" + name)
        except OSError as e:
            log.info(hook_error("make device node", b"/dev/" + name, e).line())
        except HookError as e:
            log.info(f"make device node /dev/{printable(name)}: {e.line()}")

    def _of_nvidia(self) -> Iterator[Node]:
        yield b"nvidiactl", ("c", _NVIDIA_MAJOR, _CONTROL), self._rules
        for minor in range(self._gpus):
            yield b"nvidia%d" % minor, ("c", _NVIDIA_MAJOR, minor), self._rules
        yield from self._of_mig()
        major = migcaps.major_of(self._drivers, _IMEX)
        for channel in self._imex:
            if major is None or not 0 <= channel <= _MAX_IMEX:
                log.info("the driver has no such IMEX channel", channel=channel)
                continue
            yield _IMEX + b"/channel%d" % channel, ("c", major, channel), self._rules

    def _of_uvm(self) -> Iterator[Node]:
        major = migcaps.major_of(self._drivers, _UVM)
        if major is None:
            raise HookError("it has no major number", "see /proc/devices")
        yield b"nvidia-uvm", ("c", major, 0), self._rules
        yield b"nvidia-uvm-tools", ("c", major, 1), self._rules

    def _of_modeset(self) -> Iterator[Node]:
        yield b"nvidia-modeset", ("c", _NVIDIA_MAJOR, _MODESET), self._rules

    def _of_mig(self) -> Iterator[Node]:
        """A node for each access file that there is."""
        major, proc = migcaps.major_of(self._drivers), self._place.proc.fileno()
        if major is None:
            return
        try:
            table = _read(proc, migcaps.MINORS, _MINORS_LIMIT)
        except FileNotFoundError:
            return
        gone = b"/"
        for path in self._access_files(table):
            if path.startswith(gone):
                continue  # in an instance that there is not: the table has nine lines for each
            try:
                text = _read(proc, path)
            except FileNotFoundError:
                gone = path.rpartition(b"/")[0] + b"/"
                continue
            minor = migcaps.minor_of(text)
            if minor is None:
                log.info("access file without DeviceFileMinor", path=b"/proc/" + path)
                continue
            yield migcaps.DRIVER + b"/nvidia-cap%d" % minor, ("c", major, minor), Rules(text)

    def _access_files(self, table: bytes) -> Iterator[bytes]:
        """Of the first GPUs. A line of another form ends it, since the table is then not the one that is known."""
        try:
            for path, _, _ in migcaps.entries(table, range(self._gpus)):
                yield path
        except HookError as e:
            log.info(e.line())


def _is_loaded(sys: int, module: bytes) -> bool:
    try:
        return bool(_read(sys, b"module/" + module.replace(b"-", b"_") + b"/initstate"))
    except OSError:
        return False


def _read(directory: int, path: bytes, limit: int = _LIMIT) -> bytes:
    try:
        with Fd(posix.open(path, posix.O_RDONLY | posix.O_NONBLOCK | posix.O_CLOEXEC, dir_fd=directory)) as fd:
            return read_at_most(fd.fileno(), limit)
    except NotADirectoryError as e:
        raise FileNotFoundError(ENOENT, "not there", path) from e
    except OSError as e:
        raise OSError(e.errno, e.strerror, path) from None
