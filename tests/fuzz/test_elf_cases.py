"""ELF files whose parts lie on each other, lead nowhere, or are as large as they may be: one error, or an answer."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import pytest
from fuzz.limits import cpu_seconds, mebibytes, outcome
from fuzz.target_elf import fields, in_memory, parse, segments
from lib import elfmaker

from nvoci import elf
from nvoci.elf import ElfError
from nvoci.ldcache.library import NotALibraryError, examine

PT_LOAD, PT_DYNAMIC, PT_INTERP, PT_NOTE = 1, 2, 3, 4
DT_NULL, DT_NEEDED, DT_STRTAB, DT_STRSZ, DT_SONAME = 0, 1, 5, 10, 14
Segment = tuple[int, int, int]
FIRST = 32768
"""Where the body of a made file begins, in the file and in memory."""


def image(
    body: bytes = b"", parts: list[Segment] | None = None, phnum: int | None = None, phoff: int = 64, shoff: int = 0,
    shnum: int = 0, shstrndx: int = 0,
) -> bytes:  # fmt: skip
    """A 64-bit file: one PT_LOAD over everything, `parts` (type, offset, size), the body at FIRST."""
    every = [(PT_LOAD, 0, 1 << 40), *(parts or [])]
    head = b"\x7fELF\2\1\1" + bytes(9)
    count = len(every) if phnum is None else phnum
    head += struct.pack("<HHIQQQIHHHHHH", 3, 62, 1, 0, phoff, shoff, 0, 64, 56, count, 64, shnum, shstrndx)
    table = b"".join(struct.pack("<IIQQQQQQ", kind, 4, at, at, at, size, size, 4) for kind, at, size in every)
    return (head + table).ljust(FIRST, b"\0") + body


def dynamic(tags: list[tuple[int, int]], strings: bytes, soname_size: int | None = None) -> bytes:
    """Strings first, then .dynamic with its string table's place and size in front."""
    at = FIRST + len(strings) + -len(strings) % 16
    head = [(DT_STRTAB, FIRST), (DT_STRSZ, len(strings) if soname_size is None else soname_size)]
    table = b"".join(struct.pack("<QQ", *tag) for tag in (*head, *tags))
    return image(strings.ljust(at - FIRST, b"\0") + table, [(PT_DYNAMIC, at, len(table))])


def note(namesz: int, descsz: int, content: bytes = b"") -> bytes:
    data = struct.pack("<III", namesz, descsz, 1) + content
    return image(data, [(PT_NOTE, FIRST, len(data))])


def of_class(bits: int, claimed: int) -> Callable[[], bytes]:
    def make() -> bytes:
        made = image(dynamic([], b"\0")) if bits == 64 else b"\x7fELF\1\1\1" + bytes(100)
        return made[:4] + bytes([claimed]) + made[5:]

    return make


N = 1 << 18
SHAPES: dict[str, Callable[[], bytes]] = {
    "64 bits said to be 32": of_class(64, 1),
    "32 bits said to be 64": of_class(32, 2),
    "headers are the file header": lambda: image(phoff=0),
    "headers are the sections": lambda: image(phoff=64, shoff=64, shnum=2, shstrndx=1),
    "0xffff program headers": lambda: image(bytes(60 * 0xFFFF), phnum=0xFFFF),
    "as many program headers as are read": lambda: image(bytes(1 << 16), [(9, 0, 0)] * (elf.MAX_SEGMENTS - 1)),
    ".dynamic is the file header": lambda: image(parts=[(PT_DYNAMIC, 0, 64)]),
    ".dynamic is its own header": lambda: image(parts=[(PT_DYNAMIC, 64, 112)]),
    ".dynamic without end": lambda: image(struct.pack("<QQ", 99, 0) * (N // 16), [(PT_DYNAMIC, FIRST, N)]),
    "as many names as tags": lambda: image(struct.pack("<QQ", DT_NEEDED, 0) * (N // 16), [(PT_DYNAMIC, FIRST, N)]),
    "two .dynamic": lambda: image(bytes(64), [(PT_DYNAMIC, FIRST, 32), (PT_DYNAMIC, 1 << 40, 1)]),
    "strings are .dynamic": lambda: dynamic([(DT_SONAME, 0)], b"", 16),
    "a soname of 1 MiB": lambda: dynamic([(DT_SONAME, 1)], b"\0" + b"x" * (1 << 20) + b"\0"),
    "a soname of 1 MiB without end": lambda: dynamic([(DT_SONAME, 1)], b"\0" + b"x" * (1 << 20)),
    "a soname of the greatest length": lambda: dynamic([(DT_SONAME, 1)], b"\0" + b"x" * elf.MAX_STRING + b"\0"),
    "as many needed as allowed, each 4 KiB": lambda: dynamic(
        [(DT_NEEDED, 1)] * elf.MAX_NEEDED, b"\0" + b"x" * elf.MAX_STRING + b"\0"
    ),
    "namesz 2^32-1": lambda: note(0xFFFFFFFF, 0),
    "descsz 2^32-1": lambda: note(4, 0xFFFFFFFF, b"GNU\0"),
    "namesz and descsz that wrap at 2^32 together": lambda: note(0xFFFFFFF0, 0x10, b"GNU\0" * 8),
    "notes of no size": lambda: image(bytes(4 * N), [(PT_NOTE, FIRST, 8 * N)]),
    "notes as many as fit": lambda: image(bytes(N), [(PT_NOTE, FIRST, N)]),
    "500 segments of the same notes": lambda: image(bytes(480), [(PT_NOTE, FIRST, 480)] * 500),
    "500 segments of the same large notes": lambda: image(bytes(N), [(PT_NOTE, FIRST, N)] * 500),
    "section 0 says 2^32 sections": lambda: image(bytes(32) + struct.pack("<Q", 1 << 32) + bytes(88), shoff=FIRST),
    "section 0 is the file header": lambda: image(shoff=1, shnum=0, shstrndx=0xFFFF),
    "as many sections as are read": lambda: image(bytes(64 * 4096), shoff=FIRST, shnum=4096),
    "0xfeff sections": lambda: image(bytes(64 * 0xFEFF), shoff=FIRST, shnum=0xFEFF),
    "a gnu property of no size": lambda: note(4, N - 16, (b"GNU\0" + bytes(N - 16))),
}


def names(error: Any) -> str:
    return str(error) if isinstance(error, Exception) else "answer"


@pytest.mark.parametrize("shape", SHAPES)
def test_an_odd_file_is_one_error_or_an_answer_in_little_time(shape: str) -> None:
    with in_memory(SHAPES[shape]()) as fd:
        names(outcome(lambda: parse(fd), (ElfError,)))
        assert cpu_seconds(lambda: parse(fd), (ElfError,)) < 0.010
        assert mebibytes(lambda: parse(fd), (ElfError,)) < 8


@pytest.mark.parametrize("shape", SHAPES)
def test_the_same_of_what_the_cache_would_say_of_it(shape: str) -> None:
    with in_memory(SHAPES[shape]()) as fd:
        call: Callable[[], Any] = lambda: examine(fd, True, "x86_64")
        outcome(call, (NotALibraryError,))
        assert cpu_seconds(call, (NotALibraryError,)) < 0.010


WANTED = {
    "a soname of 1 MiB": "string without end",
    "a soname of 1 MiB without end": "string without end",
    "0xffff program headers": "bad size or number of program headers",
    "namesz 2^32-1": "note longer than its section",
    "descsz 2^32-1": "note longer than its section",
    "namesz and descsz that wrap at 2^32 together": "note longer than its section",
    "notes of no size": "notes too large",
    "500 segments of the same large notes": "notes too large",
    "as many names as tags": "no string table",
    ".dynamic without end": "answer",
    "0xfeff sections": "bad number of section headers",
    "section 0 says 2^32 sections": "bad number of section headers",
    "as many program headers as are read": "answer",
    "a soname of the greatest length": "answer",
}


@pytest.mark.parametrize("shape", WANTED)
def test_which_it_is(shape: str) -> None:
    with in_memory(SHAPES[shape]()) as fd:
        assert names(outcome(lambda: parse(fd), (ElfError,))) == WANTED[shape]


def test_the_fields_that_are_fuzzed_are_where_they_are_said_to_be(tmp_path: Any) -> None:
    for machine in elfmaker.MACHINES:
        data = elfmaker.make_so(tmp_path / "x", "libx.so.1", machine=machine).read_bytes()
        kinds = [s["type"] for s in segments(data)]
        assert kinds[:3] == [PT_LOAD, PT_LOAD, PT_DYNAMIC]
        places = [(at, size) for at, size, _ in fields(data)]
        assert len(places) > 60
        order = ">" if elfmaker.MACHINES[machine][2] == "big" else "<"
        size = 4 if elfmaker.MACHINES[machine][1] == 32 else 8
        table = next(s["offset"] for s in segments(data) if s["type"] == PT_DYNAMIC)
        assert (table, size) in places
        assert struct.unpack_from(order + ("I" if size == 4 else "Q"), data, table)[0] == DT_SONAME
