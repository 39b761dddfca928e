"""One thing that is not as a specification has it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from nvoci.errors import printable

if TYPE_CHECKING:
    from collections.abc import Sequence

REFRESH = "refresh it"
MAX_TOLD = 4


@dataclass(frozen=True)
class Finding:
    """where: the place in the document. what: whom it is about; why: how it is. All may be made of untrusted text.
    mended: whether making the specification anew mends it; else `hint` says what does."""

    where: str
    what: str
    why: str
    hint: str = REFRESH
    mended: bool = True

    def line(self) -> str:
        """One line, in the form of HookError."""
        message = printable(f"{self.where}: {self.what}: {self.why}")
        return f"{message} ({printable(self.hint)})" if self.hint else message


def several(what: str, names: Sequence[str]) -> str:
    """`device 0`, `devices 0, 1`; the first of many."""
    shown = ", ".join(names[:MAX_TOLD]) + (", …" if len(names) > MAX_TOLD else "")
    return f"{what}{'s' if len(names) > 1 else ''} {shown}"
