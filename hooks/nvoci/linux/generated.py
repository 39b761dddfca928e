"""A read-only file made of bytes and mounted on a handle: a file on a tmpfs that nobody else can reach.

The tmpfs is attached nowhere in the end, only a clone of its one file is. Cloning from a tmpfs that was never
attached works from Linux 6.15 on. Before that it is attached on `/` of a mount namespace made for the purpose
(unshare(2), back by setns(2)), and goes with that namespace.

Without the mount API of Linux 5.2 a file can't be mounted across namespaces. So the tmpfs is mounted, in the
container's namespace, on the directory that holds the target, the file is bound from it on the target's handle, which
is below, and the tmpfs is lazily unmounted again. No directory is made for it, so none can stay behind; a stranger
sees nothing, since no process of the container runs while a hook does; and a killed hook leaves it in the namespace
of a container that is never started.
"""

from __future__ import annotations

import posix
from errno import EINVAL, ENOSYS

from nvoci.linux import abi, procfs
from nvoci.linux.fd import Fd, with_reserve, write_all
from nvoci.linux.mount import (
    READ_ONLY_DATA,
    UNAVAILABLE,
    Mounted,
    Source,
    Target,
    at_procfs,
    attach,
    attempt,
    check_propagation,
    clone,
    find_target,
    missing,
    seen,
    table_before,
    take_away,
)
from nvoci.linux.mountinfo import find, mount_id
from nvoci.linux.rootfs import split
from nvoci.linux.syscalls import (
    fsconfig_create,
    fsconfig_set_string,
    fsmount,
    fsopen,
    mount,
    move_mount,
    setns,
    unshare,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nvoci.linux.rootfs import Rootfs

_NEEDED = {"fsopen", "open_tree", "move_mount"}
_SOURCE = b"nvoci"
_NAME = b"file"
# The root directory and the file; some kernels count one more for a name.
_INODES = b"4"

# Whether a tmpfs that was never attached can be cloned from, so far as is known. Tests clear it to be before 6.15.
clone_unattached = True


def mount_generated(rootfs: Rootfs, target: Target, data: bytes, mode: int, label: str = "") -> Mounted:
    """Mount a file with this content and mode on `target`, `ro,nosuid,nodev,noexec`. Raises OSError, HookError.

    label: the SELinux context of the container's mounts, used where SELinux is on.
    """
    try:
        with generated_file(data, mode, label) as source:
            return attach(source, target)
    except OSError as e:
        if e.errno not in UNAVAILABLE and not missing & _NEEDED:
            raise
    return _mount_from_below(rootfs, target, data, mode, label)


def generated_file(data: bytes, mode: int, label: str = "") -> Source:
    """The file as a detached mount. Raises OSError, with ENOSYS or EPERM where the mount API is not available."""
    global clone_unattached
    if missing & _NEEDED:
        raise OSError(ENOSYS, "no mount API")
    with Fd(_tmpfs(len(data), label)) as tmpfs, _write(tmpfs.fileno(), data, mode) as file:
        if clone_unattached:
            try:
                return _detached(file)
            except OSError as e:
                if e.errno != EINVAL:
                    raise
                clone_unattached = False
        return _cloned_elsewhere(tmpfs, file)


def _tmpfs(size: int, label: str) -> int:
    opened = attempt("fsopen", lambda: fsopen(b"tmpfs"))
    if opened is None:
        raise OSError(ENOSYS, "no fsopen")
    with Fd(opened) as fs:
        fsconfig_set_string(fs.fileno(), b"source", _SOURCE)
        for key, value in _options(size, label):
            fsconfig_set_string(fs.fileno(), key, value)
        fsconfig_create(fs.fileno())
        return fsmount(fs.fileno(), abi.MOUNT_ATTR_NOSUID | abi.MOUNT_ATTR_NODEV | abi.MOUNT_ATTR_NOEXEC)


def _options(size: int, label: str) -> list[tuple[bytes, bytes]]:
    options = [(b"size", b"%d" % max(size, 1)), (b"nr_inodes", _INODES), (b"mode", b"0700")]  # size=0 has no limit
    if label and _selinux():
        options.append((b"context", label.encode()))
    return options


def _selinux() -> bool:
    return b"\tselinuxfs\n" in procfs.read(b"filesystems")


def _write(directory: int, data: bytes, mode: int) -> Fd:
    flags = posix.O_WRONLY | posix.O_CREAT | posix.O_EXCL | posix.O_NOFOLLOW | posix.O_CLOEXEC
    with Fd(posix.open(_NAME, flags, 0o600, dir_fd=directory)) as fd:
        write_all(fd.fileno(), data)
        posix.fchmod(fd.fileno(), mode)
    return Fd(posix.open(_NAME, posix.O_PATH | posix.O_NOFOLLOW | posix.O_CLOEXEC, dir_fd=directory))


def _detached(file: Fd) -> Source:
    source = clone(file.fileno(), READ_ONLY_DATA)
    if source.tree is None or "move_mount" in missing:
        source.close()
        raise OSError(ENOSYS, "no open_tree")
    return source


def _cloned_elsewhere(tmpfs: Fd, file: Fd) -> Source:
    """Clone `file` while its tmpfs is attached in a mount namespace of our own, and come back."""
    flags = posix.O_RDONLY | posix.O_CLOEXEC
    home_fd = posix.open(b"self/ns/mnt", flags, dir_fd=procfs.handle())
    with Fd(home_fd) as home, Fd(posix.open(b".", posix.O_PATH)) as cwd:
        unshare(abi.CLONE_NEWNS)
        try:
            mount(None, b"/", None, abi.MS_REC | abi.MS_PRIVATE)
            with Fd(posix.open(b"/", posix.O_PATH | posix.O_CLOEXEC)) as root:
                move_mount(tmpfs.fileno(), root.fileno())
            return _detached(file)
        finally:
            setns(home.fileno(), abi.CLONE_NEWNS)
            posix.fchdir(cwd.fileno())


def _mount_from_below(rootfs: Rootfs, target: Target, data: bytes, mode: int, label: str) -> Mounted:
    with find_target(rootfs, split(target.path)[0]) as cover:
        check_propagation(cover)
        check_propagation(target)
        before = table_before(target)
        tmpfs = _mount_tmpfs(cover, len(data), label)
        written = (0, 0)
        try:
            with Source(_write(tmpfs.fd.fileno(), data, mode), READ_ONLY_DATA) as source:
                written = _identity(source.object.fileno())
                mounted = attach(source, target)
        except OSError:
            tmpfs.detach()
            # What was mounted where the target has gone lay below the tmpfs, and can be reached only now.
            with_reserve(lambda: take_away(target, before, lambda fd: _identity(fd) == written))
            raise
        except BaseException:
            tmpfs.detach()
            raise
        try:
            tmpfs.detach()
        except OSError:
            tmpfs.detach()  # with the file it is bound from covered, there is nothing else that could be done
        return mounted


def _identity(fd: int) -> tuple[int, int]:
    st = posix.fstat(fd)
    return st.st_dev, st.st_ino


def _mount_tmpfs(cover: Target, size: int, label: str) -> Mounted:
    options = b",".join(b'%s="%s"' % o if o[0] == b"context" else b"%s=%s" % o for o in _options(size, label))
    flags = abi.MS_NOSUID | abi.MS_NODEV | abi.MS_NOEXEC
    before = table_before(cover)
    at_procfs(lambda: mount(_SOURCE, procfs.fd_path(cover.fd.fileno()), b"tmpfs", flags, options))
    return seen(cover, before, lambda fd: _is_on(fd, cover))


def _is_on(fd: int, cover: Target) -> bool:
    one = find(mount_id(fd))
    return one is not None and one.parent == mount_id(cover.fd.fileno()) and one.source == _SOURCE
