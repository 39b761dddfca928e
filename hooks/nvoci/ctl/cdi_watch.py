"""`nvoci cdi watch`: a line for whatever changes among the devices."""

from __future__ import annotations

import os
import signal
import stat
import time
from errno import EACCES, EMFILE, ENFILE, ENOENT, ENOSPC, ENOTDIR
from typing import TYPE_CHECKING, Any

import click

from nvoci.cdi import specdir
from nvoci.ctl import cdi
from nvoci.errors import hook_error, printable
from nvoci.jsonfile import dumps
from nvoci.linux import abi
from nvoci.linux.inotify import Event, Inotify

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nvoci.cdi.specdir import Change, Registry

# linux/inotify.h
_IN_ATTRIB = 0x4
_IN_MASK_ADD = 0x20000000
_COMING_AND_GOING = (
    abi.IN_CREATE | abi.IN_DELETE | abi.IN_MOVED_FROM | abi.IN_MOVED_TO | abi.IN_DELETE_SELF | abi.IN_MOVE_SELF
)
_CONTENT = _COMING_AND_GOING | abi.IN_CLOSE_WRITE | _IN_ATTRIB
_NOT_THERE = (ENOENT, ENOTDIR, EACCES)
_HINTS = {
    ENOSPC: "raise fs.inotify.max_user_watches",
    EMFILE: "raise fs.inotify.max_user_instances, or RLIMIT_NOFILE",
    ENFILE: "raise fs.file-max",
}
_QUIET = 0.05  # seconds without an event, after which what was begun is taken to be finished
_PATIENCE = 0.5


@click.command("watch")
@cdi.in_dirs
@click.option("--json", "as_json", is_flag=True, help="A JSON object for each line.")
def command(*, registry: Registry, as_json: bool) -> None:
    """Print what changes among the devices, until SIGINT or SIGTERM.

    \b
    + NAME  FILE   a device that was not there before
    - NAME         one that is gone
    ~ NAME  FILE   one that has other edits, or comes from another file
    ! ERROR        what is wrong with a file or a directory now
    = FILE         nothing is wrong with it any more

    The directories need not exist yet. A file elsewhere that a symbolic link leads to is not watched.
    """
    signal.signal(signal.SIGINT, _end)
    signal.signal(signal.SIGTERM, _end)
    with Source(registry.dirs) as source:
        registry.refresh()
        cdi.warn(registry)
        click.echo(f"nvoci: watching {printable(', '.join(registry.dirs))}", err=True)
        for change in specdir.watch(registry, source):
            for row in rows(change, registry):
                click.echo(dumps(row) if as_json else _line(row))


def _end(_number: int, _frame: object) -> None:
    raise SystemExit(0)


def rows(change: Change, registry: Registry) -> list[dict[str, Any]]:
    """The change as JSON objects, one for each line."""
    out: list[dict[str, Any]] = [{"change": "removed", "device": name} for name in change.removed]
    for word, names in (("added", change.added), ("changed", change.changed)):
        for name in names:
            entry = registry.find(name)
            out.append({"change": word, "device": name, "path": printable(entry.path if entry else "")})
    for path, errors in change.errors.items():
        out += [{"change": "error", "path": printable(path), "error": error.line()} for error in errors]
        out += [] if errors else [{"change": "no error", "path": printable(path)}]
    return out


def _line(row: dict[str, Any]) -> str:
    marks = {"added": "+", "removed": "-", "changed": "~", "error": "!", "no error": "="}
    words = [row["error"]] if "error" in row else [row[key] for key in ("device", "path") if key in row]
    return f"{marks[row['change']]} {'  '.join(words)}"


class Source:
    """Says when something in the directories may have changed, once for a burst of events. Every directory on the way
    to one is watched too, so that it may come, go, and be moved."""

    def __init__(self, directories: tuple[str, ...]) -> None:
        self._directories = [os.path.abspath(path) for path in directories]
        self._inotify: Inotify | None = None
        self._steps: dict[int, set[bytes]] = {}  # by watch: the names in it that lead to a directory
        self._content: dict[int, str] = {}  # by watch: the directory of specifications that it is
        self._watch()

    def _watch(self) -> None:
        """Begin anew, on what is there now."""
        self.close()
        self._steps, self._content = {}, {}
        try:
            self._inotify = Inotify()
        except OSError as e:
            raise hook_error("watch", "directories", e, _HINTS.get(e.errno or 0, "")) from None
        for directory in self._directories:
            way = "/"
            for name in [part for part in directory.split("/") if part]:
                watch = self._add(way, _COMING_AND_GOING)
                if watch is None:
                    break
                self._steps.setdefault(watch, set()).add(os.fsencode(name))
                way = os.path.join(way, name)
            else:
                watch = self._add(way, _CONTENT)
                if watch is not None:
                    self._content[watch] = way

    def _add(self, path: str, mask: int) -> int | None:
        """None where there is no such directory; the one before it is watched."""
        assert self._inotify is not None
        try:
            return self._inotify.add(os.fsencode(path), mask | _IN_MASK_ADD | abi.IN_ONLYDIR)
        except OSError as e:
            if e.errno in _NOT_THERE:
                return None
            raise hook_error("watch", path, e, _HINTS.get(e.errno or 0, "")) from None

    def __iter__(self) -> Iterator[None]:
        while True:
            if self._burst():
                yield None

    def _burst(self) -> bool:
        """Wait for events, and for the end of a burst of them; whether one of them matters."""
        assert self._inotify is not None
        events = self._inotify.read(None)
        deadline = time.monotonic() + _PATIENCE
        matters = moved = False
        while events:
            for event in events:
                moved = moved or self._is_way(event)
                matters = matters or moved or self._is_content(event)
            events = self._inotify.read(_QUIET) if matters and time.monotonic() < deadline else []
        if moved:
            self._watch()
        return matters

    def _is_way(self, event: Event) -> bool:
        """Whether the directories may be others now: one came, went or was moved, or events were lost."""
        if event.watch < 0 or event.mask & (abi.IN_DELETE_SELF | abi.IN_MOVE_SELF | abi.IN_IGNORED):
            return True
        return event.name in self._steps.get(event.watch, ()) and bool(event.mask & _COMING_AND_GOING)

    def _is_content(self, event: Event) -> bool:
        """A new file is waited for until it is closed; what has its content at once, a link, is not."""
        if event.watch not in self._content:
            return False
        if event.mask & abi.IN_CREATE:
            try:
                st = os.lstat(os.path.join(self._content[event.watch], os.fsdecode(event.name)))
            except OSError:
                return False  # its end is an event too
            return not stat.S_ISREG(st.st_mode) or st.st_nlink > 1
        return True

    def close(self) -> None:
        """Stop watching."""
        if self._inotify is not None:
            self._inotify.close()
            self._inotify = None

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
