"""MIG capabilities of the host: the access files of its procfs, and the device nodes that they name.

What may be done with an instance of a GPU (MIG), or with MIG itself, is a capability of the driver's. Whoever can open
its access file below /proc/driver/nvidia/capabilities has it; since driver 450, whoever can open the node
/dev/nvidia-caps/nvidia-capN, and the file says which that is.

All of this is read on the host, before a container is entered, from our own procfs. A file is looked up once: what is
read, and what is made ready to be mounted, is the same handle. A node must have the number that the file gives.
"""

from __future__ import annotations

import posix
from _stat import S_ISREG

from nvoci.errors import HookError, hook_error, printable
from nvoci.hook.devices import Source
from nvoci.linux import abi, devnode, mount, procfs
from nvoci.linux.devicerule import DeviceRule
from nvoci.linux.fd import Fd, read_at_most
from nvoci.linux.lookup import lookup
from nvoci.linux.rootfs import fsencode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

# Below /proc.
CAPABILITIES = b"driver/nvidia/capabilities"
MINORS = b"driver/nvidia-caps/mig-minors"
GPUS = b"driver/nvidia/gpus"
# Below the root that has the device nodes.
DEVICES = b"dev/nvidia-caps"
CONFIG, MONITOR = "config", "monitor"

_DRIVER = b"nvidia-caps"  # of /proc/devices: a driver from 450 on
_MINOR = b"DeviceFileMinor"
_MAX_DIGITS = 7  # a minor number has 20 bits
_FILE_MAX = 1 << 16
_MINORS_MAX = 4 << 20
_NODES = abi.MS_NOSUID | abi.MS_NOEXEC  # a container that manages MIG makes the nodes of new instances
_NOT_LOADED = "load the driver; one that knows MIG is 450 or newer"
_GONE = "was the instance destroyed? list them: nvidia-smi mig -lci"
_UPDATE = "update the driver, or reload its kernel module"
_MAKE = "make it: nvidia-modprobe"


def access_path(gpu_minor: int, gpu_instance: int, compute_instance: int | None = None) -> bytes:
    """The access file of a GPU instance, or of a compute instance in it, below /proc."""
    path = CAPABILITIES + b"/gpu%d/mig/gi%d" % (gpu_minor, gpu_instance)
    return path + (b"/access" if compute_instance is None else b"/ci%d/access" % compute_instance)


def number(text: bytes) -> int | None:
    """A decimal number as the kernel writes one; None for any other text."""
    if not text.isdigit() or len(text) > _MAX_DIGITS or (text[:1] == b"0" and text != b"0"):
        return None
    return int(text)


class Capability:
    """One access file, ready to be mounted on /proc/`path`, and the node that it names; None where nodes have no part
    in it."""

    __slots__ = ("file", "mode", "node", "path")

    def __init__(self, path: bytes, file: mount.Source, mode: int, node: Source | None) -> None:
        self.path = path
        self.file = file
        self.mode = mode
        self.node = node


class Management:
    """What it takes to configure or to watch MIG: every access file, every node, ready to be mounted, and the rules
    for the nodes that there are, or will be."""

    __slots__ = ("files", "nodes", "rules")

    def __init__(self, files: mount.Source, nodes: mount.Source | None, rules: list[DeviceRule]) -> None:
        self.files = files
        self.nodes = nodes
        self.rules = rules


class Host:
    """The host's capabilities. major: of their nodes; None where the driver has no such nodes (before 450). Every
    method raises HookError."""

    __slots__ = ("_root", "major")

    def __init__(self, root: str = "/") -> None:
        """root: the directory that has `dev`."""
        try:
            self.major = _major(procfs.read(b"devices"))
            self._root = Fd(posix.open(fsencode(root), posix.O_PATH | posix.O_DIRECTORY | posix.O_CLOEXEC))
        except OSError as e:
            raise hook_error("open", e.filename or root, e) from None

    def close(self) -> None:
        """Close the root; what was made ready stays so."""
        self._root.close()

    def __enter__(self) -> Host:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def capability(self, path: bytes) -> Capability:
        """The one of the access file `path` below /proc."""
        with _open(path) as file:
            st = file.stat()
            node = self._node(path, _contents(file, path)) if self.major is not None else None
            return Capability(path, _ready(file, path, mount.READ_ONLY_DATA), st.st_mode & 0o777, node)

    def _node(self, path: bytes, text: bytes) -> Source:
        minor = _field(text, _MINOR)
        if minor is None:
            raise HookError(f"read MIG capability {_shown(path)}: no {_MINOR.decode()}", _UPDATE)
        node = DEVICES + b"/nvidia-cap%d" % minor
        try:
            return Source.open(self._root.fileno(), node, self._number(minor))
        except OSError as e:
            raise hook_error("use device", node, e) from None

    def _number(self, minor: int) -> devnode.Number:
        return "c", self.major or 0, minor

    def management(self, kinds: Sequence[str], gpus: Sequence[int] | None = None) -> Management:
        """kinds: CONFIG, MONITOR. gpus: the minor numbers of those whose instances are managed; None: all."""
        with _open(CAPABILITIES, posix.O_DIRECTORY) as files:
            tree = _ready(files, CAPABILITIES, mount.READ_ONLY_DATA)
        rules = [self._rule_of(kind) for kind in kinds if self.major is not None]
        if self.major is None:
            return Management(tree, None, [])
        try:
            with Fd(lookup(self._root.fileno(), DEVICES, posix.O_DIRECTORY)) as directory:
                nodes = mount.clone(directory.fileno(), _NODES)
        except OSError as e:
            raise hook_error("use devices", b"/" + DEVICES, e, _MAKE) from None
        wanted = present_gpus() if gpus is None else gpus
        # Of nodes that may not be there yet: their numbers are those of the driver's table.
        rules += [DeviceRule(*self._number(minor)) for minor in _instance_minors(wanted)]
        return Management(tree, nodes, list(dict.fromkeys(rules)))

    def _rule_of(self, kind: str) -> DeviceRule:
        node = self.capability(CAPABILITIES + b"/mig/" + kind.encode()).node
        assert node is not None
        return node.rule()


def present_gpus() -> list[int]:
    """The minor numbers of the GPUs that the driver has. Raises HookError."""
    flags = posix.O_RDONLY | posix.O_DIRECTORY
    try:
        with _open(GPUS, posix.O_DIRECTORY) as handle, Fd(procfs.reopen(handle.fileno(), flags)) as directory:
            names = posix.listdir(directory.fileno())
    except OSError as e:
        raise hook_error("list GPUs", _shown(GPUS), e, _UPDATE) from None
    found = []
    for name in names:
        path = GPUS + b"/" + fsencode(name) + b"/information"
        with _open(path) as file:
            found.append(_field(_contents(file, path), b"Device Minor"))
    return sorted(minor for minor in found if minor is not None)


def _instance_minors(gpus: Sequence[int]) -> list[int]:
    """Of every instance that these GPUs may ever have: lines `gpu0/gi1/ci0/access 13`."""
    tops = tuple([b"gpu%d/" % gpu for gpu in gpus])
    with _open(MINORS) as file:
        text = _contents(file, MINORS, _MINORS_MAX)
    found = []
    for line in text.split(b"\n"):
        if line.startswith(tops):
            minor = number(line.rpartition(b" ")[2])
            if minor is None:
                raise HookError(f"read {_shown(MINORS)}: line `{printable(line[:80])}`", _UPDATE)
            found.append(minor)
    return found


# -- files of procfs --------------------------------------------------------------------------------------------------


def _open(path: bytes, directory: int = 0) -> Fd:
    """A handle of a regular file below /proc, or, with O_DIRECTORY, of a directory."""
    try:
        fd = Fd(lookup(procfs.handle(), path, posix.O_NOFOLLOW | directory))
    except OSError as e:
        raise hook_error("use MIG capability", _shown(path), e, _reason(path)) from None
    if not directory and not S_ISREG(fd.stat().st_mode):
        fd.close()
        raise HookError(f"use MIG capability {_shown(path)}: is not a regular file", _UPDATE)
    return fd


def _reason(path: bytes) -> str:
    """Why a file may be missing."""
    try:
        posix.stat(CAPABILITIES, dir_fd=procfs.handle())
    except OSError:
        return _NOT_LOADED
    return _GONE if path.endswith(b"/access") else _UPDATE


def _contents(file: Fd, path: bytes, limit: int = _FILE_MAX) -> bytes:
    try:
        with Fd(procfs.reopen(file.fileno(), posix.O_RDONLY | posix.O_NONBLOCK)) as fd:
            return read_at_most(fd.fileno(), limit)
    except OSError as e:
        raise hook_error("read", _shown(path), e) from None


def _ready(file: Fd, path: bytes, flags: int) -> mount.Source:
    try:
        return mount.clone(file.fileno(), flags)
    except OSError as e:
        raise hook_error("mount", _shown(path), e) from None


def _shown(path: bytes) -> str:
    return "/proc/" + printable(path)


def _field(text: bytes, key: bytes) -> int | None:
    """The number in a line `KEY: NUMBER`."""
    for line in text.split(b"\n"):
        name, _, value = line.partition(b":")
        if name.strip() == key:
            return number(value.strip())
    return None


def _major(table: bytes) -> int | None:
    """Of the capabilities' nodes, by /proc/devices; None where the driver has none."""
    for line in table.partition(b"Block devices:")[0].split(b"\n"):
        words = line.split()
        if len(words) == 2 and words[1] == _DRIVER:
            return number(words[0])
    return None
