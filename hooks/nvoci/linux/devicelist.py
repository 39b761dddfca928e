"""Device rules of a directory of the cgroup v1 `devices` hierarchy: devices.allow, devices.deny, devices.list.

Documentation/admin-guide/cgroup-v1/devices.rst. A cgroup forbids everything but its list, or (`a *:* rwm`) allows
everything; exceptions to the latter the kernel does not show, so it is left as it is. In a list one line must allow all
that an open asks for, and a rule that is written is joined to the line with exactly its numbers; undo takes away only
what the line got from us.
"""

from __future__ import annotations

import posix
from errno import EACCES, EINVAL, EPERM, EROFS

from nvoci import log
from nvoci.errors import HookError, hook_error, printable
from nvoci.linux.fd import Fd, read_at_most, write_all

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from nvoci.linux.devicerule import DeviceRule

_LIMIT = 4 << 20
_HINTS = {
    EPERM: "a cgroup above does not allow this device, or the hook lacks CAP_SYS_ADMIN",
    EACCES: "a user namespace may not change the host's cgroups: call the hook as createRuntime or prestart",
    EROFS: "the cgroup file system is mounted read-only here: call the hook as createRuntime or prestart",
}


class DeviceList:
    """The list of one directory, which `cgroup` has open."""

    __slots__ = ("_added", "cgroup", "path", "shared")

    def __init__(self, cgroup: Fd, path: bytes, shared: bool = False) -> None:
        """path: of the cgroup, for messages. shared: it is not the container's alone, and a change is an error."""
        self.cgroup = cgroup
        self.path = path
        self.shared = shared
        self._added: list[str] = []

    def allow(self, rules: Sequence[DeviceRule]) -> None:
        """Allow `rules`, or raise HookError with everything as it was."""
        try:
            lines = Lines(self._read())
        except (OSError, ValueError) as e:
            error = e if isinstance(e, OSError) else OSError(EINVAL, str(e))
            raise hook_error(f"device cgroup {printable(self.path)}: read", "devices.list", error) from None
        wanted = [rule for rule in rules if not lines.allow(rule)]
        if wanted and self.shared:
            raise HookError(f"device cgroup {printable(self.path)}: is the runtime's own, too",
                            "give the container a cgroup of its own, or leave device rules to the engine")  # fmt: skip
        for rule in wanted:
            line = f"{rule.type} {rule.major}:{rule.minor} {lines.missing(rule)}"
            try:
                self._write("devices.allow", line)
            except OSError as e:
                self._give_up()
                hint = _HINTS.get(e.errno or 0, "")
                raise hook_error(f"device cgroup {printable(self.path)}: allow", rule, e, hint) from None
            self._added.append(line)
        if wanted:
            log.info("devices allowed", cgroup=self.path, rules=", ".join(self._added))

    def undo(self) -> None:
        """Take away what was added. Raises HookError once all has been tried."""
        failed: HookError | None = None
        while self._added:
            line = self._added.pop()
            try:
                self._write("devices.deny", line)
            except OSError as e:
                failed = failed or hook_error(f"device cgroup {printable(self.path)}: deny", line, e)
        if failed is not None:
            raise failed

    def close(self) -> None:
        """Close the directory; what was allowed stays allowed."""
        self.cgroup.close()

    def _give_up(self) -> None:
        try:
            self.undo()
        except HookError as e:
            log.error(e.line())

    def _read(self) -> bytes:
        flags = posix.O_RDONLY | posix.O_CLOEXEC | posix.O_NOFOLLOW
        with Fd(posix.open("devices.list", flags, dir_fd=self.cgroup.fileno())) as fd:
            return read_at_most(fd.fileno(), _LIMIT)

    def _write(self, name: str, line: str) -> None:
        """One rule for each write(2)."""
        flags = posix.O_WRONLY | posix.O_CLOEXEC | posix.O_NOFOLLOW
        with Fd(posix.open(name, flags, dir_fd=self.cgroup.fileno())) as fd:
            write_all(fd.fileno(), line.encode())


class Lines:
    """The lines of devices.list."""

    __slots__ = ("_exact", "_wide")

    def __init__(self, text: bytes) -> None:
        """Raises ValueError for another form."""
        self._exact: dict[tuple[str, str, str], str] = {}
        self._wide: list[tuple[str, str, str, str]] = []
        for line in text.decode("ascii").split("\n"):
            if line:
                kind, numbers, access = line.split(" ")
                major, minor = numbers.split(":")
                if kind == "a" or "*" in (major, minor):
                    self._wide.append((kind, major, minor, access))
                else:
                    self._exact[kind, major, minor] = access

    def allow(self, rule: DeviceRule) -> bool:
        """Whether one line allows all of the rule."""
        return not self.missing(rule) or any(
            kind == "a"
            or (
                kind == rule.type
                and major in ("*", str(rule.major))
                and minor in ("*", str(rule.minor))
                and set(access) >= set(rule.access)
            )
            for kind, major, minor, access in self._wide
        )

    def missing(self, rule: DeviceRule) -> str:
        """What of the rule's access the line with exactly its numbers does not have."""
        there = self._exact.get((rule.type, str(rule.major), str(rule.minor)), "")
        return "".join(letter for letter in rule.access if letter not in there)
