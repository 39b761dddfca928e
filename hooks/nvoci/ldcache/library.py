"""What ldconfig would enter in the cache for one file: flags, soname, ISA level; or why it would not.

glibc, elf/readelflib.c and its per-machine parts, sysdeps/generic/ldconfig.h. A file that is not for this machine's
loaders is no library here: what ld.so would skip has no place in the cache.
"""

from __future__ import annotations

import sys

from nvoci.elf import PT_GNU_PROPERTY, Elf, ElfError
from nvoci.linux import abi

FLAG_ELF = 0x1
FLAG_ELF_LIBC6 = 0x3
FLAG_X8664_LIB64 = 0x300
FLAG_X8664_LIBX32 = 0x800
FLAG_ARM_LIBHF = 0x900
FLAG_AARCH64_LIB64 = 0xA00
FLAG_ARM_LIBSF = 0xB00

_ET_DYN = 3
_EM_386, _EM_ARM, _EM_X86_64, _EM_AARCH64 = 3, 40, 62, 183
_EF_ARM_EABI_VER5, _EF_ARM_EABIMASK = 0x05000000, 0xFF000000
_EF_ARM_ABI_FLOAT_SOFT, _EF_ARM_ABI_FLOAT_HARD = 0x200, 0x400
_LIBC6 = (b"libc.so.6", b"libm.so.6")
_LIBC6_INTERPS = (b"/lib/ld-linux.so.2", b"/lib64/ld-linux-x86-64.so.2", b"/libx32/ld-linux-x32.so.2")
_NT_GNU_PROPERTY_TYPE_0 = 5
_GNU_PROPERTY_X86_ISA_1_NEEDED = 0xC0008002


class NotALibraryError(ValueError):
    """The message says why, in a few words."""


class Library:
    """flags: FLAG_* together. isa_level: 0 to 3 on x86-64 (baseline, v2, v3, v4), asked for only where it counts."""

    __slots__ = ("flags", "isa_level", "unsafe_soname")

    def __init__(self, flags: int, unsafe_soname: bytes | None, isa_level: int) -> None:
        self.flags = flags
        self.unsafe_soname = unsafe_soname
        self.isa_level = isa_level


def examine(fd: int, with_isa_level: bool = False, machine: str = abi.MACHINE) -> Library:
    """A regular file, open for reading. Raises NotALibraryError."""
    try:
        elf = Elf(fd)
        if elf.type != _ET_DYN:
            raise NotALibraryError(f"not a shared object (e_type {elf.type})")
        if elf.endian != sys.byteorder:
            raise NotALibraryError(f"for another machine ({elf.endian} endian)")
        flags = _FLAGS[machine](elf)
        if not flags:
            raise NotALibraryError(f"for another machine (e_machine {elf.machine}, {elf.bits} bits)")
        if not elf.dynamic:
            raise NotALibraryError("no dynamic section")
        return Library(flags, elf.unsafe_soname, _isa_level(elf) if with_isa_level else 0)
    except ElfError as e:
        raise NotALibraryError(str(e)) from None


def _x86_64(elf: Elf) -> int:
    if elf.machine == _EM_X86_64:
        return FLAG_ELF_LIBC6 | (FLAG_X8664_LIB64 if elf.bits == 64 else FLAG_X8664_LIBX32)
    return _libc6(elf) if elf.machine == _EM_386 and elf.bits == 32 else 0


def _libc6(elf: Elf) -> int:
    """A 32-bit library counts as one of libc6 only if it needs that, or has one of its loaders."""
    if elf.unsafe_interp() in _LIBC6_INTERPS or any(name in _LIBC6 for name in elf.unsafe_needed()):
        return FLAG_ELF_LIBC6
    return FLAG_ELF


def _aarch64(elf: Elf) -> int:
    if elf.machine == _EM_AARCH64 and elf.bits == 64:
        return FLAG_AARCH64_LIB64 | FLAG_ELF_LIBC6
    if elf.machine != _EM_ARM or elf.bits != 32:
        return 0
    if elf.flags & _EF_ARM_EABIMASK == _EF_ARM_EABI_VER5:
        if elf.flags & _EF_ARM_ABI_FLOAT_HARD:
            return FLAG_ARM_LIBHF | FLAG_ELF_LIBC6
        if elf.flags & _EF_ARM_ABI_FLOAT_SOFT:
            return FLAG_ARM_LIBSF | FLAG_ELF_LIBC6
    return _libc6(elf)


_FLAGS = {"x86_64": _x86_64, "aarch64": _aarch64}


def _isa_level(elf: Elf) -> int:
    """The highest x86-64 level that the file says it needs (x86-64 psABI, .note.gnu.property)."""
    if elf.machine != _EM_X86_64:
        return 0
    for note in elf.segment_notes(PT_GNU_PROPERTY, elf.bits // 8):
        if note.name != b"GNU" or note.type != _NT_GNU_PROPERTY_TYPE_0:
            continue
        at, desc, step = 0, note.desc, elf.bits // 8
        while at + 8 <= len(desc):
            kind = int.from_bytes(desc[at : at + 4], "little")
            size = int.from_bytes(desc[at + 4 : at + 8], "little")
            if kind == _GNU_PROPERTY_X86_ISA_1_NEEDED and size == 4:
                return max(0, int.from_bytes(desc[at + 8 : at + 12], "little").bit_length() - 1)
            at += 8 + size + -size % step
    return 0
