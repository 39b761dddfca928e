"""The process that loads the driver's NVML: confined, then asks it everything, and writes what it answers to fd 3.

Started by `nvoci.discover._nvml_process`. One line for each thing said:

    {"system": …} {"gpu": …} {"lost": …} {"failed": …} {"end": true}

What is about to be called stands in the file open as fd 5, so that the parent knows where it hangs or crashes. Lines
about it would wake the parent for every call, which doubled the time for 8 GPUs (57 ms instead of 29).

Nothing here judges: the library is a stranger's code in this very process, so the parent believes no line of it.

The library is loaded by path, or, where uid 65534 may not go there, by descriptor 4: both are checked to be the same
file. Its own needed libraries are those of the C library, which the interpreter has loaded; whatever else it loads by
name comes from the host. pynvml then asks for `libnvidia-ml.so.1`, and the dynamic linker gives it the object that
already has this DT_SONAME; that it did is checked by handle.
"""

from __future__ import annotations

import posix
from _signal import ITIMER_REAL, setitimer
from errno import EINVAL, EPERM, errorcode

from nvoci.linux import abi
from nvoci.linux.fd import write_all
from nvoci.linux.syscalls import capset, close_range, prctl, prlimit

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

SONAME = "libnvidia-ml.so.1"
RESULT, LIBRARY, STAGE = 3, 4, 5
STAGE_SIZE = 256
MAX_GPUS = 256
MAX_MIG = 64
# Address space is no memory (the driver maps registers); what the process writes is counted by RLIMIT_DATA.
_AS, _DATA, _NOFILE = 64 << 30, 1 << 30, 1024
_FSIZE = 1 << 16  # of any one file; pipes are bounded by who reads them
_INITIAL_MAP = [b"0", b"0", b"4294967295"]  # user_namespaces(7)
# A GPU of a kind, or a driver of an age, that has no answer: None, and nothing is wrong.
_NO_ANSWER = ("NOT_SUPPORTED", "FUNCTION_NOT_FOUND", "NO_PERMISSION", "ARGUMENT_VERSION_MISMATCH", "DEPRECATED")


def main(argv: list[str]) -> None:
    """argv: seconds, pid of the parent (0: it is in another pid namespace), uid, gid, further groups (comma-separated),
    path of the library. Never returns. uid -1: stay who we are."""
    seconds, parent, uid, gid = (int(word) for word in argv[:4])
    prctl(abi.PR_SET_PDEATHSIG, abi.SIGKILL)
    _close_from(STAGE + 1)
    posix.chdir("/")
    posix.umask(0o077)
    _limit(seconds)
    setitimer(ITIMER_REAL, seconds + 1)  # SIGALRM ends us where the parent may not kill us: it lacks CAP_KILL
    nvml = _Nvml()  # imported before the drop: its files may lie where uid 65534 cannot go; it loads no library yet
    try:
        _become(uid, gid, [int(g) for g in argv[4].split(",") if g])
        prctl(abi.PR_SET_DUMPABLE, 0)
        prctl(abi.PR_SET_PDEATHSIG, abi.SIGKILL)  # again: the kernel forgets it when the uid changes
        if posix.getppid() != parent:
            posix._exit(1)  # it died before that
        nvml.load(argv[5])
        _ask(nvml)
    except _Failed as e:
        nvml.say("failed", {"call": e.call, "error": e.error})
    nvml.say("end", True)
    posix._exit(0)  # without nvmlShutdown, which may hang too: the kernel gives back what the library holds


def _close_from(first: int) -> None:
    try:
        close_range(first, 0xFFFFFFFF)
    except OSError:
        posix.closerange(first, 4096)  # before Linux 5.9


def _limit(seconds: int) -> None:
    for resource, value in (
        (abi.RLIMIT_CORE, 0), (abi.RLIMIT_AS, _AS), (abi.RLIMIT_DATA, _DATA), (abi.RLIMIT_CPU, seconds + 1),
        (abi.RLIMIT_NOFILE, _NOFILE), (abi.RLIMIT_MEMLOCK, 0), (abi.RLIMIT_FSIZE, _FSIZE),
    ):  # fmt: skip
        try:
            prlimit(resource, value, value)
        except OSError as e:
            if e.errno != EPERM:  # the hard limit is lower already
                raise


def _become(uid: int, gid: int, groups: list[int]) -> None:
    """Another user for good, without any capability. In a user namespace that does not map the ids we stay who we are,
    which is nobody outside of it, and lose the capabilities. Raises _Failed."""
    prctl(abi.PR_SET_NO_NEW_PRIVS, 1)
    if uid >= 0:
        changes: tuple[Callable[[], None], ...] = (
            lambda: posix.setgroups(groups),
            lambda: posix.setresgid(gid, gid, gid),
            lambda: posix.setresuid(uid, uid, uid),
        )
        for change in changes:
            try:
                change()
            except OSError as e:
                if e.errno != EINVAL and (e.errno != EPERM or _ids_are_initial()):
                    raise _Failed(f"become uid {uid}", errorcode.get(e.errno or 0, str(e))) from None
    capset(0, 0, 0)


def _ids_are_initial() -> bool:
    """Whether every id is mapped to itself: then no user namespace stands in the way of becoming another."""
    try:
        fd = posix.open("/proc/self/uid_map", posix.O_RDONLY | posix.O_CLOEXEC)
    except OSError:
        return True
    try:
        return posix.read(fd, 4096).split() == _INITIAL_MAP
    finally:
        posix.close(fd)


class _Failed(Exception):
    """An NVML error: `call` says of what, `error` is its name."""

    def __init__(self, call: str, error: str) -> None:
        super().__init__(call)
        self.call = call
        self.error = error


class _Nvml:
    """pynvml, with every call announced."""

    def __init__(self) -> None:
        import json

        import pynvml

        self._dumps = json.dumps
        self._module: Any = pynvml
        self._names = {v: n for n, v in vars(pynvml).items() if n.startswith("NVML_ERROR_") and type(v) is int}
        self.profiles: int = pynvml.NVML_GPU_INSTANCE_PROFILE_COUNT
        self.about = ""

    def say(self, key: str, value: Any) -> None:
        """One line of the result."""
        write_all(RESULT, self._dumps({key: value}).encode() + b"\n")

    def load(self, path: str) -> None:
        """dlopen(3) the library, and make sure that pynvml will find no other."""
        import ctypes

        self._announce(f"dlopen {path}")
        try:
            own = ctypes.CDLL(_same_file(path) or f"/proc/self/fd/{LIBRARY}")
            found = ctypes.CDLL(SONAME, mode=posix.RTLD_NOLOAD | posix.RTLD_NOW)
        except OSError as e:
            raise _Failed("dlopen", str(e)) from None
        if found._handle != own._handle:  # noqa: SLF001  # ctypes has no other name for it
            raise _Failed("dlopen", f"its soname is not {SONAME}: another library has that")

    def _announce(self, what: str) -> None:
        posix.pwrite(STAGE, what.encode("utf-8", "backslashreplace")[:STAGE_SIZE].ljust(STAGE_SIZE, b"\0"), 0)

    def call(self, name: str, *args: Any) -> Any:
        """A function of pynvml. Raises _Failed."""
        about = f"{name} of {self.about}" if self.about else name
        self._announce(about)
        try:
            return getattr(self._module, name)(*args)
        except self._module.NVMLError as e:
            raise _Failed(about, self._names.get(e.value, f"NVML error {e.value}")) from None
        except AttributeError:
            raise _Failed(about, "NVML_ERROR_FUNCTION_NOT_FOUND") from None  # an older pynvml
        except ValueError:
            raise _Failed(about, "an answer that is not text") from None

    def maybe(self, name: str, *args: Any) -> Any:
        """`call`, or None where this GPU or driver has no answer."""
        try:
            return self.call(name, *args)
        except _Failed as e:
            if e.error.removeprefix("NVML_ERROR_") not in _NO_ANSWER:
                raise
            return None

    def optional(self, name: str, *args: Any) -> Any:
        """`call`, or None whatever the error: nothing depends on it."""
        try:
            return self.call(name, *args)
        except _Failed:
            return None


def _same_file(path: str) -> str:
    """`path` if it leads to the file that is open as LIBRARY; "" if we cannot go there, or to that one."""
    try:
        there, wanted = posix.stat(path), posix.fstat(LIBRARY)
    except OSError:
        return ""
    return path if (there.st_dev, there.st_ino) == (wanted.st_dev, wanted.st_ino) else ""


def _ask(nvml: _Nvml) -> None:
    nvml.call("nvmlInit")
    count = nvml.call("nvmlDeviceGetCount")
    nvml.say("system", {
        "driver_version": nvml.call("nvmlSystemGetDriverVersion"),
        "nvml_version": nvml.optional("nvmlSystemGetNVMLVersion"),
        "cuda_version": nvml.optional("nvmlSystemGetCudaDriverVersion"),
        "count": count,
    })  # fmt: skip
    for index in range(min(count, MAX_GPUS)):
        nvml.about = f"GPU {index}"
        known: dict[str, Any] = {"index": index}
        try:
            _gpu(nvml, known)
            nvml.say("gpu", known)
        except _Failed as e:
            nvml.say("lost", {"gpu": known, "mig": -1, "call": e.call, "error": e.error})


def _gpu(nvml: _Nvml, known: dict[str, Any]) -> None:
    """Fills in `known`, so that what was answered before an error is not lost."""
    gpu = nvml.call("nvmlDeviceGetHandleByIndex", known["index"])
    pci = nvml.maybe("nvmlDeviceGetPciInfo", gpu)
    if pci is not None:
        bus_id = pci.busId.decode("ascii", "replace") if isinstance(pci.busId, bytes) else pci.busId
        known["pci"] = [pci.domain, pci.bus, pci.device, pci.pciDeviceId, bus_id]
    known["uuid"] = nvml.call("nvmlDeviceGetUUID", gpu)
    known["minor"] = nvml.maybe("nvmlDeviceGetMinorNumber", gpu)
    known["name"] = nvml.maybe("nvmlDeviceGetName", gpu)
    known["brand"] = nvml.maybe("nvmlDeviceGetBrand", gpu)
    known["compute_capability"] = nvml.maybe("nvmlDeviceGetCudaComputeCapability", gpu)
    memory = nvml.maybe("nvmlDeviceGetMemoryInfo", gpu)
    known["memory"] = None if memory is None else memory.total
    known["numa_node"] = nvml.optional("nvmlDeviceGetNumaNodeId", gpu)
    known["addressing_mode"] = nvml.optional("nvmlDeviceGetAddressingMode", gpu)
    known["mig_mode"] = nvml.maybe("nvmlDeviceGetMigMode", gpu)
    known["migs"] = []
    if known["mig_mode"] is not None:
        known["max_mig_devices"] = nvml.maybe("nvmlDeviceGetMaxMigDeviceCount", gpu)
        if known["mig_mode"][0] == 1:
            _migs(nvml, gpu, known)


def _migs(nvml: _Nvml, gpu: Any, known: dict[str, Any]) -> None:
    """Every place in NVML's list is looked at: a hole in it hides nothing."""
    profiles: dict[int, int] = {}
    for index in range(min(known["max_mig_devices"] or 0, MAX_MIG)):
        nvml.about = f"MIG device {known['index']}:{index}"
        try:
            mig = nvml.call("nvmlDeviceGetMigDeviceHandleByIndex", gpu, index)
            known["migs"].append({"index": index, **_mig(nvml, gpu, mig, profiles)})
        except _Failed as e:
            if e.error == "NVML_ERROR_GPU_IS_LOST":
                raise
            if e.error != "NVML_ERROR_NOT_FOUND":
                nvml.say("lost", {"gpu": {"index": known["index"]}, "mig": index, "call": e.call, "error": e.error})


def _mig(nvml: _Nvml, gpu: Any, mig: Any, profiles: dict[int, int]) -> dict[str, Any]:
    found = {
        "gpu_instance": nvml.call("nvmlDeviceGetGpuInstanceId", mig),
        "compute_instance": nvml.call("nvmlDeviceGetComputeInstanceId", mig),
        "uuid": nvml.call("nvmlDeviceGetUUID", mig),
        "name": nvml.optional("nvmlDeviceGetName", mig),
    }
    attributes = nvml.optional("nvmlDeviceGetAttributes", mig)
    if attributes is not None:
        found["attributes"] = [getattr(attributes, name) for name, *_ in attributes._fields_]
    instance = nvml.optional("nvmlDeviceGetGpuInstanceById", gpu, found["gpu_instance"])
    info = None if instance is None else nvml.optional("nvmlGpuInstanceGetInfo", instance)
    if info is not None:
        found["profile_id"] = info.profileId
        found["profile"] = (profiles or _profiles(nvml, gpu, profiles)).get(info.profileId)
    return found


def _profiles(nvml: _Nvml, gpu: Any, found: dict[int, int]) -> dict[int, int]:
    """Fills in profile id -> NVML_GPU_INSTANCE_PROFILE_*. Unprivileged processes seldom come here: they are not told
    a profile id."""
    for profile in range(nvml.profiles):
        info = nvml.optional("nvmlDeviceGetGpuInstanceProfileInfo", gpu, profile)
        if info is not None:
            found[info.id] = profile
    return found
