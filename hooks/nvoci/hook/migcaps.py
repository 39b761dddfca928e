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
    from collections.abc import Iterable, Iterator, Sequence

# Below /proc.
CAPABILITIES = b"driver/nvidia/capabilities"
MINORS = b"driver/nvidia-caps/mig-minors"
GPUS = b"driver/nvidia/gpus"
# Below the root that has the device nodes.
DEVICES = b"dev/nvidia-caps"
CONFIG, MONITOR = "config", "monitor"
DRIVER = b"nvidia-caps"  # of /proc/devices: a driver from 450 on

_ALONE = (CONFIG.encode(), MONITOR.encode())
_MINOR = b"DeviceFileMinor"
_MAX_DIGITS = 7  # a minor number has 20 bits
_FILE_MAX = 1 << 16
_MINORS_MAX = 4 << 20
_NODES = abi.MS_NOSUID | abi.MS_NOEXEC  # a container that manages MIG makes the nodes of new instances
_NOT_LOADED = "load the driver; one that knows MIG is 450 or newer"
_GONE = "was the instance destroyed? list them: nvidia-smi mig -lci"
_UPDATE = "update the driver, or reload its kernel module"
_MAKE = "make it: nvidia-modprobe"
_MAKE_NODE = "make it: nvidia-modprobe -f /proc/{}"


def access_path(gpu_minor: int, gpu_instance: int, compute_instance: int | None = None) -> bytes:
    """The access file of a GPU instance, or of a compute instance in it, below /proc."""
    path = CAPABILITIES + b"/gpu%d/mig/gi%d" % (gpu_minor, gpu_instance)
    return path + (b"/access" if compute_instance is None else b"/ci%d/access" % compute_instance)


def access_paths(gpu_minor: int | None, gpu_instance: int, compute_instance: int) -> list[bytes]:
    """What an application needs that uses a MIG device: of its GPU instance, then of its compute instance. Raises
    HookError where the GPU's minor number is not known."""
    if gpu_minor is None:
        raise HookError("use MIG device: its GPU has no minor number", "NVML does not tell it: update the driver")
    return [access_path(gpu_minor, gpu_instance), access_path(gpu_minor, gpu_instance, compute_instance)]


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
            self.major = _own_major()
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
            number = self._named(path, file)
            node = None if number is None else self._node(path, number)
            return Capability(path, _ready(file, path, mount.READ_ONLY_DATA), st.st_mode & 0o777, node)

    def check(self, path: bytes) -> devnode.Number | None:
        """The number of the node that the access file names, which must be there; None where nodes have no part in
        it."""
        with _open(path) as file:
            number = self._named(path, file)
        if number is not None:
            self._open_node(path, number).close()
        return number

    def _named(self, path: bytes, file: Fd) -> devnode.Number | None:
        if self.major is None:
            return None
        minor = minor_of(_contents(file, path))
        if minor is None:
            raise HookError(f"read MIG capability {_shown(path)}: no {_MINOR.decode()}", _UPDATE)
        return "c", self.major, minor

    def _node(self, path: bytes, number: devnode.Number) -> Source:
        try:
            return Source(self._open_node(path, number))
        except OSError as e:
            raise hook_error("use device", _node_path(number), e) from None

    def _open_node(self, path: bytes, number: devnode.Number) -> devnode.HostNode:
        hint = _MAKE_NODE.format(printable(path))
        return devnode.HostNode.open(self._root.fileno(), _node_path(number), number, hint)

    def management(self, kinds: Sequence[str], gpus: Sequence[int] | None = None) -> Management:
        """kinds: CONFIG, MONITOR. gpus: the minor numbers of those whose instances are managed; None: all."""
        with _open(CAPABILITIES, posix.O_DIRECTORY) as files:
            tree = _ready(files, CAPABILITIES, mount.READ_ONLY_DATA)
        if self.major is None:
            return Management(tree, None, [])
        rules = self.rules(kinds, present_gpus() if gpus is None else gpus)
        try:
            with Fd(lookup(self._root.fileno(), DEVICES, posix.O_DIRECTORY)) as directory:
                nodes = mount.clone(directory.fileno(), _NODES)
        except OSError as e:
            raise hook_error("use devices", b"/" + DEVICES, e, _MAKE) from None
        return Management(tree, nodes, rules)

    def rules(self, kinds: Sequence[str], gpus: Sequence[int]) -> list[DeviceRule]:
        """For the nodes of CONFIG and MONITOR, which must be there, and for those of all instances that these GPUs may
        ever have: they may not be there yet, but the driver's table has their numbers. None where nodes have no part
        in it."""
        if self.major is None:
            return []
        found = []
        for kind in kinds:
            number = self.check(CAPABILITIES + b"/mig/" + kind.encode())
            if number is not None:
                found.append(DeviceRule(*number))
        found += [DeviceRule("c", self.major, minor) for minor in instance_minors(gpus)]
        return list(dict.fromkeys(found))


def has_nodes() -> bool:
    """Whether the driver has nodes for capabilities. Raises HookError."""
    try:
        return _own_major() is not None
    except OSError as e:
        raise hook_error("read", "/proc/devices", e) from None


def _own_major() -> int | None:
    return major_of(procfs.read(b"devices"))


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


# -- tables -----------------------------------------------------------------------------------------------------------


def instance_minors(gpus: Iterable[int]) -> list[int]:
    """Of every instance that these GPUs, named by their minor numbers, may ever have. Raises HookError."""
    with _open(MINORS) as file:
        text = _contents(file, MINORS, _MINORS_MAX)
    return [minor for _, gpu, minor in entries(text, gpus) if gpu is not None]


def entries(table: bytes, gpus: Iterable[int]) -> Iterator[tuple[bytes, int | None, int]]:
    """(access file below /proc, minor of the GPU, minor of the node) of each line of MINORS that is of one of these
    GPUs, as `gpu0/gi1/ci0/access 13`, or of none, as `config 1`. A driver may have capabilities that we do not know: a
    line is passed over if its name does not begin as that of a GPU. So are those of other GPUs: a table of 32 has 4322
    lines. Raises HookError at any other line."""
    tops = {b"gpu%d" % gpu: gpu for gpu in gpus}
    others = set()
    for line in table.split(b"\n"):
        top, _, rest = line.partition(b"/")
        if not line or top in others:
            continue
        if rest and top not in tops and _suffix(top, b"gpu") is not None:
            others.add(top)
            continue
        name, _, text = line.rpartition(b" ")
        top, _, below = name.partition(b"/")
        minor = number(text)
        if minor is not None and not top.startswith(b"gpu"):
            if name in _ALONE:
                yield CAPABILITIES + b"/mig/" + name, None, minor
        elif minor is not None and top in tops and _is_instance(below):
            yield CAPABILITIES + b"/" + top + b"/mig/" + below, tops[top], minor
        else:
            raise HookError(f"read {_shown(MINORS)}: line `{printable(line[:80])}`", _UPDATE)


def _is_instance(text: bytes) -> bool:
    """`gi1/access`, `gi1/ci0/access`"""
    *parts, last = text.split(b"/")
    keys = (b"gi", b"ci")[: len(parts)]
    return last == b"access" and len(keys) == len(parts) > 0 and None not in map(_suffix, parts, keys)


def _suffix(part: bytes, key: bytes) -> int | None:
    return number(part[len(key) :]) if part.startswith(key) else None


def minor_of(text: bytes) -> int | None:
    """DeviceFileMinor of an access file."""
    return _field(text, _MINOR)


def major_of(table: bytes, driver: bytes = DRIVER) -> int | None:
    """Of a driver of character devices, by /proc/devices; None where that has no such driver."""
    for line in table.partition(b"Block devices:")[0].split(b"\n"):
        words = line.split()
        if len(words) == 2 and words[1] == driver:
            return number(words[0])
    return None


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


def _node_path(number: devnode.Number) -> bytes:
    return b"/%b/nvidia-cap%d" % (DEVICES, number[2])


def _shown(path: bytes) -> str:
    return "/proc/" + printable(path)


def _field(text: bytes, key: bytes) -> int | None:
    """The number in a line `KEY: NUMBER`."""
    for line in text.split(b"\n"):
        name, _, value = line.partition(b":")
        if name.strip() == key:
            return number(value.strip())
    return None
