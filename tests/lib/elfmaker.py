"""Small ELF shared objects and probe programs written by hand, for any machine, class and byte order.

They are real: readelf reads them, ldconfig caches them, ld.so loads them. Layout (elf(5)): one read-execute PT_LOAD
with everything constant, one read-write PT_LOAD with .dynamic and .data at an address that is not the file offset, as
linkers do, so that a reader which confuses the two is found out.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

Note = tuple[str, str, int, bytes]
"""(section name, owner name, type, descriptor)."""

# e_machine, EI_CLASS, byte order, e_flags (the ABI bits that ldconfig looks at)
MACHINES: Mapping[str, tuple[int, int, str, int]] = {
    "x86_64": (62, 64, "little", 0),
    "i386": (3, 32, "little", 0),
    "aarch64": (183, 64, "little", 0),
    "arm": (40, 32, "little", 0x05000400),
    "ppc64le": (21, 64, "little", 2),
    "riscv64": (243, 64, "little", 5),
    "s390x": (22, 64, "big", 0),
    "mips": (8, 32, "big", 0x1000),
}
PT_LOAD, PT_DYNAMIC, PT_INTERP, PT_NOTE, PT_PHDR, PT_GNU_STACK = 1, 2, 3, 4, 6, 0x6474E551
SHT_PROGBITS, SHT_STRTAB, SHT_HASH, SHT_DYNAMIC, SHT_NOTE, SHT_DYNSYM = 1, 3, 5, 6, 7, 11
DT_NEEDED, DT_HASH, DT_STRTAB, DT_SYMTAB, DT_STRSZ, DT_SYMENT, DT_SONAME = 1, 4, 5, 6, 10, 11, 14
PF_X, PF_W, PF_R = 1, 2, 4
PAGE = 0x10000


def make_so(
    path: str | Path,
    soname: str | None = None,
    needed: Sequence[str] = (),
    machine: str = "x86_64",
    ei_class: int | None = None,
    *,
    endian: str | None = None,
    notes: Sequence[Note] = (),
    interp: str | None = None,
    symbols: Mapping[str, int] | None = None,
    functions: Mapping[str, int] | None = None,
    mode: int = 0o644,
) -> Path:
    """Write a shared object. `symbols` are exported 64-bit integers, `functions` take anything and return that int."""
    image = _Image(machine, ei_class, endian, dict(symbols or {}), dict(functions or {}))
    return _write(path, image.build(soname, needed, notes, interp), mode)


def make_probe(path: str | Path, needed: Sequence[str], interp: str, machine: str = "x86_64") -> Path:
    """Write a program that exits 0 if ld.so finds every library in `needed`; ld.so itself exits 127 if not."""
    image = _Image(machine, None, None, {}, {}, exit_program=True)
    return _write(path, image.build(None, needed, (), interp), 0o755)


def note_section(owner: str, kind: int, desc: bytes, order: str = "<") -> bytes:
    """One Elf_Nhdr with name and descriptor, each padded to four bytes."""
    name = owner.encode() + b"\0"
    return struct.pack(order + "III", len(name), len(desc), kind) + _pad(name, 4) + _pad(desc, 4)


def _write(path: str | Path, data: bytes, mode: int) -> Path:
    out = Path(path)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_bytes(data)
    out.chmod(mode)
    return out


def _pad(data: bytes, align: int) -> bytes:
    return data + b"\0" * (-len(data) % align)


@dataclass
class _Section:
    name: str
    kind: int
    flags: int
    data: bytes
    align: int = 8
    link: int = 0
    info: int = 0
    entsize: int = 0
    offset: int = 0
    addr: int = 0


@dataclass
class _Image:
    machine: str
    ei_class: int | None
    endian: str | None
    symbols: dict[str, int]
    functions: dict[str, int]
    exit_program: bool = False
    sections: list[_Section] = field(default_factory=list)
    tags: list[tuple[int, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.em, bits, order, self.flags = MACHINES[self.machine]
        self.is64 = (self.ei_class or bits) == 64
        self.order = "<" if (self.endian or order) == "little" else ">"
        self.word = "Q" if self.is64 else "I"
        self.ehsize, self.phentsize, self.shentsize = (64, 56, 64) if self.is64 else (52, 32, 40)
        self.strings = bytearray(b"\0")

    def pack(self, fmt: str, *values: int | bytes) -> bytes:
        return struct.pack(self.order + fmt.replace("A", self.word), *values)

    def string(self, text: str) -> int:
        at = len(self.strings)
        self.strings += text.encode() + b"\0"
        return at

    def build(self, soname: str | None, needed: Sequence[str], notes: Sequence[Note], interp: str | None) -> bytes:
        self.tags = [(DT_NEEDED, self.string(n)) for n in needed]
        if soname is not None:
            self.tags.append((DT_SONAME, self.string(soname)))
        names = [self.string(n) for n in (*self.symbols, *self.functions)]
        code, starts = self._code()
        self._constant(names, notes, interp, code)
        first_writable = len(self.sections)
        self._writable()
        phnum = 4 + (2 if interp else 0) + len(notes)
        self._place(self.ehsize + phnum * self.phentsize, first_writable)
        self.find(".dynsym").data = self._dynsym(names, starts)
        self.find(".dynamic").data = self._dynamic()
        return self._emit(phnum, first_writable)

    def find(self, name: str) -> _Section:
        return next(s for s in self.sections if s.name == name)

    def _code(self) -> tuple[bytes, list[int]]:
        code, starts = b"", []
        if self.exit_program:
            code = _pad(EXIT_CODE[self.machine], 16)
        for value in self.functions.values():
            starts.append(len(code))
            code += _pad(return_code(self.machine, value), 16)
        return code, starts

    def _constant(self, names: list[int], notes: Sequence[Note], interp: str | None, code: bytes) -> None:
        add = self.sections.append
        add(_Section("", 0, 0, b"", 1))
        if interp:
            add(_Section(".interp", SHT_PROGBITS, 2, interp.encode() + b"\0", 1))
        dynsym = len(self.sections) + 1
        syment = 24 if self.is64 else 16
        add(_Section(".hash", SHT_HASH, 2, self._hash(), 8, link=dynsym, entsize=4))
        add(_Section(".dynsym", SHT_DYNSYM, 2, b"\0" * syment * (1 + len(names)), 8, dynsym + 1, 1, syment))
        add(_Section(".dynstr", SHT_STRTAB, 2, bytes(self.strings), 1))
        for section, owner, kind, desc in notes:
            add(_Section(section, SHT_NOTE, 2, note_section(owner, kind, desc, self.order), 4))
        if code:
            add(_Section(".text", SHT_PROGBITS, 6, code, 16))

    def _writable(self) -> None:
        dynstr = self.sections.index(self.find(".dynstr"))
        dynent = 16 if self.is64 else 8
        size = dynent * (len(self.tags) + 6)
        self.sections.append(_Section(".dynamic", SHT_DYNAMIC, 3, b"\0" * size, 8, dynstr, entsize=dynent))
        if self.symbols:
            data = b"".join(self.pack("Q", v & (1 << 64) - 1) for v in self.symbols.values())
            self.sections.append(_Section(".data", SHT_PROGBITS, 3, data, 8))

    def _hash(self) -> bytes:
        """One bucket: the chain visits every symbol. Enough for a handful, and right for any."""
        count = 1 + len(self.symbols) + len(self.functions)
        chain = [0, *range(2, count), 0][:count]
        return self.pack(f"II I{count}I", 1, count, 1 if count > 1 else 0, *chain)

    def _place(self, start: int, first_writable: int) -> None:
        offset = start
        for index, section in enumerate(self.sections[1:], 1):
            offset += -offset % section.align
            section.offset = offset
            section.addr = offset + (PAGE if index >= first_writable else 0)
            offset += len(section.data)

    def _dynsym(self, names: list[int], starts: list[int]) -> bytes:
        out = self._symbol(0, 0, 0, 0, 0)
        objects = len(self.symbols)
        for i, name in enumerate(names):
            kind, section, at = (1, ".data", 8 * i) if i < objects else (2, ".text", starts[i - objects])
            where = self.find(section)
            out += self._symbol(name, 0x10 | kind, self.sections.index(where), where.addr + at, 8)
        return out

    def _symbol(self, name: int, info: int, shndx: int, value: int, size: int) -> bytes:
        if self.is64:
            return self.pack("IBBHQQ", name, info, 0, shndx, value, size)
        return self.pack("IIIBBH", name, value, size, info, 0, shndx)

    def _dynamic(self) -> bytes:
        strtab, symtab = self.find(".dynstr"), self.find(".dynsym")
        table = [(DT_HASH, self.find(".hash").addr), (DT_STRTAB, strtab.addr), (DT_SYMTAB, symtab.addr)]
        table += [(DT_STRSZ, len(strtab.data)), (DT_SYMENT, symtab.entsize), (0, 0)]
        return b"".join(self.pack("AA", *entry) for entry in self.tags + table)

    def _segment(
        self, kind: int, flags: int, parts: Sequence[_Section], align: int, whole_file_start: bool = False
    ) -> bytes:
        offset = 0 if whole_file_start or not parts else parts[0].offset
        addr = 0 if whole_file_start or not parts else parts[0].addr
        size = parts[-1].offset + len(parts[-1].data) - offset if parts else 0
        if self.is64:
            return self.pack("IIQQQQQQ", kind, flags, offset, addr, addr, size, size, align)
        return self.pack("IIIIIIII", kind, offset, addr, addr, size, size, flags, align)

    def _emit(self, phnum: int, first_writable: int) -> bytes:
        constant, writable = self.sections[1:first_writable], self.sections[first_writable:]
        segments = []
        if self.sections[1].name == ".interp":
            table = _Section("", 0, 0, b"\0" * (phnum * self.phentsize), 8, offset=self.ehsize, addr=self.ehsize)
            segments.append(self._segment(PT_PHDR, PF_R, [table], 8))
            segments.append(self._segment(PT_INTERP, PF_R, [self.sections[1]], 1))
        segments.append(self._segment(PT_LOAD, PF_R | PF_X, constant, PAGE, True))
        segments.append(self._segment(PT_LOAD, PF_R | PF_W, writable, PAGE))
        segments.append(self._segment(PT_DYNAMIC, PF_R | PF_W, [self.find(".dynamic")], 8))
        segments += [self._segment(PT_NOTE, PF_R, [s], 4) for s in constant if s.kind == SHT_NOTE]
        segments.append(self._segment(PT_GNU_STACK, PF_R | PF_W, [], 16))  # else glibc asks for an executable stack
        body = bytearray(b"\0" * self.ehsize + b"".join(segments))
        for section in self.sections[1:]:
            body += b"\0" * (section.offset - len(body)) + section.data
        return self._finish(body, len(segments))

    def _finish(self, body: bytearray, phnum: int) -> bytes:
        """Append .shstrtab and the section headers, then write the file header in front."""
        names = b"\0"
        starts = [0]
        listed = [*self.sections, _Section(".shstrtab", SHT_STRTAB, 0, b"", 1, offset=len(body))]
        for section in listed[1:]:
            starts.append(len(names))
            names += section.name.encode() + b"\0"
        listed[-1].data = names
        body += names
        body += b"\0" * (-len(body) % 8)
        shoff = len(body)
        for name, s in zip(starts, listed):
            size = len(s.data)
            align = s.align if s.kind else 0
            body += self.pack(
                "IIAAAAIIAA", name, s.kind, s.flags, s.addr, s.offset, size, s.link, s.info, align, s.entsize
            )
        entry = next((s.addr for s in self.sections if s.name == ".text"), 0) if self.exit_program else 0
        ident = bytes([0x7F, 69, 76, 70, 2 if self.is64 else 1, 1 if self.order == "<" else 2, 1]) + b"\0" * 9
        fixed = (self.flags, self.ehsize, self.phentsize, phnum, self.shentsize, len(listed), len(listed) - 1)
        body[: self.ehsize] = self.pack("16sHHIAAAIHHHHHH", ident, 3, self.em, 1, entry, self.ehsize, shoff, *fixed)
        return bytes(body)


EXIT_CODE: Mapping[str, bytes] = {
    "x86_64": bytes.fromhex("31ff b8e7000000 0f05"),  # xor edi, edi; mov eax, 231 (exit_group); syscall
    "aarch64": bytes.fromhex("000080d2 c80b80d2 010000d4"),  # mov x0, #0; mov x8, #94 (exit_group); svc #0
}


def return_code(machine: str, value: int) -> bytes:
    if machine == "x86_64":
        return b"\xb8" + struct.pack("<i", value) + b"\xc3"  # mov eax, value; ret
    if machine == "aarch64":
        return struct.pack("<II", 0x52800000 | (value & 0xFFFF) << 5, 0xD65F03C0)  # mov w0, #value; ret
    raise ValueError(f"no machine code for functions on {machine}")
