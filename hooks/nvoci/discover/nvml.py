"""Ask the driver's NVML what GPUs there are. The one place where NVML's errors become ours.

The library runs in a process of its own (`nvoci.discover._nvml_child`): unprivileged, without new privileges, with
nothing of ours to print to, killed at a deadline. It may hang, crash, print or lie: that is one error line. A GPU that
answers with an error is a `Problem` and left out, unless the caller wants that one by name.

NVML finds the kernel's driver by itself, at /dev/nvidia* and /proc/driver/nvidia; a driver root other than / changes
where the library is taken from, and nothing else. As an unprivileged user it neither loads kernel modules nor makes
device nodes, which it does for root.
"""

from __future__ import annotations

import posix
from _stat import S_ISCHR
from errno import ENOENT, ENOTDIR

from nvoci import log
from nvoci.discover import _answers
from nvoci.discover._nvml_child import MAX_GPUS
from nvoci.discover._nvml_process import Process
from nvoci.discover.model import Gpu, Problem
from nvoci.discover.record import REQUIRED, Record, natural, optional, record, tuple_of
from nvoci.errors import HookError, hook_error, printable
from nvoci.linux import procfs
from nvoci.linux.fd import Fd
from nvoci.linux.rootfs import Rootfs, fsencode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from nvoci.discover._answers import Answers, Lost
    from nvoci.discover._nvml_process import Outcome

NOBODY = 65534
SECONDS = 10.0
SONAME = "libnvidia-ml.so.1"
_ABSENT = (ENOENT, ENOTDIR)
_BROKEN = "is it whole, and the driver's own, for this machine?"
_HINTS = {
    "NVML_ERROR_DRIVER_NOT_LOADED": "load the kernel module: modprobe nvidia; if it refuses, see the kernel's log",
    "NVML_ERROR_LIB_RM_VERSION_MISMATCH": "the kernel module in use is of another version than this library: reboot, "
    "or unload and load it",
    "NVML_ERROR_GPU_IS_LOST": "it fell off the bus: see the kernel's log for Xid, then reset it or reboot",
    "NVML_ERROR_RESET_REQUIRED": "reset it: nvidia-smi --gpu-reset",
    "NVML_ERROR_NO_PERMISSION": f"uid {NOBODY} must be able to open /dev/nvidiactl and /dev/nvidia*: check their modes",
    "NVML_ERROR_MEMORY": "out of memory",
    "EPERM": "root needs CAP_SETUID and CAP_SETGID for that: run with them, or as another user",
}
_MACHINE = posix.uname().machine
DIRECTORIES = (
    "/usr/lib64",
    f"/usr/lib/{_MACHINE}-linux-gnu",
    f"/usr/lib/{_MACHINE}-linux-gnu/nvidia/current",
    "/lib64",
    f"/lib/{_MACHINE}-linux-gnu",
    f"/lib/{_MACHINE}-linux-gnu/nvidia/current",
)


class NvmlLibrary:
    """A file that is open, and where the kernel says it lies on the host. Close it, or leave its `with`."""

    __slots__ = ("fd", "path")

    def __init__(self, fd: Fd, path: str) -> None:
        self.fd = fd
        self.path = path

    def __enter__(self) -> NvmlLibrary:
        return self

    def __exit__(self, *exc: object) -> None:
        self.fd.close()


class NvmlAnswer(Record):
    """count: of GPUs, with those that do not answer. problems: one for each GPU or MIG device left out."""

    SCHEMA = {
        "driver_version": (str, REQUIRED),
        "nvml_version": (str, ""),
        "cuda_version": (optional(tuple_of(natural, 2)), None),
        "count": (natural, 0),
        "gpus": (tuple_of(record(Gpu)), ()),
        "problems": (tuple_of(record(Problem)), ()),
    }
    __slots__ = tuple(SCHEMA)
    driver_version: str
    nvml_version: str
    cuda_version: tuple[int, int] | None
    count: int
    gpus: tuple[Gpu, ...]
    problems: tuple[Problem, ...]


# -- the library ------------------------------------------------------------------------------------------------------


def open_library(path: str, root: str = "/") -> NvmlLibrary:
    """The library at `path` of a driver root, links followed inside of it. Raises HookError."""
    try:
        return _open(path, root)
    except OSError as e:
        hint = "is the driver installed below this driver root?" if e.errno in _ABSENT else ""
        raise hook_error("open NVML", f"{path} in {root}", e, hint) from None


def find_library(root: str = "/", directories: Sequence[str] = DIRECTORIES) -> NvmlLibrary:
    """The library in the first of the directories that has it. Raises HookError."""
    for directory in directories:
        path = f"{directory}/{SONAME}"
        try:
            return _open(path, root)
        except OSError as e:
            if e.errno not in _ABSENT:
                raise hook_error("open NVML", f"{path} in {root}", e) from None
    raise HookError(f"find NVML: no {SONAME} in {printable(root)}",
                    "install the NVIDIA driver, or name its root; looked in " + ", ".join(directories))  # fmt: skip


def _open(path: str, root: str) -> NvmlLibrary:
    # The driver root is the host's own, and may be a link; what lies below it is resolved inside of it.
    with Fd(posix.open(root, posix.O_PATH | posix.O_DIRECTORY | posix.O_CLOEXEC)) as top:
        fd = Rootfs(top, root).open_file(fsencode(path))
    return NvmlLibrary(fd, procfs.name_of(fd.fileno()).decode("utf-8", "surrogateescape"))


# -- asking -----------------------------------------------------------------------------------------------------------


def query(
    library: NvmlLibrary | str,
    *,
    seconds: float = SECONDS,
    wanted: Iterable[str] = (),
    user: tuple[int, int] | None = None,
) -> NvmlAnswer:
    """Everything NVML tells. Raises HookError where it tells nothing, or a GPU of `wanted` does not answer.

    library: open, or a path of the host. wanted: indices, UUIDs, PCI addresses, `G:M`; a name that nobody has is no
    error here. user: uid and gid to run as instead of 65534 and the groups that the device nodes ask for.
    """
    with Question(library, seconds=seconds, user=user) as question:
        return question.answer(wanted)


class Question:
    """`query` in two steps, for who has other work meanwhile: asked when made, and given up by leaving its `with`."""

    __slots__ = ("_path", "_process", "_seconds")

    def __init__(
        self, library: NvmlLibrary | str, *, seconds: float = SECONDS, user: tuple[int, int] | None = None
    ) -> None:
        """Raises HookError."""
        self._seconds = seconds
        who, groups = (user, ()) if user else _user()
        with open_library(library) if isinstance(library, str) else _Borrowed(library) as opened:
            self._path = opened.path
            self._process = Process(opened.fd, opened.path, seconds, who, groups)

    def __enter__(self) -> Question:
        return self

    def __exit__(self, *exc: object) -> None:
        self._process.close()

    def answer(self, wanted: Iterable[str] = ()) -> NvmlAnswer:
        """As `query`."""
        outcome = self._process.outcome()
        log.debug("NVML asked", library=self._path, last=outcome.last, ended=outcome.how, printed=outcome.output)
        about = f"ask NVML {printable(self._path)}"
        answers = _believed(about, outcome)
        if answers.complete and answers.system and not answers.failed:
            return _judge(about, answers, wanted)  # whatever became of the process after that
        if outcome.timed_out:
            hint = "the driver hangs: see the kernel's log for NVRM and Xid, reset the GPU or reboot"
            if outcome.stuck:
                hint += "; the process cannot be killed: it waits in the kernel, or CAP_KILL is missing"
            raise HookError(f"{about}: {outcome.last}: no answer within {self._seconds:g} s", hint)
        if answers.failed:
            raise HookError("{}: {}: {}".format(about, *answers.failed), _hint(answers.failed[1]))
        printed = f"; it printed: {outcome.output[-300:]}" if outcome.output else ""
        how = outcome.how or "ended early"
        raise HookError(f"{about}: {outcome.last}: {how}", f"is it whole, and the driver's own?{printed}")


def _believed(about: str, outcome: Outcome) -> Answers:
    try:
        return _answers.read(outcome.lines)
    except ValueError as e:
        raise HookError(f"{about}: it answers with {printable(e)}", "is this the driver's own library?") from None


class _Borrowed:
    """Somebody else's library: left open."""

    __slots__ = ("_library",)

    def __init__(self, library: NvmlLibrary) -> None:
        self._library = library

    def __enter__(self) -> NvmlLibrary:
        return self._library

    def __exit__(self, *exc: object) -> None:
        pass


def _judge(about: str, answers: Answers, wanted: Iterable[str]) -> NvmlAnswer:
    if answers.system["count"] > MAX_GPUS:
        raise HookError(f"{about}: it counts {answers.system['count']} GPUs", f"at most {MAX_GPUS} are looked at")
    problems = tuple([_problem(lost) for lost in answers.lost])
    for name in wanted:
        low = name.lower()
        if low == "all" or any(_is(gpu, low) for gpu in answers.gpus):
            continue
        parent = _answers.old_mig_parts(low)[0]
        for lost, problem in zip(answers.lost, problems):
            if lost.may_be(low) and not (parent and _is_elsewhere(parent, lost, answers.gpus)):
                raise HookError(f"use GPU {printable(name)}: {problem.subject}: {problem.error}", problem.hint)
    return NvmlAnswer(gpus=tuple(answers.gpus), problems=problems, **answers.system)


def _problem(lost: Lost) -> Problem:
    error = f"{lost.call}: {lost.error}"
    return Problem(stage="ask NVML about", subject=lost.subject(), error=error, hint=_hint(lost.error))


def _is(gpu: Gpu, name: str) -> bool:
    """Whether `name`, in lower case, is this GPU or a MIG device of it."""
    bus_id = _answers.kernel_bus_id(name)
    if name in (str(gpu.index), gpu.uuid.lower()) or (bus_id and bus_id == gpu.pci_bus_id):
        return True
    parent, *place = _answers.old_mig_parts(name)
    for mig in gpu.mig_devices:
        if name in (mig.name, mig.uuid.lower()):
            return True
        if parent == gpu.uuid.lower() and place == [str(mig.gpu_instance), str(mig.compute_instance)]:
            return True
    return False


def _is_elsewhere(parent: str, lost: Lost, gpus: Iterable[Gpu]) -> bool:
    """Whether the GPU of this UUID, in lower case, is known to be another than that of `lost`."""
    return any((gpu.index == lost.index) != (gpu.uuid.lower() == parent) for gpu in gpus)


def _hint(error: str) -> str:
    return _HINTS.get(error, "see the kernel's log for NVRM and Xid" if error.startswith("NVML") else _BROKEN)


# -- who asks ---------------------------------------------------------------------------------------------------------


def _user() -> tuple[tuple[int, int], list[int]]:
    if posix.geteuid() != 0:
        return (-1, -1), []
    return (NOBODY, NOBODY), node_groups()


def node_groups(dev: str = "/dev") -> list[int]:
    """The groups that may use a /dev/nvidia* node which others may not: NVreg_DeviceFileGID and -Mode."""
    found = set()
    try:
        names = [n for n in posix.listdir(dev) if n == "nvidiactl" or (n.startswith("nvidia") and n[6:].isdigit())]
    except OSError:
        return []
    for name in names:
        try:
            st = posix.stat(f"{dev}/{name}", follow_symlinks=False)
        except OSError:
            continue
        if S_ISCHR(st.st_mode) and st.st_mode & 0o066 in (0o060, 0o062, 0o064):
            found.add(st.st_gid)
    return sorted(found)
