"""What the hook's modules would log, collected instead of printed: why something is left out, or not heard."""

from __future__ import annotations

import re
from contextlib import contextmanager
from typing import TYPE_CHECKING

from nvoci import log

if TYPE_CHECKING:
    from collections.abc import Iterator

_QUIET = log.ERROR + 1
_LINE = re.compile(r' level=(\w+) msg="((?:[^"\\]|\\.)*)"(.*)', re.DOTALL)
_FIELD = re.compile(r' (\w+)=(?:"((?:[^"\\]|\\.)*)"|(\S*))')
# What the document says in places of its own, and what comes of nothing being kept.
_TOLD = ("Using requested mode ", "Auto-detected mode ", "compiled configuration not kept")


class _Sink:
    """The one that is given to the logger, which cannot take one back: it keeps lines only while somebody asks."""

    def __init__(self) -> None:
        self._lines: list[str] | None = None
        self._added = False

    def start(self) -> list[str]:
        """A list that lines go to from now on."""
        if not self._added:
            log.add_sink(log.INFO, self._write)
            self._added = True
        self._lines = []
        return self._lines

    def stop(self) -> None:
        """No more."""
        self._lines = None

    def _write(self, line: str) -> None:
        if self._lines is not None:
            self._lines.append(line)


_sink = _Sink()


@contextmanager
def collected() -> Iterator[list[tuple[str, str]]]:
    """(level, text) of each line of at least `info`, each once; complete when the `with` is left. Nothing goes to
    stderr meanwhile."""
    notes: list[tuple[str, str]] = []
    lines = _sink.start()
    log.set_level(_QUIET)
    try:
        yield notes
    finally:
        log.set_level(log.WARNING)
        _sink.stop()
        notes[:] = dict.fromkeys([note for line in lines if (note := parse(line))])


def parse(line: str) -> tuple[str, str] | None:
    """A line of `log.format_line`; None for one that is of no interest here."""
    found = _LINE.search(line)
    if found is None or found[2].startswith(_TOLD):
        return None
    fields = [f"{name} {_plain(quoted) or bare}" for name, quoted, bare in _FIELD.findall(found[3])]
    return found[1], _plain(found[2]) + (f" ({', '.join(fields)})" if fields else "")


def _plain(quoted: str) -> str:
    return re.sub(r"\\(.)", r"\1", quoted)
