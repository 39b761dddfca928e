"""Make the host's device nodes of the driver, by the rules of nvidia-modprobe: by handle, and atomically.

Several containers may start at the same time and make the same node: who finds it made is content. What has a node's
name and is not it is replaced by a rename, so that nobody ever finds the name empty.
"""

from __future__ import annotations

import posix
from _stat import S_IMODE, S_ISLNK
from errno import EEXIST, EINVAL

from nvoci.hook.migcaps import number
from nvoci.linux import devnode, procfs
from nvoci.linux.fd import Fd

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nvoci.linux.devnode import Number

_NODE = posix.O_PATH | posix.O_NOFOLLOW | posix.O_CLOEXEC
_DIRECTORY = _NODE | posix.O_DIRECTORY
_DIRECTORY_MODE = 0o755
_LINKS = b"char"  # /dev/char: names by number, which systemd looks for
_TRIES = 8


class Rules:
    """Who owns a node, its mode, and whether nodes may be made or changed at all. The driver tells it, of all in
    /proc/driver/nvidia/params, and of a capability's node in its access file."""

    __slots__ = ("gid", "mode", "modify", "uid")

    def __init__(self, text: bytes = b"") -> None:
        """Of lines `KEY: NUMBER`; what is not said, or is no number, is as for a driver that says nothing."""
        found = {}
        for line in text.split(b"\n"):
            key, _, value = line.partition(b":")
            found[key.strip()] = number(value.strip())
        self.uid = _or(found.get(b"DeviceFileUID"), 0)
        self.gid = _or(found.get(b"DeviceFileGID"), 0)
        self.mode = _or(found.get(b"DeviceFileMode"), 0o666) & 0o777
        self.modify = 0 not in (found.get(b"ModifyDeviceFiles"), found.get(b"DeviceFileModify"))


def _or(value: int | None, default: int) -> int:
    return default if value is None else value


def ensure(dev: int, name: bytes, wanted: Number, rules: Rules) -> bool:
    """Have the node `name` below the directory that `dev` has open, and the link in `char` that leads to it, unless the
    rules forbid it. Returns whether anything was changed. Raises OSError, HookError."""
    if not rules.modify:
        return False
    folder, _, last = name.rpartition(b"/")
    with _directory(dev, folder) as directory:
        changed = _node(directory.fileno(), last, wanted, rules)
    with _directory(dev, _LINKS) as links:
        return _link(links.fileno(), b"%d:%d" % wanted[1:], b"../" + name) or changed


def _directory(dev: int, name: bytes) -> Fd:
    """A directory in `dev`, made if it is missing; b"": itself. A link is none."""
    if not name:
        return Fd(posix.dup(dev))
    try:
        posix.mkdir(name, _DIRECTORY_MODE, dir_fd=dev)
    except FileExistsError:
        return Fd(posix.open(name, _DIRECTORY, dir_fd=dev))
    found = Fd(posix.open(name, _DIRECTORY, dir_fd=dev))
    posix.chmod(procfs.fd_path(found.fileno()), _DIRECTORY_MODE, dir_fd=procfs.handle())  # whatever the umask is
    return found


def _node(directory: int, name: bytes, wanted: Number, rules: Rules) -> bool:
    owner = (rules.uid, rules.gid)
    for _ in range(_TRIES):
        try:
            with Fd(posix.open(name, _NODE, dir_fd=directory)) as there:
                if devnode.number_of(there.stat()) == wanted:
                    return _adjust(there, rules)
        except FileNotFoundError:
            try:
                devnode.make(directory, name, wanted, rules.mode, owner).close()
                return True
            except FileExistsError:
                continue  # made by somebody else meanwhile
        temporary = _temporary()
        devnode.make(directory, temporary, wanted, rules.mode, owner).close()
        _put(directory, temporary, name)
        return True
    raise OSError(EEXIST, "made and removed again and again", name)


def _adjust(node: Fd, rules: Rules) -> bool:
    """Its mode and owner."""
    st, path = node.stat(), procfs.fd_path(node.fileno())
    if (st.st_uid, st.st_gid, S_IMODE(st.st_mode)) == (rules.uid, rules.gid, rules.mode):
        return False
    posix.chown(path, rules.uid, rules.gid, dir_fd=procfs.handle())
    posix.chmod(path, rules.mode, dir_fd=procfs.handle())
    return True


def _link(directory: int, name: bytes, text: bytes) -> bool:
    """A link of this name that says `text`; another is replaced, and what is no link is an error."""
    try:
        posix.symlink(text, name, dir_fd=directory)
        return True
    except FileExistsError:
        st = posix.stat(name, dir_fd=directory, follow_symlinks=False)
    if not S_ISLNK(st.st_mode):
        raise OSError(EINVAL, "not a link", name)
    if posix.readlink(name, dir_fd=directory) == text:
        return False
    temporary = _temporary()
    posix.symlink(text, temporary, dir_fd=directory)
    _put(directory, temporary, name)
    return True


def _temporary() -> bytes:
    return b".nvoci-" + posix.urandom(6).hex().encode()


def _put(directory: int, temporary: bytes, name: bytes) -> None:
    try:
        posix.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
    except OSError:
        posix.unlink(temporary, dir_fd=directory)
        raise
