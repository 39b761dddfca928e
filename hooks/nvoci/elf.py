"""What a hook asks of an ELF file: class, machine, interpreter, soname, needed libraries, notes. Bounded.

The file is a stranger's. It is read with pread(2) only (a mapped file that is truncated meanwhile is SIGBUS), every
offset and count is checked, and whatever is wrong is an `ElfError`. Three or four reads for an ordinary library.
Layouts: elf(5), elf.h.
"""

from __future__ import annotations

import posix
from _struct import iter_unpack, unpack
from errno import EINVAL

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

PT_LOAD, PT_DYNAMIC, PT_INTERP, PT_NOTE, PT_GNU_PROPERTY = 1, 2, 3, 4, 0x6474E553
SHT_NOTE = 7
DT_NULL, DT_NEEDED, DT_STRTAB, DT_STRSZ, DT_SONAME = 0, 1, 5, 10, 14
_SHN_XINDEX = 0xFFFF

MAX_SEGMENTS = 512
MAX_SECTIONS = 4096
MAX_DYNAMIC = 1 << 18
MAX_NEEDED = 1024
MAX_STRING = 4096
MAX_NOTES = 1 << 17
MAX_NAMES = 1 << 20

# By class (1: 32 bits, 2: 64): Elf_Ehdr after e_ident, Elf_Phdr in the order (type, offset, vaddr, filesz, align),
# Elf_Shdr in the order (name, type, offset, size, link, addralign), Elf_Dyn.
_EHDR = {1: "HHIIIIIHHHHHH", 2: "HHIQQQIHHHHHH"}
_PHDR = {1: "IIIIIIII", 2: "IIQQQQQQ"}
_PHDR_ORDER = {1: (0, 1, 2, 4, 7), 2: (0, 2, 3, 5, 7)}
_SHDR = {1: "IIIIIIIIII", 2: "IIQQQQIIQQ"}
_SHDR_ORDER = (0, 1, 4, 5, 6, 8)
_DYN = {1: "iI", 2: "qQ"}
_HEAD = 1024
_EHSIZE, _PHENTSIZE, _SHENTSIZE = {1: 52, 2: 64}, {1: 32, 2: 56}, {1: 40, 2: 64}


class ElfError(ValueError):
    """The file is not an ELF file, or not a well-formed one; the message is a few words."""


class Note:
    """One note: owner's name without trailing NUL bytes, type, descriptor."""

    __slots__ = ("desc", "name", "type")

    def __init__(self, name: bytes, kind: int, desc: bytes) -> None:
        self.name = name
        self.type = kind
        self.desc = desc


class Elf:
    """bits: 32 or 64. endian: as sys.byteorder. dynamic: whether it has a dynamic section. unsafe_soname: None where
    there is none. Names are as they stand in the file."""

    __slots__ = ("_class", "_fd", "_head", "_needed", "_order", "_sections", "_segments", "bits", "dynamic", "endian",
                 "flags", "interp", "machine", "type", "unsafe_soname")  # fmt: skip

    def __init__(self, fd: int) -> None:
        # All that most files need of their beginning, in one read: measured 0.2 ms less for 25 libraries.
        self._head = _pread(fd, 0, _HEAD)
        ident = self._head[:16]
        if ident[:4] != b"\x7fELF":
            raise ElfError("no ELF magic")
        if len(ident) < 16:
            raise ElfError("truncated")
        if ident[4] not in (1, 2) or ident[5] not in (1, 2) or ident[6] != 1:
            raise ElfError("unknown class, byte order or version")
        self._fd = fd
        self._class = ident[4]
        self._order = "<" if ident[5] == 1 else ">"
        self.endian = "little" if ident[5] == 1 else "big"
        self.bits = 32 * ident[4]
        raw = unpack(self._order + _EHDR[self._class], self._at(16, _EHSIZE[self._class] - 16))
        self.type, self.machine, self.flags = raw[0], raw[1], raw[6]
        self._sections: tuple[int, int, int, int] = (raw[5], raw[10], raw[11], raw[12])
        self._segments = self._read_segments(raw[4], raw[8], raw[9])
        self.interp = any(s[0] == PT_INTERP for s in self._segments)
        self.dynamic = any(s[0] == PT_DYNAMIC and s[3] > 0 for s in self._segments)
        self.unsafe_soname: bytes | None = None
        self._needed: tuple[int, int, list[int]] = (0, 0, [])  # string table, its size, places in it
        self._read_dynamic()

    def _at(self, offset: int, size: int) -> bytes:
        """`_read`, from the beginning of the file if it lies there."""
        end = offset + size
        return self._head[offset:end] if end <= len(self._head) else _read(self._fd, offset, size)

    def _read_segments(self, offset: int, size: int, count: int) -> list[tuple[int, ...]]:
        """(type, offset, vaddr, filesz, align) of each program header."""
        if count == 0:
            return []
        if size != _PHENTSIZE[self._class] or count > MAX_SEGMENTS:
            raise ElfError("bad size or number of program headers")
        table = self._at(offset, size * count)
        order = _PHDR_ORDER[self._class]
        return [tuple(raw[i] for i in order) for raw in iter_unpack(self._order + _PHDR[self._class], table)]

    def _read_dynamic(self) -> None:
        found = next((s for s in self._segments if s[0] == PT_DYNAMIC), None)
        if found is None:
            return
        _, offset, _, size, _ = found
        layout = self._order + _DYN[self._class]
        entry = 8 * self._class
        if size > MAX_DYNAMIC:
            raise ElfError("dynamic section too large")
        table = _read(self._fd, offset, size - size % entry)
        needed: list[int] = []
        one: dict[int, int] = {}
        for tag, value in iter_unpack(layout, table):
            if tag == DT_NULL:
                break
            if tag == DT_NEEDED:
                needed.append(value)
            elif tag in (DT_STRTAB, DT_STRSZ, DT_SONAME):
                one.setdefault(tag, value)
        self._read_names(needed, one)

    def _read_names(self, needed: list[int], one: dict[int, int]) -> None:
        if not needed and DT_SONAME not in one:
            return
        if DT_STRTAB not in one or DT_STRSZ not in one:
            raise ElfError("no string table")
        if len(needed) > MAX_NEEDED:
            raise ElfError("too many needed libraries")
        start, size = self._file_offset(one[DT_STRTAB]), one[DT_STRSZ]
        if DT_SONAME in one:
            self.unsafe_soname = self._string(start, size, one[DT_SONAME])
        self._needed = (start, size, needed)

    def unsafe_needed(self) -> list[bytes]:
        """The libraries it needs, in its order; read when asked for."""
        start, size, places = self._needed
        return [self._string(start, size, at) for at in places]

    def _file_offset(self, address: int) -> int:
        for kind, offset, vaddr, size, _ in self._segments:
            if kind == PT_LOAD and vaddr <= address < vaddr + size:
                return offset + address - vaddr
        raise ElfError("string table outside of every segment")

    def _string(self, start: int, size: int, at: int) -> bytes:
        if at >= size:
            raise ElfError("string outside of its table")
        text, end, _ = _pread(self._fd, start + at, min(size - at, MAX_STRING + 1)).partition(b"\0")
        if not end:
            raise ElfError("string without end")
        return text

    def section_notes(self, name: bytes) -> list[Note]:
        """The notes in all sections of type SHT_NOTE called `name`; none where the file has no section headers."""
        offset, size, count, names_index = self._sections
        if offset == 0:
            return []
        if size != _SHENTSIZE[self._class]:
            raise ElfError("bad size of section headers")
        first = self._read_sections(offset, 1)[0]
        if count == 0:  # the numbers do not fit: section 0 has them
            count = first[3]
        if names_index == _SHN_XINDEX:
            names_index = first[4]
        if count > MAX_SECTIONS or names_index >= count:
            raise ElfError("bad number of section headers")
        sections = self._read_sections(offset, count)
        names_offset, names_size = sections[names_index][2:4]
        if names_size > MAX_NAMES:
            raise ElfError("section names too large")
        names = _read(self._fd, names_offset, names_size)
        wanted = name + b"\0"
        return self._all_notes(
            (start, length, align)
            for at, kind, start, length, _, align in sections
            if kind == SHT_NOTE and names[at : at + len(wanted)] == wanted
        )

    def _read_sections(self, offset: int, count: int) -> list[tuple[int, ...]]:
        """(name, type, offset, size, link, addralign) of each section header."""
        table = _read(self._fd, offset, count * _SHENTSIZE[self._class])
        raws = iter_unpack(self._order + _SHDR[self._class], table)
        return [tuple(raw[i] for i in _SHDR_ORDER) for raw in raws]

    def unsafe_interp(self) -> bytes | None:
        """The interpreter of PT_INTERP, without its NUL; None where there is none."""
        for kind, offset, _, size, _ in self._segments:
            if kind == PT_INTERP:
                return _read(self._fd, offset, min(size, MAX_STRING)).partition(b"\0")[0]
        return None

    def segment_notes(self, kind: int = PT_NOTE, align: int = 0) -> list[Note]:
        """The notes in all segments of type `kind`, of one alignment only if that is given."""
        wanted = (s for s in self._segments if s[0] == kind and align in (0, s[4]))
        return self._all_notes((offset, size, align) for _, offset, _, size, align in wanted)

    def _all_notes(self, areas: Iterable[tuple[int, int, int]]) -> list[Note]:
        """The notes of all (offset, size, align); the limit is for all of them, since areas may lie on each other."""
        found: list[Note] = []
        left = MAX_NOTES
        for offset, size, align in areas:
            left -= size
            if left < 0:
                raise ElfError("notes too large")
            found += self._notes(offset, size, align)
        return found

    def _notes(self, offset: int, size: int, align: int) -> list[Note]:
        """Elf_Nhdr {u32 namesz, descsz, type}, then name and descriptor, each padded to 4 bytes, or 8."""
        pad = 8 if align == 8 else 4
        data = _read(self._fd, offset, size)
        found, at = [], 0
        while at + 12 <= size:
            namesz, descsz, kind = unpack(self._order + "III", data[at : at + 12])
            desc = at + 12 + namesz
            desc += -desc % pad
            end = desc + descsz
            if end > size:
                raise ElfError("note longer than its section")
            found.append(Note(data[at + 12 : at + 12 + namesz].rstrip(b"\0"), kind, data[desc:end]))
            at = end + -end % pad
        return found


def _pread(fd: int, offset: int, size: int) -> bytes:
    try:
        return posix.pread(fd, size, offset)
    except OverflowError:
        raise ElfError("offset outside of the file") from None
    except OSError as e:
        if e.errno != EINVAL:
            raise  # EIO: no answer about the file
        raise ElfError("offset outside of the file") from None


def _read(fd: int, offset: int, size: int) -> bytes:
    """Exactly `size` bytes at `offset`."""
    data = _pread(fd, offset, size)
    if len(data) != size:
        raise ElfError("truncated")
    return data
