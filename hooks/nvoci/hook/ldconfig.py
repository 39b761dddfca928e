"""The operation that runs the host's ldconfig on a container's root and publishes what it found.

ldconfig itself changes nothing: it is confined, with `-X` (make no links), and its cache goes to its own tmpfs. Its
verbose output lists the links it would have made; they are made here on handles. The names in it come from libraries
of the image, so each is checked.
"""

from __future__ import annotations

import posix
from errno import EINVAL, ENOENT, ENOTDIR, EROFS

from nvoci import log
from nvoci.elf import Elf, ElfError
from nvoci.errors import HookError, hook_error, printable
from nvoci.hook import watchdog
from nvoci.hook.cachefile import CACHE, FEWER, publish
from nvoci.hook.operation import Operation, Transaction
from nvoci.hook.operations import MakeLink, shown
from nvoci.jsonfile import check_trusted, open_regular
from nvoci.ldcache.cache import CacheError, parse, redirected
from nvoci.ldcache.compute import is_name
from nvoci.ldcache.directory import Mounted
from nvoci.linux import abi, confine

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from nvoci.hook.container import Container
    from nvoci.linux.rootfs import Rootfs

_STAGE = "update-ldcache: ldconfig"
_MACHINE = {"x86_64": 62, "aarch64": 183}  # elf.h: EM_X86_64, EM_AARCH64
_ET_EXEC, _ET_DYN = 2, 3
_NEW_CONF, _NEW_CACHE = b"ld.so.conf", b"ld.so.cache"
_SECONDS = 20.0
_ARROW = b" -> "


def load_program(path: str) -> confine.Program:
    """The host's ldconfig, copied while the host's files are in reach. Raises HookError."""
    if not path:
        raise HookError("update-ldcache: ldconfig-path must be specified", "name the host's with --ldconfig-path")
    if not path.startswith("/"):
        raise HookError(f"{_STAGE} {printable(path)}: not an absolute path", "give --ldconfig-path from `/`")
    base = path[: -len(".real")] if path.endswith(".real") else path
    path = base + ".real" if _exists(base + ".real") else base
    with open_regular(path, _STAGE) as fd:
        check_trusted(fd, path, _STAGE)
        try:
            elf = Elf(fd.fileno())
        except ElfError as e:
            raise HookError(f"{_STAGE} {printable(path)}: {e}", "name the static program itself") from None
        if elf.interp or elf.type not in (_ET_EXEC, _ET_DYN) or elf.machine != _MACHINE[abi.MACHINE]:
            raise HookError(f"{_STAGE} {printable(path)}: not a static program of this machine",
                            "a dynamic one would load the container's libraries; name a static one")  # fmt: skip
        return confine.Program.from_fd(fd.fileno(), path)


def _exists(path: str) -> bool:
    try:
        posix.stat(path)
    except (OSError, ValueError):
        return False
    return True


class RunLdconfig(Operation):
    """Run, make the links of its list, publish its cache. Everything is done by operations of its own, which its undo
    takes back in reverse."""

    __slots__ = ("_done", "container", "directories", "program")

    def __init__(self, container: Container, program: confine.Program, directories: Sequence[bytes]) -> None:
        self.container = container
        self.program = program
        self.directories = directories
        self._done: list[Operation] = []

    def describe(self) -> str:
        return f"run {self.program.name} confined, and write its soname links and {shown(CACHE)}"

    def execute(self, transaction: Transaction) -> None:
        output, cache, skipped = self._run()
        missing = self._make_links(output, transaction)
        if skipped and self._done:
            # A link that led nowhere (libcuda.so, to a soname link not yet made) now leads to a library.
            cache = self._run()[1]
        self._publish(redirected(cache, missing) if missing else cache, transaction)

    def undo(self) -> None:
        while self._done:
            self._done.pop().undo()

    def _perform(self, operation: Operation, transaction: Transaction) -> None:
        self._done.append(operation)
        operation.execute(transaction)

    def _publish(self, cache: bytes, transaction: Transaction) -> None:
        for operation in publish(self.container, cache):
            self._perform(operation, transaction)

    def _make_links(self, output: bytes, transaction: Transaction) -> dict[bytes, bytes]:
        """Make the links; returns those that a read-only file system does not take, with the file each leads to."""
        missing: dict[bytes, bytes] = {}
        mounted = Mounted(self.container.rootfs)
        for link in wanted_links(self.container.rootfs, output):
            if mounted.names(self.container.rootfs.dir(link.link.rpartition(b"/")[0]).fileno()) is None:
                missing[link.link] = link.link.rpartition(b"/")[0] + b"/" + link.target
                continue  # a directory of somebody else's
            try:
                self._perform(link, transaction)
            except OSError as e:
                if e.errno != EROFS or transaction.strict:
                    raise hook_error("make", link.describe(), e) from None
                self._done.pop().undo()
                missing[link.link] = link.link.rpartition(b"/")[0] + b"/" + link.target
                log.info(f"update-ldcache: {link.describe()}: read-only file system, the cache names the file itself")
        return missing

    def _run(self) -> tuple[bytes, bytes, bool]:
        """ldconfig's verbose output, the cache, and whether it met a link that leads nowhere."""
        rootfs, name = self.container.rootfs, self.program.name
        place = confine.writable_place(rootfs)
        top = b"/" + place + b"/"
        argv = [b"ldconfig", b"-X", b"-i", b"-v", b"-f", top + _NEW_CONF, b"-C", top + _NEW_CACHE]
        seconds = max(1.0, min(_SECONDS, self.container.settings.timeout - 2))
        watchdog.may_raise(True)  # a wait with nothing to record: its process dies with the exception
        try:
            result = confine.run(
                self.program, rootfs.fileno(), argv, place=place, seconds=seconds,
                files={_NEW_CONF: b"".join(d + b"\n" for d in self.directories)}, outputs=(_NEW_CACHE,),
            )  # fmt: skip
        finally:
            watchdog.may_raise(False)
        if result.timed_out:
            raise HookError(f"run {name}: not finished after {seconds:g} s, and killed",
                            "a library directory of the image does not answer, or is endless")  # fmt: skip
        if result.status != 0:
            raise HookError(f"run {name}: {_ended(result.status)}{_complaint(result.stderr)}", "see its own message")
        if not result.filtered:
            log.warning("update-ldcache: the kernel takes no seccomp filter; ldconfig ran without capabilities instead")
        if result.truncated:
            raise HookError(f"run {name}: its list of libraries is longer than {confine.STDOUT_MAX >> 20} MiB", FEWER)
        cache = result.outputs.get(_NEW_CACHE, b"")
        try:
            parse(cache)
        except CacheError as e:
            raise HookError(f"run {name}: the cache it wrote is invalid: {e}", "name another --ldconfig-path") from None
        return result.stdout, cache, b"Cannot stat " in result.stderr


def _ended(status: int) -> str:
    return f"exit status {status}" if status > 0 else f"killed by signal {-status}"


def _complaint(stderr: bytes) -> str:
    """The last line that is not about a directory that is missing or named twice."""
    for line in reversed(stderr.splitlines()):
        if line and b"Can't stat " not in line and b"given more than once" not in line and not line.startswith(b"("):
            return ": " + printable(line[:500])
    return ""


# -- the links --------------------------------------------------------------------------------------------------


def parse_output(output: bytes) -> Iterator[tuple[bytes, bytes, bytes]]:
    """(directory, soname, file) for each link that ldconfig would see to.

    Lines are `DIRECTORY: (from CONF:LINE)` or `DIRECTORY: (hwcap: NUMBER) …` or `DIRECTORY:`, then a tab, `SONAME ->
    FILE` and what became of it. In `DIRECTORY: (hwcap: "NAME") …` (glibc-hwcaps) the cache names the files
    themselves, and ldconfig makes no links. A name that no file in the directory can have is passed over.
    """
    directory = first = b""
    refused = 0
    for line in output.split(b"\n"):
        if line.startswith(b"/"):
            directory = (line.partition(b": (")[0] if b": (" in line else line).rstrip(b":")
            if b': (hwcap: "' in line:
                directory = b""
        elif line.startswith(b"\t") and directory:
            names = line[1:].split(_ARROW)
            for suffix in (b" (changed)", b" (SKIPPED)"):
                if names[-1].endswith(suffix):
                    names[-1] = names[-1][: -len(suffix)]
            if len(names) == 2 and all(is_name(name) for name in names):
                yield directory, names[0], names[1]
            else:
                refused += 1
                first = first or directory + b": " + line[1:200]
    if refused:
        log.warning("update-ldcache: soname is not a file name, no link made", count=refused, first=first)


def wanted_links(rootfs: Rootfs, output: bytes) -> Iterator[MakeLink]:
    """An operation for each link that is missing, or leads to another file than ldconfig chose."""
    for directory, soname, name in parse_output(output):
        if soname != name and _is_link_wanted(rootfs, directory, soname, name):
            yield MakeLink(rootfs, name, directory + b"/" + soname)


def _is_link_wanted(rootfs: Rootfs, directory: bytes, soname: bytes, name: bytes) -> bool:
    try:
        here = rootfs.dir(directory).fileno()
        try:
            if posix.readlink(soname, dir_fd=here) == name:
                return False
        except FileNotFoundError:
            pass
        except OSError as e:
            if e.errno == EINVAL:
                return False  # a file of its own: ldconfig leaves it alone, and so do we
            raise
        chosen = rootfs.stat(directory + b"/" + name)
    except OSError as e:
        if e.errno in (ENOENT, ENOTDIR):
            return False  # gone meanwhile
        raise hook_error("look at", directory + b"/" + name, e) from None
    return not _leads_to(rootfs, directory + b"/" + soname, chosen)


def _leads_to(rootfs: Rootfs, path: bytes, chosen: posix.stat_result) -> bool:
    try:
        st = rootfs.stat(path)
    except OSError:
        return False
    return (st.st_dev, st.st_ino) == (chosen.st_dev, chosen.st_ino)
