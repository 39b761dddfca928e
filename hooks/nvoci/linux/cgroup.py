"""The cgroups that decide which devices a process may open, found by handle, and the rules that are added to them.

A kernel asks both the programs of the unified hierarchy (cgroup v2) and the list of the v1 `devices` hierarchy, if it
has one; so on a hybrid host both are looked at, and each is changed only if it forbids what is to be allowed. Which
cgroup a process is in says /proc/PID/cgroup, read through our own procfs; where that directory is, our mount table.
Both are relative to the root of our own cgroup namespace, and the handle is checked against the mount's id.
"""

from __future__ import annotations

import posix
from errno import ENOENT, ENOTDIR

from nvoci import log
from nvoci.errors import HookError, hook_error, printable
from nvoci.linux import abi, mount, procfs
from nvoci.linux.devicelist import DeviceList
from nvoci.linux.deviceprog import DevicePrograms
from nvoci.linux.fd import Fd, free_reserve, read_at_most
from nvoci.linux.mountinfo import Mount, mount_id
from nvoci.linux.syscalls import fsconfig_create, fsconfig_set_flag, fsmount, fsopen

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from nvoci.linux.devicerule import DeviceRule

_MOUNTS_LIMIT = 64 << 20
_DIRECTORY = posix.O_RDONLY | posix.O_DIRECTORY | posix.O_NOFOLLOW | posix.O_CLOEXEC
_ATTRIBUTES = abi.MOUNT_ATTR_NOSUID | abi.MOUNT_ATTR_NODEV | abi.MOUNT_ATTR_NOEXEC
_ELSEWHERE = "call the hook as createRuntime or prestart, where the host's cgroup file systems are seen"
_SCOPE = b".scope"
_ROOT_INO = 1  # fs/kernfs/dir.c: ids are given from 1 on, and the root of a hierarchy is made first


class DeviceCgroup:
    """All that decides on the devices of one process and is its container's own. `allow()` once, then `undo()` or
    `close()`."""

    __slots__ = ("_parts",)

    def __init__(self, parts: Sequence[DeviceList | DevicePrograms]) -> None:
        """parts: a cgroup before those below it."""
        self._parts = parts

    @classmethod
    def of(cls, process: int | None = None, runtime: int | None = None, *, certain: bool = True) -> DeviceCgroup:
        """Of the process whose /proc/PID `process` has open; of this process without. Raises HookError.

        A cgroup that another process shares with us is taken for the runtime's, and changing it is an error. So is
        our own, where `runtime`, /proc/PID of the process that runs the container, is in it too; without `runtime` it
        is taken for the container's, unless that is not `certain`.
        """
        parts: list[DeviceList | DevicePrograms] = []
        try:
            ours: list[tuple[bytes, bytes]] = []
            if process is not None or runtime is not None:
                ours = _lines(_read(None if process is not None else runtime))
            listed = False
            for controllers, path in _entries(process):
                for directory, name in _open(controllers, path, listed):
                    shared = not certain or (controllers, path) in ours
                    if controllers:
                        parts.append(DeviceList(directory, name, shared))
                        listed = True
                    else:
                        parts.append(DevicePrograms(directory, name, shared, listed))
        except OSError as e:
            raise hook_error("find device cgroup", e.filename or "", e) from None
        return cls(parts)

    def allow(self, rules: Sequence[DeviceRule]) -> None:
        """Allow all of `rules`, or raise HookError with everything as it was."""
        done: list[DeviceList | DevicePrograms] = []
        try:
            for part in self._parts:
                part.allow(rules)
                done.append(part)
        except HookError:
            free_reserve()
            failed = _undo(done)
            if failed is not None:
                log.error(failed.line())
            raise

    def undo(self) -> None:
        """Everything as it was before `allow()`. Raises HookError once all has been tried."""
        failed = _undo(self._parts)
        if failed is not None:
            raise failed

    def close(self) -> None:
        """Close the handles; what was allowed stays allowed."""
        for part in self._parts:
            part.close()


def _undo(parts: Sequence[DeviceList | DevicePrograms]) -> HookError | None:
    failed = None
    for part in reversed(parts):
        try:
            part.undo()
        except HookError as e:
            failed = failed or e
    return failed


# -- which cgroups ----------------------------------------------------------------------------------------------------


def _entries(process: int | None) -> list[tuple[bytes, bytes]]:
    """(controllers, path) of the v1 `devices` hierarchy and (b"", path) of the unified one, from cgroups(7)
    `ID:CONTROLLERS:PATH`, as far as there are such."""
    return parse(_read(process))


def _read(process: int | None) -> bytes:
    return procfs.read(b"self/cgroup") if process is None else procfs.read(b"cgroup", dirfd=process)


def parse(text: bytes) -> list[tuple[bytes, bytes]]:
    """Those lines of /proc/PID/cgroup that are about devices. Raises HookError where a path leads above the root of
    our cgroup namespace."""
    found = _lines(text)
    for _, path in found:
        if b".." in path.split(b"/"):
            raise HookError(f"find device cgroup: {printable(path)} lies outside of this cgroup namespace",
                            "call the hook where the container's cgroup is seen")  # fmt: skip
    return sorted(found, reverse=True)


def _lines(text: bytes) -> list[tuple[bytes, bytes]]:
    found = []
    for line in text.split(b"\n"):
        number, _, rest = line.partition(b":")
        controllers, _, path = rest.partition(b":")
        unified = number == b"0" and not controllers
        if path and (unified or b"devices" in controllers.split(b",")):
            found.append((controllers, path))
    return found


def _in_initial_namespace() -> bool:
    try:
        return procfs.ns_id(b"self/ns/cgroup")[1] == abi.PROC_CGROUP_INIT_INO
    except FileNotFoundError:
        return True  # before Linux 4.6 there was one only


def _open(controllers: bytes, path: bytes, listed: bool) -> list[tuple[Fd, bytes]]:
    """Handles of the cgroup at `path` and of those above that are the same container's, highest first. listed: the
    container has a list in the v1 hierarchy; a unified one that is not mounted is then nobody's."""
    if path == b"/" and _in_initial_namespace():
        return []  # the root of the whole hierarchy is no container's
    directory = _find(controllers, path, listed)
    if directory is None or directory.stat().st_ino == _ROOT_INO:
        return []
    found = [(directory, path)]
    names = path.strip(b"/").split(b"/")
    scopes = [i for i, name in enumerate(names) if name.endswith(_SCOPE)]
    if scopes:
        for depth in range(len(names) - 1, scopes[-1], -1):
            above = _exclusive_parent(found[0][0], names[depth])
            if above is None:
                return found[-1:]
            found.insert(0, (above, b"/" + b"/".join(names[:depth])))
    return found


def _exclusive_parent(directory: Fd, name: bytes) -> Fd | None:
    """The cgroup above, if nothing but `directory` is in it. crun puts a container into a cgroup below its systemd
    scope, on which systemd has a program of its own."""
    parent = Fd(posix.open(b"..", _DIRECTORY, dir_fd=directory.fileno()))
    try:
        if mount_id(parent.fileno()) == mount_id(directory.fileno()):
            with Fd(posix.open(b"cgroup.procs", posix.O_RDONLY | posix.O_CLOEXEC, dir_fd=parent.fileno())) as procs:
                empty = not read_at_most(procs.fileno(), 1 << 20)
            with posix.scandir(parent.fileno()) as entries:
                inside = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
            if empty and inside == [name.decode("utf-8", "surrogateescape")]:
                return parent
    except OSError:
        pass  # a threaded cgroup, or gone
    parent.close()
    return None


# -- where they are ---------------------------------------------------------------------------------------------------


def _find(controllers: bytes, path: bytes, listed: bool) -> Fd | None:
    """The directory of a cgroup: below a mount that we see, or, in a cgroup namespace of a container, below one that is
    made for this and never attached. Raises HookError, OSError."""
    unified = not controllers
    for one in _mounts(controllers):
        if unified or b"rw" in one.options:
            found = _open_below(one, path)
            if found is not None:
                return found
    if unified and listed:
        return None
    if unified and _in_initial_namespace():
        # A new mount from here would set anew what was given when /sys/fs/cgroup was mounted (nsdelegate).
        raise HookError(f"find device cgroup {printable(path)}: no cgroup2 is mounted here that has it", _ELSEWHERE)
    return _open_own(controllers, path)


def _mounts(controllers: bytes) -> list[Mount]:
    """Mounts of the hierarchy, in the kernel's order. A node may have thousands: only these lines are split."""
    kind = b" - cgroup " if controllers else b" - cgroup2 "
    mounts = [Mount(line) for line in procfs.read(b"self/mountinfo", _MOUNTS_LIMIT).split(b"\n") if kind in line]
    return [m for m in mounts if not controllers or b"devices" in m.super_options.split(b",")]


def _open_below(one: Mount, path: bytes) -> Fd | None:
    """The cgroup at `path`, if this mount has it and can be reached."""
    top = one.root.rstrip(b"/")
    if path != top and not path.startswith(top + b"/"):
        return None
    try:
        with Fd(posix.open(one.target, posix.O_PATH | posix.O_DIRECTORY | posix.O_CLOEXEC)) as root:
            if mount_id(root.fileno()) != one.id:
                return None  # covered by another
            found = Fd(posix.open(b"." + path[len(top) :], _DIRECTORY, dir_fd=root.fileno()))
    except OSError as e:
        if e.errno in (ENOENT, ENOTDIR):
            return None
        raise
    if mount_id(found.fileno()) != one.id:
        found.close()
        return None
    return found


def _open_own(controllers: bytes, path: bytes) -> Fd:
    """A mount of the hierarchy that exists, by its handle only. Its root is that of our cgroup namespace."""
    made = mount.attempt("fsopen", lambda: fsopen(b"cgroup" if controllers else b"cgroup2"))
    if made is None:
        raise HookError(f"find device cgroup {printable(path)}: it is not mounted here, and fsopen(2) is not available",
                        _ELSEWHERE)  # fmt: skip
    try:
        with Fd(made) as context:
            for name in filter(None, controllers.split(b",")):
                fsconfig_set_flag(context.fileno(), name)
            fsconfig_create(context.fileno())
            with Fd(fsmount(context.fileno(), _ATTRIBUTES)) as root:
                return Fd(posix.open(b"." + path, _DIRECTORY, dir_fd=root.fileno()))
    except OSError as e:
        raise hook_error("find device cgroup: mount", path, e, _ELSEWHERE) from None
