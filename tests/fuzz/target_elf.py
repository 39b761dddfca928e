"""ELF files: names, notes, and what the cache says of a library. Second witness: pyelftools."""

from __future__ import annotations

import contextlib
import io
import os
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from elftools.elf.elffile import ELFFile
from fuzz.registry import Field, Target, register
from lib import elfmaker

from nvoci.elf import Elf, ElfError
from nvoci.ldcache.library import Library, NotALibraryError, examine

NOTE_SECTION = b".note.cuda.fwd_compatibility"
Answer = tuple[Elf, "bytes | None", list[bytes], list[Any], list[Any]]

# elf.h, after e_ident: (offset, bytes) of each number. 1: 32 bits, 2: 64 bits.
_EHDR = {1: "HHIIIIIHHHHHH", 2: "HHIQQQIHHHHHH"}
_PHDR = {1: "IIIIIIII", 2: "IIQQQQQQ"}
_SHDR = {1: "IIIIIIIIII", 2: "IIQQQQIIQQ"}
_DYN = {1: "II", 2: "QQ"}
_MAX_TABLE = 16
PT_DYNAMIC, PT_NOTE = 2, 4


def _seeds() -> list[bytes]:
    out = []
    note = (NOTE_SECTION.decode(), "NVIDIA Corporation", 1, b'{"format":1}')
    isa = struct.pack("<II", 0xC0008002, 4) + struct.pack("<I", 7) + bytes(4)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x"
        needed = ["liba.so.2", "libc.so.6"]
        out += [elfmaker.make_so(path, "libx.so.1", needed, machine).read_bytes() for machine in elfmaker.MACHINES]
        for ei_class in (32, 64):
            notes = [note, (".note.gnu.property", "GNU", 5, isa)]
            out.append(elfmaker.make_so(path, "libcuda.so.1", ei_class=ei_class, notes=notes).read_bytes())
        out.append(elfmaker.make_so(path, None, notes=[note], endian="big").read_bytes())
        out.append(elfmaker.make_so(path, "ld.so", interp="/lib64/ld-linux-x86-64.so.2").read_bytes())
    return out


@contextlib.contextmanager
def in_memory(data: bytes) -> Iterator[int]:
    """A descriptor of a file with these bytes."""
    fd = os.memfd_create("elf")
    try:
        os.write(fd, data)
        yield fd
    finally:
        os.close(fd)


def _numbers(start: int, layout: str, order: str) -> list[Field]:
    at, found = start, []
    for letter in layout:
        size = struct.calcsize("=" + letter)
        found.append((at, size, order))
        at += size
    return found


def _header(data: bytes) -> tuple[int, str, tuple[int, ...]] | None:
    """(class, byte order, the numbers after e_ident)."""
    if len(data) < 64 or data[:4] != b"\x7fELF" or data[4] not in (1, 2):
        return None
    order = ">" if data[5] == 2 else "<"
    return data[4], order, struct.unpack_from(order + _EHDR[data[4]], data, 16)


def fields(data: bytes) -> list[Field]:
    """The numbers of the file header, of the tables it names, of .dynamic and of the first notes."""
    head = _header(data)
    if head is None:
        return []
    kind, order, numbers = head
    found = [(4, 1, "<"), (5, 1, "<"), *_numbers(16, _EHDR[kind], order)]
    for segment in segments(data):
        found += _numbers(segment["at"], _PHDR[kind], order)
        if segment["type"] == PT_DYNAMIC:
            for i in range(_MAX_TABLE):
                found += _numbers(segment["offset"] + i * struct.calcsize("=" + _DYN[kind]), _DYN[kind], order)
        elif segment["type"] == PT_NOTE:
            found += _numbers(segment["offset"], "III", order)
    size = struct.calcsize("=" + _SHDR[kind])
    for i in range(min(numbers[11], _MAX_TABLE)):
        found += _numbers(numbers[5] + i * size, _SHDR[kind], order)
    return [(at, size, by) for at, size, by in found if at + size <= len(data)]


def segments(data: bytes) -> list[dict[str, int]]:
    """The first program headers of a file, as far as it has them: at, type, offset, vaddr, filesz."""
    head = _header(data)
    if head is None:
        return []
    kind, order, numbers = head
    layout, out = order + _PHDR[kind], []
    for i in range(min(numbers[9], _MAX_TABLE)):
        at = numbers[4] + i * struct.calcsize(layout)
        if at + struct.calcsize(layout) > len(data):
            break
        raw = struct.unpack_from(layout, data, at)
        places = (0, 1, 2, 4) if kind == 1 else (0, 2, 3, 5)
        out.append({"at": at, **dict(zip(("type", "offset", "vaddr", "filesz"), (raw[p] for p in places)))})
    return out


def parse(fd: int) -> Answer:
    """Everything that a hook asks of an ELF file."""
    elf = Elf(fd)
    return elf, elf.unsafe_soname, elf.unsafe_needed(), elf.section_notes(NOTE_SECTION), elf.segment_notes()


def _check(data: bytes, fd: int, answer: Answer) -> None:
    elf, soname, needed, _, _ = answer
    assert [(n.name, n.type, n.desc) for n in elf.segment_notes()] == [(n.name, n.type, n.desc) for n in answer[4]]
    assert all(b"\0" not in name and len(name) <= 4096 for name in (soname or b"", *needed))
    witness = _pyelftools(data)
    if witness is None:
        return
    assert (elf.bits, elf.endian, elf.type, elf.machine, elf.flags) == witness[:5]
    assert witness[5] in (soname, "unknown"), f"pyelftools: {witness[5]!r}, here: {soname!r}"


def _pyelftools(data: bytes) -> tuple[Any, ...] | None:
    """What it says of a file, without its section headers, which it would trust more than ld.so does. None where it
    refuses the file. Its answer is `unknown` where two readers may rightly differ."""
    head = _header(data)
    if head is None:
        return None
    bare = bytearray(data)
    shoff, size = (32, 4) if data[4] == 1 else (40, 8)
    bare[shoff : shoff + size] = bytes(size)
    bare[-4 + (52 if data[4] == 1 else 64) :][:4] = bytes(4)
    tail = 48 if data[4] == 1 else 60
    bare[tail : tail + 4] = bytes(4)
    try:
        file = ELFFile(io.BytesIO(bytes(bare)))
        raw = head[2]
        return (file.elfclass, "little" if file.little_endian else "big", raw[0], raw[1], raw[6], _soname(file))
    except Exception:  # noqa: BLE001  (it has no one error for a malformed file)
        return None


def _soname(file: ELFFile) -> bytes | str | None:
    dynamic = [s for s in file.iter_segments() if s.header.p_type == "PT_DYNAMIC"]
    if not dynamic:
        return None
    tags = list(dynamic[0].iter_tags())
    if len(tags) * (file.elfclass // 4) > dynamic[0].header.p_filesz:
        return "unknown"  # it reads on behind the segment's end
    named = [t for t in tags if t.entry.d_tag in ("DT_SONAME", "DT_STRTAB", "DT_STRSZ")]
    if len({t.entry.d_tag for t in named}) != len(named):
        return "unknown"  # the same tag twice
    return next((t.soname.encode("utf-8", "surrogateescape") for t in named if t.entry.d_tag == "DT_SONAME"), None)


PARSE = register(
    Target("elf", parse=parse, prepare=in_memory, errors=(ElfError,), seeds=_seeds, fields=fields, check=_check)
)


def _examine(fd: int) -> Library:
    return examine(fd, with_isa_level=True, machine="x86_64")


def _is_sane(data: bytes, fd: int, library: Library) -> None:
    assert 0 <= library.isa_level < 32
    assert library.flags in (0x1, 0x3, 0x303, 0x803)


register(
    Target("library", parse=_examine, prepare=in_memory, errors=(NotALibraryError,), seeds=_seeds, fields=fields,
           check=_is_sane)
)  # fmt: skip
