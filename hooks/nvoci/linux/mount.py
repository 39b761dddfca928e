"""Mounting by handle: what is mounted and what it is mounted on are descriptors, never path strings.

The mount API of Linux 5.2 is used where it is: a detached clone gets its attributes (mount_setattr, 5.12) before
anything can see it, and move_mount puts it on a handle. What the kernel lacks, or a seccomp profile forbids, is found
out by trying, and only the failure is remembered. Without open_tree or move_mount (RHEL 8: 4.18) mount(2) is given
`self/fd/N` relative to our procfs handle, which is right in whatever mount namespace we are. Without mount_setattr
(5.2 to 5.11) the flags follow by MS_REMOUNT|MS_BIND. In both cases the flags come a moment after the mount; the
container's first process has not started then.

The flags are read back from a descriptor opened afresh, and a mount that is not as asked for is taken away again.
"""

from __future__ import annotations

import posix
from errno import EAGAIN, EINVAL, ELOOP, ENOENT, ENOSYS, ENOTDIR, EPERM, ESTALE
from stat import S_ISLNK

from nvoci.errors import HookError, printable
from nvoci.linux import abi, procfs
from nvoci.linux.fd import Fd, with_reserve
from nvoci.linux.lookup import EAGAIN_RETRIES, MAX_LINKS
from nvoci.linux.mountinfo import find, ids, mount_id, own_table
from nvoci.linux.rootfs import split
from nvoci.linux.syscalls import mount, mount_setattr, move_mount, open_tree, umount2

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from nvoci.linux.rootfs import Rootfs

# What an injected file is given: MS_RDONLY..MS_NOEXEC of mount(2), MOUNT_ATTR_* and ST_* have the same four bits.
READ_ONLY = abi.MS_RDONLY | abi.MS_NOSUID | abi.MS_NODEV
READ_ONLY_DATA = READ_ONLY | abi.MS_NOEXEC
_FLAGS = READ_ONLY_DATA
_PATH = posix.O_PATH | posix.O_CLOEXEC | posix.O_NOFOLLOW
_MAX_STACKED = 16  # mounts, one on another
# EPERM is how a seccomp profile answers for calls it does not know; where it is meant, mount(2) says it again.
UNAVAILABLE = (ENOSYS, EPERM)

# The calls that failed as unavailable. Tests fill it to be on an old kernel.
missing: set[str] = set()
# (st_dev, st_ino) of a mount namespace -> its table as it was read last; of one namespace at a time.
_tables: dict[tuple[int, int], bytes] = {}


def _refuse_backports(release: str) -> None:
    """RHEL 8 has parts of the mount API in its 4.18; they are known to be slow and faulty, and are not used."""
    major, _, rest = release.partition(".")
    digits = rest[: len(rest) - len(rest.lstrip("0123456789"))]
    if major.isdigit() and digits.isdigit() and (int(major), int(digits)) < (5, 2):
        missing.update(("fsopen", "open_tree", "move_mount", "mount_setattr"))


_refuse_backports(posix.uname().release)


class Target:
    """Something to mount on: its handle, and its parent's handle and its name, by which it is opened again."""

    __slots__ = ("fd", "name", "parent", "path")

    def __init__(self, path: bytes, parent: Fd, name: bytes, fd: Fd) -> None:
        self.path = path
        self.parent = parent
        self.name = name
        self.fd = fd

    def reopen(self) -> Fd:
        """What is at the name now: the topmost mount there, where `fd` stays what it was before mounting."""
        return Fd(posix.open(self.name, _PATH, dir_fd=self.parent.fileno()))

    def is_mount_point(self) -> bool:
        """Whether `fd` is the root of a mount of its own."""
        return mount_id(self.fd.fileno()) != mount_id(self.parent.fileno())

    def close(self) -> None:
        """Close both handles."""
        self.parent.close()
        self.fd.close()

    def __enter__(self) -> Target:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def find_target(rootfs: Rootfs, unsafe_path: bytes) -> Target:
    """Resolve a file or directory below the root to mount on; links are followed inside the root. Raises OSError.

    The handle comes from one lookup. Parent and name are sought beside it and must lead to the same inode.
    """
    for _ in range(EAGAIN_RETRIES):
        found = rootfs.lookup(unsafe_path)
        parent: Fd | None = None
        try:
            parent, name = _parent_of(rootfs, unsafe_path)
            target = Target(unsafe_path, parent, name, found)
            with target.reopen() as again:
                if _same(again.stat(), found.stat()):
                    return target
        except FileNotFoundError:
            pass  # changed since the lookup
        except OSError as e:
            _close(found, parent)
            raise OSError(e.errno, e.strerror, unsafe_path) from None
        _close(found, parent)
    raise OSError(EAGAIN, "the path keeps changing", unsafe_path)


def _close(*handles: Fd | None) -> None:
    for handle in handles:
        if handle is not None:
            handle.close()


def _parent_of(rootfs: Rootfs, unsafe_path: bytes) -> tuple[Fd, bytes]:
    path = unsafe_path
    for _ in range(MAX_LINKS + 1):
        directory, name = split(path)
        parent = rootfs.lookup(directory, posix.O_DIRECTORY)
        try:
            if not S_ISLNK(posix.stat(name, dir_fd=parent.fileno(), follow_symlinks=False).st_mode):
                return parent, name
            text = posix.readlink(name, dir_fd=parent.fileno())
        except OSError:
            parent.close()
            raise
        parent.close()
        path = text if text.startswith(b"/") else directory + b"/" + text
    raise OSError(ELOOP, "too many links", unsafe_path)


class Source:
    """One object to be mounted: a detached clone where the kernel has them, else the handle that mount(2) binds.
    `ready`: the clone has its attributes already."""

    __slots__ = ("flags", "object", "ready", "tree")

    def __init__(self, handle: Fd, flags: int, tree: Fd | None = None) -> None:
        self.object = handle
        self.flags = flags
        self.tree = tree
        self.ready = False

    def close(self) -> None:
        """Close the handles; a clone that was not attached is gone then."""
        _close(self.object, self.tree)

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class Mounted:
    """A mount we made, by a handle of its root."""

    __slots__ = ("fd",)

    def __init__(self, fd: Fd) -> None:
        self.fd = fd

    def detach(self) -> None:
        """Unmount it, and what was mounted on top; nothing to do where it is gone already. Raises OSError."""
        try:
            for _ in range(_MAX_STACKED):  # each call takes what lies on top; EINVAL: it was the last
                # The reserve is for this alone: what is freed for a step that succeeds is not there for undo.
                with_reserve(lambda: at_procfs(lambda: umount2(procfs.fd_path(self.fd.fileno()), abi.MNT_DETACH)))
        except OSError as e:
            if e.errno != EINVAL:
                raise
        _tables.clear()  # another mount may get its id
        self.fd.close()

    def close(self) -> None:
        """Let go of the handle; the mount stays."""
        self.fd.close()


def clone(fd: int, flags: int) -> Source:
    """Make what `fd` has open ready to be mounted with `flags` (MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC), private and
    without what is mounted below it. To be called where `fd` was opened: before another namespace is entered."""
    tree = attempt("open_tree", lambda: open_tree(fd, b"", abi.OPEN_TREE_CLONE | abi.AT_EMPTY_PATH))
    source = Source(Fd(posix.dup(fd)), flags, None if tree is None else Fd(tree))
    if tree is not None:
        try:
            source.ready = attempt("mount_setattr", lambda: mount_setattr(tree, flags, abi.MS_PRIVATE)) is not None
        except OSError:
            source.close()
            raise
    return source


def attempt(name: str, call: Callable[[], int | None]) -> int | None:
    """call(), its result (0 for None); None where system call `name` is known, or now found out, to be unavailable."""
    if name in missing:
        return None
    try:
        return call() or 0
    except OSError as e:
        if e.errno not in UNAVAILABLE:
            raise
        missing.add(name)
        return None


def attach(source: Source, target: Target, *, peers: bool = False) -> Mounted:
    """Mount on the very inode that `target` has open, and check the result. peers: others may see it who share what
    it is mounted on. Raises OSError, HookError."""
    if not peers:
        check_propagation(target)
    try:
        mounted = _attach_tree(source, target) or _attach_bind(source, target)
    except OSError as e:
        raise OSError(e.errno, e.strerror, target.path) from None
    try:
        _check(mounted, source, target)
    except (OSError, HookError):
        mounted.detach()
        raise
    return mounted


def table_before(target: Target) -> bytes:
    """mountinfo of this namespace from before something is mounted on `target`, with the line of the mount it is on.

    A table that was read before serves as long as it has that line: with thousands of mounts each reading takes tens of
    milliseconds, and nobody else changes the mounts of a container that is not started. Raises OSError.
    """
    here = procfs.ns_id(b"self/ns/mnt")
    table = _tables.get(here, b"")
    if find(mount_id(target.fd.fileno()), table) is None:
        _tables.clear()
        table = _tables[here] = own_table()
    return table


def check_propagation(target: Target) -> None:
    """What is mounted on a shared mount appears in all of its peers, the host's among them (mount_namespaces(7)).
    Raises HookError, OSError."""
    one = find(mount_id(target.fd.fileno()), table_before(target))
    if one is not None and any(tag.startswith(b"shared:") for tag in one.propagation):
        raise HookError(f"mount on {printable(target.path)}: lies on a shared mount, and would appear on the host",
                        "give the container `rootfsPropagation` slave or private")  # fmt: skip


def _attach_tree(source: Source, target: Target) -> Mounted | None:
    if source.tree is None:
        return None
    tree = source.tree.fileno()
    mounted = Mounted(Fd(posix.dup(tree)))  # before the mount, which must be on record whatever fails then
    try:
        moved = attempt("move_mount", lambda: move_mount(tree, target.fd.fileno()))
    except OSError:
        mounted.close()
        raise
    if moved is None:
        mounted.close()
        return None
    if not source.ready:
        _set_flags(mounted, source.flags)
    return mounted


def _attach_bind(source: Source, target: Target) -> Mounted:
    target_path = procfs.fd_path(target.fd.fileno())
    before = table_before(target)
    st = source.object.stat()
    try:
        handle = source.object.fileno()
        at_procfs(lambda: mount(procfs.fd_path(handle), target_path, None, abi.MS_BIND))
    except OSError as e:
        if e.errno != EINVAL:
            raise
        # The handle is of the namespace that was left: mount(2) binds only what is in the present one.
        with _same_here(source.object) as here:
            at_procfs(lambda: mount(procfs.fd_path(here.fileno()), target_path, None, abi.MS_BIND))
    mounted = seen(target, before, lambda fd: _same(posix.fstat(fd), st))
    _set_flags(mounted, source.flags)
    return mounted


def seen(target: Target, before: bytes, is_ours: Callable[[int], bool]) -> Mounted:
    """What mount(2) has just put on `target`, by a handle of its own: the target's still names what is covered. Where
    the name leads elsewhere by now, the mount is taken away again. Raises OSError.

    before: `table_before(target)`. is_ours: of a descriptor, whether that is what was mounted.
    """
    handle: Fd | None = None
    try:
        handle = target.reopen()
        if is_ours(handle.fileno()):
            return Mounted(handle)
        error = OSError(ESTALE, "replaced while it was mounted on", target.path)
    except OSError as e:
        error = e
    _close(handle)
    with_reserve(lambda: take_away(target, before, is_ours))
    raise error


def take_away(target: Target, before: bytes, is_ours: Callable[[int], bool]) -> None:
    """Detach the newest mount on the mount of `target`, wherever its inode has gone; it is the last in the table. As
    for `seen`."""
    below, known = mount_id(target.fd.fileno()), ids(before)
    for _ in range(EAGAIN_RETRIES):
        table = own_table()
        new = [number for number, parent in ids(table).items() if parent == below and number not in known]
        one = find(new[-1], table) if new else None
        if one is None:
            return
        try:
            with Fd(posix.open(one.target, _PATH)) as handle:
                if mount_id(handle.fileno()) == one.id:
                    if is_ours(handle.fileno()):
                        Mounted(handle).detach()
                    return
        except OSError as e:
            if e.errno not in (ENOENT, ENOTDIR, ELOOP):  # moved once more since the table was read
                raise


def _same_here(handle: Fd) -> Fd:
    """The same inode, opened in the present mount namespace, where the host's files have the same names."""
    here = Fd(posix.open(procfs.name_of(handle.fileno()), _PATH))
    if not _same(here.stat(), handle.stat()):
        here.close()
        raise OSError(ESTALE, "not the same file in the container's mount namespace")
    return here


def _set_flags(mounted: Mounted, flags: int) -> None:
    """MS_REMOUNT keeps no flag that is not named, and a user namespace may not drop those it was given."""
    fd = mounted.fd.fileno()
    path = procfs.fd_path(fd)
    try:
        kept = posix.fstatvfs(fd).f_flag & _FLAGS
        at_procfs(lambda: mount(None, path, None, abi.MS_REMOUNT | abi.MS_BIND | flags | kept))
        at_procfs(lambda: mount(None, path, None, abi.MS_PRIVATE))
    except OSError:
        mounted.detach()
        raise


def _check(mounted: Mounted, source: Source, target: Target) -> None:
    with target.reopen() as top:
        if mount_id(top.fileno()) != mount_id(mounted.fd.fileno()):
            raise OSError(ESTALE, "replaced while it was mounted on", target.path)
        got = posix.fstatvfs(top.fileno()).f_flag & _FLAGS
    if got & source.flags != source.flags:
        raise HookError(f"mount on {printable(target.path)}: flags {got:#x} instead of {source.flags:#x}",
                        "the kernel did not take the mount's flags")  # fmt: skip


def is_mounted(source: Source, target: Target) -> bool:
    """Whether the source is on the target already, with the flags."""
    return (
        target.is_mount_point()
        and _same(target.fd.stat(), source.object.stat())
        and posix.fstatvfs(target.fd.fileno()).f_flag & source.flags == source.flags
    )


def _same(a: posix.stat_result, b: posix.stat_result) -> bool:
    return (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino)


def at_procfs(call: Callable[[], None]) -> None:
    """Run a call that takes paths but no dirfd with our procfs as working directory: there `self/fd/N` is our
    descriptor N whatever is mounted at /proc."""
    with Fd(posix.open(b".", posix.O_PATH | posix.O_CLOEXEC)) as cwd:
        posix.fchdir(procfs.handle())
        try:
            call()
        finally:
            try:
                posix.fchdir(cwd.fileno())
            except OSError:
                posix.fchdir(cwd.fileno())  # asked once more: what was done must not be called a failure
