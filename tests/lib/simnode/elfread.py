"""What a description says of an ELF file, read from one."""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterator
from pathlib import Path

from lib import elfmaker
from lib.simnode.description import MACHINES, NOTE_SECTION, ElfFile, ElfNote
from nvoci.elf import Elf, ElfError

_BY_NUMBER = {elfmaker.MACHINES[name][0]: em for em, name in MACHINES.items()}
_SHT_NOTE = 7
_MOST_SECTIONS, _MOST_NOTE = 4096, 1 << 16


def read(path: Path) -> ElfFile | None:
    """None for what is no ELF file, or one that could not be made again (a machine elfmaker does not know)."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if os.pread(fd, 4, 0) != b"\x7fELF":
            return None
        elf = Elf(fd)
        machine = _BY_NUMBER.get(elf.machine)
        if machine is None or elf.endian != "little":
            return None
        soname = None if elf.unsafe_soname is None else elf.unsafe_soname.decode("utf-8", "surrogateescape")
        needed = tuple(name.decode("utf-8", "surrogateescape") for name in elf.unsafe_needed())
        return ElfFile(elf.bits, machine, soname, needed, tuple(_notes(fd, elf.bits)))
    except ElfError:
        return None
    finally:
        os.close(fd)


def _notes(fd: int, bits: int) -> Iterator[ElfNote]:
    """Sections that hold exactly one note; elf.h: Elf_Ehdr.e_shoff, e_shentsize, e_shnum, e_shstrndx, Elf_Shdr."""
    header = os.pread(fd, 64, 0)
    if bits == 64:
        (offset,), layout = struct.unpack_from("<Q", header, 40), "<IIQQQQIIQQ"
        size, count, names_at = struct.unpack_from("<HHH", header, 58)
    else:
        (offset,), layout = struct.unpack_from("<I", header, 32), "<IIIIIIIIII"
        size, count, names_at = struct.unpack_from("<HHH", header, 46)
    if size != struct.calcsize(layout) or count > _MOST_SECTIONS or names_at >= count:
        return
    table = os.pread(fd, size * count, offset)
    sections = list(struct.iter_unpack(layout, table[: len(table) // size * size]))
    if len(sections) != count:
        return
    names = os.pread(fd, min(sections[names_at][5], 1 << 20), sections[names_at][4])
    for section in sections:
        raw = os.pread(fd, min(section[5], _MOST_NOTE), section[4]) if section[1] == _SHT_NOTE else b""
        name = names[section[0] :].partition(b"\0")[0].decode("latin-1")
        if len(raw) >= 12 and len(name) <= 64 and re.fullmatch(NOTE_SECTION, name):
            note = ElfNote(name, raw)
            section_name, owner, kind, desc = note.parts
            if elfmaker.note_section(owner, kind, desc) == raw and owner.isascii():
                yield ElfNote(section_name, raw)
