"""`/run/nvoci/inventory`: what discovery found, kept for as long as the node stays as it was.

    {"nvoci-inventory": 1, "fingerprint": {…}, "found": {…}}      (nvoci.discover.fingerprint, nvoci.discover.model)

A container start takes the GPUs and files from it and needs no NVML. It is used if it is root's alone and its
fingerprint holds; any other is not an error but a reason to look anew. What it says is still proved when it is used:
`open_node` and `open_source` raise Stale, and `use` then looks anew once.

Performance contract: reading and checking take less than 1 ms for 8 GPUs and 200 files; `Found` is built from it when
asked for, half as much again. Hot module.
"""

from __future__ import annotations

import fcntl
import posix
import time
from _stat import S_IFBLK, S_IFCHR, S_IFMT, S_ISDIR, S_ISREG
from errno import EEXIST, EINVAL, ELOOP, ENOENT, ENOTDIR, ENXIO, EWOULDBLOCK

from nvoci import jsonfile, log
from nvoci.discover import fingerprint
from nvoci.discover.fingerprint import Fingerprint
from nvoci.discover.model import Found
from nvoci.errors import HookError, errno_name, hook_error, printable
from nvoci.linux import procfs
from nvoci.linux.fd import Fd, read_at_most
from nvoci.linux.lookup import lookup
from nvoci.linux.rootfs import fsencode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any, TypeVar

    from nvoci.discover.fingerprint import Sources
    from nvoci.discover.model import DeviceNode

    T = TypeVar("T")

PATH = "/run/nvoci/inventory"
FORMAT = 1
LIMIT = 16 << 20
LOCK_SECONDS = 15.0
_ATTEMPTS = 3
_KEY = "nvoci-inventory"
_UNANSWERED = "ask NVML about"  # the stage of a problem that stands for a GPU or MIG device left out
_NEXT = "the next start looks again"
_FLAGS = posix.O_PATH | posix.O_NOFOLLOW | posix.O_CLOEXEC
_DIRECTORY = posix.O_PATH | posix.O_DIRECTORY | posix.O_CLOEXEC
_GONE = (ENOENT, ENOTDIR, ENXIO, ELOOP)


class Stale(Exception):
    """What was found is not so any more; the message is `verb OBJECT: how`."""


class Inventory:
    """`found` is built when it is first asked for, and raises ValueError then if it is malformed. identity: of the file
    it was read from."""

    __slots__ = ("_doc", "_found", "fingerprint", "identity")

    def __init__(self, mark: Fingerprint, found: Found | None = None, doc: Any = None) -> None:
        self.fingerprint = mark
        self.identity = (0, 0)
        self._found = found
        self._doc = doc

    @property
    def found(self) -> Found:
        """What the node has."""
        if self._found is None:
            self._found = Found.from_json(self._doc)
        return self._found

    def to_json(self) -> dict[str, Any]:
        """The document that is stored."""
        mark = self.fingerprint.to_json()
        return {_KEY: FORMAT, "fingerprint": mark, "found": self.found.to_json(sparse=True)}


class Loaded:
    """inventory: None where there is none to use, and `reason` says why in a few words. bad: the file itself is wrong,
    rather than absent or outdated."""

    __slots__ = ("bad", "inventory", "reason")

    def __init__(self, inventory: Inventory | None, reason: str = "", bad: bool = False) -> None:
        self.inventory = inventory
        self.reason = reason
        self.bad = bad


# -- reading ----------------------------------------------------------------------------------------------------------


def load(path: str = PATH) -> Loaded:
    """The inventory in a file, if that can be trusted. Never raises for what the file is like."""
    directory, _, name = path.rpartition("/")
    try:
        with Fd(posix.open(directory or "/", _DIRECTORY)) as top:
            st = top.stat()
            if not _is_private(st, _owners()):
                return Loaded(None, f"in a directory of uid {st.st_uid}, mode {st.st_mode & 0o7777:04o}", True)
            handle = Fd(posix.open(name, _FLAGS, dir_fd=top.fileno()))
        with handle:
            reason = _refusal(handle.stat())
            if reason:
                return Loaded(None, reason, True)
            with Fd(procfs.reopen(handle.fileno(), posix.O_RDONLY | posix.O_NONBLOCK | posix.O_NOCTTY)) as fd:
                st = fd.stat()
                data = read_at_most(fd.fileno(), LIMIT)
    except OSError as e:
        return Loaded(None, errno_name(e.errno or 0), e.errno not in (ENOENT, ENOTDIR))
    try:
        inventory = _parse(jsonfile.loads(data))
    except ValueError as e:
        return Loaded(None, f"malformed: {printable(e)}"[:200], True)
    inventory.identity = (st.st_ino, st.st_mtime_ns)
    return Loaded(inventory)


def _refusal(st: posix.stat_result) -> str:
    """Why a file is not ours to believe."""
    if not S_ISREG(st.st_mode):
        return "not a regular file"
    if st.st_uid not in _owners():
        return f"owned by uid {st.st_uid}"
    if st.st_mode & 0o022:
        return f"mode {st.st_mode & 0o7777:04o}: others can write it"
    return f"larger than {LIMIT} bytes" if st.st_size > LIMIT else ""


def _owners() -> tuple[int, ...]:
    """Who root may be, as in jsonfile.check_trusted: a user namespace may show the host's root as another."""
    return 0, posix.stat("/").st_uid


def _is_private(st: posix.stat_result, owners: tuple[int, ...]) -> bool:
    """Whether nobody else could put a file into that directory, or take one away."""
    return st.st_uid in owners and not st.st_mode & 0o022


def _parse(doc: Any) -> Inventory:
    if type(doc) is not dict or type(doc.get("found")) is not dict:
        raise ValueError("not an inventory")
    if doc.get(_KEY) != FORMAT:
        raise ValueError(f"its format is not {FORMAT}")
    return Inventory(Fingerprint.from_json(doc.get("fingerprint")), doc=doc["found"])


def check(inventory: Inventory, sources: Sources) -> str:
    """Why it does not hold any more; "" if it does. Raises HookError where the node cannot be looked at."""
    return fingerprint.difference(inventory.fingerprint, fingerprint.take(sources))


def current(sources: Sources, path: str = PATH) -> Loaded:
    """`load` and `check`."""
    loaded = load(path)
    if loaded.inventory is None:
        return loaded
    reason = check(loaded.inventory, sources)
    return Loaded(None, reason) if reason else loaded


# -- writing ----------------------------------------------------------------------------------------------------------


def store(inventory: Inventory, path: str = PATH) -> None:
    """Write it in place of any other, root's and readable by all. Raises HookError."""
    directory = path.rpartition("/")[0] or "/"
    try:
        _make_directory(directory)
        jsonfile.write_atomic(path, jsonfile.dumps(inventory.to_json()).encode() + b"\n")
    except OSError as e:
        raise hook_error("store inventory", path, e) from None


def unanswered(found: Found) -> str:
    """Why it must not be stored, in one line; "" where it may. A lost GPU is still in procfs, so that nothing
    there changes when it answers again: the next start has to ask."""
    for problem in found.problems:
        if problem.stage == _UNANSWERED:
            return problem.replace(hint="").line()
    return ""


def forget(path: str = PATH) -> None:
    """Remove an inventory, if one is there that would be believed. Raises HookError."""
    if load(path).inventory is None:
        return
    try:
        posix.unlink(path)
    except OSError as e:
        if e.errno != ENOENT:
            raise hook_error("remove inventory", path, e) from None


def _make_directory(path: str) -> None:
    try:
        posix.mkdir(path, 0o755)
    except OSError as e:
        if e.errno != EEXIST:
            raise
    st = posix.stat(path)
    if not S_ISDIR(st.st_mode):
        raise OSError(ENOTDIR, "not a directory", path)
    if not _is_private(st, (0, posix.geteuid())):
        raise HookError(f"store inventory in {printable(path)}: it is not root's alone", "check who made it")


def refresh(
    sources: Sources, build: Callable[[], Found], path: str = PATH, wrong: Inventory | None = None, share: bool = True
) -> Inventory:
    """Look anew and store what was found, unless NVML gave no answer about a part of it. Raises what `build` raises.

    share: one process looks at a time, and one that has waited takes what the other has found, unless that is `wrong`
    itself. Where it cannot be stored (another user, a read-only file system), the start goes on with what was found.
    """
    if not share:
        return _look_and_store(sources, build, path)
    with _Lock(path) as lock:
        if lock.waited or wrong is not None:
            made = current(sources, path).inventory
            if made is not None and (wrong is None or wrong.identity != made.identity):
                return made
        return _look_and_store(sources, build, path)


def _look_and_store(sources: Sources, build: Callable[[], Found], path: str) -> Inventory:
    inventory, changed = _look(sources, build)
    try:
        if changed:
            raise HookError(f"look at the node: it kept changing: {changed}", _NEXT)
        silent = unanswered(inventory.found)
        if silent:
            forget(path)
            raise HookError(silent, _NEXT)
        store(inventory, path)
    except HookError as e:
        log.info("inventory not stored", reason=e.line())
    return inventory


def _look(sources: Sources, build: Callable[[], Found]) -> tuple[Inventory, str]:
    """What was found belongs to the fingerprint only if that is the same before and after: else the second is told."""
    before = fingerprint.take(sources)
    for _ in range(_ATTEMPTS):
        found = build()
        after = fingerprint.take(sources)
        changed = fingerprint.difference(before, after)
        if not changed:
            break
        before = after
    return Inventory(after, found), changed


class _Lock:
    """flock(2) of a file beside the inventory. Whoever cannot have it goes on without: it saves work, no more."""

    __slots__ = ("_fd", "_path", "waited")

    def __init__(self, path: str) -> None:
        self._path = f"{path}.lock"
        self._fd = Fd(-1)
        self.waited = False

    def __enter__(self) -> _Lock:
        flags = posix.O_RDWR | posix.O_CREAT | posix.O_NOFOLLOW | posix.O_NONBLOCK | posix.O_CLOEXEC
        try:
            _make_directory(self._path.rpartition("/")[0] or "/")
            self._fd = Fd(posix.open(self._path, flags, 0o600))
            self._wait()
        except (OSError, HookError) as e:
            log.debug("no lock of the inventory", reason=e)
        return self

    def _wait(self) -> None:
        deadline = time.monotonic() + LOCK_SECONDS
        while time.monotonic() < deadline:
            try:
                fcntl.flock(self._fd.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except OSError as e:
                if e.errno != EWOULDBLOCK:
                    raise
            self.waited = True
            time.sleep(0.01)

    def __exit__(self, *exc: object) -> None:
        self._fd.close()


# -- using ------------------------------------------------------------------------------------------------------------


def needs_nvml(names: Iterable[str]) -> bool:
    """Whether a request names a MIG device: by UUID, or as `G:M` (a PCI address has two colons). An instance made anew
    with the same ids and another profile looks the same in procfs, so NVML has to be asked."""
    return any(name.lower().startswith("mig-") or name.count(":") == 1 for name in names)


def use(
    sources: Sources,
    build: Callable[[], Found],
    action: Callable[[Found], T],
    *,
    names: Iterable[str] = (),
    path: str = PATH,
) -> T:
    """`action` of what the node has, from the inventory if it holds and `names`, the devices asked for, allow it.

    `action` plans and changes nothing: if it raises Stale, the node is looked at anew and it is called once more.
    build: discovery without an inventory. Raises HookError, and what the two raise.
    """
    ask = needs_nvml(names)
    loaded = Loaded(None, "a MIG device is asked for by name") if ask else current(sources, path)
    wrong = None
    if loaded.inventory is not None:
        try:
            return action(loaded.inventory.found)
        except Stale as e:
            loaded.reason, wrong = str(e), loaded.inventory
        except ValueError as e:
            loaded.reason, loaded.bad, wrong = f"malformed: {printable(e)}", True, loaded.inventory
    (log.warning if loaded.bad else log.info)("inventory not used", path=path, reason=loaded.reason)
    inventory = refresh(sources, build, path, wrong, share=not ask)
    try:
        return action(inventory.found)
    except Stale as e:
        raise HookError(f"{e}, though it was found a moment ago", "is the driver being reloaded? try again") from None


def open_source(path: str, root: str) -> Fd:
    """An O_PATH handle of a file of the host, to be mounted or reopened by that handle and never by its name again.

    root: the host path of the driver root, or of the dev root, that it was found in: links on the way stay inside.
    Raises Stale where it is gone or not below that root, HookError for any other failure.
    """
    top = root.rstrip("/")
    if not path.startswith(top + "/"):
        raise Stale(f"open {printable(path)}: not below {printable(root)}")
    try:
        with Fd(posix.open(fsencode(top) or b"/", _DIRECTORY)) as fd:
            return Fd(lookup(fd.fileno(), fsencode(path[len(top) :])))
    except (OSError, ValueError) as e:
        error = e if isinstance(e, OSError) else OSError(EINVAL, str(e))
        if error.errno in _GONE:
            raise Stale(f"open {printable(path)}: {errno_name(error.errno or 0)}") from None
        raise hook_error("open", path, error) from None


def open_node(node: DeviceNode, root: str) -> Fd:
    """`open_source` of a device node, proved to have the type and number that it was found with. root: the dev root."""
    fd = open_source(node.host_path, root)
    st = fd.stat()
    kind = S_IFBLK if node.type == "b" else S_IFCHR
    if S_IFMT(st.st_mode) == kind and st.st_rdev == posix.makedev(node.major, node.minor):
        return fd
    fd.close()
    raise Stale(f"open {printable(node.host_path)}: not the device {node.type} {node.major}:{node.minor} any more")
