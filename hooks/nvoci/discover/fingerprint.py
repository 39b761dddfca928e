"""What an inventory holds for: the node at one moment, as short texts that are compared.

Performance contract: taken at every container start. On a node with 8 GPUs some thirty small procfs files and
directories are read, about 10 us each; a node full of MIG devices has one directory more for each GPU instance.

What changes while nothing happens is left out. Of gpus/*/information (kernel-open/nvidia/nv-procfs.c) the interrupt,
the versions of the video BIOS and of the firmware come and go with the first and last user of the GPU, unless it is in
persistence mode. So does the UUID, which is then missing or full of question marks: that stands for any UUID.
"""

from __future__ import annotations

import posix
from _stat import S_IFMT, S_ISBLK, S_ISCHR, S_ISDIR
from errno import ENOENT, ENOTDIR

from nvoci import __version__
from nvoci.discover.record import REQUIRED, Record, links, texts
from nvoci.errors import errno_name, hook_error, printable
from nvoci.linux import procfs
from nvoci.linux.fd import Fd, read_at_most
from nvoci.linux.lookup import lookup
from nvoci.linux.rootfs import fsencode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

ABSENT = "absent"
_STAGE = "look at the node: read"
_ABSENT_ERRNOS = (ENOENT, ENOTDIR)
_MAX_NAMES = 1024
_MAX_FILE = 1 << 20
_MINOR = "Device Minor:"
_GPU_LINES = ("Model", "GPU UUID", "Bus Location", "Device Minor", "GPU Excluded")
# Drivers whose numbers an inventory depends on, by the beginning of their name in /proc/devices.
_MAJORS = ("nvidia", "gdrdrv", "drm", "infiniband")
_DIRECTORY = posix.O_RDONLY | posix.O_DIRECTORY | posix.O_NONBLOCK | posix.O_CLOEXEC


class Sources:
    """Where to look. root: the driver root; dev_root: the directory that has `dev`; configuration: any text that stands
    for the configuration in force; watch: host paths of which it matters whether they are there (a directory also
    when its entries come and go), such as sockets; proc: the procfs, of which only tests name another."""

    __slots__ = ("configuration", "dev_root", "ldcache", "proc", "root", "watch")

    def __init__(
        self,
        root: str = "/",
        dev_root: str = "",
        *,
        configuration: str = "",
        watch: Iterable[str] = (),
        ldcache: str = "/etc/ld.so.cache",
        proc: str = "/proc",
    ) -> None:
        self.root = root
        self.dev_root = dev_root or root
        self.configuration = configuration
        self.watch = tuple(watch)
        self.ldcache = ldcache
        self.proc = proc


class Fingerprint(Record):
    """module: first line of /proc/driver/nvidia/version. gpus: (bus id, what matters of its information). majors:
    `195 nvidia`. root, dev_root, ldcache: identities. watched: (path, state), also of each GPU's device node. program:
    version of nvoci."""

    SCHEMA = {
        "boot_id": (str, REQUIRED),
        "module": (str, REQUIRED),
        "gpus": (links, REQUIRED),
        "capabilities": (texts, REQUIRED),
        "majors": (texts, REQUIRED),
        "root": (str, REQUIRED),
        "dev_root": (str, REQUIRED),
        "ldcache": (str, REQUIRED),
        "watched": (links, REQUIRED),
        "configuration": (str, REQUIRED),
        "program": (str, REQUIRED),
    }
    __slots__ = tuple(SCHEMA)
    boot_id: str
    module: str
    gpus: tuple[tuple[str, str], ...]
    capabilities: tuple[str, ...]
    majors: tuple[str, ...]
    root: str
    dev_root: str
    ldcache: str
    watched: tuple[tuple[str, str], ...]
    configuration: str
    program: str


_WORDS = {
    "boot_id": "the boot id",
    "module": "the driver's module",
    "capabilities": "the tree of MIG capabilities",
    "majors": "a device number in /proc/devices",
    "root": "the driver root",
    "dev_root": "the dev root",
    "ldcache": "ld.so.cache",
    "configuration": "the configuration",
    "program": "the version of nvoci",
}


def take(sources: Sources) -> Fingerprint:
    """The node as it is. What is not there is told as absent; raises HookError for what cannot be read."""
    with _Proc(sources.proc) as proc:
        gpus = _gpus(proc)
        watch = (*sources.watch, *_device_nodes(sources.dev_root, gpus))
        return Fingerprint(
            boot_id=proc.text("sys/kernel/random/boot_id").strip(),
            module=proc.text("driver/nvidia/version").partition("\n")[0],
            gpus=gpus,
            capabilities=_capabilities(proc),
            majors=_majors(proc.text("devices")),
            root=f"{sources.root} {_directory(sources.root)}",
            dev_root=f"{sources.dev_root} {_directory(sources.dev_root)}",
            ldcache=_ldcache(sources),
            watched=tuple([(p, _state(p)) for p in watch]),
            configuration=sources.configuration,
            program=__version__,
        )


def difference(then: Fingerprint, now: Fingerprint) -> str:
    """In a few words the first thing that is not as it was; "" where everything that matters is."""
    if not now.boot_id:
        return "there is no boot id"
    for field, words in _WORDS.items():
        if getattr(then, field) != getattr(now, field):
            return f"{words} is another than when it was made"
    if [name for name, _ in then.gpus] != [name for name, _ in now.gpus]:
        return "GPUs came or went"
    for (name, was), (_, is_now) in zip(then.gpus, now.gpus):
        if not _same_gpu(was, is_now):
            return f"GPU {printable(name)} is another than when it was made"
    # The last: a GPU that comes or goes brings its device node along.
    return "" if then.watched == now.watched else "a watched path is another than when it was made"


def module_version(line: str) -> str:
    """`550.163.01` of the first line of /proc/driver/nvidia/version, open and closed modules alike; "" without one."""
    for word in line.split():
        parts = word.split(".")
        if len(parts) in (2, 3) and all(part.isascii() and part.isdigit() for part in parts):
            return word
    return ""


# -- procfs -----------------------------------------------------------------------------------------------------------


class _Proc:
    """The procfs by handle: our own, or the directory that a test has made."""

    __slots__ = ("fd", "name", "own")

    def __init__(self, name: str) -> None:
        self.name = name
        self.own = name != "/proc"
        try:
            self.fd = _open_directory(name) if self.own else procfs.handle()
        except OSError as e:
            raise hook_error(_STAGE, name, e) from None

    def __enter__(self) -> _Proc:
        return self

    def __exit__(self, *exc: object) -> None:
        if self.own:
            posix.close(self.fd)

    def text(self, path: str) -> str:
        """A file's content; "" where it is not there. Raises HookError."""
        try:
            return self.read(path)
        except OSError as e:
            raise hook_error(_STAGE, f"{self.name}/{path}", e) from None

    def read(self, path: str) -> str:
        """`text` that raises OSError."""
        try:
            with Fd(posix.open(path, posix.O_RDONLY | posix.O_NONBLOCK | posix.O_CLOEXEC, dir_fd=self.fd)) as fd:
                return read_at_most(fd.fileno(), _MAX_FILE).decode("utf-8", "backslashreplace")
        except OSError as e:
            if e.errno in _ABSENT_ERRNOS:
                return ""
            raise

    def names(self, path: str, prefix: str = "") -> list[str]:
        """The sorted names in a directory that begin with `prefix`; none where it is not there."""
        return self.listing(path, prefix) or []

    def listing(self, path: str, prefix: str) -> list[str] | None:
        """`names`; None where the directory is not there."""
        try:
            with Fd(posix.open(path, _DIRECTORY, dir_fd=self.fd)) as fd:
                return sorted([n for n in posix.listdir(fd.fileno()) if n.startswith(prefix)])[:_MAX_NAMES]
        except OSError as e:
            if e.errno in _ABSENT_ERRNOS:
                return None
            raise hook_error(_STAGE, f"{self.name}/{path}", e) from None


def _gpus(proc: _Proc) -> tuple[tuple[str, str], ...]:
    """A GPU that cannot be read is told as such: the others are of use without it."""
    found = []
    for name in proc.names("driver/nvidia/gpus"):
        try:
            lines = proc.read(f"driver/nvidia/gpus/{name}/information").split("\n")
        except OSError as e:
            found.append((name, f"unreadable: {errno_name(e.errno or 0)}"))
            continue
        found.append((name, "\n".join([" ".join(line.split()) for line in lines if line.startswith(_GPU_LINES)])))
    return tuple(found)


def _device_nodes(dev_root: str, gpus: tuple[tuple[str, str], ...]) -> list[str]:
    """Where the GPUs' nodes are, or should be: they may be made, by udev or by hand, long after the driver is there."""
    top, found = dev_root.rstrip("/"), []
    for _, text in gpus:
        for line in text.split("\n"):
            minor = line[len(_MINOR) :].strip()
            if line.startswith(_MINOR) and minor.isascii() and minor.isdigit():
                found.append(f"{top}/dev/nvidia{minor}")
    return found


def _same_gpu(was: str, is_now: str) -> bool:
    if was == is_now:
        return True
    one, two = _split_uuid(was), _split_uuid(is_now)
    unknown = "?" in one[0] or "?" in two[0] or not one[0] or not two[0]
    return unknown and one[1] == two[1]


def _split_uuid(text: str) -> tuple[str, list[str]]:
    lines = text.split("\n")
    uuid = [line for line in lines if line.startswith("GPU UUID:")]
    return "".join(uuid)[9:].strip(), [line for line in lines if line not in uuid]


def _capabilities(proc: _Proc) -> tuple[str, ...]:
    """`gpu0`, `gpu0/mig` (also without an instance: the GPU is in MIG mode), and `gpu0/gi1`, `gpu0/gi1/ci0`, … of GPU
    instances and their compute instances."""
    top, found = "driver/nvidia/capabilities", []
    for gpu in proc.names(top, "gpu"):
        found.append(gpu)
        instances = proc.listing(f"{top}/{gpu}/mig", "gi")
        if instances is None:
            continue
        found.append(f"{gpu}/mig")
        for instance in instances:
            found.append(f"{gpu}/{instance}")
            found += [f"{gpu}/{instance}/{c}" for c in proc.names(f"{top}/{gpu}/mig/{instance}", "ci")]
    return tuple(found)


def _majors(devices: str) -> tuple[str, ...]:
    """Of the character devices; both parts of /proc/devices have a heading."""
    found = []
    for line in devices.partition("Block devices:")[0].split("\n"):
        words = line.split()
        if len(words) == 2 and words[1].startswith(_MAJORS):
            found.append(f"{words[0]} {words[1]}")
    return tuple(sorted(found))


# -- files ------------------------------------------------------------------------------------------------------------


def _open_directory(path: str) -> int:
    return posix.open(path, posix.O_PATH | posix.O_DIRECTORY | posix.O_CLOEXEC)


def _stat(path: str) -> posix.stat_result | None:
    """None where there is nothing."""
    try:
        return posix.stat(path)
    except OSError as e:
        if e.errno in _ABSENT_ERRNOS:
            return None
        raise hook_error(_STAGE, path, e) from None


def _directory(path: str) -> str:
    st = _stat(path)
    return ABSENT if st is None else f"{st.st_dev}:{st.st_ino}"


def _ldcache(sources: Sources) -> str:
    """Identity of the cache, its path resolved inside the driver root."""
    try:
        with Fd(_open_directory(sources.root)) as root, Fd(lookup(root.fileno(), fsencode(sources.ldcache))) as fd:
            st = fd.stat()
    except OSError as e:
        if e.errno in _ABSENT_ERRNOS:
            return ABSENT
        raise hook_error(_STAGE, f"{sources.ldcache} in {sources.root}", e) from None
    return f"{st.st_dev}:{st.st_ino}:{st.st_size}:{st.st_mtime_ns}:{st.st_ctime_ns}"


def _state(path: str) -> str:
    """Type; of a device the number, of a directory when its entries changed."""
    st = _stat(path)
    if st is None:
        return ABSENT
    more = f" {st.st_mtime_ns}" if S_ISDIR(st.st_mode) else ""
    if S_ISCHR(st.st_mode) or S_ISBLK(st.st_mode):
        more = f" {posix.major(st.st_rdev)}:{posix.minor(st.st_rdev)}"
    return f"{S_IFMT(st.st_mode):o}{more}"
