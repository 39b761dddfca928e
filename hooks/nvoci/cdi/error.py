"""What is wrong with a specification, and where."""

from __future__ import annotations

from nvoci.errors import HookError, hook_error, printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import TypeVar

    T = TypeVar("T")

_HINT = "see the CDI specification, SPEC.md"


class SpecError(HookError):
    """why: what is wrong; where: the place in the document (`devices[3].containerEdits.mounts[0].hostPath`), "" for all
    of it; file: the path it was read from, "" where it came from none. All three may be made of untrusted text."""

    def __init__(self, why: str, where: str = "", file: str = "", hint: str = _HINT) -> None:
        self.why = printable(why)
        self.where = printable(where)
        self.file = printable(file)
        subject = f"CDI spec {self.file}" if self.file else "CDI"
        parts = [subject, *([self.where] if self.where else []), self.why]
        super().__init__(": ".join(parts), hint)

    def with_file(self, file: str) -> SpecError:
        """The same, told of `file`."""
        return SpecError(self.why, self.where, file, self.hint)


class FileError(SpecError):
    """A file that is wrong for what it is, not for what it says. stage: what was to be done with it."""

    def __init__(self, stage: str, why: str, file: str = "", hint: str = "") -> None:
        super().__init__(why, "", file, hint)
        self.stage = stage
        self.message = f"{stage} {self.file}".rstrip() + f": {self.why}"
        self.args = (self.message,)

    def with_file(self, file: str) -> FileError:
        return FileError(self.stage, self.why, file, self.hint)


def file_error(stage: str, file: str, error: HookError | OSError) -> FileError:
    """What reading or writing `file` raised. A HookError is one of that stage."""
    told = hook_error(stage, file, error) if isinstance(error, OSError) else error
    return FileError(stage, told.message.rpartition(f"{printable(file)}: ")[2], file, told.hint)


def several(given: Iterable[T], what: str) -> tuple[T, ...]:
    """What a caller gives as several things. Raises TypeError for one text, whose characters it would be, and for what
    is no iterable."""
    if isinstance(given, (str, bytes, dict)) or not hasattr(given, "__iter__"):
        raise TypeError(f"{what}: a list or tuple is wanted, not {type(given).__name__} {ascii(given)[:60]}")
    return tuple(given)
