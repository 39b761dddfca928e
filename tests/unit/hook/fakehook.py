"""A hook for tests, put into the table by `conftest.py`: it does what `--do ACTION:ARGUMENT` says and keeps a journal.

Runs in a hook process, so it imports what a hook may import.
"""

from __future__ import annotations

import _signal
import errno
import posix
import resource
import select
import sys

from nvoci import log
from nvoci.errors import HookError
from nvoci.hook import watchdog
from nvoci.hook.operation import Operation
from nvoci.hook.table import COMMON, HOOKS, LIST, SPEC, TEXT, Hook, Option
from nvoci.linux import procfs
from nvoci.linux.syscalls import prctl

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from nvoci.hook.container import Container
    from nvoci.hook.operation import Transaction
    from nvoci.hook.settings import Settings

    Prepared = tuple[int, list[tuple[str, str]]]

NAME = "fake"


def register() -> None:
    options = (Option("do", LIST, "actions"), Option("journal", TEXT, "a host file"), SPEC, *COMMON)
    HOOKS[NAME] = Hook(NAME, "fakehook", "Do as told", options)


def prepare(options: dict[str, Any], settings: Settings) -> Prepared | None:
    fd = posix.open(options["journal"], posix.O_WRONLY | posix.O_CREAT | posix.O_APPEND, 0o644)
    actions = [(text.partition(":")[0], text.partition(":")[2]) for text in options["do"]]
    for action, argument in actions:
        if action == "prepare-error":
            raise HookError(f"{NAME}: {argument}", "as told")
    if ("nothing", "") in actions:
        return None
    return fd, actions


def plan(prepared: Prepared, container: Container) -> list[Operation]:
    fd, actions = prepared
    posix.write(fd, b"plan\n")
    operations: list[Operation] = []
    for action, argument in actions:
        if action == "plan-errno":
            raise OSError(getattr(errno, argument), "as told", b"/planned")
        if action == "plan-error":
            raise HookError(argument, "as told")
        operations.append(Told(fd, action, argument, container))
    return operations


class Told(Operation):
    """One action."""

    def __init__(self, fd: int, action: str, argument: str, container: Container) -> None:
        self.fd = fd
        self.action = action
        self.argument = argument
        self.container = container

    def describe(self) -> str:
        return f"{self.action} {self.argument}"

    def note(self, text: str) -> None:
        posix.write(self.fd, text.encode("utf-8", "surrogateescape") + b"\n")

    def execute(self, transaction: Transaction) -> None:
        self.note(f"do {self.describe()}")
        getattr(self, "_" + self.action.replace("-", "_"))()

    def undo(self) -> None:
        self.note(f"undo {self.describe()}")
        if self.action == "undo-fails":
            raise OSError(errno.EIO, "as told")

    def _step(self) -> None:
        pass

    _undo_fails = _step

    def _errno(self) -> None:
        raise OSError(getattr(errno, self.argument), "as told", b"/x")

    def _error(self) -> None:
        raise HookError(self.argument, "as told")

    def _bug(self) -> None:
        raise TypeError(self.argument)

    def _wait(self) -> None:
        watchdog.may_raise(True)
        try:
            select.select([], [], [], float(self.argument))
        finally:
            watchdog.may_raise(False)

    def _busy(self) -> None:
        """Between a system call and its record: nothing may interrupt this."""
        select.select([], [], [], float(self.argument))
        self.note("recorded")

    def _deaf(self) -> None:
        _signal.pthread_sigmask(_signal.SIG_BLOCK, range(1, 32))
        select.select([], [], [], float(self.argument))

    def _stat(self) -> None:
        posix.stat(self.argument)

    def _say(self) -> None:
        """COUNT:TEXT as that many errors, of which there may be any number."""
        count, _, text = self.argument.partition(":")
        for _ in range(int(count)):
            log.error(text)

    def _fds(self) -> None:
        links = [posix.readlink(f"self/fd/{n}", dir_fd=procfs.handle()) for n in range(3)]
        self.note("fds " + " ".join([link.partition(":")[0] for link in links]))

    def _die(self) -> None:
        posix.kill(int(posix.readlink(b"self", dir_fd=procfs.handle())), 9)

    def _import(self) -> None:
        try:
            __import__(self.argument)
        except ImportError:
            self.note(f"sealed {self.argument}")
        else:
            self.note(f"imported {self.argument}")

    def _where(self) -> None:
        mnt = procfs.ns_id(b"self/ns/mnt")[1]
        self.note(f"place {self.container.place} mnt {mnt} cwd {posix.getcwd()} pid {posix.getpid()}")

    def _self(self) -> None:
        status = procfs.read(b"self/status").decode()
        fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
        self.note(f"umask {fields['Umask']} blocked {fields['SigBlk']} env {len(posix.environ)}")
        self.note(f"dumpable {prctl(3)} core {resource.getrlimit(resource.RLIMIT_CORE)}")  # PR_GET_DUMPABLE
        self.note("fds " + " ".join(sorted(posix.listdir("/proc/self/fd"), key=int)))
        self.note("modules " + " ".join(sorted(sys.modules)))
