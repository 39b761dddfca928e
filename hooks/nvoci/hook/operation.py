"""What a hook wants done: operations with `describe()`, `execute()`, `undo()`, and the stack they run on.

A hook's `plan()` only makes these objects; everything that changes the container happens in `execute()`, so that
the operations of several hooks run in order on one stack and the first failure undoes all of them in reverse.
"""

from __future__ import annotations

from errno import EROFS

from nvoci import log
from nvoci.errors import HookError, errno_name, hook_error, printable
from nvoci.hook import watchdog
from nvoci.linux.rootfs import Made
from nvoci.linux.staging import NAME, Staging, look, sweep

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nvoci.hook.preview import Preview
    from nvoci.linux.devicerule import DeviceRule
    from nvoci.linux.rootfs import Dir

_SHOWN_RULES = 3


class Operation:
    """One change. `undo()` must cope with an `execute()` that stopped half-way; `describe()` is a verb and objects
    in container terms, which is also how an error names it."""

    __slots__ = ()

    def describe(self) -> str:
        """`symlink /usr/lib/libcuda.so -> libcuda.so.1`"""
        raise NotImplementedError

    def preview(self, view: Preview) -> bool:
        """For --dry-run: whether there is anything to do, given the operations `view` has seen; tells `view`."""
        return True

    def execute(self, transaction: Transaction) -> None:
        """Do it. Raises OSError or HookError."""
        raise NotImplementedError

    def undo(self) -> None:
        """Take back whatever `execute()` got done. Raises OSError or HookError."""


class AllowDevices(Operation):
    """Device rules alone, for nodes that are in the container anyway, or will be. Only for hooks whose module says
    `DEVICES = True`."""

    __slots__ = ("rules",)

    def __init__(self, rules: list[DeviceRule]) -> None:
        self.rules = rules

    def describe(self) -> str:
        more = f" and {len(self.rules) - _SHOWN_RULES} more" if len(self.rules) > _SHOWN_RULES else ""
        return f"allow {', '.join([str(rule) for rule in self.rules[:_SHOWN_RULES]])}{more}"

    def execute(self, transaction: Transaction) -> None:
        for rule in self.rules:
            transaction.allow(rule)


class Transaction:
    """The undo stack of one hook process, the staging directories its operations share, and the device rules they
    ask for, which are given once all of them are done."""

    __slots__ = ("_done", "_left", "_made", "_stagings", "_strange", "_visited", "rules", "strict")

    def __init__(self, strict: bool = False) -> None:
        self.strict = strict
        self._done: list[tuple[str, Operation]] = []
        self._made: list[Made] = []
        self._stagings: dict[tuple[int, int], Staging] = {}
        self._visited: set[tuple[int, int]] = set()
        self._left: list[Dir] = []  # where a killed run has left something
        self._strange = False  # it was told that one of our names is somebody else's
        self.rules: dict[DeviceRule, None] = {}  # in the order they were asked for

    def allow(self, rule: DeviceRule) -> None:
        """The container may open this device. Only for hooks whose module says `DEVICES = True`."""
        self.rules[rule] = None

    def visit(self, directory: Dir) -> None:
        """To be told of every directory before an operation works in it: at commit, leftovers of a killed run are
        cleared there. Raises HookError where the root's guard forbids to change anything there."""
        directory.check()
        if directory.identity in self._visited:
            return
        self._visited.add(directory.identity)
        left, strange = look(directory)
        if left:
            self._left.append(directory)
        if strange:
            # One line, whatever an image has: each of its directories may have such a name.
            tell, self._strange = (log.info if self._strange else log.warning), True
            tell(f"{_shown(directory, strange)}: was not made by a hook, and is left as it is")

    def pass_by(self, directory: Dir) -> None:
        """As `visit`, of a directory in which nothing is to be changed: where that is forbidden nothing is cleared
        either."""
        try:
            self.visit(directory)
        except HookError:
            pass

    def made(self) -> Made:
        """For the directories that an operation makes: where a staging directory lies in one of them, its own undo
        cannot remove it yet."""
        made = Made()
        self._made.append(made)
        return made

    def staging(self, directory: Dir) -> Staging:
        """The locked temporary directory in `directory`, opened at the first call."""
        found = self._stagings.get(directory.identity)
        if found is None:
            found = self._stagings[directory.identity] = Staging(directory)
        return found

    def perform(self, hook: str, operation: Operation) -> None:
        """Execute one operation. A read-only file system is a warning that names what was left out, and an error
        with `strict`; anything else that fails raises HookError, and the caller undoes."""
        watchdog.check()
        self._done.append((hook, operation))
        try:
            operation.execute(self)
        except OSError as e:
            if e.errno != EROFS or self.strict:
                raise hook_error(f"{hook}:", operation.describe(), e) from None
            operation.undo()
            log.warning(f"{hook}: {operation.describe()}: left out, read-only file system (EROFS)")
        except HookError as e:
            raise HookError(f"{hook}: {e.message}", e.hint) from None

    def undo(self) -> None:
        """Undo everything in reverse; what cannot be undone is logged and does not stop the rest, and the staging
        directories are then left as they are, since an object of the image may lie there."""
        clean = True
        while self._done:
            hook, operation = self._done.pop()
            try:
                operation.undo()
            except HookError as e:
                log.error(f"{hook}: undo {operation.describe()}: {e.line()}")
                clean = False
            except OSError as e:
                log.error(f"{hook}: undo {operation.describe()}: {errno_name(e.errno or 0)}")
                clean = False
        if clean:
            self._close(undone=True)
        while self._made:
            self._made.pop().undo()
        left = [directory for directory in self._left if look(directory)[0]]
        if left:
            more = f", and in {len(left) - 1} more directories" if len(left) > 1 else ""
            log.warning(f"{_shown(left[0], NAME)}{more}: what a killed run had put aside stays until a run succeeds")

    def commit(self) -> None:
        """Forget the undo stack and remove the staging directories, and with them the objects that were replaced, by
        this run or by one that was killed."""
        self._done.clear()
        self._close(undone=False)
        for directory in self._left:
            sweep(directory)
        self._left.clear()

    def _close(self, *, undone: bool) -> None:
        for staging in self._stagings.values():
            try:
                staging.close(undone=undone)
            except OSError as e:
                log.warning(f"remove the staging directory in {_shown(staging.directory)}: {errno_name(e.errno or 0)}; "
                            "the next run removes it")  # fmt: skip
        self._stagings.clear()


def _shown(directory: Dir, name: bytes = b"") -> str:
    """A name in a directory, as the container would write it."""
    return "/" + printable(directory.path.strip(b"/") + b"/" + name).strip("/")
