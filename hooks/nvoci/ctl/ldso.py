"""What ld.so does with a name: the search in ld.so.cache (glibc, elf/dl-cache.c), and the check of a file before it is
loaded (elf/dl-load.c, open_verify). Computed; nothing is run."""

from __future__ import annotations

from errno import ELOOP, ENOENT, ENOTDIR
from typing import TYPE_CHECKING

from nvoci.elf import Elf, ElfError
from nvoci.ldcache.order import libcmp_key
from nvoci.linux import abi

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from nvoci.ldcache.cache import Entry
    from nvoci.linux.rootfs import Rootfs

_LEVEL_SHIFT, _LEVEL_MASK = 32, 0x3FF
_ET_DYN = 3
MACHINES = {3: "i386", 8: "MIPS", 21: "PowerPC64", 22: "S/390", 40: "ARM", 62: "x86-64", 183: "AArch64", 243: "RISC-V",
            258: "LoongArch"}  # fmt: skip
# The subdirectories of glibc-hwcaps that ld.so looks into, the best first, and the x86-64 level that each needs.
HWCAPS = {b"x86-64-v4": 3, b"x86-64-v3": 2, b"x86-64-v2": 1}


class Abi:
    """The programs of one loader. flags: of the cache entries that it takes. bits, machine: of the files."""

    def __init__(self, name: str, flags: tuple[int, ...], loader: bytes, bits: int, machine: int, triplet: str) -> None:
        self.name = name
        self.flags = flags
        self.loader = loader
        self.bits = bits
        self.machine = machine
        self.triplet = triplet.encode()


_ABIS = {
    "x86_64": (
        Abi("x86-64", (0x303,), b"/lib64/ld-linux-x86-64.so.2", 64, 62, "x86_64-linux-gnu"),
        Abi("i386", (0x003, 0x001), b"/lib/ld-linux.so.2", 32, 3, "i386-linux-gnu"),
        Abi("x32", (0x803,), b"/libx32/ld-linux-x32.so.2", 32, 62, "x86_64-linux-gnux32"),
    ),
    "aarch64": (
        Abi("aarch64", (0xA03,), b"/lib/ld-linux-aarch64.so.1", 64, 183, "aarch64-linux-gnu"),
        Abi("armhf", (0x903, 0x003), b"/lib/ld-linux-armhf.so.3", 32, 40, "arm-linux-gnueabihf"),
        Abi("armel", (0xB03, 0x003), b"/lib/ld-linux.so.3", 32, 40, "arm-linux-gnueabi"),
    ),
}
ABIS = {a.name: a for a in _ABIS[abi.MACHINE]}
NATIVE = _ABIS[abi.MACHINE][0]


def default_directories(programs: Abi, debian: bool) -> list[bytes]:
    """Where this ld.so looks last, without the cache: as the distributions build it."""
    if debian:
        return [b"/lib/" + programs.triplet, b"/usr/lib/" + programs.triplet, b"/lib", b"/usr/lib"]
    library = {"x86-64": b"lib64", "aarch64": b"lib64", "x32": b"libx32"}.get(programs.name, b"lib")
    return [b"/" + library, b"/usr/" + library]


def usable(programs: Abi, cpu_level: int) -> dict[bytes, int]:
    """Rank, 0 for the best, by name of the glibc-hwcaps subdirectories that these programs use on such a CPU."""
    names = [name for name, level in HWCAPS.items() if level <= cpu_level] if programs.name == "x86-64" else []
    return {name: i for i, name in enumerate(names)}


def choose(
    entries: Sequence[Entry], name: bytes, programs: Abi, hwcaps: Mapping[bytes, int], cpu_level: int
) -> Entry | None:
    """The entry that ld.so takes, of all in the order of the cache; None where it finds none."""
    best: Entry | None = None
    rank = len(hwcaps)
    for entry in _named(entries, name):
        if entry.flags not in programs.flags:
            continue
        if entry.hwcaps_name is None:
            if best is not None:
                break
            if entry.hwcap == 0:  # else of a legacy subdirectory, which no newer ld.so looks at
                return entry
            continue
        own = hwcaps.get(entry.hwcaps_name)
        if own is not None and own < rank and entry.hwcap >> _LEVEL_SHIFT & _LEVEL_MASK <= max(cpu_level, 0):
            best, rank = entry, own
    return best


def _named(entries: Sequence[Entry], name: bytes) -> Sequence[Entry]:
    """Those of one name, found as ld.so does: by halves. In a cache that is out of order it may miss them."""
    wanted = libcmp_key(name)
    left, right = 0, len(entries) - 1
    while left <= right:
        middle = (left + right) // 2
        key = libcmp_key(entries[middle].unsafe_soname)
        if key == wanted:
            first = last = middle
            while first > 0 and _is_same(entries[first - 1].unsafe_soname, name, wanted):
                first -= 1
            while last < right and _is_same(entries[last + 1].unsafe_soname, name, wanted):
                last += 1
            return entries[first : last + 1]
        if wanted < key:
            left = middle + 1
        else:
            right = middle - 1
    return []


def _is_same(soname: bytes, name: bytes, wanted: bytes) -> bool:
    """To ld.so, libx.so.1 and libx.so.01 are."""
    return soname == name or libcmp_key(soname) == wanted


class Header:
    """What the ELF header of a file says, and what open_verify makes of it for some programs."""

    def __init__(self, elf: Elf | None, wrong: str) -> None:
        self.elf = elf
        self.wrong = wrong  # why it is no ELF file, or not there

    def text(self) -> str:
        """`64-bit x86-64`, or what is wrong."""
        if self.elf is None:
            return self.wrong
        machine = MACHINES.get(self.elf.machine, f"e_machine {self.elf.machine}")
        return f"{self.elf.bits}-bit {machine}" + (", big endian" if self.elf.endian == "big" else "")

    def loads(self, programs: Abi) -> bool:
        """Whether these programs can load it."""
        elf = self.elf
        return elf is not None and (elf.bits, elf.machine) == (programs.bits, programs.machine) and elf.type == _ET_DYN

    def stops(self, programs: Abi) -> bool:
        """Whether ld.so gives up at this file instead of looking on: it does at what is no library at all."""
        if self.elf is None:
            return self.wrong != ABSENT
        return not self.loads(programs) and (self.elf.bits, self.elf.machine) == (programs.bits, programs.machine)


ABSENT = "leads nowhere"


def header(rootfs: Rootfs, path: bytes) -> Header:
    """Of a file of the root; nothing but a regular file is opened. Raises OSError other than absence."""
    try:
        with rootfs.open_file(path) as fd:
            return Header(Elf(fd.fileno()), "")
    except ElfError as e:
        return Header(None, f"no ELF file that can be read: {e}")
    except OSError as e:
        if e.errno in (ENOENT, ENOTDIR, ELOOP):
            return Header(None, ABSENT)
        if e.strerror == "not a regular file":
            return Header(None, e.strerror)
        raise
