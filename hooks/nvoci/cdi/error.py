"""What is wrong with a specification, and where."""

from __future__ import annotations

from nvoci.errors import HookError, printable

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
