"""Which lines of the package a process goes through, and from where: for branch coverage of programs that are forked,
killed, sealed, and without a file system of ours.

A tracer writes each new arc (file, from line, to line) into a shared mapping of a file, which asks nothing of the
kernel: what a process did is there whatever becomes of it. Every forked child gets an area of its own in the file, or
a file of its own where there may be thousands of them, as of pytest. Arcs are as coverage.py means them: a negative
number is the entry to, or the exit from, the code object that begins at that line.

As a program: `python -ISB arcs.py FOLDER ENTRY ARGUMENTS` runs an entry file with the tracer on.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import CodeType, FrameType
    from typing import Any

SWITCH = "NVOCI_TEST_ARCS"
"""Variable of pytest: the directory the arcs are written to."""
PACKAGE = os.path.join(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))), "hooks", "nvoci")
AREAS, ARCS, RECORD = 16, 32768, 6  # of a file, of an area, bytes of an arc
AREA = ARCS * RECORD
_TEXT_SIZE = 1 << 16  # before the areas: the counter of areas, then names of the files
_RETURNS = ("RETURN_VALUE", "RETURN_CONST")


class Tracer:
    """One for a process and its children."""

    def __init__(self, folder: str, *, files: bool = False) -> None:
        """files: each child gets a file."""
        import struct

        self.folder, self.files = folder, files
        self.pack = struct.Struct("<Hhh").pack_into
        names = [
            os.path.join(place, name)
            for place, _, inside in os.walk(PACKAGE)
            for name in inside
            if name.endswith(".py")
        ]
        self.ids = {name: n for n, name in enumerate(sorted(names), 1)}
        self.seen: set[tuple[int, int, int]] = set()
        self.codes: dict[CodeType, int] = {}
        self.map()
        os.register_at_fork(before=self.before, after_in_child=self.child)

    def map(self) -> None:
        """A new file."""
        import mmap

        path = os.path.join(self.folder, f"{os.getpid()}-{os.urandom(4).hex()}")
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        os.ftruncate(fd, _TEXT_SIZE + AREAS * AREA)
        self.memory = mmap.mmap(fd, _TEXT_SIZE + AREAS * AREA)
        os.close(fd)
        text = "\n".join(self.ids).encode()
        self.memory[4 : 4 + len(text)] = text
        self.enter(0)

    def enter(self, area: int) -> None:
        self.at = _TEXT_SIZE + area * AREA
        self.end = self.at + AREA
        self.next = area

    def before(self) -> None:
        """A fork comes: the next area is the child's."""
        self.next = int.from_bytes(self.memory[:4], "little") + 1
        self.memory[:4] = self.next.to_bytes(4, "little")

    def child(self) -> None:
        if self.files:
            try:
                self.map()
                return
            except OSError:
                pass  # the folder is out of reach, as in another root: an area of its parent's file, then
        if self.next < AREAS:
            self.enter(self.next)
        else:
            self.at = self.end  # no room: what this child does is not told

    def arc(self, file: int, first: int, last: int) -> None:
        key = (file, first, last)
        if key not in self.seen and self.at < self.end:
            self.seen.add(key)
            self.pack(self.memory, self.at, file, first, last)
            self.at += RECORD

    def __call__(self, frame: FrameType, event: str, _: Any) -> Any:
        """Of sys.settrace: a frame begins, or a generator goes on."""
        code = frame.f_code
        file = self.codes.get(code)
        if file is None:
            file = self.codes[code] = self.ids.get(code.co_filename, 0)
        return self.frame(frame, file) if file else None

    def frame(self, frame: FrameType, file: int) -> Any:
        code = frame.f_code
        first = code.co_firstlineno
        at = frame.f_lasti
        begins = at < 0 or code.co_code[at + 1] == 0  # RESUME 0: not after a yield
        last = -first if begins else frame.f_lineno

        def local(frame: FrameType, event: str, _: Any) -> Any:
            nonlocal last
            if event == "line":
                self.arc(file, last, frame.f_lineno)
                last = frame.f_lineno
            elif event == "return" and _ends(frame):
                self.arc(file, last, -first)
            return local

        return local


_tracer: Tracer | None = None


def _ends(frame: FrameType) -> bool:
    """Whether a `return` event is one, and no yield."""
    import opcode

    name = opcode.opname[frame.f_code.co_code[frame.f_lasti]]
    return name not in ("YIELD_VALUE", "SEND", "RESUME")


def start(folder: str, *, files: bool = False) -> None:
    """In this process and its children, from now on. files: see Tracer."""
    import opcode  # noqa: F401  # later, nothing may be imported

    global _tracer
    _tracer = Tracer(folder, files=files)
    sys.settrace(_tracer)


def again() -> None:
    """Go on where start() began: a tracer that meets the limit of recursion is dropped by the interpreter."""
    if _tracer:
        sys.settrace(_tracer)


def wrapper(folder: str) -> str:
    """The text of an interpreter for NVOCI_TEST_ENTRY_PYTHON that traces entry files, and nothing else."""
    python, here = os.path.realpath("/usr/bin/python3"), os.path.abspath(__file__)
    return f"""#!/bin/bash
if [[ ${{1-}} == -ISB && -f ${{2-}} ]]; then exec {python} -ISB {here} {folder} "${{@:2}}"; fi
exec {python} "$@"
"""


def read(folder: str) -> Iterator[tuple[str, int, int]]:
    """(file, from, to) of all processes; an arc may come again."""
    for name in sorted(os.listdir(folder)):
        with open(os.path.join(folder, name), "rb") as file:
            head = file.read(_TEXT_SIZE)
            names = ["", *head[4:].rstrip(b"\0").decode().split("\n")]
            for area in range(min(int.from_bytes(head[:4], "little"), AREAS - 1) + 1):
                file.seek(_TEXT_SIZE + area * AREA)
                yield from _area(file.read(AREA), names)


def _area(data: bytes, names: list[str]) -> Iterator[tuple[str, int, int]]:
    import struct

    for number, first, last in struct.iter_unpack("<Hhh", data):
        if not number:
            return
        yield names[number], first, last


def main() -> None:
    """Run the entry file named on the command line as if it had been started itself."""
    folder, path = sys.argv[1:3]
    with open(path) as file:
        code = compile(file.read(), path, "exec")
    sys.argv = sys.argv[2:]
    try:
        start(folder)
    except OSError:
        sys.settrace(None)  # a user who may not write there, or no descriptors: not told
    exec(code, {"__name__": "__main__", "__file__": path, "__builtins__": __builtins__})


if __name__ == "__main__":
    main()
