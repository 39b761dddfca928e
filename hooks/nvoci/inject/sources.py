"""What is mounted: files and directories of the host, taken by handle before a container is entered.

A source is one descriptor: a detached clone of its mount with its attributes set, private or slave all through, or,
where the kernel has no mount API (before Linux 5.2) or a seccomp profile forbids it, a handle for mount(2) to bind.
`nvoci.linux.mount` attaches both and reads the flags back.
"""

from __future__ import annotations

import posix
from errno import EBADF
from stat import S_ISDIR

from nvoci.errors import HookError, hook_error, printable
from nvoci.jsonfile import path_from_json
from nvoci.linux import abi, guarded, mount, procfs
from nvoci.linux.fd import Fd
from nvoci.linux.mountinfo import own_mounts
from nvoci.linux.rootfs import fsencode
from nvoci.linux.syscalls import mount_setattr, move_mount, open_tree

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nvoci.inject.mountopts import MountOptions

# One descriptor each. The usual limit is 1024, some of which are needed besides, and select(2) knows no more.
MAX_SOURCES = 800
_ROOT = posix.O_PATH | posix.O_DIRECTORY | posix.O_CLOEXEC
MISSING = "the specification is not of this host, or older than its files: generate it anew"


def host_path(text: str) -> str:
    """A path of the host out of a specification, as this process spells it. Raises HookError unless it is absolute."""
    try:
        path = path_from_json(text)
    except ValueError:
        path = ""
    if not path.startswith("/"):
        raise HookError(f"mount {printable(text)}: not an absolute path of the host", "mend the specification")
    return path


def container_path(text: str) -> str:
    """A path of the container out of a specification, as this process spells it. Raises HookError."""
    try:
        return path_from_json(text)
    except ValueError as e:
        raise HookError(f"container path {printable(text)}: {e}", "mend the specification") from None


class HostSource(mount.Source):
    """A source with its options. `is_directory`: what has to be there to mount it on."""

    __slots__ = ("is_directory", "options", "path")

    def __init__(self, path: str, options: MountOptions, handle: Fd, tree: Fd | None) -> None:
        super().__init__(handle, options.flags | options.all_flags, tree)
        self.path = path
        self.options = options
        self.is_directory = S_ISDIR(handle.stat().st_mode)

    def __str__(self) -> str:
        return printable(self.path)


def open_source(path: str, options: MountOptions) -> HostSource:
    """Take `path` as a source; links are followed, but none that another than root may have put there: a moment ago it
    may have led elsewhere. To be called on the host. Raises HookError."""
    try:
        with Fd(posix.open("/", _ROOT)) as root, guarded.find(root.fileno(), fsencode(path)) as found:
            return _clone(path, options, found.fd)
    except OSError as e:
        if e.strerror == guarded.LINK:
            raise HookError(f"mount {printable(path)}: ELOOP: leads through {guarded.LINK}",
                            "name in the specification what it leads to") from None  # fmt: skip
        raise hook_error("mount", path, e, MISSING if isinstance(e, FileNotFoundError) else "") from None


def _clone(path: str, options: MountOptions, handle: Fd) -> HostSource:
    flags = abi.OPEN_TREE_CLONE | abi.AT_EMPTY_PATH | (abi.AT_RECURSIVE if options.recursive else 0)
    tree = mount.attempt("open_tree", lambda: open_tree(handle.fileno(), b"", flags)) if can_move() else None
    if tree is None:
        if options.recursive and _has_mounts_below(handle):
            raise HookError(f"mount {printable(path)}: has mounts below it, and this kernel cannot take them along",
                            "Linux 5.2 is needed for `rbind` there; name the mounts one by one")  # fmt: skip
        return HostSource(path, options, Fd(posix.dup(handle.fileno())), None)
    clone = Fd(tree)
    source = HostSource(path, options, clone, clone)
    try:
        source.ready = mount.attempt("mount_setattr", lambda: _set_attributes(tree, options)) is not None
        if not source.ready and options.all_flags and options.recursive and _has_mounts_below(handle):
            raise HookError(f"mount {printable(path)}: has mounts below it, and this kernel cannot set their flags",
                            "Linux 5.12 is needed for `rro` and its like there")  # fmt: skip
    except (OSError, HookError):
        source.close()
        raise
    return source


def _set_attributes(tree: int, options: MountOptions) -> None:
    mount_setattr(tree, 0, options.propagation, abi.AT_RECURSIVE)
    if options.flags:
        mount_setattr(tree, options.flags)
    if options.all_flags:
        mount_setattr(tree, options.all_flags, 0, abi.AT_RECURSIVE)


def can_move() -> bool:
    """Whether move_mount(2) is there: without it a detached clone could never be attached."""
    try:
        return mount.attempt("move_mount", lambda: move_mount(-1, -1)) is not None
    except OSError as e:
        return e.errno == EBADF


def _has_mounts_below(handle: Fd) -> bool:
    top = procfs.name_of(handle.fileno()).rstrip(b"/") + b"/"
    return any(one.target.startswith(top) for one in own_mounts())
